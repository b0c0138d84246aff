import Format
import Replication
import Testing

/// When records that are about to be cut may have been acknowledged.
@Suite struct DivergedTailTests {
    private func mustBeSaved(
        common: UInt64, last: UInt64, committed: UInt64 = 0, acknowledged: UInt64 = 0, lossAt: UInt64? = nil
    ) -> Bool {
        DivergedTail.mustBeSaved(
            common: Seq(rawValue: common), last: Seq(rawValue: last), committed: Seq(rawValue: committed),
            acknowledged: Seq(rawValue: acknowledged), lossAt: lossAt.map { Seq(rawValue: $0) })
    }

    @Test func failure34WhatWasCommittedOrAcknowledgedIsSaved() {
        #expect(mustBeSaved(common: 5, last: 9, committed: 6))
        #expect(mustBeSaved(common: 5, last: 9, acknowledged: 6))
        #expect(!mustBeSaved(common: 5, last: 9, committed: 5, acknowledged: 5))
    }

    @Test func failure34AfterAForcedPromotionTheWholeTailIsSaved() {
        // The serving node had exactly the common records, or others of its own behind them.
        #expect(mustBeSaved(common: 5, last: 9, lossAt: 5))
        #expect(mustBeSaved(common: 5, last: 9, lossAt: 7))
        // The promotion was before the common record: both have been in sync since.
        #expect(!mustBeSaved(common: 5, last: 9, lossAt: 4))
    }

    @Test func failure11AnOrdinaryTailIsCutAsEver() {
        #expect(!mustBeSaved(common: 5, last: 9))
        #expect(!mustBeSaved(common: 9, last: 9, lossAt: 9))
    }
}
