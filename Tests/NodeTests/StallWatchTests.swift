import Format
import Glibc
import Ring
import Testing

@testable import Journal
@testable import Node
@testable import Quorum
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
        func look(_ peer: Format.Incarnation?, _ stand: DataThreadWatch.Stand = .serves, times: Int = 1) {
            for _ in 0..<times { verdicts.append(watch.look(stand, peer: peer)) }
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
        for (stand, limit) in [(DataThreadWatch.Stand.isClosing, 120), (.isOutside, 60)] {
            watch.answered()
            verdicts = []
            look(second, stand, times: limit)
            #expect(!ends(), "\(stand)")
            look(second, stand)
            #expect(ends(), "\(stand)")
        }
        // In sync, or the other node is away: its memory may be the only one.
        watch.answered()
        verdicts = []
        look(second, .isNeeded, times: 300)
        look(nil, .isOutside, times: 300)
        #expect(!ends())
        // It answers, as a standby too.
        for _ in 0..<300 {
            look(second, .isOutside)
            watch.answered()
        }
        #expect(!ends())
    }

    @Test func failure24OnlyOfANodeThatIsRecordedAsOutsideNothingDependsOnItsMemory() {
        func stand(
            _ role: Role, _ reason: RoleReason = .none, primary: NodeID = .b, inSync: NodeSet?, closing: Bool = false
        ) -> DataThreadWatch.Stand {
            let decision = inSync.map {
                Decision(sequence: 7, epoch: Epoch(rawValue: 3), primary: primary, inSync: $0)
            }
            let state = RoleState(role: role, reason: reason, since: 0, decision: decision, inDoubt: [])
            #expect(state.isRecordedWithout(.a) == (inSync == .b))
            return DataThreadWatch.Stand(state, node: .a, isClosing: closing)
        }
        #expect(stand(.primary, primary: .a, inSync: .both) == .serves)
        #expect(stand(.wait, .opening, primary: .a, inSync: .both) == .serves)
        // Alone: nobody could do better.
        #expect(stand(.alone, primary: .a, inSync: .a) == .isNeeded)
        #expect(stand(.wait, .opening, primary: .a, inSync: .a) == .isNeeded)
        #expect(stand(.secondary, inSync: .both) == .isNeeded)
        #expect(stand(.wait, .catchingUp, inSync: .both) == .isNeeded)
        #expect(stand(.wait, .asking, inSync: nil) == .isNeeded)
        #expect(stand(.wait, .catchingUp, inSync: .b) == .isOutside)
        #expect(stand(.stop, .ownDiskFailed, inSync: .b) == .isOutside)
        #expect(stand(.stop, .ownDiskFailed, inSync: .both) == .isNeeded)
        #expect(stand(.wait, .draining, inSync: .b, closing: true) == .isClosing)
        #expect(DataThreadWatch.Stand(nil, node: .a, isClosing: false) == .isNeeded)
    }

    @Test func failure24OnlyDisksThatAnswerForHalfAMinuteAreWellAgain() {
        var recovery = DiskRecovery()
        var (time, asked) = (2, 0)
        /// - Returns: whether they were well again within these seconds.
        func pass(_ seconds: Int, isAtRest: Bool = true, answers: Int = 2) -> Bool {
            var isWell = false
            for _ in 0..<seconds {
                time += 1
                guard recovery.look(isAtRest: isAtRest, at: UInt64(time) * second) else { continue }
                asked += 1
                for _ in 0..<answers { isWell = recovery.answer(at: UInt64(time) * second) }
            }
            return isWell
        }
        #expect(!pass(28))
        #expect(pass(2))
        // It is said again, as long as nobody does anything about it.
        #expect(pass(10) && asked == 20)
        // Something stands: all is counted anew.
        #expect(!pass(40, isAtRest: false))
        #expect(!pass(28))
        // One of the two gives no answer; it is asked no more, and what was answered before counts no more.
        #expect(!pass(40, answers: 1))
        let before = asked
        #expect(!pass(40))
        #expect(asked == before)
        let isWell = recovery.answer(at: UInt64(time) * second)
        #expect(!isWell)
        #expect(!pass(27))
        #expect(pass(3))
    }

    /// The disk answers again: that is said, but not before it does. Where it gives an error later, it never is.
    @Test(arguments: [false, true])
    func failure24ADiskThatHungAndAnswersAgainIsToldUnlessItGivesAnError(failsLate: Bool) throws {
        let pair = try quietPair()
        let isReleased = Flag()
        pair.a.call { [second] plane in
            plane.filesQuestion.limit = second
            plane.questions.submit { while !isReleased.isSet { usleep(1000) } }
            plane.workers.submit { while !isReleased.isSet { usleep(1000) } }
        }
        for _ in 0..<300 where pair.a.problems.isEmpty { usleep(100_000) }
        try #require(pair.a.problems.count == 1)
        pair.a.call { $0.recovery?.roundsWanted = 2 }
        func look(_ seconds: Int) { for _ in 0..<(seconds * 10) where pair.a.recoveries == 0 { usleep(100_000) } }
        pair.a.call { $0.close(.ownDiskFailed) }
        look(8)
        #expect(pair.a.recoveries == 0, "it hangs")
        isReleased.set()
        if failsLate { pair.a.call { $0.failed(.apply($0.log.applied.next, "input/output error")) } }
        look(failsLate ? 8 : 60)
        #expect((pair.a.recoveries > 0) == !failsLate)
        #expect(pair.a.problems.count == (failsLate ? 2 : 1))
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
