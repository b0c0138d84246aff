import Format
import Journal
import Logging
import Replication
import Ring

/// Remembers what the other node lacks while it is not in sync, in memory and on disk. Confined to the data thread; the
/// file is written on a worker.
///
/// ```
///             a set without the other node may be in force
///   idle ──────────────────────────────────────────────────▶ noting ── checkpoint ──▶ writing
///     ▲                                                       ▲  │                       │
///     └─── both are recorded in sync, or this node follows ───┼──┘                       │
///                                                             └───────── durable ────────┘
/// ```
///
/// `idle` is right because everything that this node knows to be committed is then on both disks. What is logged and
/// not committed when noting begins is taken from memory (`startNoting`).
///
/// If this node dies:
/// * before the first file is written: no checkpoint has moved since noting began, so the journal above the checkpoint
///   holds everything that must be noted, and the start notes it (`load`);
/// * between the file and the checkpoint: the file is newer than the checkpoint. Records are noted twice, which is
///   harmless;
/// * while the file is written: the old one stays, and the checkpoint that belongs to it;
/// * after both nodes are in sync, before the file is gone: it names too much, or does not fit the journal any more.
///
/// Writing the file and removing it are done by whatever worker is free, so one is begun only when the other has ended:
/// else a removal that was late would take away the file of the next time, and with it all that is known.
final class DebtKeeper {
    private(set) var debt: Debt?
    private let file: DebtFile
    private let reactor: Reactor
    private let workers: WorkerPool
    private let logger: Logger
    /// What is noted while `debt` is being written: the copy on the worker must stay the only other one.
    private var fresh: DirtyMap?
    /// What the other disk has confirmed meanwhile.
    private var confirmed: [(image: Debt.Image, seq: Seq)] = []
    private var waiting: [Request] = []
    /// How far the file has been written, or tried: it never says less again. A checkpoint may be on its way to the journal,
    /// and the file that was written for it must go on fitting it.
    private var furthest: (through: Seq, chain: UInt64)?
    private var isFileThere = true
    private var isRemoving = false
    private let removal: @Sendable (String) -> Void
    /// Of what is noted from now on.
    var budgetBytes = DirtyMap.defaultBudgetBytes

    private struct Request {
        var through: Seq
        var chain: UInt64
        var done: (Bool) -> Void
    }

    /// - Parameter removal: removes the file.
    init(
        file: DebtFile, debt: Debt?, reactor: Reactor, workers: WorkerPool, logger: Logger,
        removal: @escaping @Sendable (String) -> Void = { try? StateFile.remove($0) }
    ) {
        self.removal = removal
        self.file = file
        self.debt = debt
        self.reactor = reactor
        self.workers = workers
        self.logger = logger
    }

    var terms: Debt.Terms? { debt?.terms }
    var isWriting: Bool { fresh != nil }
    var byteCount: Int { (debt?.byteCount ?? 0) + (fresh?.byteCount ?? 0) }

    // MARK: - Noting

    /// From now on everything is noted.
    /// - Parameters:
    ///   - base: everything up to here is on the other node's disk.
    ///   - batches: logged above it; earlier ones may be among them.
    func startNoting(base: Seq, batches: [Batch]) {
        guard debt == nil else { return }
        var debt = Debt(base: base, budgetBytes: budgetBytes)
        for batch in batches where batch.lastSeq > base { debt.note(batch) }
        self.debt = debt
    }

    /// Both nodes are recorded in sync, or this node follows the other one: nothing is owed.
    func stopNoting() {
        guard debt != nil else { return }
        debt = nil
        furthest = nil
        confirmed = []
        removeFile()
    }

    func note(_ batch: Batch) {
        guard debt != nil else { return }
        if fresh != nil { fresh?.note(batch) } else { debt?.note(batch) }
    }

    // MARK: - A resynchronisation

    /// See `Debt.begin`.
    /// - Precondition: nothing is being written.
    func begin(number: UInt64, start: Seq, way: ReturnWay, common: Seq) {
        precondition(!isWriting, "the debt is being written")
        debt?.begin(number: number, start: start, way: way, common: common)
    }

    /// The other disk and this one hold `image`, which ends at record `seq`.
    func confirm(_ image: Debt.Image, at seq: Seq) {
        if isWriting { confirmed.append((image, seq)) } else { debt?.confirm(image, at: seq) }
    }

    // MARK: - The file

    /// Writes what is known now; `done` hears whether it is on disk.
    /// - Parameters:
    ///   - through: the end of a batch that is on this disk; everything up to it is noted.
    ///   - chain: of the journal there.
    func persist(through: Seq, chain: UInt64, done: @escaping (Bool) -> Void) {
        guard debt != nil else { return done(true) }
        waiting.append(Request(through: through, chain: chain, done: done))
        if !isWriting, !isRemoving { write() }
    }

    /// The worker's copy: given up before the data thread goes on, so that noting copies nothing.
    private final class Copy: Sendable {
        nonisolated(unsafe) private var contents: DebtFile.Contents?
        // Unsafe because no lock protects it: the worker alone touches it between the two hand-overs, which are ordered.
        init(_ contents: DebtFile.Contents) { unsafe self.contents = contents }
        func encode(for file: DebtFile) -> [UInt8] {
            defer { unsafe contents = nil }
            return unsafe contents.map { file.encode($0) } ?? []
        }
    }

    private func write() {
        guard let debt, let request = waiting.max(by: { $0.through < $1.through }) else { return }
        let requests = waiting
        var last = (through: request.through, chain: request.chain)
        if let furthest, furthest.through > last.through { last = furthest }
        furthest = last
        waiting = []
        fresh = DirtyMap(budgetBytes: budgetBytes)
        isFileThere = true
        let copy = Copy(DebtFile.Contents(through: last.through, chain: last.chain, debt: debt))
        let file = file
        let handle = reactor.handle
        let bound = ThreadBound({ [self] (failure: StateFile.Failure?) in written(requests, failure) })
        workers.submit {
            var failure: StateFile.Failure?
            let bytes = copy.encode(for: file)
            do throws(StateFile.Failure) { try StateFile.replace(file.path, with: bytes) } catch { failure = error }
            _ = handle.post { [failure] in bound.value(failure) }
        }
    }

    private func written(_ requests: [Request], _ failure: StateFile.Failure?) {
        if let fresh { debt?.add(fresh) }
        fresh = nil
        for (image, seq) in confirmed { debt?.confirm(image, at: seq) }
        confirmed = []
        if let failure {
            // The old file does not fit the checkpoint that follows: a restart then compares the files.
            logger.error("\(failure); if this node restarts now, the other one's files are compared as a whole")
        }
        for request in requests { request.done(failure == nil) }
        if debt == nil {
            for request in waiting { request.done(true) }
            waiting = []
            removeFile()
        } else if !waiting.isEmpty {
            write()
        }
    }

    /// Only tidiness: a file that stays is refused by the next start, or names more than it must.
    private func removeFile() {
        guard isFileThere, !isWriting, !isRemoving else { return }
        isFileThere = false
        isRemoving = true
        let path = file.path
        let removal = removal
        let handle = reactor.handle
        let bound = ThreadBound({ [self] in removed() })
        workers.submit {
            removal(path)
            _ = handle.post { bound.value() }
        }
    }

    private func removed() {
        isRemoving = false
        guard !waiting.isEmpty else { return }
        guard debt == nil else { return write() }
        for request in waiting { request.done(true) }
        waiting = []
    }
}

extension DebtKeeper {
    /// What the disk knows: the file, if it belongs to this journal as it is, else nothing before the checkpoint. The
    /// caller notes every record above the checkpoint.
    static func load(_ file: DebtFile, journal: Journal, logger: Logger) -> Debt {
        do {
            guard let found = try file.load() else { return Debt(base: journal.checkpointSeq) }
            let doubt: String
            if found.through < journal.checkpointSeq {
                doubt = "it ends at record \(found.through), the checkpoint is at \(journal.checkpointSeq)"
            } else if journal.chain(at: found.through) != found.chain {
                doubt = "record \(found.through) is another one in the journal"
            } else if found.debt.sinceBase > journal.lastSeq {
                doubt = "the journal ends at record \(journal.lastSeq), before the last resynchronisation began"
            } else {
                return found.debt
            }
            logger.notice("\(file.path) does not belong to the journal as it is: \(doubt)")
        } catch {
            logger.error(
                "\(file.path) cannot be used: \(error). Nothing is lost; the other node's files may have to be compared"
            )
        }
        return Debt(base: journal.checkpointSeq)
    }
}
