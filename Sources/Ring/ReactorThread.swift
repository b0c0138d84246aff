import CLinux
import Glibc
public import Logging
import Synchronization

/// A thread of its own with a reactor on it.
public final class ReactorThread: Sendable {
    /// The door to its reactor.
    public let handle: ReactorHandle
    /// "io_uring" or "libaio".
    public let engineName: String
    private let thread: JoinableThread
    private let reactor: ReactorBox

    /// Starts the thread, makes the reactor on it, runs `setup` there and returns when that is done.
    ///
    /// - Parameters:
    ///   - name: at most 15 bytes are shown by ps and top.
    ///   - processor: pins the thread to one processor; nil leaves it to the kernel.
    /// - Throws: `RingError` when no engine can be started, or what `setup` throws; then the thread has ended.
    public init(
        name: String, engine: EngineChoice = .auto, processor: Int? = nil, logger: Logger,
        setup: @escaping @Sendable (Reactor) throws -> Void
    ) throws {
        let started = Handover<Result<(ReactorHandle, String), any Error>>()
        let box = ReactorBox()
        reactor = box
        thread = try JoinableThread(name: name) {
            // Whatever happens, the reactor goes away on its own thread.
            defer { box.bound.withLock { $0 = nil } }
            if let processor, clinux_thread_pin(Int32(clamping: processor)) < 0 {
                logger.warning("cannot pin thread \(name) to processor \(processor)")
            }
            do {
                let reactor = try Reactor(engine: engine, logger: logger)
                let bound = ThreadBound(reactor)
                box.bound.withLock { $0 = bound }
                try setup(reactor)
                started.put(.success((reactor.handle, reactor.engineName)))
                reactor.run()
            } catch {
                started.put(.failure(error))
            }
        }
        do {
            (handle, engineName) = try started.take().get()
        } catch {
            thread.join()
            throw error
        }
    }

    /// Runs `work` on the thread. False when its reactor has ended.
    @discardableResult
    public func post(_ work: @escaping @Sendable () -> Void) -> Bool { handle.post(work) }

    /// Runs `work` on the thread, with its reactor. False when that has ended.
    @discardableResult
    public func perform(_ work: @escaping @Sendable (Reactor) -> Void) -> Bool {
        handle.post { [reactor] in
            guard let bound = reactor.bound.withLock({ $0 }) else { return }
            work(bound.value)
        }
    }

    /// Runs `work` on the thread and waits for its result; nil when the reactor has ended. For start, tests and
    /// administration, never from a reactor thread.
    public func call<Value: Sendable>(_ work: @escaping @Sendable () -> Value) -> Value? {
        precondition(!handle.isCurrentThread, "a reactor thread cannot wait for itself")
        let answer = Handover<Value?>()
        // If the reactor ends first, the closure is released without having run; its guard then answers.
        let promise = Promise(answer)
        guard handle.post({ promise.fulfil(work()) }) else { return nil }
        return answer.take()
    }

    /// Ends the loop once disk requests in flight have finished. Returns at once.
    public func stop() { handle.stop() }

    /// Waits until the thread has ended.
    public func join() { thread.join() }
}

/// Where a thread's reactor is found by closures that run on that thread.
private final class ReactorBox: Sendable {
    let bound = Mutex<ThreadBound<Reactor>?>(nil)
}

/// Answers nil when it goes away unanswered.
private final class Promise<Value: Sendable>: Sendable {
    private let answer: Handover<Value?>
    init(_ answer: Handover<Value?>) { self.answer = answer }
    func fulfil(_ value: Value) { answer.put(value) }
    deinit { answer.put(nil) }
}

/// A mutex and a condition: what `Synchronization` does not have.
@safe
final class Condition: @unchecked Sendable {
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let signal: UnsafeMutablePointer<pthread_cond_t>

    init() {
        unsafe mutex = .allocate(capacity: 1)
        unsafe signal = .allocate(capacity: 1)
        unsafe mutex.initialize(to: pthread_mutex_t())
        unsafe signal.initialize(to: pthread_cond_t())
        unsafe pthread_mutex_init(mutex, nil)
        unsafe pthread_cond_init(signal, nil)
    }
    deinit {
        unsafe pthread_cond_destroy(signal)
        unsafe pthread_mutex_destroy(mutex)
        unsafe signal.deallocate()
        unsafe mutex.deallocate()
    }
    func withLock<Value>(_ body: () -> Value) -> Value {
        unsafe pthread_mutex_lock(mutex)
        defer { unsafe pthread_mutex_unlock(mutex) }
        return body()
    }
    /// Inside `withLock` only.
    func wait() { unsafe pthread_cond_wait(signal, mutex) }
    func wakeOne() { unsafe pthread_cond_signal(signal) }
    func wakeAll() { unsafe pthread_cond_broadcast(signal) }
}

/// A value from one thread to another, once; later ones are ignored.
final class Handover<Value>: @unchecked Sendable {
    private let condition = Condition()
    /// Protected by `condition`.
    private var value: Value?

    func put(_ new: sending Value) {
        condition.withLock {
            if value == nil { value = new }
            condition.wakeAll()
        }
    }
    func take() -> Value {
        condition.withLock {
            while true {
                if let value { return value }
                condition.wait()
            }
        }
    }
}

/// A named thread that somebody waits for.
@safe
final class JoinableThread: @unchecked Sendable {
    private let condition = Condition()
    /// Protected by `condition`.
    private var joined = false
    private var thread: pthread_t = 0

    init(name: String, _ body: @escaping @Sendable () -> Void) throws(RingError) {
        let start = unsafe Unmanaged.passRetained(Body(name: name, run: body))
        let result = unsafe pthread_create(
            &thread, nil,
            { argument in
                let body = unsafe Unmanaged<Body>.fromOpaque(argument!).takeRetainedValue()
                _ = unsafe body.name.withCString { text in unsafe clinux_thread_name(text) }
                body.run()
                return nil
            }, start.toOpaque())
        guard result == 0 else {
            unsafe start.release()
            throw RingError("start thread", name, code: result, remedy: "Raise the limit on threads (ulimit -u)")
        }
    }

    func join() {
        condition.withLock {
            guard !joined else { return }
            joined = true
            pthread_join(thread, nil)
        }
    }

    private final class Body {
        let name: String
        let run: @Sendable () -> Void
        init(name: String, run: @escaping @Sendable () -> Void) {
            self.name = name
            self.run = run
        }
    }
}
