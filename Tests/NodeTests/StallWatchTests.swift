import Format
import Glibc
import Ring
import Testing

@testable import Journal
@testable import Node
@testable import Tree

@Suite struct StallWatchTests {
    private func seq(_ value: UInt64) -> Seq { Seq(rawValue: value) }

    @Test func failure24OnlyWhoStandsStillBehindTheOtherHangs() {
        let second: UInt64 = 1_000_000_000
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

    /// The file table is on the journal's disk. When that hangs, a thread that applies may be the first one to wait for it,
    /// and nothing is under way to the journal: the application waits for the table then.
    ///
    /// - Parameter disk: a slow one still takes one write after the other, and is not condemned.
    @Test(arguments: ["answers", "hangs", "is slow"])
    func failure24AThreadThatWaitsForTheDiskOfTheJournalIsNoSlowPlainFile(disk: String) throws {
        let journalHangs = disk == "hangs"
        let pair = try Pair()
        pair.connect()
        pair.serve(pair.a, epoch: 1)
        pair.admit(to: pair.a, epoch: 1)
        pair.settle()
        pair.a.call { $0.holdsCheckpoints = true }
        pair.a.wait("quiet") { !$0.checkpointRunning && !$0.journal.superblockWriting }
        let tree = pair.a.call { plane in
            plane.journalWatch = StallWatch(seconds: 1)
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
