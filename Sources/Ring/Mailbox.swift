import CLinux
import Glibc
import Synchronization

/// The door to a reactor for other threads. Sendable; may outlive the reactor.
public final class ReactorHandle: Sendable {
    let mailbox: Mailbox
    init(_ mailbox: Mailbox) { self.mailbox = mailbox }

    /// Runs `work` on the reactor's thread, in the order of the posts. False when that reactor has ended: then `work`
    /// never runs.
    @discardableResult
    public func post(_ work: @escaping @Sendable () -> Void) -> Bool { mailbox.post(work) }

    /// Ends `run()` once the disk requests in flight have finished.
    public func stop() { mailbox.stop() }

    /// Whether the caller is on the reactor's thread.
    public var isCurrentThread: Bool { clinux_thread_id() == mailbox.owner }
}

/// Closures on their way to a reactor. The thread is woken by an eventfd, and only if it sleeps.
final class Mailbox: Sendable {
    struct State {
        var queue: [@Sendable () -> Void] = []
        var asleep = false
        var stopping = false
        var ended = false
    }
    /// Protects everything in it; held for a few instructions only.
    private let state = Mutex(State())
    /// Whether the queue may hold something or a stop was asked for: lets a spinning reactor look without the lock.
    private let pending = Atomic<Bool>(false)
    let wakeDescriptor: Int32
    /// The reactor's thread.
    let owner: Int32

    init() throws(RingError) {
        // Blocking, because io_uring answers -EAGAIN on a non-blocking one. Only the ring ever reads it.
        let descriptor = clinux_eventfd(0, 0)
        guard descriptor >= 0 else { throw RingError("create an eventfd", code: -descriptor) }
        wakeDescriptor = descriptor
        owner = clinux_thread_id()
    }

    deinit { _ = clinux_close(wakeDescriptor) }

    func post(_ work: @escaping @Sendable () -> Void) -> Bool {
        let (accepted, wake) = state.withLock { state in
            guard !state.ended else { return (false, false) }
            state.queue.append(work)
            defer { state.asleep = false }
            return (true, state.asleep)
        }
        pending.store(true, ordering: .releasing)
        if wake { signal() }
        return accepted
    }

    func stop() {
        let wake = state.withLock { state in
            state.stopping = true
            defer { state.asleep = false }
            return state.asleep
        }
        pending.store(true, ordering: .releasing)
        if wake { signal() }
    }

    private func signal() {
        var one: UInt64 = 1
        // Cannot fail but by a full counter, and then the reactor is awake anyway.
        _ = unsafe write(wakeDescriptor, &one, 8)
    }

    var mayHavePosts: Bool { pending.load(ordering: .acquiring) }

    /// Swaps the queue with `empty`; answers whether a stop was asked for.
    func take(into empty: inout [@Sendable () -> Void]) -> Bool {
        precondition(empty.isEmpty)
        pending.store(false, ordering: .releasing)
        var taken = consume empty
        let stopping = state.withLock { state in
            swap(&taken, &state.queue)
            return state.stopping
        }
        empty = taken
        return stopping
    }

    /// True when the reactor may sleep: nothing is queued, and from now on every post wakes it.
    /// - Parameter draining: the stop is known already and need not be reported again.
    func prepareToSleep(draining: Bool) -> Bool {
        state.withLock { state in
            guard state.queue.isEmpty, draining || !state.stopping else { return false }
            state.asleep = true
            return true
        }
    }

    func wokeUp() { state.withLock { $0.asleep = false } }

    /// No post is accepted from now on; what was queued is given up.
    func end() {
        let rest = state.withLock { state in
            state.ended = true
            let rest = state.queue
            state.queue = []
            return rest
        }
        _ = rest
    }
}
