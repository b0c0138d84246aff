internal import CLinux
internal import Format
internal import Glibc

// A disk gets over a block that it has lost when it is written anew. But a write of a part of a block reads the rest of
// it first, and so meets the fault that it is to mend. The last block of a file is hardly ever written in any other way.
// Where everything of the block that belongs to the file is at hand, the block is given back to the file system first:
// a hole is not read.

extension PlainTree {
    /// Writes `bytes`, also into blocks that the disk cannot read, as far as `covers` says that all of a block that
    /// belongs to the file is written anew: by these bytes, or by others after them.
    ///
    /// A crash between giving a block back and writing it leaves a hole. So the bytes must be such as come again then:
    /// those of a record above the checkpoint.
    ///
    /// - Returns: the error of blocks that are not covered, and are what they were; nil: all is written.
    func writeMending(
        _ fd: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64, covers: (Range<UInt64>) -> Bool
    ) throws(TreeError) -> TreeError? {
        do throws(TreeError) {
            try unsafe System.write(fd, bytes, at: offset)
            return nil
        } catch {
            guard error.code == EIO else { throw error }
        }
        // Which block it was, nobody says. Those that can be written are not given back.
        let block = try System.fileSystem(fd).block_size
        let end = offset + UInt64(bytes.count)
        let size = max(end, try System.stat(fd).size)
        var left: TreeError?
        var position = offset
        while position < end {
            let start = position / block * block
            let stop = min(end, start + block)
            let place = Int(position - offset)..<Int(stop - offset)
            let part = unsafe UnsafeRawBufferPointer(rebasing: bytes[place])
            do throws(TreeError) { try unsafe System.write(fd, part, at: position) } catch {
                guard error.code == EIO else { throw error }
                if covers(start..<min(start + block, size)) {
                    // Whole, beyond the end of the file too: the part behind a hole would be zeroed, and read for it.
                    let mode = CLINUX_FALLOC_PUNCH_HOLE | CLINUX_FALLOC_KEEP_SIZE
                    try System.check(
                        clinux_fallocate(fd, mode, start, block), "give back", "the unreadable block at \(start)")
                    try unsafe System.write(fd, part, at: position)
                } else if left == nil {
                    left = error
                }
            }
            position = stop
        }
        return left
    }

    /// A repair that meets a fault it cannot mend has changed nothing there, and the file is as wrong as before: no
    /// reason to give the mirror up. The files are compared after it, and then it is said that it was not repaired.
    func reportUnmended(_ file: FileID, _ error: TreeError) {
        logger.warning(
            "a repair met a block that cannot be read", metadata: ["tree.file": "\(file)", "tree.error": "\(error)"])
    }
}
