import Format
import Glibc
import Journal
import Replication
import Tree

// Repairing what a verification found.
//
// ```
//   range that differs ─▶ ask both for its bytes (record S) ─▶ which side is right? ─▶ repair records ─▶ ask again
//                          from here on note what the           journal, unreadable      less what was
//                          application changes in the file      side, --prefer           touched since S
// ```
//
// * **What is right** is never guessed. The journal is read: the last record that touched a byte carries it, with a
//   checksum. A block is repaired only if every byte that differs in it is proved that way; then both rooms get what
//   the journal says (each may be wrong in places). Otherwise the administrator chooses (`--prefer`), or it stays as it
//   is and is reported.
// * **A block that the disk of one side cannot read** has what the other side reads, but for the bytes that the journal
//   proves. That holds for this block alone, and a bad sector makes everything unreadable that is read together with
//   it: so what cannot be read is asked about once more, block by block. An error that is not the disk's (no memory, no
//   descriptor) says nothing about the file, and nothing is repaired for it.
// * **An old image never overwrites a newer write.** The repair gets its place in the mirror's one order, behind S.
//   Bytes that a record between S and that place has touched are left out: that record brought them to both rooms. All
//   others are at that place what they were at S. Of a file whose last name went since S nothing is repaired.
// * **Both rooms apply it.** Where the bytes are right already it changes nothing, so it does not matter who is primary
//   when it is applied: if the primary dies on the way, the record is in both journals, or in neither.
// * Afterwards the block is compared again, behind the repair, and only then called repaired. Then the kernel is told to
//   forget what it has cached of the file in the mirrored directory.

/// What a repair has under way. Confined to the data thread.
struct VerifyRepairState {
    /// Ranges that wait for their turn.
    var waiting: [(task: VerifyTask, range: Range<UInt64>)] = []
    /// Asked, judged or written, not compared again yet: so long the application's changes are noted.
    var active = 0
    var touches = TouchLog()
    /// The records asked about, of what is active: what came after the first of them is remembered.
    var since: [Seq: Int] = [:]
    /// Contents of both sides that wait for what the journal says.
    var pieces: [VerifyPiece] = []
    var attributes: [VerifyAttributes] = []
    var isScanning = false
    /// Decided, and waiting for room in the log.
    var writing: [(piece: VerifyPiece, parts: [(start: UInt64, bytes: [UInt8])])] = []
}

/// A range of at most 64 KiB as both sides have it at one record; one block, if only one side can read it.
final class VerifyPiece {
    let task: VerifyTask
    let range: Range<UInt64>
    let seq: Seq
    /// The only node that could read it, whose bytes stand for both; nil: both could.
    let reader: NodeID?
    /// Of one length: where a file is longer on one side, the rest is a matter of its size, which was settled before.
    let mine: [UInt8]
    let theirs: [UInt8]
    var evidence: ContentEvidence
    /// Blocks nothing is known about.
    var undecided: [Range<UInt64>] = []

    init(
        task: VerifyTask, range: Range<UInt64>, seq: Seq, mine: [UInt8], theirs: [UInt8], reader: NodeID? = nil
    ) {
        self.task = task
        self.range = range
        self.seq = seq
        self.reader = reader
        let length = min(mine.count, theirs.count)
        self.mine = Array(mine.prefix(length))
        self.theirs = Array(theirs.prefix(length))
        evidence = ContentEvidence(file: task.file, offset: range.lowerBound, length: length)
    }
}

/// Attributes as both sides have them at one record.
final class VerifyAttributes {
    let task: VerifyTask
    let seq: Seq
    let mine: VerifiedFile
    let theirs: VerifiedFile
    let detail: String
    var evidence: AttributeEvidence

    init(task: VerifyTask, seq: Seq, mine: VerifiedFile, theirs: VerifiedFile, detail: String) {
        self.task = task
        self.seq = seq
        self.mine = mine
        self.theirs = theirs
        self.detail = detail
        evidence = AttributeEvidence(file: task.file)
    }
}

extension VerifyRun {
    static let piecesAtOnce = 8

    // MARK: - What is to be repaired

    func repairData(_ task: VerifyTask, _ range: Range<UInt64>) {
        guard task.repairs < VerifyLimits.repairsOfFile else {
            return note(
                task, .data, range, detail: "too many differences in one file; `lockstep resync --full`", state: .failed
            )
        }
        var start = range.lowerBound
        while start < range.upperBound {
            let end = min(range.upperBound, start + VerifyCheck.bytesLimit)
            task.repairs += 1
            repair.waiting.append((task, start..<end))
            start = end
        }
        schedule()
    }

    func repairUnreadable(_ task: VerifyTask, _ range: Range<UInt64>, _ detail: String) {
        let end = min(range.upperBound, max(task.size, range.lowerBound))
        guard end > range.lowerBound else { return note(task, .unreadable, range, detail: detail, state: .failed) }
        let block = UInt64(VerifyCheck.fineBlockBytes)
        repairData(task, range.lowerBound..<(end + block - 1) / block * block)
    }

    func stopRepairs() {
        if repair.active > 0 { plane.log.onLogged = nil }
        repair = VerifyRepairState()
    }

    // MARK: - Noting what the application does meanwhile

    private func begin() {
        repair.active += 1
        guard repair.active == 1 else { return }
        plane.log.onLogged = { [unowned self] seq, body, length in repair.touches.note(seq, body, length: length) }
    }

    private func remember(_ seq: Seq) { repair.since[seq, default: 0] += 1 }

    private func finish(_ task: VerifyTask, _ seq: Seq) {
        if let count = repair.since[seq] { repair.since[seq] = count > 1 ? count - 1 : nil }
        repair.active -= 1
        task.repairs -= 1
        if let oldest = repair.since.keys.min() {
            repair.touches.prune(through: oldest)
        } else {
            repair.touches = TouchLog()
        }
        if repair.active == 0 { plane.log.onLogged = nil }
        schedule()
    }

    // MARK: - Going on

    func pumpRepairs() {
        while !repair.waiting.isEmpty, repair.active < VerifyRun.piecesAtOnce, mayAsk {
            let (task, range) = repair.waiting.removeFirst()
            askBytes(task, range)
        }
        if !repair.isScanning, !repair.pieces.isEmpty || !repair.attributes.isEmpty { scan() }
        write()
    }

    private func askBytes(_ task: VerifyTask, _ range: Range<UInt64>) {
        begin()
        // From the question on, not from its answer: what is touched in between makes the answer old.
        remember(
            ask(task, .bytes, range.lowerBound, UInt64(range.count), cost: UInt64(range.count)) {
                [self] mine, theirs, seq in
                switch (mine, theirs) {
                case (.gone, .gone): finish(task, seq)
                case (.bytes(let left), .bytes(let right)):
                    guard left != right else { return finish(task, seq) }
                    repair.pieces.append(VerifyPiece(task: task, range: range, seq: seq, mine: left, theirs: right))
                default: unreadBytes(task, range, mine, theirs, seq)
                }
            })
    }

    /// One side, or both, could not read all of it.
    private func unreadBytes(
        _ task: VerifyTask, _ range: Range<UInt64>, _ mine: VerifyOutcome, _ theirs: VerifyOutcome, _ seq: Seq
    ) {
        let block = UInt64(VerifyCheck.fineBlockBytes)
        guard VerifyRun.isReadOrBad(mine), VerifyRun.isReadOrBad(theirs) else {
            note(task, .unreadable, range, detail: failures(mine, theirs), state: .failed)
            return finish(task, seq)
        }
        guard UInt64(range.count) <= block else {
            // Its blocks are next, so that there are never more of them than of a few ranges.
            let blocks = stride(from: range.lowerBound, to: range.upperBound, by: Int(block)).map { start in
                (task: task, range: start..<min(start + block, range.upperBound))
            }
            task.repairs += blocks.count
            repair.waiting.insert(contentsOf: blocks, at: 0)
            return finish(task, seq)
        }
        switch (mine, theirs) {
        case (.bytes(let bytes), _): oneReads(task, range, bytes, by: plane.node, seq)
        case (_, .bytes(let bytes)): oneReads(task, range, bytes, by: plane.node.peer, seq)
        default:
            note(task, .unreadable, range, detail: "on neither node", state: .failed)
            finish(task, seq)
        }
    }

    /// Whether a side has read it, or its disk has lost it. Any other error says nothing about what is on the disk.
    private static func isReadOrBad(_ outcome: VerifyOutcome) -> Bool {
        switch outcome {
        case .bytes: true
        case .failed(let errno): [EIO, EUCLEAN, EBADMSG].contains(errno)
        default: false
        }
    }

    private func oneReads(
        _ task: VerifyTask, _ range: Range<UInt64>, _ bytes: [UInt8], by node: NodeID, _ seq: Seq
    ) {
        guard !bytes.isEmpty else {
            note(task, .unreadable, range, detail: "behind the end of the file on \(name(node))", state: .failed)
            return finish(task, seq)
        }
        repair.pieces.append(
            VerifyPiece(task: task, range: range, seq: seq, mine: bytes, theirs: bytes, reader: node))
    }

    // MARK: - What the journal says

    private struct Evidence: Sendable {
        var content: [(through: Seq, evidence: ContentEvidence)]
        var attributes: [(through: Seq, evidence: AttributeEvidence)]

        mutating func restart() {
            for index in content.indices { content[index].evidence.restart() }
            for index in attributes.indices { attributes[index].evidence.restart() }
        }

        mutating func add(_ batch: Batch) {
            for (place, record) in batch.records.enumerated() {
                let seq = batch.firstSeq + place
                for index in content.indices where seq <= content[index].through {
                    content[index].evidence.add(record) { unsafe Array(batch.payload(of: place)) }
                }
                for index in attributes.indices where seq <= attributes[index].through {
                    attributes[index].evidence.add(record)
                }
            }
        }
    }

    /// Reads the whole journal once for everything that waits.
    private func scan() {
        repair.isScanning = true
        let pieces = repair.pieces
        let attributes = repair.attributes
        repair.pieces = []
        repair.attributes = []
        let last = max(pieces.map(\.seq).max() ?? .zero, attributes.map(\.seq).max() ?? .zero)
        let evidence = Evidence(
            content: pieces.map { ($0.seq, $0.evidence) }, attributes: attributes.map { ($0.seq, $0.evidence) })
        scan(from: plane.journal.oldestSeq, through: last, evidence) { [self] found in
            for (piece, one) in zip(pieces, found.content) {
                piece.evidence = one.evidence
                judge(piece)
            }
            for (waiting, one) in zip(attributes, found.attributes) {
                waiting.evidence = one.evidence
                judge(waiting)
            }
            repair.isScanning = false
            schedule()
        }
    }

    private func scan(
        from next: Seq, through last: Seq, _ evidence: Evidence, _ done: @escaping (Evidence) -> Void
    ) {
        var evidence = evidence
        guard next <= last else { return done(evidence) }
        guard let plan = plane.journal.plan(from: next, limitBytes: PeerLink.journalReadBytes) else {
            // Overwritten meanwhile: with a gap in it, what was read before proves nothing.
            evidence.restart()
            let oldest = plane.journal.oldestSeq
            guard oldest > next else { return done(evidence) }
            return scan(from: oldest, through: last, evidence, done)
        }
        let reader = plane.link.reader
        work { [evidence] _ throws(TreeError) -> (Evidence, Seq?) in
            var evidence = evidence
            guard let batches = try? reader.read(plan), let end = batches.last?.lastSeq else {
                // Damaged, or overwritten while it was read.
                evidence.restart()
                return (evidence, nil)
            }
            for batch in batches { evidence.add(batch) }
            return (evidence, end)
        } then: { [self] result in
            guard case .success(let (found, end)) = result else { return done(evidence) }
            let after = end ?? plan.last.map { $0.lastSeq } ?? next
            scan(from: max(after.next, plane.journal.oldestSeq), through: last, found, done)
        }
    }

    // MARK: - Judging

    private func judge(_ piece: VerifyPiece) {
        guard piece.reader == nil else {
            let right = piece.evidence.correcting(piece.mine)
            repair.writing.append((piece, [(piece.range.lowerBound, right)]))
            return
        }
        let block = Int(VerifyCheck.fineBlockBytes)
        var parts: [(start: UInt64, bytes: [UInt8])] = []
        var start = 0
        while start < piece.mine.count {
            let place = start..<min(start + block, piece.mine.count)
            start = place.upperBound
            guard piece.mine[place] != piece.theirs[place] else { continue }
            let offset = piece.range.lowerBound + UInt64(place.lowerBound)
            var right: [UInt8]?
            switch piece.evidence.judge(place, mine: piece.mine, theirs: piece.theirs) {
            case .proved(let bytes): right = bytes
            case .unproved:
                // What is proved of the block stays, whichever side the rest comes from.
                right = prefer.map { node in
                    Array(piece.evidence.correcting(node == plane.node ? piece.mine : piece.theirs)[place])
                }
            }
            guard let right else {
                piece.undecided.append(offset..<offset + UInt64(place.count))
                continue
            }
            if let end = parts.last, end.start + UInt64(end.bytes.count) == offset {
                parts[parts.count - 1].bytes += right
            } else {
                parts.append((offset, right))
            }
        }
        for range in merged(piece.undecided) { note(piece.task, .data, range, state: .undecided) }
        guard !parts.isEmpty else { return finish(piece.task, piece.seq) }
        repair.writing.append((piece, parts))
    }

    private func merged(_ ranges: [Range<UInt64>]) -> [Range<UInt64>] {
        var found: [Range<UInt64>] = []
        for range in ranges {
            if let last = found.last, last.upperBound == range.lowerBound {
                found[found.count - 1] = last.lowerBound..<range.upperBound
            } else {
                found.append(range)
            }
        }
        return found
    }

    // MARK: - Writing

    private func write() {
        while let (piece, parts) = repair.writing.first {
            var left = parts
            while let part = left.first {
                guard write(part, of: piece) else {
                    repair.writing[0].parts = left
                    return
                }
                left.removeFirst()
            }
            repair.writing.removeFirst()
            compareAgain(piece, parts)
        }
    }

    /// - Returns: false when memory is used up; then the part comes again.
    private func write(_ part: (start: UInt64, bytes: [UInt8]), of piece: VerifyPiece) -> Bool {
        let file = piece.task.file
        let log = plane.log
        // Asked anew at every try: records may have come since. Who has a removed file open goes on writing to it, in
        // this room alone and without records: then there is nothing to repair any more, and much to destroy.
        guard !repair.touches.isRemoved(file, after: piece.seq) else { return true }
        let ranges = repair.touches.untouched(
            file, after: piece.seq, part.start, part.start + UInt64(part.bytes.count))
        for range in ranges {
            let place = Int(range.lowerBound - part.start)..<Int(range.upperBound - part.start)
            let isLogged = unsafe part.bytes[place].withUnsafeBytes { raw in
                unsafe log.appendRepair(file: file, offset: range.lowerBound, bytes: raw, time: log.wallClock())
            }
            guard isLogged else { return false }
        }
        return true
    }

    private func compareAgain(_ piece: VerifyPiece, _ parts: [(start: UInt64, bytes: [UInt8])]) {
        let task = piece.task
        let block = UInt64(VerifyCheck.fineBlockBytes)
        let start = piece.range.lowerBound / block * block
        let length = (piece.range.upperBound - start + block - 1) / block * block
        ask(task, .blocks, start, length, blockBytes: VerifyCheck.fineBlockBytes, cost: length) {
            [self] mine, theirs, _ in
            defer { finish(task, piece.seq) }
            plane.directory?.forgetCached(task.file)
            if mine == .gone, theirs == .gone { return }
            let ranges = merged(parts.map { $0.start..<$0.start + UInt64($0.bytes.count) })
            guard case .blocks(let left) = mine, case .blocks(let right) = theirs, left.count == right.count else {
                for range in ranges { note(task, .data, range, detail: "cannot be read after it", state: .failed) }
                return
            }
            let still = VerifyRun.differingRanges(left, right, from: start)
            for range in ranges {
                let isEqual = !still.contains { $0.overlaps(range) }
                note(task, .data, range, detail: from(piece), state: isEqual ? .repaired : .failed)
            }
        }
    }

    /// Whose copy was right, in words.
    private func from(_ piece: VerifyPiece) -> String {
        if let reader = piece.reader {
            let isRight = piece.evidence.correcting(piece.mine) == piece.mine
            return "from \(name(reader)), which could read it\(isRight ? "" : "; what it had wrong from the journal")"
        }
        let known = piece.evidence.known
        let isMine = known.indices.allSatisfy { !known[$0] || piece.evidence.bytes[$0] == piece.mine[$0] }
        let isTheirs = known.indices.allSatisfy { !known[$0] || piece.evidence.bytes[$0] == piece.theirs[$0] }
        switch (isMine, isTheirs) {
        case (true, false): return "\(name(plane.node)) was right, as its journal shows"
        case (false, true): return "\(name(plane.node.peer)) was right, as the journal shows"
        case (false, false): return "both were wrong in places, as the journal shows"
        case (true, true): return "taken from \(prefer.map(name) ?? "the journal"), as asked"
        }
    }

    // MARK: - Attributes

    func repairAttributes(_ task: VerifyTask, _ detail: String) {
        task.repairs += 1
        askAttributes(task, detail)
    }

    private func askAttributes(_ task: VerifyTask, _ detail: String) {
        begin()
        // A question more or less than `mayAsk` allows does no harm: there are few of these.
        remember(
            ask(task, .file) { [self] mine, theirs, seq in
                guard case .file(let left) = mine, case .file(let right) = theirs else {
                    return finishAttributes(task, seq)
                }
                let details = differences(left, right)
                guard !details.isEmpty else {
                    note(task, .attributes, detail: detail, state: .overwritten)
                    return finishAttributes(task, seq)
                }
                repair.attributes.append(
                    VerifyAttributes(
                        task: task, seq: seq, mine: left, theirs: right, detail: details.joined(separator: "; ")))
            })
    }

    private func judge(_ waiting: VerifyAttributes) {
        let task = waiting.task
        let mine = waiting.mine
        var theirs = waiting.theirs
        // No difference, see `differences`: nothing has to prove it.
        if plane.limits.kept(mine.attributes.mtime) == plane.limits.kept(theirs.attributes.mtime) {
            theirs.attributes.mtime = mine.attributes.mtime
        }
        // Another type, device or target is another object: that takes names.
        guard mine.attributes.mode & 0o170000 == theirs.attributes.mode & 0o170000,
            mine.attributes.rdev == theirs.attributes.rdev, mine.target == theirs.target
        else {
            note(
                task, .attributes, detail: waiting.detail + "; repaired by `lockstep resync --full`", state: .failed)
            return finishAttributes(task, waiting.seq)
        }
        var right = waiting.evidence.judge(mine, theirs)
        if right == nil, let prefer {
            let chosen = prefer == plane.node ? mine : theirs
            // Too long for a message: nothing to take.
            if mine.xattrHash == theirs.xattrHash || mine.xattrs != theirs.xattrs {
                right = (chosen.attributes, chosen.xattrs)
            }
        }
        guard let (attributes, xattrs) = right else {
            note(task, .attributes, detail: waiting.detail, state: .undecided)
            return finishAttributes(task, waiting.seq)
        }
        // Changed since: what was judged is old. Once more, from the beginning.
        guard !repair.touches.isTouched(task.file, after: waiting.seq) else {
            task.attributeTries += 1
            guard task.attributeTries < VerifyLimits.attributeTries else {
                note(
                    task, .attributes, detail: waiting.detail + "; the application changes it all the time",
                    state: .failed)
                return finishAttributes(task, waiting.seq)
            }
            finish(task, waiting.seq)
            task.repairs += 1
            return askAttributes(task, waiting.detail)
        }
        _ = plane.log.appendMark(.repairFile(file: task.file, attributes: attributes, xattrs: xattrs))
        ask(task, .file) { [self] mine, theirs, _ in
            plane.directory?.forgetCached(task.file)
            var isEqual = false
            if case .file(let left) = mine, case .file(let right) = theirs {
                isEqual = differences(left, right).isEmpty
            }
            note(task, .attributes, detail: waiting.detail, state: isEqual ? .repaired : .failed)
            finishAttributes(task, waiting.seq)
        }
    }

    /// The size is settled, or stays as it is: now the whole file is compared once more, from the beginning.
    private func finishAttributes(_ task: VerifyTask, _ seq: Seq) {
        task.isAsked = false
        finish(task, seq)
    }
}
