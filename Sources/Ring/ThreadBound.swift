import CLinux

/// Carries a value that is not Sendable inside a Sendable closure, for use on one thread only: the one that made it.
///
/// Typical: the data thread submits work to the pool, and the work posts back a closure that needs the data thread's
/// own objects. Access from any other thread stops the process, because a data race on the data path would be worse.
///
/// The value should also be *released* there: post the closure that holds the last copy back to its thread.
public struct ThreadBound<Value>: @unchecked Sendable {
    // Sendable because `value` is reachable on the owning thread only; checked at every access.
    private let stored: Value
    private let owner: Int32

    /// Binds to the calling thread.
    public init(_ value: Value) {
        stored = value
        owner = clinux_thread_id()
    }

    public var value: Value {
        precondition(clinux_thread_id() == owner, "a value bound to thread \(owner) was used on another one")
        return stored
    }
}
