public import CLinux
import Glibc
import Ring

/// Bytes in both directions, non-blocking: TCP now, TLS later. Used by one reactor only.
///
/// Results are bytes, 0 for the orderly end (receiving), or a negated errno; -EAGAIN means "watch the descriptor".
public protocol ByteStream: AnyObject {
    /// What to watch for readiness.
    var descriptor: Int32 { get }
    func receive(_ vectors: UnsafeBufferPointer<iovec>) -> Int
    func send(_ vectors: UnsafeBufferPointer<iovec>) -> Int
    /// No more bytes will be sent.
    func finishSending()
    func close()
}

/// Options of every TCP connection.
public struct StreamOptions: Sendable {
    /// Milliseconds that sent bytes may stay unacknowledged, or a silent peer unheard, before the kernel gives up.
    public var silenceLimitMilliseconds = 5000
    public init() {}
}

/// A TCP socket.
final class TCPStream: ByteStream {
    private(set) var descriptor: Int32

    /// Takes over a connected (or connecting) non-blocking socket.
    init(owning descriptor: Int32, options: StreamOptions) {
        self.descriptor = descriptor
        set(Int32(IPPROTO_TCP), TCP_NODELAY, 1)
        set(Int32(IPPROTO_TCP), TCP_USER_TIMEOUT, Int32(options.silenceLimitMilliseconds))
        set(SOL_SOCKET, SO_KEEPALIVE, 1)
        // Probes each second; the time limit above ends the connection.
        set(Int32(IPPROTO_TCP), TCP_KEEPIDLE, 1)
        set(Int32(IPPROTO_TCP), TCP_KEEPINTVL, 1)
        set(Int32(IPPROTO_TCP), TCP_KEEPCNT, Int32(max(1, options.silenceLimitMilliseconds / 1000)))
    }

    private func set(_ level: Int32, _ option: Int32, _ value: Int32) {
        var value = value
        let result = unsafe setsockopt(descriptor, level, option, &value, socklen_t(MemoryLayout<Int32>.size))
        // Each of these exists on every kernel that we support; a UNIX socket (tests) has none of them.
        assert(result == 0 || errno == EOPNOTSUPP || errno == ENOPROTOOPT, errorText(errno))
    }

    /// The error that the socket has collected, 0 for none: the outcome of a connect.
    var pendingError: Int32 {
        var value: Int32 = 0
        var length = socklen_t(MemoryLayout<Int32>.size)
        return unsafe getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &value, &length) == 0 ? value : errno
    }

    func receive(_ vectors: UnsafeBufferPointer<iovec>) -> Int {
        let result = unsafe readv(descriptor, vectors.baseAddress, Int32(vectors.count))
        return result < 0 ? Int(-errno) : result
    }

    func send(_ vectors: UnsafeBufferPointer<iovec>) -> Int {
        var message = unsafe msghdr()
        unsafe message.msg_iov = UnsafeMutablePointer(mutating: vectors.baseAddress)
        unsafe message.msg_iovlen = vectors.count
        let result = unsafe sendmsg(descriptor, &message, Int32(MSG_NOSIGNAL))
        return result < 0 ? Int(-errno) : result
    }

    func finishSending() { _ = shutdown(descriptor, Int32(SHUT_WR)) }

    func close() {
        guard descriptor >= 0 else { return }
        _ = Glibc.close(descriptor)
        descriptor = -1
    }

    /// Gives the socket up.
    func release() -> Int32 {
        defer { descriptor = -1 }
        return descriptor
    }

    deinit { close() }
}

/// A new non-blocking, close-on-exec TCP socket for the family of `address`.
func makeSocket(for address: SocketAddress) throws(RingError) -> Int32 {
    let type = Int32(SOCK_STREAM.rawValue | SOCK_NONBLOCK.rawValue | SOCK_CLOEXEC.rawValue)
    let descriptor = socket(address.isIPv6 ? AF_INET6 : AF_INET, type, 0)
    guard descriptor >= 0 else { throw RingError("create a socket for", "\(address)", code: errno) }
    return descriptor
}
