import CLinux
import Format
import Glibc
import Testing

@testable import Tree

/// Directories deeper than any path can say: programs that go down step by step make them.
@Suite struct DepthTests {
    /// Makes directories one in another below an open one. Returns the innermost.
    private func dig(_ name: String, _ count: Int, below directory: Int32) throws -> Int32 {
        var fd = dup(directory)
        for _ in 0..<count {
            try #require(mkdirat(fd, name, 0o755) == 0)
            let next = openat(fd, name, O_RDONLY | CLINUX_O_DIRECTORY)
            try #require(next >= 0)
            close(fd)
            fd = next
        }
        return fd
    }

    @Test func aTreeOfAnyDepthIsRemoved() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        let innermost = try dig("d", 1500, below: tree.staging.rawValue)
        close(openat(innermost, "file", O_WRONLY | O_CREAT, 0o644))
        close(innermost)
        try tree.clearStaging()
        #expect(try tree.stagingNames() == [])
    }

    @Test func aDirectoryIsMovedAlsoIfNoPathCanSayWhereItIs() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        let time: Int64 = 1_700_000_000_000_000_000
        let name: FileName = Array(String(repeating: "n", count: 250).utf8)
        var parent = FileID.root
        for number in 1...20 {
            let file = FileID(epoch: Epoch(rawValue: 3), counter: UInt64(number))
            let attributes = FileAttributes(
                mode: S_IFDIR | 0o755, uid: 0, gid: 0, rdev: 0, size: 0, atime: time, mtime: time)
            try tree.apply(
                .create(file: file, parent: parent, name: name, attributes: attributes, target: [], xattrs: []))
            parent = file
        }
        let deepest = parent
        let isPlaced = try tree.withDescriptor(of: .root, writable: false) { (root) throws(TreeError) in
            try tree.place(deepest, in: root, Array("up".utf8))
        }
        #expect(isPlaced)
        #expect(try tree.lookup(parent: .root, name: Array("up".utf8)).file == deepest)
    }
}
