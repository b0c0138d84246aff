internal import CLinux
internal import Format
internal import Glibc
internal import Ring

/// Walking the whole tree: to build the file table again, and to give numbers to files that have none.
extension PlainTree {
    /// The tag of an untagged object is nil. The descriptor is O_PATH.
    typealias Visitor = (_ fd: Int32, _ tag: FileID?) throws(TreeError) -> FileID?

    /// Enters every object below the root and in staging into a new table, and puts it into its place.
    func buildTable(_ table: FileTable) throws(TreeError) {
        let count = try walk(table) { (_, tag) throws(TreeError) in tag }
        try table.putIntoPlace()
        logger.info("file table built from the files", metadata: ["table.files": "\(count)"])
    }

    /// Builds the table anew from the files: they are not those that it was made of. Nothing else may use the tree
    /// meanwhile: what is made behind the scan would be missing.
    public func rebuildTable() throws(TreeError) {
        let fresh = try FileTable.create(path: tablePath, identity: treeIdentity)
        try buildTable(fresh)
        state.withLock { $0.table = fresh }
    }

    /// Gives a number to every object that has none. For a directory that becomes a mirror, and for objects that were
    /// put into the plain files while the mirror was stopped. Nothing else may use the tree meanwhile.
    ///
    /// - Parameters:
    ///   - retagging: numbers found are replaced too. For the first start of a mirror on files of an earlier one, whose
    ///     numbers would collide with its own.
    /// - Returns: how many objects were given a number.
    /// - Throws: also for what the mirror cannot carry, before anything is given a number: E2BIG for extended attributes,
    ///   EOPNOTSUPP for access control lists and for what flags of inodes stand in the way.
    public func adoptScan(allocator: inout FileIDAllocator, retagging: Bool) throws(TreeError) -> Int {
        var numbers = allocator
        var tagged = 0
        // Further names of one inode get the number of the first; only inodes with several names are remembered.
        var linked: [UInt64: FileID] = [:]
        cache.removeAll()
        try checkAll()
        let fresh = try FileTable.create(path: tablePath, identity: treeIdentity)
        _ = try walk(fresh) { (fd, tag) throws(TreeError) in
            if let tag, !retagging { return tag }
            let stat = try System.stat(fd)
            let isLinked = stat.links > 1 && stat.mode & S_IFMT != S_IFDIR
            if isLinked, let known = linked[stat.inode] { return known }
            guard let file = numbers.allocate() else {
                throw TreeError("number the files in", backing, code: EOVERFLOW)
            }
            try System.setXattr(fd, PlainTree.fileIDXattr, PlainTree.encodeTag(file))
            if isLinked { linked[stat.inode] = file }
            tagged += 1
            return file
        }
        try fresh.putIntoPlace()
        state.withLock { $0.table = fresh }
        allocator = numbers
        return tagged
    }

    /// Refuses what the mirror cannot carry.
    private func checkAll() throws(TreeError) {
        try checkAccessLists(System.xattrNames(root.rawValue), backing)
        // For the walk alone, which goes down through them.
        var numbers = FileIDAllocator(epoch: Epoch(rawValue: 1))
        var found: (obstacle: Obstacle, path: String, count: Int)?
        _ = try walk(try FileTable.create(path: tablePath, identity: treeIdentity)) { (fd, _) throws(TreeError) in
            try checkXattrs(fd)
            if let obstacle = try obstacleNamed(fd) {
                if found == nil { found = (obstacle, path(of: fd), 0) }
                if found?.obstacle == obstacle { found?.count += 1 }
            }
            return try System.stat(fd).mode & S_IFMT == S_IFDIR ? numbers.allocate() : nil
        }
        guard let found else { return }
        let others = found.count > 1 ? " (and \(found.count - 1) more)" : ""
        throw found.obstacle.refusal(of: found.path + others)
    }

    private func obstacleNamed(_ fd: Int32) throws(TreeError) -> Obstacle? {
        do throws(TreeError) { return try obstacle(fd) } catch {
            throw TreeError("look for flags (lsattr) of", path(of: fd), code: error.code)
        }
    }

    /// Refuses an object with more extended attributes than a record of it carries.
    private func checkXattrs(_ fd: Int32) throws(TreeError) {
        let names = try System.xattrNames(fd).filter { !$0.starts(with: PlainTree.ownXattrPrefix) }
        try checkAccessLists(names, path(of: fd))
        var bytes = 0
        for name in names { bytes += RecordLimits.xattrBytes(name, try System.xattr(fd, name)?.count ?? 0) }
        guard names.count > RecordLimits.xattrCount || bytes > RecordLimits.xattrsBytes else { return }
        throw PlainTree.tooManyXattrs(names.count, bytes, path(of: fd))
    }

    /// Refuses what the mirrored directory does not offer (docs/mirrored-directory.md): there only the mode counts, and its
    /// group bits are the mask of an access control list, so that the group would get what the list denies it.
    private func checkAccessLists(_ names: [FileName], _ path: @autoclosure () -> String) throws(TreeError) {
        guard names.contains(where: { $0.starts(with: Array("system.posix_acl_".utf8)) }) else { return }
        throw TreeError(
            "mirror the access control list (POSIX ACL) of", path(), code: EOPNOTSUPP,
            remedy: "The mirrored directory goes by owner, group and mode alone, and would allow what the list denies. "
                + "`getfacl -R -s DIRECTORY` shows all of them, `setfacl -R -b DIRECTORY` removes them; then give the "
                + "rights with groups")
    }

    /// Visits every object below the root and in staging, directories before what is in them, and enters it into
    /// `table` under the number that `visit` answers (nil: left out).
    private func walk(_ table: FileTable, _ visit: Visitor) throws(TreeError) -> Int {
        try table.insert(.root, try handle(of: root.rawValue))
        var count = 1
        var waiting: [FileID] = []
        // Staging has no number of its own; what is in it came from records that a crash interrupted.
        try visitDirectory(staging.rawValue, .none, table, visit, &waiting, &count)
        waiting.append(.root)
        while let directory = waiting.popLast() {
            guard let handle = try table.find(directory) else { continue }
            let fd = try openDirectory(handle)
            try visitDirectory(fd.rawValue, directory, table, visit, &waiting, &count)
        }
        return count
    }

    private func visitDirectory(
        _ shared: Int32, _ directory: FileID, _ table: FileTable, _ visit: Visitor, _ waiting: inout [FileID],
        _ count: inout Int
    ) throws(TreeError) {
        let fd = try System.open(shared, [UInt8(ascii: ".")], O_RDONLY | CLINUX_O_DIRECTORY | CLINUX_O_NOATIME)
        while true {
            let names = try rawNames(fd.rawValue, of: directory)
            if names.isEmpty { return }
            for raw in names where !raw.isDots {
                guard let object = try child(raw.name, of: fd.rawValue) else { continue }
                let stat = try System.stat(object.rawValue)
                guard UInt64(stat.device_major) << 32 | UInt64(stat.device_minor) == device else {
                    throw TreeError(
                        "use", path(of: object.rawValue), code: EXDEV,
                        remedy: "Another file system is mounted there. A mirror's plain files are on one file system: "
                            + "make it a mirror of its own")
                }
                let tag = try tag(of: object.rawValue)
                // Of an object that is being replaced: it is at a name too, or the old one is.
                if directory == .none, tag != nil, PlainTree.replacedFile(raw.name) != nil { continue }
                guard let file = try visit(object.rawValue, tag) else { continue }
                let handle = try handle(of: object.rawValue)
                if let known = try table.find(file) {
                    if known == handle || isBeingReplaced(file) { continue }
                    throw duplicate(file, known, object.rawValue)
                }
                try table.insert(file, handle)
                count += 1
                if stat.mode & S_IFMT == S_IFDIR { waiting.append(file) }
            }
        }
    }

    private func openDirectory(_ handle: FileHandle) throws(TreeError) -> FileDescriptor {
        let fd = try open(handle, CLINUX_O_PATH)
        let result = System.reopen(fd.rawValue, O_RDONLY | CLINUX_O_DIRECTORY | CLINUX_O_NOATIME)
        return FileDescriptor(owning: try System.check(result, "open", path(of: fd.rawValue)))
    }

    func open(_ handle: FileHandle, _ flags: Int32) throws(TreeError) -> FileDescriptor {
        var raw = clinux_handle()
        raw.type = handle.type
        raw.length = UInt32(handle.bytes.count)
        unsafe withUnsafeMutableBytes(of: &raw.bytes) { space in unsafe space.copyBytes(from: handle.bytes) }
        let result = unsafe clinux_open_by_handle(root.rawValue, &raw, flags | CLINUX_O_NOFOLLOW)
        return FileDescriptor(owning: try System.check(result, "open by handle", ""))
    }

    private func duplicate(_ file: FileID, _ known: FileHandle, _ fd: Int32) -> TreeError {
        var other = "another file"
        if let fd = try? open(known, CLINUX_O_PATH) { other = path(of: fd.rawValue) }
        return TreeError(
            "use", "\(path(of: fd)) and \(other), which have one file number (\(file))", code: EEXIST,
            remedy: "One is a copy made past the mirror (cp -a copies the attribute). Take the copy out, or remove its "
                + "attribute (setfattr -x trusted.lockstep.fid FILE) and run 'lockstep adopt'")
    }
}

/// What a backing directory looks like from outside, before anything is opened or changed.
public enum BackingLook: Sendable, Hashable {
    /// It has been prepared for a mirror.
    case mirrored
    /// Nothing is in it, and it was never prepared. `isMountPoint`: a file system of its own, so it is a new disk and not
    /// the bare place where the disk should be mounted.
    case empty(isMountPoint: Bool)
    /// Somebody else's files.
    case foreign
}

extension PlainTree {
    /// What mkfs puts at the root of an empty file system.
    static let lostAndFound: FileName = Array("lost+found".utf8)

    public static func look(at backing: String) throws(TreeError) -> BackingLook {
        let root = try System.open(backing, O_RDONLY | CLINUX_O_DIRECTORY)
        if try System.xattr(root.rawValue, fileIDXattr) != nil { return .mirrored }
        guard let directory = unsafe opendir(backing) else { throw TreeError("list", backing, code: errno) }
        defer { unsafe closedir(directory) }
        while let entry = unsafe readdir(directory) {
            let name = unsafe withUnsafeBytes(of: &entry.pointee.d_name) { unsafe Array($0.prefix { $0 != 0 }) }
            guard [[UInt8(ascii: ".")], Array("..".utf8), lostAndFound].contains(name) else { return .foreign }
        }
        let above = try System.open(root.rawValue, Array("..".utf8), O_RDONLY | CLINUX_O_DIRECTORY)
        let mounts = (try System.stat(root.rawValue).mount_id, try System.stat(above.rawValue).mount_id)
        return .empty(isMountPoint: mounts.0 != mounts.1)
    }
}
