import Glibc
import Testing

@testable import Tree

/// XFS holds root to quotas too: what the application was granted could not be applied, and both rooms would wait.
@Suite struct QuotaTests {
    @Test(arguments: ["usrquota", "grpquota", "prjquota"])
    func enforcedQuotasOfXFSAreRefusedWithARemedy(option: String) {
        let options: [Substring] = ["rw", "attr2", "inode64", "logbufs=8", Substring(option)]
        do {
            try PlainTree.checkQuotas(of: "xfs", options, path: "/srv")
            Issue.record("taken")
        } catch {
            #expect(error.code == EOPNOTSUPP)
            #expect("\(error)".contains(option) && "\(error)".contains("xfs_quota"))
        }
    }

    @Test func whatOnlyCountsIsTakenAndSoAreQuotasThatRootIsAbove() throws {
        try PlainTree.checkQuotas(of: "xfs", ["rw", "uqnoenforce", "gqnoenforce", "pqnoenforce"], path: "/srv")
        try PlainTree.checkQuotas(of: "xfs", ["rw", "noquota"], path: "/srv")
        try PlainTree.checkQuotas(of: "ext4", ["rw", "usrquota", "prjquota"], path: "/srv")
    }
}
