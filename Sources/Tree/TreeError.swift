internal import Format
internal import Glibc
internal import Ring

/// Something that the plain files refused: what was tried, on what, and what to do about it.
public struct TreeError: Error, Sendable, CustomStringConvertible {
    /// errno, positive: what an application may be told.
    public let code: Int32
    /// What was being done, as a verb phrase: "create", "open by handle".
    public let operation: String
    /// On what: a file number, a name, a path; may be empty.
    public let subject: String
    /// What the administrator can do; may be empty.
    public let remedy: String

    /// Nothing is wrong with the disk: it is full, or a quota is used up.
    public var isOutOfSpace: Bool { code == ENOSPC || code == EDQUOT }

    /// `operation` of an error of `fallocate`.
    static let allocating = "allocate"
    /// Of what is out of space: whether the file system's free blocks say nothing of it. A quota is not in them, and what
    /// one call allocates has no bound.
    public var isBeyondFreeBlocks: Bool { code == EDQUOT || operation == TreeError.allocating }

    public init(_ operation: String, _ subject: String = "", code: Int32, remedy: String = "") {
        self.code = code < 0 ? -code : code
        self.operation = operation
        self.subject = subject
        self.remedy = remedy
    }

    init(_ error: RingError) {
        self.init(error.operation, error.subject, code: error.code, remedy: error.remedy)
    }

    public var description: String {
        let place = subject.isEmpty ? "" : " \(subject)"
        let advice = remedy.isEmpty ? "" : ". \(remedy)"
        return "cannot \(operation)\(place): \(errorText(code))\(advice)"
    }
}

/// A name as a message shows it: bytes that are not UTF-8 are replaced.
func shown(_ name: FileName) -> String { "'" + String(decoding: name, as: UTF8.self) + "'" }
