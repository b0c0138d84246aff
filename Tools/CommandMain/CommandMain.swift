public import ArgumentParser
import CLinux
import Foundation

extension ParsableCommand {
    /// Runs the command as a program: data on standard output, errors on standard error, exit status 0 done, 1 failed,
    /// 2 wrong usage, or what the command threw as `ExitCode`. Data that could not be written is a failure.
    public static func runAsProgram() {
        do {
            var command = try parseAsRoot()
            try command.run()
            end(0)
        } catch let status as ExitCode {
            end(status.rawValue)
        } catch {
            let text = fullMessage(for: error)
            switch exitCode(for: error) {
            case .success:
                print(text)
                end(0)
            case .validationFailure:
                tell(text)
                end(2)
            default:
                tell(text)
                end(1)
            }
        }
    }

    private static func end(_ status: Int32) -> Never {
        let written = clinux_flush_stdout()
        guard written < 0 else { Foundation.exit(status) }
        tell("\(_commandName): cannot write to standard output: \(String(cString: strerror(-written)))")
        Foundation.exit(1)
    }
}

/// Says something to whoever watches, on standard error. What cannot be written there (a full disk, a terminal that has
/// gone) is lost, and changes nothing else.
public func tell(_ text: String) { try? FileHandle.standardError.write(contentsOf: Data("\(text)\n".utf8)) }
