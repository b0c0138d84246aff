import Format
import Glibc
import Replication
import Ring
import Tree

/// One object under comparison.
final class VerifyTask {
    let file: FileID
    var isAsked = false
    var isDirectory = false
    /// The larger of both sizes.
    var size: UInt64 = 0
    /// Content from here on has not been asked about.
    var next: UInt64 = 0
    var isLooking = false
    /// Names of a directory, about.
    var names: UInt64 = 0
    /// Names are asked about in so many parts; 0: not known yet, or no directory.
    var parts: UInt64 = 0
    var nextPart: UInt64 = 0
    /// Groups of names that differ and have not been asked for one by one.
    var groups: [VerifyGroup] = []
    /// Questions and calls without an answer.
    var pending = 0
    var windows = 0
    var repairs = 0
    var attributeTries = 0
    /// Differing attributes were looked at, and repaired if that was possible.
    var attributesAreSettled = false
    var bytes: UInt64 = 0
    /// Without their path.
    var findings: [VerifyFinding] = []
    /// Those that found no room there: only counted.
    var more = VerifyCounts()
    var path: String?
    var isPathAsked = false

    init(_ file: FileID) { self.file = file }
}

/// Names of a directory that differ somewhere: those whose hash leaves `rest` when it is divided by `divisor`. They are
/// asked for in so many answers, one after the other.
struct VerifyGroup {
    let rest: UInt64
    let divisor: UInt64
    let answers: UInt64
    var asked: UInt64 = 0
    var isExplained = false
}

/// One verification, on the primary: walks everything there is, asks both nodes, compares the answers.
///
/// ```
///   file table ─▶ numbers ─▶ tasks ── verify records, in the mirror's order ──▶ this node's applier ─┐
///                              ▲                                           └─▶ the other node's ─────┤
///                              └──────────────────── both answers, for one seq ──────────────────────┘
/// ```
///
/// The walk goes by file number, which is the same on both nodes and stays when names change. So it needs no memory for
/// the tree, a rename cannot make it miss a file, and where it was broken off is one number. Objects made after the
/// start are left out: the walk ends however fast the application makes files.
///
/// Confined to the data thread. When the two nodes are not in sync, everything under way is dropped; it begins again
/// behind the last number that was finished.
final class VerifyRun {
    unowned let plane: DataPlane
    unowned let owner: Verification
    let number: UInt64
    let seed: UInt64
    let prefer: NodeID?
    var progress: VerifyProgress

    private var queue: [FileID] = []
    private var queueHead = 0
    private var isFilling = false
    private var walkedAll = false
    private var tasks: [VerifyTask] = []
    private var isPumpPosted = false
    /// Answers of calls made before a break are dropped.
    private(set) var generation = 0
    private(set) var filesTotal: UInt64 = 0
    private(set) var isEnded = false
    var repair = VerifyRepairState()

    private struct Pending {
        var task: VerifyTask
        var own: VerifyOutcome?
        var theirs: VerifyOutcome?
        var then: (VerifyOutcome, VerifyOutcome, Seq) -> Void
    }
    private var pending: [Seq: Pending] = [:]

    init(plane: DataPlane, owner: Verification, progress: VerifyProgress) {
        self.plane = plane
        self.owner = owner
        self.progress = progress
        var generator = SystemRandomNumberGenerator()
        number = generator.next()
        seed = generator.next()
        prefer = progress.options.prefer.flatMap { name in
            NodeID.allCases.first { plane.configuration.node($0).name == name }
        }
    }

    // MARK: - Going on

    /// Runs the pump in a turn of its own: never inside an operation of the log.
    func schedule() {
        guard !isPumpPosted, !isEnded else { return }
        isPumpPosted = true
        let bound = ThreadBound(self)
        plane.reactor.post {
            bound.value.isPumpPosted = false
            bound.value.pump()
        }
    }

    private func pump() {
        guard !isEnded, owner.obstacle == nil else { return }
        fill()
        while tasks.count < VerifyLimits.tasks, queueHead < queue.count {
            tasks.append(VerifyTask(queue[queueHead]))
            queueHead += 1
        }
        pumpRepairs()
        for task in tasks { step(task) }
        finishTasks()
        if walkedAll, queueHead == queue.count, tasks.isEmpty { end(nil) }
    }

    /// Something is in the way: what is under way is worth nothing, its answers may never come.
    func interrupt() {
        guard !isEnded else { return }
        generation += 1
        pending.removeAll()
        stopRepairs()
        for task in tasks { commit(task, onlyRepaired: true) }
        tasks.removeAll()
        queue.removeAll()
        queueHead = 0
        isFilling = false
        walkedAll = false
    }

    func end(_ problem: String?) {
        guard !isEnded else { return }
        interrupt()
        isEnded = true
        owner.ended(self, problem)
    }

    /// The next numbers to look at.
    private func fill() {
        guard !isFilling, !walkedAll, queueHead == queue.count else { return }
        isFilling = true
        let position = FileID(rawValue: progress.position)
        let after = tasks.last.map { max($0.file, position) } ?? position
        let end = FileID(rawValue: progress.end)
        let path = progress.options.path
        work { tree throws(TreeError) in
            if path.isEmpty { return try tree.files(above: after, limit: VerifyLimits.batch) }
            return try tree.filesBelow(path, above: after)
        } then: { [self] result in
            isFilling = false
            switch result {
            case .failure(let error):
                self.end("\(error)")
            case .success(let (files, total)):
                queue = files.filter { $0 < end }
                queueHead = 0
                filesTotal = max(UInt64(total), progress.files + UInt64(queue.count))
                walkedAll = queue.isEmpty || !path.isEmpty
                schedule()
            }
        }
    }

    /// Runs a blocking call on a worker; its result is dropped when something came in between.
    func work<Value: Sendable>(
        _ call: @escaping @Sendable (PlainTree) throws(TreeError) -> Value,
        then: @escaping (Result<Value, TreeError>) -> Void
    ) {
        let expected = generation
        plane.compareOnWorker(call) { [weak self] result in
            guard let self, !isEnded, expected == generation else { return }
            // This node may have stepped down meanwhile: then nothing more is asked.
            guard owner.obstacle == nil else { return interrupt() }
            then(result)
        }
    }

    // MARK: - Questions

    /// Whether one more question may be asked now.
    var mayAsk: Bool {
        pending.count < VerifyLimits.tasks * 2 && plane.log.hasRoomForImages
            && owner.bucket.allows(now: plane.reactor.now)
    }

    /// Asks both nodes. `then` gets this node's answer and the other's, for the state at the seq.
    @discardableResult
    func ask(
        _ task: VerifyTask, _ aspect: VerifyAspect, _ offset: UInt64 = 0, _ length: UInt64 = 0,
        blockBytes: UInt32 = VerifyCheck.blockBytes, cost: UInt64 = 0,
        then: @escaping (VerifyOutcome, VerifyOutcome, Seq) -> Void
    ) -> Seq {
        let check = VerifyCheck(
            number: number, file: task.file, aspect: aspect, offset: offset, length: length, blockBytes: blockBytes,
            seed: seed)
        owner.bucket.take(VerifyLimits.questionBytes + Int(cost), now: plane.reactor.now)
        task.pending += 1
        let seq = plane.log.appendMark(.verify(check))
        pending[seq] = Pending(task: task, then: then)
        return seq
    }

    /// - Parameter own: this node's answer, or the other one's.
    func answered(_ seq: Seq, _ outcome: VerifyOutcome, own: Bool) {
        guard var entry = pending[seq] else { return }
        // An answer leads to the next question, and only a primary in sync gives out seqs for it.
        guard owner.obstacle == nil else { return interrupt() }
        if own { entry.own = outcome } else { entry.theirs = outcome }
        pending[seq] = entry
        guard let mine = entry.own, let theirs = entry.theirs else { return }
        pending[seq] = nil
        entry.task.pending -= 1
        entry.then(mine, theirs, seq)
        schedule()
    }

    // MARK: - One object

    private func step(_ task: VerifyTask) {
        guard task.isAsked else {
            guard mayAsk else { return }
            task.isAsked = true
            ask(task, .file, 0, VerifyLimits.windowBytes) { [self] mine, theirs, _ in
                fileAnswered(task, mine, theirs)
            }
            return
        }
        if task.isDirectory { return stepDirectory(task) }
        while task.next < task.size, task.windows < VerifyLimits.windowsOfFile, !task.isLooking, mayAsk {
            look(task)
        }
    }

    private func fileAnswered(_ task: VerifyTask, _ mine: VerifyOutcome, _ theirs: VerifyOutcome) {
        switch (mine, theirs) {
        // Removed since its number was read.
        case (.gone, .gone): return
        case (.gone, _), (_, .gone): missing(task, mine)
        case (.file(let left), .file(let right)):
            compareFiles(task, left, right, window: VerifyLimits.windowBytes)
        default:
            // One bad block at its beginning must not hide the rest: attributes alone, then content like any other.
            ask(task, .file) { [self] mine, theirs, _ in
                switch (mine, theirs) {
                case (.gone, .gone): return
                case (.gone, _), (_, .gone): missing(task, mine)
                case (.file(let left), .file(let right)): compareFiles(task, left, right, window: 0)
                default: unreadable(task, mine, theirs, 0..<0)
                }
            }
        }
    }

    /// One side cannot find it. Both looked at one place in the order of all records, so it is no removal: it is not
    /// there, or the file table does not lead to it.
    private func missing(_ task: VerifyTask, _ mine: VerifyOutcome) {
        note(task, .missing, detail: "not on \(name(mine == .gone ? plane.node : plane.node.peer))", state: .failed)
    }

    /// - Parameter window: bytes of content, from the beginning, that both answers cover.
    private func compareFiles(_ task: VerifyTask, _ left: VerifiedFile, _ right: VerifiedFile, window: UInt64) {
        let bytes = min(window, max(left.attributes.size, right.attributes.size))
        owner.bucket.take(Int(bytes), now: plane.reactor.now)
        compared(task, bytes)
        task.isDirectory = left.attributes.mode & S_IFMT == S_IFDIR
        let details = differences(left, right)
        if !details.isEmpty, !task.attributesAreSettled {
            task.attributesAreSettled = true
            let text = details.joined(separator: "; ")
            // Content comes after it: what a file holds behind the end of the other one depends on its size.
            if progress.options.repair { return repairAttributes(task, text) }
            note(task, .attributes, detail: text, state: .found)
        }
        guard left.attributes.mode & S_IFMT == S_IFREG, right.attributes.mode & S_IFMT == S_IFREG else { return }
        task.size = max(left.attributes.size, right.attributes.size)
        task.next = window
        if left.content != right.content { lookClosely(task, 0..<VerifyLimits.windowBytes) }
    }

    /// One more window of content: one hash over up to 1 MiB of data, or over up to 64 MiB where this node has a hole.
    private func look(_ task: VerifyTask) {
        task.isLooking = true
        task.pending += 1
        let file = task.file
        let start = task.next
        work { tree throws(TreeError) in
            try tree.nextData(file, from: start)
        } then: { [self] result in
            task.isLooking = false
            task.pending -= 1
            let block = UInt64(VerifyCheck.blockBytes)
            let rest = (task.size - start + block - 1) / block * block
            // A hint only: what the file holds at the question's place is what counts. An error shows there again.
            let data = (try? result.get()) ?? start
            var length = min(rest, VerifyLimits.windowBytes)
            var cost = length
            if data >= start + VerifyLimits.windowBytes {
                length = min(rest, (data - start) / block * block, VerifyCheck.lengthLimit)
                cost = 0
            }
            task.next = start + length
            task.windows += 1
            ask(task, .content, start, length, cost: cost) { [self] mine, theirs, _ in
                task.windows -= 1
                compared(task, cost)
                switch (mine, theirs) {
                case (.gone, _): return
                case (.content(let left), .content(let right)):
                    if left != right { lookClosely(task, start..<start + length) }
                default: unreadable(task, mine, theirs, start..<start + length)
                }
            }
            schedule()
        }
    }

    private func compared(_ task: VerifyTask, _ bytes: UInt64) { task.bytes += bytes }

    // MARK: Directories

    private func stepDirectory(_ task: VerifyTask) {
        guard task.parts > 0 else {
            guard !task.isLooking else { return }
            task.isLooking = true
            task.pending += 1
            let directory = task.file
            return work { tree throws(TreeError) in
                try tree.countNames(of: directory)
            } then: { [self] result in
                task.isLooking = false
                task.pending -= 1
                task.names = UInt64((try? result.get()) ?? 1)
                task.parts = owner.directories.parts(names: task.names)
                owner.bucket.take(Int(owner.directories.cost(names: task.names, opened: 0)), now: plane.reactor.now)
                schedule()
            }
        }
        guard task.windows == 0, mayAsk else { return }
        // One question of a directory at a time: its records wait for each.
        if !task.groups.isEmpty { return compareNames(task) }
        guard task.nextPart < task.parts else { return }
        let part = task.nextPart
        task.nextPart += 1
        task.windows += 1
        let cost = owner.directories.cost(names: task.names, opened: task.names / task.parts)
        ask(task, .names, part, task.parts, cost: cost) { [self] mine, theirs, _ in
            task.windows -= 1
            switch (mine, theirs) {
            case (.gone, _): return
            case (.names(let own, let left), .names(let other, let right)) where left.count == right.count:
                let answers = owner.directories.answers(names: max(own, other))
                for group in left.indices where left[group] != right[group] {
                    task.groups.append(
                        VerifyGroup(
                            rest: part + task.parts * UInt64(group),
                            divisor: task.parts * UInt64(VerifyCheck.nameGroups), answers: answers))
                }
            default: unreadable(task, mine, theirs, 0..<0)
            }
        }
    }

    /// The names of the first group that differs, as many as fit into an answer.
    private func compareNames(_ task: VerifyTask) {
        let group = task.groups[0]
        task.groups[0].asked += 1
        task.windows += 1
        let divisor = group.divisor * group.answers
        let cost = owner.directories.cost(names: task.names, opened: task.names / divisor)
        ask(task, .entries, group.rest + group.divisor * group.asked, divisor, cost: cost) { [self] mine, theirs, _ in
            task.windows -= 1
            switch (mine, theirs) {
            case (.gone, _): return task.groups.removeAll()
            case (.entries(let left, let leftWhole), .entries(let right, let rightWhole)):
                let found = differences(left, right)
                for (name, detail) in found { note(task, .name, below: name, detail: detail, state: .failed) }
                if !leftWhole || !rightWhole {
                    note(task, .name, detail: "more than \(VerifyCheck.entryLimit) names differ", state: .failed)
                }
                if !found.isEmpty || !leftWhole || !rightWhole { task.groups[0].isExplained = true }
            default:
                unreadable(task, mine, theirs, 0..<0)
                task.groups[0].isExplained = true
            }
            guard task.groups[0].asked == group.answers else { return }
            guard !task.groups.removeFirst().isExplained else { return }
            note(task, .name, detail: "names differed", state: .overwritten)
        }
    }

    private func differences(_ left: [ImageEntry], _ right: [ImageEntry]) -> [(FileName, String)] {
        let mine = Dictionary(left.map { ($0.name, $0) }) { first, _ in first }
        let theirs = Dictionary(right.map { ($0.name, $0) }) { first, _ in first }
        var found: [(FileName, String)] = []
        for name in Set(mine.keys).union(theirs.keys).sorted(by: { $0.lexicographicallyPrecedes($1) }) {
            switch (mine[name], theirs[name]) {
            case (let one?, nil): found.append((name, "only on \(self.name(plane.node))\(foreign(one))"))
            case (nil, let other?): found.append((name, "only on \(self.name(plane.node.peer))\(foreign(other))"))
            case (let one?, let other?) where one != other:
                found.append((name, "not the same object (\(one.file) and \(other.file))"))
            default: continue
            }
        }
        return found
    }

    private func foreign(_ entry: ImageEntry) -> String {
        entry.file == .none ? ", without a number: something else than Lockstep made it there" : ""
    }

    // MARK: - What differs

    func name(_ node: NodeID) -> String { plane.configuration.node(node).name }

    /// Attributes that differ, in words.
    func differences(_ left: VerifiedFile, _ right: VerifiedFile) -> [String] {
        let mine = left.attributes
        let theirs = right.attributes
        var found: [String] = []
        func check(_ what: String, _ one: String, _ other: String) {
            guard one != other else { return }
            found.append("\(what) \(one) on \(name(plane.node)), \(other) on \(name(plane.node.peer))")
        }
        check("mode", String(mine.mode, radix: 8), String(theirs.mode, radix: 8))
        check("owner", "\(mine.uid):\(mine.gid)", "\(theirs.uid):\(theirs.gid)")
        check("size", "\(mine.size)", "\(theirs.size)")
        // What was there before the mirror may have a time that only one room can hold.
        check("mtime", "\(plane.limits.kept(mine.mtime))", "\(plane.limits.kept(theirs.mtime))")
        check("device", "\(mine.rdev)", "\(theirs.rdev)")
        check("target", String(decoding: left.target, as: UTF8.self), String(decoding: right.target, as: UTF8.self))
        if left.xattrHash != right.xattrHash { found.append("extended attributes") }
        return found
    }

    /// A range whose hashes differ: which blocks, exactly.
    func lookClosely(_ task: VerifyTask, _ range: Range<UInt64>) {
        var start = range.lowerBound
        while start < range.upperBound {
            let length = min(VerifyLimits.windowBytes, range.upperBound - start)
            let offset = start
            ask(task, .blocks, offset, length, blockBytes: VerifyCheck.fineBlockBytes, cost: length) {
                [self] mine, theirs, _ in
                switch (mine, theirs) {
                case (.gone, _): return
                case (.blocks(let left), .blocks(let right)) where left.count == right.count:
                    let ranges = VerifyRun.differingRanges(left, right, from: offset)
                    if ranges.isEmpty, range.count <= Int(VerifyLimits.windowBytes) {
                        note(task, .data, range, state: .overwritten)
                    }
                    for range in ranges { dataDiffers(task, range) }
                default: unreadable(task, mine, theirs, offset..<offset + length)
                }
            }
            start += length
        }
    }

    static func differingRanges(_ left: [Hash128?], _ right: [Hash128?], from offset: UInt64) -> [Range<UInt64>] {
        let block = UInt64(VerifyCheck.fineBlockBytes)
        var ranges: [Range<UInt64>] = []
        var index = 0
        while index < left.count {
            guard left[index] != right[index] else {
                index += 1
                continue
            }
            var end = index + 1
            while end < left.count, left[end] != right[end] { end += 1 }
            ranges.append(offset + UInt64(index) * block..<offset + UInt64(end) * block)
            index = end
        }
        return ranges
    }

    private func dataDiffers(_ task: VerifyTask, _ range: Range<UInt64>) {
        guard progress.options.repair else { return note(task, .data, range, state: .found) }
        repairData(task, range)
    }

    /// One side, or both, could not read.
    private func unreadable(
        _ task: VerifyTask, _ mine: VerifyOutcome, _ theirs: VerifyOutcome, _ range: Range<UInt64>
    ) {
        let detail = failures(mine, theirs)
        guard progress.options.repair, !range.isEmpty else {
            return note(task, .unreadable, range.isEmpty ? nil : range, detail: detail, state: .found)
        }
        // Piece by piece, down to the blocks that cannot be read.
        repairUnreadable(task, range, detail)
    }

    /// Why a side could not answer, in words.
    func failures(_ mine: VerifyOutcome, _ theirs: VerifyOutcome) -> String {
        var details: [String] = []
        for (node, outcome) in [(plane.node, mine), (plane.node.peer, theirs)] {
            switch outcome {
            case .failed(let errno): unsafe details.append("\(String(cString: strerror(errno))) on \(name(node))")
            case .gone: details.append("not on \(name(node))")
            default: continue
            }
        }
        if details.isEmpty { details.append("the nodes' answers do not fit each other") }
        return details.joined(separator: "; ")
    }

    // MARK: - Findings

    func note(
        _ task: VerifyTask, _ kind: VerifyFinding.Kind, _ range: Range<UInt64>? = nil, below: FileName? = nil,
        detail: String = "", state: VerifyFinding.State
    ) {
        var state = state
        // "failed" says that a repair was asked for and cannot be made here.
        var detail = detail
        if state == .failed, !progress.options.repair { state = .found }
        if state == .failed, kind == .name || kind == .missing {
            detail += "; names are repaired by `lockstep resync --full`"
        }
        let end = range.map { min($0.upperBound, max(task.size, $0.lowerBound + 1)) }
        guard task.findings.count < VerifyLimits.findings else {
            task.more.differences += 1
            if state == .repaired { task.more.repaired += 1 }
            return
        }
        task.findings.append(
            VerifyFinding(
                path: below.map { String(decoding: $0, as: UTF8.self) } ?? "", kind: kind, state: state,
                offset: range?.lowerBound, length: range.flatMap { range in end.map { $0 - range.lowerBound } },
                detail: detail))
        guard !task.isPathAsked else { return }
        task.isPathAsked = true
        task.pending += 1
        let file = task.file
        work { tree throws(TreeError) in
            try tree.relativePath(of: file)
        } then: { [self] result in
            task.pending -= 1
            task.path = try? result.get()
            schedule()
        }
    }

    private func finishTasks() {
        var finished = 0
        tasks.removeAll { task in
            guard task.isAsked, task.pending == 0, task.repairs == 0, task.next >= task.size,
                !task.isDirectory || task.parts > 0 && task.nextPart == task.parts && task.groups.isEmpty
            else { return false }
            commit(task, onlyRepaired: false)
            progress.files += 1
            progress.bytes += task.bytes
            finished += 1
            return true
        }
        guard finished > 0 else { return }
        // Everything below the first one under way is done.
        let next = tasks.map(\.file).min() ?? (queueHead < queue.count ? queue[queueHead] : nil)
        if let next {
            progress.position = next.rawValue - 1
        } else if let last = queue.last {
            progress.position = last.rawValue
        }
        schedule()
    }

    private func commit(_ task: VerifyTask, onlyRepaired: Bool) {
        for var finding in task.findings where !onlyRepaired || finding.state == .repaired {
            let base = task.path ?? "(file \(task.file))"
            finding.path =
                finding.path.isEmpty ? base : base.isEmpty ? finding.path : base + "/" + finding.path
            progress.counts.differences += 1
            if finding.state == .repaired { progress.counts.repaired += 1 }
            if progress.findings.count < VerifyLimits.findings { progress.findings.append(finding) }
            plane.logger.error("the two rooms differ: \(finding.text)")
        }
        let more = onlyRepaired ? task.more.repaired : task.more.differences
        if more > 0 {
            progress.counts.differences += more
            progress.counts.repaired += task.more.repaired
            plane.logger.error(
                "the two rooms differ: /\(task.path ?? "(file \(task.file))"): in \(more) more places or names")
        }
        task.findings.removeAll()
        task.more = VerifyCounts()
    }
}

extension PlainTree {
    /// The numbers of an object and of everything below it, above `file`, ascending.
    /// - Parameter path: below the plain files.
    func filesBelow(_ path: String, above file: FileID) throws(TreeError) -> (files: [FileID], total: Int) {
        var top = FileID.root
        var isDirectory = true
        for name in path.split(separator: "/") {
            let status = try lookup(parent: top, name: Array(name.utf8))
            top = status.file
            isDirectory = status.isDirectory
        }
        var found = [top]
        var waiting = isDirectory ? [top] : []
        while let directory = waiting.popLast() {
            var cursor: UInt64 = 0
            while true {
                let entries: [DirectoryEntry]
                do throws(TreeError) {
                    entries = try readDirectory(directory, from: cursor, limit: 1024, withStatus: false)
                } catch {
                    // It went meanwhile.
                    guard error.code == ESTALE || error.code == ENOENT else { throw error }
                    break
                }
                guard let last = entries.last else { break }
                cursor = last.cursor
                for entry in entries where entry.name != [0x2E] && entry.name != [0x2E, 0x2E] {
                    found.append(entry.file)
                    if entry.type == S_IFDIR { waiting.append(entry.file) }
                }
                guard found.count <= VerifyLimits.pathObjects else {
                    throw TreeError(
                        "verify", path, code: E2BIG,
                        remedy: "More than \(VerifyLimits.pathObjects) objects are below it: verify the whole directory"
                    )
                }
            }
        }
        let unique = Set(found)
        return (unique.filter { $0 > file }.sorted(), unique.count)
    }
}
