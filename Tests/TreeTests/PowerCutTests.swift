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

    init?(_ type: String) {
        var template = Array("/dev/shm/lockstep-tree-XXXXXX".utf8CString)
        path = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) } + "/mount"
        image = String(path.dropLast(6)) + "/image"
        precondition(mkdir(path, 0o755) == 0)
        let fd = open(image, O_RDWR | O_CREAT, 0o600)
        ftruncate(fd, off_t(type == "xfs" ? 320 << 20 : 64 << 20))
        close(fd)
        let made = type == "xfs" ? run("/sbin/mkfs.xfs", "-q", image) : run("/sbin/mkfs.ext4", "-q", "-F", image)
        guard made == 0, mount() else { return nil }
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
