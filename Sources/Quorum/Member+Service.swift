// Serving: leases, going alone, adding the other node, handing over; and what to do next.

extension Member {
    /// This node is, or is about to be, the one that serves.
    var isLeading: Bool {
        switch mode {
        case .opening, .serving, .draining: true
        default: false
        }
    }

    var hasLease: Bool { now < leaseUntil }

    /// The wait of a restarted member that cannot reach the other one is over. Contact without a finished exchange of
    /// logs does not stop it: a half-dead other node must not block this one for ever (rule 4). There is nothing to wait
    /// for if the other one no longer has what it received.
    var isLoneWaitOver: Bool { peerWasPutBack || timing.loneRestart.map { now >= startedAt + $0 } ?? false }

    /// Nothing on this node's disks is known to be missing or mixed up.
    var isUsable: Bool { log.isUsable || isMerged }

    /// May start rounds: it holds, or is the only one to hold, everything that was acknowledged.
    private var mayLead: Bool {
        guard let state, !isDiskFailed, isUsable else { return false }
        return state.accepted.inSync.isOnly(node) || isMerged || log.logComplete || isLoneWaitOver
            || state.forcedEpoch != nil
    }

    /// The other node is lost for the purpose of going on without it.
    private var isPeerLost: Bool {
        guard let since = peerSilentSince else { return false }
        return peerSilence == .failed || now >= since + timing.peerLoss
    }

    /// The other one's votes are gone, and only a node that is alone in the set may give it new ones (rule 10): it is
    /// removed, seeded and added again. It has everything, so that takes a moment.
    private var mustGoAlone: Bool { isPeerLost || emptyBirth[peer] != nil }

    /// What to do next. Called after each event; does nothing twice.
    mutating func evaluate(effects: inout [MemberEffect]) {
        guard state != nil else { return tendReforming(effects: &effects) }
        tendLease(effects: &effects)
        tendRound(effects: &effects)
        switch mode {
        case .unformed, .closing: break
        case .stopped: break
        case .standby: evaluateStandby(effects: &effects)
        case .opening, .serving, .draining: evaluateLeading(effects: &effects)
        case .handedOver: evaluateHandedOver(effects: &effects)
        }
        seedOthers(effects: &effects)
        sayStatus(effects: &effects)
        greetWitness(effects: &effects)
    }

    /// In the time in which this node's voter promises nothing yet, so that votes that were put back are noticed before
    /// they are used.
    private mutating func greetWitness(effects: inout [MemberEffect]) {
        guard let acceptor, let state = acceptor.state, now < acceptor.restartWaitEnds,
            now >= greetedAt + timing.renewal || greetedAt == 0
        else { return }
        greetedAt = now
        send(.greet(promised: state.promised), to: .witness, effects: &effects)
    }

    private mutating func evaluateStandby(effects: inout [MemberEffect]) {
        let server = hearsServer ? known ?? peerChosen : nil
        if server != nil { lostRounds = 0 }
        if server != following || (server != nil) != followingSaid {
            following = server
            followingSaid = server != nil
            if let server { effects.append(.follow(node.peer, server)) }
        }
        tendPromotion(effects: &effects)
        guard !hearsServer, now >= nextRoundAt else { return }
        if let order, !order.seedsWitness {
            beginRound(.force, effects: &effects)
        } else if mayLead {
            beginRound(.lead, effects: &effects)
        }
    }

    private mutating func evaluateLeading(effects: inout [MemberEffect]) {
        tendFreeze(effects: &effects)
        if case .opening(let since) = mode { tryToOpen(since: since, effects: &effects) }
        if case .draining(let stop, true) = mode, possible.count == 1 {
            finishDraining(stop: stop, effects: &effects)
            return
        }
        guard proposer.isIdle, policyPending == nil, now >= nextRoundAt, let known else { return }
        if possible.count > 1 {
            resolveDoubt(effects: &effects)
        } else if known.inSync == .both, mustGoAlone || isOpeningTooLong {
            putInForce([.both, NodeSet(node)], flushFirst: true, then: .goAlone, effects: &effects)
        } else if known.inSync.isOnly(node), mode == .serving, mayAdd, hasLease, now >= addAllowedAt {
            putInForce([NodeSet(node), .both], flushFirst: false, then: .add, effects: &effects)
        } else if !hasLease || owesRound || needsWitnessRound, now >= confirmAt {
            // Also a frozen primary runs full rounds, again and again (rule 13): it may have been overruled, or be
            // barred from leases by a round that it did not finish.
            beginRound(.confirm, effects: &effects)
        }
    }

    /// The witness is empty and no round has been completed in the instance it shall become.
    private var needsWitnessRound: Bool {
        guard let birth = emptyBirth.witness, nameTakenBy == nil, let state else { return false }
        return (pairBallot != state.acceptedBallot && !isSoleAuthority) || state.promised.instance.birth != birth
            || state.acceptedBallot.instance.birth != birth
    }

    private var isOpeningTooLong: Bool {
        if case .opening(let since) = mode { now >= since + timing.opening } else { false }
    }

    private mutating func resolveDoubt(effects: inout [MemberEffect]) {
        if mustGoAlone {
            beginRound(.goAlone, effects: &effects)
        } else {
            beginRound(mayAdd && known?.inSync.isOnly(node) == true ? .add : .confirm, effects: &effects)
        }
    }

    // MARK: Policy

    /// Puts the rule for every possible set in force, and starts the round only then: from the moment the proposal can
    /// be chosen, acknowledgements must hold under each outcome (rules 2 and 3).
    private mutating func putInForce(
        _ sets: [NodeSet], flushFirst: Bool, then purpose: Purpose?, effects: inout [MemberEffect]
    ) {
        possible = sets
        policyToken += 1
        policyPending = purpose
        let requirements = sets.map { AckRequirement(inSync: $0, ownDisk: $0.isOnly(node)) }
        effects.append(
            .setPolicy(AckPolicy(possible: requirements, flushFirst: flushFirst), token: policyToken))
    }

    mutating func policyInForce(_ token: UInt64, effects: inout [MemberEffect]) {
        guard token == policyToken, let purpose = policyPending, let known else { return }
        policyPending = nil
        guard isLeading else { return }
        let stillWanted =
            switch purpose {
            case .goAlone: mustGoAlone || isOpeningTooLong
            case .add: mayAdd
            case .lead, .confirm, .force: false
            }
        if stillWanted {
            beginRound(purpose, effects: &effects)
        } else {
            putInForce([known.inSync], flushFirst: false, then: nil, effects: &effects)  // nothing was proposed yet
        }
    }

    // MARK: Becoming primary

    /// The record names this node. It serves in that epoch only if this very process proposed it and has not used it:
    /// an earlier process may have written records in any older one (rule 1).
    mutating func startOpening(_ decision: Decision, effects: inout [MemberEffect]) {
        guard let firstOwnEpoch, decision.epoch >= firstOwnEpoch, decision.epoch > servedEpoch else { return }
        mode = .opening(since: now)
        following = nil
        followingSaid = false
        leaseAsked = 0
        statusSentAt = 0
        noteForce(decision)
        effects.append(.prepareToServe(decision, inheritance))
        putInForce([decision.inSync], flushFirst: false, then: nil, effects: &effects)
        tendLease(effects: &effects)
    }

    /// A start of serving that rests on a forced promotion, of whatever process, says so.
    private mutating func noteForce(_ decision: Decision) {
        if let forced = state?.forcedEpoch, decision.inSync.isOnly(node) { inheritance = .byForce(since: forced) }
    }

    private mutating func tryToOpen(since: BootNanoseconds, effects: inout [MemberEffect]) {
        guard let known, hasLease, possible.count == 1, proposer.isIdle || proposer.purpose == .confirm else { return }
        guard known.inSync.isOnly(node) || peerFollowing == known.epoch else { return }
        // A forced decision counts when two logs are compared once this disk knows that it was chosen. Were writes
        // acknowledged before, and this node died then, its log would be given up for the other one's.
        guard state?.forcedEpoch == nil || acceptor?.isSettled == true else { return }
        mode = .serving
        servedEpoch = known.epoch
        isFrozen = false
        // From here this node's log is the mirror's.
        isMerged = true
        if inheritance == .unsyncedMayBeMissing {
            effects.append(
                .log(
                    .critical,
                    "node \(node) serves what was on its disk, because the other node could not be reached for the "
                        + "configured time, or was put back to an older state: writes that were acknowledged but never "
                        + "fsynced may be missing"))
        }
        noteForce(known)
        effects.append(.serve(known, inheritance))
    }

    /// A round of the leading node has completed.
    mutating func adopt(_ decision: Decision, after before: Decision?, effects: inout [MemberEffect]) {
        policyPending = nil
        if possible != [decision.inSync] {
            putInForce([decision.inSync], flushFirst: false, then: nil, effects: &effects)
        }
        // The epoch too: an addition in doubt that is given up leaves the set as it was, in a new epoch.
        guard let before, before.inSync != decision.inSync || before.epoch != decision.epoch else { return }
        if decision.inSync.isOnly(node) {
            noteLoss()
            if case .opening = mode { return }
            servedEpoch = decision.epoch
            effects.append(.epochChanged(decision))
            if case .draining(stop: false, _) = mode {
                effects.append(.log(.warning, "the swap is given up: the other node was lost meanwhile"))
                startClosing(.restarting, next: .standby, effects: &effects)
            }
        } else {
            effects.append(.inSyncChanged(decision))
        }
    }

    /// Each loss doubles the wait before the other node is added again, so that a link that flaps costs few epochs.
    private mutating func noteLoss() {
        if let lastLoss, now >= lastLoss + timing.addQuiet { losses = 0 }
        addAllowedAt = now + min(timing.addWaitLast, timing.addWaitFirst << UInt64(min(losses, 16)))
        losses += 1
        lastLoss = now
    }

    // MARK: Leases

    private mutating func tendLease(effects: inout [MemberEffect]) {
        // Only the recorded primary, by a completed round, asks; never one that is on its way out (rule 9).
        let isDue = leaseAsked == 0 || now >= leaseAsked + timing.renewal
        if isLeading, !leaseBarred, isDue, let known, known.primary == node {
            leaseAsked = now
            let number = lease.request(now: now)
            for voter in Voter.allCases {
                send(
                    .leaseRequest(
                        number: number, heard: lease.heard[voter], epoch: known.epoch,
                        grantMilliseconds: UInt32(clamping: timing.grant / 1_000_000), memory: memory[voter],
                        committed: mode == .serving ? committed : .zero),
                    to: voter, effects: &effects)
            }
        }
        let until = isLeading ? lease.validUntil(own: own) : 0
        if until != leaseUntil {
            leaseUntil = until
            effects.append(.lease(until: until))
        }
    }

    private mutating func tendFreeze(effects: inout [MemberEffect]) {
        guard servedEpoch == known?.epoch, mode == .serving || isDraining else { return }
        if !hasLease, !isFrozen {
            isFrozen = true
            effects.append(.freeze)
            effects.append(.log(.error, "no lease: writes wait until two of the three rooms can be heard again"))
        } else if hasLease, isFrozen {
            isFrozen = false
            effects.append(.thaw)
            effects.append(.log(.info, "the lease is back"))
        }
    }

    private var isDraining: Bool { if case .draining = mode { true } else { false } }

    /// Gives every grant back. The number keeps a late one from taking away what is asked for later.
    private mutating func releaseLeases(effects: inout [MemberEffect]) {
        let number = lease.release()
        if leaseUntil != 0 {
            leaseUntil = 0
            effects.append(.lease(until: 0))
        }
        for voter in Voter.allCases { send(.leaseRelease(number: number), to: voter, effects: &effects) }
    }

    // MARK: Stepping down

    mutating func depose(by epoch: Epoch, effects: inout [MemberEffect]) {
        guard isLeading else { return }
        effects.append(.log(.error, "node \(node.peer) leads in epoch \(epoch): node \(node) stops serving"))
        startClosing(.deposed(by: epoch), next: .standby, effects: &effects)
    }

    /// Asks the data side to stop. The grants are kept until it says `closed`: else the other node could be serving
    /// while an acknowledgement of this one is still on its way out.
    mutating func startClosing(_ reason: CloseReason, next: AfterClose, effects: inout [MemberEffect]) {
        leaseBarred = true
        isFrozen = false
        policyPending = nil
        policyToken += 1
        peerFollowing = nil
        following = nil
        followingSaid = false
        mode = .closing(next: next)
        effects.append(.close(reason))
    }

    mutating func closed(effects: inout [MemberEffect]) {
        guard case .closing(let next) = mode else { return }
        possible = []
        nextRoundAt = max(nextRoundAt, now)
        releaseLeases(effects: &effects)
        statusSentAt = 0
        switch next {
        case .standby: mode = .standby
        // It may have got its votes meanwhile.
        case .unformed: mode = state == nil ? .unformed : .standby
        case .handedOver(let stop): mode = .handedOver(until: now + timing.handOver, stop: stop)
        case .stopped(let diskFailed): mode = .stopped(diskFailed: diskFailed)
        }
    }

    private mutating func evaluateHandedOver(effects: inout [MemberEffect]) {
        guard case .handedOver(let until, let stop) = mode else { return }
        if hearsServer {
            mode = stop ? .stopped(diskFailed: isDiskFailed) : .standby
        } else if now >= until, stop {
            // Who was asked to stop does: it votes, so the other one may still take over.
            effects.append(
                .log(.error, "node \(node.peer) did not take over in time, and nobody serves: `lockstep start`"))
            mode = .stopped(diskFailed: isDiskFailed)
        } else if now >= until {
            // Rule 13: a node that was stopped for a swap takes part again if nobody serves.
            effects.append(.log(.warning, "node \(node.peer) did not take over in time: node \(node) may lead again"))
            mode = .standby
        }
    }

    // MARK: Administrator and faults

    mutating func request(_ event: MemberEvent, effects: inout [MemberEffect]) {
        switch event {
        case .requestSwap: requestSwap(byForce: false, effects: &effects)
        case .requestMove: requestSwap(byForce: true, effects: &effects)
        case .requestPromotion(let seedWitness): requestPromotion(seedWitness: seedWitness, effects: &effects)
        case .requestStop: requestStop(effects: &effects)
        case .requestStart:
            requestStart(effects: &effects)
        default: break
        }
    }

    /// Starts a stopped node; takes back a stop that is not finished.
    private mutating func requestStart(effects: inout [MemberEffect]) {
        switch mode {
        case .stopped(diskFailed: false):
            mode = state == nil ? .unformed : .standby
            nextRoundAt = now
        case .closing(.stopped(diskFailed: false)): mode = .closing(next: .unformed)
        case .closing(.handedOver) where !isDiskFailed: mode = .closing(next: .handedOver(stop: false))
        case .handedOver(let until, _) where !isDiskFailed: mode = .handedOver(until: until, stop: false)
        case .stopped, .closing(.stopped), .closing(.handedOver), .handedOver:
            effects.append(.adminRefused("this node's disk failed: repair it, then restart the daemon"))
        case .draining(stop: true, _):
            effects.append(.adminRefused("the application is being stopped: wait until status shows STOP, then start"))
        default: break
        }
    }

    private mutating func requestSwap(byForce: Bool, effects: inout [MemberEffect]) {
        guard mode == .serving, let known else {
            effects.append(.adminRefused("node \(node) is not serving: ask the node that is"))
            return
        }
        guard hasLease else {
            effects.append(
                .adminRefused(
                    "node \(node) has no lease: no two of the three rooms can be heard; mend the network first"))
            return
        }
        guard known.inSync == .both, possible.count == 1, peerSilentSince == nil, heardAt[peer] != nil else {
            effects.append(
                .adminRefused("node \(node.peer) is not in sync: wait until status shows it as SECOND, then swap"))
            return
        }
        guard peerPhase != .stopped else {
            return effects.append(.adminRefused("node \(node.peer) is stopped: `lockstep start` there, then swap"))
        }
        mode = .draining(stop: false, done: false)
        movesByForce = byForce
        effects.append(.drain)
    }

    private mutating func requestStop(effects: inout [MemberEffect]) {
        switch mode {
        case .serving:
            mode = .draining(stop: true, done: false)
            effects.append(.drain)
        case .draining(_, let done): mode = .draining(stop: true, done: done)
        case .opening: startClosing(.stopped, next: .handedOver(stop: true), effects: &effects)
        case .standby:
            // A round that is under way may make it primary: it ends first, in doubt like any other.
            proposer.end()
            endPromotion(.refused("this node was stopped"), effects: &effects)
            startClosing(.stopped, next: .stopped(diskFailed: false), effects: &effects)
        case .closing(.standby), .closing(.unformed): mode = .closing(next: .stopped(diskFailed: false))
        case .closing(.handedOver): mode = .closing(next: .handedOver(stop: true))
        case .handedOver(let until, _): mode = .handedOver(until: until, stop: true)
        case .unformed: mode = .stopped(diskFailed: false)
        case .stopped, .closing: break
        }
    }

    mutating func drained(effects: inout [MemberEffect]) {
        guard case .draining(let stop, _) = mode else { return }
        mode = .draining(stop: stop, done: true)
    }

    /// Everything is at rest. With the other node in sync it takes over; alone, this node just stops.
    private mutating func finishDraining(stop: Bool, effects: inout [MemberEffect]) {
        let handsOver = known?.inSync == .both
        if handsOver {
            startClosing(stop ? .stopped : .swapped, next: .handedOver(stop: stop), effects: &effects)
        } else if stop {
            startClosing(.stopped, next: .stopped(diskFailed: false), effects: &effects)
        } else {
            startClosing(.restarting, next: .standby, effects: &effects)
        }
    }

    /// Who wanted to move the service keeps it, unless the application is not well here. Else it leaves, and who wanted to
    /// stop stops, by force: every acknowledged write is where the rule says, as after a crash.
    mutating func drainFailed(effects: inout [MemberEffect]) {
        guard case .draining(let stop, _) = mode else { return }
        guard stop else {
            let isPeerThere = peerSilentSince == nil && peerPhase != .stopped && possible.count == 1
            guard movesByForce, known?.inSync == .both, isPeerThere else {
                effects.append(.log(.error, "draining failed: the application starts again here"))
                return startClosing(.restarting, next: .standby, effects: &effects)
            }
            effects.append(.log(.error, "draining failed: node \(node.peer) takes the service all the same, by force"))
            return startClosing(.restarting, next: .handedOver(stop: false), effects: &effects)
        }
        effects.append(.log(.error, "draining failed: node \(node) stops all the same, by force"))
        let handsOver = known?.inSync == .both
        startClosing(
            .restarting, next: handsOver ? .handedOver(stop: true) : .stopped(diskFailed: false), effects: &effects)
    }

    /// Somebody has taken the mount away. The application's files are gone with it: both begin anew.
    mutating func directoryLost(effects: inout [MemberEffect]) {
        if isDraining { return drainFailed(effects: &effects) }
        guard mode == .serving else { return }
        effects.append(.log(.error, "the directory was unmounted by somebody else: the service starts again"))
        startClosing(.restarting, next: .standby, effects: &effects)
    }

    mutating func ownDiskFailed(effects: inout [MemberEffect]) {
        isDiskFailed = true
        endPromotion(.refused("this node's disk failed"), effects: &effects)
        effects.append(.log(.critical, "this node's disk failed: it is neither primary nor in sync any more"))
        proposer.end()
        startClosing(
            .ownDiskFailed, next: isLeading ? .handedOver(stop: true) : .stopped(diskFailed: true), effects: &effects)
    }
}
