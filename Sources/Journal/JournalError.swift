internal import Glibc

/// What is wrong with a journal, in words for an administrator: what failed, on what, what to do.
public struct JournalError: Error, Sendable, Hashable, CustomStringConvertible {
    public enum Code: Sendable, Hashable {
        /// No file at that path.
        case notFound
        /// The file exists already (creation never overwrites).
        case exists
        /// Another process has it open.
        case locked
        /// Its size is not that of a journal, or not the size it was made with.
        case wrongSize
        /// No two superblock copies agree.
        case superblocks
        case otherMirror
        case otherNode
        case otherVersion
        /// A system call failed: errno.
        case system(Int32)
        /// A write failed earlier; nothing is accepted any more.
        case failed
        /// The batch does not continue the journal.
        case notContiguous
        /// There is no room, or too much is in flight.
        case full
        /// No batch ends at that seq.
        case notABoundary
        /// Part of the journal is damaged and must first be repaired from the other room.
        case damaged
        /// What was asked for has been overwritten or was never here.
        case gone
        /// Not now: a cut or reset is going on.
        case busy
    }

    public let code: Code
    public let description: String
    public init(_ code: Code, _ description: String) {
        self.code = code
        self.description = description
    }

    static func system(_ number: Int32, _ doing: String, _ path: String) -> JournalError {
        let code = abs(number)
        let text = unsafe String(cString: strerror(code))
        return JournalError(.system(code), "\(doing) \(path): \(text) (errno \(code))")
    }
}
