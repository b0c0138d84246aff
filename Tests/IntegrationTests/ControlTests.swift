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

        /// The connection lives on with what somebody has open; everything opened afterwards would be the bare directory.
        /// Nobody works meanwhile: an application whose open files and whose names are two places may lose what it likes.
        @Test func aMountThatIsTakenFromItsPlaceComesBack() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let alpha = cluster.alpha
                let before = try #require(cluster.status(alpha)?.epoch)
                let sleeper = try alpha.room.start(["sh", "-c", "cd \(Cluster.path) && exec sleep 600"], as: "sleeper")
                usleep(500_000)
                try #require(sleeper.isRunning)
                try alpha.room.succeed(["umount", "-l", Cluster.path])
                try waitUntil("a node serves anew", within: Small.stepSecondsMax, every: 0.1) {
                    guard let node = cluster.serving(), let status = cluster.status(node) else { return false }
                    return status.epoch > before
                }
                _ = try? sleeper.killNow()
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
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

        /// Standard error of both daemons and of the witness is a pipe that is full, and nobody reads.
        @Test func aLogThatNobodyReadsHoldsUpNobody() throws {
            try Harness.withRooms(configure: Small.configuration) { cluster in
                let (alpha, beta) = (cluster.alpha, cluster.beta)
                let unread = [
                    "sh", "-c",
                    "mkfifo $0-$$ && exec 2<>$0-$$ && rm $0-$$ && head -c 65536 /dev/zero >&2 && exec \"$@\"",
                    cluster.building.directory + "/unread",
                ]
                try cluster.startWitness(under: unread)
                try cluster.lockstep(alpha, ["init", "--first"])
                try cluster.lockstep(beta, ["init"])
                for node in cluster.nodes { try cluster.startDaemon(node, under: unread) }
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                // Two leases.
                let begun = bootSeconds()
                usleep(4_000_000)
                #expect(client.service.longestPause(from: begun, to: bootSeconds()) < 1.5)
                try cluster.lockstep(alpha, ["swap"])
                try cluster.waitUntilServing(beta, within: Small.stepSecondsMax)
                try client.waitForTransfers(within: Small.stepSecondsMax)
                try cluster.expectWellAfterwards(client, guardian)
                #expect(try #require(cluster.daemon(alpha)).stop(within: 60) == 0)
            }
        }

        private static let ill = "/etc/lockstep/ledger/ill"

        /// With a check that finds the application well unless there is a file `ill`.
        private func withCheckedApplication(timing: String = "", _ body: (Cluster) throws -> Void) throws {
            let configure = { (shipped: String) in
                Small.configuration(
                    shipped.replacingOccurrences(
                        of: "startTimeoutSeconds",
                        with: """
                            check = "/etc/lockstep/ledger/check"
                            checkIntervalSeconds = 1
                            checkFailuresMaximum = 1
                            startTimeoutSeconds
                            """)) + timing
            }
            try Harness.withRooms(configure: configure) { cluster in
                for node in cluster.nodes {
                    let script = "printf '#!/bin/sh\\nexec test ! -e \(Self.ill)\\n' > $0 && chmod 755 $0"
                    try node.room.succeed(["sh", "-c", script, "/etc/lockstep/ledger/check"])
                }
                try cluster.start()
                try waitUntil("the application runs", within: Small.stepSecondsMax) {
                    cluster.status(cluster.alpha)?.text.contains("\"running\"") == true
                }
                try body(cluster)
            }
        }

        private func processes(_ cluster: Cluster, on node: ClusterNode) throws -> Set<Substring> {
            let group = try #require(try cluster.applicationGroup(on: node))
            return Set(try node.room.run(["cat", group + "/cgroup.procs"]).output.split(separator: "\n"))
        }

        /// The daemon is killed; the other node takes over; here the next daemon does not get far. What runs on must not
        /// be the application.
        @Test func failure26AnApplicationDoesNotOutliveItsDaemonWhereTheNextOneDoesNotStart() throws {
            try Harness.withRooms(configure: Small.configuration) { cluster in
                for node in cluster.nodes {
                    // One that runs without its directory, too.
                    let simple = "printf '#!/bin/sh\\nsleep 1000 &\\n' > $0 && chmod 755 $0"
                    try node.room.succeed(["sh", "-c", simple, "/etc/lockstep/ledger/start"])
                }
                try cluster.start()
                let (alpha, beta) = (cluster.alpha, cluster.beta)
                try waitUntil("the application runs", within: 20) { try !processes(cluster, on: alpha).isEmpty }
                let votes = "/var/lib/lockstep/ledger/votes"
                try #require(cluster.daemon(alpha)).killNow()
                #expect(try !processes(cluster, on: alpha).isEmpty)
                try alpha.room.succeed(["mv", votes, votes + ".away"])
                #expect(try cluster.startDaemon(alpha).waitForEnd(within: 30) == 1)
                #expect(try processes(cluster, on: alpha) == [])

                // The same without a start, as the unit does it; but nothing of a daemon that lives.
                try cluster.waitUntilServing(beta, within: Small.stepSecondsMax)
                try waitUntil("the application runs", within: 20) { try !processes(cluster, on: beta).isEmpty }
                let cleaning = [
                    Cluster.programs + "/lockstepd", "--config", Cluster.configurationFile, "--node", "beta",
                    "--clean-up",
                ]
                let refused = try beta.room.run(cleaning)
                #expect(refused.status == 1 && refused.error.contains("nothing was removed"))
                #expect(try !processes(cluster, on: beta).isEmpty)
                try #require(cluster.daemon(beta)).killNow()
                #expect(try beta.room.run(cleaning).status == 0)
                #expect(try processes(cluster, on: beta) == [])
                #expect(!cluster.addressHolders().map(\.name).contains("beta"))

                try alpha.room.succeed(["mv", votes + ".away", votes])
                for node in cluster.nodes { try cluster.startDaemon(node) }
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
            }
        }

        /// The other node is lost and not recorded as lost yet: it cannot take the application, which is started again
        /// here.
        @Test func failure26AnApplicationThatNobodyCanTakeIsStartedAgainHere() throws {
            try withCheckedApplication(timing: "\n[timing]\npeerLossMilliseconds = 8000\n") { cluster in
                let alpha = cluster.alpha
                let before = try processes(cluster, on: alpha)
                try #require(!before.isEmpty)
                try cluster.lose(cluster.beta)
                usleep(2_000_000)
                try alpha.room.succeed(["touch", Self.ill])
                usleep(2_500_000)
                try alpha.room.succeed(["rm", Self.ill])
                try waitUntil("the application was started again", within: Small.stepSecondsMax) {
                    let now = try processes(cluster, on: alpha)
                    return !now.isEmpty && now.isDisjoint(with: before)
                }
                try cluster.bringBack(cluster.beta)
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
            }
        }

        /// The application is being stopped to be started again, and an administrator stops the node meanwhile.
        @Test func failure26AnApplicationIsNotStartedOnANodeThatIsBeingStopped() throws {
            try withCheckedApplication { cluster in
                let alpha = cluster.alpha
                let slow = "mv $0 $0.shipped; printf '#!/bin/sh\\nsleep 6\\nexec $0.shipped\\n' > $0 && chmod 755 $0"
                try alpha.room.succeed(["sh", "-c", slow, "/etc/lockstep/ledger/stop"])
                // One that runs without its directory, too.
                let simple = "printf '#!/bin/sh\\nsleep 1000 &\\n' > $0 && chmod 755 $0"
                try alpha.room.succeed(["sh", "-c", simple, "/etc/lockstep/ledger/start"])
                try cluster.lose(cluster.beta)
                try cluster.waitFor(alpha, "goes on alone") { $0.role == "ALONE" }
                try alpha.room.succeed(["touch", Self.ill])
                usleep(3_000_000)
                try cluster.lockstep(alpha, ["stop"], within: 90)
                try cluster.waitFor(alpha, "is stopped") { $0.role == "STOP" }
                for _ in 0..<20 {
                    let left = try processes(cluster, on: alpha)
                    try #require(left.isEmpty, "\(left)")
                    usleep(200_000)
                }
            }
        }
    }
}
