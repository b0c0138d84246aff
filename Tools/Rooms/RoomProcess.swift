import Foundation
import Synchronization

/// A program that runs in a room. Its end is noticed when someone asks.
public final class RoomProcess: Sendable {
    public let pid: Int32
    public let title: String
    public let room: String
    /// The file that holds its standard output and error.
    public let log: String
    /// The exit status once it has ended: as a shell has it, 128 + signal after a signal.
    private let ended = Mutex<Int32?>(nil)

    init(pid: Int32, title: String, room: String, log: String) {
        self.pid = pid
        self.title = title
        self.room = room
        self.log = log
    }

    /// The exit status, or nil while it runs.
    public var exitStatus: Int32? {
        ended.withLock { ended in
            if ended == nil { ended = collect(pid) }
            return ended
        }
    }

    public var isRunning: Bool { exitStatus == nil }

    /// Sends a signal, never to a process number that has been given to another process.
    public func signal(_ number: Int32) {
        ended.withLock { ended in
            if ended == nil { ended = collect(pid) }
            if ended == nil { kill(pid, number) }
        }
    }

    public func pause() { signal(SIGSTOP) }
    public func resume() { signal(SIGCONT) }

    /// Asks it to end with SIGTERM and waits.
    ///
    /// - Returns: the exit status.
    /// - Throws: if it has not ended in time; it is killed then.
    @discardableResult
    public func stop(within seconds: Double = 10) throws -> Int32 {
        signal(SIGTERM)
        return try waitForEnd(within: seconds)
    }

    /// Waits for its end; kills it and throws when that takes too long.
    @discardableResult
    public func waitForEnd(within seconds: Double) throws -> Int32 {
        do {
            try waitUntil("\(title) (process \(pid)) in room \(room) has ended", within: seconds) { !isRunning }
        } catch {
            signal(SIGKILL)
            throw RoomsError("\(error)\nThe end of its log \(log):\n\(logTail())")
        }
        return exitStatus ?? -1
    }

    /// SIGKILL, and waits until it is gone.
    public func killNow() throws {
        signal(SIGKILL)
        try waitUntil("\(title) (process \(pid)) in room \(room) is dead", within: 10) { !isRunning }
    }

    /// The last lines of its log.
    public func logTail(lines: Int = 30) -> String {
        let text = (try? String(contentsOfFile: log, encoding: .utf8)) ?? ""
        return text.split(separator: "\n", omittingEmptySubsequences: false).suffix(lines).joined(separator: "\n")
    }
}

/// What a program wrote, and its exit status.
public struct Output: Sendable {
    public var status: Int32
    public var output: String
    public var error: String
}

/// Waits until something is true, and says what was waited for when it does not come.
///
/// - Parameters:
///   - what: completes the sentence "waited … in vain until …".
///   - otherwise: what to add to the message, asked only on failure.
public func waitUntil(
    _ what: String, within seconds: Double, every interval: Double = 0.02, _ condition: () throws -> Bool,
    otherwise: () -> String = { "" }
) throws {
    let start = bootSeconds()
    while true {
        if try condition() { return }
        let waited = bootSeconds() - start
        if waited >= seconds {
            let more = otherwise()
            throw RoomsError(
                "Waited \(String(format: "%.1f", waited)) s in vain until \(what)." + (more.isEmpty ? "" : " " + more))
        }
        usleep(useconds_t(interval * 1e6))
    }
}

/// Seconds on a clock that no one can set (CLOCK_BOOTTIME).
public func bootSeconds() -> Double {
    var time = timespec()
    clock_gettime(CLOCK_BOOTTIME, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}
