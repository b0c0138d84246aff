//  The third room is full of strangers.
import Format
import Foundation
import Rooms
import Testing

extension WholeSystem {
    @Suite struct WitnessTests {
        /// The witness may have 300 descriptors, and more strangers than that say hello, stay, and call again when they
        /// are sent away. A vote is still written, and a node that comes back finds a place.
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
                        while :; do
                            for i in $(seq 400); do
                                eval "exec $((i + 100))<>/dev/tcp/10.0.9.13/7401" && cat $0-$i >&$((i + 100))
                            done
                            touch $0-all
                        done
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
