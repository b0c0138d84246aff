import Format

/// The batch that is being gathered while earlier ones are on their way. Closing it is what "group commit without a
/// timer" means: whatever queued while the last flush and round trip were in flight goes together.
@safe struct OpenBatch {
    private(set) var records: [Record] = []
    private var meta = ByteWriter()
    /// Bytes gathered in the arena behind the last taken region, whole pages.
    private(set) var gatheredBytes = 0
    /// Records of changes; the others are images.
    private(set) var changes = 0
    /// The place offered for the next payload, and how long it may be.
    private var offered: (place: UnsafeMutableRawPointer, bytes: Int)?

    init() { clear() }

    var isEmpty: Bool { records.isEmpty }
    var count: Int { records.count }
    var byteCount: Int { meta.count + gatheredBytes }
    /// Whether one more record of any kind fits: the largest is a record with all its xattrs, far below the limit's
    /// headroom, so closing at three quarters always leaves room.
    var isFull: Bool {
        records.count >= BatchLimits.records || meta.count >= BatchLimits.metaBytes - OpenBatch.metaHeadroomBytes
            || gatheredBytes > (BatchLimits.payloadPages * Batch.pageBytes) - RecordLimits.payloadBytes
    }
    /// Room kept for the longest single record: a part of a directory's image, with all its names as long as can be (135
    /// KiB) and 64 KiB of extended attributes.
    static let metaHeadroomBytes = 256 << 10

    private mutating func clear() {
        records.removeAll(keepingCapacity: true)
        meta = ByteWriter(reserving: 4096)
        // Room for the header, which is known only at the end.
        meta.put(raw: [UInt8](repeating: 0, count: BatchHeader.byteCount))
        // An offered place stays good: closing takes exactly what was gathered before it.
        gatheredBytes = 0
        changes = 0
    }

    /// Where a payload of up to `bytes` may be read to; nil when the arena is used up.
    mutating func payloadPlace(bytes: Int, in arena: Arena) -> UnsafeMutableRawPointer? {
        guard let place = unsafe arena.peek(bytes, after: gatheredBytes) else { return nil }
        unsafe offered = (place, bytes)
        return unsafe place
    }

    /// Adds a write whose payload of `length` bytes lies at the place last offered. Short payloads move into the meta
    /// area and leave the place free.
    mutating func addWrite(file: FileID, offset: UInt64, length: Int, time: Int64, isImage: Bool = false) {
        addPayload(.write(file: file, offset: offset), length: length, time: time, isImage: isImage)
    }

    /// As `addWrite`, for any record that has a payload.
    mutating func addPayload(_ body: RecordBody, length: Int, time: Int64, isImage: Bool = false) {
        guard let (place, room) = unsafe offered else { preconditionFailure("a payload without a place") }
        precondition(length > 0 && length <= room && length <= RecordLimits.payloadBytes, "impossible payload length")
        if !isImage { changes += 1 }
        let payload = unsafe UnsafeRawBufferPointer(start: place, count: length)
        var record = Record(time: time, body: body, isImage: isImage)
        if length <= RecordLimits.inlinePayloadBytes {
            records.append(unsafe record.encode(into: &meta, inlinePayload: payload))
        } else {
            record.payload = unsafe .pages(
                first: gatheredBytes / Batch.pageBytes, length: length, checksum: crc32c(payload))
            records.append(unsafe record.encode(into: &meta))
            gatheredBytes += (length + Batch.pageBytes - 1) / Batch.pageBytes * Batch.pageBytes
        }
        unsafe offered = nil
    }

    /// Adds a record without a payload.
    mutating func add(_ body: RecordBody, time: Int64, isImage: Bool = false) {
        let record = Record(time: time, body: body, isImage: isImage)
        if !isImage { changes += 1 }
        records.append(unsafe record.encode(into: &meta))
    }

    /// Closes the batch and starts the next.
    mutating func close(
        arena: Arena, epoch: Epoch, mirror: MirrorID, firstSeq: Seq, previousChain: UInt64, committedSeq: Seq,
        closedAt: Int64
    ) -> Batch {
        let region = gatheredBytes > 0 ? arena.take(gatheredBytes) : nil
        let batch = Batch(
            records: records, encoded: meta, region: region, epoch: epoch, mirror: mirror, firstSeq: firstSeq,
            previousChain: previousChain, committedSeq: committedSeq, closedAt: closedAt)
        clear()
        return batch
    }
}
