import Format
import Journal
import Logging
import Replication
import Ring

/// What the peer link needs of a connection; `Transport` provides it, tests provide a pipe.
protocol DataConnection: AnyObject {
    func send(_ message: DataMessage)
    /// Several batches leave in one message, of `PeerLink.messageDiskBytes` at most.
    func send(_ batches: [Batch])
    /// Bytes accepted for sending that the kernel has not taken.
    var queuedBytes: Int { get }
    func close(_ reason: String)
}

/// The data connection to the other node: who sends, from where, and how far the other one is. Confined to the data
/// thread.
///
/// ```
///                 connected          both log states known
///  disconnected ────────────▶ greeting ───────┬─────────────▶ awaitingCut ── cut ──▶ following
///        ▲                                    ├─ source ────▶ cutting ─ cutDone ──▶ streaming
///        │ lost, or a protocol violation      ├─ compare ───▶ comparing (Resynchronisation) ─▶ streaming
///        └─────────────────────────────       └─ refuse ────▶ refused (an administrator is needed)
/// ```
///
/// A new log state from either side (a node begins to serve, or stops) leads back to the fork. If a process dies at any
/// arrow, the next connection starts at the top with what the disks hold: nothing sent on an old connection counts.
final class PeerLink {
    enum Stage: Equatable, Sendable {
        case disconnected
        case greeting
        case cutting(Seq)
        case streaming
        case comparing
        case awaitingCut
        case following
        case refused(RefusalReason)
        /// The plan cannot be carried out until this node serves, or learns that it does not.
        case waiting
    }

    /// Bytes on their way to the follower beyond which the link waits.
    static let sendWindowBytes = 8 << 20
    static let heartbeatMilliseconds = 100
    /// Without a word from the follower for so long, the link counts as silent.
    static let silenceNanoseconds: UInt64 = 500_000_000
    /// Time from a connection to a session in which batches flow.
    static let planningNanoseconds: UInt64 = 2_000_000_000
    /// A follower that has received a batch and not written it for so long has a disk that hangs.
    static let stallNanoseconds: UInt64 = 5_000_000_000
    /// A follower that neither takes what was sent nor applies anything for so long has plain files that hang: its journal
    /// is full of what it cannot apply. Longer, because a checkpoint that makes room may take its time.
    static let fullNanoseconds: UInt64 = 15_000_000_000
    static let journalReadBytes = 4 << 20
    /// Batches from the journal are sent together up to so many bytes as they lie there. The follower makes sure of room
    /// for the longest batch before it takes a message: a message of several is shorter than that.
    static let messageDiskBytes = 1 << 20

    let node: NodeID
    let log: MirrorLog
    let reader: JournalReader
    let workers: WorkerPool
    let rescue: Rescue
    let logger: Logger

    private(set) var stage = Stage.disconnected {
        didSet { stageSince = log.reactor.now }
    }
    private var stageSince: UInt64 = 0
    private(set) var connection: (any DataConnection)?
    private var theirs: LogState?
    private var lastHeard: UInt64 = 0
    /// The last time at which the follower wrote something, or had written all that it had received.
    private var wroteAt: UInt64 = 0
    /// The last time at which the follower took or applied something, or nothing was on its way to it.
    private var movedAt: UInt64 = 0
    private var queuedBefore = 0
    private var readingJournal = false
    /// Set while this node is recorded as primary and does not serve yet.
    private var leadingEpoch: Epoch?
    private var isClosed = false
    /// A cut is being made durable: no new session before it is.
    private(set) var isCutting = false
    private var waitingConnection: (any DataConnection)?
    private var waitingState: LogState?
    /// Answers of asynchronous work of an earlier connection are ignored.
    private var generation: UInt64 = 0
    private var lastAcknowledgement: Acknowledgement?
    private var lastCommitSent = Seq.zero
    private var mergeTarget: Seq?
    private(set) var sentBytes: UInt64 = 0
    private(set) var receivedBytes: UInt64 = 0
    /// Messages of an old session or for another role, refused.
    private(set) var refusedMessages: UInt64 = 0
    private(set) var isIncomplete: Bool

    /// What the control side knows of decisions, for the log state.
    var decision: (decision: Decision?, ballot: [UInt64]) = (nil, [])
    /// This node is promoted, or about to serve, without everything that was acknowledged, and its journal does not say
    /// so yet.
    var isLosing = false
    /// The epoch of a forced promotion that this node's voter has recorded.
    var forcedEpoch: Epoch?
    /// The chain here differs at a record at which the epochs agree: nothing is known to be common.
    private var hasOtherChain = false
    /// In this node's plain files.
    var room = DiskRoom(bytes: .max, files: .max, seq: .zero)
    /// What the plain files of each node can hold; of the other one, what it last said to this process.
    var limits = FileLimits.widest
    private(set) var peerLimits: FileLimits?

    // Set by the data plane.
    var onMerged: (() -> Void)?
    /// The other node has said what its plain files can hold.
    var onPeerLimits: (() -> Void)?
    /// The other node's disk lacks what was on it, found while neither of the two leads.
    var onPeerWasPutBack: (() -> Void)?
    var onFollows: ((Epoch) -> Void)?
    var onSilent: ((_ failed: Bool) -> Void)?
    var onBack: (() -> Void)?
    /// This node's copy counts again.
    var onComplete: (() -> Void)?
    var onCompare: ((ComparisonReason) -> Void)?
    /// The other node can be brought back with what is known here of its lacks.
    var onRanges: ((_ common: Seq, ReturnWay) -> Void)?
    var onResyncStart: ((ResyncStart) -> Void)?
    /// This node takes what the other one sends from now on.
    var onFollowing: (() -> Void)?
    /// What this node knows of what the other one lacks.
    var debtTerms: () -> Debt.Terms? = { nil }
    /// What this node knows to have been on the other one's disk.
    var peerHeld: () -> Seq = { .zero }
    var onResyncMessage: ((DataMessage) -> Void)?
    /// An administrator wants the other node's files compared: the next plan does, whatever the journal holds.
    var wantsComparison = false
    /// Whether records may be read back from the journal for the other node now, and how many bytes were.
    var mayReadBack: () -> Bool = { true }
    var onReadBack: (Int) -> Void = { _ in }
    var onVerifyAnswer: ((VerifyAnswer) -> Void)?
    /// The connection is lost, or what flows on it is planned anew: a comparison under way is over.
    var onSessionEnd: (() -> Void)?
    var onRefused: ((RefusalReason) -> Void)?
    private(set) var isSilent = true

    init(
        node: NodeID, log: MirrorLog, reader: JournalReader, workers: WorkerPool, rescue: Rescue, isIncomplete: Bool,
        logger: Logger
    ) {
        self.node = node
        self.log = log
        self.reader = reader
        self.workers = workers
        self.rescue = rescue
        self.isIncomplete = isIncomplete
        log.isBehind = isIncomplete
        self.logger = logger
        log.reactor.beforeSleep { [unowned self] in
            acknowledge(heartbeat: false)
            planCommit()
        }
    }

    // MARK: - Connection

    func connected(_ new: any DataConnection) {
        guard !isClosed else { return new.close("this node takes part no more") }
        // A cut that is being made durable must be over before anyone is told what this log holds.
        guard !isCutting else {
            waitingConnection?.close("replaced by a newer connection")
            waitingConnection = new
            return
        }
        if let old = connection { old.close("replaced by a newer connection") }
        reset()
        connection = new
        stage = .greeting
        lastHeard = log.reactor.now
        new.send(.logState(state))
    }

    func disconnected(_ gone: any DataConnection) {
        if gone === waitingConnection { waitingConnection = nil }
        guard gone === connection else { return }
        reset()
        checkSilence()
    }

    private func reset() {
        generation += 1
        onSessionEnd?()
        connection = nil
        theirs = nil
        // Said on a connection that is gone.
        waitingState = nil
        stage = .disconnected
        readingJournal = false
        lastAcknowledgement = nil
        lastCommitSent = .zero
        mergeTarget = nil
        log.followerLost()
    }

    /// Ends the session because of a fault; the next connection starts anew.
    func fail(_ reason: String) {
        logger.error("data connection closed: \(reason)")
        let old = connection
        reset()
        old?.close(reason)
        checkSilence()
    }

    /// No session any more: this node stops, or its disk failed.
    func shutDown(_ reason: String) {
        isClosed = true
        waitingConnection?.close(reason)
        waitingConnection = nil
        let old = connection
        reset()
        old?.close(reason)
        checkSilence()
    }

    var state: LogState {
        var state = LogState(
            isServing: log.role == .primary || leadingEpoch != nil, isIncomplete: isIncomplete,
            decision: decision.decision, ballot: decision.ballot, lastSeq: log.core.last, lastChain: log.lastChain,
            durableSeq: log.core.ownDurable, committedSeq: log.committed, oldestSeq: log.journal.oldestSeq,
            epochs: log.journal.epochs.starts)
        let statements = log.journal.superblock.statements
        let isSaid = statements.contains { $0.kind == .forcedPromotion && $0.epoch == forcedEpoch }
        state.limits = limits
        state.resyncNumber = isIncomplete ? log.journal.resyncNumber : 0
        let isForcedUnsaid = forcedEpoch != nil && !isSaid
        let forced = statements.filter { $0.kind == .forcedPromotion }
        state.lossAt = isLosing || isForcedUnsaid ? log.core.last : statements.map(\.seq).max()
        state.forcedAt = isForcedUnsaid ? log.core.last : forced.map(\.seq).max()
        state.isStrict = log.strict
        return state
    }

    /// From now on this node sends: the other one has to cut to this log, which is then reported for `epoch`.
    func lead(in epoch: Epoch) {
        leadingEpoch = epoch
        // What this node acknowledges from now on, nobody has allowed to give up.
        rescue.isOver()
        log.standAside()
        announce()
    }

    func stopLeading() {
        leadingEpoch = nil
        isLosing = false
    }

    /// This node's log has changed meaning (it serves now, or no longer): both sides tell what they hold now, and plan
    /// anew. What the other one said before is worth nothing: its log has gone on since.
    func announce() {
        guard let connection else { return }
        endSession()
        stage = .greeting
        if !isCutting { ask(connection) }
    }

    private func ask(_ connection: any DataConnection) {
        var mine = state
        mine.wantsAnswer = true
        connection.send(.logState(mine))
    }

    private func endSession() {
        generation += 1
        onSessionEnd?()
        theirs = nil
        readingJournal = false
        lastAcknowledgement = nil
        log.followerLost()
    }

    private func told(_ state: LogState) {
        if state.limits != peerLimits {
            peerLimits = state.limits
            onPeerLimits?()
        }
        guard !isCutting else {
            waitingState = state
            return
        }
        if log.journal.superblock.isStrict, !state.isStrict {
            // On the disk before anything is taken that may be acknowledged from memory.
            logger.warning("the other node's mode is not strict: from now on this journal does not count as strict")
            waitingState = state
            isCutting = true
            return log.journal.clearStrict { [self] in cutEnded() }
        }
        endSession()
        if state.wantsAnswer { connection?.send(.logState(self.state)) }
        theirs = state
        plan()
    }

    private func cutEnded() {
        isCutting = false
        if let next = waitingConnection {
            waitingConnection = nil
            waitingState = nil
            connected(next)
            // What the other node said first on it was not looked at.
            return ask(next)
        }
        guard let connection else { return }
        // Announced meanwhile, here or there: what waits can be said now.
        if stage == .greeting { ask(connection) }
        if let state = waitingState {
            waitingState = nil
            told(state)
        }
    }

    var stageName: String {
        switch stage {
        case .disconnected: "disconnected"
        case .greeting: "greeting"
        case .cutting: "cutting"
        case .streaming: "streaming"
        case .comparing: "comparing"
        case .awaitingCut: "awaitingCut"
        case .following: "following"
        case .refused: "refused"
        case .waiting: "waiting"
        }
    }

    func setIncomplete(_ value: Bool) {
        isIncomplete = value
        log.isBehind = value
        if !value {
            rescue.isOver()
            onComplete?()
        }
        checkMerged()
    }

    // MARK: - Planning

    private func plan() {
        guard let theirs else { return }
        generation += 1
        let plan = SyncPlan.make(me: node, mine: state, theirs: theirs, debt: debtTerms(), held: peerHeld())
        wayBehindCut = nil
        logger.debug("data session planned", metadata: ["plan": "\(plan)"])
        let unreadable = unreadable
        self.unreadable = nil
        switch plan {
        case .source where wantsComparison, .ranges where wantsComparison: beginComparison(.requested)
        case .source where unreadable != nil:
            let oldest = log.journal.oldestSeq
            beginComparison(.journalTooShort(common: unreadable?.previous ?? .zero, oldest: oldest))
        // It would go on from this journal too, and come to the same record again and again.
        case .ranges(_, .resume) where unreadable != nil: beginComparison(.incomplete)
        case .source(let common): beginCut(at: common)
        case .ranges(let common, let way): beginRanges(common, way)
        case .compare(let reason): beginComparison(reason)
        case .follow:
            guard log.role != .primary, leadingEpoch == nil else {
                stage = .waiting
                return
            }
            log.follow()
            mergeTarget = theirs.lastSeq
            stage = .awaitingCut
        case .refuse(let reason):
            stage = .refused(reason)
            onRefused?(reason)
        }
    }

    private func beginCut(at common: Seq) {
        stage = .cutting(common)
        if common == log.core.last {
            connection?.send(.cut(seq: common, chain: log.lastChain))
            return
        }
        guard let chain = chain(at: common) else {
            return beginComparison(.journalTooShort(common: common, oldest: log.journal.oldestSeq))
        }
        connection?.send(.cut(seq: common, chain: chain))
    }

    /// Set while the other node cuts to where it is to be continued with what is owed.
    private var wayBehindCut: ReturnWay?

    private func beginRanges(_ common: Seq, _ way: ReturnWay) {
        guard log.role == .primary else {
            stage = .waiting
            return
        }
        guard way == .resume else {
            stage = .comparing
            onRanges?(common, way)
            return
        }
        // Its log goes on, so it is cut like any other first.
        wayBehindCut = way
        beginCut(at: common)
    }

    private func beginComparison(_ reason: ComparisonReason) {
        guard log.role == .primary else {
            // Only a primary can compare: images get their place in its order.
            stage = .waiting
            if case .putBack = reason {
                logger.critical("the other node cannot be followed or caught up with: \(PeerLink.explain(reason))")
                if leadingEpoch == nil { onPeerWasPutBack?() }
            }
            return
        }
        stage = .comparing
        onCompare?(reason)
    }

    /// The chain value behind `seq`; nil when the journal no longer holds it.
    private func chain(at seq: Seq) -> UInt64? {
        if seq == log.core.last { return log.lastChain }
        return seq == .zero ? 0 : log.journal.chain(at: seq)
    }

    // MARK: - Messages

    func received(_ message: DataMessage) {
        heard()
        switch message {
        case .logState(let state): told(state)
        case .cut(let seq, let chain): cut(to: seq, chain: chain)
        case .cutDone(let seq):
            guard stage == .cutting(seq) else { return refuse() }
            guard let way = wayBehindCut else { return startStreaming(from: seq) }
            wayBehindCut = nil
            stage = .comparing
            onRanges?(seq, way)
        case .cutRefused(let seq):
            guard stage == .cutting(seq) || stage == .comparing else { return refuse() }
            logger.warning("the other log differs at record \(seq) although its epochs agree: comparing the files")
            beginComparison(.otherHistory(common: seq, applied: seq))
        case .acknowledgement(let acknowledgement): acknowledged(acknowledgement)
        case .commit(let seq):
            guard stage == .following else { return refuse() }
            log.noteCommitted(seq)
        case .resyncStart(let start):
            guard stage == .awaitingCut || stage == .following else { return refuse() }
            saving(above: commonWithSource) { [self] in
                stage = .comparing
                hasOtherChain = false
                onResyncStart?(start)
            }
        case .resyncReady, .probe, .probeAnswer, .resyncEnd, .resyncDone: onResyncMessage?(message)
        case .verifyAnswer(let answer): onVerifyAnswer?(answer)
        }
    }

    func received(_ batch: Batch) {
        heard()
        receivedBytes += UInt64(batch.wireLength)
        guard stage == .following else { return refuse() }
        do {
            try log.receive(batch)
        } catch {
            fail("\(error)")
        }
    }

    private func refuse() { refusedMessages += 1 }
    /// The connection refused one: it was not of this mirror or session.
    func noteRefused() { refusedMessages += 1 }

    private func heard() {
        lastHeard = log.reactor.now
    }

    // MARK: - Follower

    private func cut(to seq: Seq, chain: UInt64) {
        // In a session that flows already, a second cut is the result of two announcements that crossed.
        guard stage == .awaitingCut || stage == .following, !isCutting, let connection else { return refuse() }
        guard seq <= log.core.last, seq >= log.committed else {
            return fail("told to cut to record \(seq), but \(log.committed) to \(log.core.last) is what may be cut")
        }
        guard self.chain(at: seq) == chain else {
            hasOtherChain = true
            connection.send(.cutRefused(seq: seq))
            return
        }
        let expected = generation
        let done = { [self] in
            guard expected == generation else { return }
            stage = .following
            onFollowing?()
            connection.send(.cutDone(seq: seq))
            checkMerged()
        }
        guard seq < log.core.last else { return whenDurable(seq, expected, done) }
        saving(above: seq) { [self] in cutNow(to: seq, chain: chain, expected, done) }
    }

    private func cutNow(to seq: Seq, chain: UInt64, _ expected: UInt64, _ done: @escaping () -> Void) {
        logger.notice("cutting unconfirmed records \(seq.next) to \(log.core.last)")
        whenDurable(seq, expected) { [self] in
            isCutting = true
            // Not before: if the session ends first, what waits for the journal is still a part of this log.
            log.dropQueued(above: seq)
            do {
                try log.journal.cut(to: seq) { [self] in
                    log.wasCut(to: seq, chain: chain)
                    rescue.isOver()
                    done()
                    cutEnded()
                }
            } catch {
                isCutting = false
                fail("cannot cut the journal to record \(seq): \(error)")
            }
        }
    }

    /// Runs `work` when nothing above `common` is lost by it that may have been acknowledged. Batches are not taken
    /// meanwhile (`stage`), so the log stays as it is.
    private func saving(above common: Seq, then work: @escaping () -> Void) {
        let last = max(log.core.last, log.journal.lastKnownSeq)
        guard
            DivergedTail.mustBeSaved(
                common: common, last: last, committed: log.committed, acknowledged: log.acknowledged,
                lossAt: theirs?.lossAt)
        else { return work() }
        let expected = generation
        stage = .awaitingCut
        // A damaged log has no more on its disk than this. What waits for room in the journal might wait for ever.
        let queued = log.queued
        whenDurable(queued.first?.firstSeq.previous ?? log.core.last, expected) { [self] in
            rescue.save(
                above: common, through: last, queued: queued, now: log.wallClock(),
                isWanted: { [self] in expected == generation }, then: work)
        }
    }

    /// Where this log and that of the node which sends part.
    private var commonWithSource: Seq {
        guard let theirs, !hasOtherChain else { return .zero }
        return SyncPlan.commonSeq(state, theirs)
    }

    /// An administrator gives up what cannot be saved: planned anew.
    func discardUnsaved() {
        rescue.allowDiscarding()
        announce()
    }

    /// The follower's log begins at `seq`; used by a resynchronisation.
    func continueAsFollower() {
        stage = .following
        onFollowing?()
    }

    /// The log is about to begin anew: no new session says what it holds before that is durable.
    func holdSessions() { isCutting = true }
    func releaseSessions() { cutEnded() }

    /// The source and this node do not mean the same log: all files are compared.
    func refuseResync(at seq: Seq) {
        // The comparison that follows begins like any other.
        stage = .awaitingCut
        connection?.send(.cutRefused(seq: seq))
    }

    private var durableWaiter: (seq: Seq, generation: UInt64, work: () -> Void)?

    private func whenDurable(_ seq: Seq, _ expected: UInt64, _ work: @escaping () -> Void) {
        if log.core.ownDurable >= seq { return work() }
        durableWaiter = (seq, expected, work)
    }

    private func acknowledge(heartbeat: Bool) {
        guard stage == .following, let connection else { return }
        let acknowledgement = Acknowledgement(
            received: log.core.last, durable: log.core.ownDurable, applied: min(log.applied, log.core.ownDurable),
            room: DiskRoom(bytes: room.bytes, files: room.files, seq: min(room.seq, log.applied)))
        if !heartbeat, let last = lastAcknowledgement, last.received == acknowledgement.received,
            last.durable == acknowledgement.durable
        {
            return
        }
        lastAcknowledgement = acknowledgement
        // The disk is what a synchronous write waits for: its request leaves before the word that the bytes are here.
        log.reactor.submitNow()
        connection.send(.acknowledgement(acknowledgement))
    }

    // MARK: - Source

    func startStreaming(from seq: Seq) {
        stage = .streaming
        log.followerStarted(at: seq)
        wroteAt = log.reactor.now
        movedAt = wroteAt
        sayFollows()
        checkSilence()
        pump()
        checkMerged()
    }

    /// The other node follows this log in the epoch of now. Said again after a silence and after a change of the epoch:
    /// the control side counts only that.
    func sayFollows() {
        guard stage == .streaming else { return }
        if log.role == .primary {
            onFollows?(log.epoch)
        } else if let leadingEpoch {
            onFollows?(leadingEpoch)
        }
    }

    private func acknowledged(_ acknowledgement: Acknowledgement) {
        guard stage == .streaming else { return refuse() }
        if let before = log.core.follower {
            let hasWritten = acknowledgement.durable > before.durable
            let hasMoved = hasWritten || acknowledgement.applied > before.applied
            if hasWritten || acknowledgement.durable == acknowledgement.received { wroteAt = log.reactor.now }
            if hasMoved || acknowledgement.durable == before.sent { movedAt = log.reactor.now }
        }
        do {
            try log.acknowledged(acknowledgement)
        } catch {
            return fail("impossible acknowledgement: \(error)")
        }
        checkSilence()
        checkMerged()
        pump()
    }

    /// Sends what the follower lacks: from memory if it is there, else from the journal.
    func pump() {
        guard stage == .streaming, let connection, !readingJournal else { return }
        while let follower = log.core.follower, follower.sent < log.core.last {
            guard connection.queuedBytes < PeerLink.sendWindowBytes else { return }
            let next = follower.sent.next
            if let index = log.recent.firstIndex(where: { $0.firstSeq >= next }), log.recent[index].firstSeq == next {
                send([log.recent[index]], on: connection)
                continue
            }
            // Records that are still in neither place are on their way to the own disk.
            guard next <= log.core.ownDurable, mayReadBack() else { return }
            return readFromJournal(next)
        }
        log.trimRecent()
    }

    /// - Parameter batches: successive ones, at least one; several only up to `messageDiskBytes` together.
    private func send(_ batches: [Batch], on connection: any DataConnection) {
        guard let last = batches.last else { return }
        if let follower = log.core.follower, follower.durable == follower.sent { movedAt = log.reactor.now }
        connection.send(batches)
        sentBytes += UInt64(FrameHeader.byteCount + batches.reduce(0) { $0 + $1.wireLength })
        log.sent(through: last.lastSeq)
        lastCommitSent = max(lastCommitSent, last.header.committedSeq)
    }

    /// Sends what was read from the journal, as far as it is still what comes next. Small batches go together: their
    /// messages' heads would be a part of what is sent.
    private func send(readBack batches: [Batch], on connection: any DataConnection) {
        guard var next = log.core.follower?.sent.next else { return }
        var message: [Batch] = []
        var bytes = 0
        for batch in batches where batch.firstSeq == next {
            if bytes + batch.header.diskLength > PeerLink.messageDiskBytes {
                send(message, on: connection)
                message = []
                bytes = 0
            }
            message.append(batch)
            bytes += batch.header.diskLength
            next = batch.lastSeq.next
            onReadBack(batch.wireLength)
        }
        send(message, on: connection)
    }

    /// A record that the follower lacks and this journal lists, but cannot give: the next plan to send from here is a
    /// comparison.
    private var unreadable: Seq?

    private func readFromJournal(_ seq: Seq) {
        guard let plan = log.journal.plan(from: seq, limitBytes: PeerLink.journalReadBytes) else {
            logger.notice("the journal no longer reaches back to record \(seq)")
            // What is known of its lacks may do instead: planned anew from what both hold now.
            return announce()
        }
        readingJournal = true
        let expected = generation
        let reader = reader
        let bound = ThreadBound({ [self] (result: Result<[Batch], JournalError>) in
            guard expected == generation else { return }
            readingJournal = false
            switch result {
            case .success(let batches):
                guard let connection else { return }
                send(readBack: batches, on: connection)
                pump()
            case .failure(let error):
                // Overwritten while it was read, if the journal no longer lists it; else it is really damaged.
                guard log.journal.plan(from: seq, limitBytes: 1) == nil else {
                    // The plain files here hold what the record did: they are compared instead.
                    logger.error("cannot read record \(seq) from the journal: \(error)")
                    // Planned anew from what both hold now: by what was said at the beginning, the follower would take
                    // all that it has received since for lost.
                    unreadable = seq
                    return announce()
                }
                pump()
            }
        })
        let handle = log.reactor.handle
        workers.submit {
            let result = Result { () throws(JournalError) in try reader.read(plan) }
            _ = handle.post { bound.value(result) }
        }
    }

    /// A commit notice of its own leaves only when no batch has carried the news for so long: the follower is in no hurry
    /// to apply, and a message for each write would wake it in the middle of the next one.
    static let commitMilliseconds = 4
    /// The follower waits for the last records of a resynchronisation to be applied.
    var tellsCommitsAtOnce = false
    private var isCommitPlanned = false
    private var commitReached: Seq? { log.core.follower.map { min(log.committed, $0.sent) } }

    private func planCommit() {
        guard stage == .streaming, !isCommitPlanned, let reached = commitReached, reached > lastCommitSent else {
            return
        }
        guard !tellsCommitsAtOnce else { return sendCommit(heartbeat: false) }
        isCommitPlanned = true
        _ = log.reactor.after(milliseconds: PeerLink.commitMilliseconds) { [self] in
            isCommitPlanned = false
            sendCommit(heartbeat: false)
        }
    }

    private func sendCommit(heartbeat: Bool) {
        // Otherwise the follower would never apply the last batch before a pause.
        guard stage == .streaming, let connection, let seq = commitReached, heartbeat || seq > lastCommitSent
        else { return }
        lastCommitSent = seq
        connection.send(.commit(seq: seq))
    }

    // MARK: - Time and progress

    /// Every `heartbeatMilliseconds`.
    func tick() {
        acknowledge(heartbeat: true)
        sendCommit(heartbeat: true)
        // A slow line is no disk that hangs.
        let queued = connection?.queuedBytes ?? 0
        if queued < queuedBefore { movedAt = log.reactor.now }
        queuedBefore = queued
        checkSilence()
        pump()
    }

    /// The log has moved: batches may be sent, waiting steps may go on.
    func progressed() {
        if let waiter = durableWaiter, log.core.ownDurable >= waiter.seq {
            durableWaiter = nil
            if waiter.generation == generation { waiter.work() }
        }
        checkMerged()
    }

    private func checkSilence() {
        let now = log.reactor.now
        let silent: Bool
        var stalled = false
        switch stage {
        // Nothing will be acknowledged on this connection, however much is heard.
        case .disconnected, .comparing, .refused, .waiting: silent = true
        // On the way to a session; a node that never gets there is as good as silent.
        case .greeting, .cutting, .awaitingCut: silent = now > stageSince + PeerLink.planningNanoseconds
        case .following: silent = now > lastHeard + PeerLink.silenceNanoseconds
        case .streaming:
            silent = now > lastHeard + PeerLink.silenceNanoseconds
            stalled =
                now > wroteAt + PeerLink.stallNanoseconds || now > movedAt + PeerLink.fullNanoseconds
        }
        if silent || stalled {
            // Said again and again: the control side counts from the first time.
            onSilent?(stalled && !silent)
            isSilent = true
        } else if isSilent {
            isSilent = false
            onBack?()
            sayFollows()
        }
    }

    private func checkMerged() {
        // Half a copy holds nothing that could count.
        guard !isIncomplete else { return }
        switch stage {
        case .following:
            if let target = mergeTarget, log.core.ownDurable >= target, log.core.last >= target {
                mergeTarget = nil
                onMerged?()
            }
        case .streaming where log.role != .primary:
            if let follower = log.core.follower, follower.durable == log.core.last, log.core.ownDiskIsComplete {
                onMerged?()
            }
        default: break
        }
    }
}
