import CLinux
import Format
import Glibc
public import Logging
public import Ring

/// How a dialer behaves.
public struct DialerOptions: Sendable {
    /// Milliseconds for the TCP connection and the other side's hello.
    public var connectMilliseconds = 2000
    /// Milliseconds to the first new attempt; doubles up to `longestWaitMilliseconds`. The wait itself is drawn between
    /// half of that and all of it, so that two sides, or a thousand, do not try in step.
    public var shortestWaitMilliseconds = 50
    public var longestWaitMilliseconds = 1000
    /// A connection that lasted this long starts the waits anew.
    public var settledMilliseconds = 1000
    /// Where to dial from; nil lets the kernel choose.
    public var localAddress: SocketAddress?
    public var connection = ConnectionLimits()
    public var stream = StreamOptions()
    public init() {}
}

/// Keeps one connection to one address: dials, greets, and dials again when it is lost, for ever.
public final class Dialer {
    public let remote: SocketAddress
    /// The open connection, greeting exchanged.
    public private(set) var connection: Connection?
    /// Why the last attempt or connection ended; nil while none has.
    public private(set) var lastFailure: CloseReason?
    /// Attempts since the start.
    public private(set) var attempts = 0
    /// Each time an attempt fails before it is open: for status. Lost connections tell their own `onClosed`.
    public var onFailure: (CloseReason) -> Void = { _ in }

    private let reactor: Reactor
    private let options: DialerOptions
    private let logger: Logger
    private let own: () -> Greeting
    private let opened: (Connection, Greeting) -> String?
    private var generator: any RandomNumberGenerator
    private var waitMilliseconds: Int
    private var timer: ReactorTimer?
    private var connectWatch: Watch?
    private var attempt: Connection?
    private var openedAt: UInt64 = 0
    private var stopped = false
    private var lastLogged = ""

    /// Dials at once.
    ///
    /// - Parameters:
    ///   - generator: draws the waits.
    ///   - own: this side's greeting, asked for at each attempt.
    ///   - opened: gets the connection once the other side's hello has come, and sets its handlers; a text refuses.
    public init(
        reactor: Reactor, remote: SocketAddress, options: DialerOptions = DialerOptions(),
        generator: any RandomNumberGenerator, logger: Logger, own: @escaping () -> Greeting,
        opened: @escaping (Connection, Greeting) -> String?
    ) {
        self.reactor = reactor
        self.remote = remote
        self.options = options
        self.generator = generator
        self.logger = logger
        self.own = own
        self.opened = opened
        waitMilliseconds = options.shortestWaitMilliseconds
        dial()
    }

    /// Dials no more and closes the connection.
    public func stop() {
        stopped = true
        timer?.cancel()
        connectWatch?.cancel()
        connectWatch = nil
        attempt?.close("the dialer stops")
        connection?.close("the dialer stops")
    }

    private func dial() {
        guard !stopped else { return }
        attempts += 1
        do throws(RingError) {
            try connect()
        } catch {
            failed(.failed(error))
        }
    }

    private func connect() throws(RingError) {
        let descriptor = try makeSocket(for: remote)
        let stream = TCPStream(owning: descriptor, options: options.stream)
        if let local = options.localAddress {
            let result = unsafe local.withSockaddr { raw, length in unsafe bind(descriptor, raw, length) }
            guard result == 0 else { throw RingError("dial \(remote) from", "\(local)", code: errno) }
        }
        let result = unsafe remote.withSockaddr { raw, length in unsafe Glibc.connect(descriptor, raw, length) }
        guard result == 0 || errno == EINPROGRESS else { throw RingError("connect to", "\(remote)", code: errno) }
        timer = reactor.after(milliseconds: options.connectMilliseconds) { [self] in
            connectWatch?.cancel()
            connectWatch = nil
            if let attempt { return attempt.finish(.silent("no hello from \(remote)")) }
            stream.close()
            failed(.silent("no connection to \(remote)"))
        }
        connectWatch = reactor.watch(descriptor, read: false, write: true) { [self] _ in
            connectWatch?.cancel()
            connectWatch = nil
            let code = stream.pendingError
            guard code == 0 else {
                stream.close()
                return failed(.failed(RingError("connect to", "\(remote)", code: code)))
            }
            greet(stream)
        }
    }

    private func greet(_ stream: TCPStream) {
        let connection = Connection(
            reactor: reactor, stream: stream, remote: remote, accepted: [.hello, .refusal],
            limits: options.connection, logger: logger)
        attempt = connection
        connection.garbageLog = { _ in }  // `failed` logs it
        connection.closedHook = { [self] reason in
            attempt = nil
            failed(reason)
        }
        connection.onFrame = { [self] header, body in answered(connection, header, body) }
        connection.start()
        let mine = own()
        connection.send(mine.header, body: mine.hello.encoded())
    }

    private func answered(_ connection: Connection, _ header: FrameHeader, _ body: [UInt8]) {
        let greeting: Greeting
        do throws(DecodingError) {
            greeting = try Greeting(header, body)
        } catch {
            return connection.finish(.garbage("\(error)"))
        }
        if let refusal = own().refusal(of: greeting) { return connection.close(refusal) }
        timer?.cancel()
        attempt = nil
        self.connection = connection
        openedAt = reactor.now
        connection.onFrame = { _, _ in }
        connection.closedHook = { [self] reason in lost(reason) }
        connection.garbageLog = { [logger, remote] what in
            logger.warning(
                "connection closed: unexpected bytes came: \(what)", metadata: ["transport.source": "\(remote)"])
        }
        connection.accept(own().hello.channel.frameTypes)
        lastLogged = ""
        if let why = opened(connection, greeting) { connection.close(why) }
    }

    private func lost(_ reason: CloseReason) {
        connection = nil
        lastFailure = reason
        if reactor.now - openedAt >= UInt64(options.settledMilliseconds) * 1_000_000 {
            waitMilliseconds = options.shortestWaitMilliseconds
        }
        wait()
    }

    private func failed(_ reason: CloseReason) {
        timer?.cancel()
        guard !stopped else { return }
        lastFailure = reason
        // The same failure over and over is one line.
        let text = "\(reason)"
        if text != lastLogged {
            lastLogged = text
            logger.info("no connection yet: \(text)", metadata: ["transport.remote": "\(remote)"])
        }
        onFailure(reason)
        wait()
    }

    private func wait() {
        guard !stopped else { return }
        let drawn = Int(generator.next() % UInt64(waitMilliseconds / 2 + 1))
        timer = reactor.after(milliseconds: waitMilliseconds - drawn) { [self] in dial() }
        waitMilliseconds = min(waitMilliseconds * 2, options.longestWaitMilliseconds)
    }
}
