import CLinux
import Format
import Glibc
import Quorum
import Testing

@testable import Journal
@testable import Node
@testable import Tree

/// Sessions that end in the middle of what they had begun.
@Suite(.serialized) struct SessionTests {
    /// A is to cut what B never got, B dies, and A takes over while its disk still works on the cut: what A leads with is
    /// what the cut leaves.
    @Test func failure11ANodeThatTakesOverWhileItCutsDoesNotKeepWhatItCuts() throws {
        let pair = try Pair.inSync { put("\($0)/base", noise(64 << 10, 7)) }
        let file = pair.a.file("base")
        let before = snapshot(pair.a.configuration.backing)
        pair.cut()
        let common = pair.a.call { $0.log.core.last }
        let lost = pair.a.write(file, noise(5_000, 2), at: 0)
        pair.a.wait("on its own disk") { $0.log.core.ownDurable >= lost }
        pair.a.call { $0.close(.deposed(by: Epoch(rawValue: 3))) }
        pair.a.wait("closed") { if case .idle = $0.phase { true } else { false } }
        pair.serve(pair.b, epoch: 3)

        pair.connect(holding: { if case .cut = $0 { true } else { false } })
        let wire = try #require(pair.wire)
        for _ in 0..<3000 where wire.heldBack.isEmpty { usleep(1000) }
        let cut = try #require(wire.heldBack.first)
        let decision = Decision(sequence: 400, epoch: Epoch(rawValue: 4), primary: .a, inSync: .a)
        let wasCutting = pair.a.call { plane in
            // All in one turn: nothing of it can have reached the disk.
            plane.link.received(cut)
            let isCutting = plane.link.isCutting
            plane.setLease(until: .max)
            plane.setPolicy(
                AckPolicy(possible: [AckRequirement(inSync: .a, ownDisk: true)], flushFirst: true), token: 9)
            plane.serve(decision, .complete)
            return isCutting
        }
        pair.cut()
        try #require(wasCutting)
        pair.a.wait("open") { plane in if case .open = plane.phase { true } else { false } }
        let start = pair.a.call { $0.journal.epochs.starts.last }
        #expect(start?.epoch == Epoch(rawValue: 4) && start?.firstSeq == common.next, "\(String(describing: start))")
        #expect(snapshot(pair.a.configuration.backing) == before, "what was cut is not in the files")
        #expect(pair.a.problems == [])
    }

    /// One bad sector under A's journal, in what B lacks: B is compared, and takes nothing that it has received in this
    /// session for lost.
    @Test func failure37ARecordThatCannotBeReadBackIsNoLossOfTheOtherNode() throws {
        let pair = try Pair.inSync { put("\($0)/base", noise(1 << 20, 77)) }
        pair.cut()
        pair.goAlone(pair.a, epoch: 3)
        let file = pair.a.file("base")
        // What is written between the greeting and the first batch is in the journal only.
        pair.connect(holding: { if case .cutDone = $0 { true } else { false } })
        let wire = try #require(pair.wire)
        for _ in 0..<3000 where wire.heldBack.isEmpty { usleep(1000) }
        let first = pair.a.call { $0.log.core.last.next }
        let seqs = (0..<12).map { pair.a.write(file, noise(1 << 20, $0), at: 0) }
        pair.a.waitForSync(try #require(seqs.last))
        let bad = seqs[10]
        let plan = pair.a.call { $0.journal.plan(from: bad, limitBytes: 1) }
        let position = try #require(plan?.first?.position)
        let journal = open(StateFiles.journal(pair.a.configuration), O_WRONLY)
        try #require(journal >= 0)
        try #require(pwrite(journal, [UInt8](repeating: 0x5A, count: 4096), 4096, off_t(position + 8192)) == 4096)
        try #require(fsync(journal) == 0 && close(journal) == 0)

        wire.release()
        for _ in 0..<6000 where wire.resyncKind == nil { usleep(10_000) }
        #expect(wire.resyncKind == .comparison)
        pair.admit(to: pair.a, epoch: 3)
        pair.settle()
        #expect(pair.b.call { $0.log.core.last } > first)
        #expect(pair.b.call { $0.link.rescue.heldBack } == nil)
        let saved = RescueWriter.list(pair.b.configuration.state + "/rescue")
        #expect(saved.isEmpty, "\(saved)")
        #expect(pair.differences() == [])
    }

    /// Whoever serves may acknowledge from memory: what is not here after a crash may have been acknowledged, whatever the
    /// configuration of this node says. In the journal before the first batch is taken.
    @Test func failure16AJournalIsStrictOnlyAsLongAsWhoeverServesIs() throws {
        let pair = try Pair()
        pair.serve(pair.a, epoch: 2)
        pair.b.call { plane in plane.journal.editSuperblock({ $0.isStrict = true }) {} }
        pair.b.wait("set") { $0.journal.superblock.isStrict }
        pair.connect()
        pair.admit(to: pair.a, epoch: 2)
        #expect(pair.b.call { !$0.journal.superblock.isStrict })
        pair.a.waitForSync(pair.a.write(pair.a.create("file"), noise(5_000, 1), at: 0))
        pair.settle()
        #expect(pair.differences() == [])
    }

    /// An image of a directory that was broken off and is not begun again keeps no checkpoint back for ever.
    @Test func anUnfinishedImageOfADirectoryIsForgottenAtTheEnd() {
        let directory = RecordBody.imageDirectory(
            directory: FileID(rawValue: 9), attributes: FileAttributes(mode: S_IFDIR | 0o755, uid: 0, gid: 0),
            xattrs: [], part: 0, isLast: false, entries: [])
        var parts = ImageParts()
        parts.note(batch([directory], from: 5))
        #expect(parts.checkpoint(atOrBelow: Seq(rawValue: 8)) { $0 } == Seq(rawValue: 4))
        parts.note(batch([.imageEnd(number: 1)], from: 9))
        #expect(parts.checkpoint(atOrBelow: Seq(rawValue: 9)) { $0 } == Seq(rawValue: 9))
    }

    private func batch(_ bodies: [RecordBody], from first: UInt64) -> Batch {
        var writer = ByteWriter()
        writer.put(raw: [UInt8](repeating: 0, count: BatchHeader.byteCount))
        let records = bodies.map { Record(time: 1, body: $0).encode(into: &writer) }
        return Batch(
            records: records, encoded: writer, region: nil, epoch: Epoch(rawValue: 2), mirror: .none,
            firstSeq: Seq(rawValue: first), previousChain: 0, committedSeq: .zero, closedAt: 0)
    }
}
