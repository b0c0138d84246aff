import Format
import Testing

private let epochs = [
    EpochStart(epoch: Epoch(rawValue: 2), firstSeq: Seq(rawValue: 0x0101)),
    EpochStart(epoch: Epoch(rawValue: 3), firstSeq: Seq(rawValue: 0x0202)),
]

/// What two nodes say to each other about their logs. Another byte here is another version of the protocol.
@Suite struct DataMessageTests {
    private static func state(decision: Decision?) -> LogState {
        LogState(
            isServing: true, isIncomplete: false, decision: decision, ballot: decision == nil ? [] : [0x11, 0x22, 1],
            lastSeq: Seq(rawValue: 0x0303), lastChain: 0x1122_3344_5566_7788, durableSeq: Seq(rawValue: 0x0302),
            committedSeq: Seq(rawValue: 0x0301), oldestSeq: Seq(rawValue: 0x0102), epochs: epochs)
    }

    @Test func theBytesOfALogStateStayWhatTheyAre() throws {
        var state = DataMessageTests.state(
            decision: Decision(sequence: 0x0A, epoch: Epoch(rawValue: 3), primary: .b, inSync: .both))
        state.wantsAnswer = true
        state.lossAt = Seq(rawValue: 0x0404)
        state.limits = FileLimits(
            fileBytes: 0x0102_0304_0506_0708, links: 0x1112_1314, xattrBytes: 0x2122_2324, targetBytes: 0x3132_3334,
            directoryBytes: 0x4142_4344_4546_4748)
        state.limits.times = -0x5152_5354_5556_5758...0x6162_6364_6566_6768
        state.limits.timeStep = 1000
        let message = DataMessage.logState(state)
        #expect(
            hexadecimal(message.encoded())
                == "01" + "01" + "00" + "01" + "00" + "0000000000000000" + "01"
                + "0a00000000000000" + "03000000" + "01" + "03" + "03" + "1100000000000000" + "2200000000000000"
                + "0100000000000000" + "0303000000000000" + "8877665544332211" + "0203000000000000"
                + "0103000000000000" + "0201000000000000" + "02000000" + "02000000" + "0101000000000000" + "03000000"
                + "0202000000000000" + "01" + "0404000000000000" + "00"
                + "0807060504030201" + "14131211" + "24232221" + "34333231" + "4847464544434241"
                + "a8a8a9aaabacadae" + "6867666564636261" + "e8030000")
        #expect(try DataMessage(decoding: message.encoded()) == message)
    }

    @Test func theBytesOfTheLogStateOfAnIncompleteCopyStayWhatTheyAre() throws {
        var state = DataMessageTests.state(decision: nil)
        state.isServing = false
        state.isIncomplete = true
        state.isStrict = true
        state.resyncNumber = 0x0102_0304_0506_0708
        state.forcedAt = Seq(rawValue: 0x0505)
        let message = DataMessage.logState(state)
        #expect(
            hexadecimal(message.encoded())
                == "01" + "00" + "01" + "00" + "01" + "0807060504030201" + "00" + "00" + "0303000000000000"
                + "8877665544332211" + "0203000000000000" + "0103000000000000" + "0201000000000000" + "02000000"
                + "02000000" + "0101000000000000" + "03000000" + "0202000000000000" + "00" + "01"
                + "0505000000000000" + "0000000000000400" + "ffffffff" + "00000100" + "ff0f0000" + "ffffffffffffffff"
                + "0000000000000080" + "ffffffffffffff7f" + "01000000")
        #expect(try DataMessage(decoding: message.encoded()) == message)
    }

    @Test func theBytesOfAnAcknowledgementStayWhatTheyAre() throws {
        let message = DataMessage.acknowledgement(
            Acknowledgement(
                received: Seq(rawValue: 0x0303), durable: Seq(rawValue: 0x0302), applied: Seq(rawValue: 0x0301),
                room: DiskRoom(bytes: 0x0102_0304_0506, files: 0x0A0B, seq: Seq(rawValue: 0x0300))))
        #expect(
            hexadecimal(message.encoded())
                == "05" + "0303000000000000" + "0203000000000000" + "0103000000000000" + "0605040302010000"
                + "0b0a000000000000" + "0003000000000000")
        #expect(try DataMessage(decoding: message.encoded()) == message)
    }

    @Test func theBytesOfTheStartOfAResynchronisationStayWhatTheyAre() throws {
        for (kind, byte) in [(ResyncStart.Kind.comparison, "00"), (.ranges, "01"), (.resumed, "02")] {
            let message = DataMessage.resyncStart(
                ResyncStart(
                    kind: kind, number: 0x0102_0304_0506_0708, base: Seq(rawValue: 0x0A0B),
                    chain: 0x1122_3344_5566_7788, epochs: epochs, through: Seq(rawValue: 0x0A0A)))
            #expect(
                hexadecimal(message.encoded())
                    == "07" + byte + "0807060504030201" + "0b0a000000000000" + "8877665544332211" + "02000000"
                    + "02000000" + "0101000000000000" + "03000000" + "0202000000000000" + "0a0a000000000000")
            #expect(try DataMessage(decoding: message.encoded()) == message)
        }
        var unknown = DataMessage.resyncStart(
            ResyncStart(kind: .ranges, number: 1, base: .zero, chain: 0, epochs: [], through: .zero)
        ).encoded()
        unknown[1] = 3
        #expect(throws: DecodingError.self) { try DataMessage(decoding: unknown) }
    }
}
