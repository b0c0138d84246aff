import Format
import Glibc
import Ring
import Synchronization
import Testing

@testable import Tree

private func id(_ counter: UInt64) -> FileID { FileID(epoch: Epoch(rawValue: 3), counter: counter) }
private func seq(_ number: Int) -> Seq { Seq(rawValue: UInt64(number)) }

@Suite struct ConflictScheduleTests {
    @Test func recordsThatShareNothingRunSideBySide() {
        var schedule = ConflictSchedule(applied: .zero)
        schedule.add(seq(1), touched: [id(1)], isBarrier: false)
        schedule.add(seq(2), touched: [id(2)], isBarrier: false)
        #expect(schedule.take()?.seqs == [seq(1)])
        #expect(schedule.take()?.seqs == [seq(2)])
        schedule.finish(seq(2))
        #expect(schedule.lowWatermark == .zero)
        schedule.finish(seq(1))
        #expect(schedule.lowWatermark == seq(2))
    }

    @Test func recordsOfOneFileGoTogetherInOrder() {
        var schedule = ConflictSchedule(applied: .zero)
        for number in 1...3 { schedule.add(seq(number), touched: [id(1)], isBarrier: false) }
        schedule.add(seq(4), touched: [id(1), id(2)], isBarrier: false)
        schedule.add(seq(5), touched: [id(1)], isBarrier: false)
        #expect(schedule.take()?.seqs == [seq(1), seq(2), seq(3)])
        #expect(schedule.take() == nil)
        for number in 1...3 { schedule.finish(seq(number)) }
        #expect(schedule.take()?.seqs == [seq(4)])
        #expect(schedule.take() == nil)
        schedule.finish(seq(4))
        #expect(schedule.take()?.seqs == [seq(5)])
    }

    @Test func nothingPassesABarrier() {
        var schedule = ConflictSchedule(applied: .zero)
        schedule.add(seq(1), touched: [id(1)], isBarrier: false)
        schedule.add(seq(2), touched: [], isBarrier: true)
        schedule.add(seq(3), touched: [id(2)], isBarrier: false)
        schedule.add(seq(4), touched: [], isBarrier: true)
        schedule.add(seq(5), touched: [id(1)], isBarrier: false)
        for number in 1...5 {
            #expect(schedule.take()?.seqs == [seq(number)])
            #expect(schedule.take() == nil)
            schedule.finish(seq(number))
        }
        #expect(schedule.lowWatermark == seq(5))
        #expect(schedule.unfinished == 0)
    }

    @Test func whatFollowsAFailureOnItsFileWaitsAndTheRestGoesOn() {
        var schedule = ConflictSchedule(applied: .zero)
        schedule.add(seq(1), touched: [id(1)], isBarrier: false)
        schedule.add(seq(2), touched: [id(1), id(2)], isBarrier: false)
        schedule.add(seq(3), touched: [id(3)], isBarrier: false)
        let failed = schedule.take()!
        #expect(schedule.take()?.seqs == [seq(3)])
        schedule.finish(seq(3))
        #expect(schedule.take() == nil)
        #expect(schedule.lowWatermark == .zero)
        schedule.putBack(failed.seqs)
        #expect(schedule.take()?.seqs == [seq(1)])
        schedule.finish(seq(1))
        #expect(schedule.take()?.seqs == [seq(2)])
    }

    /// Any order of finishing: conflicting records run in order and one at a time, and all finish.
    @Test(arguments: 1...20)
    func everyInterleavingKeepsTheOrderOfEachFile(seed: UInt64) {
        var random = Seeded(seed)
        var schedule = ConflictSchedule(applied: .zero)
        var touched: [Seq: [FileID]] = [:]
        var barriers: Set<Seq> = []
        var running: [[Seq]] = []
        var done: Set<Seq> = []
        var next = 1
        while done.count < 300 {
            if next <= 300, Int.random(in: 0..<3, using: &random) > 0 {
                let isBarrier = Int.random(in: 0..<25, using: &random) == 0
                let files = (0..<Int.random(in: 1...3, using: &random)).map { _ in
                    id(UInt64.random(in: 1...12, using: &random))
                }
                schedule.add(seq(next), touched: files, isBarrier: isBarrier)
                touched[seq(next)] = files
                if isBarrier { barriers.insert(seq(next)) }
                next += 1
            }
            while Bool.random(using: &random), let run = schedule.take() {
                for taken in run.seqs {
                    let earlier = touched.keys.filter { $0 < taken && !done.contains($0) && !run.seqs.contains($0) }
                    for other in earlier {
                        let isFree = touched[other]!.allSatisfy { !touched[taken]!.contains($0) }
                        if !isFree || barriers.contains(other) || barriers.contains(taken) {
                            Issue.record("\(taken) ran before \(other)")
                        }
                    }
                }
                running.append(run.seqs)
            }
            if !running.isEmpty {
                let index = Int.random(in: 0..<running.count, using: &random)
                let first = running[index].removeFirst()
                if running[index].isEmpty { running.remove(at: index) }
                schedule.finish(first)
                done.insert(first)
            } else if next > 300, let run = schedule.take() {
                running.append(run.seqs)
            }
        }
        #expect(schedule.lowWatermark == seq(300))
    }
}

@Suite struct ApplierTests {
    /// What the callbacks told, for the test's own thread.
    private final class Told: Sendable {
        let state = Mutex<(watermark: Seq, failed: Seq?)>((.zero, nil))
    }
    private final class Held: @unchecked Sendable { var applier: Applier? }

    private func run(
        _ scratch: Scratch, _ all: [Batch], role: ApplyRole = .secondary, until isDone: (Told) -> Bool
    ) throws -> Told {
        let tree = try openTree(scratch)
        let told = Told()
        let held = Held()
        let pool = try WorkerPool(threads: 3, name: "apply")
        let thread = try ReactorThread(name: "data", engine: .libaio, logger: quiet) { reactor in
            let applier = Applier(
                tree: tree, role: role, reactor: reactor, pool: pool, jobLimit: 3, applied: .zero, logger: quiet)
            applier.onWatermark = { seq in told.state.withLock { $0.watermark = seq } }
            applier.onFailure = { seq, _ in told.state.withLock { $0.failed = seq } }
            held.applier = applier
        }
        // In several steps, as commits come: one batch, then two, then three.
        var rest = all[...]
        var count = 1
        while !rest.isEmpty {
            let some = Array(rest.prefix(count))
            thread.post { held.applier?.submit(some) }
            rest = rest.dropFirst(count)
            count = count % 3 + 1
        }
        for _ in 0..<3000 where !isDone(told) { usleep(10_000) }
        pool.shutdown()
        _ = thread.call { held.applier = nil }
        thread.stop()
        thread.join()
        return told
    }

    @Test(arguments: 1...5)
    func batchesAppliedInParallelGiveTheTreeTheyDescribe(seed: UInt64) throws {
        let scratch = Scratch()
        var generator = Generator(seed: seed &+ 500)
        let drawn = generator.draw(400)
        let told = try run(scratch, batches(of: drawn, size: 25)) { told in
            told.state.withLock { $0.watermark == seq(400) }
        }
        #expect(told.state.withLock { $0.failed } == nil)
        try expectSame(openTree(scratch), generator.model)
    }

    /// The node that serves logs images of the file that is being written, and does not apply them: the write before is
    /// the last one that sets the time.
    @Test(arguments: [ApplyRole.primary, .behind])
    func aWriteThatAnImageFollowsSetsItsTime(role: ApplyRole) throws {
        let scratch = Scratch()
        let file = id(1)
        func write(_ time: Int64, isImage: Bool) -> Generator.Drawn {
            Generator.Drawn(
                record: Record(
                    time: time, body: .write(file: file, offset: 0),
                    payload: .inline(offset: 0, length: 1, checksum: 0), isImage: isImage),
                payload: [1])
        }
        let made = Record(
            time: 1000,
            body: .create(
                file: file, parent: .root, name: Array("f".utf8),
                attributes: FileAttributes(mode: S_IFREG | 0o644, uid: 0, gid: 0), target: [], xattrs: []))
        let drawn =
            [Generator.Drawn(record: made, payload: [])]
            + [write(2000, isImage: false), write(3000, isImage: true), write(4000, isImage: true)]
        _ = try run(scratch, batches(of: Array(drawn[..<1]), size: 1), role: role) { told in
            told.state.withLock { $0.watermark == seq(1) }
        }
        let told = try run(scratch, batches(of: drawn, size: 4), role: role) { told in
            told.state.withLock { $0.watermark == seq(4) }
        }
        #expect(told.state.withLock { $0.failed } == nil)
        let time = try openTree(scratch).status(of: file).attributes.mtime
        #expect(time == (role == .behind ? 4000 : 2000))
    }

    /// A resynchronisation's source logs an image for everything that it sends. It has all that already: its workers, which
    /// read for the next images, are not asked.
    @Test func imagesOfACompleteNodeNeedNoWorker() throws {
        let scratch = Scratch()
        var records = [Record(time: 1, body: .imageStart(number: 7))]
        for number in UInt64(1)...100 {
            records.append(
                Record(
                    time: 1,
                    body: .imageFile(
                        file: id(number), attributes: FileAttributes(mode: S_IFREG | 0o600, uid: 0, gid: 0), target: [],
                        xattrs: []), isImage: true))
        }
        records.append(Record(time: 1, body: .imageEnd(number: 7)))
        let all = batches(of: records.map { Generator.Drawn(record: $0, payload: []) }, size: 34)
        let tree = try openTree(scratch)
        let told = Told()
        let held = Held()
        let isReleased = Mutex(false)
        let pool = try WorkerPool(threads: 1, name: "apply")
        pool.submit { while !isReleased.withLock({ $0 }) { usleep(1000) } }
        let thread = try ReactorThread(name: "data", engine: .libaio, logger: quiet) { reactor in
            let applier = Applier(
                tree: tree, role: .primary, reactor: reactor, pool: pool, jobLimit: 1, applied: .zero, logger: quiet)
            applier.onWatermark = { seq in told.state.withLock { $0.watermark = seq } }
            held.applier = applier
        }
        thread.post { held.applier?.submit(all) }
        for _ in 0..<500 where told.state.withLock({ $0.watermark < seq(102) }) { usleep(10_000) }
        #expect(told.state.withLock { $0.watermark } == seq(102))
        isReleased.withLock { $0 = true }
        pool.shutdown()
        _ = thread.call { held.applier = nil }
        thread.stop()
        thread.join()
    }

    /// Soak, seed 607: a directory leaves another one, which then moves into what the first contains. The two moves share no
    /// directory; in the other order the second is refused.
    @Test func failure36AMoveOfADirectoryDoesNotOvertakeTheOneThatMakesItPossible() throws {
        let scratch = Scratch()
        let names = (1...5).map { (number) -> FileName in Array("d\(number)".utf8) }
        func create(_ number: UInt64, in parent: FileID, _ mode: UInt32 = S_IFDIR | 0o755) -> RecordBody {
            .create(
                file: id(number), parent: parent, name: Array("d\(number)".utf8),
                attributes: FileAttributes(mode: mode, uid: 0, gid: 0), target: [], xattrs: [])
        }
        func move(_ number: Int, from: FileID, to: FileID) -> RecordBody {
            .rename(
                file: id(UInt64(number)), parent: from, name: names[number - 1], newParent: to,
                newName: names[number - 1], exchange: false, replaced: .none, replacedWasLast: false)
        }
        // d1/d2/d3/d4/d5: d4 leaves d3 for the root, then d2 moves into d5.
        var bodies = [create(1, in: .root)] + (2...5).map { create($0, in: id($0 - 1)) }
        // What keeps the first move waiting.
        bodies += (100..<300).map { create($0, in: id(3), S_IFREG | 0o644) }
        bodies += [move(4, from: id(3), to: .root), move(2, from: id(1), to: id(5))]
        let drawn = bodies.map { Generator.Drawn(record: Record(time: 1, body: $0), payload: []) }
        let told = try run(scratch, batches(of: drawn, size: drawn.count)) { told in
            told.state.withLock { $0.watermark == seq(drawn.count - ($0.failed == nil ? 0 : 1)) }
        }
        #expect(told.state.withLock { $0.failed } == nil)
        #expect(told.state.withLock { $0.watermark } == seq(drawn.count))
        #expect(try openTree(scratch).lookup(parent: id(5), name: names[1]).file == id(2))
    }

    @Test func failure23ARecordThatCannotBeAppliedStopsItsFilesAndTheWatermark() throws {
        let scratch = Scratch()
        var generator = Generator(seed: 8)
        var drawn = generator.draw(40)
        // A write to a file that never was.
        drawn[20] = Generator.Drawn(
            record: Record(
                time: 1, body: .write(file: id(77), offset: 0), payload: .inline(offset: 0, length: 1, checksum: 0)),
            payload: [1])
        drawn = Array(drawn[...20])
        let told = try run(scratch, batches(of: drawn, size: 21)) { told in
            told.state.withLock { $0.failed != nil && $0.watermark == seq(20) }
        }
        #expect(told.state.withLock { $0.failed } == seq(21))
        #expect(told.state.withLock { $0.watermark } == seq(20))
    }

    /// Forty questions are there when the application removes a file. Seen by the questions, which take a while.
    @Test func questionsOfAVerificationDoNotStandInFrontOfARemoval() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        struct Seen {
            var before = 0
            var after = 0
            var atOnce = 0
            var atOnceMost = 0
        }
        let seen = Mutex(Seen())
        let victim = "\(scratch.path)/backing/victim"
        tree.state.withLock { state in
            state.verifyFault = { _ in
                seen.withLock { seen in
                    if access(victim, F_OK) == 0 { seen.before += 1 } else { seen.after += 1 }
                    seen.atOnce += 1
                    seen.atOnceMost = max(seen.atOnceMost, seen.atOnce)
                }
                usleep(10_000)
                seen.withLock { $0.atOnce -= 1 }
                return EIO
            }
        }
        func drawn(_ body: RecordBody) -> Generator.Drawn {
            Generator.Drawn(record: Record(time: 1, body: body), payload: [])
        }
        func create(_ number: UInt64, _ name: String) -> Generator.Drawn {
            drawn(
                .create(
                    file: id(number), parent: .root, name: Array(name.utf8),
                    attributes: FileAttributes(mode: S_IFREG | 0o644, uid: 0, gid: 0), target: [], xattrs: []))
        }
        var records = [create(100, "victim")]
        for number in UInt64(1)...40 { records.append(create(number, "f\(number)")) }
        for number in UInt64(1)...40 {
            records.append(
                drawn(.verify(VerifyCheck(number: 1, file: id(number), aspect: .file, length: 4096, seed: 5))))
        }
        records.append(
            drawn(
                .remove(file: id(100), parent: .root, name: Array("victim".utf8), isDirectory: false, wasLast: true)))
        let last = seq(records.count)
        let all = batches(of: records, size: 41)
        let told = Told()
        let held = Held()
        let pool = try WorkerPool(threads: 3, name: "apply")
        let thread = try ReactorThread(name: "data", engine: .libaio, logger: quiet) { reactor in
            let applier = Applier(
                tree: tree, role: .secondary, reactor: reactor, pool: pool, jobLimit: 3, applied: .zero, logger: quiet)
            applier.onWatermark = { seq in told.state.withLock { $0.watermark = seq } }
            held.applier = applier
        }
        for batch in all {
            thread.post { held.applier?.submit([batch]) }
            for _ in 0..<3000 where told.state.withLock({ $0.watermark < batch.lastSeq }) { usleep(10_000) }
        }
        pool.shutdown()
        _ = thread.call { held.applier = nil }
        thread.stop()
        thread.join()
        #expect(told.state.withLock { $0.watermark } == last)
        let result = seen.withLock { $0 }
        #expect(result.before + result.after == 40)
        #expect(result.before <= 2, "\(result.before) questions came before the removal")
        #expect(result.atOnceMost == 1)
    }
}
