import Foundation
import Testing

/// The programs as whoever calls them sees them.
@Suite struct CommandTests {
    /// A full disk, or a terminal that has gone: the exit status says the same.
    @Test(arguments: programs)
    func aMessageThatCannotBeWrittenChangesNoExitStatus(program: String) throws {
        #expect(try status(of: program, "--no-such-option") { $0.standardError = $1 } == 2)
    }

    /// Whoever keeps what it says in a file hears that the file is short.
    @Test(arguments: programs)
    func dataThatCannotBeWrittenAreAFailure(program: String) throws {
        #expect(try status(of: program, "--help") { $0.standardOutput = $1 } == 1)
    }

    private static let programs = ["lockstep", "lockstepd", "lockstep-witness", "lockstep-dump", "lockstep-bench"]

    /// nil: it crashed.
    private func status(
        of program: String, _ argument: String, _ onFullDisk: (Process, FileHandle?) -> Void
    ) throws -> Int32? {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "\(Harness.binaries)/\(program)")
        process.arguments = [argument]
        onFullDisk(process, FileHandle(forWritingAtPath: "/dev/full"))
        try process.run()
        process.waitUntilExit()
        return process.terminationReason == .exit ? process.terminationStatus : nil
    }
}
