/// What a round is for: the change it makes to the decision it finds.
enum Purpose: Sendable, Hashable {
    /// Become primary, in a new epoch, with the in-sync set as it is (rule 5).
    case lead
    /// Remove the other node, in a new epoch.
    case goAlone
    /// Add the other node.
    case add
    /// Change nothing: learn the decision and resolve doubt. A full round all the same (rule 6): what a plain read shows
    /// may be overtaken by an accept that is still on its way.
    case confirm
    /// Become primary and sole member although not in sync: an administrator's order, once.
    case force
}

/// One round of voting: what was asked, and who has answered what.
///
/// The node's own acceptor is asked first, in both halves, and answers only after its disk has the answer (rule 13);
/// the others are asked after that. So no other voter ever holds a part of a proposal whose proposer does not.
struct Proposer: Sendable {
    enum Phase: Sendable, Hashable {
        case idle, preparing, accepting
    }
    private(set) var phase = Phase.idle
    private(set) var purpose = Purpose.confirm
    private(set) var ballot = Ballot.zero
    /// What the second half asks to accept.
    private(set) var decision: Decision?
    private var promises = PerVoter<Promise?>(nil)
    private var accepts = PerVoter<Bool>(false)
    /// The highest that a promise told to be on the disk of every node in sync.
    private(set) var mark = LogMark.zero
    private(set) var refusals = PerVoter<RoundRefusal?>(nil)
    private(set) var refusedSince: BootNanoseconds?
    /// When the open questions were last sent.
    var asked: BootNanoseconds = 0

    private struct Promise: Sendable {
        var ballot: Ballot
        var decision: Decision
    }

    var isIdle: Bool { phase == .idle }

    mutating func begin(_ purpose: Purpose, ballot: Ballot) {
        self = Proposer()
        self.purpose = purpose
        self.ballot = ballot
        phase = .preparing
    }

    mutating func end() { self = Proposer() }

    /// Whether `voter` has answered the open half in favour.
    func hasAnswered(_ voter: Voter) -> Bool {
        switch phase {
        case .idle: false
        case .preparing: promises[voter] != nil
        case .accepting: accepts[voter]
        }
    }

    /// Whether any answer of `voter` counts in this round: if it lost its memory since, the round is worthless.
    func countsOn(_ voter: Voter) -> Bool { promises[voter] != nil || accepts[voter] }

    /// Two of three have answered the open half.
    var hasMajority: Bool { Voter.allCases.count(where: { hasAnswered($0) }) >= 2 }

    /// A promise arrived; late and doubled ones, and those of another round, change nothing.
    mutating func promised(
        by voter: Voter, _ ballot: Ballot, acceptedBallot: Ballot, accepted: Decision, mark told: LogMark
    ) {
        guard phase == .preparing, ballot == self.ballot else { return }
        mark = max(mark, told)
        promises[voter] = Promise(ballot: acceptedBallot, decision: accepted)
        refusals[voter] = nil
    }

    mutating func accepted(by voter: Voter, _ ballot: Ballot) {
        guard phase == .accepting, ballot == self.ballot else { return }
        accepts[voter] = true
        refusals[voter] = nil
    }

    mutating func refused(
        by voter: Voter, _ ballot: Ballot, _ phase: RoundPhase, _ reason: RoundRefusal, now: BootNanoseconds
    ) {
        guard ballot == self.ballot, !hasAnswered(voter) else { return }
        guard (phase == .prepare && self.phase == .preparing) || (phase == .accept && self.phase == .accepting) else {
            return
        }
        refusals[voter] = reason
        if refusedSince == nil { refusedSince = now }
    }

    /// The newest decision that the promises show.
    var newest: Decision? {
        var best: Promise?
        for voter in Voter.allCases {
            guard let promise = promises[voter] else { continue }
            if let known = best, known.ballot >= promise.ballot { continue }
            best = promise
        }
        return best?.decision
    }

    mutating func propose(_ decision: Decision) {
        precondition(phase == .preparing && hasMajority, "a proposal without two promises")
        self.decision = decision
        phase = .accepting
        refusals = PerVoter(nil)
        refusedSince = nil
    }
}
