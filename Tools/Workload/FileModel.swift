//  A directory as a value: what a writer's directory must look like after each of its operations, and what one that was
//  read looks like. Small files only: all of it is in memory.
//
//  Modelled: names, types, modes, owners, contents, targets, extended attributes, and which names are one file. Times and
//  holes are not: for those the two rooms are compared with each other.
import Foundation

public struct FileModel: Codable, Sendable {
    public enum Kind: String, Codable, Sendable { case file, directory, symlink, node }
    public struct Object: Codable, Sendable {
        public var kind: Kind
        /// Permission bits, with those for set-user-id, set-group-id and sticky.
        public var mode: UInt32
        public var user: UInt32 = 0
        public var group: UInt32 = 0
        public var attributes: [String: Data] = [:]
        public var content = Data()
        public var entries: [String: Int] = [:]
        /// Of a symbolic link; of a node its kind.
        public var target = ""
        public init(_ kind: Kind, mode: UInt32) {
            self.kind = kind
            self.mode = mode
        }
    }

    public internal(set) var objects: [Int: Object] = [0: Object(.directory, mode: 0o755)]
    var next = 1
    public static let root = 0

    public init() {}

    // MARK: Looking

    /// The number of what a path leads to; symbolic links are not followed.
    public func find(_ path: String) -> Int? {
        if path == "." { return FileModel.root }
        var at = FileModel.root
        for part in path.split(separator: "/") {
            guard let found = objects[at]?.entries[String(part)] else { return nil }
            at = found
        }
        return at
    }

    /// Every path, parents first, in order.
    public func paths() -> [(path: String, number: Int)] {
        var result: [(path: String, number: Int)] = []
        func walk(_ number: Int, _ prefix: String) {
            for (name, child) in (objects[number]?.entries ?? [:]).sorted(by: { $0.key < $1.key }) {
                result.append((prefix + name, child))
                if objects[child]?.kind == .directory { walk(child, prefix + name + "/") }
            }
        }
        walk(FileModel.root, "")
        return result
    }

    // MARK: Changing

    mutating func add(_ object: Object, at path: String) -> Int? {
        guard let (parent, name) = place(path), objects[parent]?.entries[name] == nil else { return nil }
        let number = next
        next += 1
        objects[number] = object
        objects[parent]?.entries[name] = number
        return number
    }

    mutating func addName(_ path: String, to number: Int) {
        guard let (parent, name) = place(path) else { return }
        objects[parent]?.entries[name] = number
    }

    private func place(_ path: String) -> (parent: Int, name: String)? {
        guard let slash = path.lastIndex(of: "/") else { return (FileModel.root, path) }
        guard let parent = find(String(path[..<slash])) else { return nil }
        return (parent, String(path[path.index(after: slash)...]))
    }

    /// Forgets objects that have no name any more.
    private mutating func drop(_ number: Int) {
        if !objects.values.contains(where: { $0.entries.values.contains(number) }) { objects[number] = nil }
    }

    /// What the operation does, when it succeeded with `result` (for writes: the bytes written).
    public mutating func apply(_ operation: FileOperation, result: Int) {
        guard result >= 0 else { return }
        let number = find(operation.path)
        switch operation.kind {
        case .create: make(Object(.file, mode: UInt32(operation.value)), at: operation.path)
        case .makeDirectory: make(Object(.directory, mode: UInt32(operation.value)), at: operation.path)
        case .symlink:
            var object = Object(.symlink, mode: 0o777)
            object.target = operation.other
            make(object, at: operation.path)
        case .makeNode:
            var object = Object(.node, mode: UInt32(operation.value))
            object.target = operation.other
            make(object, at: operation.path)
        case .write, .append, .mapWrite:
            guard let number else { return }
            put(patternBytes(operation.pattern, at: operation.offset, count: result), at: operation.offset, of: number)
        case .zero, .punch: wipe(operation, number)
        case .truncate: if let number { resize(number, to: operation.length) }
        case .allocate:
            guard let number, operation.value == 0, let size = objects[number]?.content.count else { return }
            resize(number, to: max(size, operation.offset + operation.length))
        case .link: if let number { addName(operation.other, to: number) }
        case .unlink, .unlinkOpen, .removeDirectory:
            guard let number, let (parent, name) = place(operation.path) else { return }
            objects[parent]?.entries[name] = nil
            drop(number)
        case .rename, .exchange: move(operation)
        case .mode: if let number { objects[number]?.mode = UInt32(operation.value) }
        case .owner: if let number { own(number, UInt32(operation.value), UInt32(operation.length)) }
        case .setAttribute:
            let bytes = patternBytes(operation.pattern, at: 0, count: operation.length)
            if let number { objects[number]?.attributes[operation.other] = Data(bytes) }
        case .removeAttribute: if let number { objects[number]?.attributes[operation.other] = nil }
        case .times, .fsync, .fdatasync, .syncDirectory: break
        }
    }

    /// In a directory with set-group-id, what is made belongs to its group, and a directory gets that bit too.
    private mutating func make(_ object: Object, at path: String) {
        var object = object
        if let parent = place(path).flatMap({ objects[$0.parent] }), parent.mode & FileModel.setGroup != 0 {
            object.group = parent.group
            if object.kind == .directory { object.mode |= FileModel.setGroup }
        }
        _ = add(object, at: path)
    }

    /// A file that gets an owner runs as nobody else any more.
    private mutating func own(_ number: Int, _ user: UInt32, _ group: UInt32) {
        guard var object = objects[number] else { return }
        (object.user, object.group) = (user, group)
        if object.kind != .directory {
            object.mode &= ~FileModel.setUser
            if object.mode & 0o010 != 0 { object.mode &= ~FileModel.setGroup }
        }
        objects[number] = object
    }

    private static let setUser: UInt32 = 0o4000
    private static let setGroup: UInt32 = 0o2000

    private mutating func put(_ bytes: [UInt8], at offset: Int, of number: Int) {
        guard !bytes.isEmpty, let size = objects[number]?.content.count else { return }
        if size < offset + bytes.count { resize(number, to: offset + bytes.count) }
        objects[number]?.content.replaceSubrange(offset..<offset + bytes.count, with: bytes)
    }

    private mutating func resize(_ number: Int, to size: Int) {
        guard let old = objects[number]?.content.count else { return }
        if size < old {
            objects[number]?.content.removeLast(old - size)
        } else {
            objects[number]?.content.append(Data(count: size - old))
        }
    }

    /// Zeros; behind the end only when the size is not kept.
    private mutating func wipe(_ operation: FileOperation, _ number: Int?) {
        guard let number, let size = objects[number]?.content.count else { return }
        let end = operation.offset + operation.length
        if operation.kind == .zero, operation.value == 0, end > size { resize(number, to: end) }
        let upper = min(end, objects[number]?.content.count ?? 0)
        guard operation.offset < upper else { return }
        objects[number]?.content.resetBytes(in: operation.offset..<upper)
    }

    private mutating func move(_ operation: FileOperation) {
        guard let moved = find(operation.path), let from = place(operation.path), let to = place(operation.other)
        else { return }
        let there = objects[to.parent]?.entries[to.name]
        // Two names of one file: rename does nothing.
        guard there != moved else { return }
        objects[to.parent]?.entries[to.name] = moved
        if operation.kind == .exchange {
            objects[from.parent]?.entries[from.name] = there
        } else {
            objects[from.parent]?.entries[from.name] = nil
            if let there { drop(there) }
        }
    }
}
