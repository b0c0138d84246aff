// A forced promotion of a node that has forgotten its votes.
//
// A node whose votes were put back to an older state forgets them (`Acceptor.forget`): it does not know what it has
// promised and accepted since. The other node, serving alone, gives it new ones. If the other node is lost for good,
// nobody can; and the same if both have forgotten theirs. What is left is an administrator's order, as for a node that is
// not in sync, and the votes that were forgotten are what it goes by: they say which mirror this is, and from which
// ballots and decisions one has to keep clear.
//
// * **For everybody else this node stays without a memory** until its forced decision is on its own disk: it answers the
//   other node "I am empty", grants nothing, and does no round but the forced one, with the witness alone. For that one
//   round the forgotten votes, in memory only (`draft`), promise a ballot far above everything that they, or what came
//   after them, may have promised (`AcceptorState.forgottenBallotStep`).
// * When the witness has promised, the forced decision, `forcedEpoch` and the promise become the votes, of a new birth, in
//   one write (`Acceptor.form`). Only then is the witness asked to accept, and only from then on does this voter answer
//   others. Nothing below that ballot can be chosen with its help any more, whatever it may have promised or accepted in the
//   time that it does not remember. What was decided in that time by the two nodes alone, the witness has not heard of:
//   the order overrules it. The other node finds that, by its first round with the witness: ballot, number and epoch of
//   the order are above everything that it may have.
// * So what was forgotten counts never, except for that one write. What the witness promised and accepted counts as ever.
// * It waits for what its earlier process may have granted, and the witness for what it has granted. No lease of the other
//   node runs when the order is recorded.
// * The other node, if it is heard *with* votes, knows better, and gives this one new ones as soon as it serves: then the
//   order is refused, or ends, and new votes end it too. A node that is itself without votes says nothing unless it is
//   asked: of two that have both forgotten theirs, one is promoted, and seeds the other.
//
// If the process dies right after
//
// ```
//   the votes were forgotten        one rename, `votes` to `votes.forgotten`: before it the old votes are there, and are found
//                                   out again, as they were. After it the node waits, now and after each start.
//   the order, the witness's        in memory only. A ballot is used up. The next order draws another one.
//   promise
//   own accept, on disk             `votes` with `forcedEpoch`, `votes.forgotten` still there: of another birth, so the votes
//                                   count. Half recorded, like any forced promotion: see `Member+Promotion`.
//   the removal of votes.forgotten  nothing more to say.
//   new votes of the other node,    as with the own accept: they count, whatever lies beside them.
//   on disk
// ```
//
// **An empty witness** has promised nothing. `seedWitness` gives it a forced decision in an instance far above what may be
// forgotten, and the round with it follows. Nothing of that has to be on this node's disk before: it has no votes that
// anybody counts, and what it accepted before it forgot must not look like its vote again. Dies after the seed: the witness
// has a decision that leaves the other node out, and nobody serves before another order, here or there. The other node's
// own seed came first: the order ends.
//
// **A copy of this machine** that runs elsewhere is the same node to every voter, and would not be told by its birth. A
// voter promises nothing by force while a grant runs that another process of the node has asked for. And who accepts from new
// votes of a node retires those before: a copy that comes back with them is told, gets no lease and forgets them
// (`Acceptor.retireVotes`; in memory: not after a restart of that voter).

extension Member {
    /// As `forcedSequenceStep`, for a node that does not know for how long it has forgotten.
    static let reformingSequenceStep: UInt64 = 1 << 20

    /// The votes that this node has forgotten, while it waits for new ones; an administrator can have it promoted by them.
    public var forgotten: AcceptorState? { state == nil ? acceptor?.forgotten : nil }

    /// The identity of the mirror, as far as this node's votes know it, or have known it.
    public var mirror: MirrorID { (state ?? forgotten)?.mirror ?? .none }

    /// The other node was heard, and has votes.
    private var hearsFormedPeer: Bool {
        guard let at = peerFormedAt, connected[peer] else { return false }
        return now < at + timing.hearing * 4
    }

    private var peerKnowsBetter: String {
        "node \(node.peer) is heard, and has its votes: it gives this node new ones as soon as it serves; look at `lockstep "
            + "status` there. If it can never serve again, stop its daemon for good, then try again"
    }

    private var witnessIsEmpty: String {
        "the witness has no memory, and node \(node.peer), which could give it back, is not heard: start node "
            + "\(node.peer). If it is lost for good, add --seed-witness"
    }

    private var witnessMayBeSeeded: String {
        "the witness was given its memory from here, or may be yet, and has not recorded the promotion in time: try again. "
            + "Node \(node.peer) does not serve by what the witness was given"
    }

    func objectionToReforming() -> String? {
        guard forgotten != nil else {
            return "this node has no part in the mirror yet: there is nothing that it could serve"
        }
        if hearsFormedPeer { return peerKnowsBetter }
        if let other = nameTakenBy {
            return "the witness serves another mirror of this name (id \(other)): mend that first"
        }
        return nil
    }

    /// The order is over, or was; without votes in this room nothing of it is left.
    mutating func endReforming(_ state: PromotionState, effects: inout [MemberEffect]) {
        if draft != nil { proposer.end() }
        draft = nil
        endPromotion(state, effects: &effects)
    }

    /// What to do next without votes: nothing, unless an administrator has ordered.
    mutating func tendReforming(effects: inout [MemberEffect]) {
        guard order != nil, let acceptor else { return }
        if let lastRefusal { order?.refusal = lastRefusal }
        guard case .unformed = mode, forgotten != nil else {
            return endReforming(.refused("this node was stopped"), effects: &effects)
        }
        guard !hearsFormedPeer else { return endReforming(.refused(peerKnowsBetter), effects: &effects) }
        guard let order, now < order.until else {
            let why = order?.seed == nil ? whyNotPromoted : witnessMayBeSeeded
            return endReforming(.refused(why), effects: &effects)
        }
        if let birth = emptyBirth.witness {
            guard order.seedsWitness else { return endReforming(.refused(witnessIsEmpty), effects: &effects) }
            seedWithoutVotes(birth: birth, acceptor, effects: &effects)
        }
        if let reason = proposer.isIdle ? nil : proposer.refusals.witness {
            loseRound(wait: remaining(reason))
        } else if proposer.isIdle {
            beginReforming(effects: &effects)
        } else if now >= proposer.asked + timing.resend {
            askWitnessWithoutVotes(effects: &effects)
        }
    }

    /// Nothing is asked before the votes are durably put aside, and before no grant of this room may run.
    private mutating func beginReforming(effects: inout [MemberEffect]) {
        guard now >= nextRoundAt, let acceptor, acceptor.isSettled else { return }
        if let reason = acceptor.objectionToForming(now: now) {
            order?.refusal = reason
            return
        }
        // Not above the ballot of a seed: whether the witness has taken that, it says by its refusal. A ballot of an instance
        // that it never was would make it forget what somebody else has given it.
        guard let next = self.acceptor?.draft(above: highestBallot) else { return }
        draft = next
        memory.a = VoterMemory()
        memory.b = VoterMemory()
        memory.witness.note(promised: next.memory.witness.promised)
        memory.witness.note(accepted: next.memory.witness.accepted)
        lastRefusal = nil
        proposer.begin(.force, ballot: next.promised)
        proposer.promised(
            by: own, next.promised, acceptedBallot: next.acceptedBallot, accepted: next.accepted, mark: .zero)
        askWitnessWithoutVotes(effects: &effects)
    }

    private mutating func askWitnessWithoutVotes(effects: inout [MemberEffect]) {
        guard proposer.phase == .preparing else { return }
        proposer.asked = now
        sendWithoutVotes(
            .prepare(proposer.ballot, memory: memory.witness, forced: true), effects: &effects)
    }

    private mutating func sendWithoutVotes(_ body: QuorumMessage.Body, effects: inout [MemberEffect]) {
        guard let draft else { return }
        lastNumber += 1
        let sender = Incarnation(birth: draft.birth, session: draft.starts)
        effects.append(.send(.witness, QuorumMessage(sender: sender, number: lastNumber, body: body)))
    }

    /// Repeated until the witness shows that it has a memory.
    private mutating func seedWithoutVotes(birth: UInt64, _ acceptor: Acceptor, effects: inout [MemberEffect]) {
        guard let draft, acceptor.isSettled, now >= seededAt.witness + timing.resend else { return }
        if order?.seed?.birth != birth {
            let instance = WitnessInstance(
                generation: max(draft.promised, highestBallot).instance.generation + Member.forcedSeedGenerationStep,
                birth: birth)
            let ballot = Ballot(instance: instance, number: draft.promised.number, node: node)
            let decision = decisionWithoutVotes(after: draft.accepted)
            order?.seed = PromotionOrder.Seed(birth: birth, ballot: ballot, decision: decision)
            effects.append(.log(.critical, "forced seeding of the empty witness with \(decision)"))
            // The round that was begun belongs to an instance that is gone.
            proposer.end()
            nextRoundAt = now
        }
        guard let seed = order?.seed else { return }
        seededAt.witness = now
        sendWithoutVotes(
            .seed(
                birth: birth, mirror: draft.mirror, name: draft.name, promised: seed.ballot,
                acceptedBallot: seed.ballot, accepted: seed.decision), effects: &effects)
    }

    /// The forced decision, from what the witness and the forgotten votes know.
    mutating func forceWithoutVotes(_ current: Decision, effects: inout [MemberEffect]) -> Decision? {
        guard case .unformed = mode, !hearsFormedPeer, let order, now < order.until else { return nil }
        if let seed = order.seed, current != seed.decision {
            // Somebody else has given the witness its memory, a moment ago.
            endReforming(.overtaken, effects: &effects)
            return nil
        }
        return proposeByForce(decisionWithoutVotes(after: current), instead: current, effects: &effects)
    }

    private func decisionWithoutVotes(after current: Decision) -> Decision {
        var base = current
        if let draft {
            base.sequence = max(base.sequence, draft.accepted.sequence)
            base.epoch = max(base.epoch, draft.accepted.epoch)
        }
        return forcedDecision(
            after: base, epochs: Member.forcedSeedEpochStep, sequences: Member.reformingSequenceStep)
    }

    /// The first votes of this memory: the forced decision.
    mutating func form(accepting decision: Decision, effects: inout [MemberEffect]) {
        guard let draft else { return }
        self.draft = nil
        mode = .standby
        putBackSaid = .zero
        var wanted: [AcceptorEffect] = []
        acceptor?.form(draft, accepting: decision, in: proposer.ballot, effects: &wanted)
        carryOut(wanted, effects: &effects)
    }
}
