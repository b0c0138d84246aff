//  Disks that are not what they were: replaced, put back, or not mounted. Line 18 of the table of failures.
import Foundation
import Rooms
import Testing

extension WholeSystem {
    @Suite struct IdentityTests {
        /// What of a node's disks is put back to an older state.
        enum Part: String, CaseIterable {
            case files, journal, everything

            var paths: [String] {
                switch self {
                case .files: [Cluster.backing]
                case .journal: ["/var/lib/lockstep/ledger/journal"]
                case .everything: [Cluster.backing, "/var/lib/lockstep/ledger"]
                }
            }
            /// What beta's log, or alpha's, says of it.
            func isSaid(_ cluster: Cluster) throws -> Bool {
                switch self {
                case .files: try cluster.wasEverLogged(cluster.beta, "ledger was put back to an older state")
                case .journal: try cluster.wasEverLogged(cluster.beta, "journal was put back to an older state")
                case .everything: try cluster.wasEverLogged(cluster.alpha, "was put back to an older state")
                }
            }
        }

        private static let old = "/var/lib/lockstep/old"

        /// The daemon is down: its disks are kept as they are now.
        private func keepDisks(of node: ClusterNode) throws {
            try node.room.succeed(
                [
                    "sh", "-c",
                    "rm -rf \(Self.old) && mkdir -p \(Self.old)/files \(Self.old)/state && "
                        + "cp -a \(Cluster.backing)/. \(Self.old)/files && "
                        + "cp -a /var/lib/lockstep/ledger/. \(Self.old)/state",
                ])
        }

        private func putBack(_ part: Part, keepingVotes: Bool = false, of node: ClusterNode) throws {
            let state = "/var/lib/lockstep/ledger"
            let files = "find \(Cluster.backing) -mindepth 1 -delete && cp -a \(Self.old)/files/. \(Cluster.backing)"
            let script =
                switch part {
                case .files: files
                case .journal: "cp -a \(Self.old)/state/journal \(state)/journal"
                case .everything where keepingVotes:
                    files + " && cp -a \(Self.old)/state/journal \(state)/journal"
                case .everything:
                    files + " && find \(state) -mindepth 1 -delete && cp -a \(Self.old)/state/. \(state)"
                }
            try node.room.succeed(["sh", "-c", script])
        }

        /// Something is written and removed, and is in both rooms.
        private func age(_ cluster: Cluster, _ client: HarnessClient) throws {
            let name = "\(Cluster.path)/aged-\(UInt32.random(in: 0..<UInt32.max))"
            try cluster.alpha.room.succeed([
                "sh", "-c",
                "dd if=/dev/urandom of=\(name) bs=64k count=16 conv=fsync status=none; rm -f $(ls \(Cluster.path)/aged-* | head -n -2)",
            ])
            try client.waitForTransfers(count: 10, within: Small.stepSecondsMax)
        }

        @Test func failure18OldFilesAnOldJournalOrBothAreNoticedAndBroughtUpToDate() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let beta = cluster.beta
                for part in Part.allCases {
                    try age(cluster, client)
                    try #require(cluster.daemon(beta)).stop(within: 60)
                    try keepDisks(of: beta)
                    try cluster.startDaemon(beta)
                    try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                    try age(cluster, client)
                    try #require(cluster.daemon(beta)).stop(within: 60)
                    try cluster.waitFor(cluster.alpha, "goes on alone") { $0.role == "ALONE" }
                    try putBack(part, of: beta)
                    try cluster.startDaemon(beta)
                    try waitUntil("\(part) put back is noticed", within: Small.stepSecondsMax) {
                        try part.isSaid(cluster)
                    }
                    do {
                        try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                    } catch { throw RoomsError("\(part): \(error)") }
                    try #require(cluster.status(cluster.alpha)?.resyncKind == "comparison", "\(part)")
                    try #require(cluster.status(beta)?.problem == "", "\(part)")
                }
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// The machine is put back as a whole while the other one is lost: its own disks agree with each other, and say
        /// that it is in sync and complete. Only the witness remembers more.
        @Test(arguments: [false, true])
        func failure18AMachineThatWasPutBackDoesNotServeWithoutTheOtherOne(keepingVotes: Bool) throws {
            try Harness.withCluster(configure: Small.configuration(loneRestartSeconds: 2)) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let beta = cluster.beta
                try #require(cluster.daemon(beta)).stop(within: 60)
                try keepDisks(of: beta)
                try cluster.startDaemon(beta)
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try age(cluster, client)
                // What is committed is told late, with the next request for the lease.
                usleep(3_000_000)
                try cluster.cutPower(of: [cluster.alpha.room, beta.room])
                try cluster.building.cut(cluster.alpha.room)
                try beta.room.reboot()
                try putBack(.everything, keepingVotes: keepingVotes, of: beta)
                try cluster.startDaemon(beta)
                let status = try cluster.waitFor(beta, "says for whom it waits") {
                    $0.role == "WAIT" && (keepingVotes ? ["putBack"] : ["notSeeded", "putBack"]).contains($0.reason)
                }
                if keepingVotes { try #require(status.explanation.contains("alpha"), "\(status.explanation)") }
                try #require(try cluster.wasEverLogged(beta, "put back to an older state"))
                try cluster.watchThatDoesNotServe(beta, for: 2 * Small.temptationSeconds)
                try cluster.bringBack(cluster.alpha)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// Only the votes, of a node that was away so shortly that it still counts as in sync: it is given new ones, and takes
        /// over when the other one is lost.
        @Test func failure18VotesThatWerePutBackAreGivenAnewWithoutAnybodysHelp() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let beta = cluster.beta
                let votes = "/var/lib/lockstep/ledger/votes"
                try beta.room.succeed(["cp", "-a", votes, "\(votes).old"])
                for round in 0..<3 {
                    try #require(cluster.daemon(beta)).killNow()
                    if round == 2 { try beta.room.succeed(["mv", "\(votes).old", votes]) }
                    try cluster.startDaemon(beta)
                    try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                }
                try #require(try cluster.wasEverLogged(beta, "put back to an older state"))
                try cluster.waitFor(beta, "follows with a vote") { $0.role == "SECOND" && $0.reason == "none" }
                try client.waitForTransfers(count: 5, within: Small.stepSecondsMax)
                try cluster.cutPower(of: [cluster.alpha.room])
                try cluster.waitFor(beta, "takes over") { $0.role == "ALONE" }
                try client.waitForTransfers(count: 5, within: Small.stepSecondsMax)
                try cluster.bringBack(cluster.alpha)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// The votes are gone, and were not forgotten: the node does not start, and says what the choices are.
        @Test func failure18ANodeThatHasLostItsVotesSaysWhatTheChoicesAre() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let beta = cluster.beta
                let state = "/var/lib/lockstep/ledger"
                try #require(cluster.daemon(beta)).stop(within: 60)
                try beta.room.succeed(["rm", "\(state)/votes"])
                let daemon = try cluster.startDaemon(beta)
                try #require(try daemon.waitForEnd(within: Small.stepSecondsMax) == 1)
                let words = daemon.logTail(lines: 3)
                for needed in ["votes is missing", "lockstep init", "alpha is lost for good"] {
                    try #require(words.contains(needed), "\(needed) is not in: \(words)")
                }
                try cluster.lockstep(beta, ["init"])
                try cluster.startDaemon(beta)
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try #require(try beta.room.succeed(["ls", state]).contains("journal.set-aside-"))
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        @Test func failure18AnEmptyDiskIsFilledAndAPlaceWithoutItsDiskNever() throws {
            try Harness.withDisks { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let beta = cluster.beta
                try age(cluster, client)
                // Beneath the image is an empty file system: a new disk.
                try #require(cluster.daemon(beta)).stop(within: 60)
                try cluster.waitFor(cluster.alpha, "goes on alone") { $0.role == "ALONE" }
                try beta.room.succeed(["umount", RoomDisk.files])
                try cluster.startDaemon(beta)
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try #require(try cluster.wasEverLogged(beta, "the disk was replaced"))
                try client.waitForTransfers(count: 5, within: Small.stepSecondsMax)
                // Beneath that is only the place for one.
                try #require(cluster.daemon(beta)).stop(within: 60)
                try cluster.waitFor(cluster.alpha, "goes on alone") { $0.role == "ALONE" }
                try beta.room.succeed(["umount", RoomDisk.files])
                let daemon = try cluster.startDaemon(beta)
                try #require(try daemon.waitForEnd(within: Small.stepSecondsMax) == 1)
                let words = daemon.logTail(lines: 3)
                try #require(words.contains("its file system is not mounted"), "\(words)")
                try #require(try beta.room.succeed(["ls", "-A", RoomDisk.files]).isEmpty)
                try client.waitForTransfers(count: 5, within: Small.stepSecondsMax)
                // The first disk is mounted again: it is an old one by now.
                try beta.room.killAll()
                try beta.room.succeed(["mount", "-t", "tmpfs", "none", RoomDisk.files])
                try beta.room.reboot()
                try cluster.startDaemon(beta)
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// The state disk of a replaced node has no room for the journal: it says so, and joins when there is room.
        @Test func failure23AReplacedNodeWithoutRoomForItsJournalJoinsWhenThereIs() throws {
            try Harness.withDisks { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let beta = cluster.beta
                try beta.room.killAll()
                try cluster.waitFor(cluster.alpha, "goes on alone") { $0.role == "ALONE" }
                try beta.room.reboot()
                for disk in [RoomDisk.state, RoomDisk.files] {
                    try beta.room.succeed(["find", disk, "-mindepth", "1", "-delete"])
                }
                try cluster.lockstep(beta, ["init"])
                try beta.room.filling(at: RoomDisk.state, leaving: 40 << 20) {
                    try cluster.startDaemon(beta)
                    try cluster.waitFor(beta, "says why it cannot join") {
                        $0.problem.contains("no room for the journal")
                    }
                    try client.waitForTransfers(count: 5, within: Small.stepSecondsMax)
                }
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try #require(cluster.status(beta)?.problem == "")
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// What `lockstep init` said is done, a loss of power does not undo: found by soak seeds 614 and 616.
        @Test func failure18AReplacedNodeThatLosesPowerBeforeItsFirstStartStillJoins() throws {
            try Harness.withDisks { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let room = cluster.beta.room
                try room.killAll()
                try room.reboot()
                for disk in [RoomDisk.state, RoomDisk.files] {
                    try room.succeed(["find", disk, "-mindepth", "1", "-delete"])
                }
                try cluster.lockstep(cluster.beta, ["init"])
                try room.loseUnwrittenData()
                try room.reboot()
                try cluster.startDaemon(cluster.beta)
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try #require(try room.succeed(["ls", RoomDisk.state + "/ledger"]).contains("joining") == false)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }
    }
}

extension Cluster {
    /// Whether any daemon of the node has said the words: what a start finds on its disks is said before it is over.
    fileprivate func wasEverLogged(_ node: ClusterNode, _ words: String) throws -> Bool {
        guard let daemon = daemon(node) else { return false }
        return try String(contentsOfFile: daemon.log, encoding: .utf8).contains(words)
    }
}
