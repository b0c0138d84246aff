// An administrator's forced promotion: this node leads although it is not in sync.
//
// It is for the day on which the only node in sync is gone for good. It breaks one rule on purpose, "only an in-sync node
// takes over", and none of the others:
//
// * It is a decision of two of three rooms like any other: a full round, this node's own disk first. So the other node,
//   if it or the witness still knows better, wins or loses in one place, and there is one history afterwards.
// * Leases protect as ever: a voter that has granted one to the other node refuses. Nobody is promoted while the other
//   node serves. The two never serve at once.
// * Nothing is acknowledged behind its back: who has promised it grants nobody a lease before something of a ballot at
//   least as high is chosen (`AcceptorState.leaseBar`). So while half of it is recorded, the other node may not serve; and
//   once the other node serves again, the half can never be completed.
// * It burns an epoch above everything known here (rules 1 and 15), and its number leaves a gap, so that it is newer than
//   whatever the other node may have stored alone and nobody chose.
//
// What happens if the process dies, or a message is lost:
//
// ```
//   the request is heard          in memory only: a restart forgets it. Nothing was asked of anybody.
//   prepare, promises             a ballot is used up. Forgotten by a restart.
//   own accept, on disk           half recorded, with `forcedEpoch` in the same write. Only this node may finish it, by the
//                                 next full round, also after a restart (an accept may be on its way: silence is not
//                                 "no", rules 5 and 6). The other node completes no decision that leaves it out (rule
//                                 13); with the witness it may decide something newer, and then this node finds that.
//   accepts, chosen               the order is done; its answer lost: the next round reads it back.
//   serve(..., byForce)           comes with each start of serving until the other node is in sync again, so the
//                                 permanent statement is made whenever the crash came.
// ```
//
// The old primary may return at any of these moments. Before the witness promised: it gets the lease, this node is refused
// and says so. After: whichever of the two ballots the witness accepts last decides, once; and the old primary has no
// lease, and acknowledges nothing, before its own has won. After it was chosen: its first
// round shows a decision without it, it stands by (`foundBehind`), and what it wrote alone is saved before it is cut.
//
// **An empty witness** knows nothing, so there is no second room to decide with, and only both nodes together, or the sole
// member, may give it its memory (rule 10). `seedWitness` does it from here, by force: this node promises a ballot of the
// witness's next instance on its own disk, and the seed carries the forced decision in that ballot. What it accepted
// itself stays as it was: else a half-done seed would be a decision with a high ballot that nobody chose, and could
// overrule, later, one that was. The instance is far above what the other node may have reached with witnesses that this
// one never heard of. Dies before the seed left: nothing, the order is forgotten. The seed is lost: repeated while the
// order lasts. It arrives late, or this process dies after it: the witness has the decision, this node finds it in its
// next round (`mayLead` by `forcedEpoch`) or by another order, the other node is left out by it. The other node's own seed
// came first: the witness has a memory, and ignores this one.
//
// What cannot be helped: the witness is installed anew *after* a forced promotion, and the old primary, which has not
// heard of it, reaches the empty witness before this node does. It believes to be the sole member and gives the witness
// its old decision. Hence: after a forced promotion keep the witness until the old node has returned or is gone.

/// An order to promote this node by force, while it lasts.
struct PromotionOrder: Sendable {
    struct Seed: Sendable {
        var birth: UInt64
        var ballot: Ballot
        var decision: Decision
    }
    var until: BootNanoseconds
    var seedsWitness: Bool
    /// Promised on the own disk; the witness is to be seeded with it.
    var seed: Seed?
    /// Why the last attempt did not succeed.
    var refusal: RoundRefusal?
}

extension Member {
    /// The newest decision that this node has heard of, chosen or its own.
    public var newestDecision: Decision? {
        [known, peerChosen, (state ?? forgotten)?.accepted].compactMap { $0 }.max { $0.sequence < $1.sequence }
    }

    /// Why this node is not to be promoted by force now, for an administrator; nil: it may be tried.
    public func whyNotPromote(seedWitness: Bool) -> String? { objectionToPromotion(seedWitness: seedWitness) }

    /// A forced decision's number is so far above what is known here: the other node may have stored some alone.
    static let forcedSequenceStep: UInt64 = 1 << 10
    /// A forced seed knows less: epochs, and generations of the witness, that only the other node and a witness that is
    /// gone have known.
    static let forcedSeedEpochStep: UInt32 = 1 << 12
    static let forcedSeedGenerationStep: UInt32 = 1 << 16

    /// How long an order is tried: grants that still run, or that a restarted voter waits out, end within it.
    private var orderTime: BootNanoseconds { timing.grant * 2 + timing.refusedRound * 2 }

    mutating func say(_ state: PromotionState, effects: inout [MemberEffect]) {
        promotion = state
        effects.append(.promotion(state))
    }

    mutating func endPromotion(_ state: PromotionState, effects: inout [MemberEffect]) {
        guard order != nil else { return }
        order = nil
        say(state, effects: &effects)
    }

    mutating func requestPromotion(seedWitness: Bool, effects: inout [MemberEffect]) {
        if let why = objectionToPromotion(seedWitness: seedWitness) {
            effects.append(.adminRefused(why))
            return
        }
        // Without votes it has asked nobody for long: only what the witness says from now on counts.
        if state == nil { emptyBirth.witness = nil }
        // A round of its own that is under way ends, in doubt like any other.
        proposer.end()
        lastRefusal = nil
        nextRoundAt = now
        order = PromotionOrder(until: now + orderTime, seedsWitness: seedWitness)
        effects.append(
            .log(.critical, "an administrator orders node \(node) to lead by force, without what node \(node.peer) has")
        )
        say(.ordered(until: now + orderTime), effects: &effects)
    }

    private func objectionToPromotion(seedWitness: Bool) -> String? {
        let peer = node.peer
        switch mode {
        case .standby: break
        case .unformed: return objectionToReforming()
        case .opening, .serving, .draining: return "node \(node) serves already, or is about to"
        case .closing, .handedOver: return "node \(node) is just giving up its service: look at `lockstep status`"
        case .stopped(diskFailed: false): return "node \(node) is stopped: `lockstep start` first"
        case .stopped(diskFailed: true):
            return
                "this node's journal or files failed: see `problem` in `lockstep status`; what cannot be read cannot "
                + "be served"
        }
        guard let state else { return "this node has no part in the mirror yet" }
        if hearsServer {
            return "node \(peer) serves, and is heard here: nothing has to be forced. `lockstep swap` there moves the "
                + "service, once this node is in sync"
        }
        let latest = newest(of: state)
        if !foundBehind, !wasPutBack, latest.inSync.contains(node),
            isMerged || log.logComplete || latest.inSync.isOnly(node)
        {
            return "node \(node) is in sync as far as it knows: it serves by itself as soon as a second room agrees; "
                + "`lockstep status` says what it waits for"
        }
        if let other = nameTakenBy {
            return "the witness serves another mirror of this name (id \(other)): mend that first"
        }
        if emptyBirth.witness != nil, !seedWitness, heardAt[self.peer] == nil {
            return
                "the witness has no memory, and node \(peer), which is needed to give it back, is not heard: start node "
                + "\(peer). If it is lost for good, add --seed-witness"
        }
        if seedWitness, emptyBirth.witness == nil {
            return "no witness without memory is heard: leave out --seed-witness, or start the witness"
        }
        return nil
    }

    /// The change of a forced promotion: allowed though this node is not in the set, alone in it afterwards.
    mutating func force(_ current: Decision, effects: inout [MemberEffect]) -> Decision? {
        guard case .standby = mode, !hearsServer, let order, now < order.until else { return nil }
        remembered = max(remembered, proposer.mark)
        if current.inSync.contains(node), !wasPutBack, isMerged || log.logComplete || current.inSync.isOnly(node) {
            // Nothing has to be forced: the order is over, an ordinary round does it.
            endPromotion(.inDoubt, effects: &effects)
            return lead(current, effects: &effects)
        }
        return proposeByForce(forcedDecision(after: current, epochs: 1), instead: current, effects: &effects)
    }

    mutating func proposeByForce(
        _ next: Decision, instead current: Decision, effects: inout [MemberEffect]
    ) -> Decision {
        foundBehind = false
        inheritance = .byForce(since: next.epoch)
        if firstOwnEpoch == nil { firstOwnEpoch = next.epoch }
        acceptor?.noteForced(proposer.ballot)
        // Once: whatever becomes of the proposal, it is not made again.
        endPromotion(.inDoubt, effects: &effects)
        effects.append(.log(.critical, "forced promotion: \(next); before it: \(current)"))
        return next
    }

    func forcedDecision(after current: Decision, epochs: UInt32, sequences: UInt64 = forcedSequenceStep) -> Decision {
        var base = current
        for other in [known, peerChosen] {
            guard let other else { continue }
            base.sequence = max(base.sequence, other.sequence)
            base.epoch = max(base.epoch, other.epoch)
        }
        return Decision(
            sequence: base.sequence + sequences,
            epoch: Epoch(rawValue: epoch(after: base).rawValue + epochs - 1), primary: node, inSync: NodeSet(node))
    }

    /// Ends an order whose time is over, and seeds the witness if it says so.
    mutating func tendPromotion(effects: inout [MemberEffect]) {
        guard order != nil else { return }
        if let lastRefusal { order?.refusal = lastRefusal }
        if hearsServer {
            return endPromotion(.refused("node \(node.peer) serves, and is heard here"), effects: &effects)
        }
        guard let order, now < order.until else {
            let seeded = order?.seed != nil
            return endPromotion(seeded ? .inDoubt : .refused(whyNotPromoted), effects: &effects)
        }
        if order.seedsWitness { seedByForce(order, effects: &effects) }
    }

    var whyNotPromoted: String {
        switch order?.refusal {
        case .leaseHeld where state == nil:
            return
                "a voter says that a lease runs: node \(node.peer) still serves, or a copy of this node does. Mend the link to "
                + "it, or stop it for certain, then try again"
        case .leaseHeld:
            return
                "node \(node.peer) still serves: a voter says that it holds the lease. Mend the link to it, or stop it "
                + "for certain, then try again"
        case .restarted:
            return
                "a voter has restarted and still keeps what its earlier process may have promised: try again in a few "
                + "seconds"
        case .ballot: return "the voters were busy with other rounds: try again"
        case nil where state == nil:
            return
                "the witness has not answered: it must be reachable, because this node has no votes to decide with before "
                + "it has"
        case nil:
            return
                "no second room has answered: the witness, or node \(node.peer), must be reachable; one room decides "
                + "nothing alone"
        }
    }

    private mutating func seedByForce(_ order: PromotionOrder, effects: inout [MemberEffect]) {
        guard let acceptor, let state = acceptor.state else { return }
        guard let birth = emptyBirth.witness else {
            // It has a memory now: this one, or another's. The next round shows which.
            guard order.seed != nil else { return }
            nextRoundAt = now
            return endPromotion(.inDoubt, effects: &effects)
        }
        guard let seed = order.seed, seed.birth == birth else {
            return promiseSeed(state, birth: birth, effects: &effects)
        }
        guard acceptor.isSettled, now >= seededAt.witness + timing.resend else { return }
        seededAt.witness = now
        send(
            .seed(
                birth: birth, mirror: state.mirror, name: state.name, promised: seed.ballot,
                acceptedBallot: seed.ballot, accepted: seed.decision),
            to: .witness, effects: &effects)
    }

    private mutating func promiseSeed(_ state: AcceptorState, birth: UInt64, effects: inout [MemberEffect]) {
        let base = max(state.promised, highestBallot)
        let instance = WitnessInstance(
            generation: base.instance.generation + Member.forcedSeedGenerationStep, birth: birth)
        let ballot = Ballot(instance: instance, number: base.number + 1, node: node)
        let decision = forcedDecision(after: state.accepted, epochs: Member.forcedSeedEpochStep)
        proposer.end()
        var wanted: [AcceptorEffect] = []
        let refusal = acceptor?.promiseForcedSeed(ballot, epoch: decision.epoch, now: now, effects: &wanted)
        carryOut(wanted, effects: &effects)
        if let refusal {
            order?.refusal = refusal
        } else {
            order?.seed = PromotionOrder.Seed(birth: birth, ballot: ballot, decision: decision)
            seededAt.witness = 0
            effects.append(.log(.critical, "forced seeding of the empty witness with \(decision)"))
        }
    }

    /// A decision without this node was chosen that is newer than its own: if it was the sole member, it was overruled
    /// by force, and may not act on that any more, also after a restart.
    mutating func renounce(_ decision: Decision, effects: inout [MemberEffect]) {
        guard let state, decision.sequence > state.accepted.sequence, isSoleAuthority else { return }
        effects.append(
            .log(
                .critical,
                "node \(node) alone held every write, and node \(node.peer) was promoted by force since: what only this "
                    + "node has is not part of the mirror any more"))
        var wanted: [AcceptorEffect] = []
        acceptor?.renounce(effects: &wanted)
        carryOut(wanted, effects: &effects)
    }
}
