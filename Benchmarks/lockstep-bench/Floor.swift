//  The floor of a write that must be on two disks: max(local flush, round trip + remote flush).
//
//      this thread                              the other side, a thread behind TCP on loopback
//      ───────────                              ──────────────────────────────────────────────
//      local:   O_DIRECT|O_DSYNC pwrite
//      remote:  send n bytes ────────────────>  receive, O_DIRECT|O_DSYNC pwrite
//               receive an ack <──────────────  send an ack
//
//  Measured with one write in flight: each side alone, and both at once as a mirror must have it (send, local flush, wait
//  for the ack). On two machines the last is the maximum of the first two. Where both sides share a disk, as in a trial on
//  one machine, their flushes wait for each other, and only the last says what any implementation could reach: it is the
//  floor, and the two parts stand beside it. All in turns of a twentieth of a second, and a combination in turns with
//  them: on a shared machine a disk that takes 90 us now can take 900 us a moment later, and both sides of a ratio must
//  have met the same moments. Nothing is shared with the code that is being judged but the system calls.
import CLinux
import Foundation
import Glibc
import Ring
import Synchronization

/// One size's floor. Microseconds, medians.
struct Floor: Codable {
    var bytes: Int
    var localFlushMicroseconds: Double
    var roundTripAndRemoteFlushMicroseconds: Double
    /// Both at once.
    var floorMicroseconds: Double
    var samples: Int
}

/// Measures the floor of one size whenever it is asked, on files that it keeps.
final class FloorMeter {
    private let bytes: Int
    private let near: FlushFile
    private let far: RemoteDisk
    private var all = FloorSamples()
    private static let turnSeconds = 0.05

    init(local: String, remote: String, bytes: Int) throws {
        self.bytes = bytes
        near = try FlushFile(in: local, name: "near", bytes: bytes)
        far = try RemoteDisk(directory: remote, bytes: bytes)
    }

    deinit { far.close() }

    /// At least one turn of each side.
    func sample(seconds: Double) throws -> FloorSamples {
        var samples = FloorSamples()
        let end = nanoseconds() + UInt64(seconds * 1e9)
        repeat {
            try throwIfInterrupted()
            try turn(&samples.local) { try near.flush() }
            try turn(&samples.remote) { try far.flush() }
            try turn(&samples.both) {
                try far.send()
                try near.flush()
                try far.receive()
            }
        } while nanoseconds() < end
        all.add(samples)
        return samples
    }

    /// From everything that was sampled.
    var floor: Floor { all.floor(bytes: bytes) }

    private func turn(_ latencies: inout Latencies, _ work: () throws -> Void) throws {
        let end = nanoseconds() + UInt64(FloorMeter.turnSeconds * 1e9)
        // Not counted: the thread and the disk wake up.
        try work()
        var begin = nanoseconds()
        repeat {
            try work()
            let now = nanoseconds()
            latencies.record(now - begin)
            begin = now
        } while begin < end
    }
}

struct FloorSamples {
    var local = emptyLatencies()
    var remote = emptyLatencies()
    var both = emptyLatencies()

    mutating func add(_ other: FloorSamples) {
        local.add(other.local)
        remote.add(other.remote)
        both.add(other.both)
    }

    func floor(bytes: Int) -> Floor {
        let localMedian = Double(local.valueAtPercentile(50)) / 1e3
        let remoteMedian = Double(remote.valueAtPercentile(50)) / 1e3
        return Floor(
            bytes: bytes, localFlushMicroseconds: localMedian, roundTripAndRemoteFlushMicroseconds: remoteMedian,
            floorMicroseconds: Double(both.valueAtPercentile(50)) / 1e3,
            samples: Int(local.totalCount + remote.totalCount + both.totalCount))
    }
}

/// A file that was written before, and one buffer; each flush overwrites the next place in it. Used by one thread.
final class FlushFile {
    let buffer: AlignedBuffer
    private let bytes: Int
    private let descriptor: Int32
    private let path: String
    private var offset = 0
    private let fileBytes: Int

    init(in directory: String, name: String, bytes: Int) throws {
        self.bytes = bytes
        fileBytes = max(8 << 20, 4 * bytes)
        path = "\(directory)/lockstep-floor-\(getpid())-\(name)"
        buffer = AlignedBuffer(byteCount: bytes)
        unsafe fillWithNoise(buffer.bytes)
        let flags = O_CREAT | O_EXCL | O_WRONLY | CLINUX_O_DIRECT | CLINUX_O_DSYNC
        descriptor = unsafe clinux_open(path, flags, 0o600)
        guard descriptor >= 0 else { throw BenchError.system("Cannot make \(path) with O_DIRECT", -descriptor) }
        // No name, no rest after a crash.
        _ = unsafe unlink(path)
        let block = AlignedBuffer(byteCount: 1 << 20)
        unsafe fillWithNoise(block.bytes)
        for place in stride(from: 0, to: fileBytes, by: 1 << 20) {
            let length = min(1 << 20, fileBytes - place)
            let written = unsafe clinux_pwrite(descriptor, block.bytes.baseAddress, length, UInt64(place))
            guard written == length else { throw BenchError.system("Cannot write \(path)", Int32(-min(written, 0))) }
        }
    }

    deinit { _ = clinux_close(descriptor) }

    func flush() throws { try flush(first: bytes) }

    /// Writes the beginning of the buffer, whole sectors, behind what was written last.
    func flush(first count: Int) throws {
        let written = unsafe clinux_pwrite(descriptor, buffer.bytes.baseAddress, count, UInt64(offset))
        guard written == count else { throw BenchError.system("Cannot write \(path)", Int32(-min(written, 0))) }
        offset += count
        if offset + bytes > fileBytes { offset = 0 }
    }
}

/// The other side: a thread that receives, flushes and acknowledges.
final class RemoteDisk {
    private let descriptor: Int32
    private let buffer: AlignedBuffer
    private let bytes: Int
    private let failure = FailureSlot()

    private final class FailureSlot: Sendable {
        private let error = Mutex<(any Error)?>(nil)
        func put(_ error: any Error) { self.error.withLock { $0 = error } }
        var words: String { error.withLock { $0 }.map { "\($0)" } ?? "The other side closed the connection." }
    }

    init(directory: String, bytes: Int) throws {
        self.bytes = bytes
        buffer = AlignedBuffer(byteCount: bytes)
        unsafe fillWithNoise(buffer.bytes)
        var ends = try loopbackPair()
        descriptor = ends.near
        let far = ends.far
        ends.far = -1
        Thread { [failure] in
            do {
                let file = try FlushFile(in: directory, name: "far", bytes: bytes)
                var acknowledgement: UInt64 = 0
                while try unsafe receiveAll(far, file.buffer.slice(0, bytes)) {
                    try file.flush()
                    acknowledgement += 1
                    try unsafe withUnsafeBytes(of: acknowledgement) { try unsafe sendAll(far, $0) }
                }
            } catch {
                failure.put(error)
            }
            _ = clinux_close(far)
        }.start()
    }

    /// There, on its disk, and back.
    func flush() throws {
        try send()
        try receive()
    }

    func send() throws { try unsafe sendAll(descriptor, UnsafeRawBufferPointer(buffer.slice(0, bytes))) }

    /// Waits for the word that what was sent is on the disk.
    func receive() throws {
        var acknowledgement: UInt64 = 0
        let answered = try unsafe withUnsafeMutableBytes(of: &acknowledgement) {
            try unsafe receiveAll(descriptor, $0)
        }
        guard answered else { throw BenchError(failure.words) }
    }

    func close() { _ = clinux_close(descriptor) }
}

/// Two ends of a TCP connection on loopback, without delayed sending.
func loopbackPair() throws -> (near: Int32, far: Int32) {
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    var length = socklen_t(MemoryLayout<sockaddr_in>.size)
    let listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    guard listener >= 0 else { throw BenchError.system("No socket", errno) }
    defer { _ = clinux_close(listener) }
    let near = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    let connected = unsafe withUnsafeMutablePointer(to: &address) { pointer in
        unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { generic in
            unsafe bind(listener, generic, length) == 0 && listen(listener, 1) == 0
                && getsockname(listener, generic, &length) == 0 && connect(near, generic, length) == 0
        }
    }
    guard connected else { throw BenchError.system("Cannot connect on loopback", errno) }
    let far = accept(listener, nil, nil)
    guard far >= 0 else { throw BenchError.system("Cannot accept on loopback", errno) }
    var on: Int32 = 1
    for descriptor in [near, far] {
        _ = unsafe setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &on, socklen_t(MemoryLayout<Int32>.size))
    }
    return (near, far)
}

func sendAll(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer) throws {
    var sent = 0
    while sent < bytes.count {
        let count = unsafe send(descriptor, bytes.baseAddress! + sent, bytes.count - sent, Int32(MSG_NOSIGNAL))
        if count < 0 && errno == EINTR { continue }
        guard count > 0 else { throw BenchError.system("Sending on loopback failed", errno) }
        sent += count
    }
}

/// False at the end of the connection.
func receiveAll(_ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer) throws -> Bool {
    var received = 0
    while received < bytes.count {
        let count = unsafe recv(descriptor, bytes.baseAddress! + received, bytes.count - received, 0)
        if count < 0 && errno == EINTR { continue }
        guard count >= 0 else { throw BenchError.system("Receiving on loopback failed", errno) }
        if count == 0 { return false }
        received += count
    }
    return true
}
