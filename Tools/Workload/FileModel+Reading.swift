//  A model read from a directory: through the mirror by a writer that begins, from the plain files by the judge.
import CLinux
import Foundation

/// A file operation failed.
public struct WorkloadError: Error, CustomStringConvertible {
    public let description: String
    /// A positive errno, or 0.
    public let number: Int32
    public init(_ what: String, _ path: String, _ number: Int32) {
        self.number = number
        description = "cannot \(what) \(path): \(String(cString: strerror(number)))"
    }
}

extension FileModel {
    /// Reads everything in a directory.
    ///
    /// - Parameter direct: past the page cache, so that it is what the mirror has and not what this kernel remembers.
    public init(reading directory: String, direct: Bool) throws {
        self.init()
        var known: [UInt64: Int] = [:]
        var top = Object(.directory, mode: 0)
        try FileModel.fill(&top, directory, try status(directory), direct: direct)
        objects[FileModel.root] = top
        try read(directory, "", direct: direct, known: &known)
    }

    private mutating func read(
        _ directory: String, _ prefix: String, direct: Bool, known: inout [UInt64: Int]
    ) throws {
        for name in try names(in: directory) {
            let path = directory + "/" + name
            let information = try status(path)
            if let number = known[information.inode] {
                addName(prefix + name, to: number)
                continue
            }
            let kind: Kind
            switch mode_t(information.mode) & S_IFMT {
            case S_IFREG: kind = .file
            case S_IFDIR: kind = .directory
            case S_IFLNK: kind = .symlink
            case S_IFIFO, S_IFCHR: kind = .node
            default: throw WorkloadError("understand the type of", path, 0)
            }
            var object = Object(kind, mode: 0)
            try FileModel.fill(&object, path, information, direct: direct)
            guard let number = add(object, at: prefix + name) else { throw WorkloadError("place", path, 0) }
            if kind == .directory {
                try read(path, prefix + name + "/", direct: direct, known: &known)
            } else {
                known[information.inode] = number
            }
        }
    }

    private static func fill(
        _ object: inout Object, _ path: String, _ information: clinux_stat, direct: Bool
    ) throws {
        object.mode = information.mode & 0o7777
        (object.user, object.group) = (information.user, information.group)
        // A node has none, and is not opened.
        if object.kind != .node { object.attributes = try attributes(path) }
        switch object.kind {
        case .file: object.content = try content(path, size: Int(information.size), direct: direct)
        case .symlink: object.target = try linkTarget(path)
        case .node:
            let kind: FileOperation.NodeKind = mode_t(information.mode) & S_IFMT == S_IFIFO ? .pipe : .device
            object.target = kind.rawValue
        case .directory: break
        }
    }
}

private func status(_ path: String) throws -> clinux_stat {
    var result = clinux_stat()
    let error = clinux_statx(CLINUX_AT_FDCWD, path, CLINUX_AT_SYMLINK_NOFOLLOW, &result)
    guard error == 0 else { throw WorkloadError("look at", path, -error) }
    return result
}

/// The names in a directory, sorted, without Lockstep's own.
private func names(in path: String) throws -> [String] {
    guard let stream = opendir(path) else { throw WorkloadError("list", path, errno) }
    defer { closedir(stream) }
    var result: [String] = []
    while true {
        errno = 0
        guard let entry = readdir(stream) else {
            guard errno == 0 else { throw WorkloadError("list", path, errno) }
            break
        }
        let name = withUnsafePointer(to: &entry.pointee.d_name) {
            $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
        }
        if name != "." && name != ".." && name != ".lockstep" { result.append(name) }
    }
    return result.sorted()
}

private func linkTarget(_ path: String) throws -> String {
    var buffer = [UInt8](repeating: 0, count: 4097)
    let count = buffer.withUnsafeMutableBytes { readlink(path, $0.baseAddress!, $0.count) }
    guard count >= 0 else { throw WorkloadError("read the link", path, errno) }
    return String(decoding: buffer[..<count], as: UTF8.self)
}

private func attributes(_ path: String) throws -> [String: Data] {
    var list = [CChar](repeating: 0, count: 65_536)
    let length = clinux_listxattr(path, &list, list.count, 0)
    guard length >= 0 else {
        if length == -Int(ENOTSUP) { return [:] }
        throw WorkloadError("list the attributes of", path, Int32(-length))
    }
    var result: [String: Data] = [:]
    for name in list[..<length].split(separator: 0) {
        let key = String(decoding: name.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        if key.hasPrefix("trusted.lockstep.") { continue }
        var value = [UInt8](repeating: 0, count: 65_536)
        let count = clinux_getxattr(path, key, &value, value.count, 0)
        guard count >= 0 else { throw WorkloadError("read an attribute of", path, Int32(-count)) }
        result[key] = Data(value[..<count])
    }
    return result
}

private func content(_ path: String, size: Int, direct: Bool) throws -> Data {
    let descriptor = clinux_open(path, O_RDONLY | CLINUX_O_NOFOLLOW | (direct ? CLINUX_O_DIRECT : 0), 0)
    guard descriptor >= 0 else { throw WorkloadError("open", path, -descriptor) }
    defer { _ = clinux_close(descriptor) }
    let capacity = max(size + 4095, 4096) / 4096 * 4096
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: capacity, alignment: 4096)
    defer { buffer.deallocate() }
    var filled = 0
    while filled < size {
        let count = clinux_pread(descriptor, buffer + filled, capacity - filled, UInt64(filled))
        if count == -Int(EINTR) { continue }
        guard count > 0 else { throw WorkloadError("read", path, Int32(-count)) }
        filled += count
    }
    return Data(bytes: buffer, count: size)
}
