internal import CLinux
internal import Format
internal import Glibc
internal import Ring

extension PlainTree {
    /// A block in our own directory that means nothing: who waits for the disk of the plain files finds out with it
    /// whether that disk still answers.
    static let questionName: FileName = Array("question".utf8)
    private static let questionBytes = 4096

    /// Writes that block and reads it, past every cache. Returns when the disk has answered, whatever it said: errors are
    /// found by those who use the files. Where a write hangs, or the file system was frozen, it does not return.
    ///
    /// The block is there since the tree was opened: to write it again needs no room, and waits for no other file's data.
    ///
    /// - Returns: whether it answered without an error.
    @discardableResult
    public func askDisk() -> Bool {
        guard let own = try? PlainTree.directory(PlainTree.ownName, in: root.rawValue, creating: false) else {
            return false
        }
        let flags = O_RDWR | CLINUX_O_DIRECT | CLINUX_O_DSYNC
        let present = try? System.openIfPresent(own.rawValue, PlainTree.questionName, flags)
        guard let file = present ?? (try? System.open(own.rawValue, PlainTree.questionName, flags | O_CREAT)) else {
            return false
        }
        let block = AlignedBuffer(byteCount: PlainTree.questionBytes)
        let space = unsafe block.slice(0, PlainTree.questionBytes)
        guard unsafe clinux_pwrite(file.rawValue, space.baseAddress!, space.count, 0) == space.count else {
            return false
        }
        return unsafe clinux_pread(file.rawValue, space.baseAddress!, space.count, 0) == space.count
    }
}
