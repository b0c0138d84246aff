//  A full comparison on request, with real processes: what lies on the other node's disk is not believed any more.
import Foundation
import Rooms
import Testing

extension WholeSystem {
    @Suite struct ResyncTests {
        private func lockstep(_ node: ClusterNode, _ arguments: String...) throws -> (status: Int32, output: String) {
            let output = try node.room.run(
                [
                    Cluster.programs + "/lockstep", "resync", "--config", Cluster.configurationFile, "--node",
                    node.name,
                ] + arguments, within: 120)
            return (output.status, output.output + output.error)
        }

        @Test func aFullComparisonOnRequestMakesTheOtherNodeEqualWhileTheApplicationWrites() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let epoch = try #require(cluster.status(cluster.alpha)).epoch
                let help = try lockstep(cluster.alpha, "--help")
                try #require(help.status == 0 && help.output.contains("never needed"))
                let elsewhere = try lockstep(cluster.beta, "--full")
                try #require(elsewhere.status == 1 && elsewhere.output.contains("does not serve"))
                let limited = try lockstep(cluster.alpha, "--rate", "200M")
                try #require(limited.status == 0, "\(limited.output)")
                for rate in ["fast", "50", "1K", "-1M", "+1M"] {
                    try #require(try lockstep(cluster.alpha, "--rate", rate).status == 2, "\(rate)")
                }
                try #require(try lockstep(cluster.alpha).status == 2)

                // A name that no record knows: only a comparison takes it away.
                let stray = cluster.beta.room.hostPath(Cluster.backing + "/stray.txt")
                try Data("nobody's".utf8).write(to: URL(fileURLWithPath: stray))
                let done = try lockstep(cluster.alpha, "--full")
                try #require(done.status == 0, "\(done.output)")
                try #require(done.output.contains("both nodes are in sync"))
                try #require(!FileManager.default.fileExists(atPath: stray))
                let status = try #require(cluster.status(cluster.alpha))
                try #require(status.epoch > epoch, "the other node left the in-sync set by a recorded decision")
                try #require(status.text.contains("\"comparison\""))
                try cluster.expectWellAfterwards(client, guardian)
            }
        }
    }
}
