import CLinux
import Foundation
import Glibc
import Logging
import Quorum
import Ring

/// What `lockstep` asks the daemon.
public struct AdminRequest: Codable, Sendable {
    public enum Command: String, Codable, Sendable {
        case status, start, stop, swap
        case verify, verifyStop, verifyReport
        case resyncFull, resyncRate
        case promote, rejoin
    }
    public var command: Command
    /// Of `verify`.
    public var verify: VerifyOptions?
    /// Of `resyncRate`: bytes a second, 0 for no limit.
    public var rate: UInt64?
    /// Of `verifyReport`: the first finding wanted.
    public var from: Int?
    /// With `promote`: do it; without it only says what would be lost.
    public var acceptLoss: Bool?
    public var seedWitness: Bool?
    public init(_ command: Command) { self.command = command }
}

/// What the daemon answers.
public struct AdminReply: Codable, Sendable {
    /// nil, or why the request was refused.
    public var error: String?
    public var status: NodeStatus?
    public var promotion: PromotionReport?
    /// Of `verifyReport`: some findings from the one asked for on; none when there are no more.
    public var findings: [VerifyFinding]?
    public init(error: String? = nil, status: NodeStatus? = nil, findings: [VerifyFinding]? = nil) {
        self.error = error
        self.status = status
        self.findings = findings
    }
}

/// The admin socket: one JSON object in a line, one in a line back. Root only (the directory's mode), on the control
/// thread, with bounded lines and connections.
final class AdminServer {
    static let lineBytes = 64 << 10
    static let connectionLimit = 16

    private let process: NodeProcess
    private let reactor: Reactor
    private let logger: Logger
    private let descriptor: Int32
    private let path: String
    private var clients: [Int32: Client] = [:]
    private var watch: Watch?

    private final class Client {
        let descriptor: Int32
        var watch: Watch?
        var input: [UInt8] = []
        init(_ descriptor: Int32) { self.descriptor = descriptor }
    }

    init(process: NodeProcess, reactor: Reactor, logger: Logger) throws {
        self.process = process
        self.reactor = reactor
        self.logger = logger
        path = AdminClient.socketPath(process.configuration, node: process.node)
        descriptor = try AdminClient.makeSocket()
        unsafe unlink(path)
        let bound = unsafe try AdminClient.withAddress(path) { address, length in
            unsafe bind(descriptor, address, length)
        }
        guard bound == 0, unsafe chmod(path, 0o600) == 0, listen(descriptor, 8) == 0 else {
            throw StartError("cannot listen on \(path): \(errorText(errno))")
        }
        watch = reactor.watch(descriptor, read: true, write: false) { [self] _ in accept() }
    }

    private func accept() {
        while true {
            var room = sockaddr_un()
            var length = UInt32(MemoryLayout<sockaddr_un>.size)
            let accepted = unsafe clinux_accept(descriptor, &room, &length)
            guard accepted >= 0 else {
                guard ![-EAGAIN, -EINTR, -ECONNABORTED].contains(accepted) else { return }
                // Out of descriptors or memory: the client still waits, and would be reported again at once.
                logger.error("cannot accept on \(path) for now: \(errorText(accepted))")
                watch?.change(read: false, write: false)
                _ = reactor.after(milliseconds: 1000) { [self] in watch?.change(read: true, write: false) }
                return
            }
            guard clients.count < AdminServer.connectionLimit else {
                close(accepted)
                continue
            }
            let client = Client(accepted)
            clients[accepted] = client
            client.watch = reactor.watch(accepted, read: true, write: false) { [self, unowned client] _ in read(client)
            }
        }
    }

    /// An answer may come when its client has given up and the next one has got the same number.
    private func isConnected(_ client: Client) -> Bool { clients[client.descriptor] === client }

    private func drop(_ client: Client) {
        guard isConnected(client) else { return }
        clients[client.descriptor] = nil
        client.watch?.cancel()
        close(client.descriptor)
    }

    private func read(_ client: Client) {
        guard isConnected(client) else { return }
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = unsafe Glibc.read(client.descriptor, &buffer, buffer.count)
        if count < 0, errno == EAGAIN { return }
        guard count > 0, client.input.count + count <= AdminServer.lineBytes else { return drop(client) }
        client.input += buffer[..<count]
        guard let end = client.input.firstIndex(of: UInt8(ascii: "\n")) else { return }
        let line = Data(client.input[..<end])
        client.input.removeAll()
        guard let request = try? JSONDecoder().decode(AdminRequest.self, from: line) else {
            return answer(client, AdminReply(error: "this daemon does not know the request; are both of one version?"))
        }
        carryOut(request, client)
    }

    private func carryOut(_ request: AdminRequest, _ client: Client) {
        let control = process.controlPlane
        switch request.command {
        case .verify, .verifyStop, .verifyReport, .resyncFull, .resyncRate: return askData(request, client)
        case .status: break
        case .start: if let why = control.request(.requestStart) { return answer(client, AdminReply(error: why)) }
        case .stop: if let why = control.request(.requestStop) { return answer(client, AdminReply(error: why)) }
        case .promote: return promote(request, client)
        case .rejoin:
            if control.heldBack.isEmpty {
                return answer(client, AdminReply(error: "nothing holds this node back: there is nothing to discard"))
            }
            logger.critical("an administrator gives up what could not be saved: \(control.heldBack)")
            control.discardUnsaved()
        case .swap: if let why = control.request(.requestSwap) { return answer(client, AdminReply(error: why)) }
        }
        answerStatus(client)
    }

    private func answerStatus(_ client: Client) {
        let asked = Unchecked((self, client))
        process.gatherData { facts in
            let (server, client) = asked.value
            server.answer(client, AdminReply(status: server.process.status(facts)))
        }
    }

    /// What the data side answers.
    private func askData(_ request: AdminRequest, _ client: Client) {
        let asked = Unchecked((self, client))
        process.askData { plane in
            switch request.command {
            case .verify: return AdminReply(error: plane.verification.start(request.verify ?? VerifyOptions()))
            case .verifyStop: return AdminReply(error: plane.verification.stop())
            case .resyncFull: return AdminReply(error: plane.compareOnRequest())
            case .resyncRate:
                plane.resyncPacer.setLimit(request.rate.flatMap { $0 == 0 ? nil : $0 })
                return AdminReply()
            default: return AdminReply(findings: plane.verification.findings(from: request.from ?? 0, limit: 20))
            }
        } then: { reply in
            let (server, client) = asked.value
            guard let reply else {
                return server.answer(client, AdminReply(error: "this node has no part in the mirror yet"))
            }
            guard reply.error == nil, reply.findings == nil else { return server.answer(client, reply) }
            server.answerStatus(client)
        }
    }

    private func promote(_ request: AdminRequest, _ client: Client) {
        let asked = Unchecked((self, client))
        process.gatherPromotion { facts in
            let (server, client) = asked.value
            let control = server.process.controlPlane
            let seeds = request.seedWitness == true
            var reply = AdminReply()
            var report = server.process.promotionReport(facts, seedWitness: seeds)
            if request.acceptLoss == true, report.refusal == nil {
                server.logger.critical("forced promotion ordered: \(report.lost.joined(separator: " "))")
                report.refusal = control.request(.requestPromotion(seedWitness: seeds))
            }
            reply.promotion = report
            server.answer(client, reply)
        }
    }

    private func answer(_ client: Client, _ reply: AdminReply) {
        guard isConnected(client) else { return }
        guard var data = try? JSONEncoder().encode(reply) else { return drop(client) }
        data.append(UInt8(ascii: "\n"))
        // Fits the socket's buffer; a client that does not read is dropped.
        let sent = unsafe data.withUnsafeBytes { unsafe write(client.descriptor, $0.baseAddress, $0.count) }
        if sent != data.count { drop(client) }
    }
}
