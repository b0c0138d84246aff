//  The third room: it moves, it grants less than it is asked for, it is full of strangers.
import Format
import Foundation
import Rooms
import Testing

extension WholeSystem {
    @Suite struct WitnessTests {
        /// Restarts the witness with another longest grant.
        private func restartWitness(_ cluster: Cluster, longestGrant: Int) throws {
            try cluster.witnessProcess?.stop()
            let setting = "s/^longestGrantMilliseconds.*/longestGrantMilliseconds = \(longestGrant)/"
            try cluster.witness.succeed(["sed", "-i", setting, "/etc/lockstep/witness.toml"])
            try cluster.startWitness()
        }

        /// The grant was made longer in the mirror's file alone: all is well as long as the other node grants.
        @Test func aWitnessThatGrantsForLessTimeThanIsAskedForIsNamedInStatus() throws {
            let configure = { Small.configuration($0) + "\n[timing]\ngrantMilliseconds = 8000\n" }
            try Harness.withRooms(configure: configure) { cluster in
                try restartWitness(cluster, longestGrant: 8000)
                try cluster.witnessProcess?.stop()
                try cluster.start()
                let alpha = cluster.alpha
                try cluster.waitFor(alpha, "hears the witness") {
                    $0.witnessState == "answering" && $0.problem.isEmpty
                }
                try restartWitness(cluster, longestGrant: 4000)
                let status = try cluster.waitFor(alpha, "is refused") { $0.witnessState == "grantTooLong" }
                #expect(status.role == "PRIM" && status.color == "red")
                #expect(status.problem.contains("longestGrantMilliseconds") && status.problem.contains("8000"))
                let words = try alpha.room.run([
                    Cluster.programs + "/lockstep", "status", "--config", Cluster.configurationFile, "--node", "alpha",
                ])
                #expect(words.status == 0 && words.output.contains("REFUSES the lease"))

                try restartWitness(cluster, longestGrant: 9000)
                try cluster.waitFor(alpha, "is granted the lease") {
                    $0.witnessState == "answering" && $0.problem.isEmpty
                }
                try cluster.lose(cluster.beta)
                try cluster.waitFor(alpha, "goes on alone") { $0.role == "ALONE" }
            }
        }

        /// In the order that docs/operations.md gives: no step leaves a node with its own vote alone.
        @Test func aWitnessMovesWhileTheServiceGoesOn() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let (alpha, beta) = (cluster.alpha, cluster.beta)
                let old = try #require(cluster.witnessProcess)
                let new = try cluster.witness.start(
                    [
                        Cluster.programs + "/lockstep-witness", "--listen", "0.0.0.0:7402", "--state",
                        "/var/lib/lockstep-witness/moved",
                    ], as: "witness-moved")
                for node in cluster.nodes {
                    try node.room.succeed(["sed", "-i", "s/:7401/:7402/", Cluster.configurationFile])
                }

                try #require(cluster.daemon(beta)).stop(within: 60)
                try cluster.waitFor(alpha, "goes on alone") { $0.role == "ALONE" }
                try client.waitForTransfers(within: Small.stepSecondsMax)
                try cluster.startDaemon(beta)
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try cluster.waitFor(beta, "finds the new witness empty") { $0.witnessState == "empty" }

                try cluster.lockstep(alpha, ["swap"])
                try cluster.waitUntilServing(beta, within: Small.stepSecondsMax)
                try cluster.waitFor(beta, "has the new witness's vote") { $0.witnessState == "answering" }
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)

                try #require(cluster.daemon(alpha)).stop(within: 60)
                try cluster.waitFor(beta, "goes on alone") { $0.role == "ALONE" }
                try client.waitForTransfers(within: Small.stepSecondsMax)
                try cluster.startDaemon(alpha)
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)

                try old.stop()
                try cluster.lose(beta)
                try cluster.waitUntilServing(alpha, within: Small.stepSecondsMax)
                try client.waitForTransfers(within: Small.stepSecondsMax)
                try cluster.bringBack(beta)
                try cluster.expectWellAfterwards(client, guardian)
                try #require(new.isRunning)
            }
        }

        /// It is put back from a backup of the first day, while one node is away that knows no more than that backup; later it is
        /// installed anew, empty. It gets its memory from those who have one, and helps nobody else.
        @Test func failure19AWitnessPutBackOrInstalledAnewGetsItsMemoryFromWhoHasIt() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let (alpha, beta) = (cluster.alpha, cluster.beta)
                let store = "/var/lib/lockstep-witness"
                let backup = cluster.building.directory + "/witness-backup"
                try cluster.witnessProcess?.stop()
                try cluster.witness.succeed(["cp", "-a", store, backup])
                try cluster.startWitness()
                try cluster.waitFor(alpha, "hears the witness") { $0.witnessState == "answering" }

                // Only alpha and the witness know that alpha goes on without beta.
                try cluster.lose(beta)
                try cluster.waitFor(alpha, "goes on alone") { $0.role == "ALONE" }
                try client.waitForTransfers(count: 20, within: Small.stepSecondsMax)
                try cluster.witnessProcess?.stop()
                try cluster.witness.succeed(["sh", "-c", "rm -rf \(store)/* && cp -a \(backup)/. \(store)/"])
                try cluster.startWitness()
                try cluster.waitFor(alpha, "has the witness again") {
                    $0.role == "ALONE" && $0.witnessState == "answering"
                }
                try client.waitForTransfers(since: bootSeconds() + 1, within: Small.stepSecondsMax)

                // Two of three were there on the day of the backup: what alpha did since must not be forgotten.
                try cluster.lose(alpha)
                try cluster.bringBack(beta)
                try cluster.watchThatDoesNotServe(beta, for: 15)
                try cluster.bringBack(alpha)
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try client.waitForTransfers(within: Small.stepSecondsMax)

                try cluster.witnessProcess?.stop()
                try cluster.witness.succeed(["sh", "-c", "rm -rf \(store)/*"])
                try cluster.startWitness()
                let serving = try #require(cluster.serving())
                try cluster.waitFor(serving, "has filled the empty witness") { $0.witnessState == "answering" }
                try cluster.lose(serving)
                try cluster.waitUntilServing(cluster.other(than: serving), within: Small.stepSecondsMax)
                try client.waitForTransfers(within: Small.stepSecondsMax)
                try cluster.bringBack(serving)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// The witness may have 300 descriptors, and more strangers than that say hello and stay: they do not even free one
        /// by calling again. A vote is still written, and a node that comes back finds a place.
        @Test func failure38StrangersThatStayTakeNoVoteAway() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                try cluster.witnessProcess?.stop()
                try cluster.startWitness(under: [
                    "setpriv", "--bounding-set", "-sys_resource", "sh", "-c", "ulimit -n 300 && exec \"$@\"", "limited",
                ])
                let alpha = cluster.alpha
                try cluster.waitFor(alpha, "hears the witness") { $0.witnessState == "answering" }
                let witness = try #require(cluster.witnessProcess)
                #expect(witness.logTail().contains("may have 300 descriptors: enough for 86 mirrors"))

                let hello = "\(cluster.building.directory)/stranger-hello"
                for index in 1...400 {
                    let body = Hello(channel: .control, voter: .a, mirrorName: "stranger\(index)", session: 1).encoded()
                    let header = FrameHeader(
                        type: .hello, bodyLength: body.count, session: 1, epoch: .none, mirror: .none)
                    try Data(header.encoded(body: body) + body).write(to: URL(fileURLWithPath: "\(hello)-\(index)"))
                }
                let strangers = try cluster.client.start(
                    [
                        "bash", "-c",
                        """
                        for i in $(seq 400); do
                            eval "exec $((i + 100))<>/dev/tcp/10.0.9.13/7401" && cat $0-$i >&$((i + 100))
                        done
                        touch $0-all; sleep 600
                        """, hello,
                    ], as: "strangers")
                try waitUntil("all strangers have called", within: Small.stepSecondsMax) {
                    FileManager.default.fileExists(atPath: hello + "-all")
                }

                try cluster.lose(cluster.beta)
                try cluster.waitFor(alpha, "goes on alone") { $0.role == "ALONE" }
                try cluster.bringBack(cluster.beta)
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try cluster.lose(alpha)
                try cluster.waitUntilServing(cluster.beta, within: Small.stepSecondsMax)
                try cluster.bringBack(alpha)
                strangers.signal(SIGKILL)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }
    }
}
