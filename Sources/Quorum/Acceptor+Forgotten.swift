// A voter whose memory turned out to be older than what it has answered: it forgets, and may be formed anew by force.

extension AcceptorState {
    /// How far above what was forgotten the ballots of a forced promotion lie: further than any that this voter may have
    /// promised or accepted in the time that it does not remember. One is used with each start and each change of the set.
    static let forgottenBallotStep: UInt64 = 1 << 20

    /// What counts of the two files of a node, its votes and those that it has forgotten, when it starts.
    ///
    /// Whoever forgets moves the one file to the other's place, and whatever is stored later has another birth. So votes
    /// beside forgotten ones are newer (the process died before it removed those), unless they are of the same birth: then
    /// somebody has copied the old file back once more, and the newer of the two is what was forgotten.
    public static func recalled(
        votes: AcceptorState?, forgotten: AcceptorState?
    ) -> (votes: AcceptorState?, forgotten: AcceptorState?) {
        guard let votes, let forgotten else { return (votes, forgotten) }
        guard votes.birth == forgotten.birth else { return (votes, nil) }
        let isNewer = (votes.promised, votes.starts) > (forgotten.promised, forgotten.starts)
        return (nil, isNewer ? votes : forgotten)
    }
}

extension Acceptor {
    /// Another voter has heard a later process on these votes than this one: they were put back to an older state.
    mutating func forget(effects: inout [AcceptorEffect]) {
        effects.append(
            .log(
                .critical,
                "this voter's disk was put back to an older state: it forgets what it knows and waits to be seeded"))
        if let state { forgotten = state }
        forgetRetiredVotes()
        state = nil
        emptyBirth = generator.next()
        held = []
        lastToken += 1
        incarnationToken = lastToken
        effects.append(.persist(nil, token: lastToken))
    }

    /// The start of a forced promotion of a voter that has forgotten its votes: what it asks the witness with. In memory
    /// only, and a memory of its own: whoever asks this voter meanwhile hears that it is empty.
    ///
    /// - Parameter highest: what the witness refused an earlier attempt with.
    /// - Returns: nil if there is nothing to go by.
    mutating func draft(above highest: Ballot) -> AcceptorState? {
        guard state == nil, var draft = forgotten, let node = voter.node else { return nil }
        // Not the old one, of which others have heard more. Nor the number of this empty life: what the witness hears of the
        // attempt must not be held against votes that the other node gives meanwhile.
        draft.birth = generator.next()
        draft.starts = 1
        let base = max(draft.promised, highest)
        draft.promised = Ballot(
            instance: base.instance,
            number: max(draft.promised.number, base.number) + AcceptorState.forgottenBallotStep
                + generator.upTo(AcceptorState.forgottenBallotStep), node: node)
        // It may have been the sole member, or promoted by force, when it last knew; it does not know that it still is.
        draft.chosenBallot = .zero
        draft.forcedEpoch = nil
        // The other node may have been installed anew since. What the witness has answered holds for ever.
        let witness = draft.memory.witness
        draft.memory = PerVoter(VoterMemory())
        draft.memory.witness = witness
        return draft
    }

    /// Why this voter may not promise anything to its own node yet: what it, or its earlier process, may have granted.
    func objectionToForming(now: BootNanoseconds) -> RoundRefusal? {
        guard let node = voter.node else { return .ballot }
        return blocked(node, now: now)
    }

    /// Ends the time without a memory by the forced decision of the own node: promise, decision and `forcedEpoch` in one
    /// write, the first of this memory. The answer to the own node follows when it is on the disk; until then nothing
    /// leaves in this voter's name.
    mutating func form(
        _ draft: AcceptorState, accepting decision: Decision, in ballot: Ballot, effects: inout [AcceptorEffect]
    ) {
        guard let node = voter.node else { return }
        precondition(state == nil, "votes that were given anew meanwhile")
        precondition(ballot >= draft.promised, "a ballot that was not promised")
        precondition(decision.inSync == NodeSet(node), "not a forced promotion of this node")
        var formed = draft
        formed.promised = ballot
        formed.acceptedBallot = ballot
        formed.accepted = decision
        formed.forcedEpoch = decision.epoch
        formed.leaseBar = ballot
        formed.longestGrantMilliseconds = milliseconds(earlierGrant)
        forgotten = nil
        begin(formed, effects: &effects)
        let question = QuorumMessage(
            sender: incarnation, number: 0, body: .accept(ballot, decision, memory: VoterMemory()))
        answer(node, to: question, .accepted(ballot), effects: &effects)
    }
}
