import Format
import Journal
import Replication
import Ring

extension DataPlane {
    /// Ten times a second.
    func reportPosition() {
        let durable = log.core.ownDurable
        let last = LogMark(epoch: journal.epochs.epoch(of: durable) ?? journal.lastEpoch, seq: durable)
        var committed: Seq?
        if case .open = phase { committed = min(log.committed, durable) }
        guard let news = position.next(last: last, committed: committed, now: reactor.now) else { return }
        report(.member(.log(last: news.last, committed: news.committed)))
    }
}
