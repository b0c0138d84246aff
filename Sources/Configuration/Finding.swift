/// Something that `lockstep check` has to say about the machine.
public struct Finding: Sendable, Equatable, CustomStringConvertible {
    public enum Severity: String, Sendable, Comparable, CaseIterable {
        /// Worth knowing; nothing to do.
        case note
        /// It works, but less well or less safely than it could.
        case warning
        /// The mirror cannot work on this machine as it is.
        case error

        public static func < (left: Severity, right: Severity) -> Bool {
            allCases.firstIndex(of: left)! < allCases.firstIndex(of: right)!
        }
    }

    public var severity: Severity
    /// What was found.
    public var what: String
    /// `ledger.toml:12` when a key of the configuration is meant, else the thing on the machine.
    public var place: String
    /// What to do now; empty for a note.
    public var remedy: String

    public var description: String {
        "\(severity.rawValue): \(place): \(what).\(remedy.isEmpty ? "" : " \(remedy).")"
    }
}
