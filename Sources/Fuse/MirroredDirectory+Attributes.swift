public import Format
internal import Glibc
internal import Tree

/// Looking: names, attributes, directories. Everything comes from the plain tree unless the file has an inode in
/// memory; then its attributes are the truth.
extension MirroredDirectory {
    // MARK: Inodes

    /// The inode of a file, looked at again when it is clean and has changed since.
    func load(_ file: FileID, _ then: @escaping (Result<Inode, FuseErrno>) -> Void) {
        if let inode = inodes[file], !inode.isStale || inodes.isDirty(inode) || inode.isRemoved {
            return then(.success(inode))
        }
        if loading[file] != nil {
            loading[file]?.append(then)
            return
        }
        loading[file] = [then]
        look(file)
    }

    /// The attributes of a file after the last record that was logged; nil when they are not in memory: then no record
    /// of the file is unapplied, and the plain file has them.
    public func attributesInMemory(of file: FileID) -> FileAttributes? {
        guard loading[file] == nil, let inode = inodes[file], !inode.isRemoved else { return nil }
        return inode.attributes
    }

    /// Loads a file and goes on while serving. The inode is good until the step ends, not longer: it may be dropped
    /// from memory later, and whoever waits asks again.
    func withInode(_ unique: UInt64, _ file: FileID, _ step: @escaping (Inode) -> Void) {
        load(file) { [self] result in
            switch result {
            case .success(let inode) where state == .serving: step(inode)
            case .success: whenServing { [self] in withInode(unique, file, step) }
            case .failure(let error): answer(unique, errno: error.code)
            }
        }
    }

    private struct Look: Sendable {
        var status: FileStatus
        var hasCapability = false
        var denseBytes: UInt64 = 0
    }

    private func look(_ file: FileID) {
        let asked = log.lastSeq
        let changes = inodes[file]?.changes
        work { tree throws(TreeError) in
            var look = Look(status: try tree.status(of: file))
            guard look.status.isRegular else { return look }
            // Only a program's file capabilities matter, and only where there is something to execute.
            if look.status.attributes.mode & 0o111 != 0 {
                look.hasCapability = try tree.xattr(of: file, name: securityCapability) != nil
            }
            // Enough blocks for all may also lie behind the end, and leave a hole before it. What was allocated and never
            // written counts as a hole here.
            let size = look.status.attributes.size
            if size > 0, look.status.blocks * 512 >= size {
                look.denseBytes = (try? tree.seek(file, from: 0, toHole: true)) ?? 0
            }
            return look
        } then: { [weak self] result in
            self?.looked(file, asked: asked, changes: changes, result)
        }
    }

    private func looked(_ file: FileID, asked: Seq, changes: UInt64?, _ result: Result<Look, FuseErrno>) {
        let outcome: Result<Inode, FuseErrno>
        switch result {
        case .success(let look):
            if let inode = inodes[file] {
                // Changed meanwhile: memory is newer.
                if inode.changes == changes, !inodes.isDirty(inode) {
                    inode.refresh(look.status, dense: look.denseBytes)
                }
                outcome = .success(inode)
            } else if changes != nil || inodes.droppedSeq > asked {
                // An inode that was changed and dropped in the meantime may have been this one.
                return self.look(file)
            } else {
                let inode = Inode(look.status, dense: look.denseBytes)
                inode.mayHaveCapability = look.hasCapability
                inodes.insert(inode)
                outcome = .success(inode)
            }
        case .failure(let error):
            if let inode = inodes[file], inode.isRemoved || inodes.isDirty(inode) {
                outcome = .success(inode)
            } else {
                outcome = .failure(error)
            }
        }
        for then in loading.removeValue(forKey: file) ?? [] { then(outcome) }
    }

    // MARK: Requests

    func lookUp(_ request: FuseRequest, _ name: FileName) {
        let unique = request.unique
        let parent = request.node
        let isRepeated = late.expects(request.pid)
        guard name.count <= RecordLimits.nameBytes else { return answer(unique, errno: ENAMETOOLONG) }
        // Names are stable while somebody looks; a change of them is answered, and unlocks, when it is applied.
        let lock = FileLocks.Request(exclusive: [], shared: [parent])
        locked(lock) { [self] in
            let asked = log.lastSeq
            work { tree throws(TreeError) in
                try tree.lookup(parent: parent, name: name)
            } then: { [weak self] result in
                guard let self else { return }
                if isRepeated { foundLate(request.pid) }
                unlock(lock)
                whenServing { [self] in
                    switch result {
                    case .success(let status):
                        answerEntry(unique, status, asked: asked)
                    case .failure(let error) where error.code == ENOENT:
                        // Nobody else makes files: the kernel may remember that there is none.
                        answer(unique, FuseReply.noEntry(seconds: MirroredDirectory.cacheSeconds))
                    case .failure(let error): answer(unique, errno: error.code)
                    }
                }
            }
        }
    }

    /// Answers with an entry: attributes from memory where there are any.
    private func answerEntry(_ unique: UInt64, _ status: FileStatus, asked: Seq) {
        if let inode = inodes[status.file] {
            if inodes.isDirty(inode) || !inode.isStale { return answer(unique, entry(inode)) }
        } else if inodes.droppedSeq <= asked {
            let seconds = MirroredDirectory.cacheSeconds
            return answer(unique, FuseReply.entry(FuseAttributes(status), entrySeconds: seconds, seconds: seconds))
        }
        load(status.file) { [self] result in
            switch result {
            case .success(let inode): answer(unique, entry(inode))
            case .failure(let error): answer(unique, errno: error.code)
            }
        }
    }

    func entry(_ inode: Inode) -> [UInt8] {
        FuseReply.entry(
            FuseAttributes(inode), entrySeconds: MirroredDirectory.cacheSeconds, seconds: attributeSeconds(inode))
    }

    /// How long the kernel may trust the attributes. Of a file with unapplied records it asks again each time, because
    /// blocks and ctime are known only once they are applied.
    func attributeSeconds(_ inode: Inode) -> UInt64 { inode.isStale ? 0 : MirroredDirectory.cacheSeconds }

    func answerAttributes(_ unique: UInt64, _ inode: Inode) {
        answer(unique, FuseReply.attributes(FuseAttributes(inode), seconds: attributeSeconds(inode)))
    }

    func getAttributes(_ unique: UInt64, _ file: FileID) {
        if let last = gone[file] {
            return answer(unique, FuseReply.attributes(last, seconds: MirroredDirectory.cacheSeconds))
        }
        load(file) { [self] result in
            switch result {
            case .success(let inode): answerAttributes(unique, inode)
            case .failure(let error): answer(unique, errno: error.code)
            }
        }
    }

    func readLink(_ unique: UInt64, _ file: FileID) {
        work { tree throws(TreeError) in
            try tree.readLink(file)
        } then: { [weak self] result in
            switch result {
            case .success(let target): self?.answer(unique, target)
            case .failure(let error): self?.answer(unique, errno: error.code)
            }
        }
    }

    func statistics(_ unique: UInt64) {
        work { tree throws(TreeError) in
            try tree.statistics()
        } then: { [weak self] result in
            switch result {
            case .success(let statistics): self?.answer(unique, FuseReply.statistics(statistics))
            case .failure(let error): self?.answer(unique, errno: error.code)
            }
        }
    }

    func readDirectory(_ unique: UInt64, _ directory: FileID, _ cursor: UInt64, _ size: Int, _ plus: Bool) {
        // The shortest entry has 32 bytes (with attributes 160): more than fit are not asked for.
        let limit = max(1, min(size, 65_536) / (plus ? 160 : 32))
        let lock = FileLocks.Request(exclusive: [], shared: [directory])
        locked(lock) { [self] in
            let asked = log.lastSeq
            work { tree throws(TreeError) in
                try tree.readDirectory(directory, from: cursor, limit: limit, withStatus: plus)
            } then: { [weak self] result in
                guard let self else { return }
                unlock(lock)
                whenServing { [self] in
                    switch result {
                    case .success(let entries): answerDirectory(unique, entries, size, plus, asked: asked)
                    case .failure(let error): answer(unique, errno: error.code)
                    }
                }
            }
        }
    }

    private func answerDirectory(
        _ unique: UInt64, _ entries: [DirectoryEntry], _ size: Int, _ plus: Bool, asked: Seq
    ) {
        var out = ByteWriter(reserving: min(size, 65_536))
        let seconds = MirroredDirectory.cacheSeconds
        for entry in entries {
            let needed = FuseReply.directoryEntryBytes(entry.name.count, plus: plus)
            guard out.count + needed <= size else { break }
            if plus {
                if let inode = inodes[entry.file] {
                    // A stale inode is clean by now, but this answer may be older than its last record.
                    if entry.status != nil, inodes.isDirty(inode) || !inode.isStale {
                        FuseReply.putEntry(
                            &out, FuseAttributes(inode), entrySeconds: seconds, seconds: attributeSeconds(inode))
                    } else {
                        FuseReply.putNoEntry(&out)
                    }
                } else if let status = entry.status, inodes.droppedSeq <= asked {
                    FuseReply.putEntry(&out, FuseAttributes(status), entrySeconds: seconds, seconds: seconds)
                } else {
                    FuseReply.putNoEntry(&out)
                }
            }
            FuseReply.putDirectoryEntry(&out, entry)
        }
        answer(unique, out.bytes)
    }

    // MARK: Changing attributes

    func setAttributes(_ request: FuseRequest, _ change: FuseAttributeChange) {
        withInode(request.unique, request.node) { [self] inode in setAttributes(request, change, inode) }
    }

    private func setAttributes(_ request: FuseRequest, _ change: FuseAttributeChange, _ inode: Inode) {
        let unique = request.unique
        if inode.isRemoved {
            return waitUntilLocal(inode) { [self] in setLocally(unique, change, inode) }
        }
        let now = presentTime()
        if change.mask.contains(.size) {
            guard inode.isRegular else { return answer(unique, errno: EINVAL) }
            guard change.size <= limits.fileBytes else { return answer(unique, errno: EFBIG) }
        }
        let isShortened = change.mask.contains(.size) && change.size < inode.size
        if !isShortened, let errno = log.spaceFor(bytes: 0) { return answer(unique, errno: errno) }
        let (mask, attributes) = resolve(change, inode, now: now)
        guard !mask.isEmpty else { return answerAttributes(unique, inode) }
        let seq = log.append(
            .setAttributes(file: inode.file, mask: mask, attributes: attributes), time: now)
        applyInMemory(mask, attributes, inode, seq, now: now)
        let drop = inode.mayHaveCapability && (mask.contains(.size) || mask.contains(.uid) || mask.contains(.gid))
        let last = drop ? dropCapability(inode, now) : seq
        answerWhen(unique, last, .write) { [self] in answerAttributes(unique, inode) }
    }

    /// From what was asked to final values: what is logged must not depend on when or where it is applied.
    func resolve(
        _ change: FuseAttributeChange, _ inode: Inode, now: Int64
    ) -> (AttributeMask, FileAttributes) {
        var mask: AttributeMask = []
        var attributes = inode.attributes
        if change.mask.contains(.mode) {
            mask.insert(.mode)
            attributes.mode = inode.mode & LinuxFlags.typeMask | change.mode & LinuxFlags.permissions
        }
        if change.mask.contains(.uid), change.uid != UInt32.max {
            mask.insert(.uid)
            attributes.uid = change.uid
        }
        if change.mask.contains(.gid), change.gid != UInt32.max {
            mask.insert(.gid)
            attributes.gid = change.gid
        }
        if change.mask.contains(.size) {
            // A truncation to the same size changes the mtime too.
            mask.formUnion([.size, .mtime])
            attributes.size = change.size
            attributes.mtime = now
        }
        if change.mask.contains(.atime) {
            mask.insert(.atime)
            attributes.atime = change.mask.contains(.atimeNow) ? now : limits.kept(change.atime)
        }
        if change.mask.contains(.mtime) {
            mask.insert(.mtime)
            attributes.mtime = change.mask.contains(.mtimeNow) ? now : limits.kept(change.mtime)
        }
        // A new owner, or a truncation by somebody without the right to keep them, removes set-user-id and (for
        // programs of a group) set-group-id, as on a local file.
        let ownerChanges = !mask.isDisjoint(with: [.uid, .gid]) && !inode.isDirectory
        let kills = change.mask.contains(.killPrivileges) || ownerChanges && !change.mask.contains(.mode)
        if kills, let mode = withoutPrivileges(attributes.mode) {
            mask.insert(.mode)
            attributes.mode = mode
        }
        return (mask, attributes)
    }

    /// The mode without set-user-id and set-group-id; nil when it has none that go.
    func withoutPrivileges(_ mode: UInt32) -> UInt32? {
        guard mode & LinuxFlags.typeMask == LinuxFlags.regular else { return nil }
        var result = mode & ~LinuxFlags.setUserID
        if mode & LinuxFlags.groupExecute != 0 { result &= ~LinuxFlags.setGroupID }
        return result == mode ? nil : result
    }

    func applyInMemory(
        _ mask: AttributeMask, _ attributes: FileAttributes, _ inode: Inode, _ seq: Seq, now: Int64
    ) {
        if mask.contains(.mode) { inode.mode = attributes.mode }
        if mask.contains(.uid) { inode.uid = attributes.uid }
        if mask.contains(.gid) { inode.gid = attributes.gid }
        if mask.contains(.atime) { inode.atime = attributes.atime }
        if mask.contains(.mtime) { inode.mtime = attributes.mtime }
        inode.ctime = now
        if mask.contains(.size) {
            // What is cut, and what a later extension shows as zeros.
            inode.addPending(seq, min(inode.size, attributes.size), UInt64.max)
            inode.size = attributes.size
            inode.denseBytes = min(inode.denseBytes, attributes.size)
        }
        touch(inode, seq)
    }

    /// What somebody without the right to keep it changes loses set-user-id and set-group-id. Returns the seq of that; nil:
    /// it had neither.
    func dropPrivileges(_ inode: Inode, _ now: Int64) -> Seq? {
        guard let mode = withoutPrivileges(inode.mode) else { return nil }
        var attributes = inode.attributes
        attributes.mode = mode
        let seq = log.append(.setAttributes(file: inode.file, mask: .mode, attributes: attributes), time: now)
        applyInMemory(.mode, attributes, inode, seq, now: now)
        connection?.forgetAttributes(of: inode.file)
        return seq
    }

    /// A write, truncation or new owner removes file capabilities. Returns the seq of the removal.
    func dropCapability(_ inode: Inode, _ now: Int64) -> Seq {
        inode.mayHaveCapability = false
        let seq = log.append(.removeXattr(file: inode.file, name: securityCapability), time: now)
        inode.lastXattrSeq = seq
        touch(inode, seq)
        return seq
    }
}

/// File capabilities of programs.
let securityCapability: FileName = Array("security.capability".utf8)
