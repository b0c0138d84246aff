import Format
import Testing

@testable import Replication

/// SplitMix64: the same numbers for the same seed.
struct Seeded: RandomNumberGenerator {
    var state: UInt64
    init(_ seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
        return value ^ (value >> 31)
    }
}

private let regular: UInt32 = 0o100_644
private let directory: UInt32 = 0o040_755

/// Files in units of 1 KiB, each with the number of the record that wrote it; 0 is a hole. Attributes are one number.
private struct TinyTree: Equatable {
    struct Object: Equatable {
        var isDirectory = false
        var units: [UInt64] = []
        var attributes: UInt64 = 0
        var names: [FileName: FileID] = [:]
    }
    var objects: [FileID: Object] = [.root: Object(isDirectory: true)]

    mutating func apply(_ body: RecordBody, length: Int, seq: UInt64) {
        switch body {
        case .write(let file, let offset):
            guard objects[file] != nil else { return }
            let first = Int(offset / 1024)
            let end = first + length / 1024
            if objects[file]!.units.count < end {
                objects[file]!.units += [UInt64](repeating: 0, count: end - objects[file]!.units.count)
            }
            for unit in first..<end { objects[file]!.units[unit] = seq }
        case .allocate(let file, _, let offset, let length):
            guard objects[file] != nil else { return }
            for unit in Int(offset / 1024)..<Int((offset + length) / 1024) where unit < objects[file]!.units.count {
                objects[file]!.units[unit] = 0
            }
        case .setAttributes(let file, let mask, let attributes):
            guard objects[file] != nil else { return }
            if mask.contains(.size) { resize(file, Int(attributes.size / 1024)) }
            objects[file]!.attributes = seq
        case .setXattr(let file, _, _): objects[file]?.attributes = seq
        case .create(let file, let parent, let name, let attributes, _, _):
            objects[file] = Object(isDirectory: attributes.mode == directory, attributes: seq)
            objects[parent]!.names[name] = file
        case .link(let file, let parent, let name): objects[parent]!.names[name] = file
        case .remove(let file, let parent, let name, _, let wasLast):
            objects[parent]!.names[name] = nil
            if wasLast { objects[file] = nil }
        case .rename(let file, let parent, let name, let newParent, let newName, _, let replaced, let wasLast):
            objects[parent]!.names[name] = nil
            objects[newParent]!.names[newName] = file
            if wasLast { objects[replaced] = nil }
        default: return
        }
    }

    mutating func resize(_ file: FileID, _ units: Int) {
        let now = objects[file]!.units.count
        if units < now {
            objects[file]!.units.removeLast(now - units)
        } else {
            objects[file]!.units += [UInt64](repeating: 0, count: units - now)
        }
    }

    /// What a resynchronisation does with the map: names and objects, sizes, ranges, attributes.
    mutating func take(_ map: DirtyMap, from source: TinyTree, step: UInt64) {
        for file in map.files {
            guard let changes = map.changes(of: file), let there = source.objects[file] else { continue }
            if changes.isCreated, objects[file] == nil { objects[file] = Object(isDirectory: there.isDirectory) }
            if changes.hasNames, there.isDirectory { objects[file]!.names = there.names }
            if changes.hasContent, !there.isDirectory {
                resize(file, there.units.count)
                var position: UInt64 = 0
                let size = UInt64(there.units.count) * 1024
                while let range = map.range(of: file, from: position, size: size, limit: step) {
                    #expect(range.lowerBound >= position && range.upperBound <= size && !range.isEmpty)
                    for unit in Int(range.lowerBound / 1024)..<Int((range.upperBound + 1023) / 1024) {
                        objects[file]!.units[unit] = there.units[unit]
                    }
                    position = range.upperBound
                }
            }
            if changes.hasAttributes || changes.hasNames { objects[file]!.attributes = there.attributes }
        }
        // Objects whose last name went.
        for file in Array(objects.keys) where source.objects[file] == nil { objects[file] = nil }
    }
}

/// Random changes, in whole KiB.
private struct Changes {
    var random: Seeded
    var tree = TinyTree()
    private var counter: UInt64 = 1
    private var seq: UInt64 = 0
    var map: DirtyMap

    init(seed: UInt64, map: DirtyMap) {
        random = Seeded(seed)
        self.map = map
    }

    mutating func run(_ count: Int) {
        for _ in 0..<count {
            seq += 1
            let (body, length) = draw()
            tree.apply(body, length: length, seq: seq)
            map.note(body, length: length)
        }
    }

    private mutating func draw() -> (RecordBody, Int) {
        let files = tree.objects.keys.filter { !tree.objects[$0]!.isDirectory }.sorted()
        let directories = tree.objects.keys.filter { tree.objects[$0]!.isDirectory }.sorted()
        let parent = directories.randomElement(using: &random)!
        let names = tree.objects[parent]!.names
        let chosen = names.keys.sorted { $0.lexicographicallyPrecedes($1) }.randomElement(using: &random)
        guard let file = files.randomElement(using: &random), Int.random(in: 0..<10, using: &random) > 0 else {
            counter += 1
            let isDirectory = Int.random(in: 0..<5, using: &random) == 0
            return (
                .create(
                    file: FileID(rawValue: counter), parent: parent, name: Array("\(counter)".utf8),
                    attributes: FileAttributes(mode: isDirectory ? directory : regular, uid: 0, gid: 0), target: [],
                    xattrs: []), 0
            )
        }
        let unit = UInt64.random(in: 0..<600, using: &random)
        let count = UInt64.random(in: 1...20, using: &random)
        switch Int.random(in: 0..<12, using: &random) {
        case 0:
            return (
                .setAttributes(
                    file: file, mask: .size, attributes: FileAttributes(mode: 0, uid: 0, gid: 0, size: unit * 1024)), 0
            )
        case 1: return (.allocate(file: file, mode: 3, offset: unit * 1024, length: count * 1024), 0)
        case 2: return (.setXattr(file: file, name: [1], value: []), 0)
        case 3:
            guard let chosen, let moved = names[chosen], !tree.objects[moved]!.isDirectory else { break }
            counter += 1
            return (
                .rename(
                    file: moved, parent: parent, name: chosen, newParent: directories.randomElement(using: &random)!,
                    newName: Array("\(counter)".utf8), exchange: false, replaced: .none, replacedWasLast: false), 0
            )
        case 4:
            guard let chosen, let gone = names[chosen], !tree.objects[gone]!.isDirectory else { break }
            return (.remove(file: gone, parent: parent, name: chosen, isDirectory: false, wasLast: true), 0)
        default: break
        }
        return (.write(file: file, offset: unit * 1024), Int(count) * 1024)
    }
}

@Suite struct DirtyMapTests {
    /// Whatever happened, in whatever budget: what the map names is enough to make an old copy equal.
    @Test(arguments: 1...24)
    func whatItNamesMakesAnOldCopyEqual(seed: UInt64) throws {
        // From exact to "compare everything".
        let budget = [1 << 20, 60_000, 20_000, 8_000, 3_000, 600][Int(seed % 6)]
        var changes = Changes(seed: seed, map: DirtyMap())
        changes.run(300)
        var old = changes.tree
        changes.map = DirtyMap(budgetBytes: budget)
        for _ in 0..<8 {
            changes.run(150)
            #expect(changes.map.byteCount <= budget)
        }
        guard !changes.map.isEverything else { return #expect(budget < 8_000) }
        old.take(changes.map, from: changes.tree, step: 16_384)
        let isEqual = old == changes.tree
        #expect(isEqual)
        // The same through its bytes.
        var reader = ByteReader(changes.map.encoded())
        let again = try DirtyMap(decoding: &reader, budgetBytes: budget)
        try reader.finish()
        #expect(again.encoded() == changes.map.encoded(), "the same through its bytes")
    }

    /// Two maps of two stretches of the order together name what one over both would.
    @Test(arguments: 1...12)
    func theUnionOfTwoStretchesIsEnough(seed: UInt64) {
        var changes = Changes(seed: seed &+ 100, map: DirtyMap())
        changes.run(300)
        var old = changes.tree
        let budget = seed % 3 == 0 ? 12_000 : 1 << 20
        changes.map = DirtyMap(budgetBytes: budget)
        changes.run(300)
        var first = changes.map
        changes.map = DirtyMap(budgetBytes: seed % 2 == 0 ? 9_000 : 1 << 20)
        changes.run(300)
        first.formUnion(changes.map)
        #expect(first.byteCount <= budget)
        guard !first.isEverything else { return }
        old.take(first, from: changes.tree, step: 65_536)
        let isEqual = old == changes.tree
        #expect(isEqual)
    }

    /// Below the budget the extents are exact to 4 KiB.
    @Test(arguments: 1...6)
    func extentsAreExactBelowTheBudget(seed: UInt64) {
        var random = Seeded(seed)
        var map = DirtyMap()
        let file = FileID(rawValue: 77)
        var granules: Set<UInt64> = []
        for _ in 0..<4_000 {
            let offset = UInt64.random(in: 0..<(4 << 30), using: &random)
            let length = UInt64.random(in: 1...50_000, using: &random)
            map.note(.write(file: file, offset: offset), length: Int(length))
            for granule in offset / 4096...(offset + length - 1) / 4096 { granules.insert(granule) }
        }
        var found: Set<UInt64> = []
        var position: UInt64 = 0
        while let range = map.range(of: file, from: position, size: 5 << 30, limit: 1 << 20) {
            for granule in range.lowerBound / 4096..<(range.upperBound + 4095) / 4096 { found.insert(granule) }
            position = range.upperBound
        }
        #expect(found == granules)
        #expect(map.changedBytes(of: file, size: 5 << 30) == UInt64(granules.count) * 4096)
        #expect(map.granuleBytes == 4096)
    }

    /// Ten million extents in less than 64 MiB: in one database, over many files, and as new files.
    @Test func tenMillionExtentsFitIntoTheBudget() {
        let file = FileID(rawValue: 9)
        var random = Seeded(4)
        var map = DirtyMap()
        // Ascending, so that a debug build is done in seconds; the order changes nothing of what is kept.
        var offset: UInt64 = 0
        for _ in 0..<10_000_000 {
            offset += 4096 * UInt64.random(in: 1...52, using: &random)
            map.note(.write(file: file, offset: offset), length: 4096)
        }
        #expect(map.byteCount < 64 << 20, "\(map.byteCount) bytes")
        #expect(map.granuleBytes == 4096, "exact, over \(offset >> 30) GiB")
        #expect(map.changedBytes(of: file, size: offset + 4096) == 10_000_000 * 4096)
        var position: UInt64 = 0
        for _ in 0..<1000 {
            guard let range = map.range(of: file, from: position, size: .max, limit: 1 << 20) else { break }
            #expect(range.count <= 64 << 10 || range.count.isMultiple(of: 4096))
            position = range.upperBound
        }
    }

    /// A tenth of it in a tenth of the budget: ten million take a debug build a minute.
    @Test func manyExtentsOverManyFilesFitIntoTheBudget() {
        var random = Seeded(5)
        let budget = DirtyMap.defaultBudgetBytes / 10
        var map = DirtyMap(budgetBytes: budget)
        for number in 0..<100_000 {
            let file = FileID(rawValue: UInt64(number) + 100)
            for _ in 0..<10 {
                map.note(
                    .write(file: file, offset: UInt64.random(in: 0..<65_536, using: &random) * 4096), length: 4096)
            }
        }
        #expect(map.byteCount < budget, "\(map.byteCount) bytes")
        #expect(!map.isEverything)
        #expect(map.files.count == 100_000, "no file is forgotten")
    }

    @Test func manyNewFilesBecomeWholesAndStayKnownAsNew() throws {
        var map = DirtyMap(budgetBytes: 1 << 20)
        for number in 0..<100_000 {
            map.note(
                .create(
                    file: FileID(rawValue: UInt64(number) + 100), parent: .root, name: [1],
                    attributes: FileAttributes(mode: regular, uid: 0, gid: 0), target: [], xattrs: []))
        }
        #expect(map.byteCount <= 1 << 20 && !map.isEverything)
        #expect(map.created.count == 100_000)
        let changes = try #require(map.changes(of: FileID(rawValue: 500)))
        #expect(changes.isCreated && changes.hasContent)
        map.note(.remove(file: FileID(rawValue: 500), parent: .root, name: [1], isDirectory: false, wasLast: true))
        #expect(map.changes(of: FileID(rawValue: 500)) == nil)
        #expect(map.changes(of: .root)?.hasNames == true)
    }

    @Test func hugeRangesCostNothing() {
        var map = DirtyMap()
        let file = FileID(rawValue: 5)
        map.note(.allocate(file: file, mode: 3, offset: 1 << 62, length: 1 << 62))
        map.note(.allocate(file: file, mode: 3, offset: 1 << 30, length: UInt64.max))
        map.note(.write(file: file, offset: .max - 10), length: 10)
        map.note(.allocate(file: file, mode: 3, offset: 0, length: 4 << 40))
        #expect(map.byteCount < 4 << 20)
        #expect(map.range(of: file, from: 1 << 40, size: 1 << 50, limit: 1 << 20) != nil)
    }

    /// What the other node has on its disk is taken out piece by piece; the rest stays.
    @Test func whatIsDoneIsTakenOut() {
        var map = DirtyMap()
        let file = FileID(rawValue: 5)
        for index in 0..<100 { map.note(.write(file: file, offset: UInt64(index) * 65_536), length: 8192) }
        map.note(
            .setAttributes(
                file: file, mask: .size, attributes: FileAttributes(mode: 0, uid: 0, gid: 0, size: 90 * 65_536)))
        let size: UInt64 = 100 * 65_536
        let before = map.changedBytes(of: file, size: size)
        #expect(before == 90 * 8192 + 10 * 65_536)
        var position: UInt64 = 0
        var taken: UInt64 = 0
        while let range = map.range(of: file, from: position, size: size, limit: 32_768) {
            map.forgetContent(of: file, range)
            taken += UInt64(range.count)
            #expect(map.changedBytes(of: file, size: size) == before - taken)
            position = range.upperBound
        }
        #expect(taken == before)
        #expect(map.changes(of: file)?.hasAttributes == true)
        map.forgetObject(file)
        #expect(map.isEmpty)
    }

    @Test func failure37DamageInItsBytesIsFoundOrHarmless() throws {
        var changes = Changes(seed: 3, map: DirtyMap())
        changes.run(600)
        for number in 0..<3000 {
            changes.map.note(.write(file: FileID(rawValue: 2), offset: UInt64(number) * 8192), length: 4096)
        }
        let bytes = changes.map.encoded()
        var random = Seeded(8)
        for _ in 0..<300 {
            var damaged = bytes
            switch Int.random(in: 0..<3, using: &random) {
            case 0: damaged.removeLast(Int.random(in: 1...damaged.count, using: &random))
            case 1:
                damaged[Int.random(in: 0..<damaged.count, using: &random)] ^=
                    1 << UInt8.random(in: 0..<8, using: &random)
            default:
                for _ in 0..<20 {
                    damaged[Int.random(in: 0..<damaged.count, using: &random)] = UInt8.random(
                        in: 0...255, using: &random)
                }
            }
            var reader = ByteReader(damaged)
            // It may decode: the file around it has a checksum. It must not stop the process or take memory.
            if let map = try? DirtyMap(decoding: &reader) { #expect(map.byteCount <= DirtyMap.defaultBudgetBytes) }
        }
    }
}
