import CLinux
import Format
import Glibc
import Ring
import Synchronization
import Testing

@testable import Tree

private func id(_ counter: UInt64) -> FileID { FileID(epoch: Epoch(rawValue: 3), counter: counter) }
private func name(_ text: String) -> FileName { Array(text.utf8) }
private let plain = FileAttributes(mode: S_IFREG | 0o644, uid: 0, gid: 0, atime: 1, mtime: 2)
private let folder = FileAttributes(mode: S_IFDIR | 0o755, uid: 0, gid: 0, atime: 1, mtime: 2)

extension PlainTree {
    fileprivate func create(
        _ counter: UInt64, in parent: FileID = .root, _ text: String, _ attributes: FileAttributes = plain
    ) throws {
        try apply(
            .create(file: id(counter), parent: parent, name: name(text), attributes: attributes, target: [], xattrs: [])
        )
    }
}

@Suite struct ApplyTests {
    @Test(arguments: 1...30)
    func recordsGiveTheTreeTheyDescribe(seed: UInt64) throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        var generator = Generator(seed: seed)
        for drawn in generator.draw(300) { try tree.apply(drawn) }
        try expectSame(tree, generator.model)
    }

    @Test(arguments: 1...15)
    func applyingARecordTwiceIsApplyingItOnce(seed: UInt64) throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        var generator = Generator(seed: seed &+ 1000)
        for drawn in generator.draw(250) {
            try tree.apply(drawn)
            try tree.apply(drawn)
        }
        try expectSame(tree, generator.model)
    }

    @Test func filesAreFoundByTheirNumbersAfterAReopenAndAfterTheTableIsLost() throws {
        let scratch = Scratch()
        var generator = Generator(seed: 5)
        try {
            let tree = try openTree(scratch)
            for drawn in generator.draw(200) { try tree.apply(drawn) }
            try tree.close()
        }()
        try expectSame(openTree(scratch, .existing), generator.model)
        // Not closed this time: an unclean end.
        try expectSame(openTree(scratch, .existing), generator.model)
        unlink("\(scratch.path)/state/file-table")
        try expectSame(openTree(scratch, .existing), generator.model)
    }

    @Test func failure37DamageInTheFileTableIsFoundAndMended() throws {
        let scratch = Scratch()
        var generator = Generator(seed: 6)
        try {
            let tree = try openTree(scratch)
            for drawn in generator.draw(200) { try tree.apply(drawn) }
            try tree.close()
        }()
        let fd = open("\(scratch.path)/state/file-table", O_RDWR)
        defer { close(fd) }
        // Flip one bit in every sixteenth slot, used or not.
        for slot in stride(from: 0, to: 4096, by: 16) {
            var byte: UInt8 = 0
            pread(fd, &byte, 1, off_t(4096 + slot * 64 + 20))
            byte ^= 4
            pwrite(fd, &byte, 1, off_t(4096 + slot * 64 + 20))
        }
        try expectSame(openTree(scratch, .existing), generator.model)
    }

    /// The scan ends half way (here because of a copy with the same number; a process that is killed leaves the same).
    @Test func failure37ATableThatWasBuiltHalfWayIsNotBelieved() throws {
        let scratch = Scratch()
        try {
            let tree = try openTree(scratch)
            try tree.create(1, "dir", folder)
            for counter in 2...400 { try tree.create(UInt64(counter), "f\(counter)") }
            for counter in 401...800 { try tree.create(UInt64(counter), in: id(1), "f\(counter)") }
            try tree.close()
        }()
        unlink("\(scratch.path)/state/file-table")
        let copy = "\(scratch.path)/backing/dir/copy"
        let fd = open(copy, O_RDWR | O_CREAT, 0o644)
        defer { close(fd) }
        try System.setXattr(fd, PlainTree.fileIDXattr, PlainTree.encodeTag(id(7)))
        for _ in 0..<2 {
            #expect(throws: TreeError.self) { try openTree(scratch, .existing) }
            #expect(access("\(scratch.path)/state/file-table", F_OK) != 0)
        }
        unlink(copy)
        let tree = try openTree(scratch, .existing)
        for counter in 1...800 { #expect(try tree.referenceIfKnown(to: id(UInt64(counter))) != nil, "\(counter)") }
        #expect(access("\(scratch.path)/state/file-table.scan", F_OK) != 0, "nothing is left of it")
    }

    /// An entry that is whole and leads to another file.
    @Test(arguments: [true, false])
    func failure37AWrongEntryOfTheFileTableIsSaidAndTheNextStartMendsIt(isClosed: Bool) throws {
        let scratch = Scratch()
        try {
            let tree = try openTree(scratch)
            for counter in 1...3 { try tree.create(UInt64(counter), "f\(counter)") }
            try tree.write(id(1), [1])
            let table = tree.table
            try table.insert(id(1), try #require(try table.find(id(2))))
            tree.cache.removeAll()
            for _ in 0..<2 { #expect(throws: TreeError.self) { try tree.status(of: id(1)) } }
            #expect(tree.table === table, "never built while records are applied")
            // It grows, and is wrong still.
            for counter in 4...3_000 { try tree.create(UInt64(counter), "f\(counter)") }
            if isClosed { try tree.close() }
        }()
        let tree = try openTree(scratch, .existing)
        #expect(try tree.contents(id(1)) == [1])
        for counter in 1...3_000 { #expect(try tree.referenceIfKnown(to: id(UInt64(counter))) != nil, "\(counter)") }
    }

    /// The table has a file, and the files do not: for the moment between the removal of its name and of its entry.
    @Test func aFileThatIsOpenedWhileItIsRemovedIsNoSignOfAWrongTable() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        let table = tree.table
        let going = Mutex<UInt64?>(1)
        let pool = try WorkerPool(threads: 1, name: "reader")
        pool.submit {
            while let counter = going.withLock({ $0 }) { _ = try? tree.reference(to: id(counter)) }
        }
        for counter in UInt64(1)...3_000 {
            try tree.create(counter, "f")
            going.withLock { $0 = counter }
            if counter % 2 == 0 {
                try tree.apply(
                    .remove(file: id(counter), parent: .root, name: name("f"), isDirectory: false, wasLast: true))
            } else {
                try tree.create(10_000 + counter, "g")
                try tree.apply(
                    .rename(
                        file: id(10_000 + counter), parent: .root, name: name("g"), newParent: .root,
                        newName: name("f"), exchange: false, replaced: id(counter), replacedWasLast: true))
                try tree.apply(
                    .remove(
                        file: id(10_000 + counter), parent: .root, name: name("f"), isDirectory: false, wasLast: true))
            }
        }
        going.withLock { $0 = nil }
        pool.shutdown()
        #expect(tree.table === table)
        try tree.close()
        #expect(try FileTable.open(path: tree.tablePath, identity: tree.treeIdentity, logger: quiet) != nil)
    }

    @Test func aHeldFileOutlivesItsLastNameAndGoesWhenReleased() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        try tree.create(1, "a")
        try tree.write(id(1), [1, 2, 3])
        tree.hold(id(1))
        try tree.apply(.remove(file: id(1), parent: .root, name: name("a"), isDirectory: false, wasLast: true))
        #expect(throws: TreeError.self) { try tree.lookup(parent: .root, name: name("a")) }
        #expect(try tree.contents(id(1)) == [1, 2, 3])
        try tree.write(id(1), [9])
        #expect(try tree.contents(id(1)) == [9, 2, 3])
        try tree.releaseHold(id(1))
        #expect(throws: TreeError.self) { try tree.status(of: id(1)) }
        #expect(try tree.stagingNames() == [])
    }

    @Test func aHeldFileThatIsReplacedByARenameStaysReadable() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        try tree.create(1, "a")
        try tree.create(2, "b")
        try tree.write(id(2), [7])
        tree.hold(id(2))
        let rename = RecordBody.rename(
            file: id(1), parent: .root, name: name("a"), newParent: .root, newName: name("b"), exchange: false,
            replaced: id(2), replacedWasLast: true)
        try tree.apply(rename)
        try tree.apply(rename)
        #expect(try tree.lookup(parent: .root, name: name("b")).file == id(1))
        #expect(try tree.contents(id(2)) == [7])
        try tree.releaseHold(id(2))
        #expect(try tree.stagingNames() == [])
    }

    /// The process died, or the file system refused, after the two were exchanged: what was replaced has the old name.
    @Test(arguments: [false, true])
    func failure36AHeldFileWhoseReplacementWasBrokenOffLosesTheOldNameToo(isAgain: Bool) throws {
        let scratch = Scratch()
        var tree: PlainTree! = try openTree(scratch)
        try tree.create(1, "a")
        try tree.create(2, "b")
        try tree.write(id(2), [7])
        tree.hold(id(2))
        let record = Record(
            time: 5,
            body: .rename(
                file: id(1), parent: .root, name: name("a"), newParent: .root, newName: name("b"), exchange: false,
                replaced: id(2), replacedWasLast: true))
        try System.rename(
            tree.root.rawValue, name("a"), to: tree.root.rawValue, name("b"), flags: CLINUX_RENAME_EXCHANGE)
        if isAgain {
            tree = nil
            tree = try openTree(scratch, .existing)
        }
        let nothing = unsafe UnsafeRawBufferPointer(start: nil, count: 0)
        try tree.apply(record, payload: nothing, role: .primary, again: isAgain)
        #expect(try tree.lookup(parent: .root, name: name("b")).file == id(1))
        #expect(throws: TreeError.self) { try tree.lookup(parent: .root, name: name("a")) }
        if isAgain {
            try tree.clearStaging()
        } else {
            #expect(try tree.contents(id(2)) == [7])
            try tree.releaseHold(id(2))
        }
        #expect(try tree.stagingNames() == [])
        #expect(throws: TreeError.self) { try tree.status(of: id(2)) }
    }

    @Test func anUnexpectedObjectAtANameIsAnErrorAndNothingChanges() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        try tree.create(1, "a")
        #expect(throws: TreeError.self) { try tree.create(2, "a") }
        #expect(throws: TreeError.self) {
            try tree.apply(.remove(file: id(3), parent: .root, name: name("a"), isDirectory: false, wasLast: true))
        }
        #expect(try tree.lookup(parent: .root, name: name("a")).file == id(1))
    }

    @Test func recordsCannotReachOurOwnDirectoryOrLeaveTheTreeThroughALink() throws {
        let scratch = Scratch()
        scratch.make("outside")
        let tree = try openTree(scratch)
        #expect(throws: TreeError.self) { try tree.create(1, ".lockstep") }
        #expect(throws: TreeError.self) {
            try tree.apply(.setXattr(file: .root, name: PlainTree.fileIDXattr, value: [1]))
        }
        try tree.apply(
            .create(
                file: id(2), parent: .root, name: name("l"),
                attributes: FileAttributes(mode: S_IFLNK | 0o777, uid: 0, gid: 0),
                target: Array("\(scratch.path)/outside".utf8), xattrs: []))
        #expect(throws: TreeError.self) { try tree.create(3, in: id(2), "x") }
        #expect(throws: TreeError.self) { try tree.write(id(2), [1]) }
        // Attributes go to the link itself.
        try tree.apply(
            .setAttributes(
                file: id(2), mask: [.uid, .mtime],
                attributes: FileAttributes(mode: 0, uid: 4, gid: 0, mtime: 77)))
        var found = stat()
        #expect(stat("\(scratch.path)/outside", &found) == 0)
        #expect(found.st_uid == 0)
        #expect(try tree.status(of: id(2)).attributes.uid == 4)
    }

    @Test func ownAttributesAndDirectoryAreInvisible() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        try tree.create(1, "a")
        #expect(try tree.xattrNames(of: id(1)) == [])
        #expect(try tree.xattr(of: id(1), name: PlainTree.fileIDXattr) == nil)
        let names = try tree.readDirectory(.root, from: 0, limit: 100, withStatus: true).map(\.name)
        #expect(Set(names) == [name("."), name(".."), name("a")])
        #expect(throws: TreeError.self) { try tree.lookup(parent: .root, name: PlainTree.ownName) }
    }

    @Test func aDirectoryIsReadInPiecesWithoutLossOrRepetition() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        for counter in 1...500 { try tree.create(UInt64(counter), "file-\(counter)") }
        var seen: [FileName] = []
        var cursor: UInt64 = 0
        while true {
            let piece = try tree.readDirectory(.root, from: cursor, limit: 7, withStatus: false)
            guard let last = piece.last else { break }
            seen += piece.map(\.name)
            cursor = last.cursor
        }
        #expect(seen.count == 502)
        #expect(Set(seen).count == 502)
    }

    @Test func moreFilesThanDescriptorsAreNoProblem() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        for counter in 1...200 {
            try tree.create(UInt64(counter), "f\(counter)")
            try tree.write(id(UInt64(counter)), [UInt8(counter)])
        }
        for counter in 1...200 { #expect(try tree.contents(id(UInt64(counter))) == [UInt8(counter)]) }
        #expect(tree.cache.count <= 16)
    }

    /// A disk that was cloned or put back may have anything where the table knows a file: a pipe is not waited for, and what
    /// an earlier build wrote, without types, leads there as well.
    @Test func whatIsNotWhatTheTableSaysIsNotOpenedForIt() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        for (number, type) in [(1, S_IFREG), (2, S_IFIFO), (3, S_IFDIR)] as [(UInt64, UInt32)] {
            try tree.create(number, "object-\(number)", FileAttributes(mode: type | 0o644, uid: 0, gid: 0))
        }
        for (number, type) in [(1, S_IFREG), (2, S_IFIFO), (3, S_IFDIR)] as [(UInt64, UInt32)] {
            var handle = try #require(try tree.table.find(id(number)))
            #expect(handle.objectType == type)
            for other in [0, S_IFREG, S_IFDIR, S_IFIFO] {
                handle.objectType = other
                try tree.table.insert(id(number), handle)
                tree.cache.removeAll()
                #expect(try tree.object(id(number), writable: false).type == type)
                #expect(try tree.status(of: id(number)).attributes.mode & S_IFMT == type)
            }
        }
    }

    @Test func theFileTableGrowsAndForgets() throws {
        let scratch = Scratch()
        let table = try FileTable.create(path: "\(scratch.path)/table", identity: 1)
        try table.putIntoPlace()
        for counter in 1...20_000 { try table.insert(id(UInt64(counter)), FileHandle(type: 1, bytes: [1, 2])) }
        for counter in 1...10_000 { try table.remove(id(UInt64(counter))) }
        #expect(try table.find(id(5000)) == nil)
        #expect(try table.find(id(15_000)) == FileHandle(type: 1, bytes: [1, 2]))
        try table.close()
        let again = try #require(try FileTable.open(path: "\(scratch.path)/table", identity: 1, logger: quiet))
        var count = 0
        try again.visit {
        } _: { _, _ in
            count += 1
        }
        #expect(count == 10_000)
        #expect(try FileTable.open(path: "\(scratch.path)/table", identity: 2, logger: quiet) == nil)
    }

    @Test func theFileTableIsUsedAndGrowsDuringAPassOverIt() throws {
        let scratch = Scratch()
        let table = try FileTable.create(path: "\(scratch.path)/table", identity: 1)
        let handle = FileHandle(type: 1, bytes: [1, 2])
        for counter in UInt64(1)...20_000 { try table.insert(id(counter), handle) }
        let pool = try WorkerPool(threads: 1, name: "user")
        let isUsed = Mutex(false)
        var found: [FileID] = []
        var beginnings = 1
        try table.visit {
            found = []
            beginnings += 1
        } _: { file, _ in
            found.append(file)
            guard beginnings == 1, found.count == 10_000 else { return }
            pool.submit {
                for counter in UInt64(20_001)...60_000 { try? table.insert(id(counter), handle) }
                isUsed.withLock { $0 = true }
            }
            for _ in 0..<6000 where !isUsed.withLock({ $0 }) { usleep(10_000) }
            #expect(isUsed.withLock { $0 }, "nobody waits for the end of a pass")
        }
        pool.shutdown()
        #expect(beginnings == 2)
        #expect(found.count == 60_000 && Set(found).count == 60_000)
    }

    @Test func aDirectoryThatWasNeverPreparedIsRefused() throws {
        let scratch = Scratch()
        #expect(throws: TreeError.self) { try openTree(scratch, .existing) }
    }

    @Test func aSecondProcessIsKeptAway() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        #expect(throws: TreeError.self) { try openTree(scratch) }
        _ = tree
    }

    @Test func aFileSystemThatLosesItsOrderIsRefused() throws {
        // /dev/shm is a tmpfs.
        #expect(throws: TreeError.self) {
            try PlainTree(backing: "/dev/shm", state: "/tmp", opening: .create, logger: quiet)
        }
    }

    @Test func existingFilesAreAdoptedWithTheirLinks() throws {
        let scratch = Scratch()
        let base = "\(scratch.path)/backing"
        run("/bin/sh", "-c", "mkdir -p \(base)/d/e && echo hello > \(base)/d/f && ln \(base)/d/f \(base)/g")
        let tree = try openTree(scratch)
        #expect(throws: TreeError.self) { try tree.lookup(parent: .root, name: name("g")) }
        var allocator = FileIDAllocator(epoch: Epoch(rawValue: 1))
        #expect(try tree.adoptScan(allocator: &allocator, retagging: true) == 3)
        let first = try tree.lookup(parent: .root, name: name("g"))
        let directory = try tree.lookup(parent: .root, name: name("d"))
        #expect(try tree.lookup(parent: directory.file, name: name("f")).file == first.file)
        #expect(first.links == 2)
        #expect(try tree.contents(first.file) == Array("hello\n".utf8))
        // A copy with its number is refused, by name.
        run("/bin/sh", "-c", "cp -a \(base)/g \(base)/copy")
        #expect(throws: TreeError.self) { try tree.adoptScan(allocator: &allocator, retagging: false) }
    }

    /// XFS gives a directory that is exchanged into another one the present time: found by soak seeds 621 to 623. After
    /// each of the steps the process may die: the record comes again, in a replay or by itself. Or the file system refuses
    /// the next one for want of room: it is tried again.
    @Test(arguments: 0...3, ["replay", "again", "retry"])
    func failure36ADirectoryExchangedIntoAnotherOneKeepsItsTime(endsAfter steps: Int, then what: String) throws {
        let disk = try #require(LoopMount("xfs"), "needs root, loop devices and mkfs.xfs")
        var tree: PlainTree! = try disk.openTree(.create)
        let records: [RecordBody] = [
            .create(file: id(1), parent: .root, name: name("a"), attributes: folder, target: [], xattrs: []),
            .create(file: id(2), parent: .root, name: name("b"), attributes: folder, target: [], xattrs: []),
            .create(file: id(3), parent: id(1), name: name("x"), attributes: folder, target: [], xattrs: []),
            .create(file: id(4), parent: id(2), name: name("y"), attributes: folder, target: [], xattrs: []),
            .create(file: id(5), parent: id(1), name: name("f"), attributes: plain, target: [], xattrs: []),
        ]
        for body in records { try tree.apply(body) }
        let record = Record(
            time: 77,
            body: .rename(
                file: id(3), parent: id(1), name: name("x"), newParent: id(2), newName: name("y"), exchange: true,
                replaced: id(4), replacedWasLast: false))
        let nothing = unsafe UnsafeRawBufferPointer(start: nil, count: 0)
        let (from, to) = (disk.path + "/backing/a/x", disk.path + "/backing/b/y")
        let staged =
            disk.path + "/backing/.lockstep/staging/" + String(decoding: PlainTree.encodeTag(id(4)), as: UTF8.self)
        if steps > 0 { try #require(rename(to, staged) == 0) }
        if steps > 1 { try #require(rename(from, to) == 0) }
        if steps > 2 { try #require(rename(staged, from) == 0) }
        if steps > 0, what != "retry" {
            try tree.sync()
            tree = nil
            tree = try disk.openTree(.existing)
        }
        if what == "replay" {
            let drawn = (records.map { Record(time: 5, body: $0) } + [record]).map {
                Generator.Drawn(record: $0, payload: [])
            }
            _ = try tree.replay(drawn, after: 0)
        } else {
            try tree.apply(record, payload: nothing, role: .primary, again: what == "again")
        }
        for (parent, text, file) in [(1, "x", 4), (2, "y", 3)] as [(UInt64, String, UInt64)] {
            let found = try tree.lookup(parent: id(parent), name: name(text))
            #expect(found.file == id(file) && found.attributes.mtime == folder.mtime, "\(found)")
            #expect(try tree.status(of: id(parent)).attributes.mtime == 77)
        }
        // With a file on one side.
        try tree.apply(
            .rename(
                file: id(5), parent: id(1), name: name("f"), newParent: id(2), newName: name("y"), exchange: true,
                replaced: id(3), replacedWasLast: false))
        #expect(try tree.lookup(parent: id(1), name: name("f")).attributes.mtime == folder.mtime)
        #expect(try tree.lookup(parent: id(2), name: name("y")).file == id(5))
        #expect(try tree.stagingNames() == [])
    }

    @Test(arguments: [(513, 1), (2, 40_000)])
    func moreAttributesThanARecordCarriesAreRefusedByPath(count: Int, length: Int) throws {
        let disk = try #require(LoopMount("xfs"), "needs root, loop devices and mkfs.xfs")
        let base = disk.path + "/backing"
        run("/bin/sh", "-c", "mkdir \(base)/d && echo hello > \(base)/d/tagged")
        let value = [UInt8](repeating: 7, count: length)
        let tree = try disk.openTree(.create)
        var allocator = FileIDAllocator(epoch: Epoch(rawValue: 1))
        let set = { (index: Int) in
            value.withUnsafeBytes {
                clinux_setxattr(base + "/d/tagged", "user.\(index)", $0.baseAddress, $0.count, 0, 0)
            }
        }
        for index in 1..<count { #expect(set(index) == 0) }
        #expect(try tree.adoptScan(allocator: &allocator, retagging: true) == 2)
        let directory = try tree.lookup(parent: .root, name: name("d")).file
        let file = try tree.lookup(parent: directory, name: name("tagged")).file
        _ = try tree.imageOfFile(file)
        #expect(set(count) == 0)
        let refused = { (error: any Error) in
            let text = "\(error)"
            return (error as? TreeError)?.code == E2BIG && text.contains(base + "/d/tagged")
        }
        #expect { try tree.adoptScan(allocator: &allocator, retagging: true) } throws: { refused($0) }
        #expect { try tree.imageOfFile(file) } throws: { refused($0) }
    }

    @Test func readingWithoutBlockingNeverOpensAFile() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        try tree.create(1, "a")
        try tree.write(id(1), [5, 6, 7])
        var space = [UInt8](repeating: 0, count: 10)
        #expect(space.withUnsafeMutableBytes { tree.readWithoutBlocking(id(1), at: 1, into: $0) } == 2)
        #expect(space.prefix(2) == [6, 7])
        tree.cache.removeAll()
        #expect(space.withUnsafeMutableBytes { tree.readWithoutBlocking(id(1), at: 1, into: $0) } == nil)
    }
}
