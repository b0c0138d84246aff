import Format
import Replication

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

/// A small write to the journal's disk, while the plain files do not get on. That disk holds the file table as well: a
/// thread that waits for it there looks like slow plain files, while nothing is under way to the journal that would show
/// which one hangs.
enum JournalQuestion {
    /// - Parameter writesEnded: of the journal, then: a disk that is only slow takes one write after the other.
    case asked(at: UInt64, writesEnded: UInt64)
    case answered(at: UInt64)

    /// Between an answer and the next question, and before the first, in nanoseconds.
    static let pauseNanoseconds: UInt64 = 2_000_000_000
}

extension DataPlane {
    /// A journal that writes nothing for so long while the other node's does. That one is given up sooner
    /// (`PeerLink.stallNanoseconds`): to go on alone costs less than to move.
    static let journalStallSeconds: UInt64 = 10
    /// Plain files. Longer: to remove one very large file may take a while, in one room more than in the other.
    static let filesStallSeconds: UInt64 = 60

    /// A primary whose disk hangs gives the service to the other node, which has everything. Alone it waits: nobody could
    /// do better. So does one that has taken over and cannot open, because what it inherited does not get into its files.
    func watchDisks() {
        let isOpening = if case .opening = phase { true } else { false }
        let isOpen = if case .open = phase { true } else { false }
        var follower: FollowerState?
        if isOpen || isOpening, log.role == .primary, inSyncNow == .both, !link.isSilent {
            follower = log.core.follower
        }
        let now = reactor.now
        // What waits for room in a full journal was never given to its disk.
        let durable = follower.map { min($0.durable, journal.lastSeq) }
        if journalWatch.look(own: log.core.ownDurable, other: durable, now: now) {
            return failed(.hangs("\(StateFiles.journal(configuration))", seconds: DataPlane.journalStallSeconds))
        }
        // A full disk serves what needs no room; one that is not open serves nothing.
        let applied = fullAt == nil || isOpening ? follower?.applied : nil
        if filesWatch.look(own: log.applied, other: applied, now: now) {
            return failed(.hangs(configuration.backing, seconds: DataPlane.filesStallSeconds))
        }
        if filesWatch.stood(at: now) > JournalQuestion.pauseNanoseconds { askJournal(now) }
    }

    private func askJournal(_ now: UInt64) {
        switch journalQuestion {
        case .asked(_, let writesEnded) where journal.writesEnded != writesEnded:
            journalQuestion = .asked(at: now, writesEnded: journal.writesEnded)
        case .asked(let moment, _):
            guard now - moment > journalWatch.limit else { return }
            failed(.hangs("\(StateFiles.journal(configuration))", seconds: DataPlane.journalStallSeconds))
        case .answered(let moment) where now - moment < JournalQuestion.pauseNanoseconds: return
        case .answered:
            journalQuestion = .asked(at: now, writesEnded: journal.writesEnded)
            journal.askDisk { [weak self] in
                guard let self else { return }
                journalQuestion = .answered(at: reactor.now)
            }
        }
    }
}
