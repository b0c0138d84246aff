//  A journal whose end is damaged, and one that is full. Lines 10 and 23 of the table of failures.
import Foundation
import Rooms
import Testing

extension WholeSystem {
    @Suite struct JournalTests {
        /// Alpha alone wrote, lost power, and the disk gives the last record back wrong. Nobody else has it: alpha must not
        /// serve without it as if nothing were missing, and must say what is in doubt.
        @Test func failure10ALoneNodeWhoseJournalEndsInDamageDoesNotServeShortAndNamesWhatIsInDoubt() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                try cluster.lose(cluster.beta)
                try cluster.waitFor(cluster.alpha, "goes on alone") { $0.role == "ALONE" }
                try client.waitForTransfers(within: Small.stepSecondsMax)
                // The last records, in the journal and not behind a checkpoint: the next is 5 s after this one.
                let mark = String(UInt64.random(in: 0...UInt64.max), radix: 36)
                try client.process.killNow()
                let file = Cluster.path + "/last"
                try cluster.alpha.room.succeed(["sh", "-c", "echo before | dd of=$0 conv=fsync status=none", file])
                try cluster.waitFor(cluster.alpha, "makes a checkpoint") {
                    $0.lastRecord != nil && $0.checkpointRecord == $0.lastRecord
                }
                try cluster.alpha.room.succeed([
                    "sh", "-c", "printf %s mark-\(mark) | dd of=$0 conv=fsync status=none", file,
                ])
                // A power cut some moments later: by then the header ring lists it.
                usleep(100_000)
                try cluster.lose(cluster.alpha)
                try cluster.damageJournal(of: cluster.alpha, at: "mark-\(mark)")

                try cluster.bringBack(cluster.alpha)
                let status = try cluster.waitFor(cluster.alpha, "says what is in doubt") { !$0.problem.isEmpty }
                for needed in ["journal", "damaged", "in doubt", "record"] {
                    try #require(status.problem.contains(needed), "\(needed) is not in: \(status.problem)")
                }
                try #require(status.color == "red")
                try cluster.watchThatDoesNotServe(cluster.alpha, for: 2 * Small.temptationSeconds)
                let dump = try cluster.alpha.room.run([
                    Cluster.programs + "/lockstep-dump", "--verify", "/var/lib/lockstep/ledger/journal",
                ])
                try #require(dump.status != 0 && dump.output.contains("doubt"), "\(dump)")
                // Nor does beta, which has even less.
                try cluster.bringBack(cluster.beta)
                for node in cluster.nodes { try cluster.watchThatDoesNotServe(node, for: Small.temptationSeconds) }

                // The end is there again (the disk was mended, say): alpha serves with everything.
                try cluster.alpha.room.killAll()
                try cluster.damageJournal(of: cluster.alpha, at: "marj-\(mark)")
                try cluster.bringBack(cluster.alpha)
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try cluster.expectIdenticalTrees(within: Small.stepSecondsMax)
                for node in cluster.nodes {
                    let found = FileManager.default.contents(atPath: node.room.hostPath(Cluster.backing + "/last"))
                    try #require(found.map { String(decoding: $0, as: UTF8.self) } == "mark-\(mark)")
                }
                guardian.stop()
                try guardian.check()
            }
        }

        /// Beta's plain files stand still, so nothing of its journal becomes free. (On alpha memory is used up first.) The
        /// writers wait, nothing that was answered is lost, and it goes on when the files do.
        @Test func failure23AFullJournalHoldsTheWritersUpAndLosesNothing() throws {
            try Harness.withDisks { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let (alpha, beta) = (cluster.alpha, cluster.beta)
                let lines = try LineWriter(cluster, on: alpha)
                let much: RoomProcess
                try beta.room.freezeFileSystem(at: RoomDisk.files)
                do {
                    // More than the journal holds.
                    much = try alpha.room.start(
                        [
                            "dd", "if=/dev/urandom", "of=\(Cluster.path)/much", "bs=1M", "count=100", "conv=fsync",
                            "status=none",
                        ], as: "much")
                    // What is left is less than the largest batch and what control records need.
                    try cluster.waitFor(beta, "has a full journal") { $0.journalFreeBytes.map { $0 < 8 << 20 } == true }
                    usleep(2_000_000)
                    try #require(much.isRunning, "it was told that all is written")
                    for node in cluster.nodes { try #require(cluster.status(node)?.problem == "") }
                } catch {
                    try? beta.room.thawFileSystem(at: RoomDisk.files)
                    throw error
                }
                try beta.room.thawFileSystem(at: RoomDisk.files)
                let status = try much.waitForEnd(within: Small.stepSecondsMax)
                try #require(status == 0, "the writer failed: \(much.logTail(lines: 3))")
                try lines.process.killNow()
                try #require(cluster.serving()?.name == alpha.name, "it changed rooms")
                try cluster.waitUntilInSync(within: 2 * Small.stepSecondsMax)
                try client.waitForTransfers(within: Small.stepSecondsMax)
                try cluster.expectWellAfterwards(client, guardian)
                for node in cluster.nodes { try lines.expectAllLines(on: node) }
            }
        }
    }
}

extension Cluster {
    /// Changes one letter of `text` ("k" to "j" and back), wherever a node's journal has it.
    func damageJournal(of node: ClusterNode, at text: String) throws {
        let path = stateFile(node, "journal")
        let bytes = try #require(FileManager.default.contents(atPath: path))
        var places: [Int] = []
        var at = bytes.startIndex
        while let range = bytes.range(of: Data(text.utf8), in: at..<bytes.endIndex) {
            places.append(range.lowerBound)
            at = range.upperBound
        }
        try #require(!places.isEmpty, "no record of it in the journal of \(node.name)")
        let handle = try #require(FileHandle(forUpdatingAtPath: path))
        defer { try? handle.close() }
        for place in places {
            try handle.seek(toOffset: UInt64(place + 3))
            try handle.write(contentsOf: [bytes[place + 3] ^ 1])
        }
        try handle.synchronize()
    }
}
