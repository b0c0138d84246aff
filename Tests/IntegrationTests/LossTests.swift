//  A node or the witness is lost, or cut off: who serves, who waits, and for whom. Lines 1, 2, 9, 20 and 21 of the table
//  of failures; the numbers are in the names.
import Foundation
import Rooms
import Testing

extension WholeSystem {
    @Suite struct LossTests {
        /// Both run; beta is lost, alpha goes on alone and writes what beta does not have.
        private func loseBeta(_ cluster: Cluster, _ client: HarnessClient) throws {
            try cluster.lose(cluster.beta)
            try cluster.waitFor(cluster.alpha, "goes on alone") { $0.role == "ALONE" }
            try client.waitForTransfers(within: Small.stepSecondsMax)
        }

        /// Beta runs, reaches the witness and cannot reach alpha: it must wait and say for whom.
        private func expectBetaWaitsForAlpha(_ cluster: Cluster) throws {
            let status = try cluster.waitFor(cluster.beta, "waits for alpha") {
                $0.role == "WAIT" && $0.reason == "behind"
            }
            try #require(status.explanation.contains("alpha"))
            try #require(status.color == "red")
            try cluster.watchThatDoesNotServe(cluster.beta, for: Small.temptationSeconds)
            try #require(cluster.status(cluster.beta)?.reason == "behind")
            // And in the words that an administrator sees first.
            let words = try cluster.beta.room.run([
                Cluster.programs + "/lockstep", "status", "--config", Cluster.configurationFile, "--node", "beta",
            ])
            try #require(words.status == 11)
            try #require(words.output.contains("alpha"))
        }

        @Test func failure01StaleNodeWaitsForTheOneThatWroteAlone() throws {
            // Even a short wait of a lone restarted node must not make a stale one serve.
            try Harness.withCluster(configure: Small.configuration(loneRestartSeconds: 2)) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                try loseBeta(cluster, client)
                try cluster.lose(cluster.alpha)
                try cluster.bringBack(cluster.beta)
                try expectBetaWaitsForAlpha(cluster)

                try cluster.bringBack(cluster.alpha)
                try cluster.expectWellAfterwards(client, guardian)
                try #require(cluster.status(cluster.alpha)?.role == "PRIM")
            }
        }

        @Test func failure02LonePrimaryWithoutWitnessFreezesAndStaleNodeIsNotPromoted() throws {
            try Harness.withCluster(configure: Small.configuration(loneRestartSeconds: 2)) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                try loseBeta(cluster, client)
                // Alpha lives, but nobody hears it; beta returns and hears only the witness.
                try cluster.building.cut(between: cluster.alpha.room, and: cluster.witness)
                try cluster.building.cut(between: cluster.alpha.room, and: cluster.beta.room)
                try cluster.waitFor(cluster.alpha, "freezes") { $0.role == "FROZEN" }
                try waitUntil("nobody has the address", within: 10) { cluster.addressHolders().isEmpty }
                let frozen = bootSeconds()
                try cluster.bringBack(cluster.beta)
                try expectBetaWaitsForAlpha(cluster)
                try #require(client.service.count(since: frozen) == 0, "something was acknowledged while nobody served")
                try #require(cluster.status(cluster.alpha)?.role == "FROZEN")

                // The held transfers come through when the witness is heard again.
                let before = bootSeconds()
                try cluster.building.restore(between: cluster.alpha.room, and: cluster.witness)
                try cluster.waitFor(cluster.alpha, "thaws") { $0.role == "ALONE" }
                try client.waitForTransfers(since: before, within: Small.stepSecondsMax)
                try cluster.building.restoreAll()
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        @Test func failure09CutBetweenTheRoomsLeavesThePrimaryServingAlone() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let cut = bootSeconds()
                try cluster.building.cut(between: cluster.alpha.room, and: cluster.beta.room)
                try cluster.waitFor(cluster.alpha, "goes on alone") { $0.role == "ALONE" }
                try client.waitForTransfers(within: Small.stepSecondsMax)
                try #require(client.service.longestPause(from: cut, to: bootSeconds()) < 10)

                try cluster.watchThatDoesNotServe(cluster.beta, for: Small.temptationSeconds)
                let beta = try cluster.waitFor(cluster.beta, "stands by") { $0.role == "WAIT" }
                try #require(beta.color == "red")
                try #require(cluster.addressHolders().map(\.name) == ["alpha"])

                try cluster.building.restoreAll()
                try cluster.expectWellAfterwards(client, guardian)
                try #require(cluster.status(cluster.alpha)?.role == "PRIM")
            }
        }

        @Test func failure20PrimaryWithoutAnybodyFreezesAndResumesWhenTheWitnessReturns() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                // The loss of the witness alone stops nothing.
                try #require(cluster.witnessProcess).killNow()
                try cluster.waitFor(cluster.alpha, "misses the witness") { $0.witnessState == "silent" }
                try client.waitForTransfers(within: Small.stepSecondsMax)
                let decision = try #require(cluster.status(cluster.alpha)).decision

                try cluster.lose(cluster.beta)
                try cluster.waitFor(cluster.alpha, "freezes") { $0.role == "FROZEN" }
                try waitUntil("nobody has the address", within: 10) { cluster.addressHolders().isEmpty }
                let frozen = bootSeconds()
                try cluster.watchThatDoesNotServe(cluster.alpha, for: Small.temptationSeconds)
                try #require(
                    client.service.count(since: frozen) == 0, "something was acknowledged without a second vote")
                try #require(cluster.status(cluster.alpha)?.decision == decision)

                try cluster.startWitness()
                let alone = try cluster.waitFor(cluster.alpha, "goes on alone") { $0.role == "ALONE" }
                try #require(alone.decision > decision, "it goes on without a recorded decision")
                try client.waitForTransfers(within: Small.stepSecondsMax)

                try cluster.bringBack(cluster.beta)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        @Test func failure21AfterTotalPowerLossStaleNodeAloneWaitsAndNamesTheOther() throws {
            try Harness.withCluster(configure: Small.configuration(loneRestartSeconds: 2)) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                try loseBeta(cluster, client)
                try cluster.cutPower(of: [cluster.alpha.room, cluster.witness])

                try cluster.witness.reboot()
                try cluster.startWitness()
                try cluster.bringBack(cluster.beta)
                try expectBetaWaitsForAlpha(cluster)

                try cluster.bringBack(cluster.alpha)
                try cluster.expectWellAfterwards(client, guardian)
                try #require(cluster.status(cluster.alpha)?.role == "PRIM")
            }
        }
    }
}
