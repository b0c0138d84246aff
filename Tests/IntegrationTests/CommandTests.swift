import Foundation
import Testing

/// The programs as whoever calls them sees them.
@Suite struct CommandTests {
    /// A full disk, or a terminal that has gone: the exit status says the same.
    @Test(arguments: ["lockstep", "lockstepd", "lockstep-witness", "lockstep-dump", "lockstep-bench"])
    func aMessageThatCannotBeWrittenChangesNoExitStatus(program: String) throws {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "\(Harness.binaries)/\(program)")
        process.arguments = ["--no-such-option"]
        process.standardError = FileHandle(forWritingAtPath: "/dev/full")
        try process.run()
        process.waitUntilExit()
        #expect(process.terminationReason == .exit && process.terminationStatus == 2)
    }
}
