import CLinux
import Format
import Glibc
import Ring
import Synchronization
import Testing

@testable import Tree

/// A full comparison as a primary drives it: directories from the top, then files with the blocks that differ.
private struct Comparison {
    let primary: PlainTree
    let secondary: PlainTree
    let blockBytes = 4096
    var sentBlocks = 0
    private var compared: Set<FileID> = []

    init(_ primary: PlainTree, _ secondary: PlainTree) {
        self.primary = primary
        self.secondary = secondary
    }

    mutating func start() throws { try send(.imageStart(number: 1)) }

    mutating func run(between: (FileID) throws -> Void = { _ in }) throws {
        try start()
        var waiting: [FileID] = [.root]
        while !waiting.isEmpty {
            let directory = waiting.removeFirst()
            for part in try primary.imageOfDirectory(directory) {
                try send(part)
                guard case .imageDirectory(_, _, _, _, _, let entries) = part else { continue }
                for entry in entries where compared.insert(entry.file).inserted {
                    if entry.mode & S_IFMT == S_IFDIR { waiting.append(entry.file) } else { try compare(entry.file) }
                }
            }
            try between(directory)
        }
        try send(.imageEnd(number: 1))
    }

    private func send(_ body: RecordBody) throws { try secondary.apply(body, isImage: true) }

    private mutating func compare(_ file: FileID) throws {
        let status = try primary.status(of: file)
        if status.isRegular {
            let length = (status.attributes.size + UInt64(blockBytes) - 1) / UInt64(blockBytes) * UInt64(blockBytes)
            let ours = try primary.blockHashes(of: file, at: 0, length: length, blockBytes: blockBytes, seed: 9)
            let theirs = try secondary.blockHashes(of: file, at: 0, length: length, blockBytes: blockBytes, seed: 9)
            for (index, hash) in ours.enumerated() where hash != theirs[index] {
                sentBlocks += 1
                let offset = UInt64(index * blockBytes)
                if hash == nil {
                    try send(.allocate(file: file, mode: 3, offset: offset, length: UInt64(blockBytes)))
                    continue
                }
                var block = [UInt8](repeating: 0, count: min(blockBytes, Int(status.attributes.size - offset)))
                _ = try block.withUnsafeMutableBytes { try primary.read(file, at: offset, into: $0) }
                try secondary.write(file, block, at: offset, isImage: true)
            }
        }
        try send(try primary.imageOfFile(file))
    }
}

@Suite struct ImageTests {
    @Test(arguments: 1...8)
    func aFullComparisonMakesAnyOldTreeEqual(seed: UInt64) throws {
        let first = Scratch()
        let second = Scratch()
        let primary = try openTree(first)
        let secondary = try openTree(second)
        var generator = Generator(seed: seed &+ 4000)
        let drawn = generator.draw(200)
        for record in drawn { try primary.apply(record) }
        for record in drawn { try secondary.apply(record) }
        // The secondary misses the rest, and was changed by somebody too.
        for record in generator.draw(200) { try primary.apply(record) }
        var random = Seeded(seed)
        try secondary.disturb(drawn, &random)
        var comparison = Comparison(primary, secondary)
        try comparison.run()
        try expectSame(primary, generator.model)
        try expectSame(secondary, generator.model)
        #expect(try secondary.stagingNames() == [])
    }

    @Test(arguments: 1...8)
    func recordsBetweenTheImagesAreNotLost(seed: UInt64) throws {
        let first = Scratch()
        let second = Scratch()
        let primary = try openTree(first)
        let secondary = try openTree(second)
        var generator = Generator(seed: seed &+ 9000)
        for record in generator.draw(150) { try primary.apply(record) }
        var comparison = Comparison(primary, secondary)
        try comparison.run()
        // From here on the secondary is the mirror: the same records give the same tree.
        for record in generator.draw(150) {
            try primary.apply(record)
            try secondary.apply(record)
        }
        try expectSame(secondary, generator.model)
    }

    @Test func aBackupWithoutNumbersIsComparedAndNotSent() throws {
        let first = Scratch()
        let second = Scratch()
        let primary = try openTree(first)
        var generator = Generator(seed: 77)
        for record in generator.draw(250) { try primary.apply(record) }
        // tar does not copy trusted attributes unless asked.
        run(
            "/bin/sh", "-c",
            "cd \(first.path)/backing && tar cSf - --atime-preserve=system --exclude=./.lockstep . "
                + "| tar xf - -C \(second.path)/backing")
        let secondary = try openTree(second)
        var comparison = Comparison(primary, secondary)
        try comparison.run()
        try expectSame(secondary, generator.model)
        #expect(comparison.sentBlocks == 0)
    }

    @Test(arguments: 1...6)
    func failure13ACrashInAComparisonIsMendedByReplayAndTheNextComparison(seed: UInt64) throws {
        let first = Scratch()
        let second = Scratch()
        let primary = try openTree(first)
        var generator = Generator(seed: seed &+ 321)
        let drawn = generator.draw(200)
        for record in drawn { try primary.apply(record) }
        do {
            let secondary = try openTree(second)
            for record in drawn[..<60] { try secondary.apply(record) }
            var comparison = Comparison(primary, secondary)
            struct Stop: Error {}
            var left = Int(seed)
            do {
                try comparison.run { _ in
                    left -= 1
                    if left == 0 { throw Stop() }
                }
            } catch is Stop {}
        }
        let secondary = try openTree(second, .existing)
        let result = try secondary.replay(after: .zero, through: .zero, isBehind: true) { _ in }
        #expect(result.isImaging && secondary.isImaging)
        // A record of a file that is not here yet is no error.
        try secondary.write(FileID(epoch: Epoch(rawValue: 5), counter: 5), [1])
        var comparison = Comparison(primary, secondary)
        try comparison.run()
        try expectSame(secondary, generator.model)
    }

    @Test(arguments: 1...8)
    func failure36ReplayOfAComparisonGivesItsEnd(seed: UInt64) throws {
        let first = Scratch()
        let second = Scratch()
        let primary = try openTree(first)
        let secondary = try openTree(second)
        var generator = Generator(seed: seed &+ 8000)
        let drawn = generator.draw(150)
        for record in drawn { try primary.apply(record) }
        for record in drawn[..<70] { try secondary.apply(record) }
        // The whole comparison is in the journal and nothing of it in the files.
        var images: [Generator.Drawn] = []
        func add(_ body: RecordBody, _ payload: [UInt8] = []) {
            let reference: PayloadReference =
                body.kind == .write ? .inline(offset: 0, length: payload.count, checksum: 0) : .none
            images.append(
                Generator.Drawn(
                    record: Record(time: 1, body: body, payload: reference, isImage: true), payload: payload))
        }
        add(.imageStart(number: 3))
        var waiting: [FileID] = [.root]
        var seen: Set<FileID> = []
        while !waiting.isEmpty {
            for part in try primary.imageOfDirectory(waiting.removeFirst()) {
                add(part)
                guard case .imageDirectory(_, _, _, _, _, let entries) = part else { continue }
                for entry in entries where seen.insert(entry.file).inserted {
                    if entry.mode & S_IFMT == S_IFDIR {
                        waiting.append(entry.file)
                        continue
                    }
                    if entry.mode & S_IFMT == S_IFREG {
                        let data = try primary.contents(entry.file)
                        if !data.isEmpty { add(.write(file: entry.file, offset: 0), data) }
                    }
                    add(try primary.imageOfFile(entry.file))
                }
            }
        }
        add(.imageEnd(number: 3))
        let all = images + generator.draw(60)
        var random = Seeded(seed)
        for record in all[images.count...] where Bool.random(using: &random) {
            try record.payload.withUnsafeBytes {
                try secondary.applyImaging(record.record, payload: $0, settingTimes: true)
            }
        }
        let result = try secondary.replay(all, after: 0, isBehind: true)
        #expect(result.sawImages && !secondary.isImaging)
        try expectSame(secondary, generator.model)
    }

    @Test func holesAreNeitherReadNorSent() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        let file = FileID(epoch: Epoch(rawValue: 7), counter: 1)
        try tree.apply(
            .create(
                file: file, parent: .root, name: Array("sparse".utf8),
                attributes: FileAttributes(mode: S_IFREG | 0o600, uid: 0, gid: 0), target: [], xattrs: []))
        try tree.write(file, [1], at: 64 << 30)
        let blocks = 65536
        let length = UInt64(64 << 30) + UInt64(blocks)
        let hashes = try tree.blockHashes(of: file, at: 0, length: length, blockBytes: blocks, seed: 1)
        #expect(hashes.count(where: { $0 != nil }) == 1)
        #expect(hashes.last! != nil)
    }
    /// A hole in one room where the other has zeros that were written would be found equal otherwise, and stay.
    @Test func writtenZerosAreNoHoleInAComparison() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        let file = FileID(epoch: Epoch(rawValue: 7), counter: 1)
        try tree.apply(
            .create(
                file: file, parent: .root, name: Array("zeros".utf8),
                attributes: FileAttributes(mode: S_IFREG | 0o600, uid: 0, gid: 0), target: [], xattrs: []))
        try tree.write(file, [UInt8](repeating: 0, count: 65536), at: 0)
        try tree.write(file, [1], at: 200_000)
        let hashes = { (zerosAreHoles: Bool) in
            try tree.blockHashes(
                of: file, at: 0, length: 65536 * 2, blockBytes: 65536, seed: 1, zerosAreHoles: zerosAreHoles)
        }
        #expect(try hashes(true) == [nil, nil])
        let exact = try hashes(false)
        #expect(exact[0] != nil && exact[1] == nil)
    }

    // MARK: - Objects that cannot be changed

    /// What happens to a symbolic link or device between the image of its directory, which puts something of its type
    /// there, and its own image, which can only put another object in its place.
    enum Accident: CaseIterable {
        case none, moved, linked, linkedAndMoved
        /// Another session begins, in this process or the next, and does not bring the directory again.
        case begunAgain, restarted, restartedAndMoved
        /// The next process finds the image in the journal, and its directory's behind the checkpoint.
        case replayed, linkedAndReplayed
        /// Into a directory that comes only afterwards.
        case movedToWait, linkedAndMovedToWait
    }

    @Test(arguments: Accident.allCases, [S_IFLNK, S_IFCHR])
    func failure36APlaceholderIsReplacedWhereverRecordsHavePutIt(accident: Accident, type: UInt32) throws {
        let scratch = Scratch()
        var tree: PlainTree! = try openTree(scratch)
        let object = FileID(epoch: Epoch(rawValue: 7), counter: 1)
        let directory = FileID(epoch: Epoch(rawValue: 7), counter: 2)
        let late = FileID(epoch: Epoch(rawValue: 7), counter: 3)
        let folder = FileAttributes(mode: S_IFDIR | 0o755, uid: 0, gid: 0)
        func name(_ text: String) -> FileName { Array(text.utf8) }
        func image(_ directory: FileID, _ entries: [ImageEntry]) throws {
            try tree.apply(
                .imageDirectory(
                    directory: directory, attributes: folder, xattrs: [], part: 0, isLast: true, entries: entries),
                isImage: true)
        }
        func move(to newParent: FileID) throws {
            try tree.apply(
                .rename(
                    file: object, parent: .root, name: name("object"), newParent: newParent, newName: name("moved"),
                    exchange: false, replaced: .none, replacedWasLast: false))
        }
        func restart(_ bodies: [RecordBody] = [], step: @escaping ReplayStep = { () throws(TreeError) in }) throws {
            // One at a time works on the plain files.
            tree = nil
            tree = try openTree(scratch, .existing)
            let drawn = bodies.map { Generator.Drawn(record: Record(time: 1, body: $0, isImage: true), payload: []) }
            _ = try tree.replay(drawn, after: 0, isBehind: true, step: step)
        }
        try tree.apply(.imageStart(number: 1))
        try image(
            .root,
            [
                ImageEntry(name: name("object"), file: object, mode: type),
                ImageEntry(name: name("directory"), file: directory, mode: S_IFDIR),
            ])
        try image(directory, [])
        var places = [(FileID.root, "object")]
        switch accident {
        case .none: break
        case .moved: try move(to: directory)
        case .movedToWait: try move(to: late)
        case .linked, .linkedAndMoved, .linkedAndMovedToWait, .linkedAndReplayed:
            try tree.apply(.link(file: object, parent: directory, name: name("linked")))
            places.append((directory, "linked"))
            if accident == .linkedAndMoved { try move(to: directory) }
            if accident == .linkedAndMovedToWait { try move(to: late) }
        case .replayed: break
        case .begunAgain: try tree.apply(.imageStart(number: 2))
        case .restarted: try restart()
        case .restartedAndMoved:
            try restart()
            try tree.apply(.imageStart(number: 2))
            try move(to: directory)
        }
        if [.moved, .linkedAndMoved, .restartedAndMoved].contains(accident) { places[0] = (directory, "moved") }
        let attributes = FileAttributes(
            mode: type | 0o777, uid: 5, gid: 6, rdev: type == S_IFCHR ? 0x103 : 0, mtime: 1_600_000_000_000_000_000)
        let target = type == S_IFLNK ? name("where/it/leads") : []
        let own = RecordBody.imageFile(file: object, attributes: attributes, target: target, xattrs: [])
        let isReplayed = [.replayed, .linkedAndReplayed].contains(accident)
        let before = try places.map { try tree.status(of: $0.0).attributes.mtime }
        if isReplayed { try restart([own]) } else { try tree.apply(own, isImage: true) }
        if [.movedToWait, .linkedAndMovedToWait].contains(accident) {
            let known = places.dropFirst().map { ImageEntry(name: name($0.1), file: object, mode: type) }
            try image(directory, known + [ImageEntry(name: name("late"), file: late, mode: S_IFDIR)])
            try image(late, [ImageEntry(name: name("moved"), file: object, mode: type)])
            places[0] = (late, "moved")
        }
        for (parent, place) in places {
            let found = try tree.lookup(parent: parent, name: name(place))
            #expect(found.file == object && Int(found.links) == places.count, "\(place)")
            #expect(found.attributes.mode & S_IFMT == type && found.attributes.uid == 5)
            #expect(found.attributes.rdev == attributes.rdev && found.attributes.mtime == attributes.mtime)
            if type == S_IFLNK { #expect(try tree.readLink(found.file) == target) }
        }
        if isReplayed { #expect(try places.map { try tree.status(of: $0.0).attributes.mtime } == before) }
        #expect(try tree.stagingNames() == [])
    }

    /// Images of links and devices put new objects into their directory, several at once, and none of that is a change of
    /// the directory. What a record sets at the same time stays.
    @Test(arguments: [S_IFLNK, S_IFCHR])
    func objectsThatAreReplacedSideBySideLeaveTheirDirectoryItsTime(type: UInt32) throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        func file(_ counter: Int) -> FileID { FileID(epoch: Epoch(rawValue: 7), counter: UInt64(counter)) }
        func name(_ file: FileID) -> FileName { Array("\(file)".utf8) }
        func folder(_ mtime: Int64) -> FileAttributes {
            FileAttributes(mode: S_IFDIR | 0o755, uid: 0, gid: 0, mtime: mtime)
        }
        func image(_ directory: FileID, _ entries: [ImageEntry]) throws {
            try tree.apply(
                .imageDirectory(
                    directory: directory, attributes: folder(1000), xattrs: [], part: 0, isLast: true,
                    entries: entries), isImage: true)
        }
        let count = 800
        let directories = [file(1), file(2)]
        // Of either directory half of them.
        let objects = (0..<count).map { file(10 + $0) }
        try tree.apply(.imageStart(number: 1))
        try image(.root, directories.map { ImageEntry(name: name($0), file: $0, mode: S_IFDIR) })
        for (index, directory) in directories.enumerated() {
            let own = objects[index * count / 2..<(index + 1) * count / 2]
            try image(directory, own.map { ImageEntry(name: name($0), file: $0, mode: type) })
        }
        let attributes = FileAttributes(
            mode: type | 0o777, uid: 0, gid: 0, rdev: type == S_IFCHR ? 0x103 : 0, mtime: 5000)
        let target: [UInt8] = type == S_IFLNK ? Array("there".utf8) : []
        let failures = Mutex<[any Error]>([])
        let pool = try WorkerPool(threads: 4, name: "apply")
        func beside(_ work: @escaping @Sendable () throws -> Void) {
            pool.submit { do { try work() } catch { failures.withLock { $0.append(error) } } }
        }
        for part in 0..<3 {
            beside {
                for index in stride(from: part, to: count, by: 3) {
                    try tree.apply(
                        .imageFile(file: objects[index], attributes: attributes, target: target, xattrs: []),
                        isImage: true)
                }
            }
        }
        // The application sets the time of the second directory itself.
        let last: Int64 = 3000
        beside {
            for mtime in 2001...last {
                try tree.apply(
                    .setAttributes(
                        file: directories[1], mask: .mtime,
                        attributes: FileAttributes(mode: 0, uid: 0, gid: 0, mtime: mtime)))
            }
        }
        pool.shutdown()
        #expect(failures.withLock { $0.map { "\($0)" } } == [])
        #expect(try tree.status(of: file(1)).attributes.mtime == 1000)
        #expect(try tree.status(of: file(2)).attributes.mtime == last)
        for (index, object) in objects.enumerated() {
            let found = try tree.lookup(parent: directories[index * 2 / count], name: name(object))
            #expect(found.file == object && found.attributes.mtime == 5000)
        }
        #expect(try tree.stagingNames() == [])
    }
}
