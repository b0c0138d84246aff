public import Format

extension Batch {
    /// Builds a batch from its bytes on disk and checks everything in it.
    static func decode(_ header: BatchHeader, _ bytes: UnsafeRawBufferPointer) throws(DecodingError) -> Batch {
        guard bytes.count == header.diskLength else { throw DecodingError("truncated batch", at: bytes.count) }
        let incoming = Incoming(header: header, region: nil)
        unsafe incoming.recordBytes.copyBytes(
            from: UnsafeRawBufferPointer(rebasing: bytes[BatchHeader.byteCount..<header.metaLength]))
        if header.payloadPages > 0 {
            unsafe incoming.payloadBytes.copyBytes(
                from: UnsafeRawBufferPointer(rebasing: bytes[header.paddedMetaLength...]))
        }
        _ = unsafe try incoming.finishMeta()
        return try incoming.finish()
    }
}

/// A batch as it was found on disk, damaged or not.
public enum FoundBatch {
    /// Everything fits.
    case intact(Batch)
    /// The records can be read, but some payloads are damaged (indices of the records).
    case damagedPayloads(BatchHeader, [Record], indices: [Int])
    /// The header is good, the records are not.
    case damagedRecords(BatchHeader, String)

    /// Reads what can be read.
    static func read(_ header: BatchHeader, _ bytes: UnsafeRawBufferPointer) -> FoundBatch {
        do {
            return .intact(try unsafe Batch.decode(header, bytes))
        } catch {
            let meta = unsafe bytes[BatchHeader.byteCount..<header.metaLength]
            guard unsafe crc32c(UnsafeRawBufferPointer(rebasing: meta)) == header.recordsChecksum,
                let records = unsafe decodeRecords(header, bytes)
            else { return .damagedRecords(header, "\(error)") }
            var damaged: [Int] = []
            for (index, record) in records.enumerated() {
                guard let (range, checksum) = record.payload.place(in: header) else { continue }
                if unsafe crc32c(UnsafeRawBufferPointer(rebasing: bytes[range])) != checksum { damaged.append(index) }
            }
            return .damagedPayloads(header, records, indices: damaged)
        }
    }

    private static func decodeRecords(_ header: BatchHeader, _ bytes: UnsafeRawBufferPointer) -> [Record]? {
        let meta = unsafe Array(bytes[..<header.metaLength])
        var records: [Record] = []
        var offset = BatchHeader.byteCount
        for _ in 0..<header.recordCount {
            guard
                let (record, next) = try? Record.decode(meta[...], at: offset, payloadPages: header.payloadPages)
            else { return nil }
            records.append(record)
            offset = next
        }
        return records
    }
}

extension PayloadReference {
    /// Where the payload lies within the batch on disk, and its checksum.
    func place(in header: BatchHeader) -> (range: Range<Int>, checksum: UInt32)? {
        switch self {
        case .none: nil
        case .inline(let offset, let length, let checksum): (offset..<offset + length, checksum)
        case .pages(let first, let length, let checksum):
            (
                header.paddedMetaLength + first * Batch.pageBytes..<header.paddedMetaLength + first * Batch.pageBytes
                    + length, checksum
            )
        }
    }
}
