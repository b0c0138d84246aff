import CLinux
import Format
import Glibc
import Logging

let quiet = Logger(label: "node.tests") { _ in SwiftLogNoOpLogHandler() }

/// Silent, unless LOCKSTEP_TEST_LOG is set.
func testLogger(_ node: NodeID) -> Logger {
    guard getenv("LOCKSTEP_TEST_LOG") != nil else { return quiet }
    var logger = Logger(label: "node.\(node)")
    logger.logLevel = .debug
    return logger
}

/// A directory that goes away with its owner.
final class Scratch {
    let path: String
    init() {
        var template = Array("/tmp/lockstep-node-XXXXXX".utf8CString)
        path = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
    }
    deinit { run("/bin/rm", "-rf", path) }
}

func makeDirectories(_ path: String) { run("/bin/mkdir", "-p", path) }

/// Runs a program and waits for it.
@discardableResult
func run(_ arguments: String...) -> Int32 {
    var process = pid_t()
    var argv = arguments.map { strdup($0) }
    argv.append(nil)
    defer { for argument in argv { free(argument) } }
    guard posix_spawnp(&process, arguments[0], nil, nil, argv, environ) == 0 else { return -1 }
    var status: Int32 = 0
    guard waitpid(process, &status, 0) == process else { return -1 }
    return status & 0x7F == 0 ? (status >> 8) & 0xFF : -1
}

/// Bytes that differ from place to place, the same for the same seed.
func noise(_ count: Int, _ seed: UInt64) -> [UInt8] {
    var state = seed &* 0x9E37_79B9_7F4A_7C15 | 1
    var bytes = [UInt8](repeating: 0, count: count)
    for index in bytes.indices {
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        bytes[index] = UInt8(truncatingIfNeeded: state >> 24)
    }
    return bytes
}

/// Writes into a file of the host, made if it is missing; a hole is left before `offset`.
func put(_ path: String, _ bytes: [UInt8], at offset: Int = 0) {
    let fd = open(path, O_RDWR | O_CREAT, 0o644)
    precondition(fd >= 0, "cannot open \(path)")
    precondition(bytes.withUnsafeBytes { pwrite(fd, $0.baseAddress, $0.count, off_t(offset)) } == bytes.count)
    close(fd)
}

/// Every object below `root` with everything that must be equal in both rooms, as text. Names with the same set of
/// hard links show the same smallest name.
func snapshot(_ root: String) -> [String: String] {
    var found: [String: String] = [:]
    var inodes: [UInt64: [String]] = [:]
    walk(root, "") { path, name in
        var status = stat()
        guard lstat(path, &status) == 0 else { return }
        let type = status.st_mode & S_IFMT
        var text =
            "mode \(String(status.st_mode, radix: 8)) owner \(status.st_uid):\(status.st_gid) rdev \(status.st_rdev) "
            + "mtime \(status.st_mtim.tv_sec).\(status.st_mtim.tv_nsec)"
        if type == S_IFREG { text += " size \(status.st_size) hash \(fileHash(path))" }
        if type == S_IFLNK { text += " -> \(linkTarget(path))" }
        if type != S_IFDIR { inodes[UInt64(status.st_ino), default: []].append(name) }
        text += " xattrs \(xattrs(path))"
        found[name] = text
    }
    for names in inodes.values where names.count > 1 {
        let first = names.min() ?? ""
        for name in names { found[name]? += " links \(names.count) with \(first)" }
    }
    return found
}

private func walk(_ path: String, _ name: String, _ visit: (String, String) -> Void) {
    visit(path, name)
    guard let directory = opendir(path) else { return }
    defer { closedir(directory) }
    while let entry = readdir(directory) {
        let child = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
            pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
        }
        if child == "." || child == ".." || name.isEmpty && child == ".lockstep" { continue }
        let below = "\(path)/\(child)"
        if entry.pointee.d_type == UInt8(DT_DIR) {
            walk(below, "\(name)/\(child)", visit)
        } else {
            visit(below, "\(name)/\(child)")
        }
    }
}

/// Of the content; holes and zeros are the same.
private func fileHash(_ path: String) -> String {
    let fd = open(path, O_RDONLY)
    guard fd >= 0 else { return "unreadable" }
    defer { close(fd) }
    var hash: UInt32 = 0
    let chunk = 65_536
    let zeros = [UInt8](repeating: 0, count: chunk)
    var buffer = zeros
    var position = lseek(fd, 0, CLINUX_SEEK_DATA)
    while position >= 0 {
        let start = position / chunk * chunk
        buffer = zeros
        let count = buffer.withUnsafeMutableBytes { pread(fd, $0.baseAddress, chunk, off_t(start)) }
        guard count > 0 else { break }
        if memcmp(buffer, zeros, chunk) != 0 { hash = crc32c(Array("\(start)".utf8) + buffer, continuing: hash) }
        position = lseek(fd, off_t(start + chunk), CLINUX_SEEK_DATA)
    }
    return String(hash, radix: 16)
}

private func linkTarget(_ path: String) -> String {
    var buffer = [UInt8](repeating: 0, count: 4096)
    let count = buffer.withUnsafeMutableBytes {
        readlink(path, $0.baseAddress!.assumingMemoryBound(to: CChar.self), $0.count)
    }
    return String(decoding: buffer.prefix(max(0, count)), as: UTF8.self)
}

private func xattrs(_ path: String) -> [String] {
    var list = [CChar](repeating: 0, count: 65_536)
    let length = Int(clinux_listxattr(path, &list, list.count, 0))
    guard length > 0 else { return [] }
    let names = list.prefix(length).split(separator: 0).map {
        String(decoding: $0.map(UInt8.init(bitPattern:)), as: UTF8.self)
    }
    return names.sorted().map { name in
        var value = [UInt8](repeating: 0, count: 65_536)
        let count = Int(clinux_getxattr(path, name, &value, value.count, 0))
        return "\(name)=\(value.prefix(max(0, count)).map { String($0, radix: 16) }.joined(separator: ","))"
    }
}

func setAttribute(_ path: String, _ name: String, _ value: [UInt8]) {
    precondition(clinux_setxattr(path, name, value, value.count, 0, 0) == 0)
}

/// Bytes that a file occupies.
func occupied(_ path: String) -> Int {
    var status = stat()
    guard lstat(path, &status) == 0 else { return -1 }
    return Int(status.st_blocks) * 512
}
