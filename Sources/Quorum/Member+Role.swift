// What is said about the node: to the other node, and in `lockstep status`.

extension Member {
    private var phase: NodePhase {
        switch mode {
        case .opening: .opening
        case .serving, .draining: hasLease ? .serving : .frozen
        case .handedOver: .handedOver
        case .stopped: .stopped
        // Still holds its grants; but nobody shall take it for one that serves.
        case .unformed, .standby, .closing: .idle
        }
    }

    /// Each half second, and at once when something changes.
    mutating func sayStatus(effects: inout [MemberEffect]) {
        let body = QuorumMessage.Body.status(phase, chosen: known, witness: memory.witness)
        if statusSentAt == 0 || body != statusSent || now >= statusSentAt + timing.renewal {
            statusSentAt = now
            statusSent = body
            send(body, to: peer, effects: &effects)
            if case .handedOver = mode {
                // The release may have been lost.
                for voter in others { send(.leaseRelease(number: lease.number), to: voter, effects: &effects) }
            }
        }
    }

    mutating func sayRole(effects: inout [MemberEffect]) {
        let (role, reason) = currentRole
        let inDoubt = possible.count > 1 ? possible : []
        let same =
            roleSaid.map { $0.role == role && $0.reason == reason && $0.decision == known && $0.inDoubt == inDoubt }
        if same != true {
            let since = roleSaid.map { $0.role == role ? $0.since : now } ?? now
            let state = RoleState(role: role, reason: reason, since: since, decision: known, inDoubt: inDoubt)
            roleSaid = state
            effects.append(.role(state))
        }
        sayWitness(effects: &effects)
        sayGrantTooLong(effects: &effects)
    }

    /// Only as long as this node asks for leases: nobody else hears when that has been mended.
    private mutating func sayGrantTooLong(effects: inout [MemberEffect]) {
        if !isLeading { findsGrantTooLong = PerVoter(false) }
        let refusing = Voter.allCases.filter { findsGrantTooLong[$0] }
        guard refusing != grantTooLongSaid else { return }
        grantTooLongSaid = refusing
        effects.append(.grantTooLong(refusing))
    }

    private mutating func sayWitness(effects: inout [MemberEffect]) {
        let state: WitnessState =
            if let nameTakenBy {
                .nameTaken(by: nameTakenBy)
            } else if let at = heardAt.witness {
                if emptyBirth.witness != nil {
                    .empty
                } else if now >= at + timing.hearing * 4, isLeading {
                    .silent(since: at)
                } else {
                    .answering
                }
            } else if case .silent = witnessSaid {
                witnessSaid
            } else if witnessSaid == .unknown {
                .unknown
            } else {
                .silent(since: now)
            }
        if state != witnessSaid {
            witnessSaid = state
            effects.append(.witnessState(state))
        }
    }

    private var currentRole: (Role, RoleReason) {
        switch mode {
        case .unformed: return (.wait, .notSeeded)
        case .stopped(let diskFailed): return (.stop, diskFailed ? .ownDiskFailed : .byAdministrator)
        case .opening: return (.wait, .opening)
        case .handedOver: return (.wait, .handedOver)
        case .closing: return (.wait, .draining)
        case .serving:
            if isFrozen { return (.frozen, .leaseLost) }
            return (known?.inSync == .both ? .primary : .alone, .none)
        case .draining:
            if isFrozen { return (.frozen, .leaseLost) }
            return (known?.inSync == .both ? .primary : .alone, .draining)
        case .standby: return standbyRole
        }
    }

    private var standbyRole: (Role, RoleReason) {
        guard let state else { return (.wait, .notSeeded) }
        if hearsServer {
            if known?.inSync.contains(node) == true, isMerged { return (.secondary, .none) }
            return (.wait, .catchingUp)
        }
        if foundBehind || !newest(of: state).inSync.contains(node) { return (.wait, .behind(node.peer)) }
        if wasPutBack { return (.wait, .putBack(needs: node.peer, remembered: remembered, last: position)) }
        if !isUsable { return (.wait, .copyUnusable(needs: node.peer)) }
        if state.accepted.inSync == .both, !isMerged, !log.logComplete, !isLoneWaitOver {
            return (.wait, .waitingForMerge(with: node.peer, until: timing.loneRestart.map { startedAt + $0 }))
        }
        if let acceptor, now < acceptor.restartWaitEnds {
            return (.wait, .restartGrant(until: acceptor.restartWaitEnds))
        }
        if case .leaseHeld = lastRefusal { return (.wait, .leaseElsewhere) }
        if !hears(.witness), !hears(peer) { return (.wait, .noSecondVoter) }
        if emptyBirth.witness != nil, !isSoleAuthority, !hears(peer) { return (.wait, .witnessNeeds(node.peer)) }
        return (.wait, .asking)
    }

    /// The process of the other node that could take over: heard lately, with votes, not stopped. A later one than before has
    /// no memory of what that one had acknowledged.
    public func presentPeer(now: BootNanoseconds) -> Incarnation? {
        guard let at = heardAt[peer], now < at + timing.hearing * 2, emptyBirth[peer] == nil, peerPhase != .stopped
        else { return nil }
        return incarnations[peer]
    }

    /// The voter said something lately.
    private func hears(_ voter: Voter) -> Bool { heardAt[voter].map { now < $0 + timing.hearing * 4 } ?? false }
}
