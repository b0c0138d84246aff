internal import CLinux
public import Format
internal import Glibc

/// Where a batch lies, for a reader on another thread. It may be overwritten at any time: the reader finds out.
public struct BatchLocation: Sendable, Hashable {
    public var firstSeq: Seq
    public var lastSeq: Seq
    public var epoch: Epoch
    public var chain: UInt64
    public var previousChain: UInt64
    /// File offset.
    public var position: Int
    /// Bytes on disk.
    public var length: Int

    init(_ entry: IndexEntry, layout: JournalLayout) {
        firstSeq = entry.firstSeq
        lastSeq = entry.lastSeq
        epoch = entry.epoch
        chain = entry.chain
        previousChain = entry.previousChain
        position = layout.fileOffset(entry.address)
        length = Int(entry.length)
    }

    /// Where a batch lies that was found by its header.
    init(_ header: BatchHeader) {
        firstSeq = header.firstSeq
        lastSeq = header.lastSeq
        epoch = header.epoch
        chain = header.chain
        previousChain = header.previousChain
        position = Int(header.position)
        length = header.diskLength
    }
}

extension BatchLocation {
    /// Reads the batch and checks everything: that it still is the one that was asked for, and every checksum in it.
    ///
    /// - Throws: `.gone` when it has been overwritten, `.damaged` when it is still there but does not match its
    ///   checksums.
    public func read(from image: JournalImage) throws(JournalError) -> Batch {
        let pages = Pages(count: length)
        try unsafe image.read(at: position, into: pages.bytes)
        let header = unsafe try? BatchHeader(decoding: pages.constBytes.prefix(BatchHeader.byteCount))
        guard let header, header.chain == chain, header.firstSeq == firstSeq, header.diskLength == length,
            header.position == UInt64(position)
        else {
            throw JournalError(.gone, "journal \(image.name): records \(firstSeq) to \(lastSeq) are no longer there")
        }
        do throws(DecodingError) {
            return try unsafe Batch.decode(header, pages.constBytes)
        } catch {
            // A batch overwritten from its end first would look like this too: look again.
            try unsafe image.read(at: position, into: pages.bytes)
            let again = unsafe try? BatchHeader(decoding: pages.constBytes.prefix(BatchHeader.byteCount))
            guard again == header else {
                throw JournalError(
                    .gone, "journal \(image.name): records \(firstSeq) to \(lastSeq) are no longer there")
            }
            throw JournalError(
                .damaged, "journal \(image.name), offset \(position), records \(firstSeq) to \(lastSeq): \(error)")
        }
    }

    /// As `read`, but gives what can be read of a damaged batch; nil when something else is there.
    public func inspect(in image: JournalImage) -> FoundBatch? {
        var unreadable: [Int] = []
        let pages = image.readPages(at: position, count: length, unreadable: &unreadable)
        guard let header = unsafe try? BatchHeader(decoding: pages.constBytes.prefix(BatchHeader.byteCount)),
            header.chain == chain, header.diskLength == length
        else { return nil }
        return unsafe FoundBatch.read(header, pages.constBytes)
    }
}

extension JournalImage {
    /// The valid batch header at a file offset, if there is one.
    public func header(at position: Int) -> BatchHeader? {
        guard position >= 0, position % JournalLayout.pageBytes == 0, position + JournalLayout.pageBytes <= byteCount
        else { return nil }
        var unreadable: [Int] = []
        let page = readPages(at: position, count: JournalLayout.pageBytes, unreadable: &unreadable)
        guard let header = unsafe try? BatchHeader(decoding: page.constBytes.prefix(BatchHeader.byteCount)),
            header.position == UInt64(position), position + header.diskLength <= byteCount
        else { return nil }
        return header
    }
}

/// What lies at a header found by `JournalMap.everyHeader`.
extension BatchHeader {
    public func inspect(in image: JournalImage) -> FoundBatch {
        var unreadable: [Int] = []
        let pages = image.readPages(at: Int(position), count: diskLength, unreadable: &unreadable)
        return unsafe FoundBatch.read(self, pages.constBytes)
    }
}

/// Reads batches on any thread with a descriptor of its own; takes no lock and never writes.
///
/// The journal goes on while it reads. `Journal.plan` names the places; a batch that was overwritten meanwhile is
/// answered with `.gone`, never with wrong bytes.
public final class JournalReader: JournalImage, Sendable {
    public let name: String
    public let byteCount: Int
    private let descriptor: Int32

    /// - Parameter direct: bypass the page cache (the journal writes past it). False for copies on file systems that
    ///   cannot.
    public init(path: String, direct: Bool = true) throws(JournalError) {
        name = path
        let flags = O_RDONLY | (direct ? CLINUX_O_DIRECT : 0)
        let opened = unsafe clinux_open(path, flags, 0)
        guard opened >= 0 else {
            if opened == -ENOENT { throw JournalError(.notFound, "there is no journal at \(path)") }
            throw JournalError.system(opened, "cannot open journal", path)
        }
        descriptor = opened
        var status = stat()
        guard unsafe fstat(opened, &status) == 0 else {
            let number = errno
            _ = clinux_close(opened)
            throw JournalError.system(number, "cannot look at journal", path)
        }
        byteCount = Int(status.st_size)
    }

    deinit { _ = clinux_close(descriptor) }

    public func read(at offset: Int, into buffer: UnsafeMutableRawBufferPointer) throws(JournalError) {
        try unsafe readFully(descriptor, at: offset, into: buffer, name)
    }

    /// Reads the batches of a plan, in order.
    ///
    /// `.damaged` may also mean that a batch was being overwritten from its end when it was read. The journal forgets a
    /// batch before it overwrites it, so a new `Journal.plan` tells the two apart: a batch that is still in it is damaged.
    public func read(_ plan: [BatchLocation]) throws(JournalError) -> [Batch] {
        var batches: [Batch] = []
        for location in plan { batches.append(try location.read(from: self)) }
        return batches
    }
}

/// Fills `buffer` from `offset`, or throws.
func readFully(
    _ descriptor: Int32, at offset: Int, into buffer: UnsafeMutableRawBufferPointer, _ name: String
) throws(JournalError) {
    var done = 0
    while done < buffer.count {
        let rest = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[done...])
        let result = unsafe clinux_pread(descriptor, rest.baseAddress, rest.count, UInt64(offset + done))
        if result == -Int(EINTR) { continue }
        guard result > 0 else {
            if result == 0 {
                throw JournalError(.wrongSize, "journal \(name) ends before byte \(offset + buffer.count)")
            }
            throw JournalError.system(Int32(result), "cannot read byte \(offset + done) of journal", name)
        }
        done += result
    }
}
