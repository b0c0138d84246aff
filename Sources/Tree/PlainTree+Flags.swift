internal import CLinux
internal import Format
internal import Glibc
internal import Ring

/// What flags of an inode (`lsattr`, `chattr`) say that keeps a plain file from being mirrored: changes that the mirrored
/// directory takes would fail here, and stop the node.
enum Obstacle {
    /// Append-only or immutable.
    case locked
    /// Sealed with fs-verity.
    case sealed
    /// A regular file of ext4 that is kept as in ext3: `fallocate` refuses it.
    case withoutExtents
    /// Hands a project down: nothing of another project is moved there, and all that is mirrored is made elsewhere.
    case project
    /// Does not tell capital letters from small ones.
    case casefolded
    /// Encrypted with fscrypt: nothing is moved there that was made outside.
    case encrypted

    init?(flags: UInt32, isDirectory: Bool, isExt4: Bool) {
        func has(_ flag: UInt32) -> Bool { flags & flag != 0 }
        if has(CLINUX_INODE_APPEND | CLINUX_INODE_IMMUTABLE) {
            self = .locked
        } else if has(CLINUX_INODE_VERITY) {
            self = .sealed
        } else if isExt4, !isDirectory, !has(CLINUX_INODE_EXTENTS | CLINUX_INODE_INLINE_DATA) {
            self = .withoutExtents
        } else if isDirectory, has(CLINUX_INODE_PROJECT_INHERIT) {
            self = .project
        } else if isDirectory, has(CLINUX_INODE_CASEFOLD) {
            self = .casefolded
        } else if isDirectory, has(CLINUX_INODE_ENCRYPTED) {
            self = .encrypted
        } else {
            return nil
        }
    }

    /// Before the path of what it was found on.
    var title: String {
        switch self {
        case .locked: "the append-only or immutable"
        case .sealed: "the sealed (fs-verity)"
        case .withoutExtents: "the file without extents"
        case .project: "the directory with an inherited project"
        case .casefolded: "the casefolded"
        case .encrypted: "the encrypted (fscrypt)"
        }
    }

    func refusal(of path: String) -> TreeError {
        TreeError("mirror \(title)", path, code: EOPNOTSUPP, remedy: remedy)
    }

    var remedy: String {
        let copying = "(cp -a FILE COPY, then mv COPY FILE)"
        let moving = "Copy what is in it to an ordinary directory"
        return switch self {
        case .locked: "`lsattr -R DIRECTORY` shows such flags (a, i), `chattr -R -ia DIRECTORY` takes them away"
        case .sealed: "It can never be written. Replace it by a copy \(copying)"
        case .withoutExtents:
            "ext4 allocates nothing for it (fallocate). `lsattr -R DIRECTORY` shows no e for such files: before they are "
                + "adopted, replace each by a copy \(copying); later, `chattr +e FILE` converts it"
        case .project:
            "What is moved into it must have its project. `lsattr -R DIRECTORY` shows the flag (P), "
                + "`chattr -R -P DIRECTORY` takes it away"
        case .casefolded: "The other room tells capital letters from small ones. \(moving) (`lsattr` shows no F)"
        case .encrypted: "What is moved into it must be encrypted already. \(moving), and encrypt the disk below (LUKS)"
        }
    }
}

extension PlainTree {
    /// - Parameter fd: may be O_PATH.
    func obstacle(_ fd: Int32) throws(TreeError) -> Obstacle? {
        let type = try System.stat(fd).mode & S_IFMT
        guard type == S_IFREG || type == S_IFDIR else { return nil }
        var flags = try System.inodeFlags(fd)
        // Where the whole tree is encrypted, our own directory is too, and what is made there may be moved about.
        if flags & CLINUX_INODE_ENCRYPTED != 0, try System.inodeFlags(staging.rawValue) & CLINUX_INODE_ENCRYPTED != 0 {
            flags &= ~CLINUX_INODE_ENCRYPTED
        }
        return Obstacle(flags: flags, isDirectory: type == S_IFDIR, isExt4: fileSystemType == "ext4")
    }

    /// Before our own directory is made in it, which it may refuse, or hand something down to.
    static func checkRoot(_ fd: Int32, path: String) throws(TreeError) {
        let flags = try System.inodeFlags(fd) & ~CLINUX_INODE_ENCRYPTED
        guard let obstacle = Obstacle(flags: flags, isDirectory: true, isExt4: false) else { return }
        throw obstacle.refusal(of: path)
    }

    /// Whether what is made on ext4 has extents: a tree that is empty yet does not show it.
    static func checkExtents(_ own: Int32, path: String) throws(TreeError) {
        let file = try System.open(own, Array(".".utf8), O_RDWR | CLINUX_O_TMPFILE)
        let flags = try System.inodeFlags(file.rawValue)
        guard Obstacle(flags: flags, isDirectory: false, isExt4: true) == .withoutExtents else { return }
        throw TreeError(
            "use the ext4 file system without extents of", path, code: EOPNOTSUPP,
            remedy: "It allocates nothing (fallocate): umount it and run tune2fs -O extent on the disk, or make a new "
                + "file system with mkfs.ext4")
    }

    /// Says what stands in the way if a flag of one of these files does: somebody has set it since they were adopted.
    func explained(_ error: TreeError, _ files: some Sequence<FileID>) -> TreeError {
        guard [EPERM, EOPNOTSUPP, EXDEV].contains(error.code) else { return error }
        for file in files {
            guard let fd = (try? referenceIfKnown(to: file)) ?? nil, let obstacle = (try? obstacle(fd.rawValue)) ?? nil
            else { continue }
            return TreeError(
                error.operation, "\(obstacle.title) \(path(of: fd.rawValue))", code: error.code,
                remedy: obstacle.remedy + ". Then restart Lockstep on this node")
        }
        return error
    }
}
