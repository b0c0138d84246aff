/// Slows the application while the other node is brought back and cannot follow: without that, an application that
/// writes faster than the line carries would stay ahead for ever. Pure: the time is given.
///
/// ```
///            the distance does not shrink, three looks in a row
///   free ──────────────────────────────────────────────────────▶ paced ──▶ free: the other node is in sync, or lost
///                                                      │   ▲
///                       distance short: a little faster └───┘ distance long: three quarters of what it takes in
/// ```
///
/// What the other node takes in is measured only while it has something to take: then it is what line and disk give,
/// and not what the application happens to write. Three quarters of it for the application leave a quarter for catching
/// up, so the distance shrinks, at any rate of the line. An application that writes at most a third faster than the line
/// carries hardly notices; one that is faster still gets more than half of what it could write with both nodes in sync,
/// since then it cannot write faster than the line either.
public struct CatchUpPacer: Sendable {
    /// Looks are so far apart, nanoseconds.
    public static let lookNanoseconds: UInt64 = 500_000_000
    /// Shorter distances are the ordinary coming and going, bytes.
    public static let distanceBytes: UInt64 = 8 << 20
    /// Looks in a row without progress before the application is slowed.
    static let patience = 3
    /// The distance must shrink by at least this share of what is taken in.
    static let progressShare = 0.1
    static let applicationShare = 0.75
    /// Of the last measurement in the average.
    static let weight = 0.3
    /// The application is never slower, bytes a second, however long the other node hesitates.
    public static let rateBytesMinimum: UInt64 = 1 << 20
    /// How much faster it may become with each look while the distance is short.
    static let increase = 1.1

    /// What the application may write, bytes a second; nil: not slowed.
    public private(set) var rate: UInt64?
    /// What the other node takes in, bytes a second, as measured while it had something to take.
    public private(set) var takenIn: Double?
    private var last: (distance: UInt64, appended: UInt64, at: UInt64)?
    private var looksWithoutProgress = 0

    public init() {}

    /// Whether it is time for another look.
    public func isDue(now: UInt64) -> Bool { last.map { now >= $0.at + CatchUpPacer.lookNanoseconds } ?? true }

    /// - Parameters:
    ///   - distance: bytes of the log that are not on the other node's disk.
    ///   - appended: bytes added to the log, a count that only grows.
    ///   - now: nanoseconds.
    public mutating func look(distance: UInt64, appended: UInt64, now: UInt64) {
        defer { last = (distance, appended, now) }
        guard let last, now > last.at, appended >= last.appended else { return }
        let seconds = Double(now - last.at) / 1e9
        let written = Double(appended - last.appended)
        let taken = max(0, (Double(last.distance) + written - Double(distance)) / seconds)
        let isBehind = min(distance, last.distance) > CatchUpPacer.distanceBytes
        if isBehind { takenIn = takenIn.map { $0 + (taken - $0) * CatchUpPacer.weight } ?? taken }
        if let paced = rate {
            adjust(paced, distance)
        } else if isBehind, Double(last.distance) - Double(distance) < taken * seconds * CatchUpPacer.progressShare {
            looksWithoutProgress += 1
            if looksWithoutProgress >= CatchUpPacer.patience { rate = target }
        } else {
            looksWithoutProgress = 0
        }
    }

    private var target: UInt64 {
        max(CatchUpPacer.rateBytesMinimum, UInt64((takenIn ?? 0) * CatchUpPacer.applicationShare))
    }

    private mutating func adjust(_ paced: UInt64, _ distance: UInt64) {
        if distance > CatchUpPacer.distanceBytes {
            rate = target
        } else if distance < CatchUpPacer.distanceBytes / 4 {
            rate = max(paced + 1, UInt64(Double(paced) * CatchUpPacer.increase))
        }
    }
}
