import Foundation
import Synchronization

/// One room: a machine with an address, its own directories, and processes.
public final class Room: Sendable {
    public let name: String
    /// The host number in the building's networks, from 1.
    public let number: Int
    public let address: String
    public let address6: String
    /// Prefix lengths of `address` and `address6`.
    public static let prefixLength = 24
    public static let prefixLength6 = 64
    /// The name of the room's network interface inside the room.
    public static let interface = "eth0"
    /// Where this room's private paths, images and logs are on the host.
    public let directory: String
    public let privatePaths: [String]
    public let sharedPaths: [String: String]

    let network: String
    let building: String
    private let buildingDirectory: String
    private unowned let owner: Building
    /// The room's subtree of the unified cgroup hierarchy, or nil where that is not mounted or may not be written.
    let cgroup: String?

    struct State {
        var holder: Int32 = 0
        var processes: [RoomProcess] = []
        var images: [Image] = []
        var logSerial = 0
    }
    struct Image {
        var file: String
        var mountPoint: String
        /// What serves the image, when it is one that loses and hangs.
        var faultyDisk: FaultyDisk?
    }
    private let state = Mutex(State())

    init(name: String, number: Int, building: Building, privatePaths: [String], sharedPaths: [String: String]) {
        self.name = name
        self.number = number
        self.building = building.identifier
        owner = building
        buildingDirectory = building.directory
        directory = building.directory + "/" + name
        network = building.identifier + "-" + name
        self.privatePaths = privatePaths
        self.sharedPaths = sharedPaths
        address = "\(building.network).\(number)"
        address6 = "\(building.network6)\(number)"
        cgroup = unifiedCgroup().map { $0 + "/" + building.identifier + "-" + name }
    }

    var hubInterface: String { "v-" + name }
    /// The process that keeps the room's mount namespace alive.
    var holder: Int32 { state.withLock { $0.holder } }

    func make() throws {
        try makeDirectory(directory)
        try makeDirectory(directory + "/logs")
        for path in privatePaths { try makeDirectory(source(of: path)) }
        try succeedOnHost(["ip", "netns", "add", network])
        try owner.inHub([
            "ip", "link", "add", hubInterface, "type", "veth", "peer", "name", Room.interface, "netns", network,
        ])
        try owner.inHub(["ip", "link", "set", hubInterface, "master", "br0", "up"])
        try inNetwork(["link", "set", "lo", "up"])
        try inNetwork(["link", "set", Room.interface, "up"])
        try addAddresses()
        if let cgroup { try makeDirectory(cgroup) }
        try startHolder()
    }

    @discardableResult
    private func inNetwork(_ arguments: [String]) throws -> String {
        try succeedOnHost(["nsenter", "--net=/run/netns/" + network, "ip"] + arguments)
    }

    private func addAddresses() throws {
        try inNetwork(["addr", "add", "\(address)/\(Room.prefixLength)", "dev", Room.interface])
        try inNetwork(["addr", "add", "\(address6)/\(Room.prefixLength6)", "dev", Room.interface, "nodad"])
    }

    /// Where a private path of this room is on the host.
    private func source(of path: String) -> String {
        directory + "/own" + path
    }

    /// The same file as seen from the host: `path` is resolved in the room's mount namespace.
    public func hostPath(_ path: String) -> String { "/proc/\(holder)/root" + path }

    // MARK: Namespaces

    /// A sleeping process in the room's namespaces. It enters the room's cgroup only to make the cgroup namespace, and
    /// leaves it again: killing the room must not take the namespaces with it.
    private func startHolder() throws {
        let ready = directory + "/holder-ready"
        unlink(ready)
        let enter = cgroup.map { "echo $$ > \($0)/cgroup.procs; " } ?? ""
        let flags = cgroup == nil ? "" : "--cgroup "
        let script = """
            \(enter)exec nsenter --net=/run/netns/\(network) unshare \(flags)--mount --propagation private \
            sh -c ': > "$0"; exec sleep infinity' \(ready)
            """
        let pid = try spawn(["sh", "-c", script], output: directory + "/logs/holder.log")
        state.withLock { $0.holder = pid }
        try waitUntil("room \(name) has its namespaces", within: 10) { access(ready, F_OK) == 0 }
        if let cgroup, let root = unifiedCgroup() {
            try write("\(pid)\n", to: root + "/cgroup.procs")
            try enterMounts(["mount", "--bind", cgroup, root])
        }
        for path in privatePaths {
            try makeMountPoint(path)
            try enterMounts(["mount", "--bind", source(of: path), path])
        }
        for (path, hostDirectory) in sharedPaths.sorted(by: { $0.key < $1.key }) {
            try makeMountPoint(path)
            try enterMounts(["mount", "--bind", "-o", "ro", hostDirectory, path])
        }
        for image in state.withLock({ $0.images }) {
            try mount(image)
        }
    }

    /// Runs a program of the host in the room's mount namespace, outside of its cgroup.
    func inMounts(_ arguments: [String]) throws { try enterMounts(arguments) }

    private func enterMounts(_ arguments: [String]) throws {
        try succeedOnHost(["nsenter", "--mount=/proc/\(holder)/ns/mnt"] + arguments)
    }

    /// An empty directory on the host to mount over, noted so that the end of the run removes what was not there before.
    private func makeMountPoint(_ path: String) throws {
        guard path.hasPrefix("/"), !path.contains("/../") else {
            throw RoomsError("'\(path)' cannot be a room's private path: give an absolute path.")
        }
        var missing: [String] = []
        var at = path
        while access(at, F_OK) != 0, at != "/" {
            missing.append(at)
            at = (at as NSString).deletingLastPathComponent
        }
        try appendLines([path], to: buildingDirectory + "/" + MountPoints.used)
        try appendLines(missing, to: buildingDirectory + "/" + MountPoints.made)
        try makeDirectory(path)
    }

    /// What `nsenter` needs to enter this room.
    private var entrance: [String] {
        ["nsenter", "--net=/run/netns/" + network, "--mount=/proc/\(holder)/ns/mnt"]
            + (cgroup == nil ? [] : ["--cgroup=/proc/\(holder)/ns/cgroup"])
    }

    // MARK: Disks

    /// Makes a disk image of its own for this room and mounts it, inside the room only.
    ///
    /// - Parameters:
    ///   - path: the mount point inside the room; it must be one of the private paths or lie in one.
    ///   - fileSystem: `ext4`, `xfs` or `btrfs`.
    ///   - megabytes: XFS needs at least 300, btrfs 110.
    ///   - isFaulty: a power cut takes from it all that was not flushed, as from a real disk, and it can hang.
    public func addDisk(
        at path: String, fileSystem: String = "ext4", megabytes: Int = 512, options: [String] = [],
        isFaulty: Bool = false
    ) throws {
        let title = "disk-\(state.withLock { $0.images.count })"
        var image = Image(file: "\(directory)/\(title).img", mountPoint: path)
        let descriptor = Foundation.open(image.file, O_RDWR | O_CREAT | O_EXCL, 0o600)
        guard descriptor >= 0, ftruncate(descriptor, off_t(megabytes) << 20) == 0 else {
            throw RoomsError("Cannot make the disk image \(image.file): \(String(cString: strerror(errno))).")
        }
        Foundation.close(descriptor)
        let force = fileSystem == "ext4" ? ["-q", "-F"] : ["-q", "-f"]
        try succeedOnHost(["mkfs." + fileSystem] + force + options + [image.file])
        if isFaulty {
            image.faultyDisk = FaultyDisk(
                image: image.file, programs: owner.programs, log: "\(directory)/logs/\(title).log")
        }
        try mount(image)
        state.withLock { [image] in $0.images.append(image) }
    }

    private func mount(_ image: Image) throws {
        try enterMounts(["mkdir", "-p", image.mountPoint])
        if let disk = image.faultyDisk {
            try enterMounts(["mount", try disk.attach(), image.mountPoint])
        } else {
            try enterMounts(["mount", "-o", "loop", image.file, image.mountPoint])
        }
        // Tests of a node want an empty directory.
        _ = try? enterMounts(["rmdir", image.mountPoint + "/lost+found"])
    }

    var images: [Image] { state.withLock { $0.images } }

    /// Unmounts the images and waits until their loop devices are gone: two of them on one image would not see each
    /// other's writes.
    private func unmountImages() throws {
        for image in state.withLock({ $0.images }) {
            try waitUntil("\(image.mountPoint) in room \(name) can be unmounted", within: 20) {
                (try? enterMounts(["umount", image.mountPoint])) != nil
            }
            try image.faultyDisk?.detach()
            try waitUntil("the loop device of \(image.file) is gone", within: 20) {
                try succeedOnHost(["losetup", "--associated", image.file]).isEmpty
            }
        }
    }

    // MARK: Processes

    /// Starts a program in the room, in a process group of its own (Ctrl-C at the terminal does not reach it).
    ///
    /// - Parameters:
    ///   - arguments: the program (a path, or a name found through PATH) and its arguments.
    ///   - log: standard output and error are appended to this file; by default one in the room's directory.
    public func start(
        _ arguments: [String], as title: String? = nil, environment: [String: String] = [:], log: String? = nil
    ) throws -> RoomProcess {
        let title = title ?? (arguments[0] as NSString).lastPathComponent
        let log = log ?? "\(directory)/logs/\(title).log"
        let pid = try spawn(inside(arguments), environment: environment, output: log)
        let process = RoomProcess(pid: pid, title: title, room: name, log: log)
        state.withLock { $0.processes.append(process) }
        return process
    }

    private func inside(_ arguments: [String]) -> [String] {
        guard let cgroup else { return entrance + arguments }
        return ["sh", "-c", "echo $$ > \"$0\" && exec \"$@\"", cgroup + "/cgroup.procs"] + entrance + arguments
    }

    /// Runs a program in the room to its end and returns what it wrote.
    ///
    /// - Parameter seconds: after this it is killed, and the call throws.
    public func run(
        _ arguments: [String], environment: [String: String] = [:], within seconds: Double = 30
    ) throws -> Output {
        let serial = state.withLock { state in
            state.logSerial += 1
            return state.logSerial
        }
        let base = "\(directory)/logs/run-\(serial)"
        return try runToEnd(inside(arguments), environment: environment, within: seconds, files: base)
    }

    /// As `run`, but throws unless the exit status is 0. Returns standard output.
    @discardableResult
    public func succeed(
        _ arguments: [String], environment: [String: String] = [:], within seconds: Double = 30
    ) throws -> String {
        let output = try run(arguments, environment: environment, within: seconds)
        guard output.status == 0 else {
            throw RoomsError(
                "In room \(name), '\(arguments.joined(separator: " "))' ended with status \(output.status): "
                    + (output.error + output.output).trimmingCharacters(in: .whitespacesAndNewlines))
        }
        return output.output
    }

    /// Every process in the room, also those the started ones have started; not the holder.
    public var processIdentifiers: [Int32] {
        var all = Set(processes(inNetwork: network))
        if let cgroup { all.formUnion(processes(inCgroup: cgroup)) }
        all.remove(holder)
        return all.sorted()
    }

    /// SIGKILL to every process in the room, at one moment where the kernel has `cgroup.kill`; returns when all are gone.
    ///
    /// - Throws: if a process is still there after 10 s (it hangs in the kernel); the message names it.
    public func killAll() throws {
        killOnce()
        try waitUntil("every process of room \(name) is dead", within: 10) {
            reap()
            if processIdentifiers.isEmpty { return true }
            killOnce()
            return false
        } otherwise: {
            processIdentifiers.map { "\($0) \(commandName(of: $0))" }.joined(separator: ", ")
        }
    }

    /// SIGKILL to all, without waiting: for several rooms at one moment. `killAll` after it waits.
    public func beginKilling() { killOnce() }

    private func killOnce() {
        if let cgroup { try? write("1\n", to: cgroup + "/cgroup.kill") }
        for pid in processIdentifiers { kill(pid, SIGKILL) }
    }

    /// SIGSTOP to every process in the room: the machine hangs, its kernel and its addresses stay.
    public func pauseAll() { for pid in processIdentifiers { kill(pid, SIGSTOP) } }

    /// SIGCONT to every process in the room.
    public func resumeAll() { for pid in processIdentifiers { kill(pid, SIGCONT) } }

    /// As if the machine was started again after `killAll()`: mounts and addresses that a dead daemon left are gone, the
    /// files are there.
    public func reboot() throws {
        try killAll()
        try unmountImages()
        let old = state.withLock { state in
            defer { state.holder = 0 }
            return state.holder
        }
        if old != 0 { killAndCollect(old) }
        try inNetwork(["addr", "flush", "dev", Room.interface])
        try addAddresses()
        try startHolder()
    }

    /// Collects the ended children, so that no zombies remain.
    func reap() { for process in state.withLock({ $0.processes }) { _ = process.isRunning } }

    /// For the end of the building: kills without complaint, the holder included, and leaves no zombies.
    func killAndCollectAll() {
        killOnce()
        let holder = state.withLock { state in
            defer { state.holder = 0 }
            return state.holder
        }
        if holder != 0 { killAndCollect(holder) }
        for process in state.withLock({ $0.processes }) { try? process.killNow() }
    }

    /// All addresses that the room's kernel answers for, IPv4 and IPv6, loopback included. Reads two files of the kernel:
    /// cheap enough to ask many times a second.
    public func addresses() -> Set<String> {
        let read = { (file: String) in
            let data = FileManager.default.contents(atPath: "/proc/\(self.holder)/net/" + file) ?? Data()
            return String(decoding: data, as: UTF8.self).split(separator: "\n").map {
                $0.trimmingCharacters(in: .whitespaces)
            }
        }
        var found: Set<String> = []
        var candidate = ""
        for line in read("fib_trie") {
            if line.hasPrefix("|-- ") { candidate = String(line.dropFirst(4)) }
            if line == "/32 host LOCAL" { found.insert(candidate) }
        }
        for line in read("if_inet6") {
            let digits = Array(line.prefix(32).utf8)
            guard digits.count == 32 else { continue }
            let bytes = stride(from: 0, to: 32, by: 2).compactMap {
                UInt8(String(decoding: digits[$0..<$0 + 2], as: UTF8.self), radix: 16)
            }
            var text = [CChar](repeating: 0, count: Int(INET6_ADDRSTRLEN))
            guard bytes.count == 16, inet_ntop(AF_INET6, bytes, &text, socklen_t(text.count)) != nil else { continue }
            found.insert(String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self))
        }
        return found
    }
}
