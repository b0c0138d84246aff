// What the voters say.

extension Member {
    mutating func receive(_ message: QuorumMessage, from voter: Voter, effects: inout [MemberEffect]) {
        guard voter != own, acceptor != nil else { return }
        if let earlier = incarnations[voter], earlier.birth == message.sender.birth,
            message.sender.session < earlier.session
        {
            // From an earlier process; or from one that does not know what it has said: see `Acceptor.receive`.
            send(
                .heard(birth: earlier.birth, session: earlier.session, ballot: .zero), to: voter, effects: &effects)
            return
        }
        incarnations[voter] = message.sender
        heardAt[voter] = now
        connected[voter] = true
        if state == nil {
            receiveUnformed(message, from: voter, effects: &effects)
            return
        }
        switch message.body {
        case .prepare, .accept, .leaseRequest, .leaseRelease, .seed:
            guard let asker = voter.node else { return }
            passToAcceptor(message, from: asker, effects: &effects)
        default: receiveAnswer(message, from: voter, effects: &effects)
        }
    }

    private mutating func passToAcceptor(
        _ message: QuorumMessage, from asker: NodeID, effects: inout [MemberEffect]
    ) {
        var wanted: [AcceptorEffect] = []
        acceptor?.receive(message, from: asker, now: now, effects: &wanted)
        carryOut(wanted, effects: &effects)
        if state == nil { votesWerePutBack(effects: &effects) }
    }

    /// Everything this node believes rests on the disk that was put back.
    private mutating func votesWerePutBack(effects: inout [MemberEffect]) {
        proposer.end()
        endPromotion(.refused("this node's votes were put back to an older state"), effects: &effects)
        known = nil
        isMerged = false
        log.logComplete = false
        startClosing(.rolledBack, next: afterVotesWerePutBack, effects: &effects)
    }

    /// Who was stopped stays so: whoever stopped it has not changed his mind.
    private var afterVotesWerePutBack: AfterClose {
        switch mode {
        case .stopped(let diskFailed), .closing(.stopped(let diskFailed)): .stopped(diskFailed: diskFailed)
        case .draining(stop: true, _), .handedOver(_, stop: true), .closing(.handedOver(stop: true)):
            .stopped(diskFailed: isDiskFailed)
        default: .unformed
        }
    }

    /// Somebody has heard more of this node than its votes know.
    private mutating func receiveHeard(
        birth: UInt64, session: UInt64, ballot: Ballot, from voter: Voter, effects: inout [MemberEffect]
    ) {
        // Else an answer to a late message of an earlier process.
        guard let state, birth == state.birth, session > state.starts || ballot > state.promised else { return }
        effects.append(
            .log(
                .critical,
                "\(voter) has heard more of node \(node) than it knows itself (process \(session), ballot \(ballot); "
                    + "here process \(state.starts), ballot \(state.promised)): this node's votes were put back to an "
                    + "older state, or a copy of this node runs elsewhere"))
        var wanted: [AcceptorEffect] = []
        acceptor?.forget(effects: &wanted)
        carryOut(wanted, effects: &effects)
        votesWerePutBack(effects: &effects)
    }

    /// An empty node takes a seed from the other one and answers everything else with "I am empty". The witness answers it
    /// in a forced round only.
    private mutating func receiveUnformed(
        _ message: QuorumMessage, from voter: Voter, effects: inout [MemberEffect]
    ) {
        guard let asker = voter.node else {
            if draft != nil { receiveAnswer(message, from: voter, effects: &effects) }
            return
        }
        if case .empty = message.body { return }
        peerFormedAt = now
        passToAcceptorUnformed(message, from: asker, effects: &effects)
        if let state {
            endReforming(.refused("node \(asker) has given this node new votes meanwhile"), effects: &effects)
            memory = state.memory
            log.logComplete = false
            nextRoundAt = now
            if case .unformed = mode { mode = .standby }
        }
    }

    private mutating func passToAcceptorUnformed(
        _ message: QuorumMessage, from asker: NodeID, effects: inout [MemberEffect]
    ) {
        var wanted: [AcceptorEffect] = []
        acceptor?.receive(message, from: asker, now: now, effects: &wanted)
        carryOut(wanted, effects: &effects)
    }

    /// An answer of any voter, this node's own included, or the other node's status.
    mutating func receiveAnswer(_ message: QuorumMessage, from voter: Voter, effects: inout [MemberEffect]) {
        if case .empty(let birth) = message.body {
            receiveEmpty(birth, echo: message.echo, from: voter, effects: &effects)
            return
        }
        if case .nameTaken(let other) = message.body {
            receiveNameTaken(other, effects: &effects)
            return
        }
        if message.echo != 0, message.echo <= emptyEcho[voter] { return }  // said before it lost its memory
        if message.echo > formedEcho[voter] {
            formedEcho[voter] = message.echo
            if emptyBirth[voter] != nil {
                emptyBirth[voter] = nil
                if voter == .witness { nameTakenBy = nil }
            }
        }
        switch message.body {
        case .promise(let ballot, let acceptedBallot, let accepted, let mark):
            memory[voter].note(promised: ballot)
            proposer.promised(by: voter, ballot, acceptedBallot: acceptedBallot, accepted: accepted, mark: mark)
            advanceRound(answeredBy: voter, effects: &effects)
        case .accepted(let ballot):
            memory[voter].note(accepted: ballot)
            proposer.accepted(by: voter, ballot)
            advanceRound(answeredBy: voter, effects: &effects)
        case .refused(let ballot, let phase, let promised, let reason):
            highestBallot = max(highestBallot, promised)
            lastRefusal = reason
            proposer.refused(by: voter, ballot, phase, reason, now: now)
        case .leaseGranted(let number):
            lease.granted(by: voter, number: number)
            findsGrantTooLong[voter] = false
        case .leaseRefused(let number, let reason, let accepted):
            lease.answered(by: voter, number: number)
            // The witness accepted the other node's later epoch after that node's own disk had: two of three. So this node
            // is deposed for certain, also when it cannot hear the one that leads. Lost, late or doubled: what was chosen
            // stays chosen, and the next lease request is answered the same. The other node's own voter proves nothing:
            // it accepts first, and alone that may never be chosen.
            if reason == .notPrimary, voter == .witness, let known, accepted > known.epoch {
                depose(by: accepted, effects: &effects)
            }
            if reason == .roundFirst { owesRound = true }
            if reason == .tooLong { findsGrantTooLong[voter] = true }
        case .status(let phase, let chosen, let witness):
            memory.witness.note(accepted: witness.accepted)
            memory.witness.note(promised: witness.promised)
            receiveStatus(phase, chosen: chosen, effects: &effects)
        case .heard(let birth, let session, let ballot):
            receiveHeard(birth: birth, session: session, ballot: ballot, from: voter, effects: &effects)
        default: break
        }
    }

    /// A voter without memory. What it answered before in an open round counts no more. "I am empty" that was overtaken
    /// by a later "I know" is old and means nothing: the echoed numbers tell.
    private mutating func receiveEmpty(
        _ birth: UInt64, echo: UInt64, from voter: Voter, effects: inout [MemberEffect]
    ) {
        guard echo > formedEcho[voter] else { return }
        emptyEcho[voter] = max(emptyEcho[voter], echo)
        guard emptyBirth[voter] != birth else { return }
        emptyBirth[voter] = birth
        // A node starts anew with whatever it is seeded with. The witness is remembered all the same: its next instance
        // is above everything it ever answered, unless someone puts back an older state instead.
        if voter != .witness { memory[voter] = VoterMemory() }
        effects.append(
            .log(.warning, "the voter \(voter) has no memory: it was installed anew, or its disk was put back"))
        if !proposer.isIdle {
            let newInstance = voter == .witness && proposer.ballot.instance.birth != birth
            if proposer.countsOn(voter) || (newInstance && (isSoleAuthority || proposer.phase == .preparing)) {
                proposer.end()
                nextRoundAt = now
            }
        }
    }

    private mutating func receiveNameTaken(_ other: MirrorID, effects: inout [MemberEffect]) {
        guard nameTakenBy != other else { return }
        nameTakenBy = other
        effects.append(
            .log(
                .error,
                "the witness serves another mirror of this name (id \(other)) and refuses this one: give one of the two "
                    + "another name"))
    }

    private mutating func receiveStatus(
        _ phase: NodePhase, chosen: Decision?, effects: inout [MemberEffect]
    ) {
        if phase == .handedOver, peerPhase != .handedOver { nextRoundAt = now }
        peerPhase = phase
        peerChosen = chosen
        // What this node proposed itself it learns only by its own round.
        if let chosen, !(isLeading && chosen.primary == node) { learn(chosen, effects: &effects) }
    }

    /// A decision that was chosen. Older ones change nothing (rule 7): a reply may be as late as it likes.
    mutating func learn(_ decision: Decision, effects: inout [MemberEffect]) {
        if let known, decision.sequence <= known.sequence || decision.epoch < known.epoch { return }
        known = decision
        if foundBehind { nextRoundAt = min(nextRoundAt, now) }
        effects.append(.log(.info, "\(decision)"))
        if decision.primary != node {
            foundBehind = !decision.inSync.contains(node)
            if promotion == .inDoubt, let state, decision.sequence > state.accepted.sequence {
                say(.overtaken, effects: &effects)
            }
            if foundBehind { renounce(decision, effects: &effects) }
            if isLeading { depose(by: decision.epoch, effects: &effects) }
        } else {
            foundBehind = false
        }
    }

    /// The other node serves, or is about to.
    var hearsServer: Bool {
        guard let at = heardAt[peer], connected[peer], now < at + timing.hearing else { return false }
        guard peerPhase == .opening || peerPhase == .serving, let chosen = peerChosen else { return false }
        guard chosen.primary == node.peer else { return false }
        return known.map { chosen.sequence >= $0.sequence } ?? true
    }
}
