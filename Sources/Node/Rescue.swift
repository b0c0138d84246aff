import Format
import Journal
import Logging
import Replication
import Ring

/// Saves what this node is about to give up and may have acknowledged, before the cut or the reset that loses it. Confined
/// to the data thread; the work is done on a worker.
///
/// ```
///  told to cut, or to begin anew ─▶ may it have been acknowledged? ─no──────────────────────────▶ cut or reset
///                                        │ yes (DivergedTail)                                          ▲
///                                        ▼                                                             │
///              what the journal has on this disk ─▶ rescue journal, durable ── everything there ──────┤
///                                                          │ not saved whole                           │
///                                                          ▼                                           │
///                                            held back, in `status` ── `lockstep rejoin --discard` ────┘
/// ```
///
/// If the process dies anywhere, the log is as it was, and the next connection comes here again: the same records lead to
/// the same file, which is there already or is written anew. If the connection is lost while it is written, the file
/// stays and is found. What cannot be saved (no room, an error, records older than the journal, damage) holds this node
/// back: it takes part in nothing until an administrator has mended the cause, or says in words that it may go.
///
/// What waits in memory for room in the journal is saved from there: nothing here is applied any more, so a journal that
/// is full of records that are not committed gets no room before the cut.
final class Rescue {
    let directory: String
    private let journal: String
    private let reactor: Reactor
    private let workers: WorkerPool
    private let logger: Logger
    private var isSaving = false
    private var waiting: Request?
    /// An administrator has said that what cannot be saved may go. Until this process ends, or the node is whole again.
    private var mayDiscard = false
    /// Why this node is not brought back; nil when it is not held back.
    private(set) var heldBack: String? {
        didSet { if heldBack != oldValue { onHeldBack?(heldBack) } }
    }
    private(set) var files: [String]
    var onHeldBack: ((String?) -> Void)?

    private struct Request {
        var common: Seq
        var last: Seq
        var queued: [Batch]
        var now: Int64
        /// Whether it may go on now; not called when the answer is no.
        var isWanted: () -> Bool
        var then: () -> Void
    }

    init(state: String, reactor: Reactor, workers: WorkerPool, logger: Logger) {
        directory = state + "/rescue"
        journal = state + "/journal"
        self.reactor = reactor
        self.workers = workers
        self.logger = logger
        files = RescueWriter.list(directory)
    }

    /// Saves everything above `common`, then goes on if it is still wanted.
    /// - Parameter queued: the end of the log that is not in the journal.
    func save(
        above common: Seq, through last: Seq, queued: [Batch], now: Int64, isWanted: @escaping () -> Bool,
        then: @escaping () -> Void
    ) {
        save(Request(common: common, last: last, queued: queued, now: now, isWanted: isWanted, then: then))
    }

    private func save(_ request: Request) {
        guard !isSaving else {
            waiting = request
            return
        }
        isSaving = true
        logger.critical(
            """
            records \(request.common.next) to \(request.last) are not part of the mirror any more, and may have been acknowledged here: \
            they are saved in \(directory) before they are given up
            """)
        let writer = RescueWriter(directory: directory, journal: journal)
        let (common, last, queued, now) = (request.common, request.last, request.queued, request.now)
        let handle = reactor.handle
        let bound = ThreadBound({ [self] (result: Result<RescueResult, JournalError>) in saved(result, request) })
        workers.submit {
            let result = Result { () throws(JournalError) in
                try writer.save(above: common, through: last, queued: queued, now: now)
            }
            _ = handle.post { bound.value(result) }
        }
    }

    private func saved(_ result: Result<RescueResult, JournalError>, _ request: Request) {
        isSaving = false
        files = RescueWriter.list(directory)
        if let next = waiting {
            // Planned anew meanwhile.
            waiting = nil
            return save(next)
        }
        guard request.isWanted() else { return }
        switch result {
        case .success(let result):
            logger.critical(
                """
                saved: \(result.path), records \(result.header.firstSaved) to \(result.header.lastSaved)\
                \(result.wasThere ? ", already there" : ""). `lockstep-dump` lists and extracts them
                """)
            guard result.missing.isEmpty || mayDiscard else {
                return holdBack(
                    "not everything that only this node has could be saved (\(result.missing.joined(separator: "; "))); "
                        + "the rest is in \(result.path). It may still be in the plain files: copy `backing` away if "
                        + "that counts, then `lockstep rejoin --discard` lets this node be brought back")
            }
        case .failure(let error):
            guard mayDiscard else {
                return holdBack(
                    "records \(request.common.next) to \(request.last), which only this node has, cannot be saved: "
                        + "\(error). Mend that and restart lockstepd here; `lockstep rejoin --discard` gives them up")
            }
            logger.critical(
                "given up by an administrator, not saved: records \(request.common.next) to \(request.last)")
        }
        heldBack = nil
        request.then()
    }

    private func holdBack(_ text: String) {
        logger.critical("this node is not brought back: \(text)")
        heldBack = text
    }

    /// `lockstep rejoin --discard`.
    func allowDiscarding() { mayDiscard = true }

    /// The node is whole, or was cut: what was allowed is used up.
    func isOver() {
        mayDiscard = false
        heldBack = nil
    }
}
