internal import Glibc

/// Consecutive records that are written, sent and acknowledged together; immutable, and the owner of its memory.
///
/// On disk a batch is its meta area (header and records, zeros up to a whole page), then its payload area. On the wire
/// the zeros behind the meta area and behind each payload are left out. Both areas are page aligned in memory, so they
/// go to a journal opened with `O_DIRECT` as they are.
///
/// Whoever still needs the bytes (journal, sender, appliers) holds a reference; the arena gets the space back with the
/// last one.
public final class Batch: Sendable {
    public static let pageBytes = 4096

    public let header: BatchHeader
    /// `records[i]` has the seq `header.firstSeq + i`.
    public let records: [Record]
    private let metaPages: PageMemory
    private let region: Arena.Region?
    private let ownPages: PageMemory?

    private init(
        header: BatchHeader, records: [Record], metaPages: PageMemory, region: Arena.Region?, ownPages: PageMemory?
    ) {
        self.header = header
        self.records = records
        self.metaPages = metaPages
        self.region = region
        self.ownPages = ownPages
    }

    public var firstSeq: Seq { header.firstSeq }
    public var lastSeq: Seq { header.lastSeq }

    /// Header and records with their padding. The journal's own fields are zero: it writes its sealed copy of the
    /// first page (`sealedFirstPage`).
    public var meta: UnsafeRawBufferPointer { unsafe metaPages.bytes }

    /// The payload area, whole pages.
    public var payload: UnsafeRawBufferPointer {
        if let region { return unsafe UnsafeRawBufferPointer(start: region.pointer, count: region.count) }
        if let ownPages { return unsafe ownPages.bytes }
        return unsafe UnsafeRawBufferPointer(start: nil, count: 0)
    }

    /// The payload of the record at `index`, without padding.
    public func payload(of index: Int) -> UnsafeRawBufferPointer {
        switch records[index].payload {
        case .none: unsafe UnsafeRawBufferPointer(start: nil, count: 0)
        case .inline(let offset, let length, _):
            unsafe UnsafeRawBufferPointer(rebasing: meta[offset..<offset + length])
        case .pages(let first, let length, _):
            unsafe UnsafeRawBufferPointer(
                rebasing: payload[(first * Batch.pageBytes)..<(first * Batch.pageBytes + length)])
        }
    }

    /// Writes the journal's own fields into the header in place. Only the journal calls it, once for each place it
    /// writes the batch to and before it submits that write; nobody else reads those bytes.
    public func seal(position: UInt64, incarnation: UInt64, durable: Seq) -> BatchHeader {
        var sealed = header
        sealed.position = position
        sealed.incarnation = incarnation
        sealed.durableSeq = durable
        unsafe metaPages.mutableBytes.copyBytes(from: sealed.encoded())
        return sealed
    }

    /// The pieces of the wire form behind its header (`BatchHeader.wireEncoded`), in order, padding left out.
    public var wirePieces: [UnsafeRawBufferPointer] {
        var pieces = unsafe [UnsafeRawBufferPointer(rebasing: meta[BatchHeader.byteCount..<header.metaLength])]
        for (index, record) in records.enumerated() {
            if case .pages = record.payload { unsafe pieces.append(payload(of: index)) }
        }
        return unsafe pieces
    }

    /// Bytes of the wire form, header included.
    public var wireLength: Int {
        var length = header.metaLength - BatchHeader.byteCount + BatchHeader.wireByteCount
        for record in records { if case .pages(_, let bytes, _) = record.payload { length += bytes } }
        return length
    }

    /// Closes a batch that was gathered on this node.
    ///
    /// - Parameters:
    ///   - records: as `Record.encode` returned them.
    ///   - encoded: `BatchHeader.byteCount` bytes of room, then the encoded records.
    ///   - region: the payload area; nil when no record has pages.
    public init(
        records: [Record], encoded: ByteWriter, region: Arena.Region?, epoch: Epoch, mirror: MirrorID, firstSeq: Seq,
        previousChain: UInt64, committedSeq: Seq, closedAt: Int64
    ) {
        precondition(!records.isEmpty && records.count <= BatchLimits.records, "a batch has records")
        precondition(encoded.count <= BatchLimits.metaBytes, "the meta area is too long")
        header = BatchHeader(
            epoch: epoch, mirror: mirror, firstSeq: firstSeq, recordCount: records.count, metaLength: encoded.count,
            payloadPages: (region?.count ?? 0) / Batch.pageBytes,
            recordsChecksum: crc32c(encoded.bytes[BatchHeader.byteCount...]), previousChain: previousChain,
            committedSeq: committedSeq, closedAt: closedAt)
        self.records = records
        self.region = region
        ownPages = nil
        metaPages = PageMemory(bytes: header.paddedMetaLength)
        unsafe metaPages.mutableBytes.copyBytes(from: encoded.bytes)
        unsafe metaPages.mutableBytes.copyBytes(from: header.encoded())
    }

    /// A batch that arrives in pieces: from a journal or from the peer. First the header, then `meta` is filled behind
    /// it, then `finishMeta` tells where the payloads go, then `finish` checks everything.
    public final class Incoming {
        public let header: BatchHeader
        let metaPages: PageMemory
        let region: Arena.Region?
        let ownPages: PageMemory?
        private var records: [Record] = []

        /// - Parameter region: arena space for the payload area, or nil to take memory of its own.
        public init(header: BatchHeader, region: Arena.Region?) {
            precondition(region == nil || region?.count == header.payloadPages * Batch.pageBytes, "wrong region")
            self.header = header
            self.region = region
            metaPages = PageMemory(bytes: header.paddedMetaLength)
            ownPages =
                region == nil && header.payloadPages > 0
                ? PageMemory(bytes: header.payloadPages * Batch.pageBytes) : nil
            unsafe metaPages.mutableBytes.copyBytes(from: header.encoded())
        }

        /// Where the records go: `header.metaLength - 128` bytes.
        public var recordBytes: UnsafeMutableRawBufferPointer {
            unsafe UnsafeMutableRawBufferPointer(
                rebasing: metaPages.mutableBytes[BatchHeader.byteCount..<header.metaLength])
        }

        /// The whole payload area.
        public var payloadBytes: UnsafeMutableRawBufferPointer {
            if let region { return unsafe UnsafeMutableRawBufferPointer(start: region.pointer, count: region.count) }
            if let ownPages { return unsafe ownPages.mutableBytes }
            return unsafe UnsafeMutableRawBufferPointer(start: nil, count: 0)
        }

        /// Checks and decodes the records.
        /// - Returns: the places of the payloads in the order the wire has them, without padding.
        public func finishMeta() throws(DecodingError) -> [UnsafeMutableRawBufferPointer] {
            let checksum = unsafe crc32c(UnsafeRawBufferPointer(recordBytes))
            guard checksum == header.recordsChecksum else { throw DecodingError("records checksum", at: 52) }
            let meta = unsafe Array(metaPages.bytes[..<header.metaLength])
            var offset = BatchHeader.byteCount
            var places: [UnsafeMutableRawBufferPointer] = unsafe []
            var nextPage = 0
            records.reserveCapacity(header.recordCount)
            for _ in 0..<header.recordCount {
                let (record, next) = try Record.decode(meta[...], at: offset, payloadPages: header.payloadPages)
                if case .pages(let first, let length, _) = record.payload {
                    guard first == nextPage else { throw DecodingError("payloads out of order", at: offset + 16) }
                    nextPage = first + (length + Batch.pageBytes - 1) / Batch.pageBytes
                    let start = first * Batch.pageBytes
                    unsafe places.append(
                        UnsafeMutableRawBufferPointer(rebasing: payloadBytes[start..<start + length]))
                }
                records.append(record)
                offset = next
            }
            guard offset == header.metaLength, nextPage == header.payloadPages else {
                throw DecodingError("batch lengths do not add up", at: offset)
            }
            return unsafe places
        }

        /// Checks every payload.
        public func finish() throws(DecodingError) -> Batch {
            let batch = Batch(
                header: header, records: records, metaPages: metaPages, region: region, ownPages: ownPages)
            for index in records.indices {
                switch records[index].payload {
                case .none: continue
                case .inline(let offset, _, let checksum):
                    guard unsafe crc32c(batch.payload(of: index)) == checksum else {
                        throw DecodingError("payload checksum of record \(header.firstSeq + index)", at: offset)
                    }
                case .pages(let first, _, let checksum):
                    guard unsafe crc32c(batch.payload(of: index)) == checksum else {
                        throw DecodingError(
                            "payload checksum of record \(header.firstSeq + index)",
                            at: header.paddedMetaLength + first * Batch.pageBytes)
                    }
                }
            }
            return batch
        }
    }
}

/// Page-aligned memory, zeroed, freed with its owner.
@safe final class PageMemory: Sendable {
    nonisolated(unsafe) let mutableBytes: UnsafeMutableRawBufferPointer
    var bytes: UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(mutableBytes) }

    init(bytes count: Int) {
        var pointer: UnsafeMutableRawPointer?
        let status = unsafe posix_memalign(&pointer, Batch.pageBytes, count)
        guard status == 0, let pointer = unsafe pointer else { fatalError("no memory for a batch of \(count) bytes") }
        unsafe memset(pointer, 0, count)
        unsafe mutableBytes = UnsafeMutableRawBufferPointer(start: pointer, count: count)
    }

    deinit { unsafe free(mutableBytes.baseAddress) }
}
