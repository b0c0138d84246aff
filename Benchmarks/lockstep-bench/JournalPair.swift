//  A pair of journals alone: what the write path costs without FUSE, plain files, leases and roles.
//
//      near thread (reactor)                                      far thread (reactor)
//      ─────────────────────                                      ────────────────────
//      writers ─> open batch ──┬─> journal: append ──┐
//                              └─> TCP loopback ─────┼──────────> receive, check, journal: append
//                                                    │                          │ durable
//      reply to the batch's writers when both  <─────┴────────── acknowledgement (durable seq)
//
//  The next batch is what has gathered while the batches in flight were on their way: group commit without a timer.
import CLinux
import Format
import Foundation
import Glibc
import Journal
import Logging
import Ring
import Synchronization

/// What one combination brought.
struct PairResult: Sendable {
    var latencies: Latencies
    /// Batches by the number of their records.
    var batches: [Int: Int]
}

/// Two journals that live as long as this does. Its files are removed by `close`.
final class JournalPair {
    private let directories: [String]
    private let near: ReactorThread
    private let far: ReactorThread
    private let nearSide: ThreadBound<NearSide>

    init(near nearDirectory: String, far farDirectory: String, megabytes: Int, engine: EngineChoice, window: Int) throws
    {
        var generator = SystemRandomNumberGenerator()
        let mirror = MirrorID(random: &generator)
        let names = ["near", "far"]
        let paths = zip([nearDirectory, farDirectory], names).map { "\($0)/lockstep-bench-\(getpid())-\($1)" }
        directories = paths
        let nodes = [NodeID.a, NodeID.b]
        for (path, node) in zip(paths, nodes) {
            guard unsafe mkdir(path, 0o700) == 0 else { throw BenchError.system("Cannot make \(path)", errno) }
            try Journal.create(path: path + "/journal", size: megabytes << 20, mirror: mirror, node: node, time: 0)
        }
        let ends = try loopbackPair()
        for end in [ends.near, ends.far] {
            var bytes: Int32 = 8 << 20
            _ = fcntl(end, F_SETFL, O_NONBLOCK)
            _ = unsafe setsockopt(end, SOL_SOCKET, SO_SNDBUF, &bytes, socklen_t(MemoryLayout<Int32>.size))
            _ = unsafe setsockopt(end, SOL_SOCKET, SO_RCVBUF, &bytes, socklen_t(MemoryLayout<Int32>.size))
        }
        var logger = Logger(label: "lockstep-bench")
        logger.logLevel = .warning
        far = try ReactorThread(name: "bench-far", engine: engine, logger: logger) { reactor in
            let journal = try Journal(path: paths[1] + "/journal", mirror: mirror, node: nodes[1], reactor: reactor)
            FarSide(reactor, journal, ends.far).start()
        }
        let bound = Mutex<ThreadBound<NearSide>?>(nil)
        near = try ReactorThread(name: "bench-near", engine: engine, logger: logger) { reactor in
            let journal = try Journal(path: paths[0] + "/journal", mirror: mirror, node: nodes[0], reactor: reactor)
            let side = NearSide(reactor, journal, ends.near, window: window)
            side.start()
            bound.withLock { $0 = ThreadBound(side) }
        }
        guard let side = bound.withLock({ $0 }) else { throw BenchError("The near side did not start.") }
        nearSide = side
    }

    func close() {
        for thread in [near, far] { thread.stop() }
        for thread in [near, far] { thread.join() }
        for directory in directories { try? FileManager.default.removeItem(atPath: directory) }
    }

    func run(_ combination: Combination, seconds: Double) throws -> PairResult {
        try throwIfInterrupted()
        let outcome = Outcome<PairResult>()
        let clock = Schedule(seconds: seconds)
        near.post { [nearSide] in nearSide.value.run(combination, clock, finished: outcome.put) }
        let result = try outcome.take().get()
        try throwIfInterrupted()
        return result
    }
}

/// Confined to the near reactor's thread.
private final class NearSide {
    private struct Write {
        var writer: Int
        var begin: UInt64
    }
    private struct BatchInFlight {
        var last: Seq
        var writes: [Write]
    }

    private let reactor: Reactor
    private let journal: Journal
    private let descriptor: Int32
    private let window: Int
    private let arena = Arena(bytes: 64 << 20)
    private var watch: Watch?

    private var combination = Combination(engine: .ioUring, durability: .fsync, bytes: 4096, writers: 1)
    private var clock = Schedule(seconds: 0)
    private var source = AlignedBuffer(byteCount: 1 << 20)
    private var waiting: [Write] = []
    private var inFlight: [BatchInFlight] = []
    private var unsent: [Outgoing] = []
    private var remoteDurable = Seq.zero
    private var received: [UInt8] = []
    private var latencies = emptyLatencies()
    private var batches: [Int: Int] = [:]
    private var running = 0
    private var finished: ((Result<PairResult, any Error>) -> Void)?

    init(_ reactor: Reactor, _ journal: Journal, _ descriptor: Int32, window: Int) {
        self.reactor = reactor
        self.journal = journal
        self.descriptor = descriptor
        self.window = window
        unsafe fillWithNoise(source.bytes)
        remoteDurable = journal.durableSeq
    }

    deinit { _ = clinux_close(descriptor) }

    func start() {
        journal.onDurable = { [self] _ in settle() }
        journal.onFailure = { [self] error in fail(error) }
        watch = reactor.watch(descriptor, read: true, write: false) { [self] readiness in
            if readiness.contains(.writable) { send() }
            if readiness != .writable { receive() }
        }
        reactor.beforeSleep { [self] in ship() }
    }

    func run(
        _ combination: Combination, _ clock: Schedule,
        finished: @escaping @Sendable (Result<PairResult, any Error>) -> Void
    ) {
        self.combination = combination
        self.clock = clock
        self.finished = finished
        latencies = emptyLatencies()
        batches = [:]
        running = combination.writers
        for writer in 0..<combination.writers { next(writer) }
    }

    private func fail(_ error: any Error) {
        finished?(.failure(error))
        finished = nil
    }

    private func next(_ writer: Int) {
        let begin = nanoseconds()
        if begin < clock.end, !interrupted {
            waiting.append(Write(writer: writer, begin: begin))
            return
        }
        running -= 1
        if running == 0 {
            finished?(.success(PairResult(latencies: latencies, batches: batches)))
            finished = nil
        }
    }

    // MARK: batches

    /// Closes batches while there is something to write and the window is open.
    private func ship() {
        while !waiting.isEmpty, inFlight.count < window, let batch = closeBatch() {
            do {
                try journal.append(batch)
            } catch {
                return fail(error)
            }
            unsent.append(Outgoing(batch))
            send()
        }
    }

    private func closeBatch() -> Batch? {
        let pages = combination.bytes / Batch.pageBytes
        let count = min(waiting.count, BatchLimits.payloadPages / pages, BatchLimits.records)
        // Header and records of so many writes take less than this.
        let diskBytes = count * combination.bytes + (count * 128 / Batch.pageBytes + 2) * Batch.pageBytes
        guard journal.canAppend(diskBytes) else { return nil }
        var writer = ByteWriter(reserving: 512)
        writer.put(raw: repeatElement(0, count: BatchHeader.byteCount))
        var records: [Record] = []
        var gathered = 0
        let taken = Array(waiting.prefix(count))
        for write in taken {
            guard let place = unsafe arena.peek(combination.bytes, after: gathered) else { break }
            // As the kernel's copy into the batch would; then the one checksum.
            let payload = unsafe UnsafeMutableRawBufferPointer(start: place, count: combination.bytes)
            unsafe payload.copyMemory(from: UnsafeRawBufferPointer(source.slice(0, combination.bytes)))
            unsafe payload.storeBytes(of: write.begin, as: UInt64.self)
            let checksum = unsafe crc32c(UnsafeRawBufferPointer(payload))
            let record = Record(
                time: Int64(write.begin), body: .write(file: FileID(rawValue: UInt64(write.writer) + 1), offset: 0),
                payload: .pages(
                    first: gathered / Batch.pageBytes, length: combination.bytes,
                    checksum: checksum))
            unsafe records.append(record.encode(into: &writer))
            gathered += combination.bytes
        }
        guard !records.isEmpty else { return nil }
        waiting.removeFirst(records.count)
        let batch = Batch(
            records: records, encoded: writer, region: arena.take(gathered), epoch: Epoch(rawValue: 1),
            mirror: journal.mirror, firstSeq: journal.lastSeq.next, previousChain: journal.lastChain,
            committedSeq: journal.committedSeq, closedAt: Int64(nanoseconds()))
        inFlight.append(BatchInFlight(last: batch.lastSeq, writes: Array(taken.prefix(records.count))))
        batches[records.count, default: 0] += 1
        return batch
    }

    /// Answers the writers of every batch that is durable on both sides.
    private func settle() {
        let both = min(journal.durableSeq, remoteDurable)
        let now = nanoseconds()
        while let first = inFlight.first, first.last <= both {
            inFlight.removeFirst()
            for write in first.writes {
                if write.begin >= clock.counted { latencies.record(now - write.begin) }
                next(write.writer)
            }
        }
        journal.noteCommitted(both)
        checkpointWhenHalfFull(journal, both)
    }

    // MARK: the socket

    private func send() {
        while let first = unsent.first {
            let count = first.write(to: descriptor)
            if count < 0 && errno == EAGAIN { break }
            guard count > 0 else { return fail(BenchError.system("Sending a batch failed", errno)) }
            if first.isSent { unsent.removeFirst() }
        }
        watch?.change(read: true, write: !unsent.isEmpty)
    }

    private func receive() {
        var chunk = [UInt8](repeating: 0, count: 4096)
        let count = unsafe recv(descriptor, &chunk, chunk.count, 0)
        if count < 0 && errno == EAGAIN { return }
        guard count > 0 else {
            watch?.cancel()
            return fail(BenchError("The far side closed the connection."))
        }
        received.append(contentsOf: chunk[..<count])
        let whole = received.count / 8 * 8
        guard whole > 0 else { return }
        // Acknowledgements are cumulative: the last one is enough.
        let last = received[(whole - 8)..<whole].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        received.removeFirst(whole)
        remoteDurable = Seq(rawValue: last)
        settle()
    }
}

/// A batch on its way into the socket, from where it lies in memory.
@safe private final class Outgoing {
    private let batch: Batch
    private let header: UnsafeMutableRawBufferPointer
    private var vectors: [iovec]
    private var next = 0

    init(_ batch: Batch) {
        self.batch = batch
        unsafe header = UnsafeMutableRawBufferPointer.allocate(byteCount: BatchHeader.wireByteCount, alignment: 8)
        unsafe header.copyBytes(from: batch.header.wireEncoded())
        unsafe vectors = [iovec(iov_base: header.baseAddress, iov_len: header.count)]
        let pieces = unsafe batch.wirePieces
        for index in unsafe pieces.indices {
            let piece = unsafe pieces[index]
            unsafe vectors.append(
                iovec(iov_base: UnsafeMutableRawPointer(mutating: piece.baseAddress), iov_len: piece.count))
        }
    }

    deinit { unsafe header.deallocate() }

    var isSent: Bool { unsafe next == vectors.count }

    /// Bytes written, or below zero with `errno`.
    func write(to descriptor: Int32) -> Int {
        let count = unsafe vectors.withUnsafeBufferPointer { all in
            // The kernel takes 1024 vectors at most.
            unsafe writev(descriptor, all.baseAddress! + next, Int32(min(1024, all.count - next)))
        }
        var rest = max(0, count)
        while unsafe next < vectors.count, unsafe rest >= vectors[next].iov_len {
            unsafe rest -= vectors[next].iov_len
            next += 1
        }
        if rest > 0 {
            unsafe vectors[next].iov_base += rest
            unsafe vectors[next].iov_len -= rest
        }
        return count
    }
}

/// Confined to the far reactor's thread.
@safe private final class FarSide {
    private let journal: Journal
    private let reactor: Reactor
    private let descriptor: Int32
    private let arena = Arena(bytes: 64 << 20)
    private var watch: Watch?
    private var header: [UInt8] = []
    private var incoming: Batch.Incoming?
    /// What is still to be filled, in order; `filled` bytes of the first are.
    private var places: [UnsafeMutableRawBufferPointer] = unsafe []
    private var filled = 0
    private var metaIsComplete = false

    init(_ reactor: Reactor, _ journal: Journal, _ descriptor: Int32) {
        self.reactor = reactor
        self.journal = journal
        self.descriptor = descriptor
    }

    deinit { _ = clinux_close(descriptor) }

    func start() {
        journal.onDurable = { [self] seq in
            var acknowledgement = seq.rawValue.littleEndian
            // Eight bytes into an empty buffer of megabytes: all or a broken connection.
            _ = unsafe Glibc.send(descriptor, &acknowledgement, 8, Int32(MSG_NOSIGNAL))
            checkpointWhenHalfFull(journal, seq)
        }
        watch = reactor.watch(descriptor, read: true, write: false) { [self] _ in
            do {
                while try receive() {}
            } catch {
                note("far side: \(error)")
                hangUp()
            }
        }
    }

    private func hangUp() {
        watch?.cancel()
        _ = shutdown(descriptor, Int32(SHUT_RDWR))
    }

    /// False when there is nothing more now.
    private func receive() throws -> Bool {
        guard let incoming else {
            var chunk = [UInt8](repeating: 0, count: BatchHeader.wireByteCount - header.count)
            let count = unsafe recv(descriptor, &chunk, chunk.count, 0)
            guard try isProgress(count) else { return false }
            header.append(contentsOf: chunk[..<count])
            if header.count == BatchHeader.wireByteCount { try begin() }
            return true
        }
        if let place = unsafe places.first {
            let count = unsafe recv(descriptor, place.baseAddress! + filled, place.count - filled, 0)
            guard try isProgress(count) else { return false }
            filled += count
            if filled < place.count { return true }
            unsafe places.removeFirst()
            filled = 0
        }
        guard unsafe places.isEmpty else { return true }
        if !metaIsComplete {
            metaIsComplete = true
            unsafe places = try incoming.finishMeta()
            return true
        }
        self.incoming = nil
        metaIsComplete = false
        try journal.append(try incoming.finish(), control: true)
        return true
    }

    private func isProgress(_ count: Int) throws -> Bool {
        if count < 0 && errno == EAGAIN { return false }
        if count == 0 {
            hangUp()
            return false
        }
        guard count > 0 else { throw BenchError.system("Receiving a batch failed", errno) }
        return true
    }

    private func begin() throws {
        let decoded = try BatchHeader(wire: header, mirror: journal.mirror)
        header = []
        let bytes = decoded.payloadPages * Batch.pageBytes
        guard unsafe arena.peek(bytes) != nil else { throw BenchError("The far side has no memory for a batch.") }
        let next = Batch.Incoming(header: decoded, region: bytes > 0 ? arena.take(bytes) : nil)
        incoming = next
        unsafe places = [next.recordBytes]
    }
}

/// Nothing is applied here, so whatever is durable may be forgotten.
private func checkpointWhenHalfFull(_ journal: Journal, _ durable: Seq) {
    guard journal.freeBytes < journal.capacityBytes / 2 else { return }
    journal.checkpoint(min(durable, journal.durableSeq))
}
