public import ArgumentParser
import Foundation

extension ParsableCommand {
    /// Runs the command as a program: data on standard output, errors on standard error, exit status 0 done, 1 failed,
    /// 2 wrong usage, or what the command threw as `ExitCode`.
    public static func runAsProgram() {
        do {
            var command = try parseAsRoot()
            try command.run()
        } catch let status as ExitCode {
            Foundation.exit(status.rawValue)
        } catch {
            let text = fullMessage(for: error)
            switch exitCode(for: error) {
            case .success:
                print(text)
                Foundation.exit(0)
            case .validationFailure:
                tell(text)
                Foundation.exit(2)
            default:
                tell(text)
                Foundation.exit(1)
            }
        }
    }
}

/// Says something to whoever watches, on standard error. What cannot be written there (a full disk, a terminal that has
/// gone) is lost, and changes nothing else.
public func tell(_ text: String) { try? FileHandle.standardError.write(contentsOf: Data("\(text)\n".utf8)) }
