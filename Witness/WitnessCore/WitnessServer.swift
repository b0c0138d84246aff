import Format
public import Logging
public import Ring
public import Transport

/// The witness on the network. Belongs to one reactor's thread.
public final class WitnessServer {
    private let reactor: Reactor
    private let voters: WitnessVoters
    private let logger: Logger
    private let session: UInt64
    private var listener: Listener?
    /// The newest connection of each node of each mirror; an older one is closed.
    private var connections: [Client: Open] = [:]
    private let connectionsMaximum: Int
    private var memoryFiles: NodeMemoryFiles?
    private var memoryWriter: WorkerPool?
    /// Messages of a foreign session, refused.
    public private(set) var refusedCount = 0

    private struct Client: Hashable {
        var mirror: MirrorID
        var node: NodeID
        /// Empty for a node that knows the identity of its mirror: many names do not make many connections.
        var name: String
    }

    private struct Open {
        let connection: Connection
        /// The mirror that it last spoke for.
        var mirror: MirrorID
        var heardAt: BootNanoseconds
    }

    // How many connections there may be. One that names a mirror with a memory here stays, however seldom it speaks: a
    // node that stands by says nothing for weeks, and must be heard at once when it has something to say. Those are two
    // for each mirror. All others have to speak, and when places get scarce they have to speak often.

    /// Both nodes of every mirror, with a memory here or without.
    public static let connectionsMaximum = 2 * (WitnessVoters.mirrorLimit + WitnessVoters.emptyLimit)
    /// Descriptors that connections never get: for those that have not said hello yet (64), and for the votes, without
    /// which nobody gets an answer; the rest is the program's own.
    public static let reservedDescriptors = 128
    /// What to ask the system for.
    public static let wantedDescriptors = connectionsMaximum + reservedDescriptors

    /// Connections that this many descriptors are enough for.
    public static func connections(withDescriptors count: Int) -> Int {
        max(2, min(connectionsMaximum, count - reservedDescriptors))
    }

    /// A connection without a memory here that says nothing for this long is closed; its node dials again.
    static let silenceNanoseconds: BootNanoseconds = 60_000_000_000
    /// The same when places are scarce: a node that waits to be seeded asks several times in this time.
    static let scarceSilenceNanoseconds: BootNanoseconds = 2_000_000_000
    /// So many places are kept free of connections without a memory here.
    static let sparePlaces = 64
    static let silenceMilliseconds = 1_000

    /// Listens.
    ///
    /// - Parameters:
    ///   - session: drawn at random by each start of the process.
    ///   - connectionsMaximum: what there are descriptors for, see `connections(withDescriptors:)`.
    public init(
        reactor: Reactor, address: SocketAddress, voters: WitnessVoters, session: UInt64, logger: Logger,
        connectionsMaximum: Int = WitnessServer.connectionsMaximum
    ) throws(RingError) {
        self.reactor = reactor
        self.voters = voters
        self.session = session
        self.logger = logger
        self.connectionsMaximum = connectionsMaximum
        var limits = ListenerLimits()
        limits.connections = connectionsMaximum
        // Answers are small and are asked for again when one is lost: who does not take them gets no memory for them.
        limits.connection.queuedBytes = 64 << 10
        limits.connection.queuedFrames = 64
        listener = try Listener(
            reactor: reactor, address: address, limits: limits, logger: logger,
            own: { Self.greeting(name: "", mirror: .none, session: session) },
            admit: { [unowned self] greeting, remote in admit(greeting, remote) })
        _ = reactor.repeating(milliseconds: Self.silenceMilliseconds) { [weak self] in self?.closeSilent() }
    }

    private func closeSilent() {
        let isScarce = connections.count > connectionsMaximum - min(Self.sparePlaces, connectionsMaximum / 2)
        let limit = isScarce ? Self.scarceSilenceNanoseconds : Self.silenceNanoseconds
        let now = reactor.now
        for open in connections.values where now >= open.heardAt + limit && !voters.hasMemory(of: open.mirror) {
            open.connection.close("it names a mirror without a memory here, and said nothing for too long")
        }
    }

    /// Connections that are open and were not replaced.
    public var connectionCount: Int { connections.count }

    static let memoryMilliseconds = 5_000

    /// Keeps what is remembered of nodes in files, written by `writer`.
    public func keepMemories(in files: NodeMemoryFiles, writer: WorkerPool) {
        memoryFiles = files
        memoryWriter = writer
        _ = reactor.repeating(milliseconds: Self.memoryMilliseconds) { [unowned self] in writeMemories() }
    }

    /// Hands what is remembered of nodes to the writer, which has written it when it is shut down.
    /// - Parameter all: whatever has changed, because the process stops.
    public func writeMemories(all: Bool = false) {
        guard let memoryFiles, let memoryWriter else { return }
        let handle = reactor.handle
        let bound = ThreadBound(self)
        for (mirror, memory) in voters.memoriesToWrite(now: reactor.now, all: all) {
            let logger = logger
            let isTaken = memoryWriter.trySubmit {
                do throws(VoteStoreError) {
                    try memoryFiles.store(memory, of: mirror)
                } catch {
                    logger.error("\(error)", metadata: ["mirror": "\(mirror)"])
                    _ = handle.post { bound.value.voters.memoryWasNotWritten(of: mirror) }
                }
            }
            if !isTaken { voters.memoryWasNotWritten(of: mirror) }
        }
    }

    /// Where it listens.
    public var address: SocketAddress? { listener?.address }

    public func close() { listener?.close() }

    /// It answers in the name of the mirror that asks: it serves any.
    private static func greeting(name: String, mirror: MirrorID, session: UInt64) -> Greeting {
        Greeting(
            hello: Hello(channel: .control, voter: .witness, mirrorName: name, session: session), epoch: .none,
            mirror: mirror)
    }

    private func admit(_ greeting: Greeting, _ remote: SocketAddress) -> Admission {
        guard greeting.hello.channel == .control, let node = greeting.hello.voter.node else {
            return .refuse("this is a witness: it talks to the two nodes of a mirror, about decisions only")
        }
        let name = greeting.hello.mirrorName
        if let objection = voters.objection(mirror: greeting.mirror, name: name) { return .refuse(objection) }
        let client = Client(mirror: greeting.mirror, node: node, name: greeting.mirror == .none ? name : "")
        return .accept(Self.greeting(name: name, mirror: greeting.mirror, session: session)) {
            [unowned self] connection in
            opened(connection, client, name: name, peerSession: greeting.hello.session)
        }
    }

    private func opened(_ connection: Connection, _ client: Client, name: String, peerSession: UInt64) {
        connections[client]?.connection.close("replaced by a newer connection of the same node")
        connections[client] = Open(connection: connection, mirror: client.mirror, heardAt: reactor.now)
        logger.info(
            "node \(client.node) of mirror \(name) is connected",
            metadata: ["source": "\(connection.remote)"])
        connection.onFrame = { [unowned self, unowned connection] header, body in
            // Frames of an earlier process of that node, should any come, are not its.
            guard header.type == .quorum, header.session == peerSession else {
                refusedCount += 1
                return
            }
            if connections[client]?.connection === connection {
                if client.mirror == .none { connections[client]?.mirror = header.mirror }
                connections[client]?.heardAt = reactor.now
            }
            receive(header, body, from: client, connection)
        }
        connection.onClosed = { [unowned self, unowned connection] reason in
            if connections[client]?.connection === connection { connections[client] = nil }
            logger.info("node \(client.node) of mirror \(name) is gone: \(reason)")
        }
    }

    private func receive(_ header: FrameHeader, _ body: [UInt8], from client: Client, _ connection: Connection) {
        // A node that was empty when it connected has an identity by now; one that has one keeps it.
        guard client.mirror == .none || header.mirror == client.mirror else {
            refusedCount += 1
            return
        }
        let message: QuorumMessage
        do throws(DecodingError) {
            message = try QuorumMessage(decoding: body[...])
        } catch {
            logger.warning(
                "connection closed: a message that cannot be read", metadata: ["source": "\(connection.remote)"])
            connection.close("a message that cannot be read: \(error)")
            return
        }
        for (node, answer) in voters.receive(message, from: client.node, mirror: header.mirror, now: reactor.now)
        where node == client.node {
            let bytes = answer.encoded()
            connection.send(
                FrameHeader(
                    type: .quorum, bodyLength: bytes.count, session: session, epoch: .none, mirror: header.mirror),
                body: bytes)
        }
    }
}
