import CLinux
import Glibc
public import Logging

/// What a watched descriptor is ready for.
public struct Readiness: OptionSet, Sendable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    /// A read would not block: data, the end of the stream, or an error to collect.
    public static let readable = Readiness(rawValue: 1)
    public static let writable = Readiness(rawValue: 2)
    /// The other side is gone. Reported whether asked for or not.
    public static let hangUp = Readiness(rawValue: 4)
    /// An error is pending (read it with `SO_ERROR` or by reading), or the descriptor cannot be watched at all. Reported
    /// whether asked for or not.
    public static let failed = Readiness(rawValue: 8)

    init(pollEvents: Int32) {
        var found: Readiness = []
        if pollEvents & POLLIN != 0 { found.insert(.readable) }
        if pollEvents & POLLOUT != 0 { found.insert(.writable) }
        if pollEvents & (POLLHUP) != 0 { found.insert(.hangUp) }
        if pollEvents & (POLLERR | POLLNVAL) != 0 { found.insert(.failed) }
        self = found
    }
}

/// One thread's event loop. See the head of `Ring.swift`.
///
/// Not Sendable: create it on the thread that runs it (usually through `ReactorThread`) and use it there only. Other
/// threads hold its `handle`.
@safe
public final class Reactor {
    /// Disk requests in flight at most; a further one completes with -EBUSY.
    public static let operationLimit = 1024
    /// Completions taken from the kernel in one go.
    static let batchLimit = 512

    /// "io_uring" or "libaio".
    public var engineName: String { engine.name }
    /// The door for other threads.
    public let handle: ReactorHandle
    /// Passed on to those who live on this thread.
    public let logger: Logger
    /// Microseconds to look for events before sleeping; 0 never looks. A thread that sleeps costs whoever wakes it and
    /// whoever waits for it a few tens of microseconds each time; one that looks takes the processor from others. So it
    /// looks only while events have lately come sooner than twice that, yields the processor between two looks, and does
    /// not look for a while after somebody else turned out to need it (`spinGap`).
    public var spinMicroseconds = 0
    /// A yield that took so long: another thread used the processor for longer than the few events of a write take.
    static let spinGap: UInt64 = 300_000
    /// How long the reactor then sleeps at once; twice as long each time that this happens again, until it does not.
    static let spinPauses: ClosedRange<UInt64> = 20_000_000...1_280_000_000

    let engine: any Engine
    let mailbox: Mailbox
    var watches = WatchTable()
    var operations = OperationTable()
    var timers = TimerQueue()
    private var sleepHandlers: [() -> Void] = []
    private var endWork: [() -> Void] = []
    private var lateWork: [() -> Void] = []
    private var posted: [@Sendable () -> Void] = []
    private var running = false
    private var stopping = false
    /// Nanoseconds from going idle to the next event, a moving average.
    private var idleEstimate: UInt64 = 0
    private var spinNotBefore: UInt64 = 0
    private var spinPause = Reactor.spinPauses.lowerBound
    private let completions: UnsafeMutableBufferPointer<clinux_completion>

    /// Starts an engine for the calling thread.
    public init(engine choice: EngineChoice = .auto, logger: Logger) throws(RingError) {
        let mailbox = try Mailbox()
        engine = try makeEngine(choice, mailbox: mailbox, capacity: Reactor.operationLimit, logger: logger)
        self.mailbox = mailbox
        self.logger = logger
        handle = ReactorHandle(mailbox)
        unsafe completions = .allocate(capacity: Reactor.batchLimit)
        unsafe completions.initialize(repeating: clinux_completion())
    }

    deinit {
        precondition(operations.inFlight == 0, "a reactor went away while the kernel still uses memory of its requests")
        mailbox.end()
        engine.close()
        operations.deallocate()
        unsafe completions.deallocate()
    }

    /// CLOCK_BOOTTIME in nanoseconds.
    public var now: UInt64 { BootClock.now }

    /// Whether the caller is on this reactor's thread.
    public var isCurrentThread: Bool { handle.isCurrentThread }

    /// Runs `work` in the next iteration. From other threads use `handle.post`.
    public func post(_ work: @escaping @Sendable () -> Void) { handle.post(work) }

    /// Called at the end of every iteration, before the reactor waits: the place to ship what the iteration gathered. If
    /// a handler makes more work (posts, timers that are due), the loop goes round again before it sleeps.
    public func beforeSleep(_ handler: @escaping () -> Void) {
        preconditionOnThread()
        sleepHandlers.append(handler)
    }

    /// Runs `work` once, at the end of this iteration, after the `beforeSleep` handlers: where sockets are flushed, so
    /// that everything an iteration sends leaves in one system call.
    public func atEndOfIteration(_ work: @escaping () -> Void) {
        preconditionOnThread()
        endWork.append(work)
    }

    /// Runs `work` once, as the last thing of this iteration: when its sockets are flushed and its disk requests are on
    /// their way. For waking other threads, which may take the processor at once.
    public func lastInIteration(_ work: @escaping () -> Void) {
        preconditionOnThread()
        lateWork.append(work)
    }

    /// Ends `run()` after this iteration and after the disk requests in flight.
    public func stop() { handle.stop() }

    /// Hands what was prepared in this iteration to the kernel now, instead of at its end.
    public func submitNow() {
        armWatches()
        engine.submit()
    }

    /// The loop. Returns after `stop()`; from then on posts are refused, and all handlers are forgotten.
    public func run() {
        preconditionOnThread()
        precondition(!running, "a reactor runs once")
        running = true
        while true {
            runPosted()
            fireTimers()
            runSleepHandlers()
            if stopping && operations.inFlight == 0 { break }
            waitAndDispatch()
        }
        end()
    }

    /// Stops the process unless the caller is on this reactor's thread.
    public func preconditionCurrentThread() { preconditionOnThread() }

    func preconditionOnThread() {
        precondition(handle.isCurrentThread, "a reactor was used from another thread than its own")
    }

    private func runPosted() {
        var batch: [@Sendable () -> Void] = []
        swap(&batch, &posted)
        if mailbox.take(into: &batch) { stopping = true }
        for work in batch { work() }
        batch.removeAll(keepingCapacity: batch.capacity <= 4096)
        swap(&batch, &posted)
    }

    private func runSleepHandlers() {
        // By index: a handler may add another one.
        var index = 0
        while index < sleepHandlers.count {
            sleepHandlers[index]()
            index += 1
        }
        index = 0
        while index < endWork.count {
            endWork[index]()
            index += 1
        }
        // Kept in a local: the end of what the closures hold may ask for more, which then waits for the next iteration.
        var done: [() -> Void] = []
        swap(&done, &endWork)
        done.removeAll(keepingCapacity: done.capacity <= 4096)
        if endWork.isEmpty { swap(&done, &endWork) }
        runLateWork()
    }

    private func runLateWork() {
        guard !lateWork.isEmpty else { return }
        submitNow()
        var late: [() -> Void] = []
        swap(&late, &lateWork)
        for work in late { work() }
        late.removeAll(keepingCapacity: late.capacity <= 4096)
        if lateWork.isEmpty { swap(&late, &lateWork) }
    }

    private func waitAndDispatch() {
        armWatches()
        let timeout = nextTimeout()
        let count: Int32
        if timeout == 0 {
            count = unsafe engine.wait(timeout: 0, into: completions)
        } else {
            count = idle(timeout: timeout)
        }
        guard count >= 0 else { fatalError("\(engine.name) failed while waiting for events: \(errorText(count))") }
        for index in 0..<Int(count) { unsafe dispatch(completions[index]) }
        deliverRefusals()
    }

    /// 0: something is due already; below 0: nothing ever.
    private func nextTimeout() -> Int64 {
        if watches.hasFailures || operations.hasRefusals || !endWork.isEmpty || !lateWork.isEmpty { return 0 }
        guard let deadline = timers.nextDeadline else { return -1 }
        let now = now
        return deadline <= now ? 0 : Int64(clamping: deadline - now)
    }

    /// Looks for a while if that has paid lately, then sleeps.
    private func idle(timeout: Int64) -> Int32 {
        let limit = UInt64(max(0, spinMicroseconds)) * 1000
        guard limit > 0 else { return sleep(timeout: timeout) }
        let start = now
        var end = start
        if idleEstimate <= 2 * limit, timeout < 0 || timeout > Int64(clamping: limit), start >= spinNotBefore {
            engine.submit()
            while end - start < limit {
                if engine.hasCompletions() || mailbox.mayHavePosts {
                    remember(idle: end - start)
                    spinPause = max(Reactor.spinPauses.lowerBound, spinPause - spinPause / 8)
                    return unsafe engine.wait(timeout: 0, into: completions)
                }
                sched_yield()
                let look = now
                let gap = look - end
                end = look
                guard gap <= Reactor.spinGap else {
                    spinNotBefore = look + spinPause
                    spinPause = min(Reactor.spinPauses.upperBound, 2 * spinPause)
                    break
                }
            }
        }
        let count = sleep(timeout: timeout < 0 ? timeout : max(0, timeout - Int64(end - start)))
        remember(idle: now - start)
        return count
    }

    private func remember(idle nanoseconds: UInt64) {
        idleEstimate = (idleEstimate &* 7 &+ min(nanoseconds, 1_000_000_000)) / 8
    }

    private func sleep(timeout: Int64) -> Int32 {
        guard mailbox.prepareToSleep(draining: stopping) else {
            return unsafe engine.wait(timeout: 0, into: completions)
        }
        defer { mailbox.wokeUp() }
        return unsafe engine.wait(timeout: timeout, into: completions)
    }

    private func dispatch(_ completion: clinux_completion) {
        let tag = Tag(rawValue: completion.tag)
        switch tag.kind {
        case .watch: dispatchWatch(tag, result: completion.result)
        case .operation: dispatchOperation(tag, result: completion.result)
        case .some(.none), .wake: break
        case nil: fatalError("\(engine.name) answered with a tag that nobody gave out: \(tag.rawValue)")
        }
    }

    private func end() {
        mailbox.end()
        // Handlers usually hold the objects that hold this reactor: let go of them, on this thread. Each is moved out of
        // its place first, because the end of what it holds may call back here.
        for timer in timers.takeAll() { timer.cancel() }
        withExtendedLifetime(watches.takeHandlers()) {}
        let handlers = sleepHandlers + endWork + lateWork
        sleepHandlers = []
        endWork = []
        lateWork = []
        withExtendedLifetime(handlers) {}
    }
}
