import Glibc

/// Page-aligned memory of whole pages, zeroed, fit for `O_DIRECT`; given back when it goes away.
///
/// Pages that were never touched cost nothing.
@safe
public struct AlignedBuffer: ~Copyable, @unchecked Sendable {
    // Sendable because it is the only owner of its memory.

    /// All of it. Valid as long as this value lives.
    @unsafe public let bytes: UnsafeMutableRawBufferPointer

    /// The unit that sizes are rounded up to, in bytes.
    public static let pageBytes = 4096

    public var count: Int { unsafe bytes.count }

    /// - Parameter byteCount: at least 1; rounded up to whole pages.
    public init(byteCount: Int) {
        precondition(byteCount > 0 && byteCount < 1 << 46, "buffer of \(byteCount) bytes")
        let size = (byteCount + AlignedBuffer.pageBytes - 1) / AlignedBuffer.pageBytes * AlignedBuffer.pageBytes
        let start = unsafe mmap(nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        guard let start = unsafe start, unsafe start != MAP_FAILED else {
            fatalError("out of memory: cannot map a buffer of \(size) bytes. Give the machine or the process more.")
        }
        unsafe bytes = UnsafeMutableRawBufferPointer(start: start, count: size)
    }

    /// The bytes from `offset` on, `count` of them; checked.
    @unsafe
    public func slice(_ offset: Int, _ count: Int) -> UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<offset + count])
    }

    /// Gives the physical memory back to the system and keeps the addresses; the bytes read as zero afterwards.
    public func discardContents() {
        _ = unsafe madvise(bytes.baseAddress, bytes.count, MADV_DONTNEED)
    }

    deinit { _ = unsafe munmap(bytes.baseAddress, bytes.count) }
}
