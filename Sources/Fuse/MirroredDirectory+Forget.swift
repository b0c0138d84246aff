public import Format
internal import Glibc
internal import Tree

/// When a plain file was repaired, what is cached of it may still be what was wrong.
extension MirroredDirectory {
    /// Forgets what the kernel and this process hold of a file whose plain file was repaired. Its records are applied.
    ///
    /// The kernel is told on a worker, one file at a time: an invalidation waits for reads of that file that are under
    /// way, those are answered by this thread and by the other workers.
    public func forgetCached(_ file: FileID) {
        guard state == .serving || state == .frozen, connection != nil else { return }
        refreshFromPlainFile(file)
        guard !toInvalidate.contains(file) else { return }
        toInvalidate.append(file)
        invalidateNext()
    }

    private func invalidateNext() {
        guard !isInvalidating, let connection, !toInvalidate.isEmpty else { return }
        isInvalidating = true
        let file = toInvalidate.removeFirst()
        let handle = reactor.handle
        let carried = Carried(self)
        pool.submit {
            // A kernel that knows the epoch of names is told nothing about names here.
            connection.invalidate([file], minor: 0)
            handle.post {
                guard let directory = carried.take() else { return }
                directory.isInvalidating = false
                directory.invalidateNext()
            }
        }
    }

    /// Attributes in memory, unless records of the file are unapplied: then what they say is newer than any repair.
    private func refreshFromPlainFile(_ file: FileID) {
        guard loading[file] == nil, let inode = inodes[file], !inode.isRemoved, !inodes.isDirty(inode) else { return }
        let changes = inode.changes
        work { tree throws(TreeError) in
            try tree.status(of: file)
        } then: { [weak self] result in
            guard let self, case .success(let status) = result, let inode = inodes[file], inode.changes == changes,
                !inodes.isDirty(inode)
            else { return }
            inode.refresh(status, dense: 0)
        }
    }
}
