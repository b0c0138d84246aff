//  A node is away for longer than the journal reaches back: only what has changed is sent, whatever dies on the way, and
//  nothing is forgotten because somebody believes that both are in sync. Lines 13 and 17 of the table of failures.
import Foundation
import Rooms
import Testing

extension WholeSystem {
    @Suite struct RangesTests {
        /// MiB of the file that stays as it is for the most part.
        private static let fileMebibytes = 48

        /// A file much larger than what will change of it, in both rooms.
        private func prepare(_ cluster: Cluster) throws {
            try run(
                cluster,
                """
                mkdir -p old/deep && for i in $(seq 200); do echo $i > old/deep/$i; done
                dd if=/dev/urandom of=large bs=1M count=\(RangesTests.fileMebibytes) conv=fsync status=none
                """)
            try cluster.waitUntilInSync(within: Small.stepSecondsMax)
        }

        private func run(_ cluster: Cluster, _ script: String) throws {
            let node = try #require(cluster.serving())
            try node.room.succeed(["bash", "-ec", "cd \(Cluster.path); " + script], within: 300)
        }

        /// Some MiB all over the file, new, moved, removed, cut and punched files; and more than the journal holds, all
        /// of it in one place.
        private func change(_ cluster: Cluster) throws {
            try run(
                cluster,
                """
                for i in $(seq 0 7); do
                    dd if=/dev/urandom of=large bs=1M count=1 seek=$((i * 6)) conv=notrunc status=none
                done
                mkdir new && for i in $(seq 100); do echo $i$i > new/$i; done
                mv old/deep new/deeper && rm new/deeper/7 && ln new/deeper/8 old/eight && ln -s nowhere new/link
                head -c 100000 /dev/urandom > cut && truncate -s 5000 cut && truncate -s 90000 cut
                fallocate -p -o 40960 -l 81920 large && chmod 640 new/deeper/9 && touch -d 2001-01-01 new/deeper/10
                for i in $(seq 90); do
                    dd if=/dev/urandom of=large bs=1M count=1 conv=notrunc,fsync status=none
                done
                """)
        }

        private func kind(_ status: NodeStatus) -> String {
            let object = try? JSONSerialization.jsonObject(with: Data(status.text.utf8)) as? [String: Any]
            return ((object?["resync"] as? [String: Any])?["kind"] as? String) ?? ""
        }

        private func expectRanges(_ cluster: Cluster) throws {
            try cluster.waitUntilInSync(within: Small.stepSecondsMax)
            let serving = try #require(cluster.serving())
            let status = try #require(cluster.status(serving))
            try #require(kind(status) == "ranges", "brought back by \(kind(status))")
            let sent = try #require(status.resyncSentBytes)
            // 9 MiB of the file, and what the ledger did meanwhile.
            try #require(sent < RangesTests.fileMebibytes << 19, "\(sent) bytes were sent")
        }

        @Test func aNodeThatWasAwayForLongGetsOnlyWhatChanged() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                try prepare(cluster)
                try cluster.lose(cluster.beta)
                try cluster.waitFor(cluster.alpha, "goes on alone") { $0.role == "ALONE" }
                try change(cluster)
                try cluster.bringBack(cluster.beta)
                try expectRanges(cluster)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// Both nodes die while ranges are sent, and the returning one has long been told, by an old decision, that it is
        /// in sync.
        @Test func failure17ChangesToMakeUpSurviveEveryCrashAndAreNeverClearedByAClaim() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                try prepare(cluster)
                // Beta is cut off and dies with "both are in sync" on its disk.
                try cluster.lose(cluster.beta)
                try cluster.waitFor(cluster.alpha, "goes on alone") { $0.role == "ALONE" }
                try change(cluster)
                // The memory of what is owed goes with the process; it has the shape of a restart in service.
                try cluster.lose(cluster.alpha)
                try cluster.bringBack(cluster.beta)
                try cluster.watchThatDoesNotServe(cluster.beta, for: Small.temptationSeconds)
                try cluster.bringBack(cluster.alpha)
                try waitUntil("beta's copy is being brought up to date", within: Small.stepSecondsMax, every: 0.02) {
                    cluster.status(cluster.beta).map { $0.text.contains("\"usable\" : false") } ?? false
                }
                try cluster.cutPower(of: [cluster.alpha.room, cluster.beta.room])
                try cluster.bringBack(cluster.beta)
                try cluster.watchThatDoesNotServe(cluster.beta, for: Small.temptationSeconds)
                try cluster.bringBack(cluster.alpha)
                try expectRanges(cluster)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }
    }
}
