public import Format
internal import Logging

extension Superblock {
    /// Notes a cut: from now on batches above `seq` count only with the new incarnation.
    mutating func cut(to seq: Seq) {
        incarnation = incarnation.next
        cutSeq = seq
        cutIncarnation = incarnation
        durableSeq = min(durableSeq, seq)
        committedSeq = min(committedSeq, seq)
        completeThrough = nil
        epochs.cut(to: seq)
    }
}

extension Journal {
    /// Changes the superblock; `completion` when it is on the disk. Changes that come while one is being written go
    /// down together in the next write.
    func editSuperblock(_ change: (inout Superblock) -> Void, completion: @escaping () -> Void) {
        guard !hasFailed else { return }
        precondition(isSettled, "a change of a journal whose start is not settled")
        change(&wanted)
        superblockWaiters.append(completion)
        if !superblockWriting { writeSuperblock() }
    }

    /// What the next write of the superblock writes. While the journal is damaged it takes back nothing of what was proved:
    /// it may be all that still says that something is missing.
    func nextSuperblock() -> Superblock {
        highestGeneration += 1
        wanted.generation = highestGeneration
        let kept = isDamaged ? (durable: wanted.durableSeq, committed: wanted.committedSeq) : (.zero, .zero)
        wanted.durableSeq = max(min(durableSeq, lastSeq), wanted.checkpointSeq, kept.durable)
        wanted.committedSeq = max(committedSeq, kept.committed)
        wanted.tailSeq = oldestSeq
        wanted.tailPosition = index.first.map { layout.fileOffset($0.address) } ?? 0
        return wanted
    }

    private func writeSuperblock() {
        superblockWriting = true
        let next = nextSuperblock()
        let waiters = superblockWaiters
        superblockWaiters = []
        writeCopy(0, of: next) { [self] in
            superblock = next
            superblockWriting = false
            for waiter in waiters where !hasFailed { waiter() }
            guard !hasFailed else { return }
            if !superblockWaiters.isEmpty, !superblockWriting { writeSuperblock() }
            afterProgress()
        }
    }

    /// One copy after another: a crash tears at most one.
    private func writeCopy(_ copy: Int, of next: Superblock, then: @escaping () -> Void) {
        guard copy < JournalLayout.superblockCopies else { return then() }
        let bytes = Pages(next.encoded(copy: copy))
        unsafe storage.write([bytes.constBytes], at: layout.superblockOffset(copy)) { [self] result in
            withExtendedLifetime(bytes) {}
            writesEnded += 1
            guard !hasFailed else { return }
            guard Int(result) == Superblock.byteCount else {
                return fail(JournalError.system(result, "cannot write the superblock of journal", storage.name))
            }
            writeCopy(copy + 1, of: next, then: then)
        }
    }

    /// Writes the superblock as it is: `completion` when the disk has taken it. Never called after a failure.
    public func askDisk(completion: @escaping () -> Void) { editSuperblock({ _ in }, completion: completion) }

    // MARK: checkpoint

    /// The plain files hold everything up to `seq` on their disk (syncfs has returned, for a seq sampled before it).
    /// Rounded down to the end of a batch. When `completion` runs, the space is free for new batches; until then it
    /// stays readable for catch-up as long as nothing needs it.
    ///
    /// - Parameter isComplete: takes back `isIncomplete` with it, if the checkpoint moves: a crash leaves both or neither.
    /// - Precondition: `seq` is durable here: nothing reaches the plain files before.
    public func checkpoint(_ seq: Seq, isComplete: Bool = false, completion: (() -> Void)? = nil) {
        precondition(seq <= durableSeq, "a checkpoint above what is durable")
        guard let boundary = boundary(atOrBelow: seq), boundary.seq > wanted.checkpointSeq else {
            completion?()
            return
        }
        let position = index.position(ofFirstAbove: boundary.seq)
        let address = index[position - 1].end
        editSuperblock { superblock in
            superblock.checkpointSeq = boundary.seq
            superblock.checkpointChain = boundary.chain
            superblock.checkpointEnd = layout.fileOffset(address)
            precondition(superblock.misfitLife == nil, "a checkpoint of files that do not belong to the journal")
            if isComplete { superblock.isIncomplete = false }
        } completion: { [self] in
            checkpointAddress = max(checkpointAddress, address)
            completion?()
        }
    }

    // MARK: flags and statements

    /// A resynchronisation begins (durable before its first byte reaches the plain files) or is complete.
    public func setIncomplete(_ value: Bool, completion: @escaping () -> Void) {
        editSuperblock({ $0.isIncomplete = value }, completion: completion)
    }

    /// Other plain files than the ones that belonged to this journal are about to become its own: from now on these alone
    /// count. CALL IT AND WAIT before they say that they do.
    public func forgetMisfit(completion: @escaping () -> Void) {
        editSuperblock({ $0.misfitLife = nil }, completion: completion)
    }

    /// Everything received is durable and nothing more will come: a start after this needs no wait for the other node.
    ///
    /// - Precondition: nothing is in flight.
    public func markCleanStop(completion: @escaping () -> Void) {
        precondition(inFlight.isEmpty && durableSeq == lastSeq, "a clean stop with batches in flight")
        let through = lastSeq
        // The header ring first, so that damage found by the next start is told from a torn write batch by batch.
        whenQuiet { [self] in editSuperblock({ $0.completeThrough = through }, completion: completion) }
    }

    /// Takes back the clean stop. CALL IT AND WAIT before anything is received or accepted, because from then on
    /// something may be missing after a crash. (`append` does it too, but only for what reaches the journal: a record
    /// that was acknowledged from memory before would be forgotten by a start that takes the stop for clean.)
    ///
    /// - Parameter isStrict: whether this node's mode is `strict`; nil: as before.
    public func clearCleanStop(isStrict: Bool? = nil, completion: @escaping () -> Void) {
        let wasClean = wanted.completeThrough != nil || superblock.completeThrough != nil
        // After a clean stop nothing is missing of what came before, in whatever mode, unless it was lost since.
        let isStrict = isStrict.map { $0 && (wasClean && !isDamaged || wanted.isStrict) } ?? wanted.isStrict
        guard wasClean || isStrict != wanted.isStrict else { return completion() }
        editSuperblock { superblock in
            // A cut would forget the damage: see `settle`.
            if wasClean, isDamaged {
                superblock.completeThrough = nil
            } else if wasClean {
                superblock.cut(to: lastSeq)
            }
            superblock.isStrict = isStrict
        } completion: {
            completion()
        }
    }

    /// From now on something may be missing after a crash that was acknowledged: whoever serves is not in mode `strict`.
    public func clearStrict(completion: @escaping () -> Void) {
        editSuperblock({ $0.isStrict = false }, completion: completion)
    }

    /// Adds to what this journal says for as long as it lives.
    public func add(_ statement: PermanentStatement, completion: @escaping () -> Void) {
        editSuperblock({ $0.add(statement) }, completion: completion)
    }

    /// Writes the epoch history now instead of with the next checkpoint. (Nothing depends on it: batches carry their
    /// epoch.)
    public func noteEpochs(completion: @escaping () -> Void) { editSuperblock({ _ in }, completion: completion) }

    // MARK: cut and reset

    /// Runs `work` when no batch and no header block is in flight; nothing is accepted meanwhile.
    func whenQuiet(_ work: @escaping () -> Void) {
        guard !hasFailed else { return }
        precondition(exclusive == nil, "one cut, reset or stop at a time")
        listIfDue()
        if inFlight.isEmpty, listing == 0 { work() } else { exclusive = work }
    }

    /// Drops every record above `seq`, which must be the end of a batch at or above the checkpoint.
    ///
    /// When `completion` runs, the cut is durable: the superblock refuses what lies above it, and its headers are gone
    /// from both rings. Only then are new batches accepted. Else a batch from before the cut, lying beyond a later torn
    /// one, would look like damage in the middle.
    ///
    /// - Throws: `.notABoundary`, `.busy`, `.failed`.
    public func cut(to seq: Seq, completion: @escaping () -> Void) throws(JournalError) {
        guard state == .open, exclusive == nil else {
            throw JournalError(.busy, "journal \(storage.name): cannot cut in state \(state)")
        }
        guard seq >= wanted.checkpointSeq, seq <= lastSeq, chain(at: seq) != nil else {
            throw JournalError(
                .notABoundary,
                "journal \(storage.name): cannot cut to record \(seq): no batch between the checkpoint "
                    + "(\(wanted.checkpointSeq)) and the end (\(lastSeq)) ends there")
        }
        state = .busy
        whenQuiet { [self] in
            state = .open
            cutNow(to: seq, completion: completion)
        }
    }

    func cutNow(to seq: Seq, completion: @escaping () -> Void) {
        precondition(inFlight.isEmpty && listing == 0, "a cut with writes in flight")
        state = .busy
        let removed = index.cut(to: seq) + suspended
        suspended = []
        damagedThrough = nil
        lastSeq = seq
        lastChain = index.last?.chain ?? wanted.checkpointChain
        head = index.last?.end ?? checkpointAddress
        durableSeq = min(durableSeq, seq)
        committedSeq = min(committedSeq, seq)
        let unlisted = index.position(ofFirstAbove: listedSeq)..<index.count
        let blocks = Set(removed.map(headerBlock(of:)) + unlisted.map { headerBlock(of: index[$0]) })
        editSuperblock { superblock in
            superblock.cut(to: seq)
        } completion: { [self] in
            let zeros = Pages(count: JournalLayout.pageBytes)
            var writes = removed.map { (zeros, layout.fileOffset($0.address)) }
            for block in blocks.sorted() {
                writes.append((headerBlockBytes(block, through: seq), layout.headerBlockOffset(block)))
            }
            writeAll(writes[...]) { [self] in
                listedSeq = seq
                listedEnd = head
                state = .open
                completion()
                afterProgress()
            }
        }
    }

    /// One page after another.
    private func writeAll(_ writes: ArraySlice<(Pages, Int)>, then: @escaping () -> Void) {
        guard let (pages, offset) = writes.first else { return then() }
        unsafe storage.write([pages.constBytes], at: offset) { [self] result in
            withExtendedLifetime(pages) {}
            writesEnded += 1
            guard !hasFailed else { return }
            guard Int(result) == JournalLayout.pageBytes else {
                return fail(JournalError.system(result, "cannot cut journal", storage.name))
            }
            writeAll(writes.dropFirst(), then: then)
        }
    }

    /// Forgets everything and begins behind `seq`: a full resynchronisation from the other node, whose chain at `seq` is
    /// `chain`. `incomplete` is durable with it, before the first byte of a file is overwritten; so is `resync`, the
    /// number of the resynchronisation.
    ///
    /// - Throws: `.busy`, `.failed`.
    public func reset(
        to seq: Seq, chain: UInt64, epochs: EpochHistory, incomplete: Bool, resync: UInt64 = 0,
        completion: @escaping () -> Void
    ) throws(JournalError) {
        guard state == .open, exclusive == nil else {
            throw JournalError(.busy, "journal \(storage.name): cannot reset in state \(state)")
        }
        state = .busy
        whenQuiet { [self] in
            var generator = SystemRandomNumberGenerator()
            var next = Incarnation(random: &generator)
            while next.base == wanted.incarnation.base { next = Incarnation(random: &generator) }
            index.removeAll()
            suspended = []
            damagedThrough = nil
            // The next lap: addresses never go back.
            head = head + (layout.bodyBytes - layout.bodyOffset(head))
            lastSeq = seq
            lastChain = chain
            durableSeq = seq
            committedSeq = min(committedSeq, seq)
            editSuperblock { superblock in
                superblock.incarnation = next
                superblock.cutSeq = seq
                superblock.cutIncarnation = next
                superblock.checkpointSeq = seq
                superblock.checkpointChain = chain
                superblock.checkpointEnd = layout.bodyStart
                superblock.epochs = epochs
                superblock.epochs.cut(to: seq)
                superblock.isIncomplete = incomplete
                superblock.misfitLife = nil
                superblock.resyncNumber = resync
                superblock.completeThrough = nil
            } completion: { [self] in
                checkpointAddress = head
                listedSeq = seq
                listedEnd = head
                state = .open
                completion()
                afterProgress()
            }
        }
    }
}
