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
