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

    /// - Parameter path: of the daemon's socket.
    public static func call(
        _ request: AdminRequest, path: String, mirror: String, timeoutSeconds: Int = 10
    ) throws -> AdminReply {
        let descriptor = try makeSocket(blocking: true)
        defer { close(descriptor) }
        var limit = timeval(tv_sec: timeoutSeconds, tv_usec: 0)
        unsafe setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        let connected = unsafe try withAddress(path) { address, length in unsafe connect(descriptor, address, length) }
        guard connected == 0 else {
            throw StartError(
                "lockstepd does not run here for mirror \(mirror) (\(path): \(errorText(errno))). "
                    + "Start it: systemctl start lockstepd@\(mirror)")
        }
        var data = try JSONEncoder().encode(request)
        data.append(UInt8(ascii: "\n"))
        guard unsafe data.withUnsafeBytes({ unsafe write(descriptor, $0.baseAddress, $0.count) }) == data.count else {
            throw StartError("cannot ask lockstepd: \(errorText(errno))")
        }
        var answer = Data()
        var buffer = [UInt8](repeating: 0, count: 65536)
        while answer.last != UInt8(ascii: "\n") {
            let count = unsafe read(descriptor, &buffer, buffer.count)
            guard count > 0 else {
                throw StartError("lockstepd did not answer within \(timeoutSeconds) s; its log says why")
            }
            answer.append(contentsOf: buffer[..<count])
        }
        return try JSONDecoder().decode(AdminReply.self, from: answer)
    }
}
