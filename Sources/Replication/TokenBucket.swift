/// A limit on a rate: so many bytes a second, in short bursts. Pure: the time is given.
///
/// Tokens come in at the rate, up to a tenth of a second's worth. Whoever finds any may take what it has to move, also
/// more than there are; the debt is waited off. So one large piece needs no special case, and the average holds.
public struct TokenBucket: Sendable {
    /// Bytes a second; nil: no limit.
    public private(set) var rate: UInt64?
    private var tokens: Double
    private var refilled: UInt64

    /// Seconds of tokens that gather while nobody takes any.
    static let burstSeconds = 0.1

    /// - Parameter now: nanoseconds of a clock that never goes back.
    public init(rate: UInt64?, now: UInt64) {
        precondition(rate != 0, "a rate of 0 would never let anything pass: no limit is nil")
        self.rate = rate
        refilled = now
        tokens = Double(rate ?? 0) * TokenBucket.burstSeconds
    }

    /// A debt made under the old rate is forgotten: it was waited for long enough, or the new rate is meant to help now.
    public mutating func setRate(_ new: UInt64?, now: UInt64) {
        precondition(new != 0, "a rate of 0 would never let anything pass: no limit is nil")
        refill(now)
        rate = new
        tokens = 0
    }

    /// Whether something may be moved now.
    public mutating func allows(now: UInt64) -> Bool {
        guard rate != nil else { return true }
        refill(now)
        return tokens > 0
    }

    public mutating func take(_ bytes: Int, now: UInt64) {
        guard rate != nil else { return }
        refill(now)
        tokens -= Double(bytes)
    }

    /// Lets so many bytes pass besides the rate.
    public mutating func grant(_ bytes: Int) {
        guard let rate else { return }
        tokens = min(tokens + Double(bytes), Double(rate) * TokenBucket.burstSeconds)
    }

    /// Nanoseconds until `allows`; 0 when it does.
    public mutating func wait(now: UInt64) -> UInt64 {
        guard let rate, !allows(now: now) else { return 0 }
        return UInt64(-tokens / Double(rate) * 1e9) + 1
    }

    private mutating func refill(_ now: UInt64) {
        guard let rate, now > refilled else { return }
        tokens = min(tokens + Double(now - refilled) / 1e9 * Double(rate), Double(rate) * TokenBucket.burstSeconds)
        refilled = now
    }
}
