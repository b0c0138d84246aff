import Format
import Glibc
import Testing

@testable import Node
@testable import Tree

private let mebibyte: Int64 = 1 << 20

private func seq(_ number: Int) -> Seq { Seq(rawValue: UInt64(number)) }

private func room(_ mebibytes: Int64, files: UInt64 = .max, at number: Int) -> DiskRoom {
    DiskRoom(bytes: UInt64(mebibytes * mebibyte), files: files, seq: seq(number))
}

/// A ledger that an expectation may change.
private final class Books {
    var ledger = SpaceLedger()

    func take(_ mebibytes: Int64, files: Int64 = 0, for number: Int) -> Bool {
        ledger.grant(
            SpaceLedger.Amount(bytes: mebibytes * mebibyte, files: files), for: seq(number), reserve: 64 * mebibyte)
    }
    func takeLocally(_ mebibytes: Int64) -> Bool {
        ledger.grantLocal(bytes: mebibytes * mebibyte, reserve: 64 * mebibyte)
    }
    /// What needs no space.
    func overwrite(for number: Int) -> Bool {
        ledger.grant(SpaceLedger.Amount(), for: seq(number), reserve: mebibyte)
    }
}

@Suite struct SpaceLedgerTests {
    @Test func whatIsGrantedIsTakenFromBothNodesUntilItIsInTheirFiles() {
        let books = Books()
        #expect(!books.take(1, for: 1))
        books.ledger.setOwn(room(1000, at: 0))
        books.ledger.setPeer(room(164, at: 0))
        #expect(books.take(60, for: 1))
        #expect(books.take(40, for: 2))
        #expect(!books.take(1, for: 3))
        // Its disk was looked at, the first record was not in its files yet.
        books.ledger.setPeer(room(164, at: 0))
        #expect(!books.take(1, for: 3))
        books.ledger.setPeer(room(104, at: 1))
        #expect(!books.take(1, for: 3))
        books.ledger.setPeer(room(264, at: 2))
        #expect(books.take(200, for: 3))
        #expect(!books.take(1, for: 4))
        // It follows no more.
        books.ledger.setPeer(nil)
        #expect(books.take(600, for: 4))
        // This node has nothing of it in its files: 100 of 1000 are left, 64 of them stay.
        #expect(!books.take(37, for: 5))
        books.ledger.setOwn(room(400, at: 3))
        #expect(!books.take(1, for: 5))
    }

    @Test func filesAreCountedAndNotWhereThereIsNoLimit() {
        let books = Books()
        books.ledger.setOwn(room(1000, at: 0))
        books.ledger.setPeer(room(1000, files: 2, at: 0))
        #expect(books.take(0, files: 1, for: 1))
        #expect(books.take(0, files: 1, for: 2))
        #expect(!books.take(0, files: 1, for: 3))
        #expect(books.take(1, for: 3))
        books.ledger.setPeer(room(1000, files: 1, at: 3))
        #expect(books.take(0, files: 1, for: 4))
        #expect(!books.take(0, files: 1, for: 5))
        #expect(DiskRoom(bytes: 1, files: 0, filesFree: 0, seq: .zero).files == .max)
        #expect(DiskRoom(bytes: 1, files: 100_000, filesFree: 1100, seq: .zero).files == 100)
        #expect(DiskRoom(bytes: 1, files: 2000, filesFree: 300, seq: .zero).files == 50)
        #expect(DiskRoom(bytes: 1, files: 2000, filesFree: 30, seq: .zero).files == 0)
    }

    /// Files without a name are this node's alone and in no record.
    @Test func failure23WhatGrowsWithoutARecordIsReckonedUntilALookHasSeenIt() {
        let books = Books()
        #expect(!books.takeLocally(1))
        books.ledger.setOwn(room(1000, at: 0))
        books.ledger.setPeer(room(65, at: 0))
        #expect(books.takeLocally(500))
        #expect(books.take(1, for: 1))
        books.ledger.setPeer(nil)
        // 1000 less 64 that stay, less 501.
        #expect(!books.takeLocally(436))
        #expect(!books.take(436, for: 2))
        // It has ended, and this look was asked for before.
        let before = books.ledger.localEnded
        books.ledger.localEnded += 500 * mebibyte
        books.ledger.setOwn(room(600, at: 0), localEnded: before)
        #expect(!books.takeLocally(36))
        // What a record says of the room is no new look.
        books.ledger.setOwn(room(599, at: 1))
        #expect(!books.takeLocally(36))
        books.ledger.setOwn(room(499, at: 1), localEnded: books.ledger.localEnded)
        #expect(books.takeLocally(435))
        #expect(!books.takeLocally(1))
    }

    /// Overwriting needs no space, and grants that wait for their record do not stop it.
    @Test func whatNeedsNoSpaceAsksOnlyWhetherThereIsAny() {
        let books = Books()
        books.ledger.setOwn(room(164, at: 0))
        #expect(books.take(100, for: 1))
        #expect(books.overwrite(for: 2))
        books.ledger.setOwn(room(0, at: 0))
        #expect(!books.overwrite(for: 2))
    }

    /// Very much that is in nobody's files yet is remembered coarsely, and never less than was granted.
    @Test func nothingIsForgottenThatIsNotInTheFiles() {
        let books = Books()
        books.ledger.setOwn(room(1_000_000, at: 0))
        for number in 1...100_000 { #expect(books.take(2, for: number)) }
        books.ledger.setOwn(room(1_000_000 - 100_000, at: 50_000))
        // 100,000 behind it, and less than an entry more.
        #expect(!books.take(1_000_000 - 200_000, for: 100_001))
        #expect(books.take(1_000_000 - 200_000 - 1000, for: 100_001))
        books.ledger.restart()
        #expect(books.take(1_000_000 - 100_000 - 64, for: 1))
    }
}

/// A file system of its own in an image, at a directory of a node.
private final class SmallDisk {
    let path: String
    private let image: String

    init(at path: String, mebibytes: Int) throws {
        self.path = path
        image = path + ".img"
        let made =
            run("/usr/bin/truncate", "-s", "\(mebibytes)M", image) == 0
            && run("/sbin/mkfs.ext4", "-q", "-F", "-m", "0", image) == 0
            && run("/bin/mount", "-o", "loop", image, path) == 0
        try #require(made, "needs root, loop devices and mkfs.ext4")
        run("/bin/rmdir", path + "/lost+found")
    }

    func unmount() { run("/bin/umount", "-l", path) }

    /// Takes all there is, until the descriptor is closed.
    func fill() -> Int32 {
        // Not in the root, whose times are the mirror's.
        let name = path + "/.lockstep/filler"
        let fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0o600)
        unlink(name)
        var end: off_t = 0
        for piece in [off_t(4 << 20), 64 << 10, 4096] {
            while posix_fallocate(fd, end, piece) == 0 { end += piece }
        }
        return fd
    }
}

@Suite(.serialized) struct SpaceTests {
    /// The primary reckons with what the other node has not told yet: 2 GiB granted at once would not fit there.
    @Test func theOtherNodesRoomIsReckonedBetweenTwoWordsFromIt() throws {
        var disk: SmallDisk?
        let pair = try Pair(prepare: { disk = try SmallDisk(at: $0, mebibytes: 256) })
        let small = try #require(disk)
        defer {
            pair.a.stop()
            small.unmount()
        }
        pair.serve(pair.b, epoch: 2)
        pair.connect()
        pair.admit(to: pair.b, epoch: 2)
        pair.settle()
        pair.b.wait("told how much room there is") { $0.log.space.peerRoom != nil }
        let granted = pair.b.call { plane -> Int in
            var granted = 0
            while granted < 512 << 20, plane.log.spaceFor(bytes: 1 << 20) == nil { granted += 1 << 20 }
            return granted
        }
        #expect(granted > 64 << 20 && granted <= (256 - 64) << 20)
    }

    /// The file system says "no space" of something that it cannot hold, with room for everything else: that is no full disk,
    /// and waiting would not end. The node leaves, and the application of the other one goes on.
    @Test func failure23WhatWillNeverFitIsNoFullDisk() throws {
        var disk: SmallDisk?
        // Small enough for blocks of 1 KiB, in which such an attribute does not fit.
        let pair = try Pair(prepare: { disk = try SmallDisk(at: $0, mebibytes: 256) })
        let small = try #require(disk)
        defer {
            pair.a.stop()
            small.unmount()
        }
        pair.serve(pair.b, epoch: 2)
        pair.connect()
        pair.admit(to: pair.b, epoch: 2)
        let file = pair.b.create("file")
        pair.settle()
        pair.b.waitForSync(pair.b.log(.setXattr(file: file, name: Array("user.x".utf8), value: noise(3000, 1))))
        pair.a.wait("giving up") { $0.isBroken }
        let why = pair.a.problems.joined(separator: "\n")
        #expect(why.contains("cannot hold this one object") && why.contains("bytes are free"), "\(why)")
        pair.b.wait("alone again") { $0.log.core.follower == nil }
        #expect(pair.b.call { $0.log.spaceFor(bytes: 1) } == nil)
    }

    /// It was reckoned that there would be room, and there is none: the record waits, other files go on, nobody leaves.
    @Test(arguments: [true, false])
    func failure23ARecordWithoutRoomWaitsForItAndBreaksNothing(isServing: Bool) throws {
        var disk: SmallDisk?
        let pair = try Pair(prepare: { disk = try SmallDisk(at: $0, mebibytes: 96) })
        let small = try #require(disk)
        defer {
            pair.a.stop()
            small.unmount()
        }
        let primary = isServing ? pair.a : pair.b
        pair.serve(primary, epoch: 2)
        pair.connect()
        pair.admit(to: primary, epoch: 2)
        let file = primary.create("file")
        let other = primary.create("other")
        primary.waitForSync(primary.write(other, noise(4096, 9), at: 0))
        pair.settle()
        let held = small.fill()
        var last = Seq.zero
        for piece in 0..<8 { last = primary.write(file, noise(128 << 10, UInt64(piece)), at: UInt64(piece) << 17) }
        primary.waitForSync(last)
        pair.a.wait("short of room") { $0.fullAt != nil }
        let waiting = pair.a.call { $0.fullAt! }
        primary.wait("telling the application") { $0.log.spaceFor(bytes: 1) == ENOSPC }
        primary.waitForSync(
            primary.log(
                .remove(file: other, parent: .root, name: Array("other".utf8), isDirectory: false, wasLast: true)))
        let gone = pair.a.configuration.backing + "/other"
        for _ in 0..<1000 where access(gone, F_OK) == 0 { usleep(10_000) }
        #expect(access(gone, F_OK) != 0)
        pair.a.call { $0.checkpoint { _ in } }
        pair.a.wait("done with the checkpoint") { !$0.checkpointRunning }
        // It is tried again meanwhile.
        usleep(2_500_000)
        #expect(pair.a.call { $0.fullAt != nil && $0.log.applied < waiting && $0.journal.checkpointSeq < waiting })
        close(held)
        pair.settle()
        pair.a.wait("said to have room again") { $0.fullAt == nil }
        primary.wait("granting again") { $0.log.spaceFor(bytes: 1) == nil }
        #expect(pair.differences() == [])
        for node in pair.nodes {
            let isBroken = node.call { $0.isBroken }
            #expect(node.problems == [] && !isBroken)
        }
        #expect(primary.call { $0.log.role == .primary && $0.inSyncNow == .both })
    }

    /// A standby without room takes what comes until its journal is full: then it has to leave, and comes back with room.
    @Test func failure23AStandbyWithoutRoomLeavesWhenItsJournalIsFullAndComesBack() throws {
        var disk: SmallDisk?
        let pair = try Pair(prepare: { disk = try SmallDisk(at: $0, mebibytes: 96) })
        let small = try #require(disk)
        defer {
            pair.a.stop()
            small.unmount()
        }
        pair.serve(pair.b, epoch: 2)
        pair.connect()
        pair.admit(to: pair.b, epoch: 2)
        let file = pair.b.create("file")
        pair.settle()
        let held = small.fill()
        pair.b.waitForSync(pair.b.write(file, noise(1 << 20, 1), at: 0))
        pair.a.wait("short of room") { $0.fullAt != nil }
        let waiting = pair.a.call { $0.fullAt! }
        for round in 0..<6000 where pair.b.peerFailures == 0 {
            let bytes = noise(256 << 10, UInt64(round))
            let isLogged = pair.b.call { plane -> Bool in
                guard let place = plane.log.payloadPlace() else { return false }
                place.copyBytes(from: bytes)
                _ = plane.log.appendWrite(
                    file: file, offset: UInt64(round % 32) << 18, length: bytes.count, time: plane.log.wallClock())
                return true
            }
            if !isLogged { usleep(10_000) }
        }
        #expect(pair.b.peerFailures > 0)
        #expect(pair.a.call { $0.log.applied < waiting && $0.journal.checkpointSeq < waiting })
        pair.cut()
        pair.goAlone(pair.b, epoch: 3)
        let last = pair.b.write(file, noise(4096, 7), at: 100)
        pair.b.waitForSync(last)
        close(held)
        pair.a.wait("said to have room again") { $0.fullAt == nil }
        pair.connect()
        pair.admit(to: pair.b, epoch: 3)
        pair.settle()
        #expect(pair.differences() == [])
        for node in pair.nodes { #expect(node.problems == []) }
    }

    @Test func failure23AReplayWithoutRoomSaysWhatToDo() throws {
        var disk: SmallDisk?
        let pair = try Pair(prepare: { disk = try SmallDisk(at: $0, mebibytes: 96) })
        let small = try #require(disk)
        defer {
            pair.a.stop()
            small.unmount()
        }
        pair.serve(pair.b, epoch: 2)
        pair.connect()
        pair.admit(to: pair.b, epoch: 2)
        let file = pair.b.create("file")
        pair.settle()
        let held = small.fill()
        pair.b.waitForSync(pair.b.write(file, noise(1 << 20, 1), at: 0))
        // Its batch says that the one before is committed.
        pair.b.waitForSync(pair.b.write(file, [1], at: 2 << 20))
        pair.a.wait("short of room") { $0.fullAt != nil }
        pair.cut()
        pair.a.stop()
        let failure = #expect(throws: TreeError.self) { try pair.a.start() }
        #expect(failure.map { "\($0)".contains("make room there") } == true)
        close(held)
        try pair.a.start()
        pair.connect()
        pair.settle()
        #expect(pair.differences() == [])
    }
}
