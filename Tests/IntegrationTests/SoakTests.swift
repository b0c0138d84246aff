//  The soak, for a bounded time: line 36 of the table of failures, and whatever nobody has thought of.
import Foundation
import Rooms
import Testing

extension WholeSystem {
    @Suite struct SoakTests {
        /// LOCKSTEP_SOAK_SEED in the environment: other accidents.
        private static let seed =
            ProcessInfo.processInfo.environment["LOCKSTEP_SOAK_SEED"].flatMap { UInt64($0) } ?? 501
        /// Minutes: LOCKSTEP_SOAK_MINUTES in the environment, for long runs; 0 leaves it out.
        private static var minutes: Int {
            ProcessInfo.processInfo.environment["LOCKSTEP_SOAK_MINUTES"].flatMap { Int($0) } ?? 5
        }

        /// Writers rename, exchange, link, remove, truncate, punch and write while nodes, rooms, power, links and disks are
        /// lost. The same accidents each time; `Tools/soak` draws others.
        @Test(.enabled(if: minutes > 0), .timeLimit(.minutes(60)))
        func failure36AndAllAccidentsTogetherLoseNothingThatWasAnswered() throws {
            let seed = SoakTests.seed
            let base = "/var/tmp/lockstep-soak-\(getpid())"
            defer { try? FileManager.default.removeItem(atPath: base) }
            try FileManager.default.createDirectory(atPath: base, withIntermediateDirectories: true)
            let log = base + "/log"
            let logs = ProcessInfo.processInfo.environment["LOCKSTEP_TEST_LOGS"].map { ["--logs", $0, "--keep"] } ?? []
            let command =
                [
                    "\(Harness.binaries)/lockstep-soak", "run", "--minutes", "\(SoakTests.minutes)", "--seed",
                    "\(seed)",
                    "--binaries", Harness.binaries, "--etc", Harness.repository + "/etc", "--report", base + "/report",
                ] + logs
            let result = Result {
                try succeedOnHost(
                    ["sh", "-c", "\"$@\" >$0 2>&1", log] + command, within: Double(SoakTests.minutes) * 60 + 1200)
            }
            let words = (try? String(contentsOfFile: log, encoding: .utf8)) ?? ""
            print(words)
            guard case .success = result, words.contains("VERDICT: HELD") else {
                throw RoomsError("The soak of seed \(seed) found something:\n\(words.suffix(6000))")
            }
        }
    }
}
