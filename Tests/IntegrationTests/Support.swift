//  What the failure tests share: a small configuration, accidents, and what must hold afterwards.
//
//  Every wait has a condition and a generous bound: the bound only ends a test that has failed. Times are asserted only
//  where a time is the promise, and then with room for a loaded machine.
import Foundation
import Rooms
import Testing

/// All tests with whole clusters, one after the other: see `Harness.turn`.
@Suite(.serialized) enum WholeSystem {}

/// Settings of the failure tests.
enum Small {
    /// Longer than any step takes on a loaded machine.
    static let stepSecondsMax = 60.0
    /// The configured grant (4 s) and half of it again: who wanted to serve wrongly would do so within this time.
    static let temptationSeconds = 6.0

    /// The shipped configuration with the smallest journal, so that a cluster starts quickly.
    static func configuration(_ shipped: String) -> String { shipped + "\n[journal]\nsizeMebibytes = 64\n" }

    /// The same, and a lone restarted node waits only so long for the other one.
    static func configuration(loneRestartSeconds: Int) -> (String) -> String {
        { configuration($0) + "\n[timing]\nloneRestartSeconds = \(loneRestartSeconds)\n" }
    }
}

extension Cluster {
    /// The room is lost: its cable is out and everything in it is killed.
    func lose(_ node: ClusterNode) throws {
        try building.cut(node.room)
        try node.room.killAll()
    }

    /// Power and cable are back, and the daemon is started.
    func bringBack(_ node: ClusterNode) throws {
        try node.room.reboot()
        try building.restore(node.room)
        try startDaemon(node)
    }

    /// Every process in these rooms is killed, as nearly at one moment as a machine can.
    func cutPower(of rooms: [Room]) throws {
        let failures = Failures()
        DispatchQueue.concurrentPerform(iterations: rooms.count) { index in
            do { try rooms[index].killAll() } catch { failures.add(error) }
        }
        if let first = failures.first { throw first }
    }

    /// Twice: both rooms are killed while a client and a writer write, and come back. Everything that was acknowledged and
    /// everything that was synced is there then, in both.
    ///
    /// - Parameters:
    ///   - before: just before the cut of a round (1 or 2), with the node that serves.
    ///   - dark: what the rooms' disks lose meanwhile.
    func expectToSurvivePowerCuts(
        before: (Int, ClusterNode) throws -> Void = { _, _ in }, dark: (Room) throws -> Void = { _ in }
    ) throws {
        let (client, guardian) = try HarnessClient.begin(self)
        defer { guardian.stop() }
        var writers: [LineWriter] = []
        for round in 1...2 {
            let serving = try #require(self.serving())
            writers.append(try LineWriter(self, on: serving))
            try client.waitForTransfers(count: 20, within: Small.stepSecondsMax)
            try before(round, serving)
            try cutPower(of: nodes.map(\.room))
            for node in nodes { try dark(node.room) }
            for node in nodes { try bringBack(node) }
            try waitUntilInSync(within: Small.stepSecondsMax)
            try client.waitForTransfers(within: Small.stepSecondsMax)
        }
        try expectWellAfterwards(client, guardian)
        for node in nodes {
            for writer in writers { try writer.expectAllLines(on: node) }
        }
    }

    /// Waits until a node's status is as wanted, and returns that status.
    @discardableResult
    func waitFor(
        _ node: ClusterNode, _ what: String, within seconds: Double = Small.stepSecondsMax,
        _ condition: (NodeStatus) -> Bool
    ) throws -> NodeStatus {
        var found: NodeStatus?
        try waitUntil("\(node.name) \(what)", within: seconds, every: 0.1) {
            found = status(node)
            return found.map(condition) == true
        }
        return try #require(found)
    }

    /// Throws if the node serves, or holds the virtual address, at any moment of the following seconds.
    func watchThatDoesNotServe(_ node: ClusterNode, for seconds: Double) throws {
        let end = bootSeconds() + seconds
        while bootSeconds() < end {
            if let status = status(node), status.serves {
                throw RoomsError("\(node.name) serves, and must not: \(status.explanation)")
            }
            guard node.room.addresses().isDisjoint(with: [Cluster.virtualAddress, Cluster.virtualAddress6]) else {
                throw RoomsError("\(node.name) holds the virtual address, and must not.")
            }
            usleep(100_000)
        }
    }

    /// What must hold after every accident: in sync, transfers go on, none is missing, the plain files are identical,
    /// and never had two nodes the address.
    func expectWellAfterwards(_ client: HarnessClient, _ guardian: AddressGuard) throws {
        try waitUntilInSync(within: Small.stepSecondsMax)
        try client.waitForTransfers(within: Small.stepSecondsMax)
        try client.stopAndVerify()
        try expectIdenticalTrees(within: Small.stepSecondsMax)
        guardian.stop()
        try guardian.check()
    }

    /// A file of a node's state directory, as the host sees it.
    func stateFile(_ node: ClusterNode, _ name: String) -> String {
        node.room.hostPath("/var/lib/lockstep/ledger/" + name)
    }

    /// Whether the bytes occur in a node's journal. Records are stored as they are, so a name or text can be looked for.
    func journal(of node: ClusterNode, contains text: String) throws -> Bool {
        // A mapping of a file that is written with O_DIRECT may be stale: drop what is cached first.
        try node.room.run(
            [
                "sh", "-c", "dd of=$0 oflag=nocache conv=notrunc,fdatasync count=0 status=none; grep -c -a -F -- $1 $0",
                "/var/lib/lockstep/ledger/journal", text,
            ]
        ).status == 0
    }
}

/// Collects errors of several threads.
private final class Failures: @unchecked Sendable {
    /// Protected by `lock`.
    private var errors: [any Error] = []
    private let lock = NSLock()
    func add(_ error: any Error) { lock.withLock { errors.append(error) } }
    var first: (any Error)? { lock.withLock { errors.first } }
}

extension HarnessClient {
    /// A client and a look at the addresses, both from the beginning of a story.
    static func begin(_ cluster: Cluster) throws -> (client: HarnessClient, guardian: AddressGuard) {
        let guardian = AddressGuard(cluster)
        return (try HarnessClient(cluster, within: Small.stepSecondsMax), guardian)
    }
}

/// A process in a node's room, outside the application, that appends lines to one file of the mirrored directory and
/// notes each line whose write and fsync have returned. Nobody stops it in order: it is what "in flight" means.
struct LineWriter {
    let cluster: Cluster
    let process: RoomProcess
    private let notes: String
    private static let file = "lines.txt"

    /// - Parameter syncs: each line is noted when its fsync has returned; else when its write has.
    init(_ cluster: Cluster, on node: ClusterNode, syncs: Bool = true) throws {
        self.cluster = cluster
        notes = "\(cluster.building.directory)/noted-\(UInt32.random(in: 0..<UInt32.max))"
        // The word makes lines of several writers distinct.
        let word = String(UInt64.random(in: 0...UInt64.max), radix: 36)
        process = try node.room.start(
            [
                "bash", "-c",
                """
                i=0
                while :; do
                    i=$((i + 1))
                    if echo "$2 $i" | dd of="$0" oflag=append "conv=$3" status=none; then
                        echo "$2 $i" >>"$1"
                    else
                        sleep 0.05
                    fi
                done
                """, Cluster.path + "/" + LineWriter.file, notes, word,
                syncs ? "notrunc,fsync" : "notrunc",
            ], as: "line-writer")
        try waitUntil("the line writer has written", within: Small.stepSecondsMax) { count >= 3 }
    }

    private func lines(_ path: String) -> [Substring] {
        let data = FileManager.default.contents(atPath: path) ?? Data()
        let text = String(decoding: data, as: UTF8.self)
        return text[..<(text.lastIndex(of: "\n") ?? text.startIndex)].split(separator: "\n")
    }

    /// Lines whose fsync (or write) has returned.
    var count: Int { lines(notes).count }

    /// Throws if a noted line is missing in the plain files of a node.
    func expectAllLines(on node: ClusterNode) throws {
        let noted = lines(notes)
        let present = Set(lines(node.room.hostPath(Cluster.backing + "/" + LineWriter.file)))
        let missing = noted.filter { !present.contains($0) }
        guard missing.isEmpty, !noted.isEmpty else {
            throw RoomsError(
                "On \(node.name) \(missing.count) of \(noted.count) noted lines are missing: \(missing.prefix(5))")
        }
    }
}
