import CLinux
import Format
import Glibc
import Testing

@testable import Tree

@Suite(.serialized) struct DirectoryRoomTests {
    /// With blocks of 1 KiB the index is full within some ten thousand long names. What the limit lets in, ext4 takes; and
    /// there is a limit.
    @Test func ext4TakesEveryNameUpToTheLimit() throws {
        let disk = try #require(LoopMount("ext4"), "needs root, loop devices and mkfs.ext4")
        let tree = try disk.openTree(.create)
        let limit = FileLimits(fileSystemType: "ext4", blockBytes: 1024).directoryBytes
        #expect(tree.limits.directoryBytes == limit)
        let fd = open(disk.path + "/backing", O_RDONLY)
        defer { close(fd) }
        let one = disk.path + "/backing/one"
        close(creat(one, 0o644))
        var count = 0
        var refused: Int32 = 0
        var beyond: TreeError?
        while refused == 0, count < 60_000 {
            let next = Array("\(String(repeating: "n", count: 240))\(count)".utf8)
            if beyond == nil {
                do throws(TreeError) {
                    try tree.checkRoom(for: next, in: .root, limit: limit)
                } catch {
                    beyond = error
                }
            }
            refused = linkat(AT_FDCWD, one, fd, String(decoding: next, as: UTF8.self), 0) == 0 ? 0 : errno
            #expect(refused == 0 || beyond != nil, "ext4 refuses name \(count), the limit does not")
            count += 1
        }
        #expect(beyond?.code == ENOSPC && refused == ENOSPC)
    }
}
