/// The role of one node in one mirror: decides, from what the voters, the data side and the administrator say, who may
/// serve, and says what to do about it.
///
/// ```swift
/// var effects: [MemberEffect] = []
/// member.step(.tick, now: reactor.now, effects: &effects)
/// for effect in effects { ... }   // in order, with the duties written at each
/// ```
///
/// The sources: this file holds the state and the events; `Member+Messages` what the voters say; `Member+Rounds` rounds
/// and their outcome; `Member+Service` serving, leases and what to do next; `Member+Promotion` and `Member+Reforming` what
/// an administrator orders by force; `Member+Role` what status shows.
public struct Member: Sendable {
    /// What the node does.
    enum Mode: Sendable, Hashable {
        /// No memory: waits to be seeded.
        case unformed
        case standby
        /// Primary by a decision that this process proposed; not open yet.
        case opening(since: BootNanoseconds)
        case serving
        /// The application is being stopped, to hand over or to stop.
        case draining(stop: Bool, done: Bool)
        /// `close` was asked for; nothing is given back before the shell says `closed`.
        case closing(next: AfterClose)
        /// The leases are given back; the other node shall serve.
        case handedOver(until: BootNanoseconds, stop: Bool)
        case stopped(diskFailed: Bool)
    }
    enum AfterClose: Sendable, Hashable {
        case standby, unformed
        case handedOver(stop: Bool)
        case stopped(diskFailed: Bool)
    }

    public let node: NodeID
    let timing: QuorumTiming
    var generator: SmallGenerator
    var now: BootNanoseconds = 0
    var startedAt: BootNanoseconds = 0

    // The three parts.
    var acceptor: Acceptor?
    var proposer = Proposer()
    var lease: LeaseHolder

    var mode = Mode.unformed
    /// The service is drained because the application is not well here: it leaves also by force.
    var movesByForce = false
    /// The newest decision known to be chosen.
    var known: Decision?
    /// Every in-sync set that may be recorded while this node leads. One: no doubt.
    var possible: [NodeSet] = []
    /// The policy that is being put in force, and the round that waits for it.
    var policyToken: UInt64 = 0
    var policyPending: Purpose?
    /// The lowest epoch in which this process proposed to lead, and the last in which it served: it serves only in an
    /// epoch that is its own and fresh (rule 1).
    var firstOwnEpoch: Epoch?
    var servedEpoch = Epoch.none
    var inheritance = Inheritance.complete
    /// No lease until a completed round names this node (rule 9).
    var leaseBarred = true
    /// A voter grants nothing before this node has completed a round with it.
    var owesRound = false
    var isFrozen = false
    var leaseUntil: BootNanoseconds = 0
    var leaseAsked: BootNanoseconds = 0

    // Rounds.
    var nextRoundAt: BootNanoseconds = 0
    /// The next round that only confirms, not before.
    var confirmAt: BootNanoseconds = 0
    var lostRounds = 0
    /// The highest ballot anyone refused with.
    var highestBallot = Ballot.zero
    /// The ballot at which both nodes accepted, if the last round ended so: what a pair may seed the witness from.
    var pairBallot: Ballot?
    var lastRefusal: RoundRefusal?
    /// A round showed that this node is not in the set.
    var foundBehind = false
    /// An administrator's order to lead by force, while it lasts. In memory only: a restart forgets it.
    var order: PromotionOrder?
    var promotion = PromotionState.none
    /// The forgotten votes, as they take part in a forced round before this node has votes again.
    var draft: AcceptorState?

    // The other voters.
    var incarnations = PerVoter<Incarnation?>(nil)
    var heardAt = PerVoter<BootNanoseconds?>(nil)
    var connected = PerVoter<Bool>(false)
    var emptyBirth = PerVoter<UInt64?>(nil)
    /// The highest of this node's messages that each voter answered with memory, and without.
    var formedEcho = PerVoter<UInt64>(0)
    var emptyEcho = PerVoter<UInt64>(0)
    var seededAt = PerVoter<BootNanoseconds>(0)
    var memory = PerVoter<VoterMemory>(VoterMemory())
    var lastNumber: UInt64 = 0
    var peerPhase = NodePhase.idle
    var peerChosen: Decision?
    /// When this node, without votes, last heard the other one speak as one that has some.
    var peerFormedAt: BootNanoseconds?
    var nameTakenBy: MirrorID?
    /// Its last answer to a lease request was that it does not grant for so long.
    var findsGrantTooLong = PerVoter<Bool>(false)

    // The data side.
    var log = MemberStart(state: nil, logComplete: false, lastEpoch: .none, lastSeq: .zero)
    var isMerged = false
    /// The last record on this node's disk, and what is on the disk of every node in sync.
    var position = LogMark.zero
    var committed = Seq.zero
    /// The highest that a voter remembered to have been on this node's disk.
    var remembered = LogMark.zero
    /// The same when it was first more than what was there; from then on this node waits for the other one.
    var putBackSaid = LogMark.zero
    /// The other node's disk lacks what was on it: nothing that this one lacks will come from there.
    var peerWasPutBack = false
    var peerSilentSince: BootNanoseconds? = 0
    var peerSilence = PeerSilence.linkLost
    var peerFollowing: Epoch?
    var isPeerCaughtUp = false
    var isDiskFailed = false
    var losses = 0
    var lastLoss: BootNanoseconds?
    var addAllowedAt: BootNanoseconds = 0

    // What was last said.
    var statusSentAt: BootNanoseconds = 0
    var greetedAt: BootNanoseconds = 0
    var statusSent: QuorumMessage.Body?
    var following: Decision?
    var followingSaid = false
    var roleSaid: RoleState?
    var witnessSaid = WitnessState.unknown
    var grantTooLongSaid: [Voter] = []
    var loopback: [QuorumMessage] = []

    /// - Parameters:
    ///   - node: which of the two this is.
    ///   - seed: random, different for each start of a process.
    public init(node: NodeID, timing: QuorumTiming, seed: UInt64) {
        precondition(timing.problems().isEmpty, "times that contradict each other")
        self.node = node
        self.timing = timing
        generator = SmallGenerator(seed: seed)
        lease = LeaseHolder(timing: timing)
    }

    var own: Voter { Voter(node) }
    var peer: Voter { Voter(node.peer) }
    var others: [Voter] { [peer, .witness] }
    /// The acceptor's memory; nil when empty.
    public var state: AcceptorState? { acceptor?.state }

    /// The newest decision here: this node's voter may not have been asked to accept what the other two chose.
    func newest(of state: AcceptorState) -> Decision {
        guard let known, known.sequence > state.accepted.sequence else { return state.accepted }
        return known
    }

    /// Takes one event and appends what is to be done, in order.
    public mutating func step(_ event: MemberEvent, now: BootNanoseconds, effects: inout [MemberEffect]) {
        self.now = max(self.now, now)
        switch event {
        case .start(let start): begin(start, effects: &effects)
        case .message(let voter, let message): receive(message, from: voter, effects: &effects)
        case .connection(let voter, let up): connection(voter, up: up)
        case .tick: break
        case .persisted(let token): persisted(token, effects: &effects)
        case .policyInForce(let token): policyInForce(token, effects: &effects)
        case .closed: closed(effects: &effects)
        case .merged, .log, .peerWasPutBack, .peerSilent, .peerBack, .peerFollows, .peerCaughtUp: noteData(event)
        case .ownDiskFailed: ownDiskFailed(effects: &effects)
        case .drained: drained(effects: &effects)
        case .drainFailed: drainFailed(effects: &effects)
        case .directoryLost: directoryLost(effects: &effects)
        case .requestSwap, .requestMove, .requestStop, .requestStart, .requestPromotion:
            request(event, effects: &effects)
        }
        guard acceptor != nil else { return }
        settle(effects: &effects)
    }

    private mutating func begin(_ start: MemberStart, effects: inout [MemberEffect]) {
        precondition(acceptor == nil, "started twice")
        startedAt = now
        peerSilentSince = now
        log = start
        position = LogMark(epoch: start.lastEpoch, seq: start.lastSeq)
        memory = start.state?.memory ?? PerVoter(VoterMemory())
        mode = start.state == nil ? .unformed : .standby
        nextRoundAt = now
        var begun = Acceptor(
            voter: own, state: start.state, forgotten: start.forgotten, timing: timing, startedAt: now,
            seed: generator.next(), memory: NodeMemory(mark: start.committed))
        var wanted: [AcceptorEffect] = []
        begun.start(effects: &wanted)
        acceptor = begun
        carryOut(wanted, effects: &effects)
    }

    private mutating func connection(_ voter: Voter, up: Bool) {
        guard voter != own else { return }
        connected[voter] = up
        if up {
            // Say and ask everything at once.
            proposer.asked = 0
            leaseAsked = 0
            statusSentAt = 0
            greetedAt = 0
        } else {
            heardAt[voter] = nil
        }
    }

    private mutating func noteData(_ event: MemberEvent) {
        switch event {
        case .merged: isMerged = true
        case .log(let last, let committed):
            position = last
            self.committed = committed
        case .peerWasPutBack(let isSo): peerWasPutBack = isSo
        case .peerSilent(let silence):
            if peerSilentSince == nil { peerSilentSince = now }
            peerSilence = silence
            peerFollowing = nil
            isPeerCaughtUp = false
        case .peerBack:
            // To a node that serves, the other one is back only when it follows: a link to a node that takes no records
            // is no reason to hold writes.
            switch mode {
            case .serving, .draining: break
            default: peerSilentSince = nil
            }
        case .peerFollows(let epoch):
            peerFollowing = epoch
            if epoch == known?.epoch { peerSilentSince = nil }
        case .peerCaughtUp(let reached): isPeerCaughtUp = reached
        default: break
        }
    }

    private mutating func persisted(_ token: UInt64, effects: inout [MemberEffect]) {
        var wanted: [AcceptorEffect] = []
        acceptor?.persisted(token, effects: &wanted)
        carryOut(wanted, effects: &effects)
    }

    /// Passes on what the own acceptor wants; its answers to this node's own questions come back through `loopback`.
    mutating func carryOut(_ wanted: [AcceptorEffect], effects: inout [MemberEffect]) {
        for effect in wanted {
            switch effect {
            case .persist(let state, let token): effects.append(.persist(state, token: token))
            case .log(let level, let text): effects.append(.log(level, text))
            case .reply(let asker, let message):
                if asker == node {
                    loopback.append(message)
                } else {
                    effects.append(.send(Voter(asker), message))
                }
            }
        }
    }

    /// Sends a message of this node; to its own acceptor directly. Nothing leaves before this process is counted on the
    /// disk.
    mutating func send(_ body: QuorumMessage.Body, to voter: Voter, effects: inout [MemberEffect]) {
        guard let acceptor, acceptor.state != nil, acceptor.isIncarnationDurable else { return }
        lastNumber += 1
        let message = QuorumMessage(sender: acceptor.incarnation, number: lastNumber, body: body)
        guard voter == own else {
            effects.append(.send(voter, message))
            return
        }
        var wanted: [AcceptorEffect] = []
        self.acceptor?.receive(message, from: node, now: now, effects: &wanted)
        carryOut(wanted, effects: &effects)
    }

    /// Lets everything that follows from an event happen: answers of the own acceptor, then what is to be done next,
    /// until nothing is left. Each pass ends in a write, a message or nothing, so there are few.
    private mutating func settle(effects: inout [MemberEffect]) {
        var passes = 0
        repeat {
            while !loopback.isEmpty {
                let message = loopback.removeFirst()
                receiveAnswer(message, from: own, effects: &effects)
            }
            evaluate(effects: &effects)
            passes += 1
            precondition(passes < 100, "a member that never comes to rest")
        } while !loopback.isEmpty
        sayRole(effects: &effects)
    }
}
