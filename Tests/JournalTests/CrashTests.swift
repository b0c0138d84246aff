import Format
import Journal
import Testing

/// A journal under random work, with the power cut at random moments, against a plain array.
@Suite struct CrashTests {
    /// What a correct journal may hold.
    private struct Model {
        /// Contents of every batch above the last cut or reset, by first seq; and what was known durable.
        var batches: [(first: Seq, last: Seq, contents: Contents)] = []
        var durable = Seq.zero
        var checkpoint = Seq.zero
    }

    @Test(arguments: [UInt64](1...16))
    func failure12whateverTheMomentEveryDurableBatchIsThere(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        var disk = freshDisk()
        var model = Model()
        for life in 0..<6 {
            let storage = FakeStorage(disk, writesLeft: Int.random(in: 1...120, using: &generator))
            do {
                let journal = try openJournal(storage)
                try check(journal, &model, "seed \(seed), life \(life)")
                try work(journal, storage, &model, &generator)
            } catch let error as JournalError {
                #expect(error.code == .failed, "seed \(seed), life \(life): \(error)")
            }
            disk = storage.cutPower(&generator)
        }
        let last = try openJournal(FakeStorage(disk))
        try check(last, &model, "seed \(seed), at the end")
    }

    private func check(_ journal: Journal, _ model: inout Model, _ place: String) throws {
        #expect(!journal.isDamaged, "\(place): \(journal.report)")
        #expect(journal.lastSeq >= model.durable, "\(place): lost \(model.durable): \(journal.report)")
        model.batches.removeAll { $0.first > journal.lastSeq }
        #expect(model.batches.last?.last ?? .zero == journal.lastSeq, "\(place)")
        model.durable = journal.lastSeq
        let from = max(journal.oldestSeq, journal.checkpointSeq.next)
        guard from <= journal.lastSeq else { return }
        let found = try read(journal, from: from).map(Contents.init)
        let wanted = model.batches.filter { $0.last >= from }.map(\.contents)
        #expect(found == wanted, "\(place): other contents")
    }

    private func work(
        _ journal: Journal, _ storage: FakeStorage, _ model: inout Model, _ generator: inout SeededGenerator
    ) throws {
        var maker = BatchMaker(after: journal)
        while !storage.isDead {
            switch Int.random(in: 0..<100, using: &generator) {
            case 0..<55:
                let lengths = lengths(&generator)
                let size = lengths.map { $0 > 1024 ? ($0 + 4095) / 4096 * 4096 : 0 }.reduce(2 * 4096, +)
                guard journal.canAppend(size) else {
                    storage.complete()
                    continue
                }
                // Also beyond what is on this disk: on a node that catches up.
                maker.committed = Seq(rawValue: .random(in: 0...journal.lastSeq.rawValue, using: &generator))
                let batch = maker.make(lengths, fill: UInt8.random(in: 0...255, using: &generator))
                model.batches.append((batch.firstSeq, batch.lastSeq, Contents(batch)))
                try journal.append(batch)
            case 55..<90:
                guard !storage.pending.isEmpty else { continue }
                storage.complete(Int.random(in: 0..<storage.pending.count, using: &generator))
                model.durable = max(model.durable, journal.durableSeq)
            case 90..<97: journal.checkpoint(journal.durableSeq)
            case 97..<98:
                // A cut: from here on the old end may or may not be there, until the cut is complete.
                storage.settle(&generator)
                guard !storage.isDead else { break }
                let keep = journal.checkpointSeq
                let ends = [keep] + model.batches.map(\.last).filter { $0 > keep && $0 <= journal.lastSeq }
                guard let target = ends.randomElement(using: &generator) else { continue }
                model.durable = target
                var isCut = false
                try journal.cut(to: target) { isCut = true }
                storage.settle(&generator)
                guard isCut else { break }
                model.batches.removeAll { $0.first > target }
                maker = BatchMaker(after: journal)
            default: storage.settle(&generator)
            }
            model.durable = max(model.durable, storage.isDead ? .zero : journal.durableSeq)
        }
    }

    private func lengths(_ generator: inout SeededGenerator) -> [Int] {
        (0..<Int.random(in: 1...3, using: &generator)).map { _ in
            switch Int.random(in: 0..<10, using: &generator) {
            case 0..<5: Int.random(in: 1...1024, using: &generator)
            case 5..<9: Int.random(in: 1025...20_000, using: &generator)
            default: Int.random(in: 500_000...(1 << 20), using: &generator)
            }
        }
    }

    @Test(arguments: [UInt64](1...2))
    func manyTimesAroundTheRingWithRandomSizes(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let disk = freshDisk()
        let storage = FakeStorage(disk)
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        var contents: [Seq: Contents] = [:]
        var written = 0
        while written < 2 * journal.capacityBytes {
            let count = Int.random(in: 1...3, using: &generator)
            let lengths = (0..<count).map { _ in Int.random(in: 1...(1 << 20), using: &generator) }
            let batch = maker.make(lengths, fill: UInt8.random(in: 0...255, using: &generator))
            written += batch.header.diskLength
            contents[batch.firstSeq] = Contents(batch)
            try journal.append(batch)
            storage.settle(&generator)
            if journal.freeBytes < 12 << 20 {
                journal.checkpoint(
                    Seq(rawValue: journal.durableSeq.rawValue - UInt64.random(in: 0...5, using: &generator)))
                storage.settle(&generator)
            }
        }
        for reopened in [journal, try openJournal(FakeStorage(disk))] {
            #expect(reopened.lastSeq == maker.seq && !reopened.isDamaged)
            let all = try read(reopened, from: reopened.oldestSeq)
            #expect(all.count > 20 && all.allSatisfy { contents[$0.firstSeq] == Contents($0) })
            #expect(reopened.oldestSeq <= reopened.checkpointSeq.next)
        }
    }

    /// One byte flipped anywhere that is read at start: never a silent loss.
    @Test(arguments: [UInt64](1...20))
    func failure37aFlippedByteIsFoundOrHarmless(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let disk = freshDisk()
        let storage = FakeStorage(disk)
        let journal = try openJournal(storage)
        var maker = BatchMaker()
        for _ in 0..<12 { try journal.append(maker.make([Int.random(in: 1...12_000, using: &generator)])) }
        storage.settle()
        let pages = disk.pages.keys.sorted()
        for _ in 0..<8 {
            let flipped = disk.copy()
            let page = try #require(pages.randomElement(using: &generator))
            let offset = page * 4096 + Int.random(in: 0..<4096, using: &generator)
            flipped.damage(at: offset, with: UInt8.random(in: 1...255, using: &generator))
            let report = try JournalMap(image: FakeStorage(flipped), mirror: testMirror).report
            if case .damaged(let through) = report.verdict {
                #expect(through > report.lastSeq && !report.doubts.isEmpty)
            } else {
                #expect(report.lastSeq == maker.seq, "seed \(seed): byte \(offset): silently short: \(report)")
            }
        }
    }
}
