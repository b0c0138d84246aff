import Format

/// Which way records flow on a data connection, worked out by both nodes from the two log states, with one result.
public enum SyncPlan: Sendable, Hashable {
    /// I send; the other cuts to `common` and receives what follows.
    case source(common: Seq)
    /// I send, but the other's log cannot be continued from the journal alone. I know what it lacks.
    case ranges(common: Seq, ReturnWay)
    /// I send, but the other's log cannot be continued: compare the files.
    case compare(ComparisonReason)
    /// The other sends; it tells me what to cut.
    case follow
    /// Neither may be believed alone.
    case refuse(RefusalReason)
}

public enum ComparisonReason: Sendable, Hashable {
    /// The journal does not reach back to the last common record.
    case journalTooShort(common: Seq, oldest: Seq)
    /// The other node has applied records that are not part of this history (a forced promotion, a restored disk).
    case otherHistory(common: Seq, applied: Seq)
    /// Its last resynchronisation was broken off.
    case incomplete
    /// Its disk held records up to `held`, and holds fewer now: it was put back to an older state. Its journal ends there,
    /// but whether its files do is not known.
    case putBack(held: Seq, last: Seq)
    /// An administrator wants it.
    case requested
}

public enum RefusalReason: Sendable, Hashable {
    /// Both say that they serve.
    case bothServe
    /// Neither holds a complete state.
    case bothIncomplete
    /// The only node in sync has an incomplete copy.
    case onlyInSyncIsIncomplete(NodeID)
    /// Neither has a decision yet: `lockstep init --first` was not run anywhere.
    case noDecision
}

extension SyncPlan {
    /// - Parameters:
    ///   - me: this node.
    ///   - mine: this node's log.
    ///   - theirs: the other's.
    ///   - debt: what this node knows of what the other one lacks; nil when it knows nothing.
    ///   - held: what this node, if it leads, knows to have been on the other one's disk. When neither leads, and both are
    ///     in sync, that is everything committed.
    public static func make(
        me: NodeID, mine: LogState, theirs: LogState, debt: Debt.Terms? = nil, held: Seq = .zero
    ) -> SyncPlan {
        let sourceIsMe: Bool
        switch source(me: me, mine: mine, theirs: theirs) {
        case .success(let node): sourceIsMe = node == me
        case .failure(let refusal): return .refuse(refusal.reason)
        }
        guard sourceIsMe else { return .follow }
        let common = commonSeq(mine, theirs)
        let isInSync = newestDecision(mine, theirs)?.inSync == .both
        let held = isInSync && !mine.isServing ? max(held, mine.committedSeq) : held
        let way = debt?.way(
            isIncomplete: theirs.isIncomplete, number: theirs.resyncNumber, common: common, oldest: mine.oldestSeq)
        // Committed records are part of every history that follows; a node that applied others has left this one.
        // After a forced promotion what it knows to be committed does not say it all: alone, it applied records before any
        // disk said that they were committed.
        let wasOverruled = theirs.lastSeq > common && mine.forcedAt.map { $0 >= common } ?? false
        let hasOtherRecords = theirs.committedSeq > common || wasOverruled
        if theirs.isIncomplete {
            guard let way, !hasOtherRecords else { return .compare(.incomplete) }
            return .ranges(common: common, way)
        }
        if theirs.lastSeq < held { return .compare(.putBack(held: held, last: theirs.lastSeq)) }
        if hasOtherRecords {
            return .compare(.otherHistory(common: common, applied: wasOverruled ? theirs.lastSeq : theirs.committedSeq))
        }
        if common.next >= mine.oldestSeq { return .source(common: common) }
        guard let way else { return .compare(.journalTooShort(common: common, oldest: mine.oldestSeq)) }
        return .ranges(common: common, way)
    }

    struct Refusal: Error { let reason: RefusalReason }

    /// Who sends: the node that serves; else the only member of the newest decision's set; else the longer log (by last
    /// epoch, then length). The longer log holds everything that was acknowledged: a primary's log contains what its
    /// follower got, and a new primary makes what it inherited durable before it starts an epoch.
    static func source(me: NodeID, mine: LogState, theirs: LogState) -> Result<NodeID, Refusal> {
        if mine.isServing != theirs.isServing { return .success(mine.isServing ? me : me.peer) }
        if mine.isServing && theirs.isServing {
            // One of them does not know yet that it was deposed: the higher epoch stays.
            guard let ours = mine.decision, let other = theirs.decision, ours.epoch != other.epoch else {
                return .failure(Refusal(reason: .bothServe))
            }
            return .success(ours.epoch > other.epoch ? me : me.peer)
        }
        guard let newest = newestDecision(mine, theirs) else { return .failure(Refusal(reason: .noDecision)) }
        for node in NodeID.allCases where newest.inSync.isOnly(node) {
            let state = node == me ? mine : theirs
            if state.isIncomplete { return .failure(Refusal(reason: .onlyInSyncIsIncomplete(node))) }
            return .success(node)
        }
        switch (mine.isIncomplete, theirs.isIncomplete) {
        case (true, true): return .failure(Refusal(reason: .bothIncomplete))
        case (true, false): return .success(me.peer)
        case (false, true): return .success(me)
        case (false, false): break
        }
        if (mine.lastEpoch, mine.lastSeq) == (theirs.lastEpoch, theirs.lastSeq) { return .success(.a) }
        return .success((mine.lastEpoch, mine.lastSeq) > (theirs.lastEpoch, theirs.lastSeq) ? me : me.peer)
    }

    static func newestDecision(_ mine: LogState, _ theirs: LogState) -> Decision? {
        guard let ours = mine.decision else { return theirs.decision }
        guard let other = theirs.decision else { return ours }
        return mine.ballot.lexicographicallyPrecedes(theirs.ballot) ? other : ours
    }

    /// The last record both logs hold. An epoch is one life of one primary, so two logs with the same epoch at the same
    /// seq are equal up to there.
    public static func commonSeq(_ mine: LogState, _ theirs: LogState) -> Seq {
        for index in mine.epochs.indices.reversed() {
            guard let other = theirs.epochs.firstIndex(of: mine.epochs[index]) else { continue }
            return min(end(of: index, in: mine), end(of: other, in: theirs))
        }
        // No epoch in common. Two logs that begin at the very first record agree before it.
        return .zero
    }

    private static func end(of index: Int, in state: LogState) -> Seq {
        index + 1 < state.epochs.count ? state.epochs[index + 1].firstSeq.previous : state.lastSeq
    }
}
