import Foundation

/// A time of the day, on one day of the week or on every day, by the machine's own clock and time zone.
public struct WeeklyTime: Sendable, Equatable {
    /// 1 Sunday to 7 Saturday, as `Calendar` counts; nil: every day.
    public var weekday: Int?
    public var hour: Int
    public var minute: Int

    static let days = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
    /// A time that passed while nothing could be started is made up for this long, seconds.
    static let lateSeconds: TimeInterval = 24 * 3600

    /// "Sun 03:00" or "03:00".
    public init?(_ text: String) {
        var words = text.split(separator: " ").map(String.init)
        if words.count == 2 {
            guard let day = WeeklyTime.days.firstIndex(of: words[0].lowercased()) else { return nil }
            weekday = day + 1
            words.removeFirst()
        }
        let parts = words.first?.split(separator: ":", omittingEmptySubsequences: false) ?? []
        guard words.count == 1, parts.count == 2, parts.allSatisfy({ $0.count == 2 }), let hour = Int(parts[0]),
            let minute = Int(parts[1]), (0...23).contains(hour), (0...59).contains(minute)
        else { return nil }
        self.hour = hour
        self.minute = minute
    }

    /// Whether this time came between `last` and `now`, and not too long ago. A clock that was set back only delays it.
    public func isDue(since last: Date, now: Date, calendar: Calendar = .current) -> Bool {
        var wanted = DateComponents(hour: hour, minute: minute)
        wanted.weekday = weekday
        guard
            let latest = calendar.nextDate(
                after: now.addingTimeInterval(1), matching: wanted, matchingPolicy: .nextTime, direction: .backward)
        else { return false }
        return latest > last && now.timeIntervalSince(latest) < WeeklyTime.lateSeconds
    }
}
