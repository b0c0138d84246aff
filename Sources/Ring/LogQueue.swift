import Glibc
public import Logging
import Synchronization

/// Log lines on their way to somebody who reads them, or does not for a while.
///
/// A log line must hold up nobody: the control thread renews leases, the witness answers them, and journald may stand
/// still. So whoever logs appends to a queue of limited size, and a thread of its own writes:
///
///     any thread ── append ──▶ queue (1 MiB) ── thread "log" ── write(2) ──▶ standard error
///                     │
///                     └ full: the line is lost, and so are those after it until half the queue is free; a line says
///                       how many
///
/// It lives as long as its process. In Ring, because that has the threads, and because both programs stand on it, as does
/// `Node`, which ends the process at times.
public final class LogQueue: @unchecked Sendable {
    /// What waits at most.
    public static let bytesMaximum = 1 << 20

    private let descriptor: Int32
    private let limit: Int
    private let condition = Condition()
    // Protected by `condition`.
    private var lines: [String] = []
    /// Bytes of lines that are not written yet.
    private var waiting = 0
    private var lost = 0
    // How many lines there were; to be read without the lock.
    private let appended = Atomic<Int>(0)
    private let finished = Atomic<Int>(0)

    /// - Parameter descriptor: where the lines go; stays the caller's.
    public init(descriptor: Int32, bytesMaximum: Int = LogQueue.bytesMaximum) throws(RingError) {
        self.descriptor = descriptor
        limit = bytesMaximum
        // Signals are for other threads; to this one, a reader who has gone is an error of the write.
        var all = sigset_t()
        var before = sigset_t()
        unsafe sigfillset(&all)
        unsafe pthread_sigmask(SIG_BLOCK, &all, &before)
        defer { unsafe pthread_sigmask(SIG_SETMASK, &before, nil) }
        _ = try JoinableThread(name: "log") { [self] in run() }
    }

    /// For a `Logger`: lines look as those of `StreamLogHandler`.
    public func handler(label: String, level: Logger.Level) -> StreamLogHandler {
        var handler = StreamLogHandler(label: label, stream: Stream(queue: self))
        handler.logLevel = level
        return handler
    }

    private struct Stream: TextOutputStream, Sendable {
        let queue: LogQueue
        func write(_ line: String) { queue.append(line) }
    }

    /// Queues a line, which brings its own end of line. Never waits for the reader.
    func append(_ line: String) {
        let bytes = line.utf8.count
        condition.withLock {
            if lost > 0 || bytes > limit - waiting {
                lost += 1
            } else {
                waiting += bytes
                lines.append(line)
                appended.add(1, ordering: .sequentiallyConsistent)
            }
            condition.wakeOne()
        }
    }

    /// Waits until everything queued so far is written, for so long at most. Takes no lock: also for a process that fails.
    /// - Returns: whether it is.
    @discardableResult
    public func flush(milliseconds: Int) -> Bool {
        let target = appended.load(ordering: .sequentiallyConsistent)
        let end = BootClock.now + UInt64(milliseconds) * 1_000_000
        while finished.load(ordering: .sequentiallyConsistent) < target {
            guard BootClock.now < end else { return false }
            usleep(1000)
        }
        return true
    }

    // MARK: - Its thread

    private enum Work {
        case lines([String])
        case lost(Int)
    }

    private func run() {
        let own = Logger(label: "log") { handler(label: $0, level: .info) }
        while true {
            switch next() {
            case .lost(let count):
                own.warning("\(count) log lines were lost: whoever reads them did not for a while")
            case .lines(let lines):
                for line in lines {
                    write(line)
                    condition.withLock { waiting -= line.utf8.count }
                    finished.add(1, ordering: .sequentiallyConsistent)
                }
            }
        }
    }

    private func next() -> Work {
        condition.withLock {
            while true {
                if lost > 0, waiting <= limit / 2 {
                    defer { lost = 0 }
                    return .lost(lost)
                }
                if !lines.isEmpty {
                    defer { lines = [] }
                    return .lines(lines)
                }
                condition.wait()
            }
        }
    }

    /// What cannot be written is dropped: nobody would read that it was.
    private func write(_ line: String) {
        var rest = Array(line.utf8)[...]
        while !rest.isEmpty {
            let count = unsafe rest.withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress, $0.count) }
            if count >= 0 {
                rest = rest.dropFirst(count)
            } else if errno == EAGAIN {
                // Somebody else has made it non-blocking.
                var room = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                _ = unsafe poll(&room, 1, -1)
            } else if errno != EINTR {
                return
            }
        }
    }
}

/// The log of a daemon, on standard error.
///
/// Nothing that was logged is lost with the process while somebody reads: whoever ends it by `_exit` flushes before; `exit`,
/// and a fault or failed check (which are signals), do so by themselves. SIGKILL may take the last lines along.
public enum ProgramLog {
    private static let queue = AtomicLazyReference<LogQueue>()
    /// A reader who does not read must not keep a process from ending.
    static let flushMilliseconds = 1000
    private static let faults = [SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV]
    /// What was to be done at those before; written by `begin` only.
    nonisolated(unsafe) private static var actionsBefore: [Glibc.sigaction] = []

    /// Every `Logger` made from now on goes there. Once.
    public static func begin(level: Logger.Level) throws(RingError) {
        let queue = queue.storeIfNil(try LogQueue(descriptor: STDERR_FILENO))
        LoggingSystem.bootstrap { queue.handler(label: $0, level: level) }
        atexit { ProgramLog.flush() }
        unsafe actionsBefore = faults.map { fault in
            var action = Glibc.sigaction()
            _ = unsafe sigaction(fault, nil, &action)
            return action
        }
        for fault in faults {
            var action = Glibc.sigaction()
            unsafe action.__sigaction_handler.sa_handler = { ProgramLog.fail($0) }
            _ = unsafe sigaction(fault, &action, nil)
        }
    }

    /// Waits a second at most until everything logged so far is written.
    public static func flush() { queue.load()?.flush(milliseconds: flushMilliseconds) }

    /// In a signal handler: no lock, no memory.
    private static func fail(_ fault: Int32) {
        flush()
        for index in faults.indices where faults[index] == fault {
            _ = unsafe sigaction(fault, &actionsBefore[index], nil)
        }
        // Comes when this handler has returned.
        raise(fault)
    }
}
