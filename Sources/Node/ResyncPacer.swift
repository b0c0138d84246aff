import Format
import Replication
import Ring

/// The other node is being brought back: how fast, and how fast the application may go on meanwhile. Confined to the
/// data thread.
///
/// * **The limit** of an administrator holds for what is sent besides the application's own changes: records read back
///   from the journal, images, and what a comparison reads. The application's changes pass beside it, or a limit below
///   their rate would mean that it never ends.
/// * **The pace** (`CatchUpPacer`) holds back answers to writes. Reads, names and everything that is no write go on as
///   ever; nothing fails.
/// * **The journal keeps what the other node still needs**, while it takes it in: when less than a twelfth of the journal
///   is left, nothing more is accepted until it has gone on. If it takes in nothing for as long as a disk may hang
///   (`PeerLink.stallNanoseconds`), the session ends, and with it all of this.
///
/// Nothing of it outlives the session: a node that is lost slows nobody.
final class ResyncPacer {
    private unowned let plane: DataPlane
    private(set) var limit: TokenBucket
    private var pacer = CatchUpPacer()
    private var bucket: TokenBucket
    private var isActive = false
    /// Bytes of the application's changes, by the last record of their batch, not released yet.
    private var waiting: [(last: Seq, bytes: Int)] = []
    private var waitingHead = 0
    private var isTimerSet = false
    private var isReleasePosted = false
    private var needed: (seq: Seq, at: UInt64) = (.zero, 0)

    static let releaseMilliseconds = 5
    /// Of the journal, kept between what is written and what the other node still needs.
    static let reserveDivisor = 12

    init(plane: DataPlane) {
        self.plane = plane
        let rate = plane.configuration.resync.rateMebibytesPerSecond.map { UInt64($0) << 20 }
        limit = TokenBucket(rate: rate, now: plane.reactor.now)
        bucket = TokenBucket(rate: nil, now: plane.reactor.now)
    }

    /// The other node is behind and on its way.
    private var neededFrom: Seq? {
        guard plane.log.role == .primary, plane.inSyncNow.isOnly(plane.node) else { return nil }
        return plane.log.core.follower?.durable ?? plane.resync?.neededFrom
    }

    // MARK: - The limit

    /// - Parameter rate: bytes a second; nil: none. Until the next start.
    func setLimit(_ rate: UInt64?) { limit.setRate(rate, now: plane.reactor.now) }

    var mayGoOn: Bool { limit.allows(now: plane.reactor.now) }

    func took(_ bytes: Int) { limit.take(bytes, now: plane.reactor.now) }

    // MARK: - The pace

    /// What the application may write, bytes a second; nil: as much as it likes.
    var pace: UInt64? { isActive ? pacer.rate : nil }

    /// A batch was closed.
    func shipped(_ batch: Batch) {
        guard isActive else { return }
        var own = 0
        for record in batch.records where !record.isImage { own += record.payload.length + RecordLimits.headerBytes }
        // What the application writes passes beside the limit.
        limit.grant(own)
        if pacer.rate != nil {
            waiting.append((batch.lastSeq, own))
            releaseSoon()
        }
        holdIfNeeded()
    }

    /// Ten times a second, and whenever the log has moved.
    func look() {
        let now = plane.reactor.now
        guard let from = neededFrom else { return stop() }
        if !isActive {
            isActive = true
            pacer = CatchUpPacer()
            needed = (from, now)
        }
        if from != needed.seq { needed = (from, now) }
        if pacer.isDue(now: now) {
            let before = pacer.rate
            pacer.look(
                distance: UInt64(plane.journal.bytes(above: from)), appended: plane.log.statistics.diskBytes, now: now)
            if pacer.rate != before {
                if before == nil {
                    plane.logger.notice("the application is slowed so that the other node can catch up")
                    bucket = TokenBucket(rate: pacer.rate, now: now)
                    plane.log.answerLimit = plane.log.core.last
                } else {
                    bucket.setRate(pacer.rate, now: now)
                }
            }
        }
        holdIfNeeded()
        if plane.log.isHeld, now > needed.at + PeerLink.stallNanoseconds {
            plane.link.fail("the other node takes in nothing, and the journal is full of what it lacks")
        }
    }

    private func stop() {
        guard isActive else { return }
        isActive = false
        pacer = CatchUpPacer()
        waiting.removeAll()
        waitingHead = 0
        plane.log.answerLimit = nil
        plane.log.isHeld = false
    }

    /// Answers go out as the pace allows.
    private func release() {
        let now = plane.reactor.now
        var last: Seq?
        while waitingHead < waiting.count, bucket.allows(now: now) {
            bucket.take(waiting[waitingHead].bytes, now: now)
            last = waiting[waitingHead].last
            waitingHead += 1
        }
        if waitingHead == waiting.count {
            waiting.removeAll(keepingCapacity: true)
            waitingHead = 0
        } else if waitingHead > 1024 {
            waiting.removeFirst(waitingHead)
            waitingHead = 0
        }
        if let last { plane.log.answerLimit = last }
        guard !waiting.isEmpty, !isTimerSet else { return }
        isTimerSet = true
        _ = plane.reactor.after(milliseconds: ResyncPacer.releaseMilliseconds) { [weak self] in
            guard let self else { return }
            isTimerSet = false
            if isActive { release() }
        }
    }

    /// In a turn of its own: an answer leads to the next change, which must not come into the middle of a batch.
    private func releaseSoon() {
        guard !isTimerSet, !isReleasePosted else { return }
        isReleasePosted = true
        let bound = ThreadBound(self)
        plane.reactor.post {
            bound.value.isReleasePosted = false
            if bound.value.isActive { bound.value.release() }
        }
    }

    /// Nothing that the other node still needs is overwritten.
    private func holdIfNeeded() {
        guard let from = neededFrom else {
            plane.log.isHeld = false
            return
        }
        let journal = plane.journal
        let room = journal.capacityBytes - journal.bytes(above: from)
        let reserve = max(journal.capacityBytes / ResyncPacer.reserveDivisor, 2 * BatchLimits.diskBytes)
        plane.log.isHeld = room < reserve
    }
}
