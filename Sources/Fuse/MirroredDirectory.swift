public import Format
internal import Glibc
public import Logging
public import Ring
internal import Synchronization
public import Tree

/// The directory the application sees: a FUSE mount whose changes are logged, and whose content is the plain tree.
///
/// Everything here runs on the data thread but for single blocking calls on the plain tree, which run on the pool.
///
/// ```
///              freeze                     depose
///   serving ───────────> frozen ─────────────────┐
///      │  <───────────     │                     v
///      │       thaw        └────────────────> deposed ──dismount──> ended
///      └──depose─────────────────────────────────^                    ^
///      └──drainAndUnmount─────────────────────────────────────────────┘
/// ```
///
/// * serving: requests are checked, logged, and answered when their record has come far enough.
/// * frozen (no lease): every new request is held, and so is every answer. Nothing fails.
/// * deposed (the other node serves): everything held and everything new is answered EIO.
@safe
public final class MirroredDirectory {
    /// Payload bytes of requests that are held (while frozen, or for a moment while a file is loaded). When they are
    /// used up, reading from the kernel stops; its own queue is bounded by `FuseLimits.backgroundRequests` and by the
    /// number of waiting processes.
    public static let heldBytesMax = 16 << 20
    /// Requests held.
    public static let heldRequestsMax = 8192
    /// Seconds for which the kernel may trust names and attributes: nobody else changes them.
    static let cacheSeconds: UInt64 = 86_400

    public enum State: Sendable, Hashable {
        case serving
        case frozen
        case deposed
        /// The mount is gone.
        case ended
    }

    /// Counters for `status` and for tests.
    public struct Counters: Sendable, Hashable {
        /// Requests read from the kernel.
        public var requests: UInt64 = 0
        public var writes: UInt64 = 0
        public var writtenBytes: UInt64 = 0
        /// Reads answered at once, by a worker, and after waiting for an unapplied record.
        public var readsAtOnce: UInt64 = 0
        public var readsByWorker: UInt64 = 0
        public var readsDelayed: UInt64 = 0
        /// Opens of a file that was gone by then: the kernel tried once more.
        public var opensLate: UInt64 = 0
        /// Requests that could not be decoded.
        public var refused: UInt64 = 0
        /// Inodes in memory.
        public var inodes: Int = 0
        /// Requests read and not answered yet.
        public var outstanding: Int = 0
    }

    public internal(set) var state = State.serving
    /// Called once when the mount has gone, whoever removed it.
    public var onEnd: (() -> Void)?

    let reactor: Reactor
    let pool: WorkerPool
    /// For the mount itself, which must come away when every thread of `pool` waits for a disk that hangs.
    let mountPool: WorkerPool
    let tree: PlainTree
    let log: any ChangeLog
    /// What both rooms can hold; narrower as soon as the other node says so.
    public var limits: FileLimits
    let logger: Logger
    public let mountPoint: String

    var session: FuseSession?
    var connection: FuseConnection?
    var inodes = InodeTable()
    var gone = GoneFiles()
    var locks = FileLocks()
    var tally = Counters()
    /// Programs whose open came too late, and files kept for them.
    var late = LateOpens()
    var isGivingUpLater = false

    /// Requests to be answered by the data thread. A read that a worker answers is not among them.
    var outstanding: Set<UInt64> = []
    let readsByWorker = UnansweredReads()
    /// What goes on at `thaw`, in order: requests, answers, steps of operations under way.
    var heldWork: [() -> Void] = []
    var heldBytes = 0
    /// Who waits for a file to be loaded.
    var loading: [FileID: [(Result<Inode, FuseErrno>) -> Void]] = [:]
    /// WRITEs with a saved payload that wait for room in the log.
    var waitingForRoom: [() -> Void] = []
    /// Changes of removed files: those that wait, and how many are at work.
    var localChanges: [LocalChange] = []
    var localChangesRunning = 0
    /// Repaired files of which the kernel shall forget what it has cached, and whether it is being told of one.
    var toInvalidate: [FileID] = []
    var isInvalidating = false
    /// Whether `when(.settled)` is under way for the table of inodes.
    var isWatchingApplied = false
    /// For answers of `readWithoutBlocking`: written to the kernel before the next request is looked at.
    let readBuffer: UnsafeMutableRawBufferPointer

    /// Mounts the directory and starts to serve; the caller has the lease.
    ///
    /// - Parameters:
    ///   - reactor: the data thread's; the initialiser is called on it.
    ///   - pool: for blocking calls; several threads.
    ///   - mountPool: for the mount; one thread.
    ///   - mountPoint: the directory the application uses. What is mounted there (the guard) is covered.
    ///   - name: the mirror's name, shown in mount tables.
    public convenience init(
        reactor: Reactor, pool: WorkerPool, mountPool: WorkerPool, tree: PlainTree, log: any ChangeLog,
        mountPoint: String, name: String, limits: FileLimits, logger: Logger
    ) throws(FuseMountError) {
        try self.init(
            reactor: reactor, pool: pool, mountPool: mountPool, tree: tree, log: log, mountPoint: mountPoint,
            name: name, limits: limits, wanted: .wanted, logger: logger)
    }

    /// - Parameter wanted: of the kernel; less than all, and it behaves as an older one.
    init(
        reactor: Reactor, pool: WorkerPool, mountPool: WorkerPool, tree: PlainTree, log: any ChangeLog,
        mountPoint: String, name: String, limits: FileLimits, wanted: FuseFeatures, logger: Logger
    ) throws(FuseMountError) {
        self.reactor = reactor
        self.pool = pool
        self.mountPool = mountPool
        self.tree = tree
        self.log = log
        self.mountPoint = mountPoint
        self.limits = limits
        self.logger = logger
        unsafe readBuffer = .allocate(byteCount: FuseLimits.transferBytes, alignment: Batch.pageBytes)
        let session = try FuseSession(
            reactor: reactor, mountPoint: mountPoint, source: name, wanted: wanted, handler: self, logger: logger)
        self.session = session
        connection = session.connection
        log.onRoom = { [weak self] in self?.roomCame() }
    }

    deinit { unsafe readBuffer.deallocate() }

    public var counters: Counters {
        var result = tally
        result.requests = session?.requestCount ?? tally.requests
        result.inodes = inodes.count
        result.outstanding = outstanding.count
        return result
    }

    /// For a change that is logged now: a time that both rooms can hold.
    func presentTime() -> Int64 { limits.kept(log.wallClock()) }

    // MARK: Answers

    /// Answers once; a second answer, and any after `depose`, goes nowhere.
    func answer(_ unique: UInt64, errno: Int32) {
        guard outstanding.remove(unique) != nil else { return }
        connection?.answer(unique, errno: errno)
    }

    func answer(_ unique: UInt64, _ body: [UInt8]) {
        guard outstanding.remove(unique) != nil else { return }
        connection?.answer(unique, body)
    }

    /// Answers a change when its record has come far enough; while frozen the answer is held, because without a lease
    /// nothing may be acknowledged.
    func answerWhen(_ unique: UInt64, _ seq: Seq, _ level: AckLevel, _ body: @escaping () -> Void) {
        log.when(seq, level) { [weak self] outcome in
            guard let self else { return }
            if level == .applied, outcome == .done { inodes.advance(seq) }
            switch outcome {
            case .done: whenServing(body)
            case .failed(let errno): answer(unique, errno: errno)
            }
        }
    }

    /// Runs a step now, at `thaw`, or (deposed) never: then the request was answered already.
    func whenServing(_ step: @escaping () -> Void) {
        switch state {
        case .serving: step()
        case .frozen: heldWork.append(step)
        case .deposed, .ended: break
        }
    }

    // MARK: Steps on other threads

    /// Runs a blocking call on the pool and goes on with its result on the data thread.
    func work<Value: Sendable>(
        _ call: @escaping @Sendable (PlainTree) throws(TreeError) -> Value,
        then: @escaping (Result<Value, FuseErrno>) -> Void
    ) {
        let tree = tree
        let handle = reactor.handle
        let carried = Carried(then)
        pool.submit {
            let result: Result<Value, FuseErrno>
            do throws(TreeError) {
                result = .success(try call(tree))
            } catch {
                result = .failure(FuseErrno(error.code))
            }
            handle.post { carried.take()?(result) }
        }
    }

    /// Keeps the table of unapplied records short: one question at a time, for the newest record.
    func watchApplied() {
        guard !isWatchingApplied, inodes.hasUnapplied else { return }
        let target = log.lastSeq
        // The newest record is applied: so is all that waits. No question, for its answer would come at once, and again.
        guard target > inodes.applied else { return inodes.collectAll() }
        isWatchingApplied = true
        log.when(target, .settled) { [weak self] outcome in
            guard let self else { return }
            isWatchingApplied = false
            guard outcome == .done else { return }
            inodes.advance(target)
            watchApplied()
        }
    }

    /// Notes that a record touches an inode.
    func touch(_ inode: Inode, _ seq: Seq) {
        inodes.touch(inode, seq)
        watchApplied()
    }

    // MARK: Locks

    func locked(_ request: FileLocks.Request, _ body: @escaping () -> Void) {
        if locks.tryAcquire(request) { body() } else { locks.wait(request, body) }
    }

    /// Holds back changes of a directory's names, as a reader of the directory does: when `body` runs, all that were
    /// logged are applied, and none is logged until it calls its argument, once.
    public func whileNamesRest(in directory: FileID, _ body: @escaping (_ release: @escaping () -> Void) -> Void) {
        let request = FileLocks.Request(exclusive: [], shared: [directory])
        locked(request) { [self] in body { [self] in unlock(request) } }
    }

    func unlock(_ request: FileLocks.Request) {
        for run in locks.release(request) { run() }
    }
}

/// Reads handed to workers. Whoever takes one out answers it: the worker, or `depose`, which does not wait for a disk.
final class UnansweredReads: Sendable {
    private let uniques = Mutex<Set<UInt64>>([])
    func insert(_ unique: UInt64) { uniques.withLock { _ = $0.insert(unique) } }
    func take(_ unique: UInt64) -> Bool { uniques.withLock { $0.remove(unique) != nil } }
    func takeAll() -> [UInt64] {
        uniques.withLock { uniques in
            defer { uniques = [] }
            return uniques.sorted()
        }
    }
}

/// An errno on its way to the application.
struct FuseErrno: Error, Sendable, Hashable {
    let code: Int32
    init(_ code: Int32) { self.code = code }
}

/// A closure of the data thread on its way through a worker: used and released on the data thread.
final class Carried<Value>: @unchecked Sendable {
    // Sendable because only the data thread takes the value out; the worker only passes the box on.
    private var value: Value?
    init(_ value: Value) { self.value = value }
    func take() -> Value? {
        defer { value = nil }
        return value
    }
}

// MARK: - Requests

extension MirroredDirectory: FuseRequestHandler {
    /// While nothing is logged, payloads are copied or dropped, so any memory will do: the log may be full then, and
    /// held requests must still be read to be answered.
    func payloadPlace() -> UnsafeMutableRawBufferPointer? {
        unsafe state == .serving ? log.payloadPlace() : readBuffer
    }

    func refused(_ error: FuseRequestError) { tally.refused += 1 }

    func forgotten(_ files: [FileID]) {
        for file in files {
            gone.forget(file)
            inodes.forgotten(file)
        }
    }

    func handle(_ request: FuseRequest, place: UnsafeMutableRawBufferPointer) {
        switch request.operation {
        case .interrupt:
            // Not obeyed: on a local disk a write or a rename is never interrupted either, and programs do not expect
            // EINTR from one. A process that is killed while its request is held ends at thaw, or with EIO.
            return
        case .release(let handle):
            // Always done at once: it only lowers a count, and a dying process must not wait for a lease.
            connection?.answer(request.unique, errno: 0)
            return release(request.node, handle)
        default: break
        }
        if late.isExpecting { noteStep(of: request) }
        if state == .serving, !log.mayServe { freeze() }
        switch state {
        case .serving:
            outstanding.insert(request.unique)
            unsafe serve(request, place)
        case .frozen:
            outstanding.insert(request.unique)
            unsafe holdRequest(request, place)
        case .deposed, .ended:
            connection?.answer(request.unique, errno: EIO)
        }
    }

    private func serve(_ request: FuseRequest, _ place: UnsafeMutableRawBufferPointer) {
        if case .write(let write) = request.operation {
            unsafe writeArrived(request, write, place)
        } else {
            dispatch(request)
        }
    }

    /// Keeps a request, with a copy of its payload, until `thaw`.
    private func holdRequest(_ request: FuseRequest, _ place: UnsafeMutableRawBufferPointer) {
        if case .write(let write) = request.operation {
            let payload = unsafe savePayload(place, write.length)
            heldWork.append { [weak self] in self?.writeSaved(request, write, payload) }
        } else {
            heldWork.append { [weak self] in self?.dispatch(request) }
        }
        if heldWork.count >= MirroredDirectory.heldRequestsMax { session?.pause() }
    }

    func savePayload(_ place: UnsafeMutableRawBufferPointer, _ length: Int) -> [UInt8] {
        heldBytes += length
        if heldBytes >= MirroredDirectory.heldBytesMax { session?.pause() }
        return unsafe Array(place[..<length])
    }

    func payloadUsed(_ payload: [UInt8]) {
        heldBytes -= payload.count
        resumeReading()
    }

    /// Reads on if nothing stands in the way; the session itself asks for a place for the next payload.
    func resumeReading() {
        guard heldBytes < MirroredDirectory.heldBytesMax, heldWork.count < MirroredDirectory.heldRequestsMax,
            waitingForRoom.isEmpty
        else { return }
        session?.resume()
    }

    /// The log has room for payloads again.
    private func roomCame() {
        let waiting = waitingForRoom
        waitingForRoom = []
        for run in waiting { run() }
        resumeReading()
    }

    func ended() {
        guard state != .ended else { return }
        state = .ended
        tally.requests = session?.requestCount ?? 0
        abandonAll(errno: nil)
        releaseHolds()
        session = nil
        connection = nil
        log.onRoom = nil
        onEnd?()
        onEnd = nil
    }

    private func dispatch(_ request: FuseRequest) {
        let unique = request.unique
        let node = request.node
        switch request.operation {
        case .lookup(let name): lookUp(request, name)
        case .getAttributes: getAttributes(unique, node)
        case .setAttributes(let change): setAttributes(request, change)
        case .readLink: readLink(unique, node)
        case .symlink, .makeNode, .makeDirectory, .unlink, .removeDirectory, .rename, .link, .create:
            changeNamespace(request)
        case .open(let flags): open(request, flags)
        case .read(let offset, let size): read(unique, node, offset, Int(size))
        case .statistics: statistics(unique)
        case .sync, .syncDirectory: sync(unique, node)
        case .setXattr(let name, let value, let flags): setXattr(unique, node, name, value, flags)
        case .getXattr(let name, let size): getXattr(unique, node, name, Int(size))
        case .listXattrs(let size): listXattrs(unique, node, Int(size))
        case .removeXattr(let name): removeXattr(unique, node, name)
        case .readDirectory(let offset, let size, let plus): readDirectory(unique, node, offset, Int(size), plus)
        case .allocate(let offset, let length, let mode): allocate(request, offset, length, mode)
        case .seek(let offset, let whence): seek(unique, node, offset, whence)
        case .flush: answer(unique, errno: 0)
        case .refused(_, let errno): answer(unique, errno: errno)
        case .initialize, .forget, .interrupt, .destroy, .write, .release:
            answer(unique, errno: EIO)
        }
    }
}
