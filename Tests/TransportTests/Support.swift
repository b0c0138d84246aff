import Format
import Glibc
import Logging
import Ring
import Synchronization
import Testing

@testable import Transport

let mirror = MirrorID(high: 0x1234, low: 0x5678)

/// Keeps log lines at notice and above.
final class LogLines: Sendable {
    private let lines = Mutex<[String]>([])
    var all: [String] { lines.withLock { $0 } }
    var logger: Logger {
        Logger(label: "transport.tests") { [self] _ in
            LineCollector { line in self.lines.withLock { $0.append(line) } }
        }
    }
}

struct LineCollector: LogHandler {
    let take: @Sendable (String) -> Void
    var metadata: Logger.Metadata = [:]
    var logLevel: Logger.Level = .notice
    init(_ take: @escaping @Sendable (String) -> Void) { self.take = take }
    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }
    func log(event: LogEvent) { take("\(event.message) \(event.metadata ?? [:])") }
}

func greeting(
    _ voter: Voter, session: UInt64 = 7, versions: ClosedRange<UInt16> = 1...1, mirror: MirrorID = mirror,
    channel: Hello.Channel = .data
) -> Greeting {
    Greeting(
        hello: Hello(
            channel: channel, voter: voter, mirrorName: "bank", session: session, oldestVersion: versions.lowerBound,
            newestVersion: versions.upperBound),
        epoch: Epoch(rawValue: 3), mirror: mirror)
}

func head(_ type: FrameType, session: UInt64 = 7) -> FrameHeader {
    FrameHeader(type: type, bodyLength: 0, session: session, epoch: Epoch(rawValue: 3), mirror: mirror)
}

/// The bytes of a frame as they are on the wire.
func wire(_ type: FrameType, _ body: [UInt8]) -> [UInt8] {
    var frame = head(type)
    frame.bodyLength = body.count
    return (type.checksumCoversBody ? frame.encoded(body: body) : frame.encoded()) + body
}

func helloBytes(_ greeting: Greeting) -> [UInt8] {
    var head = greeting.header
    let body = greeting.hello.encoded()
    head.bodyLength = body.count
    return head.encoded(body: body) + body
}

/// A small repeatable generator (splitmix64).
struct SeededGenerator: RandomNumberGenerator {
    var state: UInt64
    init(_ seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
        return value ^ (value >> 31)
    }
    mutating func below(_ limit: Int) -> Int { Int(next() % UInt64(limit)) }
    mutating func bytes(_ count: Int) -> [UInt8] { (0..<count).map { _ in UInt8(truncatingIfNeeded: next()) } }
}

/// Runs a reactor on the calling thread until something stops it; fails the test after ten seconds.
func withReactor(
    _ engine: EngineChoice = .auto, logger: Logger = LogLines().logger, _ body: (Reactor) throws -> Void
) throws {
    let reactor = try Reactor(engine: engine, logger: logger)
    try body(reactor)
    let limit = reactor.after(milliseconds: 10_000) {
        Issue.record("the reactor did not stop in time")
        reactor.stop()
    }
    reactor.run()
    limit.cancel()
}

let anyPort = SocketAddress("127.0.0.1", port: 0)!

/// A blocking client that speaks bytes, for playing a hostile one.
final class RawClient {
    private var descriptor: Int32
    init(_ address: SocketAddress) {
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        let result = address.withSockaddr { raw, length in connect(descriptor, raw, length) }
        precondition(result == 0, "cannot connect: \(errorText(errno))")
    }
    @discardableResult
    func send(_ bytes: [UInt8]) -> Int { Glibc.send(descriptor, bytes, bytes.count, Int32(MSG_NOSIGNAL)) }
    /// Everything until the other side closes, or `milliseconds` without a byte.
    func receiveAll(milliseconds: Int = 20_000) -> (bytes: [UInt8], ended: Bool) {
        var limit = timeval(tv_sec: milliseconds / 1000, tv_usec: milliseconds % 1000 * 1000)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        var all: [UInt8] = []
        var room = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = recv(descriptor, &room, room.count, 0)
            if count == 0 || count < 0 && errno == ECONNRESET { return (all, true) }
            if count < 0 { return (all, false) }
            all += room[..<count]
        }
    }
    /// Once only: closed twice, the number may be somebody else's.
    func close() {
        if descriptor >= 0 { _ = Glibc.close(descriptor) }
        descriptor = -1
    }
    deinit { close() }
}

/// A listener on a thread of its own that counts what arrives.
final class Server: Sendable {
    struct Seen {
        var opened = 0
        var frames: [(FrameType, [UInt8])] = []
        var closed: [String] = []
    }
    let thread: ReactorThread
    let address: SocketAddress
    let log = LogLines()
    private let seen: Box

    final class Box: Sendable {
        let value = Mutex(Seen())
        let listener = Mutex<ThreadBound<Listener>?>(nil)
        let address = Mutex<SocketAddress?>(nil)
    }

    init(limits: ListenerLimits = ListenerLimits(), versions: ClosedRange<UInt16> = 1...1) throws {
        let seen = Box()
        let logger = log.logger
        thread = try ReactorThread(name: "server", logger: logger) { reactor in
            let listener = try Listener(
                reactor: reactor, address: anyPort, limits: limits, logger: logger,
                own: { greeting(.b, versions: versions) },
                admit: { stranger, _ in
                    if stranger.mirror != mirror { return .refuse("this is mirror \(mirror), not \(stranger.mirror)") }
                    return .accept(greeting(.b)) { connection in
                        seen.value.withLock { $0.opened += 1 }
                        connection.onFrame = { [unowned connection] header, body in
                            seen.value.withLock { $0.frames.append((header.type, body)) }
                            connection.send(header, body: body)
                        }
                        connection.onClosed = { reason in seen.value.withLock { $0.closed.append("\(reason)") } }
                    }
                })
            seen.listener.withLock { $0 = ThreadBound(listener) }
            seen.address.withLock { $0 = listener.address }
        }
        address = seen.address.withLock { $0 }!
        self.seen = seen
    }

    var state: Seen { seen.value.withLock { $0 } }
    func onListener<Value: Sendable>(_ body: @escaping @Sendable (Listener) -> Value) -> Value {
        thread.call { [seen] in body(seen.listener.withLock { $0 }!.value) }!
    }
    func stop() {
        _ = thread.call { [seen] in
            seen.listener.withLock { bound in
                bound!.value.close()
                bound = nil
            }
        }
        thread.stop()
        thread.join()
    }
}

/// Waits for something another thread does, at most five seconds.
func eventually(_ condition: () -> Bool) -> Bool {
    for _ in 0..<500 {
        if condition() { return true }
        usleep(10_000)
    }
    return false
}

/// Resident memory of this process, from /proc.
func residentBytes() -> Int {
    let descriptor = open("/proc/self/statm", O_RDONLY)
    defer { close(descriptor) }
    var room = [UInt8](repeating: 0, count: 256)
    let count = max(0, read(descriptor, &room, room.count))
    let fields = String(decoding: room[..<count], as: UTF8.self).split(separator: " ")
    return (fields.count > 1 ? Int(fields[1]) ?? 0 : 0) * 4096
}
