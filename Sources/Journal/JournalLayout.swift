internal import Format

/// Where things lie in a journal file. All offsets and lengths are bytes.
///
/// ```
///   0          64 KiB     128 KiB                                    size-128 KiB  size-64 KiB  size
///   +----------+----------+-------------------+----------------------+-------------+------------+
///   | super-   | super-   | header ring       | body ring            | super-      | super-     |
///   | block 0  | block 1  | 64 B per 4 KiB of | batches, each from   | block 2     | block 3    |
///   | (4 KiB)  | (4 KiB)  | body ring         | the start of a page  | (4 KiB)     | (4 KiB)    |
///   +----------+----------+-------------------+----------------------+-------------+------------+
/// ```
///
/// * The superblock copies stand at both ends and 64 KiB apart: neither one bad erase block nor a file that lost its
///   end takes more than two of them.
/// * The smallest batch is one page, so the header ring has one slot for each page of the body ring, and the slot of a
///   batch is that of its first page. Finding one needs no table, and it can never be too short.
/// * A batch never wraps: when the rest of the body ring is too short for it, it goes to the start of the ring. Nothing
///   marks the skipped rest; a reader knows from the length of the batch that it cannot be there.
public struct JournalLayout: Sendable, Hashable {
    public static let pageBytes = 4096
    public static let superblockCopies = 4
    /// Distance between two superblock copies at the same end of the file.
    public static let superblockSpacing = 64 << 10
    /// A journal's size is a multiple of this.
    public static let sizeUnit = 1 << 20
    /// Smaller journals are refused: the longest batch, the batches in flight and the reserve must fit several times.
    public static let minimumSize = 64 << 20
    public static let defaultSize = 1 << 30
    public static let entryBytes = 64
    public static let entriesPerBlock = pageBytes / entryBytes

    public let fileSize: Int
    public let headerRingStart: Int
    public let headerRingBytes: Int
    public let bodyStart: Int
    public let bodyBytes: Int

    /// Nil when a file of this size cannot be a journal.
    public init?(fileSize: Int) {
        guard fileSize >= JournalLayout.minimumSize, fileSize % JournalLayout.sizeUnit == 0 else { return nil }
        self.fileSize = fileSize
        headerRingStart = 2 * JournalLayout.superblockSpacing
        let pages = (fileSize - 4 * JournalLayout.superblockSpacing) / JournalLayout.pageBytes
        let perBlock = JournalLayout.entriesPerBlock
        let headerBlocks = pages / (perBlock + 1)
        headerRingBytes = headerBlocks * JournalLayout.pageBytes
        bodyStart = headerRingStart + headerRingBytes
        bodyBytes = headerBlocks * perBlock * JournalLayout.pageBytes
        precondition(bodyStart + bodyBytes <= fileSize - 2 * JournalLayout.superblockSpacing, "the rings overlap")
        precondition(headerRingBytes / JournalLayout.entryBytes == bodyBytes / JournalLayout.pageBytes, "slots")
        precondition(bodyBytes >= 8 * BatchLimits.diskBytes, "the longest batch must fit several times")
        precondition(JournalLayout.pageBytes == Batch.pageBytes, "batches are whole pages")
    }

    /// Place of superblock copy `index`, 0 to 3.
    public func superblockOffset(_ index: Int) -> Int {
        precondition(index >= 0 && index < JournalLayout.superblockCopies, "there are four superblocks")
        return index < 2
            ? index * JournalLayout.superblockSpacing
            : fileSize - (JournalLayout.superblockCopies - index) * JournalLayout.superblockSpacing
    }

    /// The header ring's block (4 KiB) that holds the slot of the body page at `bodyOffset` (within the body ring).
    public func headerBlock(forBody bodyOffset: Int) -> Int {
        bodyOffset / JournalLayout.pageBytes / JournalLayout.entriesPerBlock
    }

    public func headerBlockOffset(_ block: Int) -> Int { headerRingStart + block * JournalLayout.pageBytes }

    /// Whether a batch of `length` bytes may lie at file offset `position`.
    public func holdsBatch(at position: Int, length: Int) -> Bool {
        position >= bodyStart && (position - bodyStart) % JournalLayout.pageBytes == 0
            && length >= JournalLayout.pageBytes && length % JournalLayout.pageBytes == 0
            && length <= BatchLimits.diskBytes && position + length <= bodyStart + bodyBytes
    }
}

/// Addresses in the body ring that grow for ever: the place in the ring is the address modulo the ring's size. So the
/// order of two addresses is the order in which they were written, and "full" and "empty" cannot be confused.
struct RingAddress: RawRepresentable, Hashable, Comparable, Sendable {
    let rawValue: UInt64
    static func < (left: RingAddress, right: RingAddress) -> Bool { left.rawValue < right.rawValue }
    static func - (left: RingAddress, right: RingAddress) -> Int { Int(left.rawValue) - Int(right.rawValue) }
    static func + (left: RingAddress, right: Int) -> RingAddress {
        RingAddress(rawValue: UInt64(Int(left.rawValue) + right))
    }
}

extension JournalLayout {
    /// Offset within the body ring.
    func bodyOffset(_ address: RingAddress) -> Int { Int(address.rawValue % UInt64(bodyBytes)) }
    /// Offset within the file.
    func fileOffset(_ address: RingAddress) -> Int { bodyStart + bodyOffset(address) }

    /// Where a batch of `length` bytes goes when `end` is the end of the batch before it.
    func placement(of length: Int, after end: RingAddress) -> RingAddress {
        precondition(length > 0 && length <= BatchLimits.diskBytes, "impossible batch length")
        let room = bodyBytes - bodyOffset(end)
        return length <= room ? end : end + room
    }
}
