import Format
import Foundation
import Replication
import Ring

/// Verification on one node: answers what the other node asks, and on the primary begins, pauses, resumes and ends
/// verifications, by request or by the schedule.
///
/// ```
///            start (administrator, schedule), or found unfinished on the disk
///    idle ────────────────────────────────────────────────────────▶ running ⇄ paused (not in sync, not serving here)
///     ▲                                                                │
///     └────────────────── done, stopped, or an error ──────────────────┘
/// ```
///
/// If this process dies, or the service moves, the position is on this node's disk: the verification goes on when this
/// node serves again and both are in sync. On the other node it is not known; the schedule begins one there when it is
/// due. If a question or an answer is lost, so is the connection, and everything under way is asked again.
///
/// Confined to the data thread.
final class Verification {
    private unowned let plane: DataPlane
    private var memory: VerifyMemory
    private(set) var run: VerifyRun?
    /// Of what is read for it, on each node.
    var bucket: TokenBucket
    /// Set by tests.
    var directories = VerifyDirectories()
    private var isStoring = false
    private var mustStore = false
    private var storedAt: UInt64 = 0
    private var checkedScheduleAt: UInt64 = 0
    private var rate = ProgressRate()

    init(plane: DataPlane) {
        self.plane = plane
        memory = VerifyMemory.load(plane.configuration.state)
        bucket = TokenBucket(
            rate: plane.configuration.verify.rateMebibytesPerSecond.map { UInt64($0) << 20 }, now: plane.reactor.now)
    }

    func connect() {
        plane.log.applier.onVerified = { [unowned self] seq, check, outcome in found(seq, check, outcome) }
        plane.link.onVerifyAnswer = { [unowned self] answer in answered(answer) }
    }

    // MARK: - Both sides

    /// This node's applier came to a record of a verification.
    private func found(_ seq: Seq, _ check: VerifyCheck, _ outcome: VerifyOutcome) {
        if let run, check.number == run.number { return run.answered(seq, outcome, own: true) }
        guard plane.log.role == .following else { return }
        plane.link.connection?.send(
            .verifyAnswer(VerifyAnswer(number: check.number, seq: seq, outcome: outcome)))
    }

    private func answered(_ answer: VerifyAnswer) {
        guard let run, answer.number == run.number else { return }
        run.answered(answer.seq, answer.outcome, own: false)
    }

    // MARK: - Orders

    /// Why nothing can be compared now; nil when it can.
    var obstacle: String? {
        guard case .open = plane.phase, plane.log.role == .primary, !plane.draining, !plane.isStopping else {
            return "this node does not serve"
        }
        guard !plane.isFrozen, plane.log.mayAnswer else { return "this node has no lease" }
        let other = plane.configuration.node(plane.node.peer).name
        guard plane.inSyncNow == .both, plane.resync == nil else { return "\(other) is not in sync" }
        guard plane.link.stage == .streaming, !plane.link.isSilent else { return "\(other) is not connected" }
        return nil
    }

    /// - Returns: nil, or why not.
    func start(_ options: VerifyOptions, isScheduled: Bool = false) -> String? {
        guard run == nil else { return "a verification runs already; `lockstep verify --stop` ends it" }
        if let obstacle { return "\(obstacle): two nodes that are in sync are compared, on the one that serves" }
        if let prefer = options.prefer {
            let names = NodeID.allCases.map { plane.configuration.node($0).name }
            guard names.contains(prefer) else {
                return "no node is called \(prefer); there are \(names.joined(separator: " and "))"
            }
        }
        let progress = VerifyProgress(
            options: options, isScheduled: isScheduled, started: Date(), end: plane.log.allocateFileID().rawValue)
        if isScheduled { memory.lastScheduled = Date() }
        memory.findings = []
        plane.logger.notice(
            "verification begins", metadata: ["path": "/\(options.path)", "repair": "\(options.repair)"])
        begin(progress)
        return nil
    }

    private func begin(_ progress: VerifyProgress) {
        let run = VerifyRun(plane: plane, owner: self, progress: progress)
        self.run = run
        rate = ProgressRate()
        memory.current = progress
        store()
        run.schedule()
    }

    /// - Returns: nil, or why not.
    func stop() -> String? {
        if let run {
            run.end("stopped by an administrator")
        } else if let waiting = memory.current {
            conclude(waiting, "stopped by an administrator")
        } else {
            return "no verification runs"
        }
        return nil
    }

    /// The session with the other node is over.
    func interrupted() { run?.interrupt() }

    func ended(_ run: VerifyRun, _ problem: String?) {
        guard run === self.run else { return }
        self.run = nil
        conclude(run.progress, problem)
    }

    private func conclude(_ progress: VerifyProgress, _ problem: String?) {
        memory.current = nil
        memory.findings = progress.findings
        memory.last = VerifySummary(
            options: progress.options, started: progress.started, finished: Date(), isComplete: problem == nil,
            files: progress.files, bytes: progress.bytes, counts: progress.counts, problem: problem)
        store()
        let counts = progress.counts
        let text = problem.map { "verification broken off: \($0)" } ?? "verification done"
        let level = counts.differences == counts.repaired && problem == nil ? "equal" : "different"
        plane.logger.notice(
            "\(text)",
            metadata: [
                "files": "\(progress.files)", "bytes": "\(progress.bytes)", "differences": "\(counts.differences)",
                "repaired": "\(counts.repaired)", "result": "\(level)",
            ])
    }

    // MARK: - Time

    /// Ten times a second.
    func tick() {
        let now = plane.reactor.now
        if let run {
            if obstacle == nil { run.schedule() } else { run.interrupt() }
            rate.note(run.progress.bytes, now: now)
            if now > storedAt + VerifyLimits.storeSeconds * 1_000_000_000 {
                memory.current = run.progress
                store()
            }
        } else if obstacle == nil {
            if let unfinished = memory.current {
                // Of an earlier process. Which disk is the better one may not be what it was.
                guard unfinished.options.prefer == nil else {
                    return conclude(unfinished, "lockstepd was restarted: which node to prefer must be said again")
                }
                plane.logger.notice("verification goes on", metadata: ["position": "\(unfinished.position)"])
                begin(unfinished)
            } else if now > checkedScheduleAt + 10_000_000_000 {
                checkedScheduleAt = now
                startIfDue()
            }
        }
    }

    private func startIfDue() {
        guard let schedule = plane.configuration.verify.at, schedule.isDue(since: memory.lastScheduled, now: Date())
        else { return }
        if let why = start(VerifyOptions(), isScheduled: true) { plane.logger.error("scheduled verification: \(why)") }
    }

    private func store() {
        storedAt = plane.reactor.now
        guard !isStoring else {
            mustStore = true
            return
        }
        isStoring = true
        let memory = memory
        let state = plane.configuration.state
        let handle = plane.reactor.handle
        let bound = ThreadBound({ [self] (failure: String?) in
            isStoring = false
            if let failure { plane.logger.warning("the position of the verification is not kept: \(failure)") }
            if mustStore {
                mustStore = false
                store()
            }
        })
        plane.workers.submit {
            var failure: String?
            do { try memory.store(state) } catch { failure = "\(error)" }
            _ = handle.post { [failure] in bound.value(failure) }
        }
    }

    // MARK: - For status

    /// A part of the findings: of the verification under way, else of the last one.
    func findings(from first: Int, limit: Int) -> [VerifyFinding] {
        let all = run?.progress.findings ?? memory.findings
        return Array(all.dropFirst(max(0, first)).prefix(limit))
    }

    var facts: NodeStatus.Verify? {
        guard run != nil || memory.current != nil || memory.last != nil else { return nil }
        var facts = NodeStatus.Verify()
        if let progress = run?.progress ?? memory.current {
            facts.running = true
            facts.paused = obstacle
            facts.path = "/" + progress.options.path
            facts.repair = progress.options.repair
            facts.scheduled = progress.isScheduled
            facts.started = Verification.text(progress.started)
            facts.files = progress.files
            facts.filesTotal = max(run?.filesTotal ?? 0, progress.files)
            facts.bytes = progress.bytes
            facts.bytesPerSecond = rate.bytesPerSecond
            facts.differences = progress.counts.differences
            facts.repaired = progress.counts.repaired
        }
        facts.last = memory.last.map { last in
            NodeStatus.Verify.Last(
                started: Verification.text(last.started), finished: Verification.text(last.finished),
                complete: last.isComplete, path: "/" + last.options.path, files: last.files, bytes: last.bytes,
                differences: last.counts.differences, repaired: last.counts.repaired, problem: last.problem)
        }
        return facts
    }

    private static func text(_ date: Date) -> String { date.formatted(.iso8601) }
}

/// The rate of the last seconds, from a count that grows.
struct ProgressRate: Sendable {
    private var samples: [(at: UInt64, count: UInt64)] = []
    static let windowNanoseconds: UInt64 = 10_000_000_000
    static let stepNanoseconds: UInt64 = 500_000_000

    /// - Parameter now: nanoseconds.
    mutating func note(_ count: UInt64, now: UInt64) {
        if let last = samples.last, now < last.at + ProgressRate.stepNanoseconds { return }
        samples.append((now, count))
        samples.removeAll { $0.at + ProgressRate.windowNanoseconds < now }
    }

    /// nil until there is something to say.
    var bytesPerSecond: Double? {
        guard let first = samples.first, let last = samples.last, last.at > first.at, last.count >= first.count
        else { return nil }
        return Double(last.count - first.count) / (Double(last.at - first.at) / 1e9)
    }
}
