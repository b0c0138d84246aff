internal import CLinux
internal import Format
internal import Glibc
internal import Ring

/// System calls with errors as `TreeError` and names as bytes. All of them block; none follows a symbolic link that
/// somebody could have put into the tree.
enum System {
    /// A name or path with its terminating NUL.
    static func withText<Value>(_ bytes: some Collection<UInt8>, _ body: (UnsafePointer<CChar>) -> Value) -> Value {
        var text = [UInt8](bytes)
        text.append(0)
        return unsafe text.withUnsafeBytes { raw in
            unsafe body(raw.baseAddress!.assumingMemoryBound(to: CChar.self))
        }
    }

    @discardableResult
    static func check(
        _ result: Int32, _ operation: String, _ subject: @autoclosure () -> String
    ) throws(TreeError) -> Int32 {
        guard result >= 0 else { throw TreeError(operation, subject(), code: -result) }
        return result
    }

    @discardableResult
    static func check(
        _ result: Int, _ operation: String, _ subject: @autoclosure () -> String
    ) throws(TreeError) -> Int {
        guard result >= 0 else { throw TreeError(operation, subject(), code: Int32(clamping: -result)) }
        return result
    }

    /// For the calls of Glibc: -1 and errno.
    static func errnoResult(_ result: Int32) -> Int32 { result < 0 ? -errno : result }

    static func open(_ path: String, _ flags: Int32, mode: UInt32 = 0o600) throws(TreeError) -> FileDescriptor {
        do throws(RingError) { return try FileDescriptor.open(path, flags: flags, mode: mode) } catch {
            throw TreeError(error)
        }
    }

    /// Opens `name` in a directory; nil when there is no such name.
    static func openIfPresent(
        _ directory: Int32, _ name: FileName, _ flags: Int32, mode: UInt32 = 0o600
    ) throws(TreeError) -> FileDescriptor? {
        let result = unsafe withText(name) { text in
            unsafe clinux_openat(directory, text, flags | CLINUX_O_NOFOLLOW, mode)
        }
        if result == -ENOENT { return nil }
        return FileDescriptor(owning: try check(result, "open", shown(name)))
    }

    static func open(
        _ directory: Int32, _ name: FileName, _ flags: Int32, mode: UInt32 = 0o600
    ) throws(TreeError) -> FileDescriptor {
        guard let found = try openIfPresent(directory, name, flags, mode: mode) else {
            throw TreeError("open", shown(name), code: ENOENT)
        }
        return found
    }

    /// Opens the object behind an O_PATH descriptor for real.
    static func reopen(_ reference: Int32, _ flags: Int32) -> Int32 {
        unsafe withText("/proc/self/fd/\(reference)".utf8) { text in unsafe clinux_open(text, flags, 0) }
    }

    static func stat(_ fd: Int32) throws(TreeError) -> clinux_stat {
        var found = clinux_stat()
        let result = unsafe withText([]) { text in unsafe clinux_statx(fd, text, CLINUX_AT_EMPTY_PATH, &found) }
        try check(result, "stat", "descriptor \(fd)")
        return found
    }

    /// nil when there is no such name.
    static func stat(_ directory: Int32, _ name: FileName) throws(TreeError) -> clinux_stat? {
        var found = clinux_stat()
        let result = unsafe withText(name) { text in
            unsafe clinux_statx(directory, text, CLINUX_AT_SYMLINK_NOFOLLOW, &found)
        }
        if result == -ENOENT { return nil }
        try check(result, "stat", shown(name))
        return found
    }

    /// As `lsattr` shows them, of a regular file or a directory.
    static func inodeFlags(_ fd: Int32) throws(TreeError) -> UInt32 {
        // An O_PATH descriptor cannot be asked.
        let result = reopen(fd, O_RDONLY | O_NONBLOCK | CLINUX_O_NOATIME)
        let opened = FileDescriptor(owning: try check(result, "open", "descriptor \(fd)"))
        var flags: UInt32 = 0
        try check(unsafe clinux_inode_flags(opened.rawValue, &flags), "read the flags of", "descriptor \(fd)")
        return flags
    }

    static func fileSystem(_ fd: Int32) throws(TreeError) -> clinux_statfs {
        var found = clinux_statfs()
        try check(unsafe clinux_fstatfs(fd, &found), "ask for the file system's size", "")
        return found
    }

    // Extended attributes: of an O_PATH descriptor, which has none of its own (EBADF), through /proc, following; a symbolic
    // link cannot be opened otherwise.

    private static func withLink<Value>(_ fd: Int32, _ body: (UnsafePointer<CChar>) -> Value) -> Value {
        unsafe withText("/proc/self/fd/\(fd)".utf8, body)
    }

    /// nil when the object does not have it.
    static func xattr(_ fd: Int32, _ name: FileName) throws(TreeError) -> [UInt8]? {
        var value = [UInt8](repeating: 0, count: 256)
        while true {
            let result = unsafe withText(name) { text in
                unsafe value.withUnsafeMutableBytes { space in
                    let direct = unsafe clinux_fgetxattr(fd, text, space.baseAddress, space.count)
                    guard direct == -Int(EBADF) else { return direct }
                    return unsafe withLink(fd) { path in
                        unsafe clinux_getxattr(path, text, space.baseAddress, space.count, 1)
                    }
                }
            }
            if result == -Int(ERANGE), value.count < RecordLimits.xattrValueBytes {
                value = [UInt8](repeating: 0, count: RecordLimits.xattrValueBytes)
                continue
            }
            if result == -Int(ENODATA) || result == -Int(EOPNOTSUPP) { return nil }
            try check(result, "read the extended attribute", shown(name))
            value.removeLast(value.count - result)
            return value
        }
    }

    static func setXattr(_ fd: Int32, _ name: FileName, _ value: [UInt8]) throws(TreeError) {
        let result = unsafe withLink(fd) { path in
            unsafe withText(name) { text in
                unsafe value.withUnsafeBytes { bytes in
                    unsafe clinux_setxattr(path, text, bytes.baseAddress, bytes.count, 0, 1)
                }
            }
        }
        try check(result, "set the extended attribute", shown(name))
    }

    static func removeXattr(_ fd: Int32, _ name: FileName) throws(TreeError) {
        let result = unsafe withLink(fd) { path in
            unsafe withText(name) { text in unsafe clinux_removexattr(path, text, 1) }
        }
        if result == -ENODATA { return }
        try check(result, "remove the extended attribute", shown(name))
    }

    static func xattrNames(_ fd: Int32) throws(TreeError) -> [FileName] {
        var list = [UInt8](repeating: 0, count: 1024)
        while true {
            let result = unsafe list.withUnsafeMutableBytes { space in
                let names = unsafe space.baseAddress?.assumingMemoryBound(to: CChar.self)
                let direct = unsafe clinux_flistxattr(fd, names, space.count)
                guard direct == -Int(EBADF) else { return direct }
                return unsafe withLink(fd) { path in unsafe clinux_listxattr(path, names, space.count, 1) }
            }
            if result == -Int(ERANGE), list.count < RecordLimits.xattrValueBytes {
                list = [UInt8](repeating: 0, count: RecordLimits.xattrValueBytes)
                continue
            }
            if result == -Int(EOPNOTSUPP) { return [] }
            try check(result, "list the extended attributes", "")
            return list[..<result].split(separator: 0).map { Array($0) }
        }
    }

    // Changes.

    static func setTimes(_ fd: Int32, atime: Int64?, mtime: Int64?) throws(TreeError) {
        guard atime != nil || mtime != nil else { return }
        let access = atime.map(split)
        let modify = mtime.map(split)
        let result = unsafe withText([]) { text in
            unsafe clinux_utimens(
                fd, text, access?.seconds ?? 0, access?.nanoseconds ?? CLINUX_TIME_OMIT, modify?.seconds ?? 0,
                modify?.nanoseconds ?? CLINUX_TIME_OMIT, CLINUX_AT_EMPTY_PATH)
        }
        try check(result, "set times", "")
    }

    static func setMode(_ fd: Int32, _ mode: UInt32) throws(TreeError) {
        let result = unsafe withLink(fd) { path in unsafe clinux_fchmodat(CLINUX_AT_FDCWD, path, mode & 0o7777) }
        try check(result, "change the mode", "")
    }

    /// `UInt32.max` leaves one as it is.
    static func setOwner(_ fd: Int32, user: UInt32, group: UInt32) throws(TreeError) {
        let result = unsafe withText([]) { text in unsafe clinux_fchownat(fd, text, user, group, CLINUX_AT_EMPTY_PATH) }
        try check(result, "change the owner", "")
    }

    static func rename(
        _ from: Int32, _ name: FileName, to: Int32, _ newName: FileName, flags: UInt32 = 0
    ) throws(TreeError) {
        let result = unsafe withText(name) { old in
            unsafe withText(newName) { new in unsafe clinux_renameat2(from, old, to, new, flags) }
        }
        try check(result, "rename", "\(shown(name)) to \(shown(newName))")
    }

    /// A further name for the object behind `fd`, which may be O_PATH.
    static func link(_ fd: Int32, to directory: Int32, _ name: FileName) throws(TreeError) {
        let result = unsafe withText([]) { empty in
            unsafe withText(name) { text in unsafe clinux_linkat(fd, empty, directory, text, CLINUX_AT_EMPTY_PATH) }
        }
        try check(result, "link", shown(name))
    }

    /// False when there was no such name.
    @discardableResult
    static func unlink(_ directory: Int32, _ name: FileName, isDirectory: Bool) throws(TreeError) -> Bool {
        let result = unsafe withText(name) { text in
            errnoResult(unsafe unlinkat(directory, text, isDirectory ? CLINUX_AT_REMOVEDIR : 0))
        }
        if result == -ENOENT { return false }
        try check(result, isDirectory ? "remove the directory" : "remove", shown(name))
        return true
    }

    static func makeDirectory(_ directory: Int32, _ name: FileName, mode: UInt32) throws(TreeError) {
        try check(
            unsafe withText(name) { text in errnoResult(unsafe mkdirat(directory, text, mode)) }, "create", shown(name))
    }

    static func makeSymbolicLink(_ directory: Int32, _ name: FileName, target: [UInt8]) throws(TreeError) {
        let result = unsafe withText(name) { text in
            unsafe withText(target) { content in errnoResult(unsafe symlinkat(content, directory, text)) }
        }
        try check(result, "create", shown(name))
    }

    static func makeNode(_ directory: Int32, _ name: FileName, mode: UInt32, device: UInt32) throws(TreeError) {
        let result = unsafe withText(name) { text in unsafe clinux_mknodat(directory, text, mode, UInt64(device)) }
        try check(result, "create", shown(name))
    }

    static func readLink(_ fd: Int32, _ name: FileName = []) throws(TreeError) -> [UInt8] {
        var target = [UInt8](repeating: 0, count: RecordLimits.targetBytes + 1)
        let result = unsafe withText(name) { text in
            unsafe target.withUnsafeMutableBytes { space in
                unsafe readlinkat(fd, text, space.baseAddress!.assumingMemoryBound(to: CChar.self), space.count)
            }
        }
        let failure = errno
        guard result >= 0 else { throw TreeError("read the symbolic link", shown(name), code: failure) }
        return Array(target[..<result])
    }

    /// The kernel takes a page of its cache as large as the write that fills it, and ext4 walks all its blocks for each
    /// later write into it, however short: 4 KiB into one of 1 MiB take 26 us, into one of 64 KiB 5 us (Linux 6.18).
    private static let longestWriteBytes = 64 << 10

    /// The whole of `bytes`, however many calls it takes.
    static func write(_ fd: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(TreeError) {
        var done = 0
        while done < bytes.count {
            let result = unsafe clinux_pwrite(
                fd, bytes.baseAddress! + done, min(bytes.count - done, longestWriteBytes),
                offset + UInt64(done))
            if result == -Int(EINTR) { continue }
            try check(result, "write", "\(bytes.count - done) bytes at \(offset + UInt64(done))")
            guard result > 0 else { throw TreeError("write", "at \(offset + UInt64(done))", code: EIO) }
            done += result
        }
    }

    /// Up to the end of the file.
    static func read(_ fd: Int32, _ space: UnsafeMutableRawBufferPointer, at offset: UInt64) throws(TreeError) -> Int {
        var done = 0
        while done < space.count {
            let result = unsafe clinux_pread(fd, space.baseAddress! + done, space.count - done, offset + UInt64(done))
            if result == -Int(EINTR) { continue }
            try check(result, "read", "\(space.count - done) bytes at \(offset + UInt64(done))")
            if result == 0 { break }
            done += result
        }
        return done
    }
}
