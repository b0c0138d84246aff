import CLinux
import Format
import Glibc
import Mounts

/// Looks at this machine with the eyes of one node, and lists what would not work, before anything is started.
///
/// It only reads: nothing on the machine is changed, and no mount is touched that could hang. It can run while the mirror
/// is in service.
public struct MachineCheck {
    /// File systems whose metadata reaches the disk in the order in which it was changed, and that give handles by which
    /// a file is found again after a restart. Replay after a crash builds on both.
    static let fileSystems = ["ext4", "xfs", "btrfs"]
    /// cgroup.kill, and everything older than it that is used.
    static let kernelMinimum = (5, 14)
    /// The kernel of Debian 12, the oldest it is tested on.
    static let kernelTested = (6, 1)
    /// Space that the state needs beside the journal: votes, file table, copies while they are replaced.
    static let stateMebibytes = 64

    let configuration: MirrorConfiguration
    let node: NodeID
    let mounts: MountTable

    /// - Parameter node: which node this machine is.
    public init(_ configuration: MirrorConfiguration, node: NodeID) {
        self.configuration = configuration
        self.node = node
        mounts = MountTable.current() ?? MountTable(text: "")
    }

    /// Everything found, errors first.
    public func findings() -> [Finding] {
        let all =
            kernelFindings() + controlGroupFindings() + ringFindings() + pathFindings() + backingFindings()
            + stateFindings() + timingFindings() + applicationFindings() + ownAddressFindings()
            + virtualAddressFindings()
        return Finding.Severity.allCases.reversed().flatMap { severity in all.filter { $0.severity == severity } }
    }

    /// A finding about a key of the configuration.
    func finding(_ severity: Finding.Severity, _ key: String, _ what: String, _ remedy: String) -> Finding {
        let place = "\(configuration.file):\(configuration.lines.line(of: key)): \(key)"
        return Finding(severity: severity, what: what, place: place, remedy: remedy)
    }

    func machine(_ severity: Finding.Severity, _ place: String, _ what: String, _ remedy: String) -> Finding {
        Finding(severity: severity, what: what, place: place, remedy: remedy)
    }

    // MARK: - Kernel

    func kernelFindings() -> [Finding] {
        var found: [Finding] = []
        if geteuid() != 0 {
            found.append(
                machine(
                    .error, "this process", "it does not run as root, and some of what follows could not be seen",
                    "Run it with sudo; the daemon needs root for mounts, addresses and control groups"))
        }
        let release =
            (readText("/proc/sys/kernel/osrelease") ?? "?").split(separator: "\n").first.map(String.init) ?? "?"
        let numbers = release.split(separator: ".").map { Int($0.prefix { $0.isNumber }) ?? 0 }
        let version = (numbers.first ?? 0, numbers.count > 1 ? numbers[1] : 0)
        if version < Self.kernelMinimum {
            found.append(
                machine(
                    .error, "kernel", "Linux \(release) is too old",
                    "At least \(Self.kernelMinimum.0).\(Self.kernelMinimum.1) is needed; Debian 12 has 6.1"))
        } else if version < Self.kernelTested {
            found.append(
                machine(
                    .warning, "kernel", "Linux \(release) is older than what Lockstep is tested on",
                    "Use \(Self.kernelTested.0).\(Self.kernelTested.1) or newer"))
        }
        let fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC)
        if fuse < 0 {
            let code = errno
            found.append(
                machine(
                    .error, "/dev/fuse", "it cannot be opened: \(systemError(code))",
                    code == ENOENT
                        ? "Load the module: modprobe fuse" : "Run as root; in a container, pass the device in"))
        } else {
            close(fuse)
            if mounts.all.first(where: { $0.type == "fusectl" }) == nil {
                found.append(
                    machine(
                        .warning, "/sys/fs/fuse/connections",
                        "fusectl is not mounted, so that a mount that hangs cannot be "
                            + "aborted by hand", "mount -t fusectl none /sys/fs/fuse/connections"))
            }
        }
        return found
    }

    func controlGroupFindings() -> [Finding] {
        guard configuration.application != nil else { return [] }
        let points =
            ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] + mounts.all.filter { $0.type == "cgroup2" }.map(\.point)
        guard let point = points.first(where: { access($0 + "/cgroup.controllers", F_OK) == 0 }) else {
            return [
                machine(
                    .error, "/sys/fs/cgroup", "cgroup v2 is not mounted, so that an application could not be frozen",
                    "mount -t cgroup2 none /sys/fs/cgroup/unified; on Debian 12 it is there by default")
            ]
        }
        guard access(point, W_OK) == 0 else {
            return [
                machine(
                    .error, point, "control groups cannot be made: \(systemError(errno))",
                    "Run as root; in a container, give it a writable cgroup namespace")
            ]
        }
        return []
    }

    func ringFindings() -> [Finding] {
        let answer = clinux_probe_io_uring()
        guard answer < 0, configuration.journal.engine != .libaio else { return [] }
        let setting = (readText("/proc/sys/kernel/io_uring_disabled") ?? "").filter(\.isNumber)
        let why =
            setting.isEmpty || setting == "0"
            ? "\(systemError(-answer)); a container or seccomp policy forbids it"
            : "kernel.io_uring_disabled is \(setting)"
        if configuration.journal.engine == .ioUring {
            return [
                finding(
                    .error, "journal.engine", "io_uring is not allowed here: \(why)",
                    "Write engine = \"auto\" or \"libaio\", or allow it: sysctl kernel.io_uring_disabled=0")
            ]
        }
        return [
            finding(
                .note, "journal.engine", "io_uring is not allowed here (\(why)); libaio will be used instead", "")
        ]
    }

    // MARK: - Directories

    func pathFindings() -> [Finding] {
        let path = configuration.path
        var found: [Finding] = []
        for mount in mounts.below(path) {
            found.append(
                finding(
                    .error, "path", "\(mount.point) is mounted below it (\(mount.type)) and would not be mirrored",
                    "Unmount it, or move its files into the directory"))
        }
        // A mount there must not be touched: one whose daemon hangs would hang this check as well.
        if let mount = mounts.top(at: path) {
            // The guard: the read-only directory that stands there while this node does not serve.
            if mount.source.hasPrefix("lockstep-guard:") { return found }
            let isOurs = mount.type.hasPrefix("fuse")
            found.append(
                isOurs
                    ? finding(.note, "path", "a FUSE file system is mounted there: the mirror may be in service", "")
                    : finding(
                        .error, "path", "\(mount.type) is mounted there already", "Unmount it: umount \(path)"))
            return found
        }
        guard let mode = fileMode(path) else {
            return found + [
                finding(
                    .error, "path", "\(path): \(systemError(errno))", "Make an empty directory: mkdir -p \(path)")
            ]
        }
        guard mode & S_IFMT == S_IFDIR else {
            return found + [finding(.error, "path", "\(path) is not a directory", "Move it away and mkdir \(path)")]
        }
        found += linkFindings("path", path)
        if let names = directoryNames(path), let first = names.first {
            found.append(
                finding(
                    .error, "path",
                    "\(path) is not empty (\(first)\(names.count > 1 ? ", ..." : "")): a mount would hide it",
                    "Move the files to backing with `lockstep adopt`, or move them away"))
        }
        return found
    }

    /// A symbolic link on the way may lead one directory into the other, which the text of the paths does not show.
    func linkFindings(_ key: String, _ path: String) -> [Finding] {
        guard let resolved = resolvedPath(path), resolved != path else { return [] }
        return [
            finding(.warning, key, "\(path) leads over a symbolic link to \(resolved)", "Write \(resolved) instead")
        ]
    }

    func backingFindings() -> [Finding] {
        let backing = configuration.backing
        guard let mode = fileMode(backing) else {
            return [
                finding(
                    .error, "backing", "\(backing): \(systemError(errno))",
                    "Make the directory: mkdir -p -m 700 \(backing)")
            ]
        }
        guard mode & S_IFMT == S_IFDIR, let resolved = resolvedPath(backing) else {
            return [finding(.error, "backing", "\(backing) is not a directory", "Name a directory")]
        }
        var found = linkFindings("backing", backing)
        if let path = resolvedPath(configuration.path),
            isSameOrBelow(resolved, path) || isSameOrBelow(path, resolved)
        {
            found.append(
                finding(
                    .error, "backing", "\(resolved) and path (\(path)) lie one inside the other, over a symbolic link",
                    "Give the plain files a directory of their own"))
        }
        for mount in mounts.below(resolved) {
            found.append(
                finding(
                    .error, "backing",
                    "\(mount.point) is mounted below it (\(mount.type)); all plain files must lie on one "
                        + "file system", "Unmount it, or move its files into the directory"))
        }
        found += fileSystemFindings("backing", resolved) + quotaFindings(resolved)
        let attributes = clinux_probe_trusted_attributes(resolved)
        if attributes <= 0 {
            found.append(
                finding(
                    .error, "backing",
                    "its file system keeps no trusted.* attributes"
                        + (attributes < 0 ? " (\(systemError(-attributes)))" : ""), "Use ext4, xfs or btrfs"))
        }
        let handles = clinux_probe_file_handles(resolved)
        if handles <= 0 {
            found.append(
                finding(
                    .error, "backing",
                    "its file system gives no file handles"
                        + (handles < 0 ? " (\(systemError(-handles)))" : ""), "Use ext4, xfs or btrfs"))
        }
        let parent = "/" + backing.split(separator: "/").dropLast().joined(separator: "/")
        if mode & 0o077 != 0, (fileMode(parent) ?? 0) & 0o077 != 0 {
            found.append(
                finding(
                    .warning, "backing", "other users than root can enter it, and could change files past the mirror",
                    "Make the directory above it root's alone (its own mode is that of path): chmod 700 \(parent)"))
        }
        return found
    }

    /// ext4 asks nobody who is root. XFS does: what was granted to the application and acknowledged could not be applied.
    private func quotaFindings(_ directory: String) -> [Finding] {
        guard let mount = mounts.containing(directory), let quota = mount.enforcedQuota else { return [] }
        return [
            finding(
                .error, "backing",
                "\(mount.point) has enforced XFS quotas (\(quota)): a user who is over his quota would stop both rooms",
                "Turn enforcement off (xfs_quota -x -c 'disable -ugp' \(mount.point)) and mount it with uqnoenforce, "
                    + "gqnoenforce or pqnoenforce, which still count")
        ]
    }

    /// The file system that holds an existing, resolved directory.
    func fileSystemFindings(_ key: String, _ directory: String) -> [Finding] {
        guard let mount = mounts.containing(directory) else { return [] }
        var found: [Finding] = []
        if mount.isReadOnly {
            found.append(
                finding(
                    .error, key, "\(directory) lies on \(mount.point), which is mounted read-only",
                    "mount -o remount,rw \(mount.point)"))
        }
        guard !Self.fileSystems.contains(mount.type) else { return found }
        let reason =
            switch mount.type {
            case "overlay": "overlay files have no handles that outlive a restart"
            case "tmpfs", "ramfs": "\(mount.type) forgets everything when the power goes"
            case "nfs", "nfs4", "cifs", "ceph", "fuse.glusterfs": "\(mount.type) is not in this room"
            default: "\(mount.type) is not known to write metadata in order and to give lasting file handles"
            }
        found.append(
            finding(
                .error, key, "\(directory) lies on a file system that is not supported: \(reason)",
                "Use ext4, xfs or btrfs"))
        return found
    }
}
