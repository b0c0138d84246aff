import Glibc
import Logging
import Mounts
import Synchronization

/// A control group (cgroup v2) of the kernel that holds all processes of one application, so that they can be frozen and
/// killed as a whole. What a process in it starts is born in it and cannot leave it without root's help.
///
///     /sys/fs/cgroup/                 or /sys/fs/cgroup/unified where version 1 is mounted too
///       lockstep/
///         ledger@alpha/               cgroup.procs  cgroup.freeze  cgroup.events  cgroup.kill
///
/// No controllers are switched on: it limits nothing. May be used from any thread.
public final class ControlGroup: Sendable {
    /// The directory of the group.
    public let path: String
    private let logger: Logger
    private let frozen = Atomic<Bool>(false)
    /// How many processes are being born into the group just now; see `whileThawed`.
    private let births = Atomic<Int>(0)

    /// Where cgroup v2 is mounted.
    public static func findMount() throws(TakeoverError) -> String {
        for path in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        where unsafe access(path + "/cgroup.controllers", F_OK) == 0 { return path }
        if let mount = MountTable.current()?.all.first(where: { $0.type == "cgroup2" }) { return mount.point }
        throw TakeoverError(
            "find control groups", reason: "cgroup v2 is not mounted",
            remedy:
                "Mount it: mount -t cgroup2 none /sys/fs/cgroup/unified; on Debian 12 it is there unless the kernel "
                + "was started with systemd.unified_cgroup_hierarchy=0")
    }

    /// Makes the group `lockstep/<name>`, or takes over the one that an earlier run left, with all that is in it.
    ///
    /// - Parameter name: `<mirror>@<node>`; without slashes.
    public init(name: String, logger: Logger) throws(TakeoverError) {
        let parent = try Self.findMount() + "/lockstep"
        path = parent + "/" + name
        self.logger = logger
        guard !name.isEmpty, !name.contains("/"), !name.hasPrefix(".") else {
            throw TakeoverError(
                "make the control group \"\(name)\"", reason: "this cannot be a name", remedy: "Use letters and digits")
        }
        for directory in [parent, path] where unsafe mkdir(directory, 0o755) != 0 && errno != EEXIST {
            throw TakeoverError(
                "make the control group \(directory)", code: errno,
                remedy: "Run as root, with /sys/fs/cgroup writable (in a container: a cgroup namespace of its own)")
        }
        guard unsafe access(path + "/cgroup.freeze", W_OK) == 0 else {
            throw TakeoverError(
                "use the control group \(path)", code: errno,
                remedy: "Linux 5.2 or newer is needed to freeze a group")
        }
        frozen.store((try? readFile(path + "/cgroup.freeze"))?.first == "1", ordering: .sequentiallyConsistent)
    }

    /// The group of that name which an earlier run left, with all that is in it; nil if there is none.
    public static func left(name: String, logger: Logger) throws(TakeoverError) -> ControlGroup? {
        guard let mount = try? findMount(), unsafe access(mount + "/lockstep/" + name, F_OK) == 0 else { return nil }
        return try ControlGroup(name: name, logger: logger)
    }

    /// Whether the group has been told to freeze.
    public var isFrozen: Bool { frozen.load(ordering: .sequentiallyConsistent) }

    /// The processes in the group and in groups below it, that the application may have made.
    public func processes() throws(TakeoverError) -> [Int32] {
        var found: [Int32] = []
        for directory in Self.groups(below: path) {
            do throws(TakeoverError) {
                found += try readFile(directory + "/cgroup.procs").split(separator: "\n").compactMap { Int32($0) }
            } catch {
                // Removed while we looked; or a threaded group, whose processes are listed above it.
                guard [ENOENT, ENODEV, EOPNOTSUPP].contains(error.code) else { throw error }
            }
        }
        return found
    }

    /// Stops every process of the group where it is, without a signal that it could see.
    ///
    /// - Parameter milliseconds: how long to wait until the kernel says that all have stopped.
    /// - Returns: whether all have stopped. A process that waits inside the kernel (for a held write, say) stops only when
    ///   it comes back from there; it does nothing meanwhile, and false is no reason to kill.
    @discardableResult
    public func freeze(milliseconds: Int = 1000) throws(TakeoverError) -> Bool {
        // Before the kernel is told, so that no check of a freezing application counts as failed.
        let before = frozen.exchange(true, ordering: .sequentiallyConsistent)
        // A birth takes about a millisecond. One that takes long waits for the mirrored directory, and goes on doing so.
        _ = wait(milliseconds: 200) { self.births.load(ordering: .sequentiallyConsistent) == 0 }
        do throws(TakeoverError) {
            try write("1", to: "cgroup.freeze")
        } catch {
            frozen.store(before, ordering: .sequentiallyConsistent)
            throw error
        }
        return wait(milliseconds: milliseconds) { self.event("frozen") == 1 }
    }

    /// Lets the processes go on.
    public func thaw() throws(TakeoverError) {
        try write("0", to: "cgroup.freeze")
        frozen.store(false, ordering: .sequentiallyConsistent)
    }

    /// Kills every process of the group with SIGKILL, frozen ones too.
    ///
    /// - Parameter milliseconds: how long to wait until they are gone.
    /// - Returns: who is left after that time: processes that hang inside the kernel. Empty: the group is empty.
    @discardableResult
    public func kill(milliseconds: Int = 5000) throws(TakeoverError) -> [Int32] {
        if unsafe access(path + "/cgroup.kill", W_OK) == 0 {
            try write("1", to: "cgroup.kill")
        } else {
            // Before Linux 5.14. Frozen, nobody can fork away from the list that we read.
            try freeze(milliseconds: min(milliseconds, 1000))
            for process in try processes() { _ = Glibc.kill(process, SIGKILL) }
        }
        if isFrozen { try thaw() }
        let empty = wait(milliseconds: milliseconds) {
            if self.event("populated") == 0 { return true }
            for process in (try? self.processes()) ?? [] { _ = Glibc.kill(process, SIGKILL) }
            return false
        }
        return empty ? [] : try processes()
    }

    /// Removes the group, and groups below it. It must be empty of processes.
    public func remove() throws(TakeoverError) {
        for directory in Self.groups(below: path).reversed() where unsafe rmdir(directory) != 0 && errno != ENOENT {
            throw TakeoverError(
                "remove the control group \(directory)", code: errno,
                remedy: "See who is in it: cat \(directory)/cgroup.procs")
        }
        // The parent is shared by all mirrors of this machine: the last one takes it along.
        if let cut = path.lastIndex(of: "/") { unsafe _ = rmdir(String(path[..<cut])) }
    }

    /// Runs `birth`, which starts a process in the group, unless the group is frozen; a freeze waits for its end.
    ///
    /// A process that joins a frozen group stops before it has become the program it was to be, and whoever started it
    /// waits in the kernel until the group is thawed: a takeover thread must not get there.
    func whileThawed<Result: ~Copyable>(
        _ action: String, _ birth: () throws(TakeoverError) -> Result
    ) throws(TakeoverError) -> Result {
        births.add(1, ordering: .sequentiallyConsistent)
        defer { births.subtract(1, ordering: .sequentiallyConsistent) }
        guard !isFrozen else {
            throw TakeoverError(
                action, reason: "the application is frozen", remedy: "It goes on when this node holds the lease again")
        }
        return try birth()
    }

    /// A descriptor to write process ids to; the caller closes it.
    func openProcesses() throws(TakeoverError) -> Int32 {
        let descriptor = unsafe open(path + "/cgroup.procs", O_WRONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw TakeoverError(
                "use the control group \(path)", code: errno, remedy: "Somebody removed it; start the service again")
        }
        return descriptor
    }

    /// The group and those below it, parents first.
    private static func groups(below path: String) -> [String] {
        var all = [path]
        var index = 0
        while index < all.count {
            defer { index += 1 }
            guard let directory = unsafe opendir(all[index]) else { continue }
            defer { unsafe closedir(directory) }
            while let entry = unsafe readdir(directory) {
                guard unsafe entry.pointee.d_type == UInt8(DT_DIR) else { continue }
                let name = unsafe withUnsafeBytes(of: entry.pointee.d_name) {
                    unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
                }
                if name != "." && name != ".." { all.append(all[index] + "/" + name) }
            }
        }
        return all
    }

    /// A value of cgroup.events.
    private func event(_ name: String) -> Int? {
        guard let text = try? readFile(path + "/cgroup.events") else { return nil }
        for line in text.split(separator: "\n") {
            let parts = line.split(separator: " ")
            if parts.count == 2, parts[0] == name { return Int(parts[1]) }
        }
        return nil
    }

    private func wait(milliseconds: Int, until condition: () -> Bool) -> Bool {
        let end = bootNanoseconds() + UInt64(max(0, milliseconds)) * 1_000_000
        var pause = 1
        while true {
            if condition() { return true }
            if bootNanoseconds() >= end { return false }
            sleepMilliseconds(pause)
            pause = min(pause * 2, 20)
        }
    }

    private func write(_ text: String, to file: String) throws(TakeoverError) {
        let descriptor = unsafe open(path + "/" + file, O_WRONLY | O_CLOEXEC)
        var code = descriptor < 0 ? errno : 0
        if descriptor >= 0 {
            if unsafe Glibc.write(descriptor, text, text.utf8.count) < 0 { code = errno }
            close(descriptor)
        }
        guard code == 0 else {
            throw TakeoverError(
                "write \(text) to \(path)/\(file)", code: code,
                remedy: "See that the group exists and that this process is root")
        }
    }
}

/// The text of a small file of the kernel's.
func readFile(_ path: String) throws(TakeoverError) -> String {
    let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw TakeoverError("read \(path)", code: errno, remedy: "Run as root") }
    defer { close(descriptor) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 16384)
    while true {
        let count = unsafe read(descriptor, &chunk, chunk.count)
        if count < 0 && errno == EINTR { continue }
        guard count >= 0 else { throw TakeoverError("read \(path)", code: errno, remedy: "Run as root") }
        if count == 0 { return String(decoding: bytes, as: UTF8.self) }
        bytes += chunk[..<count]
    }
}
