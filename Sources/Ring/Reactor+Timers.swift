/// A closure that runs later. It lives in the reactor until it has run or was cancelled, held or not.
public final class ReactorTimer {
    /// CLOCK_BOOTTIME nanoseconds.
    fileprivate(set) public var deadline: UInt64
    /// Nanoseconds; 0 runs once.
    fileprivate let period: UInt64
    /// Order among equal deadlines.
    fileprivate var serial: UInt64 = 0
    fileprivate var handler: (() -> Void)?
    fileprivate weak let reactor: Reactor?

    fileprivate init(reactor: Reactor, deadline: UInt64, period: UInt64, handler: @escaping () -> Void) {
        self.reactor = reactor
        self.deadline = deadline
        self.period = period
        self.handler = handler
    }

    /// Whether it will still run.
    public var isPending: Bool { handler != nil }

    /// It will not run (again). May be called from inside its own handler, and more than once.
    public func cancel() {
        guard handler != nil else { return }
        handler = nil
        reactor?.timers.noteCancelled()
    }
}

/// A binary heap by (deadline, order of creation).
struct TimerQueue {
    private var heap: ContiguousArray<ReactorTimer> = []
    private var serial: UInt64 = 0
    private var cancelled = 0

    var nextDeadline: UInt64? { heap.first?.deadline }

    mutating func insert(_ timer: ReactorTimer) {
        serial += 1
        timer.serial = serial
        heap.append(timer)
        var index = heap.count - 1
        while index > 0, precedes(index, (index - 1) / 2) {
            heap.swapAt(index, (index - 1) / 2)
            index = (index - 1) / 2
        }
    }

    /// Cancelled timers stay in the heap until they come up; when they are most of it, it is rebuilt, so that arming and
    /// cancelling for ever does not grow it.
    mutating func noteCancelled() {
        cancelled += 1
        guard cancelled > 32, cancelled > heap.count / 2 else { return }
        heap.removeAll { !$0.isPending }
        cancelled = 0
        for index in stride(from: heap.count / 2 - 1, through: 0, by: -1) { siftDown(index) }
    }

    mutating func popDue(now: UInt64) -> ReactorTimer? {
        while let first = heap.first, first.deadline <= now || !first.isPending {
            heap.swapAt(0, heap.count - 1)
            heap.removeLast()
            siftDown(0)
            if first.isPending { return first }
            cancelled = max(0, cancelled - 1)
        }
        return nil
    }

    /// Timers in the heap, cancelled ones included.
    var count: Int { heap.count }

    mutating func takeAll() -> ContiguousArray<ReactorTimer> {
        let rest = heap
        heap = []
        cancelled = 0
        return rest
    }

    private func precedes(_ left: Int, _ right: Int) -> Bool {
        let (one, two) = (heap[left], heap[right])
        return (one.deadline, one.serial) < (two.deadline, two.serial)
    }

    private mutating func siftDown(_ start: Int) {
        var index = start
        while true {
            var least = index
            for child in [2 * index + 1, 2 * index + 2] where child < heap.count && precedes(child, least) {
                least = child
            }
            guard least != index else { return }
            heap.swapAt(index, least)
            index = least
        }
    }
}

extension Reactor {
    /// Runs `handler` once, not before `milliseconds` have passed.
    ///
    /// The kernel counts the wait on a clock that stands still while the machine is suspended, so after a resume a
    /// timer may be late: whoever must not act too late (leases) compares `now` before acting.
    @discardableResult
    public func after(milliseconds: Int, _ handler: @escaping () -> Void) -> ReactorTimer {
        at(now + UInt64(max(0, milliseconds)) * 1_000_000, handler)
    }

    /// Runs `handler` once, not before `deadline` (CLOCK_BOOTTIME nanoseconds).
    @discardableResult
    public func at(_ deadline: UInt64, _ handler: @escaping () -> Void) -> ReactorTimer {
        preconditionOnThread()
        let timer = ReactorTimer(reactor: self, deadline: deadline, period: 0, handler: handler)
        timers.insert(timer)
        return timer
    }

    /// Runs `handler` every `milliseconds` (at least 1), first after that time. A loop that was held up does not make up
    /// for missed times.
    @discardableResult
    public func repeating(milliseconds: Int, _ handler: @escaping () -> Void) -> ReactorTimer {
        preconditionOnThread()
        let period = UInt64(max(1, milliseconds)) * 1_000_000
        let timer = ReactorTimer(reactor: self, deadline: now + period, period: period, handler: handler)
        timers.insert(timer)
        return timer
    }

    /// Runs what is due at `now`; timers that the handlers add wait for the next iteration.
    func fireTimers() {
        let now = now
        while let timer = timers.popDue(now: now) {
            guard let handler = timer.handler else { continue }
            if timer.period > 0 {
                timer.deadline = max(timer.deadline + timer.period, now + 1)
                timers.insert(timer)
            } else {
                timer.handler = nil
            }
            handler()
        }
    }
}
