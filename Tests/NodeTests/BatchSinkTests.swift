import Format
import Testing

@testable import Node

private let mirror = MirrorID(high: 7, low: 9)

/// A batch of writes with payloads of these lengths: in pages if long, with the record if short, none for zero.
private func batch(firstSeq: UInt64, payloads: [Int]) -> Batch {
    let arena = Arena(bytes: 64 * Batch.pageBytes)
    let pages = payloads.filter { $0 > RecordLimits.inlinePayloadBytes }.reduce(0) {
        $0 + ($1 + Batch.pageBytes - 1) / Batch.pageBytes
    }
    var region: Arena.Region?
    if pages > 0 {
        _ = arena.peek(pages * Batch.pageBytes)
        region = arena.take(pages * Batch.pageBytes)
    }
    var writer = ByteWriter(reserving: BatchHeader.byteCount)
    writer.put(raw: [UInt8](repeating: 0, count: BatchHeader.byteCount))
    var records: [Record] = []
    var page = 0
    for (index, length) in payloads.enumerated() {
        let bytes = (0..<length).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ index &+ Int(firstSeq)) }
        guard length > 0 else {
            records.append(Record(time: 1, body: .imageStart(number: firstSeq)).encode(into: &writer))
            continue
        }
        let body = RecordBody.write(file: FileID(rawValue: 3), offset: UInt64(index) << 20)
        guard let region, length > RecordLimits.inlinePayloadBytes else {
            records.append(
                bytes.withUnsafeBytes { Record(time: 1, body: body).encode(into: &writer, inlinePayload: $0) })
            continue
        }
        let area = UnsafeMutableRawBufferPointer(start: region.pointer, count: region.count)
        let place = UnsafeMutableRawBufferPointer(rebasing: area[(page * Batch.pageBytes)...])
        let whole = (length + Batch.pageBytes - 1) / Batch.pageBytes
        place.copyBytes(from: bytes + [UInt8](repeating: 0, count: whole * Batch.pageBytes - length))
        let payload = PayloadReference.pages(first: page, length: length, checksum: crc32c(bytes))
        records.append(Record(time: 1, body: body, payload: payload).encode(into: &writer))
        page += whole
    }
    return Batch(
        records: records, encoded: writer, region: region, epoch: Epoch(rawValue: 2), mirror: mirror,
        firstSeq: Seq(rawValue: firstSeq), previousChain: 5, committedSeq: .zero, closedAt: 1)
}

private func wire(_ batches: [Batch]) -> [UInt8] {
    batches.flatMap { $0.header.wireEncoded() + $0.wirePieces.flatMap { Array($0) } }
}

/// Hands `body` to a sink as a connection does; where the sink has no memory, it is asked again.
private func deliver(_ body: [UInt8], to sink: BatchSink) throws(DecodingError) {
    var rest = body[...]
    var refusals = 0
    while !rest.isEmpty {
        let places = try sink.nextPlaces(remaining: rest.count)
        if places.isEmpty {
            refusals += 1
            guard refusals < 100 else { throw DecodingError("no memory for ever", at: 0) }
        }
        for place in places {
            guard place.count <= rest.count else { throw DecodingError("shorter than its contents say", at: 0) }
            place.copyBytes(from: rest.prefix(place.count))
            rest = rest.dropFirst(place.count)
        }
    }
    try sink.bodyComplete()
}

/// A message holds one batch or several; see `BatchSink`.
@Suite struct BatchSinkTests {
    private let shapes: [[[Int]]] = [
        [[5000]], [[0]], [[24], [4096], [0], [24, 4096, 9000], [0, 0]], [[4096], [4096], [4096]], [[1], [1], [0]],
    ]

    @Test func allBatchesOfAMessageArriveInOrderAndWhole() throws {
        for shape in shapes {
            var seq: UInt64 = 1
            let sent = shape.map { payloads in
                defer { seq += UInt64(payloads.count) }
                return batch(firstSeq: seq, payloads: payloads)
            }
            var received: [Batch] = []
            var asked = 0
            let sink = BatchSink(mirror: mirror) { header in
                // No memory at the first time that each is asked for.
                asked += 1
                return asked % 2 == 1 ? nil : Batch.Incoming(header: header, region: nil)
            } deliver: {
                received.append($0)
            }
            try deliver(wire(sent), to: sink)
            #expect(received.map(\.header) == sent.map(\.header))
            for (one, other) in zip(received, sent) {
                for index in other.records.indices {
                    #expect(Array(one.payload(of: index)) == Array(other.payload(of: index)))
                }
            }
        }
    }

    /// Cut off anywhere, or with a flipped bit anywhere, nothing of it is delivered.
    @Test func failure38AMessageThatIsNotWholeDeliversNothing() {
        let sent = [batch(firstSeq: 1, payloads: [24]), batch(firstSeq: 2, payloads: [0, 1500])]
        let body = wire(sent)
        func refused(_ body: [UInt8]) -> Bool {
            var received = 0
            let sink = BatchSink(mirror: mirror) {
                Batch.Incoming(header: $0, region: nil)
            } deliver: { _ in
                received += 1
            }
            do {
                try deliver(body, to: sink)
                return false
            } catch {
                return received == 0
            }
        }
        let first = wire([sent[0]]).count
        for count in 1..<body.count where count != first { #expect(refused(Array(body[..<count])), "\(count) bytes") }
        for index in body.indices {
            var broken = body
            broken[index] ^= 1 << UInt8(index % 8)
            #expect(refused(broken), "byte \(index)")
        }
        #expect(refused(body + [0]))
        #expect(!refused(body))
    }
}
