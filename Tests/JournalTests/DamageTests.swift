import Format
import Journal
import Testing

/// A journal that was damaged knows what it has lost until it has been mended, however often it is started.
@Suite struct DamageTests {
    /// What is done to a journal of six batches, one record each, that was stopped cleanly.
    enum Rot: CaseIterable {
        /// Bytes of the last batch. Its entry is there.
        case lastBatch
        /// Of one in the middle; what is behind it is whole.
        case middleBatch
        /// The last three, with their entries: only the clean stop says that they were there.
        case lastBatchesAndEntries
        /// Two holes.
        case twoBatches
    }

    /// - Parameter stops: whether the stop was clean; else the process was killed.
    private func rotten(_ rot: Rot, stops: Bool) throws -> (disk: FakeDisk, batches: [Batch]) {
        let disk = freshDisk()
        let storage = FakeStorage(disk)
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        var batches: [Batch] = []
        for _ in 0..<6 {
            batches.append(maker.make([9000]))
            try journal.append(batches[batches.count - 1])
        }
        storage.settle()
        if stops {
            journal.markCleanStop {}
            storage.settle()
        }
        let plan = try #require(journal.plan(from: Seq(rawValue: 1), limitBytes: 1 << 30))
        let layout = journal.layout
        let victims =
            switch rot {
            case .lastBatch: [5]
            case .middleBatch: [3]
            case .lastBatchesAndEntries: [3, 4, 5]
            case .twoBatches: [2, 5]
            }
        for victim in victims {
            guard rot == .lastBatchesAndEntries else {
                disk.damage(at: plan[victim].position + 4096 + 5)
                continue
            }
            for page in 0..<plan[victim].length / 4096 { disk.pages[plan[victim].position / 4096 + page] = nil }
            let block = layout.headerBlockOffset(layout.headerBlock(forBody: plan[victim].position - layout.bodyStart))
            disk.pages[block / 4096] = nil
        }
        return (disk, batches)
    }

    /// What does not change from one start to the next.
    private struct Finding: Hashable {
        var verdict: RecoveryReport.Verdict
        var outcome: RecoveryTable.Outcome
        var lastSeq: Seq
        var knownCommittedSeq: Seq
        var doubts: [RecoveryReport.Doubt]

        init(_ disk: FakeDisk) throws {
            let report = try JournalMap(image: FakeStorage(disk), mirror: testMirror).report
            verdict = report.verdict
            outcome = report.outcome(.alone)
            lastSeq = report.lastSeq
            knownCommittedSeq = report.knownCommittedSeq
            doubts = report.doubts
        }
    }

    /// As the node does: the clean stop is taken back; now and then something else is written to the superblock, and now and
    /// then it is stopped in order.
    private func start(_ disk: FakeDisk, _ number: Int, writes: Int? = nil) throws {
        let storage = FakeStorage(disk, writesLeft: writes)
        let journal = try openJournal(storage)
        #expect(journal.isDamaged && !journal.report.wasStoppedCleanly)
        journal.clearCleanStop(isStrict: number % 2 == 0) {}
        guard storage.settle() else { return }
        if number == 1 { journal.noteEpochs {} }
        if number == 2 { try journal.setMisfitNow(life: nil) }
        journal.listIdle()
        guard storage.settle() else { return }
        if number >= 1 { journal.markCleanStop {} }
        guard storage.settle() else { return }
        if number == 3 { journal.clearCleanStop {} }
        storage.settle()
    }

    @Test(arguments: Rot.allCases, [true, false])
    func failure10WhatADamagedJournalHasLostIsKnownAfterEveryStart(rot: Rot, stops: Bool) throws {
        guard stops || rot != .lastBatchesAndEntries else { return }
        let (disk, _) = try rotten(rot, stops: stops)
        let first = try Finding(disk)
        guard case .damaged = first.verdict else { throw JournalError(.damaged, "nothing was found") }
        #expect(first.outcome == .refusePrimary)
        for number in 0..<4 {
            try start(disk, number)
            #expect(try Finding(disk) == first, "after start \(number)")
        }
    }

    @Test(arguments: [Rot.middleBatch, .lastBatchesAndEntries])
    func failure10APowerCutDuringAStartForgetsNoDamage(rot: Rot) throws {
        let (disk, _) = try rotten(rot, stops: true)
        let first = try Finding(disk)
        for writes in 0..<9 {
            do {
                try start(disk, writes % 3, writes: writes)
            } catch let error as JournalError {
                #expect(error.code == .failed, "\(error)")
            }
            #expect(try Finding(disk) == first, "power cut after \(writes) writes")
        }
    }

    /// The other node sends what was lost, and is lost itself in the middle of that.
    @Test(arguments: Rot.allCases)
    func failure10AJournalThatWasMendedInPartKnowsWhatIsStillMissing(rot: Rot) throws {
        let (disk, batches) = try rotten(rot, stops: true)
        var found = try Finding(disk)
        guard case .damaged(let through) = found.verdict else { throw JournalError(.damaged, "nothing was found") }
        while case .damaged = found.verdict {
            #expect(found.verdict == .damaged(through: through))
            try start(disk, 0)
            let storage = FakeStorage(disk)
            let journal = try openJournal(storage)
            let before = journal.lastSeq
            journal.clearCleanStop {}
            storage.settle()
            try journal.append(batches[Int(before.rawValue)])
            storage.settle()
            found = try Finding(disk)
            #expect(found.lastSeq > before)
        }
        // It is whole: no start finds anything any more.
        for _ in 0..<2 {
            let journal = try openJournal(FakeStorage(disk))
            #expect(journal.report.verdict == .intact && journal.lastSeq == Seq(rawValue: 6))
            #expect(try read(journal, from: Seq(rawValue: 1)).map(Contents.init) == batches.map(Contents.init))
        }
    }

    /// What the other node decides ends it: a log that is cut, or one that begins anew, lacks nothing.
    @Test(arguments: [Rot.middleBatch, .lastBatchesAndEntries], [true, false])
    func aCutOrANewBeginningEndsTheDamage(rot: Rot, cuts: Bool) throws {
        let (disk, _) = try rotten(rot, stops: true)
        try start(disk, 0)
        let storage = FakeStorage(disk)
        let journal = try openJournal(storage)
        let end = cuts ? Seq(rawValue: 1) : Seq(rawValue: 100)
        var done = false
        if cuts {
            try journal.cut(to: end) { done = true }
        } else {
            try journal.reset(to: end, chain: 7, epochs: EpochHistory(), incomplete: true) { done = true }
        }
        storage.settle()
        #expect(done && !journal.isDamaged)
        for _ in 0..<2 {
            let again = try openJournal(FakeStorage(disk))
            #expect(again.report.verdict == .intact && again.lastSeq == end && again.isIncomplete != cuts)
        }
    }

    // MARK: the life of a start

    /// Whoever writes does so in a life of its own, on a damaged journal too.
    @Test func eachStartOfADamagedJournalHasALifeOfItsOwn() throws {
        let (disk, batches) = try rotten(.lastBatchesAndEntries, stops: true)
        var life = try JournalMap(image: FakeStorage(disk), mirror: testMirror).report.superblock.incarnation
        for number in 0..<2 {
            let storage = FakeStorage(disk)
            let journal = try openJournal(storage)
            #expect(journal.incarnation == life.next)
            life = journal.incarnation
            try journal.append(batches[3 + number])
            storage.complete()
            let place = try #require(journal.plan(from: journal.lastSeq, limitBytes: 1))[0]
            #expect(FakeStorage(disk).header(at: place.position)?.incarnation == life.rawValue)
        }
    }

    /// A start that ends before the plain files were looked at leaves the journal as it was, whatever state it is in.
    @Test(arguments: [nil, true, false] as [Bool?])
    func failure18NothingIsWrittenBeforeAStartIsSettled(stops: Bool?) throws {
        let disk: FakeDisk
        if let stops {
            disk = try rotten(.lastBatch, stops: stops).disk
        } else {
            disk = freshDisk()
            let storage = FakeStorage(disk)
            let journal = try openJournal(storage)
            var maker = BatchMaker()
            for _ in 0..<3 { try journal.append(maker.make([9000])) }
            // The middle one is not there: what is behind it will be cut.
            storage.complete(2)
            storage.complete(0)
        }
        func open() throws -> Journal {
            try Journal(storage: FakeStorage(disk), mirror: testMirror, node: .a, settles: false)
        }
        let before = disk.pages
        for _ in 0..<3 { _ = try open() }
        #expect(disk.pages == before)
        // What is wrong is noted before the life begins: a crash right behind it counts nothing on.
        let journal = try open()
        let life = journal.incarnation
        try journal.setMisfitNow(life: nil)
        #expect(try open().isIncomplete && open().incarnation == life)
        #expect(try open().report.verdict == journal.report.verdict)
        try journal.settle()
        #expect(try open().isIncomplete && open().incarnation == life.next)
    }

    /// The misfit has taken the clean stop back: the life that begins is a new one.
    @Test func aMisfitOfAJournalThatWasStoppedCleanlyBeginsALife() throws {
        let disk = freshDisk()
        let storage = FakeStorage(disk)
        let journal = try openJournal(storage)
        journal.markCleanStop {}
        storage.settle()
        let again = try Journal(storage: FakeStorage(disk), mirror: testMirror, node: .a, settles: false)
        let life = again.incarnation
        try again.setMisfitNow(life: life)
        try again.settle()
        #expect(again.incarnation == life.next)
        // Without one, a clean stop stands until it is taken back.
        let other = try openJournal(storage)
        other.markCleanStop {}
        storage.settle()
        let last = try openJournal(FakeStorage(disk))
        #expect(last.report.wasStoppedCleanly && last.incarnation == other.incarnation)
    }
}
