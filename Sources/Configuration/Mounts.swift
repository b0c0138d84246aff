import Glibc

/// What is mounted where, from /proc/self/mountinfo. Asking this never touches a mount: `stat` on one whose server does
/// not answer would hang.
struct Mounts {
    struct Mount: Equatable {
        var point: String
        var type: String
        var isReadOnly: Bool
        /// The device, or whatever name the one who mounted it gave.
        var source = ""
        /// Quotas that XFS holds everybody to, root too, as the mount options that say so.
        var enforcedQuotas: [String] = []
    }
    private static let quotaOptions: Set<Substring> = [
        "quota", "usrquota", "uquota", "grpquota", "gquota", "prjquota", "pquota",
    ]
    /// In the order in which they were mounted: of two on one point, the later hides the earlier.
    let all: [Mount]

    init() { self.init(text: readText("/proc/self/mountinfo") ?? "") }

    init(text: String) {
        all = text.split(separator: "\n").compactMap { line in
            let fields = line.split(separator: " ")
            guard let dash = fields.firstIndex(of: "-"), dash >= 6, dash + 3 < fields.count else { return nil }
            let options = fields[5].split(separator: ",") + fields[dash + 3].split(separator: ",")
            let quotas = fields[dash + 1] == "xfs" ? options.filter(Self.quotaOptions.contains) : []
            return Mount(
                point: Self.unescaped(fields[4]), type: String(fields[dash + 1]), isReadOnly: options.contains("ro"),
                source: Self.unescaped(fields[dash + 2]),
                enforcedQuotas: quotas.map(String.init))
        }
    }

    /// Blanks in mount points stand as \040.
    private static func unescaped(_ text: Substring) -> String {
        var bytes: [UInt8] = []
        var rest = text.utf8[...]
        while let byte = rest.popFirst() {
            let digits = rest.prefix(3)
            if byte == UInt8(ascii: "\\"), digits.count == 3,
                let value = UInt8(String(decoding: digits, as: UTF8.self), radix: 8)
            {
                bytes.append(value)
                rest = rest.dropFirst(3)
            } else {
                bytes.append(byte)
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// What is mounted exactly at `path`.
    func at(_ path: String) -> Mount? { all.last { $0.point == path } }

    /// The mount that `path` (without symbolic links) lies on.
    func containing(_ path: String) -> Mount? {
        var best: Mount?
        for mount in all where isSameOrBelow(path, mount.point) && mount.point.utf8.count >= best?.point.utf8.count ?? 0
        {
            best = mount
        }
        return best
    }

    /// What is mounted below `path`.
    func below(_ path: String) -> [Mount] { all.filter { $0.point != path && isSameOrBelow($0.point, path) } }
}

/// Whether `path` is `directory` or lies in it.
func isSameOrBelow(_ path: String, _ directory: String) -> Bool {
    directory == "/" || path == directory || path.hasPrefix(directory + "/")
}

/// The text of a small file, nil when it cannot be read.
func readText(_ path: String) -> String? {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 16384)
    while bytes.count < 1 << 22 {
        let count = read(descriptor, &chunk, chunk.count)
        if count < 0 && errno == EINTR { continue }
        guard count >= 0 else { return nil }
        if count == 0 { break }
        bytes += chunk[..<count]
    }
    return String(decoding: bytes, as: UTF8.self)
}

/// The names in a directory, without `.` and `..`; nil when it cannot be read.
func directoryNames(_ path: String) -> [String]? {
    guard let directory = opendir(path) else { return nil }
    defer { closedir(directory) }
    var names: [String] = []
    while let entry = readdir(directory) {
        let name = withUnsafeBytes(of: entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        if name != "." && name != ".." { names.append(name) }
    }
    return names
}

/// `path` without symbolic links; nil when it does not exist.
func resolvedPath(_ path: String) -> String? {
    guard let text = realpath(path, nil) else { return nil }
    defer { free(text) }
    return String(cString: text)
}

/// The type bits of a file's mode (S_IFDIR, ...); nil when it does not exist or cannot be reached.
func fileMode(_ path: String) -> mode_t? {
    var status = stat()
    return stat(path, &status) == 0 ? status.st_mode : nil
}

func systemError(_ code: Int32) -> String { String(cString: strerror(code)) }
