internal import Format
internal import Glibc
internal import Tree

/// Names: create, link, remove, rename.
///
/// ```
///   lock the parents ─> look on the plain tree (worker) ─> lock what was found ─> check ─> log ─> applied ─> answer
///         ^                                                       │ not free
///         └────────────── give all back, wait for all ────────────┘
/// ```
///
/// The locks last until the record is applied, so the plain tree is what the next operation on these directories finds,
/// and a check can never be overtaken. Records are fully resolved: they name the files moved, removed and replaced, and
/// say whether a name was the last.
extension MirroredDirectory {
    /// What a change of names must not need more of than this, in bytes of the plain files.
    static let directoryGrowthBytes = 4096

    func changeNamespace(_ request: FuseRequest) {
        let parent = request.node
        switch request.operation {
        case .create(let name, _, let mode): make(request, name, mode: regularMode(mode))
        case .makeNode(let name, let mode, let rdev): make(request, name, mode: mode, rdev: rdev)
        case .makeDirectory(let name, let mode):
            make(request, name, mode: LinuxFlags.directory | mode & LinuxFlags.permissions)
        case .symlink(let name, let target):
            make(request, name, mode: LinuxFlags.symbolicLink | 0o777, target: target)
        case .link(let file, let name): link(request.unique, file, parent, name)
        case .unlink(let name): remove(request.unique, parent, name, isDirectory: false)
        case .removeDirectory(let name): remove(request.unique, parent, name, isDirectory: true)
        case .rename(let name, let newParent, let newName, let flags):
            rename(request.unique, Renaming(parent, name, newParent, newName, flags))
        default: answer(request.unique, errno: ENOSYS)
        }
    }

    private func regularMode(_ mode: UInt32) -> UInt32 { LinuxFlags.regular | mode & LinuxFlags.permissions }

    // MARK: What an operation holds

    /// Locks and pinned inodes of an operation; given back together.
    final class Holding {
        var lock: FileLocks.Request
        var pinned: [Inode] = []
        init(_ files: [FileID]) { lock = FileLocks.Request(exclusive: Array(Set(files))) }
    }

    func give(back holding: Holding) {
        for inode in holding.pinned { inode.pins -= 1 }
        holding.pinned = []
        unlock(holding.lock)
    }

    private func fail(_ unique: UInt64, _ errno: Int32, _ holding: Holding) {
        answer(unique, errno: errno)
        give(back: holding)
    }

    /// Loads and pins the inodes one after the other.
    func pin(
        _ files: [FileID], _ holding: Holding, then: @escaping (Result<[Inode], FuseErrno>) -> Void
    ) {
        pin(files[...], [], holding, then)
    }

    private func pin(
        _ rest: ArraySlice<FileID>, _ found: [Inode], _ holding: Holding,
        _ then: @escaping (Result<[Inode], FuseErrno>) -> Void
    ) {
        guard let file = rest.first else { return then(.success(found)) }
        load(file) { [self] result in
            switch result {
            case .success(let inode):
                inode.pins += 1
                holding.pinned.append(inode)
                pin(rest.dropFirst(), found + [inode], holding, then)
            case .failure(let error): then(.failure(error))
            }
        }
    }

    /// Locks `directories`, loads them and looks up names in them: the beginning of every operation. `body` runs while
    /// serving.
    /// - Parameter added: which of the names there will be, if there is none yet: its directory must have room for it.
    private func begin(
        _ unique: UInt64, _ directories: [FileID], also others: [FileID] = [], names: [(FileID, FileName)],
        added: Int? = nil, _ body: @escaping (Holding, [Inode], [FileStatus?]) -> Void
    ) {
        for (_, name) in names where name.count > RecordLimits.nameBytes {
            return answer(unique, errno: ENAMETOOLONG)
        }
        for (directory, name) in names where directory == .root && name == PlainTree.ownName {
            return answer(unique, errno: EPERM)
        }
        let holding = Holding(directories + others)
        locked(holding.lock) { [self] in
            pin(directories, holding) { [self] result in
                guard case .success(let parents) = result else {
                    if case .failure(let error) = result { fail(unique, error.code, holding) }
                    return
                }
                for parent in parents {
                    guard parent.isDirectory else { return fail(unique, ENOTDIR, holding) }
                    guard !parent.isRemoved else { return fail(unique, ENOENT, holding) }
                }
                look(unique, names, added, holding) { found in body(holding, parents, found) }
            }
        }
    }

    private func look(
        _ unique: UInt64, _ names: [(FileID, FileName)], _ added: Int?, _ holding: Holding,
        _ then: @escaping ([FileStatus?]) -> Void
    ) {
        let limit = limits.directoryBytes
        work { tree throws(TreeError) -> [FileStatus?] in
            var found: [FileStatus?] = []
            for (directory, name) in names {
                do throws(TreeError) {
                    found.append(try tree.lookup(parent: directory, name: name))
                } catch {
                    guard error.code == ENOENT else { throw error }
                    found.append(nil)
                }
            }
            // What is refused for other reasons is told those.
            if let added, found[added] == nil, !found.indices.contains(where: { $0 != added && found[$0] == nil }) {
                try tree.checkRoom(for: names[added].1, in: names[added].0, limit: limit)
            }
            return found
        } then: { [weak self] result in
            guard let self else { return }
            switch result {
            case .success(let found): whenServing { then(found) }
            case .failure(let error): fail(unique, error.code, holding)
            }
        }
    }

    /// Also locks and pins what the names lead to. When that is not free, everything is given back and `again` is called
    /// with what to lock from the start.
    private func extend(
        _ unique: UInt64, _ holding: Holding, _ files: [FileID], again: @escaping ([FileID]) -> Void,
        _ body: @escaping ([Inode]) -> Void
    ) {
        let missing = Array(Set(files)).filter { !holding.lock.exclusive.contains($0) }
        guard missing.isEmpty || locks.tryExtend(missing) else {
            give(back: holding)
            return again(files)
        }
        holding.lock.exclusive += missing
        pin(files, holding) { [self] result in
            switch result {
            case .success(let inodes): whenServing { body(inodes) }
            case .failure(let error): fail(unique, error.code, holding)
            }
        }
    }

    /// Answers once the record is applied, and gives the locks back whatever came of it.
    private func finish(_ unique: UInt64, _ seq: Seq, _ holding: Holding, _ body: @escaping () -> Void) {
        log.when(seq, .applied) { [weak self] outcome in
            guard let self else { return }
            switch outcome {
            case .done:
                inodes.advance(seq)
                whenServing { [self] in
                    body()
                    give(back: holding)
                }
            case .failed(let errno): fail(unique, errno, holding)
            }
        }
    }

    /// A directory's own attributes after a change of its names.
    private func directoryChanged(_ directory: Inode, _ seq: Seq, now: Int64, subdirectories: Int = 0) {
        directory.mtime = now
        directory.ctime = now
        // btrfs, and ext4 beyond its limit, do not count: they say 1.
        if directory.links >= 2 {
            directory.links = UInt32(max(2, Int(directory.links) + subdirectories))
        }
        touch(directory, seq)
    }

    // MARK: Create

    private func make(
        _ request: FuseRequest, _ name: FileName, mode: UInt32, rdev: UInt32 = 0, target: [UInt8] = []
    ) {
        let unique = request.unique
        guard target.count <= Int(limits.targetBytes) else { return answer(unique, errno: ENAMETOOLONG) }
        begin(unique, [request.node], names: [(request.node, name)], added: 0) { [self] holding, parents, found in
            if let existing = found[0] { return makeExisting(request, existing, holding) }
            let needed = MirroredDirectory.directoryGrowthBytes + target.count
            if let errno = log.spaceFor(bytes: needed, files: 1) { return fail(unique, errno, holding) }
            let parent = parents[0]
            let now = presentTime()
            let attributes = newAttributes(request, parent, mode: mode, rdev: rdev, target: target, now: now)
            let file = log.allocateFileID()
            let seq = log.append(
                .create(
                    file: file, parent: parent.file, name: name, attributes: attributes, target: target, xattrs: []),
                time: now)
            let isDirectory = attributes.mode & LinuxFlags.typeMask == LinuxFlags.directory
            let inode = Inode(new: file, attributes, links: isDirectory && parent.links >= 2 ? 2 : 1)
            inodes.insert(inode)
            inode.pins += 1
            holding.pinned.append(inode)
            touch(inode, seq)
            directoryChanged(parent, seq, now: now, subdirectories: isDirectory ? 1 : 0)
            finish(unique, seq, holding) { [self] in answerMade(request, inode) }
        }
    }

    private func newAttributes(
        _ request: FuseRequest, _ parent: Inode, mode: UInt32, rdev: UInt32, target: [UInt8], now: Int64
    ) -> FileAttributes {
        var attributes = FileAttributes(
            mode: mode, uid: request.uid, gid: request.gid, rdev: rdev, size: UInt64(target.count), atime: now,
            mtime: now)
        // Staging has another parent, so what a set-group-id directory hands down is set here.
        if parent.mode & LinuxFlags.setGroupID != 0 {
            attributes.gid = parent.gid
            if mode & LinuxFlags.typeMask == LinuxFlags.directory { attributes.mode |= LinuxFlags.setGroupID }
        }
        return attributes
    }

    private func answerMade(_ request: FuseRequest, _ inode: Inode) {
        guard case .create(_, let flags, _) = request.operation else {
            return answer(request.unique, entry(inode))
        }
        let (handle, openFlags) = opened(inode, flags)
        answer(
            request.unique,
            FuseReply.created(
                FuseAttributes(inode), entrySeconds: MirroredDirectory.cacheSeconds, seconds: attributeSeconds(inode),
                handle: handle, flags: openFlags))
    }

    /// CREATE of something that is there: the kernel's knowledge was old. Without O_EXCL that is an open.
    private func makeExisting(_ request: FuseRequest, _ existing: FileStatus, _ holding: Holding) {
        guard case .create(_, let flags, _) = request.operation, flags & LinuxFlags.openExclusive == 0,
            existing.isRegular
        else { return fail(request.unique, EEXIST, holding) }
        pin([existing.file], holding) { [self] result in
            guard case .success(let found) = result, let inode = found.first else {
                return fail(request.unique, EIO, holding)
            }
            whenServing { [self] in
                if flags & LinuxFlags.openTruncate != 0 {
                    let now = presentTime()
                    var attributes = inode.attributes
                    attributes.size = 0
                    attributes.mtime = now
                    let mask: AttributeMask = [.size, .mtime]
                    let seq = log.append(
                        .setAttributes(file: inode.file, mask: mask, attributes: attributes), time: now)
                    applyInMemory(mask, attributes, inode, seq, now: now)
                }
                answerMade(request, inode)
                give(back: holding)
            }
        }
    }

    // MARK: Link

    private func link(_ unique: UInt64, _ file: FileID, _ parent: FileID, _ name: FileName) {
        begin(unique, [parent], also: [file], names: [(parent, name)], added: 0) { [self] holding, parents, found in
            guard found[0] == nil else { return fail(unique, EEXIST, holding) }
            pin([file], holding) { [self] result in
                guard case .success(let loaded) = result, let inode = loaded.first else {
                    return fail(unique, ENOENT, holding)
                }
                whenServing { [self] in link(unique, inode, parents[0], name, holding) }
            }
        }
    }

    private func link(_ unique: UInt64, _ inode: Inode, _ parent: Inode, _ name: FileName, _ holding: Holding) {
        guard !inode.isDirectory else { return fail(unique, EPERM, holding) }
        // A file without a name stays without: its content is no longer replicated.
        guard !inode.isRemoved else { return fail(unique, ENOENT, holding) }
        guard inode.links < limits.links else { return fail(unique, EMLINK, holding) }
        if let errno = log.spaceFor(bytes: MirroredDirectory.directoryGrowthBytes) {
            return fail(unique, errno, holding)
        }
        let now = presentTime()
        let seq = log.append(.link(file: inode.file, parent: parent.file, name: name), time: now)
        inode.links += 1
        inode.ctime = now
        touch(inode, seq)
        directoryChanged(parent, seq, now: now)
        finish(unique, seq, holding) { [self] in answer(unique, entry(inode)) }
    }

    // MARK: Remove

    private func remove(
        _ unique: UInt64, _ parent: FileID, _ name: FileName, isDirectory: Bool, also others: [FileID] = []
    ) {
        begin(unique, [parent], also: others, names: [(parent, name)]) { [self] holding, parents, found in
            guard let status = found[0] else { return fail(unique, ENOENT, holding) }
            guard status.isDirectory == isDirectory else {
                return fail(unique, isDirectory ? ENOTDIR : EISDIR, holding)
            }
            extend(unique, holding, [status.file]) { [self] files in
                remove(unique, parent, name, isDirectory: isDirectory, also: files)
            } _: { [self] loaded in
                guard isDirectory else { return remove(unique, loaded[0], parents[0], name, holding) }
                whenEmpty(unique, loaded[0], holding) { [self] in
                    remove(unique, loaded[0], parents[0], name, holding)
                }
            }
        }
    }

    private func remove(_ unique: UInt64, _ inode: Inode, _ parent: Inode, _ name: FileName, _ holding: Holding) {
        let now = presentTime()
        let isDirectory = inode.isDirectory
        let wasLast = isDirectory || inode.links <= 1
        if wasLast { holdIfOpen(inode) }
        let seq = log.append(
            .remove(file: inode.file, parent: parent.file, name: name, isDirectory: isDirectory, wasLast: wasLast),
            time: now)
        nameGone(inode, seq, wasLast: wasLast, now: now)
        directoryChanged(parent, seq, now: now, subdirectories: isDirectory ? -1 : 0)
        finish(unique, seq, holding) { [self] in
            answer(unique, errno: 0)
            if wasLast { removalApplied(inode) }
        }
    }

    /// Makes the plain tree keep a file whose last name goes, if it is open or may be about to be. BEFORE the removal is logged: once it is, it may be applied
    /// at any moment.
    private func holdIfOpen(_ inode: Inode) {
        guard inode.handles > 0 || inode.isRegular && late.isExpecting, !inode.isHeld else { return }
        inode.isHeld = true
        tree.hold(inode.file)
    }

    /// Notes that a name of a file is gone.
    private func nameGone(_ inode: Inode, _ seq: Seq, wasLast: Bool, now: Int64) {
        inode.ctime = now
        inode.links = wasLast ? 0 : inode.links - 1
        if wasLast {
            inode.isRemoved = true
            inode.removalSeq = seq
        }
        touch(inode, seq)
    }

    /// From here on the file is this node's alone: nobody could open it after a takeover.
    private func removalApplied(_ inode: Inode) {
        inode.isLocal = true
        dropRemoved(inode)
    }

    /// Goes on when a directory has no names but its own; else ENOTEMPTY.
    private func whenEmpty(_ unique: UInt64, _ inode: Inode, _ holding: Holding, _ body: @escaping () -> Void) {
        let file = inode.file
        work { tree throws(TreeError) in
            try tree.readDirectory(file, from: 0, limit: 3, withStatus: false).count
        } then: { [weak self] result in
            guard let self else { return }
            switch result {
            case .success(let count) where count <= 2: whenServing(body)
            case .success: fail(unique, ENOTEMPTY, holding)
            case .failure(let error): fail(unique, error.code, holding)
            }
        }
    }

    // MARK: Rename

    private struct Renaming {
        let parent: FileID
        let name: FileName
        let newParent: FileID
        let newName: FileName
        let flags: UInt32
        init(_ parent: FileID, _ name: FileName, _ newParent: FileID, _ newName: FileName, _ flags: UInt32) {
            self.parent = parent
            self.name = name
            self.newParent = newParent
            self.newName = newName
            self.flags = flags
        }
        var isExchange: Bool { flags & LinuxFlags.renameExchange != 0 }
    }

    private func rename(_ unique: UInt64, _ renaming: Renaming, also others: [FileID] = []) {
        guard [0, LinuxFlags.renameNoReplace, LinuxFlags.renameExchange].contains(renaming.flags) else {
            return answer(unique, errno: EINVAL)
        }
        let names = [(renaming.parent, renaming.name), (renaming.newParent, renaming.newName)]
        let added = renaming.isExchange ? nil : 1
        begin(unique, [renaming.parent, renaming.newParent], also: others, names: names, added: added) {
            [self] holding, parents, found in
            guard let source = found[0] else { return fail(unique, ENOENT, holding) }
            if let errno = refusal(renaming, source, found[1]) { return fail(unique, errno, holding) }
            // Two names of one file: nothing happens, both stay.
            if source.file == found[1]?.file { return fail(unique, 0, holding) }
            let files = [source.file] + (found[1].map { [$0.file] } ?? [])
            extend(unique, holding, files) { [self] files in
                rename(unique, renaming, also: files)
            } _: { [self] loaded in
                let target = loaded.count > 1 ? loaded[1] : nil
                let run = { [self] in rename(unique, renaming, loaded[0], target, parents, holding) }
                if let target, target.isDirectory, !renaming.isExchange {
                    whenEmpty(unique, target, holding, run)
                } else {
                    run()
                }
            }
        }
    }

    private func refusal(_ renaming: Renaming, _ source: FileStatus, _ target: FileStatus?) -> Int32? {
        guard let target else { return renaming.isExchange ? ENOENT : nil }
        if renaming.isExchange { return nil }
        if renaming.flags & LinuxFlags.renameNoReplace != 0 { return EEXIST }
        if source.isDirectory, !target.isDirectory { return ENOTDIR }
        if !source.isDirectory, target.isDirectory { return EISDIR }
        return nil
    }

    private func rename(
        _ unique: UInt64, _ renaming: Renaming, _ source: Inode, _ target: Inode?, _ parents: [Inode],
        _ holding: Holding
    ) {
        if let errno = log.spaceFor(bytes: MirroredDirectory.directoryGrowthBytes) {
            return fail(unique, errno, holding)
        }
        let now = presentTime()
        let exchange = renaming.isExchange
        let wasLast = target.map { !exchange && ($0.isDirectory || $0.links <= 1) } ?? false
        if wasLast, let target { holdIfOpen(target) }
        let seq = log.append(
            .rename(
                file: source.file, parent: renaming.parent, name: renaming.name, newParent: renaming.newParent,
                newName: renaming.newName, exchange: exchange, replaced: target?.file ?? .none,
                replacedWasLast: wasLast), time: now)
        source.ctime = now
        touch(source, seq)
        let moved = source.isDirectory ? 1 : 0
        let other = target.map { $0.isDirectory ? 1 : 0 } ?? 0
        if let target {
            if exchange {
                target.ctime = now
                touch(target, seq)
            } else {
                nameGone(target, seq, wasLast: wasLast, now: now)
            }
        }
        directoryChanged(parents[0], seq, now: now, subdirectories: (exchange ? other : 0) - moved)
        directoryChanged(parents[1], seq, now: now, subdirectories: moved - other)
        finish(unique, seq, holding) { [self] in
            answer(unique, errno: 0)
            if wasLast, let target { removalApplied(target) }
        }
    }
}
