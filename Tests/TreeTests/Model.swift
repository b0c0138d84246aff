import Format
import Glibc

/// What a tree should be: the records, applied in memory. Obviously right rather than fast.
struct Model {
    struct Object: Equatable {
        var mode: UInt32
        var uid: UInt32
        var gid: UInt32
        var rdev: UInt32 = 0
        var atime: Int64
        /// nil: never set by a record (the root at the start).
        var mtime: Int64?
        var data: [UInt8] = []
        var target: [UInt8] = []
        var xattrs: [FileName: [UInt8]] = [:]
        var names: [FileName: FileID] = [:]
        var type: UInt32 { mode & S_IFMT }
        var isDirectory: Bool { type == S_IFDIR }
    }

    var objects: [FileID: Object] = [.root: Object(mode: S_IFDIR | 0o755, uid: 0, gid: 0, atime: 0, mtime: nil)]

    func links(of file: FileID) -> Int {
        objects.values.reduce(0) { $0 + $1.names.values.count { $0 == file } }
    }

    mutating func apply(_ record: Record, payload: [UInt8]) {
        let time = record.time
        switch record.body {
        case .epochStart, .imageStart, .imageEnd, .imageDirectory, .imageFile, .verify: break
        case .repair, .repairFile: fatalError("the generator draws none")
        case .write(let file, let offset):
            let end = Int(offset) + payload.count
            grow(file, to: end)
            objects[file]!.data.replaceSubrange(Int(offset)..<end, with: payload)
            objects[file]!.mtime = time
        case .setAttributes(let file, let mask, let attributes):
            if mask.contains(.size) {
                let size = Int(attributes.size)
                grow(file, to: size)
                objects[file]!.data.removeLast(objects[file]!.data.count - size)
                objects[file]!.mtime = time
            }
            if mask.contains(.uid) { objects[file]!.uid = attributes.uid }
            if mask.contains(.gid) { objects[file]!.gid = attributes.gid }
            if mask.contains(.mode) {
                objects[file]!.mode = objects[file]!.type | attributes.mode & 0o7777
            }
            if mask.contains(.atime) { objects[file]!.atime = attributes.atime }
            if mask.contains(.mtime) { objects[file]!.mtime = attributes.mtime }
        case .setXattr(let file, let name, let value): objects[file]!.xattrs[name] = value
        case .removeXattr(let file, let name): objects[file]!.xattrs[name] = nil
        case .allocate(let file, let mode, let offset, let length):
            let start = Int(offset)
            let end = start + Int(length)
            if mode & 1 == 0 { grow(file, to: end) }
            if mode & 0x12 != 0 {
                for index in start..<max(start, min(end, objects[file]!.data.count)) { objects[file]!.data[index] = 0 }
            }
            objects[file]!.mtime = time
        case .create(let file, let parent, let name, let attributes, let target, let xattrs):
            objects[file] = Object(
                mode: attributes.mode, uid: attributes.uid, gid: attributes.gid, rdev: attributes.rdev,
                atime: attributes.atime, mtime: attributes.mtime, target: target,
                xattrs: Dictionary(uniqueKeysWithValues: xattrs.map { ($0.name, $0.value) }))
            put(file, parent, name, time)
        case .link(let file, let parent, let name): put(file, parent, name, time)
        case .remove(let file, let parent, let name, _, let wasLast):
            put(nil, parent, name, time)
            if wasLast { objects[file] = nil }
        case .rename(let file, let parent, let name, let newParent, let newName, let exchange, let replaced, let last):
            put(exchange ? replaced : nil, parent, name, time)
            put(file, newParent, newName, time)
            if last, !exchange { objects[replaced] = nil }
        }
    }

    private mutating func grow(_ file: FileID, to size: Int) {
        let missing = size - objects[file]!.data.count
        if missing > 0 { objects[file]!.data += [UInt8](repeating: 0, count: missing) }
    }

    private mutating func put(_ file: FileID?, _ parent: FileID, _ name: FileName, _ time: Int64) {
        objects[parent]!.names[name] = file
        objects[parent]!.mtime = time
    }
}

/// A repeatable source of random numbers (SplitMix64, Steele, Lea and Flood 2014).
struct Seeded: RandomNumberGenerator {
    private var state: UInt64
    init(_ seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
        return value ^ (value >> 31)
    }
}

/// Draws records that fit the model's state, as an application would cause them.
struct Generator {
    var model = Model()
    var random: Seeded
    private var nextCounter: UInt64 = 1
    private var time: Int64 = 1_700_000_000_000_000_000
    private let epoch = Epoch(rawValue: 7)

    init(seed: UInt64) { random = Seeded(seed) }

    struct Drawn {
        var record: Record
        var payload: [UInt8]
    }

    mutating func draw(_ count: Int) -> [Drawn] {
        var drawn: [Drawn] = []
        while drawn.count < count {
            guard let (body, payload) = drawBody() else { continue }
            time += Int64.random(in: 1...3_000_000_000, using: &random)
            let record = Record(
                time: time, body: body,
                payload: body.kind == .write ? .inline(offset: 0, length: payload.count, checksum: 0) : .none)
            model.apply(record, payload: payload)
            drawn.append(Drawn(record: record, payload: payload))
        }
        return drawn
    }

    private mutating func pick(_ accept: (FileID, Model.Object) -> Bool) -> FileID? {
        model.objects.filter(accept).keys.sorted().randomElement(using: &random)
    }
    private mutating func below(_ limit: Int) -> Int { Int.random(in: 0..<limit, using: &random) }
    private mutating func name() -> FileName { Array("n\(below(7))".utf8) }

    /// A name with what it leads to.
    private mutating func entry() -> (parent: FileID, name: FileName, file: FileID)? {
        guard let parent = pick({ $1.isDirectory && !$1.names.isEmpty }) else { return nil }
        let entries = model.objects[parent]!.names.sorted { $0.key.lexicographicallyPrecedes($1.key) }
        let entry = entries.randomElement(using: &random)!
        return (parent, entry.key, entry.value)
    }

    private func isInside(_ directory: FileID, _ top: FileID) -> Bool {
        if directory == top { return true }
        let parent = model.objects.first { $0.value.isDirectory && $0.value.names.values.contains(directory) }
        return parent.map { isInside($0.key, top) } ?? false
    }

    private mutating func drawBody() -> (RecordBody, [UInt8])? {
        let choice = below(100)
        let body: RecordBody? =
            switch choice {
            case 0..<22: drawCreate()
            case 22..<30: drawRemove()
            case 30..<45: drawRename()
            case 45..<51: drawLink()
            case 51..<60: drawAttributes()
            case 60..<66: drawXattr()
            case 66..<72: drawAllocate()
            default: nil
            }
        if let body { return (body, []) }
        guard choice >= 72, let file = pick({ $1.type == S_IFREG }) else { return nil }
        let payload = (0..<(1 + below(below(4) == 0 ? 6000 : 300))).map { _ in UInt8.random(in: 1...255, using: &random)
        }
        return (.write(file: file, offset: UInt64(below(20_000))), payload)
    }

    private mutating func drawCreate() -> RecordBody? {
        guard let parent = pick({ $1.isDirectory }) else { return nil }
        let name = name()
        guard model.objects[parent]!.names[name] == nil else { return nil }
        let types: [UInt32] = [
            S_IFREG, S_IFREG, S_IFREG, S_IFREG, S_IFDIR, S_IFDIR, S_IFDIR, S_IFLNK, S_IFIFO, S_IFCHR,
        ]
        let type = types.randomElement(using: &random)!
        let file = FileID(epoch: epoch, counter: nextCounter)
        nextCounter += 1
        let attributes = FileAttributes(
            mode: type | (type == S_IFLNK ? 0o777 : UInt32(below(0o10000))), uid: UInt32(below(3) * 1000),
            gid: UInt32(below(3) * 100), rdev: type == S_IFCHR ? UInt32(0x1_03 + below(5)) : 0,
            atime: time + 17, mtime: time + 42)
        let isXattrHolder = type == S_IFREG || type == S_IFDIR
        return .create(
            file: file, parent: parent, name: name, attributes: attributes,
            target: type == S_IFLNK ? Array("../somewhere/\(below(100))".utf8) : [],
            xattrs: isXattrHolder && below(3) == 0
                ? [ExtendedAttribute(name: Array("user.first".utf8), value: [1, 2, 3])] : [])
    }

    private mutating func drawRemove() -> RecordBody? {
        guard let entry = entry(), let object = model.objects[entry.file], object.names.isEmpty else { return nil }
        return .remove(
            file: entry.file, parent: entry.parent, name: entry.name, isDirectory: object.isDirectory,
            wasLast: model.links(of: entry.file) == 1)
    }

    private mutating func drawRename() -> RecordBody? {
        guard let entry = entry(), let newParent = pick({ $1.isDirectory }) else { return nil }
        let object = model.objects[entry.file]!
        let newName = name()
        guard !object.isDirectory || !isInside(newParent, entry.file) else { return nil }
        let there = model.objects[newParent]!.names[newName]
        let exchange = there != nil && below(2) == 0
        if let there {
            let other = model.objects[there]!
            guard there != entry.file else { return nil }
            if exchange {
                guard !other.isDirectory || !isInside(entry.parent, there) else { return nil }
            } else {
                guard object.isDirectory == other.isDirectory, other.names.isEmpty else { return nil }
                guard !other.isDirectory || entry.parent != there else { return nil }
            }
        }
        return .rename(
            file: entry.file, parent: entry.parent, name: entry.name, newParent: newParent, newName: newName,
            exchange: exchange, replaced: there ?? .none,
            replacedWasLast: !exchange && there.map { model.links(of: $0) == 1 } ?? false)
    }

    private mutating func drawLink() -> RecordBody? {
        guard let file = pick({ !$1.isDirectory }), let parent = pick({ $1.isDirectory }) else { return nil }
        let name = name()
        guard model.objects[parent]!.names[name] == nil else { return nil }
        return .link(file: file, parent: parent, name: name)
    }

    private mutating func drawAttributes() -> RecordBody? {
        guard let file = pick({ $1.type != S_IFLNK && $0 != .root }) else { return nil }
        let object = model.objects[file]!
        let changes: [AttributeMask] = [
            .mode, [.uid, .mode], [.gid, .uid, .mode], [.mtime, .atime], .mtime, .size, [.size, .mtime],
        ]
        let mask = changes.randomElement(using: &random)!
        if mask.contains(.size), object.type != S_IFREG { return nil }
        return .setAttributes(
            file: file, mask: mask,
            attributes: FileAttributes(
                mode: UInt32(below(0o10000)), uid: UInt32(below(5)), gid: UInt32(below(5)),
                size: UInt64(below(3) == 0 ? 0 : below(25_000)), atime: time + 5, mtime: time + 99))
    }

    private mutating func drawXattr() -> RecordBody? {
        guard let file = pick({ $1.type == S_IFREG || $1.isDirectory && $0 != .root }) else { return nil }
        let name: FileName = Array(["user.first", "user.second", "trusted.third"][below(3)].utf8)
        if below(3) == 0 { return .removeXattr(file: file, name: name) }
        return .setXattr(file: file, name: name, value: (0..<below(60)).map { UInt8($0) })
    }

    private mutating func drawAllocate() -> RecordBody? {
        guard let file = pick({ $1.type == S_IFREG }) else { return nil }
        // Plain, keep size, punch hole, zero range, zero range keeping the size.
        let mode: UInt32 = [0, 1, 3, 16, 17][below(5)]
        return .allocate(file: file, mode: mode, offset: UInt64(below(20_000)), length: UInt64(1 + below(9000)))
    }
}
