import CLinux
import Glibc
import Logging
import Synchronization
import Testing

@testable import Ring

let quiet = Logger(label: "ring.tests") { _ in SwiftLogNoOpLogHandler() }
let engines: [EngineChoice] = [.ioUring, .libaio]

/// Runs a reactor on the calling thread until something stops it.
func withReactor(_ engine: EngineChoice, _ body: (Reactor) throws -> Void) throws {
    let reactor = try Reactor(engine: engine, logger: quiet)
    try body(reactor)
    reactor.after(milliseconds: 10_000) {
        Issue.record("the reactor did not stop in time")
        reactor.stop()
    }
    reactor.run()
}

/// An unnamed file, opened with `O_DIRECT` and read-write.
func scratchFile(direct: Bool = true) throws -> FileDescriptor {
    let path = "/var/tmp/lockstep-ring-\(getpid())-\(UInt64.random(in: 0...UInt64.max))"
    let file = try FileDescriptor.open(path, flags: O_RDWR | O_CREAT | (direct ? CLINUX_O_DIRECT : 0))
    unlink(path)
    return file
}

/// A non-blocking pipe.
func makePipe() -> (read: Int32, write: Int32) {
    var ends: [Int32] = [-1, -1]
    precondition(pipe(&ends) == 0)
    for end in ends { _ = fcntl(end, F_SETFL, O_NONBLOCK) }
    return (ends[0], ends[1])
}

func put(_ text: String, _ descriptor: Int32) { _ = Glibc.write(descriptor, text, text.utf8.count) }

func get(_ descriptor: Int32) -> String? {
    var room = [UInt8](repeating: 0, count: 256)
    let count = Glibc.read(descriptor, &room, room.count)
    return count > 0 ? String(decoding: room[..<count], as: UTF8.self) : nil
}

@Suite struct DiskRequests {
    @Test(arguments: engines)
    func whatIsWrittenDirectIsReadBack(engine: EngineChoice) throws {
        let file = try scratchFile()
        let fd = file.rawValue
        let written = AlignedBuffer(byteCount: 8192)
        let back = AlignedBuffer(byteCount: 8192)
        for index in 0..<8192 { written.bytes[index] = UInt8(truncatingIfNeeded: index / 7) }
        let (source, room) = (written.bytes, back.bytes)
        var results: [Int32] = []
        try withReactor(engine) { reactor in
            #expect(reactor.engineName == engine.rawValue)
            reactor.write(fd, UnsafeRawBufferPointer(source), at: 4096) { result in
                results.append(result)
                reactor.synchronize(fd, dataOnly: true) { result in
                    results.append(result)
                    reactor.read(fd, into: room, at: 4096) { result in
                        results.append(result)
                        reactor.stop()
                    }
                }
            }
            #expect(results.isEmpty, "a completion never runs inside the call that started the request")
        }
        #expect(results == [8192, 0, 8192])
        #expect(memcmp(source.baseAddress!, room.baseAddress!, 8192) == 0)
    }

    @Test(arguments: engines)
    func manyRequestsInFlightEachGetTheirOwnAnswer(engine: EngineChoice) throws {
        let file = try scratchFile()
        let fd = file.rawValue
        let memory = AlignedBuffer(byteCount: 4096 * 64)
        let bytes = memory.bytes
        var order: [Int] = []
        try withReactor(engine) { reactor in
            var left = 200
            for index in 0..<200 {
                let pages = index % 16 + 1
                // Two pieces; the array of vectors is gone when the call returns.
                let vectors = [
                    iovec(iov_base: bytes.baseAddress! + 4096 * (index % 8), iov_len: 4096),
                    iovec(iov_base: bytes.baseAddress! + 4096 * 32, iov_len: 4096 * pages),
                ]
                vectors.withUnsafeBufferPointer { pieces in
                    reactor.write(fd, pieces, at: UInt64(index) * 128 * 1024) { result in
                        #expect(Int(result) == 4096 * (pages + 1))
                        order.append(index)
                        left -= 1
                        if left == 0 { reactor.stop() }
                    }
                }
            }
            #expect(reactor.operationsInFlight == 200)
        }
        #expect(Set(order) == Set(0..<200))
    }

    @Test func aLaterRequestMayFinishFirst() throws {
        let file = try scratchFile()
        let fd = file.rawValue
        let memory = AlignedBuffer(byteCount: 8192)
        let (bytes, room) = (memory.slice(0, 4096), memory.slice(4096, 4096))
        var ends: [Int32] = [-1, -1]
        #expect(pipe(&ends) == 0)
        let (readEnd, writeEnd) = (ends[0], ends[1])
        var order: [String] = []
        try withReactor(.ioUring) { reactor in
            // The read of an empty pipe waits for what the write's completion does.
            reactor.read(readEnd, into: room, at: 0) { result in
                order.append("pipe \(result)")
                reactor.stop()
            }
            reactor.write(fd, UnsafeRawBufferPointer(bytes), at: 0) { result in
                order.append("disk \(result)")
                put("x", writeEnd)
            }
        }
        #expect(order == ["disk 4096", "pipe 1"])
        close(readEnd)
        close(writeEnd)
    }

    @Test(arguments: engines)
    func refusedRequestsAnswerWithTheirErrorAndHurtNobodyElse(engine: EngineChoice) throws {
        let file = try scratchFile()
        let fd = file.rawValue
        let memory = AlignedBuffer(byteCount: 8192)
        let bytes = memory.bytes
        var results: [String: Int32] = [:]
        try withReactor(engine) { reactor in
            func note(_ name: String) -> (Int32) -> Void {
                { result in
                    results[name] = result
                    if results.count == 3 { reactor.stop() }
                }
            }
            reactor.write(fd, UnsafeRawBufferPointer(rebasing: bytes[1..<513]), at: 7, completion: note("misaligned"))
            reactor.write(99_999, UnsafeRawBufferPointer(bytes), at: 0, completion: note("closed"))
            reactor.write(fd, UnsafeRawBufferPointer(bytes), at: 0, completion: note("good"))
        }
        #expect(results == ["misaligned": -EINVAL, "closed": -EBADF, "good": 8192])
    }

    @Test(arguments: engines)
    func requestsBeyondTheLimitAreRefused(engine: EngineChoice) throws {
        let file = try scratchFile()
        let fd = file.rawValue
        let memory = AlignedBuffer(byteCount: 4096)
        let bytes = memory.bytes
        var (done, refused) = (0, 0)
        try withReactor(engine) { reactor in
            for _ in 0..<Reactor.operationLimit + 5 {
                reactor.write(fd, UnsafeRawBufferPointer(bytes), at: 0) { result in
                    if result == 4096 { done += 1 } else if result == -EBUSY { refused += 1 }
                    if done + refused == Reactor.operationLimit + 5 { reactor.stop() }
                }
            }
        }
        #expect(done == Reactor.operationLimit)
        #expect(refused == 5)
    }

    @Test(arguments: engines)
    func aStoppingReactorWaitsForItsRequests(engine: EngineChoice) throws {
        let file = try scratchFile()
        let fd = file.rawValue
        let memory = AlignedBuffer(byteCount: 1 << 20)
        let bytes = memory.bytes
        var done = 0
        try withReactor(engine) { reactor in
            for index in 0..<16 {
                reactor.write(fd, UnsafeRawBufferPointer(bytes), at: UInt64(index) << 20) { result in
                    if result == 1 << 20 { done += 1 }
                }
            }
            reactor.stop()
        }
        #expect(done == 16)
    }
}

@Suite struct Watches {
    @Test(arguments: engines)
    func aReadyDescriptorIsReportedUntilItIsRead(engine: EngineChoice) throws {
        let pipe = makePipe()
        var calls = 0
        put("hello", pipe.write)
        try withReactor(engine) { reactor in
            _ = reactor.watch(pipe.read, read: true, write: false) { readiness in
                #expect(readiness == .readable)
                calls += 1
                if calls == 3 { #expect(get(pipe.read) == "hello") }
            }
            reactor.after(milliseconds: 50) { reactor.stop() }
        }
        #expect(calls == 3)
        close(pipe.read)
        close(pipe.write)
    }

    @Test(arguments: engines)
    func aWatchCancelledInItsHandlerIsNotCalledAgain(engine: EngineChoice) throws {
        let pipe = makePipe()
        var calls = 0
        put("x", pipe.write)
        try withReactor(engine) { reactor in
            var watch: Watch?
            watch = reactor.watch(pipe.read, read: true, write: false) { _ in
                calls += 1
                watch?.cancel()
                watch?.cancel()
            }
            reactor.after(milliseconds: 30) { reactor.stop() }
        }
        #expect(calls == 1)
        close(pipe.read)
        close(pipe.write)
    }

    @Test(arguments: engines)
    func aWatchCancelledByAnotherHandlerIsNotCalledForAnEventAlreadyCollected(engine: EngineChoice) throws {
        let (one, two) = (makePipe(), makePipe())
        var calls: [String] = []
        put("x", one.write)
        put("x", two.write)
        try withReactor(engine) { reactor in
            var watches: [Watch] = []
            for (name, pipe) in [("one", one), ("two", two)] {
                watches.append(
                    reactor.watch(pipe.read, read: true, write: false) { _ in
                        calls.append(name)
                        for watch in watches { watch.cancel() }
                    })
            }
            reactor.after(milliseconds: 30) { reactor.stop() }
        }
        #expect(calls.count == 1)
        for end in [one.read, one.write, two.read, two.write] { close(end) }
    }

    @Test(arguments: engines)
    func aDescriptorNumberUsedAgainBelongsToItsNewWatchOnly(engine: EngineChoice) throws {
        var old = 0
        var new: [String] = []
        try withReactor(engine) { reactor in
            for round in 0..<50 {
                let first = makePipe()
                put("old", first.write)
                let number = dup(first.read)
                let watch = reactor.watch(number, read: true, write: false) { _ in old += 1 }
                // Half of them reach the kernel before they are cancelled.
                if round % 2 == 0 { reactor.submitNow() }
                watch.cancel()
                let second = makePipe()
                // Closes what the number stood for and gives it away, in one step.
                #expect(dup2(second.read, number) == number)
                for end in [first.read, first.write, second.read] { close(end) }
                var again: Watch?
                again = reactor.watch(number, read: true, write: false) { _ in
                    new.append(get(number) ?? "nothing")
                    again?.cancel()
                    close(number)
                    close(second.write)
                    if new.count == 50 { reactor.stop() }
                }
                put("new", second.write)
            }
        }
        #expect(old == 0)
        #expect(new == Array(repeating: "new", count: 50))
    }

    @Test(arguments: engines)
    func aStaleCompletionIsDropped(engine: EngineChoice) throws {
        let pipe = makePipe()
        var calls = 0
        try withReactor(engine) { reactor in
            let first = reactor.watch(pipe.read, read: true, write: false) { _ in calls += 1 }
            let generation = reactor.watches.entries[0].generation
            first.cancel()
            reactor.submitNow()
            let second = reactor.watch(pipe.read, read: true, write: false) { _ in calls += 1 }
            #expect(reactor.watches.entries.count == 1, "the slot is used again")
            reactor.dispatchWatch(Tag(.watch, slot: 0, generation: generation), result: Int32(POLLIN))
            #expect(calls == 0)
            first.cancel()  // the handle of an earlier life must not reach the new one
            put("x", pipe.write)
            reactor.after(milliseconds: 20) {
                #expect(calls > 0)
                second.cancel()
                reactor.stop()
            }
        }
        close(pipe.read)
        close(pipe.write)
    }

    @Test(arguments: engines)
    func interestCanBeChangedAndRested(engine: EngineChoice) throws {
        var ends: [Int32] = [-1, -1]
        #expect(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0)
        let (near, far) = (ends[0], ends[1])
        var log: [String] = []
        try withReactor(engine) { reactor in
            var watch: Watch?
            watch = reactor.watch(near, read: true, write: false) { readiness in
                if readiness.contains(.readable) {
                    log.append("read \(get(near) ?? "")")
                    watch?.change(read: true, write: true)
                } else if readiness.contains(.writable) {
                    log.append("write")
                    watch?.change(read: false, write: false)
                }
            }
            put("a", far)
            reactor.after(milliseconds: 30) {
                put("b", far)
                reactor.after(milliseconds: 30) {
                    log.append("rested")
                    watch?.change(read: true, write: false)
                    reactor.after(milliseconds: 30) { reactor.stop() }
                }
            }
        }
        #expect(log == ["read a", "write", "rested", "read b", "write"])
        close(near)
        close(far)
    }

    @Test(arguments: engines)
    func theEndOfTheOtherSideIsReported(engine: EngineChoice) throws {
        let pipe = makePipe()
        close(pipe.write)
        var seen: Readiness = []
        try withReactor(engine) { reactor in
            var watch: Watch?
            watch = reactor.watch(pipe.read, read: true, write: false) { readiness in
                seen = readiness
                watch?.cancel()
                reactor.stop()
            }
        }
        #expect(seen.contains(.hangUp))
        close(pipe.read)
    }

    @Test(arguments: engines)
    func aDescriptorThatIsNotOpenIsReportedOnce(engine: EngineChoice) throws {
        var seen: [Readiness] = []
        try withReactor(engine) { reactor in
            _ = reactor.watch(99_999, read: true, write: false) { seen.append($0) }
            reactor.after(milliseconds: 30) { reactor.stop() }
        }
        #expect(seen == [.failed])
    }
}

@Suite struct Timers {
    @Test(arguments: engines)
    func timersRunInTheOrderOfTheirDeadlines(engine: EngineChoice) throws {
        var order: [String] = []
        try withReactor(engine) { reactor in
            let start = reactor.now
            reactor.after(milliseconds: 20) {
                order.append("third")
                #expect(reactor.now - start >= 20_000_000)
                reactor.stop()
            }
            reactor.after(milliseconds: 5) { order.append("first") }
            reactor.after(milliseconds: 5) { order.append("second") }
            reactor.after(milliseconds: 7) { order.append("never") }.cancel()
        }
        #expect(order == ["first", "second", "third"])
    }

    @Test(arguments: engines)
    func aRepeatingTimerRunsUntilItIsCancelled(engine: EngineChoice) throws {
        var count = 0
        try withReactor(engine) { reactor in
            var timer: ReactorTimer?
            timer = reactor.repeating(milliseconds: 2) {
                count += 1
                if count == 5 { timer?.cancel() }
            }
            reactor.after(milliseconds: 60) { reactor.stop() }
        }
        #expect(count == 5)
    }

    @Test func armingAndCancellingForEverDoesNotGrow() throws {
        let reactor = try Reactor(engine: .libaio, logger: quiet)
        for _ in 0..<10_000 { reactor.after(milliseconds: 60_000) {}.cancel() }
        #expect(reactor.timers.count <= 64)
        var order: [Int] = []
        let timers = (0..<500).map { index in
            reactor.at(UInt64(index * 7919 % 500) + 1) { order.append(index * 7919 % 500) }
        }
        for index in stride(from: 0, to: 500, by: 2) { timers[index].cancel() }
        reactor.fireTimers()
        #expect(order.count == 250)
        #expect(order == order.sorted())
    }
}

@Suite struct Posts {
    @Test(arguments: engines)
    func postsFromManyThreadsAllArriveInOrder(engine: EngineChoice) throws {
        let thread = try ReactorThread(name: "posts", engine: engine, logger: quiet) { _ in }
        #expect(thread.engineName == engine.rawValue)
        let seen = Mutex<[Int: [Int]]>([:])
        let pool = try WorkerPool(threads: 4, name: "posters")
        for sender in 0..<4 {
            pool.submit {
                for number in 0..<500 {
                    thread.post { seen.withLock { $0[sender, default: []].append(number) } }
                    if number % 50 == 0 { usleep(1000) }
                }
            }
        }
        pool.shutdown()
        #expect(thread.call { true } == true)
        #expect(seen.withLock { $0 } == Dictionary(uniqueKeysWithValues: (0..<4).map { ($0, Array(0..<500)) }))
        thread.stop()
        thread.join()
        #expect(!thread.post {}, "a reactor that has ended takes nothing more")
        #expect(thread.call { true } == nil)
    }

    @Test(arguments: engines)
    func beforeSleepRunsAgainAfterItMadeWork(engine: EngineChoice) throws {
        var log: [String] = []
        try withReactor(engine) { reactor in
            let bound = ThreadBound(reactor)
            var rounds = 0
            reactor.beforeSleep {
                rounds += 1
                log.append("sleep \(rounds)")
                if rounds == 1 { bound.value.post { _ = bound.value.now } }
                if rounds == 2 { reactor.stop() }
            }
        }
        // The stop asked for in round 2 is seen in round 3; nothing waited for a timer.
        #expect(log == ["sleep 1", "sleep 2", "sleep 3"])
    }

    @Test(arguments: engines)
    func aSpinningReactorHearsPostsAndDescriptors(engine: EngineChoice) throws {
        let thread = try ReactorThread(name: "spin", engine: engine, logger: quiet) { $0.spinMicroseconds = 200 }
        for number in 0..<200 { #expect(thread.call { number } == number) }
        usleep(20_000)
        #expect(thread.call { 1 } == 1)
        thread.stop()
        thread.join()
    }

    @Test func whatSetUpThrowsIsThrown() {
        struct Refused: Error {}
        #expect(throws: Refused.self) {
            _ = try ReactorThread(name: "refused", logger: quiet) { _ in throw Refused() }
        }
    }

    @Test func aThreadBoundValueStopsTheProcessOnAnotherThread() async {
        await #expect(processExitsWith: .failure) {
            let bound = ThreadBound(1)
            let thread = try ReactorThread(name: "other", engine: .libaio, logger: quiet) { _ in }
            _ = thread.call { bound.value }
        }
    }
}

@Suite struct EngineChoices {
    @Test func whereIoUringIsForbiddenAutoTakesLibaioAndSaysWhy() throws {
        let lines = Mutex<[String]>([])
        let logger = Logger(label: "ring.tests") { _ in LineCollector { line in lines.withLock { $0.append(line) } } }
        let pool = try WorkerPool(threads: 1, name: "forbidden")
        pool.submit {
            // Only this thread loses the call.
            #expect(clinux_refuse_system_call(CLINUX_SYS_IO_URING_SETUP, EPERM) == 0)
            do {
                #expect(try Reactor(engine: .auto, logger: logger).engineName == "libaio")
                _ = try Reactor(engine: .ioUring, logger: logger)
                Issue.record("io_uring was started although it is forbidden")
            } catch let error as RingError {
                #expect(error.code == EPERM)
                #expect("\(error)".contains("kernel.io_uring_disabled"))
            } catch {
                Issue.record("unexpected: \(error)")
            }
        }
        pool.shutdown()
        #expect(lines.withLock { $0.count } == 1)
        #expect(lines.withLock { $0.first }?.contains("Operation not permitted") == true)
    }

    @Test func aTagKeepsItsParts() {
        let tag = Tag(.operation, slot: 0xFFFF_FFFE, generation: 0xAB_CDEF)
        #expect(tag.kind == .operation)
        #expect(tag.slot == 0xFFFF_FFFE)
        #expect(tag.generation == 0xAB_CDEF)
        #expect(Tag(.watch, slot: 1, generation: 0x100_0001).generation == 1)
    }
}

/// Hands each log line, with its metadata, to a closure.
struct LineCollector: LogHandler {
    let take: @Sendable (String) -> Void
    var metadata: Logger.Metadata = [:]
    var logLevel: Logger.Level = .trace
    init(_ take: @escaping @Sendable (String) -> Void) { self.take = take }
    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }
    func log(event: LogEvent) { take("\(event.message) \(event.metadata ?? [:])") }
}

@Suite struct Pools {
    @Test func shuttingDownFinishesEverythingQueued() throws {
        let pool = try WorkerPool(threads: 3, name: "drain")
        let done = Atomic<Int>(0)
        for _ in 0..<5000 { pool.submit { done.wrappingAdd(1, ordering: .relaxed) } }
        pool.shutdown()
        #expect(done.load(ordering: .relaxed) == 5000)
        #expect(!pool.trySubmit {})
    }

    @Test func aFullQueueRefusesOrMakesTheCallerWait() throws {
        let pool = try WorkerPool(threads: 1, name: "full", queueLimit: 4)
        let gate = Handover<Bool>()
        let started = Handover<Bool>()
        let done = Atomic<Int>(0)
        pool.submit {
            started.put(true)
            _ = gate.take()
        }
        _ = started.take()
        for _ in 0..<4 { #expect(pool.trySubmit { done.wrappingAdd(1, ordering: .relaxed) }) }
        #expect(!pool.trySubmit { done.wrappingAdd(1, ordering: .relaxed) })
        #expect(pool.waiting == 4)
        let opener = try WorkerPool(threads: 1, name: "opener")
        opener.submit {
            usleep(20_000)
            gate.put(true)
        }
        pool.submit { done.wrappingAdd(1, ordering: .relaxed) }
        pool.shutdown()
        opener.shutdown()
        #expect(done.load(ordering: .relaxed) == 5)
    }
}

@Suite struct Memory {
    @Test func alignedBuffersAreZeroedWholePages() {
        let buffer = AlignedBuffer(byteCount: 5000)
        #expect(buffer.count == 8192)
        #expect(UInt(bitPattern: buffer.bytes.baseAddress!) % 4096 == 0)
        #expect(buffer.bytes.allSatisfy { $0 == 0 })
        buffer.bytes[8191] = 7
        #expect(buffer.slice(8191, 1)[0] == 7)
        buffer.discardContents()
        #expect(buffer.bytes[8191] == 0)
    }

    @Test func anErrorNamesWhatFailedAndOnWhat() {
        let error = #expect(throws: RingError.self) {
            _ = try FileDescriptor.open("/nonexistent/file", flags: O_RDONLY)
        }
        #expect(error?.description == "cannot open /nonexistent/file: No such file or directory (errno 2)")
    }
}
