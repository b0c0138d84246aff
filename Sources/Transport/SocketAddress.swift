import Glibc

/// An IPv4 or IPv6 address with a port.
public struct SocketAddress: Sendable, Hashable, CustomStringConvertible {
    /// 4 or 16 bytes, as on the wire.
    public let address: [UInt8]
    public let port: UInt16
    /// The interface of a link-local IPv6 address; 0 for others.
    public let scope: UInt32

    private init(address: [UInt8], port: UInt16, scope: UInt32) {
        self.address = address
        self.port = port
        self.scope = scope
    }

    /// Reads "192.0.2.1", "2001:db8::1" or "fe80::1%eth0"; nil for anything else. Names are not looked up: a mirror must
    /// not wait for a name server.
    public init?(_ text: String, port: UInt16) {
        let parts = text.split(separator: "%", maxSplits: 1, omittingEmptySubsequences: false)
        var room = [UInt8](repeating: 0, count: 16)
        if unsafe inet_pton(AF_INET, text, &room) == 1 {
            self.init(address: Array(room[..<4]), port: port, scope: 0)
            return
        }
        guard unsafe inet_pton(AF_INET6, String(parts[0]), &room) == 1 else { return nil }
        var scope: UInt32 = 0
        if parts.count == 2 {
            scope = unsafe if_nametoindex(String(parts[1]))
            guard scope != 0 else { return nil }
        }
        self.init(address: room, port: port, scope: scope)
    }

    public var isIPv6: Bool { address.count == 16 }

    /// The address without the port: what limits for each source count by.
    public var host: String {
        var text = [CChar](repeating: 0, count: Int(INET6_ADDRSTRLEN))
        let result = unsafe inet_ntop(
            isIPv6 ? AF_INET6 : AF_INET, address, &text, socklen_t(text.count))
        guard unsafe result != nil else { return "unknown" }
        let end = text.firstIndex(of: 0) ?? text.count
        return String(decoding: text[..<end].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    public var description: String { isIPv6 ? "[\(host)]:\(port)" : "\(host):\(port)" }

    /// Calls `body` with the kernel's form.
    func withSockaddr<Value>(_ body: (UnsafePointer<sockaddr>, socklen_t) -> Value) -> Value {
        if isIPv6 {
            var raw = sockaddr_in6()
            raw.sin6_family = sa_family_t(AF_INET6)
            raw.sin6_port = port.bigEndian
            raw.sin6_scope_id = scope
            unsafe withUnsafeMutableBytes(of: &raw.sin6_addr) { unsafe $0.copyBytes(from: address) }
            return unsafe withUnsafeBytes(of: &raw) { bytes in
                unsafe body(bytes.assumingMemoryBound(to: sockaddr.self).baseAddress!, socklen_t(bytes.count))
            }
        }
        var raw = sockaddr_in()
        raw.sin_family = sa_family_t(AF_INET)
        raw.sin_port = port.bigEndian
        unsafe withUnsafeMutableBytes(of: &raw.sin_addr) { unsafe $0.copyBytes(from: address) }
        return unsafe withUnsafeBytes(of: &raw) { bytes in
            unsafe body(bytes.assumingMemoryBound(to: sockaddr.self).baseAddress!, socklen_t(bytes.count))
        }
    }

    /// What `fill` (accept, getsockname, ...) wrote; nil when it failed or wrote another family.
    static func reading(
        _ fill: (UnsafeMutablePointer<sockaddr>, UnsafeMutablePointer<socklen_t>) -> Int32
    ) -> (result: Int32, address: SocketAddress?) {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        return unsafe withUnsafeMutableBytes(of: &storage) { bytes in
            let result = unsafe fill(bytes.assumingMemoryBound(to: sockaddr.self).baseAddress!, &length)
            guard result >= 0 else { return (result, nil) }
            switch Int32(unsafe bytes.load(as: sa_family_t.self)) {
            case AF_INET:
                let raw = unsafe bytes.load(as: sockaddr_in.self)
                let address = unsafe withUnsafeBytes(of: raw.sin_addr) { unsafe Array($0) }
                return (result, SocketAddress(address: address, port: UInt16(bigEndian: raw.sin_port), scope: 0))
            case AF_INET6:
                let raw = unsafe bytes.load(as: sockaddr_in6.self)
                let address = unsafe withUnsafeBytes(of: raw.sin6_addr) { unsafe Array($0) }
                // A dual-stack socket shows IPv4 sources as ::ffff:a.b.c.d.
                let port = UInt16(bigEndian: raw.sin6_port)
                if address[..<10].allSatisfy({ $0 == 0 }), address[10] == 255, address[11] == 255 {
                    return (result, SocketAddress(address: Array(address[12...]), port: port, scope: 0))
                }
                return (result, SocketAddress(address: address, port: port, scope: raw.sin6_scope_id))
            default: return (result, nil)
            }
        }
    }
}
