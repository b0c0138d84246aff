//  What stands around the votes and the mount: a disk without room for votes, a second daemon, a mount that is taken
//  away, an application that is not well while the other node cannot take it, a stop that cannot be clean.
import Foundation
import Rooms
import Testing

extension WholeSystem {
    @Suite struct ControlTests {
        /// The other room is lost while this node's votes cannot be written: nobody can serve. It comes back as soon as
        /// they can, without a hand.
        @Test func failure23VotesThatCannotBeWrittenAreTriedAgainUntilTheyAre() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let (alpha, beta) = (cluster.alpha, cluster.beta)
                // A directory where the new file would be made.
                let obstacle = "/var/lib/lockstep/ledger/votes.new"
                try alpha.room.succeed(["mkdir", obstacle])
                try cluster.lose(beta)
                let status = try cluster.waitFor(alpha, "says that its votes cannot be written") { !$0.problem.isEmpty }
                #expect(status.problem.contains(obstacle) && status.problem.contains("nothing has to be restarted"))
                usleep(8_000_000)
                try alpha.room.succeed(["rmdir", obstacle])
                try client.waitForTransfers(within: 15)
                try cluster.waitFor(alpha, "serves alone") { $0.role == "ALONE" && $0.problem.isEmpty }
                try cluster.bringBack(beta)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        @Test func aSecondDaemonLeavesTheFirstOneAlone() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                for node in cluster.nodes {
                    let output = try node.room.run([
                        Cluster.programs + "/lockstepd", "--config", Cluster.configurationFile, "--node", node.name,
                    ])
                    #expect(output.status == 1)
                    #expect(output.error.contains("lockstepd runs here already for mirror ledger (process "))
                    try client.waitForTransfers(within: 5)
                }
                try #require(cluster.status(cluster.alpha)?.epoch == cluster.status(cluster.beta)?.epoch)
                try #require(cluster.serving()?.name == cluster.alpha.name)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        @Test func aMountThatIsTakenAwayByForceComesBack() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let before = try #require(cluster.status(cluster.alpha)?.epoch)
                // It ends the connection, whoever still has files open.
                _ = try cluster.alpha.room.run(["umount", "-f", Cluster.path])
                try waitUntil("a node serves anew", within: Small.stepSecondsMax, every: 0.1) {
                    guard let node = cluster.serving(), let status = cluster.status(node) else { return false }
                    return status.epoch > before
                }
                try client.waitForTransfers(within: Small.stepSecondsMax)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// Somebody stands in the directory, so that it cannot be unmounted in order.
        @Test func failure31AStopThatCannotBeCleanIsDoneByForce() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let (alpha, beta) = (cluster.alpha, cluster.beta)
                let group = try #require(try cluster.applicationGroup(on: alpha))
                let sleeper = try alpha.room.start(["sh", "-c", "cd \(Cluster.path) && exec sleep 600"], as: "sleeper")
                usleep(500_000)
                try #require(sleeper.isRunning)
                let daemon = try #require(cluster.daemon(alpha))
                let begun = bootSeconds()
                #expect(try daemon.stop(within: 90) == 0)
                #expect(bootSeconds() - begun < 30)
                let left = try alpha.room.run(["cat", group + "/cgroup.procs"])
                #expect(left.output.isEmpty, "the application outlives its daemon: \(left.output)")
                let mounts = try alpha.room.succeed(["cat", "/proc/self/mountinfo"])
                #expect(!mounts.contains("fuse.lockstep"))
                try cluster.waitUntilServing(beta, within: Small.stepSecondsMax)
                try client.waitForTransfers(within: Small.stepSecondsMax)
                _ = try? sleeper.killNow()
                try cluster.startDaemon(alpha)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// The other node is lost and not recorded as lost yet: it cannot take the application, which is started again
        /// here.
        @Test func failure26AnApplicationThatNobodyCanTakeIsStartedAgainHere() throws {
            let ill = "/etc/lockstep/ledger/ill"
            let configure = { (shipped: String) in
                Small.configuration(
                    shipped.replacingOccurrences(
                        of: "startTimeoutSeconds",
                        with: """
                            check = "/etc/lockstep/ledger/check"
                            checkIntervalSeconds = 1
                            checkFailuresMaximum = 1
                            startTimeoutSeconds
                            """)) + "\n[timing]\npeerLossMilliseconds = 8000\n"
            }
            try Harness.withRooms(configure: configure) { cluster in
                for node in cluster.nodes {
                    let script = "printf '#!/bin/sh\\nexec test ! -e \(ill)\\n' > $0 && chmod 755 $0"
                    try node.room.succeed(["sh", "-c", script, "/etc/lockstep/ledger/check"])
                }
                try cluster.start()
                let alpha = cluster.alpha
                let group = try #require(try cluster.applicationGroup(on: alpha))
                let processes = { () -> Set<Substring> in
                    Set(try alpha.room.run(["cat", group + "/cgroup.procs"]).output.split(separator: "\n"))
                }
                try waitUntil("the application runs", within: Small.stepSecondsMax) {
                    cluster.status(alpha)?.text.contains("\"running\"") == true
                }
                let before = try processes()
                try #require(!before.isEmpty)
                try cluster.lose(cluster.beta)
                usleep(2_000_000)
                try alpha.room.succeed(["touch", ill])
                usleep(2_500_000)
                try alpha.room.succeed(["rm", ill])
                try waitUntil("the application was started again", within: Small.stepSecondsMax) {
                    let now = try processes()
                    return !now.isEmpty && now.isDisjoint(with: before)
                }
                try cluster.bringBack(cluster.beta)
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
            }
        }
    }
}
