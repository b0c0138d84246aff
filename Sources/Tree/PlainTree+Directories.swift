internal import CLinux
public import Format
internal import Glibc

/// What a directory has no room for although the disk has. It must be found before a record is logged: applied, it would
/// fail in both rooms, and no space that is made helps.
extension PlainTree {
    /// Whether a directory is sure to take one more name. As its plain files are now: the caller holds it still.
    ///
    /// - Parameter limit: `FileLimits.directoryBytes`.
    /// - Throws: ENOSPC: it has grown to where ext4's index may be full. EOVERFLOW: btrfs keeps names of one hash in one
    ///   leaf, which is full (nobody meets that who does not look for it).
    public func checkRoom(for name: FileName, in parent: FileID, limit: UInt64) throws(TreeError) {
        try withDirectory(parent) { (directory) throws(TreeError) in
            let status = try System.stat(directory)
            // XFS packs names closely and btrfs counts their letters twice; ext4's blocks are half empty after it split them.
            guard status.size <= (fileSystemType == "ext4" ? limit : limit / 4) else {
                let error = TreeError(
                    "add a name to", path(of: directory), code: ENOSPC,
                    remedy: "The directory has grown to \(status.size) bytes, and ext4 may not be able to index more. "
                        + "Spread its files over several directories; removing some does not make it smaller")
                // The application hears of a disk without room, and whoever looks finds some.
                if isNews(of: error.subject) { logger.error("\(error)") }
                throw error
            }
            if fileSystemType == "btrfs" { try checkLeaf(for: name, of: directory, inode: status.inode) }
        }
    }

    private func checkLeaf(for name: FileName, of directory: Int32, inode: UInt64) throws(TreeError) {
        // As the kernel hashes names: from ~1, and not inverted at the end.
        let hash = unsafe name.withUnsafeBytes { unsafe ~clinux_crc32c(1, $0.baseAddress, $0.count) }
        var free = UInt64.max
        try System.check(
            unsafe clinux_btrfs_free_for_names(directory, inode, hash, &free), "look for names like", shown(name))
        guard free < UInt64(name.count) else { return }
        throw TreeError(
            "add a name to", path(of: directory), code: EOVERFLOW,
            remedy: "btrfs has too many names there that it cannot tell from \(shown(name)) by their hash")
    }
}
