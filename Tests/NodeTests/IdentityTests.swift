import CLinux
import Format
import Foundation
import Glibc
import Quorum
import Testing

@testable import Journal
@testable import Node
@testable import Tree

extension TestNode {
    var journalFile: String { StateFiles.journal(configuration) }

    /// The files as they are now, as a snapshot of their file system would keep them. The node is stopped.
    func keep(files path: String) { #expect(run("/bin/cp", "-a", configuration.backing, path) == 0) }
    func putBack(files path: String) {
        #expect(run("/bin/rm", "-rf", configuration.backing) == 0)
        #expect(run("/bin/cp", "-a", path, configuration.backing) == 0)
    }
    func keep(journal path: String) { #expect(run("/bin/cp", "-a", journalFile, path) == 0) }
    func putBack(journal path: String) { #expect(run("/bin/cp", "-a", path, journalFile) == 0) }

    /// As the process does when its data side has started.
    func takeBackCleanStop() {
        let done = Flag()
        call { plane in plane.journal.clearCleanStop(isStrict: false) { done.set() } }
        while !done.isSet { usleep(1000) }
    }

    /// Everything applied is the checkpoint, as it is a few seconds after the last write.
    func makeCheckpoint() {
        call { plane in plane.checkpoint { _ in } }
        wait("a checkpoint") { $0.journal.checkpointSeq == $0.log.applied && !$0.checkpointRunning }
    }
}

/// Line 18 of the table of failures, as far as a node's own disks show it.
@Suite(.serialized) struct IdentityTests {
    // MARK: the rule

    /// Every combination of marker and journal, against what it must mean.
    @Test func failure18EveryCombinationOfMarkerAndJournalHasOneMeaning() {
        // The journal: records 100 to 200, batches end at the even ones, checkpoint 140, life 7 of base 3.
        let journal = CopyCheck.JournalSide(
            instance: 1, checkpoint: Seq(rawValue: 140), last: Seq(rawValue: 200), incarnation: 3 << 32 | 7)
        let chain = { (seq: Seq) -> UInt64? in
            seq.rawValue % 2 == 0 && (100...200).contains(seq.rawValue) ? seq.rawValue * 10 : nil
        }
        var counts: [String: Int] = [:]
        for isDamaged in [false, true] {
            for instance: UInt64 in [1, 2] {
                for seq: UInt64 in [0, 100, 138, 140, 141, 160, 200, 202] {
                    for isSameHistory in [true, false] {
                        for life: UInt64 in [0, 3 << 32 | 6, 3 << 32 | 7, 3 << 32 | 8, 4 << 32 | 1] {
                            var side = journal
                            side.isDamaged = isDamaged
                            let point = TreeMarker.Point(
                                seq: Seq(rawValue: seq), chain: isSameHistory ? seq * 10 : 1, incarnation: life)
                            let verdict = CopyCheck.verdict(
                                TreeMarker(journal: instance, points: [point]), side, chain: chain)
                            let expected: CopyCheck.Verdict
                            if instance == 2 {
                                expected = .otherJournal
                            } else if seq < 140 {
                                expected = .filesBehind(marker: point.seq, checkpoint: journal.checkpoint)
                            } else if life == 3 << 32 | 8 || seq > 200 && !isDamaged {
                                expected = .journalBehind(marker: point.seq, last: journal.last)
                            } else if isDamaged || isSameHistory && seq % 2 == 0 {
                                expected = .fits(point)
                            } else {
                                expected = .otherHistory(point.seq)
                            }
                            #expect(verdict == expected, "\(point), damaged \(isDamaged)")
                            counts["\(expected)".prefix(6).description, default: 0] += 1
                        }
                    }
                }
            }
        }
        #expect(counts.count == 5)
        #expect(CopyCheck.verdict(nil, journal, chain: chain) == .noMarker)
    }

    /// A journal that is about to begin anew: whichever of the two points is the one, the copy fits.
    @Test func failure18AJournalThatBeginsAnewIsNoFalseAlarm() {
        let old = TreeMarker.Point(seq: Seq(rawValue: 150), chain: 1500, incarnation: 3 << 32 | 7)
        let new = TreeMarker.Point(seq: Seq(rawValue: 90), chain: 5, incarnation: 0)
        let marker = TreeMarker(journal: 1, points: [old, new])
        let before = CopyCheck.JournalSide(
            instance: 1, checkpoint: Seq(rawValue: 140), last: Seq(rawValue: 200), incarnation: 3 << 32 | 8)
        #expect(CopyCheck.verdict(marker, before) { $0.rawValue * 10 } == .fits(old))
        let after = CopyCheck.JournalSide(
            instance: 1, checkpoint: Seq(rawValue: 90), last: Seq(rawValue: 90), incarnation: 4 << 32)
        #expect(CopyCheck.verdict(marker, after) { $0.rawValue == 90 ? 5 : nil } == .fits(new))
    }

    // MARK: one node's disks

    private static func fill(_ root: String) {
        NodeTests.fill(root)
        put("\(root)/kept", noise(3 << 20, 17))
    }

    /// Both in sync, `b` stopped, its disks kept as they are. Then it has followed more changes, and is stopped again.
    private static func aged(_ pair: Pair, cleanly: Bool) throws -> (files: String, journal: String) {
        let (files, journal) = (pair.scratch.path + "/old-files", pair.scratch.path + "/old-journal")
        pair.cut()
        pair.b.stop()
        pair.b.keep(files: files)
        pair.b.keep(journal: journal)
        try pair.b.start()
        pair.connect()
        let file = pair.a.create("later")
        pair.a.write(file, noise(200_000, 18), at: 0)
        pair.a.remove(pair.a.file("kept"), .root, "kept")
        pair.a.waitForSync(pair.a.write(file, noise(1000, 19), at: 5))
        pair.settle()
        pair.b.makeCheckpoint()
        if cleanly {
            let done = Flag()
            pair.cut()
            pair.b.call { plane in plane.stop { done.set() } }
            while !done.isSet { usleep(1000) }
        }
        pair.cut()
        pair.b.stop()
        return (files, journal)
    }

    /// After a misfit: the copy does not count, also after another start; then the other node makes it equal.
    private static func expectCompared(_ pair: Pair, words: String) throws {
        let b = pair.b
        for _ in 0..<2 {
            b.expectsMisfit = true
            try b.start()
            #expect(b.damage?.contains(words) == true, "\(b.damage ?? "nothing was found")")
            #expect(b.call { $0.link.isIncomplete && $0.journal.isIncomplete && $0.journal.superblock.isIncomplete })
            b.stop()
        }
        try b.start()
        // It offers itself, and is not taken for a complete copy.
        pair.connect()
        pair.a.wait("compares") { $0.link.stage == .comparing }
        #expect(!b.isMerged)
        pair.goAlone(pair.a, epoch: 3)
        pair.a.log(.setAttributes(file: .root, mask: [], attributes: FileAttributes(mode: 0, uid: 0, gid: 0)))
        pair.connect()
        pair.admit(to: pair.a, epoch: 3)
        pair.settle()
        #expect(pair.a.kind == "comparison")
        #expect(pair.differences() == [])
        // And from then on it is like any other: a crash is no misfit.
        b.expectsMisfit = false
        pair.cut()
        b.stop()
        try b.start()
        #expect(b.damage == nil)
        pair.connect()
        pair.a.waitForSync(pair.a.write(pair.a.create("at last"), noise(1000, 3), at: 0))
        pair.settle()
        #expect(pair.differences() == [])
    }

    @Test(arguments: [false, true]) func failure18FilesThatWerePutBackAreNoticedAndCompared(cleanly: Bool) throws {
        let pair = try Pair.inSync(IdentityTests.fill)
        let old = try IdentityTests.aged(pair, cleanly: cleanly)
        pair.b.putBack(files: old.files)
        try IdentityTests.expectCompared(pair, words: "was put back to an older state: it holds the records up to")
    }

    @Test(arguments: [false, true]) func failure18AJournalThatWasPutBackIsNoticedAndCompared(cleanly: Bool) throws {
        let pair = try Pair.inSync(IdentityTests.fill)
        let old = try IdentityTests.aged(pair, cleanly: cleanly)
        pair.b.putBack(journal: old.journal)
        try IdentityTests.expectCompared(pair, words: "journal was put back to an older state: it ends at record")
    }

    @Test func failure18TheOtherNodesFilesAreNoticedAndCompared() throws {
        let pair = try Pair.inSync(IdentityTests.fill)
        _ = try IdentityTests.aged(pair, cleanly: false)
        let clone = pair.scratch.path + "/clone"
        pair.a.keep(files: clone)
        pair.b.putBack(files: clone)
        try IdentityTests.expectCompared(pair, words: "belongs to another journal")
    }

    /// `b` offers itself, is not taken for a complete copy, and the other node makes it equal.
    private static func compareAgain(_ pair: Pair) {
        pair.connect()
        pair.a.wait("compares") { $0.link.stage == .comparing }
        #expect(!pair.b.isMerged)
        pair.goAlone(pair.a, epoch: 3)
        pair.admit(to: pair.a, epoch: 3)
        pair.settle()
        #expect(pair.differences() == [])
    }

    /// Two volumes mounted in each other's place, as after a change of cables: `b` finds the clone of the other node's files
    /// once. Its own lie aside, as they were.
    private static func misfitOnce(_ pair: Pair) throws -> (own: String, clone: String) {
        _ = try aged(pair, cleanly: false)
        let (own, clone) = (pair.scratch.path + "/own", pair.scratch.path + "/clone")
        pair.a.keep(files: clone)
        try #require(rename(pair.b.configuration.backing, own) == 0)
        try #require(rename(clone, pair.b.configuration.backing) == 0)
        pair.b.expectsMisfit = true
        try pair.b.start()
        #expect(pair.b.call { $0.link.isIncomplete && $0.journal.superblock.misfitLife != nil })
        return (own, clone)
    }

    /// The copy is whole, and may be the only one: it must not take the other node to say so.
    @Test func failure18TheRightFilesAreBackAndTheCopyCountsAgain() throws {
        let pair = try Pair.inSync(IdentityTests.fill)
        let (own, clone) = try IdentityTests.misfitOnce(pair)
        let b = pair.b
        let life = b.call { $0.journal.incarnation.base }
        // For a while, and from one start to the next.
        usleep(UInt32(DataPlane.checkpointIdleMilliseconds + 1000) * 1000)
        b.stop()
        try b.start()
        b.stop()
        try #require(rename(b.configuration.backing, clone) == 0 && rename(own, b.configuration.backing) == 0)
        b.expectsMisfit = false
        try b.start()
        #expect(b.damage == nil)
        #expect(b.call { !$0.link.isIncomplete && !$0.journal.superblock.isIncomplete && $0.journal.misfitLife == nil })
        let file = pair.a.create("while the files were elsewhere")
        pair.connect()
        pair.a.waitForSync(pair.a.write(file, noise(1000, 3), at: 0))
        pair.settle()
        // It was caught up with: a comparison would have begun the journal anew.
        #expect(b.call { $0.journal.incarnation.base } == life)
        #expect(pair.differences() == [])
    }

    /// What the place of the files shows while the daemon is started again and again.
    enum Beside: CaseIterable {
        case theFiles
        /// Files that say nothing of a journal.
        case filesWithoutMarker
        /// The bare place: their disk is not mounted. The starts end.
        case nothing
        /// What is no mirror's. The starts end.
        case somebodyElsesFiles
    }

    /// A journal that was put back to its last life, with the same last record: each start counts its life on, and the
    /// marker must not fit again because of that. Nor after starts with files that say nothing, nor after starts that ended
    /// before anybody had looked at the files.
    @Test(arguments: Beside.allCases)
    func failure18AJournalThatWasPutBackIsNoticedHoweverOftenItIsStarted(beside: Beside) throws {
        let pair = try Pair.inSync(IdentityTests.fill)
        let b = pair.b
        let file = pair.a.create("written")
        b.makeCheckpoint()
        pair.a.waitForSync(pair.a.write(file, noise(5000, 4), at: 0))
        pair.settle()
        pair.cut()
        b.stop()
        let old = pair.scratch.path + "/old-journal"
        b.keep(journal: old)
        try b.start()
        pair.connect()
        pair.settle()
        b.makeCheckpoint()
        #expect(b.call { $0.journal.checkpointSeq == $0.journal.lastSeq })
        pair.cut()
        b.stop()
        b.putBack(journal: old)
        try IdentityTests.startBeside(beside, pair)
        for start in 0..<4 {
            b.expectsMisfit = start == 0
            try b.start()
            #expect(b.call { $0.link.isIncomplete && $0.journal.misfitLife == nil }, "start \(start)")
            if start == 0 { #expect(b.damage?.contains("was put back to an older state") == true) }
            b.stop()
        }
        try b.start()
        IdentityTests.compareAgain(pair)
    }

    /// Starts the second node three times beside something else than its files; then they are back.
    private static func startBeside(_ beside: Beside, _ pair: Pair) throws {
        let b = pair.b
        let (backing, aside) = (b.configuration.backing, pair.scratch.path + "/aside")
        let marker = backing + "/.lockstep/marker"
        switch beside {
        case .theFiles: return
        case .filesWithoutMarker:
            try #require(rename(marker, aside) == 0)
            b.expectsMisfit = true
            for _ in 0..<3 {
                try b.start()
                #expect(b.call { $0.link.isIncomplete && $0.journal.misfitLife != nil })
                b.stop()
            }
            try #require(rename(aside, marker) == 0)
        case .nothing, .somebodyElsesFiles:
            try #require(rename(backing, aside) == 0)
            makeDirectories(backing)
            if beside == .somebodyElsesFiles { put(backing + "/letter", noise(100, 1)) }
            let before = try Data(contentsOf: URL(fileURLWithPath: b.journalFile))
            for _ in 0..<3 { #expect(throws: TreeError.self) { try b.start() } }
            #expect(try Data(contentsOf: URL(fileURLWithPath: b.journalFile)) == before, "the journal was written to")
            try #require(run("/bin/rm", "-rf", backing) == 0 && rename(aside, backing) == 0)
        }
    }

    /// The wrong files are about to become the journal's own, and the power goes: they fit from then on, at a record that
    /// both logs have, and must not be taken for the right ones.
    @Test func failure18FilesThatBecomeTheJournalsOwnAreNotTakenForTheRightOnes() throws {
        let pair = try Pair.inSync(IdentityTests.fill)
        _ = try IdentityTests.misfitOnce(pair)
        let begun = Flag()
        pair.b.call { plane in
            plane.markBeginning(plane.journal.lastSeq, chain: plane.journal.chain(at: plane.journal.lastSeq) ?? 0) {
                begun.set()
            }
        }
        while !begun.isSet { usleep(1000) }
        pair.b.stop()
        pair.b.expectsMisfit = false
        try pair.b.start()
        #expect(pair.b.call { $0.markedPoint != nil && $0.link.isIncomplete && $0.journal.superblock.isIncomplete })
        IdentityTests.compareAgain(pair)
    }

    @Test func failure18FilesWithoutAMarkerAreNoticedAndCompared() throws {
        let pair = try Pair.inSync(IdentityTests.fill)
        _ = try IdentityTests.aged(pair, cleanly: false)
        #expect(unlink(pair.b.configuration.backing + "/.lockstep/marker") == 0)
        try IdentityTests.expectCompared(pair, words: "does not say which journal it belongs to")
    }

    /// Two failures: records above the checkpoint rot after a clean stop, and the other node is lost. Each start finds again
    /// that records are missing, and does not serve without them, until the other node has made the copy whole.
    @Test func failure10DamageIsNotForgottenByStartsWithoutTheOtherNode() throws {
        let pair = try Pair.inSync(IdentityTests.fill)
        let b = pair.b
        let last = try IdentityTests.stoppedWithADamagedEnd(pair)
        var found: String?
        for start in 0..<3 {
            try b.start()
            let damage = try #require(b.damage, "found by start \(start)")
            #expect(damage.contains("is damaged; records in doubt: record") && damage == found ?? damage)
            found = damage
            #expect(b.call { $0.journal.lastSeq < last && $0.journal.isDamaged && $0.link.isIncomplete })
            #expect(b.summary?.isUsable == false && b.summary?.isComplete == false)
            let report = try JournalMap(image: JournalReader(path: b.journalFile), mirror: pair.mirror).report
            #expect(report.verdict == .damaged(through: last) && report.outcome(.alone) == .refusePrimary)
            b.takeBackCleanStop()
            if start > 0 { IdentityTests.expectRefusalToServe(b, epoch: UInt32(start) + 2) }
            if start == 1 {
                let done = Flag()
                b.call { plane in plane.stop { done.set() } }
                while !done.isSet { usleep(1000) }
            }
            b.stop()
        }
        try b.start()
        IdentityTests.compareAgain(pair)
        pair.cut()
        b.stop()
        try b.start()
        #expect(b.damage == nil && b.call { !$0.journal.isDamaged && !$0.link.isIncomplete })
    }

    /// The second node is stopped cleanly with records above the checkpoint, and the last of them rots.
    private static func stoppedWithADamagedEnd(_ pair: Pair) throws -> Seq {
        let b = pair.b
        b.makeCheckpoint()
        b.call { $0.holdsCheckpoints = true }
        let file = pair.a.create("written")
        for round: UInt64 in 0..<4 { pair.a.waitForSync(pair.a.write(file, noise(9000, 4), at: round * 9000)) }
        pair.settle()
        let done = Flag()
        pair.cut()
        b.call { plane in plane.stop { done.set() } }
        while !done.isSet { usleep(1000) }
        b.stop()
        let map = try JournalMap(image: JournalReader(path: b.journalFile), mirror: pair.mirror)
        try #require(map.report.wasStoppedCleanly && map.report.checkpointSeq < map.report.lastSeq)
        guard case .batch(let place) = map.segments.last else { throw JournalError(.damaged, "no batch") }
        let fd = open(b.journalFile, O_RDWR)
        defer { close(fd) }
        var byte: UInt8 = 0
        // Near the beginning of its last page, which is payload.
        let offset = off_t(place.position + place.length - JournalLayout.pageBytes + 100)
        #expect(pread(fd, &byte, 1, offset) == 1)
        byte ^= 0x40
        #expect(pwrite(fd, &byte, 1, offset) == 1 && fsync(fd) == 0)
        return map.report.lastSeq
    }

    private static func expectRefusalToServe(_ node: TestNode, epoch: UInt32) {
        let decision = Decision(
            sequence: UInt64(epoch), epoch: Epoch(rawValue: epoch), primary: node.id, inSync: NodeSet(node.id))
        let before = node.problems.count
        node.call { plane in
            plane.setLease(until: .max)
            plane.serve(decision, .complete)
        }
        #expect(node.problems.dropFirst(before).contains { $0.contains("this node's copy is not complete") })
        #expect(node.call { if case .idle = $0.phase { $0.log.role != .primary } else { false } })
    }

    /// All disks of the machine, consistently: only the other node knows. It remembers what it was told to be on that disk.
    @Test(arguments: [false, true]) func failure18AMachineThatWasPutBackIsNoticedByTheOtherNode(alone: Bool) throws {
        let pair = try Pair.inSync(IdentityTests.fill)
        let old = try IdentityTests.aged(pair, cleanly: false)
        if alone { pair.goAlone(pair.a, epoch: 3) }
        pair.b.putBack(files: old.files)
        pair.b.putBack(journal: old.journal)
        try pair.b.start()
        #expect(pair.b.damage == nil)
        pair.connect()
        if !alone {
            pair.a.wait("compares") { $0.link.stage == .comparing }
            #expect(!pair.b.isMerged)
            pair.goAlone(pair.a, epoch: 3)
        }
        pair.admit(to: pair.a, epoch: 3)
        pair.settle()
        #expect(pair.a.kind == "comparison")
        #expect(pair.differences() == [])
    }

    /// The place where the disk should be mounted, and it is not: nothing starts, nothing is written there.
    @Test func failure18AnEmptyPlaceWhereTheFilesShouldBeStartsNothing() throws {
        let pair = try Pair.inSync(IdentityTests.fill)
        pair.cut()
        pair.b.stop()
        let (backing, aside) = (pair.b.configuration.backing, pair.scratch.path + "/aside")
        #expect(rename(backing, aside) == 0)
        makeDirectories(backing)
        do {
            try pair.b.start()
            Issue.record("it started on an empty directory")
        } catch { #expect("\(error)".contains("its file system is not mounted"), "\(error)") }
        #expect(try PlainTree.look(at: backing) == .empty(isMountPoint: false))
        #expect(rmdir(backing) == 0)
        #expect(rename(aside, backing) == 0)
        try pair.b.start()
        pair.connect()
        pair.a.waitForSync(pair.a.create("after").rawValue > 0 ? pair.a.call { $0.log.lastSeq } : .zero)
        pair.settle()
        #expect(pair.differences() == [])
    }

    /// The disk is new: prepared by the administrator, it is filled by the other node.
    @Test func failure18AnEmptyDirectoryThatWasPreparedIsFilled() throws {
        let pair = try Pair.inSync(IdentityTests.fill)
        _ = try IdentityTests.aged(pair, cleanly: true)
        let configuration = pair.b.configuration
        // The votes stay; only that there are any matters here.
        try VoteFile(configuration).store(
            AcceptorState.genesis(mirror: pair.mirror, name: "test", node: .b, birth: 5))
        #expect(throws: StartError.self) { try NodePreparation.join(configuration, node: .b, logger: quiet) }
        #expect(run("/bin/rm", "-rf", configuration.backing) == 0)
        makeDirectories(configuration.backing)
        try NodePreparation.join(configuration, node: .b, logger: quiet)
        try IdentityTests.expectCompared(pair, words: "does not say which journal it belongs to")
    }

    /// Its votes are gone: `lockstep init` makes it join anew. What its journal held may be nowhere else.
    @Test func failure18AJournalThatWasInUseIsKeptWhenTheNodeJoinsAnew() throws {
        let pair = try Pair.inSync(IdentityTests.fill)
        pair.cut()
        pair.b.stop()
        let (configuration, journal) = (pair.b.configuration, pair.b.journalFile)
        let state = configuration.state
        let before = try JournalMap(image: JournalReader(path: journal), mirror: pair.mirror).report.lastSeq
        func keptOnes() throws -> [String] {
            try FileManager.default.contentsOfDirectory(atPath: state).filter { $0.hasPrefix("journal.set-aside-") }
        }
        // So are votes that were forgotten, without which that journal cannot be served.
        let forgotten = StateFiles.forgottenVotes(configuration)
        try StateFile.replace(
            forgotten,
            with: AcceptorState.genesis(mirror: pair.mirror, name: "test", node: .b, birth: 5).encoded())
        try NodePreparation.join(configuration, node: .b, logger: quiet)
        #expect(access(forgotten, F_OK) != 0)
        let kept = try keptOnes()
        try #require(kept.count == 1 && access(journal, F_OK) != 0)
        let map = try JournalMap(image: JournalReader(path: state + "/" + kept[0]), mirror: pair.mirror)
        #expect(map.report.lastSeq == before)
        // One that no daemon has used is what a preparation left that was broken off.
        try NodePreparation.makeJournal(
            configuration, node: .b, mirror: pair.mirror, isIncomplete: true, logger: quiet)
        try NodePreparation.join(configuration, node: .b, logger: quiet)
        #expect(try keptOnes() == kept && access(journal, F_OK) != 0)
    }

    /// A crash between the marker and the checkpoint, the only moment at which the two differ.
    @Test func failure18ACrashBetweenMarkerAndCheckpointIsNoFalseAlarm() throws {
        let pair = try Pair.inSync(IdentityTests.fill)
        let file = pair.a.create("between")
        pair.a.waitForSync(pair.a.write(file, noise(100_000, 4), at: 0))
        pair.settle()
        let done = Flag()
        pair.b.call { plane in
            plane.holdsCheckpoints = true
            let seq = plane.log.applied
            plane.markCheckpoint(seq, chain: plane.journal.chain(at: seq) ?? 0) { _ in done.set() }
        }
        while !done.isSet { usleep(1000) }
        #expect(pair.b.call { $0.journal.checkpointSeq < $0.log.applied })
        pair.cut()
        pair.b.stop()
        try pair.b.start()
        #expect(pair.b.damage == nil)
        // Twice, and with a journal that may begin anew in between.
        let begun = Flag()
        pair.b.call { plane in plane.markBeginning(Seq(rawValue: 9999), chain: 1) { begun.set() } }
        while !begun.isSet { usleep(1000) }
        pair.b.stop()
        try pair.b.start()
        #expect(pair.b.damage == nil)
        pair.connect()
        pair.a.waitForSync(pair.a.write(file, noise(1000, 5), at: 7))
        pair.settle()
        #expect(pair.differences() == [])
    }

    /// A node whose votes were put back does not vote, but follows and makes checkpoints. They must not forget what the
    /// marker knows of its votes: the start after that would vote with the old ones.
    @Test func failure18CheckpointsKeepWhatIsKnownOfTheVotes() throws {
        let pair = try Pair.inSync(IdentityTests.fill)
        let file = pair.a.create("written")
        pair.b.call { $0.votes = (birth: 77, starts: 5) }
        for round in 0..<3 {
            pair.a.waitForSync(pair.a.write(file, noise(5000, 4), at: UInt64(round) * 5000))
            pair.settle()
            pair.b.makeCheckpoint()
            let marker = pair.b.call { try? $0.tree.marker() }
            #expect(marker?.points.last?.seq == pair.b.call { $0.journal.checkpointSeq })
            #expect(marker?.voteBirth == 77 && marker?.voteStarts == 5, "after \(round) starts")
            // Nobody tells the next process of votes, as nobody does while they are not trusted.
            pair.cut()
            pair.b.stop()
            try pair.b.start()
            pair.connect()
        }
    }
}
