import CLinux
import Configuration
import Format
import Fuse
import Glibc
import Journal
import Logging
import Quorum
import Replication
import Ring
import Tree

/// What the data side tells the control side.
enum DataReport: Sendable {
    case member(MemberEvent)
    /// The directory is open in this epoch: the application may start.
    case opened(Epoch)
    /// The directory is closed; nothing of this life is answered any more.
    case closed(Quorum.CloseReason)
    /// This node cannot go on with what its disk holds; the text says what to do.
    case broken(String)
    /// This node's copy, which did not count, does now.
    case usable
    /// This node is not brought back, because what it would lose cannot be saved; nil: it is, or need not be.
    case heldBack(String?)
    /// A record waits for room in the plain files; nil: none does.
    case full(String?)
    /// Both disks of a node that is broken because one of them hung have answered for long enough. Said repeatedly.
    case disksAnswer
}

/// The data side of one mirror on one node: log, peer link, plain files and the directory the application sees, put
/// together on one thread. Carries out what the control side decides and reports back; decides nothing about who serves.
///
/// Starting to serve goes through fixed steps, each of which may be the last before a crash; nothing is answered before
/// the last one:
///
/// ```
///  serve(decision) ─▶ own disk complete ─▶ epoch-start record ─▶ it is on every in-sync disk ─▶ plain files have it
///                  (inherited records)                                                          ─▶ mount ─▶ opened
/// ```
final class DataPlane {
    enum Phase: Sendable {
        case idle
        /// Waits for the journal to say what may be missing.
        case stating(Decision)
        /// Waits for the own disk to hold everything inherited.
        case inheriting(Decision)
        /// The epoch-start record is logged; the directory opens when it has been applied.
        case opening(Decision, epochStart: Seq)
        case open(Decision)
        case closing
    }

    static let spaceCheckMilliseconds = 500
    /// What is under way must be on both nodes within this time after the directory was closed.
    static let drainNanoseconds: UInt64 = 30_000_000_000
    /// Between two looks whether the mount is still in its place.
    static let mountLookNanoseconds: UInt64 = 2_000_000_000
    /// A checkpoint begins when so much of the journal lies behind the last one.
    static let checkpointFraction = 4
    static let checkpointIdleMilliseconds = 5_000
    static let debtBytesForIdleCheckpoints = 4 << 20

    let node: NodeID
    let configuration: MirrorConfiguration
    let reactor: Reactor
    let journal: Journal
    let tree: PlainTree
    let log: MirrorLog
    let link: PeerLink
    let keeper: DebtKeeper
    let workers: WorkerPool
    /// For the mount of the directory, one thread; it works when a disk hangs.
    let mounts: WorkerPool
    /// For questions to the disk of the plain files, one thread.
    let questions: WorkerPool
    let logger: Logger
    let report: @Sendable (DataReport) -> Void

    /// Opens the directory for the application. Tests that write to the log themselves open none.
    var mount: (DataPlane) throws -> MirroredDirectory? = { plane in
        try MirroredDirectory(
            reactor: plane.reactor, pool: plane.workers, mountPool: plane.mounts, tree: plane.tree, log: plane.log,
            mountPoint: plane.configuration.path, name: plane.configuration.name, limits: plane.limits,
            logger: plane.logger)
    }
    /// What both rooms can hold, as far as the other node has told since this process started.
    var limits: FileLimits { link.peerLimits.map { link.limits.narrower($0) } ?? link.limits }
    private(set) var phase = Phase.idle
    private(set) var directory: MirroredDirectory?
    private(set) var checkpointRunning = false {
        didSet { if !checkpointRunning, resync != nil { resyncAgain() } }
    }
    var position = PositionReport()
    /// What the marker of the plain files says that fits the journal as it is; nil: nothing, the copy does not count.
    var markedPoint: TreeMarker.Point?
    var journalWatch = StallWatch(seconds: DataPlane.journalStallSeconds)
    var filesWatch = StallWatch(seconds: DataPlane.filesStallSeconds)
    var journalQuestion = DiskQuestion(seconds: DataPlane.journalStallSeconds)
    var filesQuestion = DiskQuestion(seconds: DataPlane.filesStallSeconds)
    var lookedAtDisksAt: UInt64 = 0
    /// What `watchDisks` counts with, in nanoseconds: see there. Not zero, which is when nothing was answered yet.
    var diskClock = DiskQuestion.pauseNanoseconds
    /// This node's votes as they are on its disk, for the marker.
    var votes: (birth: UInt64, starts: UInt64) = (0, 0)
    /// A log that is about to begin anew must not get a checkpoint of the old history.
    var holdsCheckpoints = false
    private var lastCheckpointWant: UInt64 = 0
    private var pendingPolicies: [(token: UInt64, durableThrough: Seq)] = []
    private var policy: [AckRule] = []
    /// How the other node is brought back, or last was.
    var comeback = Comeback()
    /// The other node is almost there: its disk counts for every acknowledgement, so that it can be added.
    private var isAdmitting = false
    /// When the other node was last in sync in this life, what its disk held then.
    private var peerHeldAlone = Seq.zero
    private var reportedCaughtUp = false
    private(set) var draining = false
    private var drainDeadline: UInt64 = 0
    private var lookedForMountAt: UInt64 = 0
    private var isLookingForMount = false
    private(set) var isBroken = false
    /// As long as it is broken for nothing but a disk that hung.
    var recovery: DiskRecovery?
    /// A record that waits for room in the plain files.
    var fullAt: Seq?
    var fullError: TreeError?
    /// Tries in a row that found none although there was room by the file system's own numbers.
    var fullRetries = 0
    /// What the file system said last, whatever is told of it.
    var seenRoom: DiskRoom?
    var isAskingForSpace = false
    private(set) var isStopping = false
    /// The control side has said that there is no lease.
    private(set) var isFrozen = false
    /// Memory or journal space may have become free for the follower's side.
    var onRoom: (() -> Void)?
    private(set) var resync: (any ResyncSession)?
    private(set) lazy var verification = Verification(plane: self)
    private(set) lazy var resyncPacer = ResyncPacer(plane: self)

    init(
        node: NodeID, configuration: MirrorConfiguration, reactor: Reactor, journal: Journal, tree: PlainTree,
        log: MirrorLog, link: PeerLink, keeper: DebtKeeper, workers: WorkerPool, logger: Logger,
        report: @escaping @Sendable (DataReport) -> Void
    ) throws(RingError) {
        self.node = node
        self.configuration = configuration
        self.reactor = reactor
        self.journal = journal
        self.tree = tree
        self.log = log
        self.link = link
        self.keeper = keeper
        self.workers = workers
        mounts = try WorkerPool(threads: 1, name: "mounts")
        questions = try WorkerPool(threads: 1, name: "questions")
        self.logger = logger
        self.report = report
        connect()
    }

    private func connect() {
        log.onTaken = { [unowned self] batch in keeper.note(batch) }
        log.onBatch = { [unowned self] batch in
            resyncPacer.shipped(batch)
            link.pump()
        }
        link.limits = tree.limits
        link.onPeerLimits = { [unowned self] in directory?.limits = limits }
        link.mayReadBack = { [unowned self] in inSyncNow == .both || resyncPacer.mayGoOn }
        link.onReadBack = { [unowned self] bytes in resyncPacer.took(bytes) }
        log.onProgress = { [unowned self] in progressed() }
        log.onFailure = { [unowned self] failure in failed(failure) }
        log.onFull = { [unowned self] seq, error in ranOutOfSpace(seq, error) }
        link.onMerged = { [unowned self] in
            reportPosition()
            report(.member(.merged))
        }
        link.onPeerWasPutBack = { [unowned self] in report(.member(.peerWasPutBack(true))) }
        link.onFollows = { [unowned self] epoch in report(.member(.peerFollows(epoch))) }
        link.onSilent = { [unowned self] failed in
            stopAdmitting()
            report(.member(.peerSilent(failed ? .failed : .linkLost)))
        }
        link.rescue.onHeldBack = { [unowned self] text in report(.heldBack(text)) }
        link.onBack = { [unowned self] in report(.member(.peerBack)) }
        link.onComplete = { [unowned self] in report(.usable) }
        link.onRefused = { [unowned self] reason in logger.error("\(PeerLink.explain(reason))") }
        link.debtTerms = { [unowned self] in keeper.terms }
        link.peerHeld = { [unowned self] in peerHeld }
        // The node that this one follows has everything that this one has.
        link.onFollowing = { [unowned self] in keeper.stopNoting() }
        link.onCompare = { [unowned self] reason in compare(reason) }
        link.onRanges = { [unowned self] common, way in sendRanges(common, way) }
        link.onResyncStart = { [unowned self] start in joinResync(start) }
        link.onResyncMessage = { [unowned self] message in resync?.received(message) }
        verification.connect()
        link.onSessionEnd = { [unowned self] in
            report(.member(.peerWasPutBack(false)))
            verification.interrupted()
            resync?.cancel()
            resync = nil
        }
        _ = reactor.repeating(milliseconds: PeerLink.heartbeatMilliseconds) { [unowned self] in tick() }
        _ = reactor.repeating(milliseconds: DataPlane.spaceCheckMilliseconds) { [unowned self] in checkSpace() }
        checkSpace()
    }

    // MARK: - Orders from the control side

    func setPolicy(_ new: AckPolicy, token: UInt64) {
        let held = peerHeld
        policy = new.possible.map { AckRule(inSync: $0.inSync, needsOwnDisk: $0.ownDisk) }
        peerHeldAlone = held
        settleDebt()
        applyRules()
        if new.flushFirst {
            pendingPolicies.append((token, log.core.last))
            confirmPolicies()
        } else {
            report(.member(.policyInForce(token: token)))
        }
    }

    /// What the other node lacks is noted as long as a set without it may be in force: BEFORE the rule of such a set is,
    /// because until then everything committed is on its disk too.
    private func settleDebt() {
        if policy.contains(where: { !$0.inSync.contains(node.peer) }) {
            keeper.startNoting(base: log.committed, batches: log.unapplied)
        } else if !policy.isEmpty, inSyncNow.contains(node.peer) {
            keeper.stopNoting()
        }
    }

    /// Recorded as primary, not open yet: from now on nobody is followed, and the other node has to cut to this log.
    func prepareToServe(_ decision: Decision, _ inheritance: Inheritance) {
        // Told with the log, before the other node cuts anything.
        link.isLosing = inheritance != .complete
        link.lead(in: decision.epoch)
    }

    func serve(_ decision: Decision, _ inheritance: Inheritance) {
        link.isLosing = inheritance != .complete
        // A crash before the statement is on the disk: the next start of serving makes it.
        guard let statement = statement(for: inheritance, decision) else { return inherit(decision) }
        phase = .stating(decision)
        journal.add(statement) { [self] in
            guard case .stating(let decision) = phase else { return }
            inherit(decision)
        }
    }

    /// What must be said for good before this node serves; nil when nothing is missing, or it has been said.
    private func statement(for inheritance: Inheritance, _ decision: Decision) -> PermanentStatement? {
        switch inheritance {
        case .complete: return nil
        case .unsyncedMayBeMissing:
            logger.critical(
                """
                this node restarted, waited for the other one in vain and now serves alone: writes that were \
                acknowledged and never fsynced may be missing; everything fsynced is here
                """)
            return PermanentStatement(
                kind: .loneRestart, epoch: decision.epoch, seq: journal.lastSeq, time: log.wallClock())
        case .byForce(let since):
            logger.critical(
                """
                this node serves because an administrator promoted it by force in epoch \(since): what the other node \
                acknowledged and this one does not hold is not part of the mirror any more
                """)
            let said = journal.superblock.statements.contains { $0.kind == .forcedPromotion && $0.epoch == since }
            if said { return nil }
            return PermanentStatement(
                kind: .forcedPromotion, epoch: since, seq: journal.lastSeq, time: log.wallClock())
        }
    }

    private func inherit(_ decision: Decision) {
        guard !link.isIncomplete else { return refuseIncompleteCopy() }
        phase = .inheriting(decision)
        settleDebt()
        peerIsAway()
        advance()
    }

    private func refuseIncompleteCopy() {
        report(.broken("this node's copy is not complete: it must be brought up to date by the other one first"))
        report(.member(.ownDiskFailed))
    }

    /// The other node is out of the in-sync set: what changes from now on, it will have to be sent.
    private func peerIsAway() {
        guard inSyncNow.isOnly(node) else { return }
        comebackBegins()
    }

    func epochChanged(_ decision: Decision) {
        switch phase {
        case .stating: phase = .stating(decision)
        case .inheriting: phase = .inheriting(decision)
        case .opening(_, let seq):
            log.changeEpoch(to: decision.epoch, inSync: decision.inSync)
            phase = .opening(decision, epochStart: seq)
        case .open:
            log.changeEpoch(to: decision.epoch, inSync: decision.inSync)
            phase = .open(decision)
        case .idle, .closing: return
        }
        logger.notice("\(decision)")
        peerIsAway()
        link.sayFollows()
        // Only now does every room know that the other node's copy may be overwritten.
        if link.wantsComparison, decision.inSync.isOnly(node) { link.announce() }
        advance()
    }

    func inSyncChanged(_ decision: Decision) {
        switch phase {
        case .stating: phase = .stating(decision)
        case .inheriting: phase = .inheriting(decision)
        case .opening(_, let seq): phase = .opening(decision, epochStart: seq)
        case .open: phase = .open(decision)
        case .idle, .closing: return
        }
        stopAdmitting()
        settleDebt()
        logger.notice("\(decision)")
        comebackEnds()
        advance()
    }

    func setLease(until moment: UInt64) {
        log.setLease(until: moment)
        // The directory freezes by itself when it finds the lease run out; the control side may not have noticed.
        if !isFrozen, log.mayAnswer { directory?.thaw() }
        advance()
    }

    func freeze() {
        isFrozen = true
        directory?.freeze()
    }

    func thaw() {
        isFrozen = false
        if log.mayAnswer { directory?.thaw() }
    }

    func setDecision(_ decision: Decision?, ballot: [UInt64]) { link.decision = (decision, ballot) }

    func setForced(_ epoch: Epoch?) { link.forcedEpoch = epoch }

    /// `lockstep rejoin --discard`.
    func discardUnsaved() { link.discardUnsaved() }

    func follow() {
        link.stopLeading()
        if log.role == .primary { log.leavePrimary(failing: EIO) }
    }

    /// The application has been stopped: closes the directory, then waits until both nodes have everything.
    func drain() {
        // A comparison would go on adding records.
        resync?.cancel()
        resync = nil
        guard case .open = phase else {
            // Not open yet: nothing to drain but what is inherited.
            beginDraining()
            return advance()
        }
        guard let directory else { return }
        directory.onEnd = nil
        directory.drainAndUnmount { [self] failure in
            if let failure {
                watch(directory)
                logger.error("\(failure); the service stays here")
                return report(.member(.drainFailed))
            }
            // The service may have been closed, or the set have changed, while the directory was being closed.
            guard case .open(let now) = phase, self.directory === directory else { return }
            self.directory = nil
            beginDraining()
            phase = .opening(now, epochStart: log.lastSeq)
            advance()
        }
    }

    private func beginDraining() {
        draining = true
        drainDeadline = reactor.now + DataPlane.drainNanoseconds
    }

    func close(_ reason: Quorum.CloseReason) {
        // Under way: its end says so once.
        if case .closing = phase { return }
        phase = .closing
        peerHeldAlone = .zero
        position = PositionReport()
        draining = false
        isFrozen = false
        stopAdmitting()
        resync?.cancel()
        resync = nil
        pendingPolicies.removeAll()
        guard let directory else { return closed(reason) }
        // EIO to everything held, at once; then the mount goes, and the connection with it.
        directory.depose()
        self.directory = nil
        directory.dismount { [self] in closed(reason) }
    }

    private func closed(_ reason: Quorum.CloseReason) {
        log.leavePrimary(failing: EIO)
        policy = []
        link.wantsComparison = false
        link.stopLeading()
        phase = .idle
        link.announce()
        report(.closed(reason))
    }

    /// Nothing more is received or logged; what is here goes to the disks, and the journal says that it is complete.
    func stop(_ done: @escaping () -> Void) {
        isStopping = true
        resync?.cancel()
        resync = nil
        link.shutDown("this node stops")
        finishCleanly(done)
    }

    /// Everything to the plain files and their disk, and the journal marked complete.
    private func finishCleanly(_ done: @escaping () -> Void) {
        guard !isBroken, !link.isIncomplete, log.role != .primary else { return done() }
        guard log.core.ownDiskIsComplete, journal.batchesInFlight == 0, !checkpointRunning, !link.isCutting else {
            _ = reactor.after(milliseconds: 20) { [self] in finishCleanly(done) }
            return
        }
        checkpoint { [self] _ in
            // The sync took its time; nothing may have come in meanwhile, and a cut may still be under way.
            guard log.core.ownDiskIsComplete, journal.batchesInFlight == 0, !link.isCutting else {
                _ = reactor.after(milliseconds: 20) { [self] in finishCleanly(done) }
                return
            }
            journal.listIdle()
            journal.markCleanStop(completion: done)
        }
    }

    // MARK: - Going on

    private func progressed() {
        link.progressed()
        resync?.progressed()
        onRoom?()
        confirmPolicies()
        resyncPacer.look()
        admit()
        advance()
        checkpointIfDue()
    }

    private func confirmPolicies() {
        // While a cut is being made durable, the log is still shown as it was before.
        while !link.isCutting, let first = pendingPolicies.first, log.core.ownDurable >= first.durableThrough {
            pendingPolicies.removeFirst()
            report(.member(.policyInForce(token: first.token)))
        }
    }

    private func advance() {
        switch phase {
        case .idle, .stating, .closing: return
        case .inheriting(let decision):
            guard log.core.ownDiskIsComplete, !isBroken, !link.isCutting else { return }
            // A resynchronisation that had begun to reset the journal, and ended that only now.
            guard !link.isIncomplete else {
                phase = .idle
                return refuseIncompleteCopy()
            }
            log.becomePrimary(
                epoch: decision.epoch, inSync: decision.inSync, rules: rulesInForce, strictlyAfter: log.wallClock())
            let start = log.lastSeq
            phase = .opening(decision, epochStart: start)
            // Said in the journal by now, or of no life that counts.
            link.isLosing = false
            link.announce()
        case .opening(let decision, let epochStart):
            if draining { return finishDrain(decision) }
            guard log.applied >= epochStart, log.mayAnswer else { return }
            openDirectory(decision)
        case .open: return
        }
    }

    private func finishDrain(_ decision: Decision) {
        let last = log.lastSeq
        guard log.core.last == last, log.applied == last, log.core.levels.disk == last else { return }
        if decision.inSync.contains(node.peer) {
            guard let follower = log.core.follower, follower.applied >= last else { return }
        }
        draining = false
        report(.member(.drained))
    }

    private func openDirectory(_ decision: Decision) {
        // What was inherited has been applied since it was last looked at.
        checkSpace()
        do {
            let opened = try mount(self)
            if let opened { watch(opened) }
            directory = opened
            phase = .open(decision)
            logger.notice("\(configuration.path) is open", metadata: ["epoch": "\(decision.epoch)"])
            report(.opened(decision.epoch))
        } catch {
            isBroken = true
            report(.broken("cannot open \(configuration.path): \(error)"))
            report(.member(.ownDiskFailed))
        }
    }

    /// An administrator may take the mount away by force; then nothing is served here any more.
    private func watch(_ opened: MirroredDirectory) {
        opened.onEnd = { [weak self, weak opened] in
            guard let self, case .open = phase, let opened, directory === opened else { return }
            report(.member(.directoryLost))
        }
    }

    /// The same, while somebody still has files of it open (`umount -l`): the kernel says nothing then.
    private func lookForMount() {
        guard case .open = phase, let looked = directory, looked.onEnd != nil, !isLookingForMount,
            reactor.now > lookedForMountAt + DataPlane.mountLookNanoseconds
        else { return }
        lookedForMountAt = reactor.now
        isLookingForMount = true
        looked.checkPlace { [weak self, weak looked] isThere in
            guard let self else { return }
            isLookingForMount = false
            // Without `onEnd` it is being closed in order.
            guard isThere == false, case .open = phase, let looked, directory === looked, looked.onEnd != nil
            else { return }
            looked.onEnd = nil
            report(.member(.directoryLost))
        }
    }

    // MARK: - Bringing the other node in

    private var rulesInForce: [AckRule] {
        isAdmitting ? policy + [AckRule(inSync: .both, needsOwnDisk: true, needsPeerDisk: true)] : policy
    }

    private func applyRules() {
        guard log.role == .primary else { return }
        log.setRules(rulesInForce)
    }

    /// This node alone is in sync, and no set with the other one may have been chosen: an addition in doubt would name it
    /// in sync while its copy is overwritten.
    var isCertainlyAlone: Bool { inSyncNow.isOnly(node) && policy.allSatisfy { $0.inSync.isOnly(node) } }

    var inSyncNow: NodeSet {
        switch phase {
        case .stating(let decision), .inheriting(let decision), .opening(let decision, _), .open(let decision):
            decision.inSync
        case .idle, .closing: []
        }
    }

    /// What was on the other node's disk, for certain: what is committed satisfies every rule in force. Not while the other
    /// node is only about to be added: what was committed before that is on this disk alone.
    private var peerHeld: Seq {
        let rules = policy.map { $0.inSync.contains(node.peer) }
        let isOn =
            switch phase {
            case .idle, .closing: !rules.isEmpty && !rules.contains(false)
            default: inSyncNow.contains(node.peer) && rules.contains(true)
            }
        return isOn ? log.committed : peerHeldAlone
    }

    private func admit() {
        guard log.role == .primary, inSyncNow.isOnly(node), !link.isSilent, let follower = log.core.follower,
            resync == nil
        else { return }
        if !isAdmitting, follower.sent == log.core.last {
            isAdmitting = true
            applyRules()
        }
        if isAdmitting, !reportedCaughtUp, log.core.followerHoldsEverythingAcknowledged {
            reportedCaughtUp = true
            report(.member(.peerCaughtUp(true)))
        }
    }

    private func stopAdmitting() {
        if reportedCaughtUp {
            reportedCaughtUp = false
            report(.member(.peerCaughtUp(false)))
        }
        guard isAdmitting else { return }
        isAdmitting = false
        applyRules()
    }

    // MARK: - Comparison of the files

    private func compare(_ reason: ComparisonReason) {
        var level = Logger.Level.notice
        if case .putBack = reason { level = .critical }
        logger.log(
            level: level, "the other node's files are compared with this one's: \(PeerLink.explain(reason))")
        bringBack(.comparison)
    }

    private func sendRanges(_ common: Seq, _ way: ReturnWay) {
        logger.notice("the other node gets what has changed since record \(common)", metadata: ["way": "\(way)"])
        bringBack(.ranges(common: common, way))
    }

    private func bringBack(_ kind: ResyncSource.Kind) {
        resync?.cancel()
        // One for idleness would only take the disk from what is to be done quickly.
        lastCheckpointWant = reactor.now
        stopAdmitting()
        comeback.restart(kind.name)
        resync = ResyncSource(plane: self, kind: kind) { [unowned self] in
            resync = nil
            link.wantsComparison = false
            admit()
        }
    }

    private func joinResync(_ start: ResyncStart) {
        resync?.cancel()
        lastCheckpointWant = reactor.now
        resync = ResyncFollower(plane: self, start: start) { [unowned self] in resync = nil }
    }

    /// A resynchronisation may have waited for the end of a checkpoint. In a turn of its own, behind what is done then.
    private func resyncAgain() {
        let bound = ThreadBound(self)
        reactor.post { bound.value.resync?.progressed() }
    }

    // MARK: - Checkpoints, space, time

    private func tick() {
        link.tick()
        reportPosition()
        if draining, reactor.now > drainDeadline {
            draining = false
            logger.error("the other node does not take what is under way; the service goes on here")
            report(.member(.drainFailed))
        }
        confirmPolicies()
        advance()
        resync?.tick()
        resyncPacer.look()
        noteComeback()
        verification.tick()
        watchDisks()
        lookForMount()
        checkpointIfDue()
    }

    private func checkpointIfDue() {
        guard !checkpointRunning, !holdsCheckpoints, !isStopping, !isBroken, log.applied > journal.checkpointSeq
        else { return }
        let used = journal.capacityBytes - journal.freeBytes
        let full = used * DataPlane.checkpointFraction >= journal.capacityBytes
        // With much to remember it is written as seldom as the journal allows: all of it, each time.
        let isCheap = keeper.byteCount < DataPlane.debtBytesForIdleCheckpoints
        let idle =
            isCheap && reactor.now > lastCheckpointWant + UInt64(DataPlane.checkpointIdleMilliseconds) * 1_000_000
        guard full || idle else { return }
        lastCheckpointWant = reactor.now
        checkpoint { _ in }
    }

    /// - Parameter completes: asked at the last moment: whether a copy that did not count does with this checkpoint.
    func checkpoint(completes: @escaping (Seq) -> Bool = { _ in false }, _ done: @escaping (Bool) -> Void) {
        guard !checkpointRunning, !holdsCheckpoints else { return done(false) }
        checkpointRunning = true
        // The low watermark before the sync: everything up to it is in the files when the sync begins.
        let seq = log.applied
        let tree = tree
        let handle = reactor.handle
        let bound = ThreadBound({ [self] (failure: String?) in
            guard let failure else { return moveCheckpoint(to: seq, completes, done) }
            checkpointRunning = false
            // Reported once by the kernel, then "ok": never asked again, never past this point.
            failed(.apply(seq, failure))
            done(false)
        })
        workers.submit {
            var failure: String?
            do { try tree.sync() } catch { failure = "\(error)" }
            _ = handle.post { [failure] in bound.value(failure) }
        }
    }

    /// The plain files hold everything up to `seq` on their disk. What the other node lacks goes to the disk first: the
    /// journal space below the checkpoint may be used again, and then nothing else knows it. If that fails the file stays
    /// behind the checkpoint, which says that it is not to be believed.
    private func moveCheckpoint(
        to seq: Seq, _ completes: @escaping (Seq) -> Bool, _ done: @escaping (Bool) -> Void
    ) {
        guard !isBroken else {
            checkpointRunning = false
            return done(false)
        }
        let found = log.imageParts.checkpoint(atOrBelow: seq) { journal.boundary(atOrBelow: $0)?.seq }
        guard let found, let chain = journal.chain(at: found) else {
            checkpointRunning = false
            return done(true)
        }
        keeper.persist(through: found, chain: chain) { [self] _ in
            markCheckpoint(found, chain: chain) { [weak self] isMarked in
                guard let self else { return }
                guard isMarked else {
                    checkpointRunning = false
                    return done(false)
                }
                journal.checkpoint(found, isComplete: completes(found)) { [self] in
                    checkpointRunning = false
                    done(true)
                }
            }
        }
    }

    func failed(_ failure: MirrorFailure) {
        guard !isBroken else { return failedLate("\(failure)") }
        isBroken = true
        if case .hangs = failure { recovery = DiskRecovery() }
        logger.critical("\(failure)")
        report(.broken("\(failure)"))
        report(.member(.ownDiskFailed))
        // A follower that went on acknowledging would stay in sync with a copy that cannot be used.
        link.shutDown("this node's disk failed: \(failure)")
    }

    /// A disk that hung and then gives an error is a disk that gives an error: whoever begins anew with it would do so
    /// for ever.
    func failedLate(_ text: String) {
        guard recovery != nil else { return }
        recovery = nil
        logger.critical("\(text)")
        report(.broken(text))
    }
}

/// One side of a comparison of the files.
protocol ResyncSession: AnyObject {
    func received(_ message: DataMessage)
    func tick()
    /// The log has moved.
    func progressed()
    func cancel()
    var progress: ResyncProgress { get }
    /// Where the other node's log will begin, before it follows; nil when that is not known.
    var neededFrom: Seq? { get }
}

extension ResyncSession {
    var neededFrom: Seq? { nil }
}

struct ResyncProgress: Sendable, Codable {
    var phase = ""
    var bytesDone: UInt64 = 0
    var bytesTotal: UInt64 = 0
    var differingBytes: UInt64 = 0
    var files: UInt64 = 0
}

extension PeerLink {
    static func explain(_ reason: ComparisonReason) -> String {
        switch reason {
        case .journalTooShort(let common, let oldest):
            "the journal begins at record \(oldest), the other node's log ends at \(common)"
        case .otherHistory(let common, let applied):
            "it applied records up to \(applied) of another history; \(common) is the last common one"
        case .incomplete: "its copy is not complete"
        case .putBack(let held, let last):
            "its disk held every record up to \(held), and now ends at \(last): it was put back to an older state"
        case .requested: "an administrator has asked for it"
        }
    }

    static func explain(_ reason: RefusalReason) -> String {
        switch reason {
        case .bothServe: "both nodes say that they serve in one epoch: this must not happen; stop one of them"
        case .bothIncomplete:
            "neither node holds a complete copy: restore one from a backup and run `lockstep init --first` there"
        case .onlyInSyncIsIncomplete(let node):
            "node \(node) alone is in sync, and its copy is not complete: its files and ranges in doubt are in its log"
        case .noDecision: "neither node has a decision yet: run `lockstep init --first` on the node that has the data"
        }
    }
}
