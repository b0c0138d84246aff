public import Configuration
public import Format
import Foundation
import Glibc
import Ring

/// Talks to the daemon on this machine.
public enum AdminClient {
    public static func socketPath(_ configuration: MirrorConfiguration, node: NodeID) -> String {
        configuration.runtimeDirectory + "/" + configuration.node(node).name + ".sock"
    }

    static func makeSocket(blocking: Bool = false) throws -> Int32 {
        let flags = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue) | (blocking ? 0 : Int32(SOCK_NONBLOCK.rawValue))
        let descriptor = socket(AF_UNIX, flags, 0)
        guard descriptor >= 0 else { throw StartError("cannot make a socket: \(errorText(errno))") }
        return descriptor
    }

    static func withAddress(
        _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
    ) throws -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        let room = MemoryLayout.size(ofValue: address.sun_path)
        guard bytes.count < room else {
            throw StartError("\(path) is too long for a socket: choose a shorter mirror name")
        }
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
        return unsafe withUnsafePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
    }

    /// Sends a request and waits for the answer, at most `timeoutSeconds`.
    public static func call(
        _ request: AdminRequest, configuration: MirrorConfiguration, node: NodeID, timeoutSeconds: Int = 10
    ) throws -> AdminReply {
        try call(
            request, path: socketPath(configuration, node: node), mirror: configuration.name,
            timeoutSeconds: timeoutSeconds)
    }

    /// What an error of the socket means.
    static func refused(_ code: Int32, _ path: String, _ mirror: String, _ timeoutSeconds: Int) -> StartError {
        switch code {
        case EACCES, EPERM: StartError("only root may ask lockstepd (\(path)): use sudo")
        case EAGAIN, EWOULDBLOCK:
            StartError("lockstepd did not answer within \(timeoutSeconds) s; its log says why")
        case EPIPE, ECONNRESET:
            StartError(
                "lockstepd closed the connection: it has ended or restarted meanwhile, or too many ask. Ask again; "
                    + "whether an order was carried out, `lockstep status` shows")
        case ENOENT, ECONNREFUSED:
            StartError(
                "lockstepd does not run here for mirror \(mirror) (\(path): \(errorText(code))). "
                    + "Start it: systemctl start lockstepd@\(mirror)")
        default: StartError("cannot ask lockstepd (\(path)): \(errorText(code))")
        }
    }

    /// - Parameter path: of the daemon's socket.
    public static func call(
        _ request: AdminRequest, path: String, mirror: String, timeoutSeconds: Int = 10
    ) throws -> AdminReply {
        let descriptor = try makeSocket(blocking: true)
        defer { close(descriptor) }
        var limit = timeval(tv_sec: timeoutSeconds, tv_usec: 0)
        // A daemon that does not accept any more lets `connect` wait: for the time to send.
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            unsafe setsockopt(descriptor, SOL_SOCKET, option, &limit, socklen_t(MemoryLayout<timeval>.size))
        }
        let connected = unsafe try withAddress(path) { address, length in unsafe connect(descriptor, address, length) }
        guard connected == 0 else { throw refused(errno, path, mirror, timeoutSeconds) }
        var data = try JSONEncoder().encode(request)
        data.append(UInt8(ascii: "\n"))
        let sent = unsafe data.withUnsafeBytes {
            unsafe send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
        }
        guard sent == data.count else { throw refused(sent < 0 ? errno : EIO, path, mirror, timeoutSeconds) }
        var answer = Data()
        var buffer = [UInt8](repeating: 0, count: 65536)
        while answer.last != UInt8(ascii: "\n") {
            let count = unsafe read(descriptor, &buffer, buffer.count)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw refused(count == 0 ? ECONNRESET : errno, path, mirror, timeoutSeconds) }
            answer.append(contentsOf: buffer[..<count])
        }
        return try JSONDecoder().decode(AdminReply.self, from: answer)
    }
}
