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
    /// While the directory is to be closed here: nobody waits for this node, but it would come back by itself never.
    static let looksMaximumClosing = 60
    /// Since it was asked and has not answered, this one included.
    private var looks = 0

    enum Verdict { case ask, wait, standsStill }

    /// - Parameter limit: nil: not now.
    mutating func look(limit: Int?) -> Verdict {
        guard let limit else {
            looks = 0
            return .wait
        }
        looks += 1
        if looks == 1 { return .ask }
        return looks > limit ? .standsStill : .wait
    }

    mutating func answered() { looks = 0 }
}

extension ControlPlane {
    /// The other node was heard so lately that it is there: it sends its state each `renewMilliseconds`.
    static let peerIsThereNanoseconds: UInt64 = 3_000_000_000

    /// The thread that should close the directory is the one that stands still. So the process ends: its leases run out,
    /// the other node takes over, and the next process comes back like any other. Alone it waits, because nobody could do
    /// better, and what only its memory has would be lost.
    func watchDataThread() {
        guard let data, !isEnding else { return }
        let isPeerThere = peerHeardAt.map { reactor.now - $0 < ControlPlane.peerIsThereNanoseconds } ?? false
        let isNeeded = role?.role == .primary && role?.decision?.inSync == .both && isPeerThere
        let limit =
            isNeeded
            ? DataThreadWatch.looksMaximum : isClosing && isPeerThere ? DataThreadWatch.looksMaximumClosing : nil
        switch dataWatch.look(limit: limit) {
        case .wait: break
        case .ask:
            let handle = reactor.handle
            let bound = ThreadBound(self)
            data.order { _ in _ = handle.post { bound.value.dataWatch.answered() } }
        case .standsStill:
            isEnding = true
            onDataStandsStill?()
            logger.critical(
                """
                the thread that carries the data has stood still for \(limit ?? 0) s while the other node is there: this \
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
