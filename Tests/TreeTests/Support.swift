import CLinux
import Format
import Glibc
import Logging
import Testing

@testable import Tree

/// A directory that goes away with its owner.
final class Scratch {
    let path: String
    private var disk: LoopMount?

    /// - Parameter ext4: a file system of its own in memory, for tests that sync often; needs root and loop devices.
    init?(ext4: Bool) {
        guard let disk = LoopMount("ext4") else { return nil }
        self.disk = disk
        path = disk.path
    }

    init() {
        var template = Array("/tmp/lockstep-tree-XXXXXX".utf8CString)
        path = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
        make("backing")
        make("state")
    }
    func make(_ name: String) { precondition(mkdir("\(path)/\(name)", 0o755) == 0) }
    deinit { if disk == nil { removeAll(path) } }
}

func removeAll(_ path: String) { run("/bin/rm", "-rf", path) }

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

let quiet = Logger(label: "tree", factory: { _ in SwiftLogNoOpLogHandler() })

func openTree(_ scratch: Scratch, _ opening: PlainTree.Opening = .create) throws -> PlainTree {
    try PlainTree(
        backing: "\(scratch.path)/backing", state: "\(scratch.path)/state", opening: opening, descriptorLimit: 16,
        logger: quiet)
}

extension PlainTree {
    func apply(_ drawn: Generator.Drawn, role: ApplyRole = .secondary) throws {
        try drawn.payload.withUnsafeBytes { try apply(drawn.record, payload: $0, role: role) }
    }
    func apply(_ body: RecordBody, time: Int64 = 1_700_000_000_000_000_000, isImage: Bool = false) throws {
        try apply(
            Record(time: time, body: body, isImage: isImage), payload: UnsafeRawBufferPointer(start: nil, count: 0),
            role: .behind)
    }
    func write(_ file: FileID, _ bytes: [UInt8], at offset: UInt64 = 0, isImage: Bool = false) throws {
        let record = Record(
            time: 1_700_000_000_000_000_000, body: .write(file: file, offset: offset),
            payload: .inline(offset: 0, length: bytes.count, checksum: 0), isImage: isImage)
        try bytes.withUnsafeBytes { try apply(record, payload: $0, role: .behind) }
    }
    func contents(_ file: FileID) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Int(try status(of: file).attributes.size))
        let count = try bytes.withUnsafeMutableBytes { try read(file, at: 0, into: $0) }
        #expect(count == bytes.count)
        return bytes
    }
}

/// Names, numbers, contents, modes, owners, times and extended attributes are those of the model.
func expectSame(_ tree: PlainTree, _ model: Model, sourceLocation: SourceLocation = #_sourceLocation) throws {
    let found = try differences(tree, model)
    #expect(found.isEmpty, "\(found.prefix(8).joined(separator: "\n"))", sourceLocation: sourceLocation)
}

/// Everything that differs between a tree and what it should be; empty when they are the same.
func differences(_ tree: PlainTree, _ model: Model) throws -> [String] {
    var found: [String] = []
    var seen: Set<FileID> = []
    var waiting: [(FileID, String)] = [(.root, "")]
    while let (directory, path) = waiting.popLast() {
        let wanted = model.objects[directory]?.names ?? [:]
        var names: [FileName: FileID] = [:]
        for entry in try tree.readDirectory(directory, from: 0, limit: 1000, withStatus: false) {
            if entry.name.first == UInt8(ascii: ".") { continue }
            names[entry.name] = entry.file
        }
        for (name, file) in names where wanted[name] != file {
            found.append(
                "\(path)/\(String(decoding: name, as: UTF8.self)) is \(file), not \(wanted[name]?.description ?? "nothing")"
            )
        }
        for (name, file) in wanted where names[name] == nil {
            found.append("\(path)/\(String(decoding: name, as: UTF8.self)) is missing, should be \(file)")
        }
        for (name, file) in names where wanted[name] == file && seen.insert(file).inserted {
            let place = "\(path)/\(String(decoding: name, as: UTF8.self))"
            found += try compare(tree, file, model.objects[file]!, links: model.links(of: file), place)
            if model.objects[file]!.isDirectory { waiting.append((file, place)) }
        }
    }
    if let mtime = model.objects[.root]!.mtime {
        let mtimeNow = try tree.status(of: .root).attributes.mtime
        if mtimeNow != mtime { found.append("/: mtime \(mtimeNow), not \(mtime)") }
    }
    return found
}

private func compare(
    _ tree: PlainTree, _ file: FileID, _ object: Model.Object, links: Int, _ place: String
) throws -> [String] {
    var found: [String] = []
    func check<Value: Equatable>(_ what: String, _ value: Value, _ wanted: Value) {
        if value != wanted { found.append("\(place) (\(file)): \(what) is \(value), not \(wanted)") }
    }
    let status = try tree.status(of: file)
    let attributes = status.attributes
    check("mode", String(attributes.mode, radix: 8), String(object.mode, radix: 8))
    check("uid", attributes.uid, object.uid)
    check("gid", attributes.gid, object.gid)
    check("mtime", attributes.mtime, object.mtime)
    // Access times of reading are not replicated: the kernel sets them when a link's target is read, and when it looks
    // through a directory for the name of one whose handle is opened.
    if object.type != S_IFLNK, !object.isDirectory { check("atime", attributes.atime, object.atime) }
    if object.type == S_IFCHR { check("rdev", attributes.rdev, object.rdev) }
    if !object.isDirectory { check("links", Int(status.links), links) }
    if object.type == S_IFLNK { check("target", try tree.readLink(file), object.target) }
    if object.type == S_IFREG, attributes.mode & S_IFMT == S_IFREG {
        let data = try tree.contents(file)
        check("size", data.count, object.data.count)
        if data.count == object.data.count, let first = data.indices.first(where: { data[$0] != object.data[$0] }) {
            found.append("\(place) (\(file)): byte \(first) is \(data[first]), not \(object.data[first])")
        }
    }
    var xattrs: [FileName: [UInt8]] = [:]
    for name in try tree.xattrNames(of: file) { xattrs[name] = try tree.xattr(of: file, name: name) }
    check("xattrs", xattrs, object.xattrs)
    return found
}
