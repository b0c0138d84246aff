import Format

/// How the other node is being brought back, or last was: for `status`. Counts only what is known; an estimate is made
/// only from what the last seconds have shown.
struct Comeback {
    /// When the other node left the in-sync set; nil: not since this process serves.
    private(set) var since: UInt64?
    private var changedFrom: UInt64 = 0
    private var sentFrom: UInt64 = 0
    /// `journal`, or what the session says of itself (`comparison`).
    var kind = "journal"
    private var result: (changed: UInt64, sent: UInt64, seconds: Double)?
    private var done = ProgressRate()
    /// Bytes left, ten seconds of them.
    private var left: [(at: UInt64, bytes: UInt64)] = []

    static let windowNanoseconds: UInt64 = 10_000_000_000
    static let sampleNanoseconds: UInt64 = 1_000_000_000

    var isRunning: Bool { since != nil && result == nil }

    /// The other node is out of the in-sync set.
    mutating func begin(changed: UInt64, sent: UInt64, now: UInt64) {
        self = Comeback()
        since = now
        changedFrom = changed
        sentFrom = sent
    }

    /// It is back.
    mutating func end(changed: UInt64, sent: UInt64, now: UInt64) {
        guard let since else { return }
        result = (changed - changedFrom, sent - sentFrom, Double(now - since) / 1e9)
    }

    /// Another way is taken: what was measured on the first one says nothing.
    mutating func restart(_ kind: String) {
        self.kind = kind
        done = ProgressRate()
        left.removeAll()
    }

    /// Once in a while.
    mutating func note(done count: UInt64, left bytes: UInt64?, now: UInt64) {
        done.note(count, now: now)
        guard let bytes else { return left.removeAll() }
        if let last = left.last, now < last.at + Comeback.sampleNanoseconds { return }
        left.append((now, bytes))
        left.removeAll { $0.at + Comeback.windowNanoseconds < now }
    }

    /// nil while nothing is known, or while it gets no less.
    private var remainingSeconds: Double? {
        guard let first = left.first, let last = left.last, last.at > first.at, first.bytes > last.bytes else {
            return left.last.flatMap { $0.bytes == 0 ? 0 : nil }
        }
        let seconds = Double(last.at - first.at) / 1e9
        return Double(last.bytes) / (Double(first.bytes - last.bytes) / seconds)
    }

    func facts(changed: UInt64, sent: UInt64, now: UInt64) -> NodeStatus.Resync? {
        guard let since else { return nil }
        let so = result ?? (changed - changedFrom, sent - sentFrom, Double(now - since) / 1e9)
        var facts = NodeStatus.Resync(
            kind: kind, running: result == nil, changedBytes: so.changed, sentBytes: so.sent, seconds: so.seconds,
            phase: "", bytesDone: 0, bytesTotal: 0)
        guard result == nil else { return facts }
        facts.bytesLeft = left.last?.bytes
        facts.bytesPerSecond = done.bytesPerSecond
        facts.remainingSeconds = remainingSeconds
        return facts
    }
}

extension DataPlane {
    /// The other node is out of the in-sync set: what changes from now on, it will have to be sent.
    func comebackBegins() {
        comeback.begin(changed: log.statistics.changedBytes, sent: link.sentBytes, now: reactor.now)
        // What has waited for just this.
        if let source = resync as? ResyncSource { comeback.restart(source.kind.name) }
    }

    func comebackEnds() {
        comeback.end(changed: log.statistics.changedBytes, sent: link.sentBytes, now: reactor.now)
    }

    /// Ten times a second.
    func noteComeback() {
        guard comeback.isRunning else { return }
        let way = bytesOfComeback
        comeback.note(done: way?.done ?? 0, left: way.flatMap { $0.left }, now: reactor.now)
    }

    /// What is done and left on the way that is taken now; nil while the other node is not on it.
    private var bytesOfComeback: (done: UInt64, left: UInt64?)? {
        if let resync {
            let progress = resync.progress
            // The total is counted while the comparison runs already.
            let total = progress.bytesTotal
            return (progress.bytesDone, total > 0 ? total - min(total, progress.bytesDone) : nil)
        }
        guard let follower = log.core.follower else { return nil }
        let left = UInt64(journal.bytes(above: follower.durable))
        // The journal's own count never goes back while one session lasts.
        return (log.statistics.diskBytes + UInt64(journal.capacityBytes) - left, left)
    }

    var returnFacts: NodeStatus.Resync? {
        guard var facts = comeback.facts(changed: log.statistics.changedBytes, sent: link.sentBytes, now: reactor.now)
        else { return nil }
        if let progress = resync?.progress {
            facts.phase = progress.phase
            facts.bytesDone = progress.bytesDone
            facts.bytesTotal = progress.bytesTotal
        } else if facts.running, let follower = log.core.follower {
            facts.phase = follower.durable == log.core.last ? "waiting to be added" : "catching up"
            facts.bytesDone = facts.sentBytes
            facts.bytesTotal = facts.sentBytes + (facts.bytesLeft ?? 0)
        } else if facts.running {
            facts.phase = "not connected"
        }
        facts.limitBytesPerSecond = resyncPacer.limit.rate
        facts.applicationBytesPerSecond = resyncPacer.pace
        return facts
    }

    // MARK: - On request

    /// Compares everything, because an administrator asks. In this order: it is noted that the next plan is a comparison;
    /// the other node leaves the in-sync set by a recorded decision; then both plan anew. If this process dies before the
    /// other node's journal says "incomplete", the request is forgotten and the node comes back by its journal; after
    /// that, the next connection compares whoever asked.
    ///
    /// - Returns: nil, or why not.
    func compareOnRequest() -> String? {
        let other = configuration.node(node.peer).name
        guard case .open = phase, log.role == .primary, !draining, !isStopping, log.mayAnswer else {
            return "this node does not serve: ask the node that does"
        }
        guard resync == nil, !link.wantsComparison else { return "\(other) is being compared already" }
        guard link.stage == .streaming, !link.isSilent else {
            return "\(other) is not connected: it cannot be compared"
        }
        logger.warning("an administrator asks for a full comparison: \(other) leaves the in-sync set until it is done")
        link.wantsComparison = true
        if isCertainlyAlone {
            link.announce()
        } else {
            report(.member(.peerSilent(.failed)))
        }
        return nil
    }
}
