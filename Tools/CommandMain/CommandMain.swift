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
                FileHandle.standardError.write(Data((text + "\n").utf8))
                Foundation.exit(2)
            default:
                FileHandle.standardError.write(Data((text + "\n").utf8))
                Foundation.exit(1)
            }
        }
    }
}
