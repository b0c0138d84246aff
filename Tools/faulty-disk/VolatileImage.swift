import CLinux
import Foundation

/// What is durable, and what would be lost now.
///
/// The image file is mapped privately: the mapping shows the file, and what is written to the mapping is this process's
/// alone. So memory over image needs no merging, and nothing reaches the file but by `flush`.
@safe
final class VolatileImage {
    static let blockBytes = 4096

    let byteCount: Int
    private let descriptor: Int32
    private let memory: UnsafeMutableRawBufferPointer
    /// Blocks that were written since the last flush.
    private var unflushed: Set<Int> = []

    init(path: String) throws {
        descriptor = unsafe clinux_open(path, O_RDWR, 0)
        guard descriptor >= 0 else { throw DiskError("Cannot open the image \(path)", -descriptor) }
        byteCount = lseek(descriptor, 0, SEEK_END)
        guard byteCount > 0, byteCount % VolatileImage.blockBytes == 0 else {
            throw DiskError("The image \(path) has \(byteCount) bytes: it must be whole blocks of 4 KiB.")
        }
        let mapped = unsafe mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, descriptor, 0)
        guard let mapped = unsafe mapped, unsafe mapped != MAP_FAILED else {
            throw DiskError("Cannot map the image \(path)", errno)
        }
        unsafe memory = UnsafeMutableRawBufferPointer(start: mapped, count: byteCount)
    }

    /// The bytes as the disk gives them back, flushed or not; fewer at the end of the disk.
    func bytes(at offset: Int, count: Int) -> UnsafeRawBufferPointer {
        guard offset < byteCount, count > 0 else { return unsafe UnsafeRawBufferPointer(start: nil, count: 0) }
        return unsafe UnsafeRawBufferPointer(rebasing: memory[offset..<min(byteCount, offset + count)])
    }

    /// Takes bytes that a power cut loses. False when they do not lie inside the disk.
    func write(_ bytes: UnsafeRawBufferPointer, at offset: Int) -> Bool {
        guard bytes.count > 0, offset <= byteCount - bytes.count else { return false }
        unsafe UnsafeMutableRawBufferPointer(rebasing: memory[offset..<offset + bytes.count]).copyMemory(from: bytes)
        let last = (offset + bytes.count - 1) / VolatileImage.blockBytes
        for block in offset / VolatileImage.blockBytes...last { unflushed.insert(block) }
        return true
    }

    /// Everything written so far is durable. The image file is not synchronized itself: its machine stays up, and what
    /// has been written to it survives this process.
    func flush() throws {
        try writeOut(unflushed.sorted())
        unflushed.removeAll()
    }

    /// A power cut in which each block that was not flushed had reached the disk or not, by chance. Says how many had.
    func loseSome(seed: UInt64) throws -> String {
        var random = SplitMix(state: seed)
        let survivors = unflushed.sorted().filter { _ in random.next() & 1 == 1 }
        try writeOut(survivors)
        return "\(survivors.count) survive of \(unflushed.count)"
    }

    /// Writes ascending blocks to the image file, neighbours together.
    private func writeOut(_ blocks: [Int]) throws {
        var index = 0
        while index < blocks.count {
            let first = index
            repeat { index += 1 } while index < blocks.count && blocks[index] == blocks[index - 1] + 1
            var offset = blocks[first] * VolatileImage.blockBytes
            let end = (blocks[index - 1] + 1) * VolatileImage.blockBytes
            while offset < end {
                let piece = unsafe UnsafeRawBufferPointer(rebasing: memory[offset..<end])
                let count = unsafe clinux_pwrite(descriptor, piece.baseAddress, piece.count, UInt64(offset))
                guard count > 0 else { throw DiskError("Cannot write to the image", Int32(-count)) }
                offset += count
            }
        }
    }
}

/// A small generator whose numbers are the same everywhere, so that a seed printed is a seed replayed.
private struct SplitMix {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
}
