public import Format

/// What the first frame of each side says: the hello, and epoch and mirror from its header.
public struct Greeting: Sendable, Hashable {
    public var hello: Hello
    public var epoch: Epoch
    public var mirror: MirrorID

    public init(hello: Hello, epoch: Epoch, mirror: MirrorID) {
        self.hello = hello
        self.epoch = epoch
        self.mirror = mirror
    }

    var header: FrameHeader {
        FrameHeader(type: .hello, bodyLength: 0, session: hello.session, epoch: epoch, mirror: mirror)
    }

    /// Reads the first frame.
    init(_ header: FrameHeader, _ body: [UInt8]) throws(DecodingError) {
        guard header.type == .hello else { throw DecodingError("\(header.type) instead of a hello", at: 8) }
        hello = try Hello(decoding: body)
        guard hello.session == header.session else { throw DecodingError("hello of another session", at: 16) }
        guard hello.oldestVersion <= hello.newestVersion else { throw DecodingError("empty range of versions", at: 0) }
        epoch = header.epoch
        mirror = header.mirror
    }

    /// Why the two cannot talk, for the other side's administrator; nil when they can.
    func refusal(of other: Greeting) -> String? {
        guard hello.commonVersion(with: other.hello) == nil else { return nil }
        return "no common protocol version: yours are \(other.hello.oldestVersion) to \(other.hello.newestVersion), "
            + "mine \(hello.oldestVersion) to \(hello.newestVersion); upgrade the older side"
    }
}

/// One log line for each source and period, however much it sends. Memory is bounded: beyond `sourceLimit` sources in a
/// period one line says that there are more.
struct SourceLog {
    static let sourceLimit = 256
    /// Nanoseconds.
    static let period: UInt64 = 60_000_000_000
    private var counts: [String: Int] = [:]
    private var periodStart: UInt64 = 0
    private var overflowed = false

    /// Whether to log something about `source` now, and what to add to it.
    mutating func admit(_ source: String, now: UInt64) -> (log: Bool, note: String) {
        if now - periodStart >= SourceLog.period {
            periodStart = now
            let last = counts
            counts.removeAll(keepingCapacity: true)
            overflowed = false
            // A source that goes on tells how often it was silent in the last period.
            if let count = last[source], count > 1 {
                counts[source] = 1
                return (true, "; \(count - 1) more like it in the minute before")
            }
        }
        if let count = counts[source] {
            counts[source] = count + 1
            return (false, "")
        }
        guard counts.count < SourceLog.sourceLimit else {
            defer { overflowed = true }
            return (!overflowed, "; more than \(SourceLog.sourceLimit) sources, further ones are not named")
        }
        counts[source] = 1
        return (true, "")
    }
}
