import Format
import Journal
import Logging
import Quorum
import Ring
import Transport

/// A control connection over `Transport`: decisions and leases.
final class ControlChannel: ControlConnection {
    private let connection: Connection
    private let session: UInt64

    /// - Parameters:
    ///   - mirror: this side's identity now; `.none` while it has none.
    ///   - peerSession: what the other side's hello said: messages of another session are not its.
    ///   - onRefused: a message of a foreign mirror or an old session came, and was not looked at.
    init(
        _ connection: Connection, session: UInt64, peerSession: UInt64, mirror: @escaping () -> MirrorID,
        logger: Logger, onMessage: @escaping (QuorumMessage) -> Void, onRefused: @escaping () -> Void,
        onClosed: @escaping (ControlChannel) -> Void
    ) {
        self.connection = connection
        self.session = session
        connection.onFrame = { [weak self] header, body in
            guard self != nil else { return }
            let own = mirror()
            // A voter without an identity (empty, or asking an empty one) has `.none` there.
            let isOurs = header.mirror == own || header.mirror == .none || own == .none
            guard header.type == .quorum, isOurs, header.session == peerSession else {
                return onRefused()
            }
            do {
                onMessage(try QuorumMessage(decoding: body[...]))
            } catch {
                connection.close("a message that cannot be read: \(error)")
            }
        }
        connection.onClosed = { [self] reason in
            logger.info("control connection to \(connection.remote) ended: \(reason)")
            onClosed(self)
        }
    }

    func send(_ message: QuorumMessage, epoch: Epoch, mirror: MirrorID) {
        let body = message.encoded()
        _ = connection.send(
            FrameHeader(type: .quorum, bodyLength: body.count, session: session, epoch: epoch, mirror: mirror),
            body: body)
    }

    func close(_ reason: String) { connection.close(reason) }
}

/// The data connection over `Transport`: batches go out from where they lie and come in to where they will stay.
final class DataChannel: DataConnection {
    private let connection: Connection
    private let session: UInt64
    private let log: MirrorLog
    private var stalledSink = false

    init(
        _ connection: Connection, session: UInt64, peerSession: UInt64, log: MirrorLog, link: PeerLink,
        logger: Logger
    ) {
        self.connection = connection
        self.session = session
        self.log = log
        let mirror = log.journal.mirror
        connection.receiveDirectly([.batch]) { [unowned self] header throws(DecodingError) in
            guard header.mirror == mirror, header.session == peerSession else {
                link.noteRefused()
                throw DecodingError("a batch of another mirror or session", at: 16)
            }
            return BatchSink(mirror: mirror) { [unowned self] header in
                let memory = link.memory(for: header)
                if memory == nil { stalledSink = true }
                return memory
            } deliver: { batch in
                link.received(batch)
            }
        }
        connection.onFrame = { [weak self] header, body in
            guard self != nil else { return }
            guard header.type == .data, header.mirror == mirror, header.session == peerSession else {
                return link.noteRefused()
            }
            do {
                link.received(try DataMessage(decoding: body))
            } catch {
                connection.close("a message that cannot be read: \(error)")
            }
        }
        connection.onDrained = { link.pump() }
        connection.onClosed = { [self] reason in
            logger.notice("data connection to \(connection.remote) ended: \(reason)")
            link.disconnected(self)
        }
    }

    private func header(_ type: FrameType, _ length: Int) -> FrameHeader {
        FrameHeader(
            type: type, bodyLength: length, session: session, epoch: log.epoch, mirror: log.journal.mirror)
    }

    func send(_ message: DataMessage) {
        let body = message.encoded()
        _ = connection.send(header(.data, body.count), body: body)
    }

    func send(_ batches: [Batch]) {
        // The batches and the heads of all but the first live until the kernel has their bytes.
        let heads = WireHeads(of: batches[1...])
        var pieces = unsafe batches[0].wirePieces
        for (index, batch) in batches.enumerated().dropFirst() {
            unsafe pieces.append(heads[index - 1])
            unsafe pieces += batch.wirePieces
        }
        let length = batches.reduce(0) { $0 + $1.wireLength }
        _ = unsafe connection.send(
            header(.batch, length), head: batches[0].header.wireEncoded(), pieces: pieces
        ) { _ in withExtendedLifetime((batches, heads)) {} }
    }

    var queuedBytes: Int { connection.queuedBytes }
    func close(_ reason: String) { connection.close(reason) }

    /// Memory or journal space may have become free.
    func resume() {
        guard stalledSink else { return }
        stalledSink = false
        connection.resumeReading()
    }
}

/// The heads of batches as they cross the wire, in memory that stays where it is.
@safe private final class WireHeads {
    private let memory: UnsafeMutableRawBufferPointer

    init(of batches: ArraySlice<Batch>) {
        unsafe memory = .allocate(byteCount: batches.count * BatchHeader.wireByteCount, alignment: 8)
        unsafe memory.copyBytes(from: batches.flatMap { $0.header.wireEncoded() })
    }
    deinit { unsafe memory.deallocate() }

    subscript(index: Int) -> UnsafeRawBufferPointer {
        let start = index * BatchHeader.wireByteCount
        return unsafe UnsafeRawBufferPointer(rebasing: memory[start..<start + BatchHeader.wireByteCount])
    }
}
