internal import CLinux
internal import Format
internal import Glibc
internal import Logging
internal import Mounts
internal import Ring

/// Who answers the requests of a session. On the data thread.
protocol FuseRequestHandler: AnyObject {
    /// Where the payload of the next WRITE may land; nil stops reading until `FuseSession.resume`.
    func payloadPlace() -> UnsafeMutableRawBufferPointer?
    /// The payload of a WRITE lies at the start of `place`, and only for the duration of the call.
    func handle(_ request: FuseRequest, place: UnsafeMutableRawBufferPointer)
    /// The kernel knows these files no more.
    func forgotten(_ files: [FileID])
    /// A request that was not understood: answered already.
    func refused(_ error: FuseRequestError)
    /// The kernel has given the connection up (unmounted or aborted).
    func ended()
}

/// One mount: the connection, the negotiation, and the loop that reads requests on the data thread.
///
/// ```
///   start ──> waiting for INIT ──> serving <──> paused (no memory for a payload, or frozen)
///                    │                │
///                    └───> ended <────┘   (unmounted, aborted, or refused INIT)
/// ```
///
/// Requests are read without waiting until there are none, and the reactor's poll says when there are again: reading
/// through io_uring costs more. `readv` of 80 bytes and a page-aligned place splits a WRITE exactly before its payload,
/// so those bytes lie where the journal and the wire take them from, uncopied.
@safe
final class FuseSession {
    /// Requests read in one go before the reactor gets its turn (timers, peer, disk).
    static let requestsPerTurn = 128

    let connection: FuseConnection
    let mountPoint: String
    /// The kernel's minor version, 0 before INIT.
    private(set) var minor: UInt32 = 0
    /// What the kernel offers and we want; empty before INIT.
    private(set) var features: FuseFeatures = []
    private(set) var isEnded = false
    /// Requests read, in all.
    private(set) var requestCount: UInt64 = 0

    private let reactor: Reactor
    private let logger: Logger
    private let wanted: FuseFeatures
    private weak var handler: (any FuseRequestHandler)?
    private let head: UnsafeMutableRawBufferPointer
    private var watch: Watch?
    private var isPaused = false
    private var initialised = false
    /// The minor number of the mount's device, which is also the number of the connection.
    let deviceMinor: UInt32?

    /// Opens a connection and mounts it.
    init(
        reactor: Reactor, mountPoint: String, source: String, wanted: FuseFeatures, handler: any FuseRequestHandler,
        logger: Logger
    ) throws(FuseMountError) {
        self.wanted = wanted
        self.reactor = reactor
        self.mountPoint = mountPoint
        self.logger = logger
        self.handler = handler
        connection = try FuseConnection()
        unsafe head = .allocate(byteCount: FuseProtocol.writeHeadBytes, alignment: 16)
        let result = unsafe clinux_fuse_mount(
            connection.descriptor, MirrorMounts.fuseType, source, mountPoint, 0)
        guard result == 0 else {
            throw FuseMountError(
                "mount the mirrored directory at", mountPoint, code: -result,
                remedy: -result == ENOENT || -result == ENOTDIR
                    ? "Create the directory, or correct `path` in the configuration"
                    : "lockstepd must run as root (CAP_SYS_ADMIN) and the path must not be in a container")
        }
        deviceMinor = MountTable.current()?.top(at: mountPoint)?.minor
        watch = reactor.watch(connection.descriptor, read: true, write: false) { [weak self] readiness in
            self?.ready(readiness)
        }
    }

    deinit { unsafe head.deallocate() }

    private func ready(_ readiness: Readiness) {
        for _ in 0..<FuseSession.requestsPerTurn {
            guard !isEnded, !isPaused, receiveOne() else { return }
        }
    }

    /// Stops reading. What is in the kernel's queue stays there.
    func pause() {
        guard !isPaused, !isEnded else { return }
        isPaused = true
        watch?.change(read: false, write: false)
    }

    func resume() {
        guard isPaused, !isEnded else { return }
        isPaused = false
        watch?.change(read: true, write: false)
    }

    /// False when there is nothing more to read now.
    private func receiveOne() -> Bool {
        guard let handler else { return false }
        guard let place = unsafe handler.payloadPlace() else {
            pause()
            return false
        }
        assert(place.count >= FuseLimits.transferBytes, "no room for a whole WRITE")
        let count = unsafe clinux_fuse_receive(
            connection.descriptor, head.baseAddress, head.count, place.baseAddress, place.count)
        guard count >= 0 else {
            switch Int32(-count) {
            case EAGAIN: return false
            // ENOENT: the request was interrupted while it was read.
            case EINTR, ENOENT: return true
            default:
                end("reading requests: error \(-count)")
                return false
            }
        }
        requestCount += 1
        unsafe dispatch(count: Int(count), place: place, to: handler)
        return true
    }

    private func dispatch(count: Int, place: UnsafeMutableRawBufferPointer, to handler: any FuseRequestHandler) {
        let first = unsafe UnsafeRawBufferPointer(rebasing: head[..<min(count, head.count)])
        let rest = unsafe UnsafeRawBufferPointer(rebasing: place[..<max(0, count - head.count)])
        do throws(FuseRequestError) {
            let request = try unsafe FuseRequest.decode(head: first, rest: rest)
            switch request.operation {
            case .initialize(let major, let minor, let readahead, let features):
                negotiate(request.unique, major, minor, readahead, FuseFeatures(rawValue: features))
            case .forget(let files): handler.forgotten(files)
            case .destroy: connection.answer(request.unique, errno: 0)
            default: unsafe handler.handle(request, place: place)
            }
        } catch {
            logger.debug("request refused", metadata: ["fuse.reason": "\(error.reason)"])
            if error.unique != 0 { connection.answer(error.unique, errno: error.errno) }
            handler.refused(error)
        }
    }

    private func negotiate(
        _ unique: UInt64, _ major: UInt32, _ kernelMinor: UInt32, _ readahead: UInt32, _ features: FuseFeatures
    ) {
        guard !initialised, major == FuseProtocol.major, kernelMinor >= FuseProtocol.minorAtLeast,
            features.isSuperset(of: .required)
        else {
            connection.answer(unique, errno: EPROTO)
            logger.error(
                """
                this kernel's FUSE (\(major).\(kernelMinor), features \(String(features.rawValue, radix: 16))) lacks \
                what the mirrored directory needs; run Linux 6.1 or later
                """)
            return end("INIT refused")
        }
        initialised = true
        minor = kernelMinor
        let agreed = features.intersection(wanted)
        self.features = agreed
        var out = ByteWriter(reserving: 64)
        out.put(FuseProtocol.major)
        out.put(min(FuseProtocol.minor, kernelMinor))
        out.put(max(readahead, 128 << 10))
        out.put(UInt32(truncatingIfNeeded: agreed.rawValue))
        out.put(FuseLimits.backgroundRequests)
        out.put(FuseLimits.congestionThreshold)
        out.put(UInt32(FuseLimits.transferBytes))
        out.put(UInt32(1))  // time granularity: nanoseconds
        out.put(UInt16(FuseLimits.transferBytes / Batch.pageBytes))
        out.put(UInt16(0))  // no DAX
        out.put(UInt32(truncatingIfNeeded: agreed.rawValue >> 32))
        while out.count < 64 { out.put(UInt8(0)) }
        connection.answer(unique, out.bytes)
        logger.debug("mounted \(mountPoint), FUSE 7.\(kernelMinor)")
    }

    /// Stops reading for good. The connection itself lives until its last holder goes.
    func end(_ reason: String) {
        guard !isEnded else { return }
        isEnded = true
        watch?.cancel()
        watch = nil
        logger.debug("session of \(mountPoint) ends: \(reason)")
        handler?.ended()
    }
}
