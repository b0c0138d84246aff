import Format
import Fuse
import Glibc
import Journal
import Logging
import Replication
import Ring
import Tree

/// The mirror's one order on this node: gathers changes into batches (primary) or takes them from the other node
/// (follower), puts them into the journal, counts who holds what, answers the application and hands over to the plain
/// files what is on every in-sync disk. Confined to the data thread.
///
/// ```
///  append ─▶ open batch ─▶ close ─┬─▶ journal (this disk) ──▶ durable ─┐
///                                 └─▶ recent ─▶ PeerLink ◀── ack ──────┴─▶ PrimaryLog.levels
///  follower: receive ─▶ journal ─▶ ack                                       │
///                                                     answers ◀──────────────┤
///                                     plain files (Applier) ◀── committed ───┘
/// ```
final class MirrorLog {
    enum Role: Sendable, Equatable {
        /// Neither gives out seqs nor follows anyone.
        case idle
        case following
        case primary
    }

    /// Batches of this node whose own journal write has not finished: a lone write is shipped at once, a crowd shares
    /// the next flush. A few keep the disk busy while the next one is gathered, and keep one writer that does not wait
    /// for the disk from waiting for it all the same.
    static let journalWritesInFlight = 4
    /// Batches kept in memory for a follower that is being brought up to date; beyond this it reads from the journal.
    static let recentBytesForCatchUp = 16 << 20

    let node: NodeID
    let reactor: Reactor
    let journal: Journal
    let applier: Applier
    let arena: Arena
    let logger: Logger
    let strict: Bool

    private(set) var role = Role.idle
    private(set) var epoch: Epoch
    private(set) var core: PrimaryLog
    private(set) var lastChain: UInt64
    /// On every in-sync disk, as far as this node knows.
    private(set) var committed: Seq
    private(set) var applied: Seq
    /// When the last applied record was written, ns since 1970; nil when this process does not know.
    var appliedTime: Int64?
    private var handedOver: [(last: Seq, closedAt: Int64)] = []
    /// This node's copy is incomplete: images are meant for it.
    var isBehind = false {
        didSet { if role != .primary { applier.role = followerRole } }
    }
    private var followerRole: ApplyRole { isBehind ? .behind : .secondary }
    /// Images of directories in several records, which a checkpoint must not part.
    var imageParts = ImageParts()
    /// The highest record that this process has answered for, as primary.
    private(set) var acknowledged = Seq.zero
    private var open = OpenBatch()
    /// Accepted, with seqs, and waiting for room in the journal.
    private var journalQueue: [Batch] = []
    private var isListingPlanned = false
    /// When the last batch went to the journal (boot clock, ns).
    private var lastTaken: UInt64 = 0
    /// Accepted batches that have not gone to the plain files.
    private(set) var unapplied: [Batch] = []
    /// Batches for the follower, oldest first.
    private(set) var recent: [Batch] = []
    private var recentBytes = 0

    private var memoryWaiters = SeqQueue<(AckOutcome) -> Void>()
    private var diskWaiters = SeqQueue<(AckOutcome) -> Void>()
    /// Wait for the low watermark: a record counts as applied when every one before it is too.
    private var applyWaiters = SeqQueue<(AckOutcome) -> Void>()
    /// The same without a hurry: nobody wakes the appliers for them.
    private var settleWaiters = SeqQueue<(AckOutcome) -> Void>()
    private var isHandOverPlanned = false
    /// Boot clock, ns.
    private var lastHandOver: UInt64 = 0
    /// The moment (boot clock, ns) until which this node may answer. Checked before every answer: a process that slept
    /// past it finds acknowledgements in its sockets and must not pass them on.
    private var leaseUntil: UInt64 = 0
    /// nil until this process has served.
    private var fileIDs: FileIDAllocator?
    private(set) var statistics = LogStatistics()
    var space = SpaceLedger()

    /// Answers to writes go up to here, however far the levels are: the application is being slowed. nil: no limit.
    var answerLimit: Seq? {
        didSet { if answerLimit != oldValue { answer() } }
    }
    /// Nothing is accepted now: the journal would overwrite what the other node still needs.
    var isHeld = false {
        didSet { if oldValue, !isHeld { roomAppeared() } }
    }

    // Set by the data plane.
    var onRoom: (() -> Void)?
    /// A batch was closed: the peer link may send.
    var onBatch: ((Batch) -> Void)?
    /// Levels, durable or applied seq have moved.
    var onProgress: (() -> Void)?
    var onFailure: ((MirrorFailure) -> Void)?
    /// A record found no room in the plain files; it is tried again when somebody says so.
    var onFull: ((Seq, TreeError) -> Void)?
    /// Hears of every batch as it is closed or received.
    var onTaken: ((Batch) -> Void)?
    /// Hears of every change the application makes (length: of a write's payload), while the files are compared.
    var onLogged: ((Seq, RecordBody, _ length: Int) -> Void)?

    init(
        node: NodeID, reactor: Reactor, journal: Journal, applier: Applier, arena: Arena, strict: Bool,
        committed: Seq, logger: Logger
    ) {
        self.node = node
        self.reactor = reactor
        self.journal = journal
        self.applier = applier
        self.arena = arena
        self.strict = strict
        self.logger = logger
        self.committed = committed
        applied = committed
        epoch = journal.lastEpoch
        lastChain = journal.lastChain
        core = PrimaryLog(
            node: node, last: journal.lastSeq, ownDurable: journal.durableSeq, committed: committed)
        journal.onDurable = { [unowned self] seq in durableReached(seq) }
        journal.onFailure = { [unowned self] error in onFailure?(.journal(error)) }
        journal.listsWhenIdle = false
        journal.onRoom = { [unowned self] in roomAppeared() }
        applier.onWatermark = { [unowned self] seq in appliedReached(seq) }
        applier.onFailure = { [unowned self] seq, error in
            if error.isOutOfSpace { onFull?(seq, error) } else { onFailure?(.apply(seq, "\(error)")) }
        }
        reactor.beforeSleep { [unowned self] in ship() }
    }

    // MARK: - Roles

    /// Begins a life as primary in `newEpoch`: the first record says so. Everything this node holds must be on its disk
    /// already (inherited records are durable before the epoch that builds on them).
    func becomePrimary(epoch newEpoch: Epoch, inSync: NodeSet, rules: [AckRule], strictlyAfter now: Int64) {
        precondition(core.ownDiskIsComplete, "inherited records are not on disk")
        precondition(newEpoch > journal.lastEpoch, "an epoch is used once")
        let follower = core.follower
        role = .primary
        epoch = newEpoch
        core = PrimaryLog(node: node, last: core.last, ownDurable: core.ownDurable, committed: committed)
        if let follower { core.followerStarted(at: follower.durable) }
        core.setRules(rules)
        applier.role = .primary
        space.restart()
        fileIDs = FileIDAllocator(epoch: newEpoch)
        _ = append(.epochStart(epoch: newEpoch, primary: node, inSync: inSync), time: now)
        ship(force: true)
        progress()
    }

    /// A shrink while serving: the records so far keep the old epoch, an epoch-start record opens the new one.
    func changeEpoch(to newEpoch: Epoch, inSync: NodeSet) {
        precondition(role == .primary && newEpoch > epoch, "an epoch is used once")
        if !open.isEmpty { ship(force: true) }
        epoch = newEpoch
        fileIDs = FileIDAllocator(epoch: newEpoch)
        _ = append(.epochStart(epoch: newEpoch, primary: node, inSync: inSync), time: wallClock())
        ship(force: true)
    }

    func setRules(_ rules: [AckRule]) {
        core.setRules(rules)
        progress()
    }

    /// Stops giving out seqs. Whatever waits for an answer gets `errno`: the other side serves, or the mount is gone.
    func leavePrimary(failing errno: Int32) {
        guard role == .primary else { return }
        if !open.isEmpty { ship(force: true) }
        role = .idle
        core.setRules([])
        leaseUntil = 0
        recent.removeAll()
        recentBytes = 0
        let waiting =
            memoryWaiters.removeAll() + diskWaiters.removeAll() + applyWaiters.removeAll() + settleWaiters.removeAll()
        for handler in waiting { handler(.failed(errno)) }
    }

    func follow() {
        precondition(role != .primary, "a primary does not follow")
        applier.role = followerRole
        role = .following
    }

    /// Follows nobody any more, and gives out no seqs yet.
    func standAside() {
        if role == .following { role = .idle }
    }

    func setLease(until moment: UInt64) {
        leaseUntil = moment
        progress()
    }

    // MARK: - The follower's side

    /// Takes a batch from the source: it must continue this log exactly.
    func receive(_ batch: Batch) throws(MirrorFailure) {
        precondition(role == .following, "batches come to a follower")
        guard batch.firstSeq == core.last.next, batch.header.previousChain == lastChain,
            batch.header.epoch >= journal.lastEpoch
        else {
            throw .protocolViolation(
                "batch \(batch.firstSeq) (epoch \(batch.header.epoch)) does not continue the log, which ends at "
                    + "\(core.last) (epoch \(journal.lastEpoch))")
        }
        take(batch)
        noteCommitted(batch.header.committedSeq)
    }

    /// The source says that everything up to `seq` is on every in-sync disk. It speaks only of what it has sent.
    func noteCommitted(_ seq: Seq) {
        let seq = min(seq, core.last)
        guard role == .following, seq > committed else { return }
        committed = seq
        handOver()
    }

    /// Forgets everything above `seq`; only what was never committed may go. The journal has made the cut durable.
    func wasCut(to seq: Seq, chain: UInt64) {
        precondition(seq >= committed, "a committed record is never cut")
        core = PrimaryLog(node: node, last: seq, ownDurable: seq, committed: committed)
        lastChain = chain
        unapplied.removeAll { $0.lastSeq > seq }
        applier.aheadThrough = min(applier.aheadThrough, seq)
        imageParts.cut(to: seq)
        recent.removeAll()
        recentBytes = 0
    }

    /// Hands over what is committed, at once.
    /// - Returns: whether everything that was handed over is applied.
    func settle() -> Bool {
        handOver(now: true)
        return applier.backlog == 0
    }

    /// The log begins anew at `seq` (a full comparison follows).
    func wasReset(to seq: Seq, chain: UInt64) {
        precondition(applier.backlog == 0, "the old history is still being applied")
        core = PrimaryLog(node: node, last: seq, ownDurable: seq, committed: seq)
        lastChain = chain
        committed = seq
        applied = seq
        applier.reset(applied: seq)
        imageParts = ImageParts()
        handedOver.removeAll()
        unapplied.removeAll()
        recent.removeAll()
        recentBytes = 0
    }

    /// Batches read back at the start: on this disk, not known to be committed.
    /// - Parameter isBehind: this copy is incomplete. To a complete one images mean nothing.
    func adoptTail(_ batches: [Batch], isBehind: Bool) {
        if isBehind { for batch in batches { imageParts.note(batch) } }
        unapplied.append(contentsOf: batches)
    }

    // MARK: - Gathering and shipping

    private func take(_ batch: Batch) {
        lastTaken = reactor.now
        core.appended(through: batch.lastSeq)
        lastChain = batch.header.chain
        unapplied.append(batch)
        onTaken?(batch)
        if isBehind { imageParts.note(batch) }
        statistics.note(batch)
        journalQueue.append(batch)
        writeJournal()
    }

    private func writeJournal() {
        var count = 0
        for batch in journalQueue {
            // An epoch start may use the reserve: without it a full journal could never be emptied.
            let isControl = unsafe batch.payload.isEmpty && batch.records.count <= 2
            guard journal.canAppend(batch.header.diskLength, control: isControl) else { break }
            do {
                try journal.append(batch, control: isControl)
            } catch {
                journalQueue.removeFirst(count)
                onFailure?(.journal(error))
                return
            }
            count += 1
        }
        if count > 0 { journalQueue.removeFirst(count) }
    }

    /// A pause of so long counts as idle: long against one write, short against the time in which a power cut that also
    /// rots the very last batches could matter.
    static let journalIdleMilliseconds = 5

    /// Entries of the header ring wait for a pause; see `Journal.listsWhenIdle`.
    private func listLater() {
        guard !isListingPlanned else { return }
        isListingPlanned = true
        _ = reactor.after(milliseconds: MirrorLog.journalIdleMilliseconds) { [self] in
            isListingPlanned = false
            let pause = UInt64(MirrorLog.journalIdleMilliseconds) * 1_000_000
            if journal.batchesInFlight == 0, reactor.now >= lastTaken + pause {
                journal.listIdle()
            } else {
                listLater()
            }
        }
    }

    private func roomAppeared() {
        writeJournal()
        ship()
        onRoom?()
        onProgress?()
    }

    /// Batches that wait for room in the journal.
    var queued: [Batch] { journalQueue }

    /// Forgets queued batches above `seq`: the journal has never seen them.
    /// - Returns: whether there were any.
    @discardableResult
    func dropQueued(above seq: Seq = .zero) -> Bool {
        let before = journalQueue.count
        journalQueue.removeAll { $0.firstSeq > seq }
        return journalQueue.count < before
    }

    /// Whether more images are about to come. Nobody waits for one: so many go together, or each batch of a few would cost
    /// a flush in both rooms and a round trip.
    var awaitsImages: (() -> Bool)?
    static let imageBatchBytes = 256 << 10
    /// For so long at most, about: what they make room for, or let go on, is not held up by a read that hangs.
    static let imageBatchNanoseconds: UInt64 = 20_000_000
    private var gatheringSince: UInt64?

    /// Closes the open batch if the way is free. Runs at the end of every turn of the loop.
    private func ship(force: Bool = false) {
        guard role == .primary, !open.isEmpty else { return }
        guard force || open.isFull || journalQueue.isEmpty && isWorthShipping() else { return }
        gatheringSince = nil
        let batch = open.close(
            arena: arena, epoch: epoch, mirror: journal.mirror, firstSeq: core.last.next, previousChain: lastChain,
            committedSeq: committed, closedAt: wallClock())
        take(batch)
        if core.follower != nil {
            recent.append(batch)
            recentBytes += batch.header.diskLength
            trimRecent()
        }
        onBatch?(batch)
    }

    /// Whether the open batch goes to the journal now: always when nothing is under way there, and beside others when it
    /// is large enough to be worth a flush of its own. Without that a crowd of writers drifts apart into batches of one
    /// record, each with the price of a flush and a round trip.
    private func isWorthShipping() -> Bool {
        if open.changes == 0, open.byteCount < MirrorLog.imageBatchBytes, awaitsImages?() ?? false {
            let since = gatheringSince ?? reactor.now
            gatheringSince = since
            guard reactor.now > since + MirrorLog.imageBatchNanoseconds else { return false }
        }
        let batches = journal.batchesInFlight
        let recordsUnderWay = Int(core.last.rawValue - core.ownDurable.rawValue)
        return batches == 0 || batches < MirrorLog.journalWritesInFlight && 2 * open.count >= recordsUnderWay
    }

    /// Drops what the follower has been sent, and, while it is only catching up, what it can read from the journal.
    func trimRecent() {
        guard let follower = core.follower else {
            recent.removeAll()
            recentBytes = 0
            return
        }
        var count = 0
        for batch in recent {
            let isSent = batch.lastSeq <= follower.sent
            let canBeReadBack = recentBytes > MirrorLog.recentBytesForCatchUp && batch.lastSeq <= core.ownDurable
            guard isSent || canBeReadBack else { break }
            recentBytes -= batch.header.diskLength
            count += 1
        }
        if count > 0 { recent.removeFirst(count) }
    }

    // MARK: - Progress

    private func durableReached(_ seq: Seq) {
        listLater()
        guard seq > core.ownDurable, seq <= core.last else { return }
        core.durable(through: seq)
        progress()
        ship()
    }

    func acknowledged(_ acknowledgement: Acknowledgement) throws(AckError) {
        try core.acknowledged(
            received: acknowledgement.received, durable: acknowledgement.durable, applied: acknowledgement.applied)
        space.setPeer(acknowledgement.room)
        progress()
    }

    func followerStarted(at seq: Seq) {
        core.followerStarted(at: seq)
        progress()
    }
    func followerLost() {
        core.followerLost()
        space.setPeer(nil)
        trimRecent()
    }
    func sent(through seq: Seq) { core.sent(through: seq) }

    private func progress() {
        if role == .primary {
            if core.levels.disk > committed { committed = core.levels.disk }
            answer()
        }
        // On a follower: what was known to be committed before it was on this disk.
        handOver()
        onProgress?()
    }

    /// Committed records wait so long, or for so many others, before the appliers are woken for them, unless somebody
    /// waits for the plain files: a wake-up for each write would cost the application more than the write itself. The
    /// time is looked at when the log moves anyway; the timer, a wake-up of its own, is for the last ones before a pause.
    var handOverNanoseconds: UInt64 = 8_000_000
    var handOverTimerMilliseconds = 10
    static let handOverRecords = 64
    static let handOverBytes = 1 << 20

    /// The same is not worth waiting for when a resynchronisation ends with it.
    var handsOverAtOnce = false {
        didSet { if handsOverAtOnce { handOver() } }
    }

    private func handOver(now: Bool = false) {
        // Nothing reaches the plain files before it is on every in-sync disk, this one included.
        let reached = min(committed, core.ownDurable)
        var count = 0
        var records = 0
        var bytes = 0
        while count < unapplied.count, unapplied[count].lastSeq <= reached {
            records += unapplied[count].records.count
            bytes += unapplied[count].header.diskLength
            count += 1
        }
        guard count > 0 else { return }
        let time = reactor.now
        guard
            now || handsOverAtOnce || !applyWaiters.isEmpty || records >= MirrorLog.handOverRecords
                || bytes >= MirrorLog.handOverBytes || time >= lastHandOver + handOverNanoseconds
        else { return handOverLater() }
        lastHandOver = time
        for batch in unapplied[..<count] { handedOver.append((batch.lastSeq, batch.header.closedAt)) }
        applier.submit(unapplied[..<count])
        unapplied.removeFirst(count)
    }

    private func handOverLater() {
        guard !isHandOverPlanned else { return }
        isHandOverPlanned = true
        _ = reactor.after(milliseconds: handOverTimerMilliseconds) { [self] in
            isHandOverPlanned = false
            handOver(now: true)
        }
    }

    var mayAnswer: Bool { role == .primary && reactor.now < leaseUntil }

    private func paced(_ level: Seq) -> Seq { answerLimit.map { min(level, $0) } ?? level }

    private func answer() {
        guard mayAnswer else { return }
        acknowledged = max(acknowledged, paced(strict ? core.levels.disk : core.levels.memory))
        while let handler = diskWaiters.next(through: paced(core.levels.disk)) { handler(.done) }
        while let handler = memoryWaiters.next(through: paced(core.levels.memory)) { handler(.done) }
        while let handler = applyWaiters.next(through: applied) { handler(.done) }
        while let handler = settleWaiters.next(through: applied) { handler(.done) }
    }

    private func appliedReached(_ seq: Seq) {
        guard seq > applied else { return }
        applied = seq
        if let first = handedOver.firstIndex(where: { $0.last > seq }) {
            if first > 0 { appliedTime = handedOver[first - 1].closedAt }
            handedOver.removeFirst(first)
        } else if let last = handedOver.last {
            appliedTime = last.closedAt
            handedOver.removeAll(keepingCapacity: true)
        }
        answer()
        onProgress?()
        onRoom?()
    }

    // MARK: - Space

    /// Space kept free on both nodes: an apply must not fail for want of it.
    static let reservedSpaceBytes: Int64 = 64 << 20
    /// What needs no space of its own (overwriting, attributes) goes on into the reserve, down to here: a file system may
    /// need a little for its own records. Removing and shortening always go on: they are how a full disk is mended.
    static let lastSpaceBytes: Int64 = 1 << 20
}

extension MirrorLog: ChangeLog {
    func payloadPlace() -> UnsafeMutableRawBufferPointer? {
        let longest = RecordLimits.payloadBytes
        if open.isFull { ship(force: true) }
        guard !isHeld, journalQueue.isEmpty, journal.canAppend(BatchLimits.diskBytes) else { return nil }
        if let place = unsafe open.payloadPlace(bytes: longest, in: arena) {
            return unsafe UnsafeMutableRawBufferPointer(start: place, count: longest)
        }
        // The end of the arena: what is gathered goes, the next batch begins at its start.
        guard !open.isEmpty else { return nil }
        ship(force: true)
        guard let place = unsafe open.payloadPlace(bytes: longest, in: arena) else { return nil }
        return unsafe UnsafeMutableRawBufferPointer(start: place, count: longest)
    }

    func appendWrite(file: FileID, offset: UInt64, length: Int, time: Int64) -> Seq {
        precondition(role == .primary, "only a primary gives out seqs")
        open.addWrite(file: file, offset: offset, length: length, time: time)
        onLogged?(core.last + open.count, .write(file: file, offset: offset), length)
        return core.last + open.count
    }

    func append(_ body: RecordBody, time: Int64) -> Seq {
        precondition(role == .primary, "only a primary gives out seqs")
        if open.isFull { ship(force: true) }
        open.add(body, time: time)
        onLogged?(core.last + open.count, body, 0)
        return core.last + open.count
    }

    /// Begins a comparison: the records so far are closed, and the first one behind them says that images follow, so
    /// that the follower applies nothing of what comes as if its files were the mirror already.
    func beginImages(number: UInt64) -> (base: Seq, chain: UInt64) {
        if !open.isEmpty { ship(force: true) }
        let base = core.last
        let chain = lastChain
        _ = appendImage(.imageStart(number: number), time: wallClock())
        return (base, chain)
    }

    /// Whether images may be added: memory and journal have room, and nothing waits for it.
    var hasRoomForImages: Bool { unsafe payloadPlace() != nil }

    /// Adds a record of a resynchronisation: a copy of what this node already has.
    func appendImage(_ body: RecordBody, time: Int64) -> Seq {
        precondition(role == .primary, "only a primary gives out seqs")
        if open.isFull { ship(force: true) }
        open.add(body, time: time, isImage: true)
        return core.last + open.count
    }

    /// Adds image data; nil when memory is used up for now.
    func appendImageWrite(file: FileID, offset: UInt64, bytes: UnsafeRawBufferPointer, time: Int64) -> Seq? {
        precondition(bytes.count <= RecordLimits.payloadBytes, "an image write is one payload")
        guard let place = unsafe payloadPlace() else { return nil }
        unsafe place.copyMemory(from: bytes)
        open.addWrite(file: file, offset: offset, length: bytes.count, time: time, isImage: true)
        return core.last + open.count
    }

    /// Adds a record of a verification: no change of the application, so `onLogged` does not hear of it.
    func appendMark(_ body: RecordBody) -> Seq {
        precondition(role == .primary, "only a primary gives out seqs")
        if open.isFull { ship(force: true) }
        open.add(body, time: wallClock())
        return core.last + open.count
    }

    /// Adds bytes that a verification found right; false when memory is used up for now.
    func appendRepair(file: FileID, offset: UInt64, bytes: UnsafeRawBufferPointer, time: Int64) -> Bool {
        precondition(bytes.count <= RecordLimits.payloadBytes, "a repair is one payload")
        guard let place = unsafe payloadPlace() else { return false }
        unsafe place.copyMemory(from: bytes)
        open.addPayload(.repair(file: file, offset: offset), length: bytes.count, time: time)
        return true
    }

    func when(_ seq: Seq, _ level: AckLevel, _ handler: @escaping (AckOutcome) -> Void) {
        guard role == .primary else { return handler(.failed(EIO)) }
        switch level {
        case .write where !strict:
            if mayAnswer && seq <= paced(core.levels.memory) { return handler(.done) }
            memoryWaiters.insert(handler, at: seq)
        case .write, .sync:
            if mayAnswer && seq <= paced(core.levels.disk) { return handler(.done) }
            diskWaiters.insert(handler, at: seq)
        case .applied:
            if mayAnswer && seq <= applied { return handler(.done) }
            applyWaiters.insert(handler, at: seq)
            handOver()
        case .settled:
            if mayAnswer && seq <= applied { return handler(.done) }
            settleWaiters.insert(handler, at: seq)
        }
    }

    var mayServe: Bool { mayAnswer }

    /// The last seq given out, those of the open batch included.
    var lastSeq: Seq { core.last + open.count }

    func allocateFileID() -> FileID {
        guard let file = fileIDs?.allocate() else {
            fatalError("a trillion files were created in one epoch: restart the mirror to begin another")
        }
        return file
    }
    func wallClock() -> Int64 {
        var time = timespec()
        unsafe clock_gettime(CLOCK_REALTIME, &time)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    }

    func spaceFor(bytes: Int, files: Int) -> Int32? {
        let kept = bytes > 0 ? MirrorLog.reservedSpaceBytes : MirrorLog.lastSpaceBytes
        let growth = SpaceLedger.Amount(bytes: Int64(bytes), files: Int64(files))
        return space.grant(growth, for: lastSeq.next, reserve: kept) ? nil : ENOSPC
    }

    func localSpaceFor(bytes: Int) -> Int32? {
        space.grantLocal(bytes: Int64(bytes), reserve: MirrorLog.reservedSpaceBytes) ? nil : ENOSPC
    }

    func localDone(bytes: Int) { space.localEnded += Int64(bytes) }
}

/// Why a node can no longer take part as it did.
enum MirrorFailure: Error, CustomStringConvertible {
    case journal(JournalError)
    case apply(Seq, String)
    case protocolViolation(String)
    /// A file or directory whose disk gives no answer while the other node could serve.
    case hangs(String, seconds: UInt64)

    var description: String {
        switch self {
        case .journal(let error): "journal: \(error)"
        case .apply(let seq, let text): "record \(seq) cannot be applied to the plain files: \(text)"
        case .protocolViolation(let text): text
        case .hangs(let path, let seconds):
            "the disk of \(path) hangs: it has done nothing for \(seconds) s, and the other node has everything. Mend the "
                + "disk: when it has answered for half a minute and the other node serves alone, this node begins anew"
        }
    }
}
