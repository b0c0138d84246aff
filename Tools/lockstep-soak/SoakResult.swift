import Foundation

/// The verdict: the file that `--report` writes has exactly these keys.
struct SoakResult: Codable {
    var seed: UInt64
    var seconds = 0.0
    var rounds = 0
    /// Accidents that happened, by kind.
    var accidents: [String: Int] = [:]
    /// Rounds after which a node had been brought back, by the way in which the last one was.
    var returns: [String: Int] = [:]
    /// Operations of all writers that were answered, and those that were on every in-sync disk by then.
    var operationsAnswered = 0
    var operationsSynced = 0
    /// Boundaries between two lives of a writer that were judged, and those at which both rooms' memories had been lost.
    var livesJudged = 0
    var livesJudgedAfterDoubleLoss = 0
    /// Answered operations that a loss of both memories took; no promise covers them.
    var unsyncedLost = 0
    var entriesCompared = 0
    var bytesCompared = 0
    /// Longest time from "all is mended" to "in sync".
    var secondsToSyncMax = 0.0
    /// Why it did not hold; empty if it did.
    var findings: [String] = []

    init(seed: UInt64) { self.seed = seed }

    /// Nothing was found, and something was looked at.
    var holds: Bool { findings.isEmpty && rounds > 0 && operationsAnswered > 0 && livesJudged > 0 }

    func json() throws -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        return try encoder.encode(self) + Data("\n".utf8)
    }

    var text: String {
        let counts = accidents.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", ")
        let ways = returns.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", ")
        var words = """

            seed \(seed): \(rounds) rounds in \(Int(seconds)) s
            accidents: \(counts)
            nodes brought back by: \(ways)
            \(operationsAnswered) operations answered, \(operationsSynced) of them synced; \(livesJudged) ends of writers \
            judged, \(livesJudgedAfterDoubleLoss) after the loss of both memories (\(unsyncedLost) operations that were never \
            synced were lost there)
            \(entriesCompared) entries and \(bytesCompared >> 20) MiB compared between the rooms; at most \
            \(String(format: "%.1f", secondsToSyncMax)) s until in sync

            """
        for finding in findings { words += "\nFINDING: \(finding)\n" }
        return words + (holds ? "\nVERDICT: HELD" : "\nVERDICT: FAILED (again with --seed \(seed))")
    }
}
