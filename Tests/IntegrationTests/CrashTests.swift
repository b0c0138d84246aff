//  Processes die with work in their hands. Lines 11, 12, 16 and 22 of the table of failures.
//
//  SIGKILL takes what a process has in memory and leaves what the kernel and the disk have. A journal is written with
//  O_DIRECT|O_DSYNC, so what counts here is the memory of the daemons: received and not yet written, acknowledged and not
//  yet applied. What a power cut can do to a disk beyond that is shown with images in the tests of Journal and Tree.
import Foundation
import Rooms
import Testing

extension WholeSystem {
    @Suite struct CrashTests {
        @Test func failure11RecordsThatNeverReachedTheOtherRoomAreGoneFromBoth() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let alpha = cluster.alpha.room
                let mark = String(UInt64.random(in: 0...UInt64.max), radix: 36)
                let file = Cluster.path + "/shared-\(mark)"
                // In a directory of its own: one change of a directory's names waits for the one before, and the ledger's
                // own is under way when the link is cut.
                let name = "apart-\(mark)/name-\(mark)"
                try alpha.succeed([
                    "sh", "-c", "mkdir \(Cluster.path)/apart-\(mark) && echo confirmed > \(file) && sync \(file)",
                ])

                // Alpha hears nobody: what is written now gets into its journal and nowhere else.
                try cluster.building.cut(alpha)
                let append = try alpha.start(["sh", "-c", "echo text-\(mark) >> \(file)"], as: "append")
                let create = try alpha.start(["sh", "-c", ": > \(Cluster.path)/\(name)"], as: "create")
                try waitUntil("both changes are in alpha's journal", within: 20) {
                    try cluster.journal(of: cluster.alpha, contains: "text-\(mark)")
                        && cluster.journal(of: cluster.alpha, contains: "name-\(mark)")
                }
                try #require(create.isRunning, "a name was acknowledged that only one room has")
                try alpha.killAll()
                try #require(append.exitStatus == 128 + SIGKILL, "a write was acknowledged that only one room has")
                try #require(create.exitStatus == 128 + SIGKILL)
                try #require(try !cluster.journal(of: cluster.beta, contains: "text-\(mark)"))

                try cluster.waitUntilServing(cluster.beta, within: Small.stepSecondsMax)
                try client.waitForTransfers(within: Small.stepSecondsMax)
                try cluster.bringBack(cluster.alpha)
                try cluster.expectWellAfterwards(client, guardian)
                for node in cluster.nodes {
                    let backing = node.room.hostPath(Cluster.backing)
                    let text = FileManager.default.contents(atPath: "\(backing)/shared-\(mark)") ?? Data()
                    try #require(String(decoding: text, as: UTF8.self) == "confirmed\n")
                    try #require(!FileManager.default.fileExists(atPath: "\(backing)/\(name)"))
                }
            }
        }

        @Test func failure12BothNodesKilledWhileWritingComeBackIdenticalWithEveryAcknowledgedWrite() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                try cluster.expectToSurvivePowerCuts()
            }
        }

        @Test func failure16RestartedNodeCountsOnlyForWhatItsDiskHeld() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let writer = try LineWriter(cluster, on: cluster.alpha)
                // The link goes, so that nothing can be merged any more; then beta's daemon, with what it has acknowledged from
                // memory; then alpha, sooner than it can go on alone.
                try cluster.building.cut(between: cluster.alpha.room, and: cluster.beta.room)
                try cluster.daemon(cluster.beta).map { try $0.killNow() }
                try cluster.alpha.room.killAll()

                // Beta was in sync, and nothing says that it is not: but it cannot know what it acknowledged and did not keep.
                try cluster.beta.room.reboot()
                try cluster.startDaemon(cluster.beta)
                let status = try cluster.waitFor(cluster.beta, "waits to be merged with alpha") {
                    $0.role == "WAIT" && $0.reason == "waitingForMerge"
                }
                try #require(status.explanation.contains("alpha"))
                try cluster.watchThatDoesNotServe(cluster.beta, for: Small.temptationSeconds)
                try #require(cluster.status(cluster.beta)?.reason == "waitingForMerge")

                try cluster.building.restoreAll()
                try cluster.bringBack(cluster.alpha)
                try cluster.expectWellAfterwards(client, guardian)
                for node in cluster.nodes { try writer.expectAllLines(on: node) }
            }
        }

        /// - Parameter name: the node that comes back alone; both were in sync, so either will do.
        @Test(arguments: ["alpha", "beta"])
        func failure22AfterTotalPowerLossOneInSyncNodeServesByItselfAndSaysWhatMayBeMissing(name: String) throws {
            try Harness.withDisks(isFaulty: true, configure: Small.configuration(loneRestartSeconds: 4)) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let survivor = try #require(cluster.nodes.first { $0.name == name })
                let other = cluster.other(than: survivor)
                let writer = try LineWriter(cluster, on: cluster.alpha)
                try client.waitForTransfers(count: 20, within: Small.stepSecondsMax)
                try cluster.cutPower(of: [cluster.alpha.room, cluster.beta.room, cluster.witness])
                // What one disk lacks, the other one must not fill in; what was not flushed is gone from both.
                for node in cluster.nodes { try node.room.loseUnwrittenData() }
                try #require(client.process.isRunning)

                try cluster.witness.reboot()
                try cluster.startWitness()
                try survivor.room.reboot()
                let started = bootSeconds()
                try cluster.startDaemon(survivor)
                let waiting = try cluster.waitFor(survivor, "says for whom it waits") {
                    $0.role == "WAIT" && $0.reason == "waitingForMerge"
                }
                try #require(waiting.explanation.contains(other.name))
                let alone = try cluster.waitFor(survivor, "serves by itself") { $0.role == "ALONE" }
                try #require(bootSeconds() - started >= 4, "it did not wait for the other node")
                try #require(!alone.statements.isEmpty, "it does not say that writes may be missing")
                let words = try survivor.room.run([
                    Cluster.programs + "/lockstep", "status", "--config", Cluster.configurationFile, "--node", name,
                ])
                try #require(words.output.contains("may be missing"), "the administrator is not told: \(words.output)")
                try client.waitForTransfers(within: Small.stepSecondsMax)
                try writer.expectAllLines(on: survivor)

                try cluster.bringBack(other)
                try cluster.expectWellAfterwards(client, guardian)
                for node in cluster.nodes { try writer.expectAllLines(on: node) }
                try #require(cluster.status(survivor)?.statements == alone.statements, "the statement did not stay")
            }
        }
    }
}
