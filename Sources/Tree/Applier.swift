public import Format
internal import Glibc
public import Logging
public import Ring
internal import Synchronization

/// Applies committed records to the plain files, on worker threads, and tells the data thread.
///
/// Confined to the thread of its reactor. Batches are held until their last record is applied: what is not applied yet
/// keeps its memory, and that is the backpressure.
///
/// ```
///  data thread                                    worker threads
///    submit ──> ConflictSchedule ── runs ───────────> PlainTree.apply
///    onWatermark <── one post for all ─────────── results
/// ```
///
/// Hand-overs cost more than a 4 KiB write, so they are few: the records that are ready are dealt out in one job for
/// each worker that has nothing to do, consecutive records of one file go together (its times are set once), and
/// results are posted once while a post is under way.
public final class Applier {
    public let tree: PlainTree
    /// Changes when a node is promoted or steps down, and when its copy becomes incomplete or complete.
    public var role: ApplyRole
    /// Everything up to here is in the plain files.
    public var onWatermark: (Seq) -> Void = { _ in }
    /// What this node found at a record of a verification, before any later record of that file was applied.
    public var onVerified: (Seq, VerifyCheck, VerifyOutcome) -> Void = { _, _, _ in }
    /// The first record that could not be applied. Nothing that touches the same files is applied after it, and the
    /// watermark stays before it. Called again when one fails after `retry`, and when one fails for another reason than
    /// a full disk after one that did for that.
    public var onFailure: (Seq, TreeError) -> Void = { _, _ in }

    private let reactor: Reactor
    private let pool: WorkerPool
    private let jobLimit: Int
    private let logger: Logger
    private var schedule: ConflictSchedule
    /// Batches with records not applied yet, by first seq, oldest first.
    private var batches: [Batch] = []
    /// Runs that may start and have no worker yet.
    private var light: [[Work]] = []
    private var heavy: [[Work]] = []
    /// Those that begin with a question of a verification.
    private var questions: [[Work]] = []
    private var jobs = 0
    /// Jobs with runs that may take long, questions included.
    private var heavyJobs = 0
    private var isAnswering = false
    private var stopped: [(seqs: [Seq], error: TreeError)] = []
    private var isImaging: Bool
    public private(set) var failure: (seq: Seq, error: TreeError)?
    private let results = Results()
    /// Runs handed to one worker at once: few hand-overs, and still a share for each worker.
    private static let runsPerJob = 32
    /// The same of those that may take long, on a copy that is brought up to date: there most do not (a size that is set is
    /// mostly the size it has), and nobody waits for one of them.
    private static let heavyRunsPerJobBehind = 8
    /// Questions handed to one worker at once: most are of small files and take less time than the hand-over.
    private static let questionsPerJob = 8

    /// Results on their way to the data thread.
    private final class Results: Sendable {
        struct State {
            var finished: [Seq] = []
            var verified: [(seq: Seq, check: VerifyCheck, outcome: VerifyOutcome)] = []
            /// The record that failed, and those of the same file that were to follow it.
            var failures: [([Seq], TreeError)] = []
            var jobsEnded = 0
            var heavyJobsEnded = 0
            var hasAnswered = false
            var isPosted = false
        }
        let state = Mutex(State())
    }

    /// - Parameters:
    ///   - applied: everything up to this record is in the plain files already.
    ///   - jobLimit: workers that may be busy at once.
    public init(
        tree: PlainTree, role: ApplyRole, reactor: Reactor, pool: WorkerPool, jobLimit: Int = 4, applied: Seq,
        logger: Logger
    ) {
        precondition(jobLimit > 0, "nobody to apply")
        self.tree = tree
        self.role = role
        self.reactor = reactor
        self.pool = pool
        self.jobLimit = jobLimit
        self.logger = logger
        isImaging = tree.isImaging
        schedule = ConflictSchedule(applied: applied)
    }

    /// Everything up to here is in the plain files.
    public var lowWatermark: Seq { schedule.lowWatermark }
    /// Records handed in and not applied.
    public var backlog: Int { schedule.unfinished }
    /// When its call began that has been under way for longest, on the boot clock in nanoseconds; nil: none is.
    public var oldestStart: UInt64? { pool.oldestStart }

    /// Finishes what was handed out and ends its threads: nothing touches the files any more. After the data thread's end.
    public func shutdown() { pool.shutdown() }

    /// Begins anew behind `seq`, for a log that was reset.
    /// - Precondition: nothing is being applied.
    public func reset(applied seq: Seq) {
        precondition(backlog == 0 && failure == nil, "a reset while records are being applied")
        schedule = ConflictSchedule(applied: seq)
        batches = []
        aheadThrough = .zero
    }

    /// A resynchronisation that was broken off goes on: what comes next is applied leniently from its first record.
    public func goOnImaging() {
        tree.goOnImaging()
        isImaging = true
    }

    /// Records up to here may be in the files already, in part: a crash left them ahead of what the disk knew to be
    /// committed. They are applied one name at a time, and what they find neither before nor after is no error: a file that
    /// is renamed and then removed is not there to be renamed again.
    public var aheadThrough = Seq.zero

    /// Hands in the records of some batches: those that every in-sync node has on its disk. Batches come in order. Those
    /// that are ready at once go in together: dealt out one by one, each would wake a worker.
    public func submit(_ batches: some Sequence<Batch>) {
        for batch in batches { enter(batch) }
        deal()
    }

    private func enter(_ batch: Batch) {
        var seq = schedule.lastAdded.next
        // What is known to be committed at the start may end inside a batch.
        precondition(batch.firstSeq <= seq && seq <= batch.lastSeq, "a batch is missing before \(batch.firstSeq)")
        batches.append(batch)
        while seq <= batch.lastSeq {
            let record = batch.records[seq - batch.firstSeq]
            if record.body.isImageMark, role == .behind { isImaging = record.body.kind == .imageStart }
            // While images come, names move between directories that no record names: one at a time.
            let isBarrier =
                record.body.isImageMark || record.isImage && record.body.kind == .imageDirectory
                || isImaging && record.body.isNamespace
            let isAgain = seq < aheadThrough && record.body.isNamespace || seq == aheadThrough
            schedule.add(seq, touched: record.body.ordered, isBarrier: isBarrier && role == .behind || isAgain)
            seq = seq.next
        }
    }

    // MARK: Handing out

    private struct Work: Sendable {
        let batch: Batch
        let seq: Seq
        let settingTimes: Bool
        let again: Again
        var isQuestion: Bool { record.body.kind == .verify }
        var isImage: Bool { record.isImage || record.body.isImageMark }
        var record: Record { batch.records[seq - batch.firstSeq] }
    }

    private enum Again { case no, yes, last }

    private func deal() {
        var passed: [Seq] = []
        while let run = schedule.take() {
            let work = work(of: run)
            if role != .behind, work.allSatisfy({ $0.isImage && $0.again == .no }) {
                // A copy of what is here already: no worker need wake up to find that.
                passed += run.seqs
            } else if work[0].isQuestion {
                questions.append(work)
            } else if work.contains(where: { Applier.isHeavy($0.record.body) }) {
                heavy.append(work)
            } else {
                light.append(work)
            }
        }
        // In a turn of its own, as everything else that is finished: whoever hands in records is not called back meanwhile.
        if !passed.isEmpty {
            Applier.report(results, reactor.handle, ThreadBound(self), urgent: true) { $0.finished += passed }
        }
        let heavyLimit = max(jobLimit - 1, 1)
        while jobs < jobLimit {
            let hasHeavyRoom = heavyJobs < heavyLimit
            let mayBeHeavy = hasHeavyRoom && !heavy.isEmpty
            var mayAnswer = hasHeavyRoom && !questions.isEmpty && !isAnswering
            guard !light.isEmpty || mayBeHeavy || mayAnswer else { return }
            let idle = jobLimit - jobs
            let count = min(Applier.runsPerJob, (light.count + idle - 1) / idle)
            let share = Array(light.prefix(count))
            light.removeFirst(count)
            jobs += 1
            var heavyShare: [[Work]] = []
            if mayBeHeavy {
                let idle = heavyLimit - heavyJobs
                let limit = role == .behind ? Applier.heavyRunsPerJobBehind : 1
                heavyShare = Array(heavy.prefix(min(limit, (heavy.count + idle - 1) / idle)))
                heavy.removeFirst(heavyShare.count)
                // Rather in a job of its own; behind others if there is none left, or they would never be answered.
                if heavyJobs + 1 < heavyLimit, jobs < jobLimit { mayAnswer = false }
            }
            var asked: [[Work]] = []
            if mayAnswer {
                asked = Array(questions.prefix(Applier.questionsPerJob))
                questions.removeFirst(asked.count)
                isAnswering = true
            }
            if !heavyShare.isEmpty || !asked.isEmpty { heavyJobs += 1 }
            start(share, heavy: heavyShare, questions: asked)
        }
    }

    /// May take as long as the file is large, so it goes last in its job and never keeps all workers busy. Questions of
    /// a verification are dealt last, to one worker at a time: 64 of them would stand in front of the application's
    /// unlink.
    private static func isHeavy(_ body: RecordBody) -> Bool {
        switch body {
        case .remove(_, _, _, _, let wasLast): wasLast
        case .rename(_, _, _, _, _, _, _, let replacedWasLast): replacedWasLast
        case .setAttributes(_, let mask, _): mask.contains(.size)
        case .allocate, .imageEnd, .imageDirectory, .verify: true
        default: false
        }
    }

    private func work(of run: ConflictSchedule.Run) -> [Work] {
        var work: [Work] = []
        for (index, seq) in run.seqs.enumerated() {
            let batch = batch(of: seq)
            var settingTimes = true
            // The next record of the run is of the same file and sets its own time. An image does not, where it comes from:
            // it is not applied there.
            if index + 1 < run.seqs.count {
                let next = run.seqs[index + 1]
                let nextBatch = self.batch(of: next)
                let record = nextBatch.records[next - nextBatch.firstSeq]
                let isImage = batch.records[seq - batch.firstSeq].isImage
                let setsTimes = record.body.kind == .write || record.body.kind == .imageFile
                settingTimes = !setsTimes || record.isImage != isImage
            }
            let again: Again = seq < aheadThrough ? .yes : seq == aheadThrough ? .last : .no
            work.append(Work(batch: batch, seq: seq, settingTimes: settingTimes, again: again))
        }
        return work
    }

    private func batch(of seq: Seq) -> Batch {
        var low = 0
        var high = batches.count
        while low < high {
            let middle = (low + high) / 2
            if batches[middle].lastSeq < seq { low = middle + 1 } else { high = middle }
        }
        precondition(low < batches.count && batches[low].firstSeq <= seq, "record \(seq) has no batch")
        return batches[low]
    }

    private func start(_ runs: [[Work]], heavy: [[Work]], questions: [[Work]]) {
        let tree = tree
        let role = role
        let results = results
        let handle = reactor.handle
        let me = ThreadBound(self)
        let job: @Sendable () -> Void = {
            for run in runs { Applier.apply(run, to: tree, role, results, handle, me) }
            // What is done must not wait for one that takes long.
            if !runs.isEmpty, !heavy.isEmpty || !questions.isEmpty {
                Applier.report(results, handle, me, urgent: true) { _ in }
            }
            for run in heavy { Applier.apply(run, to: tree, role, results, handle, me) }
            if !heavy.isEmpty, !questions.isEmpty { Applier.report(results, handle, me, urgent: true) { _ in } }
            for run in questions {
                Applier.apply(run, to: tree, role, results, handle, me)
                // Records of that file wait for it.
                Applier.report(results, handle, me, urgent: true) { _ in }
            }
            Applier.report(results, handle, me, urgent: true) {
                $0.jobsEnded += 1
                if !heavy.isEmpty || !questions.isEmpty { $0.heavyJobsEnded += 1 }
                if !questions.isEmpty { $0.hasAnswered = true }
            }
        }
        // A worker that wakes may take the processor: first leaves what others wait for.
        reactor.lastInIteration { [pool] in pool.submit(job) }
    }

    private static func apply(
        _ run: [Work], to tree: PlainTree, _ role: ApplyRole, _ results: Results, _ handle: ReactorHandle,
        _ me: ThreadBound<Applier>
    ) {
        for (index, work) in run.enumerated() {
            let place = work.seq - work.batch.firstSeq
            if case .verify(let check) = work.batch.records[place].body {
                let outcome = tree.verify(check)
                report(results, handle, me) {
                    $0.finished.append(work.seq)
                    $0.verified.append((work.seq, check, outcome))
                }
                continue
            }
            do throws(TreeError) {
                try unsafe tree.apply(
                    work.batch.records[place], payload: work.batch.payload(of: place), role: role,
                    settingTimes: work.settingTimes, again: work.again != .no)
                if work.again == .last { try tree.clearStaging() }
                report(results, handle, me) { $0.finished.append(work.seq) }
            } catch {
                // What follows in this run touches the same file. Other runs do not.
                let stopped = run[index...].map(\.seq)
                report(results, handle, me) { $0.failures.append((stopped, error)) }
                return
            }
        }
    }

    /// Adds to the results. They are posted when a job ends or when enough have gathered, so that waiting readers do
    /// not wait for a whole job.
    private static func report(
        _ results: Results, _ handle: ReactorHandle, _ me: ThreadBound<Applier>, urgent: Bool = false,
        _ add: (inout Results.State) -> Void
    ) {
        let mustPost = results.state.withLock { state in
            add(&state)
            guard !state.isPosted, urgent || state.finished.count >= 64 || !state.failures.isEmpty else { return false }
            state.isPosted = true
            return true
        }
        if mustPost { _ = handle.post { me.value.collect() } }
    }

    /// Tries the records again for which there was no room. Those that failed for another reason are not: an error is
    /// told by the kernel once, then all seems well.
    public func retry() {
        for (seqs, error) in stopped where error.isOutOfSpace { schedule.putBack(seqs) }
        stopped.removeAll { $0.error.isOutOfSpace }
        failure = stopped.first.map { ($0.seqs[0], $0.error) }
        deal()
    }

    // MARK: Results

    private func collect() {
        let (finished, verified, failures) = results.state.withLock { state in
            defer { state = Results.State() }
            jobs -= state.jobsEnded
            heavyJobs -= state.heavyJobsEnded
            if state.hasAnswered { isAnswering = false }
            return (state.finished, state.verified, state.failures)
        }
        let before = schedule.lowWatermark
        for seq in finished { schedule.finish(seq) }
        var firstFailure: (seq: Seq, error: TreeError)?
        for (seqs, error) in failures {
            stopped.append((seqs, error))
            // Of a full disk, whoever tries again says it, once.
            if !error.isOutOfSpace {
                logger.error(
                    "a record cannot be applied", metadata: ["apply.seq": "\(seqs[0])", "apply.error": "\(error)"])
            }
            if failure.map({ $0.error.isOutOfSpace && !error.isOutOfSpace }) ?? true {
                failure = (seqs[0], error)
                firstFailure = failure
            }
        }
        var done = 0
        while done < batches.count, batches[done].lastSeq <= schedule.lowWatermark { done += 1 }
        if done > 0 { batches.removeFirst(done) }
        deal()
        for (seq, check, outcome) in verified { onVerified(seq, check, outcome) }
        if schedule.lowWatermark > before { onWatermark(schedule.lowWatermark) }
        if let firstFailure { onFailure(firstFailure.seq, firstFailure.error) }
    }
}

extension RecordBody {
    /// What orders the record among others: what it touches, and one queue for all moves between directories. Two of those
    /// may share nothing and still have an order: a directory moves out of another one before that moves into what the
    /// first contains. The other way round the file system refuses (EINVAL). Whether it is a directory that moves, the
    /// record does not say.
    var ordered: [FileID] {
        guard case .rename(_, let parent, _, let newParent, _, _, _, _) = self else { return touched }
        return parent == newParent ? touched : touched + [RecordBody.moves]
    }
    /// No file has this number: bit 63 is never set.
    private static let moves = FileID(rawValue: .max)

    /// Changes names.
    var isNamespace: Bool {
        switch self {
        case .create, .link, .remove, .rename: true
        default: false
        }
    }
}
