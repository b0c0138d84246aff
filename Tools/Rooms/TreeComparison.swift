//  Two directory trees, byte by byte: names, types, modes, owners, sizes, contents, modification times, extended
//  attributes, holes, link counts and which names are one file. Not compared: access times (reading here would change
//  them), change times (nobody can set them), inode numbers, block counts.
import CLinux
import Foundation

public struct TreeComparison: Sendable {
    /// One line for each difference: the path, what differs, both values. At most `differencesMax`.
    public private(set) var differences: [String] = []
    public private(set) var entriesCompared = 0
    public private(set) var bytesCompared = 0
    public var isIdentical: Bool { differences.isEmpty }

    public static let differencesMax = 100
    /// Lockstep's own directory at the top of a backing directory; its contents are each node's own.
    public static let ignoredAtTop = ".lockstep"

    /// The first name under which a file with several was met, by device and inode, on each side.
    private var firstNames: [[FileKey: String]] = [[:], [:]]
    private struct FileKey: Hashable {
        var device: UInt
        var inode: UInt
    }

    /// Compares now; nobody should be writing.
    ///
    /// - Throws: `RoomsError` when something cannot be read.
    public init(_ first: String, _ second: String) throws {
        try compare(first, second, path: ".")
    }

    private mutating func differ(_ path: String, _ what: String, _ a: String, _ b: String) {
        guard differences.count < TreeComparison.differencesMax else { return }
        differences.append("\(path): \(what): \(a) / \(b)")
    }

    private mutating func compare(_ a: String, _ b: String, path: String) throws {
        let first = try information(a)
        let second = try information(b)
        entriesCompared += 1
        if first.st_mode != second.st_mode {
            differ(path, "type and mode", String(first.st_mode, radix: 8), String(second.st_mode, radix: 8))
        }
        guard first.st_mode & S_IFMT == second.st_mode & S_IFMT else { return }
        let type = first.st_mode & S_IFMT
        if (first.st_uid, first.st_gid) != (second.st_uid, second.st_gid) {
            differ(path, "owner", "\(first.st_uid):\(first.st_gid)", "\(second.st_uid):\(second.st_gid)")
        }
        if (first.st_mtim.tv_sec, first.st_mtim.tv_nsec) != (second.st_mtim.tv_sec, second.st_mtim.tv_nsec) {
            let text = { (time: timespec) in "\(time.tv_sec).\(String(format: "%09d", time.tv_nsec))" }
            differ(path, "modification time", text(first.st_mtim), text(second.st_mtim))
        }
        if type == S_IFCHR || type == S_IFBLK, first.st_rdev != second.st_rdev {
            differ(path, "device number", "\(first.st_rdev)", "\(second.st_rdev)")
        }
        if type != S_IFDIR {
            if first.st_nlink != second.st_nlink { differ(path, "links", "\(first.st_nlink)", "\(second.st_nlink)") }
            compareNames(first, second, path: path)
        }
        try compareAttributes(a, b, path: path)
        switch type {
        case S_IFREG: try compareContents(a, b, first, second, path: path)
        case S_IFLNK:
            let targets = (try linkTarget(a), try linkTarget(b))
            if targets.0 != targets.1 { differ(path, "target", targets.0, targets.1) }
        case S_IFDIR: try compareDirectories(a, b, path: path)
        default: break
        }
    }

    /// Files with several names must have the same several names on both sides.
    private mutating func compareNames(_ first: stat, _ second: stat, path: String) {
        guard first.st_nlink > 1 || second.st_nlink > 1 else { return }
        var names: [String] = []
        for (side, information) in [first, second].enumerated() {
            let key = FileKey(device: UInt(information.st_dev), inode: UInt(information.st_ino))
            names.append(firstNames[side][key, default: path])
            firstNames[side][key] = names[side]
        }
        if names[0] != names[1] { differ(path, "is the same file as", names[0], names[1]) }
    }

    private mutating func compareDirectories(_ a: String, _ b: String, path: String) throws {
        let first = try names(in: a, isTop: path == ".")
        let second = try names(in: b, isTop: path == ".")
        for name in first.subtracting(second).sorted() { differ("\(path)/\(name)", "exists", "yes", "no") }
        for name in second.subtracting(first).sorted() { differ("\(path)/\(name)", "exists", "no", "yes") }
        for name in first.intersection(second).sorted() {
            try compare("\(a)/\(name)", "\(b)/\(name)", path: "\(path)/\(name)")
        }
    }

    private mutating func compareContents(
        _ a: String, _ b: String, _ first: stat, _ second: stat, path: String
    ) throws {
        guard first.st_size == second.st_size else {
            differ(path, "size", "\(first.st_size)", "\(second.st_size)")
            return
        }
        let one = try ReadFile(a)
        let two = try ReadFile(b)
        var offset = 0
        while true {
            let left = try one.next()
            let right = try two.next()
            if left != right {
                let pairs = zip(left, right)
                let same = pairs.prefix { $0 == $1 }.reduce(0) { count, _ in count + 1 }
                differ(
                    path, "byte \(offset + same)", same < left.count ? String(left[same]) : "end",
                    same < right.count ? String(right[same]) : "end")
                return
            }
            if left.isEmpty { break }
            offset += left.count
            bytesCompared += left.count
        }
        try compareHoles(one, two, size: Int(first.st_size), path: path)
    }

    /// What is a hole on one side must not be data on the other, but for less than some blocks: file systems write out more
    /// or less of what surrounds a change. What is only allocated is neither: it reads as zeros and takes space.
    private mutating func compareHoles(_ one: ReadFile, _ two: ReadFile, size: Int, path: String) throws {
        let first = try one.extents(size: size)
        let second = try two.extents(size: size)
        for (index, (data, all)) in [(first.written, second.all), (second.written, first.all)].enumerated() {
            for range in data {
                let common = all.reduce(0) { $0 + $1.clamped(to: range).count }
                guard range.count - common >= TreeComparison.holeBytesMin else { continue }
                let words = ["\(range.count - common) bytes of data", "hole"]
                differ(path, "bytes \(range.lowerBound) to \(range.upperBound)", words[index], words[1 - index])
                return
            }
        }
    }
    /// In bytes.
    public static let holeBytesMin = 65_536

    private mutating func compareAttributes(_ a: String, _ b: String, path: String) throws {
        let first = try extendedAttributes(a)
        let second = try extendedAttributes(b)
        for name in Set(first.keys).union(second.keys).sorted() where first[name] != second[name] {
            let text = { (value: [UInt8]?) in value.map { $0.map { String(format: "%02x", $0) }.joined() } ?? "none" }
            differ(path, "attribute \(name)", text(first[name]), text(second[name]))
        }
    }
}

private func failure(_ what: String, _ path: String, _ number: Int32 = errno) -> RoomsError {
    RoomsError("Cannot \(what) \(path): \(String(cString: strerror(number))).")
}

private func information(_ path: String) throws -> stat {
    var result = stat()
    guard lstat(path, &result) == 0 else { throw failure("look at", path) }
    return result
}

private func linkTarget(_ path: String) throws -> String {
    var buffer = [UInt8](repeating: 0, count: 4097)
    let count = buffer.withUnsafeMutableBytes { readlink(path, $0.baseAddress!, $0.count) }
    guard count >= 0 else { throw failure("read the symbolic link", path) }
    return String(decoding: buffer[..<count], as: UTF8.self)
}

private func names(in path: String, isTop: Bool) throws -> Set<String> {
    do {
        let all = try FileManager.default.contentsOfDirectory(atPath: path)
        return Set(isTop ? all.filter { $0 != TreeComparison.ignoredAtTop } : all)
    } catch {
        throw RoomsError("Cannot list \(path): \(error.localizedDescription)")
    }
}

private func extendedAttributes(_ path: String) throws -> [String: [UInt8]] {
    var list = [CChar](repeating: 0, count: 65_536)
    let length = clinux_listxattr(path, &list, list.count, 0)
    guard length >= 0 else {
        if length == -Int(ENOTSUP) { return [:] }
        throw failure("list the extended attributes of", path, Int32(-length))
    }
    var result: [String: [UInt8]] = [:]
    for name in list[..<length].split(separator: 0) {
        let key = String(decoding: name.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        var value = [UInt8](repeating: 0, count: 65_536)
        let count = clinux_getxattr(path, key, &value, value.count, 0)
        guard count >= 0 else { throw failure("read the extended attribute \(key) of", path, Int32(-count)) }
        result[key] = Array(value[..<count])
    }
    return result
}

/// Sequential reading in large pieces, always full ones until the end.
private final class ReadFile {
    private let descriptor: Int32
    private let path: String
    private var buffer = [UInt8](repeating: 0, count: 1 << 20)

    init(_ path: String) throws {
        self.path = path
        descriptor = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC)
        guard descriptor >= 0 else { throw failure("read", path) }
    }

    deinit { close(descriptor) }

    /// What takes space before `size`, in order, and what of it was written. Empty where the file system does not tell.
    func extents(size: Int) throws -> (all: [Range<Int>], written: [Range<Int>]) {
        var all: [Range<Int>] = []
        var written: [Range<Int>] = []
        var at = 0
        while at < size {
            var (start, length, isWritten) = (UInt64(0), UInt64(0), Int32(0))
            let found = clinux_next_extent(descriptor, UInt64(at), &start, &length, &isWritten)
            if found == -EOPNOTSUPP || found == -ENOTTY { return ([], []) }
            guard found >= 0 else { throw failure("ask for the extents of", path, -found) }
            guard found > 0, Int(start) < size else { break }
            let range = max(Int(start), at)..<min(Int(start + length), size)
            guard !range.isEmpty else { break }
            all.append(range)
            if isWritten != 0 { written.append(range) }
            at = range.upperBound
        }
        return (all, written)
    }

    func next() throws -> ArraySlice<UInt8> {
        var filled = 0
        while filled < buffer.count {
            let count = buffer.withUnsafeMutableBytes { read(descriptor, $0.baseAddress! + filled, $0.count - filled) }
            if count < 0 && errno == EINTR { continue }
            guard count >= 0 else { throw failure("read", path) }
            if count == 0 { break }
            filled += count
        }
        return buffer[..<filled]
    }
}
