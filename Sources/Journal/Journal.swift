public import Format
public import Logging

/// The write journal of one mirror on one node: every change is here, in order, before anything else happens to it.
///
/// ```
///                     +------+  cut, reset, heal   +------+
///   open (recovery) ->| open |-------------------->| busy |   busy: nothing is accepted until the cut is durable
///        |            |      |<--------------------|      |
///        |            +------+      durable        +------+
///        |               |  a write failed             |
///        v               v                             v
///    +---------+      +--------------------------------------+
///    | damaged |----->| failed: for good, until a new start  |
///    +---------+      +--------------------------------------+
///        | appends fill the hole; when it is closed: heal, open. A cut or a reset ends it too, and nothing else does:
///        | not one start more
/// ```
///
/// Everything here happens on one thread, that of the storage's reactor. A batch goes down in one write, several are in
/// flight, and they may complete in any order: `durableSeq` is the end of the unbroken run. A batch is acknowledged on
/// its body. Its entry in the header ring follows when the disk has nothing better to do, and only when every earlier
/// batch is durable too; that order is what makes an entry a proof (see `RecoveryTable`).
///
/// A write error is never retried: after a failed write nobody knows what is on the disk, and a retry that succeeds
/// proves nothing about the first attempt. The journal says `onFailure` once and accepts nothing more.
public final class Journal {
    /// What recovery found when this journal was opened.
    public let report: RecoveryReport
    public let layout: JournalLayout
    public let mirror: MirrorID
    public let logger: Logger

    /// Called when `durableSeq` has grown.
    public var onDurable: ((Seq) -> Void)?
    /// Called once, when a write has failed. Nothing in flight will complete any more.
    public var onFailure: ((JournalError) -> Void)?
    /// Called when `canAppend` may answer yes after it answered no.
    public var onRoom: (() -> Void)?
    /// Called when the last damaged batch has been replaced and the journal is whole and open again.
    public var onRepaired: (() -> Void)?

    public enum State: Sendable, Hashable {
        case open
        /// A cut, reset or heal is being made durable.
        case busy
        case failed(JournalError)
        case closed
    }
    public internal(set) var state = State.open

    let storage: any JournalStorage
    var index = BatchIndex()
    /// Whole batches behind damage; they join when what is missing has been appended.
    var suspended: [IndexEntry] = []
    /// The last seq that recovery found damaged and that has not been replaced.
    var damagedThrough: Seq?
    /// Behind the last batch.
    var head: RingAddress
    /// Behind the batch at the durable checkpoint: nothing from here on is overwritten.
    var checkpointAddress: RingAddress

    public internal(set) var lastSeq: Seq
    public internal(set) var lastChain: UInt64
    /// Everything up to here is on this disk, without a gap.
    public internal(set) var durableSeq: Seq
    /// As `noteCommitted` said, or as recovery found.
    public internal(set) var committedSeq: Seq
    /// Batches up to here have their entry in the header ring.
    var listedSeq: Seq
    var listedEnd: RingAddress
    /// Header-ring blocks being written.
    var listing = 0
    var listingThrough = Seq.zero

    /// One batch whose body write has not become part of the unbroken run.
    final class InFlight {
        let batch: Batch
        let entry: IndexEntry
        /// What is durable with it: more than its own last seq when it closes a hole.
        let through: Seq
        let completion: ((Seq) -> Void)?
        var isDone = false
        init(batch: Batch, entry: IndexEntry, through: Seq, completion: ((Seq) -> Void)?) {
            self.batch = batch
            self.entry = entry
            self.through = through
            self.completion = completion
        }
    }
    var inFlight: [InFlight] = []
    var refusedForRoom = false

    /// As it is on the disk, and as the next write will make it.
    public internal(set) var superblock: Superblock
    var wanted: Superblock
    var superblockWriting = false
    /// Writes that the disk has taken, of any kind; only its changes mean something.
    public internal(set) var writesEnded: UInt64 = 0
    var superblockWaiters: [() -> Void] = []
    var highestGeneration: UInt64
    /// Waits until nothing is in flight, then runs alone.
    var exclusive: (() -> Void)?

    /// Whether entries of the header ring are written the moment nothing else is in flight. A writer that waits for each
    /// of its writes leaves such a moment after every one, and the next write would queue behind the entry on the disk;
    /// the node therefore clears this and calls `listIdle` when there was a real pause.
    public var listsWhenIdle = true
    var isListingIdle = false

    /// What recovery saw, until it is settled.
    private var unsettled: JournalScan?
    var isSettled: Bool { unsettled == nil }

    /// Opens a journal, recovers it (blocking: it reads everything above the checkpoint), and makes what recovery
    /// decided durable. `report` says what that was; a damaged journal opens too, but only to be repaired.
    ///
    /// - Parameter settles: false: nothing is written until `settle` is called.
    /// - Throws: when it must not be opened at all. Then nothing has been written.
    public init(
        storage: any JournalStorage, mirror: MirrorID, node: NodeID, settles: Bool = true,
        logger: Logger = Logger(label: "lockstep.journal")
    ) throws(JournalError) {
        let map = try JournalMap(image: storage, mirror: mirror)
        let scan = map.scan
        guard scan.superblock.node == node else {
            throw JournalError(
                .otherNode,
                "journal \(storage.name) belongs to node \(scan.superblock.node) of this mirror, not to node \(node). "
                    + "Was it copied from the other machine? Make a new journal and let the other node fill it.")
        }
        self.storage = storage
        self.mirror = mirror
        self.logger = logger
        report = map.report
        layout = scan.layout
        superblock = scan.superblock
        wanted = scan.superblock
        wanted.epochs = map.report.epochs
        highestGeneration = map.superblocks.highestGeneration
        for entry in scan.behind + scan.whole { index.append(entry) }
        suspended = scan.suspended
        damagedThrough = scan.damage.map(\.last).max()
        head = scan.wholeEnd
        checkpointAddress = scan.start
        lastSeq = scan.lastSeq
        lastChain = scan.lastChain
        durableSeq = scan.lastSeq
        committedSeq = min(scan.knownCommittedSeq, scan.lastSeq)
        listedSeq = scan.lastSeq
        listedEnd = scan.wholeEnd
        // From now on every superblock says it, whatever else there is that proves it: see `nextSuperblock`.
        if isDamaged { wanted.durableSeq = max(wanted.durableSeq, scan.provenSeq) }
        unsettled = scan
        if settles { try settle() }
    }

    /// Begins a life of this journal: makes the decisions of recovery durable. CALL IT before anything is written but the
    /// marks of a misfit, and AFTER the plain files were looked at. Each start counts the life on, and a journal that was
    /// put back is known by its life: starts that ended before would count it on until it fits again.
    public func settle() throws(JournalError) {
        guard let scan = unsettled else { preconditionFailure("a start is settled once") }
        unsettled = nil
        if isDamaged {
            // Not a cut: that would void the entries and the batches which say what is missing, and the next start would
            // find a journal that never had it. `durableSeq` has taken over what a clean stop proves.
            wanted.completeThrough = nil
            wanted.incarnation = wanted.incarnation.next
            return try writeSuperblockNow()
        }
        if report.wasStoppedCleanly, wanted.completeThrough != nil {
            if report.superblockCopies < JournalLayout.superblockCopies { try writeSuperblockNow() }
            return
        }
        // Every start that was not preceded by a clean stop begins a new incarnation: a batch that was in flight when
        // the last process died, and lies beyond the end, can then never be taken for damage in the middle.
        wanted.cut(to: lastSeq)
        try writeSuperblockNow()
        let zeros = Pages(count: JournalLayout.pageBytes)
        for address in scan.stale {
            try unsafe storage.writeNow(zeros.constBytes, at: layout.fileOffset(address))
        }
        let blocks = Set(scan.whole.filter { !scan.isListed($0) }.map(headerBlock(of:)))
        for block in blocks.sorted() {
            let bytes = headerBlockBytes(block, through: lastSeq)
            try unsafe storage.writeNow(bytes.constBytes, at: layout.headerBlockOffset(block))
        }
    }

    private func writeSuperblockNow() throws(JournalError) {
        let next = nextSuperblock()
        for copy in 0..<JournalLayout.superblockCopies {
            let bytes = Pages(next.encoded(copy: copy))
            try unsafe storage.writeNow(bytes.constBytes, at: layout.superblockOffset(copy))
        }
        superblock = next
    }

    // MARK: what is here

    public var checkpointSeq: Seq { superblock.checkpointSeq }
    /// Part of the journal was durable and cannot be read; appends must first fill the hole.
    public var isDamaged: Bool { damagedThrough != nil }
    /// A resynchronisation has begun and is not complete.
    public var isIncomplete: Bool { wanted.isIncomplete }
    /// The resynchronisation that made this copy incomplete, or was the last to do so; 0: not known.
    public var resyncNumber: UInt64 { wanted.resyncNumber }
    /// This copy cannot be continued by the resynchronisation that made it incomplete.
    public func forgetResync() { wanted.resyncNumber = 0 }
    /// Drawn when this journal was made: a copy of it has the same, another journal another.
    public var instance: UInt64 { superblock.nodeInstance }
    /// As it is on the disk.
    public var incarnation: Incarnation { superblock.incarnation }

    /// The plain files do not belong to this journal: notes, on the disk, that this copy does not count. Blocking, before
    /// anything else happens to the journal, so that a crash right behind it forgets nothing.
    ///
    /// - Parameter life: of the journal as it was found, if it is the files that are wrong and not the journal: then the
    ///   right ones end the misfit. A copy that a resynchronisation has left a mixture stays one, whatever files there are.
    public func setMisfitNow(life: Incarnation?) throws(JournalError) {
        precondition(!superblockWriting && inFlight.isEmpty, "the journal is in use already")
        wanted.misfitLife = wanted.isIncomplete ? nil : life
        wanted.isIncomplete = true
        wanted.resyncNumber = 0
        wanted.completeThrough = nil
        try writeSuperblockNow()
    }

    /// The plain files that belong to this journal are back: the copy counts again. Blocking, like `setMisfitNow`.
    public func endMisfitNow() throws(JournalError) {
        precondition(!superblockWriting && inFlight.isEmpty && wanted.misfitLife != nil, "no misfit to end")
        wanted.misfitLife = nil
        wanted.isIncomplete = false
        try writeSuperblockNow()
    }

    /// As `forgetMisfit`, blocking.
    public func forgetMisfitNow() throws(JournalError) {
        precondition(!superblockWriting && inFlight.isEmpty, "the journal is in use already")
        wanted.misfitLife = nil
        try writeSuperblockNow()
    }

    /// Set: incomplete, and the plain files that belong to the journal as it was in that life would make it complete.
    public var misfitLife: Incarnation? { wanted.misfitLife }

    /// The last record that was ever on this disk, readable or not.
    public var lastKnownSeq: Seq { max(lastSeq, damagedThrough ?? .zero, suspended.map(\.lastSeq).max() ?? .zero) }
    public var epochs: EpochHistory { wanted.epochs }
    public var lastEpoch: Epoch { index.last?.epoch ?? wanted.epochs.epoch(of: lastSeq) ?? .none }
    /// The first seq that can be read; `lastSeq.next` when none can.
    public var oldestSeq: Seq { index.first?.firstSeq ?? lastSeq.next }
    public var batchesInFlight: Int { inFlight.count }

    /// Bytes for further batches, after what is reserved for control records.
    public var freeBytes: Int {
        max(0, layout.bodyBytes - JournalLimits.reserveBytes - (head - checkpointAddress))
    }
    /// Bytes in the body ring.
    public var capacityBytes: Int { layout.bodyBytes }

    /// Bytes of the body ring from the first batch that reaches above `seq` to the end.
    public func bytes(above seq: Seq) -> Int {
        let position = index.position(ofFirstAbove: seq)
        return position < index.count ? head - index[position].address : 0
    }

    /// The chain at a seq where a batch ends; nil when none ends there or it has been overwritten.
    public func chain(at seq: Seq) -> UInt64? {
        if seq == lastSeq { return lastChain }
        if seq == superblock.checkpointSeq { return superblock.checkpointChain }
        if let first = index.first, seq == first.firstSeq.previous { return first.previousChain }
        let position = index.position(ofFirstAbove: seq)
        guard position > 0, position <= index.count, index[position - 1].lastSeq == seq else { return nil }
        return index[position - 1].chain
    }

    /// The last end of a batch at or below `seq`, for walking back; nil when the journal does not reach there.
    public func boundary(atOrBelow seq: Seq) -> (seq: Seq, chain: UInt64)? {
        if seq >= lastSeq { return (lastSeq, lastChain) }
        let position = index.position(ofFirstAbove: seq)
        if position > 0 { return (index[position - 1].lastSeq, index[position - 1].chain) }
        guard let first = index.first, first.firstSeq.previous <= seq else { return nil }
        return (first.firstSeq.previous, first.previousChain)
    }

    /// Where the durable batches from the one that holds `from` on lie, up to `limitBytes` (at least one batch).
    /// Nil when `from` is no longer (or not yet) there.
    public func plan(from: Seq, limitBytes: Int) -> [BatchLocation]? {
        guard from >= oldestSeq, from <= durableSeq else { return nil }
        var position = index.position(ofFirstAbove: from.previous)
        var plan: [BatchLocation] = []
        var bytes = 0
        while position < index.count, index[position].lastSeq <= durableSeq {
            let location = BatchLocation(index[position], layout: layout)
            bytes += location.length
            if !plan.isEmpty, bytes > limitBytes { break }
            plan.append(location)
            position += 1
        }
        return plan.isEmpty ? nil : plan
    }

    /// Reads batches on this thread, blocking: for replay at start and for tests. While serving use `plan` and a
    /// `JournalReader` on a worker.
    public func read(from: Seq, limitBytes: Int) throws(JournalError) -> [Batch] {
        guard let plan = plan(from: from, limitBytes: limitBytes) else {
            throw JournalError(.gone, "journal \(storage.name): record \(from) is not there")
        }
        var batches: [Batch] = []
        for location in plan { batches.append(try location.read(from: storage)) }
        return batches
    }

    /// What is known to be committed; goes into later superblocks. The node puts it into the headers of its batches.
    public func noteCommitted(_ seq: Seq) { committedSeq = max(committedSeq, min(seq, lastSeq)) }

    // MARK: failure

    func fail(_ error: JournalError) {
        guard state != .closed else { return }
        if case .failed = state { return }
        state = .failed(error)
        logger.error("journal failed", metadata: ["journal": "\(storage.name)", "error": "\(error)"])
        inFlight = []
        superblockWaiters = []
        exclusive = nil
        onFailure?(error)
    }

    var hasFailed: Bool {
        switch state {
        case .failed, .closed: true
        case .open, .busy: false
        }
    }

    /// Gives up the file and its lock.
    /// - Precondition: nothing is in flight (or the journal has failed).
    public func close() {
        precondition(hasFailed || inFlight.isEmpty && listing == 0 && !superblockWriting, "writes are in flight")
        state = .closed
        storage.close()
    }
}

/// Limits of what a journal keeps going at once.
public enum JournalLimits {
    /// Body writes in flight.
    public static let inFlightBatches = 32
    /// Bytes of them.
    public static let inFlightBytes = 16 << 20
    /// Durable batches whose entry in the header ring has not been written, bytes.
    public static let unlistedBytes = 48 << 20
    /// So many waiting entries are written even while batches are in flight, or so many bytes of batches.
    public static let listBatches = 64
    public static let listBytes = 8 << 20
    /// Kept free for control records (epoch starts, commit notices): a journal filled by data could otherwise never be
    /// emptied. Holds also what is lost at the end of the ring when a long batch does not fit there.
    public static let reserveBytes = (1 << 20) + BatchLimits.diskBytes
}
