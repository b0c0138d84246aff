import Format
import Testing

@testable import Replication

private func seq(_ value: UInt64) -> Seq { Seq(rawValue: value) }
private let file = FileID(rawValue: 9)

@Suite struct DebtTests {
    private func state(
        last: UInt64, oldest: UInt64 = 1, committed: UInt64 = 0, number: UInt64 = 0, isServing: Bool = false
    ) -> LogState {
        var state = LogState(
            isServing: isServing, isIncomplete: number != 0,
            decision: Decision(sequence: 1, epoch: Epoch(rawValue: 1), primary: .a, inSync: .a), ballot: [1],
            lastSeq: seq(last), lastChain: 0, durableSeq: seq(last), committedSeq: seq(committed),
            oldestSeq: seq(oldest), epochs: [EpochStart(epoch: Epoch(rawValue: 1), firstSeq: seq(1))])
        state.resyncNumber = number
        return state
    }

    /// The source is at record 1000, its journal begins at 900.
    private func plan(_ debt: Debt?, _ theirs: LogState) -> SyncPlan {
        SyncPlan.make(
            me: .a, mine: state(last: 1000, oldest: 900, isServing: true), theirs: theirs, debt: debt?.terms)
    }

    @Test func theJournalComesFirstThenRangesThenComparison() {
        let debt = Debt(base: seq(500))
        #expect(plan(debt, state(last: 950)) == .source(common: seq(950)))
        #expect(plan(debt, state(last: 899)) == .source(common: seq(899)))
        #expect(plan(debt, state(last: 898)) == .ranges(common: seq(898), .fresh(withOwed: false)))
        #expect(plan(debt, state(last: 500)) == .ranges(common: seq(500), .fresh(withOwed: false)))
        #expect(plan(debt, state(last: 499)) == .compare(.journalTooShort(common: seq(499), oldest: seq(900))))
        #expect(plan(nil, state(last: 600)) == .compare(.journalTooShort(common: seq(600), oldest: seq(900))))
        // It has applied records that are not in this history.
        #expect(
            plan(debt, state(last: 1100, committed: 1050))
                == .compare(.otherHistory(common: seq(1000), applied: seq(1050))))
        #expect(plan(debt, state(last: 700, number: 7)) == .compare(.incomplete), "a number nobody knows")
    }

    /// Who takes part, who did not, and who was put back.
    @Test func whatIsOwedIsGoodForWhoItIsOwedTo() {
        var debt = Debt(base: seq(500))
        debt.begin(number: 7, start: seq(800), way: .fresh(withOwed: false), common: seq(600))
        #expect(plan(debt, state(last: 700, number: 7)) == .compare(.incomplete), "its log begins at the start")
        #expect(plan(debt, state(last: 800, number: 7)) == .ranges(common: seq(800), .again))
        #expect(plan(debt, state(last: 899, number: 7)) == .ranges(common: seq(899), .resume))
        #expect(plan(debt, state(last: 950, number: 7)) == .ranges(common: seq(950), .resume))
        #expect(plan(debt, state(last: 950, number: 8)) == .compare(.incomplete))
        // It never heard of it, or finished it.
        #expect(plan(debt, state(last: 600)) == .ranges(common: seq(600), .fresh(withOwed: true)))
        #expect(plan(debt, state(last: 850)) == .ranges(common: seq(850), .fresh(withOwed: false)))
        // From the first image on its disk what is owed is owed to it alone, from there on.
        debt.confirm(.object(file), at: seq(820))
        #expect(plan(debt, state(last: 600)) == .compare(.journalTooShort(common: seq(600), oldest: seq(900))))
        #expect(plan(debt, state(last: 810, number: 7)) == .compare(.incomplete), "its disk was put back")
        #expect(plan(debt, state(last: 820, number: 7)) == .ranges(common: seq(820), .again))
        debt.begin(number: 7, start: seq(990), way: .again, common: seq(830))
        #expect(plan(debt, state(last: 830, number: 7)) == .ranges(common: seq(830), .again), "not reset yet")
        #expect(plan(debt, state(last: 829, number: 7)) == .compare(.incomplete))
        #expect(plan(debt, state(last: 990, number: 7)) == .ranges(common: seq(990), .resume))
    }

    /// Nothing moves between the layers unseen.
    @Test func theLayersTogetherAlwaysNameWhatChanged() throws {
        var debt = Debt(base: seq(0))
        var map = DirtyMap()
        func write(_ offset: UInt64) {
            map = DirtyMap()
            map.note(.write(file: file, offset: offset), length: 4096)
            debt.add(map)
        }
        func owed(_ offset: UInt64) -> Bool {
            debt.owed?.map.range(of: file, from: offset, size: .max, limit: 4096)?.lowerBound == offset
        }
        write(0)
        debt.begin(number: 3, start: seq(10), way: .fresh(withOwed: false), common: seq(0))
        write(8192)
        #expect(owed(0) && !owed(8192))
        debt.confirm(.content(file, 0..<4096), at: seq(12))
        #expect(!owed(0))
        debt.begin(number: 3, start: seq(20), way: .again, common: seq(12))
        #expect(!owed(0) && owed(8192), "what was confirmed stays so, what changed since is owed")
        #expect(debt.since.isEmpty && debt.sinceBase == seq(20))
        var writer = ByteWriter()
        debt.encode(into: &writer)
        var reader = ByteReader(writer.bytes)
        let again = try Debt(decoding: &reader)
        try reader.finish()
        #expect(again.terms == debt.terms)
        var second = ByteWriter()
        again.encode(into: &second)
        #expect(second.bytes == writer.bytes)
    }

    @Test func anObjectThatIsKnownStaysOwed() {
        var debt = Debt(base: seq(0))
        var map = DirtyMap()
        map.note(
            .create(
                file: file, parent: .root, name: [1], attributes: FileAttributes(mode: 0o100_644, uid: 0, gid: 0),
                target: [], xattrs: []))
        debt.add(map)
        debt.begin(number: 3, start: seq(10), way: .fresh(withOwed: false), common: seq(0))
        #expect(debt.owed?.map.created == [file])
        debt.confirm(.directory(.root, learned: [file]), at: seq(11))
        #expect(debt.owed?.map.created == [])
        #expect(debt.owed?.map.changes(of: file)?.hasContent == true)
        debt.confirm(.object(file), at: seq(12))
        #expect(debt.owed?.map.isEmpty == true)
    }
}
