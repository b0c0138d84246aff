//  Applications that behave badly, and links that do: lines 8, 25, 26, 30 of the table of failures.
import CLinux
import Foundation
import Rooms
import Synchronization
import Testing

extension WholeSystem {
    @Suite struct HammerTests {
        /// Each direction of each link in turn loses everything. One side serves, within the promised time; which one
        /// does not matter.
        @Test func failure08OneSideServesWhateverDirectionOfWhateverLinkLosesEverything() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let rooms = [cluster.alpha.room, cluster.beta.room, cluster.witness]
                for from in rooms {
                    for to in rooms where to !== from {
                        let cut = bootSeconds()
                        try cluster.building.cut(from: from, to: to)
                        do {
                            // Longer than any takeover; then the service has been there for a while.
                            try client.waitForTransfers(since: cut + 8, count: 3, within: 30)
                        } catch { throw RoomsError("\(from.name) to \(to.name): \(error)") }
                        try cluster.building.restoreAll()
                        try cluster.waitUntilInSync(within: 2 * Small.stepSecondsMax)
                        try guardian.check()
                    }
                }
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// The simulator does it for ten minutes; here it is half a minute with real clocks and sockets.
        @Test func failure25ALinkThatFlapsAroundTheTimeoutCostsFewEpochs() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let before = try #require(cluster.status(cluster.alpha)?.epoch)
                let end = bootSeconds() + 30
                while bootSeconds() < end {
                    try cluster.building.cut(between: cluster.alpha.room, and: cluster.beta.room)
                    usleep(useconds_t.random(in: 700_000...1_300_000))
                    try cluster.building.restore(between: cluster.alpha.room, and: cluster.beta.room)
                    usleep(useconds_t.random(in: 300_000...1_300_000))
                }
                try cluster.waitUntilInSync(within: 2 * Small.stepSecondsMax)
                let epochs = cluster.nodes.compactMap { cluster.status($0)?.epoch }
                let after = try #require(epochs.max())
                // A loss is an epoch; each one doubles the wait before the next can be: 0.5, 1, 2, 4, 8, 16 s.
                try #require(after - before <= 10, "\(after - before) epochs in half a minute")
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// Part of the application hangs in the kernel, where no signal reaches it, and the rest writes on.
        @Test func failure26TheTakeoverIsSafeWhenTheApplicationCannotBeStopped() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let guardian = AddressGuard(cluster)
                defer { guardian.stop() }
                let (alpha, beta) = (cluster.alpha, cluster.beta)
                let hanging = "/run/lockstep/hanging"
                try alpha.room.succeed(["mkdir", "-p", hanging])
                try alpha.room.addDisk(at: hanging, megabytes: 32)
                try alpha.room.freezeFileSystem(at: hanging)
                defer { try? alpha.room.thawFileSystem(at: hanging) }
                // As the application: in its control group, writing on while its other process hangs.
                let found = try cluster.applicationGroup(on: alpha)
                let group = try #require(found, "no control group of the application")
                let file = Cluster.path + "/written-on"
                _ = try alpha.room.start(
                    [
                        "sh", "-c",
                        """
                        echo $$ > \(group)/cgroup.procs
                        (echo stuck > \(hanging)/file) &
                        i=0; while :; do i=$((i + 1)); echo $i >> \(file) || sleep 0.05; done
                        """,
                    ], as: "stubborn")
                try waitUntil("it writes", within: Small.stepSecondsMax) {
                    try alpha.room.run(["test", "-s", file]).status == 0
                }
                // Alpha hears nobody and is replaced.
                try cluster.building.cut(alpha.room)
                try cluster.waitUntilServing(beta, within: Small.stepSecondsMax)
                let taken = try beta.room.succeed(["cat", file])
                usleep(3_000_000)
                try cluster.building.restore(alpha.room)
                try cluster.waitFor(alpha, "serves no more") { !$0.serves && $0.role != "FROZEN" }
                usleep(2_000_000)
                try #require(try beta.room.succeed(["cat", file]) == taken, "alpha's application still wrote")
                try guardian.check()
                try alpha.room.thawFileSystem(at: hanging)
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try cluster.expectIdenticalTrees(within: Small.stepSecondsMax)
            }
        }

        /// A thread changes the memory all the time from which another one writes, past the page cache and through it.
        @Test(arguments: [true, false])
        func failure30ABufferThatChangesWhileItIsWrittenIsTheSameInBothRooms(direct: Bool) throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let length = 256 << 10
                let buffer = UnsafeMutableRawPointer.allocate(byteCount: length, alignment: 4096)
                defer { buffer.deallocate() }
                buffer.initializeMemory(as: UInt8.self, repeating: 0, count: length)
                let place = UInt(bitPattern: buffer)
                let isDone = Atomic(false)
                let scribblers = DispatchGroup()
                for seed in 0..<2 {
                    DispatchQueue.global().async(group: scribblers) {
                        guard let words = UnsafeMutablePointer<UInt64>(bitPattern: place) else { return }
                        var value = UInt64(seed + 1)
                        while !isDone.load(ordering: .relaxed) {
                            for index in stride(from: seed, to: length / 8, by: 2) {
                                value = value &* 6_364_136_223_846_793_005 &+ 1
                                words[index] = value
                            }
                        }
                    }
                }
                defer {
                    isDone.store(true, ordering: .relaxed)
                    scribblers.wait()
                }
                let path = cluster.alpha.room.hostPath(Cluster.path + "/scribbled")
                let descriptor = clinux_open(path, O_RDWR | O_CREAT | (direct ? CLINUX_O_DIRECT : 0), 0o644)
                try #require(descriptor >= 0)
                defer { _ = clinux_close(descriptor) }
                for number in 0..<200 {
                    let offset = UInt64(number % 40) * UInt64(length)
                    try #require(clinux_pwrite(descriptor, buffer, length, offset) == length)
                }
                try #require(clinux_fsync(descriptor) == 0)
                try cluster.expectIdenticalTrees(within: Small.stepSecondsMax)
            }
        }
    }
}

extension Cluster {
    /// The control group in which the application of a node runs, as that room sees it.
    func applicationGroup(on node: ClusterNode) throws -> String? {
        let found = try node.room.run(["sh", "-c", "find /sys/fs/cgroup -type d -path '*lockstep/ledger@\(node.name)'"])
        return found.output.split(separator: "\n").first.map(String.init)
    }
}
