import Format
import Replication
import Ring

/// Notices that a disk of this node hangs: it does not get on with what the other node's has done already. A disk that
/// hangs gives no error, and a node that waits for it serves nobody.
struct StallWatch {
    /// In nanoseconds.
    let limit: UInt64
    private var place = Seq.zero
    private var since: UInt64?

    init(seconds: UInt64) { limit = seconds * 1_000_000_000 }

    /// - Parameters:
    ///   - own: how far this node's disk is.
    ///   - other: how far the other one's is; nil: not known, or not to be compared with.
    ///   - now: on the boot clock, in nanoseconds.
    /// - Returns: whether this one has stood still behind the other one for the limit.
    mutating func look(own: Seq, other: Seq?, now: UInt64) -> Bool {
        guard let other, other > own else {
            since = nil
            return false
        }
        guard let begun = since, own == place else {
            place = own
            since = now
            return false
        }
        return now - begun > limit
    }

    /// How long it has stood still behind the other one at the last look, in nanoseconds.
    func stood(at now: UInt64) -> UInt64 { since.map { now - $0 } ?? 0 }
}

/// Asks one disk for a small write, while something waits that may wait for that disk: a read, a name, a thread that
/// applies. Nothing of it is logged, so the other node's progress shows nothing; and one disk may look like the other
/// (the file table is on the journal's). Who gets no answer knows which one hangs.
struct DiskQuestion {
    /// Between an answer and the next question, and until something that waits is suspicious, in nanoseconds.
    static let pauseNanoseconds: UInt64 = 2_000_000_000

    enum Verdict { case nothing, ask, hangs }

    /// How long an answer may take, in nanoseconds.
    var limit: UInt64
    /// Since when an answer is waited for.
    private var asked: UInt64?
    private var answered: UInt64 = 0
    private var progress: UInt64 = 0

    init(seconds: UInt64) { limit = seconds * 1_000_000_000 }

    /// - Parameters:
    ///   - isSuspect: something has waited for longer than the pause.
    ///   - progress: grows with all that the disk has done for others: one that is only slow does one thing after the other.
    mutating func look(isSuspect: Bool, progress now: UInt64 = 0, at moment: UInt64) -> Verdict {
        if let begun = asked {
            guard now == progress else {
                progress = now
                asked = moment
                return .nothing
            }
            return moment - begun > limit ? .hangs : .nothing
        }
        guard isSuspect, moment - answered >= DiskQuestion.pauseNanoseconds else { return .nothing }
        asked = moment
        progress = now
        return .ask
    }

    mutating func answer(at moment: UInt64) {
        asked = nil
        answered = moment
    }
}

extension DataPlane {
    /// A journal that writes nothing for so long while the other node's does. That one is given up sooner
    /// (`PeerLink.stallNanoseconds`): to go on alone costs less than to move.
    static let journalStallSeconds: UInt64 = 10
    /// Plain files. Longer: to remove one very large file may take a while, in one room more than in the other.
    static let filesStallSeconds: UInt64 = 60
    /// A look counts for so long at most, in nanoseconds: this process, or the machine, may have stood still itself.
    static let diskLookNanoseconds: UInt64 = 2_000_000_000

    /// A primary whose disk hangs gives the service to the other node, which has everything. Alone it waits: nobody could
    /// do better. So does one that has taken over and cannot open, because what it inherited does not get into its files.
    ///
    /// Only time in which the other node could have helped is counted, look by look.
    func watchDisks() {
        let elapsed = min(reactor.now - lookedAtDisksAt, DataPlane.diskLookNanoseconds)
        lookedAtDisksAt = reactor.now
        guard !isBroken else {
            diskClock += elapsed
            return watchRecovery()
        }
        guard inSyncNow == .both, !link.isSilent else { return }
        diskClock += elapsed
        let now = diskClock
        if isJournalBehind(now) {
            return failed(.hangs("\(StateFiles.journal(configuration))", seconds: DataPlane.journalStallSeconds))
        }
        if areFilesBehind(now) {
            guard let fullAt, let fullError else {
                return failed(.hangs(configuration.backing, seconds: DataPlane.filesStallSeconds))
            }
            let text = "\(fullError). Make room, then start this node again; the other node has everything"
            return failed(.apply(fullAt, text))
        }
        askDisks(now)
    }

    private func isJournalBehind(_ now: UInt64) -> Bool {
        // What waits for room in a full journal was never given to its disk.
        let durable = log.role == .primary ? log.core.follower.map { min($0.durable, journal.lastSeq) } : nil
        return journalWatch.look(own: log.core.ownDurable, other: durable, now: now)
    }

    private func areFilesBehind(_ now: UInt64) -> Bool {
        var isOpen = false
        if case .open = phase { isOpen = true }
        // A full disk serves what needs no room; one that is not open serves nothing.
        let isCompared = log.role == .primary && (fullAt == nil || !isOpen)
        return filesWatch.look(own: log.applied, other: isCompared ? log.core.follower?.applied : nil, now: now)
    }

    /// Both are asked: a thread that waits does not tell for which of them.
    private func askDisks(_ now: UInt64) {
        let call = waited(since: workers.oldestStart)
        let isSuspect = max(call, filesWatch.stood(at: now)) > DiskQuestion.pauseNanoseconds
        switch journalQuestion.look(isSuspect: isSuspect, progress: journal.writesEnded, at: now) {
        case .nothing: break
        case .hangs:
            return failed(.hangs("\(StateFiles.journal(configuration))", seconds: DataPlane.journalStallSeconds))
        case .ask: askJournal { $0.journalQuestion.answer(at: $0.diskClock) }
        }
        switch filesQuestion.look(isSuspect: isSuspect, at: now) {
        case .nothing: break
        case .hangs: failed(.hangs(configuration.backing, seconds: DataPlane.filesStallSeconds))
        case .ask: askFiles { plane, _ in plane.filesQuestion.answer(at: plane.diskClock) }
        }
    }

    /// For how long a call has been under way, in nanoseconds.
    func waited(since start: UInt64?) -> UInt64 { start.map { reactor.now > $0 ? reactor.now - $0 : 0 } ?? 0 }

    func askJournal(_ answered: @escaping (DataPlane) -> Void) {
        journal.askDisk { [weak self] in
            guard let self else { return }
            answered(self)
        }
    }

    /// - Parameter answered: with whether it was no error.
    func askFiles(_ answered: @escaping @Sendable (DataPlane, Bool) -> Void) {
        let tree = tree
        let handle = reactor.handle
        let bound = ThreadBound(self)
        questions.submit {
            let isWell = tree.askDisk()
            _ = handle.post { answered(bound.value, isWell) }
        }
    }
}
