import Format

/// Counters since the process started, for `lockstep status` and the benchmarks.
struct LogStatistics: Sendable {
    var batches: UInt64 = 0
    var records: UInt64 = 0
    var payloadBytes: UInt64 = 0
    /// What the application changed: payloads, and the records of changes that have none (names, attributes). Without
    /// images, which are copies of what is here already.
    var changedBytes: UInt64 = 0
    /// Batches as they lie in the journal.
    var diskBytes: UInt64 = 0
    /// Batches by number of records: 1, 2, 3-4, 5-8, ... (powers of two).
    var batchesBySize = [UInt64](repeating: 0, count: 14)

    mutating func note(_ batch: Batch) {
        batches += 1
        diskBytes += UInt64(batch.header.diskLength)
        records += UInt64(batch.records.count)
        noteBytes(batch)
        var bucket = 0
        while 1 << bucket < batch.records.count, bucket < batchesBySize.count - 1 { bucket += 1 }
        batchesBySize[bucket] += 1
    }

    private mutating func noteBytes(_ batch: Batch) {
        // What is left of the meta area when the heads of writes and their short payloads are taken away.
        var metadata = batch.header.metaLength - BatchHeader.byteCount
        for record in batch.records {
            let length = record.payload.length
            payloadBytes += UInt64(length)
            switch record.payload {
            case .none: if record.isImage { metadata = 0 }
            case .inline: metadata -= (RecordLimits.writeHeadBytes + length + 7) / 8 * 8
            case .pages: metadata -= RecordLimits.writeHeadBytes
            }
            if !record.isImage { changedBytes += UInt64(length) }
        }
        changedBytes += UInt64(max(0, metadata))
    }
}
