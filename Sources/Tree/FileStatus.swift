internal import CLinux
public import Format
internal import Glibc

/// What a plain file is at this moment. A file with records that are not applied yet has newer attributes in memory;
/// those come from whoever logged them.
public struct FileStatus: Sendable, Hashable {
    public var file: FileID
    public var attributes: FileAttributes
    /// Names of the file; for a directory what the file system counts.
    public var links: UInt32
    /// Allocated, in units of 512 bytes.
    public var blocks: UInt64
    /// Of the last change of the inode, nanoseconds since 1970. Cannot be set, so it differs between the rooms.
    public var ctime: Int64
    /// Bytes that the file system likes to be asked for.
    public var blockSize: UInt32

    public var isDirectory: Bool { attributes.mode & S_IFMT == S_IFDIR }
    public var isRegular: Bool { attributes.mode & S_IFMT == S_IFREG }
    public var isSymbolicLink: Bool { attributes.mode & S_IFMT == S_IFLNK }

    init(_ stat: clinux_stat, file: FileID) {
        self.file = file
        attributes = FileAttributes(
            mode: stat.mode, uid: stat.user, gid: stat.group,
            rdev: deviceNumber(major: stat.special_major, minor: stat.special_minor), size: stat.size,
            atime: nanoseconds(stat.access_s, stat.access_ns), mtime: nanoseconds(stat.modify_s, stat.modify_ns))
        links = stat.links
        blocks = stat.blocks
        ctime = nanoseconds(stat.change_s, stat.change_ns)
        blockSize = stat.block_size
    }
}

/// One name of a directory.
public struct DirectoryEntry: Sendable, Hashable {
    public var name: FileName
    public var file: FileID
    /// Type bits of `st_mode`.
    public var type: UInt32
    /// Where reading goes on behind this entry.
    public var cursor: UInt64
    /// When it was asked for; nil for "." and "..".
    public var status: FileStatus?
}

/// Space and limits of the file system under the plain files; sizes in blocks of `blockSize` bytes.
public struct FileSystemStatistics: Sendable, Hashable {
    public var blockSize: UInt64
    public var blocks: UInt64
    public var blocksFree: UInt64
    public var blocksAvailable: UInt64
    public var files: UInt64
    public var filesFree: UInt64
    public var nameLength: UInt64
}

/// Linux's 32-bit device number, as `mknod` and FUSE have it.
func deviceNumber(major: UInt32, minor: UInt32) -> UInt32 {
    (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & 0xFFF00) << 12
}

/// Nanoseconds since 1970, clamped to what 64 bits hold (the years 1678 to 2262).
func nanoseconds(_ seconds: Int64, _ fraction: UInt32) -> Int64 {
    let (product, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
    guard !overflow else { return seconds < 0 ? .min : .max }
    let (sum, tooMuch) = product.addingReportingOverflow(Int64(fraction))
    return tooMuch ? .max : sum
}

/// Seconds and nanoseconds of a time; the nanoseconds are never negative.
func split(_ time: Int64) -> (seconds: Int64, nanoseconds: UInt32) {
    let rest = time % 1_000_000_000
    let seconds = time / 1_000_000_000
    return rest < 0 ? (seconds - 1, UInt32(rest + 1_000_000_000)) : (seconds, UInt32(rest))
}
