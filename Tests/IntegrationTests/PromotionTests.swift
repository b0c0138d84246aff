//  The only node in sync is lost for good: what an administrator can do, what is lost, and what becomes of it. Lines 3,
//  10, 18 and 34 of the table of failures.
import Foundation
import Rooms
import Testing

extension WholeSystem {
    @Suite struct PromotionTests {
        private func promote(_ cluster: Cluster, _ node: ClusterNode, _ arguments: [String] = []) throws
            -> (status: Int32, text: String)
        {
            let output = try node.room.run(
                [
                    Cluster.programs + "/lockstep", "promote", "--config", Cluster.configurationFile, "--node",
                    node.name,
                ] + arguments, within: 90)
            return (output.status, output.output + output.error)
        }

        /// Writes and fsyncs a file in the mirrored directory.
        private func write(_ text: String, to name: String, on node: ClusterNode) throws {
            try node.room.succeed([
                "sh", "-c", "printf %s \"$1\" | dd of=\"$0\" conv=fsync status=none", Cluster.path + "/" + name, text,
            ])
        }

        private func content(_ name: String, on node: ClusterNode) -> String? {
            FileManager.default.contents(atPath: node.room.hostPath(Cluster.backing + "/" + name))
                .map { String(decoding: $0, as: UTF8.self) }
        }

        /// The answer of `lockstep promote --json`, and its exit status.
        private func promoteAsJSON(_ cluster: Cluster, _ node: ClusterNode, _ arguments: [String] = []) throws
            -> (status: Int32, answer: [String: Any])
        {
            let output = try node.room.run(
                [
                    Cluster.programs + "/lockstep", "promote", "--json", "--config", Cluster.configurationFile,
                    "--node", node.name,
                ] + arguments, within: 90)
            let object = try JSONSerialization.jsonObject(with: Data(output.output.utf8)) as? [String: Any]
            return (output.status, try #require(object, "\(output)"))
        }

        /// What docs/operations.md says of it.
        private func expectKeys(_ answer: [String: Any]) throws {
            let always: Set<String> = [
                "node", "otherNode", "lastRecord", "lastRecordEpoch", "knownDecision", "knownEpoch", "knownInSync",
                "daemonSeconds", "witness", "lost",
            ]
            let sometimes: Set<String> = [
                "refusal", "lastRecordTime", "lastRecordAgeSeconds", "knownPrimary", "otherHeardSeconds",
            ]
            try #require(Set(answer.keys) == ["report", "outcome"])
            let report = try #require(answer["report"] as? [String: Any])
            try #require(always.isSubset(of: report.keys), "missing: \(always.subtracting(report.keys))")
            try #require(
                Set(report.keys).isSubset(of: always.union(sometimes)),
                "unknown: \(Set(report.keys).subtracting(always.union(sometimes)))")
        }

        /// Beta is lost, alpha writes alone and is lost; beta is back, and waits.
        private func strandBeta(_ cluster: Cluster) throws -> String {
            let word = String(UInt64.random(in: 0...UInt64.max), radix: 36)
            try write("both have \(word)", to: "common.txt", on: cluster.alpha)
            try cluster.lose(cluster.beta)
            try cluster.waitFor(cluster.alpha, "goes on alone") { $0.role == "ALONE" }
            try write("only alpha has \(word)", to: "lost.txt", on: cluster.alpha)
            try cluster.lose(cluster.alpha)
            try cluster.bringBack(cluster.beta)
            // Its own disk may still name both; either way it says for whom it waits.
            try cluster.waitFor(cluster.beta, "waits for alpha") {
                $0.role == "WAIT" && ["behind", "waitingForMerge"].contains($0.reason)
            }
            return word
        }

        private func expectInSyncAgain(_ cluster: Cluster, primary: ClusterNode) throws {
            try cluster.waitUntilInSync(within: Small.stepSecondsMax)
            try #require(cluster.status(primary)?.role == "PRIM")
            try cluster.expectIdenticalTrees(within: Small.stepSecondsMax)
        }

        /// The rescue journals of a node, as `lockstep status` names them: paths in its room.
        private func rescues(_ cluster: Cluster, _ node: ClusterNode) throws -> [String] {
            let text = try #require(cluster.status(node)).text
            let object = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any]
            return object?["rescues"] as? [String] ?? []
        }

        private func dump(_ node: ClusterNode, _ arguments: [String]) throws -> (status: Int32, text: String) {
            let output = try node.room.run([Cluster.programs + "/lockstep-dump"] + arguments, within: 30)
            return (output.status, output.output + output.error)
        }

        @Test func failure34AStaleNodeIsPromotedByForceTheLossIsNamedAndTheLostWritesAreSaved() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let guardian = AddressGuard(cluster)
                defer { guardian.stop() }
                // While alpha serves nobody is promoted, whatever is said.
                let early = try promote(cluster, cluster.beta, ["--accept-loss"])
                try #require(early.status == 1 && early.text.contains("alpha serves"), "\(early)")
                let word = try strandBeta(cluster)

                // The same for programs.
                let asJSON = try promoteAsJSON(cluster, cluster.beta)
                try expectKeys(asJSON.answer)
                let report = try #require(asJSON.answer["report"] as? [String: Any])
                try #require(asJSON.status == 1 && asJSON.answer["outcome"] as? String == "notOrdered")
                try #require(report["node"] as? String == "beta" && report["otherNode"] as? String == "alpha")
                try #require(report["refusal"] == nil && (report["lost"] as? [String])?.isEmpty == false)
                try #require((report["lastRecord"] as? Int ?? 0) > 0 && report["lastRecordTime"] is String)

                // Asked without the flag: the loss is named, and nothing is changed.
                let decision = try #require(cluster.status(cluster.beta)).decision
                let asked = try promote(cluster, cluster.beta)
                try #require(asked.status == 1)
                for needed in ["LOST", "record", "alpha", "epoch", "written at", "--accept-loss"] {
                    try #require(asked.text.contains(needed), "\(needed) is not in: \(asked.text)")
                }
                try cluster.watchThatDoesNotServe(cluster.beta, for: Small.temptationSeconds)
                try #require(cluster.status(cluster.beta)?.decision == decision)

                let done = try promote(cluster, cluster.beta, ["--accept-loss"])
                try #require(done.status == 0, "\(done)")
                let status = try cluster.waitFor(cluster.beta, "serves alone") { $0.role == "ALONE" }
                try #require(status.statements.contains { $0.contains("promoted by force") })
                try #require(content("common.txt", on: cluster.beta) == "both have \(word)")
                try #require(content("lost.txt", on: cluster.beta) == nil)
                try write("only since", to: "new.txt", on: cluster.beta)
                let client = try HarnessClient(cluster, within: Small.stepSecondsMax)

                // The loser returns: what only it has is saved, then it follows.
                try cluster.bringBack(cluster.alpha)
                try expectInSyncAgain(cluster, primary: cluster.beta)
                for node in cluster.nodes {
                    try #require(content("new.txt", on: node) == "only since")
                    try #require(content("lost.txt", on: node) == nil)
                }
                let saved = try rescues(cluster, cluster.alpha)
                try #require(saved.count == 1)
                let listed = try dump(cluster.alpha, [saved[0]])
                try #require(listed.status == 0 && listed.text.contains("lost.txt"), "\(listed)")
                try #require(try dump(cluster.alpha, [saved[0], "--file", "lost.txt"]).text.contains("write"))
                let place = "/var/lib/lockstep/ledger/looked-at"
                let extracted = try dump(cluster.alpha, [saved[0], "--extract", place])
                try #require(extracted.status == 0, "\(extracted)")
                let words = try cluster.alpha.room.succeed([
                    "sh", "-c", "cat \(place)/*lost.txt; cat \(place)/index.tsv",
                ])
                try #require(words.contains("only alpha has \(word)") && words.contains("lost.txt"))
                try #require(try rescues(cluster, cluster.beta).isEmpty)

                // It is one mirror again: beta's room is lost, and alpha takes over with everything since.
                try client.waitForTransfers(within: Small.stepSecondsMax)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// Alpha and the witness's disk are lost: there is no second room to decide with, and only an order of its own makes
        /// beta give the new witness its memory.
        @Test func failure34AnEmptyWitnessIsSeededByForceOnlyWhenToldTo() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let guardian = AddressGuard(cluster)
                defer { guardian.stop() }
                let word = try strandBeta(cluster)
                try cluster.witness.killAll()
                try cluster.witness.reboot()
                try cluster.witness.succeed(["find", "/var/lib/lockstep-witness", "-mindepth", "1", "-delete"])
                try cluster.startWitness()
                try cluster.waitFor(cluster.beta, "finds the witness empty") { $0.witnessState == "empty" }

                let refused = try promoteAsJSON(cluster, cluster.beta, ["--accept-loss"])
                try expectKeys(refused.answer)
                try #require(refused.status == 1 && refused.answer["outcome"] as? String == "refused")
                let why = (refused.answer["report"] as? [String: Any])?["refusal"] as? String
                try #require(why?.contains("--seed-witness") == true, "\(refused)")
                try cluster.watchThatDoesNotServe(cluster.beta, for: Small.temptationSeconds)
                try #require(cluster.status(cluster.beta)?.witnessState == "empty")

                let done = try promoteAsJSON(cluster, cluster.beta, ["--accept-loss", "--seed-witness"])
                try expectKeys(done.answer)
                try #require(done.status == 0 && done.answer["outcome"] as? String == "serves", "\(done)")
                try cluster.waitFor(cluster.beta, "serves alone") { $0.role == "ALONE" }
                try write("only since", to: "new.txt", on: cluster.beta)

                try cluster.bringBack(cluster.alpha)
                try expectInSyncAgain(cluster, primary: cluster.beta)
                for node in cluster.nodes {
                    try #require(content("new.txt", on: node) == "only since")
                    try #require(content("common.txt", on: node) == "both have \(word)")
                    try #require(content("lost.txt", on: node) == nil)
                }
                try #require(try rescues(cluster, cluster.alpha).count == 1)
                try #require(cluster.status(cluster.beta)?.witnessState == "answering")
                guardian.stop()
                try guardian.check()
            }
        }

        /// Beta's votes are put back to an older state and forgotten, and alpha, which could give it new ones, is lost for
        /// good.
        @Test func failure18ANodeThatHasForgottenItsVotesIsPromotedWhenTheOtherOneIsLostForGood() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let guardian = AddressGuard(cluster)
                defer { guardian.stop() }
                let (alpha, beta) = (cluster.alpha, cluster.beta)
                let state = "/var/lib/lockstep/ledger"
                try beta.room.succeed(["cp", "-a", "\(state)/votes", "\(state)/votes.old"])
                for _ in 0..<2 {
                    try #require(cluster.daemon(beta)).killNow()
                    try cluster.startDaemon(beta)
                    try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                }
                let word = String(UInt64.random(in: 0...UInt64.max), radix: 36)
                try write("both have \(word)", to: "common.txt", on: alpha)
                try cluster.lose(beta)
                try cluster.waitFor(alpha, "goes on alone") { $0.role == "ALONE" }
                try write("only alpha has \(word)", to: "lost.txt", on: alpha)
                try cluster.lose(alpha)
                try beta.room.succeed(["mv", "\(state)/votes.old", "\(state)/votes"])
                try cluster.bringBack(beta)
                let waits = try cluster.waitFor(beta, "has forgotten its votes") { $0.reason == "notSeeded" }
                try #require(waits.role == "WAIT" && waits.explanation.contains("forgotten"), "\(waits.explanation)")
                try waitUntil("the votes are put aside", within: Small.stepSecondsMax) {
                    try beta.room.succeed(["ls", state]).split(separator: "\n").filter { $0.hasPrefix("votes") }
                        == ["votes.forgotten"]
                }
                // Its next process has none either, and waits as well.
                try #require(cluster.daemon(beta)).killNow()
                try cluster.startDaemon(beta)
                try cluster.waitFor(beta, "waits") { $0.role == "WAIT" && $0.reason == "notSeeded" }

                let asked = try promote(cluster, beta)
                try #require(asked.status == 1)
                for needed in ["LOST", "record", "alpha", "put back", "nothing was changed", "--accept-loss"] {
                    try #require(asked.text.contains(needed), "\(needed) is not in: \(asked.text)")
                }
                try cluster.watchThatDoesNotServe(beta, for: Small.temptationSeconds)
                let done = try promote(cluster, beta, ["--accept-loss"])
                try #require(done.status == 0, "\(done)")
                let status = try cluster.waitFor(beta, "serves alone") { $0.role == "ALONE" }
                try #require(status.statements.contains { $0.contains("promoted by force") })
                try #require(content("common.txt", on: beta) == "both have \(word)")
                try #require(content("lost.txt", on: beta) == nil)
                try write("only since", to: "new.txt", on: beta)
                // It is promoted for good: the next process serves by its new votes.
                try #require(cluster.daemon(beta)).killNow()
                try cluster.startDaemon(beta)
                try cluster.waitFor(beta, "serves again") { $0.role == "ALONE" }
                let client = try HarnessClient(cluster, within: Small.stepSecondsMax)

                try cluster.bringBack(alpha)
                try expectInSyncAgain(cluster, primary: beta)
                for node in cluster.nodes {
                    try #require(content("new.txt", on: node) == "only since")
                    try #require(content("lost.txt", on: node) == nil)
                }
                let saved = try rescues(cluster, alpha)
                try #require(saved.count == 1)
                let listed = try dump(alpha, [saved[0]])
                try #require(listed.status == 0 && listed.text.contains("lost.txt"), "\(listed)")
                let files = try beta.room.succeed(["ls", state]).split(separator: "\n")
                try #require(files.contains("votes") && !files.contains("votes.forgotten"), "\(files)")
                try client.waitForTransfers(within: Small.stepSecondsMax)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        @Test func failure03NoSecondHistoryWhileTheNodeThatWroteIsDown() throws {
            try Harness.withCluster(configure: Small.configuration(loneRestartSeconds: 2)) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                // Beta's daemon is stopped in order, so that its journal says that it is complete; alpha writes on.
                try #require(cluster.daemon(cluster.beta)).stop(within: 60)
                try cluster.waitFor(cluster.alpha, "goes on alone") { $0.role == "ALONE" }
                try client.waitForTransfers(within: Small.stepSecondsMax)
                let epoch = try #require(cluster.status(cluster.alpha)).epoch
                try cluster.lose(cluster.alpha)
                try cluster.startDaemon(cluster.beta)
                let waiting = try cluster.waitFor(cluster.beta, "waits for alpha") {
                    $0.role == "WAIT" && $0.reason == "behind"
                }
                try #require(waiting.explanation.contains("alpha"))
                try cluster.watchThatDoesNotServe(cluster.beta, for: Small.temptationSeconds)
                try #require(cluster.status(cluster.beta).map { $0.epoch <= epoch } == true)
                try cluster.bringBack(cluster.alpha)
                try cluster.expectWellAfterwards(client, guardian)
                try #require(cluster.status(cluster.alpha)?.role == "PRIM")
            }
        }
    }
}
