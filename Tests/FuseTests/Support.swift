import CLinux
import Format
import Glibc
import Logging
import Ring
import Testing
import Tree

@testable import Fuse

let quiet = Logger(label: "fuse", factory: { _ in SwiftLogNoOpLogHandler() })

/// Runs a program and waits for it; its exit status, -1 when it did not end by itself.
@discardableResult
func run(_ arguments: String...) -> Int32 {
    var process = pid_t()
    var argv = arguments.map { strdup($0) }
    argv.append(nil)
    defer { for argument in argv { free(argument) } }
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0)
    guard posix_spawnp(&process, arguments[0], &actions, nil, argv, environ) == 0 else { return -1 }
    var status: Int32 = 0
    guard waitpid(process, &status, 0) == process else { return -1 }
    return status & 0x7F == 0 ? (status >> 8) & 0xFF : -1
}

/// A change log of one node: acknowledges at once or when told, and applies to the plain tree in order. On the data
/// thread, but for the applying.
final class LocalLog: ChangeLog {
    var onRoom: (() -> Void)?
    private(set) var lastSeq = Seq.zero
    private(set) var applied = Seq.zero
    /// Levels that are kept from being reached; released by setting them to false and calling `settle`.
    var holdsWrite = false
    var holdsSync = false
    var holdsApply = false
    /// Later records are not applied; nil: all are.
    var appliesThrough: Seq?
    var hasRoom = true
    var spaceError: Int32?
    /// Nothing is kept or applied: for measuring the mount alone.
    var dropsEverything = false
    private(set) var bodies: [RecordBody] = []
    /// What `.sync` and `.write` have reached.
    private var writeLevel = Seq.zero
    private var syncLevel = Seq.zero
    private var waiters: [(seq: Seq, level: AckLevel, handler: (AckOutcome) -> Void)] = []
    private var unapplied: [(seq: Seq, record: Record, payload: [UInt8])] = []
    private var isApplying = false
    private var allocator = FileIDAllocator(epoch: Epoch(rawValue: 1))
    private let buffer: UnsafeMutableRawBufferPointer
    private let tree: PlainTree
    private let pool: WorkerPool
    private let reactor: Reactor
    private(set) var failure: String?

    init(tree: PlainTree, pool: WorkerPool, reactor: Reactor) {
        self.tree = tree
        self.pool = pool
        self.reactor = reactor
        buffer = .allocate(byteCount: 1 << 20, alignment: 4096)
    }
    deinit { buffer.deallocate() }

    func payloadPlace() -> UnsafeMutableRawBufferPointer? { hasRoom ? buffer : nil }

    func appendWrite(file: FileID, offset: UInt64, length: Int, time: Int64) -> Seq {
        lastSeq = lastSeq.next
        if dropsEverything { return lastSeq }
        let payload = Array(UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(buffer)[..<length]))
        let reference = PayloadReference.inline(offset: 0, length: length, checksum: 0)
        keep(Record(time: time, body: .write(file: file, offset: offset), payload: reference), payload)
        return lastSeq
    }

    func append(_ body: RecordBody, time: Int64) -> Seq {
        lastSeq = lastSeq.next
        keep(Record(time: time, body: body), [])
        return lastSeq
    }

    private func keep(_ record: Record, _ payload: [UInt8]) {
        bodies.append(record.body)
        unapplied.append((lastSeq, record, payload))
        settle()
    }

    func when(_ seq: Seq, _ level: AckLevel, _ handler: @escaping (AckOutcome) -> Void) {
        if dropsEverything, level != .applied, level != .settled { return handler(.done) }
        settle()
        if reached(level) >= seq { return handler(.done) }
        waiters.append((seq, level, handler))
    }

    private func reached(_ level: AckLevel) -> Seq {
        switch level {
        case .write: writeLevel
        case .sync: syncLevel
        case .applied, .settled: applied
        }
    }

    /// Lets every level advance as far as it may, and tells who waits.
    func settle() {
        if !holdsWrite { writeLevel = lastSeq }
        if !holdsSync { syncLevel = lastSeq }
        applyNext()
        let ready = waiters.filter { reached($0.level) >= $0.seq }
        guard !ready.isEmpty else { return }
        waiters.removeAll { reached($0.level) >= $0.seq }
        for waiter in ready { waiter.handler(.done) }
    }

    private func applyNext() {
        // Nothing is applied before it is on every disk: the files never run ahead of the mirror.
        let ready = unapplied.prefix(64).prefix { $0.seq <= min(syncLevel, appliesThrough ?? syncLevel) }
        guard !isApplying, !holdsApply, !ready.isEmpty, failure == nil else { return }
        isApplying = true
        let batch = Array(ready)
        unapplied.removeFirst(batch.count)
        let tree = tree
        let handle = reactor.handle
        let carried = Carried(self)
        pool.submit {
            var failure: String?
            for (_, record, payload) in batch where failure == nil {
                do {
                    try payload.withUnsafeBytes { try tree.apply(record, payload: $0, role: .primary) }
                } catch { failure = "\(record.body): \(error)" }
            }
            let told = failure
            handle.post {
                guard let log = carried.take() else { return }
                log.isApplying = false
                log.failure = told
                if told == nil { log.applied = batch.last!.seq }
                log.settle()
            }
        }
    }

    func allocateFileID() -> FileID { allocator.allocate()! }
    func wallClock() -> Int64 {
        var now = timespec()
        clock_gettime(CLOCK_REALTIME, &now)
        return Int64(now.tv_sec) * 1_000_000_000 + Int64(now.tv_nsec)
    }
    /// Bytes of the last change that space was asked for.
    private(set) var lastReckoned = 0
    func spaceFor(bytes: Int, files: Int) -> Int32? {
        lastReckoned = bytes
        return bytes > 0 ? spaceError : nil
    }
    /// Bytes granted to files without a name, and not ended.
    private(set) var localBytes = 0
    private(set) var localBytesMost = 0
    func localSpaceFor(bytes: Int) -> Int32? {
        guard spaceError == nil else { return spaceError }
        localBytes += bytes
        localBytesMost = max(localBytesMost, localBytes)
        return nil
    }
    func localDone(bytes: Int) { localBytes -= bytes }
}

/// A mirrored directory on one node, mounted below /tmp, with a plain directory beside it.
///
/// Sendable: `directory` and `log` are used inside `onData` only.
final class Mounted: @unchecked Sendable {
    let root: String
    var path: String { root + "/mirror" }
    var backing: String { root + "/backing" }
    var plain: String { root + "/plain" }
    private(set) var thread: ReactorThread!
    static let workers = 3
    let pool: WorkerPool
    private let mountPool: WorkerPool
    private let applyPool: WorkerPool
    private var directory: MirroredDirectory!
    private var log: LocalLog!
    private var tree: PlainTree!
    private let hasOwnDisk: Bool

    /// - Parameters:
    ///   - fileSystem: of the plain files, on a disk image of their own; nil: whatever /tmp is on.
    ///   - lacking: what the kernel shall not have.
    init(on fileSystem: String? = nil, limits: FileLimits? = nil, lacking: FuseFeatures = []) throws {
        Mounted.clearLeftovers()
        root = "/tmp/lockstep-fuse-\(getpid())-\(UInt32.random(in: 0...UInt32.max))"
        for name in ["", "/mirror", "/backing", "/plain", "/state"] { precondition(mkdir(root + name, 0o755) == 0) }
        hasOwnDisk = fileSystem != nil
        if let fileSystem { try Mounted.mountDisk(fileSystem, image: root + "/image", at: root + "/backing") }
        pool = try WorkerPool(threads: Mounted.workers, name: "fuse-work")
        mountPool = try WorkerPool(threads: 1, name: "fuse-mount")
        applyPool = try WorkerPool(threads: 1, name: "fuse-apply")
        try MountGuard.place(at: path, name: "test")
        tree = try PlainTree(backing: backing, state: root + "/state", opening: .create, logger: quiet)
        thread = try ReactorThread(name: "fuse-data", logger: quiet) { [self] reactor in
            log = LocalLog(tree: tree, pool: applyPool, reactor: reactor)
            directory = try MirroredDirectory(
                reactor: reactor, pool: pool, mountPool: mountPool, tree: tree, log: log, mountPoint: path,
                name: "test",
                limits: limits ?? tree.limits, wanted: FuseFeatures.wanted.subtracting(lacking), logger: quiet)
        }
    }

    private static func mountDisk(_ fileSystem: String, image: String, at path: String) throws {
        let fd = open(image, O_RDWR | O_CREAT, 0o600)
        ftruncate(fd, 320 << 20)
        Glibc.close(fd)
        let force = fileSystem == "ext4" ? "-F" : "-f"
        try #require(run("/sbin/mkfs.\(fileSystem)", "-q", force, image) == 0, "needs mkfs.\(fileSystem)")
        try #require(run("/bin/mount", "-o", "loop", image, path) == 0, "needs root and loop devices")
    }

    /// What a test run that was killed has left.
    private static func clearLeftovers() {
        guard let stream = opendir("/tmp") else { return }
        defer { closedir(stream) }
        while let entry = readdir(stream) {
            let name = withUnsafeBytes(of: &entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            guard name.hasPrefix("lockstep-fuse-"), let pid = Int32(name.split(separator: "-")[2]), kill(pid, 0) != 0
            else { continue }
            let left = "/tmp/\(name)/mirror"
            MountGuard.clear(left)
            MountGuard.remove(at: left)
            run("/bin/umount", "-q", "/tmp/\(name)/backing")
            run("/bin/rm", "-rf", "--one-file-system", "/tmp/\(name)")
        }
    }

    func onData<Value: Sendable>(_ body: @escaping @Sendable (MirroredDirectory, LocalLog) -> Value) -> Value {
        thread.call { [self] in body(directory, log) }!
    }

    var counters: MirroredDirectory.Counters { onData { directory, _ in directory.counters } }

    /// Waits until everything logged is in the plain files.
    func settle() {
        while !onData({ _, log in log.applied == log.lastSeq || log.failure != nil }) { usleep(500) }
    }

    func close() {
        MountGuard.clear(path)
        // The data thread hears of it by its next read.
        _ = eventually { onData { directory, _ in directory.state } == .ended }
        let failure = onData { _, log in log.failure }
        #expect(failure == nil)
        _ = thread.call { [self] in
            directory = nil
            log = nil
        }
        thread.stop()
        thread.join()
        pool.shutdown()
        mountPool.shutdown()
        applyPool.shutdown()
        tree = nil
        MountGuard.remove(at: path)
        if hasOwnDisk { #expect(run("/bin/umount", backing) == 0) }
        run("/bin/rm", "-rf", "--one-file-system", root)
    }
}

func withMounted(
    on fileSystem: String? = nil, limits: FileLimits? = nil, lacking: FuseFeatures = [],
    _ body: (Mounted) throws -> Void
) throws {
    let mounted = try Mounted(on: fileSystem, limits: limits, lacking: lacking)
    defer { mounted.close() }
    try body(mounted)
}

/// Takes a file out of the kernel's page cache, and looks whether it is: on a busy machine a page that is asked to go may stay.
func evict(_ path: String) -> Bool {
    let fd = open(path, O_RDONLY)
    defer { close(fd) }
    guard let size = status(path)?.st_size, fsync(fd) == 0 else { return false }
    guard let map = mmap(nil, size, PROT_READ, MAP_SHARED, fd, 0), map != MAP_FAILED else { return false }
    defer { munmap(map, size) }
    var pages = [UInt8](repeating: 1, count: (size + 4095) / 4096)
    return eventually {
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0 && mincore(map, size, &pages) == 0
            && pages.allSatisfy { $0 & 1 == 0 }
    }
}

/// Waits up to so many milliseconds for something to become true.
func eventually(_ milliseconds: Int = 2000, _ condition: () -> Bool) -> Bool {
    for _ in 0..<milliseconds {
        if condition() { return true }
        usleep(1000)
    }
    return condition()
}

/// The errno of a call that answers below zero; 0 when it worked.
func errnoOf(_ result: some BinaryInteger) -> Int32 { result < 0 ? errno : 0 }

func contents(_ path: String) -> [UInt8]? {
    let fd = open(path, O_RDONLY)
    guard fd >= 0 else { return nil }
    defer { close(fd) }
    var bytes: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 65536)
    while true {
        let count = read(fd, &piece, piece.count)
        guard count > 0 else { return count < 0 ? nil : bytes }
        bytes += piece[..<count]
    }
}

@discardableResult
func put(_ path: String, _ bytes: [UInt8], flags: Int32 = 0) -> Int32 {
    let fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | flags, 0o644)
    guard fd >= 0 else { return errno }
    defer { close(fd) }
    return write(fd, bytes, bytes.count) == bytes.count ? 0 : errno
}

func status(_ path: String) -> stat? {
    var found = stat()
    return lstat(path, &found) == 0 ? found : nil
}

func bytes(_ text: String) -> [UInt8] { Array(text.utf8) }

/// A thread that runs `body`; `join` waits for it.
final class Concurrent: @unchecked Sendable {
    private var thread = pthread_t()
    private let body: @Sendable () -> Void
    private let lock = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private var finished = false

    init(_ body: @escaping @Sendable () -> Void) {
        self.body = body
        pthread_mutex_init(lock, nil)
        let me = Unmanaged.passRetained(self)
        pthread_create(
            &thread, nil,
            { argument in
                let me = Unmanaged<Concurrent>.fromOpaque(argument!).takeRetainedValue()
                me.body()
                pthread_mutex_lock(me.lock)
                me.finished = true
                pthread_mutex_unlock(me.lock)
                return nil
            }, me.toOpaque())
    }
    deinit { lock.deallocate() }
    var isFinished: Bool {
        pthread_mutex_lock(lock)
        defer { pthread_mutex_unlock(lock) }
        return finished
    }
    func join() { pthread_join(thread, nil) }
    /// Whether it ends within so many milliseconds.
    func ends(within milliseconds: Int) -> Bool {
        for _ in 0..<milliseconds {
            if isFinished { return true }
            usleep(1000)
        }
        return isFinished
    }
}

// Extended attributes without following links; negated errnos like the rest of the shim.

func attribute(_ path: String, _ name: String) -> Result<[UInt8], FuseErrno> {
    var value = [UInt8](repeating: 0, count: 4096)
    let count = value.withUnsafeMutableBytes { clinux_getxattr(path, name, $0.baseAddress, $0.count, 0) }
    return count < 0 ? .failure(FuseErrno(Int32(-count))) : .success(Array(value[..<count]))
}

/// The errno, 0 when it worked.
func setAttribute(_ path: String, _ name: String, _ value: [UInt8], flags: Int32 = 0) -> Int32 {
    -value.withUnsafeBytes { clinux_setxattr(path, name, $0.baseAddress, $0.count, flags, 0) }
}

func removeAttribute(_ path: String, _ name: String) -> Int32 { -clinux_removexattr(path, name, 0) }

func attributeNames(_ path: String) -> Set<String> {
    var list = [CChar](repeating: 0, count: 4096)
    let count = clinux_listxattr(path, &list, list.count, 0)
    guard count > 0 else { return [] }
    return Set(
        list[..<count].split(separator: 0).map { String(decoding: $0.map(UInt8.init(bitPattern:)), as: UTF8.self) })
}
