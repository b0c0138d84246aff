internal import CLinux
public import Format
internal import Glibc
internal import Ring

/// What a replay did.
public struct ReplayResult: Sendable, Hashable {
    public var records = 0
    /// Objects made anew because the crash had left nothing of them.
    public var created = 0
    /// Objects that sat at a name which is another's at the end.
    public var evicted = 0
    /// Payload written again, bytes.
    public var bytes: UInt64 = 0
    /// Records of a resynchronisation were among them.
    public var sawImages = false
    /// A resynchronisation had not come to its end: the tree is not the mirror, and takes records as far as their files
    /// are there, until the next `imageEnd`.
    public var isImaging = false
}

/// Hands every batch that holds records since the checkpoint to `visit`, in order. Called twice: once to fold, once to
/// read the payloads that survive.
public typealias BatchSource = (_ visit: (Batch) throws(TreeError) -> Void) throws(TreeError) -> Void

/// What records above the end of a replay did to names. The disk may know less to be committed than the files already
/// have: those records come again, when it is known.
public struct RecordsAhead: Sendable {
    /// Objects that may be gone already.
    public var removed: Set<FileID> = []
    /// Objects that were given a name; one of these may wait in staging for it.
    public var placed: Set<FileID> = []
    /// The names that these records touch, by directory. Something may stand there that the file table has lost.
    public var names: [FileID: Set<FileName>] = [:]
    public init() {}
    public var isEmpty: Bool { names.isEmpty }

    public mutating func note(_ batch: Batch) {
        for record in batch.records {
            if let file = record.body.removed { removed.insert(file) }
            switch record.body {
            case .create(let file, let parent, let name, _, _, _), .link(let file, let parent, let name):
                placed.insert(file)
                names[parent, default: []].insert(name)
            case .rename(let file, let parent, let name, let newParent, let newName, let isExchange, let other, _):
                placed.insert(file)
                if isExchange { placed.insert(other) }
                names[parent, default: []].insert(name)
                names[newParent, default: []].insert(newName)
            case .remove(_, let parent, let name, _, _): names[parent, default: []].insert(name)
            default: continue
            }
        }
    }
}

/// Called before every change of a replay.
typealias ReplayStep = () throws(TreeError) -> Void

extension PlainTree {
    /// Brings the plain files to the state after the record `committed`, whatever mixture of states since the
    /// checkpoint a crash has left, and syncs. May be interrupted anywhere and run again.
    ///
    /// - Parameters:
    ///   - checkpoint: everything up to here was in the plain files at the last `sync` that the journal knows of.
    ///   - isBehind: a resynchronisation was under way, so objects may be missing; the next one brings them. Only then are
    ///     images taken.
    ///   - ahead: what records above `committed` did, which the files may have too.
    /// - Throws: also when an object that must be there is not: then the tree is not what the journal belongs to.
    public func replay(
        after checkpoint: Seq, through committed: Seq, isBehind: Bool = false, ahead: RecordsAhead = RecordsAhead(),
        batches: BatchSource
    ) throws(TreeError) -> ReplayResult {
        do throws(TreeError) {
            return try replay(after: checkpoint, through: committed, isBehind: isBehind, ahead: ahead, batches: batches)
            {
                () throws(TreeError) in
            }
        } catch {
            guard error.isOutOfSpace else { throw error }
            let free = (try? statistics()).map { "\($0.blocksAvailable * $0.blockSize) bytes, \($0.filesFree) inodes" }
            throw TreeError(
                error.operation, error.subject, code: error.code,
                remedy: "The file system of \(backing) has no room for it (free: \(free ?? "unknown")): make room "
                    + "there, then start again")
        }
    }

    /// - Parameter step: called before every change; a test throws from it, which is a crash as the process sees it.
    func replay(
        after checkpoint: Seq, through committed: Seq, isBehind: Bool, ahead: RecordsAhead = RecordsAhead(),
        batches: BatchSource, step: @escaping ReplayStep
    ) throws(TreeError) -> ReplayResult {
        var plan = ReplayPlan()
        try batches { (batch) throws(TreeError) in
            for (index, record) in batch.records.enumerated() {
                let seq = batch.firstSeq + index
                guard seq > checkpoint, seq <= committed else { continue }
                // A copy that is complete has what images bring.
                if isBehind || !(record.isImage || record.body.isImageMark) { plan.add(seq, record) }
            }
        }
        do throws(TreeError) {
            return try replay(plan, isBehind: isBehind, ahead, batches, step)
        } catch {
            throw explained(error, plan.objects.keys)
        }
    }

    private func replay(
        _ plan: ReplayPlan, isBehind: Bool, _ ahead: RecordsAhead, _ batches: BatchSource, _ step: @escaping ReplayStep
    ) throws(TreeError) -> ReplayResult {
        let isLenient = isBehind || plan.hasImages
        cache.removeAll()
        state.withLock { state in
            state.image = nil
            state.parked = []
            state.held = []
        }
        var result = ReplayResult(records: plan.records, sawImages: plan.hasImages)
        // To a copy that is behind, names lead to what images have not replaced yet.
        try locate(plan, ahead: isBehind ? [:] : ahead.names)
        try replaceWrong(plan, step)
        try makeMissing(plan, isLenient: isLenient, ahead, &result, step)
        let evicted = try evictWrong(plan, step)
        result.evicted = evicted.count
        try placeAll(plan, step)
        // What a record ahead has put somewhere, or taken away, waits in staging for that record to come again.
        try keepStrays(evicted.subtracting(ahead.placed).subtracting(ahead.removed), plan, isLenient: isLenient)
        // Before the data: what was removed since must give its space back first.
        let endsInImages = plan.endsInImages ?? isBehind
        for name in try stagingNames() {
            let file = PlainTree.decodeTag(name)
            // An image still to come may give a name back to what lost one: only what is gone for good goes. And a record
            // ahead may just have been taking it somewhere.
            if endsInImages, file.map({ !(plan.objects[$0]?.isRemoved ?? false) }) ?? true { continue }
            if let file, ahead.placed.contains(file) { continue }
            // Its image comes again, and must find that not all names have the new one.
            if isBehind, PlainTree.replacedFile(name) != nil { continue }
            try step()
            try removeFromStaging(name)
        }
        let kept = try whatRepairsKeep(plan)
        try redoSizes(plan, step)
        result.bytes = try redoData(plan, batches, step)
        try giveBack(kept)
        try redoAttributes(plan, step)
        try sync()
        result.isImaging = endsInImages
        if endsInImages {
            state.withLock { $0.image = ImageSession(number: 0, isResumed: true, names: plan.partial) }
        }
        return result
    }

    // MARK: Finding

    /// Enters into the table every object that the crash may have left out of it: those in staging and at the touched
    /// names, going down as directories turn up. At the names of records ahead too: a file that is not found is made anew,
    /// and then there are two of one number.
    private func locate(_ plan: ReplayPlan, ahead: [FileID: Set<FileName>]) throws(TreeError) {
        var done: Set<FileID> = []
        var waiting: [FileID] = []
        // What a replacement has left there is not (yet) what its names lead to.
        for name in try stagingNames() where PlainTree.replacedFile(name) == nil {
            if let file = try enter(name, of: staging.rawValue) { waiting.append(file) }
        }
        for directory in Set(plan.names.keys).union(ahead.keys) {
            if try referenceIfKnown(to: directory) != nil { waiting.append(directory) }
        }
        while let directory = waiting.popLast() {
            guard plan.names[directory] != nil || ahead[directory] != nil, done.insert(directory).inserted,
                try isDirectory(directory)
            else { continue }
            try withDirectory(directory) { (fd) throws(TreeError) in
                let touched = try touchedNames(of: directory, fd, plan)
                for name in touched + (ahead[directory] ?? []).subtracting(touched) {
                    if plan.hasImages { try adopt(name, of: fd, directory, plan) }
                    if let file = try enter(name, of: fd) { waiting.append(file) }
                }
            }
        }
    }

    private func isDirectory(_ file: FileID) throws(TreeError) -> Bool {
        guard let reference = try referenceIfKnown(to: file) else { return false }
        return try System.stat(reference.rawValue).mode & S_IFMT == S_IFDIR
    }

    /// - Returns: the object's number; nil when there is none.
    private func enter(_ name: FileName, of directory: Int32) throws(TreeError) -> FileID? {
        guard let object = try child(name, of: directory), let file = try tag(of: object.rawValue) else { return nil }
        let handle = try handle(of: object.rawValue)
        if try table.find(file) != handle { try table.insert(file, handle) }
        return file
    }

    private func adopt(
        _ name: FileName, of directory: Int32, _ parent: FileID, _ plan: ReplayPlan
    ) throws(TreeError) {
        guard let file = plan.names[parent]?[name], file != .none, let type = plan.objects[file]?.birth?.type else {
            return
        }
        try adoptByName(ImageEntry(name: name, file: file, mode: type), in: directory)
    }

    private func touchedNames(
        of directory: FileID, _ fd: Int32, _ plan: ReplayPlan
    ) throws(TreeError) -> [FileName] {
        var names = Set((plan.names[directory] ?? [:]).keys)
        if plan.complete.contains(directory) { names.formUnion(try allNames(fd, of: directory)) }
        return names.sorted { $0.lexicographicallyPrecedes($1) }
    }

    // MARK: Names

    /// Builds in staging what has a name at the end and is nowhere.
    private func makeMissing(
        _ plan: ReplayPlan, isLenient: Bool, _ ahead: RecordsAhead, _ result: inout ReplayResult,
        _ step: @escaping ReplayStep
    ) throws(TreeError) {
        var named: Set<FileID> = []
        for (directory, names) in plan.names {
            named.insert(directory)
            named.formUnion(names.values)
        }
        for file in plan.objects.keys.sorted() {
            guard let object = plan.objects[file], !object.isRemoved else { continue }
            if let reference = try referenceIfKnown(to: file) {
                guard try !mayStay(reference.rawValue, object) else { continue }
                // Only an image can say that it is something else. The old object is now nobody's.
                try step()
                try discard(file, reference.rawValue)
            }
            guard let birth = object.birth else {
                // Without a name it may have been removed before the checkpoint and written to by who had it open.
                if isLenient || !named.contains(file) || ahead.removed.contains(file) { continue }
                throw TreeError(
                    "find", "file \(file), which the journal changes", code: ENOENT,
                    remedy: "The plain files in \(backing) are not those the journal belongs to. Restore them, or let "
                        + "this node be resynchronised")
            }
            try step()
            let attributes = FileAttributes(
                mode: birth.type | (object.attributes.mode & 0o7777), uid: object.attributes.uid,
                gid: object.attributes.gid, rdev: birth.rdev)
            try build(file, attributes, birth.target ?? PlainTree.unknownTarget, [])
            result.created += 1
        }
    }

    /// Whether it is what was made, or can be made that: a link or device by `replaceWrong`.
    private func mayStay(_ fd: Int32, _ object: ReplayPlan.Object) throws(TreeError) -> Bool {
        guard let birth = object.birth else { return true }
        let stat = try System.stat(fd)
        guard stat.mode & S_IFMT == birth.type else { return false }
        guard !object.hasImage, let target = birth.target else { return true }
        return try isSame(fd, stat, as: FileAttributes(mode: birth.type, uid: 0, gid: 0, rdev: birth.rdev), target)
    }

    /// Replaces links and devices that are not what their images say, wherever they stand: the images of their directories
    /// may lie before the checkpoint. After a replacement that was broken off nobody knows which names have the old one.
    /// Before the missing ones are made, which are right and have no names yet.
    private func replaceWrong(_ plan: ReplayPlan, _ step: @escaping ReplayStep) throws(TreeError) {
        var wrong: [(file: FileID, attributes: FileAttributes, target: [UInt8])] = []
        for file in plan.objects.keys.sorted() {
            guard let object = plan.objects[file], object.hasImage, let birth = object.birth,
                PlainTree.isReplaceable(birth.type)
            else { continue }
            let target = birth.target ?? []
            var attributes = object.attributes
            attributes.mode = birth.type | attributes.mode & 0o7777
            attributes.rdev = birth.rdev
            if !isBeingReplaced(file) {
                if let reference = try referenceIfKnown(to: file) {
                    // One of another type is not the mirror's, and not replaced but left to nobody.
                    let stat = try System.stat(reference.rawValue)
                    guard stat.mode & S_IFMT == birth.type,
                        try !isSame(reference.rawValue, stat, as: attributes, target)
                    else { continue }
                } else if try !isLost(file) {
                    continue
                }
            }
            wrong.append((file, attributes, target))
        }
        guard !wrong.isEmpty else { return }
        state.withLock { $0.image = ImageSession(number: 0, isResumed: true) }
        defer { state.withLock { $0.image = nil } }
        for (file, attributes, target) in wrong {
            try step()
            // All its names are found with the first of them.
            try replace(file, attributes, target, [], links: 0, step)
        }
    }

    /// Empties every touched name that does not lead where it shall.
    private func evictWrong(
        _ plan: ReplayPlan, _ step: @escaping ReplayStep
    ) throws(TreeError) -> Set<FileID> {
        var evicted: Set<FileID> = []
        for directory in plan.names.keys.sorted() {
            guard try isDirectory(directory) else { continue }
            let isRemoved = plan.objects[directory]?.isRemoved ?? false
            try withDirectory(directory) { (fd) throws(TreeError) in
                for name in try touchedNames(of: directory, fd, plan) {
                    let wanted = isRemoved ? FileID.none : plan.names[directory]?[name] ?? .none
                    guard let found = try occupant(of: name, in: fd), found != wanted || found == .none else {
                        continue
                    }
                    try step()
                    try evict(name, from: fd)
                    evicted.insert(found)
                }
            }
        }
        return evicted
    }

    /// Every touched name gets its file, parents before what is in them.
    private func placeAll(_ plan: ReplayPlan, _ step: @escaping ReplayStep) throws(TreeError) {
        var parents: [FileID: FileID] = [:]
        for (parent, names) in plan.names {
            for file in names.values where plan.names[file] != nil { parents[file] = parent }
        }
        var done: Set<FileID> = []
        for directory in plan.names.keys.sorted() {
            // From the topmost directory that has a new place down to this one.
            var chain: [FileID] = []
            var next: FileID? = directory
            while let current = next, done.insert(current).inserted {
                chain.append(current)
                next = parents[current]
            }
            for directory in chain.reversed() { try placeNames(of: directory, plan, step) }
        }
    }

    private func placeNames(
        of directory: FileID, _ plan: ReplayPlan, _ step: @escaping ReplayStep
    ) throws(TreeError) {
        guard let names = plan.names[directory], !(plan.objects[directory]?.isRemoved ?? false),
            try isDirectory(directory)
        else { return }
        try withDirectory(directory) { (fd) throws(TreeError) in
            for (name, file) in names.sorted(by: { $0.key.lexicographicallyPrecedes($1.key) }) where file != .none {
                guard try occupant(of: name, in: fd) != file else { continue }
                try step()
                _ = try place(file, in: fd, name)
            }
        }
    }

    /// An object that was in the way, that no record removed and that has found no place: this cannot come from a
    /// crash. It is set aside, not deleted.
    private func keepStrays(_ evicted: Set<FileID>, _ plan: ReplayPlan, isLenient: Bool) throws(TreeError) {
        guard !isLenient else { return }
        for file in evicted.sorted() where file != .none && !(plan.objects[file]?.isRemoved ?? false) {
            let name = PlainTree.encodeTag(file)
            guard let object = try child(name, of: staging.rawValue) else { continue }
            let stat = try System.stat(object.rawValue)
            guard stat.mode & S_IFMT == S_IFDIR || stat.links == 1 else { continue }
            let own = try System.open(root.rawValue, PlainTree.ownName, O_RDONLY | CLINUX_O_DIRECTORY)
            let found = try PlainTree.directory(Array("found".utf8), in: own.rawValue, creating: true)
            try System.rename(staging.rawValue, name, to: found.rawValue, name)
            try forget(file)
            logger.error(
                "an object stood where the journal has another, and belongs nowhere; it was set aside",
                metadata: ["tree.file": "\(file)", "tree.path": "\(backing)/.lockstep/found/\(file)"])
        }
    }

    // MARK: Contents and attributes

    private func survivingFiles(_ plan: ReplayPlan) -> [FileID] {
        plan.objects.filter { !$0.value.isRemoved }.keys.sorted()
    }

    /// Truncations first, over all files, then allocations and holes: space is given back before it is taken.
    private func redoSizes(_ plan: ReplayPlan, _ step: @escaping ReplayStep) throws(TreeError) {
        let files = survivingFiles(plan).filter { !(plan.objects[$0]?.bytes.isEmpty ?? true) }
        for file in files {
            guard let bytes = plan.objects[file]?.bytes, try referenceIfKnown(to: file) != nil else { continue }
            try step()
            try withDescriptor(of: file, writable: true) { (fd) throws(TreeError) in
                let before = try System.stat(fd).size
                if let cut = bytes.cutFrom, cut < before {
                    try System.check(clinux_ftruncate(fd, cut), "set the size of", "file \(file)")
                }
                let after = bytes.finalSize(from: before)
                if try System.stat(fd).size != after {
                    try System.check(clinux_ftruncate(fd, after), "set the size of", "file \(file)")
                }
            }
        }
        for file in files {
            guard let bytes = plan.objects[file]?.bytes, !bytes.ranges.isEmpty,
                try referenceIfKnown(to: file) != nil
            else { continue }
            try withDescriptor(of: file, writable: true) { (fd) throws(TreeError) in
                for range in bytes.ranges {
                    try step()
                    try System.check(
                        clinux_fallocate(fd, Int32(range.mode), range.offset, range.length), "allocate",
                        "\(range.length) bytes at \(range.offset) of file \(file)")
                }
            }
        }
    }

    private func redoData(
        _ plan: ReplayPlan, _ batches: BatchSource, _ step: @escaping ReplayStep
    ) throws(TreeError) -> UInt64 {
        let survivors = plan.survivors()
        guard !survivors.isEmpty else { return 0 }
        var next = 0
        var total: UInt64 = 0
        try batches { (batch) throws(TreeError) in
            while next < survivors.count, survivors[next].piece.seq <= batch.lastSeq {
                let (file, piece) = survivors[next]
                guard piece.seq >= batch.firstSeq else {
                    throw TreeError("read again", "record \(piece.seq) of the journal", code: EIO)
                }
                let rest = survivors[next...]
                next += 1
                guard try referenceForData(file) else { continue }
                try step()
                let place = piece.seq - batch.firstSeq
                let payload = unsafe batch.payload(of: place)
                let bytes = unsafe UnsafeRawBufferPointer(
                    rebasing: payload[Int(piece.start)..<Int(piece.start + piece.length)])
                try withDescriptor(of: file, writable: true) { (fd) throws(TreeError) in
                    // Of a block that a repair mended, later records may have written a part: together they are all
                    // of it.
                    let left = try unsafe writeMending(fd, bytes, at: piece.offset) { block in
                        PlainTree.isCovered(block, by: rest.lazy.filter { $0.file == file }.map { $0.piece })
                    }
                    guard let left else { return }
                    guard batch.records[place].body.kind == .repair else { throw left }
                    reportUnmended(file, left)
                }
                total += piece.length
            }
        }
        guard next == survivors.count else {
            throw TreeError("read again", "record \(survivors[next].piece.seq) of the journal", code: EIO)
        }
        return total
    }

    /// Whether pieces, which do not overlap, make up a whole range.
    private static func isCovered(_ range: Range<UInt64>, by pieces: some Sequence<ByteFold.Piece>) -> Bool {
        var covered: UInt64 = 0
        for piece in pieces {
            let start = max(piece.offset, range.lowerBound)
            covered += max(start, min(piece.end, range.upperBound)) - start
        }
        return covered == UInt64(range.count)
    }

    private struct Kept {
        var mtime: Int64?
        var capability: [UInt8]?
    }

    /// A repair gives a file bytes that the other room has, and changes nothing else. Redone, it must not either: the
    /// record is in both journals, and only one of the rooms may have crashed. (Killed between writing the bytes and
    /// giving back the time, a file keeps the new one; the next verification finds that.)
    private func whatRepairsKeep(_ plan: ReplayPlan) throws(TreeError) -> [FileID: Kept] {
        var kept: [FileID: Kept] = [:]
        for file in survivingFiles(plan) {
            guard let object = plan.objects[file], object.keepsTime || object.keepsCapability,
                try referenceIfKnown(to: file) != nil
            else { continue }
            var before = Kept()
            try withDescriptor(of: file, writable: false) { (fd) throws(TreeError) in
                if object.keepsTime { before.mtime = FileStatus(try System.stat(fd), file: file).attributes.mtime }
                if object.keepsCapability { before.capability = try System.xattr(fd, PlainTree.capabilityXattr) }
            }
            kept[file] = before
        }
        return kept
    }

    private func giveBack(_ kept: [FileID: Kept]) throws(TreeError) {
        for (file, before) in kept {
            try withDescriptor(of: file, writable: false) { (fd) throws(TreeError) in
                if let value = before.capability { try System.setXattr(fd, PlainTree.capabilityXattr, value) }
                if let mtime = before.mtime { try System.setTimes(fd, atime: nil, mtime: mtime) }
            }
        }
    }

    /// Whether the file is there to be written; only in a tree that is behind it may not be.
    private func referenceForData(_ file: FileID) throws(TreeError) -> Bool {
        if let open = cache.find(file) { return open.type == S_IFREG }
        return try referenceIfKnown(to: file) != nil
    }

    /// Directories after files, because placing and removing has changed their times.
    private func redoAttributes(_ plan: ReplayPlan, _ step: @escaping ReplayStep) throws(TreeError) {
        var directories: [FileID] = []
        for file in survivingFiles(plan) {
            if try isDirectory(file) { directories.append(file) } else { try redoAttributes(of: file, plan, step) }
        }
        for file in directories { try redoAttributes(of: file, plan, step) }
    }

    private func redoAttributes(
        of file: FileID, _ plan: ReplayPlan, _ step: @escaping ReplayStep
    ) throws(TreeError) {
        guard let object = plan.objects[file], try referenceIfKnown(to: file) != nil else { return }
        try step()
        let opened = try self.object(file, writable: false)
        defer { withExtendedLifetime(opened) {} }
        let mask = object.mask
        let isModeLast = object.modeSet > object.aclSet
        try setOwnerAndMode(opened.fd, type: opened.type, mask, object.attributes)
        if object.hasAllXattrs {
            for name in try System.xattrNames(opened.fd)
            where object.xattrs[name] == nil && !name.starts(with: PlainTree.ownXattrPrefix)
                && !PlainTree.isLabel(name)
            { try System.removeXattr(opened.fd, name) }
        }
        // What goes makes room for what comes: together there may be more than a file system takes.
        for (name, value) in object.xattrs where value == nil && !name.starts(with: PlainTree.ownXattrPrefix) {
            try System.removeXattr(opened.fd, name)
        }
        for (name, value) in object.xattrs where !name.starts(with: PlainTree.ownXattrPrefix) {
            if let value { try System.setXattr(opened.fd, name, value) }
        }
        if isModeLast { try setOwnerAndMode(opened.fd, type: opened.type, mask.intersection(.mode), object.attributes) }
        try System.setTimes(
            opened.fd, atime: mask.contains(.atime) ? object.attributes.atime : nil,
            mtime: mask.contains(.mtime) ? object.attributes.mtime : nil)
    }
}
