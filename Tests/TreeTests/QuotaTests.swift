import Glibc
import Testing

@testable import Tree

/// XFS holds root to quotas too: what the application was granted could not be applied, and both rooms would wait.
@Suite struct QuotaTests {
    @Test func anEnforcedQuotaIsRefusedWithARemedy() {
        do {
            try PlainTree.checkQuota("prjquota", path: "/srv")
            Issue.record("taken")
        } catch {
            #expect(error.code == EOPNOTSUPP)
            #expect("\(error)".contains("prjquota") && "\(error)".contains("xfs_quota"))
        }
    }
}
