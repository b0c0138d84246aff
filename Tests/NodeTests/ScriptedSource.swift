import Format
import Glibc
import Synchronization

@testable import Node

/// The first node's end of a connection, played by the test: what the serving node says and logs comes in exactly the
/// order in which it is written down, and nothing comes by itself.
final class ScriptedSource: DataConnection, @unchecked Sendable {
    // Sendable because what the other thread touches is protected; the rest is used by the test's own thread only.
    private let node: TestNode
    private let mirror: MirrorID
    private let arena = Arena(bytes: 8 << 20)
    private let answers = Mutex<[DataMessage]>([])
    private(set) var epochs: [EpochStart]
    private(set) var last: Seq
    private(set) var chain: UInt64

    /// Goes on where the log of `source` ends, which has been stopped or cut off.
    init(_ source: TestNode, to node: TestNode) {
        self.node = node
        mirror = source.mirror
        (last, chain, epochs) = source.call { ($0.log.core.last, $0.log.lastChain, $0.journal.epochs.starts) }
    }

    // MARK: What the other node says

    func send(_ message: DataMessage) { answers.withLock { $0.append(message) } }
    func send(_ batches: [Batch]) {}
    var queuedBytes: Int { 0 }
    func close(_ reason: String) {}

    var heard: [DataMessage] { answers.withLock { $0 } }

    /// Waits for such an answer.
    func expect(_ message: DataMessage) { node.wait("\(message)") { [self] _ in heard.contains(message) } }

    // MARK: What this one says

    /// A new connection on which this node serves, and says so.
    func connect() {
        answers.withLock { $0 = [] }
        node.call { [self] plane in plane.link.connected(self) }
        say(
            .logState(
                LogState(
                    isServing: true, isIncomplete: false,
                    decision: Decision(sequence: 900, epoch: epochs[epochs.count - 1].epoch, primary: .a, inSync: .a),
                    ballot: [9], lastSeq: last, lastChain: chain, durableSeq: last, committedSeq: last,
                    oldestSeq: last.next, epochs: epochs)))
    }

    func disconnect() { node.call { [self] plane in plane.link.disconnected(self) } }

    func say(_ messages: DataMessage...) {
        node.call { plane in
            for message in messages { plane.link.received(message) }
        }
    }

    /// The log begins anew here, as if it had gone on for long.
    func jump() {
        last = last + 1000
        chain = chain &* 31 &+ 7
    }

    /// Logs one batch and sends it.
    func log(_ bodies: [RecordBody], images: Bool = true, committed: Seq) {
        var open = OpenBatch()
        for body in bodies { open.add(body, time: 1_700_000_000_000_000_000, isImage: images) }
        ship(&open, committed)
    }

    /// The same, of one write.
    func log(write file: FileID, _ bytes: [UInt8], at offset: UInt64, images: Bool, committed: Seq) {
        var open = OpenBatch()
        guard let place = open.payloadPlace(bytes: bytes.count, in: arena) else { fatalError("the arena is full") }
        bytes.withUnsafeBytes { place.copyMemory(from: $0.baseAddress!, byteCount: bytes.count) }
        open.addWrite(
            file: file, offset: offset, length: bytes.count, time: 1_700_000_000_000_000_000, isImage: images)
        ship(&open, committed)
    }

    private func ship(_ open: inout OpenBatch, _ committed: Seq) {
        let batch = open.close(
            arena: arena, epoch: epochs[epochs.count - 1].epoch, mirror: mirror, firstSeq: last.next,
            previousChain: chain, committedSeq: committed, closedAt: 1)
        last = batch.lastSeq
        chain = batch.header.chain
        let (head, body) = (batch.header.wireEncoded(), batch.wirePieces.flatMap { Array($0) })
        node.call { [mirror] in $0.link.received(Batch.received(head, body, mirror: mirror)) }
    }

    /// Waits until everything logged is on the other node's disk.
    func waitForDisk() {
        let last = last
        node.wait("on disk") { $0.log.core.ownDurable >= last }
    }
}

extension ScriptedSource {
    /// A resynchronisation whose log begins, or goes on, where this one ends.
    func start(_ kind: ResyncStart.Kind, number: UInt64, through: Seq) -> ResyncStart {
        ResyncStart(kind: kind, number: number, base: last, chain: chain, epochs: epochs, through: through)
    }
}
