internal import Format
internal import Glibc
internal import Tree

/// Extended attributes. The file's number is stored in one of ours, which must neither be seen nor copied: `cp -a` and
/// `tar --xattrs` would give one number to two files.
extension MirroredDirectory {
    private enum NameRule {
        static let own = Array("trusted.lockstep.".utf8)
        static let supported = ["user.", "security.", "trusted."].map { Array($0.utf8) }
    }

    /// The errno for a name that is not for the application; nil when it is.
    private func refusal(_ name: FileName, missing: Int32) -> Int32? {
        if name.starts(with: NameRule.own) { return missing }
        // POSIX ACLs (system.posix_acl_*) would have to be enforced and inherited like the mode; they are not offered.
        return NameRule.supported.contains { name.starts(with: $0) && name.count > $0.count } ? nil : EOPNOTSUPP
    }

    private struct XattrState: Sendable {
        var exists: Bool
        /// All others: how many, and their bytes.
        var otherCount: Int
        var otherBytes: Int
    }

    /// Locks the file, waits for its earlier changes, and looks what attributes it has.
    private func beginXattr(
        _ unique: UInt64, _ file: FileID, _ name: FileName, _ body: @escaping (Holding, Inode, XattrState) -> Void
    ) {
        let holding = Holding([file])
        locked(holding.lock) { [self] in
            pin([file], holding) { [self] result in
                guard case .success(let found) = result, let inode = found.first else {
                    answer(unique, errno: ESTALE)
                    return give(back: holding)
                }
                guard !inode.isRemoved else {
                    answer(unique, errno: EOPNOTSUPP)
                    return give(back: holding)
                }
                whenXattrsApplied(unique, inode) { [self] in
                    work { tree throws(TreeError) in
                        var state = XattrState(exists: false, otherCount: 0, otherBytes: 0)
                        for other in try tree.xattrNames(of: file) {
                            if other == name {
                                state.exists = true
                            } else {
                                let value = try tree.xattr(of: file, name: other) ?? []
                                state.otherCount += 1
                                state.otherBytes += RecordLimits.xattrBytes(other, value.count)
                            }
                        }
                        return state
                    } then: { [weak self] result in
                        guard let self else { return }
                        switch result {
                        case .success(let state): whenServing { body(holding, inode, state) }
                        case .failure(let error):
                            answer(unique, errno: error.code)
                            give(back: holding)
                        }
                    }
                }
            }
        }
    }

    private func whenXattrsApplied(_ unique: UInt64, _ inode: Inode, _ body: @escaping () -> Void) {
        guard inode.lastXattrSeq > inodes.applied else { return body() }
        let seq = inode.lastXattrSeq
        log.when(seq, .applied) { [weak self] outcome in
            guard let self else { return }
            switch outcome {
            case .done:
                inodes.advance(seq)
                whenServing(body)
            case .failed(let errno): answer(unique, errno: errno)
            }
        }
    }

    private func finishXattr(_ unique: UInt64, _ seq: Seq, _ holding: Holding) {
        log.when(seq, .applied) { [weak self] outcome in
            guard let self else { return }
            switch outcome {
            case .done:
                inodes.advance(seq)
                whenServing { [self] in
                    answer(unique, errno: 0)
                    give(back: holding)
                }
            case .failed(let errno):
                answer(unique, errno: errno)
                give(back: holding)
            }
        }
    }

    func setXattr(_ unique: UInt64, _ file: FileID, _ name: FileName, _ value: [UInt8], _ flags: UInt32) {
        if let errno = refusal(name, missing: EPERM) { return answer(unique, errno: errno) }
        beginXattr(unique, file, name) { [self] holding, inode, state in
            var errno: Int32?
            if flags & LinuxFlags.xattrCreate != 0, state.exists { errno = EEXIST }
            if flags & LinuxFlags.xattrReplace != 0, !state.exists { errno = ENODATA }
            if state.otherBytes + RecordLimits.xattrBytes(name, value.count) > Int(limits.xattrBytes) { errno = ENOSPC }
            // An image of the file carries no more, so it could never come back to the other room.
            if state.otherCount >= RecordLimits.xattrCount { errno = ENOSPC }
            if let errno = errno ?? log.spaceFor(bytes: value.count) {
                answer(unique, errno: errno)
                return give(back: holding)
            }
            let now = presentTime()
            let seq = log.append(.setXattr(file: file, name: name, value: value), time: now)
            if name == securityCapability { inode.mayHaveCapability = true }
            xattrChanged(inode, seq, now)
            finishXattr(unique, seq, holding)
        }
    }

    func removeXattr(_ unique: UInt64, _ file: FileID, _ name: FileName) {
        if let errno = refusal(name, missing: EPERM) { return answer(unique, errno: errno) }
        beginXattr(unique, file, name) { [self] holding, inode, state in
            guard state.exists else {
                answer(unique, errno: ENODATA)
                return give(back: holding)
            }
            let now = presentTime()
            let seq = log.append(.removeXattr(file: file, name: name), time: now)
            xattrChanged(inode, seq, now)
            finishXattr(unique, seq, holding)
        }
    }

    private func xattrChanged(_ inode: Inode, _ seq: Seq, _ now: Int64) {
        inode.ctime = now
        inode.lastXattrSeq = seq
        touch(inode, seq)
    }

    func getXattr(_ unique: UInt64, _ file: FileID, _ name: FileName, _ size: Int) {
        if let errno = refusal(name, missing: ENODATA) { return answer(unique, errno: errno) }
        readXattrs(unique, file, size) { tree throws(TreeError) in
            guard let value = try tree.xattr(of: file, name: name) else {
                throw TreeError("read the attribute of", "file \(file)", code: ENODATA)
            }
            return value
        }
    }

    func listXattrs(_ unique: UInt64, _ file: FileID, _ size: Int) {
        readXattrs(unique, file, size) { tree throws(TreeError) in
            var list: [UInt8] = []
            for name in try tree.xattrNames(of: file) where !name.starts(with: Array("system.".utf8)) {
                list += name
                list.append(0)
            }
            return list
        }
    }

    private func readXattrs(
        _ unique: UInt64, _ file: FileID, _ size: Int,
        _ call: @escaping @Sendable (PlainTree) throws(TreeError) -> [UInt8]
    ) {
        let step = { [self] in
            work(call) { [weak self] result in
                switch result {
                case .success(let value) where size == 0: self?.answer(unique, FuseReply.size(value.count))
                case .success(let value) where value.count > size: self?.answer(unique, errno: ERANGE)
                case .success(let value): self?.answer(unique, value)
                case .failure(let error): self?.answer(unique, errno: error.code)
                }
            }
        }
        if let inode = inodes[file] { whenXattrsApplied(unique, inode, step) } else { step() }
    }
}
