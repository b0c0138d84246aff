import Format
import Foundation
import Glibc
import Quorum
import Ring

/// Notices, on the control thread, that the data thread stands still: a call that must not block does (a driver, a
/// kernel that is stuck). The leases would be renewed for ever, and nobody be served.
///
/// Looks are counted, not time: a process or machine that stood still as a whole has looked once when it wakes.
struct DataThreadWatch {
    static let lookMilliseconds = 1000
    /// While the other node could serve.
    static let looksMaximum = 20
    /// The same where that node was restarted since the thread answered last: what was acknowledged from two memories may
    /// be in this one alone.
    static let looksMaximumAfterLoss = 120
    /// For a directory that is to be closed here. Nobody waits for it, but this node would never come back by itself.
    static let looksMaximumClosing = 120

    /// Since it was asked and has not answered, this one included.
    private var looks = 0
    private var closingLooks = 0
    /// The other node's process, now and when the thread answered last.
    private var seen: Incarnation?
    private var witnessed: Incarnation?

    enum Verdict: Equatable {
        case ask, wait
        case standsStill(looks: Int)
    }

    /// - Parameters:
    ///   - serves: or is about to.
    ///   - peer: the process that could take over; nil: none.
    mutating func look(serves: Bool, isClosing: Bool, peer: Incarnation?) -> Verdict {
        closingLooks = isClosing && peer != nil ? closingLooks + 1 : 0
        if closingLooks > DataThreadWatch.looksMaximumClosing { return .standsStill(looks: closingLooks) }
        guard serves, let peer else {
            looks = 0
            return .wait
        }
        seen = peer
        looks += 1
        if looks == 1 { return .ask }
        let isSame = witnessed == nil || witnessed == peer
        let limit = isSame ? DataThreadWatch.looksMaximum : DataThreadWatch.looksMaximumAfterLoss
        return looks > limit ? .standsStill(looks: limit) : .wait
    }

    mutating func answered() {
        looks = 0
        witnessed = seen
    }
}

extension ControlPlane {
    /// The thread that should close the directory is the one that stands still. So the process ends: its leases run out,
    /// the other node takes over, and the next process comes back like any other. Alone it waits, because nobody could do
    /// better, and what only its memory has would be lost.
    func watchDataThread() {
        guard let data, !isEnding else { return }
        let leads = role?.role == .primary || role?.reason == .opening
        let verdict = dataWatch.look(
            serves: leads && role?.decision?.inSync == .both, isClosing: isClosing,
            peer: member.presentPeer(now: reactor.now))
        switch verdict {
        case .wait: break
        case .ask:
            let handle = reactor.handle
            let bound = ThreadBound(self)
            data.order { _ in _ = handle.post { bound.value.dataWatch.answered() } }
        case .standsStill(let looks):
            isEnding = true
            onDataStandsStill?()
            logger.critical(
                """
                the thread that carries the data has stood still for \(looks) s while the other node is there: this \
                process ends, so that the other node takes over. Look for hanging disks or for faults of the kernel (dmesg)
                """)
        }
    }
}

extension NodeProcess {
    /// Ends the process without the data thread. What it would leave on this machine goes first, if that can be done: where
    /// a thread is stuck in the kernel, the process keeps its files open, and neither a clean-up nor a new daemon could.
    func endWithoutData() {
        let box = Unchecked(self)
        Thread.detachNewThread {
            box.value.leaveNothingBehind()
            _exit(1)
        }
        Thread.detachNewThread {
            sleep(5)
            _exit(1)
        }
    }
}
