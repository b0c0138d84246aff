/// What recovery decides: a pure function of what was found on the disk, exhaustive, and enumerated by a test.
///
/// The one rule behind the table: **a bad checksum is never a reason to drop anything.** A batch was durable once if
/// anything proves it: its own entry in the header ring, a later entry (entries are written in order, each after all
/// earlier batches are durable), a later batch that calls it committed, the superblock's durable seq, a clean stop. If
/// it was durable once and cannot be read now, the disk has lost data that may have been acknowledged: it is fetched
/// from the other room, or this node refuses to be primary. Only a batch for which nothing of this speaks was torn by
/// the crash, and nobody was ever told that it is on this disk.
///
/// One double fault remains, and is stated: when the very last batches rot on the disk during the same power cut that
/// also took their header entries, and nothing was written after them, they look torn. They are fetched from the other
/// room if it has them; alone they are cut.
public enum RecoveryTable {
    /// The header ring about the batch that should come next.
    public enum EntryFinding: Sendable, Hashable, CaseIterable {
        case absent
        /// It was durable, and has the chain that the journal leads to.
        case matching
        /// It was durable, but with another predecessor or another content than what lies in the body ring.
        case contradicting
    }

    /// The header in the body ring at the place where the next batch should be.
    public enum HeaderFinding: Sendable, Hashable, CaseIterable {
        /// Valid, of this mirror, incarnation and place, with the right seq and chain.
        case expected
        /// A valid header of something else: an earlier lap, before a cut, another mirror, a copy in a payload.
        case other
        /// None: zeros, payload, torn or unreadable.
        case unreadable
    }

    /// The checksums of records and payloads behind an expected header.
    public enum BodyFinding: Sendable, Hashable, CaseIterable {
        case intact
        case damaged
    }

    /// What lies behind the place where the next batch should be.
    public enum LaterFinding: Sendable, Hashable, CaseIterable {
        case nothing
        /// Valid later batches (several were in flight and finished out of order), none of which proves this one.
        case unproved
        /// A later header entry, or a later batch whose committed seq covers this one.
        case proves
    }

    public struct Observation: Sendable, Hashable {
        public var entry: EntryFinding
        public var header: HeaderFinding
        /// Matters only behind an expected header.
        public var body: BodyFinding
        public var later: LaterFinding
        /// A clean stop, or the durable seq in the superblock, covers the next seq.
        public var superblockProves: Bool

        public init(
            entry: EntryFinding, header: HeaderFinding, body: BodyFinding, later: LaterFinding, superblockProves: Bool
        ) {
            self.entry = entry
            self.header = header
            self.body = body
            self.later = later
            self.superblockProves = superblockProves
        }
    }

    public enum Step: Sendable, Hashable, CaseIterable {
        /// The batch is whole: go on behind it.
        case accept
        /// The journal ends before this seq; nothing is there.
        case end
        /// The journal ends before this seq; what is there was torn by the crash and never acknowledged by this disk.
        case cutTail
        /// The batch was durable and cannot be read.
        case damaged
    }

    /// The decision for the next batch.
    public static func step(_ found: Observation) -> Step {
        if found.header == .expected, found.body == .intact {
            return found.entry == .contradicting ? .damaged : .accept
        }
        if found.entry != .absent || found.later == .proves || found.superblockProves { return .damaged }
        if found.header == .expected || found.later == .unproved { return .cutTail }
        return .end
    }

    /// The superblocks together.
    public enum SuperblockFinding: Sendable, Hashable, CaseIterable {
        case agreed
        /// No two of the four are valid and equal.
        case disagree
        case otherMirror
        case otherVersion
        case wrongSize
    }

    /// Whether the other node answers.
    public enum Company: Sendable, Hashable, CaseIterable {
        case alone
        case withPeer
    }

    public enum Outcome: Sendable, Hashable, CaseIterable {
        /// Every batch is there.
        case intact
        /// As `intact`, after a tail that nobody was promised has been cut.
        case tailCut
        /// Ask the other node for the damaged range, then decide again.
        case fetch
        /// Do not serve: acknowledged records may be missing. Say which.
        case refusePrimary
        /// Do not open the journal at all.
        case refuse
    }

    /// The outcome for the journal.
    /// - Parameters:
    ///   - lastStep: where the walk over the batches ended, when no batch was damaged.
    ///   - anyDamage: some batch on the way was damaged.
    ///   - incomplete: a resynchronisation had begun and was not complete.
    public static func outcome(
        superblocks: SuperblockFinding, anyDamage: Bool, lastStep: Step, incomplete: Bool, company: Company
    ) -> Outcome {
        guard superblocks == .agreed else { return .refuse }
        if anyDamage || lastStep == .damaged { return company == .withPeer ? .fetch : .refusePrimary }
        // The journal is whole, but the plain files below it are a mixture: only the other node can mend that.
        if incomplete { return company == .withPeer ? .fetch : .refusePrimary }
        return lastStep == .cutTail ? .tailCut : .intact
    }
}
