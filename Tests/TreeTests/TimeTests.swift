import CLinux
import Format
import Glibc
import Testing

@testable import Tree

@Suite struct TimeTests {
    /// A time that a tree says its file system keeps is what a file then has.
    @Test(arguments: [
        ("ext4", ""), ("ext4", "-I 128"), ("xfs", "-m bigtime=1"), ("xfs", "-m bigtime=0"), ("btrfs", ""),
    ])
    func aFileHasTheTimeThatItsFileSystemKeeps(type: String, options: String) throws {
        let disk = try #require(LoopMount(type, options), "needs root, loop devices and mkfs.\(type)")
        let tree = try disk.openTree(.create)
        let limits = tree.limits
        #expect(type != "btrfs" || limits.times == .min ... .max)
        let isOld = options == "-I 128" || options == "-m bigtime=0"
        #expect((limits.times.upperBound == 2_147_483_647_000_000_000) == isOld)
        #expect(limits.timeStep == (options == "-I 128" ? 1_000_000_000 : 1))
        let file = FileID(epoch: Epoch(rawValue: 3), counter: 1)
        var attributes = FileAttributes(mode: S_IFREG | 0o644, uid: 0, gid: 0)
        try tree.apply(
            .create(file: file, parent: .root, name: Array("file".utf8), attributes: attributes, target: [], xattrs: [])
        )
        let (first, last) = (limits.times.lowerBound, limits.times.upperBound)
        let times = [
            .min, first, first &+ 1, first &+ 999_999_999, first &+ 1_000_000_001, -1_500_000_001, -1, 0, 1_500_000_001,
            2_147_483_647_500_000_000, last &- 1, last, .max,
        ]
        for time in times {
            attributes.mtime = limits.kept(time)
            try tree.apply(.setAttributes(file: file, mask: .mtime, attributes: attributes))
            #expect(try tree.status(of: file).attributes.mtime == attributes.mtime, "\(time)")
        }
    }
}
