import Configuration
import Format
import Glibc
import Logging
import Quorum
import Ring
import Synchronization

@testable import Journal
@testable import Node
@testable import Tree

/// Two data planes in one process: real journals, real plain files, each on its own data thread, joined by a wire that
/// can be cut. What the control side decides, the test decides. No FUSE: changes go to the log as the mirrored directory
/// would put them.
final class Pair {
    let scratch: Scratch
    let nodes: [TestNode]
    let mirror: MirrorID
    private(set) var wire: Wire?

    var a: TestNode { nodes[0] }
    var b: TestNode { nodes[1] }

    /// - Parameters:
    ///   - prepare: fills the first node's files before the mirror exists.
    ///   - seed: fills the other node's.
    ///   - mounted: whether the primary opens the directory for real, with FUSE.
    init(
        mounted: Bool = false, prepare: ((String) throws -> Void)? = nil, seed: ((String) throws -> Void)? = nil
    ) throws {
        scratch = Scratch()
        let path = scratch.path
        let configurations = try ["a", "b"].map { try Pair.configuration(path, $0) }
        for configuration in configurations { makeDirectories(configuration.backing) }
        try prepare?(configurations[0].backing)
        try seed?(configurations[1].backing)
        mirror = try NodePreparation.first(configurations[0], node: .a, logger: quiet)
        try NodePreparation.join(configurations[1], node: .b, logger: quiet)
        try NodePreparation.makeJournal(
            configurations[1], node: .b, mirror: mirror, isIncomplete: seed != nil, logger: quiet)
        nodes = [
            TestNode(.a, configurations[0], mirror, mounted: mounted),
            TestNode(.b, configurations[1], mirror, mounted: mounted),
        ]
        try a.start()
        try b.start()
    }

    deinit {
        cut()
        a.stop()
        b.stop()
    }

    private static func configuration(_ path: String, _ node: String) throws -> MirrorConfiguration {
        try MirrorConfiguration.parse(
            """
            name = "test"
            path = "\(path)/\(node)/path"
            backing = "\(path)/\(node)/backing"
            state = "\(path)/\(node)/state"
            [[node]]
            name = "a"
            address = "10.0.9.11:7400"
            [[node]]
            name = "b"
            address = "10.0.9.12:7400"
            [witness]
            address = "10.0.9.13:7401"
            [journal]
            sizeMebibytes = 64
            """, file: "test.toml")
    }

    /// Connects the two; an earlier wire is cut.
    /// - Parameters:
    ///   - bytesPerSecond: what the line carries to the second node; nil: as much as there is.
    ///   - holding: messages that wait until they are released, see `Wire.holds`.
    func connect(bytesPerSecond: Int? = nil, holding: (@Sendable (DataMessage) -> Bool)? = nil) {
        cut()
        let wire = Wire(a, b, bytesPerSecond: bytesPerSecond)
        if let holding { wire.holds(holding) }
        self.wire = wire
        wire.start()
    }

    /// From here on nothing arrives any more.
    func cut() {
        wire?.cut()
        wire = nil
    }

    /// The first node serves alone.
    func serve(_ node: TestNode, epoch: UInt32) {
        let decision = Decision(
            sequence: UInt64(epoch), epoch: Epoch(rawValue: epoch), primary: node.id, inSync: NodeSet(node.id))
        node.call { plane in
            plane.setLease(until: .max)
            plane.setPolicy(
                AckPolicy(possible: [AckRequirement(inSync: NodeSet(node.id), ownDisk: true)], flushFirst: false),
                token: 0)
            plane.serve(decision, .complete)
        }
        node.wait("open") { plane in if case .open = plane.phase { true } else { false } }
    }

    /// Waits until the primary says that the other one may be added, then adds it.
    func admit(to primary: TestNode, epoch: UInt32) {
        primary.wait("caught up", seconds: 60) { _ in primary.isCaughtUp }
        let decision = Decision(
            sequence: UInt64(epoch) + 100, epoch: Epoch(rawValue: epoch), primary: primary.id, inSync: .both)
        primary.call { plane in
            plane.setPolicy(
                AckPolicy(possible: [AckRequirement(inSync: .both, ownDisk: false)], flushFirst: false), token: 1)
            plane.inSyncChanged(decision)
        }
    }

    /// Everything logged is in the plain files of both.
    func settle() {
        let primary = a.call { $0.log.role == .primary } ? a : b
        let other = primary === a ? b : a
        let last = primary.call { $0.log.lastSeq }
        primary.wait("applied") { $0.log.applied >= last }
        other.wait("applied on the other node") { $0.log.applied >= last && $0.resync == nil }
    }

    /// What differs between the two trees; empty if they are equal byte by byte, with all attributes.
    func differences() -> [String] {
        let left = snapshot(a.configuration.backing)
        let right = snapshot(b.configuration.backing)
        var found: [String] = []
        for name in Set(left.keys).union(right.keys).sorted() where left[name] != right[name] {
            found.append("\(name): \(left[name] ?? "missing") | \(right[name] ?? "missing")")
        }
        return found
    }
}

/// One node: its data thread, and the plane on it.
final class TestNode: @unchecked Sendable {
    // Sendable because `plane` is used on the data thread only, or after it has ended.
    let id: NodeID
    let configuration: MirrorConfiguration
    let mirror: MirrorID
    private let mounted: Bool
    private(set) var thread: ReactorThread!
    private var plane: DataPlane?
    private let reports = Mutex<[String]>([])
    private let caughtUp = Mutex(false)
    private let merged = Mutex(false)
    private let misfit = Mutex<String?>(nil)
    private let started = Mutex<LogSummary?>(nil)
    /// The next start shall find that journal and files do not belong together. In all other tests that is a false alarm.
    var expectsMisfit = false
    private let failures = Mutex(0)
    private let answers = Mutex(0)

    init(_ id: NodeID, _ configuration: MirrorConfiguration, _ mirror: MirrorID, mounted: Bool) {
        self.mounted = mounted
        self.id = id
        self.configuration = configuration
        self.mirror = mirror
    }

    var isCaughtUp: Bool { caughtUp.withLock { $0 } }
    var isMerged: Bool { merged.withLock { $0 } }
    /// What the last start found wrong with its disks.
    var damage: String? { misfit.withLock { $0 } }
    /// What the last start found.
    var summary: LogSummary? { started.withLock { $0 } }
    /// How often this node has said that the other one cannot take part.
    var peerFailures: Int { failures.withLock { $0 } }
    var problems: [String] { reports.withLock { $0 } }
    /// How often this node has said that its disks, one of which hung, answer again.
    var recoveries: Int { answers.withLock { $0 } }

    func start() throws {
        caughtUp.withLock { $0 = false }
        merged.withLock { $0 = false }
        thread = try ReactorThread(name: "data-\(id)", engine: .auto, logger: quiet) { [self] reactor in
            let (plane, summary) = try DataPlane.start(
                node: id, configuration: configuration, mirror: mirror, reactor: reactor,
                logger: testLogger(id)
            ) { [self] report in
                switch report {
                case .member(.peerCaughtUp(let value)): caughtUp.withLock { $0 = value }
                case .member(.peerSilent(.failed)): failures.withLock { $0 += 1 }
                case .member(.merged): merged.withLock { $0 = true }
                case .broken(let text): reports.withLock { $0.append(text) }
                case .disksAnswer: answers.withLock { $0 += 1 }
                default: return
                }
            }
            if !mounted { plane.mount = { _ in nil } }
            misfit.withLock { $0 = summary.damage }
            started.withLock { $0 = summary }
            if (plane.markedPoint == nil) != expectsMisfit {
                fatalError("node \(id) found \(summary.damage ?? "nothing") on its disks")
            }
            self.plane = plane
        }
    }

    /// Ends as a killed process does: nothing is flushed, nothing is said.
    func stop() {
        guard thread != nil else { return }
        if mounted {
            call { $0.close(.stopped) }
            wait("closed") { if case .idle = $0.phase { true } else { false } }
        }
        thread.stop()
        thread.join()
        thread = nil
        plane?.workers.shutdown()
        plane?.mounts.shutdown()
        plane?.questions.shutdown()
        plane?.log.applier.shutdown()
        plane?.tree.cache.removeAll()
        plane = nil
    }

    func call<Value: Sendable>(_ work: @escaping @Sendable (DataPlane) -> Value) -> Value {
        guard let value = thread.call({ [self] in work(plane!) }) else { fatalError("the data thread has ended") }
        return value
    }

    func post(_ work: @escaping @Sendable (DataPlane) -> Void) {
        thread?.post { [self] in if let plane { work(plane) } }
    }

    /// Waits until `condition` holds; stops the test run if it never does.
    func wait(_ what: String, seconds: Int = 30, _ condition: @escaping @Sendable (DataPlane) -> Bool) {
        for _ in 0..<(seconds * 100) {
            if call(condition) { return }
            usleep(10_000)
        }
        let state = call { plane in
            "\(plane.link.stageName) role \(plane.log.role) last \(plane.log.core.last) durable "
                + "\(plane.log.core.ownDurable) committed \(plane.log.committed) applied \(plane.log.applied) "
                + "follower \(String(describing: plane.log.core.follower)) resync "
                + "\(String(describing: plane.resync?.progress))"
        }
        fatalError("node \(id): not \(what) after \(seconds) s: \(state); \(problems)")
    }

    // MARK: What the application does

    /// Logs a change; returns its seq.
    @discardableResult
    func log(_ body: RecordBody) -> Seq {
        call { $0.log.append(body, time: $0.log.wallClock()) }
    }

    func create(_ name: String, in parent: FileID = .root, mode: UInt32 = S_IFREG | 0o644) -> FileID {
        let file = call { $0.log.allocateFileID() }
        log(
            .create(
                file: file, parent: parent, name: Array(name.utf8),
                attributes: FileAttributes(mode: mode, uid: 0, gid: 0), target: [], xattrs: []))
        return file
    }

    @discardableResult
    func write(_ file: FileID, _ bytes: [UInt8], at offset: UInt64) -> Seq {
        while true {
            let seq = call { plane -> Seq? in
                guard let place = plane.log.payloadPlace() else { return nil }
                place.copyBytes(from: bytes)
                return plane.log.appendWrite(
                    file: file, offset: offset, length: bytes.count, time: plane.log.wallClock())
            }
            if let seq { return seq }
            usleep(1000)
        }
    }

    /// The number of an object by its path below the root.
    func file(_ path: String) -> FileID {
        call { plane in
            var found = FileID.root
            for name in path.split(separator: "/") {
                guard let status = try? plane.tree.lookup(parent: found, name: Array(name.utf8)) else { return .none }
                found = status.file
            }
            return found
        }
    }

    /// Until the application would have been told that it is on every in-sync disk.
    func waitForSync(_ seq: Seq) { wait("acknowledged") { $0.log.core.levels.disk >= seq } }
}

/// Set once, from any thread.
final class Flag: Sendable {
    private let value = Mutex(false)
    func set() { value.withLock { $0 = true } }
    var isSet: Bool { value.withLock { $0 } }
}

/// A connection between two data threads. Everything passes through its wire form.
final class Wire: @unchecked Sendable {
    // Sendable because the ends are used on their own data threads only, and `isCut` is protected.
    private let isCut = Mutex(false)
    private let carried = Mutex((toA: 0, toB: 0))
    private let breaksAt = Mutex<(@Sendable (DataMessage) -> Bool)?>(nil)
    private let holdsBack = Mutex<(@Sendable (DataMessage) -> Bool)?>(nil)
    private let held = Mutex<[(end: Int, message: DataMessage)]>([])
    private let planned = Mutex<[DataMessage]>([])
    fileprivate let ends: [WireEnd]
    private let nodes: [TestNode]
    private let bytesPerSecond: Int?
    /// Until when the line to the second node is busy, ns.
    private let busyUntil = Mutex<UInt64>(0)

    init(_ a: TestNode, _ b: TestNode, bytesPerSecond: Int? = nil) {
        nodes = [a, b]
        self.bytesPerSecond = bytesPerSecond
        ends = [WireEnd(), WireEnd()]
        for index in 0...1 {
            ends[index].wire = self
            ends[index].index = index
        }
    }

    func start() {
        for index in 0...1 {
            nodes[index].call { [ends] plane in
                plane.link.connected(ends[index])
                ends[index].isAttached = true
                let early = ends[index].early
                ends[index].early = []
                for work in early { work(plane) }
            }
        }
    }

    func cut() {
        guard markCut() else { return }
        for index in 0...1 where nodes[index].thread != nil {
            nodes[index].call { [ends] plane in plane.link.disconnected(ends[index]) }
        }
    }

    /// - Returns: whether it was whole until now.
    private func markCut() -> Bool {
        isCut.withLock { isCut in
            defer { isCut = true }
            return !isCut
        }
    }

    fileprivate func carry(from index: Int, bytes: Int, _ work: @escaping @Sendable (DataPlane) -> Void) {
        guard !isCut.withLock({ $0 }) else { return }
        carried.withLock { if index == 0 { $0.toB += bytes } else { $0.toA += bytes } }
        if index == 0, let bytesPerSecond {
            let arrival = busyUntil.withLock { busy in
                busy = max(busy + 1, BootClock.now) + UInt64(Double(bytes) / Double(bytesPerSecond) * 1e9)
                return busy
            }
            return nodes[1].post { [self] plane in
                _ = plane.reactor.at(arrival) { [self] in deliver(to: plane, 1, work) }
            }
        }
        nodes[1 - index].post { [self] plane in deliver(to: plane, 1 - index, work) }
    }

    private func deliver(to plane: DataPlane, _ index: Int, _ work: @escaping @Sendable (DataPlane) -> Void) {
        guard !isCut.withLock({ $0 }) else { return }
        let receiver = ends[index]
        if receiver.isAttached { work(plane) } else { receiver.early.append(work) }
    }

    /// Bytes that wait for the line.
    fileprivate func queued(from index: Int) -> Int {
        guard index == 0, let bytesPerSecond else { return 0 }
        let busy = busyUntil.withLock { $0 }
        let now = BootClock.now
        return busy > now ? Int(Double(busy - now) / 1e9 * Double(bytesPerSecond)) : 0
    }

    /// The connection breaks when such a message is sent, and the message is lost.
    func breaks(at message: @escaping @Sendable (DataMessage) -> Bool) { breaksAt.withLock { $0 = message } }

    fileprivate func isLost(_ message: DataMessage) -> Bool { breaksAt.withLock { $0?(message) ?? false } }

    /// Such messages wait until they are released, others pass them: as if whoever makes them were slow.
    func holds(_ message: @escaping @Sendable (DataMessage) -> Bool) { holdsBack.withLock { $0 = message } }

    var heldBack: [DataMessage] { held.withLock { $0.map(\.message) } }

    /// Lets go of messages held back that are such as `isWanted` says.
    func release(_ isWanted: (DataMessage) -> Bool = { _ in true }) {
        let free = held.withLock { held in
            let free = held.filter { isWanted($0.message) }
            held.removeAll { isWanted($0.message) }
            return free
        }
        for (end, message) in free { ends[end].deliver(message) }
    }

    fileprivate func isHeld(_ message: DataMessage, from index: Int) -> Bool {
        guard holdsBack.withLock({ $0?(message) ?? false }) else { return false }
        held.withLock { $0.append((index, message)) }
        return true
    }

    /// What the nodes have sent to each other about who sends what, oldest first; lost messages too.
    var plans: [DataMessage] { planned.withLock { $0 } }

    fileprivate func note(_ message: DataMessage) {
        switch message {
        case .acknowledgement, .commit, .probe, .probeAnswer, .verifyAnswer: return
        default: planned.withLock { $0.append(message) }
        }
    }

    /// How a resynchronisation was begun on this connection; nil: none was.
    var resyncKind: ResyncStart.Kind? {
        plans.compactMap { if case .resyncStart(let start) = $0 { start.kind } else { nil } }.last
    }

    var isBroken: Bool { isCut.withLock { $0 } }

    /// Bytes sent to the second node.
    var bytesToB: Int { carried.withLock { $0.toB } }

    fileprivate func lost(_ index: Int) {
        guard markCut() else { return }
        for node in 0...1 { nodes[node].post { [ends] plane in plane.link.disconnected(ends[node]) } }
    }
}

final class WireEnd: DataConnection, @unchecked Sendable {
    fileprivate unowned var wire: Wire!
    fileprivate var index = 0
    /// On the receiving thread: what came before this node knew of the connection.
    fileprivate var isAttached = false
    fileprivate var early: [@Sendable (DataPlane) -> Void] = []
    var queuedBytes: Int { wire.queued(from: index) }

    func send(_ message: DataMessage) {
        wire.note(message)
        guard !wire.isLost(message) else { return wire.lost(index) }
        if !wire.isHeld(message, from: index) { deliver(message) }
    }

    fileprivate func deliver(_ message: DataMessage) {
        let bytes = message.encoded()
        wire.carry(from: index, bytes: bytes.count + 48) { plane in
            do {
                plane.link.received(try DataMessage(decoding: bytes))
            } catch {
                fatalError("a message that cannot be read: \(error)")
            }
        }
    }

    func send(_ batches: [Batch]) {
        let mirror = batches[0].header.mirror
        let messages = batches.map { (head: $0.header.wireEncoded(), body: $0.wirePieces.flatMap { Array($0) }) }
        let length = batches.reduce(FrameHeader.byteCount) { $0 + $1.wireLength }
        wire.carry(from: index, bytes: length) { plane in
            for message in messages {
                plane.link.received(Batch.received(message.head, message.body, mirror: mirror))
            }
        }
    }

    func close(_ reason: String) { wire.lost(index) }
}

extension Batch {
    /// A batch as it comes out of its wire form.
    static func received(_ head: [UInt8], _ body: [UInt8], mirror: MirrorID) -> Batch {
        do {
            let incoming = Batch.Incoming(header: try BatchHeader(wire: head, mirror: mirror), region: nil)
            var rest = body[...]
            incoming.recordBytes.copyBytes(from: rest.prefix(incoming.recordBytes.count))
            rest = rest.dropFirst(incoming.recordBytes.count)
            for place in try incoming.finishMeta() {
                place.copyBytes(from: rest.prefix(place.count))
                rest = rest.dropFirst(place.count)
            }
            return try incoming.finish()
        } catch {
            fatalError("a batch that cannot be read: \(error)")
        }
    }
}
