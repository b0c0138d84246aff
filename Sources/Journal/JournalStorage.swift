internal import Glibc

/// What a journal is read from: a file, a copy of one, or a fake.
public protocol JournalImage: AnyObject {
    /// Size in bytes.
    var byteCount: Int { get }
    /// For messages.
    var name: String { get }
    /// Fills `buffer` (whole pages) from `offset` (whole pages); blocks.
    func read(at offset: Int, into buffer: UnsafeMutableRawBufferPointer) throws(JournalError)
}

/// What a journal lives on: the seam to the kernel. Each write, when it is complete, is on stable storage.
public protocol JournalStorage: JournalImage {
    /// Starts a write of whole pages. The pieces' memory must live until `completion`, which is called on the journal's
    /// thread with the number of bytes or a negated errno, in any order among writes.
    func write(_ pieces: [UnsafeRawBufferPointer], at offset: Int, completion: @escaping (Int32) -> Void)
    /// Writes whole pages and waits until they are on stable storage: only at start, before anything is served.
    func writeNow(_ bytes: UnsafeRawBufferPointer, at offset: Int) throws(JournalError)
    /// Gives up the file and its lock. No write may be in flight.
    func close()
}

/// Page-aligned memory of whole pages, zeroed; shared by reference with the writes in flight.
@safe final class Pages {
    nonisolated(unsafe) let bytes: UnsafeMutableRawBufferPointer
    var constBytes: UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(bytes) }

    init(count: Int) {
        precondition(count > 0 && count % JournalLayout.pageBytes == 0, "whole pages")
        var pointer: UnsafeMutableRawPointer?
        let status = unsafe posix_memalign(&pointer, JournalLayout.pageBytes, count)
        guard status == 0, let pointer = unsafe pointer else { fatalError("no memory for \(count) bytes") }
        unsafe memset(pointer, 0, count)
        unsafe bytes = UnsafeMutableRawBufferPointer(start: pointer, count: count)
    }

    convenience init(_ contents: [UInt8]) {
        self.init(count: contents.count)
        unsafe bytes.copyBytes(from: contents)
    }

    deinit { unsafe free(bytes.baseAddress) }
}

extension JournalImage {
    /// Reads whole pages; a page that cannot be read comes back as zeros, and its offset in `unreadable`.
    func readPages(at offset: Int, count: Int, unreadable: inout [Int]) -> Pages {
        let pages = Pages(count: count)
        do {
            try unsafe read(at: offset, into: pages.bytes)
            return pages
        } catch {
            // Page by page: everything around a bad sector can still be read.
            for start in stride(from: 0, to: count, by: JournalLayout.pageBytes) {
                let page = unsafe UnsafeMutableRawBufferPointer(
                    rebasing: pages.bytes[start..<start + JournalLayout.pageBytes])
                do {
                    try unsafe read(at: offset + start, into: page)
                } catch {
                    unsafe page.initializeMemory(as: UInt8.self, repeating: 0)
                    unreadable.append(offset + start)
                }
            }
            return pages
        }
    }
}
