import Format
import Journal
import Testing

@Suite struct AppendTests {
    @Test func whatWasAppendedIsThereAfterARestart() throws {
        let disk = freshDisk()
        let storage = FakeStorage(disk)
        let journal = try openJournal(storage)
        #expect(journal.report.verdict == .intact && journal.lastSeq == .zero)
        var maker = BatchMaker()
        var wanted: [Contents] = []
        for lengths in [[100], [5000, 17], [1 << 20], [1, 2, 3], [4096, 4096]] {
            let batch = maker.make(lengths)
            wanted.append(Contents(batch))
            try journal.append(batch)
        }
        storage.settle()
        #expect(journal.durableSeq == maker.seq)
        let again = try openJournal(FakeStorage(disk))
        #expect(again.report.verdict == .intact)
        #expect(again.lastSeq == maker.seq && again.lastChain == maker.chain)
        #expect(try read(again, from: Seq(rawValue: 1)).map(Contents.init) == wanted)
    }

    @Test func durableSeqIsTheEndOfTheUnbrokenRun() throws {
        let storage = FakeStorage(freshDisk())
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        var told: [Seq] = []
        var completed: [Int] = []
        journal.onDurable = { told.append($0) }
        for number in 0..<4 { try journal.append(maker.make([200, 200])) { _ in completed.append(number) } }
        storage.complete(2)
        storage.complete(1)
        #expect(journal.durableSeq == .zero && completed.isEmpty)
        storage.complete(0)
        #expect(journal.durableSeq == Seq(rawValue: 6) && completed == [0, 1, 2] && told == [Seq(rawValue: 6)])
    }

    @Test func aBatchThatDoesNotContinueTheJournalIsRefused() throws {
        let storage = FakeStorage(freshDisk())
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        try journal.append(maker.make())
        var gap = BatchMaker(seq: Seq(rawValue: 2), chain: maker.chain)
        #expect(throws: JournalError.self) { try journal.append(gap.make()) }
        var fork = BatchMaker(seq: Seq(rawValue: 1), chain: 1234)
        #expect(throws: JournalError.self) { try journal.append(fork.make()) }
        var foreign = BatchMaker(after: journal)
        foreign.mirror = MirrorID(high: 1, low: 1)
        #expect(throws: JournalError.self) { try journal.append(foreign.make()) }
        #expect(journal.lastSeq == Seq(rawValue: 1))
    }

    @Test func headerEntriesFollowOnlyWhenEverythingBeforeIsDurable() throws {
        let storage = FakeStorage(freshDisk())
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        for _ in 0..<3 { try journal.append(maker.make()) }
        storage.complete(2)
        storage.complete(1)
        #expect(storage.pending.count == 1, "no entry while an earlier batch is in flight")
        storage.complete(0)
        #expect(storage.pending.count == 1 && storage.pending[0].offset >= journal.layout.headerRingStart)
        #expect(storage.pending[0].offset < journal.layout.bodyStart, "at once when idle")
    }

    @Test func failure23aWriteErrorStopsTheJournalForGood() throws {
        let storage = FakeStorage(freshDisk())
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        var failures: [JournalError] = []
        var completed = 0
        journal.onFailure = { failures.append($0) }
        for _ in 0..<3 { try journal.append(maker.make()) { _ in completed += 1 } }
        storage.complete(0)
        storage.complete(0, result: -5)
        storage.complete(0)
        #expect(failures.count == 1 && completed == 1 && journal.durableSeq == Seq(rawValue: 1))
        #expect(throws: JournalError.self) { try journal.append(maker.make()) }
        #expect(!journal.canAppend(4096))
    }

    @Test func aShortWriteIsAFailedWrite() throws {
        let storage = FakeStorage(freshDisk())
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        try journal.append(maker.make([8192]))
        storage.complete(0, result: 4096)
        #expect(journal.durableSeq == .zero)
        if case .failed = journal.state {} else { Issue.record("still \(journal.state)") }
    }

    @Test func aFullJournalRefusesDataAndStillTakesControlRecords() throws {
        let storage = FakeStorage(freshDisk())
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        while journal.canAppend(4096 + (1 << 20)) {
            try journal.append(maker.make([1 << 20]))
            storage.settle()
        }
        #expect(journal.freeBytes < 2 << 20)
        #expect(throws: JournalError.self) { try journal.append(maker.make([1 << 20])) }
        maker = BatchMaker(after: journal)
        #expect(journal.canAppend(4096, control: true))
        try journal.append(maker.epochStart(Epoch(rawValue: 2)), control: true)
        storage.settle()
        var roomTold = false
        journal.onRoom = { roomTold = true }
        #expect(!journal.canAppend(4096 + (1 << 20)))
        var done = false
        journal.checkpoint(journal.durableSeq) { done = true }
        #expect(!journal.canAppend(4096 + (1 << 20)), "free only when the checkpoint is on the disk")
        storage.settle()
        #expect(done && roomTold && journal.canAppend(4096 + (1 << 20)))
        let again = try openJournal(FakeStorage(storage.disk))
        #expect(again.lastSeq == journal.lastSeq && again.lastEpoch == Epoch(rawValue: 2))
    }

    /// One write of the superblock: a crash leaves a copy that does not count behind its old checkpoint, or one that does.
    @Test func aCheckpointTakesBackTheMarkOfAnIncompleteCopyWithIt() throws {
        let storage = FakeStorage(freshDisk())
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        journal.setIncomplete(true) {}
        storage.settle()
        try journal.append(maker.make())
        storage.settle()
        journal.checkpoint(journal.durableSeq)
        storage.settle()
        #expect(journal.superblock.isIncomplete, "not by itself")
        try journal.append(maker.make())
        storage.settle()
        let generation = journal.superblock.generation
        journal.checkpoint(journal.durableSeq, isComplete: true)
        storage.settle()
        #expect(journal.superblock.generation == generation + 1)
        #expect(journal.checkpointSeq == journal.lastSeq)
        #expect(try !openJournal(FakeStorage(storage.disk)).superblock.isIncomplete)
    }

    @Test func neverMoreInFlightThanTheLimit() throws {
        let storage = FakeStorage(freshDisk())
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        for _ in 0..<JournalLimits.inFlightBatches { try journal.append(maker.make()) }
        #expect(!journal.canAppend(4096))
        storage.settle()
        #expect(journal.canAppend(4096))
    }

    @Test func spaceBehindTheCheckpointStaysReadableUntilItIsNeeded() throws {
        let storage = FakeStorage(freshDisk())
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        for _ in 0..<10 { try journal.append(maker.make([1 << 20])) }
        storage.settle()
        journal.checkpoint(Seq(rawValue: 10))
        storage.settle()
        #expect(journal.oldestSeq == Seq(rawValue: 1))
        #expect(try read(journal, from: Seq(rawValue: 1)).count == 10)
        // After a restart too.
        let again = try openJournal(FakeStorage(storage.disk.copy()))
        #expect(again.oldestSeq == Seq(rawValue: 1))
        #expect(try read(again, from: Seq(rawValue: 1)).count == 10)
        var overwritten = 0
        while journal.oldestSeq <= Seq(rawValue: 5) {
            try journal.append(maker.make([1 << 20]))
            storage.settle()
            journal.checkpoint(journal.durableSeq)
            storage.settle()
            overwritten += 1
        }
        #expect(overwritten > 45)
        #expect(journal.plan(from: Seq(rawValue: 1), limitBytes: 1) == nil)
    }

    @Test func chainsAreKnownAtEveryEndOfABatch() throws {
        let storage = FakeStorage(freshDisk())
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        var chains: [Seq: UInt64] = [.zero: 0]
        for count in [1, 3, 2] {
            try journal.append(maker.make([Int](repeating: 10, count: count)))
            chains[maker.seq] = maker.chain
        }
        storage.settle()
        for seq in 0...6 {
            #expect(journal.chain(at: Seq(rawValue: UInt64(seq))) == chains[Seq(rawValue: UInt64(seq))])
        }
        #expect(journal.boundary(atOrBelow: Seq(rawValue: 3))?.seq == Seq(rawValue: 1))
        #expect(journal.boundary(atOrBelow: Seq(rawValue: 4))?.seq == Seq(rawValue: 4))
        #expect(journal.boundary(atOrBelow: .zero)?.seq == .zero)
    }

    @Test func epochsAreKnownFromTheBatchesThemselves() throws {
        let storage = FakeStorage(freshDisk())
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        try journal.append(maker.epochStart(Epoch(rawValue: 3)))
        try journal.append(maker.make())
        try journal.append(maker.epochStart(Epoch(rawValue: 5)))
        storage.settle()
        let again = try openJournal(FakeStorage(storage.disk))
        #expect(again.epochs.starts.map(\.epoch.rawValue) == [3, 5])
        #expect(again.epochs.starts.map(\.firstSeq.rawValue) == [1, 3])
        #expect(again.lastEpoch == Epoch(rawValue: 5))
    }
}
