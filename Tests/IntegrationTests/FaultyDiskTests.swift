//  Disks that lose what was not flushed when the power goes, and disks that hang completely: first that they do, then what
//  the whole system makes of it. A file system that is only shut down (DiskTests.swift) keeps all that has left the page
//  cache, and so hides a flush that was forgotten.
import CLinux
import Foundation
import Rooms
import Testing

/// The disks themselves.
@Suite(.serialized) struct HarnessFaultyDiskTests {
    static let pieceBytes = 64 << 10

    /// Writes pieces of one letter past the page cache into a file that has its blocks already.
    func write(_ letter: String, pieces: Range<Int>, to file: String, in room: Room, flags: String = "direct") throws {
        let script =
            "tr '\\0' \(letter) </dev/zero | dd of=$0 bs=64k seek=$1 count=$2 iflag=fullblock oflag=$3 conv=notrunc"
        try room.succeed(["bash", "-c", script, file, "\(pieces.lowerBound)", "\(pieces.count)", flags])
    }

    /// The first letters of all 4 KiB blocks of a file, read past the page cache.
    func letters(of file: String, in room: Room) throws -> [Character] {
        let text = try room.succeed(["dd", "if=" + file, "bs=64k", "iflag=direct", "status=none"])
        return stride(from: 0, to: text.utf8.count, by: 4096).map { offset in
            Character(UnicodeScalar(text.utf8[text.utf8.index(text.utf8.startIndex, offsetBy: offset)]))
        }
    }

    @Test(arguments: ["ext4", "xfs"], [UnflushedBlocks.areLost, .surviveByChance])
    func aPowerCutTakesWhatWasNotFlushedAndNothingElse(fileSystem: String, unflushed: UnflushedBlocks) throws {
        let building = try Building()
        defer { building.close() }
        let path = "/srv/\(building.identifier)-disk"
        let north = try building.addRoom("north", privatePaths: [path])
        try north.addDisk(at: path, fileSystem: fileSystem, megabytes: 320, isFaulty: true)
        let file = path + "/file"
        // Twice, because what a cut leaves behind must be cut as well.
        for round in 1...2 {
            try write("o", pieces: 0..<48, to: file, in: north)
            try north.succeed(["sync", file])
            try write("f", pieces: 0..<16, to: file, in: north, flags: "direct,dsync")
            // Their blocks are there: this changes no metadata but a time, so nobody flushes soon.
            try write("l", pieces: 16..<48, to: file, in: north)
            #expect(try letters(of: file, in: north)[256...] == ArraySlice(repeating: "l", count: 512))
            try north.loseUnwrittenData(unflushed)
            try north.reboot()
            let found = try letters(of: file, in: north)
            try #require(found.count == 768)
            #expect(found[..<256] == ArraySlice(repeating: "f", count: 256), "flushed and lost in round \(round)")
            let survivors = found[256...].filter { $0 == "l" }.count
            #expect(found[256...].filter { $0 == "o" }.count == 512 - survivors)
            switch unflushed {
            case .areLost: #expect(survivors == 0, "written without a flush, and there after the cut")
            case .surviveByChance: #expect((150..<362).contains(survivors), "\(survivors) of 512 survived")
            }
        }
    }

    @Test func aDiskThatHangsHoldsUpReadsUntilItIsReleased() throws {
        let building = try Building()
        defer { building.close() }
        let path = "/srv/\(building.identifier)-disk"
        let north = try building.addRoom("north", privatePaths: [path])
        try north.addDisk(at: path, megabytes: 32, isFaulty: true)
        let file = path + "/file"
        try write("a", pieces: 0..<4, to: file, in: north)
        try north.succeed(["sync", file])
        // Read before, and yet it must be asked for again.
        #expect(try letters(of: file, in: north).count == 64)
        try north.hangDisk(at: path)
        let reader = try north.start(["dd", "if=" + file, "of=/dev/null", "bs=64k", "iflag=direct"], as: "reader")
        // Not truncated: a reader that comes later would be at its end.
        let writer = try north.start(
            ["dd", "if=/dev/zero", "of=" + file, "bs=64k", "count=4", "oflag=direct", "conv=notrunc"])
        usleep(1_000_000)
        #expect(reader.isRunning)
        #expect(writer.isRunning)
        try north.releaseDisk(at: path)
        #expect(try reader.waitForEnd(within: 10) == 0)
        #expect(try writer.waitForEnd(within: 10) == 0)
    }

    /// What of a building is still there: processes, loop devices, mounts and files.
    func remains(of building: Building) -> [String] {
        let names = { (path: String) in (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? [] }
        let text = { (path: String) in
            (FileManager.default.contents(atPath: path)).map { String(decoding: $0, as: UTF8.self) } ?? ""
        }
        let processes = names("/proc").filter { $0.allSatisfy(\.isWholeNumber) && $0 != "\(getpid())" }
        let found =
            processes.map { text("/proc/\($0)/cmdline") }
            + names("/sys/block").map { text("/sys/block/\($0)/loop/backing_file") }
            + text("/proc/self/mounts").split(separator: "\n").map(String.init) + names("/var/tmp")
        return found.filter { $0.contains(building.identifier) }
    }

    @Test func ofADiskThatHangsNothingIsLeftAtTheEnd() throws {
        let building = try Building()
        defer { building.close() }
        let paths = ["one", "two"].map { "/srv/\(building.identifier)-\($0)" }
        let north = try building.addRoom("north", privatePaths: paths)
        for path in paths {
            try north.addDisk(at: path, megabytes: 32, isFaulty: true)
            try write("a", pieces: 0..<4, to: path + "/file", in: north)
        }
        try north.reboot()
        try #require(!remains(of: building).isEmpty)
        try north.hangDisk(at: paths[0])
        _ = try north.start(["dd", "if=\(paths[0])/file", "of=/dev/null", "bs=64k", "iflag=direct"], as: "reader")
        _ = try north.start(["sync", "--file-system", paths[0]])
        usleep(300_000)
        building.close()
        #expect(remains(of: building) == [])
    }
}

extension WholeSystem {
    @Suite struct FaultyDiskTests {
        /// Journal, votes and plain files of both rooms lose all, or a random half, of what no flush has made durable.
        @Test(arguments: [UnflushedBlocks.areLost, .surviveByChance])
        func failure12PowerCutThatLosesAllThatWasNotFlushedLosesNothingThatWasSynced(
            unflushed: UnflushedBlocks
        ) throws {
            try Harness.withDisks(isFaulty: true) { cluster in
                // Once with everything in the journals, and once when the plain files must have some of it: what lies
                // behind a checkpoint is never applied again.
                try cluster.expectToSurvivePowerCuts { round, serving in
                    if round == 2 { try cluster.waitForCheckpoints(beyondRecordsOf: serving) }
                } dark: {
                    try $0.loseUnwrittenData(unflushed)
                }
            }
        }

        /// In strict mode a write that has returned is on both disks, without any fsync.
        @Test func failure12InStrictModeAPowerCutLosesNoWriteThatHasReturned() throws {
            let strict = { (shipped: String) in
                let text = shipped.replacingOccurrences(of: "mode = \"balanced\"", with: "mode = \"strict\"")
                #expect(text != shipped)
                return Small.configuration(text)
            }
            try Harness.withDisks(isFaulty: true, configure: strict) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let writer = try LineWriter(cluster, on: cluster.alpha, syncs: false)
                try waitUntil("it has written more", within: Small.stepSecondsMax) { writer.count >= 100 }
                try cluster.cutPower(of: [cluster.alpha.room, cluster.beta.room])
                for node in cluster.nodes { try node.room.loseUnwrittenData() }
                for node in cluster.nodes { try cluster.bringBack(node) }
                try cluster.expectWellAfterwards(client, guardian)
                for node in cluster.nodes { try writer.expectAllLines(on: node) }
            }
        }

        /// All disks of a node answer nothing, neither writes nor reads: frozen file systems (DiskTests.swift) still read.
        /// Then they do again. A node that served has ended by itself, or does so now, and is started as systemd would.
        @Test(arguments: [false, true])
        func failure24DisksThatAnswerNothingAtAllLeaveTheSetInBoundedTime(isServing: Bool) throws {
            try Harness.withDisks(isFaulty: true) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let serving = try #require(cluster.serving())
                let victim = isServing ? serving : cluster.other(than: serving)
                let other = cluster.other(than: victim)
                let disks = [RoomDisk.state, RoomDisk.files]
                let release = { for disk in disks { try victim.room.releaseDisk(at: disk) } }
                for disk in disks { try victim.room.hangDisk(at: disk) }
                do {
                    try cluster.waitFor(other, "serves alone") { $0.role == "ALONE" }
                    try client.waitForTransfers(count: 20, within: Small.stepSecondsMax)
                    try #require(cluster.status(victim)?.serves != true, "\(victim.name) still serves")
                } catch {
                    // Whoever waits for such a disk could not be killed.
                    try? release()
                    throw error
                }
                try release()
                if isServing {
                    try #require(cluster.daemon(victim)?.waitForEnd(within: 120) == 1)
                    try cluster.startDaemon(victim)
                }
                try cluster.waitFor(victim, "stands by") { $0.role == "SECOND" && $0.isInSync }
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// Nothing is written, one program reads, and the disk under the plain files answers nothing: no record shows it.
        /// The service moves; the program hears an error, and the directory is gone there, while the disk still hangs.
        @Test func failure24AReadThatHangsMovesTheServiceAndTheDirectoryComesAway() throws {
            try Harness.withDisks(isFaulty: true) { cluster in
                let alpha = cluster.alpha.room
                let file = "/big"
                try alpha.succeed(
                    ["dd", "if=/dev/urandom", "of=\(Cluster.path)\(file)", "bs=1M", "count=4", "conv=fsync"])
                try cluster.waitForCheckpoints(beyondRecordsOf: cluster.alpha)
                // Out of the page caches: of the mirrored directory, and of the plain files.
                for place in [Cluster.path, Cluster.backing] {
                    try alpha.succeed(["dd", "if=\(place)\(file)", "iflag=nocache", "count=0", "status=none"])
                }
                try alpha.hangDisk(at: RoomDisk.files)
                do {
                    let reader = try alpha.start(["cat", Cluster.path + file], log: "/dev/null")
                    let begun = bootSeconds()
                    try cluster.waitFor(cluster.beta, "serves", within: 120) { $0.serves }
                    try #require(bootSeconds() - begun > 50, "a disk that is only slow needs its time")
                    try #require(reader.waitForEnd(within: 10) != 0)
                    let status = try #require(cluster.status(cluster.alpha), "alpha's daemon hangs with its disk")
                    try #require(status.problem.contains("\(Cluster.backing) hangs"), "\(status.problem)")
                    let mounts = try alpha.succeed(["cat", "/proc/self/mounts"])
                    try #require(!mounts.contains("fuse.lockstep"), "the directory is still there: \(mounts)")
                } catch {
                    try? alpha.releaseDisk(at: RoomDisk.files)
                    throw error
                }
                try alpha.releaseDisk(at: RoomDisk.files)
                try cluster.expectToComeBackWhenItsDisksAnswer(cluster.alpha)
                try cluster.expectIdenticalTrees(within: Small.stepSecondsMax)
            }
        }
    }
}

extension Cluster {
    /// Waits until the plain files of both nodes are said to have, for certain, all that one of them knows now.
    func waitForCheckpoints(beyondRecordsOf node: ClusterNode) throws {
        let record = try #require(status(node)?.lastRecord)
        for each in nodes {
            try waitFor(each, "has a checkpoint at record \(record)") { ($0.checkpointRecord ?? 0) >= record }
        }
    }
}
