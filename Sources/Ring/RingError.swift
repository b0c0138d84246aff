import Glibc

/// A system call that failed: what was tried, on what, and what to do about it.
public struct RingError: Error, Sendable, CustomStringConvertible {
    /// What was being done, as a verb phrase: "open", "start io_uring".
    public let operation: String
    /// On what: a path, an address; may be empty.
    public let subject: String
    /// errno, positive.
    public let code: Int32
    /// What the administrator can do; may be empty.
    public let remedy: String

    public init(_ operation: String, _ subject: String = "", code: Int32, remedy: String = "") {
        self.operation = operation
        self.subject = subject
        self.code = code
        self.remedy = remedy
    }

    public var description: String {
        let place = subject.isEmpty ? "" : " \(subject)"
        let advice = remedy.isEmpty ? "" : ". \(remedy)"
        return "cannot \(operation)\(place): \(errorText(code))\(advice)"
    }
}

/// The words of an errno (positive, or negated as the kernel answers), with its number.
public func errorText(_ code: Int32) -> String {
    let positive = code < 0 ? -code : code
    var buffer = [CChar](repeating: 0, count: 128)
    let text = unsafe buffer.withUnsafeMutableBufferPointer { space -> String in
        guard let start = space.baseAddress, unsafe strerror_r(positive, start, space.count) == 0 else {
            return "error"
        }
        return unsafe String(cString: start)
    }
    return "\(text) (errno \(positive))"
}
