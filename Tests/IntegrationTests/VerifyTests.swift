//  Bytes go bad in the plain files, behind Lockstep's back, while the application runs: `lockstep verify` finds them and
//  repairs them from the side that the journal proves right. Line 37 of the table of failures.
import Foundation
import Rooms
import Testing

extension WholeSystem {
    @Suite struct VerifyTests {
        private static let file = "kept.bin"

        private func verify(_ cluster: Cluster, _ arguments: String...) throws -> (status: Int32, output: String) {
            let output = try cluster.alpha.room.run(
                [
                    Cluster.programs + "/lockstep", "verify", "--config", Cluster.configurationFile, "--node", "alpha",
                ] + arguments, within: 120)
            return (output.status, output.output)
        }

        /// Changes one byte of a plain file and leaves its time as it was, as a bad disk would.
        private func flip(_ cluster: Cluster, on node: ClusterNode, at offset: Int) throws {
            let path = node.room.hostPath(Cluster.backing + "/" + VerifyTests.file)
            var before = stat()
            try #require(lstat(path, &before) == 0)
            let fd = open(path, O_RDWR)
            try #require(fd >= 0)
            defer { close(fd) }
            var byte: UInt8 = 0
            try #require(pread(fd, &byte, 1, off_t(offset)) == 1)
            byte ^= 0x10
            try #require(pwrite(fd, &byte, 1, off_t(offset)) == 1)
            try #require(fsync(fd) == 0 && futimens(fd, [before.st_atim, before.st_mtim]) == 0)
        }

        /// The file as a reader of the mirrored directory sees it, what is cached included.
        private func sum(_ cluster: Cluster, _ path: String, on node: ClusterNode) throws -> String {
            try node.room.succeed(["sha256sum", path]).split(separator: " ").first.map(String.init) ?? ""
        }

        @Test func failure37FlippedBytesInThePlainFilesAreFoundAndRepairedWhileTheApplicationWrites() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let mounted = Cluster.path + "/" + VerifyTests.file
                let plain = Cluster.backing + "/" + VerifyTests.file
                try cluster.alpha.room.succeed([
                    "dd", "if=/dev/urandom", "of=" + mounted, "bs=64k", "count=64", "conv=fsync", "status=none",
                ])
                let good = try sum(cluster, mounted, on: cluster.alpha)
                let equal = try verify(cluster)
                try #require(equal.status == 0, "\(equal.output)")
                try #require(equal.output.contains("no difference"))

                for node in [cluster.beta, cluster.alpha] {
                    try flip(cluster, on: node, at: 1_000_003)
                    try #require(try sum(cluster, plain, on: node) != good)
                    if node.name == "alpha" {
                        // The kernel forgets the good copy, and a reader gets the bad one into its cache.
                        try cluster.alpha.room.succeed([
                            "dd", "if=/dev/null", "of=" + mounted, "oflag=nocache", "conv=notrunc,fdatasync", "count=0",
                            "status=none",
                        ])
                        _ = try sum(cluster, mounted, on: cluster.alpha)
                    }
                    let found = try verify(cluster)
                    try #require(found.status == 3, "\(found.output)")
                    try #require(found.output.contains("/\(VerifyTests.file): bytes 999424 to 1003519 differ"))
                    let repaired = try verify(cluster, "--repair", mounted)
                    try #require(repaired.status == 4, "\(repaired.output)")
                    try #require(repaired.output.contains("\(cluster.other(than: node).name) was right"))
                    for both in [cluster.alpha, cluster.beta] {
                        try #require(try sum(cluster, plain, on: both) == good, "\(both.name)")
                    }
                    try #require(try sum(cluster, mounted, on: cluster.alpha) == good, "what is cached was forgotten")
                    try #require(try verify(cluster).status == 0)
                }
                let log = try String(contentsOfFile: #require(cluster.daemon(cluster.alpha)).log, encoding: .utf8)
                try #require(log.contains("the two rooms differ: /\(VerifyTests.file)"))
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        @Test func aVerificationWaitsForALostNodeAndGoesOn() throws {
            let slow: (String) -> String = { Small.configuration($0) + "\n[verify]\nrateMebibytesPerSecond = 2\n" }
            try Harness.withCluster(configure: slow) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                try cluster.alpha.room.succeed([
                    "dd", "if=/dev/urandom", "of=" + Cluster.path + "/" + VerifyTests.file, "bs=1M", "count=24",
                    "conv=fsync", "status=none",
                ])
                let begun = try verify(cluster, "--background")
                try #require(begun.status == 0, "\(begun.output)")
                try cluster.lose(cluster.beta)
                let alone = try cluster.waitFor(cluster.alpha, "goes on alone") { $0.role == "ALONE" }
                try #require(alone.text.contains("beta is not in sync"))
                try cluster.bringBack(cluster.beta)
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                // Joins the one under way.
                let result = try verify(cluster)
                try #require(result.status == 0, "\(result.output)")
                try cluster.expectWellAfterwards(client, guardian)
            }
        }
    }
}
