import Format
import Glibc
public import Logging
public import Ring
import Synchronization

/// A connection between two reactors: its hello is read, its next frames belong to the thread that attaches it. Closes
/// when nobody does.
public final class DetachedConnection: Sendable {
    public let remote: SocketAddress
    private let channel: Hello.Channel
    private let limits: ConnectionLimits
    private let leftover: [UInt8]
    /// -1 once it was attached.
    private let descriptor: Mutex<Int32>

    init(
        descriptor: Int32, channel: Hello.Channel, leftover: [UInt8], remote: SocketAddress, limits: ConnectionLimits
    ) {
        self.descriptor = Mutex(descriptor)
        self.channel = channel
        self.leftover = leftover
        self.remote = remote
        self.limits = limits
    }

    deinit { descriptor.withLock { if $0 >= 0 { _ = Glibc.close($0) } } }

    /// Continues on the calling reactor, once. Set the handlers before this returns to the loop.
    public func attach(
        to reactor: Reactor, options: StreamOptions = StreamOptions(), logger: Logger
    ) -> Connection {
        let taken = descriptor.withLock { descriptor in
            defer { descriptor = -1 }
            return descriptor
        }
        precondition(taken >= 0, "a connection is attached once")
        let connection = Connection(
            reactor: reactor, stream: TCPStream(owning: taken, options: options), remote: remote,
            accepted: [], limits: limits, logger: logger)
        connection.accept(channel.frameTypes)
        connection.start()
        connection.take(leftover: leftover)
        return connection
    }
}
