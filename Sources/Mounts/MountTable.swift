internal import Glibc

/// What is mounted where, from /proc/self/mountinfo. Reading it asks no file system anything: one whose server or disk does
/// not answer cannot block it, as it would stat(2), df and umount(8).
public struct MountTable: Sendable {
    public struct Mount: Sendable, Equatable {
        /// Unique as long as it is mounted; `stx_mnt_id` of statx.
        public var id: UInt64
        /// The minor number of its device: for FUSE the number of the connection.
        public var minor: UInt32
        public var point: String
        /// "ext4", "fuse.lockstep", ...
        public var type: String
        /// The device, or whatever name the one who mounted it gave.
        public var source: String
        /// Of the mount and of the file system.
        public var options: [String]

        public init(id: UInt64, minor: UInt32, point: String, type: String, source: String, options: [String]) {
            self.id = id
            self.minor = minor
            self.point = point
            self.type = type
            self.source = source
            self.options = options
        }

        public var isReadOnly: Bool { options.contains("ro") }

        /// A quota that XFS holds everybody to, root too, as the option that says so; ext4 does not ask root.
        public var enforcedQuota: String? { type == "xfs" ? options.first(where: Mount.enforcedQuotas.contains) : nil }

        /// As XFS shows them; the variants that only count have other names.
        private static let enforcedQuotas: Set<String> = [
            "quota", "usrquota", "uquota", "grpquota", "gquota", "prjquota", "pquota",
        ]
    }

    /// In the order in which they were mounted: of two on one point, the later hides the earlier.
    public let all: [Mount]

    /// Lines like `36 35 0:52 / /srv/ledger rw,noatime shared:1 - fuse.lockstep ledger rw,user_id=0`
    /// (proc_pid_mountinfo(5)); any number of fields may stand before the dash. Others are passed over.
    public init(text: String) {
        all = text.split(separator: "\n").compactMap { line in
            // A source may be empty.
            let fields = line.split(separator: " ", omittingEmptySubsequences: false)
            guard fields.count > 6, let dash = fields[6...].firstIndex(of: "-"), dash + 3 < fields.count,
                let id = UInt64(fields[0]), let minor = fields[2].split(separator: ":").last.flatMap({ UInt32($0) })
            else { return nil }
            let options = fields[5].split(separator: ",") + fields[dash + 3].split(separator: ",")
            return Mount(
                id: id, minor: minor, point: MountTable.unescaped(fields[4]), type: String(fields[dash + 1]),
                source: MountTable.unescaped(fields[dash + 2]), options: options.map(String.init))
        }
    }

    /// The table of this process; nil when it cannot be read to its end.
    public static func current() -> MountTable? {
        let descriptor = unsafe open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { _ = close(descriptor) }
        var bytes: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 65_536)
        while bytes.count < MountTable.bytesMax {
            let count = unsafe piece.withUnsafeMutableBytes { unsafe read(descriptor, $0.baseAddress, $0.count) }
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { return nil }
            if count == 0 { return MountTable(text: String(decoding: bytes, as: UTF8.self)) }
            bytes += piece[..<count]
        }
        return nil
    }

    /// Far more than a machine has: some hundred thousand mounts.
    private static let bytesMax = 16 << 20

    /// Blank, tab, newline and backslash are written as three octal digits.
    private static func unescaped(_ field: Substring) -> String {
        var bytes: [UInt8] = []
        var rest = field.utf8[...]
        while let byte = rest.popFirst() {
            let digits = rest.prefix(3)
            if byte == UInt8(ascii: "\\"), digits.count == 3,
                let code = UInt8(String(decoding: digits, as: UTF8.self), radix: 8)
            {
                bytes.append(code)
                rest = rest.dropFirst(3)
            } else {
                bytes.append(byte)
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// Mounted exactly at `path`, the lowest first.
    public func mounts(at path: String) -> [Mount] {
        let wanted = MountTable.normalised(path)
        return all.filter { $0.point == wanted }
    }

    /// What is seen at `path`, if that is a mount point.
    public func top(at path: String) -> Mount? { mounts(at: path).last }

    /// The mount that `path` (without symbolic links) lies on.
    public func containing(_ path: String) -> Mount? {
        var best: Mount?
        for mount in all where isSameOrBelow(path, mount.point) && mount.point.utf8.count >= best?.point.utf8.count ?? 0
        {
            best = mount
        }
        return best
    }

    /// What is mounted below `path`.
    public func below(_ path: String) -> [Mount] { all.filter { $0.point != path && isSameOrBelow($0.point, path) } }

    /// Without slashes at its end.
    public static func normalised(_ path: String) -> String {
        var result = path
        while result.count > 1, result.hasSuffix("/") { result.removeLast() }
        return result
    }
}

/// Whether `path` is `directory` or lies in it.
public func isSameOrBelow(_ path: String, _ directory: String) -> Bool {
    directory == "/" || path == directory || path.hasPrefix(directory + "/")
}
