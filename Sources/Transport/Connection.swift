import CLinux
public import Format
import Glibc
import Logging
public import Ring

/// Why a connection ended.
public enum CloseReason: Error, Sendable, CustomStringConvertible {
    /// Closed on this side, with the reason given.
    case here(String)
    /// The other side closed in an orderly way.
    case ended
    /// The system reported an error.
    case failed(RingError)
    /// What came is no conversation of ours.
    case garbage(String)
    /// The other side refused, with its words.
    case refused(String)
    /// Nothing came in time.
    case silent(String)

    public var description: String {
        switch self {
        case .here(let why): "closed here: \(why)"
        case .ended: "the other side closed"
        case .failed(let error): error.description
        case .garbage(let what): "unexpected bytes: \(what)"
        case .refused(let why): "refused by the other side: \(why)"
        case .silent(let what): "no answer in time: \(what)"
        }
    }
}

/// Limits of one connection.
public struct ConnectionLimits: Sendable {
    /// Bytes queued for sending at most, pieces included.
    public var queuedBytes = 32 << 20
    /// Frames queued for sending at most.
    public var queuedFrames = 4096
    /// Bytes taken from the socket before others get their turn.
    public var bytesPerTurn = 1 << 20
    /// Milliseconds that a refusal may take to leave.
    public var farewellMilliseconds = 1000
    public init() {}
}

/// Frames over one byte stream. Belongs to the reactor's thread; lives until it is closed.
@safe
public final class Connection {
    /// Where the other side is.
    public let remote: SocketAddress
    public let limits: ConnectionLimits

    /// A frame has come, its checksum fits. May close or pause the connection.
    public var onFrame: (FrameHeader, [UInt8]) -> Void = { _, _ in }
    /// Called exactly once, at the end of an iteration, also after `close`. Frames may not be sent any more.
    public var onClosed: (CloseReason) -> Void = { _ in }
    /// Everything queued has been taken by the kernel.
    public var onDrained: () -> Void = {}
    public private(set) var isClosed = false
    /// Bytes received and sent since it was opened.
    public private(set) var bytesReceived: UInt64 = 0
    public internal(set) var bytesSent: UInt64 = 0

    let reactor: Reactor
    let stream: any ByteStream
    let logger: Logger
    var output = SendQueue()
    var flushing = false
    private let receiver: FrameReceiver
    private var sink: (FrameHeader) throws(DecodingError) -> any BodySink = { header throws(DecodingError) in
        throw DecodingError("\(header.type) is not expected here", at: 8)
    }
    private var vectors: [iovec] = unsafe []
    var sendVectors: [iovec] = unsafe []
    private var wantsRoom = false
    private var watch: Watch?
    private var paused = false
    private var receiving = false
    /// Refused: what still has to leave leaves, nothing is read any more.
    private var farewell: CloseReason?
    private var farewellTimer: ReactorTimer?
    /// The listener's and dialer's own interest in the end; called before `onClosed`.
    var closedHook: ((CloseReason) -> Void)?
    /// Logs garbage, once for each connection. Listeners put in one that is limited for each source.
    lazy var garbageLog: (String) -> Void = { [logger, remote] what in
        logger.warning(
            "connection closed: unexpected bytes came",
            metadata: ["transport.source": "\(remote)", "transport.found": "\(what)"])
    }

    /// - Parameter accepted: types that may come; others end the connection.
    init(
        reactor: Reactor, stream: any ByteStream, remote: SocketAddress, accepted: Set<FrameType>,
        limits: ConnectionLimits, logger: Logger
    ) {
        self.reactor = reactor
        self.stream = stream
        self.remote = remote
        self.limits = limits
        self.logger = logger
        receiver = FrameReceiver(accepted: accepted)
    }

    /// Begins to listen on the descriptor. The reactor holds the connection until it is closed.
    func start() {
        watch = reactor.watch(stream.descriptor, read: !paused, write: false) { [self] readiness in
            if readiness.contains(.writable) { flush() }
            if !isClosed, !readiness.isDisjoint(with: [.readable, .hangUp, .failed]) { receive() }
        }
    }

    /// The greeting is over: types that may come from now on.
    func accept(_ types: Set<FrameType>) {
        receiver.accepted = types
        receiver.grow()
    }

    /// From now on the bodies of frames of these types (batches: types whose checksum does not cover the body) go to
    /// the memory of the sink that `sink` gives for each; it throws if the frame must not come.
    public func receiveDirectly(
        _ types: Set<FrameType>, _ sink: @escaping (FrameHeader) throws(DecodingError) -> any BodySink
    ) {
        precondition(types.allSatisfy { !$0.checksumCoversBody }, "the checksum of such a type covers its body")
        receiver.direct = types
        self.sink = sink
    }

    // MARK: Receiving

    /// Reads no more, so that TCP slows the sender, until `resumeReading`. The end of the connection is not noticed
    /// meanwhile, unless something is sent.
    public func pauseReading() {
        paused = true
        updateWatch()
    }

    /// Reads again; a sink that had no memory is asked again. What has come already is delivered at the end of the
    /// iteration.
    public func resumeReading() {
        guard paused, !isClosed else { return }
        paused = false
        updateWatch()
        reactor.atEndOfIteration { [self] in
            guard !isClosed, !paused else { return }
            parse()
        }
    }

    /// Whether to be called when the socket takes bytes again.
    func waitForRoom(_ wanted: Bool) {
        guard wantsRoom != wanted else { return }
        wantsRoom = wanted
        updateWatch()
    }

    private func updateWatch() {
        guard !isClosed else { return }
        watch?.change(read: !paused, write: wantsRoom)
    }

    private func receive() {
        if farewell != nil { return discardInput() }
        guard !paused else { return }
        var taken = 0
        while !isClosed, !paused, farewell == nil, taken < limits.bytesPerTurn {
            unsafe receiver.space(&vectors)
            let room = unsafe vectors.reduce(0) { unsafe $0 + $1.iov_len }
            let count = unsafe vectors.withUnsafeBufferPointer { unsafe stream.receive($0) }
            if count == 0 { return finish(.ended) }
            if count < 0 {
                if count == -Int(EAGAIN) || count == -Int(EINTR) { return }
                return finish(.failed(RingError("receive from", "\(remote)", code: Int32(-count))))
            }
            taken += count
            bytesReceived += UInt64(count)
            receiver.filled(count)
            parse()
            // Less than there was room for: the socket is empty.
            if count < room { return }
        }
    }

    /// Delivers the frames that are complete.
    private func parse() {
        precondition(!receiving, "frames are delivered one after the other")
        receiving = true
        defer { receiving = false }
        do throws(DecodingError) {
            while !isClosed, !paused, farewell == nil {
                switch try receiver.next() {
                case .hungry: return
                case .frame(let header, let body):
                    if header.type == .refusal { return finish(.refused(String(decoding: body, as: UTF8.self))) }
                    onFrame(header, body)
                case .announced(let header): try receiver.begin(sink: try sink(header))
                case .stalled: pauseReading()
                case .sunk: break
                }
            }
        } catch {
            finish(.garbage("\(error)"))
        }
    }

    /// After a refusal: waits for the other side to close, so that the refusal is not overtaken by a reset.
    private func discardInput() {
        var room = [UInt8](repeating: 0, count: 4096)
        let count = unsafe room.withUnsafeMutableBytes { bytes in
            let vector = unsafe [iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)]
            return unsafe vector.withUnsafeBufferPointer { unsafe stream.receive($0) }
        }
        bytesReceived += UInt64(max(0, count))
        guard count != -Int(EAGAIN), count != -Int(EINTR) else { return }
        if count <= 0, let farewell { finish(farewell) }
    }

    // MARK: The end

    /// Closes now; what is queued is given up.
    public func close(_ why: String) { finish(.here(why)) }

    /// Sends a refusal with its words, then closes.
    public func refuse(_ why: String, session: UInt64, mirror: MirrorID) {
        guard !isClosed, farewell == nil else { return }
        let text = Array(why.utf8.prefix(FrameType.refusal.bodyLimit))
        let header = FrameHeader(
            type: .refusal, bodyLength: text.count, session: session, epoch: .none, mirror: mirror)
        send(header, body: text)
        farewell = .here("refused: \(why)")
        paused = false
        updateWatch()
        farewellTimer = reactor.after(milliseconds: limits.farewellMilliseconds) { [self] in
            if let farewell { finish(farewell) }
        }
    }

    /// Everything queued has left.
    func outputDrained() {
        if farewell != nil { stream.finishSending() } else { onDrained() }
    }

    /// The one way to the end.
    func finish(_ reason: CloseReason) {
        guard !isClosed else { return }
        isClosed = true
        watch?.cancel()
        watch = nil
        farewellTimer?.cancel()
        farewellTimer = nil
        stream.close()
        if case .garbage(let what) = reason { garbageLog(what) }
        reactor.atEndOfIteration { [self] in
            let unsent = output.takeAll()
            for entry in unsent { entry.completion?(false) }
            let (tell, hook) = (onClosed, closedHook)
            onFrame = { _, _ in }
            onClosed = { _ in }
            onDrained = {}
            sink = { header throws(DecodingError) in throw DecodingError("the connection is closed", at: 0) }
            receiver.abandon()
            closedHook = nil
            hook?(reason)
            tell(reason)
        }
    }

    /// Gives the socket to another reactor, with what has been received and not used. Only with an empty queue (flushes
    /// first); nil when the socket does not take what is queued at once. The connection then counts as closed, and
    /// `onClosed` is not called.
    func detach(for channel: Hello.Channel) -> DetachedConnection? {
        flush()
        guard !isClosed, output.isEmpty, let stream = stream as? TCPStream else { return nil }
        watch?.cancel()
        watch = nil
        isClosed = true
        reactor.submitNow()
        return DetachedConnection(
            descriptor: stream.release(), channel: channel, leftover: receiver.leftover, remote: remote,
            limits: limits)
    }

    /// Parses bytes that came before this connection was made.
    func take(leftover: [UInt8]) {
        guard !leftover.isEmpty else { return }
        receiver.take(leftover)
        reactor.atEndOfIteration { [self] in
            guard !isClosed, !paused else { return }
            parse()
        }
    }
}
