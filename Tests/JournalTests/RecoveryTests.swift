import Format
import Journal
import Testing

/// Damage of every kind, each made by hand.
@Suite struct RecoveryTests {
    /// A journal with batches of these lengths, everything listed in the header ring; and where they lie.
    private func filled(
        _ batches: [[Int]], listed: Bool = true, stop: Bool = false
    ) throws -> (FakeDisk, [BatchLocation], JournalLayout) {
        let disk = freshDisk()
        let storage = FakeStorage(disk)
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        for lengths in batches { try journal.append(maker.make(lengths)) }
        if listed {
            storage.settle()
        } else {
            for _ in batches { storage.complete() }
            storage.pending = []
        }
        if stop {
            journal.markCleanStop {}
            storage.settle()
        }
        let plan = try #require(journal.plan(from: Seq(rawValue: 1), limitBytes: 1 << 30))
        return (disk, plan, journal.layout)
    }

    private func report(_ disk: FakeDisk) throws -> RecoveryReport {
        try JournalMap(image: FakeStorage(disk), mirror: testMirror).report
    }

    @Test func aTornLastBatchIsCutAndNothingElse() throws {
        let (disk, plan, _) = try filled([[100], [9000], [9000]], listed: false)
        disk.damage(at: plan[2].position + 4096 + 5)
        let report = try report(disk)
        #expect(report.verdict == .tailCut && report.lastSeq == Seq(rawValue: 2) && report.doubts.isEmpty)
        #expect(report.outcome(.alone) == .tailCut)
        let journal = try openJournal(FakeStorage(disk))
        #expect(journal.lastSeq == Seq(rawValue: 2) && !journal.isDamaged)
        // And it is gone for good: the next start finds nothing to cut.
        #expect(try self.report(disk).verdict == .intact)
    }

    @Test func failure10aDamagedLastBatchThatWasDurableIsNeverCut() throws {
        let (disk, plan, _) = try filled([[100], [9000], [9000, 50]])
        disk.damage(at: plan[2].position + 4096 + 5)
        let report = try report(disk)
        #expect(report.verdict == .damaged(through: Seq(rawValue: 4)))
        #expect(report.outcome(.alone) == .refusePrimary && report.outcome(.withPeer) == .fetch)
        // Named: the damaged range of the file, and the whole record that stands behind it.
        #expect(report.doubts.count == 2)
        #expect(report.doubts[0].reason == .payload && report.doubts[0].file == FileID(rawValue: 2))
        #expect(report.doubts[0].range == 0..<9000)
    }

    @Test func aCleanStopProvesItsLastBatchEvenWithoutEntries() throws {
        let (disk, plan, layout) = try filled([[100], [9000]], stop: true)
        #expect(try report(disk).wasStoppedCleanly)
        disk.damage(at: plan[1].position + 4096)
        let block = layout.headerBlockOffset(layout.headerBlock(forBody: plan[1].position - layout.bodyStart))
        disk.pages[block / 4096] = nil
        let report = try report(disk)
        #expect(report.verdict == .damaged(through: Seq(rawValue: 2)) && !report.wasStoppedCleanly)
    }

    @Test func aLaterDurableSeqProvesABatchWithoutEntry() throws {
        let disk = freshDisk()
        let storage = FakeStorage(disk)
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        try journal.append(maker.make([9000]))
        storage.complete()
        storage.pending = []
        try journal.append(maker.make([100]))
        storage.complete()
        let first = try #require(journal.plan(from: Seq(rawValue: 1), limitBytes: 1))[0]
        let whole = disk.copy()
        disk.damage(at: first.position + 10)
        #expect(try report(disk).verdict == .damaged(through: Seq(rawValue: 1)))
        whole.damage(at: first.position + 4096)
        #expect(try report(whole).verdict == .damaged(through: Seq(rawValue: 1)))
    }

    /// A node that catches up receives batches that were closed when the ones before them were on the other node's disk,
    /// and committed there. Of this disk they prove nothing.
    @Test func aLaterCommittedSeqProvesNothingOfThisDisk() throws {
        let disk = freshDisk()
        let storage = FakeStorage(disk)
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        maker.committed = Seq(rawValue: 1000)
        for _ in 0..<3 { try journal.append(maker.make([9000])) }
        storage.complete(2)
        storage.complete(0)
        #expect(try report(disk).verdict == .tailCut)
        #expect(try openJournal(FakeStorage(disk)).lastSeq == Seq(rawValue: 1))
    }

    @Test func laterBatchesThatProveNothingAreCutWithTheTornOne() throws {
        let disk = freshDisk()
        let storage = FakeStorage(disk)
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        for _ in 0..<3 { try journal.append(maker.make([9000])) }
        storage.complete(2)
        storage.complete(0)
        // Batch 2 never reached the disk, batch 3 did.
        #expect(try report(disk).verdict == .tailCut)
        let again = try openJournal(FakeStorage(disk))
        #expect(again.lastSeq == Seq(rawValue: 1))
        #expect(try report(disk).verdict == .intact)
    }

    @Test func damageInTheMiddleKeepsWhatIsBehindItAndIsRepairedFromThePeer() throws {
        for kind in 0..<4 {
            let disk = freshDisk()
            let storage = FakeStorage(disk)
            let journal = try openJournal(storage)
            var maker = BatchMaker()
            var batches: [Batch] = []
            for number in 0..<6 {
                let batch = maker.make([9000 + number, 70])
                batches.append(batch)
                try journal.append(batch)
            }
            storage.settle()
            let plan = try #require(journal.plan(from: Seq(rawValue: 1), limitBytes: 1 << 30))
            let wanted = batches.map(Contents.init)
            switch kind {
            case 0: disk.damage(at: plan[2].position + 4096)
            case 1: disk.damage(at: plan[2].position + 200)
            case 2: disk.damage(at: plan[2].position)
            default: disk.unreadable.insert(plan[2].position / 4096)
            }
            let report = try report(disk)
            #expect(report.verdict == .damaged(through: Seq(rawValue: 6)))
            #expect(report.lastSeq == Seq(rawValue: 4))
            #expect(report.doubts.contains { $0.reason == .behindDamage && $0.first == Seq(rawValue: 12) })
            let repairing = FakeStorage(disk)
            let damaged = try openJournal(repairing)
            #expect(damaged.isDamaged && damaged.lastSeq == Seq(rawValue: 4))
            var repaired = false
            damaged.onRepaired = { repaired = true }
            try damaged.append(batches[2])
            #expect(damaged.lastSeq == Seq(rawValue: 12), "what is behind the hole is kept")
            repairing.settle()
            #expect(repaired && !damaged.isDamaged && damaged.durableSeq == Seq(rawValue: 12))
            let again = try openJournal(FakeStorage(disk))
            #expect(again.report.verdict == .intact)
            #expect(try read(again, from: Seq(rawValue: 1)).map(Contents.init) == wanted)
        }
    }

    @Test func severalHolesAreFilledOneAfterAnother() throws {
        let disk = freshDisk()
        let storage = FakeStorage(disk)
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        var batches: [Batch] = []
        for _ in 0..<8 {
            batches.append(maker.make([9000]))
            try journal.append(batches[batches.count - 1])
        }
        storage.settle()
        let plan = try #require(journal.plan(from: Seq(rawValue: 1), limitBytes: 1 << 30))
        let layout = journal.layout
        let wanted = batches.map(Contents.init)
        // Two neighbours without their entries, and a later one.
        for index in [2, 3, 6] { disk.damage(at: plan[index].position + 60) }
        let block = layout.headerBlockOffset(layout.headerBlock(forBody: plan[2].position - layout.bodyStart))
        for index in [2, 3] {
            let slot = (plan[index].position - layout.bodyStart) / 4096 % JournalLayout.entriesPerBlock
            disk.damage(at: block + slot * 64 + 3)
        }
        let repairing = FakeStorage(disk)
        let damaged = try openJournal(repairing)
        #expect(damaged.report.verdict == .damaged(through: Seq(rawValue: 7)))
        while damaged.isDamaged {
            try damaged.append(batches[Int(damaged.lastSeq.rawValue)])
            repairing.settle()
        }
        #expect(try read(damaged, from: Seq(rawValue: 1)).map(Contents.init) == wanted)
        let again = try openJournal(FakeStorage(disk))
        #expect(again.report.verdict == .intact && again.lastSeq == Seq(rawValue: 8))
    }

    @Test func aRepairThatIsBrokenOffForgetsNothing() throws {
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
        let plan = try #require(journal.plan(from: Seq(rawValue: 1), limitBytes: 1 << 30))
        for index in [1, 2, 5] { disk.damage(at: plan[index].position + 60) }
        // The first of them is replaced, and everything that follows from it reaches the disk; then the power goes.
        let repairing = FakeStorage(disk)
        let damaged = try openJournal(repairing)
        try damaged.append(batches[1])
        repairing.settle()
        let report = try report(disk)
        #expect(report.verdict == .damaged(through: Seq(rawValue: 6)) && report.lastSeq == Seq(rawValue: 2))
    }

    @Test func aHistoryThatDoesNotFitTheHoleIsRefused() throws {
        let (disk, plan, _) = try filled([[9000], [9000], [9000]])
        disk.damage(at: plan[1].position + 50)
        let damaged = try openJournal(FakeStorage(disk))
        var other = BatchMaker(after: damaged)
        #expect(throws: JournalError.self) { try damaged.append(other.make([9000], fill: 1)) }
    }

    @Test func failure37anySuperblockPairIsEnough() throws {
        for first in 0..<4 {
            for second in (first + 1)..<4 {
                let (disk, _, layout) = try filled([[100]])
                disk.damage(at: layout.superblockOffset(first) + 100)
                disk.damage(at: layout.superblockOffset(second) + 4000)
                let journal = try openJournal(FakeStorage(disk))
                #expect(journal.lastSeq == Seq(rawValue: 1) && journal.report.superblockCopies == 2)
                #expect(journal.report.notes.count == 2)
                #expect(try report(disk).superblockCopies == 4, "opening repairs the copies")
            }
        }
    }

    @Test func failure37threeBadSuperblocksAreRefusedAndNothingIsWritten() throws {
        let (disk, _, layout) = try filled([[100]])
        for copy in 0..<3 { disk.damage(at: layout.superblockOffset(copy) + 20) }
        let before = disk.pages
        let error = #expect(throws: JournalError.self) { try openJournal(FakeStorage(disk)) }
        #expect(error?.code == .superblocks && disk.pages == before)
        #expect(JournalMap.everyHeader(in: FakeStorage(disk)).count == 1, "what can be read is still shown")
    }

    @Test func anotherMirrorsJournalIsRefused() throws {
        let disk = freshDisk(mirror: MirrorID(high: 9, low: 9))
        let before = disk.pages
        let error = #expect(throws: JournalError.self) { try openJournal(FakeStorage(disk)) }
        #expect(error?.code == .otherMirror && disk.pages == before)
    }

    @Test func failure18theOtherNodesJournalIsRefused() throws {
        let disk = freshDisk(node: .b)
        let error = #expect(throws: JournalError.self) { try openJournal(FakeStorage(disk)) }
        #expect(error?.code == .otherNode)
    }

    @Test func anotherVersionIsRefusedByName() throws {
        let disk = freshDisk()
        let layout = try #require(JournalLayout(fileSize: disk.byteCount))
        for copy in 0..<4 {
            var bytes = disk.bytes(at: layout.superblockOffset(copy), count: 4096)
            bytes[8] = 2
            let checksum = crc32c(bytes[..<4092])
            for index in 0..<4 { bytes[4092 + index] = UInt8(truncatingIfNeeded: checksum >> (8 * index)) }
            disk.put(bytes[...], at: layout.superblockOffset(copy))
        }
        let error = #expect(throws: JournalError.self) { try openJournal(FakeStorage(disk)) }
        #expect(error?.code == .otherVersion && error?.description.contains("version 2") == true)
    }

    @Test func aJournalOfTheWrongSizeIsRefused() throws {
        let disk = freshDisk()
        let longer = FakeDisk(byteCount: disk.byteCount + (1 << 20))
        longer.pages = disk.pages
        #expect(throws: JournalError.self) { try openJournal(FakeStorage(longer)) }
        let odd = FakeDisk(byteCount: disk.byteCount - 4096)
        odd.pages = disk.pages.filter { $0.key < odd.byteCount / 4096 }
        let error = #expect(throws: JournalError.self) { try openJournal(FakeStorage(odd)) }
        #expect(error?.code == .wrongSize)
    }

    @Test func aCopyOfTheJournalInAPayloadIsNeverTakenForBatches() throws {
        // The application stores a copy of this very journal in the mirror: headers of the right mirror and incarnation,
        // at places where a reader looks for batches.
        let disk = freshDisk()
        let storage = FakeStorage(disk)
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        for _ in 0..<20 { try journal.append(maker.make([100])) }
        storage.settle()
        let copied = disk.bytes(at: journal.layout.bodyStart, count: 20 * 4096)
        try journal.append(maker.make([copied.count], bytes: copied))
        storage.complete()
        storage.pending = []
        // The same with the positions forged to where the payload lies: only seq and chain tell.
        let last = try #require(journal.plan(from: maker.seq, limitBytes: 1))[0]
        disk.damage(at: last.position + 10)
        let report = try report(disk)
        #expect(report.lastSeq == Seq(rawValue: 20) && report.doubts.isEmpty)
        #expect(report.verdict == .intact, "the torn header leaves nothing; the copies behind it prove nothing")
    }

    @Test func staleBatchesAfterACutAndAPowerCutAreNotDamage() throws {
        // Cut at 2, then batches 3' and 4' are torn by a power cut while the old 4 and 5 still lie behind them.
        let disk = freshDisk()
        let storage = FakeStorage(disk)
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        var chains: [UInt64] = []
        for _ in 0..<6 {
            try journal.append(maker.make([9000]))
            chains.append(maker.chain)
        }
        storage.settle()
        var isCut = false
        try journal.cut(to: Seq(rawValue: 2)) { isCut = true }
        #expect(!journal.canAppend(4096), "nothing is written before the cut is durable")
        storage.settle()
        #expect(isCut && journal.lastSeq == Seq(rawValue: 2) && journal.lastChain == chains[1])
        var next = BatchMaker(after: journal)
        try journal.append(next.make([9000], fill: 1))
        try journal.append(next.make([9000], fill: 2))
        var generator = SeededGenerator(seed: 3)
        disk.tear(storage.pending[0].bytes, at: storage.pending[0].offset, &generator)
        let report = try report(disk)
        #expect(report.lastSeq == Seq(rawValue: 2) && report.doubts.isEmpty)
        if case .damaged = report.verdict { Issue.record("\(report)") }
    }

    @Test func aCutIsDurableBeforeItsCompletionAtEveryPowerCut() throws {
        for writes in 0..<20 {
            let disk = freshDisk()
            let storage = FakeStorage(disk)
            let journal = try openJournal(storage)
            var maker = BatchMaker()
            for _ in 0..<6 { try journal.append(maker.make([9000])) }
            storage.settle()
            storage.writesLeft = writes
            var isCut = false
            try journal.cut(to: Seq(rawValue: 2)) { isCut = true }
            storage.settle()
            let again = try openJournal(FakeStorage(disk))
            #expect(!again.isDamaged, "power cut after \(writes) writes: \(again.report)")
            #expect(again.lastSeq == Seq(rawValue: 2) || (!isCut && again.lastSeq == Seq(rawValue: 6)))
        }
    }

    @Test func cutsHappenOnlyAtTheEndOfABatchAboveTheCheckpoint() throws {
        let storage = FakeStorage(freshDisk())
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        for _ in 0..<4 { try journal.append(maker.make([10, 10])) }
        storage.settle()
        journal.checkpoint(Seq(rawValue: 5))
        storage.settle()
        #expect(journal.checkpointSeq == Seq(rawValue: 4), "rounded down to the end of a batch")
        for seq in [1, 2, 5, 9] as [UInt64] {
            #expect(throws: JournalError.self) { try journal.cut(to: Seq(rawValue: seq)) {} }
        }
        try journal.cut(to: Seq(rawValue: 4)) {}
        storage.settle()
        #expect(journal.lastSeq == Seq(rawValue: 4) && journal.lastChain == journal.chain(at: Seq(rawValue: 4)))
    }

    @Test func failure13aResetSaysIncompleteBeforeAnythingElse() throws {
        for writes in [0, 1, 2, 3, 4, 100] {
            let disk = freshDisk()
            let storage = FakeStorage(disk)
            let journal = try openJournal(storage)
            var maker = BatchMaker()
            for _ in 0..<3 { try journal.append(maker.make([9000])) }
            storage.settle()
            storage.writesLeft = writes
            var done = false
            try journal.reset(
                to: Seq(rawValue: 1000), chain: 77,
                epochs: EpochHistory([EpochStart(epoch: Epoch(rawValue: 1), firstSeq: Seq(rawValue: 1))]),
                incomplete: true
            ) { done = true }
            storage.settle()
            let again = try openJournal(FakeStorage(disk))
            #expect(!again.isDamaged)
            if done { #expect(again.isIncomplete) }
            if again.isIncomplete {
                #expect(again.lastSeq == Seq(rawValue: 1000) && again.lastChain == 77)
                #expect(again.report.outcome(.alone) == .refusePrimary)
            } else {
                #expect(again.lastSeq == Seq(rawValue: 3))
            }
            #expect(done == (writes >= 4))
        }
    }

    /// A mode that is changed says nothing of what was written before, unless nothing of that can be missing.
    @Test func failure16AStrictJournalIsOneThatWasNeverAnythingElseSinceItWasWhole() throws {
        let (disk, _, _) = try filled([[100]], stop: true)
        func start(strict: Bool, stops: Bool = false) throws -> Bool {
            let storage = FakeStorage(disk)
            let journal = try openJournal(storage)
            let found = journal.report.superblock.isStrict
            journal.clearCleanStop(isStrict: strict) {}
            storage.settle()
            var maker = BatchMaker(after: journal)
            try journal.append(maker.make())
            storage.settle()
            if stops {
                journal.markCleanStop {}
                storage.settle()
            }
            return found
        }
        #expect(try !start(strict: true), "as it was made")
        #expect(try start(strict: true), "strict since it was stopped in order")
        #expect(try start(strict: false))
        #expect(try !start(strict: true), "what was written by then may not be all")
        #expect(try !start(strict: true, stops: true))
        #expect(try !start(strict: true))
        #expect(try start(strict: false))
    }

    @Test func failure16aCleanStopHoldsOnlyUntilItIsTakenBack() throws {
        let (disk, _, _) = try filled([[100]], stop: true)
        let storage = FakeStorage(disk)
        let journal = try openJournal(storage)
        #expect(journal.report.wasStoppedCleanly)
        #expect(try report(disk).wasStoppedCleanly, "opening alone does not spoil it")
        var early = BatchMaker(after: journal)
        #expect(!journal.canAppend(4096))
        #expect(throws: JournalError.self) { try journal.append(early.make()) }
        storage.settle()
        #expect(try !report(disk).wasStoppedCleanly)
        var maker = BatchMaker(after: journal)
        try journal.append(maker.make())
        storage.settle()
        #expect(try report(disk).lastSeq == Seq(rawValue: 2))
    }

    @Test func failure12permanentStatementsStay() throws {
        let storage = FakeStorage(freshDisk())
        let journal = try openJournal(storage)
        for number in 0..<20 {
            let kind: PermanentStatement.Kind = number % 2 == 0 ? .loneRestart : .forcedPromotion
            journal.add(.init(kind: kind, epoch: Epoch(rawValue: 1), seq: Seq(rawValue: UInt64(number)), time: 1)) {}
        }
        storage.settle()
        let again = try openJournal(FakeStorage(storage.disk))
        #expect(again.superblock.loneRestarts == 10 && again.superblock.forcedPromotions == 10)
        #expect(again.superblock.statements.count == Superblock.statementLimit)
        #expect(again.superblock.statements.last?.seq == Seq(rawValue: 19))
    }
}
