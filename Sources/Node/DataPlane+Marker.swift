import Format
import Glibc
import Journal
import Ring
import Tree

/// What the plain files say of themselves, kept in step with the journal: see `TreeMarker`.
extension DataPlane {
    /// Puts the points on the disk of the plain files, on a worker; `done` hears nil, or why not.
    ///
    /// One at a time: a checkpoint, or a journal that is about to begin anew.
    func setMarker(_ points: [TreeMarker.Point], done: @escaping (TreeError?) -> Void) {
        // What is written now makes these files the journal's. If others were, they do not come back after that.
        guard journal.misfitLife == nil else {
            return journal.forgetMisfit { [weak self] in self?.setMarker(points, done: done) }
        }
        let marker = TreeMarker(
            journal: journal.instance, points: points, voteBirth: votes.birth, voteStarts: votes.starts)
        let tree = tree
        let handle = reactor.handle
        let bound = ThreadBound(done)
        workers.submit {
            var failure: TreeError?
            do throws(TreeError) { try tree.setMarker(marker) } catch { failure = error }
            _ = handle.post { [failure] in bound.value(failure) }
        }
    }

    /// The marker of a checkpoint at `seq`, BEFORE the journal's moves.
    func markCheckpoint(_ seq: Seq, chain: UInt64, done: @escaping (Bool) -> Void) {
        let point = TreeMarker.Point(seq: seq, chain: chain, incarnation: journal.incarnation.rawValue)
        setMarker([point]) { [weak self] failure in
            guard let self else { return }
            guard let failure else {
                markedPoint = point
                return done(true)
            }
            // A full disk: the checkpoint stays, and is tried again.
            if failure.isOutOfSpace {
                logger.error("no checkpoint: \(failure)")
            } else {
                failed(.apply(seq, "\(failure)"))
            }
            done(false)
        }
    }

    /// The journal has begun anew behind `seq`.
    func hasBegun(_ seq: Seq, chain: UInt64) { markedPoint = TreeMarker.Point(seq: seq, chain: chain, incarnation: 0) }

    /// Before the journal begins anew behind `seq`: from now on it may be the old one or the new one. On a full disk
    /// (some need room to overwrite) it waits until there is room.
    ///
    /// - Parameters:
    ///   - isWanted: asked before each further try; if not, `done` is called without the mark.
    func markBeginning(
        _ seq: Seq, chain: UInt64, isNews: Bool = true, isWanted: @escaping () -> Bool = { true },
        done: @escaping () -> Void
    ) {
        let next = TreeMarker.Point(seq: seq, chain: chain, incarnation: 0)
        setMarker([markedPoint, next].compactMap { $0 }) { [weak self] failure in
            guard let self else { return }
            guard let failure else { return done() }
            guard failure.isOutOfSpace else { return failed(.apply(seq, "\(failure)")) }
            if isNews {
                logger.error("\(failure): the files are brought up to date when there is room; tried again each second")
            }
            _ = reactor.after(milliseconds: DataPlane.fullRetryMilliseconds) { [weak self] in
                guard let self, !isBroken else { return }
                guard isWanted() else { return done() }
                markBeginning(seq, chain: chain, isNews: false, isWanted: isWanted, done: done)
            }
        }
    }
}
