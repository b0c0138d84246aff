import Foundation
import Synchronization

/// The client's list of acknowledged transfers, followed while it grows: how many, and when there were none.
public final class ServiceLog: Sendable {
    public let file: String
    fileprivate struct State {
        var offset: UInt64 = 0
        var rest = Data()
        /// Seconds on the boot clock, ascending.
        var times: [Double] = []
    }
    private let state = Mutex(State())

    public init(file: String) { self.file = file }

    /// For tests and for lists that are complete.
    public init(times: [Double]) {
        file = ""
        state.withLock { $0.times = times }
    }

    /// Reads what has been added; lines are `<id> <from> <to> <amount> <seconds>`.
    public func refresh() {
        guard !file.isEmpty, let handle = FileHandle(forReadingAtPath: file) else { return }
        defer { try? handle.close() }
        state.withLock { state in
            try? handle.seek(toOffset: state.offset)
            guard let added = try? handle.readToEnd(), !added.isEmpty else { return }
            state.offset += UInt64(added.count)
            state.rest.append(added)
            while let end = state.rest.firstIndex(of: UInt8(ascii: "\n")) {
                let line = String(decoding: state.rest[state.rest.startIndex..<end], as: UTF8.self)
                if let time = line.split(separator: " ").last.flatMap({ Double($0) }) { state.times.append(time) }
                state.rest = Data(state.rest[state.rest.index(after: end)...])
            }
        }
    }

    public var count: Int {
        refresh()
        return state.withLock { $0.times.count }
    }

    public var last: Double? {
        refresh()
        return state.withLock { $0.times.last }
    }

    /// How many were acknowledged after a moment.
    public func count(since moment: Double) -> Int {
        refresh()
        return state.withLock { state in state.times.count - state.firstIndex(after: moment) }
    }

    /// The longest time without an acknowledgement that has some part in `start...end`: a pause that began before `start`
    /// counts whole. If nothing has come after the last one, it runs until `end`.
    public func longestPause(from start: Double, to end: Double) -> Double {
        refresh()
        let times = state.withLock { $0.times }
        let relevant = times.filter { $0 <= end }
        guard let last = relevant.last else { return end - start }
        var longest = 0.0
        for (earlier, later) in zip(relevant, relevant.dropFirst()) where later >= start {
            longest = max(longest, later - earlier)
        }
        // The open end: closed by the next acknowledgement, if there is one already.
        let next = times.first { $0 > end } ?? end
        return max(longest, next - last)
    }
}

extension ServiceLog.State {
    /// Binary search.
    fileprivate func firstIndex(after moment: Double) -> Int {
        var low = 0
        var high = times.count
        while low < high {
            let middle = (low + high) / 2
            if times[middle] > moment { high = middle } else { low = middle + 1 }
        }
        return low
    }
}
