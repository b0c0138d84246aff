import CLinux
import Format
import Glibc
import Testing

@testable import Tree

/// Flags of inodes (`chattr`) that would stop a node at a later change.
@Suite struct FlagTests {
    private func chattr(_ change: String, _ path: String) throws {
        try #require(run("/usr/bin/chattr", change, path) == 0, "needs root and ext4")
    }

    private func adopt(_ disk: LoopMount) throws -> Int {
        let tree = try disk.openTree(.create)
        var allocator = FileIDAllocator(epoch: Epoch(rawValue: 1))
        return try tree.adoptScan(allocator: &allocator, retagging: true)
    }

    @Test func aTreeWithFlagsInTheWayIsNotAdopted() throws {
        let disk = try #require(LoopMount("ext4"), "needs root, loop devices and mkfs.ext4")
        let backing = disk.path + "/backing"
        let script = "cd \(backing) && mkdir directory && echo a >directory/file && echo b >other && ln -s file link"
        try #require(run("/bin/sh", "-c", script) == 0)
        let unlock = "chattr -R -ia"
        let cases: [(change: String, back: String, paths: [String], remedy: String)] = [
            ("+i", "-i", [""], unlock), ("+a", "-a", [""], unlock), ("+P", "-P", [""], "chattr -R -P"),
            ("+i", "-i", ["/directory"], unlock), ("+P", "-P", ["/directory"], "chattr -R -P"),
            ("+i", "-i", ["/other", "/directory/file"], unlock), ("+a", "-a", ["/directory/file"], unlock),
            ("-e", "+e", ["/directory/file"], "replace each by a copy"),
        ]
        for (change, back, paths, remedy) in cases {
            for path in paths { try chattr(change, backing + path) }
            #expect("\(change) \(paths)") {
                _ = try adopt(disk)
            } throws: { error in
                let text = "\(error)"
                return text.contains(" \(backing)\(paths[0])\(paths.count > 1 ? " (and 1 more)" : ""): ")
                    && text.contains(remedy)
            }
            // Nothing was given a number, and below a root that refuses it nothing was made.
            for path in ["/directory", "/directory/file", "/other"] {
                #expect(clinux_getxattr(backing + path, "trusted.lockstep.fid", nil, 0, 0) == -Int(ENODATA))
            }
            if paths == [""] { #expect(access(backing + "/.lockstep", F_OK) != 0) }
            for path in paths { try chattr(back, backing + path) }
        }
        #expect(try adopt(disk) == 4)
    }

    @Test func anEmptyExt4WithoutExtentsIsNotUsed() throws {
        let disk = try #require(
            LoopMount("ext4", "-O ^extent,^64bit"), "needs root, loop devices and mkfs.ext4")
        // Once more: the first time leaves nothing that would hide it.
        for _ in 0..<2 {
            #expect {
                _ = try disk.openTree(.create)
            } throws: { error in
                (error as? TreeError)?.code == EOPNOTSUPP && "\(error)".contains(" \(disk.path)/backing: ")
                    && "\(error)".contains("tune2fs -O extent")
            }
        }
        #expect(clinux_getxattr(disk.path + "/backing", "trusted.lockstep.fid", nil, 0, 0) == -Int(ENODATA))
    }

    /// Of these the kernel that tests run on may know nothing.
    @Test func whatCannotBeWrittenOrMovedIntoIsInTheWay() {
        func obstacle(_ flags: UInt32, isDirectory: Bool = true) -> Obstacle? {
            Obstacle(flags: flags, isDirectory: isDirectory, isExt4: false)
        }
        #expect(obstacle(CLINUX_INODE_VERITY, isDirectory: false) == .sealed)
        #expect(obstacle(CLINUX_INODE_CASEFOLD) == .casefolded)
        #expect(obstacle(CLINUX_INODE_ENCRYPTED) == .encrypted)
        #expect(obstacle(CLINUX_INODE_ENCRYPTED, isDirectory: false) == nil)
        #expect(obstacle(0, isDirectory: false) == nil)
        #expect(Obstacle(flags: CLINUX_INODE_INLINE_DATA, isDirectory: false, isExt4: true) == nil)
    }

    /// Somebody sets one past the mirror: the record fails as ever, and says why.
    @Test func aRecordThatAFlagStopsNamesThePathAndTheRemedy() throws {
        let disk = try #require(LoopMount("ext4"), "needs root, loop devices and mkfs.ext4")
        let tree = try disk.openTree(.create)
        let file = FileID(epoch: Epoch(rawValue: 3), counter: 1)
        let plain = FileAttributes(mode: S_IFREG | 0o644, uid: 0, gid: 0)
        try tree.apply(
            .create(file: file, parent: .root, name: Array("file".utf8), attributes: plain, target: [], xattrs: []))
        try tree.write(file, [1])
        let path = disk.path + "/backing/file"
        let allocation = RecordBody.allocate(file: file, mode: 0, offset: 0, length: 9000)
        let write = Generator.Drawn(
            record: Record(
                time: 5, body: .write(file: file, offset: 0), payload: .inline(offset: 0, length: 1, checksum: 0)),
            payload: [2])
        func refuses(_ code: Int32, _ remedy: String, _ change: () throws -> Void) {
            #expect {
                try change()
            } throws: { error in
                (error as? TreeError)?.code == code && "\(error)".contains(" \(path): ") && "\(error)".contains(remedy)
            }
        }
        try chattr("+i", path)
        refuses(EPERM, "chattr -R -ia") { try tree.write(file, [2]) }
        refuses(EPERM, "chattr -R -ia") { _ = try tree.replay([write], after: 0) }
        try chattr("-i", path)
        try tree.write(file, [2])
        try chattr("-e", path)
        refuses(EOPNOTSUPP, "replace each by a copy") { try tree.apply(allocation) }
    }
}
