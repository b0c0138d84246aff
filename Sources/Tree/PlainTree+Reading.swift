internal import CLinux
public import Format
internal import Glibc
internal import Ring

/// What the mirrored directory shows comes from here. Reading never changes anything, not even access times.
extension PlainTree {
    /// The object behind a name.
    /// - Throws: ENOENT; EIO for something that was put into the plain files behind Lockstep's back.
    public func lookup(parent: FileID, name: FileName) throws(TreeError) -> FileStatus {
        if parent == .root, name == PlainTree.ownName { throw TreeError("look up", shown(name), code: ENOENT) }
        return try withDirectory(parent) { (directory) throws(TreeError) in
            guard let fd = try child(name, of: directory) else {
                throw TreeError("look up", shown(name), code: ENOENT)
            }
            guard let file = try tag(of: fd.rawValue) else {
                reportForeign(path(of: fd.rawValue))
                throw TreeError("look up", shown(name), code: EIO, remedy: PlainTree.foreignRemedy)
            }
            return try status(of: fd.rawValue, file)
        }
    }

    public func status(of file: FileID) throws(TreeError) -> FileStatus {
        try withDescriptor(of: file, writable: false) { (fd) throws(TreeError) in try status(of: fd, file) }
    }

    func status(of fd: Int32, _ file: FileID) throws(TreeError) -> FileStatus {
        var status = FileStatus(try System.stat(fd), file: file)
        // Our own directory at the root is not counted.
        if file == .root, status.links > 2 { status.links -= 1 }
        return status
    }

    /// Up to `limit` names of a directory, "." and ".." included, in the file system's order.
    ///
    /// - Parameters:
    ///   - cursor: 0 for the start, else the cursor of the last entry that was used.
    ///   - withStatus: also look at each object (what READDIRPLUS needs).
    /// - Returns: empty at the end.
    public func readDirectory(
        _ directory: FileID, from cursor: UInt64, limit: Int, withStatus: Bool
    ) throws(TreeError) -> [DirectoryEntry] {
        try withDirectory(directory) { (shared) throws(TreeError) in
            // An own descriptor: the position of the shared one belongs to nobody.
            let fd = try System.open(shared, [UInt8(ascii: ".")], O_RDONLY | CLINUX_O_DIRECTORY | CLINUX_O_NOATIME)
            if cursor > 0 {
                guard lseek(fd.rawValue, off_t(truncatingIfNeeded: cursor), SEEK_SET) >= 0 else {
                    throw TreeError("read the directory", "file \(directory)", code: errno)
                }
            }
            var entries: [DirectoryEntry] = []
            while entries.count < limit {
                let names = try rawNames(fd.rawValue, of: directory, bytes: min(32768, max(1024, limit * 40)))
                if names.isEmpty { break }
                for name in names where entries.count < limit {
                    if let entry = try entry(name, of: directory, fd.rawValue, withStatus) { entries.append(entry) }
                }
            }
            return entries
        }
    }

    struct RawName {
        var name: FileName
        var cursor: UInt64
        /// As in `d_type`.
        var type: UInt8
        var isDots: Bool { name == [UInt8(ascii: ".")] || name == [UInt8(ascii: "."), UInt8(ascii: ".")] }
    }

    /// The next names of an open directory as the kernel gives them (struct linux_dirent64: inode u64, cursor i64,
    /// length u16, type u8, name), our own one left out. Empty at the end.
    func rawNames(_ fd: Int32, of directory: FileID, bytes: Int = 32768) throws(TreeError) -> [RawName] {
        var buffer = [UInt8](repeating: 0, count: bytes)
        var names: [RawName] = []
        // A piece that holds only our own name must not look like the end.
        while names.isEmpty {
            let count = unsafe buffer.withUnsafeMutableBytes { space in
                unsafe clinux_getdents(fd, space.baseAddress, space.count)
            }
            try System.check(count, "read the directory", path(of: fd))
            if count == 0 { break }
            var start = 0
            while start + 19 <= count {
                let length = Int(buffer[start + 16]) | Int(buffer[start + 17]) << 8
                precondition(length >= 20 && start + length <= count, "the kernel's directory entries do not add up")
                var cursor: UInt64 = 0
                for index in 0..<8 { cursor |= UInt64(buffer[start + 8 + index]) << (8 * UInt64(index)) }
                let name = Array(buffer[(start + 19)..<(start + length)].prefix { $0 != 0 })
                if directory != .root || name != PlainTree.ownName {
                    names.append(RawName(name: name, cursor: cursor, type: buffer[start + 18]))
                }
                start += length
            }
        }
        return names
    }

    private func entry(
        _ raw: RawName, of directory: FileID, _ fd: Int32, _ withStatus: Bool
    ) throws(TreeError) -> DirectoryEntry? {
        var entry = DirectoryEntry(
            name: raw.name, file: directory, type: UInt32(raw.type) << 12, cursor: raw.cursor, status: nil)
        if raw.isDots {
            // The root's parent is outside; the kernel asks for none.
            if raw.name.count == 2, directory != .root, let parent = try occupant(of: raw.name, in: fd) {
                entry.file = parent
            }
            return entry
        }
        // It may have gone since the kernel told its name.
        guard let object = try child(raw.name, of: fd) else { return nil }
        guard let file = try tag(of: object.rawValue) else {
            reportForeign(path(of: object.rawValue))
            return nil
        }
        entry.file = file
        if withStatus || raw.type == 0 {
            let status = try status(of: object.rawValue, file)
            entry.type = status.attributes.mode & S_IFMT
            if withStatus { entry.status = status }
        }
        return entry
    }

    public func readLink(_ file: FileID) throws(TreeError) -> [UInt8] {
        try withDescriptor(of: file, writable: false) { (fd) throws(TreeError) in try System.readLink(fd) }
    }

    /// The value of an extended attribute; nil when the file does not have it. Ours are invisible.
    public func xattr(of file: FileID, name: FileName) throws(TreeError) -> [UInt8]? {
        if name.starts(with: PlainTree.ownXattrPrefix) { return nil }
        return try withDescriptor(of: file, writable: false) { (fd) throws(TreeError) in try System.xattr(fd, name) }
    }

    /// Names of the extended attributes, ours left out.
    public func xattrNames(of file: FileID) throws(TreeError) -> [FileName] {
        try withDescriptor(of: file, writable: false) { (fd) throws(TreeError) in
            try System.xattrNames(fd).filter { !$0.starts(with: PlainTree.ownXattrPrefix) }
        }
    }

    public func statistics() throws(TreeError) -> FileSystemStatistics {
        let found = try System.fileSystem(root.rawValue)
        return FileSystemStatistics(
            blockSize: found.block_size, blocks: found.blocks, blocksFree: found.blocks_free,
            blocksAvailable: found.blocks_available, files: found.files, filesFree: found.files_free,
            nameLength: found.name_length)
    }

    /// Reads from `offset` on; fewer bytes than asked for only at the end of the file.
    public func read(
        _ file: FileID, at offset: UInt64, into space: UnsafeMutableRawBufferPointer
    ) throws(TreeError) -> Int {
        try withDescriptor(of: file, writable: false) { (fd) throws(TreeError) in
            try unsafe System.read(fd, space, at: offset)
        }
    }

    /// As `read`, but nil instead of waiting for a disk or opening a file: the one call for a thread that must not
    /// block.
    public func readWithoutBlocking(
        _ file: FileID, at offset: UInt64, into space: UnsafeMutableRawBufferPointer
    ) -> Int? {
        guard let object = cache.find(file), object.type == S_IFREG else { return nil }
        defer { withExtendedLifetime(object) {} }
        let count = unsafe clinux_pread_nowait(object.fd, space.baseAddress, space.count, offset)
        guard count >= 0 else { return nil }
        if count == space.count { return count }
        // Fewer bytes: the end of the file, or the rest is not in memory.
        guard let stat = try? System.stat(object.fd), offset + UInt64(count) >= stat.size else { return nil }
        return count
    }

    /// Lets the disk begin with what is read soon, so that it has more to do than one piece at a time.
    public func willRead(_ file: FileID, _ range: Range<UInt64>) throws(TreeError) {
        try withDescriptor(of: file, writable: false) { (fd) throws(TreeError) in
            // Advice: what it does not help does no harm.
            _ = posix_fadvise(fd, off_t(clamping: range.lowerBound), off_t(range.count), POSIX_FADV_WILLNEED)
        }
    }

    /// The next data or hole of a file from `offset` on (`SEEK_DATA`, `SEEK_HOLE`).
    /// - Throws: ENXIO behind the end.
    public func seek(_ file: FileID, from offset: UInt64, toHole: Bool) throws(TreeError) -> UInt64 {
        try withDescriptor(of: file, writable: false) { (fd) throws(TreeError) in
            try PlainTree.seek(fd, from: offset, toHole: toHole)
        }
    }

    /// Moves the descriptor's position, which nobody uses on regular files.
    static func seek(_ fd: Int32, from offset: UInt64, toHole: Bool) throws(TreeError) -> UInt64 {
        let found = lseek(fd, off_t(clamping: offset), toHole ? CLINUX_SEEK_HOLE : CLINUX_SEEK_DATA)
        guard found >= 0 else { throw TreeError("seek", "from \(offset)", code: errno) }
        return UInt64(found)
    }

    static let foreignRemedy =
        "It was put into the plain files behind Lockstep's back. Take it out, or stop the mirror and run 'lockstep adopt'"

    /// Says once for each path that something is there which no record made.
    private func reportForeign(_ path: String) {
        if isNews(of: path) { logger.error("\(path) is not mirrored. \(PlainTree.foreignRemedy)") }
    }

    /// Whether this is the first complaint about a path.
    func isNews(of path: String) -> Bool {
        state.withLock { state in
            // A bound on what is remembered: beyond it, silence is better than a flood.
            guard state.reported.count < 1024 else { return false }
            return state.reported.insert(Array(path.utf8)).inserted
        }
    }

    /// The directories above a directory, the nearest first, up to the root.
    /// - Throws: ENOENT for one that has left the tree.
    public func ancestors(of directory: FileID) throws(TreeError) -> [FileID] {
        guard directory != .root else { return [] }
        let dots: FileName = [UInt8(ascii: "."), UInt8(ascii: ".")]
        var found: [FileID] = []
        let object = try object(directory, writable: false)
        var above = try System.open(object.fd, dots, O_RDONLY | CLINUX_O_DIRECTORY | CLINUX_O_NOATIME)
        withExtendedLifetime(object) {}
        while true {
            guard let file = try tag(of: above.rawValue) else {
                throw TreeError("find the directories above", "file \(directory)", code: ENOENT)
            }
            found.append(file)
            if file == .root { return found }
            above = try System.open(above.rawValue, dots, O_RDONLY | CLINUX_O_DIRECTORY | CLINUX_O_NOATIME)
        }
    }
}
