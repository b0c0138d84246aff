import Format
import Transport

/// Receives the batches of one message: of each its header, its records, then each payload to its place. They are
/// delivered together, when the last one is whole: a message of several is short (`PeerLink.messageDiskBytes`).
@safe final class BatchSink: BodySink {
    private enum Part { case header, records, payloads }
    private let mirror: MirrorID
    /// Memory for a batch; nil while there is none: it is asked again.
    private let memory: (BatchHeader) -> Batch.Incoming?
    private let deliver: (Batch) -> Void
    private let head = UnsafeMutableRawBufferPointer.allocate(byteCount: BatchHeader.wireByteCount, alignment: 8)
    private var part = Part.header
    private var asked = false
    private var incoming: Batch.Incoming?
    private var whole: [Batch] = []

    init(
        mirror: MirrorID, memory: @escaping (BatchHeader) -> Batch.Incoming?, deliver: @escaping (Batch) -> Void
    ) {
        self.mirror = mirror
        self.memory = memory
        self.deliver = deliver
    }
    deinit { unsafe head.deallocate() }

    func nextPlaces(remaining: Int) throws(DecodingError) -> [UnsafeMutableRawBufferPointer] {
        while true {
            switch part {
            case .header where !asked:
                asked = true
                guard remaining > BatchHeader.wireByteCount else { throw DecodingError("truncated batch", at: 0) }
                return unsafe [head]
            case .header:
                let header = try BatchHeader(wire: unsafe Array(UnsafeRawBufferPointer(head)), mirror: mirror)
                guard let batch = memory(header) else { return unsafe [] }
                incoming = batch
                part = .records
                return unsafe [batch.recordBytes]
            case .records:
                let places = unsafe try finishRecords()
                if unsafe !places.isEmpty { return unsafe places }
            case .payloads:
                try finishBatch()
            }
        }
    }

    func bodyComplete() throws(DecodingError) {
        if part == .records {
            guard unsafe try finishRecords().isEmpty else { throw DecodingError("payloads missing", at: 0) }
        }
        guard part == .payloads else { throw DecodingError("truncated batch", at: 0) }
        try finishBatch()
        for batch in whole { deliver(batch) }
    }

    private func finishRecords() throws(DecodingError) -> [UnsafeMutableRawBufferPointer] {
        guard let incoming else { throw DecodingError("batch without a header", at: 0) }
        part = .payloads
        return unsafe try incoming.finishMeta()
    }

    private func finishBatch() throws(DecodingError) {
        guard let incoming else { throw DecodingError("batch without a header", at: 0) }
        whole.append(try incoming.finish())
        self.incoming = nil
        part = .header
        asked = false
    }
}

extension PeerLink {
    /// Memory for the next batch of a message; nil while there is none, or no room in the journal.
    func memory(for header: BatchHeader) -> Batch.Incoming? {
        // Room for all batches of a message: none of them is in the journal before the last one has come.
        guard log.journal.canAppend(BatchLimits.diskBytes) else { return nil }
        // Only a follower's batches go to the arena: a primary gathers its own there. A late one of an earlier
        // session gets memory of its own, and is refused when it is complete.
        guard header.payloadPages > 0, stage == .following else { return Batch.Incoming(header: header, region: nil) }
        let bytes = header.payloadPages * Batch.pageBytes
        guard unsafe log.arena.peek(bytes) != nil else { return nil }
        return Batch.Incoming(header: header, region: log.arena.take(bytes))
    }
}
