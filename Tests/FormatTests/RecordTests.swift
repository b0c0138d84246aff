import Format
import Testing

/// SplitMix64: a seed printed is a seed replayed.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
        return value ^ (value >> 31)
    }
}

func hexadecimal(_ bytes: some Sequence<UInt8>) -> String {
    bytes.map { byte in
        let digits = String(byte, radix: 16)
        return digits.count == 1 ? "0" + digits : digits
    }.joined()
}

private let attributes = FileAttributes(
    mode: 0o100644, uid: 1000, gid: 100, rdev: 0, size: 12345, atime: -1, mtime: 1_700_000_000_123_456_789)
private let xattrs = [
    ExtendedAttribute(name: Array("user.a".utf8), value: [1, 2, 3]),
    ExtendedAttribute(name: Array("user.empty".utf8), value: []),
]
private let file = FileID(epoch: Epoch(rawValue: 3), counter: 77)
private let name = Array("naïve name".utf8)

/// One of every kind, with every field different from its default.
let oneOfEach: [RecordBody] = [
    .epochStart(epoch: Epoch(rawValue: 9), primary: .b, inSync: .both),
    .write(file: file, offset: 1 << 40),
    .setAttributes(file: file, mask: [.mode, .mtime], attributes: attributes),
    .setXattr(file: file, name: Array("user.x".utf8), value: [9, 0, 9]),
    .removeXattr(file: file, name: Array("user.x".utf8)),
    .allocate(file: file, mode: 3, offset: 4096, length: 1 << 30),
    .create(file: file, parent: .root, name: name, attributes: attributes, target: Array("../t".utf8), xattrs: xattrs),
    .link(file: file, parent: .root, name: name),
    .remove(file: file, parent: .root, name: name, isDirectory: true, wasLast: true),
    .rename(
        file: file, parent: .root, name: name, newParent: FileID(rawValue: 5), newName: [65], exchange: true,
        replaced: FileID(rawValue: 6), replacedWasLast: true),
    .imageStart(number: 3),
    .imageDirectory(
        directory: .root, attributes: attributes, xattrs: xattrs, part: 2, isLast: true,
        entries: [ImageEntry(name: name, file: file, mode: 0o040000)]),
    .imageFile(file: file, attributes: attributes, target: [47], xattrs: xattrs),
    .imageEnd(number: 3),
    .verify(VerifyCheck(number: 9, file: file, aspect: .names, offset: 3, length: 7, blockBytes: 4096, seed: 11)),
    .repair(file: file, offset: 1 << 41),
    .repairFile(file: file, attributes: attributes, xattrs: xattrs),
]

func encode(_ records: [(RecordBody, [UInt8]?)]) -> (records: [Record], writer: ByteWriter) {
    var writer = ByteWriter()
    writer.put(raw: repeatElement(0, count: BatchHeader.byteCount))
    var stored: [Record] = []
    for (index, (body, payload)) in records.enumerated() {
        let record = Record(time: 1000 + Int64(index), body: body, isImage: index % 2 == 1)
        if let payload {
            payload.withUnsafeBytes { stored.append(record.encode(into: &writer, inlinePayload: $0)) }
        } else {
            stored.append(record.encode(into: &writer))
        }
    }
    return (stored, writer)
}

@Suite struct RecordTests {
    @Test func everyKindIsHere() {
        #expect(Set(oneOfEach.map(\.kind)) == Set(RecordKind.allCases))
    }

    @Test func everyKindComesBackAsItWent() throws {
        for body in oneOfEach {
            let payload: [UInt8]? = body.kind.hasPayload ? [1, 2, 3, 4, 5] : nil
            let (records, writer) = encode([(body, payload), (.imageStart(number: 1), nil)])
            let (record, next) = try Record.decode(writer.bytes[...], at: BatchHeader.byteCount, payloadPages: 0)
            #expect(record == records[0])
            #expect(next % 8 == 0)
            if case .inline(let offset, let length, _) = record.payload {
                #expect(Array(writer.bytes[offset..<offset + length]) == payload)
            }
            #expect(try Record.decode(writer.bytes[...], at: next, payloadPages: 0).record == records[1])
        }
    }

    @Test func theBytesOfARecordStayWhatTheyAre() {
        let (_, writer) = encode([(.write(file: FileID(rawValue: 0x0102), offset: 0x0304), [0xAA, 0xBB])])
        #expect(
            hexadecimal(writer.bytes[BatchHeader.byteCount...])
                == "38000000" + "02" + "01" + "0000" + "e803000000000000" + "00000000" + "02000000" + "8d44e4e4"
                + "00000000" + "0201000000000000" + "0403000000000000" + "aabb000000000000")
        let (_, second) = encode([
            (.remove(file: file, parent: .root, name: [97], isDirectory: false, wasLast: true), nil)
        ])
        #expect(
            hexadecimal(second.bytes[BatchHeader.byteCount...])
                == "38000000" + "09" + "00" + "0000" + "e803000000000000" + "00000000" + "00000000" + "00000000"
                + "00000000" + "4d00000000030000" + "0100000000000000" + "0100000061" + "00" + "01" + "00")
    }

    @Test func namesThatLeadOutOfTheirDirectoryAreRefused() {
        for bad in ["", ".", "..", "a/b", "a\0b", String(repeating: "n", count: 256)] {
            let (_, writer) = encode([(.link(file: file, parent: .root, name: Array(bad.utf8)), nil)])
            #expect(throws: DecodingError.self) {
                try Record.decode(writer.bytes[...], at: BatchHeader.byteCount, payloadPages: 0)
            }
        }
    }

    @Test func aWriteHasAPayloadAndNothingElseHasOne() {
        var writer = ByteWriter()
        Record(time: 1, body: .write(file: file, offset: 0)).encode(into: &writer)
        #expect(throws: DecodingError.self) { try Record.decode(writer.bytes[...], at: 0, payloadPages: 0) }
        var other = ByteWriter()
        [UInt8](repeating: 1, count: 8).withUnsafeBytes { bytes in
            _ = Record(time: 1, body: .imageStart(number: 1)).encode(into: &other, inlinePayload: bytes)
        }
        #expect(throws: DecodingError.self) { try Record.decode(other.bytes[...], at: 0, payloadPages: 0) }
    }

    @Test func anEpochStartNamesAPossibleSet() {
        for bad in [NodeSet(rawValue: 0), NodeSet(rawValue: 7), .a] {
            let body = RecordBody.epochStart(epoch: Epoch(rawValue: 1), primary: .b, inSync: bad)
            let (_, writer) = encode([(body, nil)])
            #expect(throws: DecodingError.self) {
                try Record.decode(writer.bytes[...], at: BatchHeader.byteCount, payloadPages: 0)
            }
        }
    }

    /// Whatever the bytes: an error or a record, never a crash, and always progress.
    @Test(arguments: [UInt64](1...40))
    func anyBytesAreDecodedOrRefused(seed: UInt64) {
        var generator = SeededGenerator(seed: seed)
        let body = oneOfEach[Int(seed) % oneOfEach.count]
        let payload: [UInt8]? = body.kind.hasPayload ? [1, 2, 3] : nil
        let (_, writer) = encode([(body, payload), (.imageEnd(number: 1), nil)])
        for _ in 0..<200 {
            var bytes = writer.bytes
            for _ in 0..<Int.random(in: 1...4, using: &generator) {
                let index = Int.random(in: BatchHeader.byteCount..<bytes.count, using: &generator)
                bytes[index] = UInt8.random(in: 0...255, using: &generator)
            }
            if Bool.random(using: &generator) {
                bytes.removeLast(Int.random(in: 0..<(bytes.count - BatchHeader.byteCount), using: &generator))
            }
            var offset = BatchHeader.byteCount
            while offset < bytes.count {
                guard let (_, next) = try? Record.decode(bytes[...], at: offset, payloadPages: 3) else { break }
                #expect(next > offset && next <= bytes.count, "seed \(seed)")
                offset = next
            }
        }
    }

    @Test(arguments: [UInt64](1...10))
    func noiseIsRefused(seed: UInt64) {
        var generator = SeededGenerator(seed: seed)
        for _ in 0..<200 {
            let count = Int.random(in: 0...200, using: &generator)
            let bytes = (0..<count).map { _ in UInt8.random(in: 0...255, using: &generator) }
            _ = try? Record.decode(bytes[...], at: 0, payloadPages: 1024)
            #expect(throws: DecodingError.self) { try BatchHeader(decoding: bytes) }
            #expect(throws: DecodingError.self) { try BatchHeader(wire: bytes, mirror: mirror) }
            _ = try? FrameHeader(decoding: bytes)
            var reader = ByteReader(bytes)
            _ = try? reader.getCounted(limit: 1 << 20)
            _ = try? reader.getXattrs()
            _ = try? reader.getDecision()
            _ = try? reader.getText()
        }
    }
}
