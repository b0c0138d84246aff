import CLinux
import Configuration
import Format
import Glibc
import Journal
import Logging
import Replication
import Ring
import Tree

/// What the control side needs to know of the log before it may take part.
public struct LogSummary: Sendable {
    /// Everything this node ever received is on its disk.
    public var isComplete: Bool
    /// The plain files are what the journal says of them, and whole.
    public var isUsable: Bool
    public var lastEpoch: Epoch
    public var lastSeq: Seq
    /// On the disk of every node in sync, as far as the journal knows.
    public var committed: LogMark
    /// What the plain files remember of this node's votes; nil when they do not, or do not belong to this journal.
    public var voteLife: (birth: UInt64, starts: UInt64)?
    /// Records that were durable cannot be read: this node must not be primary. What is in doubt, for people.
    public var damage: String?
}

/// Names of files in the state directory.
enum StateFiles {
    static func journal(_ configuration: MirrorConfiguration) -> String { configuration.state + "/journal" }
    /// What the other node lacks while it is not in sync.
    static func dirty(_ configuration: MirrorConfiguration) -> String { configuration.state + "/dirty" }
    /// Locked by the process that runs; holds its number.
    static func lock(_ configuration: MirrorConfiguration) -> String { configuration.state + "/lock" }
    static func votes(_ configuration: MirrorConfiguration) -> String { configuration.state + "/votes" }
    /// Votes that were found to be older than what was said by them: see `VoteFile`.
    static func forgottenVotes(_ configuration: MirrorConfiguration) -> String {
        configuration.state + "/votes.forgotten"
    }
    /// Says that an administrator prepared this node to be filled from the other one.
    static func joining(_ configuration: MirrorConfiguration) -> String { configuration.state + "/joining" }
}

extension DataPlane {
    /// Payloads of batches between the first byte read and the last use: the bound on what is in flight.
    static let arenaBytes = 64 << 20
    static let replayReadBytes = 8 << 20
    static let workerThreads = 6
    static let applierThreads = 4

    /// Opens what is on this node's disks and brings the plain files to the last state that is known to be committed:
    /// journal, recovery, replay of everything since the checkpoint. Blocking, on the data thread, before it runs.
    ///
    /// A crash at any point in here leads back to here: recovery only truncates what was never acknowledged, and the
    /// replay converges from any mixture.
    static func start(
        node: NodeID, configuration: MirrorConfiguration, mirror: MirrorID, reactor: Reactor, logger: Logger,
        report: @escaping @Sendable (DataReport) -> Void
    ) throws -> (plane: DataPlane, summary: LogSummary) {
        let path = StateFiles.journal(configuration)
        // Nothing is written to it before the files were looked at: a start that ends there must leave no trace.
        let journal = try Journal(path: path, mirror: mirror, node: node, reactor: reactor, settles: false)
        let found = journal.report
        logger.notice("journal: \(found)")
        let tree = try openTree(configuration, logger: logger)
        var damage: String?
        if journal.isDamaged {
            damage =
                "journal \(path) is damaged; records in doubt: "
                + found.doubts.prefix(5).map(\.description).joined(separator: "; ")
                + (found.doubts.count > 5 ? "; and more, see `lockstep-dump --verify \(path)`" : "")
        }
        let check = try checkCopy(journal, tree, configuration, node: node, logger: logger)
        try journal.settle()
        damage = damage ?? check.misfit
        // As it is known now: a misfit has been noted, or the right files are back.
        let incomplete = journal.isIncomplete || journal.isDamaged
        let debtFile = DebtFile(path: StateFiles.dirty(configuration), mirror: mirror, node: node)
        let opened = try openLog(
            journal, tree, marked: check.point, isIncomplete: incomplete, isUsable: damage == nil, debtFile,
            logger: logger)
        let committed = opened.committed
        let workers = try WorkerPool(threads: workerThreads, name: "workers")
        let appliers = try WorkerPool(threads: applierThreads, name: "appliers")
        let applier = Applier(
            tree: tree, role: .secondary, reactor: reactor, pool: appliers, jobLimit: applierThreads,
            applied: committed,
            logger: logger)
        let log = MirrorLog(
            node: node, reactor: reactor, journal: journal, applier: applier, arena: Arena(bytes: arenaBytes),
            strict: configuration.mode == .strict, committed: committed, logger: logger)
        log.imageParts = opened.imageParts
        log.appliedTime = try? journal.read(from: committed, limitBytes: 1).first?.header.closedAt
        log.adoptTail(opened.tail, isBehind: incomplete)
        // Its tail holds images too, whether or not there was anything to replay.
        if incomplete, journal.resyncNumber != 0 { applier.goOnImaging() }
        // A copy that is behind takes everything leniently as it is.
        if !incomplete, let last = opened.tail.last { applier.aheadThrough = last.lastSeq }
        let rescue = Rescue(state: configuration.state, reactor: reactor, workers: workers, logger: logger)
        let link = PeerLink(
            node: node, log: log, reader: try JournalReader(path: path), workers: workers, rescue: rescue,
            isIncomplete: incomplete, logger: logger)
        let plane = try DataPlane(
            node: node, configuration: configuration, reactor: reactor, journal: journal, tree: tree, log: log,
            link: link,
            keeper: DebtKeeper(
                file: debtFile, debt: opened.debt, reactor: reactor, workers: workers, logger: logger),
            workers: workers, logger: logger, report: report)
        plane.markedPoint = check.point
        let voteLife = check.point == nil ? nil : try tree.marker().map { ($0.voteBirth, $0.voteStarts) }
        // Kept in every marker until newer votes are on the disk: were votes that were put back forgotten by the next
        // checkpoint, the next start would vote with them.
        if let voteLife { plane.votes = voteLife }
        ThreadPriority.raise()
        let summary = LogSummary(
            isComplete: damage == nil && (found.wasStoppedCleanly || found.superblock.isStrict),
            isUsable: !incomplete, lastEpoch: journal.lastEpoch, lastSeq: journal.lastSeq,
            committed: LogMark(
                epoch: journal.epochs.epoch(of: journal.committedSeq) ?? .none, seq: journal.committedSeq),
            voteLife: voteLife, damage: damage)
        return (plane, summary)
    }

    /// The plain files. A new, empty disk at a mount point of its own is taken as it is: the other node fills it. The bare
    /// place where a disk is to be mounted is not, or the files would come to lie on the wrong one.
    private static func openTree(_ configuration: MirrorConfiguration, logger: Logger) throws -> PlainTree {
        let isNewDisk = try PlainTree.look(at: configuration.backing) == .empty(isMountPoint: true)
        if isNewDisk { logger.critical("\(configuration.backing) is an empty file system: the disk was replaced") }
        return try PlainTree(
            backing: configuration.backing, state: configuration.state, opening: isNewDisk ? .create : .existing,
            logger: logger)
    }

    /// Whether journal and files belong together. If not, that is in the journal when this returns: the files are still as
    /// they were found, so that a crash before leads here again.
    private static func checkCopy(
        _ journal: Journal, _ tree: PlainTree, _ configuration: MirrorConfiguration, node: NodeID, logger: Logger
    ) throws -> (point: TreeMarker.Point?, misfit: String?) {
        let found = journal.report
        // Each start counts the journal's life on: after a misfit, the life counts in which it was found.
        let life = journal.misfitLife ?? found.superblock.incarnation
        let side = CopyCheck.JournalSide(
            instance: journal.instance, checkpoint: journal.checkpointSeq, last: journal.lastSeq,
            incarnation: life.rawValue, isDamaged: journal.isDamaged)
        let verdict = CopyCheck.verdict(try tree.marker(), side) { journal.chain(at: $0) }
        if case .fits(let point) = verdict {
            guard journal.misfitLife != nil else { return (point, nil) }
            // The table is that of the files that were here meanwhile, and they may look like these: a snapshot of them.
            try tree.rebuildTable()
            if journal.isDamaged {
                try journal.forgetMisfitNow()
            } else {
                logger.notice("\(configuration.backing) is the right disk again: this copy counts as before")
                try journal.endMisfitNow()
            }
            return (point, nil)
        }
        let words = verdict.words(
            backing: configuration.backing, journal: StateFiles.journal(configuration),
            other: configuration.node(node.peer).name)
        logger.critical("\(words)")
        // On the disk BEFORE the table is: else a crash in between leaves a wrong table and nothing that says so.
        let isOfFiles = verdict.isOfFiles && !journal.isDamaged
        if !journal.isIncomplete || journal.resyncNumber != 0 {
            try journal.setMisfitNow(life: isOfFiles ? life : nil)
        } else if journal.misfitLife != nil, !isOfFiles {
            try journal.forgetMisfitNow()
        }
        // Nor does the table of their handles.
        try tree.rebuildTable()
        return (nil, words)
    }

    /// What the journal and the files amount to at the start.
    private struct Opened {
        /// In the plain files.
        var committed: Seq
        var tail: [Batch] = []
        /// What the other node may lack; nil on a copy that is incomplete itself.
        var debt: Debt?
        var imageParts = ImageParts()
    }

    /// Brings the files to the last state that is known to be committed.
    ///
    /// On an incomplete copy too, as far as its journal goes: what this node said to have on its disk counts, and the
    /// resynchronisation goes on behind it. If that cannot be done, nothing is lost: the copy is compared.
    private static func openLog(
        _ journal: Journal, _ tree: PlainTree, marked: TreeMarker.Point?, isIncomplete: Bool, isUsable: Bool,
        _ debtFile: DebtFile, logger: Logger
    ) throws -> Opened {
        // What is in the files was committed, also when no batch on this disk says so.
        let marked = min(marked?.seq ?? .zero, journal.lastSeq)
        let committed = max(journal.report.knownCommittedSeq, journal.checkpointSeq, marked)
        var opened = Opened(committed: committed)
        guard isIncomplete else {
            var debt = DebtKeeper.load(debtFile, journal: journal, logger: logger)
            opened.tail = try readAll(journal, from: committed.next)
            try replay(journal, tree, through: committed, isBehind: false, tail: opened.tail, logger: logger) {
                debt.note($0)
            }
            for batch in opened.tail { debt.note(batch) }
            opened.debt = debt
            return opened
        }
        let nothing = Opened(committed: journal.checkpointSeq)
        guard isUsable, journal.resyncNumber != 0 else {
            // Of a damaged journal, the number may be that of a resynchronisation that was finished long ago.
            journal.forgetResync()
            return nothing
        }
        do {
            opened.tail = try readAll(journal, from: committed.next)
            try replay(journal, tree, through: committed, isBehind: true, tail: opened.tail, logger: logger) {
                opened.imageParts.note($0)
            }
            return opened
        } catch {
            logger.error("this copy is incomplete and cannot be continued: \(error); it will be compared as a whole")
            journal.forgetResync()
            return nothing
        }
    }

    /// Converges the plain files to the state after `committed`, then makes that the checkpoint.
    /// - Parameters:
    ///   - tail: what the journal has above `committed`; part of it may be in the files.
    ///   - note: hears of every batch, once.
    private static func replay(
        _ journal: Journal, _ tree: PlainTree, through committed: Seq, isBehind: Bool, tail: [Batch], logger: Logger,
        note: (Batch) -> Void
    ) throws {
        var ahead = RecordsAhead()
        for batch in tail { ahead.note(batch) }
        let checkpoint = journal.checkpointSeq
        // Also for the sake of what is in the files and the file table does not know.
        guard committed > checkpoint || !isBehind && !ahead.isEmpty else { return }
        let started = BootClock.now
        var isFirstPass = true
        _ = try tree.replay(after: checkpoint, through: committed, isBehind: isBehind, ahead: ahead) {
            (visit) throws(TreeError) in
            var next = checkpoint.next
            defer { isFirstPass = false }
            while next <= committed {
                let batches: [Batch]
                do {
                    batches = try journal.read(from: next, limitBytes: replayReadBytes)
                } catch {
                    throw TreeError(
                        "read record \(next) from the journal", "\(error)", code: EIO,
                        remedy: "`lockstep-dump --verify` says what is readable")
                }
                guard let last = batches.last else { return }
                for batch in batches {
                    if isFirstPass { note(batch) }
                    try visit(batch)
                }
                next = last.lastSeq.next
            }
        }
        logger.notice(
            "plain files brought to record \(committed) from \(checkpoint)",
            metadata: ["milliseconds": "\((BootClock.now - started) / 1_000_000)"])
    }

    /// The tail above what is known to be committed: never more than was in flight.
    private static func readAll(_ journal: Journal, from first: Seq) throws -> [Batch] {
        var batches: [Batch] = []
        var next = first
        while next <= journal.lastSeq {
            let more = try journal.read(from: next, limitBytes: replayReadBytes)
            guard let last = more.last else { break }
            batches += more
            next = last.lastSeq.next
        }
        return batches
    }
}

/// Threads that others wait for come before those that work in the background.
enum ThreadPriority {
    /// The data and control threads wake appliers and workers in the middle of what the application waits for; without
    /// precedence the woken thread takes the processor at once. Called when their pools exist: threads inherit it.
    static let nice: Int32 = -10

    static func raise() {
        // Refused only without the right to do it; then everything works, a little slower.
        _ = setpriority(__priority_which_t(PRIO_PROCESS.rawValue), id_t(clinux_thread_id()), nice)
    }
}
