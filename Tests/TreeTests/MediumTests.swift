import CLinux
import Format
import Glibc
import Testing

@testable import Tree

private let file = FileID(epoch: Epoch(rawValue: 7), counter: 1)
private let name: FileName = Array("ledger".utf8)

/// A disk some of whose blocks cannot be read until they are written anew. It lies on btrfs, which knows a checksum of
/// each block and gives EIO where it is wrong; for the other file systems it is a file there, with a loop device of its
/// own.
private final class FailingDisk {
    let path: String
    private let base: String
    private let type: String
    private var isMounted = false

    init?(_ type: String) {
        self.type = type
        var template = Array("/dev/shm/lockstep-tree-XXXXXX".utf8CString)
        base = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
        path = base + (type == "btrfs" ? "/below" : "/mount")
        for directory in ["below", "mount"] { precondition(mkdir("\(base)/\(directory)", 0o755) == 0) }
        guard FailingDisk.make("\(base)/image", "btrfs", 768 << 20),
            run("/bin/mount", "-o", "loop", "\(base)/image", "\(base)/below") == 0
        else { return nil }
        let length = type == "xfs" ? 320 << 20 : 64 << 20
        let isMade = type == "btrfs" || FailingDisk.make("\(base)/below/image", type, length)
        run("/bin/umount", "\(base)/below")
        guard isMade, mount() else { return nil }
        mkdir(path + "/backing", 0o755)
        mkdir(path + "/state", 0o755)
    }

    private static func make(_ image: String, _ type: String, _ length: Int) -> Bool {
        let fd = open(image, O_RDWR | O_CREAT, 0o600)
        defer { close(fd) }
        guard fd >= 0, ftruncate(fd, off_t(length)) == 0 else { return false }
        switch type {
        // It has something to say even so.
        case "btrfs": return run("/bin/sh", "-c", "mkfs.btrfs -q -m single \(image) >/dev/null 2>&1") == 0
        case "xfs": return run("/sbin/mkfs.xfs", "-q", image) == 0
        default: return run("/sbin/mkfs.ext4", "-q", "-F", "-b", "4096", image) == 0
        }
    }

    func mount() -> Bool {
        isMounted = run("/bin/mount", "-o", "loop", "\(base)/image", "\(base)/below") == 0
        guard isMounted, type != "btrfs" else { return isMounted }
        return run("/bin/mount", "-o", "loop", "\(base)/below/image", path) == 0
    }

    func unmount() {
        guard isMounted else { return }
        if type != "btrfs" { run("/bin/umount", path) }
        run("/bin/umount", "\(base)/below")
        isMounted = false
    }

    func openTree(_ opening: PlainTree.Opening) throws -> PlainTree {
        try PlainTree(backing: path + "/backing", state: path + "/state", opening: opening, logger: quiet)
    }

    /// From here on the blocks that begin so cannot be read. Nothing may be open.
    func lose(_ beginnings: [[UInt8]]) throws {
        unmount()
        let fd = open("\(base)/image", O_RDWR)
        defer { close(fd) }
        var found = [Int](repeating: 0, count: beginnings.count)
        var position = lseek(fd, 0, CLINUX_SEEK_DATA)
        var block = [UInt8](repeating: 0, count: 4096)
        while position >= 0 {
            let end = lseek(fd, position, CLINUX_SEEK_HOLE)
            for offset in stride(from: position / 4096 * 4096, to: end, by: 4096) {
                guard pread(fd, &block, 4096, offset) == 4096 else { continue }
                for (index, beginning) in beginnings.enumerated() where block.starts(with: beginning) {
                    found[index] += 1
                    pwrite(fd, [block[7] ^ 1], 1, offset + 7)
                }
            }
            position = lseek(fd, end, CLINUX_SEEK_DATA)
        }
        try #require(found.allSatisfy { $0 > 0 } && mount())
    }

    deinit {
        unmount()
        removeAll(base)
    }
}

/// Faults of a real disk, as real file systems give them: EIO for what cannot be read, until it is written anew.
@Suite(.serialized) struct MediumTests {
    private static let types = ["ext4", "xfs", "btrfs"]

    private static func noise(_ count: Int) -> [UInt8] {
        var random = Seeded(11)
        return (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
    }

    private static func drawn(_ body: RecordBody, _ payload: [UInt8] = []) -> Generator.Drawn {
        var record = Record(time: 5, body: body)
        if !payload.isEmpty { record.payload = .inline(offset: 0, length: payload.count, checksum: 0) }
        return Generator.Drawn(record: record, payload: payload)
    }

    private static func check(_ aspect: VerifyAspect, _ offset: Int, _ length: Int) -> VerifyCheck {
        VerifyCheck(
            number: 1, file: file, aspect: aspect, offset: UInt64(offset), length: UInt64(length), blockBytes: 4096,
            seed: 5)
    }

    /// A file with this content, whose blocks `lost` the disk cannot read.
    private static func make(_ type: String, _ data: [UInt8], lost: [Int]) throws -> (FailingDisk, [Generator.Drawn]) {
        let disk = try #require(FailingDisk(type), "needs root, loop devices, mkfs.btrfs and mkfs.\(type)")
        var records = [
            drawn(
                .create(
                    file: file, parent: .root, name: name,
                    attributes: FileAttributes(mode: S_IFREG | 0o644, uid: 0, gid: 0), target: [], xattrs: []))
        ]
        for start in stride(from: 0, to: data.count, by: 32_768) {
            records.append(
                drawn(
                    .write(file: file, offset: UInt64(start)), Array(data[start..<min(start + 32_768, data.count)])))
        }
        try {
            let tree = try disk.openTree(.create)
            for record in records { try tree.apply(record) }
            try tree.close()
        }()
        try disk.lose(lost.map { Array(data[($0 * 4096)...].prefix(64)) })
        return (disk, records)
    }

    @Test(arguments: types, [3000, 70_000])
    func failure37ALastBlockThatTheDiskCannotReadIsRepaired(type: String, length: Int) throws {
        let data = MediumTests.noise(length)
        let last = length / 4096
        let (disk, _) = try MediumTests.make(type, data, lost: [last])
        try {
            let tree = try disk.openTree(.existing)
            let question = MediumTests.check(.bytes, last * 4096, 4096)
            // Without this the test would show nothing.
            #expect(tree.verify(question) == .failed(EIO))
            let before = try tree.status(of: file).attributes
            let rest = Array(data[(last * 4096)...])
            try tree.apply(MediumTests.drawn(.repair(file: file, offset: UInt64(last * 4096)), rest))
            #expect(tree.verify(question) == .bytes(rest))
            #expect(try tree.status(of: file).attributes == before)
            try tree.close()
        }()
        disk.unmount()
        try #require(disk.mount())
        let tree = try disk.openTree(.existing)
        let isRight = try tree.contents(file) == data
        #expect(isRight)
    }

    /// The process dies with the repair in its journal and not on its disk. What the application has written into the
    /// block since is in the journal too: only together the records are all of it.
    @Test(arguments: types, [false, true])
    func failure37AReplayGetsOverABlockThatTheDiskCannotRead(type: String, isOverwritten: Bool) throws {
        var data = MediumTests.noise(70_000)
        let start = data.count / 4096 * 4096
        var (disk, records) = try MediumTests.make(type, data, lost: [start / 4096])
        let checkpoint = records.count
        records.append(MediumTests.drawn(.repair(file: file, offset: UInt64(start)), Array(data[start...])))
        if isOverwritten {
            records.append(MediumTests.drawn(.write(file: file, offset: UInt64(start) + 50), [1, 2, 3]))
            data.replaceSubrange(start + 50..<start + 53, with: [1, 2, 3])
        }
        let tree = try disk.openTree(.existing)
        #expect(tree.verify(MediumTests.check(.bytes, start, 4096)) == .failed(EIO))
        _ = try tree.replay(records, after: checkpoint)
        let isRight = try tree.contents(file) == data
        #expect(isRight)
    }

    /// A write of the application is not dropped: it was acknowledged.
    @Test func failure37AReplayDoesNotPassOverAWriteIntoABlockThatTheDiskCannotRead() throws {
        let data = MediumTests.noise(70_000)
        let (disk, records) = try MediumTests.make("ext4", data, lost: [2])
        let tree = try disk.openTree(.existing)
        let write = MediumTests.drawn(.write(file: file, offset: 2 * 4096 + 50), [1, 2, 3])
        #expect(throws: TreeError.self) { try tree.replay(records + [write], after: records.count) }
    }

    /// As when the application has written into the block since, or the file ends elsewhere here: then what is at hand
    /// is not all of the block.
    @Test(arguments: types)
    func failure37ARepairThatIsNotAllOfAnUnreadableBlockBreaksNothing(type: String) throws {
        var data = MediumTests.noise(70_000)
        let (disk, records) = try MediumTests.make(type, data, lost: [2, 17])
        let repair = MediumTests.drawn(.repair(file: file, offset: 2 * 4096 + 100), [UInt8](repeating: 9, count: 8000))
        var shorter = FileAttributes(mode: S_IFREG | 0o644, uid: 0, gid: 0, size: 69_900)
        shorter.mtime = 5
        let resize = MediumTests.drawn(.repairFile(file: file, attributes: shorter, xattrs: []))
        let tree = try disk.openTree(.existing)
        try tree.apply(repair)
        try tree.apply(resize)
        #expect(tree.verify(MediumTests.check(.bytes, 2 * 4096, 4096)) == .failed(EIO))
        let next = 2 * 4096 + 100 + 8000
        data.replaceSubrange(3 * 4096..<next, with: [UInt8](repeating: 9, count: next - 3 * 4096))
        #expect(tree.verify(MediumTests.check(.bytes, 3 * 4096, 4096)) == .bytes(Array(data[3 * 4096..<4 * 4096])))
        _ = try tree.replay(records + [repair], after: records.count)
        #expect(tree.verify(MediumTests.check(.bytes, 2 * 4096, 4096)) == .failed(EIO))
    }

    /// The kernel reads ahead, and keeps, pieces of up to 2 MiB that become unreadable as a whole; those that have been
    /// written to it does not even forget when it is told to.
    @Test(arguments: types, [false, true])
    func failure37OnlyTheBlockThatTheDiskCannotReadIsUnreadable(type: String, isWritten: Bool) throws {
        let data = MediumTests.noise(1 << 20)
        let lost = [3, 70, 71, 200, 255]
        let (disk, _) = try MediumTests.make(type, data, lost: lost)
        let tree = try disk.openTree(.existing)
        func bytes(_ block: Int) -> [UInt8] { Array(data[block * 4096..<(block + 1) * 4096]) }
        // As the application does.
        var space = [UInt8](repeating: 0, count: 65_536)
        for start in stride(from: 0, to: UInt64(data.count), by: space.count) {
            _ = space.withUnsafeMutableBytes { try? tree.read(file, at: start, into: $0) }
        }
        if isWritten {
            for block in [69, 201] {
                try tree.apply(MediumTests.drawn(.repair(file: file, offset: UInt64(block) * 4096), bytes(block)))
            }
        }
        for block in 0..<data.count / 4096 {
            let found = tree.verify(MediumTests.check(.bytes, block * 4096, 4096))
            #expect(found == (lost.contains(block) ? .failed(EIO) : .bytes(bytes(block))), "block \(block)")
        }
        #expect(tree.verify(MediumTests.check(.bytes, 0, 65_536)) == .failed(EIO))
        #expect(tree.verify(MediumTests.check(.bytes, 65_536, 65_536)) == .bytes(Array(data[65_536..<131_072])))
    }
}
