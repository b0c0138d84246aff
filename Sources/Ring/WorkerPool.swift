/// A fixed number of threads for system calls that block and that no ring has: open by handle, chmod, syncfs, ...
///
/// The queue is bounded. `submit` waits for room, which is safe on a reactor thread too: workers never wait for a
/// reactor (posting does not block), so room always comes.
///
/// Its threads hold the pool: it lives until `shutdown`.
public final class WorkerPool: @unchecked Sendable {
    /// Jobs waiting at most, unless the pool was made with another limit.
    public static let defaultQueueLimit = 16_384

    private let condition = Condition()
    private let queueLimit: Int
    /// All below are protected by `condition`.
    private var queue: [@Sendable () -> Void] = []
    private var head = 0
    private var waitingForRoom = 0
    private var idle = 0
    private var closed = false
    /// When each thread began with what it does, on the boot clock in nanoseconds; 0: nothing.
    private var starts: [UInt64]
    private var threads: [JoinableThread] = []

    /// - Parameters:
    ///   - threads: at least 1.
    ///   - name: the threads are called name-0, name-1, ...
    public init(threads count: Int, name: String, queueLimit: Int = WorkerPool.defaultQueueLimit) throws(RingError) {
        precondition(count > 0 && queueLimit > 0, "a pool of \(count) threads, \(queueLimit) jobs")
        self.queueLimit = queueLimit
        starts = Array(repeating: 0, count: count)
        for index in 0..<count {
            do throws(RingError) {
                threads.append(try JoinableThread(name: "\(name)-\(index)") { [self] in work(index) })
            } catch {
                shutdown()
                throw error
            }
        }
    }

    /// Jobs that wait for a thread.
    public var waiting: Int { condition.withLock { queue.count - head } }

    /// When the call began that has been under way for longest, on the boot clock in nanoseconds; nil: none is.
    public var oldestStart: UInt64? { condition.withLock { starts.lazy.filter { $0 != 0 }.min() } }

    /// Queues `job`; waits while the queue is full. Jobs start in order, on any of the threads.
    public func submit(_ job: @escaping @Sendable () -> Void) {
        condition.withLock {
            precondition(!closed, "work for a pool that was shut down")
            while queue.count - head >= queueLimit {
                waitingForRoom += 1
                condition.wait()
                waitingForRoom -= 1
            }
            append(job)
        }
    }

    /// Queues `job` unless the queue is full.
    public func trySubmit(_ job: @escaping @Sendable () -> Void) -> Bool {
        condition.withLock {
            guard !closed, queue.count - head < queueLimit else { return false }
            append(job)
            return true
        }
    }

    private func append(_ job: @escaping @Sendable () -> Void) {
        queue.append(job)
        if waitingForRoom > 0 { condition.wakeAll() } else if idle > 0 { condition.wakeOne() }
    }

    /// Finishes everything queued, then ends the threads and waits for them. Nothing may be submitted any more.
    public func shutdown() {
        let ending = condition.withLock {
            closed = true
            condition.wakeAll()
            return threads
        }
        for thread in ending { thread.join() }
    }

    private func next(_ thread: Int) -> (@Sendable () -> Void)? {
        condition.withLock {
            starts[thread] = 0
            while head == queue.count {
                if closed { return nil }
                idle += 1
                condition.wait()
                idle -= 1
            }
            let job = queue[head]
            head += 1
            starts[thread] = BootClock.now
            // The array is emptied when its dead half has grown: constant work for each job, bounded memory.
            if head == queue.count {
                queue.removeAll(keepingCapacity: queue.capacity <= queueLimit)
                head = 0
            } else if head >= 1024, head > queue.count / 2 {
                queue.removeFirst(head)
                head = 0
            }
            if waitingForRoom > 0 { condition.wakeAll() }
            return job
        }
    }

    private func work(_ thread: Int) {
        while let job = next(thread) { job() }
    }
}
