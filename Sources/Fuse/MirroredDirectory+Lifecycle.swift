internal import CLinux
internal import Format
internal import Glibc
internal import Mounts
internal import Ring

/// Freezing, stepping down, unmounting.
extension MirroredDirectory {
    /// Files whose cached data the kernel is told to forget at most when the mount goes; the mount itself goes anyway.
    static let invalidationsMax = 4096

    /// The lease is gone: holds every new request, and every answer to a change. Nothing fails, and what was logged
    /// stays logged. Reads are held too, because the other node may serve newer data already.
    public func freeze() {
        guard state == .serving else { return }
        state = .frozen
    }

    /// The lease is back: everything held goes on, in order.
    public func thaw() {
        guard state == .frozen else { return }
        state = .serving
        let work = heldWork
        heldWork = []
        for (index, step) in work.enumerated() {
            // A step may bring the news that it is over again.
            guard state == .serving else {
                if state == .frozen { heldWork = Array(work[index...]) + heldWork }
                break
            }
            step()
        }
        resumeReading()
    }

    /// The other node serves: everything held and everything that comes is answered EIO, at once. The mount stays until
    /// `dismount`, so that nobody falls through to what lies under it.
    public func depose() {
        guard state == .serving || state == .frozen else { return }
        state = .deposed
        abandonAll(errno: EIO)
        // A full log or a full memory must not keep requests in the kernel's queue.
        session?.resume()
    }

    /// Forgets everything under way; answers it with `errno` unless that is nil.
    func abandonAll(errno: Int32?) {
        let open = outstanding
        outstanding = []
        heldWork = []
        heldBytes = 0
        waitingForRoom = []
        late = LateOpens()
        abandonLocalChanges()
        loading = [:]
        // A worker that finds its read answered keeps quiet. One that waits for a disk that hangs would keep the kernel's
        // page locked, and `dismount` waiting for that page.
        let reads = readsByWorker.takeAll()
        if let errno { for unique in reads + open { connection?.answer(unique, errno: errno) } }
    }

    /// Takes the mount away by force: what is cached is invalidated, the mount detached, the connection aborted. After
    /// `depose`, and after the application was killed if that is possible in time. Calls back when done; `onEnd` too.
    public func dismount(_ then: @escaping () -> Void) {
        depose()
        guard let session, let connection else { return then() }
        let regular = inodes.all.lazy.filter { $0.isRegular }.map(\.file)
        let files = Array(regular.prefix(MirroredDirectory.invalidationsMax))
        let minor = session.minor
        let mountPoint = mountPoint
        let handle = reactor.handle
        let carried = Carried<(MirroredDirectory, () -> Void)>((self, then))
        // Not on this thread: an invalidation waits for reads of that file, and those are answered here.
        mountPool.submit {
            connection.invalidate(files, minor: minor)
            MirrorMounts.detach(mountPoint)
            handle.post {
                guard let (directory, then) = carried.take() else { return }
                directory.session?.end("dismounted")
                then()
            }
        }
    }

    /// Unmounts without force, for a planned swap: the kernel writes back what mappings still hold, and those writes are
    /// logged as ever. Fails when somebody still uses the directory, and names them.
    ///
    /// - Parameter then: nil when the mount is gone; everything is logged then, and `ChangeLog.lastSeq` is the last.
    public func drainAndUnmount(_ then: @escaping (FuseMountError?) -> Void) {
        guard state == .serving, session != nil else {
            return then(
                FuseMountError(
                    "unmount", mountPoint, code: 0, remedy: "The directory is not being served at this moment"))
        }
        let mountPoint = mountPoint
        let device = session?.deviceMinor
        let handle = reactor.handle
        let carried = Carried<(MirroredDirectory, (FuseMountError?) -> Void)>((self, then))
        mountPool.submit {
            // What lies below it is never taken away.
            let table = device == nil ? nil : MountTable.current()
            let isSeen = table.map { $0.top(at: mountPoint)?.minor == device } ?? true
            let result = isSeen ? unsafe clinux_unmount(mountPoint, 0, 0) : -EINVAL
            let users = result == -EBUSY ? MirrorMounts.users(of: mountPoint) : []
            handle.post {
                guard let (directory, then) = carried.take() else { return }
                guard result == 0 else {
                    guard isSeen else {
                        return then(
                            FuseMountError(
                                "unmount", mountPoint, code: 0,
                                remedy: "Somebody else has taken it away, or covered it"))
                    }
                    let who = users.isEmpty ? "" : " by " + users.joined(separator: ", ")
                    return then(
                        FuseMountError(
                            "unmount", mountPoint, code: -result,
                            remedy: "It is in use\(who): stop that first"))
                }
                directory.session?.end("unmounted")
                then(nil)
            }
        }
    }
}

extension MirroredDirectory {
    /// Whether the mount is what is seen at its path: `umount -l` takes it away from there without an end of the
    /// connection as long as somebody has a file open, and whatever is opened afterwards is not the mirrored directory.
    /// Asked on another thread, because the table may be long.
    /// - Parameter then: called here, once; with nil when the mount has gone by then.
    public func checkPlace(_ then: @escaping (Bool?) -> Void) {
        guard let device = session?.deviceMinor else { return then(nil) }
        let mountPoint = mountPoint
        let handle = reactor.handle
        let carried = Carried<(MirroredDirectory, (Bool?) -> Void)>((self, then))
        mountPool.submit {
            // Not known is not gone.
            let isSeen = MountTable.current()?.mounts(at: mountPoint).contains { $0.minor == device } ?? true
            handle.post {
                guard let (directory, then) = carried.take() else { return }
                then(directory.session == nil ? nil : isSeen)
            }
        }
    }
}

extension FuseConnection {
    /// Tells the kernel to forget what it has cached: names everywhere, and data and attributes of `files`.
    ///
    /// Not on the data thread: it waits for requests that are being answered there.
    func invalidate(_ files: [FileID], minor: UInt32) {
        if minor >= FuseNotification.incrementEpochMinor { _ = notify(FuseNotification.incrementEpoch, []) }
        for file in files { invalidate(file, from: 0) }
    }

    /// Makes the kernel ask for the mode before it executes a file: it goes by the one that it knows, however much of the
    /// file was written since. Before the change is answered: who waits for that keeps the kernel's inode, so that this
    /// waits for nothing, and may be called on the data thread.
    func forgetAttributes(of file: FileID) { invalidate(file, from: -1) }

    /// - Parameter offset: below zero, data stays cached.
    private func invalidate(_ file: FileID, from offset: Int64) {
        var body = ByteWriter(reserving: 24)
        body.put(file)
        body.put(offset)
        body.put(Int64(0))
        _ = notify(FuseNotification.invalidateInode, body.bytes)
    }
}
