//  A soak: rounds of accidents, and after each one a judgement.
//
//      calm ─▶ accidents ─▶ hold ─▶ mend ─▶ in sync? ─▶ writers wait ─▶ trees equal? ─▶ every writer's notes? ─▶ calm
//
//  Both rooms have disk images for state and plain files, so that a power cut loses what their file systems had not
//  written, and a disk can be filled. With half of the seeds they are faulty disks: a cut loses all that was not flushed,
//  or a random half of it, and a disk hangs for readers too. The writers are the mirror's application: Lockstep starts, freezes and kills them.
//  Their notes lie outside of the rooms' disks and survive everything.
import Foundation
import Rooms
import Workload

final class Soak {
    struct Settings {
        var seconds: Double
        var seed: UInt64
        var writers: Int
        var patienceSeconds: Double
        var binaries: String
        var etc: String
        var logs: String?
        var keepsFiles: Bool
    }

    let settings: Settings
    let progress: Progress
    let cluster: Cluster
    var result: SoakResult
    let records: String
    /// Whether the rooms have faulty disks (Tools/faulty-disk).
    let hasFaultyDisks: Bool
    /// For what the schedule leaves open.
    var random: SeededGenerator
    /// Moments at which a node's daemon lost its memory, on the boot clock, in nanoseconds.
    var memoryLosses: [(node: String, time: UInt64)] = []
    /// What fills a disk, by node.
    var heldSpace: [String: HeldSpace] = [:]
    /// Rooms of which a disk fails.
    var brokenRooms: Set<String> = []
    /// The newest decision when the last round ended.
    var lastDecision = 0
    /// What each writer's directory was found to be at the last judgement.
    var verified: [String: FileModel] = [:]

    /// Runs to the end of the time, or to the first finding.
    static func run(_ settings: Settings, _ progress: Progress) -> SoakResult {
        var result = SoakResult(seed: settings.seed)
        progress.say("seed \(settings.seed), \(settings.writers) writers")
        do {
            let soak = try Soak(settings, progress)
            defer { soak.cluster.close() }
            do {
                try soak.run()
            } catch {
                progress.say("FINDING")
                soak.result.findings.append("\(error)")
                soak.keep()
            }
            result = soak.result
        } catch {
            result.findings.append("\(error)")
        }
        result.seconds = progress.elapsed
        return result
    }

    private init(_ settings: Settings, _ progress: Progress) throws {
        self.settings = settings
        self.progress = progress
        result = SoakResult(seed: settings.seed)
        hasFaultyDisks = (settings.seed >> 2) & 1 == 0
        random = SeededGenerator(seed: ~settings.seed)
        cluster = try Cluster(binaries: settings.binaries, etc: settings.etc) { shipped in
            shipped + "\n[journal]\nsizeMebibytes = 64\n\n[timing]\nloneRestartSeconds = 10\n"
        }
        records = cluster.building.directory + "/records"
        do {
            try FileManager.default.createDirectory(atPath: records, withIntermediateDirectories: true)
            for (index, node) in cluster.nodes.enumerated() {
                // One room has ext4, the other XFS, or both the same.
                let type = (settings.seed >> UInt64(index)) & 1 == 0 ? "ext4" : "xfs"
                try node.room.addDisk(
                    at: Disk.state.mountPoint, fileSystem: "ext4", megabytes: 320, isFaulty: hasFaultyDisks)
                try node.room.addDisk(
                    at: Disk.files.mountPoint, fileSystem: type, megabytes: 400, isFaulty: hasFaultyDisks)
                try installApplication(node)
            }
        } catch {
            cluster.close()
            throw error
        }
    }

    private func installApplication(_ node: ClusterNode) throws {
        let start = """
            #!/bin/bash
            # Starts the writers; whoever takes the mirror away kills them.
            cd /
            \(Cluster.programs)/lockstep-soak writers --directory "$LOCKSTEP_PATH" --records \(records) \
            --node "$LOCKSTEP_NODE" --writers \(settings.writers) --seed \(settings.seed) \
            </dev/null >>\(records)/writers-\(node.name).txt 2>&1 &
            exit 0

            """
        let place = node.room.hostPath("/etc/lockstep/ledger/")
        for (name, text) in [("start", start), ("stop", "#!/bin/bash\nexit 0\n")] {
            try Data(text.utf8).write(to: URL(fileURLWithPath: place + name))
            try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: place + name)
        }
    }

    private func run() throws {
        try cluster.start(within: 120)
        let guardian = AddressGuard(cluster)
        defer { guardian.stop() }
        progress.say("alpha serves, beta is in sync")
        var schedule = Schedule(seed: settings.seed)
        while progress.elapsed < settings.seconds {
            let round = schedule.next()
            progress.now("round \(round.number)")
            do {
                try play(round)
                try mend(round)
                try judge()
                try guardian.check()
            } catch {
                throw RoomsError("round \(round.number): \(error)")
            }
            result.rounds += 1
        }
    }

    private func play(_ round: Round) throws {
        for event in round.events {
            usleep(useconds_t(event.milliseconds * 1000))
            progress.say("round \(round.number): \(event.accident.text)")
            let name = String(describing: event.accident).prefix { $0 != "(" }
            result.accidents[String(name), default: 0] += 1
            try happen(event.accident)
        }
        usleep(useconds_t(round.holdMilliseconds * 1000))
    }

    // MARK: Findings

    /// Keeps what a finding can be explained with.
    private func keep() {
        for node in cluster.nodes {
            let status = cluster.status(node).map { "\($0.role), \($0.reason): \($0.explanation) \($0.problem)" }
            progress.say("         \(node.name): \(status ?? "gives no status")")
        }
        guard let logs = settings.logs else { return }
        let place = "\(logs)/seed-\(settings.seed)"
        try? FileManager.default.removeItem(atPath: place)
        try? FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: true)
        try? Data(progress.lines.joined(separator: "\n").utf8).write(to: URL(fileURLWithPath: place + "/events.txt"))
        try? Data(cluster.describe(lines: 25).utf8).write(to: URL(fileURLWithPath: place + "/status.txt"))
        _ = try? succeedOnHost(["cp", "-a", records, place])
        for room in cluster.building.rooms {
            _ = try? succeedOnHost(["mkdir", "-p", "\(place)/\(room.name)"])
            _ = try? succeedOnHost(["cp", "-a", room.directory + "/logs/.", "\(place)/\(room.name)"])
        }
        guard settings.keepsFiles else { return progress.say("kept in \(place)") }
        for node in cluster.nodes {
            for (path, name) in [(Cluster.backing, "backing"), ("/var/lib/lockstep/ledger", "state")] {
                _ = try? succeedOnHost(
                    ["cp", "-a", node.room.hostPath(path), "\(place)/\(node.name)-\(name)"],
                    within: 300)
            }
        }
        progress.say("kept in \(place)")
    }
}
