import Format
import Glibc
import Replication
import Tree

/// What differs when only what is owed is sent.
///
/// ```
///  record      imageStart is in the log; what has changed up to there is owed; since then it comes as records
///              on this node's disk: owed, with the number            (dies before: nothing has happened yet)
///  invite      resyncStart(ranges) ─▶ the other one has everything up to `through` in its files and on disk
///                                     its log begins anew, incomplete, with the number, durable
///              resyncReady         ◀─
///  look        at what counts as changed as a whole: is it a directory?
///  walk        directories whose names changed, from the root down; files: size, changed ranges, attributes
///  confirm     an image is owed no more when both disks have its record
///  end         as after a comparison
/// ```
///
/// No probes: what is owed is read and sent. What the other node knows is everything but what was made since.
extension ResyncSource {
    // MARK: - Recording

    /// This node is alone in the set. What is owed becomes fixed here, and goes to the disk before the other node hears of
    /// it: its copy will be incomplete under this number, and nobody else could go on with it.
    func record() {
        guard case .ranges(let common, let way) = kind, !plane.keeper.isWriting, let terms = plane.keeper.terms
        else { return }
        plane.log.onLogged = { [unowned self] seq, body, length in logged(seq, body, length) }
        if way != .fresh(withOwed: false), way != .fresh(withOwed: true) { number = terms.number }
        guard way != .resume else {
            // The journal has moved on since this was planned: planned anew.
            guard let chain = plane.journal.chain(at: common) else { return plane.link.announce() }
            phase = .inviting
            progress.phase = "inviting"
            return invite(.resumed, base: common, chain: chain, through: common)
        }
        phase = .recording
        progress.phase = "recording what is owed"
        let (base, chain) = plane.log.beginImages(number: number)
        self.base = base
        self.chain = chain
        plane.keeper.begin(number: number, start: base, way: way, common: common)
        // Both layers together may have become more than can be remembered: then nothing could be walked.
        guard plane.keeper.terms?.isOwedKnown == true else { return plane.link.announce() }
        unknown = owedUnknown
    }

    private var owedUnknown: Set<FileID> { Set(plane.keeper.debt?.owed?.map.created ?? []) }

    func inviteWhenRecorded() {
        // Only what is on this disk can be built upon: after a crash the log must still reach to where the other begins.
        guard case .ranges(let common, _) = kind, phase == .recording, !isRecording, plane.log.committed >= base,
            let checkpointChain = plane.journal.chain(at: plane.journal.checkpointSeq)
        else { return }
        isRecording = true
        plane.keeper.persist(through: plane.journal.checkpointSeq, chain: checkpointChain) {
            [weak self] isDurable in
            guard let self, !isCancelled, phase == .recording else { return }
            guard isDurable else { return recordLater() }
            phase = .inviting
            progress.phase = "inviting"
            invite(.ranges, base: base, chain: chain, through: common)
        }
    }

    /// What is owed could not be written. The other node hears of nothing before it is: this one could die, and find an
    /// older record of the same number.
    private func recordLater() {
        _ = plane.reactor.after(milliseconds: ResyncLimits.recordAgainMilliseconds) { [weak self] in
            self?.isRecording = false
            self?.schedule()
        }
    }

    // MARK: - What is walked

    func startWalkingRanges() {
        guard case .ranges(_, let way) = kind, let debt = plane.keeper.debt, let owed = debt.owed else { return }
        unknown = owedUnknown
        for file in owed.map.files where !unknown.contains(file) {
            guard let changes = owed.map.changes(of: file) else { continue }
            if isWhole(changes) {
                wholes.append(file)
            } else if changes.hasNames {
                enqueue(file)
            } else {
                owedFiles.append(file)
            }
        }
        if way == .resume {
            // Records that come again may place what the other node does not have, or not where it belongs.
            for file in debt.since.files where !unknown.contains(file) {
                guard let changes = debt.since.changes(of: file), changes.hasNames else { continue }
                if !isWhole(changes) {
                    enqueue(file)
                } else if owed.map.changes(of: file).map({ !isWhole($0) }) ?? true {
                    wholes.append(file)
                }
            }
        }
        progress.bytesTotal = owed.map.extentBytes
    }

    func owed(_ file: FileID) -> DirtyMap.Changes? {
        kind == .comparison ? nil : plane.keeper.debt?.owed?.map.changes(of: file)
    }

    /// Of what counts as changed as a whole nobody knows yet what it is.
    private func isWhole(_ changes: DirtyMap.Changes) -> Bool { changes.hasNames && changes.hasContent }

    /// Finds the directories among what counts as changed as a whole. The images of directories have an order
    /// (`isInPlace`), so all that are owed must be known before the first is sent.
    ///
    /// - Returns: whether all are known.
    func lookAtWholes() -> Bool {
        while nextWhole < wholes.count, jobs < ResyncLimits.jobs {
            let batch = Array(wholes[nextWhole..<min(nextWhole + ResyncLimits.looks, wholes.count)])
            nextWhole += batch.count
            looksReading += 1
            read { tree throws(TreeError) in
                var types: [UInt32] = []
                for file in batch { types.append(try tree.typeIfThere(file)) }
                return types
            } then: { [self] result, _ in
                looksReading -= 1
                switch result {
                case .failure(let error): _ = isGone(error)
                case .success(let types): found(Array(zip(batch, types)))
                }
            }
        }
        guard nextWhole == wholes.count, looksReading == 0 else { return false }
        wholes = []
        nextWhole = 0
        return true
    }

    private func found(_ objects: [(file: FileID, type: UInt32)]) {
        for (file, type) in objects {
            switch type {
            case 0: continue
            case S_IFDIR: enqueue(file)
            default: if owed(file) != nil { owedFiles.append(file) }
            }
        }
    }

    /// Lets the next objects in.
    func fillFiles() {
        while nextOwedFile < owedFiles.count, files.count - nextFile < ResyncLimits.files {
            let file = owedFiles[nextOwedFile]
            nextOwedFile += 1
            guard let changes = owed(file) else { continue }
            files.append(Waiting(file: file, knownSince: startSeq, isRegular: changes.hasContent, owed: changes))
        }
    }

    /// Of a file that counts as changed as a whole, or something like one: what is it?
    func look(_ task: FileComparison) {
        guard jobs < ResyncLimits.jobs else { return }
        task.isBusy = true
        let file = task.file
        read { tree throws(TreeError) in
            try tree.status(of: file).attributes.mode & S_IFMT
        } then: { [self] result, _ in
            task.isBusy = false
            switch result {
            case .failure(let error): if isGone(error) { gone(task) }
            case .success(let type): task.stage = type == S_IFREG ? .size : .attributes
            }
        }
    }

    // MARK: - Directories in their order

    /// A directory that was moved may be, on the other node, above the one that it is to be placed in: then its record
    /// changes nothing there, and an image of the new parent must. That is possible only as long as directories differ.
    func moved(_ seq: Seq, _ file: FileID, from: FileID, to: FileID, exchangedWith other: FileID?) {
        guard kind != .comparison, phase != .walking || !directories.isEmpty || directoriesReading > 0 else { return }
        moves.append((seq, file))
        enqueueIfMoved(file, to)
        if let other {
            moves.append((seq, other))
            enqueueIfMoved(other, from)
        }
    }

    private func enqueueIfMoved(_ file: FileID, _ parent: FileID) {
        onDirectory(file) { [weak self] in
            guard let self, isKnown(parent) else { return }
            enqueue(parent)
        }
    }

    private func onDirectory(_ file: FileID, _ work: @escaping () -> Void) {
        pendingMoves += 1
        plane.compareOnWorker { tree throws(TreeError) in
            try tree.status(of: file).attributes.mode & S_IFMT == S_IFDIR
        } then: { [weak self] result in
            guard let self else { return }
            pendingMoves -= 1
            guard !isCancelled else { return }
            if (try? result.get()) ?? false { work() }
            schedule()
        }
    }

    /// Whether the image of a directory, read since the record `since` was applied, may be sent: everything above it is
    /// where it belongs on the other node too. Else an object could be above the directory that it is to be placed in.
    func isInPlace(_ directory: FileID, _ ancestors: [FileID], since: Seq) -> Bool {
        guard kind != .comparison else { return true }
        guard !ancestors.contains(where: queuedDirectories.contains) else { return false }
        return !moves.contains { $0.seq > since && ($0.file == directory || ancestors.contains($0.file)) }
    }

    // MARK: - Content

    /// Hands the next changed ranges to the readers.
    func feedRanges(_ task: FileComparison) {
        guard let map = plane.keeper.debt?.owed?.map else { return }
        while task.next < task.size, differing.count < ResyncLimits.differing {
            let range = map.range(of: task.file, from: task.next, size: task.size, limit: ResyncLimits.windowBytes)
            guard let range else {
                task.next = task.size
                break
            }
            task.next = range.upperBound
            task.windows += 1
            progress.differingBytes += UInt64(range.count)
            differing.append((task, range))
        }
        guard task.next >= task.size, task.windows == 0 else { return }
        task.stage = .attributes
        sendAttributes(task)
    }

    /// What is known of a file's length only now.
    func countRanges(_ task: FileComparison) {
        guard let map = plane.keeper.debt?.owed?.map else { return }
        progress.bytesTotal += map.tailBytes(of: task.file, size: task.size)
    }

    /// The part of `piece` that may be forgotten when it is confirmed: whole granules, unless it is the end of `range`.
    func confirmable(_ piece: Range<UInt64>, of range: Range<UInt64>) -> Range<UInt64> {
        guard kind != .comparison, piece.upperBound < range.upperBound,
            let granule = plane.keeper.debt?.owed?.map.granuleBytes
        else { return piece }
        return piece.lowerBound..<max(piece.lowerBound, piece.upperBound / granule * granule)
    }

    // MARK: - Confirmation

    /// An image has its place in the order.
    func note(_ image: Debt.Image, at seq: Seq) {
        guard kind != .comparison else { return }
        if case .content(_, let range) = image { progress.bytesDone += UInt64(range.count) }
        unconfirmed.append((seq, image))
    }

    /// Forgets what both disks have: on this one too, because the log that says so must be there after a crash.
    func confirmImages() {
        let both = min(follower, plane.log.committed)
        var count = 0
        for (seq, image) in unconfirmed {
            guard seq <= both else { break }
            plane.keeper.confirm(image, at: seq)
            count += 1
        }
        if count > 0 { unconfirmed.removeFirst(count) }
    }
}
