import ArgumentParser
import Configuration
import Foundation

struct Check: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Reads the configuration and the machine and says what would not work.",
        discussion: "Changes nothing. Exit status 1 if something would not work.")
    @OptionGroup var options: MirrorOptions
    @Flag(name: .long, help: "Print JSON: an array of severity, what, where, remedy.")
    var json = false

    struct Line: Encodable {
        var severity: String
        var what: String
        var `where`: String
        var remedy: String
    }

    func run() throws {
        let (configuration, node) = try options.load()
        let findings = MachineCheck(configuration, node: node.id).findings()
        let lines = findings.map {
            Line(severity: "\($0.severity)", what: $0.what, where: $0.place, remedy: $0.remedy)
        }
        if json {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
            print(String(decoding: try encoder.encode(lines), as: UTF8.self))
        } else {
            for line in lines {
                print("\(line.severity): \(line.what) (\(line.where))")
                if !line.remedy.isEmpty { print("    \(line.remedy)") }
            }
            if lines.isEmpty { print("nothing found that would not work on \(node.name)") }
        }
        if findings.contains(where: { $0.severity == .error }) { throw ExitCode(1) }
    }
}
