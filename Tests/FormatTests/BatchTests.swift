import Format
import Testing

let mirror = MirrorID(high: 0x1111_2222_3333_4444, low: 0x5555_6666_7777_8888)

/// A batch with an inline write, a write in pages that fills one and a half, and a metadata record.
func makeBatch(firstSeq: UInt64 = 41) -> Batch {
    let arena = Arena(bytes: 4 * Batch.pageBytes)
    _ = arena.peek(2 * Batch.pageBytes)
    let region = arena.take(2 * Batch.pageBytes)
    let area = UnsafeMutableRawBufferPointer(start: region.pointer, count: region.count)
    for index in 0..<area.count { area[index] = index < 6000 ? UInt8(index % 251) : 0 }
    var (records, writer) = encode([
        (.write(file: FileID(rawValue: 2), offset: 10), [1, 2, 3]), (.imageStart(number: 8), nil),
    ])
    let paged = Record(
        time: 7, body: .write(file: FileID(rawValue: 3), offset: 0),
        payload: .pages(first: 0, length: 6000, checksum: crc32c(UnsafeRawBufferPointer(rebasing: area[..<6000]))))
    records.append(paged.encode(into: &writer))
    return Batch(
        records: records, encoded: writer, region: region, epoch: Epoch(rawValue: 2), mirror: mirror,
        firstSeq: Seq(rawValue: firstSeq), previousChain: 0xABCD, committedSeq: Seq(rawValue: 40), closedAt: 99)
}

/// Receives a batch from its wire form, as a peer does.
func receive(header: [UInt8], body: [UInt8]) throws(DecodingError) -> Batch {
    let incoming = Batch.Incoming(header: try BatchHeader(wire: header, mirror: mirror), region: nil)
    var rest = body[...]
    func take(_ target: UnsafeMutableRawBufferPointer) throws(DecodingError) {
        guard rest.count >= target.count else { throw DecodingError("truncated body", at: 0) }
        target.copyBytes(from: rest.prefix(target.count))
        rest = rest.dropFirst(target.count)
    }
    try take(incoming.recordBytes)
    for place in try incoming.finishMeta() { try take(place) }
    guard rest.isEmpty else { throw DecodingError("bytes too many", at: 0) }
    return try incoming.finish()
}

@Suite struct BatchTests {
    @Test func aBatchCrossesTheWireUnchanged() throws {
        let batch = makeBatch()
        let body = batch.wirePieces.flatMap { Array($0) }
        #expect(batch.header.wireEncoded().count + body.count == batch.wireLength)
        let received = try receive(header: batch.header.wireEncoded(), body: body)
        #expect(received.records == batch.records && received.header == batch.header)
        #expect(received.header.chain == batch.header.chain)
        for index in batch.records.indices {
            #expect(Array(received.payload(of: index)) == Array(batch.payload(of: index)))
        }
        #expect(Array(received.payload) == Array(batch.payload), "padding is zero on both sides")
    }

    @Test func theBytesOfAHeaderStayWhatTheyAre() throws {
        var header = BatchHeader(
            epoch: Epoch(rawValue: 0x0102_0304), mirror: mirror, firstSeq: Seq(rawValue: 0x0A0B), recordCount: 3,
            metaLength: 300, payloadPages: 5, recordsChecksum: 0xDEAD_BEEF, previousChain: 0x1122_3344_5566_7788,
            committedSeq: Seq(rawValue: 0x0A0A), closedAt: 0x0102_0304_0506_0708)
        #expect(header.version == 2)
        // A batch of an older program is kept and sent on as it is: its version is part of the chain.
        header.version = 1
        #expect(
            hexadecimal(header.encoded())
                == "4c53424154434831" + "0100" + "0000" + "04030201" + "4444333322221111" + "8888777766665555"
                + "0b0a000000000000" + "03000000" + "2c010000" + "05000000" + "efbeadde" + "8877665544332211"
                + "0a0a000000000000" + "0807060504030201" + "00000000000000000000000000000000"
                + "0000000000000000" + "0000000000000000" + "000000000000000000000000" + "4fd4dfcc")
        #expect(header.chain == 0x4f6a_ae67_5690_234d)
        var sealed = header
        (sealed.position, sealed.incarnation, sealed.durableSeq) = (0x1000, 0x22, Seq(rawValue: 0x0A09))
        #expect(
            hexadecimal(sealed.encoded()[96..<124])
                == "0010000000000000" + "2200000000000000" + "090a000000000000" + "00000000")
        #expect(try BatchHeader(decoding: sealed.encoded()) == sealed && sealed.chain == header.chain)
        sealed.durableSeq = sealed.firstSeq
        #expect(throws: DecodingError.self) { try BatchHeader(decoding: sealed.encoded()) }
        #expect(
            hexadecimal(header.wireEncoded())
                == "01000000" + "04030201"
                + "0b0a000000000000" + "03000000" + "2c010000" + "05000000" + "efbeadde" + "8877665544332211"
                + "0a0a000000000000" + "0807060504030201" + "3977ced5")
        #expect(try BatchHeader(wire: header.wireEncoded(), mirror: mirror) == header)
        let read = try BatchHeader(decoding: header.encoded())
        #expect(read == header && read.encoded() == header.encoded() && read.chain == header.chain)
        header.version = 2
        #expect(hexadecimal(header.encoded()[8..<10]) == "0200" && header.chain != read.chain)
        header.version = 3
        #expect(throws: DecodingError.self) { try BatchHeader(decoding: header.encoded()) }
    }

    @Test func theChainCoversWhatBothRoomsShareAndNothingElse() {
        let header = makeBatch().header
        var sealed = header
        sealed.position = 4096
        sealed.incarnation = 77
        #expect(sealed.chain == header.chain && sealed.encoded() != header.encoded())
        var others: [BatchHeader] = []
        for change in 0..<7 {
            var other = header
            switch change {
            case 0: other.epoch = Epoch(rawValue: 3)
            case 1: other.firstSeq = Seq(rawValue: 42)
            case 2: other.recordsChecksum ^= 1
            case 3: other.previousChain ^= 1
            case 4: other.committedSeq = Seq(rawValue: 39)
            case 5: other.closedAt += 1
            default: other.mirror = MirrorID(high: 0, low: 1)
            }
            others.append(other)
        }
        #expect(Set(others.map(\.chain)).count == others.count && !others.contains { $0.chain == header.chain })
    }

    @Test func sealingChangesOnlyTheJournalsOwnFields() throws {
        let batch = makeBatch()
        let wire = batch.header.wireEncoded()
        let sealed = batch.seal(position: 8192, incarnation: 5, durable: Seq(rawValue: 3))
        #expect(try BatchHeader(decoding: Array(batch.meta.prefix(128))) == sealed)
        #expect(sealed.position == 8192 && sealed.chain == batch.header.chain && sealed.wireEncoded() == wire)
    }

    @Test func failure37everyFlippedBitOnTheWireIsFound() throws {
        let batch = makeBatch()
        let header = batch.header.wireEncoded()
        let body = batch.wirePieces.flatMap { Array($0) }
        var generator = SeededGenerator(seed: 1)
        let total = header.count + body.count
        for index in Array(0..<400) + (0..<300).map({ _ in Int.random(in: 0..<total, using: &generator) }) {
            var brokenHeader = header
            var brokenBody = body
            let bit = UInt8(1) << UInt8.random(in: 0..<8, using: &generator)
            if index < header.count { brokenHeader[index] ^= bit } else { brokenBody[index - header.count] ^= bit }
            #expect(throws: DecodingError.self, "byte \(index)") {
                try receive(header: brokenHeader, body: brokenBody)
            }
        }
    }

    @Test func impossibleHeadersAreRefusedEvenWithAGoodChecksum() {
        let good = makeBatch().header
        #expect(throws: Never.self) { try BatchHeader(decoding: good.encoded()) }
        let changes: [(inout BatchHeader) -> Void] = [
            { $0.recordCount = 0 }, { $0.recordCount = BatchLimits.records + 1 }, { $0.metaLength = 128 },
            { $0.metaLength = BatchLimits.metaBytes + 1 }, { $0.payloadPages = BatchLimits.payloadPages + 1 },
            { $0.firstSeq = .zero }, { $0.committedSeq = $0.firstSeq },
            { $0.firstSeq = Seq(rawValue: UInt64.max) }, { $0.firstSeq = Seq(rawValue: 1 << 63) },
        ]
        for change in changes {
            var header = good
            change(&header)
            #expect(throws: DecodingError.self) { try BatchHeader(decoding: header.encoded()) }
            #expect(throws: DecodingError.self) { try BatchHeader(wire: header.wireEncoded(), mirror: mirror) }
        }
    }

    @Test func otherVersionsAreRefusedByNumber() {
        var bytes = makeBatch().header.encoded()
        bytes[8] = 9
        let error = #expect(throws: DecodingError.self) { try BatchHeader(decoding: bytes) }
        #expect(error?.what.contains("9") == true)
        var wire = makeBatch().header.wireEncoded()
        wire[0] = 9
        let onTheWire = #expect(throws: DecodingError.self) { try BatchHeader(wire: wire, mirror: mirror) }
        #expect(onTheWire?.what.contains("9") == true)
    }

    @Test func aBatchOfAnotherMirrorIsRefusedOnTheWire() {
        let wire = makeBatch().header.wireEncoded()
        let other = MirrorID(high: 1, low: 2)
        #expect(throws: DecodingError.self) { try BatchHeader(wire: wire, mirror: other) }
    }

    /// Records that say they lie elsewhere, overlap, or do not fill what the header says.
    @Test(arguments: [UInt64](1...30))
    func anyRecordsWithGoodChecksumsAreDecodedOrRefused(seed: UInt64) {
        var generator = SeededGenerator(seed: seed)
        let batch = makeBatch()
        for _ in 0..<60 {
            var meta = Array(batch.meta[BatchHeader.byteCount..<batch.header.metaLength])
            for _ in 0..<Int.random(in: 1...3, using: &generator) {
                meta[Int.random(in: 0..<meta.count, using: &generator)] = UInt8.random(in: 0...255, using: &generator)
            }
            var header = batch.header
            header.recordsChecksum = crc32c(meta)
            if Bool.random(using: &generator) { header.recordCount = Int.random(in: 1...5, using: &generator) }
            if Bool.random(using: &generator) { header.payloadPages = Int.random(in: 0...4, using: &generator) }
            let body = meta + batch.wirePieces.dropFirst().flatMap { Array($0) }
            if let received = try? receive(header: header.wireEncoded(), body: body) {
                for index in received.records.indices { _ = received.payload(of: index).count }
            }
        }
    }
}

@Suite struct FrameTests {
    @Test func headersComeBackAndCoverTheirBody() throws {
        for type in FrameType.allCases {
            let body: [UInt8] = [1, 2, 3, 4]
            let header = FrameHeader(
                type: type, bodyLength: 4, session: 0x1234, epoch: Epoch(rawValue: 7), mirror: mirror)
            let bytes = header.encoded(body: body)
            #expect(bytes.count == FrameHeader.byteCount)
            let decoded = try FrameHeader(decoding: bytes)
            #expect(decoded.type == type && decoded.session == 0x1234 && decoded.epoch == Epoch(rawValue: 7))
            #expect(decoded.mirror == mirror && decoded.verify(body: body))
            #expect(decoded.verify(body: [1, 2, 3, 5]) == (type == .batch))
            for index in 16..<28 {
                var broken = bytes
                broken[index] ^= 1
                #expect(try !FrameHeader(decoding: broken).verify(body: body), "byte \(index)")
            }
        }
    }

    @Test func theBytesOfAFrameStayWhatTheyAre() {
        let header = FrameHeader(
            type: .hello, bodyLength: 2, version: 1, session: 0x0102, epoch: Epoch(rawValue: 3), mirror: mirror)
        #expect(
            hexadecimal(header.encoded(body: [8, 9]))
                == "4c534631" + "02000000" + "0100" + "0100" + "b6657828" + "0201000000000000" + "03000000" + "00000000"
                + "4444333322221111" + "8888777766665555")
    }

    @Test func failure38oversizedUnknownAndForeignFramesAreRefused() {
        let good = FrameHeader(type: .hello, bodyLength: 10, session: 1, epoch: .none, mirror: mirror).encoded()
        var wrongMagic = good
        wrongMagic[0] = 0
        var unknown = good
        unknown[8] = 0xEE
        var large = good
        large[7] = 0x7F
        for bytes in [wrongMagic, unknown, large, Array(good.prefix(47)), []] {
            #expect(throws: DecodingError.self) { try FrameHeader(decoding: bytes) }
        }
    }
}

@Suite struct ChecksumTests {
    @Test func crc32cIsTheOneOfTheStandards() {
        // RFC 3720, B.4.
        #expect(crc32c([UInt8](repeating: 0, count: 32)) == 0x8A91_36AA)
        #expect(crc32c([UInt8](repeating: 0xFF, count: 32)) == 0x62A8_AB43)
        #expect(crc32c([UInt8](0..<32)) == 0x46DD_794E)
        #expect(crc32c(Array("123456789".utf8)) == 0xE306_9283)
        #expect(crc32c(Array("6789".utf8), continuing: crc32c(Array("12345".utf8))) == 0xE306_9283)
    }
}

@Suite struct ArenaTests {
    @Test func regionsAreReusedInOrderAndNeverOverlap() {
        let arena = Arena(bytes: 16 * Batch.pageBytes)
        var generator = SeededGenerator(seed: 4)
        var live: [Arena.Region] = []
        var taken = 0
        for _ in 0..<5000 {
            if Bool.random(using: &generator), !live.isEmpty {
                live.remove(at: Int.random(in: 0..<live.count, using: &generator))
            } else {
                let bytes = Int.random(in: 1...5, using: &generator) * Batch.pageBytes
                guard let place = arena.peek(bytes) else { continue }
                let region = arena.take(bytes)
                taken += 1
                #expect(region.pointer == place)
                for other in live {
                    #expect(
                        region.pointer + region.count <= other.pointer || other.pointer + other.count <= region.pointer)
                }
                live.append(region)
            }
        }
        live.removeAll()
        #expect(taken > 1000 && arena.available == arena.capacity)
    }
}

@Suite struct IdentifierTests {
    @Test func fileNumbersHoldTheirEpoch() {
        let file = FileID(epoch: Epoch(rawValue: (1 << 23) - 1), counter: FileID.counterLimit - 1)
        #expect(file.epoch == Epoch(rawValue: (1 << 23) - 1) && file.counter == FileID.counterLimit - 1)
        #expect(file.rawValue >> 63 == 0)
        #expect(FileID.root.description == "0000000000000001")
    }

    @Test func decisionsThatCannotBeAreRefused() throws {
        var writer = ByteWriter()
        writer.put(Decision(sequence: 1, epoch: Epoch(rawValue: 2), primary: .a, inSync: .b))
        var reader = ByteReader(writer.bytes)
        #expect(throws: DecodingError.self) { try reader.getDecision() }
    }
}
