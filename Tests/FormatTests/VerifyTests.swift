import Format
import Testing

private let file = FileID(epoch: Epoch(rawValue: 3), counter: 77)
private let hash = Hash128(low: 0x0102, high: 0x0304)

private let outcomes: [VerifyOutcome] = [
    .gone, .failed(5), .content(hash), .blocks([nil, hash, nil]), .bytes([1, 2, 3]),
    .names(count: 3, groups: [hash, Hash128(low: 9, high: 9)]),
    .entries(
        [ImageEntry(name: [65], file: file, mode: 0o100000), ImageEntry(name: [66], file: .none, mode: 0o040000)],
        isComplete: false),
    .file(
        VerifiedFile(
            attributes: FileAttributes(mode: 0o100644, uid: 1, gid: 2, rdev: 3, size: 4, atime: 0, mtime: 6),
            target: [47], xattrHash: hash, xattrs: [ExtendedAttribute(name: [97], value: [1])], content: hash)),
]

@Suite struct VerifyFormatTests {
    @Test func everyAnswerComesBackAsItWent() throws {
        for outcome in outcomes {
            let message = DataMessage.verifyAnswer(
                VerifyAnswer(number: 7, seq: Seq(rawValue: 8), outcome: outcome))
            #expect(try DataMessage(decoding: message.encoded()) == message)
        }
    }

    @Test func theBytesOfAQuestionAndAnAnswerStayWhatTheyAre() {
        let check = VerifyCheck(
            number: 0x0A, file: FileID(rawValue: 0x0B), aspect: .content, offset: 0x10000, length: 0x20000, seed: 0x0C)
        var writer = ByteWriter()
        Record(time: 1000, body: .verify(check)).encode(into: &writer)
        #expect(
            hexadecimal(writer.bytes)
                == "50000000" + "30" + "00" + "0000" + "e803000000000000" + "00000000" + "00000000" + "00000000"
                + "00000000" + "0a00000000000000" + "0b00000000000000" + "02" + "0000010000000000" + "0000020000000000"
                + "00000100" + "0c00000000000000" + "000000")
        let answer = DataMessage.verifyAnswer(
            VerifyAnswer(number: 0x0A, seq: Seq(rawValue: 0x0D), outcome: .content(hash)))
        #expect(
            hexadecimal(answer.encoded())
                == "30" + "0a00000000000000" + "0d00000000000000" + "04" + "0201000000000000" + "0403000000000000")
    }

    @Test func impossibleQuestionsAreRefused() {
        let bad: [VerifyCheck] = [
            VerifyCheck(number: 1, file: file, aspect: .content, offset: 1, length: 1 << 16, seed: 1),
            VerifyCheck(number: 1, file: file, aspect: .content, length: 65 << 20, seed: 1),
            VerifyCheck(number: 1, file: file, aspect: .blocks, length: 32 << 20, blockBytes: 4096, seed: 1),
            VerifyCheck(number: 1, file: file, aspect: .bytes, length: 65537, seed: 1),
            VerifyCheck(number: 1, file: file, aspect: .names, offset: 0, length: 0, seed: 1),
            VerifyCheck(number: 1, file: file, aspect: .entries, offset: 4, length: 4, seed: 1),
            VerifyCheck(number: 1, file: file, aspect: .file, blockBytes: 0, seed: 1),
            VerifyCheck(number: 1, file: file, aspect: .content, offset: .max - 65535, length: 1 << 16, seed: 1),
        ]
        for check in bad {
            var writer = ByteWriter()
            Record(time: 1, body: .verify(check)).encode(into: &writer)
            #expect(throws: DecodingError.self, "\(check)") {
                try Record.decode(writer.bytes[...], at: 0, payloadPages: 0)
            }
        }
    }

    /// Whatever the bytes: an error or a message, never a crash.
    @Test(arguments: [UInt64](1...20))
    func anyBytesAreDecodedOrRefused(seed: UInt64) {
        var generator = SeededGenerator(seed: seed)
        for outcome in outcomes {
            let message = DataMessage.verifyAnswer(
                VerifyAnswer(number: 7, seq: Seq(rawValue: 8), outcome: outcome))
            for _ in 0..<50 {
                var bytes = message.encoded()
                for _ in 0..<Int.random(in: 1...4, using: &generator) {
                    bytes[Int.random(in: 0..<bytes.count, using: &generator)] = UInt8.random(
                        in: 0...255, using: &generator)
                }
                if Bool.random(using: &generator) {
                    bytes.removeLast(Int.random(in: 0..<bytes.count, using: &generator))
                }
                if let again = try? DataMessage(decoding: bytes) {
                    #expect(try! DataMessage(decoding: again.encoded()) == again)
                }
            }
        }
    }
}
