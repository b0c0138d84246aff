public import Format

/// A journal as recovery sees it: the verdict, and the map of what can be read.
public struct JournalMap {
    /// One stretch of the journal in seq order.
    public enum Segment: Sendable {
        case batch(BatchLocation)
        /// Was durable, cannot be read.
        case damaged(first: Seq, last: Seq, position: Int?)
    }

    public let superblocks: SuperblockSet
    public let report: RecoveryReport
    public let segments: [Segment]
    let scan: JournalScan

    /// Reads the journal and decides; never writes.
    ///
    /// - Parameter mirror: the mirror it must belong to; nil to read any.
    /// - Throws: when the superblocks do not allow to open it.
    public init(image: JournalImage, mirror: MirrorID?) throws(JournalError) {
        superblocks = SuperblockSet(image: image)
        let finding = superblocks.finding(mirror: mirror, byteCount: image.byteCount)
        guard
            RecoveryTable.outcome(
                superblocks: finding, anyDamage: false, lastStep: .end, incomplete: false, company: .alone) != .refuse,
            let (superblock, copies) = superblocks.agreed, let layout = JournalLayout(fileSize: image.byteCount)
        else { throw superblocks.refusal(finding, mirror: mirror, image: image) }
        scan = JournalScan(image: image, superblock: superblock, layout: layout)
        report = JournalMap.report(scan, copies: copies, superblocks: superblocks)
        segments = JournalMap.segments(scan)
    }

    private static func report(_ scan: JournalScan, copies: Int, superblocks: SuperblockSet) -> RecoveryReport {
        let superblock = scan.superblock
        var epochs = superblock.epochs
        epochs.cut(to: scan.lastSeq)
        for entry in scan.whole { epochs.note(entry.epoch, from: entry.firstSeq) }
        let verdict: RecoveryReport.Verdict =
            if let last = scan.damage.map(\.last).max() {
                .damaged(through: last)
            } else {
                scan.lastStep == .cutTail ? .tailCut : .intact
            }
        var notes = scan.notes
        for (index, copy) in superblocks.copies.enumerated() {
            switch copy {
            case .failure(let fault): notes.append("note: superblock copy \(index): \(fault)")
            case .success(let other) where other != superblock:
                notes.append("note: superblock copy \(index) has generation \(other.generation)")
            case .success: continue
            }
        }
        return RecoveryReport(
            superblock: superblock, superblockCopies: copies, verdict: verdict, lastSeq: scan.lastSeq,
            lastChain: scan.lastChain, lastEpoch: epochs.epoch(of: scan.lastSeq) ?? .none, epochs: epochs,
            knownCommittedSeq: scan.knownCommittedSeq,
            oldestSeq: scan.behind.first?.firstSeq ?? superblock.checkpointSeq.next, doubts: scan.doubts,
            doubtsNotListed: scan.doubtsNotListed, unreadablePages: scan.unreadable.sorted(), notes: notes)
    }

    private static func segments(_ scan: JournalScan) -> [Segment] {
        let batches = (scan.behind + scan.whole + scan.suspended).map { entry in
            (entry.firstSeq, Segment.batch(BatchLocation(entry, layout: scan.layout)))
        }
        let damaged = scan.damage.map { damage in
            (
                damage.first,
                Segment.damaged(first: damage.first, last: damage.last, position: damage.position)
            )
        }
        return (batches + damaged).sorted { $0.0 < $1.0 }.map(\.1)
    }

    /// Every valid batch header that lies where it says it lies, whatever the superblocks say: the last resort of
    /// `lockstep-dump` on a journal that cannot be opened. By seq, then by position.
    public static func everyHeader(in image: JournalImage) -> [BatchHeader] {
        var found: [BatchHeader] = []
        var unreadable: [Int] = []
        let chunk = 256 * JournalLayout.pageBytes
        let size = image.byteCount / JournalLayout.pageBytes * JournalLayout.pageBytes
        for offset in stride(from: 0, to: size, by: chunk) {
            let count = min(chunk, size - offset)
            let pages = image.readPages(at: offset, count: count, unreadable: &unreadable)
            for page in stride(from: 0, to: count, by: JournalLayout.pageBytes) {
                let magic = unsafe pages.constBytes.loadUnaligned(fromByteOffset: page, as: UInt64.self)
                guard UInt64(littleEndian: magic) == BatchHeader.magic else { continue }
                let bytes = unsafe pages.constBytes[page..<page + BatchHeader.byteCount]
                guard let header = unsafe try? BatchHeader(decoding: bytes),
                    header.position == UInt64(offset + page), offset + page + header.diskLength <= size
                else { continue }
                found.append(header)
            }
        }
        return found.sorted { ($0.firstSeq, $0.position) < ($1.firstSeq, $1.position) }
    }
}
