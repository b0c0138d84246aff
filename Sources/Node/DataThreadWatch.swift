import Glibc
import Quorum
import Ring

/// Notices, on the control thread, that the data thread stands still: a call that must not block does (a driver, a
/// kernel that is stuck). The leases would be renewed for ever, and nobody be served.
///
/// Looks are counted, not time: a process or machine that stood still as a whole has looked once when it wakes.
struct DataThreadWatch {
    static let lookMilliseconds = 1000
    static let looksMaximum = 20
    /// Since it was asked and has not answered, this one included.
    private var looks = 0

    enum Verdict { case ask, wait, standsStill }

    /// - Parameter isNeeded: this node serves, and the other one could.
    mutating func look(isNeeded: Bool) -> Verdict {
        guard isNeeded else {
            looks = 0
            return .wait
        }
        looks += 1
        if looks == 1 { return .ask }
        return looks > DataThreadWatch.looksMaximum ? .standsStill : .wait
    }

    mutating func answered() { looks = 0 }
}

extension ControlPlane {
    /// The thread that should close the directory is the one that stands still. So the process ends, at once: its leases
    /// run out, the kernel drops its addresses, the other node takes over, and the next process comes back like any other.
    /// Alone it waits, because nobody could do better.
    func watchDataThread() {
        guard let data else { return }
        let isNeeded = role?.role == .primary && role?.decision?.inSync == .both
        switch dataWatch.look(isNeeded: isNeeded) {
        case .wait: break
        case .ask:
            let handle = reactor.handle
            let bound = ThreadBound(self)
            data.order { _ in _ = handle.post { bound.value.dataWatch.answered() } }
        case .standsStill:
            logger.critical(
                """
                the thread that carries the data has stood still for \(DataThreadWatch.looksMaximum) s while the other \
                node is in sync: this process ends, so that the other node takes over. Look for hanging disks or for \
                faults of the kernel (dmesg)
                """)
            service?.dropAddresses()
            _exit(1)
        }
    }
}
