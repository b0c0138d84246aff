public import Format

/// What the control side is told of the log, so that the other voters can notice a disk that was put back: the last record
/// on this node's disk, at once, and what is committed, late. Late, because the other node's own report of its disk may be
/// younger than a tenth of a second, and what it has must never look like less than what was said of it.
public struct PositionReport: Sendable {
    public static let delayNanoseconds: UInt64 = 1_000_000_000

    private var said: (last: LogMark, committed: Seq)?
    private var sample = Seq.zero
    private var sampledAt: UInt64 = 0
    private var told = Seq.zero

    public init() {}

    /// - Parameter committed: nil while this node does not serve.
    /// - Returns: what to report; nil when nothing has changed.
    public mutating func next(last: LogMark, committed: Seq?, now: UInt64) -> (last: LogMark, committed: Seq)? {
        if let committed {
            if now >= sampledAt + PositionReport.delayNanoseconds {
                told = sample
                sample = committed
                sampledAt = now
            }
        } else {
            (told, sample, sampledAt) = (.zero, .zero, 0)
        }
        guard said?.last != last || said?.committed != told else { return nil }
        said = (last, told)
        return said
    }
}
