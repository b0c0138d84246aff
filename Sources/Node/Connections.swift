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
    private let arena: Arena
    private var stalledSink = false

    init(
        _ connection: Connection, session: UInt64, peerSession: UInt64, log: MirrorLog, link: PeerLink,
        logger: Logger
    ) {
        self.connection = connection
        self.session = session
        self.log = log
        arena = log.arena
        let mirror = log.journal.mirror
        connection.receiveDirectly([.batch]) { [unowned self] header throws(DecodingError) in
            guard header.mirror == mirror, header.session == peerSession else {
                link.noteRefused()
                throw DecodingError("a batch of another mirror or session", at: 16)
            }
            return BatchSink(mirror: mirror) { [unowned self] header in
                incoming(header, link)
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

    /// Memory for the payload area of a batch; nil when there is none now.
    private func region(pages: Int) -> Arena.Region? {
        let bytes = pages * Batch.pageBytes
        guard unsafe arena.peek(bytes) != nil else { return nil }
        return arena.take(bytes)
    }

    /// Memory for the next batch of a message; nil while there is none, or no room in the journal.
    private func incoming(_ header: BatchHeader, _ link: PeerLink) -> Batch.Incoming? {
        // Room for all batches of a message: none of them is in the journal before the last one has come.
        guard log.journal.canAppend(BatchLimits.diskBytes) else {
            stalledSink = true
            return nil
        }
        // Only a follower's batches go to the arena: a primary gathers its own there. A late one of an earlier
        // session gets memory of its own, and is refused when it is complete.
        guard header.payloadPages > 0, link.stage == .following else {
            return Batch.Incoming(header: header, region: nil)
        }
        guard let region = region(pages: header.payloadPages) else {
            stalledSink = true
            return nil
        }
        return Batch.Incoming(header: header, region: region)
    }

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
