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
    /// The newest connection of each node of each mirror name; an older one is closed.
    private var connections: [Client: Connection] = [:]
    private var memoryFiles: NodeMemoryFiles?
    private var memoryWriter: WorkerPool?
    /// Messages of a foreign session, refused.
    public private(set) var refusedCount = 0

    private struct Client: Hashable {
        var mirrorName: String
        var mirror: MirrorID
        var node: NodeID
    }

    /// Listens.
    ///
    /// - Parameter session: drawn at random by each start of the process.
    public init(
        reactor: Reactor, address: SocketAddress, voters: WitnessVoters, session: UInt64, logger: Logger
    ) throws(RingError) {
        self.reactor = reactor
        self.voters = voters
        self.session = session
        self.logger = logger
        listener = try Listener(
            reactor: reactor, address: address, logger: logger,
            own: { Self.greeting(name: "", mirror: .none, session: session) },
            admit: { [unowned self] greeting, remote in admit(greeting, remote) })
    }

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
        let client = Client(mirrorName: name, mirror: greeting.mirror, node: node)
        return .accept(Self.greeting(name: name, mirror: greeting.mirror, session: session)) {
            [unowned self] connection in
            opened(connection, client, peerSession: greeting.hello.session)
        }
    }

    private func opened(_ connection: Connection, _ client: Client, peerSession: UInt64) {
        connections[client]?.close("replaced by a newer connection of the same node")
        connections[client] = connection
        logger.info(
            "node \(client.node) of mirror \(client.mirrorName) is connected",
            metadata: ["source": "\(connection.remote)"])
        connection.onFrame = { [unowned self, unowned connection] header, body in
            // Frames of an earlier process of that node, should any come, are not its.
            guard header.type == .quorum, header.session == peerSession else {
                refusedCount += 1
                return
            }
            receive(header, body, from: client, connection)
        }
        connection.onClosed = { [unowned self, unowned connection] reason in
            if connections[client] === connection { connections[client] = nil }
            logger.info("node \(client.node) of mirror \(client.mirrorName) is gone: \(reason)")
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
