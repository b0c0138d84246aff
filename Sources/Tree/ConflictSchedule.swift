internal import Format

/// Which records may be applied now. Pure: no threads, no files.
///
/// Every file and directory has a queue of the records that touch it, in the mirror's order; a record may run when it is
/// at the head of all its queues. So records that share nothing run side by side (one huge unlink does not stop the
/// rest), and those that share something run in order. A barrier waits for everything before it, and everything behind
/// waits for it.
///
/// ```
///            add             take                 finish
///   (new) ────────> waiting ───────> running ──────────────> gone
///                                       │ fail
///                                       └────────> failed: stays at the head of its queues for ever, so that nothing
///                                                  that touches the same files comes after it
/// ```
struct ConflictSchedule {
    /// What `take` hands out: records to be applied one after the other by one worker, all of the same single file if
    /// more than one.
    struct Run: Equatable {
        var first: Seq
        var seqs: [Seq]
    }

    private struct Entry {
        var touched: [FileID]
        /// Queues at whose head it is not yet, and barriers before it.
        var blockers: Int
        var isBarrier: Bool
    }

    /// Longest run: a bound on how long one worker is busy with one file.
    static let runLimit = 64

    private var entries: [Seq: Entry] = [:]
    private var queues: [FileID: Queue] = [:]
    /// In order; a record may be here and already taken as part of a run.
    private var ready: [Seq] = []
    private var readyHead = 0
    /// Barriers not finished yet, and the records since each: they wait for it.
    private var barriers: [(seq: Seq, behind: [Seq])] = []
    private var running: Set<Seq> = []
    private var finished: Set<Seq> = []
    /// All records up to here are finished.
    private(set) var lowWatermark: Seq
    private(set) var lastAdded: Seq

    /// - Parameter applied: everything up to this record is in the plain files already.
    init(applied: Seq) {
        lowWatermark = applied
        lastAdded = applied
    }

    /// Records added and not finished.
    var unfinished: Int { entries.count }

    /// Enters the next record.
    mutating func add(_ seq: Seq, touched: [FileID], isBarrier: Bool) {
        precondition(seq == lastAdded.next, "records are applied in order, without a gap")
        lastAdded = seq
        var distinct: [FileID] = []
        for file in touched where !distinct.contains(file) { distinct.append(file) }
        var blockers = 0
        if isBarrier {
            blockers += entries.count
            barriers.append((seq, []))
        } else if !barriers.isEmpty {
            blockers += 1
            barriers[barriers.count - 1].behind.append(seq)
        }
        for file in distinct {
            if queues[file, default: Queue()].append(seq) > 1 { blockers += 1 }
        }
        entries[seq] = Entry(touched: distinct, blockers: blockers, isBarrier: isBarrier)
        if blockers == 0 { ready.append(seq) }
    }

    /// The next run that may start; nil when none may.
    mutating func take() -> Run? {
        while readyHead < ready.count {
            let seq = ready[readyHead]
            readyHead += 1
            if readyHead == ready.count {
                ready.removeAll(keepingCapacity: true)
                readyHead = 0
            }
            guard let entry = entries[seq], running.insert(seq).inserted else { continue }
            var run = Run(first: seq, seqs: [seq])
            if entry.touched.count == 1, let file = entry.touched.first { extend(&run, file) }
            return run
        }
        return nil
    }

    /// Records behind the first that touch this one file and wait for nothing else go along.
    private mutating func extend(_ run: inout Run, _ file: FileID) {
        guard let queue = queues[file] else { return }
        for seq in queue.behindHead(limit: ConflictSchedule.runLimit - 1) {
            guard let entry = entries[seq], entry.touched.count == 1, entry.blockers == 1, !entry.isBarrier,
                !isBehindBarrier(seq)
            else { return }
            run.seqs.append(seq)
            running.insert(seq)
        }
    }

    private func isBehindBarrier(_ seq: Seq) -> Bool { barriers.first.map { $0.seq < seq } ?? false }

    /// A record is in the plain files.
    mutating func finish(_ seq: Seq) {
        guard let entry = entries.removeValue(forKey: seq) else { preconditionFailure("\(seq) was not running") }
        precondition(running.remove(seq) != nil, "\(seq) was not running")
        for file in entry.touched {
            guard let next = queues[file]?.removeHead(seq) else {
                queues[file] = nil
                continue
            }
            unblock(next)
        }
        if entry.isBarrier {
            precondition(barriers.first?.seq == seq, "barriers finish in order")
            for behind in barriers.removeFirst().behind { unblock(behind) }
        } else {
            // A barrier waits for every record before it.
            for index in barriers.indices where barriers[index].seq > seq { unblock(barriers[index].seq) }
        }
        if entry.isBarrier {
            for index in barriers.indices { unblock(barriers[index].seq) }
        }
        finished.insert(seq)
        while finished.remove(lowWatermark.next) != nil { lowWatermark = lowWatermark.next }
    }

    /// A run that was stopped by an error may be tried again, from the record that failed on.
    mutating func putBack(_ seqs: [Seq]) {
        for seq in seqs {
            precondition(running.remove(seq) != nil, "\(seq) was not running")
            if entries[seq]?.blockers == 0 { ready.append(seq) }
        }
    }

    private mutating func unblock(_ seq: Seq) {
        guard var entry = entries[seq] else { return }
        entry.blockers -= 1
        precondition(entry.blockers >= 0, "unblocked too often")
        entries[seq] = entry
        if entry.blockers == 0, !running.contains(seq) { ready.append(seq) }
    }

    /// The records of one file, oldest first.
    private struct Queue {
        private var seqs: [Seq] = []
        private var head = 0

        /// - Returns: how many there are now.
        mutating func append(_ seq: Seq) -> Int {
            seqs.append(seq)
            return seqs.count - head
        }

        /// - Returns: the new head; nil when the queue is empty.
        mutating func removeHead(_ seq: Seq) -> Seq? {
            precondition(head < seqs.count && seqs[head] == seq, "records of a file finish in order")
            head += 1
            guard head < seqs.count else { return nil }
            if head >= 256, head > seqs.count / 2 {
                seqs.removeFirst(head)
                head = 0
            }
            return seqs[head]
        }

        func behindHead(limit: Int) -> ArraySlice<Seq> { seqs[(head + 1)...].prefix(limit) }
    }
}
