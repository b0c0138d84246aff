//  Disks that are full, hang, fail, or lose what was not written: lines 12, 23 and 24 of the table of failures. Each room
//  has two disk images of its own, one for journal and votes, one for the plain files.
import CLinux
import Foundation
import Rooms
import Testing

/// The file systems of a room that has disks of its own.
enum RoomDisk {
    static let state = "/var/lib/lockstep"
    static let files = Cluster.backing
}

extension Harness {
    /// As `withCluster`, with disk images under journal and plain files in both rooms.
    ///
    /// - Parameters:
    ///   - fileSystems: of the plain files of alpha and of beta.
    ///   - options: of their `mkfs`.
    ///   - isFaulty: whether the disks lose in a power cut what was not flushed.
    static func withDisks(
        fileSystems: [String] = ["ext4", "xfs"], options: [[String]] = [[], []], isFaulty: Bool = false,
        configure: (String) -> String = Small.configuration,
        _ body: (Cluster) throws -> Void
    ) throws {
        try withRooms(configure: configure) { cluster in
            for (index, node) in cluster.nodes.enumerated() {
                try node.room.addDisk(at: RoomDisk.state, megabytes: 320, isFaulty: isFaulty)
                try node.room.addDisk(
                    at: RoomDisk.files, fileSystem: fileSystems[index], megabytes: 400, options: options[index],
                    isFaulty: isFaulty)
            }
            try cluster.start()
            try body(cluster)
        }
    }
}

extension WholeSystem {
    @Suite struct DiskTests {
        @Test func failure12PowerCutOfBothRoomsWhileWritingLosesNothingThatWasSynced() throws {
            try Harness.withDisks { cluster in
                try cluster.expectToSurvivePowerCuts(dark: { try $0.loseUnwrittenData() })
            }
        }

        /// In either room: the application hears ENOSPC, what needs no space goes on, and nothing breaks.
        @Test func failure23AFullDiskInEitherRoomIsToldToTheApplicationAndBreaksNothing() throws {
            try Harness.withDisks { cluster in
                let guardian = AddressGuard(cluster)
                defer { guardian.stop() }
                let room = cluster.alpha.room
                let file = Cluster.path + "/small"
                try room.succeed(["dd", "if=/dev/urandom", "of=\(file)", "bs=64k", "count=4", "conv=fsync"])
                for full in cluster.nodes {
                    let old = "\(Cluster.path)/old-\(full.name)"
                    for name in [old + "-1", old + "-2"] {
                        try room.succeed(["dd", "if=/dev/zero", "of=\(name)", "bs=64k", "count=4", "conv=fsync"])
                    }
                    try full.room.filling(at: RoomDisk.files, leaving: 8 << 20) {
                        // It looks twice a second how much is left, and the other node hears of it with the next word.
                        usleep(1_500_000)
                        let big = "\(Cluster.path)/big-\(full.name)"
                        let output = try room.run([
                            "dd", "if=/dev/zero", "of=\(big)", "bs=1M", "count=64", "conv=fsync",
                        ])
                        try #require(
                            output.status != 0 && output.error.contains("No space left"),
                            "\(full.name) is full, and the application was told: \(output.status) \(output.error)")
                        try room.succeed([
                            "dd", "if=/dev/urandom", "of=\(file)", "bs=64k", "count=4", "conv=notrunc,fsync",
                        ])
                        try room.succeed(["rm", old + "-1"])
                        try room.succeed(["truncate", "-s", "0", old + "-2"])
                        let roles = cluster.nodes.compactMap { cluster.status($0)?.role }
                        try #require(
                            roles == ["PRIM", "SECOND"], "a full disk in \(full.name) changed roles: \(roles)")
                    }
                    try waitUntil("there is space again", within: Small.stepSecondsMax, every: 0.2) {
                        let output = try room.run([
                            "dd", "if=/dev/zero", "of=\(Cluster.path)/after-\(full.name)", "bs=1M", "count=32",
                            "conv=fsync",
                        ])
                        return output.status == 0
                    }
                }
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try cluster.expectIdenticalTrees(within: Small.stepSecondsMax)
                try guardian.check()
            }
        }

        /// Something else takes all of a disk, the reserve included, while the application writes: what was granted may find
        /// no room.
        @Test func failure23ADiskThatSomethingElseFillsBreaksNothing() throws {
            try Harness.withDisks { cluster in
                let guardian = AddressGuard(cluster)
                defer { guardian.stop() }
                let room = cluster.alpha.room
                for full in cluster.nodes {
                    let file = "\(Cluster.path)/growing-\(full.name)"
                    let writer = try room.start(["dd", "if=/dev/zero", "of=\(file)", "bs=64k", "status=none"])
                    usleep(200_000)
                    try full.room.filling(at: RoomDisk.files, leaving: 0) {
                        try #require(writer.waitForEnd(within: 30) != 0, "\(full.name) is full: the writer was told")
                        usleep(3_000_000)
                        let roles = cluster.nodes.compactMap { cluster.status($0)?.role }
                        try #require(roles == ["PRIM", "SECOND"], "\(full.name) is full, and roles changed: \(roles)")
                    }
                    try cluster.waitFor(full, "has room again") { $0.problem.isEmpty }
                    try waitUntil("there is space again", within: Small.stepSecondsMax, every: 0.2) {
                        try room.run(["dd", "if=/dev/zero", "of=\(file)", "bs=1M", "count=4", "conv=fsync"]).status == 0
                    }
                }
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try cluster.expectIdenticalTrees(within: Small.stepSecondsMax)
                try guardian.check()
            }
        }

        /// ext4 has as many inodes as it was made with; here the standby's is short of them.
        @Test func failure23ADiskThatIsOutOfInodesIsToldToTheApplicationAndBreaksNothing() throws {
            try Harness.withDisks(fileSystems: ["xfs", "ext4"], options: [[], ["-N", "2000"]]) { cluster in
                let guardian = AddressGuard(cluster)
                defer { guardian.stop() }
                let room = cluster.alpha.room
                let make = "for i in $(seq 3000); do : > \(Cluster.path)/file-$i || exit 1; done"
                let output = try room.run(["bash", "-c", make])
                try #require(
                    output.status != 0 && output.error.contains("No space left"),
                    "beta is out of inodes, and the application was told: \(output.status) \(output.error)")
                for (name, command) in [
                    ("directory", ["mkdir", Cluster.path + "/directory"]),
                    ("symbolic link", ["ln", "-s", "target", Cluster.path + "/link"]),
                    ("fifo", ["mkfifo", Cluster.path + "/fifo"]),
                ] {
                    let output = try room.run(command)
                    try #require(
                        output.status != 0 && output.error.contains("No space left"), "a \(name): \(output.error)")
                }
                // What makes no file goes on.
                try room.succeed(["ln", Cluster.path + "/file-1", Cluster.path + "/second-name"])
                try room.succeed(["dd", "if=/dev/zero", "of=\(Cluster.path)/file-1", "bs=64k", "count=4", "conv=fsync"])
                let roles = cluster.nodes.compactMap { cluster.status($0)?.role }
                try #require(roles == ["PRIM", "SECOND"], "a disk out of inodes changed roles: \(roles)")
                try room.succeed(["bash", "-c", "rm \(Cluster.path)/file-1??"])
                try waitUntil("a file can be made again", within: Small.stepSecondsMax, every: 0.2) {
                    try room.run(["mkdir", Cluster.path + "/after"]).status == 0
                }
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try cluster.expectIdenticalTrees(within: Small.stepSecondsMax)
                try guardian.check()
            }
        }

        /// B's journal, then its plain files; the same on A. An error is told by the kernel once: from then on the node
        /// must not count.
        @Test func failure23AFailingDiskLeavesTheSetOrFailsOver() throws {
            try Harness.withDisks { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                for isServing in [false, true] {
                    for disk in [RoomDisk.state, RoomDisk.files] {
                        let serving = try #require(cluster.serving())
                        let victim = isServing ? serving : cluster.other(than: serving)
                        let other = cluster.other(than: victim)
                        try victim.room.shutDownFileSystem(at: disk)
                        try cluster.waitFor(victim, "stops counting after \(disk) failed") {
                            $0.role == "STOP" && $0.reason == "ownDiskFailed" && !$0.problem.isEmpty
                        }
                        try cluster.waitFor(other, "serves alone after \(disk) of \(victim.name) failed") {
                            $0.role == "ALONE"
                        }
                        try client.waitForTransfers(within: Small.stepSecondsMax)
                        try victim.room.killAll()
                        try cluster.bringBack(victim)
                        try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                        try guardian.check()
                    }
                }
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        @Test func failure24AHangingDiskLeavesTheSetInBoundedTimeAndItsLateWritesChangeNothing() throws {
            try Harness.withDisks { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let beta = cluster.beta.room
                try beta.freezeFileSystem(at: RoomDisk.state)
                let hung = bootSeconds()
                do {
                    // It answers all the time, and says that it stands by; that must not hold up the service.
                    try cluster.waitFor(cluster.alpha, "goes on alone", within: 30) { $0.role == "ALONE" }
                    try #require(cluster.status(cluster.beta) != nil, "beta's daemon hangs with its disk")
                    try client.waitForTransfers(count: 20, within: Small.stepSecondsMax)
                    try #require(bootSeconds() - hung < 60)
                    try #require(cluster.status(cluster.alpha)?.isInSync == false)
                } catch {
                    try? beta.thawFileSystem(at: RoomDisk.state)
                    throw error
                }
                // What it was about to write since then completes now, and counts for nothing.
                try beta.thawFileSystem(at: RoomDisk.state)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// The disk of the node that serves hangs and gives no error: the other node, which has everything, takes over.
        /// Then the disk answers again, and the node comes back by itself.
        @Test func failure24AHangingDiskOfTheServingNodeMovesTheService() throws {
            try Harness.withDisks { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let alpha = cluster.alpha.room
                try alpha.freezeFileSystem(at: RoomDisk.state)
                do {
                    try cluster.waitFor(cluster.beta, "serves", within: 60) { $0.serves }
                    try client.waitForTransfers(count: 20, within: Small.stepSecondsMax)
                    let status = try #require(cluster.status(cluster.alpha), "alpha's daemon hangs with its disk")
                    try #require(!status.serves && !status.holdsAddress)
                    try #require(status.problem.contains("hangs"), "\(status.problem)")
                } catch {
                    try? alpha.thawFileSystem(at: RoomDisk.state)
                    throw error
                }
                try alpha.thawFileSystem(at: RoomDisk.state)
                try cluster.expectToComeBackWhenItsDisksAnswer(cluster.alpha)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// The standby's plain files hang, and it has to take over: it cannot open, and says so. The other node has everything
        /// when it is back, and serves.
        @Test func failure24ATakeoverThatCannotOpenIsGivenToTheOtherNode() throws {
            try Harness.withDisks { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let beta = cluster.beta.room
                try beta.freezeFileSystem(at: RoomDisk.files)
                do {
                    try client.waitForTransfers(count: 20, within: Small.stepSecondsMax)
                    try cluster.daemon(cluster.alpha)?.killNow()
                    try cluster.waitFor(cluster.beta, "says that its files are not open", within: 30) {
                        $0.color == "orange" && $0.explanation.contains("not open yet") && !$0.holdsAddress
                    }
                    try cluster.startDaemon(cluster.alpha)
                    try cluster.waitFor(cluster.alpha, "serves", within: 120) { $0.serves }
                    try client.waitForTransfers(count: 20, within: Small.stepSecondsMax)
                    let status = try #require(cluster.status(cluster.beta), "beta's daemon hangs with its disk")
                    try #require(status.problem.contains("hangs"), "\(status.problem)")
                } catch {
                    try? beta.thawFileSystem(at: RoomDisk.files)
                    throw error
                }
                try beta.thawFileSystem(at: RoomDisk.files)
                try cluster.daemon(cluster.beta)?.killNow()
                try cluster.startDaemon(cluster.beta)
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// Its journal's disk is well, that of the plain files hangs: it takes what comes until its journal is full. From then
        /// on it holds up the application, for a bounded time.
        @Test func failure24HangingPlainFilesHoldUpTheApplicationForABoundedTime() throws {
            try Harness.withDisks { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let (alpha, beta) = (cluster.alpha.room, cluster.beta.room)
                try beta.freezeFileSystem(at: RoomDisk.files)
                // More than a journal holds, in one file, so that the other room's disk has room.
                let writer = try alpha.start([
                    "sh", "-c",
                    "for i in $(seq 60); do dd if=/dev/zero of=\(Cluster.path)/heavy bs=1M count=4 conv=fsync,notrunc status=none; done",
                ])
                do {
                    try cluster.waitFor(cluster.alpha, "goes on alone", within: 90) { $0.role == "ALONE" }
                    try client.waitForTransfers(count: 20, within: Small.stepSecondsMax)
                    _ = try writer.waitForEnd(within: 60)
                } catch {
                    try? beta.thawFileSystem(at: RoomDisk.files)
                    throw error
                }
                try beta.thawFileSystem(at: RoomDisk.files)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }
    }
}

extension Cluster {
    /// A node whose disk hung while it served, and was released just now: it ends by itself, but not at once, and stands
    /// by when it has been started again, as systemd would.
    func expectToComeBackWhenItsDisksAnswer(_ node: ClusterNode) throws {
        let (released, process) = (bootSeconds(), try #require(self.daemon(node)))
        try #require(process.waitForEnd(within: 120) == 1)
        try #require(bootSeconds() - released > 25, "a disk that hangs again and again must not make a tight loop")
        try #require(process.logTail().contains("has answered again"), "\(process.logTail())")
        let mounts = try node.room.succeed(["cat", "/proc/self/mounts"])
        try #require(!mounts.contains("fuse.lockstep"), "the directory is still there: \(mounts)")
        try startDaemon(node)
        try waitFor(node, "stands by") { $0.role == "SECOND" && $0.isInSync }
    }
}

extension Room {
    /// Runs `body` with nearly nothing left on a file system.
    func filling(at mountPoint: String, leaving bytes: Int, _ body: () throws -> Void) throws {
        let held = try fillFileSystem(at: mountPoint, leaving: bytes)
        try withExtendedLifetime(held) { try body() }
    }
}
