import Format
import Glibc
import Quorum
import Replication
import Synchronization
import Testing

@testable import Journal
@testable import Node
@testable import Tree

/// Orders of events in which a return went wrong once: each is brought about on purpose.
@Suite(.serialized) struct ReturnTests {
    private static let plain = FileAttributes(mode: S_IFREG | 0o644, uid: 0, gid: 0)
    private static let folder = FileAttributes(mode: S_IFDIR | 0o755, uid: 0, gid: 0)

    private static func base(_ root: String) { put("\(root)/base", noise(3 << 20, 77)) }

    /// The first node is alone, and its journal does not reach back.
    private static func apart(_ prepare: @escaping (String) throws -> Void = base) throws -> Pair {
        let pair = try Pair.inSync(prepare)
        pair.cut()
        pair.goAlone(pair.a, epoch: 3)
        return pair
    }

    /// The other node's copy is incomplete: what it lacked was being sent.
    private static func brokenOff() throws -> Pair {
        let pair = try Pair.inSync { put("\($0)/base", noise(24 << 20, 77)) }
        pair.cut()
        pair.goAlone(pair.a, epoch: 3)
        let base = pair.a.file("base")
        for index in 0..<20 { pair.a.write(base, noise(1 << 20, UInt64(index)), at: UInt64(index) << 20) }
        pair.a.fillJournal(base)
        pair.connect(bytesPerSecond: 24 << 20)
        let first = try #require(pair.wire)
        let old = pair.b.call { $0.log.core.last }
        pair.b.wait("half of it", seconds: 60) { plane in
            first.bytesToB > 8 << 20 && plane.log.core.ownDurable > old
        }
        pair.cut()
        #expect(pair.b.call { $0.link.isIncomplete })
        return pair
    }

    private static func expectEqual(_ pair: Pair, epoch: UInt32, kind: String) {
        pair.admit(to: pair.a, epoch: epoch)
        pair.settle()
        #expect(pair.a.kind == kind)
        #expect(pair.differences() == [])
        #expect(pair.a.problems == [] && pair.b.problems == [])
    }

    // MARK: - What is sent

    enum Moment: CaseIterable { case whileItIsLookedAt, behindItsSize }

    /// A file is cut to nothing; at its turn there is nothing of it to send but its size. Then the application writes behind
    /// the old end of the other node's copy: while everything of the file is read at once; or it changes the file then, so
    /// that it goes step by step, and writes before the file's attributes are sent.
    @Test(arguments: Moment.allCases)
    func failure15AFileThatWasEmptyAtItsTurnUncoversNothingWhenItGrows(moment: Moment) throws {
        let pair = try ReturnTests.apart { root in
            ReturnTests.base(root)
            put("\(root)/cut", [UInt8](repeating: 0x55, count: 100))
        }
        let a = pair.a
        let cut = a.file("cut")
        a.setSize(cut, 0)
        a.fillJournal(a.file("base"))
        let isWritten = Mutex(false)
        let isChanged = Mutex(false)
        a.call { plane in
            plane.reactor.beforeSleep { [unowned plane] in
                guard let source = plane.resync as? ResyncSource,
                    let task = source.tasks.first(where: { $0.file == cut }), !isWritten.withLock({ $0 })
                else { return }
                let isLookedAt = task.isBusy && source.waitsForLook(task)
                if moment == .behindItsSize, isLookedAt, !isChanged.withLock({ $0 }) {
                    isChanged.withLock { $0 = true }
                    let name = Array("user.changed".utf8)
                    _ = plane.log.append(.setXattr(file: cut, name: name, value: [1]), time: plane.log.wallClock())
                }
                let isBehindItsSize = task.stage == .data || task.stage == .attributes
                guard moment == .whileItIsLookedAt ? isLookedAt : isBehindItsSize,
                    let place = plane.log.payloadPlace()
                else { return }
                isWritten.withLock { $0 = true }
                place.copyBytes(from: [1, 2, 3])
                _ = plane.log.appendWrite(file: cut, offset: 200, length: 3, time: plane.log.wallClock())
            }
        }
        pair.connect()
        a.wait("written in the middle") { _ in isWritten.withLock { $0 } }
        #expect(isChanged.withLock { $0 } == (moment == .behindItsSize))
        ReturnTests.expectEqual(pair, epoch: 3, kind: "ranges")
        let wanted = [UInt8](repeating: 0, count: 200) + [1, 2, 3]
        #expect(bytes(pair.path(pair.b, "cut")) == wanted)
        #expect(bytes(pair.path(a, "cut")) == wanted)
    }

    // MARK: - The other node starts again in the middle

    enum Continuation: CaseIterable { case again, resumed }

    /// The other node knows of nothing committed above its checkpoint, so that its start replays nothing; what it had
    /// received is applied when it is continued. There is a record of an object that only an image brings, and an image in
    /// two parts.
    @Test(arguments: Continuation.allCases)
    func failure13TheTailOfAnIncompleteCopyIsAppliedAsImages(way: Continuation) throws {
        let pair = try Pair.inSync(ReturnTests.base)
        let b = pair.b
        let base = pair.a.file("base")
        let before = bytes(pair.path(b, "base"))
        pair.cut()
        let source = ScriptedSource(pair.a, to: b)
        ReturnTests.beginRanges(source, number: 7)
        source.log([.imageStart(number: 7)], committed: source.last)
        let applied = source.last
        source.say(.commit(seq: applied))
        b.wait("applied") { $0.log.applied == applied && !$0.checkpointRunning }
        b.call { $0.checkpoint { _ in } }
        b.wait("checkpoint") { $0.journal.checkpointSeq == applied && !$0.checkpointRunning }
        let new = FileID(epoch: Epoch(rawValue: 2), counter: 5000)
        let data = noise(10_000, 3)
        source.log(write: new, Array("too early".utf8), at: 20_000, images: false, committed: applied)
        for (part, entry) in [("base", base), ("new", new)].enumerated() {
            source.log(
                [
                    .imageDirectory(
                        directory: .root, attributes: ReturnTests.folder, xattrs: [], part: UInt32(part),
                        isLast: part == 1,
                        entries: [ImageEntry(name: Array(entry.0.utf8), file: entry.1, mode: S_IFREG)])
                ], committed: applied)
        }
        source.log(write: new, data, at: 0, images: true, committed: applied)
        source.waitForDisk()
        let last = source.last
        source.disconnect()
        b.stop()
        try b.start()
        #expect(b.call { $0.log.committed } == applied && b.call { $0.log.core.last } == last)
        #expect(b.call { !$0.log.unapplied.isEmpty }, "the start has replayed nothing")
        source.connect()
        let start: ResyncStart
        if way == .again {
            source.jump()
            start = source.start(.ranges, number: 7, through: last)
        } else {
            source.say(.cut(seq: last, chain: source.chain))
            source.expect(.cutDone(seq: last))
            start = source.start(.resumed, number: 7, through: last)
        }
        source.say(.resyncStart(start))
        source.expect(.resyncReady(number: 7))
        if way == .resumed { source.say(.commit(seq: last)) }
        b.wait("applied or broken") { $0.isBroken || $0.log.applied >= last }
        #expect(b.problems == [])
        #expect(b.file("new") == new && b.file("base") == base, "names of both parts")
        #expect(bytes(pair.path(b, "new")) == data)
        let isSame = bytes(pair.path(b, "base")) == before
        #expect(isSame)
    }

    private static func beginRanges(_ source: ScriptedSource, number: UInt64) {
        source.connect()
        let old = source.last
        source.jump()
        source.say(.resyncStart(source.start(.ranges, number: number, through: old)))
        source.expect(.resyncReady(number: number))
    }

    /// A log that cannot be read says nothing of how far the copy is.
    @Test func failure37ADamagedJournalOfAnIncompleteCopyMeansComparison() throws {
        let pair = try ReturnTests.brokenOff()
        let b = pair.b
        let places = b.call { $0.journal.plan(from: $0.journal.checkpointSeq.next, limitBytes: .max) ?? [] }
        try #require(places.count > 4)
        let place = places[places.count / 2]
        b.stop()
        let path = StateFiles.journal(b.configuration)
        let fd = open(path, O_RDWR)
        for offset in [40, place.length / 2] {
            var byte: UInt8 = 0
            #expect(pread(fd, &byte, 1, off_t(place.position + offset)) == 1)
            byte ^= 0x10
            #expect(pwrite(fd, &byte, 1, off_t(place.position + offset)) == 1)
        }
        close(fd)
        try b.start()
        #expect(b.call { $0.journal.isDamaged && $0.link.isIncomplete })
        #expect(b.call { $0.link.state.resyncNumber } == 0)
        pair.connect()
        ReturnTests.expectEqual(pair, epoch: 3, kind: "comparison")
    }

    // MARK: - What is owed

    /// What was owed and what has changed since can each be remembered, both together cannot.
    @Test(arguments: [false, true])
    func failure17WhatIsTooMuchToRememberIsComparedAndNeverForgotten(otherHasBegun: Bool) throws {
        // Of both halves together the numbers become a bit map, which is larger than a list of one half ever is.
        let count = 1100
        let pair = try Pair.inSync { root in
            ReturnTests.base(root)
            for index in 0..<2 * count { put("\(root)/file-\(index)", [1]) }
        }
        let a = pair.a
        pair.cut()
        // Room for one of the two halves.
        a.call { $0.keeper.budgetBytes = 6500 }
        pair.goAlone(a, epoch: 3)
        func change(_ numbers: Range<Int>) {
            for index in numbers {
                a.log(
                    .setAttributes(
                        file: a.file("file-\(index)"), mask: .mode,
                        attributes: FileAttributes(mode: S_IFREG | 0o640, uid: 0, gid: 0)))
            }
            a.fillJournal(a.file("base"))
        }
        change(0..<count)
        pair.connect()
        let first = try #require(pair.wire)
        first.breaks { message in
            switch message {
            case .resyncStart: !otherHasBegun
            case .resyncReady: otherHasBegun
            default: false
            }
        }
        a.wait("broken off", seconds: 60) { _ in first.isBroken }
        #expect(pair.b.call { $0.link.isIncomplete } == otherHasBegun)
        change(count..<2 * count)
        let terms = try #require(a.call { $0.keeper.terms })
        #expect(terms.isSinceKnown && terms.isOwedKnown, "each for itself")
        pair.connect()
        ReturnTests.expectEqual(pair, epoch: 3, kind: "comparison")
    }

    /// The disk refuses the record of what is owed: the other node hears of nothing before it is there.
    @Test func failure17NothingIsSentBeforeWhatIsOwedIsOnDisk() throws {
        let pair = try ReturnTests.apart()
        let a = pair.a
        a.fillJournal(a.file("base"))
        a.wait("written") { !$0.checkpointRunning && !$0.keeper.isWriting }
        let path = StateFiles.dirty(a.configuration)
        makeDirectories(path + ".new")
        pair.connect()
        let wire = try #require(pair.wire)
        a.wait("recording") { ($0.resync as? ResyncSource)?.phase == .recording }
        usleep(2_500_000)
        #expect(wire.resyncKind == nil && a.call { ($0.resync as? ResyncSource)?.phase == .recording })
        #expect(pair.b.call { $0.link.isIncomplete } == false)
        #expect(rmdir(path + ".new") == 0)
        // What the file says at the moment at which the other node is told.
        let number = Mutex<(said: UInt64, written: UInt64?)?>(nil)
        let file = DebtFile(path: path, mirror: pair.mirror, node: .a)
        wire.breaks { message in
            guard case .resyncStart(let start) = message else { return false }
            number.withLock { $0 = (start.number, try? file.load()?.debt.owed?.number) }
            return false
        }
        ReturnTests.expectEqual(pair, epoch: 3, kind: "ranges")
        let seen = try #require(number.withLock { $0 })
        #expect(seen.said == seen.written)
    }

    /// The file was written for a checkpoint that is on its way to the journal; a resynchronisation that begins meanwhile
    /// writes it as well, and knows only of the checkpoint before. After a crash the file must fit the one or the other.
    @Test func failure17TheRecordOfWhatIsOwedNeverFallsBehindACheckpointOnItsWay() throws {
        let pair = try ReturnTests.apart()
        let a = pair.a
        a.waitForSync(a.write(a.file("base"), noise(4096, 1), at: 0))
        a.wait("quiet") { !$0.checkpointRunning && !$0.keeper.isWriting }
        let newer = a.call { plane -> Seq? in
            let journal = plane.journal
            let older = journal.checkpointSeq
            guard let newer = journal.boundary(atOrBelow: plane.log.committed)?.seq, newer > older,
                let olderChain = journal.chain(at: older), let newerChain = journal.chain(at: newer)
            else { return nil }
            plane.keeper.persist(through: newer, chain: newerChain) { _ in }
            plane.keeper.persist(through: older, chain: olderChain) { _ in }
            return newer
        }
        let wanted = try #require(newer)
        a.wait("written") { !$0.keeper.isWriting }
        let file = DebtFile(path: StateFiles.dirty(a.configuration), mirror: pair.mirror, node: .a)
        #expect(try #require(try file.load()).through >= wanted)
    }

    // MARK: - What the journal keeps

    /// An image of a directory that was broken off lies in the log of the node that made it, and of one that came back by
    /// its journal through it.
    @Test func imagesInTheLogOfACompleteCopyDoNotHoldItsCheckpoint() throws {
        let pair = try Pair()
        let a = pair.a
        pair.serve(a, epoch: 2)
        let file = a.create("file")
        a.waitForSync(a.write(file, noise(4096, 1), at: 0))
        a.call { plane in
            _ = plane.log.appendImage(
                .imageDirectory(
                    directory: .root, attributes: ReturnTests.folder, xattrs: [], part: 0, isLast: false,
                    entries: [ImageEntry(name: Array("file".utf8), file: file, mode: S_IFREG)]), time: 1)
        }
        a.wait("on disk") { $0.log.core.ownDurable == $0.log.lastSeq }
        a.stop()
        try a.start()
        #expect(a.call { !$0.log.unapplied.isEmpty })
        pair.serve(a, epoch: 3)
        let last = a.write(file, noise(4096, 2), at: 0)
        a.waitForSync(last)
        a.wait("applied") { $0.log.applied >= last && !$0.checkpointRunning }
        a.call { $0.checkpoint { _ in } }
        a.wait("checkpoint", seconds: 10) { $0.journal.checkpointSeq >= last }
    }

    // MARK: - Who may be brought back

    /// An addition of the other node may have been chosen: nothing of its copy may be overwritten, by whatever way.
    @Test func failure13NoReturnBeginsWhileAnAdditionIsInDoubt() throws {
        let pair = try ReturnTests.apart()
        let a = pair.a
        a.fillJournal(a.file("base"))
        let doubt = AckPolicy(
            possible: [AckRequirement(inSync: .a, ownDisk: true), AckRequirement(inSync: .both, ownDisk: true)],
            flushFirst: false)
        let alone = AckPolicy(possible: [AckRequirement(inSync: .a, ownDisk: true)], flushFirst: false)
        a.call { $0.setPolicy(doubt, token: 5) }
        pair.connect()
        var wire = try #require(pair.wire)
        a.wait("planned") { $0.resync is ResyncSource }
        usleep(500_000)
        #expect(wire.resyncKind == nil && pair.b.call { $0.link.isIncomplete } == false)
        a.call { $0.setPolicy(alone, token: 6) }
        ReturnTests.expectEqual(pair, epoch: 3, kind: "ranges")
        #expect(wire.resyncKind == .ranges)
        // The same when an administrator asks. What is in doubt is settled by a decision, not by the request.
        pair.cut()
        pair.goAlone(a, epoch: 4)
        pair.connect()
        wire = try #require(pair.wire)
        a.wait("caught up") { _ in a.isCaughtUp }
        a.call { $0.setPolicy(doubt, token: 7) }
        let asked = a.peerFailures
        #expect(a.call { $0.compareOnRequest() } == nil)
        #expect(a.peerFailures == asked + 1, "the control side hears that the other node has to leave")
        usleep(500_000)
        #expect(wire.resyncKind == nil && pair.b.call { $0.link.isIncomplete } == false)
        pair.goAlone(a, epoch: 5)
        // From here on nobody is told any more that it has caught up.
        a.wait("planned") { $0.resync is ResyncSource }
        ReturnTests.expectEqual(pair, epoch: 5, kind: "comparison")
    }

    // MARK: - Nobody waits for ever

    /// Between the plan and its turn the journal has moved on.
    @Test func aResumptionWhoseRecordIsGoneIsPlannedAnew() throws {
        let pair = try ReturnTests.brokenOff()
        pair.a.call { plane in
            let begin = plane.link.onRanges
            var isFirst = true
            plane.link.onRanges = { common, way in
                begin?(isFirst ? Seq(rawValue: 1) : common, isFirst ? .resume : way)
                isFirst = false
            }
        }
        pair.connect()
        ReturnTests.expectEqual(pair, epoch: 3, kind: "ranges")
    }

    /// The node that is to go on finds that it cannot: it takes the comparison that comes instead.
    @Test func aRefusedResumptionIsFollowedByTheComparison() throws {
        let pair = try Pair.inSync(ReturnTests.base)
        pair.cut()
        let source = ScriptedSource(pair.a, to: pair.b)
        ReturnTests.beginRanges(source, number: 7)
        source.log([.imageStart(number: 7)], committed: source.last)
        source.waitForDisk()
        source.disconnect()
        source.connect()
        let last = source.last
        source.say(.cut(seq: last, chain: source.chain))
        source.expect(.cutDone(seq: last))
        source.say(.resyncStart(source.start(.resumed, number: 8, through: last)))
        source.expect(.cutRefused(seq: last))
        source.jump()
        source.say(.resyncStart(source.start(.comparison, number: 9, through: .zero)))
        source.expect(.resyncReady(number: 9))
        #expect(pair.b.call { $0.link.refusedMessages } == 0 && pair.b.problems == [])
    }

    /// Committed, and not yet on its way to the files, which wait a moment for more: then the log begins anew.
    @Test func whatIsCommittedIsInTheFilesBeforeTheLogBeginsAnew() throws {
        let pair = try Pair.inSync(ReturnTests.base)
        let b = pair.b
        pair.cut()
        // A long moment.
        b.call { plane in
            plane.log.handOverNanoseconds = 60_000_000_000
            plane.log.handOverTimerMilliseconds = 60_000
        }
        let source = ScriptedSource(pair.a, to: b)
        source.connect()
        source.say(.cut(seq: source.last, chain: source.chain))
        source.expect(.cutDone(seq: source.last))
        let new = FileID(epoch: Epoch(rawValue: 2), counter: 5000)
        source.log(
            [
                .create(
                    file: new, parent: .root, name: Array("new".utf8), attributes: ReturnTests.plain, target: [],
                    xattrs: [])
            ], images: false, committed: source.last)
        source.waitForDisk()
        let last = source.last
        source.say(.commit(seq: last))
        #expect(b.call { $0.log.committed == last && $0.log.applied < last && $0.log.applier.backlog == 0 })
        source.jump()
        source.say(.resyncStart(source.start(.comparison, number: 7, through: .zero)))
        source.expect(.resyncReady(number: 7))
        #expect(b.file("new") == new)
        #expect(b.problems == [])
    }
}
