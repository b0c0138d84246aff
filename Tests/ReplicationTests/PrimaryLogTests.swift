import Format
import Replication
import Testing

private func seq(_ value: UInt64) -> Seq { Seq(rawValue: value) }
private let pair = AckRule(inSync: .both, needsOwnDisk: false)
private let alone = AckRule(inSync: .a, needsOwnDisk: true)

@Suite struct PrimaryLogTests {
    private func log(rules: [AckRule]) -> PrimaryLog {
        var log = PrimaryLog(node: .a, last: .zero, ownDurable: .zero, committed: .zero)
        log.setRules(rules)
        return log
    }

    @Test func nothingIsAcknowledgedWithoutARule() {
        var log = log(rules: [])
        log.appended(through: seq(3))
        log.durable(through: seq(3))
        #expect(log.levels == AckLevels(memory: .zero, disk: .zero))
    }

    @Test func aWriteIsAnsweredWhenTheOtherRoomHasItInMemoryAndAnFsyncWhenBothDisksHaveIt() throws {
        var log = log(rules: [pair])
        log.followerStarted(at: .zero)
        log.appended(through: seq(3))
        #expect(log.levels.memory == .zero)
        log.sent(through: seq(3))
        try log.acknowledged(received: seq(3), durable: .zero, applied: .zero)
        #expect(log.levels == AckLevels(memory: seq(3), disk: .zero))
        try log.acknowledged(received: seq(3), durable: seq(3), applied: .zero)
        #expect(log.levels.disk == .zero)
        log.durable(through: seq(2))
        #expect(log.levels.disk == seq(2))
    }

    @Test func aloneOnlyTheOwnDiskCounts() {
        var log = log(rules: [alone])
        log.appended(through: seq(2))
        #expect(log.levels.memory == .zero)
        log.durable(through: seq(2))
        #expect(log.levels == AckLevels(memory: seq(2), disk: seq(2)))
    }

    @Test func whileASetIsInDoubtEveryPossibleSetMustBeSatisfied() throws {
        var log = log(rules: [pair, alone])
        log.followerStarted(at: .zero)
        log.appended(through: seq(4))
        log.sent(through: seq(4))
        log.durable(through: seq(2))
        try log.acknowledged(received: seq(3), durable: seq(1), applied: .zero)
        #expect(log.levels == AckLevels(memory: seq(2), disk: seq(1)))
    }

    @Test func whatWasAcknowledgedStaysSoUnderStricterRules() throws {
        var log = log(rules: [pair])
        log.followerStarted(at: .zero)
        log.appended(through: seq(4))
        log.sent(through: seq(4))
        try log.acknowledged(received: seq(4), durable: .zero, applied: .zero)
        log.setRules([pair, alone])
        #expect(log.levels.memory == seq(4))
        log.appended(through: seq(5))
        log.sent(through: seq(5))
        try log.acknowledged(received: seq(5), durable: .zero, applied: .zero)
        #expect(log.levels.memory == seq(4))
    }

    @Test func failure16ANewSessionCountsOnlyWhatTheOtherDiskHolds() throws {
        var log = log(rules: [pair])
        log.followerStarted(at: .zero)
        log.appended(through: seq(4))
        log.durable(through: seq(4))
        log.sent(through: seq(4))
        try log.acknowledged(received: seq(4), durable: seq(1), applied: .zero)
        #expect(log.followerHoldsEverythingAcknowledged == false)
        log.followerLost()
        log.followerStarted(at: seq(1))
        #expect(log.follower?.received == seq(1))
        #expect(log.followerHoldsEverythingAcknowledged == false)
        log.sent(through: seq(4))
        try log.acknowledged(received: seq(4), durable: seq(4), applied: .zero)
        #expect(log.followerHoldsEverythingAcknowledged)
    }

    @Test func impossibleAcknowledgementsAreRefused() {
        var log = log(rules: [pair])
        log.followerStarted(at: .zero)
        log.appended(through: seq(4))
        log.sent(through: seq(2))
        #expect(throws: AckError.ahead(claimed: seq(3), sent: seq(2))) {
            try log.acknowledged(received: seq(3), durable: .zero, applied: .zero)
        }
        #expect(throws: AckError.impossible) {
            try log.acknowledged(received: seq(1), durable: seq(2), applied: .zero)
        }
        #expect(log.levels.memory == .zero)
    }
}

@Suite struct SyncPlanTests {
    private func state(
        _ epochs: [(UInt32, UInt64)], last: UInt64, committed: UInt64 = 0, oldest: UInt64 = 1, serving: Bool = false,
        incomplete: Bool = false, decision: Decision? = nil, ballot: UInt64 = 1
    ) -> LogState {
        LogState(
            isServing: serving, isIncomplete: incomplete, decision: decision, ballot: [0, ballot, 0],
            lastSeq: seq(last), lastChain: 0, durableSeq: seq(last), committedSeq: seq(committed),
            oldestSeq: seq(oldest),
            epochs: epochs.map { EpochStart(epoch: Epoch(rawValue: $0.0), firstSeq: seq($0.1)) })
    }
    private let both = Decision(sequence: 2, epoch: Epoch(rawValue: 1), primary: .a, inSync: .both)
    private let onlyA = Decision(sequence: 3, epoch: Epoch(rawValue: 2), primary: .a, inSync: .a)

    @Test func theLongerLogIsTheSourceWhenNobodyServes() {
        let mine = state([(1, 1)], last: 10, decision: both)
        let theirs = state([(1, 1)], last: 12, decision: both)
        #expect(SyncPlan.make(me: .a, mine: mine, theirs: theirs) == .follow)
        #expect(SyncPlan.make(me: .b, mine: theirs, theirs: mine) == .source(common: seq(10)))
    }

    @Test func failure11TheTailOfAnOldEpochIsCutWhateverItsLength() {
        let old = state([(1, 1)], last: 20, committed: 8, decision: both)
        let new = state([(1, 1), (2, 11)], last: 12, serving: true, decision: both)
        #expect(SyncPlan.make(me: .b, mine: new, theirs: old) == .source(common: seq(10)))
        #expect(SyncPlan.make(me: .a, mine: old, theirs: new) == .follow)
    }

    /// What was on the other disk and is not: compared, whatever the journal could send.
    @Test func failure18ALogThatEndsBeforeWhatItsDiskHeldIsCompared() {
        for last: UInt64 in 0...20 {
            for held: UInt64 in 0...18 {
                for incomplete in [false, true] {
                    let mine = state([(1, 1)], last: 20, committed: 18, serving: true, decision: both)
                    let theirs = state(
                        last == 0 ? [] : [(1, 1)], last: last, incomplete: incomplete, decision: both)
                    let plan = SyncPlan.make(me: .a, mine: mine, theirs: theirs, held: seq(held))
                    let expected: SyncPlan =
                        if incomplete {
                            .compare(.incomplete)
                        } else if last < held {
                            .compare(.putBack(held: seq(held), last: seq(last)))
                        } else {
                            .source(common: seq(last))
                        }
                    #expect(plan == expected, "\(last) of \(held)")
                    // The other side's plan does not depend on it.
                    #expect(SyncPlan.make(me: .b, mine: theirs, theirs: mine) == .follow)
                }
            }
        }
    }

    /// Both count as in sync, so what one of them knows to be committed was on the other's disk: also when nobody serves,
    /// and nobody remembers more than the journals do.
    @Test func failure18ACommittedRecordThatANodeInSyncLacksWasOnItsDisk() {
        let mine = state([(1, 1)], last: 20, committed: 18, decision: both)
        // Not in sync: it never had them.
        let alone = state([(1, 1)], last: 20, committed: 18, decision: onlyA, ballot: 7)
        for last: UInt64 in 0...20 {
            let theirs = state(last == 0 ? [] : [(1, 1)], last: last, decision: both)
            let expected: SyncPlan =
                last < 18 ? .compare(.putBack(held: seq(18), last: seq(last))) : .source(common: seq(last))
            #expect(SyncPlan.make(me: .a, mine: mine, theirs: theirs) == expected)
            #expect(SyncPlan.make(me: .b, mine: theirs, theirs: mine) == .follow)
            #expect(SyncPlan.make(me: .a, mine: alone, theirs: theirs) == .source(common: seq(last)))
        }
    }

    @Test func theOnlyNodeInSyncIsTheSourceHoweverShortItsLog() {
        let sole = state([(1, 1)], last: 5, decision: onlyA, ballot: 7)
        let stale = state([(1, 1)], last: 9, committed: 3, decision: both, ballot: 4)
        #expect(SyncPlan.make(me: .a, mine: sole, theirs: stale) == .source(common: seq(5)))
        #expect(SyncPlan.make(me: .b, mine: stale, theirs: sole) == .follow)
    }

    @Test func aFollowerThatAppliedAnotherHistoryIsComparedNeverCut() {
        let mine = state([(1, 1), (3, 11)], last: 20, serving: true, decision: both)
        let theirs = state([(1, 1), (2, 8)], last: 15, committed: 14, decision: both)
        #expect(
            SyncPlan.make(me: .a, mine: mine, theirs: theirs)
                == .compare(.otherHistory(common: seq(7), applied: seq(14))))
    }

    /// Alone it applied record 12 before any disk said that it was committed: its files have left the mirror, and cutting
    /// its log would not bring them back.
    @Test func failure34ANodeOverruledByForceIsComparedHoweverLittleItKnowsToBeCommitted() {
        var mine = state([(1, 1), (3, 12)], last: 20, serving: true, decision: both)
        let theirs = state([(1, 1), (2, 12)], last: 12, committed: 11, decision: onlyA)
        #expect(SyncPlan.make(me: .b, mine: mine, theirs: theirs) == .source(common: seq(11)))
        mine.forcedAt = seq(11)
        #expect(
            SyncPlan.make(me: .b, mine: mine, theirs: theirs)
                == .compare(.otherHistory(common: seq(11), applied: seq(12))))
        // A promotion before the last common record: both were in sync since, and the tail is an ordinary one.
        mine.forcedAt = seq(10)
        #expect(SyncPlan.make(me: .b, mine: mine, theirs: theirs) == .source(common: seq(11)))
    }

    @Test func aJournalThatNoLongerReachesBackLeadsToAComparison() {
        let mine = state([(1, 1)], last: 50, oldest: 30, serving: true, decision: both)
        let theirs = state([(1, 1)], last: 12, committed: 12, decision: both)
        #expect(
            SyncPlan.make(me: .a, mine: mine, theirs: theirs)
                == .compare(.journalTooShort(common: seq(12), oldest: seq(30))))
    }

    @Test func anIncompleteCopyIsNeverTheSource() {
        let mine = state([(1, 1)], last: 50, incomplete: true, decision: both)
        let theirs = state([(1, 1)], last: 12, committed: 12, decision: both)
        #expect(SyncPlan.make(me: .a, mine: mine, theirs: theirs) == .follow)
        #expect(SyncPlan.make(me: .b, mine: theirs, theirs: mine) == .compare(.incomplete))
        let both = state([(1, 1)], last: 12, incomplete: true, decision: both)
        #expect(SyncPlan.make(me: .a, mine: both, theirs: both) == .refuse(.bothIncomplete))
    }

    @Test func bothNodesAlwaysWorkOutOppositeRoles() {
        let states = [
            state([(1, 1)], last: 10, decision: both), state([(1, 1), (2, 8)], last: 9, decision: both),
            state([(1, 1)], last: 10, serving: true, decision: onlyA, ballot: 3),
            state([], last: 0), state([(1, 1)], last: 4, incomplete: true, decision: both),
            state([(1, 1), (3, 5)], last: 40, oldest: 20, decision: onlyA, ballot: 9),
        ]
        for mine in states {
            for theirs in states {
                let here = SyncPlan.make(me: .a, mine: mine, theirs: theirs)
                let there = SyncPlan.make(me: .b, mine: theirs, theirs: mine)
                switch (here, there) {
                case (.follow, .source), (.follow, .compare), (.source, .follow), (.compare, .follow): continue
                case (.refuse(let one), .refuse(let other)): #expect(one == other)
                default: Issue.record("\(here) against \(there)")
                }
            }
        }
    }
}
