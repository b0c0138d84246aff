import Testing

@testable import Replication

/// A line, a disk and an application, as simple as they can be.
private struct Line {
    var pacer = CatchUpPacer()
    var distance: Double
    var appended: Double = 0
    var now: UInt64 = 0
    /// Bytes a second.
    var line: Double
    var application: Double
    var written: Double = 0

    /// Runs until the distance is short.
    /// - Returns: seconds; nil when it takes longer than `limit`.
    mutating func run(limit: Double, until short: Double = 1_048_576) -> Double? {
        let step = 0.05
        let start = now
        while distance > short {
            let rate = min(application, pacer.rate.map { Double($0) } ?? application)
            appended += rate * step
            written += rate * step
            distance = max(0, distance + (rate - line) * step)
            now += UInt64(step * 1e9)
            if pacer.isDue(now: now) { pacer.look(distance: UInt64(distance), appended: UInt64(appended), now: now) }
            if Double(now - start) / 1e9 > limit { return nil }
        }
        return Double(now - start) / 1e9
    }
}

private let mebibyte = Double(1 << 20)

@Suite struct CatchUpPacerTests {
    @Test(arguments: [0.1, 0.5, 0.9, 1.0, 1.2, 2, 5, 20])
    func itAlwaysEndsAndTheApplicationKeepsHalf(speed: Double) throws {
        var line = Line(distance: 300 * mebibyte, line: 50 * mebibyte, application: 50 * mebibyte * speed)
        let end = line.run(limit: 240)
        let seconds = try #require(end, "never ends at \(speed) times the line")
        // Half of its own rate, or of what it could write with both nodes in sync.
        #expect(line.written / seconds >= min(line.application, line.line) / 2, "speed \(speed)")
        if speed <= 0.5 { #expect(line.pacer.rate == nil, "not slowed without need") }
    }

    @Test func aPauseOfTheLineIsNoReasonToStopTheApplication() {
        var line = Line(distance: 300 * mebibyte, line: 50 * mebibyte, application: 200 * mebibyte)
        _ = line.run(limit: 5)
        #expect(line.pacer.rate != nil)
        line.line = 0
        _ = line.run(limit: 20)
        #expect(line.pacer.rate == CatchUpPacer.rateBytesMinimum)
        line.line = 50 * mebibyte
        let end = line.run(limit: 120)
        #expect(end != nil)
    }

    @Test func whatIsMeasuredIsTheLineAndNotTheApplication() throws {
        // Almost there, and the application writes little: its own rate must not become its limit.
        var line = Line(distance: 300 * mebibyte, line: 50 * mebibyte, application: 200 * mebibyte)
        _ = line.run(limit: 30)
        let paced = try #require(line.pacer.rate)
        line.application = mebibyte
        line.distance = mebibyte / 2
        for _ in 0..<20 {
            line.now += CatchUpPacer.lookNanoseconds
            line.appended += mebibyte / 2
            line.pacer.look(distance: UInt64(line.distance), appended: UInt64(line.appended), now: line.now)
        }
        #expect(try #require(line.pacer.rate) > paced)
    }
}
