internal import CLinux
internal import Format
internal import Glibc
internal import Logging
internal import Tree

/// Files that are open and have no name any more. Their changes stay on this node: after a takeover nobody could open
/// them. But only from the moment on at which the removal is committed and applied; until then a takeover could bring
/// the name back, so changes wait for that moment.
extension MirroredDirectory {
    func waitUntilLocal(_ inode: Inode, _ body: @escaping () -> Void) {
        if inode.isLocal { return body() }
        log.when(inode.removalSeq, .applied) { [weak self] outcome in
            guard let self, outcome == .done else { return }
            inodes.advance(inode.removalSeq)
            inode.isLocal = true
            whenServing(body)
        }
    }

    /// The mount has gone and with it every handle: removed files that were open go too.
    func releaseHolds() {
        let held = inodes.all.filter { $0.isHeld }.map(\.file)
        guard !held.isEmpty else { return }
        let tree = tree
        let logger = logger
        pool.submit {
            for file in held {
                do throws(TreeError) {
                    try tree.releaseHold(file)
                } catch {
                    logger.warning("the space of a removed file is not free until the next start: \(error)")
                }
            }
        }
    }

    /// Changes of removed files at work at once: with more, these alone could occupy every worker, and everybody's reads
    /// and lookups would wait for them.
    static let localChangesMax = 2

    /// A change of a removed file that waits for its turn.
    struct LocalChange {
        /// As granted by `ChangeLog.localSpaceFor`.
        var bytes: Int
        var run: () -> Void
    }

    /// Changes the plain file of a removed one, when fewer than `localChangesMax` others do.
    ///
    /// - Parameters:
    ///   - bytes: by which it may grow.
    ///   - ended: called whatever came of it, before the answer. Not when this node steps down first.
    private func changeLocally(
        _ unique: UInt64, _ inode: Inode, bytes: Int, _ call: @escaping @Sendable (Int32) -> Int32,
        ended: @escaping () -> Void = {}, _ then: @escaping () -> Void
    ) {
        var errno = inode.isHeld ? nil : ESTALE
        if errno == nil, bytes > 0 { errno = log.localSpaceFor(bytes: bytes) }
        if let errno {
            ended()
            return answer(unique, errno: errno)
        }
        let file = inode.file
        let regular = inode.isRegular
        let change = LocalChange(bytes: bytes) { [self] in
            let log = log
            work { tree throws(TreeError) in
                try tree.withDescriptor(of: file, writable: regular) { descriptor throws(TreeError) in
                    let result = call(descriptor)
                    guard result >= 0 else { throw TreeError("change the removed", "file \(file)", code: -result) }
                }
            } then: { [weak self] result in
                log.localDone(bytes: bytes)
                guard let self else { return }
                localChangesRunning -= 1
                ended()
                switch result {
                case .success: then()
                case .failure(let error): answer(unique, errno: error.code)
                }
                runLocalChanges()
            }
        }
        localChanges.append(change)
        runLocalChanges()
    }

    private func runLocalChanges() {
        while localChangesRunning < MirroredDirectory.localChangesMax, !localChanges.isEmpty {
            localChangesRunning += 1
            localChanges.removeFirst().run()
        }
    }

    /// Those that have not begun; nobody waits for them any more.
    func abandonLocalChanges() {
        for change in localChanges { log.localDone(bytes: change.bytes) }
        localChanges = []
    }

    func writeLocally(_ unique: UInt64, _ write: FuseWrite, _ payload: [UInt8], _ inode: Inode) {
        let end = write.offset + UInt64(payload.count)
        guard end <= limits.fileBytes else {
            payloadUsed(payload)
            return answer(unique, errno: EFBIG)
        }
        // A write that fails may have changed something.
        if write.writeFlags & FuseWriteFlags.killPrivileges != 0 { dropPrivilegesLocally(inode) }
        changeLocally(unique, inode, bytes: end <= inode.denseBytes ? 0 : payload.count) { descriptor in
            var done = 0
            while done < payload.count {
                let count = unsafe payload.withUnsafeBytes {
                    unsafe pwrite(
                        descriptor, $0.baseAddress! + done, payload.count - done, off_t(write.offset) + off_t(done))
                }
                if count < 0, errno == EINTR { continue }
                guard count > 0 else { return -(count < 0 ? errno : ENOSPC) }
                done += count
            }
            return 0
        } ended: { [self] in
            // Not before: until then the bytes are here.
            payloadUsed(payload)
        } _: { [self] in
            if write.offset <= inode.denseBytes, end > inode.denseBytes { inode.denseBytes = end }
            inode.size = max(inode.size, end)
            inode.addBlocks(UInt64(payload.count))
            inode.mtime = presentTime()
            inode.ctime = inode.mtime
            answerWritten(unique, payload.count)
        }
    }

    func setLocally(_ unique: UInt64, _ change: FuseAttributeChange, _ inode: Inode) {
        let now = presentTime()
        let (mask, attributes) = resolve(change, inode, now: now)
        changeLocally(unique, inode, bytes: 0) { descriptor in
            if mask.contains(.size), ftruncate(descriptor, off_t(attributes.size)) < 0 { return -errno }
            return 0
        } _: { [self] in
            // Mode, owner and times of a file without a name are seen through its handles only: memory is enough.
            if mask.contains(.size) {
                inode.size = attributes.size
                inode.denseBytes = min(inode.denseBytes, attributes.size)
            }
            // Only what was asked for: the rest may have changed meanwhile.
            if mask.contains(.mode) { inode.mode = attributes.mode }
            if mask.contains(.uid) { inode.uid = attributes.uid }
            if mask.contains(.gid) { inode.gid = attributes.gid }
            if mask.contains(.atime) { inode.atime = attributes.atime }
            if mask.contains(.mtime) { inode.mtime = attributes.mtime }
            inode.ctime = now
            answerAttributes(unique, inode)
        }
    }

    /// A file without a name can still be executed, through /proc.
    private func dropPrivilegesLocally(_ inode: Inode) {
        guard let mode = withoutPrivileges(inode.mode) else { return }
        inode.mode = mode
        connection?.forgetAttributes(of: inode.file)
    }

    func allocateLocally(_ request: FuseRequest, _ inode: Inode, mode: UInt32, offset: UInt64, length: UInt64) {
        let isPunched = mode & LinuxFlags.allocatePunchHole != 0
        let growth = isPunched ? 0 : Int(clamping: inode.growth(offset, offset + length))
        if request.uid != 0 { dropPrivilegesLocally(inode) }
        changeLocally(request.unique, inode, bytes: growth) { descriptor in
            clinux_fallocate(descriptor, Int32(mode), offset, length)
        } _: { [self] in
            allocatedInMemory(inode, mode: mode, offset: offset, end: offset + length, now: presentTime())
            answer(request.unique, errno: 0)
        }
    }
}
