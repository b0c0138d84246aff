import Testing

@testable import Quorum

private let instance = WitnessInstance(generation: 3, birth: 0x0102_0304_0506_0708)
private let full = Ballot(instance: instance, number: 0x1112, node: .b)
private let memory = VoterMemory(promised: full, accepted: ballot(4, .a))

private let samples: [QuorumMessage.Body] = [
    .prepare(full, memory: memory), .prepare(full, memory: memory, forced: true),
    .promise(
        full, acceptedBallot: ballot(4, .a), accepted: both,
        mark: LogMark(epoch: Epoch(rawValue: 6), seq: Seq(rawValue: 99))),
    .accept(full, takenOver, memory: memory), .accepted(full), .refused(full, .prepare, promised: full, .ballot),
    .refused(full, .accept, promised: full, .leaseHeld(remainingMilliseconds: 3999)),
    .refused(full, .accept, promised: full, .restarted(remainingMilliseconds: 1)),
    .leaseRequest(
        number: 7, heard: 6, epoch: Epoch(rawValue: 5), grantMilliseconds: 4000, memory: memory,
        committed: Seq(rawValue: 77)),
    .leaseGranted(number: 7), .leaseRefused(number: 7, .unheard, accepted: Epoch(rawValue: 9)),
    .leaseRefused(number: 7, .roundFirst, accepted: Epoch(rawValue: 9)),
    .leaseRelease(number: 8), .empty(birth: 55),
    .seed(birth: 55, mirror: mirror, name: "ledger", promised: full, acceptedBallot: full, accepted: both),
    .nameTaken(by: mirror), .status(.serving, chosen: both, witness: memory),
    .status(.idle, chosen: nil, witness: VoterMemory()), .heard(birth: 5, session: 9, ballot: full),
    .greet(promised: full),
]

private func message(_ body: QuorumMessage.Body) -> QuorumMessage {
    QuorumMessage(sender: Incarnation(birth: 1, session: 2), number: 3, echo: 4, body: body)
}

@Suite struct QuorumMessageTests {
    @Test(arguments: samples.indices) func comesBackAsItWasSent(index: Int) throws {
        let sent = message(samples[index])
        let bytes = sent.encoded()
        #expect(bytes.count <= QuorumMessage.encodedLimit)
        #expect(try QuorumMessage(decoding: bytes[...]) == sent)
    }

    /// Whoever counted on from there would come to the end of the numbers.
    @Test func failure38NumbersThatNobodyCountsToAreRefused() {
        var far = full
        far.number = Ballot.numberLimit
        var late = full
        late.instance.generation = WitnessInstance.generationLimit
        var decision = both
        decision.sequence = Decision.sequenceLimit
        for body: QuorumMessage.Body in [
            .prepare(far, memory: memory), .prepare(late, memory: memory), .accept(full, decision, memory: memory),
            .greet(promised: far),
        ] {
            let bytes = message(body).encoded()
            #expect(throws: DecodingError.self) { try QuorumMessage(decoding: bytes[...]) }
        }
    }

    @Test func goldenBytesOfAnAcceptedAnswer() {
        let expected: [UInt8] =
            [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]
            + [4] + [3, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0x12, 0x11, 0, 0, 0, 0, 0, 0, 1]
        #expect(message(.accepted(full)).encoded() == expected)
    }

    @Test func goldenBytesOfADecisionInAStatus() {
        let bytes = message(.status(.serving, chosen: both, witness: VoterMemory())).encoded()
        #expect(Array(bytes[32...33]) == [13, 2])
        #expect(Array(bytes.suffix(15)) == [1, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 3])
    }

    @Test func goldenBytesOfTheFile() throws {
        var state = genesis
        state.longestGrantMilliseconds = 0x0102_0304
        let bytes = state.encoded()
        let expected: [UInt8] =
            [0x4C, 0x53, 0x41, 0x43, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0]
            + Array("ledger".utf8) + [77, 0, 0, 0, 0, 0, 0, 0]
        #expect(Array(bytes.prefix(expected.count)) == expected)
        #expect(bytes.count == 28 + 6 + 16 + 21 + 21 + 14 + 21 + 126 + 4 + 21 + 4 + 4)
        #expect(Array(bytes.suffix(33).prefix(29)) == [UInt8](repeating: 0, count: 25) + [4, 3, 2, 1])
        #expect(try AcceptorState(decoding: bytes) == state)
    }

    @Test(arguments: [nil, Epoch(rawValue: 0x0102_0304)], [nil, full])
    func goldenBytesOfTheFileAfterAForcedPromotion(forced: Epoch?, bar: Ballot?) throws {
        var state = genesis
        state.promised = full
        state.forcedEpoch = forced
        state.leaseBar = bar
        let bytes = state.encoded()
        let expectedEpoch: [UInt8] = forced == nil ? [0, 0, 0, 0] : [4, 3, 2, 1]
        let expectedBar: [UInt8] =
            bar == nil
            ? [UInt8](repeating: 0, count: 21)
            : [3, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0x12, 0x11, 0, 0, 0, 0, 0, 0, 1]
        #expect(Array(bytes.suffix(33).prefix(25)) == expectedEpoch + expectedBar)
        #expect(try AcceptorState(decoding: bytes) == state)
        guard bar != nil else { return }
        state.promised = genesis.promised
        let contradicting = state.encoded()
        #expect(throws: DecodingError.self) { try AcceptorState(decoding: contradicting) }
    }

    /// What earlier programs wrote: 1 without anything behind the memories, 2 with the epoch, 3 with the bar as well.
    @Test(arguments: [1, 2, 3], [nil, Epoch(rawValue: 9)])
    func failure32FilesOfEarlierVersionsAreRead(version: UInt8, forced: Epoch?) throws {
        var state = genesis
        state.promised = full
        if version > 1 { state.forcedEpoch = forced }
        if version > 2 { state.leaseBar = full }
        guard version != 2 || forced != nil else { return }
        var bytes = Array(state.encoded().dropLast(4 + 4))
        bytes.removeLast([25, 21, 0][Int(version) - 1])
        bytes[4] = version
        let checksum = crc32c(bytes)
        bytes += (0..<4).map { UInt8(truncatingIfNeeded: checksum >> (8 * $0)) }
        #expect(try AcceptorState(decoding: bytes) == state)
    }

    @Test(arguments: [nil, Epoch(rawValue: 9)], [nil, ballot(4, .b)])
    func aFileWithAnyByteChangedIsRefused(forced: Epoch?, bar: Ballot?) {
        var state = genesis
        state.forcedEpoch = forced
        state.leaseBar = bar
        let bytes = state.encoded()
        for index in bytes.indices {
            var damaged = bytes
            damaged[index] ^= 0x10
            #expect(throws: DecodingError.self) { try AcceptorState(decoding: damaged) }
        }
        for length in bytes.indices {
            #expect(throws: DecodingError.self) { try AcceptorState(decoding: Array(bytes.prefix(length))) }
        }
    }

    /// Random bytes, cut and changed messages: refused, or read as something that is written back the same way.
    @Test func failure38GarbageIsRefusedAndNeverStopsTheProcess() {
        var generator = SmallGenerator(seed: 38)
        var read = 0
        for round in 0..<20_000 {
            var bytes: [UInt8]
            if round % 3 == 0 {
                bytes = (0..<Int(generator.upTo(200))).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
            } else {
                bytes = message(samples[Int(generator.upTo(UInt64(samples.count - 1)))]).encoded()
                for _ in 0...generator.upTo(3) {
                    bytes[Int(generator.upTo(UInt64(bytes.count - 1)))] = UInt8(truncatingIfNeeded: generator.next())
                }
                if round % 3 == 2 { bytes.removeLast(Int(generator.upTo(UInt64(bytes.count)))) }
            }
            if let message = try? QuorumMessage(decoding: bytes[...]) {
                #expect(message.encoded() == bytes)
                read += 1
            }
        }
        #expect(read > 1000)
        #expect(throws: DecodingError.self) { try QuorumMessage(decoding: [UInt8](repeating: 0, count: 5000)[...]) }
    }

    /// No number of a file could be made in such an epoch, and the next one would be none.
    @Test(arguments: [Epoch.limit, Epoch(rawValue: .max)]) func failure38ADecisionBeyondAllEpochsIsRefused(epoch: Epoch)
    {
        let decision = Decision(sequence: 7, epoch: epoch, primary: .a, inSync: .both)
        let bytes = message(.accept(ballot(4, .a), decision, memory: memory)).encoded()
        #expect(throws: DecodingError.self) { try QuorumMessage(decoding: bytes[...]) }
    }
}
