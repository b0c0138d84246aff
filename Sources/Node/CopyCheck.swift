import Format
import Tree

/// Whether the journal and the plain files that a start finds belong together: pure.
///
/// The marker is on the disk of the plain files before the journal's checkpoint moves (`TreeMarker`), and a record is on
/// the journal's disk before it reaches the files. So, as long as both disks are the ones that were written to, whatever the
/// moment of a crash:
///
/// ```
///   journal's checkpoint  <=  marker  <=  end of the journal,   and the journal has the marker's chain there
/// ```
///
/// Anything else means that one of the two was replaced, cloned, or put back to an older state. Then nothing is replayed:
/// the records above the checkpoint mean nothing to files of another time.
enum CopyCheck {
    /// The journal as it was found on the disk.
    struct JournalSide {
        var instance: UInt64
        var checkpoint: Seq
        var last: Seq
        /// As the superblock was found: base in the upper half, count in the lower.
        var incarnation: UInt64
        /// The end of the journal is not known: part of it cannot be read.
        var isDamaged = false
    }

    enum Verdict: Sendable, Hashable {
        /// They belong together; the files hold at least this.
        case fits(TreeMarker.Point)
        /// The files carry no marker, or none that can be read: another disk, or a copy without what belongs to it.
        case noMarker
        /// The files belong to another journal: the other node's, or one of an earlier life of this node.
        case otherJournal
        /// The files were put back: the journal counts on them for more.
        case filesBehind(marker: Seq, checkpoint: Seq)
        /// The journal was put back: the files hold more than it ever had, or than this state of it had.
        case journalBehind(marker: Seq, last: Seq)
        /// The files hold another history.
        case otherHistory(Seq)
    }

    /// - Parameter chain: the journal's chain at a seq where a batch ends; nil where none does.
    static func verdict(_ marker: TreeMarker?, _ journal: JournalSide, chain: (Seq) -> UInt64?) -> Verdict {
        guard let marker else { return .noMarker }
        guard marker.journal == journal.instance else { return .otherJournal }
        var verdict = Verdict.noMarker
        for point in marker.points {
            verdict = judge(point, journal, chain: chain)
            if case .fits = verdict { return verdict }
        }
        return verdict
    }

    private static func judge(
        _ point: TreeMarker.Point, _ journal: JournalSide, chain: (Seq) -> UInt64?
    ) -> Verdict {
        if point.seq < journal.checkpoint {
            return .filesBehind(marker: point.seq, checkpoint: journal.checkpoint)
        }
        // Every start and every cut counts a journal's life on, and none counts it back.
        let isOlderLife =
            point.incarnation >> 32 == journal.incarnation >> 32 && point.incarnation > journal.incarnation
        if isOlderLife || point.seq > journal.last && !journal.isDamaged {
            return .journalBehind(marker: point.seq, last: journal.last)
        }
        guard journal.isDamaged || chain(point.seq) == point.chain else { return .otherHistory(point.seq) }
        return .fits(point)
    }
}

extension CopyCheck.Verdict {
    /// Other files in the place of the right ones, or older ones: the journal is as it was. Of the rest the journal may be
    /// the one that is wrong, and no files make that right.
    var isOfFiles: Bool {
        switch self {
        case .noMarker, .otherJournal, .filesBehind: true
        case .fits, .journalBehind, .otherHistory: false
        }
    }

    /// What is wrong, and what to do, for an administrator.
    func words(backing: String, journal: String, other: String) -> String {
        let found: String
        let mend: String
        switch self {
        case .fits: return ""
        case .noMarker:
            found = "\(backing) does not say which journal it belongs to: it is another disk than before, or a copy"
            mend = "If the right disk is not mounted there, mount it and start again"
        case .otherJournal:
            found =
                "\(backing) belongs to another journal than \(journal): a disk of another node, or of an earlier life"
            mend = "If the right disk is not mounted there, mount it and start again"
        case .filesBehind(let marker, let checkpoint):
            found =
                "\(backing) was put back to an older state: it holds the records up to \(marker), and held them up to "
                + "\(checkpoint)"
            mend = "If it was not meant to be put back, bring the newer files back and start again"
        case .journalBehind(let marker, let last):
            found =
                "\(journal) was put back to an older state: it ends at record \(last), and \(backing) was written from a "
                + "later one, at record \(marker)"
            mend = "If it was not meant to be put back, bring the newer journal back and start again"
        case .otherHistory(let seq):
            found = "\(backing) and \(journal) hold different histories at record \(seq): one of them was put back"
            mend = "If the right disk is not mounted, mount it and start again"
        }
        return
            "\(found). This copy does not count, and nothing is served from it, until \(other) has made it equal to its "
            + "own. \(mend)"
    }
}
