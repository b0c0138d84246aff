internal import Format
internal import Glibc
internal import Ring
internal import Tree

/// File handles mean something without memory, so that they survive a restart of the daemon: they are the flags of
/// open(2), and the file is the node id that every request carries.
enum FileHandleBits {
    /// Set in every handle, so that none is 0.
    static let mark: UInt64 = 1 << 63
    /// Opened past the page cache.
    static let direct: UInt64 = 1 << 62
}

/// Content: open, read, write, sync, allocate, seek.
extension MirroredDirectory {
    // MARK: Open and release

    func open(_ request: FuseRequest, _ flags: UInt32) {
        let unique = request.unique
        load(request.node) { [self] result in
            switch result {
            case .success(let inode) where state == .serving:
                guard inode.isRegular else { return answer(unique, errno: inode.isDirectory ? EISDIR : ENXIO) }
                // Its removal is logged and nothing keeps it: this open comes after it.
                guard !inode.isRemoved || inode.isHeld else { return answerLate(request) }
                let (handle, openFlags) = opened(inode, flags)
                came(request.pid)
                answer(unique, FuseReply.opened(handle: handle, flags: openFlags))
            case .success: whenServing { [self] in open(request, flags) }
            case .failure(let error) where error.code == ESTALE: answerLate(request)
            case .failure(let error): answer(unique, errno: error.code)
            }
        }
    }

    /// The file has gone since the kernel looked: it looks again and opens what is there now.
    private func answerLate(_ request: FuseRequest) {
        cameLate(request.pid)
        answer(request.unique, errno: ESTALE)
    }

    /// Counts a handle and decides how the kernel treats it.
    ///
    /// A direct handle goes past the page cache and allows parallel writes. Direct and cached handles of one file at one
    /// time do not mix: the kernel drops cached pages before a direct write but not after it, so a page read in between
    /// would stay old. So the first open handle decides: while it is direct, later ones are direct as well; while it is
    /// cached, an O_DIRECT one takes the kernel's slower path, which drops pages before and after.
    ///
    /// A kernel that cannot map files which are open past the page cache (before 6.6) gets none: whoever opened one with
    /// O_DIRECT would take mmap(MAP_SHARED) from all others. Every O_DIRECT handle takes the slower path there.
    func opened(_ inode: Inode, _ flags: UInt32) -> (handle: UInt64, openFlags: UInt32) {
        let canMapDirect = session?.features.contains(.directIOAllowMmap) ?? false
        let wantsDirect = canMapDirect && flags & LinuxFlags.openDirect != 0
        let direct = inode.directHandles > 0 || wantsDirect && inode.cachedHandles == 0
        var handle = FileHandleBits.mark | UInt64(flags)
        var openFlags = FuseOpenFlags.noFlush
        if flags & LinuxFlags.openAccessMode == LinuxFlags.openReadWrite { inode.mappableHandles += 1 }
        if direct {
            inode.directHandles += 1
            handle |= FileHandleBits.direct
            // Without keepCache the kernel drops what earlier handles left in the cache.
            openFlags |= FuseOpenFlags.directIO | FuseOpenFlags.parallelDirectWrites
        } else {
            inode.cachedHandles += 1
            openFlags |= FuseOpenFlags.keepCache
        }
        return (handle, openFlags)
    }

    func release(_ file: FileID, _ handle: UInt64) {
        guard let inode = inodes[file] else { return }
        if handle & FileHandleBits.direct != 0 {
            inode.directHandles = max(0, inode.directHandles - 1)
        } else {
            inode.cachedHandles = max(0, inode.cachedHandles - 1)
        }
        if handle & UInt64(LinuxFlags.openAccessMode) == LinuxFlags.openReadWrite {
            inode.mappableHandles = max(0, inode.mappableHandles - 1)
        }
        if inode.handles == 0, inode.isRemoved { dropRemoved(inode) }
    }

    /// The last handle of a removed file is gone, or its removal is applied and nobody has it open.
    /// - Parameter isWanted: it stays if somebody is expected who may be about to open it.
    func dropRemoved(_ inode: Inode, isWanted: Bool = true) {
        guard inode.isLocal, inode.handles == 0, inodes[inode.file] === inode else { return }
        if isWanted, inode.isHeld, late.isExpecting { return keepForLateOpen(inode) }
        inodes.remove(inode)
        if !inode.isForgotten { gone.insert(FuseAttributes(inode)) }
        guard inode.isHeld else { return }
        inode.isHeld = false
        let file = inode.file
        work { tree throws(TreeError) in
            try tree.releaseHold(file)
        } then: { [logger] result in
            if case .failure(let error) = result {
                logger.warning(
                    "the space of a removed file is not free yet (error \(error.code)); the next start frees it",
                    metadata: ["fuse.file": "\(file)"])
            }
        }
    }

    // MARK: Write

    /// A WRITE just read; its payload lies in the log's memory.
    func writeArrived(_ request: FuseRequest, _ write: FuseWrite, _ place: UnsafeMutableRawBufferPointer) {
        guard let inode = inodes[request.node], !inode.isRemoved, loading[request.node] == nil,
            !takesPrivileges(write, inode)
        else {
            let payload = unsafe savePayload(place, write.length)
            return writeSaved(request, write, payload)
        }
        logWrite(request, write, inode)
    }

    private func takesPrivileges(_ write: FuseWrite, _ inode: Inode) -> Bool {
        write.writeFlags & FuseWriteFlags.killPrivileges != 0 && withoutPrivileges(inode.mode) != nil
    }

    /// A WRITE whose payload had to be saved: its file is not in memory, was removed, or loses privileges, or we were
    /// frozen.
    func writeSaved(_ request: FuseRequest, _ write: FuseWrite, _ payload: [UInt8]) {
        load(request.node) { [self] result in
            switch result {
            case .failure(let error):
                payloadUsed(payload)
                answer(request.unique, errno: error.code)
            case .success where state != .serving:
                whenServing { [self] in writeSaved(request, write, payload) }
            case .success(let inode) where inode.isRemoved:
                waitUntilLocal(inode) { [self] in writeLocally(request.unique, write, payload, inode) }
            case .success(let inode):
                // Before the write, and so before its payload has its place: whatever a power cut leaves, no changed
                // file has them.
                if takesPrivileges(write, inode) {
                    if let errno = log.spaceFor(bytes: 0) {
                        payloadUsed(payload)
                        return answer(request.unique, errno: errno)
                    }
                    _ = dropPrivileges(inode, presentTime())
                }
                guard let place = unsafe log.payloadPlace() else {
                    session?.pause()
                    waitingForRoom.append { [self] in
                        whenServing { [self] in writeSaved(request, write, payload) }
                    }
                    return
                }
                unsafe place.copyBytes(from: payload)
                logWrite(request, write, inode)
                payloadUsed(payload)
            }
        }
    }

    /// Checks and logs a write. The payload lies at the start of the log's last place.
    private func logWrite(_ request: FuseRequest, _ write: FuseWrite, _ inode: Inode) {
        let unique = request.unique
        let end = write.offset + UInt64(write.length)
        guard write.length > 0 else { return answerWritten(unique, 0) }
        guard inode.isRegular else { return answer(unique, errno: EINVAL) }
        guard end <= limits.fileBytes else { return answer(unique, errno: EFBIG) }
        // What is allocated already needs no space; of everything else the whole length is reckoned.
        let growth = end <= inode.denseBytes ? 0 : write.length
        if let errno = log.spaceFor(bytes: growth) { return answer(unique, errno: errno) }
        let now = presentTime()
        // The payload first: another record between place and write would be another use of the log.
        let seq = log.appendWrite(file: inode.file, offset: write.offset, length: write.length, time: now)
        var last = seq
        inode.addPending(seq, write.offset, end)
        if write.offset <= inode.denseBytes, end > inode.denseBytes { inode.denseBytes = end }
        inode.size = max(inode.size, end)
        inode.addBlocks(UInt64(write.length))
        inode.mtime = now
        inode.ctime = now
        touch(inode, seq)
        if inode.mayHaveCapability { last = dropCapability(inode, now) }
        tally.writes += 1
        tally.writtenBytes += UInt64(write.length)
        // libaio and io_uring send no FSYNC after an O_DSYNC write: the flag in the request itself decides.
        let level: AckLevel = write.openFlags & LinuxFlags.openDataSync != 0 ? .sync : .write
        answerWhen(unique, last, level) { [self] in answerWritten(unique, write.length) }
    }

    func answerWritten(_ unique: UInt64, _ count: Int) {
        guard outstanding.remove(unique) != nil else { return }
        connection?.answerWritten(unique, count)
    }

    // MARK: Read

    /// - Parameter waited: everything that was logged when the request came is applied. What came later is concurrent
    ///   with this read, which may show it or not, and is not waited for: a busy range would starve its readers.
    func read(_ unique: UInt64, _ file: FileID, _ offset: UInt64, _ size: Int, waited: Bool = false) {
        if let inode = inodes[file], loading[file] == nil { return read(unique, inode, offset, size, waited) }
        withInode(unique, file) { [self] inode in read(unique, inode, offset, size, waited) }
    }

    private func read(_ unique: UInt64, _ inode: Inode, _ offset: UInt64, _ size: Int, _ waited: Bool) {
        guard inode.isRegular else { return answer(unique, errno: EINVAL) }
        guard offset < inode.size else { return answer(unique, []) }
        let length = Int(min(UInt64(size), inode.size - offset))
        if !waited, let seq = inode.pendingSeq(offset, offset + UInt64(length), applied: inodes.applied) {
            tally.readsDelayed += 1
            let file = inode.file
            log.when(seq, .applied) { [weak self] outcome in
                guard let self else { return }
                switch outcome {
                case .done:
                    inodes.advance(seq)
                    whenServing { [self] in read(unique, file, offset, size, waited: true) }
                case .failed(let errno): answer(unique, errno: errno)
                }
            }
            return
        }
        let space = unsafe UnsafeMutableRawBufferPointer(rebasing: readBuffer[..<length])
        if let count = unsafe tree.readWithoutBlocking(inode.file, at: offset, into: space) {
            tally.readsAtOnce += 1
            // The file may be longer in memory than on disk: what no record has filled yet reads as zeros.
            if count < length { unsafe memset(space.baseAddress! + count, 0, length - count) }
            guard outstanding.remove(unique) != nil else { return }
            unsafe connection?.answer(unique, UnsafeRawBufferPointer(space))
            return
        }
        readByWorker(unique, inode.file, offset, length)
    }

    /// The worker answers the kernel itself: one hop between threads instead of two.
    private func readByWorker(_ unique: UInt64, _ file: FileID, _ offset: UInt64, _ length: Int) {
        guard let connection, outstanding.remove(unique) != nil else { return }
        tally.readsByWorker += 1
        let tree = tree
        let reads = readsByWorker
        reads.insert(unique)
        pool.submit {
            let buffer = AlignedBuffer(byteCount: length)
            do throws(TreeError) {
                // What was never written is zero, and so is fresh memory.
                _ = try unsafe tree.read(file, at: offset, into: buffer.slice(0, length))
                guard reads.take(unique) else { return }
                unsafe connection.answer(unique, UnsafeRawBufferPointer(buffer.slice(0, length)))
            } catch {
                if reads.take(unique) { connection.answer(unique, errno: error.code) }
            }
        }
    }

    // MARK: Sync

    /// FSYNC and FSYNCDIR. A file that is not in memory has everything applied, and what is applied is on every disk.
    func sync(_ unique: UInt64, _ file: FileID) {
        guard let inode = inodes[file], inodes.isDirty(inode), !inode.isLocal else {
            return answer(unique, errno: 0)
        }
        answerWhen(unique, inode.lastSeq, .sync) { [self] in answer(unique, errno: 0) }
    }

    // MARK: Allocate and seek

    func allocate(_ request: FuseRequest, _ offset: UInt64, _ length: UInt64, _ mode: UInt32) {
        let unique = request.unique
        let file = request.node
        let punch = LinuxFlags.allocatePunchHole | LinuxFlags.allocateKeepSize
        let zero = LinuxFlags.allocateZeroRange
        let keep = LinuxFlags.allocateKeepSize
        // COLLAPSE_RANGE, INSERT_RANGE: cannot be redone after a crash. UNSHARE_RANGE: nothing is shared.
        guard [0, keep, punch, zero, zero | keep].contains(mode) else { return answer(unique, errno: EOPNOTSUPP) }
        withInode(unique, file) { [self] inode in
            guard inode.isRegular else { return answer(unique, errno: inode.isDirectory ? EISDIR : ENODEV) }
            let end = offset + length
            guard end <= limits.fileBytes else { return answer(unique, errno: EFBIG) }
            if inode.isRemoved {
                return waitUntilLocal(inode) { [self] in
                    allocateLocally(request, inode, mode: mode, offset: offset, length: length)
                }
            }
            let now = presentTime()
            // The kernel says of a write whether it takes privileges away, and not of this: whoever is not root has no
            // right to keep them. First, as with a write, and with room of its own.
            if request.uid != 0, withoutPrivileges(inode.mode) != nil {
                if let errno = log.spaceFor(bytes: 0) { return answer(unique, errno: errno) }
                _ = dropPrivileges(inode, now)
            }
            if let errno = log.spaceFor(bytes: mode == punch ? 0 : Int(clamping: inode.growth(offset, end))) {
                return answer(unique, errno: errno)
            }
            let seq = log.append(
                .allocate(file: file, mode: mode, offset: offset, length: length), time: now)
            allocatedInMemory(inode, mode: mode, offset: offset, end: end, now: now)
            inode.addPending(seq, offset, end)
            touch(inode, seq)
            var last = seq
            if inode.mayHaveCapability { last = dropCapability(inode, now) }
            answerWhen(unique, last, .write) { [self] in answer(unique, errno: 0) }
        }
    }

    func allocatedInMemory(_ inode: Inode, mode: UInt32, offset: UInt64, end: UInt64, now: Int64) {
        if mode & LinuxFlags.allocateKeepSize == 0 { inode.size = max(inode.size, end) }
        if mode & LinuxFlags.allocatePunchHole != 0 {
            inode.denseBytes = min(inode.denseBytes, offset)
        } else {
            inode.addBlocks(end - offset)
            if offset <= inode.denseBytes { inode.denseBytes = max(inode.denseBytes, end) }
        }
        inode.mtime = now
        inode.ctime = now
    }

    /// SEEK_DATA and SEEK_HOLE, from the plain file once it has everything.
    ///
    /// The kernel asks without writing back what was stored through a mapping: a file that may be mapped for writing is
    /// all data, or a copy of it would lack such stores. The kernel gives a handle back after its mappings are written.
    /// - Parameter waited: everything that was logged when the request came is applied; what came later is not waited for,
    ///   as with `read`.
    func seek(_ unique: UInt64, _ file: FileID, _ offset: UInt64, _ whence: UInt32, waited: Bool = false) {
        guard whence == 3 || whence == 4 else { return answer(unique, errno: EINVAL) }
        withInode(unique, file) { [self] inode in
            guard offset < inode.size else { return answer(unique, errno: ENXIO) }
            guard inode.mappableHandles == 0 else {
                return answer(unique, FuseReply.offset(whence == 4 ? inode.size : offset))
            }
            let isDirty = inodes.isDirty(inode) && !inode.isLocal
            if isDirty, !waited {
                let seq = inode.lastSeq
                log.when(seq, .applied) { [weak self] outcome in
                    guard let self else { return }
                    guard outcome == .done else { return answer(unique, errno: EIO) }
                    inodes.advance(seq)
                    whenServing { [self] in seek(unique, file, offset, whence, waited: true) }
                }
                return
            }
            let size = inode.size
            work { tree throws(TreeError) in
                try tree.seek(file, from: offset, toHole: whence == 4)
            } then: { [weak self] result in
                switch result {
                case .success(let found): self?.answer(unique, FuseReply.offset(found))
                case .failure(let error) where error.code == ENXIO && isDirty:
                    // What is not applied yet may lie there: "data" is never wrong, it is only read.
                    self?.answer(unique, FuseReply.offset(whence == 4 ? size : offset))
                case .failure(let error): self?.answer(unique, errno: error.code)
                }
            }
        }
    }
}
