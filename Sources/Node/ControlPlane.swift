import Configuration
import Format
import Foundation
import Logging
import Quorum
import Ring

/// What the control plane needs of a connection to another voter.
protocol ControlConnection: AnyObject {
    func send(_ message: QuorumMessage, epoch: Epoch, mirror: MirrorID)
    func close(_ reason: String)
}

/// What the control plane asks of the data plane; every call is posted to the data thread.
protocol DataOrders: Sendable {
    func order(_ work: @escaping @Sendable (DataPlane) -> Void)
}

/// Decisions, leases, roles and the service on one node: the shell around `Quorum.Member`. Confined to the control
/// thread, which nothing may hold up: disk writes and scripts run elsewhere.
///
/// The member's effects are carried out in their order. Two duties are worth their lines: a vote is on disk before its
/// answer leaves (the member waits for `.persisted`), and a proposal without the other node leaves only when the stricter
/// rule for acknowledgements is in force on the data thread (`.policyInForce`).
final class ControlPlane {
    static let tickMilliseconds = 50
    /// Votes that could not be written are tried again after this time.
    static let votesRetryMilliseconds = 1000

    let node: NodeID
    let configuration: MirrorConfiguration
    let reactor: Reactor
    let logger: Logger
    let votes: VoteFile
    private let voteWriter: WorkerPool
    private(set) var member: Member
    private var connections = PerVoter<(any ControlConnection)?>(nil)
    private var events: [MemberEvent] = []
    private var isStepping = false
    private var voteWriting = false
    private var votesWaiting: [(state: AcceptorState?, token: UInt64)] = []
    /// Why the votes cannot be written; empty when they can.
    private(set) var votesProblem = ""

    private(set) var data: (any DataOrders)?
    var dataWatch = DataThreadWatch()
    var isEnding = false
    var service: Service?
    /// Orders for the data plane from before it exists (a node that is still being seeded has none).
    private var waitingOrders: [@Sendable (DataPlane) -> Void] = []

    private(set) var role: RoleState?
    private(set) var promotion = PromotionState.none
    /// Why this node is not brought back; empty when nothing holds it.
    private(set) var heldBack = ""
    /// Why a record is not in the plain files yet: they are full.
    private(set) var full = ""
    /// When the other node last said anything, boot clock; nil: not since this process started.
    private(set) var peerHeardAt: UInt64?
    private(set) var witness = WitnessState.unknown
    /// Voters that do not grant for as long as this node asks.
    private(set) var grantRefusers: [Voter] = []
    /// What the guard sees of this thread.
    let sight = LeaseSight()
    private(set) var leaseUntil: UInt64 = 0 { didSet { sight.note { $0.leaseUntil = leaseUntil } } }
    private(set) var openEpoch: Epoch? { didSet { noteOpen() } }
    /// The data plane has been told to close and has not said yet that it did: what it opened before counts for nothing.
    private(set) var isClosing = false
    /// The application is being stopped for good here; nothing starts it again.
    private var isDraining = false
    /// It was stopped, and the addresses are gone: they come back with the next service only.
    private var hasDrained = false { didSet { noteOpen() } }
    /// Counts the drains: the end of an earlier one says nothing of this one.
    private var drains = 0
    /// It was to be started while everything stood still.
    private var startsAtThaw = false
    /// What the checker said while the application stood still; looked at when it goes on.
    private var failureAtThaw: String?
    /// Counts the times that the service was opened here.
    private var openings = 0
    /// A start was under way when everything was frozen: its time went on, so that its failure may not be its own.
    private var startWasFrozen = false
    private(set) var isFrozen = false { didSet { sight.note { $0.isFrozen = isFrozen } } }
    private(set) var addressesHeld = false
    private(set) var problem = ""
    /// The part of it that goes when the copy counts again.
    private var damage: String?
    private(set) var application = (state: Service.ApplicationState.none, message: "")
    private(set) var lastTakeover: NodeStatus.Takeover?
    /// Since this node served last, or started, the other one was seen as primary.
    private var otherWasPrimary = false
    private var hasServed = false
    private var lastRefusal: (text: String, at: UInt64)?

    // Set by the node.
    var onRole: ((RoleState) -> Void)?
    /// The process is to end without the data thread.
    var onEnd: (() -> Void)?
    /// The voter has an identity now: the data plane can be made.
    var onSeeded: ((AcceptorState) -> Void)?

    init(
        node: NodeID, configuration: MirrorConfiguration, reactor: Reactor, votes: VoteFile, seed: UInt64,
        logger: Logger
    ) throws {
        self.node = node
        self.configuration = configuration
        self.reactor = reactor
        self.votes = votes
        self.logger = logger
        voteWriter = try WorkerPool(threads: 1, name: "votes")
        member = Member(node: node, timing: ControlPlane.timing(configuration.timing), seed: seed)
        lastTakeover = ControlPlane.loadTakeover(configuration.state)
    }

    static func timing(_ configured: MirrorConfiguration.Timing) -> QuorumTiming {
        var timing = QuorumTiming()
        timing.lease = UInt64(configured.leaseMilliseconds) * 1_000_000
        timing.renewal = UInt64(configured.renewMilliseconds) * 1_000_000
        timing.grant = UInt64(configured.grantMilliseconds) * 1_000_000
        timing.peerLoss = UInt64(configured.peerLossMilliseconds) * 1_000_000
        timing.hearing = max(timing.hearing, timing.renewal * 3)
        switch configured.loneRestart {
        case .serveAfter(let seconds): timing.loneRestart = UInt64(seconds) * 1_000_000_000
        case .wait: timing.loneRestart = nil
        }
        return timing
    }

    /// When this process began to take part, boot clock.
    private(set) var startedAt: UInt64 = 0

    func start(_ start: MemberStart) {
        startedAt = reactor.now
        feed(.start(start))
        _ = reactor.repeating(milliseconds: ControlPlane.tickMilliseconds) { [unowned self] in
            noteHeard()
            feed(.tick)
        }
        _ = reactor.repeating(milliseconds: DataThreadWatch.lookMilliseconds) { [unowned self] in watchDataThread() }
    }

    func attach(_ orders: any DataOrders) {
        data = orders
        let waiting = waitingOrders
        waitingOrders.removeAll()
        for order in waiting { orders.order(order) }
    }

    private func order(_ work: @escaping @Sendable (DataPlane) -> Void) {
        if let data { data.order(work) } else { waitingOrders.append(work) }
    }

    // MARK: - Events

    func feed(_ event: MemberEvent) {
        // No lease is renewed any more.
        guard !isEnding else { return }
        if !isStepping, sight.current.guardHasFrozen { events.append(.tick) }
        events.append(event)
        guard !isStepping else { return }
        isStepping = true
        defer { isStepping = false }
        while !events.isEmpty {
            let next = events.removeFirst()
            let known = member.state
            var effects: [MemberEffect] = []
            member.step(next, now: reactor.now, effects: &effects)
            for effect in effects { carryOut(effect) }
            noteDecision(from: known)
        }
        settleGuard()
    }

    /// The data side compares logs with the other node by what this voter has accepted.
    private func noteDecision(from before: AcceptorState?) {
        guard let state = member.state else { return }
        let isNews = before?.acceptedBallot != state.acceptedBallot || before?.chosenBallot != state.chosenBallot
        if before == nil || isNews, state.mayBeToldOfLogs {
            let ballot = state.acceptedBallot
            let parts: [UInt64] = [
                UInt64(ballot.instance.generation), ballot.instance.birth, ballot.number, UInt64(ballot.node.rawValue),
            ]
            let decision = state.accepted
            order { $0.setDecision(decision, ballot: parts) }
        }
        if before?.forcedEpoch != state.forcedEpoch || before == nil {
            let forced = state.forcedEpoch
            order { $0.setForced(forced) }
        }
        if before == nil { onSeeded?(state) }
    }

    func connected(_ voter: Voter, _ connection: any ControlConnection) {
        if let old = connections[voter], old !== connection { old.close("replaced by a newer connection") }
        connections[voter] = connection
        feed(.connection(voter, up: true))
    }

    func disconnected(_ voter: Voter, _ connection: any ControlConnection) {
        guard connections[voter] === connection else { return }
        connections[voter] = nil
        feed(.connection(voter, up: false))
    }

    func received(_ message: QuorumMessage, from voter: Voter) {
        if voter == Voter(node.peer) { peerHeardAt = reactor.now }
        feed(.message(from: voter, message))
    }

    /// `lockstep rejoin --discard`.
    func discardUnsaved() { order { $0.discardUnsaved() } }

    func reported(_ report: DataReport) {
        switch report {
        case .member(let event): feed(event)
        case .opened(let epoch): opened(epoch)
        case .closed:
            isClosing = false
            feed(.closed)
        case .broken(let text):
            problem = text
            damage = nil
        case .usable:
            if let damage, problem == damage { problem = "" }
            damage = nil
        case .heldBack(let text): heldBack = text ?? ""
        case .full(let text): full = text ?? ""
        case .disksAnswer: disksAnswerAgain()
        }
    }

    // MARK: - Effects

    func carryOut(_ effect: MemberEffect) {
        switch effect {
        case .persist(let state, let token): persist(state, token)
        case .send(let voter, let message):
            connections[voter]?.send(
                message, epoch: member.state?.accepted.epoch ?? .none, mirror: member.mirror)
        case .setPolicy(let policy, let token): order { $0.setPolicy(policy, token: token) }
        case .prepareToServe(let decision, let inheritance): order { $0.prepareToServe(decision, inheritance) }
        case .serve(let decision, let inheritance):
            noteTakeover(decision)
            order { $0.serve(decision, inheritance) }
        case .epochChanged(let decision): order { $0.epochChanged(decision) }
        case .inSyncChanged(let decision): order { $0.inSyncChanged(decision) }
        case .lease(let until): leaseGranted(until)
        case .freeze: freeze()
        case .thaw: thaw()
        case .drain: drain()
        case .close(let reason): close(reason)
        case .follow: order { $0.follow() }
        case .role(let state): roleChanged(state)
        case .witnessState(let state): witnessChanged(state)
        case .grantTooLong(let voters): grantsRefused(voters)
        case .promotion(let state):
            promotion = state
            logger.critical("forced promotion: \(state)")
        case .adminRefused(let text):
            lastRefusal = (text, reactor.now)
            logger.error("\(text)")
        case .log(let level, let text): log(level, text)
        }
    }

    private func log(_ level: QuorumLogLevel, _ text: String) {
        switch level {
        case .debug: logger.debug("\(text)")
        case .info: logger.info("\(text)")
        case .warning: logger.warning("\(text)")
        case .error: logger.error("\(text)")
        case .critical: logger.critical("\(text)")
        }
    }

    /// Writes the newest of what waits, then reports every token it stands for.
    ///
    /// While that fails this voter says nothing that rests on it, and the newest is tried again and again, each time as
    /// a new file. It is no reason to step down: leases rest on no write, so that an open primary goes on; the other
    /// node takes over from it by the votes of the other two; and if that one is lost, this one goes alone as soon as
    /// there is space. To close would bring nobody to serve, and take the files away from readers, too.
    private func persist(_ state: AcceptorState?, _ token: UInt64) {
        votesWaiting.append((state, token))
        writeVotes()
    }

    private func writeVotes() {
        guard !voteWriting, let newest = votesWaiting.last else { return }
        voteWriting = true
        let writing = votesWaiting
        votesWaiting.removeAll()
        let votes = votes
        let handle = reactor.handle
        let bound = ThreadBound({ [self] (failure: String?) in
            if let failure {
                votesWaiting.insert(contentsOf: writing, at: 0)
                return votesFailed(failure)
            }
            voteWriting = false
            if !votesProblem.isEmpty {
                votesProblem = ""
                logger.notice("this node's votes are on its disk again")
            }
            for vote in writing { feed(.persisted(token: vote.token)) }
            if let life = newest.state.map({ ($0.birth, $0.starts) }) { order { $0.votes = life } }
            writeVotes()
        })
        voteWriter.submit {
            var failure: String?
            do throws(StateFile.Failure) { try votes.store(newest.state) } catch { failure = error.cause }
            _ = handle.post { [failure] in bound.value(failure) }
        }
    }

    private func votesFailed(_ cause: String) {
        let text =
            "\(cause). This node's voter says nothing until its votes can be written: free space there, or mend the "
            + "disk or its permissions. It is tried again each second; nothing has to be restarted"
        if text != votesProblem { logger.critical("\(text)") }
        votesProblem = text
        _ = reactor.after(milliseconds: ControlPlane.votesRetryMilliseconds) { [self] in
            voteWriting = false
            writeVotes()
        }
    }

    private func noteHeard() {
        let now = reactor.now
        let mayEnd = member.presentPeer(now: now) != nil || role?.decision?.inSync.isOnly(node) == true
        sight.note {
            $0.heardAt = now
            $0.mayEnd = mayEnd
        }
    }

    private func noteOpen() { sight.note { $0.isOpen = openEpoch != nil && !hasDrained } }

    private func leaseGranted(_ until: UInt64) {
        leaseUntil = until
        order { $0.setLease(until: until) }
        holdAddresses()
    }

    private func holdAddresses() {
        guard openEpoch != nil, !isFrozen, !hasDrained, !isEnding, reactor.now < leaseUntil, let service else { return }
        addressesHeld = service.holdAddresses(until: leaseUntil)
    }

    func freeze() {
        // First what may not wait, then what may: dropping an address waits in the kernel for whoever changes the network,
        // and the guard does nothing more once it hears that this thread has frozen.
        service?.freezeApplication()
        order { $0.freeze() }
        isFrozen = true
        // What thaws from here on comes after what the guard did until here.
        sight.note { $0.guardHasFrozen = false }
        startWasFrozen = startWasFrozen || application.state == .starting
        addressesHeld = false
        service?.dropAddresses()
        logger.warning("frozen: no lease. The virtual address is gone, the application stands still, writes wait")
    }

    func thaw() {
        isFrozen = false
        service?.thawApplication()
        order { $0.thaw() }
        holdAddresses()
        if startsAtThaw { startApplication() }
        if let failure = failureAtThaw {
            failureAtThaw = nil
            let opening = openings
            // In a turn of its own: asked for in the middle of a step, nobody would hear that the move is refused.
            _ = reactor.after(milliseconds: 0) { [self] in if openings == opening { applicationFailed(failure) } }
        }
        logger.notice("thawed: the lease is back")
    }

    private func opened(_ epoch: Epoch) {
        guard !isClosing else { return }
        openEpoch = epoch
        openings += 1
        isDraining = false
        hasDrained = false
        holdAddresses()
        startApplication()
    }

    /// Only where the service is open and stays: what asks for it may be as old as a stop script takes.
    private func startApplication() {
        meetGuard()
        startsAtThaw = isFrozen
        guard openEpoch != nil, !isDraining, !isFrozen, !isEnding else { return }
        startWasFrozen = false
        // At once: a freeze that comes before the report must know that something is about to be born.
        if service?.application != nil { application = (.starting, "") }
        service?.startApplication()
    }

    private func drain() {
        isDraining = true
        drains += 1
        let number = drains
        startWasFrozen = false
        logger.notice("stopping the application for a planned move")
        guard let service, openEpoch != nil else { return order { $0.drain() } }
        let handle = ThreadBound(self)
        service.stopApplication { isStopped in
            let control = handle.value
            // Given up meanwhile: what is open now is another service.
            guard control.isDraining, control.drains == number else { return }
            guard isStopped else { return control.feed(.drainFailed) }
            control.hasDrained = true
            control.addressesHeld = false
            service.dropAddresses()
            control.order { $0.drain() }
        }
    }

    private func close(_ reason: Quorum.CloseReason) {
        // First what may not wait, as in `freeze`. Also where it was stopped in order: a start that was asked for before is
        // called off with it.
        if openEpoch != nil { service?.killApplication() }
        order { $0.close(reason) }
        openEpoch = nil
        isClosing = true
        isDraining = false
        hasDrained = false
        startsAtThaw = false
        failureAtThaw = nil
        startWasFrozen = false
        isFrozen = false
        leaseUntil = 0
        addressesHeld = false
        service?.dropAddresses()
        logger.notice("closing the service here: \(reason)")
    }

    private func roleChanged(_ state: RoleState) {
        let before = role
        role = state
        if state.decision?.primary == node.peer { otherWasPrimary = true }
        if before?.role != state.role || before?.reason != state.reason {
            logger.notice("role \(state.role.rawValue)", metadata: ["reason": "\(state.reason)"])
        }
        onRole?(state)
    }

    private func witnessChanged(_ state: WitnessState) {
        if state != witness { logger.notice("witness: \(state)") }
        witness = state
    }

    private func grantsRefused(_ voters: [Voter]) {
        grantRefusers = voters
        let text = grantProblem
        if text.isEmpty { logger.notice("grants are no longer too long for anybody") } else { logger.error("\(text)") }
    }

    /// All seems well until whoever still grants the lease is lost: then nobody serves.
    private var grantProblem: String {
        guard !grantRefusers.isEmpty else { return "" }
        let asked = configuration.timing.grantMilliseconds
        let names = grantRefusers.map { voter in voter.node.map { configuration.node($0).name } ?? "the witness" }
        let remedies = grantRefusers.map { voter in
            voter.node.map { "give \(configuration.node($0).name) the same file as this node and restart its daemon" }
                ?? "raise longestGrantMilliseconds in the witness's witness.toml to at least \(asked) and restart it"
        }
        return
            "the lease is refused by \(names.joined(separator: " and by ")): grantMilliseconds is \(asked) here, "
            + "which is longer than it grants. If the voter that still grants it is lost, nobody serves. To mend it, "
            + remedies.joined(separator: "; ")
    }

    /// What is broken here, for status; empty: nothing.
    var statedProblem: String {
        [problem, votesProblem, heldBack, full, grantProblem].first { !$0.isEmpty } ?? ""
    }

    func noteProblem(_ text: String) { problem = text }

    /// The problem with these words is over.
    func problemEnded(_ text: String) { if problem == text { problem = "" } }

    /// This node's copy does not count until the other node has mended it.
    func noteDamage(_ text: String) {
        problem = text
        damage = text
    }

    func applicationChanged(_ state: Service.ApplicationState, _ text: String) {
        meetGuard()
        // The guard's, and it goes on again already.
        guard state != .frozen || isFrozen else { return }
        application = (state, text)
        guard state == .failed, startWasFrozen else { return }
        logger.notice("the application is started once more: it stood still in its start")
        startApplication()
    }

    /// The checker says that the application is not well: the other node takes it if it can, else it is restarted here.
    func applicationFailed(_ text: String) {
        meetGuard()
        logger.error("the application failed its check: \(text)")
        guard let service, openEpoch != nil else { return }
        // Its address goes with the lease, and before it stands still: that may be all that the check has noticed.
        guard !isFrozen else {
            failureAtThaw = text
            return
        }
        // Refused, for one, while the other node is silent and not recorded as lost yet. No check runs any more.
        if role?.decision?.inSync == .both, request(.requestMove) == nil { return }
        let handle = ThreadBound(self)
        let opening = openings
        service.stopApplication { isStopped in
            let control = handle.value
            // Opened anew meanwhile, it has started the application already.
            if isStopped, control.openings == opening { control.startApplication() }
        }
    }

    // MARK: - Takeovers

    private func noteTakeover(_ decision: Decision) {
        let peer = configuration.node(node.peer).name
        let reason =
            otherWasPrimary ? "took over from \(peer)" : hasServed ? "started to serve again" : "started to serve"
        otherWasPrimary = false
        hasServed = true
        let takeover = NodeStatus.Takeover(
            time: Date().formatted(.iso8601), epoch: decision.epoch.rawValue, reason: reason)
        lastTakeover = takeover
        logger.notice("serving: \(reason)", metadata: ["decision": "\(decision)"])
        let path = configuration.state + "/last-takeover.json"
        voteWriter.submit {
            // Only for status: losing it loses no fact that matters.
            if let data = try? JSONEncoder().encode(takeover) { try? data.write(to: URL(fileURLWithPath: path)) }
        }
    }

    private static func loadTakeover(_ state: String) -> NodeStatus.Takeover? {
        guard let data = FileManager.default.contents(atPath: state + "/last-takeover.json") else { return nil }
        return try? JSONDecoder().decode(NodeStatus.Takeover.self, from: data)
    }

    // MARK: - Administration

    /// Carries out a request; the answer is nil, or why not.
    func request(_ event: MemberEvent) -> String? {
        lastRefusal = nil
        feed(event)
        return lastRefusal?.text
    }

    func shutdown() {
        voteWriter.shutdown()
        service?.shutdown()
    }
}
