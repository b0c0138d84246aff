import Testing

@testable import Mounts

@Suite struct MountTableTests {
    @Test func mountPointsWithBlanksAreUnderstood() {
        let table = MountTable(
            text: """
                21 1 8:1 / / rw,relatime - ext4 /dev/root rw
                30 21 0:9 / /srv/my\\040files ro,relatime shared:4 master:1 - xfs /dev/sdb rw
                31 21 0:52 / /srv/my rw - fuse.lockstep ledger rw,user_id=0
                """)
        #expect(
            table.top(at: "/srv/my files/")
                == .init(
                    id: 30, minor: 9, point: "/srv/my files", type: "xfs", source: "/dev/sdb",
                    options: ["ro", "relatime", "rw"]))
        #expect(table.top(at: "/srv/my files")?.isReadOnly == true && table.top(at: "/srv/my")?.isReadOnly == false)
        #expect(table.top(at: "/srv/my")?.minor == 52)
        #expect(table.containing("/srv/my files/a")?.type == "xfs")
        #expect(table.containing("/srv/myself")?.type == "ext4")
        #expect(table.below("/srv").count == 2 && table.below("/srv/my").isEmpty)
    }

    @Test func theLaterMountHidesTheEarlier() {
        let table = MountTable(
            text: """
                21 1 8:1 / / rw - ext4 /dev/root rw
                30 21 0:40 / /srv/ledger ro - tmpfs none ro
                31 30 0:52 / /srv/ledger rw - fuse.lockstep ledger rw
                """)
        #expect(table.mounts(at: "/srv/ledger").map(\.type) == ["tmpfs", "fuse.lockstep"])
        #expect(table.top(at: "/srv/ledger")?.id == 31)
        #expect(table.containing("/srv/ledger/a")?.id == 31)
        #expect(table.top(at: "/srv") == nil)
    }

    @Test func oddLinesAreReadOrPassedOver() {
        let table = MountTable(
            text: """
                broken line
                22 1 254 / /a rw
                23 1 8:x / /b rw - ext4 /dev/vda rw
                24 1 0:7 / - rw - tmpfs  rw,size=1k
                25 1 0:8 / /c\\134d\\9 rw shared:1 - ext4 /dev/vdb rw
                """)
        #expect(table.all.map(\.id) == [24, 25])
        #expect(table.all.map(\.point) == ["-", "/c\\d\\9"])
        #expect(table.all[0].source.isEmpty && table.all[0].options == ["rw", "rw", "size=1k"])
    }

    /// Root is above quotas on ext4; on XFS it is not.
    @Test func enforcedQuotasOfXFSAreFoundAndOthersAreNot() {
        let table = MountTable(
            text: """
                21 1 8:1 / / rw,relatime - ext4 /dev/root rw,usrquota,grpquota
                30 21 0:9 / /srv/held rw - xfs /dev/sdb rw,attr2,inode64,logbufs=8,logbsize=32k,usrquota,pqnoenforce
                31 21 0:9 / /srv/counted rw - xfs /dev/sdc rw,inode64,uqnoenforce,gqnoenforce,pqnoenforce
                32 21 0:9 / /srv/free rw - xfs /dev/sdd rw,inode64,noquota
                """)
        #expect(table.top(at: "/srv/held")?.enforcedQuota == "usrquota")
        for point in ["/", "/srv/counted", "/srv/free"] { #expect(table.top(at: point)?.enforcedQuota == nil) }
    }

    @Test func thisProcessHasOne() {
        #expect(MountTable.current()?.containing("/proc/self/mountinfo")?.type == "proc")
    }
}
