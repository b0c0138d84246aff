//  lockstep-bench resync: what it takes to bring a node back, beside what the disks and a socket give in the same run.
//
//  Two nodes and a witness in rooms of their own on this machine, with a journal that is too short for what happens while
//  the second node is away:
//
//      identical   both trees are equal before the node joins: everything is compared, nothing should be sent
//      random      4 KiB writes at random places of one large file while the node is away
//      small       some of very many small files are rewritten while the node is away
//
//  Time is counted from the moment the connection begins to bring the node back until both rooms are in sync. The floor
//  does the same bytes with nothing but system calls (ResyncFloor.swift).
import ArgumentParser
import Foundation
import Node
import Rooms

struct ResyncCommand: ParsableCommand {
    enum Scenario: String, CaseIterable, ExpressibleByArgument { case identical, random, small }

    static let configuration = CommandConfiguration(
        commandName: "resync", abstract: "Measure how a node is brought back: bytes changed, bytes sent, rate.",
        discussion: """
            Needs root and the programs of a release build. Makes its own rooms (network and mount namespaces) and removes \
            them. The disk needs room for the file three times.
            """)
    @Option(help: "What to measure: identical, random, small; without it all three.") var scenario: [Scenario] = []
    @Option(help: "GiB of the large file.") var gibibytes = 10.0
    @Option(help: "Per cent of the large file's 4 KiB blocks that are written.") var percent = 1.0
    @Option(help: "Small files.") var files = 100_000
    @Option(help: "Of those, files that are rewritten.") var changedFiles = 1000
    @Option(help: "The directory of lockstepd and the others; by default this program's own.") var binaries: String?
    @Option(help: "The directory of the shipped configuration files.") var etc = "etc"
    @Flag(help: "Print the results as JSON instead of a table.") var json = false

    func validate() throws {
        guard gibibytes > 0, gibibytes <= 1024, percent > 0, percent <= 100 else {
            throw ValidationError("--gibibytes must be up to 1024 and --percent up to 100.")
        }
        guard files > 0, files <= 10_000_000, changedFiles > 0, changedFiles <= files else {
            throw ValidationError("--files must be 1 to 10000000, and --changed-files not more than that.")
        }
    }

    func run() throws {
        let wanted = Set(scenario.isEmpty ? Scenario.allCases : scenario)
        var cells: [ResyncCell] = []
        if !json { print(ResyncCell.header) }
        func note(_ cell: ResyncCell) {
            cells.append(cell)
            if !json { print(cell.line) }
        }
        if !wanted.isDisjoint(with: [.identical, .random]) {
            let blocks = Int(gibibytes * Double(1 << 30)) / ResyncTree.blockBytes
            let tree = ResyncTree(files: 1, blocksOfFile: blocks, filesOfDirectory: 1)
            try with(tree, binaries ?? ownDirectory.path) { trial in
                if wanted.contains(.identical) { note(try trial.join()) }
                guard wanted.contains(.random) else { return }
                note(
                    try trial.comeback(
                        "random", changes: tree.randomBlocks(max(1, Int(Double(blocks) * percent / 100)))))
            }
        }
        if wanted.contains(.small) {
            let tree = ResyncTree(files: files, blocksOfFile: 1, filesOfDirectory: 1000)
            try with(tree, binaries ?? ownDirectory.path) { trial in
                note(try trial.comeback("small", changes: tree.randomFiles(changedFiles)))
            }
        }
        guard json else { return }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        print(String(decoding: try encoder.encode(cells), as: UTF8.self))
    }

    private func with(_ tree: ResyncTree, _ binaries: String, _ body: (ResyncTrial) throws -> Void) throws {
        let cluster = try Cluster(binaries: binaries, etc: etc) { text in
            // The shortest journal there is: it must not reach back.
            text.replacing("mode = \"balanced\"", with: "mode = \"balanced\"\njournal.sizeMebibytes = 64")
        }
        defer { cluster.close() }
        try body(try ResyncTrial(cluster, tree))
    }
}

/// One measurement.
struct ResyncCell: Codable {
    var scenario: String
    /// `journal`, `ranges` or `comparison`.
    var kind: String
    var changedBytes: Int
    var sentBytes: Int
    /// Bytes sent by bytes changed; nil where nothing was changed.
    var sentRatio: Double?
    var seconds: Double
    /// What was changed, or for a comparison what was compared, in MB (10^6 bytes) a second.
    var megabytesPerSecond: Double
    var floorMegabytesPerSecond: Double
    /// Of the floor's rate.
    var rateRatio: Double

    static let header =
        "scenario   kind         changed MB   sent MB  sent/changed  seconds      MB/s  floor MB/s  rate/floor"

    var line: String {
        func column(_ text: String, _ width: Int) -> String {
            String(repeating: " ", count: max(0, width - text.count)) + text
        }
        func number(_ value: Double, _ digits: Int, _ width: Int) -> String {
            column(String(format: "%.\(digits)f", value), width)
        }
        return scenario.padding(toLength: 11, withPad: " ", startingAt: 0)
            + kind.padding(toLength: 11, withPad: " ", startingAt: 0)
            + number(Double(changedBytes) / 1e6, 2, 12) + number(Double(sentBytes) / 1e6, 2, 10)
            + column(sentRatio.map { String(format: "%.3f", $0) } ?? "-", 14) + number(seconds, 2, 9)
            + number(megabytesPerSecond, 1, 10) + number(floorMegabytesPerSecond, 1, 12) + number(rateRatio, 2, 12)
    }
}

/// A cluster whose two trees were equal before it was started.
struct ResyncTrial {
    private let cluster: Cluster
    private let tree: ResyncTree
    private let joined: ResyncCell

    init(_ cluster: Cluster, _ tree: ResyncTree) throws {
        self.cluster = cluster
        self.tree = tree
        let near = cluster.alpha.room.hostPath(Cluster.backing)
        let far = cluster.beta.room.hostPath(Cluster.backing)
        try tree.make(in: near)
        try succeedOnHost(["cp", "-a", "--reflink=never", near + "/.", far], within: 3600)
        let floor = try tree.readBoth(near, far)
        try cluster.startWitness()
        try cluster.lockstep(cluster.alpha, ["init", "--first"], within: 600)
        try cluster.lockstep(cluster.beta, ["init"], within: 600)
        try cluster.startDaemon(cluster.alpha)
        try cluster.waitUntilServing(cluster.alpha, within: 120)
        try tree.forget(near)
        try tree.forget(far)
        let sentBefore = try ResyncTrial.sentBytes(cluster)
        try cluster.startDaemon(cluster.beta)
        let seconds = try ResyncTrial.secondsUntilInSync(cluster)
        let sent = try ResyncTrial.sentBytes(cluster) - sentBefore
        let rate = Double(tree.byteCount) / seconds / 1e6
        let floorRate = Double(tree.byteCount) / floor / 1e6
        joined = ResyncCell(
            scenario: "identical", kind: "comparison", changedBytes: 0, sentBytes: sent, sentRatio: nil,
            seconds: seconds, megabytesPerSecond: rate, floorMegabytesPerSecond: floorRate, rateRatio: rate / floorRate)
    }

    func join() throws -> ResyncCell { joined }

    /// Stops the second node, makes the changes, starts it again.
    func comeback(_ name: String, changes: [ResyncTree.Block]) throws -> ResyncCell {
        guard let daemon = cluster.daemon(cluster.beta) else { throw BenchError("No daemon in the second room.") }
        try daemon.killNow()
        try waitUntil("the first node goes on alone", within: 60, every: 0.1) {
            cluster.status(cluster.alpha)?.role == "ALONE"
        }
        let mirrored = cluster.alpha.room.hostPath(Cluster.path)
        let changed = changes.count * ResyncTree.blockBytes
        try tree.fillJournal(in: mirrored)
        try tree.write(changes, in: mirrored)
        let near = cluster.alpha.room.hostPath(Cluster.backing)
        let far = cluster.beta.room.hostPath(Cluster.backing)
        try tree.forget(near)
        try tree.forget(far)
        let sentBefore = try ResyncTrial.sentBytes(cluster)
        try cluster.startDaemon(cluster.beta)
        let seconds = try ResyncTrial.secondsUntilInSync(cluster)
        let sent = try ResyncTrial.sentBytes(cluster) - sentBefore
        let kind = try ResyncTrial.kind(cluster)
        // Behind the measurement and without the node, whose files it writes once more.
        try cluster.daemon(cluster.beta)?.killNow()
        let floor = try ResyncFloor(tree, changes, from: near, to: far).seconds()
        let rate = Double(changed) / seconds / 1e6
        let floorRate = Double(changed) / floor / 1e6
        return ResyncCell(
            scenario: name, kind: kind, changedBytes: changed, sentBytes: sent,
            sentRatio: Double(sent) / Double(changed), seconds: seconds, megabytesPerSecond: rate,
            floorMegabytesPerSecond: floorRate, rateRatio: rate / floorRate)
    }

    /// From the moment the two nodes have found out how, until both are in sync: the first is watched closely, of the other
    /// the daemon says afterwards when it was. Asked at the daemon's socket, and seldom: each question takes time from the
    /// processors that are measured.
    private static func secondsUntilInSync(_ cluster: Cluster) throws -> Double {
        let socket = cluster.alpha.room.hostPath("/run/lockstep/ledger/\(cluster.alpha.name).sock")
        func status() throws -> Node.NodeStatus? {
            try throwIfInterrupted()
            return try AdminClient.call(AdminRequest(.status), path: socket, mirror: "ledger").status
        }
        var begun = 0.0
        try waitUntil("the nodes have found out how", within: 60, every: 0.002) {
            guard let status = try status() else { return false }
            begun = bootSeconds()
            return ["comparing", "streaming", "cutting"].contains(status.peer.stage)
        }
        var ended = 0.0
        try waitUntil("both rooms are in sync", within: 3600, every: 0.05) {
            guard let status = try status(), status.role == "PRIM", status.inSync else { return false }
            ended = bootSeconds() - status.sinceSeconds
            return true
        }
        return max(0.001, ended - begun)
    }

    private struct Facts: Decodable {
        struct Peer: Decodable { var sentBytes: Int }
        struct Resync: Decodable { var kind: String }
        var peer: Peer
        var resync: Resync?
    }

    private static func facts(_ cluster: Cluster) throws -> Facts {
        guard let text = cluster.status(cluster.alpha)?.text else {
            throw BenchError("The first node gives no status.")
        }
        return try JSONDecoder().decode(Facts.self, from: Data(text.utf8))
    }

    private static func sentBytes(_ cluster: Cluster) throws -> Int { try facts(cluster).peer.sentBytes }
    private static func kind(_ cluster: Cluster) throws -> String { try facts(cluster).resync?.kind ?? "none" }
}
