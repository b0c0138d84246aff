import Format

/// One in-sync set that may be in force, and how its acknowledgements count.
public struct AckRule: Sendable, Hashable {
    /// The nodes that must hold what is acknowledged.
    public var inSync: NodeSet
    /// Whether this node must have a record on disk, not only in memory, before it acknowledges it in `balanced` mode.
    /// True while a set without the other node is proposed or in force: acknowledged from one memory alone, a record
    /// would be lost with this process although the other room may hold it.
    public var needsOwnDisk: Bool
    /// Whether the other node, if it is in the set, must have a record on disk too. True while it is about to be added:
    /// only a node whose disk holds everything acknowledged may be named in sync, and this keeps it true once reached.
    public var needsPeerDisk: Bool
    public init(inSync: NodeSet, needsOwnDisk: Bool, needsPeerDisk: Bool = false) {
        self.inSync = inSync
        self.needsOwnDisk = needsOwnDisk
        self.needsPeerDisk = needsPeerDisk
    }
}

/// The two levels up to which the primary may answer, both cumulative.
public struct AckLevels: Sendable, Hashable {
    /// Held by every in-sync node, in memory at least: answers a `write()` in `balanced` mode.
    public var memory: Seq
    /// On the disk of every in-sync node: answers `fsync()`, and allows applying to the plain files.
    public var disk: Seq
    public init(memory: Seq, disk: Seq) {
        self.memory = memory
        self.disk = disk
    }
}

/// What the primary knows of the other node's log in the present data session.
public struct FollowerState: Sendable, Hashable {
    /// The last seq handed to the connection.
    public var sent: Seq
    public var received: Seq
    public var durable: Seq
    public var applied: Seq
}

/// What went wrong with an acknowledgement. It is never believed in part: the session ends.
public enum AckError: Error, Sendable, Hashable {
    /// The other node claims a record that was never sent to it.
    case ahead(claimed: Seq, sent: Seq)
    /// More on disk than received, or more applied than on disk.
    case impossible
    /// An acknowledgement went back within one session.
    case backwards
}

/// The primary's account of who holds what: pure, and the only place that decides what may be answered.
///
/// ```
///              append          journal write done
///   last ────────────────┬──────────────────────────▶ ownDurable ──┐
///                        │ send                                    ├─▶ levels ──▶ answers, commit
///                        └────────▶ follower.received, .durable ───┘
/// ```
///
/// `levels` is the minimum over every rule in force. While a change of the in-sync set is in doubt (proposed, its
/// outcome unknown) both the old and the new set are in force, each with its own rule: an acknowledgement must be good
/// under whichever was chosen.
public struct PrimaryLog: Sendable {
    public let node: NodeID
    /// The last seq given out.
    public private(set) var last: Seq
    /// On this node's disk without a gap up to here.
    public private(set) var ownDurable: Seq
    public private(set) var follower: FollowerState?
    /// Empty: nothing may be acknowledged (not serving, or in doubt whether it may).
    public private(set) var rules: [AckRule]
    /// Never goes back: what has been acknowledged stays so.
    public private(set) var levels: AckLevels

    /// - Parameters:
    ///   - committed: known to be on every in-sync disk already.
    public init(node: NodeID, last: Seq, ownDurable: Seq, committed: Seq) {
        precondition(committed <= ownDurable && ownDurable <= last, "a log in the wrong order")
        self.node = node
        self.last = last
        self.ownDurable = ownDurable
        rules = []
        levels = AckLevels(memory: committed, disk: committed)
    }

    /// A batch was closed: its seqs are given out.
    public mutating func appended(through seq: Seq) {
        precondition(seq > last, "seqs only grow")
        last = seq
        update()
    }

    /// The journal holds everything up to `seq` on disk.
    public mutating func durable(through seq: Seq) {
        precondition(seq <= last, "durable before it was appended")
        precondition(seq >= ownDurable, "the durable seq went back")
        ownDurable = seq
        update()
    }

    /// A data session begins: the follower has cut to this log and holds it up to `seq` on disk. What its memory held
    /// before does not count: it may have restarted.
    public mutating func followerStarted(at seq: Seq) {
        precondition(seq <= last, "a follower beyond the log it follows")
        follower = FollowerState(sent: seq, received: seq, durable: seq, applied: .zero)
        update()
    }

    public mutating func followerLost() { follower = nil }

    public mutating func sent(through seq: Seq) {
        precondition(seq <= last, "sent before it was appended")
        guard var state = follower else { return }
        precondition(seq > state.sent, "sent twice in one session")
        state.sent = seq
        follower = state
    }

    public mutating func acknowledged(received: Seq, durable: Seq, applied: Seq) throws(AckError) {
        guard var state = follower else { return }
        guard received <= state.sent else { throw .ahead(claimed: received, sent: state.sent) }
        guard durable <= received, applied <= durable else { throw .impossible }
        guard received >= state.received, durable >= state.durable, applied >= state.applied else { throw .backwards }
        state.received = received
        state.durable = durable
        state.applied = applied
        follower = state
        update()
    }

    /// Replaces the rules. What was acknowledged before stays acknowledged.
    public mutating func setRules(_ new: [AckRule]) {
        rules = new
        update()
    }

    /// The follower's disk holds everything that was ever acknowledged: only now may it be named in sync.
    public var followerHoldsEverythingAcknowledged: Bool {
        guard let follower else { return false }
        return follower.durable >= levels.memory
    }

    /// This node's disk holds everything it has received or given out.
    public var ownDiskIsComplete: Bool { ownDurable == last }

    private mutating func update() {
        guard !rules.isEmpty else { return }
        var memory = last
        var disk = last
        for rule in rules {
            let (ruleMemory, ruleDisk) = reached(under: rule)
            memory = min(memory, ruleMemory)
            disk = min(disk, ruleDisk)
        }
        // A lower value means only that the rules have become stricter for what comes next.
        levels.memory = max(levels.memory, memory)
        levels.disk = max(levels.disk, disk)
        assert(levels.disk <= levels.memory, "on disk before it was received")
    }

    private func reached(under rule: AckRule) -> (memory: Seq, disk: Seq) {
        precondition(rule.inSync.contains(node), "a primary outside its own in-sync set")
        var memory = rule.needsOwnDisk ? ownDurable : last
        var disk = ownDurable
        if rule.inSync.contains(node.peer) {
            memory = min(memory, (rule.needsPeerDisk ? follower?.durable : follower?.received) ?? .zero)
            disk = min(disk, follower?.durable ?? .zero)
        }
        return (memory, disk)
    }
}
