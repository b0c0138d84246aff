import Format
import Fuse
import Glibc
import Journal
import Replication
import Ring
import Tree

/// The primary's side of a resynchronisation: walks its own tree, or what it owes of it, and makes the follower's equal.
///
/// ```
///  shrinking ── only this node is in sync ─▶ recording ── durable ─▶ inviting ── resyncReady ──▶ walking
///                                            (ranges only)                 nothing left to image │
///                                                           ended ◀── resyncDone ── ending ◀─────┘ (imageEnd)
/// ```
///
/// A comparison remembers every object that the follower knows (about 40 bytes each, while it runs), ranges those that it
/// does not know yet; everything else is bounded by `ResyncLimits`.
final class ResyncSource: ResyncSession {
    enum Kind: Equatable {
        case comparison
        /// `common`: the last record that the follower has.
        case ranges(common: Seq, ReturnWay)

        var name: String { self == .comparison ? "comparison" : "ranges" }
    }

    enum Phase: Equatable {
        /// The decision must say that the other node's copy does not count, before its first byte is overwritten.
        case shrinking
        /// What is owed goes to the disk, with the number that the follower's copy will carry.
        case recording
        case inviting
        case walking
        case ending
        case ended
    }

    /// A file, link or device that waits for its turn.
    struct Waiting {
        var file: FileID
        /// The image of its directory: from here on the follower knows it.
        var knownSince: Seq
        var isRegular: Bool
        /// Only these parts of it are owed.
        var owed: DirtyMap.Changes?
    }

    unowned let plane: DataPlane
    let kind: Kind
    var number: UInt64
    let seed: UInt64
    let done: () -> Void
    var phase = Phase.shrinking
    var base = Seq.zero
    var chain: UInt64 = 0
    var isRecording = false
    private(set) var isCancelled = false
    var isPumpPosted = false

    var touches = TouchLog()
    /// Everything logged before the comparison began is applied from here on.
    var startSeq = Seq.zero
    /// Of a comparison: what the follower knows.
    var known: Set<FileID> = [.root]
    /// Of ranges: what it does not know. Everything else it has from before.
    var unknown: Set<FileID> = []
    /// Moves of objects, oldest first, while directories are imaged: an image of a directory is placed only below
    /// directories that are where they belong.
    var moves: [(seq: Seq, file: FileID)] = []
    /// Images in the order whose confirmation is waited for, by seq.
    var unconfirmed: [(seq: Seq, image: Debt.Image)] = []
    /// Of the objects owed, those that are walked next.
    var owedFiles: [FileID] = []
    var nextOwedFile = 0
    /// Of what is owed as a whole: the directories among them are found first.
    var wholes: [FileID] = []
    var nextWhole = 0
    var looksReading = 0
    /// Moves of which it is not known yet whether a directory was moved.
    var pendingMoves = 0
    var directories: [FileID] = [.root]
    var queuedDirectories: Set<FileID> = [.root]
    var directoriesReading = 0
    /// How often the directories in the queue were found busy.
    var busyDirectories: [FileID: Int] = [:]
    /// Lets the application go on with the names of a directory.
    var heldNames: (() -> Void)?
    var files: [Waiting] = []
    var nextFile = 0
    var tasks: [FileComparison] = []
    /// `data`: bytes that are no hole.
    var probes: [UInt64: (task: FileComparison, offset: UInt64, blocks: Int, data: UInt64)] = [:]
    var nextProbe: UInt64
    /// Ranges that differ and wait to be read.
    var differing: [(task: FileComparison, range: Range<UInt64>)] = []
    /// What was read and has no place in the order yet.
    var images: [ReadImage] = []
    /// Image bytes in the order and not on the follower's disk.
    var unacknowledged: [(seq: Seq, bytes: Int)] = []
    var unacknowledgedBytes = 0
    var jobs = 0
    /// Of ranges being read, and read without a place in the order yet.
    var bytesToLog = 0
    /// The applied seq at the start of every read under way.
    var readsSince: [UInt64: Seq] = [:]
    var nextRead: UInt64 = 0
    var saidFull = false
    var progress = ResyncProgress()

    init(plane: DataPlane, kind: Kind, done: @escaping () -> Void) {
        self.plane = plane
        self.kind = kind
        self.done = done
        var generator = SystemRandomNumberGenerator()
        number = UInt64.random(in: 1...UInt64.max, using: &generator)
        seed = generator.next()
        // Answers of an earlier session find no probe.
        nextProbe = generator.next()
        progress.phase = "waiting for the decision"
        if kind != .comparison {
            directories = []
            queuedDirectories = []
        }
        schedule()
    }

    func invite() {
        guard plane.isCertainlyAlone, plane.log.hasRoomForImages else { return }
        guard kind == .comparison else { return record() }
        phase = .inviting
        progress.phase = "inviting"
        let (base, chain) = plane.log.beginImages(number: number)
        invite(.comparison, base: base, chain: chain, through: .zero)
    }

    func invite(_ kind: ResyncStart.Kind, base: Seq, chain: UInt64, through: Seq) {
        self.base = base
        startSeq = plane.log.lastSeq
        plane.log.onLogged = { [unowned self] seq, body, length in logged(seq, body, length) }
        plane.link.connection?.send(
            .resyncStart(
                ResyncStart(
                    kind: kind, number: number, base: base, chain: chain, epochs: plane.journal.epochs.starts,
                    through: through)))
    }

    func cancel() {
        guard !isCancelled else { return }
        isCancelled = true
        phase = .ended
        plane.log.onLogged = nil
        plane.log.awaitsImages = nil
        plane.link.tellsCommitsAtOnce = false
        releaseNames()
        tasks.removeAll()
        probes.removeAll()
        differing.removeAll()
        images.removeAll()
    }

    func tick() { schedule() }
    func progressed() { schedule() }

    func received(_ message: DataMessage) {
        guard !isCancelled else { return }
        switch message {
        case .resyncReady(number) where phase == .inviting:
            phase = .walking
            progress.phase = "directories"
            if kind == .comparison {
                countUsedBytes()
            } else {
                startWalkingRanges()
                // While there are directories, what is in them waits until their images are applied here.
                plane.log.awaitsImages = { [unowned self] in
                    phase == .walking && jobs > 0 && directories.isEmpty && directoriesReading == 0
                }
            }
            plane.link.startStreaming(from: base)
            schedule()
        case .probeAnswer(let probe, let differs): answered(probe, differs)
        case .resyncDone(number) where phase == .ending:
            plane.logger.notice(
                "the other node's files are equal to this one's",
                metadata: [
                    "kind": "\(kind.name)", "files": "\(progress.files)",
                    "bytes.differing": "\(progress.differingBytes)",
                ])
            cancel()
            done()
        default: return
        }
    }

    // MARK: - What the application does meanwhile

    func logged(_ seq: Seq, _ body: RecordBody, _ length: Int) {
        touches.note(seq, body, length: length)
        switch body {
        case .create(let file, _, _, _, _, _):
            // The follower builds it from the record, wherever its directory is; its content comes by records.
            if kind == .comparison { known.insert(file) }
        case .link(let file, let parent, _): placed(file, in: parent)
        case .rename(let file, let parent, _, let newParent, _, let exchange, let replaced, _):
            placed(file, in: newParent)
            if exchange { placed(replaced, in: parent) }
            moved(seq, file, from: parent, to: newParent, exchangedWith: exchange ? replaced : nil)
        default: return
        }
    }

    func isKnown(_ file: FileID) -> Bool { kind == .comparison ? known.contains(file) : !unknown.contains(file) }

    /// The follower cannot give a name to what it does not know: an image of the directory will.
    func placed(_ file: FileID, in directory: FileID) {
        guard !isKnown(file), isKnown(directory) else { return }
        enqueue(directory)
    }

    func enqueue(_ directory: FileID) {
        if queuedDirectories.insert(directory).inserted { directories.append(directory) }
    }

    // MARK: - Going on

    /// Runs the pump in a turn of its own: never inside an operation of the log.
    func schedule() {
        guard !isPumpPosted, !isCancelled else { return }
        isPumpPosted = true
        let bound = ThreadBound(self)
        plane.reactor.post {
            bound.value.isPumpPosted = false
            bound.value.pump()
        }
    }

    func pump() {
        if phase == .shrinking { invite() }
        if phase == .recording { inviteWhenRecorded() }
        guard phase == .walking, !isCancelled else { return }
        countAcknowledged()
        confirmImages()
        let applied = plane.log.applied
        let oldest = min(applied, readsSince.values.min() ?? applied)
        touches.prune(through: oldest)
        if let first = moves.firstIndex(where: { $0.seq > oldest }) {
            moves.removeFirst(first)
        } else {
            moves.removeAll()
        }
        guard applied >= startSeq, plane.log.core.follower != nil else { return }
        guard lookAtWholes() else { return }
        logImages()
        imageDirectories()
        if directories.isEmpty, directoriesReading == 0 { progress.phase = "files" }
        startFiles()
        lookAtFiles()
        readDifferences()
        for task in tasks { step(task) }
        tasks.removeAll { $0.stage == .done }
        endIfComplete()
    }

    var neededFrom: Seq? { phase == .inviting ? base : nil }

    var follower: Seq { plane.log.core.follower?.durable ?? .zero }

    func countAcknowledged() {
        let durable = follower
        var count = 0
        for image in unacknowledged {
            guard image.seq <= durable else { break }
            unacknowledgedBytes -= image.bytes
            count += 1
        }
        if count > 0 { unacknowledged.removeFirst(count) }
    }

    /// Whether an image may be added now.
    var hasRoom: Bool {
        guard unacknowledgedBytes < ResyncLimits.inFlightBytes, plane.log.hasRoomForImages, plane.resyncPacer.mayGoOn
        else { return false }
        if let free = plane.log.space.peerRoom?.bytes,
            free < UInt64(ResyncLimits.inFlightBytes) + UInt64(MirrorLog.reservedSpaceBytes)
        {
            if !saidFull {
                plane.logger.error(
                    "the other node's disk is full: make room there; the comparison of the files waits for it",
                    metadata: ["free": "\(free)"])
            }
            saidFull = true
            return false
        }
        saidFull = false
        return true
    }

    func append(_ body: RecordBody, bytes: Int) -> Seq {
        let seq = plane.log.appendImage(body, time: plane.log.wallClock())
        plane.resyncPacer.took(bytes)
        unacknowledged.append((seq, bytes))
        unacknowledgedBytes += bytes
        return seq
    }

    /// Reads from the plain files on a worker. `then` gets the applied seq at the start: what records above it touch may
    /// be old in what was read. Until `then` returns, those records are remembered.
    func read<Value: Sendable>(
        _ call: @escaping @Sendable (PlainTree) throws(TreeError) -> Value,
        then: @escaping (Result<Value, TreeError>, Seq) -> Void
    ) {
        let since = plane.log.applied
        let ticket = nextRead
        nextRead += 1
        readsSince[ticket] = since
        jobs += 1
        plane.compareOnWorker(call) { [weak self] result in
            guard let self else { return }
            jobs -= 1
            if !isCancelled { then(result, since) }
            readsSince[ticket] = nil
            schedule()
        }
    }

    /// An object that went while it was looked at needs no image. Anything else is a fault of this node's own disk.
    func isGone(_ error: TreeError) -> Bool {
        if error.code == ESTALE || error.code == ENOENT { return true }
        plane.logger.error(
            """
            the comparison of the files stops: \(error). It is tried again with the next connection. A file that cannot be \
            read has to be restored or removed through the mirrored directory, or copied to a disk that is well
            """)
        cancel()
        plane.link.fail("the comparison of the files broke off")
        return true
    }

    // MARK: - Directories

    func imageDirectories() {
        var looked = directories.count
        while looked > 0, directoriesReading < ResyncLimits.directories, jobs < ResyncLimits.jobs, hasRoom {
            looked -= 1
            let directory = directories.removeFirst()
            if busyDirectories[directory, default: 0] >= ResyncLimits.busyTries, let mounted = plane.directory {
                guard heldNames == nil else {
                    directories.append(directory)
                    continue
                }
                imageHeld(directory, mounted)
            } else if touches.isTouched(directory, after: plane.log.applied) {
                isBusy(directory)
            } else {
                directoriesReading += 1
                imageNow(directory, namesRest: false) {}
            }
        }
    }

    func isBusy(_ directory: FileID) {
        busyDirectories[directory, default: 0] += 1
        directories.append(directory)
    }

    /// The application never leaves this directory alone: its changes of names wait for one reading.
    func imageHeld(_ directory: FileID, _ mounted: MirroredDirectory) {
        directoriesReading += 1
        // A mark, so that one directory is held at a time; the lock may come later.
        heldNames = {}
        mounted.whileNamesRest(in: directory) { [weak self] release in
            guard let self, !isCancelled else { return release() }
            heldNames = release
            imageNow(directory, namesRest: true) { [weak self] in self?.releaseNames() }
        }
    }

    func releaseNames() {
        let release = heldNames
        heldNames = nil
        release?()
    }

    /// - Parameter namesRest: every change of its names is applied, though the watermark may lag behind.
    func imageNow(_ directory: FileID, namesRest: Bool, _ finished: @escaping () -> Void) {
        let asked = plane.log.lastSeq
        // A comparison goes from the root down by itself.
        let needsAncestors = kind != .comparison
        read { tree throws(TreeError) -> (parts: [RecordBody], ancestors: [FileID]) in
            let ancestors = needsAncestors ? try tree.ancestors(of: directory) : []
            return (try tree.imageOfDirectory(directory), ancestors)
        } then: { [self] result, since in
            directoriesReading -= 1
            defer { finished() }
            switch result {
            case .failure(let error):
                if isGone(error) { forgetQueued(directory) }
            case .success(let (parts, ancestors)):
                guard !touches.isTouched(directory, after: namesRest ? asked : since),
                    !touches.isTouched(directory, after: since, attributesOnly: true), plane.log.hasRoomForImages
                else { return isBusy(directory) }
                guard isInPlace(directory, ancestors, since: since) else { return directories.append(directory) }
                forgetQueued(directory)
                image(directory, parts)
            }
        }
    }

    func forgetQueued(_ directory: FileID) {
        queuedDirectories.remove(directory)
        busyDirectories[directory] = nil
    }

    func image(_ directory: FileID, _ parts: [RecordBody]) {
        var learned: [FileID] = []
        var last = Seq.zero
        for part in parts {
            guard case .imageDirectory(_, _, _, _, _, let entries) = part else { continue }
            let seq = append(part, bytes: entries.reduce(256) { $0 + 24 + $1.name.count })
            last = seq
            for entry in entries where becomesKnown(entry.file) {
                learned.append(entry.file)
                let type = entry.mode & S_IFMT
                if type == S_IFDIR {
                    enqueue(entry.file)
                } else {
                    files.append(
                        Waiting(
                            file: entry.file, knownSince: seq, isRegular: type == S_IFREG, owed: owed(entry.file)))
                }
            }
        }
        note(.directory(directory, learned: learned), at: last)
    }

    /// - Returns: whether it was not known before.
    func becomesKnown(_ file: FileID) -> Bool {
        kind == .comparison ? known.insert(file).inserted : unknown.remove(file) != nil
    }

    // MARK: - Files

    func startFiles() {
        // Directories first: they show what there is, and what is done twice is little.
        // A directory that is never quiet does not hold up the files.
        guard directories.isEmpty || directoriesReading == 0 else { return }
        fillFiles()
        while tasks.count < ResyncLimits.files, nextFile < files.count {
            let next = files[nextFile]
            nextFile += 1
            tasks.append(
                FileComparison(next.file, isRegular: next.isRegular, knownSince: next.knownSince, owed: next.owed))
        }
        if nextFile == files.count {
            files.removeAll()
            nextFile = 0
        } else if nextFile > 65_536 {
            files.removeFirst(nextFile)
            nextFile = 0
        }
    }

    func step(_ task: FileComparison) {
        guard !task.isBusy, plane.log.applied >= task.knownSince, !isCancelled, !waitsForLook(task) else { return }
        switch task.stage {
        case .look: look(task)
        case .size: sendSize(task)
        case .data where kind != .comparison: feedRanges(task)
        case .data:
            if task.next < task.size {
                if jobs < ResyncLimits.jobs, probes.count < ResyncLimits.probes,
                    task.windows < ResyncLimits.probesOfFile, plane.resyncPacer.mayGoOn
                {
                    probe(task)
                }
            } else if task.windows == 0 {
                task.stage = .attributes
                sendAttributes(task)
            }
        case .attributes: sendAttributes(task)
        case .done: return
        }
    }

    func gone(_ task: FileComparison) { task.stage = .done }

    // MARK: Size

    func sendSize(_ task: FileComparison) {
        if let attributes = plane.directory?.attributesInMemory(of: task.file) {
            guard hasRoom else { return }
            return setSize(task, attributes)
        }
        guard jobs < ResyncLimits.jobs, !touches.isTouched(task.file, after: plane.log.applied) else { return }
        task.isBusy = true
        let file = task.file
        read { tree throws(TreeError) in
            try tree.status(of: file)
        } then: { [self] result, since in
            task.isBusy = false
            switch result {
            case .failure(let error): if isGone(error) { gone(task) }
            case .success(let status):
                guard !touches.isTouched(file, after: since), hasRoom else { return }
                setSize(task, status.attributes)
            }
        }
    }

    /// - Parameter attributes: as of the last record logged.
    func setSize(_ task: FileComparison, _ attributes: FileAttributes) {
        takeSize(task, attributes)
        imageSize(task, attributes)
    }

    func takeSize(_ task: FileComparison, _ attributes: FileAttributes) {
        task.size = attributes.size
        task.stage = .data
        if kind != .comparison { countRanges(task) }
    }

    /// Of an empty file too: an old copy's bytes would come to light when it is extended before its attributes come.
    func imageSize(_ task: FileComparison, _ attributes: FileAttributes) {
        // Records from here on bring what they change; those before are in the plain file before it is read.
        task.knownSince = append(
            .setAttributes(file: task.file, mask: .size, attributes: attributes), bytes: 96)
    }

    // MARK: Hashes

    func probe(_ task: FileComparison) {
        task.isBusy = true
        let file = task.file
        let offset = task.next
        let size = task.size
        let seed = seed
        read { tree throws(TreeError) in
            let block = UInt64(ResyncLimits.blockBytes)
            let rest = (size - offset + block - 1) / block * block
            let data = try tree.nextData(file, from: offset)
            guard data < offset + ResyncLimits.windowBytes else {
                // Nothing but a hole for a while: no hashes, and many blocks at once.
                let hole = min(rest, (data - offset) / block * block, ResyncLimits.holeWindowBytes)
                return [Hash128?](repeating: nil, count: Int(hole / block))
            }
            return try tree.blockHashes(
                of: file, at: offset, length: min(rest, ResyncLimits.windowBytes),
                blockBytes: ResyncLimits.blockBytes, seed: seed, zerosAreHoles: false)
        } then: { [self] result, _ in
            task.isBusy = false
            switch result {
            case .failure(let error): if isGone(error) { gone(task) }
            case .success(let hashes):
                task.next = offset + UInt64(hashes.count * ResyncLimits.blockBytes)
                task.windows += 1
                let number = nextProbe
                nextProbe &+= 1
                let data = hashes.reduce(0) { $0 + ($1 == nil ? 0 : ResyncLimits.blockBytes) }
                plane.resyncPacer.took(data)
                probes[number] = (task, offset, hashes.count, UInt64(data))
                plane.link.connection?.send(
                    .probe(
                        Probe(
                            number: number, file: file, offset: offset,
                            blockBytes: UInt32(ResyncLimits.blockBytes), seed: seed, atSeq: plane.log.lastSeq,
                            hashes: hashes)))
            }
        }
    }

    func answered(_ number: UInt64, _ differs: [UInt8]) {
        guard let (task, offset, blocks, data) = probes.removeValue(forKey: number), differs.count == (blocks + 7) / 8
        else { return }
        let block = UInt64(ResyncLimits.blockBytes)
        var index = 0
        while index < blocks {
            guard differs[index / 8] & 1 << UInt8(index % 8) != 0 else {
                index += 1
                continue
            }
            var end = index + 1
            while end < blocks, differs[end / 8] & 1 << UInt8(end % 8) != 0 { end += 1 }
            progress.differingBytes += UInt64(end - index) * block
            task.windows += 1
            differing.append((task, offset + UInt64(index) * block..<offset + UInt64(end) * block))
            index = end
        }
        task.windows -= 1
        progress.bytesDone += data
        schedule()
    }

    // MARK: Data

    func readDifferences() {
        while !differing.isEmpty, jobs < ResyncLimits.jobs, hasRoom,
            unacknowledgedBytes + bytesToLog < ResyncLimits.inFlightBytes
        {
            let group = nextDifferences()
            let wanted = group.map { (file: $0.task.file, range: $0.range) }
            read { tree throws(TreeError) in
                if wanted.count > 1 { for wanted in wanted { try? tree.willRead(wanted.file, wanted.range) } }
                return wanted.map { wanted in
                    Result { () throws(TreeError) in
                        try tree.content(of: wanted.file, in: wanted.range, limit: ResyncLimits.readBytes)
                    }
                }
            } then: { [self] result, since in
                guard case .success(let found) = result else { return }
                for (part, content) in zip(group, found) where !isCancelled { took(content, of: part, since: since) }
                logImages()
            }
        }
    }

    /// The ranges of the next call, in their order: one long one, or several short ones.
    private func nextDifferences() -> [(task: FileComparison, range: Range<UInt64>)] {
        var count = 0
        var bytes = 0
        while count < min(differing.count, ResyncLimits.rangesOfRead) {
            let more = bytes + reserved(differing[count].range)
            guard count == 0 || more <= ResyncLimits.readBytes else { break }
            bytes = more
            count += 1
        }
        bytesToLog += bytes
        defer { differing.removeFirst(count) }
        return Array(differing.prefix(count))
    }

    /// What is read of a range at once, at most.
    private func reserved(_ range: Range<UInt64>) -> Int { min(range.count, ResyncLimits.readBytes) }

    private func took(
        _ content: Result<(pieces: [ContentPiece], end: UInt64), TreeError>,
        of part: (task: FileComparison, range: Range<UInt64>), since: Seq
    ) {
        let (task, range) = part
        switch content {
        case .failure(let error):
            bytesToLog -= reserved(range)
            task.windows -= 1
            if isGone(error) { gone(task) }
        case .success(let (pieces, end)):
            if end < range.upperBound {
                differing.insert((task, end..<range.upperBound), at: 0)
                task.windows += 1
            }
            images.append(
                ReadImage(
                    task: task, range: confirmable(range.lowerBound..<end, of: range), pieces: pieces, since: since,
                    ticket: keep(since), reserved: reserved(range)))
        }
    }

    /// Keeps the records above `since` remembered until the image has its place.
    func keep(_ since: Seq) -> UInt64 {
        let ticket = nextRead
        nextRead += 1
        readsSince[ticket] = since
        return ticket
    }

    func logImages() {
        while let image = images.first {
            while let piece = image.pieces.first {
                guard hasRoom, log(piece, of: image) else { return }
                image.pieces.removeFirst()
            }
            readsSince[image.ticket] = nil
            bytesToLog -= image.reserved
            image.task.windows -= 1
            images.removeFirst()
            // What was left out comes with records: they must have arrived as well.
            note(.content(image.task.file, image.range), at: plane.log.lastSeq)
        }
    }

    /// - Returns: false when memory is used up; then the piece comes again.
    func log(_ piece: ContentPiece, of image: ReadImage) -> Bool {
        let file = image.task.file
        let log = plane.log
        // Asked anew at every try: records may have come since.
        for range in touches.untouched(file, after: image.since, piece.start, piece.end) {
            guard let bytes = piece.bytes else {
                _ = append(
                    .allocate(
                        file: file, mode: piece.mode, offset: range.lowerBound,
                        length: range.upperBound - range.lowerBound), bytes: 64)
                continue
            }
            let part = Int(range.lowerBound - piece.start)..<Int(range.upperBound - piece.start)
            let seq = unsafe bytes[part].withUnsafeBytes { raw in
                unsafe log.appendImageWrite(file: file, offset: range.lowerBound, bytes: raw, time: log.wallClock())
            }
            guard let seq else { return false }
            plane.resyncPacer.took(part.count)
            unacknowledged.append((seq, part.count))
            unacknowledgedBytes += part.count
        }
        return true
    }

    // MARK: Attributes

    func sendAttributes(_ task: FileComparison) {
        let file = task.file
        let inMemory = plane.directory?.attributesInMemory(of: file) != nil
        guard jobs < ResyncLimits.jobs,
            !touches.isTouched(file, after: plane.log.applied, attributesOnly: inMemory)
        else { return }
        task.isBusy = true
        read { tree throws(TreeError) in
            try tree.imageOfFile(file)
        } then: { [self] result, since in
            task.isBusy = false
            switch result {
            case .failure(let error): if isGone(error) { gone(task) }
            case .success(.imageFile(_, let plain, let target, let xattrs)):
                let newest = plane.directory?.attributesInMemory(of: file)
                guard !touches.isTouched(file, after: since, attributesOnly: newest != nil), hasRoom else { return }
                sendAttributes(task, newest ?? plain, target: target, xattrs)
            case .success: gone(task)
            }
        }
    }

    /// The last thing sent of a file.
    func sendAttributes(
        _ task: FileComparison, _ attributes: FileAttributes, target: [UInt8], _ xattrs: [ExtendedAttribute]
    ) {
        let bytes = xattrs.reduce(128 + target.count) { $0 + $1.name.count + $1.value.count }
        let seq = append(
            .imageFile(file: task.file, attributes: attributes, target: target, xattrs: xattrs), bytes: bytes)
        note(.object(task.file), at: seq)
        task.stage = .done
        progress.files += 1
    }

    // MARK: - The end

    func endIfComplete() {
        guard phase == .walking, !isCancelled, directories.isEmpty, directoriesReading == 0, pendingMoves == 0,
            nextFile == files.count, nextOwedFile == owedFiles.count,
            tasks.isEmpty, images.isEmpty, differing.isEmpty, jobs == 0, hasRoom
        else { return }
        let seq = append(.imageEnd(number: number), bytes: 64)
        plane.log.onLogged = nil
        phase = .ending
        progress.phase = "waiting for the other disk"
        plane.link.tellsCommitsAtOnce = true
        plane.link.connection?.send(.resyncEnd(number: number, seq: seq))
    }

    /// For progress only: what the files hold, without their holes.
    func countUsedBytes() {
        plane.compareOnWorker { tree throws(TreeError) in
            try tree.bytesOfFiles()
        } then: { [weak self] result in
            self?.progress.bytesTotal = (try? result.get()) ?? 0
        }
    }
}
