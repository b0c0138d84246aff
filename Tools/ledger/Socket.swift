import ArgumentParser
import Foundation

/// An address and a port: `10.77.0.100:5400` or `[fd77::100]:5400`.
struct Endpoint: ExpressibleByArgument, CustomStringConvertible {
    var host: String
    var port: String

    init?(argument: String) {
        guard let colon = argument.lastIndex(of: ":") else { return nil }
        host = argument[..<colon].trimmingCharacters(in: ["[", "]"])
        port = String(argument[argument.index(after: colon)...])
        guard !host.isEmpty, let number = UInt16(port), number > 0 else { return nil }
    }

    var description: String { host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)" }

    /// Resolves numeric addresses only: nothing here may wait for a name server.
    func withAddress<Result>(_ body: (UnsafePointer<addrinfo>) throws -> Result) throws -> Result {
        var hints = addrinfo()
        hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var list: UnsafeMutablePointer<addrinfo>?
        guard getaddrinfo(host, port, &hints, &list) == 0, let list else {
            throw LedgerError("'\(self)' is not a numeric address and port.")
        }
        defer { freeaddrinfo(list) }
        return try body(list)
    }
}

/// A TCP connection that carries lines. Every wait is bounded.
final class LineSocket {
    let descriptor: Int32
    private var buffer: [UInt8] = []
    private var consumed = 0

    init(descriptor: Int32) {
        self.descriptor = descriptor
        var on: Int32 = 1
        setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &on, socklen_t(MemoryLayout<Int32>.size))
    }

    deinit { Foundation.close(descriptor) }

    /// Connects within a time limit; a lost SYN is not worth the kernel's own second of waiting.
    convenience init(to endpoint: Endpoint, timeoutMilliseconds: Int32) throws {
        let descriptor = try endpoint.withAddress { address in
            let descriptor = socket(address.pointee.ai_family, Int32(SOCK_STREAM.rawValue), 0)
            guard descriptor >= 0 else { throw LedgerError("No socket: \(String(cString: strerror(errno))).") }
            _ = fcntl(descriptor, F_SETFL, O_NONBLOCK)
            _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
            var failure: Int32 = 0
            if connect(descriptor, address.pointee.ai_addr, address.pointee.ai_addrlen) != 0 {
                failure = errno
                if failure == EINPROGRESS {
                    var waiting = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                    failure = ETIMEDOUT
                    if poll(&waiting, 1, timeoutMilliseconds) == 1 {
                        var length = socklen_t(MemoryLayout<Int32>.size)
                        getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &failure, &length)
                    }
                }
            }
            guard failure == 0 else {
                Foundation.close(descriptor)
                throw LedgerError("Cannot connect to \(endpoint): \(String(cString: strerror(failure))).")
            }
            _ = fcntl(descriptor, F_SETFL, 0)
            return descriptor
        }
        self.init(descriptor: descriptor)
    }

    func send(_ text: String) throws {
        let bytes = Array(text.utf8)
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes { raw in
                Foundation.send(descriptor, raw.baseAddress! + sent, bytes.count - sent, Int32(MSG_NOSIGNAL))
            }
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { throw LedgerError("The connection broke: \(String(cString: strerror(errno))).") }
            sent += count
        }
    }

    /// The next line without its end; nil when the other side has closed.
    ///
    /// - Parameter timeoutMilliseconds: negative waits for ever.
    func line(timeoutMilliseconds: Int32) throws -> String? {
        while true {
            if let end = buffer[consumed...].firstIndex(of: UInt8(ascii: "\n")) {
                defer { consumed = end + 1 }
                return String(decoding: buffer[consumed..<end], as: UTF8.self)
            }
            buffer.removeFirst(consumed)
            consumed = 0
            guard buffer.count < 4096 else { throw LedgerError("A line of more than 4096 bytes.") }
            var waiting = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            let ready = poll(&waiting, 1, timeoutMilliseconds)
            if ready < 0 && errno == EINTR && !interrupted() { continue }
            guard ready > 0 else { throw LedgerError("No answer within \(timeoutMilliseconds) ms.") }
            var chunk = [UInt8](repeating: 0, count: 65_536)
            let count = read(descriptor, &chunk, chunk.count)
            if count < 0 && errno == EINTR { continue }
            guard count >= 0 else { throw LedgerError("The connection broke: \(String(cString: strerror(errno))).") }
            if count == 0 { return nil }
            buffer.append(contentsOf: chunk[..<count])
        }
    }
}
