import CLinux
import Glibc
import Logging

/// Which engine a reactor uses.
public enum EngineChoice: String, Sendable, CaseIterable {
    /// io_uring where the kernel allows it, otherwise libaio.
    case auto
    case ioUring = "io_uring"
    case libaio
}

/// What a completion belongs to: the upper 8 bits of a tag. Then 24 bits of generation and 32 of slot.
enum TagKind: UInt64 {
    /// The answer to a cancellation: nobody waits for it.
    case none = 0
    /// Another thread posted.
    case wake = 1
    case watch = 2
    case operation = 3
}

/// Names a request to the kernel. Not an address: a completion that comes late, or twice, cannot reach freed memory.
struct Tag {
    let rawValue: UInt64
    init(rawValue: UInt64) { self.rawValue = rawValue }
    init(_ kind: TagKind, slot: Int, generation: UInt32) {
        rawValue = kind.rawValue << 56 | UInt64(generation & Tag.generationMask) << 32 | UInt64(UInt32(slot))
    }
    static let generationMask: UInt32 = 0xFF_FFFF
    var kind: TagKind? { TagKind(rawValue: rawValue >> 56) }
    var generation: UInt32 { UInt32(truncatingIfNeeded: rawValue >> 32) & Tag.generationMask }
    var slot: Int { Int(UInt32(truncatingIfNeeded: rawValue)) }
}

/// The kinds of disk request.
enum Transfer: Int32 {
    case read = 0
    case write = 1
    case synchronize = 2
    case synchronizeData = 3
}

/// The seam between the reactor and the kernel. All calls come from the reactor's thread. Results below zero are negated
/// errnos.
protocol Engine: AnyObject {
    var name: String { get }
    /// Whether a watch must be armed again after each event.
    var watchesAreOneShot: Bool { get }
    func prepare(
        _ transfer: Transfer, fd: Int32, vectors: UnsafePointer<iovec>?, count: Int, offset: UInt64, tag: Tag
    ) -> Int32
    /// `changing`: the descriptor is registered already.
    func arm(fd: Int32, events: UInt32, tag: Tag, changing: Bool) -> Int32
    func disarm(fd: Int32, tag: Tag)
    /// Hands everything prepared to the kernel without waiting.
    func submit()
    /// Whether `wait` would return at once; a hint for spinning.
    func hasCompletions() -> Bool
    /// Submits and waits at most `timeout` nanoseconds (0: not at all, below 0: for ever).
    func wait(timeout: Int64, into completions: UnsafeMutableBufferPointer<clinux_completion>) -> Int32
    func close()
}

/// io_uring. One request is always there: a read of the wake-up eventfd.
@safe
final class UringEngine: Engine {
    static let submissionEntries: UInt32 = 1024
    static let completionEntries: UInt32 = 8192

    let name = "io_uring"
    let watchesAreOneShot = true
    private let ring: OpaquePointer
    private let wakeDescriptor: Int32
    private let wakeValue: UnsafeMutablePointer<UInt64>
    private var wakeArmed = false

    init(wakeDescriptor: Int32) throws(RingError) {
        var ring: OpaquePointer?
        var deferred: Int32 = 0
        let result = unsafe clinux_ring_create(
            UringEngine.submissionEntries, UringEngine.completionEntries, &ring, &deferred)
        guard result >= 0, let ring = unsafe ring else {
            let remedy =
                switch -result {
                case ENOSYS: "This kernel has no io_uring; use --engine libaio or auto"
                case EPERM, EACCES:
                    "io_uring is forbidden here (sysctl kernel.io_uring_disabled, or a container's seccomp profile); "
                        + "allow it or use --engine libaio or auto"
                case ENOMEM: "Raise the limit on locked memory (ulimit -l)"
                default: "Use --engine libaio or auto"
                }
            throw RingError("start io_uring", code: -result, remedy: remedy)
        }
        unsafe self.ring = ring
        self.wakeDescriptor = wakeDescriptor
        unsafe wakeValue = .allocate(capacity: 1)
    }

    func prepare(
        _ transfer: Transfer, fd: Int32, vectors: UnsafePointer<iovec>?, count: Int, offset: UInt64, tag: Tag
    ) -> Int32 {
        unsafe clinux_ring_prepare_transfer(ring, transfer.rawValue, fd, vectors, UInt32(count), offset, tag.rawValue)
    }

    func arm(fd: Int32, events: UInt32, tag: Tag, changing: Bool) -> Int32 {
        unsafe clinux_ring_prepare_poll(ring, fd, events, tag.rawValue)
    }

    func disarm(fd: Int32, tag: Tag) {
        let result = unsafe clinux_ring_prepare_poll_remove(
            ring, tag.rawValue, Tag(.none, slot: 0, generation: 0).rawValue)
        precondition(result == 0, "the ring takes no more requests")
    }

    func submit() {
        armWake()
        if unsafe clinux_ring_unsubmitted(ring) > 0 { _ = unsafe clinux_ring_submit(ring) }
    }

    func hasCompletions() -> Bool { unsafe clinux_ring_has_completions(ring) != 0 }

    func wait(timeout: Int64, into completions: UnsafeMutableBufferPointer<clinux_completion>) -> Int32 {
        armWake()
        let count = unsafe clinux_ring_enter(ring, timeout, completions.baseAddress, UInt32(completions.count))
        if count > 0 {
            for index in 0..<Int(count) where unsafe Tag(rawValue: completions[index].tag).kind == .wake {
                wakeArmed = false
            }
        }
        return count
    }

    private func armWake() {
        guard !wakeArmed else { return }
        let tag = Tag(.wake, slot: 0, generation: 0)
        wakeArmed = unsafe clinux_ring_prepare_read(ring, wakeDescriptor, wakeValue, 8, tag.rawValue) == 0
    }

    func close() {
        unsafe clinux_ring_destroy(ring)
        unsafe wakeValue.deallocate()
    }
}

/// epoll for descriptors, libaio for disk requests. Both eventfds (wake-up, and libaio's completions) are registered
/// edge-triggered, so that nobody has to read them.
@safe
final class LibaioEngine: Engine {
    let name = "libaio"
    let watchesAreOneShot = false
    private let epoll: Int32
    private let completionEvent: Int32
    private let aio: OpaquePointer

    /// - Parameter capacity: disk requests in flight.
    init(wakeDescriptor: Int32, capacity: Int) throws(RingError) {
        epoll = clinux_epoll_create()
        guard epoll >= 0 else { throw RingError("create an epoll descriptor", code: -epoll) }
        completionEvent = clinux_eventfd(0, 1)
        guard completionEvent >= 0 else {
            _ = clinux_close(epoll)
            throw RingError("create an eventfd", code: -completionEvent)
        }
        var aio: OpaquePointer?
        let result = unsafe clinux_aio_create(UInt32(capacity), completionEvent, &aio)
        guard result >= 0, let aio = unsafe aio else {
            _ = clinux_close(completionEvent)
            _ = clinux_close(epoll)
            throw RingError(
                "start libaio", "with \(capacity) requests", code: -result,
                remedy: result == -EAGAIN ? "Raise sysctl fs.aio-max-nr (fs.aio-nr shows what is in use)" : "")
        }
        unsafe self.aio = aio
        for (fd, kind) in [(wakeDescriptor, TagKind.wake), (completionEvent, TagKind.none)] {
            let result = clinux_epoll_control(
                epoll, Int32(CLINUX_EPOLL_ADD), fd, UInt32(POLLIN), 1, Tag(kind, slot: 0, generation: 0).rawValue)
            precondition(result == 0, "epoll refuses an eventfd: \(errorText(result))")
        }
    }

    func prepare(
        _ transfer: Transfer, fd: Int32, vectors: UnsafePointer<iovec>?, count: Int, offset: UInt64, tag: Tag
    ) -> Int32 {
        unsafe clinux_aio_prepare_transfer(aio, transfer.rawValue, fd, vectors, UInt32(count), offset, tag.rawValue)
    }

    func arm(fd: Int32, events: UInt32, tag: Tag, changing: Bool) -> Int32 {
        clinux_epoll_control(
            epoll, Int32(changing ? CLINUX_EPOLL_CHANGE : CLINUX_EPOLL_ADD), fd, events, 0, tag.rawValue)
    }

    func disarm(fd: Int32, tag: Tag) {
        // EBADF, ENOENT: already closed, and with that gone from the set.
        _ = clinux_epoll_control(epoll, Int32(CLINUX_EPOLL_REMOVE), fd, 0, 0, 0)
    }

    func submit() {
        if unsafe clinux_aio_unsubmitted(aio) > 0 { _ = unsafe clinux_aio_submit(aio) }
    }

    func hasCompletions() -> Bool {
        var one = clinux_completion()
        return unsafe clinux_epoll_wait(epoll, 0, &one, 1) > 0
    }

    func wait(timeout: Int64, into completions: UnsafeMutableBufferPointer<clinux_completion>) -> Int32 {
        submit()
        // Finished requests first, without a system call: their edge may have been consumed before.
        let room = UInt32(completions.count)
        let early = unsafe clinux_aio_reap(aio, completions.baseAddress, room / 2)
        let start = unsafe completions.baseAddress.map { unsafe $0 + Int(early) }
        let ready = unsafe clinux_epoll_wait(epoll, early > 0 ? 0 : timeout, start, room / 4)
        guard ready >= 0 else { return ready }
        let used = early + ready
        let rest = unsafe completions.baseAddress.map { unsafe $0 + Int(used) }
        return unsafe used + clinux_aio_reap(aio, rest, room - UInt32(used))
    }

    func close() {
        unsafe clinux_aio_destroy(aio)
        _ = clinux_close(completionEvent)
        _ = clinux_close(epoll)
    }
}

/// Starts the chosen engine, or for `auto` the best that works; says which and why.
func makeEngine(
    _ choice: EngineChoice, mailbox: Mailbox, capacity: Int, logger: Logger
) throws(RingError) -> any Engine {
    switch choice {
    case .ioUring:
        return try UringEngine(wakeDescriptor: mailbox.wakeDescriptor)
    case .libaio:
        return try LibaioEngine(wakeDescriptor: mailbox.wakeDescriptor, capacity: capacity)
    case .auto:
        do throws(RingError) {
            return try UringEngine(wakeDescriptor: mailbox.wakeDescriptor)
        } catch {
            logger.notice(
                "io_uring cannot be used; disk requests go through libaio", metadata: ["ring.reason": "\(error)"])
            return try LibaioEngine(wakeDescriptor: mailbox.wakeDescriptor, capacity: capacity)
        }
    }
}
