import CLinux
import Format
import Glibc
import Quorum
import Testing

@testable import Journal
@testable import Node
@testable import Tree

/// What a node must save before it gives it up, because the other one serves without it.
@Suite(.serialized) struct RescueTests {
    /// The first node wrote alone and is lost; the other one serves by force, from where both were.
    private func stranded(writing: (TestNode) -> Void) throws -> (Pair, common: Seq, last: Seq) {
        let pair = try Pair.inSync { root in put("\(root)/base", noise(1 << 20, 77)) }
        pair.cut()
        let common = pair.a.call { $0.log.lastSeq }
        pair.goAlone(pair.a, epoch: 3)
        writing(pair.a)
        let last = pair.a.call { $0.log.lastSeq }
        pair.a.waitForSync(last)
        pair.a.stop()
        try pair.a.start()
        force(pair.b, epoch: 4)
        return (pair, common, last)
    }

    private func force(_ node: TestNode, epoch: UInt32, _ inheritance: Inheritance? = nil) {
        let epoch = Epoch(rawValue: epoch)
        let decision = Decision(sequence: 2000, epoch: epoch, primary: node.id, inSync: NodeSet(node.id))
        node.call { plane in
            plane.setLease(until: .max)
            plane.setPolicy(
                AckPolicy(possible: [AckRequirement(inSync: NodeSet(node.id), ownDisk: true)], flushFirst: false),
                token: 0)
            plane.serve(decision, inheritance ?? .byForce(since: epoch))
        }
        node.wait("open") { plane in if case .open = plane.phase { true } else { false } }
    }

    private func writeSome(_ a: TestNode) {
        for index in 0..<40 { a.write(a.file("base"), noise(4096, UInt64(index)), at: UInt64(index) * 8192) }
    }

    private func saved(_ node: TestNode) throws -> [RescueFile] {
        let directory = node.configuration.state + "/rescue"
        return try RescueWriter.list(directory).map {
            try #require(try RescueFile(image: JournalReader(path: directory + "/" + $0, direct: false)))
        }
    }

    /// Every record behind `common` once, in order.
    private func expectAll(_ file: RescueFile, _ common: Seq, _ last: Seq) {
        #expect(!file.isTorn && file.header.missing == 0)
        #expect(file.header.firstSaved <= common.next && file.header.lastSaved == last && file.header.last == last)
        for (batch, next) in zip(file.batches, file.batches.dropFirst()) {
            #expect(batch.lastSeq.next == next.firstSeq && next.previousChain == batch.chain)
        }
    }

    private func expectTheSame(_ pair: Pair) {
        pair.admit(to: pair.b, epoch: 4)
        pair.settle()
        #expect(pair.differences() == [])
        #expect(pair.a.problems == [] && pair.b.problems == [])
        #expect(pair.a.call { $0.link.rescue.heldBack } == nil)
    }

    @Test func failure34WhatIsNotPartOfTheMirrorIsSavedOnce() throws {
        let (pair, common, last) = try stranded(writing: writeSome)
        pair.connect()
        expectTheSame(pair)
        let files = try saved(pair.a)
        try #require(files.count == 1)
        expectAll(files[0], common, last)
        #expect(try saved(pair.b).isEmpty)
        // Nothing of it is saved again.
        pair.connect()
        pair.a.wait("following") { $0.link.stage == .following }
        pair.settle()
        #expect(try saved(pair.a).count == 1)
    }

    /// No room: nothing is cut, the node says why and waits, until there is room or an administrator gives it up.
    @Test(arguments: [true, false]) func failure34WithoutRoomForWhatMustBeSavedNothingIsCut(makesRoom: Bool) throws {
        let (pair, common, last) = try stranded(writing: writeSome)
        let rescue = pair.a.configuration.state + "/rescue"
        makeDirectories(rescue)
        try #require(run("/bin/mount", "-t", "tmpfs", "-o", "size=1m", "none", rescue) == 0, "needs root")
        var isMounted = true
        defer { if isMounted { run("/bin/umount", rescue) } }
        pair.connect()
        pair.a.wait("held back") { $0.link.rescue.heldBack != nil }
        let why = try #require(pair.a.call { $0.link.rescue.heldBack })
        for needed in ["records", "\(last)", "cannot be saved", rescue, "are free", "rejoin --discard"] {
            #expect(why.contains(needed), "\(needed) is not in: \(why)")
        }
        usleep(300_000)
        let state = pair.a.call { ($0.journal.lastSeq, $0.log.role, $0.link.isIncomplete) }
        #expect(state == (last, .idle, false) || state == (last, .following, false))
        #expect(pair.b.call { $0.log.core.follower } == nil)
        // A new connection changes nothing.
        pair.connect()
        usleep(300_000)
        #expect(pair.a.call { $0.journal.lastSeq } == last)
        #expect(try saved(pair.a).isEmpty)

        if makesRoom {
            pair.cut()
            run("/bin/umount", rescue)
            isMounted = false
            pair.a.stop()
            try pair.a.start()
            pair.connect()
        } else {
            pair.a.call { $0.link.discardUnsaved() }
        }
        expectTheSame(pair)
        let files = try saved(pair.a)
        #expect(files.count == (makesRoom ? 1 : 0))
        if let file = files.first { expectAll(file, common, last) }
    }

    /// Killed when everything was saved and nothing cut; or while it was being saved.
    @Test(arguments: [true, false]) func failure34ACrashBetweenSavingAndCuttingSavesOnce(isWhole: Bool) throws {
        let (pair, common, last) = try stranded(writing: writeSome)
        let state = pair.a.configuration.state
        let writer = RescueWriter(directory: state + "/rescue", journal: state + "/journal")
        let first = try writer.save(above: common, through: last, now: 1)
        #expect(!first.wasThere)
        let bytes = try #require(try StateFile.load(first.path))
        if !isWhole {
            try StateFile.remove(first.path)
            put(first.path + ".part", Array(bytes.prefix(bytes.count / 2)))
        }
        pair.a.stop()
        try pair.a.start()
        pair.connect()
        expectTheSame(pair)
        let files = try saved(pair.a)
        try #require(files.count == 1)
        expectAll(files[0], common, last)
        // The very same file, not another one of the same name.
        #expect((try StateFile.load(first.path) == bytes) == isWhole)
        #expect(access(first.path + ".part", F_OK) != 0)
    }

    /// The journal no longer holds the first of what only this node has: the rest is saved, and the node says which records
    /// are missing, and waits.
    @Test func failure34WhatTheJournalNoLongerHoldsIsNamed() throws {
        let (pair, common, last) = try stranded { a in
            writeSome(a)
            a.fillJournal(a.file("base"))
        }
        let oldest = pair.a.call { $0.journal.oldestSeq }
        try #require(oldest > common.next)
        pair.connect()
        pair.a.wait("held back") { $0.link.rescue.heldBack != nil }
        let why = try #require(pair.a.call { $0.link.rescue.heldBack })
        let files = try saved(pair.a)
        try #require(files.count == 1)
        let header = files[0].header
        #expect(header.missing == 1 && header.lastSaved == last && header.firstSaved > common.next)
        for needed in [
            "records \(common.next) to \(header.firstSaved.previous): no longer in the journal", "backing",
            "rejoin --discard",
        ] {
            #expect(why.contains(needed), "\(needed) is not in: \(why)")
        }
        #expect(pair.a.call { $0.journal.lastSeq } == last)
        pair.a.call { $0.link.discardUnsaved() }
        expectTheSame(pair)
        #expect(try saved(pair.a).count == 1)
    }

    /// A sector behind the checkpoint has rotted: recovery does not look there, and the plain files have the record until
    /// the other node's are put in their place. So nothing is given up; what was saved then does not count as the whole.
    @Test func failure34ADamagedRecordBehindTheCheckpointIsNotTakenForSaved() throws {
        let (pair, common, last) = try stranded(writing: writeSome)
        let a = pair.a
        a.makeCheckpoint()
        a.stop()
        let rotten = try #require(a.batches().first { $0.firstSeq > common && $0.length > 4096 })
        try #require(rotten.lastSeq < last)
        // In its last page, which is payload.
        let place = rotten.position + rotten.length - 100
        a.flip(a.journalFile, place)
        try a.start()
        #expect(a.damage == nil)
        pair.connect()
        a.wait("held back") { $0.link.rescue.heldBack != nil }
        let why = try #require(a.call { $0.link.rescue.heldBack })
        #expect(why.contains("damaged at journal offset \(rotten.position)"), "\(why)")
        #expect(a.call { $0.journal.lastSeq } == last)
        #expect(try saved(a).map(\.header.missing) == [1])
        // The disk is mended. The file of before is not what is in the journal now.
        pair.cut()
        a.stop()
        a.flip(a.journalFile, place)
        try a.start()
        pair.connect()
        a.wait("held back") { $0.link.rescue.heldBack != nil }
        let file = try #require(RescueWriter.list(a.configuration.state + "/rescue").first)
        #expect(a.call { $0.link.rescue.heldBack }?.contains("move it away") == true)
        pair.cut()
        a.stop()
        try StateFile.remove(a.configuration.state + "/rescue/" + file)
        try a.start()
        pair.connect()
        expectTheSame(pair)
        let files = try saved(a)
        try #require(files.count == 1)
        expectAll(files[0], common, last)
    }

    /// The end of the log waits for room in a full journal, which comes only with the cut: it is saved from memory.
    @Test func failure34WhatWaitsForRoomInAFullJournalIsSavedToo() throws {
        let pair = try Pair.inSync { root in put("\(root)/base", noise(1 << 20, 77)) }
        let base = pair.a.file("base")
        pair.cut()
        let common = pair.a.call { $0.log.lastSeq }
        // Nobody confirms anything, so nothing is committed, applied, or given free.
        while true {
            let isFull = pair.a.call { plane in
                guard let place = plane.log.payloadPlace() else { return true }
                place.copyBytes(from: noise(RecordLimits.payloadBytes, 3))
                _ = plane.log.appendWrite(
                    file: base, offset: 0, length: RecordLimits.payloadBytes, time: plane.log.wallClock())
                return false
            }
            guard isFull else { continue }
            usleep(50_000)
            let isStuck = pair.a.call { plane in
                plane.log.payloadPlace() == nil && plane.journal.batchesInFlight == 0
            }
            if isStuck { break }
        }
        // Changes without a payload are accepted a little longer.
        let name = Array("user.filling".utf8)
        for _ in 0..<2000 {
            pair.a.log(.setXattr(file: base, name: name, value: [UInt8](repeating: 7, count: 60_000)))
            if pair.a.call({ !$0.log.queued.isEmpty }) { break }
        }
        let last = pair.a.call { $0.log.lastSeq }
        try #require(pair.a.call { !$0.log.queued.isEmpty }, "the journal was never full")
        pair.a.call { $0.close(.deposed(by: Epoch(rawValue: 4))) }
        force(pair.b, epoch: 4, .unsyncedMayBeMissing)
        pair.connect()
        pair.a.wait("saved") { !$0.link.rescue.files.isEmpty }
        expectTheSame(pair)
        let files = try saved(pair.a)
        try #require(files.count == 1)
        expectAll(files[0], common, last)
    }
}
