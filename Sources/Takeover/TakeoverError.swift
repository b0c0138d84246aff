import CLinux
import Glibc

/// What could not be done about an address or an application, on what, why, and what to do now.
public struct TakeoverError: Error, Sendable, CustomStringConvertible {
    /// What failed, with its object: `add 10.0.9.1/24 to eth0`.
    public var action: String
    /// Why, in words.
    public var reason: String
    /// The errno of the system call; 0 when it was none.
    public var code: Int32
    /// What to do now.
    public var remedy: String

    init(_ action: String, reason: String, code: Int32 = 0, remedy: String) {
        self.action = action
        self.reason = reason
        self.code = code
        self.remedy = remedy
    }

    /// A failed system call; `code` is a positive errno.
    init(_ action: String, code: Int32, remedy: String) {
        self.init(action, reason: errorText(code), code: code, remedy: remedy)
    }

    public var description: String { "cannot \(action): \(reason). \(remedy)." }
}

/// The system's words for an errno, and its number.
func errorText(_ code: Int32) -> String {
    var text = [CChar](repeating: 0, count: 128)
    guard unsafe strerror_r(code, &text, text.count) == 0 else { return "errno \(code)" }
    let message = String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    return "\(message) (errno \(code))"
}

/// Nanoseconds since the machine was started, time asleep included: the clock on which leases are counted.
func bootNanoseconds() -> UInt64 {
    var now = timespec()
    let result = unsafe clock_gettime(CLOCK_BOOTTIME, &now)
    precondition(result == 0, "the kernel has no CLOCK_BOOTTIME")
    return UInt64(now.tv_sec) * 1_000_000_000 + UInt64(now.tv_nsec)
}

func sleepMilliseconds(_ milliseconds: Int) {
    usleep(UInt32(clamping: milliseconds * 1000))
}

/// Runs `body` on a thread of its own, which nobody joins. It inherits the network namespace of the caller.
/// - Returns: false when the system has no thread to give.
func launchThread(_ name: String, _ body: @escaping @Sendable () -> Void) -> Bool {
    final class Body: Sendable {
        let name: String
        let run: @Sendable () -> Void
        init(_ name: String, _ run: @escaping @Sendable () -> Void) {
            self.name = name
            self.run = run
        }
    }
    let box = unsafe Unmanaged.passRetained(Body(name, body))
    var attributes = pthread_attr_t()
    unsafe pthread_attr_init(&attributes)
    unsafe pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED))
    defer { unsafe pthread_attr_destroy(&attributes) }
    var thread = pthread_t()
    let result = unsafe pthread_create(
        &thread, &attributes,
        { argument in
            guard let argument = unsafe argument else { return nil }
            let body = unsafe Unmanaged<Body>.fromOpaque(argument).takeRetainedValue()
            unsafe clinux_thread_name(body.name)
            body.run()
            return nil
        }, unsafe box.toOpaque())
    if result != 0 { unsafe box.release() }
    return result == 0
}
