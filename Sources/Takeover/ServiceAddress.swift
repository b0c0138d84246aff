import CLinux
import Glibc

/// A virtual address and the interface that carries it on this node.
public struct ServiceAddress: Sendable, Hashable, CustomStringConvertible {
    /// 4 or 16 bytes in network order.
    public let bytes: [UInt8]
    public let prefixLength: UInt8
    public let interface: String
    /// `10.0.9.1/24`
    public let text: String

    public var isIPv6: Bool { bytes.count == 16 }
    public var description: String { "\(text) on \(interface)" }

    /// Reads `10.0.9.1/24` or `fd00:9::1/64`.
    public init(_ text: String, interface: String) throws(TakeoverError) {
        let parts = text.split(separator: "/", omittingEmptySubsequences: false)
        var four = in_addr()
        var six = in6_addr()
        if unsafe inet_pton(AF_INET, String(parts[0]), &four) == 1 {
            bytes = unsafe withUnsafeBytes(of: &four) { unsafe Array($0) }
        } else if unsafe inet_pton(AF_INET6, String(parts[0]), &six) == 1 {
            bytes = unsafe withUnsafeBytes(of: &six) { unsafe Array($0) }
        } else {
            throw TakeoverError(
                "read the virtual address \"\(text)\"", reason: "it is neither IPv4 nor IPv6",
                remedy: "Write it as 10.0.9.1/24 or fd00:9::1/64")
        }
        guard parts.count == 2, let length = UInt8(parts[1]), length >= 1, Int(length) <= bytes.count * 8 else {
            throw TakeoverError(
                "read the virtual address \"\(text)\"", reason: "it has no valid prefix length",
                remedy: "Write the bits of the network after a slash, such as 10.0.9.1/24")
        }
        prefixLength = length
        self.interface = interface
        self.text = text
    }

    /// Whether `other` is the same address on the same interface, whatever its prefix.
    func matches(_ other: clinux_address, index: Int32) -> Bool {
        guard (other.is_ipv6 != 0) == isIPv6, other.interface_index == index else { return false }
        return unsafe withUnsafeBytes(of: other.bytes) { unsafe $0.prefix(bytes.count).elementsEqual(bytes) }
    }

    /// Whether `other` lies in the network of this address.
    func sharesNetwork(with other: clinux_address) -> Bool {
        guard (other.is_ipv6 != 0) == isIPv6, other.prefix_length == prefixLength else { return false }
        let whole = Int(prefixLength) / 8
        let rest = prefixLength % 8
        return unsafe withUnsafeBytes(of: other.bytes) { theirs in
            guard unsafe theirs.prefix(whole).elementsEqual(bytes.prefix(whole)) else { return false }
            let mask = ~UInt8(0) << (8 - rest)
            guard rest > 0 else { return true }
            return unsafe (theirs[whole] ^ bytes[whole]) & mask == 0
        }
    }
}

/// The interface as it is now.
func findInterface(_ name: String, for action: String) throws(TakeoverError) -> clinux_interface {
    var interface = clinux_interface()
    let result = unsafe clinux_interface_find(name, &interface)
    guard result == 0 else {
        throw TakeoverError(
            action, code: -result,
            remedy: result == -ENODEV
                ? "There is no interface \(name) here: `ip link` lists them; correct `interface` in the configuration"
                : "Look at `ip link show \(name)`")
    }
    return interface
}
