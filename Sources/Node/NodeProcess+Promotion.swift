import Format
import Foundation
import Journal
import Quorum

/// What `lockstep promote` tells before anything is done: what this node has, what is known of the other one, and what
/// would be lost. The keys are stable; docs/operations.md describes them.
public struct PromotionReport: Codable, Sendable {
    public var node: String
    public var otherNode: String
    /// Why it is not possible now, and what to do; nil: `--accept-loss` would be tried.
    public var refusal: String?
    /// The old point: the last record here, the epoch it was written in, and when its batch was closed (ISO 8601).
    public var lastRecord: UInt64
    public var lastRecordEpoch: UInt32
    public var lastRecordTime: String?
    public var lastRecordAgeSeconds: Double?
    /// The newest decision that this node has heard of.
    public var knownDecision: UInt64
    public var knownEpoch: UInt32
    public var knownPrimary: String?
    public var knownInSync: [String]
    /// Seconds since the other node was heard; nil: not since this daemon started.
    public var otherHeardSeconds: Double?
    public var daemonSeconds: Double
    public var witness: String
    /// What would be lost, in sentences.
    public var lost: [String]
}

/// What the data side contributes.
struct PromotionFacts: Sendable {
    var lastSeq: Seq
    var lastEpoch: Epoch
    var isComplete: Bool
    /// Nanoseconds since 1970.
    var lastTime: Int64?
}

extension DataPlane {
    /// Reads when the last batch was closed, on a worker.
    func promotionFacts(_ answer: @escaping @Sendable (PromotionFacts) -> Void) {
        let facts = PromotionFacts(
            lastSeq: log.core.last, lastEpoch: journal.lastEpoch, isComplete: !link.isIncomplete, lastTime: nil)
        let reader = link.reader
        guard let plan = journal.plan(from: log.core.last, limitBytes: 1) else { return answer(facts) }
        workers.submit {
            var found = facts
            found.lastTime = (try? reader.read(plan))?.last?.header.closedAt
            answer(found)
        }
    }
}

extension NodeProcess {
    /// Collects the data side's part, then `answer` on the control thread.
    func gatherPromotion(_ answer: @escaping @Sendable (PromotionFacts?) -> Void) {
        let handle = controlThread.handle
        let box = Unchecked(self)
        let posted = dataThread.post {
            guard let plane = box.value.dataPlane else {
                _ = handle.post { answer(nil) }
                return
            }
            plane.promotionFacts { facts in _ = handle.post { answer(facts) } }
        }
        if !posted { answer(nil) }
    }

    /// Control thread.
    func promotionReport(_ facts: PromotionFacts?, seedWitness: Bool) -> PromotionReport {
        let control = controlPlane
        let now = control.reactor.now
        let known = control.member.newestDecision
        let name = { [configuration] (node: NodeID) in configuration.node(node).name }
        let date = facts?.lastTime.map { Date(timeIntervalSince1970: Double($0) / 1e9) }
        var report = PromotionReport(
            node: name(node), otherNode: name(node.peer), refusal: nil, lastRecord: facts?.lastSeq.rawValue ?? 0,
            lastRecordEpoch: facts?.lastEpoch.rawValue ?? 0,
            lastRecordTime: date.map { $0.formatted(.iso8601) },
            lastRecordAgeSeconds: date.map { Date().timeIntervalSince($0) }, knownDecision: known?.sequence ?? 0,
            knownEpoch: known?.epoch.rawValue ?? 0, knownPrimary: known.map { name($0.primary) },
            knownInSync: known.map { set in NodeID.allCases.filter { set.inSync.contains($0) }.map(name) } ?? [],
            otherHeardSeconds: control.peerHeardAt.map { Double(now - min(now, $0)) / 1e9 },
            daemonSeconds: Double(now - min(now, control.startedAt)) / 1e9, witness: "\(control.witness)", lost: [])
        report.refusal = refusal(facts, seedWitness: seedWitness)
        report.lost = whatIsLost(report)
        return report
    }

    private func refusal(_ facts: PromotionFacts?, seedWitness: Bool) -> String? {
        let other = configuration.node(node.peer).name
        if let why = controlPlane.member.whyNotPromote(seedWitness: seedWitness) { return named(why) }
        guard let facts else { return "the journal of this node cannot be asked: its log says why" }
        guard facts.isComplete else {
            return
                "this node's copy is not complete: it was being brought back when \(other) was lost, or its journal is "
                + "damaged, and its files are a mixture of old and new that no application should see. Bring \(other) "
                + "back; or restore a backup into `backing` and begin a new mirror with it (docs/operations.md)"
        }
        return nil
    }

    private func whatIsLost(_ report: PromotionReport) -> [String] {
        let point =
            report.lastRecordTime.map { time in
                let age = report.lastRecordAgeSeconds.map { " (\(Int($0)) s ago)" } ?? ""
                return ", written at \(time)\(age)"
            } ?? ""
        var lines = [
            "\(report.node) holds everything up to record \(report.lastRecord), epoch \(report.lastRecordEpoch)\(point).",
            "Everything that \(report.otherNode) acknowledged after that record is LOST to the application.",
        ]
        let inSync = report.knownInSync.joined(separator: ", ")
        if let primary = report.knownPrimary {
            lines.append(
                "Known here of the others: decision \(report.knownDecision), epoch \(report.knownEpoch), primary "
                    + "\(primary), in sync \(inSync). There may be later ones.")
        }
        if controlPlane.member.forgotten != nil {
            lines.append(
                "The votes of \(report.node) were put back to an older state: what was decided since is not known here."
            )
        }
        lines.append(
            report.otherHeardSeconds.map { "\(report.otherNode) was last heard \(Int($0)) s ago." }
                ?? "\(report.otherNode) was not heard since this daemon started, \(Int(report.daemonSeconds)) s ago.")
        lines.append(
            "If \(report.otherNode) ever returns, what only it has is saved there as a rescue journal, for lockstep-dump; "
                + "it is not part of the mirror any more.")
        return lines
    }

    /// The nodes' names instead of their letters, in what the member says.
    func named(_ text: String) -> String {
        var result = text
        for node in NodeID.allCases {
            for end in [" ", ",", ":", ".", ";"] {
                result = result.replacingOccurrences(
                    of: "node \(node)\(end)", with: configuration.node(node).name + end)
            }
        }
        return result
    }

    var promotionWords: (code: String, message: String) {
        switch controlPlane.promotion {
        case .none: ("none", "")
        case .ordered: ("ordered", "asks the other rooms")
        case .refused(let why): ("refused", named(why))
        case .inDoubt: ("inDoubt", "recorded here; a second room has to record it too")
        case .recorded(let decision): ("recorded", "\(decision)")
        case .overtaken: ("overtaken", "the other node's decision came first")
        }
    }
}
