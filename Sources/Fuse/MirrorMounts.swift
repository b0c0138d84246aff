internal import CLinux
internal import Glibc
internal import Mounts

/// Mirrored directories where they are mounted, ours or what an earlier process left.
enum MirrorMounts {
    static let fuseType = "fuse.lockstep"

    /// Takes away every mirrored directory mounted at `path`, by force: aborts the connections, so that nobody waits in
    /// them, and detaches the mounts. What is mounted below stays.
    static func detach(_ path: String) {
        // Bounded: each round takes one mount away or gives up.
        for _ in 0..<16 {
            guard let top = MountTable.current()?.top(at: path), top.type == fuseType else { return }
            let detached = unsafe clinux_unmount(top.point, 1, 0)
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
        let place = MountTable.normalised(path)
        var found: [String] = []
        for pid in names(in: "/proc") where pid.utf8.allSatisfy({ $0 >= 48 && $0 <= 57 }) {
            let links =
                ["/proc/\(pid)/cwd", "/proc/\(pid)/root"] + names(in: "/proc/\(pid)/fd").map { "/proc/\(pid)/fd/\($0)" }
            let uses = links.contains { link in
                guard let target = readLink(link) else { return false }
                return isSameOrBelow(target, place)
            }
            guard uses else { continue }
            let name = command(of: pid) ?? "process"
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

    private static func command(of pid: String) -> String? {
        let descriptor = unsafe Glibc.open("/proc/\(pid)/comm", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { _ = Glibc.close(descriptor) }
        // 15 bytes and a newline (proc_pid_comm(5)).
        var text = [UInt8](repeating: 0, count: 64)
        let count = unsafe text.withUnsafeMutableBytes { unsafe Glibc.read(descriptor, $0.baseAddress, $0.count) }
        guard count > 1 else { return nil }
        return String(decoding: text[..<(count - 1)], as: UTF8.self)
    }
}
