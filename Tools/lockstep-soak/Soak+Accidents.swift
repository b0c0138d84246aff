//  Accidents done, and mended.
import Foundation
import Rooms
import Workload

extension Disk {
    /// In both rooms.
    var mountPoint: String {
        switch self {
        case .state: "/var/lib/lockstep"
        case .files: Cluster.backing
        }
    }
}

extension Soak {
    /// The node that serves now; the one that did last if none does.
    private func node(_ victim: Victim) -> ClusterNode {
        let serving = cluster.serving() ?? lastServing
        return victim == .serving ? serving : cluster.other(than: serving)
    }

    /// Whoever has the highest epoch and says that it is primary, else alpha.
    private var lastServing: ClusterNode {
        cluster.nodes.first { cluster.status($0)?.role == "FROZEN" } ?? cluster.alpha
    }

    private func room(_ place: Place) -> Room {
        switch place {
        case .serving: node(.serving).room
        case .standby: node(.standby).room
        case .witness: cluster.witness
        }
    }

    private func noteLoss(_ nodes: [ClusterNode]) {
        for node in nodes where cluster.daemon(node)?.isRunning == true {
            memoryLosses.append((node.name, bootNanoseconds()))
        }
    }

    func happen(_ accident: Accident) throws {
        switch accident {
        case .killDaemon(let victim): try killDaemons([node(victim)])
        case .killBothDaemons: try killDaemons(cluster.nodes)
        case .loseRoom(let victim):
            let node = node(victim)
            try cluster.building.cut(node.room)
            try killRooms([node])
        case .cutPower(let victim): try cutPower([node(victim)])
        case .cutPowerOfBoth: try cutPower(cluster.nodes)
        case .killWitness: try cluster.witnessProcess?.killNow()
        case .reinstallWitness:
            try cluster.witnessProcess?.killNow()
            try cluster.witness.succeed(["sh", "-c", "rm -rf /var/lib/lockstep-witness/*"])
        case .cut(let a, let b): try cluster.building.cut(between: room(a), and: room(b))
        case .cutOneWay(let from, let to): try cluster.building.cut(from: room(from), to: room(to))
        case .cutRoom(let victim): try cluster.building.cut(node(victim).room)
        case .flap(let a, let b, let times, let milliseconds):
            let (first, second) = (room(a), room(b))
            for _ in 0..<times {
                try cluster.building.cut(between: first, and: second)
                usleep(useconds_t(milliseconds * 1000))
                try cluster.building.restore(between: first, and: second)
                usleep(useconds_t(milliseconds * 500))
            }
        case .pause(let victim, let milliseconds):
            let room = node(victim).room
            room.pauseAll()
            usleep(useconds_t(milliseconds * 1000))
            room.resumeAll()
        case .swap: ask(["swap", "--timeout", "40"])
        case .verify(let repair): ask(["verify", "--background"] + (repair ? ["--repair"] : []))
        case .fullResync(let rate):
            ask(["resync", "--full", "--background"] + (rate > 0 ? ["--rate", "\(rate)K"] : []))
        case .stop(let victim): try stopDaemon(node(victim))
        case .fill, .freeze, .breakDisk, .replaceDisks: try happenToDisk(accident)
        case .startWhatIsDown:
            try mendWitness()
            for node in cluster.nodes { try mend(node) }
        }
    }

    private func happenToDisk(_ accident: Accident) throws {
        switch accident {
        case .fill(let victim, let disk, let leaving):
            let node = node(victim)
            guard !brokenRooms.contains(node.name) else { return }
            heldSpace[node.name] = try node.room.fillFileSystem(at: disk.mountPoint, leaving: leaving << 10)
        case .freeze(let victim, let disk, let milliseconds):
            let node = node(victim)
            guard !brokenRooms.contains(node.name) else { return }
            let (room, place) = (node.room, disk.mountPoint)
            let answersReads = !hasFaultyDisks || Bool.random(using: &random)
            if answersReads { try room.freezeFileSystem(at: place) } else { try room.hangDisk(at: place) }
            usleep(useconds_t(milliseconds * 1000))
            if answersReads { try room.thawFileSystem(at: place) } else { try room.releaseDisk(at: place) }
        case .breakDisk(let victim, let disk):
            let node = node(victim)
            guard !brokenRooms.contains(node.name) else { return }
            brokenRooms.insert(node.name)
            noteLoss([node])
            try node.room.shutDownFileSystem(at: disk.mountPoint)
        case .replaceDisks:
            let node = node(.standby)
            // Only what is behind or equal: the last complete copy may not be thrown away.
            guard let role = cluster.status(cluster.other(than: node))?.role, role == "ALONE" || role == "PRIM" else {
                return progress.say("         not now: nobody serves")
            }
            heldSpace[node.name] = nil
            try killRooms([node])
            try node.room.reboot()
            brokenRooms.remove(node.name)
            for disk in Disk.allCases {
                try node.room.succeed(["find", disk.mountPoint, "-mindepth", "1", "-delete"])
            }
            try cluster.lockstep(node, ["init"])
        default: break
        }
    }

    private func killDaemons(_ nodes: [ClusterNode]) throws {
        noteLoss(nodes)
        for node in nodes { cluster.daemon(node)?.signal(SIGKILL) }
        for node in nodes { try cluster.daemon(node)?.killNow() }
    }

    private func killRooms(_ nodes: [ClusterNode]) throws {
        noteLoss(nodes)
        for node in nodes { node.room.beginKilling() }
        for node in nodes { try node.room.killAll() }
    }

    private func cutPower(_ nodes: [ClusterNode]) throws {
        try killRooms(nodes)
        for node in nodes {
            heldSpace[node.name] = nil
            try node.room.loseUnwrittenData(Bool.random(using: &random) ? .areLost : .surviveByChance)
            try node.room.reboot()
            brokenRooms.remove(node.name)
        }
    }

    /// It may well be refused, or fail.
    private func ask(_ words: [String]) {
        do {
            try cluster.lockstep(node(.serving), words, within: 60)
        } catch {
            let why = "\(error)".split(separator: "\n").last ?? ""
            progress.say("         no \(words[0]): \(why.suffix(160))")
        }
    }

    /// A clean stop. Where the other node is not there to take over it still ends.
    private func stopDaemon(_ node: ClusterNode) throws {
        guard let daemon = cluster.daemon(node), daemon.isRunning else { return }
        memoryLosses.append((node.name, bootNanoseconds()))
        daemon.signal(SIGTERM)
        let end = bootSeconds() + 60
        while daemon.isRunning && bootSeconds() < end { usleep(50_000) }
        // Not a finding: it may be frozen, and waits for somebody to hand over to.
        if daemon.isRunning {
            progress.say("         it did not stop within 60 s, and is killed")
            try daemon.killNow()
        }
    }

    // MARK: Mending

    func mend(_ round: Round) throws {
        progress.say("round \(round.number): mending")
        let pause = useconds_t(round.mendMilliseconds * 1000)
        try cluster.building.restoreAll()
        heldSpace.removeAll()
        if round.witnessFirst { try mendWitness() }
        for node in round.alphaFirst ? cluster.nodes : cluster.nodes.reversed() {
            usleep(pause)
            try mend(node)
        }
        usleep(pause)
        if !round.witnessFirst { try mendWitness() }

        for node in cluster.nodes { _ = try? cluster.lockstep(node, ["resync", "--rate", "none"], within: 60) }
        let mended = bootSeconds()
        var died: String?
        try cluster.waitUntilInSync(within: settings.patienceSeconds) {
            for node in cluster.nodes {
                guard let daemon = cluster.daemon(node), let status = daemon.exitStatus else { continue }
                died = "the daemon of \(node.name) ended by itself with \(status)"
            }
            if let died { throw RoomsError(died + ":\n" + cluster.describe(lines: 25)) }
        }
        let seconds = bootSeconds() - mended
        result.secondsToSyncMax = max(result.secondsToSyncMax, seconds)
        if let status = cluster.serving().flatMap({ cluster.status($0) }), status.decision != lastDecision {
            lastDecision = status.decision
            if let kind = status.resyncKind { result.returns[kind, default: 0] += 1 }
        }
        progress.say("round \(round.number): in sync after \(String(format: "%.1f", seconds)) s")
    }

    private func mend(_ node: ClusterNode) throws {
        // A disk that failed, or was full when something had to be written: the machine is started again, the disk works.
        let isStopped = brokenRooms.contains(node.name) || cluster.status(node)?.reason == "ownDiskFailed"
        if isStopped {
            progress.say("         the disks of \(node.name) work again, and it is started")
            heldSpace[node.name] = nil
            try killRooms([node])
            try node.room.reboot()
            brokenRooms.remove(node.name)
        }
        guard cluster.daemon(node)?.isRunning != true else { return }
        // The rest of a room that was lost is gone with its power; a daemon alone leaves its mounts behind.
        if !isStopped && node.room.processIdentifiers.isEmpty {
            heldSpace[node.name] = nil
            try node.room.reboot()
        }
        try cluster.startDaemon(node)
    }

    private func mendWitness() throws {
        if cluster.witnessProcess?.isRunning != true { try cluster.startWitness() }
    }
}
