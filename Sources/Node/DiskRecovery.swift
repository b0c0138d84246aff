import Format
import Quorum
import Ring

/// Counts answers of the disks of a node that gave the service away because one of them hung: shared storage may stand
/// still for half a minute and then be well. It then begins anew (`ControlPlane.disksAnswerAgain`).
///
/// Both disks are asked again and again, and only what was asked since then is counted: the answer to an older question
/// may be as old as the hang. Disks that hang again and again make no tight loop: a process stands condemned for all
/// these rounds, half a minute at least.
struct DiskRecovery {
    /// One after the other, each asked `DiskQuestion.pauseNanoseconds` after the last one was answered: 30 s.
    static let roundsWanted = 15
    /// The disk of the journal and that of the plain files.
    static let disks = 2

    var roundsWanted = DiskRecovery.roundsWanted
    /// Who answers more slowly than this hangs, as anywhere.
    private var question = DiskQuestion(seconds: DataPlane.journalStallSeconds)
    private var unanswered = 0
    private var rounds = 0

    /// - Parameters:
    ///   - isAtRest: nothing waits for a disk any more, and the directory is closed.
    ///   - moment: on a clock that moves with each look, in nanoseconds.
    /// - Returns: whether both disks are to be asked now.
    mutating func look(isAtRest: Bool, at moment: UInt64) -> Bool {
        if !isAtRest { rounds = 0 }
        switch question.look(isSuspect: true, at: moment) {
        case .nothing: return false
        case .hangs:
            rounds = 0
            return false
        case .ask:
            unanswered = DiskRecovery.disks
            return true
        }
    }

    /// One of them has answered.
    /// - Returns: whether they have answered for long enough.
    mutating func answer(at moment: UInt64) -> Bool {
        unanswered -= 1
        guard unanswered == 0 else { return false }
        question.answer(at: moment)
        rounds += 1
        return rounds >= roundsWanted
    }
}

extension DataPlane {
    /// The directory is closed, nothing of the journal is in flight, and no call stands: what this node received is on
    /// its disk, for the next process, and nothing keeps this one from ending. Only what finds no room in a full
    /// journal is not there; it never would be, because no checkpoint is taken any more, and the link is shut for good.
    private var isAtRest: Bool {
        guard case .idle = phase, directory == nil, !isStopping, !checkpointRunning else { return false }
        let waits = [workers.oldestStart, log.applier.oldestStart].map(waited(since:))
        return journal.batchesInFlight == 0 && waits.allSatisfy { $0 <= DiskQuestion.pauseNanoseconds }
    }

    /// Time is counted look by look, as in `watchDisks`.
    func watchRecovery() {
        guard recovery?.look(isAtRest: isAtRest, at: diskClock) == true else { return }
        askJournal { $0.diskAnswered() }
        askFiles { plane, isWell in
            if isWell { return plane.diskAnswered() }
            let backing = plane.configuration.backing
            plane.failedLate("the disk of \(backing) hung, and gives errors now. Mend it, then start this node again")
        }
    }

    private func diskAnswered() {
        guard recovery?.answer(at: diskClock) == true, isAtRest else { return }
        report(.disksAnswer)
    }
}

extension RoleState {
    /// The other node is recorded as the only one in sync. It alone may serve, and nothing that it acknowledges rests
    /// on this process's memory. A decision that brings this node in again rests on its disk, not on its memory.
    func isRecordedWithout(_ node: NodeID) -> Bool { decision?.inSync.isOnly(node.peer) == true }
}

extension ControlPlane {
    /// The disks of a node that was condemned because one hung have answered for long enough: the process ends, and the
    /// next one comes back like any other. The data side says so again and again, so that no news has to be kept.
    ///
    /// Not before the other node is recorded alone, and there: until then nothing would be gained, and what was
    /// acknowledged from two memories may be in this one alone. After that nothing acknowledged rests on this node. So
    /// nothing is lost if the end comes at any later step, if the next process dies in its start or meets a disk that
    /// hangs again, or if the other node dies meanwhile: it alone has everything, and this one waits for it. A lost
    /// message only delays the news of the decision: each status of the other node has it.
    func disksAnswerAgain() {
        guard !isEnding, !isClosing, openEpoch == nil, let role, role.role == .stop, role.isRecordedWithout(node),
            member.presentPeer(now: reactor.now) != nil
        else { return }
        end(
            """
            the disk that hung has answered again, \(DiskRecovery.roundsWanted) questions on end, and the other node \
            serves alone: this process ends, so that the next one is brought back
            """)
    }
}
