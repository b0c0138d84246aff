import Format

/// What the serving node owes the other one while that is not in sync: pure.
///
/// ```
///                 base                     start                        now
///   order   ──────┼────────────────────────┼────────────────────────────┼─▶
///                 │   changed in between   │   changed since            │
///   no resynchronisation yet:              │                            │
///                 └────────────────── since ────────────────────────────┘
///   one has begun at `start`:              │                            │
///                 └─────── owed ───────────┴────────── since ───────────┘
///                   images to be sent        comes as records, in the one order
/// ```
///
/// `since` names everything that records above `sinceBase` changed, so a node that has everything up to there, or
/// more, is made equal with it. `owed` shrinks as the other disk confirms images. From the first such image on it is good
/// only for the node that is being brought back with this number: nobody else has those images.
///
/// Forgotten only when the other node is recorded in sync (promise 6): until then a flag, a handshake or a lost message
/// changes nothing.
public struct Debt: Sendable {
    /// The resynchronisation under way, or broken off.
    public struct Owed: Sendable {
        /// Tells it from others; the other node's journal carries it while its copy is incomplete.
        public var number: UInt64
        /// A complete copy that has everything up to here can be brought back with `owed` and `since` together.
        public var base: Seq
        /// An incomplete copy of this number can, if it has everything up to here.
        public var floor: Seq
        /// The other node's log begins behind this record.
        public var start: Seq
        /// The last image whose confirmation was believed: a disk that shows less was put back.
        public var confirmed = Seq.zero
        /// Nothing has been taken out.
        public var isWhole = true
        public var map: DirtyMap
    }

    public private(set) var sinceBase: Seq
    public private(set) var since: DirtyMap
    public private(set) var owed: Owed?

    /// - Parameter base: the other node surely has everything up to here, or this node does not know what is before it.
    public init(base: Seq, budgetBytes: Int = DirtyMap.defaultBudgetBytes) {
        sinceBase = base
        since = DirtyMap(budgetBytes: budgetBytes)
    }

    public var byteCount: Int { since.byteCount + (owed?.map.byteCount ?? 0) }

    // MARK: - Noting

    /// Notes the records of a batch. Those at or below `sinceBase` may be among them: more than needed is harmless.
    public mutating func note(_ batch: Batch) { since.note(batch) }

    /// Adds what was noted apart, while this value was being written to disk.
    public mutating func add(_ map: DirtyMap) { since.formUnion(map) }

    // MARK: - Who can be brought back, and how

    /// What the decision needs to know; the maps themselves are not looked at.
    public struct Terms: Sendable, Hashable {
        public var sinceBase: Seq
        public var isSinceKnown: Bool
        public var number: UInt64
        public var base: Seq
        public var floor: Seq
        public var start: Seq
        public var confirmed: Seq
        public var isWhole: Bool
        /// Both layers together are known.
        public var isOwedKnown: Bool
    }

    public var terms: Terms {
        let isSinceKnown = !since.isEverything
        return Terms(
            sinceBase: sinceBase, isSinceKnown: isSinceKnown, number: owed?.number ?? 0, base: owed?.base ?? .zero,
            floor: owed?.floor ?? .zero, start: owed?.start ?? .zero, confirmed: owed?.confirmed ?? .zero,
            isWhole: owed?.isWhole ?? false, isOwedKnown: isSinceKnown && owed.map { !$0.map.isEverything } ?? false)
    }

    // MARK: - A resynchronisation

    /// A resynchronisation begins: the other node's log will begin behind `start`, the last record noted, and from there
    /// on it gets records. What it lacks up to there is owed.
    /// - Parameter way: as `Terms.way` decided, never `.resume`.
    public mutating func begin(number: UInt64, start: Seq, way: ReturnWay, common: Seq) {
        var map = since
        switch way {
        case .resume: preconditionFailure("what goes on does not begin")
        case .fresh(withOwed: false):
            owed = Owed(number: number, base: sinceBase, floor: start, start: start, map: map)
        case .fresh(withOwed: true):
            guard let before = owed else { preconditionFailure("nothing is owed") }
            map.formUnion(before.map)
            owed = Owed(number: number, base: before.base, floor: start, start: start, map: map)
        case .again:
            guard var next = owed, next.number == number else { preconditionFailure("another resynchronisation") }
            map.formUnion(next.map)
            next.map = map
            next.floor = common
            next.start = start
            next.isWhole = false
            owed = next
        }
        sinceBase = start
        since = DirtyMap(budgetBytes: map.budgetBytes)
    }

    /// One image, or the images of one object.
    public enum Image: Sendable, Hashable {
        case content(FileID, Range<UInt64>)
        case object(FileID)
        /// A directory; what it made known to the other node is new there no more.
        case directory(FileID, learned: [FileID])
    }

    /// Every record of `image` up to `seq` is on the other node's disk, and on this one's.
    public mutating func confirm(_ image: Image, at seq: Seq) {
        guard let before = owed?.confirmed else { return }
        owed?.isWhole = false
        owed?.confirmed = max(before, seq)
        switch image {
        case .content(let file, let range): owed?.map.forgetContent(of: file, range)
        case .object(let file): owed?.map.forgetObject(file)
        case .directory(let directory, let learned):
            owed?.map.forgetObject(directory)
            for file in learned { owed?.map.becomesKnown(file) }
        }
    }

    // MARK: - Coding

    /// ```
    ///   since base u64, since map, owed u8: 0 no, 1:
    ///   { number, base, floor, start, confirmed u64, whole u8, map }
    /// ```
    public func encode(into writer: inout ByteWriter) {
        writer.put(sinceBase)
        since.encode(into: &writer)
        writer.put(owed != nil)
        guard let owed else { return }
        writer.put(owed.number)
        for seq in [owed.base, owed.floor, owed.start, owed.confirmed] { writer.put(seq) }
        writer.put(owed.isWhole)
        owed.map.encode(into: &writer)
    }

    public init(decoding reader: inout ByteReader) throws(DecodingError) {
        sinceBase = try reader.getSeq()
        since = try DirtyMap(decoding: &reader)
        guard try reader.getBool("owed") else { return }
        let number = try reader.get(UInt64.self, "number")
        let base = try reader.getSeq()
        let floor = try reader.getSeq()
        let start = try reader.getSeq()
        let confirmed = try reader.getSeq()
        let isWhole = try reader.getBool("whole")
        owed = Owed(
            number: number, base: base, floor: floor, start: start, confirmed: confirmed, isWhole: isWhole,
            map: try DirtyMap(decoding: &reader))
        guard number != 0, base <= start, floor <= start, start == sinceBase else {
            throw DecodingError("an impossible debt", at: reader.offset)
        }
    }
}

/// How the other node is brought back with ranges.
public enum ReturnWay: Sendable, Hashable {
    /// Its copy is complete, at an old point. `withOwed`: older than a resynchronisation that it never took part in.
    case fresh(withOwed: Bool)
    /// Its copy is incomplete, and the journal reaches back to its last record: what is owed is sent, and the records.
    case resume
    /// Its copy is incomplete, and the journal does not reach back: what has changed since is owed too.
    case again
}

extension Debt.Terms {
    /// - Parameters:
    ///   - isIncomplete, number: of the other node's copy.
    ///   - common: the last record that both have.
    ///   - oldest: the first record that this node's journal can still give.
    /// - Returns: nil when only a comparison helps.
    public func way(isIncomplete: Bool, number other: UInt64, common: Seq, oldest: Seq) -> ReturnWay? {
        guard isIncomplete else {
            if common >= sinceBase, isSinceKnown { return .fresh(withOwed: false) }
            if number != 0, isWhole, common >= base, isOwedKnown { return .fresh(withOwed: true) }
            return nil
        }
        guard other != 0, other == number, common >= floor, common >= confirmed, isOwedKnown else { return nil }
        return common >= start && common.next >= oldest ? .resume : .again
    }
}
