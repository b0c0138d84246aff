import Foundation

/// What the demonstration found: the file that `--report` writes has exactly these keys.
public struct DemonstrationReport: Codable, Equatable, Sendable {
    public struct Event: Codable, Equatable, Sendable {
        public var name: String
        /// The longest time between two acknowledged transfers around this event.
        public var secondsWithoutService: Double
        public init(name: String, secondsWithoutService: Double) {
            self.name = name
            self.secondsWithoutService = secondsWithoutService
        }
    }
    public struct Resync: Codable, Equatable, Sendable {
        public var changedBytes: Int
        public var sentBytes: Int
        public init(changedBytes: Int, sentBytes: Int) {
            self.changedBytes = changedBytes
            self.sentBytes = sentBytes
        }
    }
    public var acknowledged: Int
    public var missing: Int
    public var balanceConserved: Bool
    public var treesIdentical: Bool
    public var events: [Event]
    public var resync: Resync

    public init(
        acknowledged: Int, missing: Int, balanceConserved: Bool, treesIdentical: Bool, events: [Event], resync: Resync
    ) {
        self.acknowledged = acknowledged
        self.missing = missing
        self.balanceConserved = balanceConserved
        self.treesIdentical = treesIdentical
        self.events = events
        self.resync = resync
    }

    /// Why the verdict is not good; empty if it is.
    public var complaints: [String] {
        var complaints: [String] = []
        if acknowledged == 0 { complaints.append("no transfer was acknowledged: nothing has been shown") }
        if missing != 0 { complaints.append("\(missing) acknowledged transfers are missing") }
        if !balanceConserved { complaints.append("the balances do not follow from the transfers") }
        if !treesIdentical { complaints.append("the plain files of the two rooms differ") }
        return complaints
    }

    public var holds: Bool { complaints.isEmpty }

    public func json() throws -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        return try encoder.encode(self) + Data("\n".utf8)
    }
}
