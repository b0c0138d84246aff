/// What the file system of one room can hold and nobody can look up when it is needed. Both nodes tell theirs, and the
/// primary keeps to the narrower one: a record that cannot be applied in one room stops it there.
public struct FileLimits: Sendable, Hashable {
    /// Bytes of the longest file.
    public var fileBytes: UInt64
    /// Names of one file.
    public var links: UInt32
    /// Bytes of all extended attributes of one file together, as `RecordLimits.xattrBytes(_:_:)` counts them; our own is
    /// not counted.
    public var xattrBytes: UInt32
    /// Bytes of a symbolic link's target.
    public var targetBytes: UInt32
    /// Bytes that a directory itself may have grown to on ext4 (`st_size`) and is still sure to take another name.
    public var directoryBytes: UInt64
    /// The first and the last time that it keeps, nanoseconds since 1970. A time beyond them becomes the nearest one.
    public var times: ClosedRange<Int64> = .min ... .max
    /// Of this many nanoseconds a time is a multiple; what is over is dropped. A power of ten, a second at most.
    public var timeStep: UInt32 = 1

    public init(fileBytes: UInt64, links: UInt32, xattrBytes: UInt32, targetBytes: UInt32, directoryBytes: UInt64) {
        self.fileBytes = fileBytes
        self.links = links
        self.xattrBytes = xattrBytes
        self.targetBytes = targetBytes
        self.directoryBytes = directoryBytes
    }

    /// The longest file anywhere, 1 PiB: whoever compares the rooms steps over its holes piece by piece, and would never
    /// come to the end of an exabyte.
    public static let fileBytesMax: UInt64 = 1 << 50
    /// What records and the kernel allow on any file system.
    public static let widest = FileLimits(
        fileBytes: fileBytesMax, links: .max, xattrBytes: UInt32(RecordLimits.xattrsBytes), targetBytes: 4095,
        directoryBytes: .max)

    /// - Parameters:
    ///   - fileSystemType: "ext4", "xfs" or "btrfs"; anything else counts as ext4, the narrowest.
    ///   - blockBytes: of one of its blocks, as statfs tells.
    public init(fileSystemType: String, blockBytes: UInt64) {
        let block = min(max(512, blockBytes), 65_536)
        // Of a block that others share: without their heads, and our own attribute.
        let shared = UInt32(block) - 196
        self = .widest
        switch fileSystemType {
        case "xfs":
            links = 2_000_000_000
            targetBytes = 1023
        case "btrfs":
            links = 65_535
            xattrBytes = 15_000
            // A target lies in a leaf of the tree, which may be as small as a block.
            targetBytes = min(targetBytes, shared)
        default:
            // Block numbers have 32 bits; attributes share one block; a target has one, and a zero behind it.
            fileBytes = min(fileBytes, ((1 << 32) - 1) * block)
            links = 65_000
            xattrBytes = min(xattrBytes, shared)
            targetBytes = min(targetBytes, UInt32(block) - 1)
            directoryBytes = FileLimits.indexedBytes(block)
        }
    }

    /// ext4 finds names through a tree of two levels, and refuses one whose way through it is full, while all others may
    /// be half empty. (`large_dir` adds a level; the most that is never refused is the same for all, which is simpler.)
    private static func indexedBytes(_ block: UInt64) -> UInt64 {
        // 8 bytes for each block below; heads and a checksum take the place of 6 in the root, of 2 in the others.
        let places = block / 8 - 6
        return places * (places / 2) * block
    }

    /// What both can hold.
    public func narrower(_ other: FileLimits) -> FileLimits {
        var both = FileLimits(
            fileBytes: min(fileBytes, other.fileBytes), links: min(links, other.links),
            xattrBytes: min(xattrBytes, other.xattrBytes), targetBytes: min(targetBytes, other.targetBytes),
            directoryBytes: min(directoryBytes, other.directoryBytes))
        both.times = times.clamped(to: other.times)
        both.timeStep = max(timeStep, other.timeStep)
        return both
    }

    /// The time that is set instead of `time`, which every file system with these limits keeps as it is.
    public func kept(_ time: Int64) -> Int64 {
        let time = min(max(time, times.lowerBound), times.upperBound)
        // Of the first second of its range the kernel drops the fraction.
        guard UInt64(bitPattern: time &- times.lowerBound) >= UInt64(FileLimits.secondNanoseconds) else {
            return times.lowerBound
        }
        let over = time % Int64(timeStep)
        return time - (over < 0 ? over + Int64(timeStep) : over)
    }

    fileprivate static let secondNanoseconds: UInt32 = 1_000_000_000
}

extension ByteWriter {
    mutating func put(_ limits: FileLimits) {
        put(limits.fileBytes)
        put(limits.links)
        put(limits.xattrBytes)
        put(limits.targetBytes)
        put(limits.directoryBytes)
        put(limits.times.lowerBound)
        put(limits.times.upperBound)
        put(limits.timeStep)
    }
}

extension ByteReader {
    mutating func getFileLimits() throws(DecodingError) -> FileLimits {
        var limits = FileLimits(
            fileBytes: try get(UInt64.self, "longest file"), links: try get(UInt32.self, "names of a file"),
            xattrBytes: try get(UInt32.self, "extended attributes"), targetBytes: try get(UInt32.self, "link target"),
            directoryBytes: try get(UInt64.self, "directory"))
        let first = try get(Int64.self, "first time")
        let last = try get(Int64.self, "last time")
        limits.timeStep = try get(UInt32.self, "time step")
        // 1970 is in the range of every file system, and so in what two of them have in common.
        guard first <= 0, last >= 0, (1...FileLimits.secondNanoseconds).contains(limits.timeStep) else {
            throw DecodingError("impossible times", at: offset)
        }
        limits.times = first...last
        return limits
    }
}
