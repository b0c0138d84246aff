import CLinux
public import Configuration
import Format
import Foundation
import Fuse
import Glibc
public import Logging
import Quorum
import Ring
import Takeover
import Transport
import Tree

/// A reason not to start, with what to do.
public struct StartError: Error, CustomStringConvertible, Sendable {
    public let description: String
    public init(_ description: String) { self.description = description }
}

/// `lockstepd`: one mirror on one node, from its start to its end.
///
/// ```
///  lock ─▶ what an earlier process left is removed ─▶
///  votes on disk? ─yes─▶ data plane (recovery, replay) ─▶ member starts ─▶ connections
///       │ no         ▲
///       │            └── votes that were forgotten, and a journal: the member waits to be seeded, or promoted by force
///       └─ prepared to join? ─yes─▶ member waits to be seeded ─▶ journal made ─▶ data plane ─▶ data connection
///                            ─no──▶ refused: `lockstep init`
/// ```
///
/// Its parts are confined to the thread that their comment names; work reaches them only by posting to that thread.
public final class NodeProcess: @unchecked Sendable {
    let configuration: MirrorConfiguration
    let node: NodeID
    let logger: Logger
    /// Drawn by this start: tells a restart from a reconnect.
    let session: UInt64
    let dataThread: ReactorThread
    let controlThread: ReactorThread
    private let dataReactor: ReactorSlot
    private let controlReactor: ReactorSlot

    /// Held from the first step of `start` until the process ends; of the thread that starts and stops.
    private var stateLock: StateLock?

    // Confined to the control thread.
    private var control: ControlPlane!
    private var listener: Listener?
    private var dialers: [Dialer] = []
    private var admin: AdminServer?
    private var leaseGuard: LeaseGuard?
    private var stopWaiters: [() -> Void] = []
    /// Begun, in this process: it is tried until it is made.
    private var isMakingJournal = false
    /// Messages of decisions and leases that came in the name of another mirror or session.
    private(set) var refusedControlMessages: UInt64 = 0
    // Confined to the data thread.
    private var plane: DataPlane?
    private var dataDialer: Dialer?
    private var dataChannel: DataChannel?

    public init(configuration: MirrorConfiguration, node: NodeID, logger: Logger) throws {
        self.configuration = configuration
        self.node = node
        self.logger = logger
        var generator = SystemRandomNumberGenerator()
        session = generator.next()
        let engine = EngineChoice(rawValue: configuration.journal.engine.rawValue) ?? .auto
        let dataReactor = ReactorSlot()
        let controlReactor = ReactorSlot()
        // On the only processor nothing happens while one looks.
        let spinMicroseconds = sysconf(Int32(_SC_NPROCESSORS_ONLN)) > 1 ? configuration.journal.spinMicroseconds : 0
        dataThread = try ReactorThread(name: "data", engine: engine, logger: logger) {
            $0.spinMicroseconds = spinMicroseconds
            dataReactor.reactor = $0
        }
        controlThread = try ReactorThread(name: "control", engine: .libaio, logger: logger) {
            controlReactor.reactor = $0
        }
        self.dataReactor = dataReactor
        self.controlReactor = controlReactor
    }

    private var own: MirrorConfiguration.Node { configuration.node(node) }
    private var peer: MirrorConfiguration.Node { configuration.node(node.peer) }

    // MARK: - Start

    /// As in the unit that comes with it. Whoever starts it otherwise has 1,024, as a rule.
    static let descriptors = 65_536

    /// Starts everything; returns when the node takes part. Throws when it must not.
    public func start() throws {
        _ = clinux_set_io_flusher(1)
        DescriptorLimit.raise(to: NodeProcess.descriptors)
        try makeDirectories()
        // BEFORE the guard is placed: that takes away the mount of a process that was killed, and would take away the one of
        // a process that serves.
        stateLock = try StateLock(configuration)
        Service.removeLeftovers(configuration, node: node, logger: logger)
        let votes = VoteFile(configuration)
        let (state, kept) = try votes.recall()
        let hasJournal = unsafe access(StateFiles.journal(configuration), F_OK) == 0
        let isJoining = unsafe access(StateFiles.joining(configuration), F_OK) == 0
        // Without the journal they are of no use: there is nothing that could be served by them.
        let forgotten = hasJournal ? kept : nil
        guard state != nil || forgotten != nil || isJoining else {
            throw StartError(whyNoPart(hasJournal: hasJournal, hasForgotten: kept != nil))
        }
        if let other = (state ?? forgotten)?.name, other != configuration.name {
            throw StartError(
                "\(configuration.state) belongs to mirror \(other), not to \(configuration.name): "
                    + "correct `state` or `name` in \(configuration.file)")
        }
        try MountGuard.place(at: configuration.path, name: configuration.name)
        var summary: LogSummary?
        if let mirror = (state ?? forgotten)?.mirror {
            if !hasJournal {
                guard isJoining else {
                    throw StartError(
                        "\(StateFiles.journal(configuration)) is missing although this node has votes: its disk was "
                            + "lost or is not mounted. If it is lost, remove \(StateFiles.votes(configuration)) and "
                            + "run `lockstep init`: the node then joins anew")
                }
                try makeJournal(mirror)
            } else if isJoining {
                // It was broken off between the two.
                try StateFile.remove(StateFiles.joining(configuration))
            }
            summary = try startData(mirror: mirror)
        }
        if let state, wasPutBack(state, summary) {
            // BEFORE anybody is answered.
            try votes.store(nil)
            try startControl(votes: votes, state: nil, forgotten: state, summary: summary)
        } else {
            if let forgotten, state == nil { sayForgotten(forgotten) }
            try startControl(votes: votes, state: state, forgotten: state == nil ? forgotten : nil, summary: summary)
        }
        if summary != nil { try connectData() }
    }

    /// `lockstepd --clean-up`, for the unit to run when the daemon has ended in whatever way: what it left on this
    /// machine goes now, and not only with the next start.
    ///
    /// - Throws: when a daemon of this mirror runs here.
    public static func cleanUp(_ configuration: MirrorConfiguration, node: NodeID, logger: Logger) throws {
        // A state directory that cannot be opened may be why the daemon has ended: no reason to leave its application.
        let descriptor = unsafe open(StateFiles.lock(configuration), O_RDWR | O_CLOEXEC)
        defer { if descriptor >= 0 { close(descriptor) } }
        if descriptor >= 0, clinux_lock_exclusive(descriptor) < 0 {
            throw StartError("lockstepd runs here for mirror \(configuration.name): nothing was removed")
        }
        Service.removeLeftovers(configuration, node: node, logger: logger)
    }

    /// Why this node does not start, and what the choices are.
    private func whyNoPart(hasJournal: Bool, hasForgotten: Bool) -> String {
        let votes = StateFiles.votes(configuration)
        if hasJournal {
            return
                "\(votes) is missing although there is a journal: this node's votes were lost, and with them what it has "
                + "promised. If they are only not in their place, bring them back. If \(peer.name) serves, or can: run "
                + "`lockstep init`; this node then joins anew, and its journal is kept aside. If \(peer.name) is lost for "
                + "good: this node cannot be promoted without its votes; docs/identity.md says how to begin anew with its "
                + "plain files, which stay as they are"
        }
        if hasForgotten {
            return
                "\(StateFiles.journal(configuration)) is missing, and this node's votes were forgotten: its disk was lost or "
                + "is not mounted. If it is lost, run `lockstep init`: the node then joins anew"
        }
        return
            "this node has no part in mirror \(configuration.name) yet (no \(votes)). "
            + "Run `lockstep init --first` on the node that has the data and `lockstep init` on the other one; "
            + "if it had a part, the file system of \(configuration.state) is not mounted"
    }

    private func sayForgotten(_ forgotten: AcceptorState) {
        logger.critical(
            """
            this node's votes were put back to an older state (decision \(forgotten.accepted)), and are forgotten: it does \
            not vote until \(peer.name), serving alone, has given it new ones. If \(peer.name) is lost for good, see \
            `lockstep promote`
            """)
    }

    /// The plain files remember a later process on these votes: they were put back to an older state, what was promised since
    /// is forgotten, and this node votes no more until it has been given its memory anew.
    private func wasPutBack(_ state: AcceptorState, _ summary: LogSummary?) -> Bool {
        guard let life = summary?.voteLife, life.birth == state.birth, life.starts > state.starts else { return false }
        logger.critical(
            """
            \(StateFiles.votes(configuration)) was put back to an older state: it was written by process \(state.starts) of \
            this node, and process \(life.starts) has run since. This node does not vote until \(peer.name), serving \
            alone, has given it its memory anew
            """)
        return true
    }

    private func makeDirectories() throws {
        for directory in [configuration.state, configuration.runtimeDirectory] {
            do {
                try FileManager.default.createDirectory(
                    atPath: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
            } catch {
                throw StartError("cannot create \(directory): \(error.localizedDescription)")
            }
        }
    }

    private func makeJournal(_ mirror: MirrorID) throws {
        // An empty directory is the mirror's state before its first record; anything else must be compared.
        let entries = try FileManager.default.contentsOfDirectory(atPath: configuration.backing)
        try NodePreparation.makeJournal(
            configuration, node: node, mirror: mirror, isIncomplete: entries.contains { $0 != ".lockstep" },
            logger: logger)
        // From now on a missing journal is a lost disk, not a preparation.
        try StateFile.remove(StateFiles.joining(configuration))
    }

    private func onData<Value: Sendable>(_ work: @escaping @Sendable (Reactor) throws -> Value) throws -> Value {
        let slot = dataReactor
        guard let result = dataThread.call({ Result { try work(slot.reactor) } }) else {
            throw StartError("the data thread has ended")
        }
        return try result.get()
    }

    private func startData(mirror: MirrorID) throws -> LogSummary {
        let control = controlThread.handle
        let configuration = configuration
        let node = node
        let logger = logger
        let box = Unchecked(self)
        let ready = DispatchSemaphore(value: 0)
        let summary = try onData { reactor in
            let (plane, summary) = try DataPlane.start(
                node: node, configuration: configuration, mirror: mirror, reactor: reactor, logger: logger
            ) { report in
                _ = control.post { box.value.control?.reported(report) }
            }
            // From now on something may be missing after a crash: on the disk before anything is received.
            plane.journal.clearCleanStop(isStrict: configuration.mode == .strict) {
                box.value.plane = plane
                _ = ready.signal()
            }
            return summary
        }
        guard ready.wait(timeout: .now() + .seconds(30)) == .success else {
            throw StartError("the journal's disk does not answer: \(StateFiles.journal(configuration))")
        }
        return summary
    }

    private func startControl(
        votes: VoteFile, state: AcceptorState?, forgotten: AcceptorState?, summary: LogSummary?
    ) throws {
        let box = Unchecked(self)
        let configuration = configuration
        let node = node
        let logger = logger
        let seed = session
        let orders = Orders(process: box, data: dataThread.handle)
        let slot = controlReactor
        guard
            let result = controlThread.call({
                Result {
                    let process = box.value
                    let reactor: Reactor = slot.reactor
                    let control = try ControlPlane(
                        node: node, configuration: configuration, reactor: reactor, votes: votes, seed: seed,
                        logger: logger)
                    process.control = control
                    let service = try Service(
                        configuration: configuration, node: node, control: reactor.handle, logger: logger,
                        onState: { state, text in box.value.control.applicationChanged(state, text) },
                        onCheckFailed: { text in box.value.control.applicationFailed(text) })
                    control.service = service
                    control.onRole = { role in box.value.roleChanged(role) }
                    control.onEnd = { box.value.endWithoutData() }
                    control.onSeeded = { state in box.value.seeded(state) }
                    process.leaseGuard = process.startGuard(control, service)
                    if summary != nil { control.attach(orders) }
                    control.start(
                        MemberStart(
                            state: state, forgotten: forgotten, logComplete: summary?.isComplete ?? false,
                            isUsable: summary?.isUsable ?? true,
                            lastEpoch: summary?.lastEpoch ?? .none, lastSeq: summary?.lastSeq ?? .zero,
                            committed: summary?.committed ?? .zero))
                    // Not a failed disk for the member: the other node repairs the copy, and until then `serve` is
                    // refused here.
                    if let damage = summary?.damage { control.noteDamage(damage) }
                    try process.connectControl(reactor)
                    process.admin = try AdminServer(process: process, reactor: reactor, logger: logger)
                    ThreadPriority.raise()
                }
            })
        else { throw StartError("the control thread has ended") }
        try result.get()
    }

    /// The node was empty and has an identity now: make the journal (seconds, elsewhere), then the data plane.
    private func seeded(_ state: AcceptorState) {
        guard !isMakingJournal, unsafe access(StateFiles.journal(configuration), F_OK) != 0 else { return }
        isMakingJournal = true
        let box = Unchecked(self)
        Thread.detachNewThread {
            let process = box.value
            guard process.makeJournalInTime(state.mirror) else { return }
            do {
                _ = try process.startData(mirror: state.mirror)
                let orders = Orders(process: box, data: process.dataThread.handle)
                _ = process.controlThread.post { box.value.control.attach(orders) }
                try process.connectData()
            } catch {
                process.logger.critical("this node cannot join: \(error)")
                let text = "\(error)"
                _ = process.controlThread.post { box.value.control.noteProblem(text) }
            }
        }
    }

    /// How long to wait before a journal that could not be made is tried again: the disk was full, as a rule, and whoever
    /// mends that need not know that a daemon waits for it.
    private static let journalRetrySeconds: UInt32 = 5

    /// Makes the journal, however often that takes.
    /// - Returns: false when the process stops meanwhile.
    private func makeJournalInTime(_ mirror: MirrorID) -> Bool {
        let box = Unchecked(self)
        var said = ""
        while true {
            do {
                try makeJournal(mirror)
                let text = said
                return controlThread.post { box.value.control.problemEnded(text) }
            } catch {
                let text = "this node cannot join: \(error)"
                if text != said { logger.critical("\(text)") }
                said = text
                guard controlThread.post({ box.value.control.noteProblem(text) }) else { return false }
            }
            sleep(NodeProcess.journalRetrySeconds)
        }
    }

    // MARK: - Connections

    private func greeting(_ channel: Hello.Channel, mirror: MirrorID, epoch: Epoch) -> Greeting {
        Greeting(
            hello: Hello(channel: channel, voter: Voter(node), mirrorName: configuration.name, session: session),
            epoch: epoch, mirror: mirror)
    }

    private func connectControl(_ reactor: Reactor) throws {
        let own = own
        guard let address = SocketAddress(own.endpoint.host, port: own.endpoint.port),
            let witness = SocketAddress(configuration.witness.host, port: configuration.witness.port),
            let other = SocketAddress(peer.endpoint.host, port: peer.endpoint.port)
        else { throw StartError("an address in \(configuration.file) cannot be used") }
        let mine = { [unowned self] in
            greeting(
                .control, mirror: control.member.mirror,
                epoch: control.member.state?.accepted.epoch ?? .none)
        }
        listener = try Listener(reactor: reactor, address: address, logger: logger, own: mine) {
            [unowned self] greeting, remote in admit(greeting, remote)
        }
        var options = DialerOptions()
        // A vanished link is noticed soon, and a healed one used soon: lease traffic is twice a second.
        options.stream.silenceLimitMilliseconds = 2000
        options.longestWaitMilliseconds = 500
        options.localAddress = SocketAddress(own.endpoint.host, port: 0)
        dialers.append(
            Dialer(
                reactor: reactor, remote: witness, options: options, generator: SystemRandomNumberGenerator(),
                logger: logger, own: mine
            ) { [unowned self] connection, greeting in opened(connection, greeting, from: .witness) })
        // One connection between the nodes: the second one dials.
        if node == .b {
            dialers.append(
                Dialer(
                    reactor: reactor, remote: other, options: options, generator: SystemRandomNumberGenerator(),
                    logger: logger, own: mine
                ) { [unowned self] connection, greeting in opened(connection, greeting, from: Voter(node.peer)) })
        }
    }

    /// Why a greeting is not one of this mirror's other node; nil when it is.
    private func objection(_ greeting: Greeting, mirror: MirrorID, from voter: Voter) -> String? {
        if greeting.hello.mirrorName != configuration.name {
            return "this is mirror \(configuration.name), not \(greeting.hello.mirrorName): correct the address in "
                + "the configuration"
        }
        if greeting.mirror != .none, mirror != .none, greeting.mirror != mirror {
            return "this mirror \(configuration.name) has the identity \(mirror), yours is \(greeting.mirror): two "
                + "clusters have one name; if this node shall join yours, remove its state and run `lockstep init`"
        }
        if greeting.hello.voter != voter {
            return "expected \(voter), not \(greeting.hello.voter): do both nodes run with the same configuration and "
                + "different --node names?"
        }
        return nil
    }

    private func admit(_ greeting: Greeting, _ remote: SocketAddress) -> Admission {
        let mirror = control.member.mirror
        let epoch = control.member.state?.accepted.epoch ?? .none
        if let objection = objection(greeting, mirror: mirror, from: Voter(node.peer)) { return .refuse(objection) }
        switch greeting.hello.channel {
        case .control:
            return .accept(self.greeting(.control, mirror: mirror, epoch: epoch)) { [unowned self] connection in
                _ = opened(connection, greeting, from: Voter(node.peer))
            }
        case .data:
            let box = Unchecked(self)
            let data = dataThread.handle
            let session = greeting.hello.session
            return .handOver(self.greeting(.data, mirror: mirror, epoch: epoch)) { detached in
                _ = data.post { box.value.attachData(detached, peerSession: session) }
            }
        }
    }

    private func opened(_ connection: Connection, _ greeting: Greeting, from voter: Voter) -> String? {
        let mirror = control.member.mirror
        if let objection = objection(greeting, mirror: mirror, from: voter) { return objection }
        let channel = ControlChannel(
            connection, session: session, peerSession: greeting.hello.session,
            mirror: { [unowned self] in control.member.mirror }, logger: logger,
            onMessage: { [unowned self] message in control.received(message, from: voter) },
            onRefused: { [unowned self] in refusedControlMessages += 1 },
            onClosed: { [unowned self] channel in control.disconnected(voter, channel) })
        logger.info("control connection to \(connection.remote) is up", metadata: ["voter": "\(voter)"])
        control.connected(voter, channel)
        return nil
    }

    /// Starts the data connection: the second node dials, the first waits for it.
    private func connectData() throws {
        guard node == .b else { return }
        guard let other = SocketAddress(peer.endpoint.host, port: peer.endpoint.port) else { return }
        let box = Unchecked(self)
        let local = SocketAddress(own.endpoint.host, port: 0)
        try onData { reactor in
            let process = box.value
            guard let plane = process.plane else { return }
            var options = DialerOptions()
            options.longestWaitMilliseconds = 500
            options.stream.silenceLimitMilliseconds = 3000
            options.localAddress = local
            process.dataDialer = Dialer(
                reactor: reactor, remote: other, options: options, generator: SystemRandomNumberGenerator(),
                logger: process.logger,
                own: { process.greeting(.data, mirror: plane.journal.mirror, epoch: plane.log.epoch) }
            ) { connection, greeting in
                if let objection = process.objection(
                    greeting, mirror: plane.journal.mirror, from: Voter(process.node.peer))
                {
                    return objection
                }
                process.useData(connection, plane, peerSession: greeting.hello.session)
                return nil
            }
        }
    }

    private func attachData(_ detached: DetachedConnection, peerSession: UInt64) {
        // Not ready yet, or no more: it closes, and the other side dials again.
        guard let plane, !plane.isStopping else { return }
        let connection = detached.attach(to: plane.reactor, logger: logger)
        useData(connection, plane, peerSession: peerSession)
    }

    private func useData(_ connection: Connection, _ plane: DataPlane, peerSession: UInt64) {
        let channel = DataChannel(
            connection, session: session, peerSession: peerSession, log: plane.log, link: plane.link, logger: logger)
        dataChannel = channel
        plane.onRoom = { channel.resume() }
        logger.notice("data connection to \(connection.remote) is up")
        plane.link.connected(channel)
    }

    // MARK: - Stop

    private func roleChanged(_ role: RoleState) {
        // For whatever reason: a node whose disk failed does nothing more, either.
        guard role.role == .stop else { return }
        let waiters = stopWaiters
        stopWaiters.removeAll()
        for waiter in waiters { waiter() }
    }

    /// Hands the service over if the other node can take it, stops, and marks the journal complete. Blocking.
    public func stop(timeoutSeconds: Int) {
        let done = DispatchSemaphore(value: 0)
        let box = Unchecked(self)
        _ = controlThread.post {
            let process = box.value
            if process.control.role?.role == .stop {
                done.signal()
                return
            }
            process.stopWaiters.append { done.signal() }
            _ = process.control.request(.requestStop)
        }
        if done.wait(timeout: .now() + .seconds(timeoutSeconds)) == .timedOut {
            logger.error("the mirror did not stop within \(timeoutSeconds) s; leaving all the same")
        }
        leaveNothingBehind()
        finishData()
        _ = controlThread.post { box.value.leaseGuard?.stop() }
        controlThread.stop()
        controlThread.join()
        dataThread.stop()
        dataThread.join()
    }

    /// Takes the addresses down, kills what is left of the application and clears the mount away, also if the stop came
    /// to no end: nothing shall look like a service when this process has gone.
    func leaveNothingBehind() {
        let box = Unchecked(self)
        let service = controlThread.call {
            let service = box.value.control.service
            service?.dropAddresses()
            return service
        }
        clearAway(service??.application)
    }

    /// Any thread.
    func clearAway(_ application: Application?) {
        do { try application?.kill(milliseconds: 0) } catch { logger.error("\(error)") }
        // Who waits in a request for the mirrored directory dies when that has gone.
        MountGuard.clear(configuration.path)
        do {
            guard let left = try application?.kill(), !left.isEmpty else { return }
            logger.error("processes of the application are stuck in the kernel and could not be killed: \(left)")
        } catch {
            logger.error("\(error)")
        }
    }

    /// Nothing more is received; what is here goes to the disks, and the journal says that it is complete.
    private func finishData() {
        let done = DispatchSemaphore(value: 0)
        let box = Unchecked(self)
        let posted = dataThread.post {
            guard let plane = box.value.plane else {
                done.signal()
                return
            }
            box.value.dataDialer?.stop()
            box.value.dataChannel?.close("this node stops")
            plane.stop { _ = done.signal() }
        }
        if posted { _ = done.wait(timeout: .now() + .seconds(30)) }
    }

    // MARK: - For the admin server

    var controlPlane: ControlPlane { control }
    /// Data thread.
    var dataPlane: DataPlane? { plane }

    /// Collects the data side's part of the status on its thread, then `answer` on the control thread.
    func gatherData(_ answer: @escaping @Sendable (DataFacts?) -> Void) {
        let box = Unchecked(self)
        let handle = controlThread.handle
        let posted = dataThread.post {
            let facts = box.value.plane?.facts
            _ = handle.post { answer(facts) }
        }
        if !posted { answer(nil) }
    }

    /// Asks something of the data side on its thread, then `then` on the control thread; nil when there is none.
    func askData<Value: Sendable>(
        _ question: @escaping @Sendable (DataPlane) -> Value, then: @escaping @Sendable (Value?) -> Void
    ) {
        let box = Unchecked(self)
        let handle = controlThread.handle
        let posted = dataThread.post {
            let value = box.value.plane.map(question)
            _ = handle.post { then(value) }
        }
        if !posted { then(nil) }
    }

    struct Orders: DataOrders {
        let process: Unchecked<NodeProcess>
        let data: ReactorHandle
        func order(_ work: @escaping @Sendable (DataPlane) -> Void) {
            _ = data.post { if let plane = process.value.plane { work(plane) } }
        }
    }
}

/// Carries an object to the thread that its parts are confined to; each part says which.
struct Unchecked<Value>: @unchecked Sendable {
    let value: Value
    init(_ value: Value) { self.value = value }
}

/// Where a reactor's thread leaves it for work posted to that thread; touched there only.
final class ReactorSlot: @unchecked Sendable {
    var reactor: Reactor!
}
