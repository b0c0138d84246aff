import CLinux
import Dispatch
import Format
import Glibc
import Quorum
import Synchronization
import Testing

@testable import Journal
@testable import Node
@testable import Tree

/// Two nodes' data sides against each other. One after the other: each has journals to write and threads to run.
@Suite(.serialized) struct NodeTests {
    /// A tree with one of everything.
    static func fill(_ root: String) {
        makeDirectories("\(root)/dir/deep/deeper")
        makeDirectories("\(root)/empty")
        put("\(root)/small", Array("hello".utf8))
        put("\(root)/nothing", [])
        put("\(root)/dir/data", noise(3_000_000, 1))
        put("\(root)/dir/deep/deeper/odd", noise(100_001, 2))
        put("\(root)/sparse", noise(70_000, 3), at: 40 << 20)
        put("\(root)/sparse", noise(5_000, 4), at: 200 << 20)
        precondition(truncate("\(root)/sparse", 300 << 20) == 0)
        precondition(link("\(root)/small", "\(root)/dir/hard") == 0)
        precondition(symlink("dir/data", "\(root)/soft") == 0)
        precondition(mkfifo("\(root)/pipe", 0o600) == 0)
        precondition(chown("\(root)/dir/data", 1234, 4321) == 0)
        precondition(chmod("\(root)/dir/data", 0o4750) == 0)
        precondition(chmod("\(root)/empty", 0o1777) == 0)
        let value = Array("a value".utf8)
        setAttribute("\(root)/small", "user.note", value)
        setAttribute("\(root)/dir", "user.dir", value)
        for index in 0..<600 { put("\(root)/empty/file-\(index)", Array("\(index)".utf8)) }
        for name in ["small", "dir/data", "sparse"] { setTime("\(root)/\(name)", 1_600_000_000) }
        setTime("\(root)/dir", 1_500_000_000)
    }

    static func setTime(_ path: String, _ seconds: Int) {
        let times = [timespec(tv_sec: seconds, tv_nsec: 123_456_789), timespec(tv_sec: seconds, tv_nsec: 987_654_321)]
        precondition(utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW) == 0)
    }

    @Test func failure38WhatAPeerSaysToBeCommittedIsNeverMoreThanWhatItHasSent() throws {
        let pair = try Pair()
        pair.serve(pair.a, epoch: 2)
        pair.connect()
        pair.admit(to: pair.a, epoch: 2)
        let file = pair.a.create("file")
        pair.a.waitForSync(pair.a.write(file, noise(10_000, 1), at: 0))
        pair.settle()
        pair.b.call { plane in
            plane.link.received(.commit(seq: Seq(rawValue: .max)))
            #expect(plane.log.committed == plane.log.core.last)
        }
        pair.a.waitForSync(pair.a.write(file, noise(10_000, 2), at: 5_000))
        pair.settle()
        #expect(pair.differences() == [])
    }

    @Test func catchUpFromTheJournalSendsOnlyWhatWasMissed() throws {
        let pair = try Pair()
        pair.serve(pair.a, epoch: 2)
        pair.connect()
        pair.admit(to: pair.a, epoch: 2)
        let file = pair.a.create("file")
        pair.a.waitForSync(pair.a.write(file, noise(1 << 20, 1), at: 0))
        pair.settle()
        pair.cut()
        // Going alone is a decision of its own, with a new epoch.
        pair.a.call { plane in
            plane.setPolicy(
                AckPolicy(possible: [AckRequirement(inSync: .a, ownDisk: true)], flushFirst: false), token: 2)
            plane.epochChanged(Decision(sequence: 3, epoch: Epoch(rawValue: 3), primary: .a, inSync: .a))
        }
        for index in 0..<32 {
            pair.a.waitForSync(pair.a.write(file, noise(4096, UInt64(index + 10)), at: UInt64(index) * 20_000))
        }
        pair.connect()
        pair.admit(to: pair.a, epoch: 3)
        pair.settle()
        let sent = try #require(pair.wire).bytesToB
        #expect(sent < 32 * 4096 * 13 / 10 + 32 * 400, "\(sent) bytes for 128 KiB of changes")
        #expect(sent >= 32 * 4096)
        #expect(pair.differences() == [])
    }

    /// The mark of a clean stop says that everything received is in the files: nothing may be taken after it.
    @Test func failure16ANodeThatIsStoppingTakesNothingFromAPeerThatConnectsAgain() throws {
        let pair = try Pair()
        pair.serve(pair.a, epoch: 2)
        pair.connect()
        pair.admit(to: pair.a, epoch: 2)
        let file = pair.a.create("file")
        pair.a.waitForSync(pair.a.write(file, noise(1 << 20, 1), at: 0))
        pair.settle()
        let isDone = Mutex(false)
        let before = pair.b.call { plane in
            plane.stop { isDone.withLock { $0 = true } }
            return plane.log.core.last
        }
        pair.connect()
        pair.a.write(file, noise(4096, 2), at: 0)
        for _ in 0..<1000 where !isDone.withLock({ $0 }) { usleep(10_000) }
        #expect(isDone.withLock { $0 })
        usleep(300_000)
        #expect(pair.b.call { $0.log.core.last } == before)
        #expect(pair.b.call { $0.journal.checkpointSeq } == before)
        #expect(pair.a.call { $0.log.core.last } > before)
        // It comes back with exactly that, and gets the rest.
        pair.cut()
        pair.b.stop()
        try pair.b.start()
        #expect(pair.b.call { $0.log.core.last } == before)
        pair.connect()
        pair.settle()
        #expect(pair.differences() == [])
    }

    /// A failed disk ends the session at once, for good: whatever comes is neither taken nor acknowledged, from memory
    /// neither.
    @Test func failure23ANodeWhoseDiskFailedAcknowledgesNothingMore() throws {
        let pair = try Pair()
        pair.serve(pair.a, epoch: 2)
        pair.connect()
        pair.admit(to: pair.a, epoch: 2)
        let file = pair.a.create("file")
        pair.a.waitForSync(pair.a.write(file, noise(4096, 1), at: 0))
        pair.settle()
        pair.b.call { $0.log.onFailure?(.journal(JournalError(.failed, "the disk failed in a test"))) }
        #expect(pair.b.problems.count == 1)
        let held = pair.b.call { $0.log.core.last }
        let lost = pair.a.write(file, noise(4096, 2), at: 0)
        pair.connect()
        usleep(500_000)
        #expect(pair.a.call { $0.log.core.levels.memory } < lost)
        #expect(pair.b.call { $0.log.core.last } == held)
        // Alone, by a decision, it goes on.
        pair.a.call { plane in
            plane.setPolicy(
                AckPolicy(possible: [AckRequirement(inSync: .a, ownDisk: true)], flushFirst: false), token: 2)
            plane.epochChanged(Decision(sequence: 3, epoch: Epoch(rawValue: 3), primary: .a, inSync: .a))
        }
        pair.a.waitForSync(lost)
    }

    /// A node has begun to serve and gathers what the application writes; a batch of the session before, still on its way,
    /// needs memory too.
    @Test func failure29ALateBatchDoesNotLandWhereAPrimaryGathers() throws {
        let pair = try Pair()
        pair.serve(pair.a, epoch: 2)
        let file = pair.a.create("file")
        let data = noise(50_000, 1)
        let seq = pair.a.call { plane -> Seq? in
            let log = plane.log
            // Read from the application already, not logged yet.
            guard let place = log.payloadPlace() else { return nil }
            place.copyBytes(from: data)
            let arena = Arena(bytes: 1 << 20)
            var open = OpenBatch()
            let late = [UInt8](repeating: 0xEE, count: 100_000)
            guard let source = open.payloadPlace(bytes: late.count, in: arena) else { return nil }
            late.withUnsafeBytes { source.copyMemory(from: $0.baseAddress!, byteCount: late.count) }
            open.addWrite(file: file, offset: 0, length: late.count, time: 1)
            let batch = open.close(
                arena: arena, epoch: Epoch(rawValue: 1), mirror: log.journal.mirror, firstSeq: log.core.last.next,
                previousChain: log.lastChain, committedSeq: .zero, closedAt: 1)
            var bytes = (batch.header.wireEncoded() + batch.wirePieces.flatMap { Array($0) })[...]
            let refused = plane.link.refusedMessages
            let sink = BatchSink(mirror: log.journal.mirror) { header in
                plane.link.memory(for: header)
            } deliver: { batch in
                plane.link.received(batch)
            }
            while !bytes.isEmpty {
                guard let places = try? sink.nextPlaces(remaining: bytes.count), !places.isEmpty else { return nil }
                for place in places {
                    place.copyBytes(from: bytes.prefix(place.count))
                    bytes = bytes.dropFirst(place.count)
                }
            }
            guard (try? sink.bodyComplete()) != nil, plane.link.refusedMessages == refused + 1 else { return nil }
            return log.appendWrite(file: file, offset: 0, length: data.count, time: log.wallClock())
        }
        let last = try #require(seq)
        pair.a.waitForSync(last)
        pair.a.wait("applied") { $0.log.applied >= last }
        let isRight = bytes(pair.path(pair.a, "file")) == data
        #expect(isRight)
    }

    /// A record counts as applied when everything before it is, also where it does not touch the same file: what the
    /// application is told of its names holds after a crash.
    @Test func aRecordIsAppliedWhenEveryOneBeforeItIs() throws {
        let pair = try Pair()
        pair.serve(pair.a, epoch: 2)
        // It never will be: nobody knows the file.
        let stuck = pair.a.log(
            .setXattr(file: FileID(epoch: Epoch(rawValue: 2), counter: 5000), name: Array("user.a".utf8), value: [1]))
        let file = pair.a.create("later")
        let isAnswered = Mutex(false)
        let later = pair.a.call { plane in
            let last = plane.log.lastSeq
            plane.log.when(last, .applied) { _ in isAnswered.withLock { $0 = true } }
            return last
        }
        #expect(later > stuck)
        pair.a.wait("in the files") { plane in
            (try? plane.tree.lookup(parent: .root, name: Array("later".utf8)))?.file == file
        }
        usleep(300_000)
        #expect(!isAnswered.withLock { $0 } && pair.a.call { $0.log.applied } < stuck)
    }

    /// What the other node said of its log when it connected is old by the time of the next plan: cutting to that would
    /// take committed records away.
    @Test func failure11NoPlanIsMadeFromWhatTheOtherLogWasLongAgo() throws {
        let pair = try Pair()
        pair.serve(pair.a, epoch: 2)
        pair.connect()
        pair.admit(to: pair.a, epoch: 2)
        let file = pair.a.create("file")
        for index in 0..<50 {
            pair.a.waitForSync(pair.a.write(file, noise(4096, UInt64(index)), at: UInt64(index) * 4096))
        }
        pair.settle()
        let wire = try #require(pair.wire)
        let said = wire.plans.count
        let last = pair.a.call { $0.log.core.last }
        // The answer to "what do you hold now?" takes its time.
        wire.holds { if case .logState(let state) = $0 { !state.isServing } else { false } }
        pair.a.call { $0.link.announce() }
        for _ in 0..<500 where wire.heldBack.isEmpty { usleep(1000) }
        func cuts() -> [Seq] {
            wire.plans.dropFirst(said).compactMap { if case .cut(let seq, _) = $0 { seq } else { nil } }
        }
        #expect(cuts() == [] && pair.a.call { $0.link.stage } == .greeting)
        wire.release()
        pair.a.wait("streaming") { $0.link.stage == .streaming }
        #expect(!cuts().isEmpty && cuts().allSatisfy { $0 >= last }, "\(cuts()), \(last)")
        pair.a.waitForSync(pair.a.write(file, noise(4096, 77), at: 0))
        pair.settle()
        #expect(!wire.isBroken && pair.differences() == [])
    }

    @Test func aNewNodeGetsEverythingByComparison() throws {
        let pair = try Pair(prepare: NodeTests.fill)
        pair.serve(pair.a, epoch: 2)
        pair.connect()
        pair.admit(to: pair.a, epoch: 2)
        pair.settle()
        #expect(pair.differences() == [])
        #expect(pair.b.call { $0.link.isIncomplete } == false)
        #expect(pair.b.isMerged)
        #expect(snapshot(pair.b.configuration.backing).count > 600)
        #expect(occupied("\(pair.b.configuration.backing)/sparse") < 1 << 20, "holes stay holes")
        // And it goes on as an ordinary mirror.
        let file = pair.a.create("later", in: pair.a.file("dir"))
        pair.a.waitForSync(pair.a.write(file, noise(9_000, 9), at: 100))
        pair.settle()
        #expect(pair.differences() == [])
    }

    @Test func aSeededNodeCostsReadingNotSending() throws {
        let pair = try Pair(prepare: NodeTests.fill) { root in
            NodeTests.fill(root)
            // A copy that has aged: one block, one length, one file too many, one missing, one of another type.
            put("\(root)/dir/data", noise(10, 99), at: 1_000_000)
            put("\(root)/dir/deep/deeper/odd", noise(5_000, 98), at: 100_001)
            put("\(root)/dir/stray", noise(50_000, 97))
            put("\(root)/sparse", noise(30_000, 96), at: 100 << 20)
            precondition(unlink("\(root)/pipe") == 0)
            put("\(root)/pipe", noise(100, 95))
            precondition(unlink("\(root)/nothing") == 0)
        }
        pair.serve(pair.a, epoch: 2)
        pair.connect()
        pair.admit(to: pair.a, epoch: 2)
        pair.settle()
        #expect(pair.differences() == [])
        let sent = try #require(pair.wire).bytesToB
        #expect(sent < 600_000, "\(sent) bytes sent, 3 MB are equal")
        #expect(occupied("\(pair.b.configuration.backing)/sparse") < 1 << 20, "what is a hole there is one here")
    }

    @Test func failure15WritesDuringAComparisonStayOnBoth() throws {
        let pair = try Pair(
            mounted: true,
            prepare: { root in
                NodeTests.fill(root)
                put("\(root)/hot", noise(8 << 20, 5))
            },
            seed: { root in put("\(root)/hot", noise(8 << 20, 6)) })
        let a = pair.a
        let root = a.configuration.path
        pair.serve(a, epoch: 2)
        pair.connect()
        let fd = open("\(root)/hot", O_RDWR)
        #expect(fd >= 0)
        defer { close(fd) }
        var round = 0
        // Never stops until the other node is ready to be added, and overwrites, appends, cuts, punches, makes, moves,
        // links and removes meanwhile.
        while !a.isCaughtUp, round < 50_000 {
            round += 1
            let bytes = noise(3_000, UInt64(round))
            #expect(
                bytes.withUnsafeBytes { pwrite(fd, $0.baseAddress, $0.count, off_t(round % 700 * 11_000)) } == 3_000)
            if round % 3 == 0 { put("\(root)/dir/data", noise(500, UInt64(round)), at: round % 40 * 70_000) }
            if round % 11 == 0 { #expect(clinux_fallocate(fd, 3, UInt64(round % 100 * 65_536), 50_000) == 0) }
            if round % 13 == 0 { #expect(truncate("\(root)/dir/deep/deeper/odd", off_t(round % 9 * 20_000)) == 0) }
            if round % 20 == 0 { put("\(root)/dir/made-\(round)", bytes) }
            if round % 40 == 0 { #expect(rename("\(root)/dir/made-\(round)", "\(root)/moved-\(round)") == 0) }
            if round % 80 == 0 { #expect(link("\(root)/moved-\(round)", "\(root)/empty/linked-\(round)") == 0) }
            if round % 160 == 0 { #expect(unlink("\(root)/moved-\(round)") == 0) }
            if round == 4 { #expect(rename("\(root)/empty", "\(root)/dir/full") == 0) }
            if round == 5 { #expect(rename("\(root)/dir/full", "\(root)/empty") == 0) }
            if round % 30 == 0, round / 30 < 20 {
                #expect(rename("\(root)/empty/file-\(round)", "\(root)/dir/file-\(round)") == 0)
            }
        }
        #expect(a.isCaughtUp, "the comparison ends although the application never stops writing")
        pair.admit(to: a, epoch: 2)
        pair.settle()
        #expect(pair.differences() == [])
        #expect(a.problems == [] && pair.b.problems == [])
    }

    @Test func aDirectoryThatIsNeverQuietIsComparedAllTheSame() throws {
        let pair = try Pair(
            mounted: true, prepare: { root in for index in 0..<300 { put("\(root)/old-\(index)", noise(100, 1)) } })
        let a = pair.a
        let root = a.configuration.path
        pair.serve(a, epoch: 2)
        pair.connect()
        // Several processes that make and remove files in one directory without a pause.
        let stop = Mutex(false)
        DispatchQueue.concurrentPerform(iterations: 5) { worker in
            guard worker > 0 else {
                for _ in 0..<3_000 where !a.isCaughtUp { usleep(10_000) }
                return stop.withLock { $0 = true }
            }
            var round = 0
            while !stop.withLock({ $0 }) {
                round += 1
                put("\(root)/new-\(worker)-\(round)", noise(50, UInt64(round)))
                if round % 2 == 0 { unlink("\(root)/new-\(worker)-\(round)") }
            }
        }
        #expect(a.isCaughtUp)
        pair.admit(to: a, epoch: 2)
        pair.settle()
        #expect(pair.differences() == [])
        #expect(a.problems == [] && pair.b.problems == [])
    }

    @Test func failure13ABrokenComparisonLeavesTheNodeIncompleteUntilOneIsDone() throws {
        let pair = try Pair(prepare: { root in
            NodeTests.fill(root)
            put("\(root)/big", noise(24 << 20, 5))
        })
        pair.serve(pair.a, epoch: 2)
        pair.connect()
        pair.b.wait("overwritten in part") {
            $0.log.applied - $0.journal.checkpointSeq > 20 || $0.log.core.last.rawValue > 40
        }
        pair.cut()
        #expect(pair.b.call { $0.link.isIncomplete })
        // It dies as well: what is on its disk still says so.
        pair.b.stop()
        try pair.b.start()
        #expect(pair.b.call { $0.link.isIncomplete })
        #expect(!pair.b.isMerged)
        pair.connect()
        pair.admit(to: pair.a, epoch: 2)
        pair.settle()
        #expect(pair.differences() == [])
        pair.cut()
        pair.b.stop()
        try pair.b.start()
        #expect(pair.b.call { $0.link.isIncomplete } == false)
    }

    @Test func failure11ARecordTheOtherNodeNeverGotIsGoneFromBoth() throws {
        let pair = try Pair()
        pair.serve(pair.a, epoch: 2)
        pair.connect()
        pair.admit(to: pair.a, epoch: 2)
        let file = pair.a.create("file")
        pair.a.waitForSync(pair.a.write(file, noise(5_000, 1), at: 0))
        pair.settle()
        pair.cut()
        let lost = pair.a.write(file, noise(5_000, 2), at: 0)
        pair.a.wait("on its own disk") { $0.log.core.ownDurable >= lost }
        #expect(pair.a.call { $0.log.core.levels.memory } < lost, "never acknowledged")
        pair.a.stop()
        // B takes over, A comes back.
        pair.serve(pair.b, epoch: 3)
        let kept = pair.b.write(file, noise(100, 3), at: 4_000)
        pair.b.waitForSync(kept)
        try pair.a.start()
        #expect(pair.a.call { $0.log.core.last } >= lost)
        pair.connect()
        pair.admit(to: pair.b, epoch: 3)
        pair.settle()
        #expect(pair.differences() == [])
        #expect(pair.a.call { $0.journal.epochs.starts } == pair.b.call { $0.journal.epochs.starts })
    }

    @Test func failure16ARestartedNodeCountsOnlyForWhatItsDiskHolds() throws {
        let pair = try Pair()
        pair.serve(pair.a, epoch: 2)
        pair.connect()
        pair.admit(to: pair.a, epoch: 2)
        let file = pair.a.create("file")
        let last = pair.a.write(file, noise(5_000, 1), at: 0)
        pair.a.waitForSync(last)
        pair.cut()
        pair.b.stop()
        let more = pair.a.write(file, noise(5_000, 2), at: 0)
        pair.a.wait("on its own disk") { $0.log.core.ownDurable >= more }
        #expect(pair.a.call { $0.log.core.levels.disk } == last)
        try pair.b.start()
        let held = pair.b.call { $0.log.core.ownDurable }
        #expect(held >= last && held < more)
        pair.connect()
        pair.a.waitForSync(more)
        #expect(pair.b.call { $0.log.core.ownDurable } >= more)
        pair.settle()
        #expect(pair.differences() == [])
    }

    /// The files may be ahead of what the disk knows to be committed: a directory whose names changed, and which went
    /// right before the process died, is no damage.
    @Test func aRemovalRightBeforeACrashDoesNotKeepTheNodeFromStarting() throws {
        let pair = try Pair()
        let a = pair.a
        pair.serve(a, epoch: 2)
        let outer = a.create("outer", mode: S_IFDIR | 0o755)
        let inner = a.create("inner", in: outer, mode: S_IFDIR | 0o755)
        a.waitForSync(a.write(a.create("file"), noise(100, 1), at: 0))
        a.wait("applied") { $0.log.applied == $0.log.lastSeq }
        a.call { plane in plane.checkpoint { _ in } }
        a.wait("checkpoint") { !$0.checkpointRunning && $0.journal.checkpointSeq >= $0.log.applied }
        a.log(.remove(file: inner, parent: outer, name: Array("inner".utf8), isDirectory: true, wasLast: true))
        a.wait("in a batch of its own") { $0.log.applied == $0.log.lastSeq }
        let last = a.log(
            .remove(file: outer, parent: .root, name: Array("outer".utf8), isDirectory: true, wasLast: true))
        a.wait("gone from the files") { $0.log.applied >= last }
        a.stop()
        try a.start()
        pair.serve(a, epoch: 3)
        a.wait("as before") { $0.log.applied >= last }
        #expect(snapshot(a.configuration.backing)["/outer"] == nil)
        #expect(snapshot(a.configuration.backing)["/file"] != nil)
    }
}
