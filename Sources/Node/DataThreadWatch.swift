import Format
import Foundation
import Glibc
import Logging
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
    /// For a node that the recorded set does not have. Nobody waits for it, and nothing rests on it: it gets more time
    /// than one that serves, as long as plain files may take (`DataPlane.filesStallSeconds`).
    static let looksMaximumOutside = 60

    /// Since it was asked and has not answered, this one included.
    private var looks = 0
    private var closingLooks = 0
    /// The other node's process, now and when the thread answered last.
    private var seen: Incarnation?
    private var witnessed: Incarnation?

    /// What depends on the thread.
    enum Stand: Equatable {
        /// The service, which the other node could take over.
        case serves
        /// That the directory is closed here.
        case isClosing
        /// That this node comes back: the other one is recorded as the only one in sync.
        case isOutside
        /// This process's memory, which may have what was acknowledged: a standby in sync, or nobody knows.
        case isNeeded

        init(_ role: RoleState?, node: NodeID, isClosing: Bool) {
            let leads = role?.role == .primary || role?.reason == .opening
            self =
                if isClosing {
                    .isClosing
                } else if leads {
                    role?.decision?.inSync == .both ? .serves : .isNeeded
                } else {
                    role?.isRecordedWithout(node) == true ? .isOutside : .isNeeded
                }
        }
    }

    enum Verdict: Equatable {
        case ask, wait
        case standsStill(looks: Int)
    }

    /// - Parameter peer: the process that could take over; nil: none.
    mutating func look(_ stand: Stand, peer: Incarnation?) -> Verdict {
        closingLooks = stand == .isClosing && peer != nil ? closingLooks + 1 : 0
        if closingLooks > DataThreadWatch.looksMaximumClosing { return .standsStill(looks: closingLooks) }
        guard stand == .serves || stand == .isOutside, let peer else {
            looks = 0
            return .wait
        }
        seen = peer
        looks += 1
        if looks == 1 { return .ask }
        let limit = limit(stand, peer)
        return looks > limit ? .standsStill(looks: limit) : .wait
    }

    private func limit(_ stand: Stand, _ peer: Incarnation) -> Int {
        if stand == .isOutside { return DataThreadWatch.looksMaximumOutside }
        let isSame = witnessed == nil || witnessed == peer
        return isSame ? DataThreadWatch.looksMaximum : DataThreadWatch.looksMaximumAfterLoss
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
    ///
    /// So does a standby that was removed from the set because its thread stands still: nothing else brings it back.
    /// As long as it is in the set it stays: if the other node dies, what was acknowledged from two memories may be in
    /// this one alone. Outside, nothing is lost by ending, whichever process dies next: the other node had everything
    /// on its disk before it went alone. A lost message only delays the news: each status has the decision.
    func watchDataThread() {
        guard let data, !isEnding else { return }
        let verdict = dataWatch.look(
            DataThreadWatch.Stand(role, node: node, isClosing: isClosing), peer: member.presentPeer(now: reactor.now))
        switch verdict {
        case .wait: break
        case .ask:
            let handle = reactor.handle
            let bound = ThreadBound(self)
            data.order { _ in _ = handle.post { bound.value.dataWatch.answered() } }
        case .standsStill(let looks):
            end(
                """
                the thread that carries the data has stood still for \(looks) s while the other node is there: this \
                process ends, so that the other node takes over, or has it back. Look for hanging disks or for faults \
                of the kernel (dmesg)
                """)
        }
    }

    /// Nothing may hold that up, the log included.
    func end(_ why: Logger.Message) {
        isEnding = true
        onEnd?()
        logger.critical(why)
    }
}

extension NodeProcess {
    /// Ends the process without the data thread. What it would leave on this machine goes first, if that can be done: where
    /// a thread is stuck in the kernel, the process keeps its files open, and neither a clean-up nor a new daemon could.
    func endWithoutData() { end { $0.leaveNothingBehind() } }

    /// The same without the control thread. What is up of the addresses goes by itself.
    func endWithoutControl(_ service: Service) { end { $0.clearAway(service.application) } }

    private func end(after last: @escaping @Sendable (NodeProcess) -> Void) {
        let box = Unchecked(self)
        let leave = { @Sendable in
            ProgramLog.flush()
            _exit(1)
        }
        Thread.detachNewThread {
            last(box.value)
            leave()
        }
        Thread.detachNewThread {
            sleep(5)
            leave()
        }
    }
}
