import Format
import Testing

@testable import Node

@Suite struct StallWatchTests {
    private func seq(_ value: UInt64) -> Seq { Seq(rawValue: value) }

    @Test func failure24OnlyWhoStandsStillBehindTheOtherHangs() {
        let second: UInt64 = 1_000_000_000
        var watch = StallWatch(seconds: 10)
        var found: [UInt64] = []
        func look(_ time: UInt64, _ own: UInt64, _ other: UInt64?) {
            if watch.look(own: seq(own), other: other.map(seq), now: time * second) { found.append(time) }
        }
        // Nothing to do, or the other one does no more.
        for time in 0...30 { look(UInt64(time), 5, 5) }
        // The other one is away.
        for time in 31...60 { look(UInt64(time), 5, nil) }
        // Slow, but it moves.
        for time in 61...100 { look(UInt64(time), UInt64(time / 9), 1000) }
        #expect(found == [])
        // It stands still, since 99.
        for time in 101...115 { look(UInt64(time), 11, 1000) }
        #expect(found.first == 110, "\(found)")
    }
}
