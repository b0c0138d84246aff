import Format
import Quorum
import Replication

/// A record of the model: an epoch start (negative) or a client's write (its number).
struct ModelRecord: Equatable {
    var epoch: Epoch
    var id: Int
    /// So many records were on the disk of every node in sync when this one was written, as its primary knew.
    var committed: Int
}

/// What a node's voter has accepted, as the log states carry it.
struct ModelVote: Equatable {
    var decision: Decision?
    var ballot: [UInt64] = []
    var isForced = false

    init(_ state: AcceptorState?) {
        guard let state else { return }
        isForced = state.forcedEpoch != nil
        guard state.mayBeToldOfLogs else { return }
        decision = state.accepted
        let accepted = state.acceptedBallot
        ballot = [
            UInt64(accepted.instance.generation), accepted.instance.birth, accepted.number,
            UInt64(accepted.node.rawValue),
        ]
    }
}

/// What the two data sides say to each other, on a link that keeps order within one session.
enum DataMessage {
    case hello(log: [ModelRecord], leads: Bool, vote: ModelVote, loss: Int?)
    case follow(Epoch, log: [ModelRecord], loss: Int?)
    case follows(Epoch, received: Int)
    case append(Epoch, index: Int, ModelRecord)
    case ack(Epoch, received: Int, durable: Int)
}

/// What the data side asks of the world around it.
enum DataOutput {
    case event(MemberEvent)
    case send(DataMessage)
    /// Make the first `count` records durable; `flushed` follows.
    case flush(count: Int)
    case acknowledged(id: Int, fsync: Bool)
    case opened(Decision, Inheritance)
    /// Records cut without being saved: none of them was ever acknowledged.
    case dropped([Int])
    case breakLink
}

/// The data side of one node, as the member sees it: what it received, what is on its disk, what it acknowledged.
///
/// A stand-in for journal and connection, of the smallest size that can lose a write in each of the ways in which they
/// could. What may be acknowledged and whose log is taken is decided by the code of production: `PrimaryLog` and
/// `SyncPlan`.
struct DataModel {
    enum Role: Equatable {
        case idle, following, opening, starting, primary
    }
    struct Waiting {
        var index: Int
        var id: Int
        var fsync: Bool
        var since: UInt64
    }

    // On the disk.
    var log: [ModelRecord] = []
    var durable = 0
    var isComplete = false
    /// The last record when this node last began to serve without everything acknowledged: the permanent statement.
    var loss: Int?
    /// Records that were saved before they were cut.
    var rescued: [Int] = []

    // In memory.
    var role = Role.idle
    var epoch = Epoch.none
    var decision: Decision?
    var vote = ModelVote(nil)
    var inheritance = Inheritance.complete
    var linkUp = false
    var followed: Epoch?
    var offered: (Epoch, [ModelRecord], Int?)?
    /// The longer log of two that were compared, while it is being taken over.
    var inherits: [ModelRecord]?
    var peerWasPutBack = false
    var policy = AckPolicy(possible: [], flushFirst: false)
    var policyToken: UInt64?
    var policyFlush = 0
    var lease: UInt64 = 0
    var isFrozen = false
    var isDraining = false
    var drainSince: UInt64 = 0
    var waiting: [Waiting] = []
    var acknowledged = 0
    var peerFollows = false
    var peerReceived = 0
    var peerDurable = 0
    var saidCaughtUp = false
    var flushing = 0
    var committed = 0
    var position = PositionReport()
    let node: NodeID
    let bugs: Set<PlantedBug>

    init(node: NodeID, bugs: Set<PlantedBug>) {
        self.node = node
        self.bugs = bugs
    }

    /// The process dies; what was only in memory is gone.
    mutating func crash() {
        var next = DataModel(node: node, bugs: bugs)
        next.log = Array(log.prefix(durable))
        next.durable = durable
        next.isComplete = isComplete && durable == log.count
        next.loss = loss
        next.rescued = rescued
        self = next
    }

    var leads: Bool { role == .opening || role == .starting || role == .primary }
    /// Could acknowledge right now.
    func mayAcknowledge(now: UInt64) -> Bool {
        role == .primary && !isFrozen && (now < lease || bugs.contains(.acknowledgesWithoutLease))
    }

    // MARK: From the member

    mutating func take(_ effect: MemberEffect, now: UInt64, out: inout [DataOutput]) {
        switch effect {
        case .setPolicy(let policy, let token):
            self.policy = policy
            policyToken = token
            policyFlush = policy.flushFirst ? log.count : 0
            withdrawCaughtUp(&out)
        case .prepareToServe(let decision, let inheritance):
            self.inheritance = inheritance
            forgetSession(&out)
            role = .opening
            epoch = decision.epoch
            self.decision = decision
            forgetPeer()
            if linkUp { out.append(.send(.follow(epoch, log: log, loss: lossToTell))) }
        case .serve(let decision, let inheritance):
            role = .starting
            if epoch != decision.epoch {
                epoch = decision.epoch
                forgetPeer()
                if linkUp { out.append(.send(.follow(epoch, log: log, loss: lossToTell))) }
            }
            self.decision = decision
            self.inheritance = inheritance
        case .epochChanged(let decision):
            epoch = decision.epoch
            forgetPeer()
            append(nextRecord(-Int(epoch.rawValue)), fsync: false, now: now, out: &out)
            // The link that was given up is not used any more: a new session starts with a new hello.
            out.append(.breakLink)
        case .lease(let until): lease = until
        case .freeze: isFrozen = true
        case .thaw: isFrozen = false
        case .drain:
            isDraining = true
            drainSince = now
        case .close(let reason):
            role = .idle
            isFrozen = false
            isDraining = false
            waiting = []
            followed = nil
            if case .stopped = reason { isComplete = durable == log.count }
            out.append(.event(.closed))
        case .follow(_, let decision):
            guard role != .following || followed != decision?.epoch else { break }  // the same life: nothing to cut
            followed = decision?.epoch
            role = .following
            forgetSession(&out)
            inherits = nil
            if let offered, offered.0 == followed { followNow(offered.0, offered.1, loss: offered.2, out: &out) }
        default: break
        }
        advance(now: now, out: &out)
    }

    /// What the other node must know before it cuts: also of a start of serving that is only beginning, or of a promotion
    /// by force that is recorded and has not led to one.
    private var lossToTell: Int? {
        vote.isForced || leads && inheritance != .complete && role != .primary ? log.count : loss
    }

    private mutating func forgetSession(_ out: inout [DataOutput]) {
        if peerWasPutBack { out.append(.event(.peerWasPutBack(false))) }
        peerWasPutBack = false
    }

    private mutating func forgetPeer() {
        inherits = nil
        peerFollows = false
        peerReceived = 0
        peerDurable = 0
        saidCaughtUp = false
    }

    /// Rule 11: the flag is withdrawn before the policy is reported in force, if the other disk lags behind.
    private mutating func withdrawCaughtUp(_ out: inout [DataOutput]) {
        if saidCaughtUp, !isPeerCaughtUp {
            saidCaughtUp = false
            out.append(.event(.peerCaughtUp(false)))
        }
    }

    private var isPeerCaughtUp: Bool {
        let reached = bugs.contains(.addsNodeFromMemory) ? peerReceived : peerDurable
        return peerFollows && reached >= acknowledged && reached > 0
    }

    // MARK: The link

    mutating func linkChanged(up: Bool, out: inout [DataOutput]) {
        linkUp = up
        forgetSession(&out)
        offered = nil
        inherits = nil
        forgetPeer()
        if up {
            out.append(.event(.peerBack))
            out.append(.send(.hello(log: log, leads: leads, vote: vote, loss: lossToTell)))
            if leads { out.append(.send(.follow(epoch, log: log, loss: lossToTell))) }
        } else {
            out.append(.event(.peerSilent(.linkLost)))
        }
    }

    mutating func receive(_ message: DataMessage, now: UInt64, out: inout [DataOutput]) {
        switch message {
        case .hello(let theirs, let peerLeads, let vote, let loss):
            merge(theirs, peerLeads: peerLeads, vote: vote, loss: loss, out: &out)
        case .follow(let epoch, let theirs, let loss):
            offered = (epoch, theirs, loss)
            inherits = nil
            if role == .following, followed == epoch { followNow(epoch, theirs, loss: loss, out: &out) }
        case .follows(let epoch, let received):
            guard leads, epoch == self.epoch else { return }
            peerFollows = true
            peerReceived = received
            out.append(.event(.peerFollows(epoch)))
            // What was appended since the log was sent.
            for index in received..<max(received, log.count) {
                out.append(.send(.append(epoch, index: index, log[index])))
            }
        case .append(let epoch, let index, let record):
            guard role == .following, followed == epoch, offered?.0 == epoch, index <= log.count else { return }
            if index == log.count { log.append(record) }
            isComplete = false
            out.append(.send(.ack(epoch, received: log.count, durable: durable)))
        case .ack(let epoch, let received, let durable):
            guard leads, epoch == self.epoch, peerFollows else { return }
            peerReceived = max(peerReceived, received)
            peerDurable = max(peerDurable, durable)
        }
        advance(now: now, out: &out)
    }

    /// Two logs meet and neither side leads: the one that is behind, by (last epoch, length), takes the other, piece by
    /// piece, unless what it has is not what it had.
    private mutating func merge(
        _ theirs: [ModelRecord], peerLeads: Bool, vote other: ModelVote, loss: Int?, out: inout [DataOutput]
    ) {
        guard !peerLeads else { return }
        guard role == .idle || role == .following || role == .opening else { return }
        let (mine, others) = (state(of: log, vote), state(of: theirs, other))
        switch SyncPlan.make(me: node, mine: mine, theirs: others) {
        case .source: out.append(.event(.merged))
        case .compare(.putBack):
            guard role != .opening else { break }
            peerWasPutBack = true
            out.append(.event(.peerWasPutBack(true)))
        case .compare, .ranges, .refuse: break
        case .follow:
            guard case .source = SyncPlan.make(me: node.peer, mine: others, theirs: mine) else { return }
            replaceLog(Array(theirs.prefix(commonCount(theirs))), loss: loss, out: &out)
            inherits = theirs
            inherit(all: role == .opening, out: &out)
            if role == .opening { out.append(.send(.follow(epoch, log: log, loss: lossToTell))) }
        }
    }

    /// Takes over some more of the other log.
    mutating func inherit(all: Bool = false, out: inout [DataOutput]) {
        // On such a link nothing is acknowledged: it counts as silent, and that is said again and again.
        if peerWasPutBack { out.append(.event(.peerSilent(.linkLost))) }
        guard let theirs = inherits else { return }
        log = Array(theirs.prefix(all ? theirs.count : log.count + DataModel.inheritedAtOnce))
        guard log.count == theirs.count else { return }
        inherits = nil
        out.append(.event(.merged))
    }
    private static let inheritedAtOnce = 12

    /// What a log knows to have been on the disk of every node in sync.
    static func committed(in log: [ModelRecord]) -> Seq { Seq(rawValue: UInt64(log.last?.committed ?? 0)) }

    var committedMark: LogMark {
        let seq = DataModel.committed(in: log)
        return LogMark(epoch: seq == .zero ? .none : log[Int(seq.rawValue) - 1].epoch, seq: seq)
    }

    /// A log as a node tells of it.
    private func state(of log: [ModelRecord], _ vote: ModelVote) -> LogState {
        var epochs: [EpochStart] = []
        for (index, record) in log.enumerated() where epochs.last.map({ $0.epoch != record.epoch }) ?? true {
            epochs.append(EpochStart(epoch: record.epoch, firstSeq: Seq(rawValue: UInt64(index + 1))))
        }
        let last = Seq(rawValue: UInt64(log.count))
        return LogState(
            isServing: false, isIncomplete: false, decision: vote.decision, ballot: vote.ballot,
            lastSeq: last, lastChain: 0, durableSeq: last, committedSeq: DataModel.committed(in: log),
            oldestSeq: Seq(rawValue: 1), epochs: epochs)
    }

    private mutating func followNow(
        _ epoch: Epoch, _ theirs: [ModelRecord], loss: Int?, out: inout [DataOutput]
    ) {
        replaceLog(theirs, loss: loss, out: &out)
        offered = (epoch, theirs, loss)
        out.append(.event(.merged))
        out.append(.send(.follows(epoch, received: log.count)))
        out.append(.send(.ack(epoch, received: log.count, durable: durable)))
    }

    /// So many records both logs begin with.
    private func commonCount(_ theirs: [ModelRecord]) -> Int { zip(log, theirs).prefix { $0 == $1 }.count }

    private mutating func replaceLog(_ theirs: [ModelRecord], loss: Int?, out: inout [DataOutput]) {
        let common = commonCount(theirs)
        let seq = { (count: Int) in Seq(rawValue: UInt64(count)) }
        let mustBeSaved = DivergedTail.mustBeSaved(
            common: seq(common), last: seq(log.count), committed: .zero, acknowledged: .zero, lossAt: loss.map(seq))
        let dropped = log[common...].map(\.id)
        if mustBeSaved, !bugs.contains(.cutsWithoutSaving) {
            rescued += dropped
        } else if !dropped.isEmpty {
            out.append(.dropped(dropped))
        }
        log = theirs
        durable = min(durable, common)
        flushing = 0
        isComplete = false
    }

    // MARK: What the voters are told

    private mutating func noteCommitted() {
        guard role == .primary, !policy.possible.isEmpty else {
            committed = 0
            return
        }
        let needsPeer = policy.nodes.contains(node.peer)
        committed = max(committed, needsPeer ? min(durable, peerFollows ? peerDurable : 0) : durable)
    }

    mutating func report(now: UInt64, out: inout [DataOutput]) {
        let last = LogMark(
            epoch: durable > 0 ? log[durable - 1].epoch : .none, seq: Seq(rawValue: UInt64(durable)))
        let known = role == .primary ? Seq(rawValue: UInt64(committed)) : nil
        guard let news = position.next(last: last, committed: known, now: now) else { return }
        out.append(.event(.log(last: news.last, committed: news.committed)))
    }

    // MARK: Writes

    mutating func write(id: Int, fsync: Bool, now: UInt64, out: inout [DataOutput]) {
        guard role == .primary, !isFrozen, !isDraining, waiting.count < 20 else { return }
        waiting.append(Waiting(index: log.count, id: id, fsync: fsync, since: now))
        append(nextRecord(id), fsync: fsync, now: now, out: &out)
        advance(now: now, out: &out)
    }

    private func nextRecord(_ id: Int) -> ModelRecord {
        ModelRecord(epoch: epoch, id: id, committed: max(committed, log.last?.committed ?? 0))
    }

    private mutating func append(_ record: ModelRecord, fsync: Bool, now: UInt64, out: inout [DataOutput]) {
        log.append(record)
        isComplete = false
        if peerFollows { out.append(.send(.append(epoch, index: log.count - 1, record))) }
    }

    mutating func flushed(count: Int, now: UInt64, out: inout [DataOutput]) {
        guard flushing == count else { return }  // the log was cut meanwhile
        flushing = 0
        durable = max(durable, count)
        if role == .following, let followed, offered?.0 == followed {
            out.append(.send(.ack(followed, received: log.count, durable: durable)))
        }
        advance(now: now, out: &out)
    }

    // MARK: Progress

    mutating func advance(now: UInt64, out: inout [DataOutput]) {
        if flushing == 0, durable < log.count {
            flushing = log.count
            out.append(.flush(count: log.count))
        }
        if let token = policyToken, durable >= policyFlush {
            policyToken = nil
            withdrawCaughtUp(&out)
            out.append(.event(.policyInForce(token: token)))
        }
        // Inherited records are durable before the epoch-start record is.
        if role == .starting, durable == log.count, let decision {
            role = .primary
            acknowledged = log.count
            if inheritance != .complete { loss = log.count }
            out.append(.opened(decision, inheritance))
            append(nextRecord(-Int(epoch.rawValue)), fsync: true, now: now, out: &out)
        }
        acknowledge(now: now, out: &out)
        noteCommitted()
        if leads, !saidCaughtUp, isPeerCaughtUp {
            saidCaughtUp = true
            out.append(.event(.peerCaughtUp(true)))
        }
        if peerFollows, let oldest = waiting.first, now > oldest.since + 800 * ms, peerReceived <= oldest.index {
            out.append(.breakLink)
        }
        if isDraining { drain(now: now, out: &out) }
    }

    private mutating func acknowledge(now: UInt64, out: inout [DataOutput]) {
        while let first = waiting.first, mayAcknowledge(now: now), satisfies(first) {
            waiting.removeFirst()
            acknowledged = max(acknowledged, first.index + 1)
            out.append(.acknowledged(id: first.id, fsync: first.fsync))
        }
    }

    private func satisfies(_ write: Waiting) -> Bool {
        guard !policy.possible.isEmpty else { return false }
        let last = Seq(rawValue: UInt64(log.count))
        // The planted bug takes the record in memory for one on the disk.
        let isBroken = bugs.contains(.aloneFromMemory) && !write.fsync
        var primary = PrimaryLog(
            node: node, last: last, ownDurable: isBroken ? last : Seq(rawValue: UInt64(durable)), committed: .zero)
        if peerFollows {
            let received = Seq(rawValue: UInt64(min(peerReceived, log.count)))
            let durable = Seq(rawValue: UInt64(min(peerDurable, peerReceived, log.count)))
            primary.followerStarted(at: durable)
            if received > durable { primary.sent(through: received) }
            do {
                try primary.acknowledged(received: received, durable: durable, applied: .zero)
            } catch {
                preconditionFailure("the model acknowledged the impossible: \(error)")
            }
        }
        primary.setRules(policy.possible.map { AckRule(inSync: $0.inSync, needsOwnDisk: $0.ownDisk) })
        let reached = write.fsync ? primary.levels.disk : primary.levels.memory
        return reached > Seq(rawValue: UInt64(write.index))
    }

    private mutating func drain(now: UInt64, out: inout [DataOutput]) {
        let needsPeer = policy.nodes.contains(node.peer)
        if waiting.isEmpty, durable == log.count, !needsPeer || (peerFollows && peerDurable == log.count) {
            isDraining = false
            role = .starting  // takes no writes; `close` follows
            decision = nil
            out.append(.event(.drained))
        } else if now > drainSince + 3000 * ms {
            isDraining = false
            out.append(.event(.drainFailed))
        }
    }
}
