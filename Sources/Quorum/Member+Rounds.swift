// Rounds of voting and what comes of them.

extension Member {
    /// Everything is decided here alone: by a chosen decision this node is the sole member, and it has accepted nothing
    /// from itself since that would have changed it. Nobody else may propose then, so it may seed the others (rule 10).
    var isSoleAuthority: Bool {
        guard let state else { return false }
        return state.chosenBallot == state.acceptedBallot && state.accepted.inSync.isOnly(node)
    }

    /// A ballot above everything this node has promised or been refused with. If the witness is empty, the ballot
    /// belongs to the instance that it is about to become: promising it, a node leaves the old instance, and whatever
    /// the old witness answered counts no more.
    private func nextBallot() -> Ballot {
        let promised = state?.promised ?? .zero
        let base = max(promised, highestBallot)
        var instance = base.instance
        if let birth = emptyBirth.witness, birth != instance.birth {
            instance = WitnessInstance(generation: instance.generation + 1, birth: birth)
        }
        return Ballot(instance: instance, number: max(promised.number, base.number) + 1, node: node)
    }

    mutating func beginRound(_ purpose: Purpose, effects: inout [MemberEffect]) {
        guard proposer.isIdle, let acceptor, acceptor.isIncarnationDurable else { return }
        proposer.begin(purpose, ballot: nextBallot())
        proposer.asked = now
        lastRefusal = nil
        ask(own, effects: &effects)
    }

    private mutating func ask(_ voter: Voter, effects: inout [MemberEffect]) {
        switch proposer.phase {
        case .idle: break
        case .preparing:
            let isForced = proposer.purpose == .force
            send(
                .prepare(proposer.ballot, memory: memory[voter], forced: isForced), to: voter, effects: &effects)
        case .accepting:
            guard let decision = proposer.decision else { return }
            send(.accept(proposer.ballot, decision, memory: memory[voter]), to: voter, effects: &effects)
        }
    }

    /// An answer in favour has come. The own acceptor's disk is first: only then do the others hear of the round.
    mutating func advanceRound(answeredBy voter: Voter, effects: inout [MemberEffect]) {
        guard !proposer.isIdle, proposer.hasAnswered(own) else { return }
        if voter == own {
            proposer.asked = now
            for other in others { ask(other, effects: &effects) }
        }
        guard proposer.hasMajority else { return }
        switch proposer.phase {
        case .idle: break
        case .preparing:
            guard let current = proposer.newest else { return }
            if let known, current.sequence < known.sequence {
                // Two of three who know less than was chosen: one has forgotten. Another pair may still know.
                effects.append(
                    .log(.critical, "a voter has forgotten \(known): its disk was put back to an older state"))
                loseRound(wait: nil)
                return
            }
            if let next = change(current, effects: &effects) {
                proposer.propose(next)
                if draft != nil {
                    form(accepting: next, effects: &effects)
                } else {
                    ask(own, effects: &effects)
                }
            } else {
                // One that is behind can only wait for the other one: its rounds must not get into the way of those.
                loseRound(wait: foundBehind ? timing.roundWaitLast * 3 : nil)
            }
        case .accepting:
            guard let decision = proposer.decision else { return }
            complete(decision, effects: &effects)
        }
    }

    /// The change function: from the newest decision found to the one to propose; nil: leave it.
    private mutating func change(_ current: Decision, effects: inout [MemberEffect]) -> Decision? {
        switch proposer.purpose {
        case .lead: return lead(current, effects: &effects)
        case .force where draft != nil: return forceWithoutVotes(current, effects: &effects)
        case .force: return force(current, effects: &effects)
        case .goAlone, .add, .confirm: break
        }
        guard current.primary == node else {
            // The other one won, or may yet: stop serving and give everything back BEFORE anything else. Its decision is
            // left to it: nothing here waits for it, and a decision without this node must never be completed by it.
            depose(by: current.epoch, effects: &effects)
            return nil
        }
        switch proposer.purpose {
        case .goAlone where current.inSync == .both:
            // A shrink is a new epoch (rule 1).
            return Decision(
                sequence: current.sequence + 1, epoch: epoch(after: current), primary: node, inSync: NodeSet(node))
        case .add where current.inSync.isOnly(node) && mayAdd:
            return Decision(
                sequence: current.sequence + 1, epoch: current.epoch, primary: node, inSync: .both)
        default: return current
        }
    }

    mutating func lead(_ current: Decision, effects: inout [MemberEffect]) -> Decision? {
        foundBehind = !current.inSync.contains(node)
        // No node completes a decision that leaves it out (rule 13): it may be half of a proposal that nobody chose, and
        // completing it would lock out those who can still decide.
        guard current.inSync.contains(node), case .standby = mode, !hearsServer, isUsable else { return nil }
        remembered = max(remembered, proposer.mark)
        guard !wasPutBack else {
            sayPutBack(effects: &effects)
            return nil
        }
        if isMerged || log.logComplete || current.inSync.isOnly(node) {
            inheritance = .complete
        } else if isLoneWaitOver {
            inheritance = .unsyncedMayBeMissing
        } else {
            return nil  // a restarted member of a two-node set is no candidate before it is merged (rule 4)
        }
        // Epoch and primary only, never the set (rule 5): the other node may still acknowledge from memory.
        let next = Decision(
            sequence: current.sequence + 1, epoch: epoch(after: current), primary: node, inSync: current.inSync)
        if firstOwnEpoch == nil { firstOwnEpoch = next.epoch }
        return next
    }

    /// Records that were on this node's disk, as a voter remembers, are not there. A record that was on the disk of every
    /// node in sync is in every log of a later epoch, unless a promotion by force left it out; so a log that has a later
    /// epoch is not looked at.
    ///
    /// What the voters remember is older than what was acknowledged. So a node that was put back is not healed when it
    /// has caught up that far, but when it has everything that the other one has.
    var wasPutBack: Bool {
        if putBackSaid != .zero, !isMerged { return true }
        return max(position.epoch, state?.forcedEpoch ?? .none) <= remembered.epoch && position.seq < remembered.seq
    }

    private mutating func sayPutBack(effects: inout [MemberEffect]) {
        guard remembered != putBackSaid else { return }
        putBackSaid = remembered
        effects.append(
            .log(
                .critical,
                "this node's disks were put back to an older state: they end with \(position), and \(remembered), was on "
                    + "the disk of every node in sync. Node \(node) serves nothing before node \(node.peer) has brought it "
                    + "up to date"))
    }

    func epoch(after current: Decision) -> Epoch { max(current.epoch, max(log.lastEpoch, servedEpoch)).next }

    /// The other node may be added: its disk holds everything acknowledged (rule 11), and it has a vote.
    var mayAdd: Bool { isPeerCaughtUp && peerSilentSince == nil && emptyBirth[peer] == nil }

    /// Two of three have accepted: `decision` is chosen, and every earlier proposal of this node is settled.
    private mutating func complete(_ decision: Decision, effects: inout [MemberEffect]) {
        let ballot = proposer.ballot
        pairBallot = proposer.hasAnswered(.a) && proposer.hasAnswered(.b) ? ballot : nil
        proposer.end()
        lostRounds = 0
        nextRoundAt = now
        confirmAt = now + timing.renewal * 2
        lastRefusal = nil
        owesRound = false
        // Whoever refused for want of this round grants now: a frozen node asks at once.
        if !hasLease { leaseAsked = 0 }
        var wanted: [AcceptorEffect] = []
        acceptor?.noteChosen(ballot, memory: memory, effects: &wanted)
        carryOut(wanted, effects: &effects)

        let before = known
        learn(decision, effects: &effects)
        guard known == decision, decision.primary == node else { return }
        leaseBarred = false
        if promotion == .inDoubt { say(.recorded(decision), effects: &effects) }
        switch mode {
        case .standby: startOpening(decision, effects: &effects)
        case .opening, .serving, .draining: adopt(decision, after: before, effects: &effects)
        default: break
        }
    }

    /// The round ends without a result. What it proposed may still be chosen: doubt stays until a later one completes.
    mutating func loseRound(wait: BootNanoseconds?) {
        proposer.end()
        if var wait {
            // The other node has given its grants back, but the voters may not have heard of it yet.
            if peerPhase == .handedOver { wait = min(wait, timing.resend) }
            nextRoundAt = now + wait + generator.upTo(timing.roundWaitFirst) + headStart
        } else {
            // Random and growing (rule 13): two nodes that refuse each other find a gap.
            let bound = min(timing.roundWaitLast, timing.roundWaitFirst << UInt64(min(lostRounds, 16)))
            nextRoundAt = now + timing.roundWaitFirst / 4 + generator.upTo(bound) + headStart
            lostRounds += 1
        }
    }

    /// The recorded primary goes first, if nothing else decides.
    private var headStart: BootNanoseconds { state?.accepted.primary == node ? 0 : timing.roundWaitFirst }

    /// Repeats questions, gives up lost rounds.
    mutating func tendRound(effects: inout [MemberEffect]) {
        guard !proposer.isIdle, let state else { return }
        if proposer.purpose == .lead || proposer.purpose == .force, proposer.phase == .preparing, hearsServer {
            proposer.end()
            return
        }
        if state.promised > proposer.ballot {
            loseRound(wait: nil)  // the own acceptor has promised another round since
            return
        }
        if let reason = proposer.refusals[own] {
            loseRound(wait: remaining(reason))
            return
        }
        let refused = others.count(where: { proposer.refusals[$0] != nil })
        if refused == 2 || (proposer.refusedSince.map { now >= $0 + timing.refusedRound } ?? false) {
            let waits = others.compactMap { voter in proposer.refusals[voter].flatMap { remaining($0) } }
            let someoneElsesBallot = others.contains { proposer.refusals[$0] == .ballot }
            loseRound(wait: someoneElsesBallot ? nil : waits.min())
            return
        }
        guard now >= proposer.asked + timing.resend else { return }
        proposer.asked = now
        // The ballot is raised only after a refusal was heard (rule 12); without an answer the question is repeated.
        for voter in proposer.hasAnswered(own) ? others : [own]
        where !proposer.hasAnswered(voter) && proposer.refusals[voter] == nil {
            ask(voter, effects: &effects)
        }
    }

    func remaining(_ reason: RoundRefusal) -> BootNanoseconds? {
        switch reason {
        case .ballot: nil
        case .leaseHeld(let milliseconds), .restarted(let milliseconds): UInt64(milliseconds) * 1_000_000
        }
    }

    /// Gives empty voters their memory (rule 10).
    mutating func seedOthers(effects: inout [MemberEffect]) {
        guard let state else { return }
        for voter in others {
            guard let birth = emptyBirth[voter], now >= seededAt[voter] + timing.resend else { continue }
            let promised: Ballot
            if voter == .witness {
                // Its new instance is one that this node's own disk has promised in; so no round of an old one counts.
                guard state.promised.instance.birth == birth else { continue }
                if isSoleAuthority {
                    promised = max(
                        state.acceptedBallot, Ballot(instance: state.promised.instance, number: 0, node: .a))
                } else if let pairBallot, pairBallot == state.acceptedBallot, pairBallot.instance.birth == birth {
                    promised = max(pairBallot, state.promised)
                } else {
                    continue
                }
            } else {
                guard isSoleAuthority else { continue }
                promised = state.acceptedBallot
            }
            seededAt[voter] = now
            send(
                .seed(
                    birth: birth, mirror: state.mirror, name: state.name, promised: promised,
                    acceptedBallot: state.acceptedBallot, accepted: state.accepted),
                to: voter, effects: &effects)
        }
    }
}
