internal import CLinux
public import Format
internal import Glibc
internal import Ring

/// Reaching objects: by number through the file table, or by name through their directory.
extension PlainTree {
    static func encodeTag(_ file: FileID) -> [UInt8] { Array(file.description.utf8) }

    static func decodeTag(_ value: [UInt8]) -> FileID? {
        guard value.count == 16, let number = UInt64(String(decoding: value, as: UTF8.self), radix: 16),
            number != 0, number >> 63 == 0
        else { return nil }
        return FileID(rawValue: number)
    }

    /// The number of an object; nil when it has none.
    func tag(of fd: Int32) throws(TreeError) -> FileID? {
        guard let value = try System.xattr(fd, PlainTree.fileIDXattr) else { return nil }
        guard let file = PlainTree.decodeTag(value) else {
            throw TreeError(
                "use the file number of", path(of: fd), code: EIO,
                remedy: "Its attribute trusted.lockstep.fid is damaged: resynchronise this node")
        }
        return file
    }

    func handle(of fd: Int32) throws(TreeError) -> FileHandle {
        var found = clinux_handle()
        let result = unsafe System.withText([]) { text in
            unsafe clinux_name_to_handle(fd, text, CLINUX_AT_EMPTY_PATH, &found, nil)
        }
        try System.check(result, "get the handle of", path(of: fd))
        let bytes = unsafe withUnsafeBytes(of: &found.bytes) { raw in unsafe Array(raw.prefix(Int(found.length))) }
        return FileHandle(type: found.type, bytes: bytes, objectType: try System.stat(fd).mode & S_IFMT)
    }

    /// Where an object is now, for messages only.
    func path(of fd: Int32) -> String {
        guard let found = try? System.readLink(CLINUX_AT_FDCWD, Array("/proc/self/fd/\(fd)".utf8)) else {
            return "descriptor \(fd)"
        }
        return String(decoding: found, as: UTF8.self)
    }

    /// An O_PATH descriptor of the object, its number compared: a handle of an inode that was used again does not open
    /// (ESTALE), one of a cloned or restored disk may open something else.
    func reference(to file: FileID) throws(TreeError) -> FileDescriptor {
        while let handle = try table.find(file) {
            if let found = try open(handle, of: file) { return found }
            guard try isWrong(handle, of: file) else { continue }
            throw TreeError(
                "find", "file \(file)", code: ESTALE,
                remedy: "The file table does not lead to it. Restart Lockstep on this node: it builds the table again "
                    + "from the files. If that does not help, check the disk and resynchronise this node")
        }
        throw TreeError("find", "file \(file)", code: ESTALE)
    }

    /// Whether a handle that leads nowhere, or to another file, should lead to this one. Then the next start builds the
    /// table again. Not this process: records are applied meanwhile, and a scan beside them misses files.
    /// - Returns: false when the table says something else by now.
    private func isWrong(_ handle: FileHandle, of file: FileID) throws(TreeError) -> Bool {
        // In this order: who takes the last name away takes the file out of the table before it is done.
        let isExplained = state.withLock { $0.leaving.contains(file) || $0.torn.contains(file) }
        guard try table.find(file) == handle else { return false }
        guard !isExplained else { throw TreeError("find", "file \(file)", code: ESTALE) }
        if try table.markWrong() {
            logger.error(
                "the file table does not lead to a file; the next start builds it again",
                metadata: ["table.file": "\(file)"])
        }
        return true
    }

    /// nil when the table does not know the file, or knows it wrongly.
    func referenceIfKnown(to file: FileID) throws(TreeError) -> FileDescriptor? {
        guard let handle = try table.find(file) else { return nil }
        return try open(handle, of: file)
    }

    private func open(_ handle: FileHandle, of file: FileID) throws(TreeError) -> FileDescriptor? {
        let result = openByHandle(handle, CLINUX_O_PATH)
        if result == -ESTALE || result == -ENOENT { return nil }
        let fd = FileDescriptor(owning: try System.check(result, "open by handle", "file \(file)"))
        guard try tag(of: fd.rawValue) == file else { return nil }
        return fd
    }

    /// The object behind a name, O_PATH; nil when there is none.
    func child(_ name: FileName, of directory: Int32) throws(TreeError) -> FileDescriptor? {
        try System.openIfPresent(directory, name, CLINUX_O_PATH)
    }

    /// The number of the object behind a name; nil when there is no such name; `.none` when it has no number.
    func occupant(of name: FileName, in directory: Int32) throws(TreeError) -> FileID? {
        guard let fd = try child(name, of: directory) else { return nil }
        return try tag(of: fd.rawValue) ?? FileID.none
    }

    /// An open descriptor from the cache, or a new one that goes there. Regular files are open for reading and writing
    /// (reading only, if that is refused and enough), directories for reading, everything else O_PATH.
    func object(_ file: FileID, writable: Bool) throws(TreeError) -> OpenObject {
        if let found = cache.find(file), found.isWritable || !writable { return found }
        if let found = try openDirectly(file, writable: writable) { return found }
        return try open(file, reference(to: file), writable: writable)
    }

    /// As `object`; nil when the table does not know the file, or knows it wrongly. One that is open is known.
    func objectIfKnown(_ file: FileID) throws(TreeError) -> OpenObject? {
        if let found = cache.find(file) { return found }
        if let found = try openDirectly(file, writable: false) { return found }
        guard let reference = try referenceIfKnown(to: file) else { return nil }
        return try open(file, reference, writable: false)
    }

    /// A regular file or a directory of which the table knows that it is one, in half the calls. What the handle leads to
    /// is compared like any other: number and type.
    /// - Returns: nil when it does not lead there: the other way (`reference`) finds out why.
    private func openDirectly(_ file: FileID, writable: Bool) throws(TreeError) -> OpenObject? {
        guard let handle = try table.find(file) else { return nil }
        let flags: Int32
        switch handle.objectType {
        // Nothing else is opened, in whatever state the disk is: not to wait for a pipe's other end.
        case S_IFREG: flags = O_RDWR | O_NONBLOCK
        case S_IFDIR: flags = O_RDONLY | CLINUX_O_DIRECTORY
        default: return nil
        }
        let result = openByHandle(handle, flags | CLINUX_O_NOATIME)
        guard result >= 0 else { return nil }
        let fd = FileDescriptor(owning: result)
        let type = try System.stat(result).mode & S_IFMT
        guard type == handle.objectType, type == S_IFREG || !writable, try tag(of: result) == file else { return nil }
        let opened = OpenObject(owning: fd.release(), type: type, isWritable: type == S_IFREG)
        cache.insert(file, opened)
        return opened
    }

    private func openByHandle(_ handle: FileHandle, _ flags: Int32) -> Int32 {
        var raw = clinux_handle()
        raw.type = handle.type
        raw.length = UInt32(handle.bytes.count)
        unsafe withUnsafeMutableBytes(of: &raw.bytes) { space in unsafe space.copyBytes(from: handle.bytes) }
        return unsafe clinux_open_by_handle(root.rawValue, &raw, flags | CLINUX_O_NOFOLLOW)
    }

    private func open(
        _ file: FileID, _ reference: consuming FileDescriptor, writable: Bool
    ) throws(TreeError) -> OpenObject {
        let type = try System.stat(reference.rawValue).mode & S_IFMT
        let opened: OpenObject
        switch type {
        case S_IFREG:
            var fd = System.reopen(reference.rawValue, O_RDWR | CLINUX_O_NOATIME)
            let isWritable = fd >= 0
            if fd < 0, !writable { fd = System.reopen(reference.rawValue, O_RDONLY | CLINUX_O_NOATIME) }
            try System.check(fd, "open", path(of: reference.rawValue))
            opened = OpenObject(owning: fd, type: type, isWritable: isWritable)
        case S_IFDIR:
            let fd = System.reopen(reference.rawValue, O_RDONLY | CLINUX_O_DIRECTORY | CLINUX_O_NOATIME)
            try System.check(fd, "open", path(of: reference.rawValue))
            opened = OpenObject(owning: fd, type: type, isWritable: false)
        default:
            opened = OpenObject(owning: reference.release(), type: type, isWritable: false)
        }
        if writable, type != S_IFREG { throw TreeError("write", "file \(file)", code: EINVAL) }
        cache.insert(file, opened)
        return opened
    }

    /// Runs `body` with an open descriptor: of a regular file for reading and writing, of a directory for reading, of
    /// anything else O_PATH. It must not be kept, closed or moved (`lseek`): others use it too.
    public func withDescriptor<Value>(
        of file: FileID, writable: Bool, _ body: (Int32) throws(TreeError) -> Value
    ) throws(TreeError) -> Value {
        let object = try object(file, writable: writable)
        // The object must outlive the call: its descriptor is closed with the last reference.
        defer { withExtendedLifetime(object) {} }
        return try body(object.fd)
    }

    /// As `withDescriptor`, for a directory.
    func withDirectory<Value>(
        _ directory: FileID, _ body: (Int32) throws(TreeError) -> Value
    ) throws(TreeError) -> Value {
        let object = try object(directory, writable: false)
        defer { withExtendedLifetime(object) {} }
        guard object.type == S_IFDIR else { throw TreeError("use as a directory", "file \(directory)", code: ENOTDIR) }
        return try body(object.fd)
    }

    /// Keeps a file usable after its last name has gone: it is parked in staging instead of removed.
    public func hold(_ file: FileID) { _ = state.withLock { $0.held.insert(file) } }

    /// Lets a held file go; if it has no name any more it is removed now.
    public func releaseHold(_ file: FileID) throws(TreeError) {
        let isParked = state.withLock { state in
            state.held.remove(file)
            return state.parked.contains(file)
        }
        guard isParked else { return }
        try removeFromStaging(PlainTree.encodeTag(file))
        try forget(file)
        // Last: a verification must not find it without a name and think that the other node lacks it.
        _ = state.withLock { $0.parked.remove(file) }
    }

    func isHeld(_ file: FileID) -> Bool { state.withLock { $0.held.contains(file) } }

    /// Takes a file's last name away, and forgets the file. Who opens it by its handle meanwhile finds nothing.
    func removeLast(_ file: FileID, _ remove: () throws(TreeError) -> Void) throws(TreeError) {
        cache.remove(file)
        _ = state.withLock { $0.leaving.insert(file) }
        defer { _ = state.withLock { $0.leaving.remove(file) } }
        try remove()
        try forget(file)
    }

    /// After the object itself is gone.
    func forget(_ file: FileID) throws(TreeError) {
        cache.remove(file)
        try table.remove(file)
        state.withLock { state in
            guard state.removed.insert(file).inserted else { return }
            state.removedInOrder.append(file)
            guard state.removedInOrder.count > PlainTree.removedLimit else { return }
            for old in state.removedInOrder.prefix(PlainTree.removedLimit / 2) { state.removed.remove(old) }
            state.removedInOrder.removeFirst(PlainTree.removedLimit / 2)
        }
    }

    /// How many removed files are remembered: more than records can be under way between two rooms.
    static let removedLimit = 65_536

    /// Whether the file's last name went lately.
    func wasRemoved(_ file: FileID) -> Bool { state.withLock { $0.removed.contains(file) } }
}
