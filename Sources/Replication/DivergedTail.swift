import Format

/// Whether the records that a node is about to give up may have been acknowledged, so that they are saved first.
///
/// A node that returns gives up what its log holds above the last common record. Ordinarily nothing of it was ever
/// acknowledged: a primary acknowledges a record only when every in-sync node has received it, and only an in-sync node
/// takes over. Two things break that on purpose, and both are stated, for good, in the journal of the node that serves:
/// a *forced promotion*, and a *lone restart* (served after a wait for the other node, without what that one held in
/// memory or on its disk alone). So the serving node tells the highest record at which one of them happened; if the
/// common record is not beyond it, the tail may hold acknowledged writes.
public enum DivergedTail {
    /// - Parameters:
    ///   - common: the last record that both logs hold.
    ///   - last: the last record of the log that is cut or begun anew.
    ///   - committed: what that log knows to be committed.
    ///   - acknowledged: the highest record that its process answered for, as primary.
    ///   - lossAt: the last record of the serving node when it last began to serve without everything that was
    ///     acknowledged; nil: it never did.
    public static func mustBeSaved(common: Seq, last: Seq, committed: Seq, acknowledged: Seq, lossAt: Seq?) -> Bool {
        guard last > common else { return false }
        if committed > common || acknowledged > common { return true }
        return lossAt.map { $0 >= common } ?? false
    }
}
