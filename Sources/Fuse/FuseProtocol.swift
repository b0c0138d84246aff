/// Numbers of the kernel's FUSE protocol (include/uapi/linux/fuse.h, version 7.44). Only what is used here.
enum FuseProtocol {
    static let major: UInt32 = 7
    /// What we speak. The kernel may speak less (`minorAtLeast`) or more.
    static let minor: UInt32 = 44
    /// Linux 5.15 and later: HANDLE_KILLPRIV_V2 and FUSE_INIT_EXT are there.
    static let minorAtLeast: UInt32 = 34
    static let requestHeaderBytes = 40
    static let replyHeaderBytes = 16
    /// Request header and the fixed part of WRITE: what precedes a payload.
    static let writeHeadBytes = 80
    static let rootNode: UInt64 = 1
}

enum FuseOpcode: UInt32, CaseIterable, Sendable {
    case lookup = 1
    case forget = 2
    case getattr = 3
    case setattr = 4
    case readlink = 5
    case symlink = 6
    case mknod = 8
    case mkdir = 9
    case unlink = 10
    case rmdir = 11
    case rename = 12
    case link = 13
    case open = 14
    case read = 15
    case write = 16
    case statfs = 17
    case release = 18
    case fsync = 20
    case setxattr = 21
    case getxattr = 22
    case listxattr = 23
    case removexattr = 24
    case flush = 25
    case initialize = 26
    case opendir = 27
    case readdir = 28
    case releasedir = 29
    case fsyncdir = 30
    case getlk = 31
    case setlk = 32
    case setlkw = 33
    case access = 34
    case create = 35
    case interrupt = 36
    case bmap = 37
    case destroy = 38
    case ioctl = 39
    case poll = 40
    case notifyReply = 41
    case batchForget = 42
    case fallocate = 43
    case readdirplus = 44
    case rename2 = 45
    case lseek = 46
    case copyFileRange = 47
    case setupMapping = 48
    case removeMapping = 49
    case syncfs = 50
    case tmpfile = 51
    case statx = 52
}

/// INIT flags, both words in one.
struct FuseFeatures: OptionSet, Sendable {
    let rawValue: UInt64
    static let asyncRead = FuseFeatures(rawValue: 1 << 0)
    static let bigWrites = FuseFeatures(rawValue: 1 << 5)
    static let readdirplus = FuseFeatures(rawValue: 1 << 13)
    static let readdirplusAuto = FuseFeatures(rawValue: 1 << 14)
    static let asyncDirectIO = FuseFeatures(rawValue: 1 << 15)
    static let parallelDirectoryOperations = FuseFeatures(rawValue: 1 << 18)
    static let abortError = FuseFeatures(rawValue: 1 << 21)
    static let maxPages = FuseFeatures(rawValue: 1 << 22)
    static let cacheSymlinks = FuseFeatures(rawValue: 1 << 23)
    static let noOpendir = FuseFeatures(rawValue: 1 << 24)
    static let explicitInvalidation = FuseFeatures(rawValue: 1 << 25)
    static let handleKillPrivV2 = FuseFeatures(rawValue: 1 << 28)
    static let extended = FuseFeatures(rawValue: 1 << 30)
    static let directIOAllowMmap = FuseFeatures(rawValue: 1 << 36)
    static let noExport = FuseFeatures(rawValue: 1 << 38)
    static let hasResend = FuseFeatures(rawValue: 1 << 39)

    /// What is negotiated, with the reason for each.
    ///
    /// - `asyncDirectIO`: without it libaio runs one request at a time.
    /// - `handleKillPrivV2`: without it the kernel asks for an xattr before every write. We clear the set-user-id bits.
    /// - `directIOAllowMmap`: databases map files that they also write directly. Linux 6.6; without it no file is opened
    ///   past the page cache (`MirroredDirectory.opened`).
    /// - `explicitInvalidation`: nobody else changes the files, so a changed size or mtime never empties the cache.
    /// - `maxPages`: requests of 1 MiB.
    /// - `noOpendir`: reading a directory needs no memory here.
    /// - `noExport`: node ids without a lookup would need a search by number; name_to_handle_at is refused.
    /// - `hasResend`: a later daemon may take over a connection; `unique` is echoed as it came.
    ///
    /// Not: the write-back cache (a write() that returned must be in both rooms), ATOMIC_O_TRUNC (the kernel sends a
    /// SETATTR instead, which is logged like any truncation), POSIX_LOCKS and FLOCK_LOCKS (locks stay in the kernel of
    /// the one node that serves), POSIX_ACL, AUTO_INVAL_DATA, splice (the payload is wanted in our memory).
    static let wanted: FuseFeatures = [
        .asyncRead, .bigWrites, .readdirplus, .readdirplusAuto, .asyncDirectIO, .parallelDirectoryOperations,
        .abortError, .maxPages, .cacheSymlinks, .noOpendir, .explicitInvalidation, .handleKillPrivV2, .extended,
        .directIOAllowMmap, .noExport, .hasResend,
    ]
    /// Without these the promises cannot be kept; a kernel that lacks one is refused.
    static let required: FuseFeatures = [
        .asyncDirectIO, .parallelDirectoryOperations, .maxPages, .handleKillPrivV2, .extended,
    ]
}

/// Flags of OPEN and CREATE answers.
enum FuseOpenFlags {
    static let directIO: UInt32 = 1 << 0
    static let keepCache: UInt32 = 1 << 1
    /// No FLUSH at close(): a process that dies would otherwise hang in it.
    static let noFlush: UInt32 = 1 << 5
    static let parallelDirectWrites: UInt32 = 1 << 6
}

/// Flags in WRITE requests.
enum FuseWriteFlags {
    /// Sent on behalf of the page cache (mmap): process and file handle are guesses.
    static let cache: UInt32 = 1 << 0
    /// The set-user-id and set-group-id bits go.
    static let killPrivileges: UInt32 = 1 << 2
}

/// Which fields of a SETATTR request count.
struct FuseSetAttributeMask: OptionSet, Sendable, Hashable {
    let rawValue: UInt32
    static let mode = FuseSetAttributeMask(rawValue: 1 << 0)
    static let uid = FuseSetAttributeMask(rawValue: 1 << 1)
    static let gid = FuseSetAttributeMask(rawValue: 1 << 2)
    static let size = FuseSetAttributeMask(rawValue: 1 << 3)
    static let atime = FuseSetAttributeMask(rawValue: 1 << 4)
    static let mtime = FuseSetAttributeMask(rawValue: 1 << 5)
    static let handle = FuseSetAttributeMask(rawValue: 1 << 6)
    static let atimeNow = FuseSetAttributeMask(rawValue: 1 << 7)
    static let mtimeNow = FuseSetAttributeMask(rawValue: 1 << 8)
    static let lockOwner = FuseSetAttributeMask(rawValue: 1 << 9)
    static let ctime = FuseSetAttributeMask(rawValue: 1 << 10)
    static let killPrivileges = FuseSetAttributeMask(rawValue: 1 << 11)
}

/// Codes of notifications, sent in the error field with `unique` 0.
enum FuseNotification {
    static let invalidateInode: Int32 = 2
    static let invalidateEntry: Int32 = 3
    static let incrementEpoch: Int32 = 8
    static let incrementEpochMinor: UInt32 = 44
}

/// Numbers that Glibc's module does not have.
enum LinuxFlags {
    static let openWriteOnly: UInt32 = 0o1
    static let openReadWrite: UInt32 = 0o2
    static let openAccessMode: UInt32 = 0o3
    static let openExclusive: UInt32 = 0o200
    static let openTruncate: UInt32 = 0o1000
    static let openAppend: UInt32 = 0o2000
    static let openDataSync: UInt32 = 0o10000
    #if arch(arm64)
        static let openDirect: UInt32 = 0o200000
    #else
        static let openDirect: UInt32 = 0o40000
    #endif
    static let renameNoReplace: UInt32 = 1
    static let renameExchange: UInt32 = 2
    static let xattrCreate: UInt32 = 1
    static let xattrReplace: UInt32 = 2
    static let allocateKeepSize: UInt32 = 1
    static let allocatePunchHole: UInt32 = 2
    static let allocateZeroRange: UInt32 = 16
    static let typeMask: UInt32 = 0o170000
    static let directory: UInt32 = 0o040000
    static let regular: UInt32 = 0o100000
    static let symbolicLink: UInt32 = 0o120000
    static let setUserID: UInt32 = 0o4000
    static let setGroupID: UInt32 = 0o2000
    static let groupExecute: UInt32 = 0o010
    static let permissions: UInt32 = 0o7777
}
