//  A planned move that does not go as planned: line 31 of the table of failures.
import Foundation
import Rooms
import Testing

extension WholeSystem {
    @Suite struct SwapTests {
        enum Accident: String, CaseIterable {
            case sourceRoomLost, targetRoomLost, sourceDaemonKilled, targetDaemonKilled
        }

        @Test func swapMovesTheServiceThereAndBack() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                for (source, target) in [(cluster.alpha, cluster.beta), (cluster.beta, cluster.alpha)] {
                    try cluster.lockstep(source, ["swap"])
                    try cluster.waitUntilServing(target, within: Small.stepSecondsMax)
                    try client.waitForTransfers(within: Small.stepSecondsMax)
                    try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                }
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// The steps of a swap (stop the application, drain, hand over the lease, register, open, start) take about a second
        /// together; the accident comes at a moment drawn from there, a different one in each run. Every interleaving of the
        /// messages alone is the simulator's.
        @Test(arguments: Accident.allCases)
        func failure31InterruptedSwapLeavesOnePrimaryAndLosesNothing(accident: Accident) throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                for delay in [Double.random(in: 0...0.4), Double.random(in: 0.4...1.5)] {
                    do {
                        try interrupt(cluster, client, accident, after: delay)
                    } catch {
                        throw RoomsError("\(accident), \(delay) s after the swap began: \(error)")
                    }
                    try guardian.check()
                }
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        private func interrupt(
            _ cluster: Cluster, _ client: HarnessClient, _ accident: Accident, after delay: Double
        ) throws {
            let source = try #require(cluster.serving())
            let target = cluster.other(than: source)
            let victim = accident == .sourceRoomLost || accident == .sourceDaemonKilled ? source : target
            // The command itself may well fail.
            _ = try source.room.start(
                [
                    Cluster.programs + "/lockstep", "swap", "--config", Cluster.configurationFile, "--node",
                    source.name,
                ], as: "swap")
            usleep(useconds_t(delay * 1e6))
            switch accident {
            case .sourceRoomLost, .targetRoomLost:
                try cluster.lose(victim)
                try waitUntil("one node serves", within: Small.stepSecondsMax, every: 0.1) { cluster.serving() != nil }
                try client.waitForTransfers(within: Small.stepSecondsMax)
                try cluster.bringBack(victim)
            case .sourceDaemonKilled, .targetDaemonKilled:
                // Its application and its mount outlive it; the next daemon finds them.
                try cluster.daemon(victim).map { try $0.killNow() }
                try cluster.startDaemon(victim)
            }
            try cluster.waitUntilInSync(within: Small.stepSecondsMax)
            try client.waitForTransfers(within: Small.stepSecondsMax)
        }
    }
}
