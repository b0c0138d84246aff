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
            return BatchSink(channel: self, link: link, bodyLength: header.bodyLength)
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

    func send(_ batch: Batch) {
        // The batch lives until the kernel has its bytes.
        _ = unsafe connection.send(
            header(.batch, batch.wireLength), head: batch.wireHeader, pieces: batch.wirePieces
        ) { _ in withExtendedLifetime(batch) {} }
    }

    var queuedBytes: Int { connection.queuedBytes }
    func close(_ reason: String) { connection.close(reason) }

    /// Memory for the payload area of a batch; nil when there is none now.
    func region(pages: Int) -> Arena.Region? {
        let bytes = pages * Batch.pageBytes
        guard unsafe arena.peek(bytes) != nil else { return nil }
        return arena.take(bytes)
    }

    var journalHasRoom: Bool { log.journal.canAppend(BatchLimits.diskBytes) }

    func stalled() { stalledSink = true }

    /// Memory or journal space may have become free.
    func resume() {
        guard stalledSink else { return }
        stalledSink = false
        connection.resumeReading()
    }
}

/// Receives one batch: its header, its records, then each payload to its place.
@safe private final class BatchSink: BodySink {
    private enum Part { case header, records, payloads }
    private let channel: DataChannel
    private let link: PeerLink
    private let bodyLength: Int
    private let head = UnsafeMutableRawBufferPointer.allocate(byteCount: BatchHeader.byteCount, alignment: 8)
    private var part = Part.header
    private var asked = false
    private var incoming: Batch.Incoming?

    init(channel: DataChannel, link: PeerLink, bodyLength: Int) {
        self.channel = channel
        self.link = link
        self.bodyLength = bodyLength
    }
    deinit { unsafe head.deallocate() }

    func nextPlaces(remaining: Int) throws(DecodingError) -> [UnsafeMutableRawBufferPointer] {
        switch part {
        case .header where !asked:
            asked = true
            guard remaining > BatchHeader.byteCount else { throw DecodingError("truncated batch", at: 0) }
            return unsafe [head]
        case .header:
            let header = try BatchHeader(decoding: unsafe Array(UnsafeRawBufferPointer(head)))
            guard channel.journalHasRoom else {
                channel.stalled()
                return unsafe []
            }
            var region: Arena.Region?
            // Only a follower's batches go to the arena: a primary gathers its own there. A late one of an earlier
            // session gets memory of its own, and is refused when it is complete.
            if header.payloadPages > 0, link.stage == .following {
                region = channel.region(pages: header.payloadPages)
                if region == nil {
                    channel.stalled()
                    return unsafe []
                }
            }
            let batch = Batch.Incoming(header: header, region: region)
            incoming = batch
            part = .records
            return unsafe [batch.recordBytes]
        case .records:
            part = .payloads
            guard let incoming else { throw DecodingError("batch without a header", at: 0) }
            return unsafe try incoming.finishMeta()
        case .payloads: throw DecodingError("bytes behind the batch", at: bodyLength - remaining)
        }
    }

    func bodyComplete() throws(DecodingError) {
        guard let incoming else { throw DecodingError("truncated batch", at: 0) }
        if part == .records {
            guard unsafe try incoming.finishMeta().isEmpty else { throw DecodingError("payloads missing", at: 0) }
        }
        link.received(try incoming.finish())
    }
}
