import Format
import Journal
import Tree

/// The node that is brought back: begins its log anew at the source's base, or goes on where it was broken off, applies
/// what comes, and answers probes.
///
/// ```
///  comparison  waiting ── applier and journal quiet ─────────────────────▶ resetting ─┐
///  ranges      catching ── up to `through` applied and synced ─▶ waiting ─▶ resetting ─┤ durable
///  resumed     ────────────────────────────────────────────────────────────────────────┴▶ receiving
///                                                     done ◀─ finishing ◀─ imageEnd applied ──┘
/// ```
///
/// The connection lost: cancelled; a reset that was begun is finished all the same. This process dying:
/// * catching, waiting: the copy is complete, at its old point, and says so;
/// * resetting: either that, or incomplete with the number of this resynchronisation and an empty log;
/// * receiving: incomplete, with the number, and a log that says how far it is. The next start replays it;
/// * finishing: the same, or complete.
final class ResyncFollower: ResyncSession {
    private enum Phase {
        /// The old point: everything that both nodes have goes to the files and their disk. They are all that is known of
        /// it once the log has begun anew.
        case catching
        case waiting
        case resetting
        case receiving
        /// The checkpoint behind the last image, then the mark in the journal.
        case finishing
        case ended
    }

    private unowned let plane: DataPlane
    private let start: ResyncStart
    private let done: () -> Void
    private var phase: Phase
    private var isCancelled = false
    private var waiting: [Probe] = []
    private var endSeq: Seq?
    private var isCheckpointing = false
    private var hasDropped = false
    private(set) var progress = ResyncProgress()

    init(plane: DataPlane, start: ResyncStart, done: @escaping () -> Void) {
        self.plane = plane
        self.start = start
        self.done = done
        progress.phase = "preparing"
        phase = .waiting
        switch start.kind {
        case .comparison:
            plane.holdsCheckpoints = true
            // From here on this copy does not count, whatever happens to the connection.
            plane.link.setIncomplete(true)
            begin()
        case .ranges:
            phase = .catching
            if plane.link.isIncomplete { plane.log.applier.goOnImaging() }
            catchUp()
        case .resumed: resume()
        }
    }

    func cancel() {
        guard !isCancelled else { return }
        isCancelled = true
        waiting.removeAll()
        plane.log.handsOverAtOnce = false
        if phase == .waiting { plane.holdsCheckpoints = false }
    }

    func tick() { progressed() }

    func progressed() {
        guard !isCancelled else { return }
        switch phase {
        case .catching: catchUp()
        case .waiting: begin()
        case .receiving:
            answerProbes()
            finish()
        case .finishing: finish()
        case .resetting, .ended: return
        }
    }

    // MARK: Beginning

    private func catchUp() {
        let log = plane.log
        guard phase == .catching, !isCheckpointing else { return }
        // Both nodes have it, and the other one serves with it: it is committed.
        log.noteCommitted(start.through)
        guard log.applied >= start.through, !plane.checkpointRunning else { return }
        // After a start or a while of quiet that is so already.
        guard plane.journal.checkpointSeq < start.through else { return caughtUp() }
        isCheckpointing = true
        plane.checkpoint { [weak self] isDone in
            guard let self else { return }
            isCheckpointing = false
            // Tried again with the next tick; a failed sync has ended this node's part already.
            guard isDone, !isCancelled else { return }
            caughtUp()
        }
    }

    private func caughtUp() {
        phase = .waiting
        plane.holdsCheckpoints = true
        begin()
    }

    private func resume() {
        let log = plane.log
        guard plane.link.isIncomplete, plane.journal.resyncNumber == start.number, log.core.last == start.base,
            log.lastChain == start.chain
        else {
            phase = .ended
            return plane.link.refuseResync(at: start.base)
        }
        log.applier.goOnImaging()
        plane.logger.notice("what was broken off goes on", metadata: ["from": "\(start.base)"])
        receive()
    }

    private func begin() {
        let log = plane.log
        // What is being applied belongs to the old history; nothing of it may come after the reset.
        guard phase == .waiting, !plane.checkpointRunning, !plane.link.isCutting, plane.journal.batchesInFlight == 0,
            log.settle()
        else { return }
        phase = .resetting
        plane.link.holdSessions()
        // Only now: up to here it is still a part of this log, which may have to go on without this resynchronisation.
        if log.dropQueued() { hasDropped = true }
        // The files say that their journal may begin anew before it does: else they would look put back.
        let isWanted = { [self] in !isCancelled || hasDropped }
        plane.markBeginning(start.base, chain: start.chain, isWanted: isWanted) { [self] in reset() }
    }

    private func reset() {
        // The session is over, and the old point as good as before: it may be what this node is promoted with.
        if isCancelled, !hasDropped {
            phase = .ended
            plane.holdsCheckpoints = false
            return plane.link.releaseSessions()
        }
        do {
            // Durable before the first byte of the files changes: a crash in between must not leave half a copy that
            // looks whole.
            try plane.journal.reset(
                to: start.base, chain: start.chain, epochs: EpochHistory(start.epochs), incomplete: true,
                resync: start.number
            ) { [self] in wasReset() }
            plane.link.setIncomplete(true)
        } catch {
            // Another cut or reset is under way: its end comes, and with it the next try.
            phase = .waiting
            plane.link.releaseSessions()
        }
    }

    private func wasReset() {
        plane.log.wasReset(to: start.base, chain: start.chain)
        plane.hasBegun(start.base, chain: start.chain)
        plane.holdsCheckpoints = false
        plane.link.releaseSessions()
        guard !isCancelled else {
            phase = .ended
            return
        }
        let what = start.kind == .comparison ? "compared with the other node's" : "brought up to date"
        plane.logger.notice(
            "the files here are \(what); until that is done this copy does not count",
            metadata: ["base": "\(start.base)"])
        receive()
    }

    private func receive() {
        phase = .receiving
        progress.phase = "receiving"
        plane.link.continueAsFollower()
        plane.link.connection?.send(.resyncReady(number: start.number))
    }

    // MARK: Messages

    func received(_ message: DataMessage) {
        guard !isCancelled else { return }
        switch message {
        case .probe(let probe):
            guard phase == .receiving, waiting.count < ResyncLimits.waitingProbes,
                probe.offset % UInt64(probe.blockBytes) == 0
            else { return }
            waiting.append(probe)
            answerProbes()
        case .resyncEnd(start.number, let seq):
            endSeq = seq
            plane.log.handsOverAtOnce = true
            finish()
        default: return
        }
    }

    /// A probe was made for the state at its seq; a later state only finds more differences, never fewer.
    private func answerProbes() {
        let applied = plane.log.applied
        let ready = waiting.filter { $0.atSeq <= applied }
        guard !ready.isEmpty else { return }
        waiting.removeAll { $0.atSeq <= applied }
        for probe in ready { answer(probe) }
    }

    private func answer(_ probe: Probe) {
        let length = UInt64(probe.hashes.count) * UInt64(probe.blockBytes)
        plane.compareOnWorker { tree throws(TreeError) in
            try tree.blockHashes(
                of: probe.file, at: probe.offset, length: length, blockBytes: Int(probe.blockBytes), seed: probe.seed,
                zerosAreHoles: false)
        } then: { [weak self] result in
            guard let self, !isCancelled, phase == .receiving else { return }
            var differs = [UInt8](repeating: 0, count: (probe.hashes.count + 7) / 8)
            // A file that is not here (removed since) differs all through; then its images change nothing.
            let found = (try? result.get()) ?? []
            for (index, hash) in probe.hashes.enumerated() where found.isEmpty || found[index] != hash {
                differs[index / 8] |= 1 << UInt8(index % 8)
                progress.differingBytes += UInt64(probe.blockBytes)
            }
            progress.bytesDone += length
            plane.link.connection?.send(.probeAnswer(number: probe.number, differs: differs))
        }
    }

    // MARK: The end

    private func finish() {
        guard let endSeq, phase == .receiving || phase == .finishing, plane.log.applied >= endSeq, !isCheckpointing
        else { return }
        phase = .finishing
        progress.phase = "making durable"
        plane.log.handsOverAtOnce = false
        // A replay after a crash begins behind the last image.
        guard plane.journal.checkpointSeq >= endSeq else {
            isCheckpointing = true
            plane.checkpoint { [weak self] checkpoint in
                self.map { !$0.isCancelled && checkpoint >= endSeq } ?? false
            } _: { [self] isDone in
                // Also when the session is over: what the disk says now, the link must know.
                isCheckpointing = false
                guard isDone else { return }
                guard plane.journal.superblock.isIncomplete else { return completed() }
                if !isCancelled { progressed() }
            }
            return
        }
        phase = .ended
        plane.journal.setIncomplete(false) { [self] in completed() }
    }

    /// The disk says so.
    private func completed() {
        phase = .ended
        // A later one has begun meanwhile: its mark counts.
        if isCancelled, plane.resync is ResyncFollower { return }
        plane.link.setIncomplete(false)
        plane.logger.notice("the files here are equal to the other node's")
        // A session that was planned while the disk still said "incomplete" is planned anew.
        guard !isCancelled else { return plane.link.announce() }
        plane.link.connection?.send(.resyncDone(number: start.number))
        done()
    }
}
