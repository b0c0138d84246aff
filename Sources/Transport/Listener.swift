import CLinux
import Format
import Glibc
public import Logging
public import Ring

/// What to do with a connection whose hello has come.
public enum Admission {
    /// Answer with this hello and go on here; the closure gets the open connection and sets its handlers.
    case accept(Greeting, (Connection) -> Void)
    /// Answer with this hello and give the connection to another reactor (`DetachedConnection.attach`).
    case handOver(Greeting, (DetachedConnection) -> Void)
    /// Answer with these words and close. Logged.
    case refuse(String)
}

/// Limits of a listener.
public struct ListenerLimits: Sendable {
    /// Milliseconds from accept to a complete hello.
    public var helloMilliseconds = 3000
    /// Connections without a hello from one address.
    public var unauthenticatedPerSource = 8
    /// Connections without a hello in all.
    public var unauthenticated = 64
    /// Connections in all, this reactor's and those handed over not counted after they were handed over.
    public var connections = 4096
    public var connection = ConnectionLimits()
    public var stream = StreamOptions()
    public init() {}
}

/// Accepts connections on one address. Strangers get nowhere: see the head of `Transport.swift`.
public final class Listener {
    /// Where it listens; with the port the kernel gave when 0 was asked for.
    public let address: SocketAddress
    /// Counts, for status and tests.
    public private(set) var acceptedCount = 0
    public private(set) var droppedCount = 0

    private let reactor: Reactor
    private let limits: ListenerLimits
    private let logger: Logger
    private let own: () -> Greeting
    private let admit: (Greeting, SocketAddress) -> Admission
    private var descriptor: Int32
    private var watch: Watch?
    private var pause: ReactorTimer?
    private var strangers: [ObjectIdentifier: Stranger] = [:]
    private var strangersBySource: [String: Int] = [:]
    private var open: [ObjectIdentifier: Connection] = [:]
    private var log = SourceLog()

    private struct Stranger {
        let connection: Connection
        let timer: ReactorTimer
    }

    /// Binds and listens.
    ///
    /// - Parameters:
    ///   - own: this side's greeting, for the range of versions and for refusals.
    ///   - admit: decides about a stranger by its hello, whose versions fit.
    public init(
        reactor: Reactor, address: SocketAddress, limits: ListenerLimits = ListenerLimits(), logger: Logger,
        own: @escaping () -> Greeting, admit: @escaping (Greeting, SocketAddress) -> Admission
    ) throws(RingError) {
        let descriptor = try makeSocket(for: address)
        var yes: Int32 = 1
        _ = unsafe setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &yes, socklen_t(MemoryLayout<Int32>.size))
        if address.isIPv6 {
            // One address is one address: IPv4 gets a listener of its own.
            _ = unsafe setsockopt(
                descriptor, Int32(IPPROTO_IPV6), IPV6_V6ONLY, &yes, socklen_t(MemoryLayout<Int32>.size))
        }
        var result = unsafe address.withSockaddr { raw, length in unsafe bind(descriptor, raw, length) }
        if result == 0 { result = listen(descriptor, 128) }
        guard result == 0 else {
            let code = errno
            _ = Glibc.close(descriptor)
            let remedy =
                switch code {
                case EADDRINUSE:
                    "Another process has this port (ss -ltnp shows which); stop it or configure another one"
                case EADDRNOTAVAIL: "No interface has this address; correct the configuration or the network"
                default: ""
                }
            throw RingError("listen on", "\(address)", code: code, remedy: remedy)
        }
        let bound = unsafe SocketAddress.reading { raw, length in unsafe getsockname(descriptor, raw, length) }
        self.descriptor = descriptor
        self.address = bound.address ?? address
        self.reactor = reactor
        self.limits = limits
        self.logger = logger
        self.own = own
        self.admit = admit
        watch = reactor.watch(descriptor, read: true, write: false) { [self] _ in acceptAll() }
    }

    /// Connections that have said hello and were not handed over.
    public var openCount: Int { open.count }

    /// Connections that have not said hello.
    public var unauthenticatedCount: Int { strangers.count }

    /// Accepts no more and closes what it accepted and did not hand over.
    public func close() {
        guard descriptor >= 0 else { return }
        pause?.cancel()
        watch?.cancel()
        watch = nil
        _ = Glibc.close(descriptor)
        descriptor = -1
        for stranger in strangers.values { stranger.connection.close("the listener closes") }
        for connection in open.values { connection.close("the listener closes") }
    }

    private func acceptAll() {
        // Bounded for each turn, so that a flood does not starve the others on this thread.
        for _ in 0..<64 where descriptor >= 0 {
            let (result, remote) = unsafe SocketAddress.reading { raw, length in
                unsafe clinux_accept(descriptor, raw, length)
            }
            guard result >= 0 else {
                if result == -EAGAIN { return }
                if [-ECONNABORTED, -EINTR, -EPROTO].contains(result) { continue }
                // No descriptors or no memory: the connection stays in the kernel's queue; look again later.
                logger.error(
                    "cannot accept connections for now", metadata: ["transport.error": "\(errorText(result))"])
                watch?.change(read: false, write: false)
                pause = reactor.after(milliseconds: 200) { [self] in watch?.change(read: true, write: false) }
                return
            }
            guard let remote else {
                _ = Glibc.close(result)
                continue
            }
            begin(TCPStream(owning: result, options: limits.stream), remote)
        }
    }

    private func begin(_ stream: TCPStream, _ remote: SocketAddress) {
        let source = remote.host
        let fromThere = strangersBySource[source, default: 0]
        guard fromThere < limits.unauthenticatedPerSource, strangers.count < limits.unauthenticated,
            open.count < limits.connections
        else {
            droppedCount += 1
            complain(remote, "too many connections at once")
            stream.close()
            return
        }
        acceptedCount += 1
        let connection = Connection(
            reactor: reactor, stream: stream, remote: remote, accepted: [.hello], limits: limits.connection,
            logger: logger)
        let identity = ObjectIdentifier(connection)
        let timer = reactor.after(milliseconds: limits.helloMilliseconds) { [self] in
            complain(remote, "no hello within \(limits.helloMilliseconds) ms")
            connection.finish(.silent("no hello"))
        }
        strangers[identity] = Stranger(connection: connection, timer: timer)
        strangersBySource[source] = fromThere + 1
        connection.garbageLog = { [self] what in complain(remote, what) }
        connection.onFrame = { [self] header, body in greet(connection, header, body) }
        connection.closedHook = { [self] _ in forget(identity, source) }
        connection.start()
    }

    private func complain(_ remote: SocketAddress, _ what: String) {
        let (admitted, note) = log.admit(remote.host, now: reactor.now)
        guard admitted else { return }
        logger.warning(
            "connection closed: \(what)\(note)",
            metadata: ["transport.source": "\(remote)", "transport.listener": "\(address)"])
    }

    /// It is no stranger any more, or it is gone.
    private func forget(_ identity: ObjectIdentifier, _ source: String) {
        open[identity] = nil
        guard let stranger = strangers.removeValue(forKey: identity) else { return }
        stranger.timer.cancel()
        if let count = strangersBySource[source] { strangersBySource[source] = count > 1 ? count - 1 : nil }
    }

    private func greet(_ connection: Connection, _ header: FrameHeader, _ body: [UInt8]) {
        let greeting: Greeting
        do throws(DecodingError) {
            greeting = try Greeting(header, body)
        } catch {
            return connection.finish(.garbage("\(error)"))
        }
        if let refusal = own().refusal(of: greeting) { return refuse(connection, refusal) }
        switch admit(greeting, connection.remote) {
        case .refuse(let why):
            refuse(connection, why)
        case .accept(let answer, let opened):
            let identity = ObjectIdentifier(connection)
            forget(identity, connection.remote.host)
            open[identity] = connection
            connection.onFrame = { _, _ in }
            connection.accept(greeting.hello.channel.frameTypes)
            connection.send(answer.header, body: answer.hello.encoded())
            opened(connection)
        case .handOver(let answer, let receive):
            forget(ObjectIdentifier(connection), connection.remote.host)
            connection.closedHook = nil
            connection.send(answer.header, body: answer.hello.encoded())
            // Not inside the delivery of this frame: detaching takes the rest of the bytes along.
            connection.pauseReading()
            reactor.atEndOfIteration {
                guard !connection.isClosed else { return }
                if let detached = connection.detach(for: greeting.hello.channel) {
                    receive(detached)
                } else {
                    connection.close("cannot hand over")
                }
            }
        }
    }

    private func refuse(_ connection: Connection, _ why: String) {
        complain(connection.remote, why)
        let mine = own()
        connection.refuse(why, session: mine.hello.session, mirror: mine.mirror)
    }
}
