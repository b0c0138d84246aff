import CLinux
import Glibc

/// An owned descriptor: handed over by `consuming`, closed explicitly (a forgotten one is closed when it goes away, but
/// then nobody hears of an error).
public struct FileDescriptor: ~Copyable, Sendable {
    public let rawValue: Int32

    /// Takes over a descriptor that nobody else closes.
    public init(owning rawValue: Int32) {
        precondition(rawValue >= 0, "not a descriptor: \(rawValue)")
        self.rawValue = rawValue
    }

    /// Opens `path`, close-on-exec. `flags` as for open(2); those that Swift does not know are in CLinux
    /// (`CLINUX_O_DIRECT`, ...).
    public static func open(
        _ path: String, flags: Int32, mode: UInt32 = 0o600
    ) throws(RingError) -> FileDescriptor {
        let result = unsafe clinux_open(path, flags, mode)
        guard result >= 0 else { throw RingError("open", path, code: -result) }
        return FileDescriptor(owning: result)
    }

    /// Closes and tells whether that worked.
    public consuming func close() throws(RingError) {
        let raw = rawValue
        discard self
        let result = clinux_close(raw)
        guard result >= 0 else { throw RingError("close", "descriptor \(raw)", code: -result) }
    }

    /// Gives the descriptor up without closing it.
    public consuming func release() -> Int32 {
        let raw = rawValue
        discard self
        return raw
    }

    deinit { _ = clinux_close(rawValue) }
}

/// How many descriptors this process may have (RLIMIT_NOFILE).
public enum DescriptorLimit {
    /// Raises it to `wanted`, or as far as the system allows; never lowers it.
    /// - Returns: what it is now.
    @discardableResult
    public static func raise(to wanted: Int) -> Int {
        let result = clinux_raise_descriptor_limit(UInt64(wanted))
        // Only a limit beyond the kernel's own (fs.nr_open) is refused; what every system starts with is there.
        return result > 0 ? Int(result) : 1024
    }
}
