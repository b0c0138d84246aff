internal import Format

/// Reads a journal and decides about it; never writes. The decisions are `RecoveryTable`'s; this file looks.
///
/// ```
///   behind the checkpoint          above the checkpoint                      beyond the end
///   header entries, walked    |  bodies, read whole, chain checked   |  pages searched for headers that
///   backwards: catch-up       |  forwards; damage is stepped over    |  prove that something is missing
/// ```
struct JournalScan {
    /// A batch (or several) that was durable and cannot be read.
    struct Damage {
        var first: Seq
        var last: Seq
        var position: Int?
        /// What the walk knows about it; nil when not even its length is known.
        var header: BatchHeader?
    }

    /// How far behind the end a batch in flight can have been written, bytes: what may be in flight, plus what may be
    /// durable without its header entry. `Journal` keeps below both limits.
    static let searchBytes = JournalLimits.inFlightBytes + JournalLimits.unlistedBytes

    let image: JournalImage
    let layout: JournalLayout
    let superblock: Superblock
    private(set) var behind: [IndexEntry] = []
    /// From the checkpoint to the first damage.
    private(set) var whole: [IndexEntry] = []
    private(set) var damage: [Damage] = []
    /// Whole batches behind damage, in order.
    private(set) var suspended: [IndexEntry] = []
    private(set) var lastStep = RecoveryTable.Step.end
    /// Addresses of batches beyond the end that are to be made invalid.
    private(set) var stale: [RingAddress] = []
    private(set) var knownCommittedSeq: Seq
    private(set) var doubts: [RecoveryReport.Doubt] = []
    private(set) var doubtsNotListed = 0
    private(set) var unreadable: [Int] = []
    private(set) var notes: [String] = []

    /// Entries of the header ring above the checkpoint, by first seq; and below it, by last seq.
    private var aheadEntries: [Seq: HeaderEntry] = [:]
    private var behindEntries: [Seq: HeaderEntry] = [:]
    private var highestEntry = Seq.zero
    private var provenByDamage = Seq.zero
    /// Behind the batch at the checkpoint.
    let start: RingAddress
    /// Everything below is behind the walk's place.
    private(set) var end: RingAddress

    init(image: JournalImage, superblock: Superblock, layout: JournalLayout) {
        self.image = image
        self.layout = layout
        self.superblock = superblock
        knownCommittedSeq = superblock.committedSeq
        // One lap up, so that what lies behind the checkpoint has an address too.
        start = RingAddress(rawValue: UInt64(layout.bodyBytes + superblock.checkpointEnd - layout.bodyStart))
        end = start
        readHeaderRing()
        walk()
        walkBack()
    }

    var lastSeq: Seq { whole.last?.lastSeq ?? superblock.checkpointSeq }
    /// Certainly was on this disk once, damaged now or not. Less than the end of what is damaged: a batch that was still under
    /// way when the process died may lie behind a hole, and proves nothing of what should be between.
    var provenSeq: Seq {
        max(superblock.provenSeq, lastSeq, provenByDamage, aheadEntries.values.map(\.lastSeq).max() ?? .zero)
    }
    var lastChain: UInt64 { whole.last?.chain ?? superblock.checkpointChain }
    var wholeEnd: RingAddress { whole.last?.end ?? start }

    /// Whether the header ring has the entry of this batch.
    func isListed(_ entry: IndexEntry) -> Bool {
        aheadEntries[entry.firstSeq].map { $0.chain == entry.chain && $0.position == layout.fileOffset(entry.address) }
            ?? false
    }

    // MARK: the header ring

    private mutating func readHeaderRing() {
        let chunk = 256 * JournalLayout.pageBytes
        var damagedSlots = 0
        for offset in stride(from: 0, to: layout.headerRingBytes, by: chunk) {
            let count = min(chunk, layout.headerRingBytes - offset)
            let pages = image.readPages(at: layout.headerRingStart + offset, count: count, unreadable: &unreadable)
            for slot in stride(from: 0, to: count, by: JournalLayout.entryBytes) {
                // Empty slots are most of them: seq and magic tell without a look at the rest.
                let seq = unsafe pages.constBytes.loadUnaligned(fromByteOffset: slot, as: UInt64.self)
                let magic = unsafe pages.constBytes.loadUnaligned(fromByteOffset: slot + 56, as: UInt32.self)
                if seq == 0, magic == 0 { continue }
                let bytes = unsafe pages.constBytes[slot..<slot + JournalLayout.entryBytes]
                let number = (offset + slot) / JournalLayout.entryBytes
                let page = layout.bodyStart + number * JournalLayout.pageBytes
                switch HeaderEntry.slot(unsafe Array(bytes)[...], page: page, layout: layout) {
                case .empty: continue
                case .damaged: damagedSlots += 1
                case .entry(let entry): take(entry)
                }
            }
        }
        if damagedSlots > 0 { notes.append("note: \(damagedSlots) damaged slots in the header ring") }
    }

    private mutating func take(_ entry: HeaderEntry) {
        guard superblock.admits(firstSeq: entry.firstSeq, incarnation: entry.incarnation) else { return }
        if entry.firstSeq > superblock.checkpointSeq {
            if let other = aheadEntries[entry.firstSeq], other.incarnation.count >= entry.incarnation.count { return }
            aheadEntries[entry.firstSeq] = entry
            highestEntry = max(highestEntry, entry.firstSeq)
        } else {
            if let other = behindEntries[entry.lastSeq], other.incarnation.count >= entry.incarnation.count { return }
            behindEntries[entry.lastSeq] = entry
        }
    }

    // MARK: forwards

    /// What stands at the place of the next batch.
    private struct Look {
        var finding: RecoveryTable.HeaderFinding = .unreadable
        var header: BatchHeader?
        var address: RingAddress
        var body: FoundBatch?
    }

    private mutating func walk() {
        var expected = superblock.checkpointSeq.next
        var chain = superblock.checkpointChain
        while true {
            let look = look(for: expected, chain: chain)
            let entry = aheadEntries[expected]
            var observation = RecoveryTable.Observation(
                entry: finding(entry, look, chain), header: look.finding, body: .damaged, later: .nothing,
                superblockProves: superblock.provenSeq >= expected)
            if case .intact = look.body { observation.body = .intact }
            var later: [(RingAddress, BatchHeader)] = []
            if RecoveryTable.step(observation) != .accept {
                later = searchLater(from: expected)
                observation.later = laterFinding(expected, later)
            }
            lastStep = RecoveryTable.step(observation)
            switch lastStep {
            case .accept:
                guard let header = look.header else { preconditionFailure("accepted without a header") }
                accept(header, at: look.address, look.body)
                expected = header.lastSeq.next
                chain = header.chain
            case .end, .cutTail:
                stale = later.map(\.0)
                if look.finding == .expected { stale.append(look.address) }
                return
            case .damaged:
                guard let next = stepOver(expected, look, entry, later) else { return }
                (expected, chain) = next
            }
        }
    }

    private mutating func look(for expected: Seq, chain: UInt64) -> Look {
        var result = Look(address: end)
        let room = layout.bodyBytes - layout.bodyOffset(end)
        for candidate in [end, end + room] where candidate == end || room < BatchLimits.diskBytes {
            guard candidate - start < layout.bodyBytes, let header = readHeader(at: candidate) else { continue }
            if result.header == nil { result.finding = .other }
            guard isMine(header, at: candidate), header.firstSeq == expected, header.previousChain == chain,
                layout.placement(of: header.diskLength, after: end) == candidate,
                (candidate + header.diskLength) - start <= layout.bodyBytes
            else { continue }
            let pages = image.readPages(
                at: layout.fileOffset(candidate), count: header.diskLength, unreadable: &unreadable)
            return Look(
                finding: .expected, header: header, address: candidate,
                body: unsafe FoundBatch.read(header, pages.constBytes))
        }
        return result
    }

    private mutating func readHeader(at address: RingAddress) -> BatchHeader? {
        let page = image.readPages(
            at: layout.fileOffset(address), count: JournalLayout.pageBytes, unreadable: &unreadable)
        return unsafe try? BatchHeader(decoding: page.constBytes.prefix(BatchHeader.byteCount))
    }

    /// Whether a valid header is of this journal's present life and of this place: a copy in a payload is neither.
    private func isMine(_ header: BatchHeader, at address: RingAddress) -> Bool {
        header.mirror == superblock.mirror && header.position == UInt64(layout.fileOffset(address))
            && layout.holdsBatch(at: layout.fileOffset(address), length: header.diskLength)
            && superblock.admits(firstSeq: header.firstSeq, incarnation: Incarnation(rawValue: header.incarnation))
    }

    private func finding(_ entry: HeaderEntry?, _ look: Look, _ chain: UInt64) -> RecoveryTable.EntryFinding {
        guard let entry else { return .absent }
        guard entry.previousChain == chain, let address = address(of: entry.position, from: end),
            layout.placement(of: entry.length, after: end) == address
        else { return .contradicting }
        if let header = look.header, look.finding == .expected, header.chain != entry.chain { return .contradicting }
        return .matching
    }

    /// The first address from `from` on at this file offset, within the lap.
    private func address(of position: Int, from: RingAddress) -> RingAddress? {
        let distance = (position - layout.bodyStart - layout.bodyOffset(from) + layout.bodyBytes) % layout.bodyBytes
        let found = from + distance
        return found - start < layout.bodyBytes ? found : nil
    }

    /// Valid headers of this journal with a seq from `expected` on, beyond the walk's place, by address.
    private mutating func searchLater(from expected: Seq) -> [(RingAddress, BatchHeader)] {
        var found: [(RingAddress, BatchHeader)] = []
        let limit = min(JournalScan.searchBytes, layout.bodyBytes - (end - start))
        let chunk = 256 * JournalLayout.pageBytes
        var distance = 0
        while distance < limit {
            let address = end + distance
            let count = min(chunk, limit - distance, layout.bodyBytes - layout.bodyOffset(address))
            let pages = image.readPages(at: layout.fileOffset(address), count: count, unreadable: &unreadable)
            for offset in stride(from: 0, to: count, by: JournalLayout.pageBytes) {
                let magic = unsafe pages.constBytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
                guard UInt64(littleEndian: magic) == BatchHeader.magic else { continue }
                let bytes = unsafe pages.constBytes[offset..<offset + BatchHeader.byteCount]
                guard let header = unsafe try? BatchHeader(decoding: bytes),
                    isMine(header, at: address + offset), header.firstSeq >= expected
                else { continue }
                found.append((address + offset, header))
            }
            distance += count
        }
        return found
    }

    private func laterFinding(
        _ expected: Seq, _ later: [(RingAddress, BatchHeader)]
    ) -> RecoveryTable.LaterFinding {
        if highestEntry > expected { return .proves }
        if later.contains(where: { $0.1.durableSeq >= expected }) { return .proves }
        return later.contains { $0.1.firstSeq > expected || $0.0 != end } ? .unproved : .nothing
    }

    private mutating func accept(_ header: BatchHeader, at address: RingAddress, _ body: FoundBatch?) {
        let entry = IndexEntry(header, at: address)
        knownCommittedSeq = max(knownCommittedSeq, header.committedSeq)
        end = entry.end
        guard !damage.isEmpty else { return whole.append(entry) }
        suspended.append(entry)
        provenByDamage = max(provenByDamage, header.durableSeq)
        if case .intact(let batch) = body { addDoubts(batch.header, batch.records, .behindDamage, address) }
    }

    /// Notes the damage at `expected`. Returns where the walk goes on, nil when nothing further is known.
    private mutating func stepOver(
        _ expected: Seq, _ look: Look, _ entry: HeaderEntry?, _ later: [(RingAddress, BatchHeader)]
    ) -> (Seq, UInt64)? {
        let position = layout.fileOffset(look.address)
        provenByDamage = max(provenByDamage, expected, later.map(\.1.durableSeq).max() ?? .zero)
        if look.finding == .expected, let header = look.header {
            provenByDamage = max(provenByDamage, header.lastSeq)
            damage.append(Damage(first: expected, last: header.lastSeq, position: position, header: header))
            addDoubts(look)
            end = look.address + header.diskLength
            return (header.lastSeq.next, header.chain)
        }
        if let entry, entry.previousChain == whole.last?.chain ?? superblock.checkpointChain || !damage.isEmpty,
            let address = address(of: entry.position, from: end)
        {
            damage.append(Damage(first: expected, last: entry.lastSeq, position: entry.position, header: nil))
            addDoubt(.init(first: expected, last: entry.lastSeq, reason: .unreadable, position: entry.position))
            end = address + entry.length
            return (entry.lastSeq.next, entry.chain)
        }
        let nextEntry = aheadEntries.values.filter { $0.firstSeq > expected }.min { $0.firstSeq < $1.firstSeq }
        let nextFound = later.filter { $0.1.firstSeq > expected }.min { $0.1.firstSeq < $1.1.firstSeq }
        if let nextFound, nextFound.1.firstSeq <= nextEntry?.firstSeq ?? nextFound.1.firstSeq {
            noteGap(expected, nextFound.1.firstSeq.previous, position)
            end = nextFound.0
            return (nextFound.1.firstSeq, nextFound.1.previousChain)
        }
        if let nextEntry, let address = address(of: nextEntry.position, from: end) {
            noteGap(expected, nextEntry.firstSeq.previous, position)
            end = address
            return (nextEntry.firstSeq, nextEntry.previousChain)
        }
        let proven = max(superblock.provenSeq, highestEntry, later.map(\.1.durableSeq).max() ?? .zero)
        noteGap(expected, max(expected, proven), position)
        return nil
    }

    private mutating func noteGap(_ first: Seq, _ last: Seq, _ position: Int) {
        damage.append(Damage(first: first, last: last, position: position, header: nil))
        addDoubt(.init(first: first, last: last, reason: .unreadable, position: position))
    }

    // MARK: doubts

    private mutating func addDoubt(_ doubt: RecoveryReport.Doubt) {
        if doubts.count < RecoveryReport.doubtLimit { doubts.append(doubt) } else { doubtsNotListed += 1 }
    }

    private mutating func addDoubts(_ look: Look) {
        switch look.body {
        case .intact(let batch): addDoubts(batch.header, batch.records, .payload, look.address)
        case .damagedPayloads(let header, let records, let indices):
            addDoubts(header, records, .behindDamage, look.address, damaged: Set(indices))
        case .damagedRecords(let header, _):
            addDoubt(
                .init(
                    first: header.firstSeq, last: header.lastSeq, reason: .unreadable,
                    position: layout.fileOffset(look.address)))
        case nil: break
        }
    }

    private mutating func addDoubts(
        _ header: BatchHeader, _ records: [Record], _ reason: RecoveryReport.Doubt.Reason, _ address: RingAddress,
        damaged: Set<Int> = []
    ) {
        for (index, record) in records.enumerated() {
            var range: Range<UInt64>?
            if case .write(_, let offset) = record.body, offset <= UInt64.max - UInt64(record.payload.length) {
                range = offset..<offset + UInt64(record.payload.length)
            }
            let seq = header.firstSeq + index
            addDoubt(
                .init(
                    first: seq, last: seq, reason: damaged.contains(index) ? .payload : reason,
                    file: record.body.touched.first, range: range, position: layout.fileOffset(address)))
        }
    }

    // MARK: backwards

    /// What is still there behind the checkpoint, for catch-up: by header entries only, the reader checks the rest.
    private mutating func walkBack() {
        var seq = superblock.checkpointSeq
        var chain = superblock.checkpointChain
        var bound = start
        var found: [IndexEntry] = []
        while let entry = behindEntries[seq], entry.chain == chain {
            let offset = entry.position - layout.bodyStart
            let lap = layout.bodyOffset(bound) >= offset + entry.length ? 0 : layout.bodyBytes
            let distance = layout.bodyOffset(bound) + lap - offset
            guard bound.rawValue >= UInt64(distance) else { break }
            let address = bound + -distance
            let next = found.last.map { Int($0.length) }
            guard end - address <= layout.bodyBytes, address + entry.length <= bound,
                next.map({ layout.placement(of: $0, after: address + entry.length) == bound })
                    ?? (layout.bodyOffset(address + entry.length) == layout.bodyOffset(bound))
            else { break }
            found.append(IndexEntry(entry, at: address))
            bound = address
            guard entry.firstSeq > Seq(rawValue: 1) else { break }
            seq = entry.firstSeq.previous
            chain = entry.previousChain
        }
        behind = found.reversed()
    }
}

extension IndexEntry {
    init(_ header: BatchHeader, at address: RingAddress) {
        self.init(
            address: address, firstSeq: header.firstSeq, chain: header.chain, previousChain: header.previousChain,
            incarnation: Incarnation(rawValue: header.incarnation), length: UInt32(header.diskLength),
            recordCount: UInt32(header.recordCount), epoch: header.epoch)
    }

    init(_ entry: HeaderEntry, at address: RingAddress) {
        self.init(
            address: address, firstSeq: entry.firstSeq, chain: entry.chain, previousChain: entry.previousChain,
            incarnation: entry.incarnation, length: UInt32(entry.length), recordCount: UInt32(entry.recordCount),
            epoch: entry.epoch)
    }
}
