/// The head of a batch: what the records behind it are, and which batch comes before it.
///
/// The first 96 bytes are the same in both rooms; the chain is computed over them. The rest is each journal's own: where this copy lies and in which incarnation of the journal, so that a payload which happens to
/// contain a copy of a journal is never taken for a batch.
///
/// ```
/// byte  0  magic "LSBATCH1"                                   8
///       8  version (1 or 2)                                   u16
///      10  reserved                                           u16
///      12  epoch                                              u32
///      16  mirror id                                          16
///      32  first seq                                          u64
///      40  record count                                       u32
///      44  meta length: this header and the records, bytes    u32
///      48  payload area, 4 KiB pages                          u32
///      52  CRC-32C of the records (meta without this header)  u32
///      56  chain of the batch before                          u64
///      64  committed seq known when it was closed             u64
///      72  time of closing, nanoseconds since 1970            i64
///      80  reserved                                           16
///      --  96: the end of what is shared  --
///      96  position in the journal, bytes                     u64
///     104  the journal's incarnation                          u64
///     112  seq up to which all was on this disk when this
///          copy was handed to it; 0: nobody knows             u64
///     120  reserved                                           u32
///     124  CRC-32C of bytes 0 to 123                          u32
/// ```
/// On the wire goes what the receiver cannot know: a database that writes a few bytes at a time makes a batch of each.
///
/// ```
/// byte  0  version                                            u32
///       4  epoch                                              u32
///       8  bytes 32 to 79 of the above                        48
///      56  CRC-32C of the 96 shared bytes                     u32
/// ```
public struct BatchHeader: Sendable, Hashable {
    public static let byteCount = 128
    public static let sharedByteCount = 96
    /// Bytes of the form that crosses the wire.
    public static let wireByteCount = 60
    /// "LSBATCH1" read as a little-endian number.
    public static let magic: UInt64 = 0x3148_4354_4142_534C
    /// What is written. 1: the first. 2: records of a verification and its repairs (kinds 48 to 50); nothing else
    /// differs, so batches of version 1 are read, sent on and kept as they are.
    public static let version: UInt16 = 2
    public static let oldestVersion: UInt16 = 1

    /// The version it was closed with. Part of the chain: it stays when the batch is sent on or written again.
    public var version = BatchHeader.version
    public var epoch: Epoch
    public var mirror: MirrorID
    public var firstSeq: Seq
    public var recordCount: Int
    /// Bytes: this header and the records, without padding.
    public var metaLength: Int
    public var payloadPages: Int
    public var recordsChecksum: UInt32
    public var previousChain: UInt64
    public var committedSeq: Seq
    public var closedAt: Int64
    public var position: UInt64 = 0
    public var incarnation: UInt64 = 0
    /// Everything up to here was on this journal's disk before the batch was written to it. Not what is committed: that is
    /// on the disk of every in-sync node, and a node that is catching up is none.
    public var durableSeq = Seq.zero

    public init(
        epoch: Epoch, mirror: MirrorID, firstSeq: Seq, recordCount: Int, metaLength: Int, payloadPages: Int,
        recordsChecksum: UInt32, previousChain: UInt64, committedSeq: Seq, closedAt: Int64
    ) {
        self.epoch = epoch
        self.mirror = mirror
        self.firstSeq = firstSeq
        self.recordCount = recordCount
        self.metaLength = metaLength
        self.payloadPages = payloadPages
        self.recordsChecksum = recordsChecksum
        self.previousChain = previousChain
        self.committedSeq = committedSeq
        self.closedAt = closedAt
    }

    public var lastSeq: Seq { firstSeq + (recordCount - 1) }
    /// Bytes of the meta area on disk: padded to whole pages.
    public var paddedMetaLength: Int { (metaLength + Batch.pageBytes - 1) / Batch.pageBytes * Batch.pageBytes }
    /// Bytes the batch takes on disk.
    public var diskLength: Int { paddedMetaLength + payloadPages * Batch.pageBytes }

    /// The chain value of this batch: XXH3 over the shared bytes, which hold the chain of the batch before.
    public var chain: UInt64 {
        unsafe shared().bytes.withUnsafeBytes { bytes in unsafe hash64(bytes, seed: 0) }
    }

    /// The 128 bytes, checksum filled in.
    public func encoded() -> [UInt8] {
        var writer = shared()
        writer.put(position)
        writer.put(incarnation)
        writer.put(durableSeq)
        writer.put(UInt32(0))
        writer.put(crc32c(writer.bytes))
        return writer.bytes
    }

    /// The 96 bytes that both rooms share, with room for the rest.
    private func shared() -> ByteWriter {
        var writer = ByteWriter(reserving: BatchHeader.byteCount)
        writer.put(BatchHeader.magic)
        writer.put(version)
        writer.put(UInt16(0))
        writer.put(epoch)
        writer.put(mirror)
        putNumbers(into: &writer)
        writer.put(UInt64(0))
        writer.put(UInt64(0))
        return writer
    }

    /// The 60 bytes that cross the wire.
    public func wireEncoded() -> [UInt8] {
        var writer = ByteWriter(reserving: BatchHeader.wireByteCount)
        writer.put(UInt32(version))
        writer.put(epoch)
        putNumbers(into: &writer)
        writer.put(sharedChecksum)
        return writer.bytes
    }

    private var sharedChecksum: UInt32 { crc32c(shared().bytes) }

    /// Bytes 32 to 79.
    private func putNumbers(into writer: inout ByteWriter) {
        writer.put(firstSeq)
        writer.put(UInt32(recordCount))
        writer.put(UInt32(metaLength))
        writer.put(UInt32(payloadPages))
        writer.put(recordsChecksum)
        writer.put(previousChain)
        writer.put(committedSeq)
        writer.put(closedAt)
    }

    /// Reads and checks the form that crosses the wire.
    ///
    /// - Parameter mirror: the mirror of the connection; the checksum tells if the batch is of another one.
    public init(wire bytes: some Collection<UInt8>, mirror: MirrorID) throws(DecodingError) {
        var reader = ByteReader(Array(bytes.prefix(BatchHeader.wireByteCount)))
        guard reader.remaining == BatchHeader.wireByteCount else {
            throw DecodingError("truncated batch header", at: 0)
        }
        let version = try BatchHeader.known(try reader.get(UInt32.self, "version"), at: 0)
        let epoch = try reader.getEpoch()
        try self.init(version: version, epoch: epoch, mirror: mirror, numbersFrom: &reader)
        let found = try reader.get(UInt32.self, "header checksum")
        guard found == sharedChecksum else { throw DecodingError("batch header checksum", at: 56) }
        try checkNumbers()
    }

    /// Reads and checks a header: magic, version, checksum, and that the numbers are possible.
    public init(decoding bytes: some Collection<UInt8>) throws(DecodingError) {
        var reader = ByteReader(Array(bytes.prefix(BatchHeader.byteCount)))
        guard reader.remaining == BatchHeader.byteCount else { throw DecodingError("truncated batch header", at: 0) }
        guard try reader.get(UInt64.self, "magic") == BatchHeader.magic else {
            throw DecodingError("no batch header", at: 0)
        }
        let version = try BatchHeader.known(UInt32(try reader.get(UInt16.self, "version")), at: 8)
        try reader.skip(2)
        let epoch = try reader.getEpoch()
        let mirror = try reader.getMirrorID()
        try self.init(version: version, epoch: epoch, mirror: mirror, numbersFrom: &reader)
        try reader.skip(16)
        position = try reader.get(UInt64.self, "position")
        incarnation = try reader.get(UInt64.self, "incarnation")
        durableSeq = try reader.getSeq()
        try reader.skip(4)
        let found = try reader.get(UInt32.self, "header checksum")
        guard found == crc32c(bytes.prefix(BatchHeader.byteCount - 4)) else {
            throw DecodingError("batch header checksum", at: 124)
        }
        try checkNumbers()
    }

    private static func known(_ version: UInt32, at offset: Int) throws(DecodingError) -> UInt16 {
        guard (UInt32(oldestVersion)...UInt32(BatchHeader.version)).contains(version) else {
            throw DecodingError("batch version \(version)", at: offset)
        }
        return UInt16(version)
    }

    /// Bytes 32 to 79.
    private init(
        version: UInt16, epoch: Epoch, mirror: MirrorID, numbersFrom reader: inout ByteReader
    ) throws(DecodingError) {
        self.version = version
        self.epoch = epoch
        self.mirror = mirror
        firstSeq = try reader.getSeq()
        recordCount = Int(try reader.get(UInt32.self, "record count"))
        metaLength = Int(try reader.get(UInt32.self, "meta length"))
        payloadPages = Int(try reader.get(UInt32.self, "payload pages"))
        recordsChecksum = try reader.get(UInt32.self, "records checksum")
        previousChain = try reader.get(UInt64.self, "chain")
        committedSeq = try reader.getSeq()
        closedAt = try reader.get(Int64.self, "time")
    }

    private func checkNumbers() throws(DecodingError) {
        guard recordCount >= 1, recordCount <= BatchLimits.records, metaLength > BatchHeader.byteCount,
            metaLength <= BatchLimits.metaBytes, payloadPages <= BatchLimits.payloadPages, firstSeq > .zero,
            firstSeq.rawValue < BatchLimits.seqLimit, committedSeq < firstSeq,
            durableSeq < firstSeq
        else { throw DecodingError("impossible batch header", at: 0) }
    }
}

/// Limits of a batch.
public enum BatchLimits {
    public static let records = 4096
    /// Larger first seqs are refused: no mirror gets there, and sums of seqs and counts stay in range.
    public static let seqLimit: UInt64 = 1 << 62
    public static let metaBytes = 512 << 10
    /// 4 MiB: at least one of the longest payloads, and what a disk writes in about a millisecond.
    public static let payloadPages = 1024
    /// The most a batch takes on disk, bytes.
    public static let diskBytes = metaBytes + payloadPages * Batch.pageBytes
}
