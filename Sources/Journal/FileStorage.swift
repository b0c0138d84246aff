internal import CLinux
public import Format
internal import Glibc
public import Ring

/// A journal in a file or on a block device, `O_DIRECT|O_DSYNC`, locked, written through a reactor.
public final class FileStorage: JournalStorage {
    public let name: String
    public let byteCount: Int
    private let descriptor: Int32
    private let reactor: Reactor
    private var isOpen = true

    /// Opens and locks: a second process (or a second journal in this one) is refused.
    public init(path: String, reactor: Reactor) throws(JournalError) {
        name = path
        self.reactor = reactor
        let opened = unsafe clinux_open(path, O_RDWR | CLINUX_O_DIRECT | CLINUX_O_DSYNC, 0)
        guard opened >= 0 else {
            switch -opened {
            case ENOENT: throw JournalError(.notFound, "there is no journal at \(path). `lockstep init` makes one.")
            case EINVAL:
                throw JournalError(
                    .system(EINVAL),
                    "journal \(path): its file system cannot write past the page cache (O_DIRECT). Put the journal on "
                        + "ext4, xfs or a block device.")
            default: throw JournalError.system(opened, "cannot open journal", path)
            }
        }
        descriptor = opened
        guard clinux_lock_exclusive(opened) >= 0 else {
            _ = clinux_close(opened)
            throw JournalError(
                .locked, "journal \(path) is in use by another process. Is a second lockstepd running for this mirror?")
        }
        let size = lseek(opened, 0, SEEK_END)
        guard size >= 0 else {
            _ = clinux_close(opened)
            throw JournalError.system(errno, "cannot tell the size of journal", path)
        }
        byteCount = size
    }

    deinit { if isOpen { _ = clinux_close(descriptor) } }

    public func read(at offset: Int, into buffer: UnsafeMutableRawBufferPointer) throws(JournalError) {
        try unsafe readFully(descriptor, at: offset, into: buffer, name)
    }

    public func write(_ pieces: [UnsafeRawBufferPointer], at offset: Int, completion: @escaping (Int32) -> Void) {
        let count = unsafe pieces.count
        precondition(isOpen && count > 0 && count <= 4, "a write of \(count) pieces")
        unsafe withUnsafeTemporaryAllocation(of: iovec.self, capacity: count) { vectors in
            for index in 0..<count {
                unsafe vectors.initializeElement(
                    at: index,
                    to: iovec(
                        iov_base: UnsafeMutableRawPointer(mutating: pieces[index].baseAddress),
                        iov_len: pieces[index].count))
            }
            unsafe reactor.write(descriptor, UnsafeBufferPointer(vectors), at: UInt64(offset), completion: completion)
        }
    }

    public func writeNow(_ bytes: UnsafeRawBufferPointer, at offset: Int) throws(JournalError) {
        try unsafe writeFully(descriptor, bytes, at: offset, name)
    }

    public func close() {
        guard isOpen else { return }
        isOpen = false
        _ = clinux_close(descriptor)
    }
}

/// Writes everything or throws.
func writeFully(
    _ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: Int, _ name: String
) throws(JournalError) {
    var done = 0
    while done < bytes.count {
        let rest = unsafe UnsafeRawBufferPointer(rebasing: bytes[done...])
        let result = unsafe clinux_pwrite(descriptor, rest.baseAddress, rest.count, UInt64(offset + done))
        if result == -Int(EINTR) { continue }
        guard result > 0 else {
            throw JournalError.system(Int32(result), "cannot write byte \(offset + done) of journal", name)
        }
        done += result
    }
}

extension Journal {
    /// Opens the journal at `path` on `reactor`'s thread, which must be the calling one.
    ///
    /// - Parameter settles: false: nothing is written until `settle` is called.
    public convenience init(
        path: String, mirror: MirrorID, node: NodeID, reactor: Reactor, settles: Bool = true
    ) throws(JournalError) {
        let storage = try FileStorage(path: path, reactor: reactor)
        do throws(JournalError) {
            try self.init(
                storage: storage, mirror: mirror, node: node, settles: settles, logger: reactor.logger)
        } catch {
            storage.close()
            throw error
        }
    }

    /// Makes a new, empty journal and writes every byte of it once: `O_DSYNC` into blocks that were only reserved would
    /// cost a commit of the file system with every write.
    ///
    /// It is built under another name, so that a creation that was broken off is never taken for a journal.
    ///
    /// - Parameters:
    ///   - size: bytes; a multiple of 1 MiB, at least `JournalLayout.minimumSize`.
    ///   - base: the log begins behind this seq.
    ///   - isIncomplete: the plain files are no state of the mirror yet.
    ///   - isStrict: the mirror begins in mode `strict`.
    ///   - progress: bytes written so far and in all; called about every 4 MiB.
    /// - Throws: `.exists` when something is at `path`.
    public static func create(
        path: String, size: Int = JournalLayout.defaultSize, mirror: MirrorID, node: NodeID, time: Int64,
        base: Seq = .zero, isIncomplete: Bool = false, isStrict: Bool = false, instance: UInt64? = nil,
        progress: ((_ written: Int, _ total: Int) -> Void)? = nil
    ) throws(JournalError) {
        guard let layout = JournalLayout(fileSize: size) else {
            throw JournalError(
                .wrongSize,
                "a journal of \(size) bytes: it needs at least \(JournalLayout.minimumSize >> 20) MiB and whole MiB")
        }
        guard unsafe access(path, F_OK) != 0 else {
            throw JournalError(.exists, "\(path) exists already; a journal is never overwritten")
        }
        var generator = SystemRandomNumberGenerator()
        var superblock = Superblock(
            mirror: mirror, node: node, nodeInstance: instance ?? generator.next(),
            incarnation: Incarnation(random: &generator), layout: layout, createdAt: time)
        superblock.checkpointSeq = base
        superblock.isIncomplete = isIncomplete
        superblock.isStrict = isStrict
        let unfinished = unfinishedPath(path)
        let descriptor = unsafe clinux_open(unfinished, O_RDWR | O_CREAT | O_TRUNC | CLINUX_O_DIRECT, 0o600)
        guard descriptor >= 0 else { throw JournalError.system(descriptor, "cannot create journal", unfinished) }
        defer { _ = clinux_close(descriptor) }
        do throws(JournalError) {
            try fill(descriptor, layout, superblock, unfinished, progress)
            guard unsafe rename(unfinished, path) == 0 else {
                throw JournalError.system(errno, "cannot name journal", path)
            }
        } catch {
            unsafe _ = unlink(unfinished)
            throw error
        }
        try synchronizeDirectory(of: path)
    }

    /// Where a journal is built; a creation that was killed leaves it behind, and the next one begins there anew.
    public static func unfinishedPath(_ path: String) -> String { path + ".unfinished" }

    private static func fill(
        _ descriptor: Int32, _ layout: JournalLayout, _ superblock: Superblock, _ path: String,
        _ progress: ((Int, Int) -> Void)?
    ) throws(JournalError) {
        let chunk = Pages(count: 4 << 20)
        var written = 0
        while written < layout.fileSize {
            let count = min(4 << 20, layout.fileSize - written)
            try unsafe writeFully(
                descriptor, UnsafeRawBufferPointer(rebasing: chunk.constBytes[..<count]), at: written, path)
            written += count
            progress?(written, layout.fileSize)
        }
        for copy in 0..<JournalLayout.superblockCopies {
            let bytes = Pages(superblock.encoded(copy: copy))
            try unsafe writeFully(descriptor, bytes.constBytes, at: layout.superblockOffset(copy), path)
        }
        let result = clinux_fsync(descriptor)
        guard result >= 0 else { throw JournalError.system(result, "cannot sync journal", path) }
    }

    private static func synchronizeDirectory(of path: String) throws(JournalError) {
        let directory = path.lastIndex(of: "/").map { $0 == path.startIndex ? "/" : String(path[..<$0]) } ?? "."
        let descriptor = unsafe clinux_open(directory, O_RDONLY | CLINUX_O_DIRECTORY, 0)
        guard descriptor >= 0 else { throw JournalError.system(descriptor, "cannot open", directory) }
        defer { _ = clinux_close(descriptor) }
        let result = clinux_fsync(descriptor)
        guard result >= 0 else { throw JournalError.system(result, "cannot sync", directory) }
    }
}
