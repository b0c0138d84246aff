import Format
import Testing

@Suite struct FileLimitsTests {
    @Test func timesAreThoseThatBothRoomsKeep() throws {
        var old = FileLimits(fileSystemType: "ext4", blockBytes: 4096)
        let (first, last) = (Int64(-2_147_483_648_000_000_000), Int64(2_147_483_647_000_000_000))
        old.times = first...last
        old.timeStep = 1_000_000_000
        let both = FileLimits.widest.narrower(old)
        #expect(both.times == old.times && both.timeStep == old.timeStep && old.narrower(.widest) == both)
        for (time, kept) in [
            (.min, first), (first - 1, first), (first + 999_999_999, first),
            (first + 1_000_000_001, first + 1_000_000_000), (-1, -1_000_000_000), (0, 0),
            (1_999_999_999, 1_000_000_000), (last, last), (last + 1, last), (.max, last),
        ] as [(Int64, Int64)] { #expect(both.kept(time) == kept, "\(time)") }
        for time in [.min, -1, 0, 1_999_999_999, .max] as [Int64] { #expect(FileLimits.widest.kept(time) == time) }
    }

    @Test func ext4IsAsNarrowAsItsBlocks() {
        let usual = FileLimits(fileSystemType: "ext4", blockBytes: 4096)
        #expect(
            usual
                == FileLimits(
                    fileBytes: (16 << 40) - 4096, links: 65_000, xattrBytes: 3900, targetBytes: 4095,
                    directoryBytes: 506 * 253 * 4096))
        let small = FileLimits(fileSystemType: "ext4", blockBytes: 1024)
        #expect(
            small
                == FileLimits(
                    fileBytes: (4 << 40) - 1024, links: 65_000, xattrBytes: 828, targetBytes: 1023,
                    directoryBytes: 122 * 61 * 1024))
        let large = FileLimits(fileSystemType: "ext4", blockBytes: 65_536)
        #expect(
            large
                == FileLimits(
                    fileBytes: (256 << 40) - 65_536, links: 65_000, xattrBytes: 65_340, targetBytes: 4095,
                    directoryBytes: 8186 * 4093 * 65_536))
        #expect(FileLimits(fileSystemType: "new", blockBytes: 4096) == usual)
    }

    @Test func othersHaveLimitsOfTheirOwn() {
        let xfs = FileLimits(fileSystemType: "xfs", blockBytes: 4096)
        #expect(
            xfs
                == FileLimits(
                    fileBytes: 1 << 50, links: 2_000_000_000, xattrBytes: 65_536, targetBytes: 1023,
                    directoryBytes: .max))
        let btrfs = FileLimits(fileSystemType: "btrfs", blockBytes: 4096)
        #expect(
            btrfs
                == FileLimits(
                    fileBytes: 1 << 50, links: 65_535, xattrBytes: 15_000, targetBytes: 3900, directoryBytes: .max))
    }

    @Test func theNarrowerOfTwoTakesTheSmallerOfEach() {
        let xfs = FileLimits(fileSystemType: "xfs", blockBytes: 4096)
        let ext4 = FileLimits(fileSystemType: "ext4", blockBytes: 4096)
        let both = FileLimits(
            fileBytes: ext4.fileBytes, links: ext4.links, xattrBytes: 3900, targetBytes: 1023,
            directoryBytes: ext4.directoryBytes)
        #expect(xfs.narrower(ext4) == both)
        #expect(ext4.narrower(xfs) == both)
        #expect(xfs.narrower(.widest) == xfs)
    }
}
