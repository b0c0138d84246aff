import CLinux
import Format
import Glibc
import Quorum
import Synchronization
import Testing

@testable import Journal
@testable import Node
@testable import Tree

extension Pair {
    /// The first node's decision to go on alone, as the control side would hand it down.
    func goAlone(_ node: TestNode, epoch: UInt32) {
        node.call { plane in
            plane.setPolicy(
                AckPolicy(
                    possible: [
                        AckRequirement(inSync: .both, ownDisk: true),
                        AckRequirement(inSync: NodeSet(node.id), ownDisk: true),
                    ], flushFirst: true), token: 2)
            plane.setPolicy(
                AckPolicy(possible: [AckRequirement(inSync: NodeSet(node.id), ownDisk: true)], flushFirst: false),
                token: 3)
            plane.epochChanged(
                Decision(
                    sequence: UInt64(epoch) + 1, epoch: Epoch(rawValue: epoch), primary: node.id,
                    inSync: NodeSet(node.id)))
        }
    }

    /// Both in sync, with a tree of `prepare`.
    static func inSync(mounted: Bool = false, _ prepare: @escaping (String) throws -> Void) throws -> Pair {
        let pair = try Pair(mounted: mounted, prepare: prepare)
        pair.serve(pair.a, epoch: 2)
        pair.connect()
        pair.admit(to: pair.a, epoch: 2)
        pair.settle()
        return pair
    }

    /// The first node, which went on alone in epoch 3, brings the other one back: the journal does not reach so far.
    func bringBackByRanges() {
        a.fillJournal(a.file("base"))
        connect()
        admit(to: a, epoch: 3)
        settle()
        #expect(a.kind == "ranges")
        #expect(differences() == [])
        #expect(b.isMerged && b.problems == [] && a.problems == [])
    }
}

extension TestNode {
    /// Writes the same megabyte until the journal does not reach back to where it was.
    func fillJournal(_ file: FileID) {
        let last = call { $0.log.lastSeq }
        var round: UInt64 = 0
        while call({ $0.journal.oldestSeq }) <= last.next {
            round += 1
            waitForSync(write(file, noise(1 << 20, round), at: 0))
            precondition(round < 500, "the journal never came round")
        }
    }

    var kind: String { call { $0.returnFacts?.kind ?? "" } }

    func setSize(_ file: FileID, _ size: UInt64) {
        log(.setAttributes(file: file, mask: .size, attributes: FileAttributes(mode: 0, uid: 0, gid: 0, size: size)))
    }
    func rename(_ file: FileID, _ parent: FileID, _ name: String, to newParent: FileID, _ newName: String) {
        log(
            .rename(
                file: file, parent: parent, name: Array(name.utf8), newParent: newParent, newName: Array(newName.utf8),
                exchange: false, replaced: .none, replacedWasLast: false))
    }
    /// The batches in the journal of a node that is stopped, oldest place first.
    func batches() throws -> [BatchLocation] {
        try JournalMap(image: JournalReader(path: journalFile), mirror: nil).segments.compactMap { segment in
            if case .batch(let location) = segment { location } else { nil }
        }
    }

    /// One bit of a file turns over.
    func flip(_ path: String, _ offset: Int) {
        let fd = open(path, O_RDWR)
        defer { close(fd) }
        var byte: UInt8 = 0
        #expect(pread(fd, &byte, 1, off_t(offset)) == 1)
        byte ^= 0x40
        #expect(pwrite(fd, &byte, 1, off_t(offset)) == 1 && fsync(fd) == 0)
    }

    func remove(_ file: FileID, _ parent: FileID, _ name: String, isDirectory: Bool = false) {
        log(.remove(file: file, parent: parent, name: Array(name.utf8), isDirectory: isDirectory, wasLast: true))
    }
}

/// Bringing a node back whose log the journal cannot continue, with what is known of its lacks.
@Suite(.serialized) struct RangesTests {
    private static func fill(_ root: String) {
        NodeTests.fill(root)
        put("\(root)/base", noise(24 << 20, 77))
        put("\(root)/cut", noise(2 << 20, 78))
        put("\(root)/gone", noise(100_000, 79))
        makeDirectories("\(root)/x/y/z")
        put("\(root)/x/y/z/inside", noise(50_000, 80))
    }

    /// One of everything, on the node that serves.
    private static func change(_ a: TestNode) -> Int {
        let base = a.file("base")
        var union = 0
        for index in 0..<200 {
            a.write(base, noise(4096, UInt64(index)), at: UInt64(1 << 20) + UInt64(index) * 98_304)
            union += 4096
        }
        // New, in an old and in a new directory; and one that does not live long.
        let fresh = a.create("fresh", mode: S_IFDIR | 0o750)
        let new = a.create("new", in: fresh)
        a.write(new, noise(300_000, 5), at: 0)
        union += 300_000
        let short = a.create("short")
        a.write(short, noise(500_000, 6), at: 0)
        a.remove(short, .root, "short")
        let link = a.call { $0.log.allocateFileID() }
        a.log(
            .create(
                file: link, parent: fresh, name: Array("soft".utf8),
                attributes: FileAttributes(mode: S_IFLNK | 0o777, uid: 0, gid: 0), target: Array("new".utf8), xattrs: []
            ))
        a.remove(a.file("gone"), .root, "gone")
        a.rename(a.file("small"), .root, "small", to: fresh, "was-small")
        a.log(.link(file: a.file("nothing"), parent: fresh, name: Array("nothing-too".utf8)))
        // Cut, then longer again: between there is nothing but zeros.
        let cut = a.file("cut")
        a.setSize(cut, 1_000_000)
        a.setSize(cut, 3 << 20)
        a.log(.allocate(file: a.file("dir/data"), mode: 3, offset: 65_536, length: 262_144))
        a.log(.setXattr(file: a.file("dir/deep"), name: Array("user.deep".utf8), value: [1, 2, 3]))
        a.log(
            .setAttributes(
                file: a.file("pipe"), mask: [.mode, .uid],
                attributes: FileAttributes(mode: S_IFIFO | 0o640, uid: 77, gid: 0)))
        // A directory and what was above it change places.
        let x = a.file("x")
        let y = a.file("x/y")
        a.rename(y, x, "y", to: .root, "y")
        a.rename(x, .root, "x", to: a.file("x/y/z"), "x")
        return union
    }

    @Test func aTooShortJournalCostsOnlyWhatChanged() throws {
        let pair = try Pair.inSync(RangesTests.fill)
        pair.cut()
        pair.goAlone(pair.a, epoch: 3)
        let union = RangesTests.change(pair.a) + 1 << 20
        pair.bringBackByRanges()
        let sent = try #require(pair.wire).bytesToB
        #expect(sent < union * 12 / 10 + 100_000, "\(sent) bytes for \(union) of changes")
        #expect(pair.a.call { $0.keeper.debt == nil }, "nothing is owed any more")
        // And it goes on as an ordinary mirror.
        pair.a.waitForSync(pair.a.write(pair.a.file("base"), noise(9_000, 9), at: 100))
        pair.settle()
        #expect(pair.differences() == [])
    }

    /// Small files go at once, without a record of their size before the bytes.
    @Test func smallFilesThatWereCutOrGrewAreMadeEqual() throws {
        let pair = try Pair.inSync { root in
            RangesTests.fill(root)
            for index in 0..<6 { put("\(root)/small\(index)", noise(20_000, UInt64(index))) }
            put("\(root)/small6", noise(3000, 6))
        }
        let files = (0..<7).map { pair.a.file("small\($0)") }
        // Space behind the end, as databases take it for their logs. It goes with the first cut; what is added then is a hole.
        pair.a.log(.allocate(file: files[6], mode: 1, offset: 0, length: 32_768))
        pair.settle()
        pair.cut()
        pair.goAlone(pair.a, epoch: 3)
        pair.a.setSize(files[6], 0)
        pair.a.write(files[6], noise(3000, 24), at: 0)
        pair.a.setSize(files[6], 32_768)
        pair.a.setSize(files[0], 5_000)
        pair.a.setSize(files[1], 5_000)
        pair.a.setSize(files[1], 15_000)
        pair.a.write(files[2], noise(4096, 21), at: 50_000)
        pair.a.setSize(files[3], 0)
        pair.a.setSize(files[4], 0)
        pair.a.write(files[4], noise(100, 22), at: 30_000)
        pair.a.write(files[5], noise(1000, 23), at: 7_000)
        pair.bringBackByRanges()
        let blocks = pair.nodes.map { node in
            var found = stat()
            stat("\(node.configuration.backing)/small6", &found)
            return found.st_blocks
        }
        #expect(blocks[0] == blocks[1], "a hole takes no space: \(blocks)")
    }

    // MARK: - While the application goes on

    @Test func failure15WritesWhileRangesAreSentStayOnBoth() throws {
        let pair = try Pair.inSync(mounted: true) { root in
            RangesTests.fill(root)
            put("\(root)/hot", noise(8 << 20, 5))
        }
        let a = pair.a
        let root = a.configuration.path
        pair.cut()
        pair.goAlone(a, epoch: 3)
        for index in 0..<1500 { put("\(root)/hot", noise(4096, UInt64(index)), at: index * 5000) }
        for index in 0..<300 { put("\(root)/x/y/new-\(index)", noise(3000, UInt64(index))) }
        #expect(rename("\(root)/x/y/z", "\(root)/z") == 0)
        a.fillJournal(a.file("base"))
        pair.connect()
        let fd = open("\(root)/hot", O_RDWR)
        #expect(fd >= 0)
        defer { close(fd) }
        var round = 0
        while !a.isCaughtUp, round < 50_000 {
            round += 1
            let bytes = noise(3_000, UInt64(round))
            #expect(
                bytes.withUnsafeBytes { pwrite(fd, $0.baseAddress, $0.count, off_t(round % 700 * 11_000)) } == 3_000)
            if round % 11 == 0 { #expect(clinux_fallocate(fd, 3, UInt64(round % 100 * 65_536), 50_000) == 0) }
            if round % 13 == 0 { #expect(truncate("\(root)/cut", off_t(round % 9 * 200_000)) == 0) }
            if round % 20 == 0 { put("\(root)/dir/made-\(round)", bytes) }
            if round % 40 == 0 { #expect(rename("\(root)/dir/made-\(round)", "\(root)/x/moved-\(round)") == 0) }
            if round % 80 == 0 { #expect(link("\(root)/x/moved-\(round)", "\(root)/empty/linked-\(round)") == 0) }
            if round % 160 == 0 { #expect(unlink("\(root)/x/moved-\(round)") == 0) }
            if round % 25 == 0, round / 25 < 300 {
                #expect(rename("\(root)/x/y/new-\(round / 25)", "\(root)/z/new-\(round / 25)") == 0)
            }
            // Directories change places while they are sent.
            if round % 30 == 1 { #expect(rename("\(root)/x", "\(root)/z/x") == 0) }
            if round % 30 == 2 { #expect(rename("\(root)/z/x", "\(root)/x") == 0) }
            if round % 30 == 3 { #expect(rename("\(root)/z", "\(root)/x/y/z") == 0) }
            if round % 30 == 4 { #expect(rename("\(root)/x/y/z", "\(root)/z") == 0) }
        }
        #expect(a.isCaughtUp, "it ends although the application never stops writing")
        #expect(a.kind == "ranges")
        pair.admit(to: a, epoch: 3)
        pair.settle()
        #expect(pair.differences() == [])
        #expect(a.problems == [] && pair.b.problems == [])
    }

    // MARK: - Broken off

    enum Victim: CaseIterable { case connection, source, follower, both }

    /// Whoever dies in the middle: it goes on where it was.
    @Test(arguments: Victim.allCases)
    func whatWasBrokenOffGoesOnWhereItWas(victim: Victim) throws {
        let pair = try Pair.inSync(RangesTests.fill)
        pair.cut()
        pair.goAlone(pair.a, epoch: 3)
        let changed = RangesTests.change(pair.a)
        let base = pair.a.file("base")
        // Long against what may be on its way, which is sent twice more: from the journal, and because it is still owed.
        for index in 0..<40 { pair.a.write(base, noise(1 << 20, UInt64(index)), at: UInt64(index) << 20) }
        pair.a.fillJournal(base)
        let union = changed + 40 << 20
        pair.connect()
        let first = try #require(pair.wire)
        let bOldLast = pair.b.call { $0.log.core.last }
        pair.b.wait("half of it", seconds: 60) { plane in
            first.bytesToB > union * 6 / 10 && plane.log.core.ownDurable > bOldLast
        }
        pair.cut()
        #expect(pair.b.call { $0.link.isIncomplete })
        // Half of it is on the other disk, and known to be.
        let sent = first.bytesToB
        #expect(sent < union, "broken off before its end")
        if victim == .source || victim == .both {
            // What was confirmed since the last checkpoint would be sent again.
            pair.a.wait("between checkpoints") { !$0.checkpointRunning }
            pair.a.call { plane in plane.checkpoint { _ in } }
            pair.a.wait("checkpoint") { !$0.checkpointRunning && !$0.keeper.isWriting }
            pair.a.stop()
        }
        if victim == .follower || victim == .both {
            pair.b.stop()
            try pair.b.start()
            #expect(pair.b.call { $0.link.isIncomplete }, "and says so")
        }
        if victim == .source || victim == .both {
            try pair.a.start()
            pair.serve(pair.a, epoch: 4)
        }
        // Meanwhile the application went on.
        pair.a.write(base, noise(4096, 4711), at: 5 << 20)
        let late = pair.a.create("late", in: pair.a.file("fresh"))
        pair.a.waitForSync(pair.a.write(late, noise(10_000, 3), at: 0))
        pair.connect()
        pair.admit(to: pair.a, epoch: victim == .source || victim == .both ? 4 : 3)
        pair.settle()
        #expect(pair.differences() == [])
        let again = try #require(pair.wire).bytesToB
        #expect(pair.a.kind == "ranges")
        #expect(sent + again < union * 13 / 10, "\(sent) bytes, then \(again), of \(union)")
        #expect(pair.a.problems == [] && pair.b.problems == [])
    }

    /// What the second node lacks was sent to it about half; how many bytes that were.
    private static func brokenOff() throws -> (Pair, sent: Int) {
        let pair = try Pair.inSync(RangesTests.fill)
        pair.cut()
        pair.goAlone(pair.a, epoch: 3)
        _ = RangesTests.change(pair.a)
        let base = pair.a.file("base")
        for index in 0..<20 { pair.a.write(base, noise(1 << 20, UInt64(index)), at: UInt64(index) << 20) }
        pair.a.fillJournal(base)
        pair.connect()
        let first = try #require(pair.wire)
        pair.b.wait("half of it", seconds: 60) { _ in first.bytesToB > 12 << 20 }
        pair.cut()
        return (pair, first.bytesToB)
    }

    /// Broken off, and the journal does not reach back to where it was: what has changed since is owed too.
    @Test func whatWasBrokenOffLongAgoGoesOnWithWhatChangedSince() throws {
        let (pair, sentBefore) = try RangesTests.brokenOff()
        let more = pair.a.create("more", in: pair.a.file("fresh"))
        pair.a.write(more, noise(200_000, 8), at: 0)
        pair.a.rename(pair.a.file("fresh/new"), pair.a.file("fresh"), "new", to: .root, "new")
        pair.a.fillJournal(pair.a.file("cut"))
        pair.b.stop()
        try pair.b.start()
        pair.connect()
        pair.admit(to: pair.a, epoch: 3)
        pair.settle()
        #expect(pair.differences() == [])
        let sent = sentBefore + (try #require(pair.wire).bytesToB)
        #expect(pair.a.kind == "ranges")
        #expect(sent < 30 << 20, "\(sent) bytes")
    }

    /// What was broken off cannot go on from a journal that is damaged where it would: the files are compared.
    @Test func whatWasBrokenOffIsNotContinuedFromADamagedJournal() throws {
        let (pair, _) = try RangesTests.brokenOff()
        let base = pair.a.file("base")
        #expect(pair.b.call { $0.link.isIncomplete })
        let common = pair.a.call { $0.log.core.last }
        pair.a.waitForSync(pair.a.write(base, noise(64 << 10, 4711), at: 5 << 20))
        pair.a.waitForSync(pair.a.write(base, noise(64 << 10, 4712), at: 6 << 20))
        pair.a.makeCheckpoint()
        pair.a.stop()
        let rotten = try #require(pair.a.batches().first { $0.firstSeq > common && $0.length > 4096 })
        pair.a.flip(pair.a.journalFile, rotten.position + rotten.length - 100)
        try pair.a.start()
        #expect(pair.a.damage == nil)
        pair.serve(pair.a, epoch: 4)
        pair.connect()
        pair.admit(to: pair.a, epoch: 4)
        pair.settle()
        #expect(pair.a.kind == "comparison")
        #expect(pair.differences() == [])
        #expect(pair.b.problems == [])
    }

    @Test func failure14TheLossOfTheLastMessageLeavesNoDisagreement() throws {
        let pair = try Pair.inSync(RangesTests.fill)
        pair.cut()
        pair.goAlone(pair.a, epoch: 3)
        _ = RangesTests.change(pair.a)
        pair.a.fillJournal(pair.a.file("base"))
        pair.connect()
        let wire = try #require(pair.wire)
        wire.breaks { if case .resyncDone = $0 { true } else { false } }
        pair.b.wait("done", seconds: 60) { _ in wire.isBroken }
        // The one is complete, the other does not know it and goes on owing.
        #expect(pair.b.call { $0.link.isIncomplete } == false)
        #expect(pair.a.call { $0.keeper.debt != nil } && !pair.a.isCaughtUp)
        pair.a.waitForSync(pair.a.write(pair.a.file("base"), noise(4096, 1), at: 9 << 20))
        pair.connect()
        pair.admit(to: pair.a, epoch: 3)
        pair.settle()
        #expect(pair.differences() == [])
        #expect(try #require(pair.wire).bytesToB < 100_000, "nothing is sent twice")
        #expect(pair.a.call { $0.keeper.debt == nil })
    }

    /// What a flag says clears nothing: only what the other log shows, and the decision that follows from it.
    @Test func failure17AClaimToBeInSyncClearsNothing() throws {
        let pair = try Pair.inSync(RangesTests.fill)
        pair.cut()
        pair.goAlone(pair.a, epoch: 3)
        _ = RangesTests.change(pair.a)
        pair.a.fillJournal(pair.a.file("base"))
        // The other node believes, from a newer ballot than anyone has, that both are in sync.
        let claim = Decision(sequence: 999, epoch: Epoch(rawValue: 3), primary: .a, inSync: .both)
        pair.b.call { $0.setDecision(claim, ballot: [9, 9, 9]) }
        // A session that ends right after the greeting.
        pair.connect()
        let greeting = try #require(pair.wire)
        greeting.breaks { if case .resyncReady = $0 { true } else { false } }
        pair.a.wait("broken off", seconds: 60) { _ in greeting.isBroken }
        #expect(pair.a.call { $0.keeper.debt?.owed?.map.isEmpty } == false)
        pair.a.stop()
        try pair.a.start()
        pair.serve(pair.a, epoch: 4)
        pair.a.call { $0.setDecision(claim, ballot: [9, 9, 9]) }
        #expect(pair.a.call { $0.keeper.debt != nil }, "a restart forgets nothing")
        pair.connect()
        pair.admit(to: pair.a, epoch: 4)
        pair.settle()
        #expect(pair.a.kind == "ranges")
        #expect(pair.differences() == [])
    }

    // MARK: - The file

    @Test func whatIsOwedSurvivesARestart() throws {
        let pair = try Pair.inSync(RangesTests.fill)
        pair.cut()
        pair.goAlone(pair.a, epoch: 3)
        let union = RangesTests.change(pair.a) + 1 << 20
        pair.a.fillJournal(pair.a.file("base"))
        // After the last checkpoint.
        let after = pair.a.create("after")
        pair.a.waitForSync(pair.a.write(after, noise(60_000, 5), at: 0))
        pair.a.stop()
        try pair.a.start()
        pair.serve(pair.a, epoch: 4)
        pair.connect()
        pair.admit(to: pair.a, epoch: 4)
        pair.settle()
        #expect(pair.differences() == [])
        #expect(pair.a.kind == "ranges")
        #expect(try #require(pair.wire).bytesToB < union * 12 / 10 + 200_000)
    }

    @Test(arguments: ["flipped", "short", "stale", "missing"])
    func failure37ADamagedOrForeignFileMeansComparison(how: String) throws {
        let pair = try Pair.inSync { put("\($0)/base", noise(3 << 20, 77)) }
        pair.cut()
        pair.goAlone(pair.a, epoch: 3)
        let base = pair.a.file("base")
        let path = StateFiles.dirty(pair.a.configuration)
        pair.a.fillJournal(base)
        pair.a.write(base, noise(4096, 9), at: 2 << 20)
        if how == "stale" { run("/bin/cp", path, path + ".old") }
        pair.a.fillJournal(base)
        pair.a.stop()
        switch how {
        case "flipped":
            var bytes = try #require(try StateFile.load(path))
            bytes[bytes.count / 2] ^= 4
            try StateFile.replace(path, with: bytes)
        case "short": #expect(truncate(path, 70) == 0)
        case "stale": run("/bin/mv", path + ".old", path)
        default: #expect(unlink(path) == 0)
        }
        try pair.a.start()
        pair.serve(pair.a, epoch: 4)
        pair.connect()
        pair.admit(to: pair.a, epoch: 4)
        pair.settle()
        #expect(pair.a.kind == "comparison", "unknown is never taken for clean")
        #expect(pair.differences() == [])
    }

    // MARK: - At random

    /// Random changes, restarts, cuts and resumptions; in the end both trees are equal. Printed seeds are replayed seeds.
    @Test(arguments: 1...4)
    func randomAccidentsLeaveEqualTrees(seed: UInt64) throws {
        var random = Seeded(seed &* 7919)
        let pair = try Pair.inSync(RangesTests.fill)
        let a = pair.a
        let b = pair.b
        let base = a.file("base")
        var mess = Mess(a, random: Seeded(seed))
        pair.cut()
        var epoch: UInt32 = 3
        pair.goAlone(a, epoch: epoch)
        for round in 0..<6 {
            mess.make(120)
            if round == 0 || Int.random(in: 0..<3, using: &random) == 0 {
                // One write at the end of it, so that the journal has to move.
                a.fillJournal(base)
            } else {
                a.waitForSync(a.write(base, noise(4096, UInt64(round)), at: UInt64(round) * 8192))
            }
            pair.connect()
            // Somewhere on the way; the application goes on.
            for _ in 0..<Int.random(in: 0..<12, using: &random) {
                mess.make(5)
                usleep(UInt32.random(in: 1_000...40_000, using: &random))
            }
            pair.cut()
            switch Int.random(in: 0..<5, using: &random) {
            case 0:
                b.stop()
                try b.start()
            case 1, 2:
                mess.settle()
                a.stop()
                try a.start()
                epoch += 1
                pair.serve(a, epoch: epoch)
                if Bool.random(using: &random) {
                    b.stop()
                    try b.start()
                }
            default: break
            }
        }
        mess.make(50)
        pair.connect()
        pair.admit(to: a, epoch: epoch)
        pair.settle()
        #expect(pair.differences() == [], "seed \(seed)")
        #expect(a.problems == [] && b.problems == [])
    }
}

/// SplitMix64.
struct Seeded: RandomNumberGenerator {
    var state: UInt64
    init(_ seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
        return value ^ (value >> 31)
    }
}

/// Changes of everything, logged as the mirrored directory would log them: from a model of the names.
struct Mess {
    private let node: TestNode
    private var random: Seeded
    private var counter = 0
    private var last = Seq.zero
    /// Directory -> name -> object; of directories also whether.
    private var names: [FileID: [String: FileID]] = [.root: [:]]
    private var parents: [FileID: (parent: FileID, name: String)] = [:]
    private var sizes: [FileID: UInt64] = [:]

    init(_ node: TestNode, random: Seeded) {
        self.node = node
        self.random = random
    }

    /// What was logged is on this node's disk: a process that dies loses the rest, and the model would be wrong.
    func settle() { node.waitForSync(last) }

    mutating func make(_ count: Int) {
        for _ in 0..<count { one() }
        last = node.call { $0.log.lastSeq }
    }

    private var directories: [FileID] { names.keys.sorted() }
    private mutating func pick<Element>(_ list: [Element]) -> Element? { list.randomElement(using: &random) }
    private func isBelow(_ directory: FileID, _ top: FileID) -> Bool {
        var next: FileID? = directory
        while let current = next {
            if current == top { return true }
            next = parents[current]?.parent
        }
        return false
    }

    private mutating func one() {
        counter += 1
        let name = "mess-\(counter)"
        let parent = pick(directories)!
        let files = sizes.keys.sorted()
        switch Int.random(in: 0..<20, using: &random) {
        case 0, 1: make(name, parent, S_IFDIR | 0o755)
        case 2, 3, 4: make(name, parent, S_IFREG | 0o644)
        case 5: make(name, parent, S_IFLNK | 0o777)
        case 6, 7, 8: move(name)
        case 9:
            guard let (directory, name, file) = any({ names, file in names[file] == nil }) else { return }
            node.remove(file, directory, name)
            names[directory]?[name] = nil
            sizes[file] = nil
        case 10:
            guard let (directory, name, file) = any({ names, file in names[file]?.isEmpty ?? false }) else { return }
            node.remove(file, directory, name, isDirectory: true)
            names[directory]?[name] = nil
            names[file] = nil
        case 11:
            guard let file = pick(files) else { return }
            let size = UInt64.random(in: 0...400_000, using: &random)
            node.setSize(file, size)
        case 12:
            guard let file = pick(files) else { return }
            let start = UInt64.random(in: 0...300_000, using: &random)
            node.log(.allocate(file: file, mode: 3, offset: start, length: 30_000))
        case 13:
            guard let file = pick(files) else { return }
            node.log(.setXattr(file: file, name: Array("user.mess".utf8), value: Array(name.utf8)))
        default:
            guard let file = pick(files) else { return }
            let length = Int.random(in: 1...20_000, using: &random)
            node.write(file, noise(length, UInt64(counter)), at: UInt64.random(in: 0...400_000, using: &random))
        }
    }

    private mutating func make(_ name: String, _ parent: FileID, _ mode: UInt32) {
        let file = node.call { $0.log.allocateFileID() }
        let isLink = mode & S_IFMT == S_IFLNK
        node.log(
            .create(
                file: file, parent: parent, name: Array(name.utf8),
                attributes: FileAttributes(mode: mode, uid: 0, gid: 0), target: isLink ? Array(name.utf8) : [],
                xattrs: []))
        names[parent]?[name] = file
        parents[file] = (parent, name)
        if mode & S_IFMT == S_IFDIR { names[file] = [:] }
        if mode & S_IFMT == S_IFREG { sizes[file] = 0 }
    }

    private mutating func any(
        _ isWanted: ([FileID: [String: FileID]], FileID) -> Bool
    ) -> (FileID, String, FileID)? {
        let names = names
        let all = directories.flatMap { directory in
            names[directory]!.filter { isWanted(names, $0.value) }.map { (directory, $0.key, $0.value) }
                .sorted { $0.1 < $1.1 }
        }
        return pick(all)
    }

    private mutating func move(_ newName: String) {
        guard let (directory, name, file) = any({ _, _ in true }) else { return }
        let targets = directories.filter { !isBelow($0, file) }
        guard let target = pick(targets) else { return }
        node.rename(file, directory, name, to: target, newName)
        names[directory]?[name] = nil
        names[target]?[newName] = file
        parents[file] = (target, newName)
    }
}
