import CLinux
import Format
import Glibc
import Testing

@testable import Tree

/// An object that a record makes, and a process that dies in the middle of making it.
@Suite struct MakingTests {
    static let types = [S_IFREG, S_IFDIR, S_IFLNK, S_IFIFO, S_IFCHR]

    /// The record is above all that was known to be committed, so its files may be ahead of the log: what the first
    /// process left in staging is not taken for the object. (Soak, seed 604: a new file with the time of its making.)
    @Test(arguments: types, [false, true])
    func failure36AnObjectHalfMadeIsMadeAnewWhenItsRecordComesAgain(type: UInt32, isReplayed: Bool) throws {
        let file = FileID(epoch: Epoch(rawValue: 7), counter: 1)
        let name: FileName = Array("name".utf8)
        let target: [UInt8] = type == S_IFLNK ? Array("where/it/leads".utf8) : []
        // User attributes are for files and directories only.
        let label = ExtendedAttribute(name: Array("trusted.label".utf8), value: [1, 2, 3])
        let attributes = FileAttributes(
            mode: type | (type == S_IFLNK ? 0o777 : 0o6751), uid: 5, gid: 6, rdev: type == S_IFCHR ? 0x103 : 0,
            size: type == S_IFREG ? 70_000 : 0, atime: 1_500_000_000_000_000_001, mtime: 1_600_000_000_000_000_002)
        let body = RecordBody.create(
            file: file, parent: .root, name: name, attributes: attributes, target: target, xattrs: [label])
        let create = Generator.Drawn(record: Record(time: 1, body: body), payload: [])
        var count = 0
        while true {
            let scratch = Scratch()
            var tree: PlainTree! = try openTree(scratch)
            guard try dies(before: count, making: file, attributes, target, [label], in: tree) else { break }
            count += 1
            tree = nil
            tree = try openTree(scratch, .existing)
            var ahead = RecordsAhead()
            if !isReplayed { for batch in batches(of: [create], size: 1) { ahead.note(batch) } }
            _ = try tree.replay([create], after: 0, through: isReplayed ? 1 : 0, ahead: ahead)
            if !isReplayed {
                try tree.apply(
                    create.record, payload: UnsafeRawBufferPointer(start: nil, count: 0), role: .primary, again: true)
            }
            let found = try tree.lookup(parent: .root, name: name).attributes
            #expect(found.mode == attributes.mode, "before change \(count)")
            #expect(found.uid == 5 && found.gid == 6, "before change \(count)")
            #expect(found.rdev == attributes.rdev, "before change \(count)")
            #expect(found.mtime == attributes.mtime && found.atime == attributes.atime, "before change \(count)")
            if type == S_IFREG { #expect(found.size == attributes.size, "before change \(count)") }
            #expect(try tree.xattr(of: file, name: label.name) == label.value, "before change \(count)")
            #expect(try tree.stagingNames() == [], "before change \(count)")
        }
        #expect(count >= 5)
    }

    /// A list for a user 1234, as the kernel keeps it: version, then tag, permissions and number of each entry (owner, that
    /// user, group, mask, others).
    private static let accessList: [UInt8] = {
        let entries: [(UInt16, UInt16, UInt32)] = [
            (1, 7, .max), (2, 6, 1234), (4, 5, .max), (0x10, 7, .max), (0x20, 0, .max),
        ]
        var list: [UInt8] = [2, 0, 0, 0]
        for (tag, permissions, number) in entries {
            for half in [tag, permissions] { list += withUnsafeBytes(of: half.littleEndian) { Array($0) } }
            list += withUnsafeBytes(of: number.littleEndian) { Array($0) }
        }
        return list
    }()

    /// The mirrored directory would go by the mode, whose group bits say what the list allows at most.
    @Test(arguments: ["", "/directory", "/directory/file"], ["access", "default"])
    func aTreeWithAccessListsIsNotAdopted(place: String, kind: String) throws {
        guard !place.hasSuffix("file") || kind == "access" else { return }
        let scratch = Scratch()
        scratch.make("backing/directory")
        let path = scratch.path + "/backing" + place
        close(open(scratch.path + "/backing/directory/file", O_WRONLY | O_CREAT, 0o640))
        let list = MakingTests.accessList
        try #require(clinux_setxattr(path, "system.posix_acl_" + kind, list, list.count, 0, 1) == 0)
        let tree = try openTree(scratch)
        var allocator = FileIDAllocator(epoch: Epoch(rawValue: 1))
        #expect {
            try tree.adoptScan(allocator: &allocator, retagging: true)
        } throws: {
            "\($0)".contains(path) && "\($0)".contains("setfacl -R -b")
        }
        try #require(clinux_removexattr(path, "system.posix_acl_" + kind, 1) == 0)
        #expect(try tree.adoptScan(allocator: &allocator, retagging: true) == 2)
    }

    /// An application's directory with a group and a default ACL for what is made in it, as adopted: what the mirror makes
    /// has the owner that its record says, in both rooms.
    @Test func objectsInheritNothingFromTheDirectoryThatWasAdopted() throws {
        let scratch = Scratch()
        let backing = scratch.path + "/backing"
        let list = MakingTests.accessList
        try #require(chown(backing, 0, 77) == 0 && chmod(backing, 0o2770) == 0)
        try #require(clinux_setxattr(backing, "system.posix_acl_default", list, list.count, 0, 1) == 0)
        for opening in [PlainTree.Opening.create, .existing] {
            let tree = try openTree(scratch, opening)
            let name: FileName = Array("\(opening)".utf8)
            let file = FileID(epoch: Epoch(rawValue: 7), counter: opening == .create ? 1 : 2)
            let attributes = FileAttributes(
                mode: S_IFREG | 0o640, uid: 0, gid: 0, rdev: 0, size: 0, atime: 1, mtime: 1)
            let body = RecordBody.create(
                file: file, parent: .root, name: name, attributes: attributes, target: [], xattrs: [])
            try tree.apply(
                Record(time: 1, body: body), payload: UnsafeRawBufferPointer(start: nil, count: 0), role: .primary)
            let path = backing + "/\(opening)"
            var found = stat()
            try #require(stat(path, &found) == 0)
            #expect(found.st_gid == 0 && found.st_mode & 0o7777 == 0o640)
            #expect(clinux_getxattr(path, "system.posix_acl_access", nil, 0, 1) < 0)
            try tree.close()
            // As an earlier build has left it.
            let staging = backing + "/.lockstep/staging"
            try #require(chown(staging, 0, 77) == 0 && chmod(staging, 0o2770) == 0)
        }
    }

    /// - Returns: whether it came so far.
    private func dies(
        before count: Int, making file: FileID, _ attributes: FileAttributes, _ target: [UInt8],
        _ xattrs: [ExtendedAttribute], in tree: PlainTree
    ) throws -> Bool {
        var left = count
        do {
            _ = try tree.make(file, attributes, target, xattrs, inStaging: PlainTree.encodeTag(file)) {
                () throws(TreeError) in
                left -= 1
                guard left >= 0 else { throw TreeError("go on", "dead", code: EINTR) }
            }
            return false
        } catch {
            guard left < 0 else { throw error }
            return true
        }
    }
}
