internal import CLinux
internal import Glibc

/// What is mounted where, from /proc/self/mountinfo: reading it asks no file system anything, so a held mount cannot
/// block it, as stat(2), df and umount(8) would.
enum MountTable {
    struct Entry {
        /// The minor number of its device: for FUSE the number of the connection.
        var minor: UInt32
        var mountPoint: String
        var type: String
        var source: String
    }

    /// Mounts at exactly this path, the lowest first.
    static func mounts(at path: String) -> [Entry] { mountsIfReadable(at: path) ?? [] }

    /// The same; nil when the table cannot be read to its end.
    static func mountsIfReadable(at path: String) -> [Entry]? {
        let wanted = normalised(path)
        return read("/proc/self/mountinfo").map { entries($0).filter { $0.mountPoint == wanted } }
    }

    /// Lines like `36 35 0:52 / /srv/ledger rw,noatime shared:1 - fuse.lockstep ledger rw,user_id=0`.
    static func entries(_ text: String) -> [Entry] {
        text.split(separator: "\n").compactMap { line in
            let fields = line.split(separator: " ")
            guard fields.count >= 9, let dash = fields.firstIndex(of: "-"), dash + 2 < fields.count else { return nil }
            let device = fields[2].split(separator: ":")
            guard device.count == 2, let minor = UInt32(device[1]) else { return nil }
            return Entry(
                minor: minor, mountPoint: unescaped(fields[4]), type: String(fields[dash + 1]),
                source: unescaped(fields[dash + 2]))
        }
    }

    /// Space, tab, newline and backslash are written as three octal digits.
    private static func unescaped(_ field: Substring) -> String {
        var bytes: [UInt8] = []
        var rest = Array(field.utf8)[...]
        while let byte = rest.popFirst() {
            let digits = rest.prefix(3)
            let octal = digits.count == 3 ? UInt8(String(decoding: digits, as: UTF8.self), radix: 8) : nil
            if byte == UInt8(ascii: "\\"), let code = octal {
                bytes.append(code)
                rest = rest.dropFirst(3)
            } else {
                bytes.append(byte)
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    static func normalised(_ path: String) -> String {
        var result = path
        while result.count > 1, result.hasSuffix("/") { result.removeLast() }
        return result
    }

    static let fuseType = "fuse.lockstep"

    /// Takes away every mirrored directory mounted at `path`, by force: aborts the connections, so that nobody waits in
    /// them, and detaches the mounts. What is mounted below stays.
    static func detach(_ path: String) {
        // Bounded: each round takes one mount away or gives up.
        for _ in 0..<16 {
            guard let top = mounts(at: path).last, top.type == fuseType else { return }
            let detached = unsafe clinux_unmount(normalised(path), 1, 0)
            abort(top.minor)
            if detached != 0 { return }
        }
    }

    /// Ends a connection: every request of it fails, whoever still has it open.
    static func abort(_ connection: UInt32) {
        _ = clinux_fuse_control_mount()
        let descriptor = unsafe Glibc.open("/sys/fs/fuse/connections/\(connection)/abort", O_WRONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return }
        var one = UInt8(ascii: "1")
        _ = unsafe Glibc.write(descriptor, &one, 1)
        _ = Glibc.close(descriptor)
    }

    /// Processes with an open file or their working directory below `path`, as "name (pid)"; at most ten.
    static func users(of path: String) -> [String] {
        let prefix = normalised(path)
        var found: [String] = []
        for pid in names(in: "/proc") where pid.utf8.allSatisfy({ $0 >= 48 && $0 <= 57 }) {
            let links =
                ["/proc/\(pid)/cwd", "/proc/\(pid)/root"] + names(in: "/proc/\(pid)/fd").map { "/proc/\(pid)/fd/\($0)" }
            let uses = links.contains { link in
                guard let target = readLink(link) else { return false }
                return target == prefix || target.hasPrefix(prefix + "/")
            }
            guard uses else { continue }
            let name = read("/proc/\(pid)/comm")?.split(separator: "\n").first.map(String.init) ?? "process"
            found.append("\(name) (\(pid))")
            if found.count == 10 { break }
        }
        return found
    }

    private static func names(in directory: String) -> [String] {
        guard let stream = unsafe opendir(directory) else { return [] }
        defer { _ = unsafe closedir(stream) }
        var result: [String] = []
        while let entry = unsafe readdir(stream) {
            let name = unsafe withUnsafeBytes(of: &entry.pointee.d_name) { unsafe Array($0.prefix { $0 != 0 }) }
            if name.first != UInt8(ascii: ".") { result.append(String(decoding: name, as: UTF8.self)) }
        }
        return result
    }

    private static func readLink(_ path: String) -> String? {
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = unsafe buffer.withUnsafeMutableBytes { unsafe readlink(path, $0.baseAddress!, $0.count) }
        return count > 0 ? String(decoding: buffer[..<count], as: UTF8.self) : nil
    }

    static func read(_ path: String) -> String? {
        let descriptor = unsafe Glibc.open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { _ = Glibc.close(descriptor) }
        var bytes: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 65_536)
        while bytes.count < 16 << 20 {
            let count = unsafe piece.withUnsafeMutableBytes { unsafe Glibc.read(descriptor, $0.baseAddress, $0.count) }
            guard count >= 0 else { return nil }
            if count == 0 { return String(decoding: bytes, as: UTF8.self) }
            bytes += piece[..<count]
        }
        return nil
    }
}
