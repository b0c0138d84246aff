internal import CLinux
public import Format
internal import Glibc
public import Logging
internal import Mounts
internal import Ring
internal import Synchronization

/// The plain files of one mirror on this node.
///
/// All calls block and may be made from several threads at once; the caller sees to it that records which touch the
/// same file are applied in their order (`Applier` does). Nothing here follows a symbolic link of the tree: every
/// object is reached by its handle, and names only through the descriptor of their directory.
public final class PlainTree: Sendable {
    /// The number of an object, sixteen hexadecimal digits, in this extended attribute.
    public static let fileIDXattr: FileName = Array("trusted.lockstep.fid".utf8)
    static let ownXattrPrefix: FileName = Array("trusted.lockstep.".utf8)
    /// The directory at the root of the plain files that is ours; invisible through the mount and to records.
    public static let ownName: FileName = Array(".lockstep".utf8)
    static let stagingName: FileName = Array("staging".utf8)
    static let lockName: FileName = Array("lock".utf8)
    /// A symbolic link whose image has not come yet.
    static let unknownTarget: [UInt8] = Array("lockstep: not copied yet".utf8)

    public enum Opening: Sendable {
        /// Gives the directory its number and our own directory if they are missing.
        case create
        /// Refuses a directory that was never prepared: most likely its file system is not mounted.
        case existing
    }

    /// Where the plain files are.
    public let backing: String
    /// "ext4", "xfs" or "btrfs".
    public let fileSystemType: String
    /// What the file system can hold.
    public let limits: FileLimits
    let logger: Logger
    /// An ordinary descriptor, opened before anything was written: the kernel reports a failed write-back to it once,
    /// at the next `syncfs`, and to nobody who opens later. It is also the mount that handles are opened on.
    let root: FileDescriptor
    let staging: FileDescriptor
    /// Holds the lock that keeps a second process away.
    private let lock: FileDescriptor
    let device: UInt64
    let cache: DescriptorCache
    let tablePath: String
    let treeIdentity: UInt64
    let state: Mutex<State>
    /// Held by who sets the times of a directory, except for a record of its names: no other record runs beside that.
    let directoryTimes = Mutex(())

    struct State {
        var table: FileTable
        /// Set by tests: the errno that a question of a verification meets on a bad disk.
        var verifyFault: (@Sendable (VerifyCheck) -> Int32?)?
        /// Files that stay until released, although their last name may go.
        var held: Set<FileID> = []
        /// Held files without a name, in staging.
        var parked: Set<FileID> = []
        /// Files whose last name is being taken away: the table still has them.
        var leaving: Set<FileID> = []
        /// Files that went lately, newest last: records that were logged before that was known are no error.
        var removed: Set<FileID> = []
        var removedInOrder: [FileID] = []
        /// Names already complained about.
        var reported: Set<FileName> = []
        /// A first failure of `sync`; there is no second try.
        var syncFailure: TreeError?
        var image: ImageSession?
        /// Links and devices whose replacement has begun and has not come to its end.
        var torn: Set<FileID> = []
    }

    /// - Parameters:
    ///   - backing: the directory of the plain files; ext4, XFS or btrfs.
    ///   - state: a directory for the file table.
    ///   - descriptorLimit: open files kept at hand.
    /// - Throws: `TreeError` that says what to do; nothing was changed then, except that `create` may have made
    ///   `.lockstep`.
    public init(
        backing: String, state stateDirectory: String, opening: Opening, descriptorLimit: Int = 512, logger: Logger
    ) throws(TreeError) {
        self.backing = backing
        self.logger = logger
        root = try System.open(backing, O_RDONLY | CLINUX_O_DIRECTORY)
        let stat = try System.stat(root.rawValue)
        device = UInt64(stat.device_major) << 32 | UInt64(stat.device_minor)
        fileSystemType = try PlainTree.supportedType(of: root.rawValue, mount: stat.mount_id, path: backing)
        let tag = try System.xattr(root.rawValue, PlainTree.fileIDXattr)
        if opening == .existing, tag == nil {
            throw TreeError(
                "use the plain files in", backing, code: ENODEV,
                remedy: "It is not a mirrored directory. If it should be, its file system is not mounted: mount it. "
                    + "If the disk was replaced, 'lockstep init' prepares the empty directory, and the other node "
                    + "fills it")
        }
        if let tag, PlainTree.decodeTag(tag) != .root {
            throw TreeError(
                "use the plain files in", backing, code: EINVAL,
                remedy: "It is a directory inside another mirror's plain files: name that mirror's own directory")
        }
        if opening == .create { try PlainTree.checkRoot(root.rawValue, path: backing) }
        let own = try PlainTree.directory(PlainTree.ownName, in: root.rawValue, creating: opening == .create)
        lock = try System.open(own.rawValue, PlainTree.lockName, O_RDWR | O_CREAT)
        var locked = clinux_lock_exclusive(lock.rawValue)
        // A process that is just ending, or a child between fork and exec, holds it for a moment longer.
        for _ in 0..<20 where locked == -EWOULDBLOCK {
            usleep(50_000)
            locked = clinux_lock_exclusive(lock.rawValue)
        }
        guard locked >= 0 else {
            throw TreeError(
                "lock the plain files in", backing, code: -locked,
                remedy: "Another process works on them: stop it first (systemctl stop lockstepd)")
        }
        if opening == .create, fileSystemType == "ext4" { try PlainTree.checkExtents(own.rawValue, path: backing) }
        var limits = FileLimits(
            fileSystemType: fileSystemType, blockBytes: try System.fileSystem(root.rawValue).block_size)
        // btrfs keeps every time, and may have no room to try it.
        if fileSystemType != "btrfs" {
            do throws(TreeError) {
                (limits.times, limits.timeStep) = try PlainTree.keptTimes(by: lock.rawValue)
            } catch {
                let path = backing + "/.lockstep/lock"
                throw TreeError("try what the file system keeps of the times of", path, code: error.code)
            }
        }
        self.limits = limits
        staging = try PlainTree.directory(PlainTree.stagingName, in: own.rawValue, creating: true)
        if tag == nil { try System.setXattr(root.rawValue, PlainTree.fileIDXattr, PlainTree.encodeTag(.root)) }
        cache = DescriptorCache(limit: descriptorLimit)
        tablePath = stateDirectory + "/file-table"
        if opening == .create {
            _ = try System.open(own.rawValue, PlainTree.markerName, O_RDWR | O_CREAT)
        }
        treeIdentity = try PlainTree.identity(of: root.rawValue, own: own.rawValue)
        let found = try FileTable.open(path: tablePath, identity: treeIdentity, logger: logger)
        let table: FileTable
        if let found {
            table = found
        } else {
            table = try FileTable.create(path: tablePath, identity: treeIdentity)
        }
        state = Mutex(State(table: table))
        try findTorn()
        if found == nil {
            try buildTable(table)
        } else {
            try table.insert(.root, try handle(of: root.rawValue))
        }
        try giveBackTimes()
        askDisk()
    }

    /// Makes everything applied so far durable: the file table first, then the plain files.
    ///
    /// - Throws: the first error, and from then on always: the kernel reports a lost page once and then says "ok".
    ///   The caller leaves the in-sync set and never moves the checkpoint.
    public func sync() throws(TreeError) {
        if let failure = state.withLock({ $0.syncFailure }) { throw failure }
        do throws(TreeError) {
            try table.flush()
            let result = clinux_syncfs(root.rawValue)
            guard result >= 0 else {
                throw TreeError(
                    "write the plain files to disk in", backing, code: -result,
                    remedy: "The disk lost data. Check it (dmesg), replace it, and let this node be resynchronised")
            }
        } catch {
            state.withLock { if $0.syncFailure == nil { $0.syncFailure = error } }
            throw error
        }
    }

    /// Syncs and marks the file table complete, for a clean stop. Nothing may be applied afterwards.
    public func close() throws(TreeError) {
        try sync()
        cache.removeAll()
        try table.close()
    }

    var table: FileTable { state.withLock { $0.table } }

    // MARK: Opening

    /// File systems that write metadata in order: after a crash a name never leads to an inode that was not written.
    private static func supportedType(of fd: Int32, mount: UInt64, path: String) throws(TreeError) -> String {
        let remedy = "Put the plain files on ext4, XFS or btrfs"
        var handle = clinux_handle()
        let result = unsafe System.withText([]) { text in
            unsafe clinux_name_to_handle(fd, text, CLINUX_AT_EMPTY_PATH, &handle, nil)
        }
        // ext2 and ext4 have one magic number, so it comes from the mount table.
        let found = MountTable.current()?.all.first { $0.id == mount }
        let type = found?.type ?? "unknown"
        guard ["ext4", "xfs", "btrfs"].contains(type) else {
            throw TreeError("use the file system '\(type)' of", path, code: EOPNOTSUPP, remedy: remedy)
        }
        guard result >= 0 else {
            throw TreeError("get file handles in", path, code: -result, remedy: remedy)
        }
        try checkQuota(found?.enforcedQuota, path: path)
        return type
    }

    /// XFS asks root for quotas too: what was granted to the application could not be applied.
    static func checkQuota(_ quota: String?, path: String) throws(TreeError) {
        guard let quota else { return }
        throw TreeError(
            "use the XFS file system with enforced quotas (\(quota)) of", path, code: EOPNOTSUPP,
            remedy: "A user who is over his quota would stop both rooms. Turn enforcement off "
                + "(xfs_quota -x -c 'disable -ugp' on its mount point) and mount it with uqnoenforce, gqnoenforce or "
                + "pqnoenforce, which still count")
    }

    /// What the file system keeps of times, tried on a file of ours: mkfs decides it, and nothing tells. A new file would
    /// need room.
    private static func keptTimes(by fd: Int32) throws(TreeError) -> (ClosedRange<Int64>, step: UInt32) {
        func kept(_ atime: Int64, _ mtime: Int64) throws(TreeError) -> FileAttributes {
            try System.setTimes(fd, atime: atime, mtime: mtime)
            return FileStatus(try System.stat(fd), file: .none).attributes
        }
        let ends = try kept(.min, .max)
        let fraction: Int64 = 999_999_999
        return (ends.atime...ends.mtime, UInt32(fraction - (try kept(0, fraction).mtime) + 1))
    }

    static func directory(
        _ name: FileName, in parent: Int32, creating: Bool
    ) throws(TreeError) -> FileDescriptor {
        let flags = O_RDONLY | CLINUX_O_DIRECTORY
        if let found = try System.openIfPresent(parent, name, flags) {
            try keepForRoot(found.rawValue)
            return found
        }
        guard creating else {
            throw TreeError(
                "open", shown(name), code: ENOENT,
                remedy: "The mirrored directory is damaged. Restore it, or prepare the node anew with 'lockstep init'")
        }
        try System.makeDirectory(parent, name, mode: 0o700)
        let made = try System.open(parent, name, flags)
        try keepForRoot(made.rawValue)
        return made
    }

    /// A directory of ours hands nothing on to what is made in it: no group, no default ACL. Its parent, which may be the
    /// application's own, may have handed them to it.
    private static func keepForRoot(_ directory: Int32) throws(TreeError) {
        let found = try System.stat(directory)
        if found.user != 0 || found.group != 0 { try System.setOwner(directory, user: 0, group: 0) }
        if found.mode & 0o7777 != 0o700 { try System.setMode(directory, 0o700) }
        for name in ["system.posix_acl_default", "system.posix_acl_access"] {
            let name: FileName = Array(name.utf8)
            if try System.xattr(directory, name) != nil { try System.removeXattr(directory, name) }
        }
    }

    /// Tells this tree from a copy on another disk, and from one that was put into its place file by file: from the inodes
    /// and times of birth of the root, of our own directory and of the marker. The handles in the table are of inodes.
    private static func identity(of root: Int32, own: Int32) throws(TreeError) -> UInt64 {
        var writer = ByteWriter()
        for stat in [try System.stat(root), try System.stat(own), try System.stat(own, markerName)] {
            writer.put(stat?.inode ?? 0)
            writer.put(stat?.birth_s ?? 0)
            writer.put(stat?.birth_ns ?? 0)
        }
        let bytes = writer.bytes
        return unsafe bytes.withUnsafeBytes { unsafe hash64($0, seed: 0) }
    }
}
