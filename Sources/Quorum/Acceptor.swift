/// What an acceptor asks of its shell.
public enum AcceptorEffect: Sendable {
    /// Make this durable (nil: nothing is kept any more; a node puts aside what was), THEN call `persisted`. Answers that
    /// depend on it are held until then.
    case persist(AcceptorState?, token: UInt64)
    case reply(to: NodeID, QuorumMessage)
    case log(QuorumLogLevel, String)
}

/// One voter: on each node, and in the witness.
///
/// Durable: the promise and the accepted decision; whatever leaves that rests on them leaves after the write. Volatile:
/// the grants. Because they are, an acceptor that restarted refuses *prepare and accept* for one full grant (rule 8: it
/// may have granted a lease that still runs); it may grant in that time, so that a lone primary need not freeze. How long
/// a grant may be is durable too: an administrator may have lowered it between the two processes. It counts until a
/// promise shows that this process has outwaited it.
///
/// Three things tie leases to the register:
/// 1. while a grant to X runs, prepare and accept of the other node are refused;
/// 2. nobody gets a grant who is not the primary of the decision accepted here, unless for a later epoch;
/// 3. a proposer that has to complete a decision naming the other node stops serving and releases first (`Member`);
/// 4. who has promised a forced promotion grants nothing before a ballot at least as high was decided (`leaseBar`).
public struct Acceptor: Sendable {
    private struct Grant: Sendable {
        var number: UInt64
        var until: BootNanoseconds
    }
    /// What the acceptor knows of one node, in memory.
    private struct Client: Sendable {
        var incarnation: Incarnation?
        /// The highest that this node proposed, on the same votes.
        var ballot = Ballot.zero
        var grant: Grant?
        var lastLeaseNumber: UInt64 = 0
        var releasedNumber: UInt64 = 0
        var heard: UInt64 = 0
        var unheard = 0
        /// The votes on which this node last took part in a decision, and those before, which it has no more: whoever still
        /// goes by them is a copy of its machine, or has been given them back from a backup.
        var votes: UInt64?
        var retired: [UInt64] = []
    }
    /// Earlier votes of one node that are remembered.
    private static let retiredLimit = 8
    struct Held: Sendable {
        var token: UInt64
        var node: NodeID
        var message: QuorumMessage
    }

    public let voter: Voter
    /// nil: empty.
    public internal(set) var state: AcceptorState?
    /// What this voter has forgotten, because it was put back to an older state (`forget`): only a forced promotion of its
    /// own node goes by it.
    public internal(set) var forgotten: AcceptorState?
    private let timing: QuorumTiming
    private let startedAt: BootNanoseconds
    /// For how long an earlier process may have granted, whatever this one is configured for.
    let earlierGrant: BootNanoseconds
    var generator: SmallGenerator
    /// The number of this empty life.
    var emptyBirth: UInt64
    private var clientA = Client()
    private var clientB = Client()
    var lastToken: UInt64 = 0
    private var durableToken: UInt64 = 0
    /// The write that made this incarnation: nothing may leave in its name before.
    var incarnationToken: UInt64 = 0
    var held: [Held] = []
    private var lastNumber: UInt64 = 0
    /// The ballot in which this node's own member proposes a forced promotion.
    private var forcedBallot: Ballot?
    /// What the primary last said to be on the disk of every node in sync.
    private var mark: LogMark

    /// Answers held for a write: more than this many and the oldest is dropped; its asker repeats the question.
    static let heldLimit = 64

    /// - Parameters:
    ///   - state: what the disk holds; nil for an empty voter.
    ///   - forgotten: what an empty voter once held, if that is still there.
    ///   - startedAt: when this *process* started (not when this object was made): what an earlier process granted may
    ///     run for one grant from then, of the longer of the two.
    ///   - seed: random; an empty voter's number comes from it.
    ///   - memory: what an earlier process remembered of the nodes; see `NodeMemory`.
    public init(
        voter: Voter, state: AcceptorState?, forgotten: AcceptorState? = nil, timing: QuorumTiming,
        startedAt: BootNanoseconds, seed: UInt64, memory: NodeMemory = NodeMemory()
    ) {
        precondition(timing.problems().isEmpty, "times that contradict each other")
        self.voter = voter
        self.state = state
        self.forgotten = state == nil ? forgotten : nil
        self.timing = timing
        self.startedAt = startedAt
        let longestMilliseconds = (state ?? forgotten)?.longestGrantMilliseconds ?? 0
        earlierGrant = max(timing.grant, BootNanoseconds(longestMilliseconds) * 1_000_000)
        generator = SmallGenerator(seed: seed)
        emptyBirth = generator.next()
        mark = memory.mark
        clientA = Acceptor.client(memory.lifeA)
        clientB = Acceptor.client(memory.lifeB)
    }

    private static func client(_ life: NodeMemory.Life?) -> Client {
        var client = Client()
        client.incarnation = life?.incarnation
        client.ballot = life?.ballot ?? .zero
        return client
    }

    private static func life(_ client: Client) -> NodeMemory.Life? {
        client.incarnation.map { NodeMemory.Life(incarnation: $0, ballot: client.ballot) }
    }

    /// What the witness keeps of the nodes beside its vote.
    public var nodeMemory: NodeMemory {
        NodeMemory(mark: mark, lifeA: Acceptor.life(clientA), lifeB: Acceptor.life(clientB))
    }

    /// Counts this process, durably, so that messages of the earlier one can be told apart. Call it first.
    public mutating func start(effects: inout [AcceptorEffect]) {
        guard var begun = state else { return }
        begun.starts += 1
        begun.longestGrantMilliseconds = milliseconds(earlierGrant)
        store(begun, effects: &effects)
        incarnationToken = lastToken
    }

    /// Everything that was to be stored is on the disk.
    public var isSettled: Bool { durableToken == lastToken }
    /// This incarnation is on the disk: messages may leave in its name.
    var isIncarnationDurable: Bool { durableToken >= incarnationToken }

    var incarnation: Incarnation {
        Incarnation(birth: state?.birth ?? emptyBirth, session: state?.starts ?? 0)
    }

    /// Until when prepare and accept are refused because of what an earlier process may have granted.
    var restartWaitEnds: BootNanoseconds { startedAt + earlierGrant }

    /// The writes up to this token are on the disk: what waited for them leaves.
    public mutating func persisted(_ token: UInt64, effects: inout [AcceptorEffect]) {
        durableToken = max(durableToken, token)
        precondition(durableToken <= lastToken, "a write that was never asked for")
        var waiting: [Held] = []
        for answer in held {
            if answer.token <= durableToken {
                effects.append(.reply(to: answer.node, answer.message))
            } else {
                waiting.append(answer)
            }
        }
        held = waiting
    }

    /// A message from a node (on a node, also from its own proposer).
    public mutating func receive(
        _ message: QuorumMessage, from node: NodeID, now: BootNanoseconds, effects: inout [AcceptorEffect]
    ) {
        guard isFresh(message.sender, from: node) else {
            // Late, and whoever gets the answer is the later process itself; or else it does not know what it has said.
            if self[node].retired.contains(message.sender.birth) {
                return tellRetired(message.sender.birth, of: node, effects: &effects)
            }
            return tellWhatWasHeard(of: node, effects: &effects)
        }
        if state == nil {
            receiveEmpty(message, from: node, effects: &effects)
            return
        }
        if wasRolledBack(message.body) {
            forget(effects: &effects)
            answer(node, to: message, .empty(birth: emptyBirth), effects: &effects)
            return
        }
        note(message.body, from: node)
        switch message.body {
        case .greet(let promised):
            if self[node].ballot > promised { tellWhatWasHeard(of: node, effects: &effects) }
        case .prepare(let ballot, _, let forced):
            prepare(ballot, forced: forced, message, from: node, now: now, effects: &effects)
        case .accept(let ballot, let decision, _):
            accept(ballot, decision, message, from: node, now: now, effects: &effects)
        case .leaseRequest(let number, let heard, let epoch, let grantMilliseconds, _, let committed):
            let request = LeaseRequest(
                number: number, heard: heard, epoch: epoch, grant: UInt64(grantMilliseconds) * 1_000_000,
                committed: committed)
            requestLease(request, message, from: node, now: now, effects: &effects)
        case .leaseRelease(let number): release(number, from: node)
        case .heard(let birth, let session, _): learnOfLaterProcess(birth, session, effects: &effects)
        default: break
        }
    }

    private mutating func note(_ body: QuorumMessage.Body, from node: NodeID) {
        switch body {
        case .prepare(let ballot, _, _), .accept(let ballot, _, _):
            if ballot.node == node { self[node].ballot = max(self[node].ballot, ballot) }
        default: break
        }
    }

    /// No answer to the message at hand, so that it does not look like one.
    private mutating func tellWhatWasHeard(of node: NodeID, effects: inout [AcceptorEffect]) {
        guard state != nil, isIncarnationDurable, let life = Acceptor.life(self[node]) else { return }
        lastNumber += 1
        let body = QuorumMessage.Body.heard(
            birth: life.incarnation.birth, session: life.incarnation.session, ballot: life.ballot)
        effects.append(.reply(to: node, QuorumMessage(sender: incarnation, number: lastNumber, body: body)))
    }

    private mutating func tellRetired(_ birth: UInt64, of node: NodeID, effects: inout [AcceptorEffect]) {
        guard state != nil, isIncarnationDurable else { return }
        lastNumber += 1
        let body = QuorumMessage.Body.heard(birth: birth, session: .max, ballot: .zero)
        effects.append(.reply(to: node, QuorumMessage(sender: incarnation, number: lastNumber, body: body)))
    }

    /// Who knows nothing any more must hear everybody: whoever is left may have to give it a memory.
    mutating func forgetRetiredVotes() {
        for node in NodeID.allCases {
            self[node].votes = nil
            self[node].retired = []
        }
    }

    /// A decision was accepted from these votes of a node. Not sooner: an order that comes to nothing leaves those that
    /// count as they are.
    private mutating func retireVotes(before birth: UInt64, of node: NodeID) {
        if let earlier = self[node].votes, earlier != birth {
            self[node].retired = (self[node].retired.filter { $0 != earlier } + [earlier]).suffix(Acceptor.retiredLimit)
        }
        self[node].votes = birth
    }

    // MARK: Memory

    /// Messages of an earlier process of a node are dropped. Else a late release of the old process could remove the
    /// grant that the new one serves on.
    private mutating func isFresh(_ sender: Incarnation, from node: NodeID) -> Bool {
        if self[node].retired.contains(sender.birth) { return false }
        if let known = self[node].incarnation {
            if known.birth == sender.birth, sender.session < known.session { return false }
            if known == sender { return true }
            // A new process. The grant stays until it runs out: nobody may rely on it, but nobody lost it either.
            let grant = self[node].grant
            let ballot = known.birth == sender.birth ? self[node].ballot : .zero
            let (votes, retired) = (self[node].votes, self[node].retired)
            self[node] = Client()
            self[node].votes = votes
            self[node].retired = retired
            self[node].ballot = ballot
            self[node].grant = grant.map { Grant(number: 0, until: $0.until) }
        }
        self[node].incarnation = sender
        return true
    }

    private subscript(node: NodeID) -> Client {
        get { node == .a ? clientA : clientB }
        set { if node == .a { clientA = newValue } else { clientB = newValue } }
    }

    /// An empty voter answers nothing but that it is empty: it may have promised and accepted before it lost its memory.
    private mutating func receiveEmpty(
        _ message: QuorumMessage, from node: NodeID, effects: inout [AcceptorEffect]
    ) {
        guard
            case .seed(let birth, let mirror, let name, let promised, let acceptedBallot, let accepted) = message.body,
            birth == emptyBirth
        else {
            answer(node, to: message, .empty(birth: emptyBirth), effects: &effects)
            return
        }
        // The witness belongs to the instance that was made for this empty life of it; a seed for another does not fit.
        guard promised >= acceptedBallot, voter != .witness || promised.instance.birth == emptyBirth else { return }
        effects.append(.log(.info, "seeded by node \(node) with \(accepted)"))
        var seeded = AcceptorState(
            mirror: mirror, name: name, birth: emptyBirth, starts: 1, promised: promised,
            acceptedBallot: acceptedBallot, accepted: accepted, chosenBallot: acceptedBallot)
        // From a sole member, with a decision that older instances of the witness knew: one of them may have promised the
        // other node a forced promotion, in a ballot above it.
        if voter == .witness, acceptedBallot.instance != promised.instance { seeded.leaseBar = promised }
        seeded.longestGrantMilliseconds = milliseconds(earlierGrant)
        begin(seeded, effects: &effects)
    }

    /// A node that remembers a higher answer of this voter than this voter itself does: its disk was put back to an
    /// older state (a backup, a snapshot). So was it if the nodes have moved on to a later instance of the witness.
    /// Exact, whatever the network does: answers leave after the write, so nobody can remember more than the disk held.
    private func wasRolledBack(_ body: QuorumMessage.Body) -> Bool {
        guard let state else { return false }
        switch body {
        case .prepare(let ballot, let memory, _), .accept(let ballot, _, let memory):
            if voter == .witness, ballot.instance > state.promised.instance { return true }
            return memory.promised > state.promised || memory.accepted > state.acceptedBallot
        case .leaseRequest(_, _, _, _, let memory, _):
            return memory.promised > state.promised || memory.accepted > state.acceptedBallot
        default: return false
        }
    }

    /// A node has heard a later process of the witness than this one: it answers none of this one's messages. (What is heard
    /// of a node is for its `Member`.)
    private mutating func learnOfLaterProcess(_ birth: UInt64, _ session: UInt64, effects: inout [AcceptorEffect]) {
        guard voter == .witness, let state, birth == state.birth, session > state.starts else { return }
        forget(effects: &effects)
    }

    /// The first state of a memory: nothing leaves in its name before it is on the disk.
    mutating func begin(_ first: AcceptorState, effects: inout [AcceptorEffect]) {
        forgotten = nil
        store(first, effects: &effects)
        incarnationToken = lastToken
    }

    private mutating func store(_ next: AcceptorState, effects: inout [AcceptorEffect]) {
        state = next
        lastToken += 1
        effects.append(.persist(next, token: lastToken))
    }

    mutating func answer(
        _ node: NodeID, to message: QuorumMessage, _ body: QuorumMessage.Body, effects: inout [AcceptorEffect]
    ) {
        lastNumber += 1
        let reply = QuorumMessage(sender: incarnation, number: lastNumber, echo: message.number, body: body)
        // Answers about leases rest on nothing that is being written: a slow disk shall not look like a dead voter.
        let restsOnWrites =
            switch body {
            case .leaseGranted, .leaseRefused: !isIncarnationDurable
            default: !isSettled
            }
        if !restsOnWrites {
            effects.append(.reply(to: node, reply))
        } else {
            // Every answer, also a repeated one, waits for the newest write: it may rest on it.
            if held.count >= Acceptor.heldLimit { held.removeFirst() }
            held.append(Held(token: lastToken, node: node, message: reply))
        }
    }

    // MARK: Rounds

    /// Whether a proposal of `node` must wait for a lease, and how long.
    func blocked(_ node: NodeID, now: BootNanoseconds) -> RoundRefusal? {
        if let grant = self[node.peer].grant, grant.until > now {
            return .leaseHeld(remainingMilliseconds: milliseconds(grant.until - now))
        }
        if now < restartWaitEnds { return .restarted(remainingMilliseconds: milliseconds(restartWaitEnds - now)) }
        return nil
    }

    /// An earlier process of the node, or a copy of its machine that forgot nothing, may still serve by a grant that this one
    /// has not asked for. It matters only where the node leads by force: else it has to be in the decision that it changes.
    private func heldByAnother(of node: NodeID, now: BootNanoseconds) -> RoundRefusal? {
        guard let grant = self[node].grant, grant.number == 0, grant.until > now else { return nil }
        return .leaseHeld(remainingMilliseconds: milliseconds(grant.until - now))
    }

    func milliseconds(_ time: BootNanoseconds) -> UInt32 { UInt32(clamping: (time + 999_999) / 1_000_000) }

    private mutating func prepare(
        _ ballot: Ballot, forced: Bool, _ message: QuorumMessage, from node: NodeID, now: BootNanoseconds,
        effects: inout [AcceptorEffect]
    ) {
        guard var next = state else { return }
        if let reason = blocked(node, now: now) ?? (forced ? heldByAnother(of: node, now: now) : nil) {
            refuse(ballot, .prepare, reason, message, from: node, effects: &effects)
            return
        }
        // Refused at an equal ballot too (rule 8): a second answer to one ballot could show what was accepted since, and
        // the asker would take a proposal of its own for an older one.
        guard ballot > next.promised, ballot.node == node else {
            refuse(ballot, .prepare, .ballot, message, from: node, effects: &effects)
            return
        }
        next.promised = ballot
        next.longestGrantMilliseconds = milliseconds(timing.grant)
        if forced { next.leaseBar = ballot }
        store(next, effects: &effects)
        answer(
            node, to: message,
            .promise(ballot, acceptedBallot: next.acceptedBallot, accepted: next.accepted, mark: mark),
            effects: &effects)
    }

    private mutating func accept(
        _ ballot: Ballot, _ decision: Decision, _ message: QuorumMessage, from node: NodeID, now: BootNanoseconds,
        effects: inout [AcceptorEffect]
    ) {
        guard var next = state else { return }
        if let reason = blocked(node, now: now) {
            refuse(ballot, .accept, reason, message, from: node, effects: &effects)
            return
        }
        guard ballot >= next.promised, ballot.node == node else {
            refuse(ballot, .accept, .ballot, message, from: node, effects: &effects)
            return
        }
        retireVotes(before: message.sender.birth, of: node)
        if ballot != next.acceptedBallot {
            // While a node is the sole member by a chosen decision, nobody else may change it, unless by force: what it
            // accepts from itself, still as the sole member, is as good as chosen, and it may go on seeding from it.
            let own = NodeSet(node)
            let isSoleMember = next.chosenBallot == next.acceptedBallot && next.accepted.inSync == own
            if Voter(node) == voter, isSoleMember, next.leaseBar == nil, decision.inSync == own {
                next.chosenBallot = ballot
            }
            next.promised = ballot
            next.acceptedBallot = ballot
            next.accepted = decision
            // In the same write: whoever serves from this decision after a crash knows what it rests on.
            if ballot == forcedBallot { next.forcedEpoch = decision.epoch }
            if Voter(decision.primary) != voter || decision.inSync != own { next.forcedEpoch = nil }
            // Its proposer's own disk has it, so now two of three do. What this voter accepts from itself may be half.
            if Voter(node) != voter { next.leaseBar = nil }
            store(next, effects: &effects)
        }
        answer(node, to: message, .accepted(ballot), effects: &effects)
    }

    private mutating func refuse(
        _ ballot: Ballot, _ phase: RoundPhase, _ reason: RoundRefusal, _ message: QuorumMessage, from node: NodeID,
        effects: inout [AcceptorEffect]
    ) {
        guard let state else { return }
        answer(node, to: message, .refused(ballot, phase, promised: state.promised, reason), effects: &effects)
    }

    /// On a node: two of three have accepted `ballot`, and this is what the others were seen to answer. Kept, so that
    /// after a restart the sole member of a set still knows that it is (it may seed the others), and so that a voter
    /// whose disk was put back is recognised.
    mutating func noteChosen(_ ballot: Ballot, memory: PerVoter<VoterMemory>, effects: inout [AcceptorEffect]) {
        guard var next = state, next.acceptedBallot >= ballot else { return }
        if next.acceptedBallot == ballot { next.chosenBallot = ballot }
        if let bar = next.leaseBar, bar <= ballot { next.leaseBar = nil }
        next.memory = memory
        if next != state { store(next, effects: &effects) }
    }

    // MARK: Forced promotion (on a node, by its own member)

    /// The proposal that this node makes in `ballot` is a forced promotion.
    mutating func noteForced(_ ballot: Ballot) { forcedBallot = ballot }

    /// Another decision was chosen although this node was the sole member of a chosen set: only force can do that. This
    /// node decides nothing alone any more, and seeds nobody.
    mutating func renounce(effects: inout [AcceptorEffect]) {
        guard var next = state, next.chosenBallot == next.acceptedBallot, let node = voter.node,
            next.accepted.inSync.isOnly(node)
        else { return }
        next.chosenBallot = .zero
        store(next, effects: &effects)
    }

    /// Promises `ballot`, which belongs to the instance that an empty witness is to be seeded with by force, and notes
    /// the epoch of the decision in the seed. The seed may leave when this is on the disk.
    ///
    /// - Returns: why not: a grant to the other node may still run.
    mutating func promiseForcedSeed(
        _ ballot: Ballot, epoch: Epoch, now: BootNanoseconds, effects: inout [AcceptorEffect]
    ) -> RoundRefusal? {
        guard var next = state, let node = voter.node else { return .ballot }
        if let reason = blocked(node, now: now) { return reason }
        guard ballot > next.promised else { return .ballot }
        next.promised = ballot
        next.leaseBar = ballot
        next.forcedEpoch = epoch
        store(next, effects: &effects)
        return nil
    }

    // MARK: Leases

    private struct LeaseRequest {
        var number: UInt64
        var heard: UInt64
        var epoch: Epoch
        var grant: BootNanoseconds
        var committed: Seq
    }

    private mutating func requestLease(
        _ request: LeaseRequest, _ message: QuorumMessage, from node: NodeID, now: BootNanoseconds,
        effects: inout [AcceptorEffect]
    ) {
        let number = request.number
        guard let state, number > self[node].lastLeaseNumber, number > self[node].releasedNumber else { return }
        self[node].lastLeaseNumber = number
        // A node that hears nobody, while its requests still arrive, would be renewed for ever and block the other
        // (rule 12). One answer that it has heard makes it good again.
        if request.heard > self[node].heard {
            self[node].heard = request.heard
            self[node].unheard = 0
        } else {
            self[node].unheard += 1
        }
        if let reason = objection(to: request, from: node, state, now: now) {
            answer(
                node, to: message, .leaseRefused(number: number, reason, accepted: state.accepted.epoch),
                effects: &effects)
        } else {
            // Never shorter than before: the earlier grant may cover a lease that still runs.
            let until = max(now + request.grant, self[node].grant?.until ?? 0)
            self[node].grant = Grant(number: number, until: until)
            if self[node].votes == nil { self[node].votes = message.sender.birth }
            // Only of one that gets the lease: what it says to be committed is in every later history but a forced one, and
            // that has a higher epoch.
            if request.committed > .zero { mark = max(mark, LogMark(epoch: request.epoch, seq: request.committed)) }
            answer(node, to: message, .leaseGranted(number: number), effects: &effects)
        }
    }

    private func objection(
        to request: LeaseRequest, from node: NodeID, _ state: AcceptorState, now: BootNanoseconds
    ) -> LeaseRefusal? {
        if state.accepted.primary != node, request.epoch <= state.accepted.epoch { return .notPrimary }
        if let other = self[node.peer].grant, other.until > now { return .held }
        if state.leaseBar != nil { return .roundFirst }
        if self[node].unheard > timing.unheardLimit { return .unheard }
        // After a restart this voter waits for as long as it may ever have granted; so it grants no longer than that.
        return request.grant > timing.grant ? .tooLong : nil
    }

    /// Removes only the grants up to `number`: a release that was late must not take away a lease that was asked for
    /// after it.
    private mutating func release(_ number: UInt64, from node: NodeID) {
        self[node].releasedNumber = max(self[node].releasedNumber, number)
        if let grant = self[node].grant, grant.number <= number { self[node].grant = nil }
    }
}
