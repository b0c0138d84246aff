import CLinux
import Foundation
import Glibc
import Logging
import Ring
import Synchronization

// The second line behind the control thread. That one renews the lease, and freezes the application when it ends; but it
// may be held up (a call that waits in the kernel, a processor that is not given). Without it no write is answered beyond
// the lease, and the kernel drops the addresses: safety rests on these alone. But the application would go on reading from
// its page cache, while the other node serves. So a thread of its own looks at the lease, and freezes the application
// when the control thread does not. To thaw it is the control thread's again, whatever comes to it first:
//
//     the control thread, when it goes on        then
//     ───────────────────────────────────────    ────────────────────────────────────────────────────────────────────
//     looks at the lease: it is over             it freezes, as it would have done; the next grant thaws
//     has a grant to read                        it looks before it reads (`feed`): it freezes, and the grant thaws
//     has news of the application, or starts it  the same
//     extended the lease just before the guard   at the end of that turn, or of the next (50 ms), it makes up for the
//       froze; or froze and thawed meanwhile       freeze and thaws (`settleGuard`)
//     froze at the same moment                   the freeze is its own; the next grant thaws
//     closes the service                         the application is killed; nothing is left to thaw
//     does not go on for 20 s                    the process ends, and the unit starts it anew; not where it would then
//                                                  have to wait for a node that is lost
//
// A machine that stood still as a whole may look in any order when it wakes: the same rows.

/// What the guard knows of the control thread. The lock is held for a few instructions; it keeps the guard from seeing the
/// half of a thaw.
final class LeaseSight: Sendable {
    struct Facts: Equatable {
        /// The end of the lease, boot clock.
        var leaseUntil: UInt64 = 0
        /// The service is open here, and its application has not been stopped for good.
        var isOpen = false
        /// The control thread has frozen it.
        var isFrozen = false
        /// When the control thread last came round, boot clock.
        var heardAt: UInt64 = 0
        /// Set by the guard AFTER the application is frozen, so that whatever the control thread then does comes later;
        /// cleared by that thread.
        var guardHasFrozen = false
        /// This process would serve again without the other node's consent, or the other node is there: nobody would have
        /// to wait for a node that is lost.
        var mayEnd = true
    }
    private let facts = Mutex(Facts())

    var current: Facts { facts.withLock { $0 } }
    func note(_ change: (inout Facts) -> Void) { facts.withLock { change(&$0) } }
}

/// When the guard acts. Looks are counted, not time: a machine that stood still as a whole has looked once when it wakes.
struct LeaseWatch {
    static let lookMilliseconds = 50
    /// The control thread looks as often, and is on time as a rule: two looks more are its own.
    static let overdueLooksMaximum = 2
    /// As long as the control thread does not come round it freezes again each second: the first time may have failed, or
    /// an application may have been born since.
    static let looksBetweenFreezes = 20
    /// 20 s.
    static let silentLooksMaximum = 400

    enum Verdict: Equatable { case nothing, freeze, end }

    private var heardAt: UInt64 = 0
    private var silentLooks = 0
    private var overdueLooks = 0

    mutating func look(_ facts: LeaseSight.Facts, now: UInt64) -> Verdict {
        silentLooks = facts.isOpen && facts.mayEnd && facts.heardAt == heardAt ? silentLooks + 1 : 0
        heardAt = facts.heardAt
        if silentLooks > LeaseWatch.silentLooksMaximum { return .end }
        let isOverdue = facts.isOpen && !facts.isFrozen && now >= facts.leaseUntil
        overdueLooks = isOverdue ? overdueLooks + 1 : 0
        let late = overdueLooks - LeaseWatch.overdueLooksMaximum - 1
        return late >= 0 && late.isMultiple(of: LeaseWatch.looksBetweenFreezes) ? .freeze : .nothing
    }
}

/// The thread that looks. It waits for nobody: it freezes by itself, and log lines are queued.
final class LeaseGuard: Sendable {
    private let sight: LeaseSight
    private let service: Service
    private let controlThread: Int32
    private let logger: Logger
    private let end: @Sendable () -> Void
    private let isStopped = Atomic<Bool>(false)

    /// - Parameters:
    ///   - controlThread: its number in the kernel.
    ///   - end: ends the process without the control thread.
    init(
        sight: LeaseSight, service: Service, controlThread: Int32, logger: Logger, end: @escaping @Sendable () -> Void
    ) {
        self.sight = sight
        self.service = service
        self.controlThread = controlThread
        self.logger = logger
        self.end = end
    }

    func start() { Thread.detachNewThread { self.run() } }

    func stop() { isStopped.store(true, ordering: .sequentiallyConsistent) }

    private func run() {
        _ = unsafe clinux_thread_name("lease-guard")
        ThreadPriority.raise()
        var watch = LeaseWatch()
        while !isStopped.load(ordering: .sequentiallyConsistent) {
            usleep(useconds_t(LeaseWatch.lookMilliseconds * 1000))
            let facts = sight.current
            let now = BootClock.now
            switch watch.look(facts, now: now) {
            case .nothing: break
            case .freeze:
                let isFirst = !facts.guardHasFrozen
                service.freezeApplicationHere(isNews: isFirst) { sight.note { $0.guardHasFrozen = true } }
                guard isFirst else { break }
                logger.critical(
                    """
                    the lease ended \(milliseconds(facts.leaseUntil, now)) ago, and the thread that renews it has not \
                    answered for \(milliseconds(facts.heardAt, now)) (\(whereControlIs)): the application is frozen \
                    without it
                    """)
            case .end:
                logger.critical(
                    """
                    the thread that renews the lease has not answered for \(milliseconds(facts.heardAt, now)) \
                    (\(whereControlIs)): this process ends, and is started anew by its unit. Look for faults of the \
                    kernel (dmesg)
                    """)
                return end()
            }
        }
    }

    private func milliseconds(_ then: UInt64, _ now: UInt64) -> String { "\((now - min(then, now)) / 1_000_000) ms" }

    /// As far as the kernel says.
    private var whereControlIs: String {
        let path = "/proc/self/task/\(controlThread)/wchan"
        let place = FileManager.default.contents(atPath: path).map { String(decoding: $0, as: UTF8.self) } ?? ""
        return place.isEmpty || place == "0" ? "it is not waiting in the kernel" : "it waits in the kernel, in \(place)"
    }
}

extension ControlPlane {
    /// The guard has frozen the application: this thread looks at the lease itself before it does anything else.
    func meetGuard() { if sight.current.guardHasFrozen { feed(.tick) } }

    /// See the table above. As long as the lease is over, the next look freezes.
    func settleGuard() {
        guard sight.current.guardHasFrozen,
            openEpoch == nil || isFrozen || reactor.now < leaseUntil
        else { return }
        sight.note { $0.guardHasFrozen = false }
        guard openEpoch != nil, !isFrozen else { return }
        freeze()
        thaw()
    }
}

extension NodeProcess {
    /// Control thread.
    func startGuard(_ control: ControlPlane, _ service: Service) -> LeaseGuard {
        let box = Unchecked(self)
        let leaseGuard = LeaseGuard(
            sight: control.sight, service: service, controlThread: clinux_thread_id(), logger: logger,
            end: { box.value.endWithoutControl(service) })
        leaseGuard.start()
        return leaseGuard
    }
}
