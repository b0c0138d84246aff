public import Format

/// What recovery found and decided, for the node, the log and `lockstep-dump --verify`.
public struct RecoveryReport: Sendable, Hashable, CustomStringConvertible {
    public enum Verdict: Sendable, Hashable {
        case intact
        /// What lay above `lastSeq` was torn by the crash; no disk promise was made for it.
        case tailCut
        /// Batches within `lastSeq.next ... through` were durable and cannot be read: fetch them from the other node
        /// (`Journal.repair`), or do not serve.
        case damaged(through: Seq)
    }

    /// Records in doubt: what can still be said about them.
    public struct Doubt: Sendable, Hashable, CustomStringConvertible {
        public enum Reason: Sendable, Hashable {
            /// Nothing about these records can be read.
            case unreadable
            /// The record can be read, its payload not.
            case payload
            /// The record is whole, but a damaged one before it keeps it from being applied.
            case behindDamage
        }
        public var first: Seq
        public var last: Seq
        public var reason: Reason
        public var file: FileID?
        /// Byte range of the file, for a write.
        public var range: Range<UInt64>?
        /// File offset in the journal where it is, if known.
        public var position: Int?

        public init(
            first: Seq, last: Seq, reason: Reason, file: FileID? = nil, range: Range<UInt64>? = nil,
            position: Int? = nil
        ) {
            self.first = first
            self.last = last
            self.reason = reason
            self.file = file
            self.range = range
            self.position = position
        }

        public var description: String {
            let records = first == last ? "record \(first)" : "records \(first) to \(last)"
            let place = position.map { " (journal offset \($0))" } ?? ""
            let subject = file.map { file in
                " of file \(file)" + (range.map { ", bytes \($0.lowerBound) to \($0.upperBound - 1)" } ?? "")
            }
            switch reason {
            case .unreadable: return "\(records)\(place): cannot be read; the files they changed are unknown"
            case .payload: return "\(records)\(subject ?? "")\(place): the data is damaged"
            case .behindDamage: return "\(records)\(subject ?? "")\(place): whole, but behind a damaged record"
            }
        }
    }

    /// Doubts listed at most; the rest is counted.
    public static let doubtLimit = 1000

    public var superblock: Superblock
    /// Valid copies of the superblock, 2 to 4, that agree.
    public var superblockCopies: Int
    public var verdict: Verdict
    /// Everything up to here is in the journal, whole and in one chain.
    public var lastSeq: Seq
    public var lastChain: UInt64
    public var lastEpoch: Epoch
    public var epochs: EpochHistory
    /// The highest committed seq that anything read says.
    public var knownCommittedSeq: Seq
    /// The first seq that can still be read (catch-up); `lastSeq.next` when none can.
    public var oldestSeq: Seq
    public var doubts: [Doubt]
    public var doubtsNotListed: Int
    /// Pages that the disk refused to read, file offsets.
    public var unreadablePages: [Int]
    /// Oddities that changed nothing: damaged slots, stale batches, superblock copies that differ.
    public var notes: [String]

    public var checkpointSeq: Seq { superblock.checkpointSeq }
    /// The last stop was clean: nothing received is missing, no wait for the other node is needed.
    public var wasStoppedCleanly: Bool {
        superblock.completeThrough == lastSeq && verdict == .intact
    }
    /// The plain files are a mixture until a resynchronisation is complete.
    public var isIncomplete: Bool { superblock.isIncomplete }

    public func outcome(_ company: RecoveryTable.Company) -> RecoveryTable.Outcome {
        let (step, damage): (RecoveryTable.Step, Bool) =
            switch verdict {
            case .intact: (.end, false)
            case .tailCut: (.cutTail, false)
            case .damaged: (.damaged, true)
            }
        return RecoveryTable.outcome(
            superblocks: .agreed, anyDamage: damage, lastStep: step, incomplete: isIncomplete, company: company)
    }

    public var description: String {
        var lines = [
            "records \(oldestSeq) to \(lastSeq), epoch \(lastEpoch), checkpoint \(checkpointSeq), "
                + "committed at least \(knownCommittedSeq)"
        ]
        switch verdict {
        case .intact: lines.append(wasStoppedCleanly ? "intact, stopped cleanly" : "intact")
        case .tailCut:
            lines.append("intact up to \(lastSeq); behind it is a write that the crash tore, never acknowledged: cut")
        case .damaged(let through):
            lines.append(
                "DAMAGED: records from \(lastSeq.next) on, up to \(through), were on this disk and cannot all be read. "
                    + "They must come from the other node; this node must not be primary without them")
        }
        if isIncomplete {
            lines.append("INCOMPLETE: a resynchronisation of this node began and was not finished: not promotable")
        }
        lines += doubts.map { "in doubt: \($0)" }
        if doubtsNotListed > 0 { lines.append("in doubt: \(doubtsNotListed) more") }
        if !unreadablePages.isEmpty { lines.append("\(unreadablePages.count) pages could not be read from the disk") }
        return (lines + notes).joined(separator: "\n")
    }
}
