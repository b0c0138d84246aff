//  Reads that never leave the page cache: on a mirrored directory they should cost what they cost on the plain one.
import CLinux
import Foundation
import Glibc
import Ring
import Synchronization

struct CachedReads: Codable {
    var readers: Int
    var mirroredPerSecond: Double
    var plainPerSecond: Double
    /// 1 = as fast as the plain file system.
    var ratio: Double
    /// The same plain file, written in pieces of 4 KiB.
    var plainSmallPagesPerSecond: Double
    /// Beside that: what the way through the mirrored directory costs. The kernel (Linux 6.18) keeps a FUSE file in pages
    /// of 4 KiB, and a file that ext4 or XFS was given in large writes in large ones, which are found faster.
    var ratioSmallPages: Double

    private static let fileBytes = 32 << 20
    private static let readBytes = 4096
    /// The files take turns, so that a busy moment of the machine meets all: with turns of half a second the
    /// ratio of the same two files came out anywhere from 82 to 92 %. Long beside the open at the beginning of each.
    private static let secondsOfATurn = 0.05

    static func measure(mirrored: String, plain: String, readers: Int, seconds: Double) throws -> CachedReads {
        let here = try WorkFiles(in: mirrored, writers: 1, bytesOfLargestWrite: fileBytes / 4)
        defer { here.remove() }
        let there = try WorkFiles(in: plain, writers: 1, bytesOfLargestWrite: fileBytes / 4)
        defer { there.remove() }
        let small = try WorkFiles(
            in: plain, name: "-small", writers: 1, bytesOfLargestWrite: fileBytes / 4, pieceBytes: readBytes)
        defer { small.remove() }
        let files = [here, there, small]
        for file in files { try readOnce(file.path(0)) }
        var counts = [0, 0, 0]
        var times = [0.0, 0.0, 0.0]
        let turns = max(2, Int((seconds / secondsOfATurn).rounded()))
        for turn in 0..<turns {
            for side in (turn % 2 == 0 ? [0, 1, 2] : [2, 1, 0]) {
                try throwIfInterrupted()
                let begin = nanoseconds()
                counts[side] += try read(files[side].path(0), readers: readers, seconds: secondsOfATurn)
                times[side] += Double(nanoseconds() - begin) / 1e9
            }
        }
        let rates = zip(counts, times).map { Double($0) / $1 }
        return CachedReads(
            readers: readers, mirroredPerSecond: rates[0], plainPerSecond: rates[1], ratio: rates[0] / rates[1],
            plainSmallPagesPerSecond: rates[2], ratioSmallPages: rates[0] / rates[2])
    }

    private static func readOnce(_ path: String) throws {
        let descriptor = unsafe clinux_open(path, O_RDONLY, 0)
        guard descriptor >= 0 else { throw BenchError.system("Cannot open \(path)", -descriptor) }
        defer { _ = clinux_close(descriptor) }
        let buffer = AlignedBuffer(byteCount: 1 << 20)
        for offset in stride(from: 0, to: fileBytes, by: 1 << 20) {
            let count = unsafe clinux_pread(descriptor, buffer.bytes.baseAddress, 1 << 20, UInt64(offset))
            guard count == 1 << 20 else { throw BenchError.system("Cannot read \(path)", Int32(-min(count, 0))) }
        }
    }

    private static func read(_ path: String, readers: Int, seconds: Double) throws -> Int {
        let total = Mutex<(count: Int, failed: Bool)>((0, false))
        let end = nanoseconds() + UInt64(seconds * 1e9)
        DispatchQueue.concurrentPerform(iterations: readers) { _ in
            let count = readUntil(end, path)
            total.withLock { total in
                total.count += count ?? 0
                total.failed = total.failed || count == nil
            }
        }
        let (count, failed) = total.withLock { $0 }
        guard !failed else { throw BenchError("Cannot read \(path).") }
        return count
    }

    private static func readUntil(_ end: UInt64, _ path: String) -> Int? {
        let descriptor = unsafe clinux_open(path, O_RDONLY, 0)
        guard descriptor >= 0 else { return nil }
        defer { _ = clinux_close(descriptor) }
        let buffer = AlignedBuffer(byteCount: readBytes)
        // A cheap sequence of places (xorshift): drawing them must not cost more than reading.
        var random = UInt64(bitPattern: Int64(descriptor)) &+ 0x9e37_79b9_7f4a_7c15
        var count = 0
        while true {
            if count & 63 == 0, nanoseconds() >= end { return count }
            random ^= random << 13
            random ^= random >> 7
            random ^= random << 17
            let place = random % UInt64(fileBytes / readBytes) * UInt64(readBytes)
            guard unsafe clinux_pread(descriptor, buffer.bytes.baseAddress, readBytes, place) == readBytes else {
                return nil
            }
            count += 1
        }
    }
}
