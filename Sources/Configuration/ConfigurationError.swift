/// A configuration that is refused, before anything on the machine has been touched.
///
/// It reads like a compiler's message: `ledger.toml:12: journal.sizeMebibytes: 32 is below the minimum of 64. Give ...`.
public struct ConfigurationError: Error, Sendable, Equatable, CustomStringConvertible {
    /// The configuration file as it was named.
    public var file: String
    /// The line in the file, counted from 1; nil when the file could not be read at all.
    public var line: Int?
    /// The key, with the section it stands in (`timing.leaseMilliseconds`); nil for an error of syntax.
    public var key: String?
    /// What was found and why it is refused.
    public var problem: String
    /// What to do now.
    public var remedy: String

    public init(file: String, line: Int?, key: String?, problem: String, remedy: String) {
        self.file = file
        self.line = line
        self.key = key
        self.problem = problem
        self.remedy = remedy
    }

    public var description: String {
        let place = line.map { "\(file):\($0)" } ?? file
        let subject = key.map { "\($0): " } ?? ""
        return "\(place): \(subject)\(problem). \(remedy)."
    }
}
