import Configuration
import Format
import Foundation
import Glibc
import Journal
import Quorum

/// What the data thread contributes to the status.
struct DataFacts: Sendable {
    var peer: NodeStatus.Peer
    var log: NodeStatus.Log
    var copy: NodeStatus.Copy
    var resync: NodeStatus.Resync?
    var verify: NodeStatus.Verify?
    var statements: [String]
    var rescues: [String]
    var isComplete: Bool
}

extension DataPlane {
    var facts: DataFacts {
        let follower = log.core.follower
        let behind = follower.map { UInt64(max(0, log.core.last - $0.durable)) }
        let back = returnFacts
        return DataFacts(
            peer: NodeStatus.Peer(
                name: configuration.node(node.peer).name, connected: link.connection != nil, stage: link.stageName,
                behindRecords: behind, remainingSeconds: back?.remainingSeconds, sentBytes: link.sentBytes,
                receivedBytes: link.receivedBytes, refusedMessages: link.refusedMessages),
            log: NodeStatus.Log(
                engine: reactor.engineName, lastSeq: log.lastSeq.rawValue, durableSeq: log.core.ownDurable.rawValue,
                committedSeq: log.committed.rawValue, appliedSeq: log.applied.rawValue,
                checkpointSeq: journal.checkpointSeq.rawValue, oldestSeq: journal.oldestSeq.rawValue,
                journalFreeBytes: UInt64(max(0, journal.freeBytes)), batches: log.statistics.batches,
                records: log.statistics.records, payloadBytes: log.statistics.payloadBytes,
                batchesBySize: log.statistics.batchesBySize),
            copy: NodeStatus.Copy(
                usable: !link.isIncomplete, record: log.applied.rawValue, time: log.appliedTime.map(date)),
            resync: back, verify: verification.facts,
            statements: journal.superblock.statements.map { words($0) },
            rescues: link.rescue.files.map { link.rescue.directory + "/" + $0 },
            isComplete: !link.isIncomplete)
    }

    private func date(_ nanoseconds: Int64) -> String {
        Date(timeIntervalSince1970: Double(nanoseconds) / 1e9).formatted(.iso8601)
    }

    private func words(_ statement: PermanentStatement) -> String {
        let date = date(statement.time)
        let peer = configuration.node(node.peer).name
        let place = "(epoch \(statement.epoch), record \(statement.seq))"
        switch statement.kind {
        case .loneRestart:
            return "\(date): restarted and served without \(peer) \(place): writes before this moment that were "
                + "acknowledged and never fsynced may be missing"
        case .forcedPromotion:
            return "\(date): promoted by force \(place): what \(peer) had acknowledged and this node lacked is missing"
        }
    }
}

extension NodeProcess {
    /// Control thread.
    func status(_ facts: DataFacts?) -> NodeStatus {
        let control = controlPlane
        let role = control.role
        let now = control.reactor.now
        let decision = role?.decision
        let names = { [configuration] (set: NodeSet) in
            NodeID.allCases.filter { set.contains($0) }.map { configuration.node($0).name }
        }
        let inSync = decision?.inSync == .both
        var peer = facts?.peer ?? emptyPeer
        peer.refusedMessages += refusedControlMessages
        let remaining = control.leaseUntil > now ? Int((control.leaseUntil - now) / 1_000_000) : nil
        return NodeStatus(
            mirror: configuration.name, mirrorID: "\(control.member.mirror)",
            node: configuration.node(node).name, role: role?.role.rawValue ?? "WAIT",
            color: color(role, facts), reason: role.map { RoleText.code($0.reason) } ?? "starting",
            explanation: explanation(role, now),
            sinceSeconds: role.map { Double(now - min(now, $0.since)) / 1e9 } ?? 0, inSync: inSync,
            inSyncNodes: decision.map { names($0.inSync) } ?? [],
            primary: decision.map { configuration.node($0.primary).name }, epoch: decision?.epoch.rawValue ?? 0,
            decision: decision?.sequence ?? 0, mode: configuration.mode.rawValue, path: configuration.path,
            filesOpen: control.openEpoch != nil, leaseRemainingMilliseconds: remaining, peer: peer,
            witness: witness(control, now),
            addresses: configuration.addresses.map {
                NodeStatus.Address(address: $0.text, held: control.addressesHeld)
            },
            application: control.application.state.rawValue, applicationMessage: control.application.message,
            log: facts?.log, copy: facts?.copy, resync: facts?.resync, verify: facts?.verify,
            lastTakeover: control.lastTakeover, statements: facts?.statements ?? [], promotion: promotionWords.code,
            promotionMessage: promotionWords.message, rescues: facts?.rescues ?? [],
            problem: control.statedProblem, heldBack: control.heldBack,
            residentBytes: NodeProcess.residentBytes,
            processID: getpid())
    }

    private var emptyPeer: NodeStatus.Peer {
        NodeStatus.Peer(
            name: configuration.node(node.peer).name, connected: false, stage: "disconnected", behindRecords: nil,
            remainingSeconds: nil, sentBytes: 0, receivedBytes: 0, refusedMessages: 0)
    }

    private func color(_ role: RoleState?, _ facts: DataFacts?) -> String {
        guard let role, controlPlane.statedProblem.isEmpty else { return "red" }
        if role.role == .primary || role.role == .alone, serviceFault != nil { return "orange" }
        switch (role.role, role.reason) {
        case (.primary, .none), (.secondary, .none), (.alone, .none): return "green"
        case (.primary, _), (.secondary, _), (.alone, _): return "orange"
        case (.wait, .asking), (.wait, .catchingUp), (.wait, .restartGrant), (.wait, .handedOver): return "orange"
        case (.stop, _), (.wait, _), (.frozen, _): return "red"
        }
    }

    private func explanation(_ role: RoleState?, _ now: UInt64) -> String {
        guard let role else { return "starting" }
        if role.reason == .notSeeded, controlPlane.member.forgotten != nil {
            let peer = configuration.node(node.peer).name
            return
                "its votes were put back to an older state, and are forgotten: waits for \(peer), serving alone, to give it "
                + "new ones. If \(peer) is lost for good, `lockstep promote` says what would be lost"
        }
        let text = RoleText.explain(role, configuration: configuration, now: now)
        guard let serviceFault, role.role == .primary || role.role == .alone else { return text }
        return text + "; " + serviceFault
    }

    /// The files are served here, and nobody is served all the same.
    private var serviceFault: String? {
        let control = controlPlane
        if control.openEpoch == nil {
            return "but the files are not open yet: what was taken over is still being written into "
                + configuration.backing
        }
        if control.application.state == .failed {
            return "but the application failed, its message says how: mend that, `lockstep stop`, `lockstep start`"
        }
        if !control.addressesHeld, !configuration.addresses.isEmpty {
            return "but a virtual address cannot be raised, the log says why: it is tried again twice a second"
        }
        return nil
    }

    private func witness(_ control: ControlPlane, _ now: UInt64) -> NodeStatus.Witness {
        let address = "\(configuration.witness)"
        switch control.witness {
        case .unknown: return NodeStatus.Witness(address: address, state: "unknown", silentSeconds: nil)
        case .answering:
            let state = control.grantRefusers.contains(.witness) ? "grantTooLong" : "answering"
            return NodeStatus.Witness(address: address, state: state, silentSeconds: nil)
        case .silent(let since):
            return NodeStatus.Witness(
                address: address, state: "silent", silentSeconds: Double(now - min(now, since)) / 1e9)
        case .empty: return NodeStatus.Witness(address: address, state: "empty", silentSeconds: nil)
        case .nameTaken: return NodeStatus.Witness(address: address, state: "nameTaken", silentSeconds: nil)
        }
    }

    static var residentBytes: UInt64 {
        guard let text = try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8) else { return 0 }
        let fields = text.split(separator: " ")
        return fields.count > 1 ? (UInt64(fields[1]) ?? 0) * UInt64(sysconf(Int32(_SC_PAGESIZE))) : 0
    }
}

/// Roles and reasons in words.
enum RoleText {
    static func code(_ reason: RoleReason) -> String {
        switch reason {
        case .none: "none"
        case .notSeeded: "notSeeded"
        case .asking: "asking"
        case .restartGrant: "restartGrant"
        case .waitingForMerge: "waitingForMerge"
        case .behind: "behind"
        case .copyUnusable: "copyUnusable"
        case .putBack: "putBack"
        case .noSecondVoter: "noSecondVoter"
        case .leaseElsewhere: "leaseElsewhere"
        case .witnessNeeds: "witnessNeeds"
        case .catchingUp: "catchingUp"
        case .opening: "opening"
        case .leaseLost: "leaseLost"
        case .draining: "draining"
        case .handedOver: "handedOver"
        case .byAdministrator: "byAdministrator"
        case .ownDiskFailed: "ownDiskFailed"
        }
    }

    static func explain(_ state: RoleState, configuration: MirrorConfiguration, now: UInt64) -> String {
        let name = { (node: NodeID) in configuration.node(node).name }
        let seconds = { (until: UInt64) in until > now ? (until - now + 999_999_999) / 1_000_000_000 : 0 }
        switch state.reason {
        case .none:
            switch state.role {
            case .primary: return "serves; both nodes hold every acknowledged write"
            case .alone: return "serves alone; the other node is not in sync"
            case .secondary: return "stands by, in sync"
            default: return "ready"
            }
        case .notSeeded: return "has no part in the mirror yet: waits for the other node to bring it in"
        case .asking: return "asks the other rooms for the recorded decision"
        case .restartGrant(let until):
            return "restarted; an earlier process may have promised the lease, for \(seconds(until)) s more"
        case .waitingForMerge(let node, let until):
            let what = "waits for \(name(node)), which may hold writes that this node lacks"
            guard let until else { return what + "; `loneRestartSeconds` in the configuration says to wait for ever" }
            return what + "; serves without it in \(seconds(until)) s"
        case .behind(let node): return "its files are behind: waits for \(name(node)), which alone has every write"
        case .putBack(let node, let remembered, let last):
            return
                "its disks were put back to an older state: they end with \(last), and another voter remembers "
                + "\(remembered), on them. Waits for \(name(node)), which has what is missing"
        case .copyUnusable(let node):
            return
                "its files and its journal cannot be used as they are: waits for \(name(node)) to mend them; `problem` "
                + "says what was found"
        case .noSecondVoter: return "reaches neither the other node nor the witness: check the network of this room"
        case .leaseElsewhere: return "a voter says that the other node serves, but it cannot be heard here"
        case .witnessNeeds(let node): return "the witness has lost its memory and needs \(name(node)) to get it back"
        case .catchingUp: return "follows, and is not in sync yet"
        case .opening: return "becomes primary: waits until the other node follows, or is removed"
        case .leaseLost:
            return "the lease was lost: writes wait, the address is gone; goes on when the other node or the witness "
                + "can be reached"
        case .draining: return "the application is being stopped for a planned move"
        case .handedOver: return "has handed over; the other node is about to serve"
        case .byAdministrator: return "stopped by an administrator; `lockstep start` brings it back"
        case .ownDiskFailed:
            return "its journal or its files failed: see `problem`, mend the disk, then restart lockstepd (after a "
                + "hang it ends by itself)"
        }
    }
}
