import ArgumentParser
import Foundation

/// `lockstep-dump`: looks into a journal, live or copied. Never writes, takes no lock.
@main
enum Main {
    static func main() {
        do {
            var command = try Dump.parseAsRoot()
            try command.run()
        } catch {
            let code = Dump.exitCode(for: error)
            if let status = error as? ExitCode { exit(status.rawValue) }
            let text = Dump.fullMessage(for: error)
            if code == .success {
                print(text)
                exit(0)
            }
            FileHandle.standardError.write(Data((text + "\n").utf8))
            exit(2)
        }
    }
}
