import Format
//  Whatever connects, and whatever lies in the configuration or on the disk, is looked at before it is believed. Lines 29,
//  33 and 38 of the table of failures, and the refusals that an administrator meets.
import Foundation
import Rooms
import Testing

extension WholeSystem {
    @Suite struct StrangerTests {
        /// Sends bytes from a room to a port and returns what comes back until the other side closes.
        ///
        /// - Throws: if the connection is not closed in time.
        @discardableResult
        private func converse(_ cluster: Cluster, from room: Room, with endpoint: String, _ bytes: [UInt8]) throws
            -> [UInt8]
        {
            let file = "\(cluster.building.directory)/stranger"
            try Data(bytes).write(to: URL(fileURLWithPath: file))
            let output = try room.run(
                [
                    "bash", "-c", "exec 3<>/dev/tcp/$0; cat $1 >&3; timeout 20 cat <&3 >$1.answer", endpoint, file,
                ], within: 40)
            try #require(output.status != 124, "\(endpoint) did not close the connection")
            return Array(FileManager.default.contents(atPath: file + ".answer") ?? Data())
        }

        private func text(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }

        /// Lines of a log that name a source and say that its connection was closed.
        private func complaints(_ process: RoomProcess, about source: String) throws -> [Substring] {
            let log = try String(contentsOfFile: process.log, encoding: .utf8)
            return log.split(separator: "\n").filter { $0.contains("connection closed") && $0.contains(source + ":") }
        }

        private func hello(
            _ voter: Voter, _ channel: Hello.Channel, session: UInt64 = 1, name: String = "ledger",
            mirror: MirrorID = .none
        ) -> [UInt8] {
            let body = Hello(channel: channel, voter: voter, mirrorName: name, session: session).encoded()
            let header = FrameHeader(
                type: .hello, bodyLength: body.count, session: session, epoch: .none, mirror: mirror)
            return header.encoded(body: body) + body
        }

        @Test func failure38GarbageOnAnyPortIsClosedLoggedOnceAndChangesNothing() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let epoch = try #require(cluster.status(cluster.alpha)).epoch
                let stranger = cluster.client
                let begin = bootSeconds()

                var generator = SystemRandomNumberGenerator()
                let noise = (0..<100_000).map { _ in UInt8.random(in: 0...255, using: &generator) }
                var endless = hello(.a, .data)
                endless.replaceSubrange(4..<8, with: [255, 255, 255, 255])
                var damaged = hello(.b, .control)
                damaged[60] ^= 1
                let attempts: [(what: String, bytes: [UInt8])] = [
                    ("noise", noise), ("a web browser", Array("GET / HTTP/1.1\r\nHost: lockstep\r\n\r\n".utf8)),
                    ("four gigabytes announced", endless), ("a checksum that does not fit", damaged),
                    ("half a header and silence", Array(hello(.a, .control).prefix(20))),
                ]
                let ports = [
                    (try #require(cluster.daemon(cluster.alpha)), "10.0.9.11/7400"),
                    (try #require(cluster.daemon(cluster.beta)), "10.0.9.12/7400"),
                    (try #require(cluster.witnessProcess), "10.0.9.13/7401"),
                ]
                for (process, endpoint) in ports {
                    for attempt in attempts {
                        do {
                            try converse(cluster, from: stranger, with: endpoint, attempt.bytes)
                        } catch {
                            throw RoomsError("\(attempt.what) to \(endpoint): \(error)")
                        }
                    }
                    let lines = try complaints(process, about: stranger.address)
                    try #require(lines.count == 1, "\(endpoint): \(lines)")
                }

                for (process, _) in ports { try #require(process.isRunning) }
                try #require(client.service.longestPause(from: begin, to: bootSeconds()) < 5)
                let status = try #require(cluster.status(cluster.alpha))
                try #require(status.epoch == epoch && status.role == "PRIM" && status.witnessState == "answering")
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        @Test func failure33NodesOfAnotherMirrorAreRefusedByNodeAndWitness() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let foreign = MirrorID(high: 0x1234_5678, low: 0x9abc_def0)
                let otherName = try converse(
                    cluster, from: cluster.client, with: "10.0.9.12/7400", hello(.a, .data, name: "payroll"))
                try #require(text(otherName).contains("not payroll"))
                let otherMirror = try converse(
                    cluster, from: cluster.client, with: "10.0.9.12/7400", hello(.a, .data, mirror: foreign))
                try #require(text(otherMirror).contains("two clusters have one name"))
                let sameSide = try converse(cluster, from: cluster.client, with: "10.0.9.12/7400", hello(.b, .control))
                try #require(text(sameSide).contains("--node"))
                let witness = try converse(
                    cluster, from: cluster.client, with: "10.0.9.13/7401", hello(.a, .control, mirror: foreign))
                try #require(text(witness).contains("ledger"), "the witness answered: \(text(witness))")
                let data = try converse(cluster, from: cluster.client, with: "10.0.9.13/7401", hello(.a, .data))
                try #require(text(data).contains("this is a witness"))
                try #require(cluster.status(cluster.alpha)?.witnessState == "answering")

                // A whole node that believes to be of another mirror: prepared anew as a first node, under the same name.
                try cluster.lose(cluster.beta)
                try cluster.waitFor(cluster.alpha, "goes on alone") { $0.role == "ALONE" }
                let state = "/var/lib/lockstep/ledger"
                try cluster.beta.room.succeed(["mv", state, state + "-kept"])
                try cluster.lockstep(cluster.beta, ["init", "--first"])
                try cluster.bringBack(cluster.beta)
                let own = try #require(cluster.status(cluster.alpha)).mirrorID
                let log = try #require(cluster.daemon(cluster.beta)).log
                try waitUntil("beta is told that its mirror is another one", within: Small.stepSecondsMax) {
                    let text = try String(contentsOfFile: log, encoding: .utf8)
                    return text.contains("two clusters have one name") && text.contains(own)
                }
                try cluster.watchThatDoesNotServe(cluster.beta, for: Small.temptationSeconds)
                try #require(cluster.status(cluster.alpha)?.role == "ALONE")
                try client.waitForTransfers(within: Small.stepSecondsMax)

                // With its own state back it belongs here again.
                try cluster.daemon(cluster.beta).map { try $0.killNow() }
                try cluster.beta.room.succeed(["rm", "-r", state])
                try cluster.beta.room.succeed(["mv", state + "-kept", state])
                try cluster.bringBack(cluster.beta)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// Old epochs, and messages of decisions and leases that were overtaken, are the simulator's: two daemons on one
        /// connection do not produce them on demand. Here are frames of an old session, as they would come from a process
        /// that died, on both channels of a real node.
        @Test func failure29FramesOfAnOldSessionAreRefusedAndCounted() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let before = try #require(cluster.status(cluster.alpha))
                let mirror = MirrorID(
                    high: try #require(UInt64(before.mirrorID.prefix(16), radix: 16)),
                    low: try #require(UInt64(before.mirrorID.suffix(16), radix: 16)))
                let frame = { (type: FrameType, session: UInt64) -> [UInt8] in
                    // Refused by its head: nobody looks at the body.
                    let body: [UInt8] = type == .batch ? [] : [1, 2, 3, 4]
                    return FrameHeader(
                        type: type, bodyLength: body.count, session: session, epoch: Epoch(rawValue: 1), mirror: mirror
                    ).encoded(body: body) + body
                }
                // As if from beta, by somebody who knows all that a process of beta knew: taken for a reconnect, and what
                // follows is of the session before.
                for (channel, type) in [(Hello.Channel.control, FrameType.quorum), (.data, .data), (.data, .batch)] {
                    let count = try #require(cluster.status(cluster.alpha)).refusedMessages
                    let bytes = hello(.b, channel, session: 7, mirror: mirror) + frame(type, 6) + frame(type, 6)
                    try converse(cluster, from: cluster.client, with: "10.0.9.11/7400", bytes)
                    try cluster.waitFor(cluster.alpha, "has counted a refused \(type)") { $0.refusedMessages > count }
                }
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }
    }
}

extension WholeSystem {
    @Suite struct RefusalTests {
        /// Runs lockstepd, which must refuse at once, and returns what it said.
        private func refused(_ cluster: Cluster, _ arguments: [String], status: Int32) throws -> String {
            let output = try cluster.alpha.room.run([Cluster.programs + "/lockstepd"] + arguments, within: 20)
            try #require(output.status == status, "status \(output.status): \(output.error)")
            return output.error
        }

        @Test func wrongConfigurationIsRefusedWithFileLineAndRemedyBeforeAnythingIsTouched() throws {
            try Harness.withRooms { cluster in
                let place = "/etc/lockstep/wrong.toml"
                let shipped = try String(
                    contentsOfFile: cluster.alpha.room.hostPath(Cluster.configurationFile), encoding: .utf8)
                let mistakes: [(from: String, to: String, words: String)] = [
                    ("mode = ", "modus = ", "modus"),
                    ("\"10.0.9.12:7400\"", "\"10.0.9.11:7400\"", "other node's address"),
                    ("\"fd00:9::1/64\"", "\"10.0.9.1/24\"", "twice"),
                    ("startTimeoutSeconds = 60", "startTimeoutSeconds = \"soon\"", "startTimeoutSeconds"),
                    ("[[node]]\nname = \"beta\"", "[[node]]\nname = \"alpha\"", "both nodes"),
                    ("startTimeoutSeconds = 60", "startTimeoutSeconds = 60\n[journal]\nsizeMebibytes = 32", "64"),
                    ("name = \"ledger\"", "name = ledger", "wrong.toml:4"),
                ]
                for mistake in mistakes {
                    let text = shipped.replacingOccurrences(of: mistake.from, with: mistake.to)
                    try #require(text != shipped)
                    try Data(text.utf8).write(to: URL(fileURLWithPath: cluster.alpha.room.hostPath(place)))
                    let words = try refused(cluster, ["--config", place, "--node", "alpha"], status: 2)
                    try #require(words.contains(mistake.words), "\(mistake.words): \(words)")
                    try #require(words.contains(/wrong\.toml:\d+/), "no file and line: \(words)")
                }
                let missing = try refused(
                    cluster, ["--config", "/etc/lockstep/none.toml", "--node", "alpha"], status: 2)
                try #require(missing.contains("/etc/lockstep/none.toml"))
                let node = try refused(
                    cluster, ["--config", Cluster.configurationFile, "--node", "gamma"], status: 2)
                try #require(node.contains("gamma") && node.contains("alpha"))
                for path in ["/var/lib/lockstep", Cluster.backing, Cluster.path] {
                    let entries = try FileManager.default.contentsOfDirectory(atPath: cluster.alpha.room.hostPath(path))
                    try #require(entries.isEmpty, "\(path) was touched: \(entries)")
                }
            }
        }

        @Test func journalOfAnotherMirrorIsRefusedAndLeftAsItIs() throws {
            try Harness.withRooms(configure: Small.configuration) { cluster in
                let arguments = ["--config", Cluster.configurationFile, "--node", "alpha"]
                // Unprepared: there is nothing that could be served.
                let unprepared = try refused(cluster, arguments, status: 1)
                try #require(unprepared.contains("lockstep init"))

                try cluster.lockstep(cluster.alpha, ["init", "--first"])
                try cluster.lockstep(cluster.beta, ["init", "--first"])
                let journal = cluster.stateFile(cluster.alpha, "journal")
                try FileManager.default.removeItem(atPath: journal)
                try FileManager.default.copyItem(atPath: cluster.stateFile(cluster.beta, "journal"), toPath: journal)
                let before = try checksum(journal)
                let words = try refused(cluster, arguments, status: 1)
                try #require(words.contains("/var/lib/lockstep/ledger/journal") && words.contains("belongs to mirror"))
                try #require(try checksum(journal) == before)
                try #require(cluster.addressHolders().isEmpty)
            }
        }

        private func checksum(_ file: String) throws -> String { try succeedOnHost(["sha256sum", file]) }
    }
}
