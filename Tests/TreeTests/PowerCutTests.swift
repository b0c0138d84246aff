import CLinux
import Format
import Glibc
import Testing

@testable import Tree

/// A file system of its own on a loop device, whose image lies in memory.
final class LoopMount {
    let path: String
    private let image: String
    private var isMounted = false

    /// - Parameter options: of its `mkfs`.
    init?(_ type: String, _ options: String = "") {
        var template = Array("/dev/shm/lockstep-tree-XXXXXX".utf8CString)
        path = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) } + "/mount"
        image = String(path.dropLast(6)) + "/image"
        precondition(mkdir(path, 0o755) == 0)
        let fd = open(image, O_RDWR | O_CREAT, 0o600)
        ftruncate(fd, off_t(type == "ext4" ? 64 << 20 : 320 << 20))
        close(fd)
        let program = type == "ext4" ? "/sbin/mkfs.ext4 -F" : "/sbin/mkfs.\(type)"
        guard run("/bin/sh", "-c", "\(program) -q \(options) \(image)") == 0, mount() else { return nil }
        mkdir(path + "/backing", 0o755)
        mkdir(path + "/state", 0o755)
    }

    func mount() -> Bool {
        isMounted = run("/bin/mount", "-o", "loop", image, path) == 0
        return isMounted
    }

    func unmount() {
        if isMounted { run("/bin/umount", path) }
        isMounted = false
    }

    func openTree(_ opening: PlainTree.Opening) throws -> PlainTree {
        try PlainTree(backing: path + "/backing", state: path + "/state", opening: opening, logger: quiet)
    }

    /// Power off at once, nothing flushed; power on again.
    func cutPower() {
        let fd = open(path, O_RDONLY)
        #expect(clinux_fs_shutdown(fd, 2) == 0)
        close(fd)
        unmount()
        #expect(mount())
    }

    deinit {
        unmount()
        removeAll(String(path.dropLast(6)))
    }
}

/// Real file systems, real lost writes: `FS_IOC_SHUTDOWN` stops the file system without flushing, mounting again runs
/// its own recovery, and what is left is what a power cut leaves.
@Suite(.serialized) struct PowerCutTests {
    @Test(arguments: ["ext4", "xfs"], 1...6)
    func failure36AfterAPowerCutReplayGivesEveryCommittedChange(type: String, seed: UInt64) throws {
        let disk = try #require(LoopMount(type), "needs root, loop devices and mkfs.\(type)")
        var generator = Generator(seed: seed &* 31_337)
        var random = Seeded(seed)
        var drawn = generator.draw(150)
        try {
            let tree = try disk.openTree(.create)
            for record in drawn { try tree.apply(record) }
            try tree.sync()
            drawn += generator.draw(200)
            for record in drawn[150...] {
                try tree.apply(record)
                // The file system writes of its own accord now and then, some files more than others.
                guard Int.random(in: 0..<40, using: &random) == 0,
                    let file = generator.model.objects.keys.sorted().randomElement(using: &random)
                else { continue }
                _ = try? tree.withDescriptor(of: file, writable: false) { (fd) throws(TreeError) in clinux_fsync(fd) }
            }
        }()
        disk.cutPower()
        try {
            let tree = try disk.openTree(.existing)
            _ = try tree.replay(drawn, after: 150)
            try expectSame(tree, generator.model)
            #expect(try tree.stagingNames() == [])
        }()
    }

    @Test(arguments: ["ext4", "xfs"], 1...3)
    func failure12APowerCutDuringTheReplayIsMendedByTheNext(type: String, seed: UInt64) throws {
        let disk = try #require(LoopMount(type), "needs root, loop devices and mkfs.\(type)")
        var generator = Generator(seed: seed &* 65_537)
        var random = Seeded(seed)
        var drawn = generator.draw(100)
        try {
            let tree = try disk.openTree(.create)
            for record in drawn { try tree.apply(record) }
            try tree.sync()
            drawn += generator.draw(150)
            for record in drawn[100..<Int.random(in: 100...250, using: &random)] { try tree.apply(record) }
        }()
        disk.cutPower()
        final class Counter: @unchecked Sendable { var left = 0 }
        for limit in [3, 20, 60, 150] {
            try {
                let tree = try disk.openTree(.existing)
                let counter = Counter()
                counter.left = limit
                _ = try? tree.replay(drawn, after: 100) { () throws(TreeError) in
                    if counter.left == 0 { throw TreeError("go on", code: EINTR) }
                    counter.left -= 1
                }
                if limit % 2 == 0 { _ = clinux_fsync(tree.root.rawValue) }
            }()
            disk.cutPower()
        }
        try {
            let tree = try disk.openTree(.existing)
            _ = try tree.replay(drawn, after: 100)
            try expectSame(tree, generator.model)
        }()
    }

    /// The file system has written the names of its own accord, and nobody the file table. The last record was not known to
    /// be committed, and comes again.
    @Test(arguments: ["ext4", "xfs"], [(S_IFREG, false), (S_IFREG, true), (S_IFDIR, false), (S_IFDIR, true)])
    func failure36WhatAPowerCutTookOutOfTheFileTableIsFoundAtTheNamesOfRecordsThatComeAgain(
        type: String, what: (kind: UInt32, isRename: Bool)
    ) throws {
        let (kind, isRename) = what
        let disk = try #require(LoopMount(type), "needs root, loop devices and mkfs.\(type)")
        let outer = FileID(epoch: Epoch(rawValue: 7), counter: 1)
        let inner = FileID(epoch: Epoch(rawValue: 7), counter: 2)
        let (before, after): (FileName, FileName) = (Array("before".utf8), Array("after".utf8))
        func create(_ file: FileID, in parent: FileID, _ name: FileName, _ kind: UInt32) -> Generator.Drawn {
            let attributes = FileAttributes(mode: kind | 0o755, uid: 0, gid: 0)
            let body = RecordBody.create(
                file: file, parent: parent, name: name, attributes: attributes, target: [], xattrs: [])
            return Generator.Drawn(record: Record(time: 1, body: body), payload: [])
        }
        func write(_ file: FileID, _ bytes: [UInt8]) -> Generator.Drawn {
            let record = Record(
                time: 2, body: .write(file: file, offset: 0),
                payload: .inline(offset: 0, length: bytes.count, checksum: 0))
            return Generator.Drawn(record: record, payload: bytes)
        }
        let file = kind == S_IFREG ? outer : inner
        var drawn = [create(outer, in: .root, isRename ? before : after, kind)]
        if isRename {
            if kind == S_IFDIR { drawn.append(create(inner, in: outer, before, S_IFREG)) }
            drawn.append(write(file, [1, 2, 3]))
            let rename = RecordBody.rename(
                file: outer, parent: .root, name: before, newParent: .root, newName: after, exchange: false,
                replaced: .none, replacedWasLast: false)
            drawn.append(Generator.Drawn(record: Record(time: 3, body: rename), payload: []))
        }
        try {
            let tree = try disk.openTree(.create)
            try tree.sync()
            for record in drawn { try tree.apply(record) }
            #expect(clinux_fsync(tree.root.rawValue) == 0)
        }()
        disk.cutPower()
        let tree = try disk.openTree(.existing)
        // Without this the test would show nothing.
        #expect(try tree.table.find(outer) == nil)
        let there = try tree.withDirectory(.root) { (fd) throws(TreeError) in try tree.occupant(of: after, in: fd) }
        #expect(there == outer)
        var ahead = RecordsAhead()
        for batch in batches(of: [drawn.last!], size: 1) { ahead.note(batch) }
        _ = try tree.replay(drawn, after: 0, through: drawn.count - 1, ahead: ahead)
        try drawn.last!.payload.withUnsafeBytes {
            try tree.apply(drawn.last!.record, payload: $0, role: .primary, again: true)
        }
        try tree.clearStaging()
        if !isRename, kind == S_IFDIR { try tree.apply(create(inner, in: outer, before, S_IFREG)) }
        #expect(try tree.lookup(parent: .root, name: after).file == outer)
        if kind == S_IFDIR { #expect(try tree.lookup(parent: outer, name: before).file == inner) }
        if isRename { #expect(try tree.contents(file) == [1, 2, 3]) }
        try tree.apply(write(file, [9, 8, 7, 6]))
        let status = try tree.lookup(parent: kind == S_IFREG ? .root : outer, name: kind == S_IFREG ? after : before)
        #expect(status.file == file && status.attributes.size == 4)
        #expect(try tree.contents(file) == [9, 8, 7, 6])
        #expect(throws: TreeError.self) { try tree.lookup(parent: .root, name: before) }
    }

    @Test func failure36AReplayNeedsNoMoreSpaceThanTheEndHas() throws {
        let disk = try #require(LoopMount("ext4"), "needs root, loop devices and mkfs.ext4")
        let tree = try disk.openTree(.create)
        let first = FileID(epoch: Epoch(rawValue: 7), counter: 1)
        let second = FileID(epoch: Epoch(rawValue: 7), counter: 2)
        let attributes = FileAttributes(mode: S_IFREG | 0o644, uid: 0, gid: 0)
        func create(_ file: FileID, _ name: String) -> Generator.Drawn {
            Generator.Drawn(
                record: Record(
                    time: 1,
                    body: .create(
                        file: file, parent: .root, name: Array(name.utf8), attributes: attributes, target: [],
                        xattrs: [])), payload: [])
        }
        func fill(_ file: FileID) -> [Generator.Drawn] {
            // 40 of about 56 MiB.
            (0..<160).map { index in
                let payload = [UInt8](repeating: UInt8(index), count: 256 << 10)
                return Generator.Drawn(
                    record: Record(
                        time: 2, body: .write(file: file, offset: UInt64(index) * 256 << 10),
                        payload: .inline(offset: 0, length: payload.count, checksum: 0)), payload: payload)
            }
        }
        let empty = Generator.Drawn(
            record: Record(
                time: 3,
                body: .setAttributes(
                    file: first, mask: .size, attributes: FileAttributes(mode: 0, uid: 0, gid: 0, size: 0))),
            payload: [])
        let drawn = [create(first, "f1")] + fill(first) + [empty, create(second, "f2")] + fill(second)
        for record in drawn { try tree.apply(record) }
        let result = try tree.replay(drawn, after: 0)
        #expect(result.bytes == 40 << 20)
        #expect(try tree.status(of: second).attributes.size == 40 << 20)
        #expect(try tree.status(of: first).attributes.size == 0)
    }
}
