//  Removing what a run made: by itself at its end, or for a run that was killed, by the next one.
import Foundation

/// The unified cgroup hierarchy, where it is mounted and this process may write; nil otherwise.
func unifiedCgroup() -> String? {
    for path in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
    where access(path + "/cgroup.controllers", F_OK) == 0 && access(path + "/cgroup.procs", W_OK) == 0 {
        return path
    }
    return nil
}

/// The moment a process was started, in the kernel's words (field 22 of stat); nil if there is no such process.
func startTime(of pid: Int32) -> String? {
    guard let data = FileManager.default.contents(atPath: "/proc/\(pid)/stat") else { return nil }
    let text = String(decoding: data, as: UTF8.self)
    // The second field, the name in parentheses, may hold spaces: count from the last parenthesis.
    guard let close = text.lastIndex(of: ")") else { return nil }
    let fields = text[text.index(after: close)...].split(separator: " ")
    return fields.count > 19 ? String(fields[19]) : nil
}

func commandName(of pid: Int32) -> String {
    let data = FileManager.default.contents(atPath: "/proc/\(pid)/comm") ?? Data()
    return String(decoding: data, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
}

/// The processes whose network namespace is the named one.
func processes(inNetwork name: String) -> [Int32] {
    var wanted = stat()
    guard stat("/run/netns/" + name, &wanted) == 0 else { return [] }
    return entries(of: "/proc").compactMap { entry in
        guard let pid = Int32(entry) else { return nil }
        var found = stat()
        guard stat("/proc/\(pid)/ns/net", &found) == 0, found.st_ino == wanted.st_ino, found.st_dev == wanted.st_dev
        else { return nil }
        return pid
    }
}

/// The processes in a cgroup and in those below it.
func processes(inCgroup path: String) -> [Int32] {
    let data = FileManager.default.contents(atPath: path + "/cgroup.procs") ?? Data()
    let own = String(decoding: data, as: UTF8.self).split(separator: "\n").compactMap { Int32($0) }
    return own.filter { $0 != 0 } + children(ofCgroup: path).flatMap(processes(inCgroup:))
}

private func children(ofCgroup path: String) -> [String] {
    entries(of: path).map { path + "/" + $0 }.filter { access($0 + "/cgroup.procs", F_OK) == 0 }
}

private func removeCgroup(_ path: String) {
    for child in children(ofCgroup: path) { removeCgroup(child) }
    rmdir(path)
}

func entries(of path: String) -> [String] { (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? [] }

/// Kills and removes everything that carries the name of one building.
func demolish(_ identifier: String, directory: String) {
    killDiskServers(under: directory)
    let networks = entries(of: "/run/netns").filter { $0.hasPrefix(identifier + "-") }
    let root = unifiedCgroup()
    let cgroups = root.map { root in
        entries(of: root).filter { $0.hasPrefix(identifier + "-") }.map { root + "/" + $0 }
    }
    try? waitUntil("all processes of \(identifier) are dead", within: 10) {
        for cgroup in cgroups ?? [] { try? write("1\n", to: cgroup + "/cgroup.kill") }
        let left = networks.flatMap(processes(inNetwork:)) + (cgroups ?? []).flatMap(processes(inCgroup:))
        for pid in left where pid != getpid() {
            kill(pid, SIGKILL)
            _ = collect(pid)
        }
        return left.isEmpty
    }
    for network in networks { _ = try? succeedOnHost(["ip", "netns", "delete", network]) }
    // The kernel empties a cgroup a moment after its last process is gone.
    try? waitUntil("the cgroups of \(identifier) are removed", within: 5) {
        for cgroup in cgroups ?? [] { removeCgroup(cgroup) }
        return (cgroups ?? []).allSatisfy { access($0, F_OK) != 0 }
    }
    let made = lines(of: directory + "/" + MountPoints.made)
    // Mounted images keep the directory busy until the mount namespace is really gone.
    try? waitUntil("\(directory) is removed", within: 10) {
        removeFaultyDisks(under: directory)
        try? FileManager.default.removeItem(atPath: directory)
        return access(directory, F_OK) != 0
    }
    removeMountPoints(made, parent: (directory as NSString).deletingLastPathComponent)
}

/// The files in a building's directory that list the paths on the host that its rooms mount over, and those that were
/// made for that.
enum MountPoints {
    static let used = "mount-points"
    static let made = "mount-points-made"
}

/// Removes empty directories that were made to mount over, deepest first. One that another run mounts over stays, because
/// its removal would undo that mount; the other run inherits the duty.
private func removeMountPoints(_ made: [String], parent: String) {
    let others = entries(of: parent).filter { $0.hasPrefix("lsk-") }.map { parent + "/" + $0 }
    for path in Set(made).sorted(by: { $0.utf8.count > $1.utf8.count }) {
        let heir = others.first { other in
            lines(of: other + "/" + MountPoints.used).contains { $0 == path || $0.hasPrefix(path + "/") }
        }
        if let heir {
            try? appendLines([path], to: heir + "/" + MountPoints.made)
        } else {
            rmdir(path)
        }
    }
}

private func lines(of file: String) -> [String] {
    let data = FileManager.default.contents(atPath: file) ?? Data()
    return String(decoding: data, as: UTF8.self).split(separator: "\n").map(String.init)
}

func appendLines(_ lines: [String], to file: String) throws {
    let descriptor = open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o644)
    guard descriptor >= 0 else { throw RoomsError("Cannot open \(file): \(String(cString: strerror(errno))).") }
    defer { close(descriptor) }
    let text = lines.map { $0 + "\n" }.joined()
    guard Foundation.write(descriptor, text, text.utf8.count) == text.utf8.count else {
        throw RoomsError("Cannot write to \(file): \(String(cString: strerror(errno))).")
    }
}

/// Removes what dead runs left behind. A run is dead when the process in its name is gone, or is another one by now.
func sweepDeadRuns(in parent: String) {
    var names = entries(of: "/run/netns") + entries(of: parent)
    if let root = unifiedCgroup() { names += entries(of: root) }
    var identifiers: Set<String> = []
    for name in names {
        let parts = name.split(separator: "-", omittingEmptySubsequences: false)
        guard parts.count >= 3, parts[0] == "lsk", let pid = Int32(parts[1]), let serial = Int(parts[2]) else {
            continue
        }
        let identifier = "lsk-\(pid)-\(serial)"
        let owner = FileManager.default.contents(atPath: "\(parent)/\(identifier)/owner") ?? Data()
        let recorded = String(decoding: owner, as: UTF8.self).split(whereSeparator: \.isWhitespace).last.map(
            String.init)
        guard let running = startTime(of: pid) else {
            identifiers.insert(identifier)
            continue
        }
        // The process exists. Without a record it may be a run that is just starting: leave it.
        if let recorded, recorded != running { identifiers.insert(identifier) }
    }
    for identifier in identifiers.sorted() { demolish(identifier, directory: "\(parent)/\(identifier)") }
}
