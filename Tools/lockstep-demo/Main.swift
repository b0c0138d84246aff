//  lockstep-demo: shows the main job and judges it. See Story.swift for what happens, DemonstrationReport (Rooms) for what
//  the verdict is made of.
import ArgumentParser
import Foundation
import Rooms

extension ClusterApplication: ExpressibleByArgument {}

@main
struct Demonstration: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "demo",
        abstract: "Two rooms, a witness, and not one lost transfer: loses a room, a service and a link, and counts.",
        discussion: """
            Needs root. Everything happens in network namespaces of its own and is removed at the end, also after Ctrl-C.
            Exit status 0 only if no acknowledged transfer is missing, all money is where it belongs, exactly one room \
            served at any time, and the plain files of both rooms are identical.
            """)

    @Option(help: "What runs on the mirrored directory: ledger (SQLite) or postgresql.")
    var application = ClusterApplication.ledger
    @Option(help: "Seconds of undisturbed transfers, spread over the pauses between the events (5 to 3600).")
    var seconds = 30
    @Option(help: "Write the verdict to this file as JSON.") var report: String?
    @Option(help: "Keep the logs of all rooms in this directory.") var logs: String?
    @Option(help: .hidden) var binaries: String?
    @Option(help: .hidden) var etc: String?

    func validate() throws {
        guard (5...3600).contains(seconds) else { throw ValidationError("--seconds must be between 5 and 3600.") }
    }

    func run() throws {
        let own = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath().deletingLastPathComponent().path
        let binaries = self.binaries ?? own
        let display = Display()
        display.title("Lockstep: two rooms, a witness, and not one lost transfer")
        do {
            let cluster = try Cluster(binaries: binaries, etc: etc ?? nearestEtc(own), application: application)
            defer {
                display.end()
                keepLogs(of: cluster)
                cluster.close()
            }
            let story = Story(cluster: cluster, display: display, calmSeconds: Double(seconds))
            let result = try story.tell()
            display.end()
            display.verdict(result)
            if let report { try result.report.json().write(to: URL(fileURLWithPath: report)) }
            if !result.report.holds { throw ExitCode.failure }
        } catch let code as ExitCode {
            throw code
        } catch {
            display.end()
            display.failure("\(error)")
            throw ExitCode.failure
        }
    }

    /// Without `--etc`: the etc/ of the source tree that the program was built in.
    private func nearestEtc(_ start: String) -> String {
        var directory = URL(fileURLWithPath: start)
        while directory.path != "/" {
            let candidate = directory.appendingPathComponent("etc/ledger.toml").path
            if FileManager.default.fileExists(atPath: candidate) { return directory.path + "/etc" }
            directory.deleteLastPathComponent()
        }
        return "/usr/share/lockstep"
    }

    private func keepLogs(of cluster: Cluster) {
        guard let logs else { return }
        for room in cluster.building.rooms {
            let target = "\(logs)/\(room.name)"
            try? FileManager.default.createDirectory(atPath: logs, withIntermediateDirectories: true)
            try? FileManager.default.removeItem(atPath: target)
            try? FileManager.default.copyItem(atPath: room.directory + "/logs", toPath: target)
        }
    }
}
