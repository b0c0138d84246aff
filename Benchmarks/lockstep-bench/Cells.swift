//  One combination measured: so many writers, so many bytes, an engine, a durability.
import CLinux
import Foundation
import Glibc
import Histogram
import Logging
import Ring
import Synchronization

struct Combination: Codable {
    var engine: WriteEngine
    var durability: Durability
    var bytes: Int
    var writers: Int
}

/// Latencies in nanoseconds, up to a minute.
typealias Latencies = Histogram<UInt64>

func emptyLatencies() -> Latencies {
    Histogram(lowestDiscernibleValue: 1, highestTrackableValue: 60_000_000_000, numberOfSignificantValueDigits: .three)
}

/// Files that exist with all their blocks before anything is measured: one for each writer.
struct WorkFiles {
    let directory: String
    let bytesEach: Int
    private static let bytesEachMin = 4 << 20

    /// - Parameter pieceBytes: the files are filled with writes of so many bytes.
    init(
        in parent: String, name: String = "", writers: Int, bytesOfLargestWrite: Int, pieceBytes: Int = 1 << 20
    ) throws {
        directory = "\(parent)/lockstep-bench-\(getpid())\(name)"
        bytesEach = max(WorkFiles.bytesEachMin, 4 * bytesOfLargestWrite)
        guard unsafe mkdir(directory, 0o700) == 0 else { throw BenchError.system("Cannot make \(directory)", errno) }
        do {
            for index in 0..<writers { try prefill(path(index), pieceBytes) }
        } catch {
            remove()
            throw error
        }
    }

    func path(_ index: Int) -> String { "\(directory)/\(index)" }
    func remove() { try? FileManager.default.removeItem(atPath: directory) }

    private func prefill(_ path: String, _ pieceBytes: Int) throws {
        try throwIfInterrupted()
        let descriptor = unsafe clinux_open(path, O_CREAT | O_EXCL | O_WRONLY, 0o600)
        guard descriptor >= 0 else { throw BenchError.system("Cannot make \(path)", -descriptor) }
        defer { _ = clinux_close(descriptor) }
        let buffer = AlignedBuffer(byteCount: pieceBytes)
        unsafe fillWithNoise(buffer.bytes)
        for offset in stride(from: 0, to: bytesEach, by: pieceBytes) {
            let length = min(pieceBytes, bytesEach - offset)
            let written = unsafe clinux_pwrite(descriptor, buffer.bytes.baseAddress, length, UInt64(offset))
            guard written == length else { throw BenchError.system("Cannot write \(path)", Int32(-min(written, 0))) }
        }
        let result = clinux_fsync(descriptor)
        guard result == 0 else { throw BenchError.system("Cannot fsync \(path)", -result) }
    }
}

/// Bytes that no disk or file system can make smaller.
func fillWithNoise(_ bytes: UnsafeMutableRawBufferPointer) {
    // xorshift64*, from a new start each time: gigabytes of it must not cost a system call for each word.
    var state = UInt64.random(in: 1...UInt64.max)
    for offset in stride(from: 0, to: bytes.count - 7, by: 8) {
        state ^= state >> 12
        state ^= state << 25
        state ^= state >> 27
        unsafe bytes.storeBytes(of: state &* 0x2545_F491_4F6C_DD1D, toByteOffset: offset, as: UInt64.self)
    }
}

func nanoseconds() -> UInt64 { BootClock.now }

/// Measures after a warm-up of a tenth of the time. May return nothing when the writes take longer than that.
func measureOnce(_ files: WorkFiles, _ combination: Combination, seconds: Double) throws -> Latencies {
    try throwIfInterrupted()
    let clock = Schedule(seconds: seconds)
    let latencies =
        switch combination.engine {
        case .pwrite: try writeFromThreads(files, combination, clock)
        case .ioUring: try writeInFlight(files, combination, clock, .ioUring)
        case .libaio: try writeInFlight(files, combination, clock, .libaio)
        }
    try throwIfInterrupted()
    return latencies
}

/// When counting begins and when everything ends, on the boot clock.
struct Schedule {
    let counted: UInt64
    let end: UInt64

    init(seconds: Double) {
        counted = nanoseconds() + UInt64(seconds * 0.1e9)
        end = counted + UInt64(seconds * 1e9)
    }
}

// MARK: pwrite and fsync from one thread for each writer

/// What the threads bring back.
private final class Harvest: Sendable {
    private let state = Mutex<(latencies: Latencies, failure: (any Error)?)>((emptyLatencies(), nil))
    func add(_ latencies: Latencies) { state.withLock { $0.latencies.add(latencies) } }
    func fail(_ error: any Error) { state.withLock { $0.failure = $0.failure ?? error } }

    func take() throws -> Latencies {
        let (latencies, failure) = state.withLock { ($0.latencies, $0.failure) }
        if let failure { throw failure }
        return latencies
    }
}

private func writeFromThreads(_ files: WorkFiles, _ combination: Combination, _ clock: Schedule) throws -> Latencies {
    let harvest = Harvest()
    let group = DispatchGroup()
    for index in 0..<combination.writers {
        let path = files.path(index)
        group.enter()
        Thread {
            do {
                harvest.add(try writeAlone(path, files.bytesEach, combination, clock))
            } catch {
                harvest.fail(error)
            }
            group.leave()
        }.start()
    }
    group.wait()
    return try harvest.take()
}

private func writeAlone(
    _ path: String, _ fileBytes: Int, _ combination: Combination, _ clock: Schedule
) throws -> Latencies {
    let descriptor = unsafe clinux_open(path, O_WRONLY, 0)
    guard descriptor >= 0 else { throw BenchError.system("Cannot open \(path)", -descriptor) }
    defer { _ = clinux_close(descriptor) }
    let buffer = AlignedBuffer(byteCount: combination.bytes)
    unsafe fillWithNoise(buffer.bytes)
    var latencies = emptyLatencies()
    var offset = 0
    var begin = nanoseconds()
    while begin < clock.end && !interrupted {
        unsafe buffer.bytes.storeBytes(of: begin, as: UInt64.self)
        let written = unsafe clinux_pwrite(descriptor, buffer.bytes.baseAddress, combination.bytes, UInt64(offset))
        guard written == combination.bytes else {
            throw BenchError.system("Cannot write \(path)", Int32(-min(written, 0)))
        }
        if combination.durability == .fsync {
            let result = clinux_fsync(descriptor)
            guard result == 0 else { throw BenchError.system("Cannot fsync \(path)", -result) }
        }
        let end = nanoseconds()
        if begin >= clock.counted { latencies.record(end - begin) }
        begin = end
        offset = (offset + combination.bytes) % (fileBytes - combination.bytes + 1) / 4096 * 4096
    }
    return latencies
}

// MARK: io_uring and libaio: one thread, one write of each writer in flight

/// Confined to its reactor's thread.
private final class InFlight {
    private let reactor: Reactor
    private let combination: Combination
    private let fileBytes: Int
    private let clock: Schedule
    private var descriptors: [Int32] = []
    private var offsets: [Int] = []
    private let buffer: AlignedBuffer
    private var latencies = emptyLatencies()
    private var running = 0
    private let finished: @Sendable (Result<Latencies, any Error>) -> Void
    private var failure: (any Error)?

    init(
        _ reactor: Reactor, _ files: WorkFiles, _ combination: Combination, _ clock: Schedule,
        finished: @escaping @Sendable (Result<Latencies, any Error>) -> Void
    ) throws {
        self.reactor = reactor
        self.combination = combination
        self.clock = clock
        self.finished = finished
        fileBytes = files.bytesEach
        buffer = AlignedBuffer(byteCount: combination.bytes * combination.writers)
        unsafe fillWithNoise(buffer.bytes)
        for index in 0..<combination.writers {
            let flags = O_WRONLY | CLINUX_O_DIRECT | (combination.durability == .fsync ? CLINUX_O_DSYNC : 0)
            let descriptor = unsafe clinux_open(files.path(index), flags, 0)
            guard descriptor >= 0 else {
                throw BenchError.system("Cannot open \(files.path(index)) with O_DIRECT", -descriptor)
            }
            descriptors.append(descriptor)
            offsets.append(0)
        }
    }

    deinit { for descriptor in descriptors { _ = clinux_close(descriptor) } }

    func start() {
        running = combination.writers
        for writer in 0..<combination.writers { next(writer) }
    }

    private func next(_ writer: Int) {
        let begin = nanoseconds()
        guard begin < clock.end, !interrupted, failure == nil else {
            running -= 1
            if running == 0 { finished(failure.map { .failure($0) } ?? .success(latencies)) }
            return
        }
        let bytes = unsafe buffer.slice(writer * combination.bytes, combination.bytes)
        unsafe bytes.storeBytes(of: begin, as: UInt64.self)
        let offset = offsets[writer]
        offsets[writer] = (offset + combination.bytes) % (fileBytes - combination.bytes + 1) / 4096 * 4096
        unsafe reactor.write(descriptors[writer], UnsafeRawBufferPointer(bytes), at: UInt64(offset)) { [self] result in
            if result == combination.bytes {
                if begin >= clock.counted { latencies.record(nanoseconds() - begin) }
            } else {
                failure = BenchError.system("A direct write failed", max(0, -result))
            }
            next(writer)
        }
    }
}

private func writeInFlight(
    _ files: WorkFiles, _ combination: Combination, _ clock: Schedule, _ engine: EngineChoice
) throws -> Latencies {
    let outcome = Outcome<Latencies>()
    let thread = try ReactorThread(name: "bench-writes", engine: engine, logger: Logger(label: "lockstep-bench")) {
        reactor in
        let writer = try InFlight(reactor, files, combination, clock, finished: outcome.put)
        // From here on the handlers of its writes keep the writer alive.
        reactor.handle.post { [bound = ThreadBound(writer)] in bound.value.start() }
    }
    let result = outcome.take()
    thread.stop()
    thread.join()
    return try result.get()
}

/// The one result, from the reactor's thread to the one that waits.
final class Outcome<Value: Sendable>: Sendable {
    private let value = Mutex<Result<Value, any Error>?>(nil)
    private let arrived = DispatchSemaphore(value: 0)

    func put(_ result: Result<Value, any Error>) {
        value.withLock { $0 = result }
        arrived.signal()
    }

    func take() -> Result<Value, any Error> {
        arrived.wait()
        return value.withLock { $0 } ?? .failure(BenchError("The measurement ended without a result."))
    }
}
