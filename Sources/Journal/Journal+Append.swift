public import Format
internal import Logging

extension Journal {
    /// Whether a batch of `bytes` on disk is accepted now. Without `control` the reserve stays free.
    public func canAppend(_ bytes: Int, control: Bool = false) -> Bool {
        guard state == .open, takeBackCleanStop() else {
            refusedForRoom = true
            return false
        }
        let fits = room(for: bytes, control: control) != nil
        if !fits { refusedForRoom = true }
        return fits
    }

    /// The place of a batch of `bytes`, or nil when there is no room for it.
    private func room(for bytes: Int, control: Bool) -> RingAddress? {
        guard bytes > 0, bytes <= BatchLimits.diskBytes else { return nil }
        let address = layout.placement(of: bytes, after: head)
        let end = address + bytes
        let reserve = control ? 0 : JournalLimits.reserveBytes
        guard end - checkpointAddress <= layout.bodyBytes - reserve else { return nil }
        guard inFlight.count < JournalLimits.inFlightBatches else { return nil }
        if let oldest = inFlight.first, end - oldest.entry.address > JournalLimits.inFlightBytes { return nil }
        // Recovery looks only so far beyond the last entry of the header ring.
        if !isDamaged, end - listedEnd > JournalScan.searchBytes { return nil }
        return address
    }

    /// Writes a batch behind the last one. On a damaged journal it takes the place of what was lost; when it closes the
    /// hole, `lastSeq` jumps to the end of what follows.
    ///
    /// The batch is sealed in place; its memory is kept until the write is complete. `completion` is called with
    /// `durableSeq` when this batch and every earlier one is on the disk, in order of the batches. After a failure it
    /// is never called; `onFailure` is.
    ///
    /// - Throws: `.full`, `.busy` (wait for `onRoom`), `.failed`, and `.notContiguous` when the batch does not continue this journal.
    public func append(
        _ batch: Batch, control: Bool = false, completion: ((Seq) -> Void)? = nil
    ) throws(JournalError) {
        switch state {
        case .open: break
        case .busy: throw JournalError(.busy, "journal \(storage.name): a cut is being made durable")
        case .failed(let error): throw JournalError(.failed, "\(error)")
        case .closed: throw JournalError(.failed, "journal \(storage.name) is closed")
        }
        precondition(isSettled, "a batch for a journal whose start is not settled")
        try check(batch.header)
        guard takeBackCleanStop() else {
            refusedForRoom = true
            throw JournalError(.busy, "journal \(storage.name): the mark of the clean stop is being taken back")
        }
        guard let address = room(for: batch.header.diskLength, control: control) else {
            refusedForRoom = true
            throw JournalError(
                .full, "journal \(storage.name): no room for \(batch.header.diskLength) bytes, \(freeBytes) are free")
        }
        if let next = suspended.first, address + batch.header.diskLength > next.address {
            throw JournalError(
                .notContiguous,
                "journal \(storage.name): records \(batch.firstSeq) to \(batch.lastSeq) are not what was lost there: "
                    + "they do not fit before record \(next.firstSeq). The two nodes have different histories.")
        }
        evict(upTo: address + batch.header.diskLength)
        let sealed = batch.seal(
            position: UInt64(layout.fileOffset(address)), incarnation: superblock.incarnation.rawValue,
            durable: durableSeq)
        let entry = IndexEntry(sealed, at: address)
        add(entry)
        let through = try join()
        let write = InFlight(batch: batch, entry: entry, through: through, completion: completion)
        inFlight.append(write)
        let pieces = unsafe batch.payload.isEmpty ? [batch.meta] : [batch.meta, batch.payload]
        unsafe storage.write(pieces, at: layout.fileOffset(address)) { [self] result in bodyWritten(write, result) }
    }

    /// False while a clean stop still stands on the disk. The node takes it back before it receives anything; this is
    /// the last line behind it.
    private func takeBackCleanStop() -> Bool {
        guard superblock.completeThrough != nil || wanted.completeThrough != nil else { return true }
        if wanted.completeThrough != nil { clearCleanStop {} }
        return false
    }

    private func check(_ header: BatchHeader) throws(JournalError) {
        guard header.mirror == mirror else {
            throw JournalError(.otherMirror, "a batch of mirror \(header.mirror) for the journal of mirror \(mirror)")
        }
        guard header.firstSeq == lastSeq.next, header.previousChain == lastChain, header.epoch >= lastEpoch else {
            throw JournalError(
                .notContiguous,
                "journal \(storage.name) ends at record \(lastSeq) (epoch \(lastEpoch), chain \(lastChain)); a batch "
                    + "that begins at record \(header.firstSeq) (epoch \(header.epoch), chain "
                    + "\(header.previousChain)) does not continue it")
        }
    }

    private func add(_ entry: IndexEntry) {
        index.append(entry)
        head = entry.end
        lastSeq = entry.lastSeq
        lastChain = entry.chain
        wanted.epochs.note(entry.epoch, from: entry.firstSeq)
    }

    /// Takes in the whole batches that follow a closed hole. Returns the seq that is durable with the batch just added.
    private func join() throws(JournalError) -> Seq {
        while let next = suspended.first, next.firstSeq == lastSeq.next {
            guard next.previousChain == lastChain else {
                let error = JournalError(
                    .notContiguous,
                    "journal \(storage.name): what the other node sent does not lead to record \(next.firstSeq), "
                        + "which is here. The two nodes have different histories: an administrator must choose one.")
                fail(error)
                throw error
            }
            add(next)
            suspended.removeFirst()
        }
        return lastSeq
    }

    /// Forgets batches that a write up to `end` overwrites.
    private func evict(upTo end: RingAddress) {
        while let first = index.first, end - first.address > layout.bodyBytes {
            precondition(
                first.lastSeq <= superblock.checkpointSeq, "a record that is still needed would be overwritten")
            index.removeFirst()
        }
    }

    private func bodyWritten(_ write: InFlight, _ result: Int32) {
        writesEnded += 1
        guard !hasFailed else { return }
        guard Int(result) == Int(write.entry.length) else {
            let what = "records \(write.entry.firstSeq) to \(write.entry.lastSeq)"
            return fail(
                result < 0
                    ? JournalError.system(result, "cannot write \(what) to journal", storage.name)
                    : JournalError(
                        .failed,
                        "journal \(storage.name): only \(result) of \(write.entry.length) bytes of \(what) were written"
                    ))
        }
        precondition(!write.isDone, "a write completed twice")
        write.isDone = true
        var finished: [InFlight] = []
        while let first = inFlight.first, first.isDone {
            finished.append(inFlight.removeFirst())
            precondition(first.through > durableSeq, "the durable run only grows")
            durableSeq = first.through
        }
        guard !finished.isEmpty else { return }
        for write in finished { write.completion?(durableSeq) }
        onDurable?(durableSeq)
        afterProgress()
    }

    /// Something has completed: does what waited for it.
    func afterProgress() {
        guard !hasFailed else { return }
        if let through = damagedThrough, suspended.isEmpty, durableSeq >= through, inFlight.isEmpty, state == .open {
            heal()
        }
        if exclusive == nil { listIfDue() }
        if let waiting = exclusive, inFlight.isEmpty, listing == 0 {
            exclusive = nil
            waiting()
        }
        if refusedForRoom, state == .open {
            refusedForRoom = false
            onRoom?()
        }
    }

    /// The last hole is closed: a new incarnation, and entries for what has been replaced.
    private func heal() {
        damagedThrough = nil
        listedSeq = superblock.checkpointSeq
        cutNow(to: lastSeq) { [self] in
            logger.notice("journal repaired", metadata: ["journal": "\(storage.name)", "last": "\(lastSeq)"])
            onRepaired?()
        }
    }

    // MARK: the header ring

    func headerBlock(of entry: IndexEntry) -> Int { layout.headerBlock(forBody: layout.bodyOffset(entry.address)) }

    /// Writes the entries that wait, if nothing is in flight: called when the journal has been idle for a moment.
    public func listIdle() {
        guard !hasFailed, exclusive == nil, inFlight.isEmpty else { return }
        isListingIdle = true
        listIfDue()
        isListingIdle = false
    }

    /// Writes the entries of durable batches that have none: at once when nothing else is to be written, otherwise when
    /// enough have gathered. While the journal is damaged it writes none: the blocks hold entries of the batches behind
    /// the damage, which are the proof that something is missing.
    func listIfDue() {
        guard listing == 0, durableSeq > listedSeq, !isDamaged, state != .closed else { return }
        let from = index.position(ofFirstAbove: listedSeq)
        let to = index.position(ofFirstAbove: durableSeq)
        guard to > from else { return }
        let waiting = index[to - 1].end - index[from].address
        guard
            listsWhenIdle && inFlight.isEmpty || isListingIdle || to - from >= JournalLimits.listBatches
                || waiting >= JournalLimits.listBytes
        else { return }
        var blocks: [Int] = []
        for position in from..<to {
            let block = headerBlock(of: index[position])
            if blocks.last != block { blocks.append(block) }
        }
        listingThrough = durableSeq
        let end = index[to - 1].end
        listing = blocks.count
        for block in blocks {
            let bytes = headerBlockBytes(block, through: durableSeq)
            unsafe storage.write([bytes.constBytes], at: layout.headerBlockOffset(block)) { [self] result in
                withExtendedLifetime(bytes) {}
                blockListed(result, end)
            }
        }
    }

    private func blockListed(_ result: Int32, _ end: RingAddress) {
        writesEnded += 1
        guard !hasFailed else { return }
        guard Int(result) == JournalLayout.pageBytes else {
            return fail(JournalError.system(result, "cannot write the header ring of journal", storage.name))
        }
        listing -= 1
        guard listing == 0 else { return }
        listedSeq = listingThrough
        listedEnd = end
        afterProgress()
    }

    /// A block of the header ring as it should be: entries of the batches up to `through` that begin in its stretch of
    /// the body ring, in this lap or, further on, in the one before; everything else zero.
    func headerBlockBytes(_ block: Int, through: Seq) -> Pages {
        let stretch = JournalLayout.entriesPerBlock * JournalLayout.pageBytes
        let offset = block * stretch
        let ahead = (layout.bodyOffset(head) - offset + layout.bodyBytes) % layout.bodyBytes
        var slots = [IndexEntry?](repeating: nil, count: JournalLayout.entriesPerBlock)
        for lap in [layout.bodyBytes, 0] where head.rawValue >= UInt64(ahead + lap) {
            let start = head + -(ahead + lap)
            var position = index.position(ofFirstAt: start)
            while position < index.count, index[position].address - start < stretch, index[position].lastSeq <= through
            {
                slots[(index[position].address - start) / JournalLayout.pageBytes] = index[position]
                position += 1
            }
        }
        var writer = ByteWriter(reserving: JournalLayout.pageBytes)
        for slot in slots {
            guard let slot else {
                writer.put(raw: repeatElement(0, count: JournalLayout.entryBytes))
                continue
            }
            HeaderEntry(
                firstSeq: slot.firstSeq, chain: slot.chain, previousChain: slot.previousChain,
                incarnation: slot.incarnation, position: layout.fileOffset(slot.address), length: Int(slot.length),
                recordCount: Int(slot.recordCount), epoch: slot.epoch
            ).encode(into: &writer)
        }
        return Pages(writer.bytes)
    }
}
