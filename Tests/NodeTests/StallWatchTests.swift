import Format
import Glibc
import Ring
import Testing

@testable import Journal
@testable import Node
@testable import Tree

@Suite struct StallWatchTests {
    private func seq(_ value: UInt64) -> Seq { Seq(rawValue: value) }

    private let second: UInt64 = 1_000_000_000

    /// In sync, and nothing under way: no checkpoint, no write of a superblock.
    private func quietPair() throws -> Pair {
        let pair = try Pair()
        pair.connect()
        pair.serve(pair.a, epoch: 1)
        pair.admit(to: pair.a, epoch: 1)
        pair.settle()
        pair.a.call { $0.holdsCheckpoints = true }
        pair.a.wait("quiet") { !$0.checkpointRunning && !$0.journal.superblockWriting }
        return pair
    }

    @Test func failure24OnlyWhoStandsStillBehindTheOtherHangs() {
        var watch = StallWatch(seconds: 10)
        var found: [UInt64] = []
        func look(_ time: UInt64, _ own: UInt64, _ other: UInt64?) {
            if watch.look(own: seq(own), other: other.map(seq), now: time * second) { found.append(time) }
        }
        // Nothing to do, or the other one does no more.
        for time in 0...30 { look(UInt64(time), 5, 5) }
        // The other one is away.
        for time in 31...60 { look(UInt64(time), 5, nil) }
        // Slow, but it moves.
        for time in 61...100 { look(UInt64(time), UInt64(time / 9), 1000) }
        #expect(found == [])
        // It stands still, since 99.
        for time in 101...115 { look(UInt64(time), 11, 1000) }
        #expect(found.first == 110, "\(found)")
    }

    @Test func failure24OnlyADiskThatAnswersNothingAtAllHangs() {
        var question = DiskQuestion(seconds: 10)
        func look(_ time: UInt64, suspect: Bool = true, progress: UInt64 = 0) -> DiskQuestion.Verdict {
            question.look(isSuspect: suspect, progress: progress, at: time * second)
        }
        #expect(look(100, suspect: false) == .nothing)
        #expect(look(101) == .ask)
        #expect(look(111) == .nothing)
        question.answer(at: 111 * second)
        // Not at once again.
        #expect(look(112) == .nothing)
        #expect(look(113) == .ask)
        // It is slow, but takes one thing after the other.
        for time in 114...140 { #expect(look(UInt64(time), progress: UInt64(time)) == .nothing) }
        #expect(look(150, progress: 140) == .nothing)
        // What waited has an answer from somewhere else; the question still has none.
        #expect(look(151, suspect: false, progress: 140) == .hangs)
    }

    @Test func failure24OnlyWhoeverServesBesideANodeThatIsThereEndsForItsDataThread() {
        var watch = DataThreadWatch()
        var verdicts: [DataThreadWatch.Verdict] = []
        let (first, second) = (Format.Incarnation(birth: 1, session: 1), Format.Incarnation(birth: 1, session: 2))
        func look(_ peer: Format.Incarnation?, closing: Bool = false, times: Int = 1) {
            for _ in 0..<times { verdicts.append(watch.look(serves: !closing, isClosing: closing, peer: peer)) }
        }
        func ends() -> Bool { verdicts.contains { if case .standsStill = $0 { true } else { false } } }
        // It answers each time.
        for _ in 0..<3 {
            look(first)
            watch.answered()
        }
        #expect(verdicts == [.ask, .ask, .ask])
        // The other node is not heard any more: nobody could do better.
        look(first, times: 20)
        look(nil, times: 30)
        #expect(!ends())
        // It is back, without its memory: the thread gets more time.
        look(second, times: 100)
        #expect(!ends())
        watch.answered()
        look(second, times: 20)
        #expect(!ends())
        look(second)
        #expect(verdicts.last == .standsStill(looks: 20))
        watch.answered()
        verdicts = []
        look(second, closing: true, times: 120)
        #expect(!ends())
        look(second, closing: true)
        #expect(ends())
    }

    /// Something is read, nothing is written: the other node has nothing to be ahead with. While its disks answer, a call
    /// may take as long as it likes.
    @Test(arguments: ["neither", "journal", "files"])
    func failure24ACallThatWaitsForADiskBeforeAnythingIsLoggedFindsTheDiskThatHangs(hanging: String) throws {
        let pair = try quietPair()
        let isReleased = Flag()
        pair.a.call { [second] plane in
            // A busy machine may take its time; who hangs does for ever.
            plane.journalQuestion.limit = hanging == "neither" ? 5 * second : second
            plane.filesQuestion.limit = plane.journalQuestion.limit
            if hanging == "journal" { plane.journal.superblockWriting = true }
            if hanging == "files" { plane.questions.submit { while !isReleased.isSet { usleep(1000) } } }
            plane.workers.submit { while !isReleased.isSet { usleep(1000) } }
        }
        for _ in 0..<(hanging == "neither" ? 100 : 300) where pair.a.problems.isEmpty { usleep(100_000) }
        let problems = pair.a.problems
        isReleased.set()
        let named = ["neither": [], "journal": ["/state/journal hangs"], "files": ["/backing hangs"]][hanging]!
        #expect(problems.count == named.count && zip(problems, named).allSatisfy { $0.contains($1) }, "\(problems)")
    }

    /// The file table is on the journal's disk. When that hangs, a thread that applies may be the first one to wait for it,
    /// and nothing is under way to the journal: the application waits for the table then.
    ///
    /// - Parameter disk: a slow one still takes one write after the other, and is not condemned.
    @Test(arguments: ["answers", "hangs", "is slow"])
    func failure24AThreadThatWaitsForTheDiskOfTheJournalIsNoSlowPlainFile(disk: String) throws {
        let journalHangs = disk == "hangs"
        let pair = try quietPair()
        let tree = pair.a.call { plane in
            plane.journalQuestion.limit = second
            // The superblock's writes never end.
            if disk != "answers" { plane.journal.superblockWriting = true }
            return plane.tree
        }
        let (isHeld, isReleased) = (Flag(), Flag())
        let holder = try WorkerPool(threads: 1, name: "holder")
        holder.submit {
            tree.state.withLock { _ in
                isHeld.set()
                while !isReleased.isSet { usleep(1000) }
            }
        }
        while !isHeld.isSet { usleep(1000) }
        _ = pair.a.create("file")
        let seq = pair.a.call { $0.log.lastSeq }
        pair.b.wait("applied") { $0.log.applied >= seq }
        for _ in 0..<(journalHangs ? 300 : 50) where pair.a.problems.isEmpty {
            if disk == "is slow" { pair.a.call { $0.journal.writesEnded += 1 } }
            usleep(100_000)
        }
        let problems = pair.a.problems
        isReleased.set()
        holder.shutdown()
        if journalHangs {
            #expect(problems.count == 1 && problems.allSatisfy { $0.contains("/state/journal hangs") }, "\(problems)")
        } else {
            #expect(problems == [])
        }
    }
}
