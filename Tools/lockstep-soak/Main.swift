//  lockstep-soak: a cluster in rooms that is never left alone, and a judge that forgets nothing. See Soak.swift.
import ArgumentParser
import CommandMain
import Foundation
import Rooms
import Workload

@main
enum Program {
    static func main() {
        umask(0)
        // The rooms take SIGINT and SIGTERM (see Rooms/Signals.swift); writers end by them.
        signal(SIGPIPE, SIG_IGN)
        SoakCommand.runAsProgram()
    }
}

struct SoakCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "soak",
        abstract:
            "Loses nodes, rooms, links, power and disks at random while writers write, and looks for every write.",
        discussion: """
            Needs root. Everything happens in namespaces and disk images of its own and is removed at the end, also after \
            Ctrl-C. What happens when depends on the seed alone. After each round of accidents all is mended; then both \
            rooms must come in sync within the given time, their plain files must be identical, and every writer's directory \
            must be what it was after some operation: after all that was answered; if both rooms' memories were lost at once, \
            after all that was synced. Exit status 0 only if all of that held in every round.
            """,
        subcommands: [RunCommand.self, WritersCommand.self], defaultSubcommand: RunCommand.self)
}

struct RunCommand: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "run", abstract: "Runs the rounds (the default).")

    @Option(help: "How long (1 to 10000). The round that runs then is finished.") var minutes = 5
    @Option(help: "What the rounds are drawn from; by default a random one, which is printed.") var seed: UInt64?
    @Option(help: "How many writers, each with its own directory (1 to 16).") var writers = 4
    @Option(help: "Seconds within which both rooms must be in sync when all is mended.") var patience = 240
    @Option(help: "Write the verdict to this file as JSON.") var report: String?
    @Option(help: "When something did not hold, keep the logs of all rooms and the writers' notes in this directory.")
    var logs: String?
    @Flag(help: "With --logs: keep both rooms' files, journals and votes too.") var keep = false
    @Flag(help: "Only print what would happen in the first 20 rounds.") var plan = false
    @Option(help: .hidden) var binaries: String?
    @Option(help: .hidden) var etc: String?

    func validate() throws {
        guard (1...10_000).contains(minutes) else { throw ValidationError("--minutes must be between 1 and 10000.") }
        guard (1...16).contains(writers) else { throw ValidationError("--writers must be between 1 and 16.") }
        guard !keep || logs != nil else { throw ValidationError("--keep needs --logs DIR, where to keep them.") }
    }

    func run() throws {
        let seed = self.seed ?? UInt64.random(in: 1...999_999)
        if plan {
            var schedule = Schedule(seed: seed)
            for _ in 0..<20 { print(schedule.next().text) }
            return
        }
        let own = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath().deletingLastPathComponent().path
        let settings = Soak.Settings(
            seconds: Double(minutes) * 60, seed: seed, writers: writers, patienceSeconds: Double(patience),
            binaries: binaries ?? own, etc: etc ?? "/usr/share/lockstep", logs: logs, keepsFiles: keep)
        let progress = Progress(seconds: settings.seconds)
        let result = Soak.run(settings, progress)
        progress.end()
        if let report { try result.json().write(to: URL(fileURLWithPath: report)) }
        print(result.text)
        if !result.holds { throw ExitCode.failure }
    }
}

struct WritersCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "writers", abstract: "The application: the writers.", shouldDisplay: false)
    @Option var directory: String
    @Option var records: String
    @Option var node: String
    @Option var writers: Int
    @Option var seed: UInt64
    func run() throws {
        for number in 0..<writers {
            let thread = Thread {
                var life: UInt64 = 0
                while true {
                    life += 1
                    // Sometimes as fast as it goes: then the journal does not reach back for long.
                    let pauseMax = [0, 4, 16].randomElement() ?? 0
                    let writer = Writer(
                        name: "w\(number)", directory: directory, records: records, node: node,
                        seed: seed &* 1_000_003 &+ UInt64(number) &* 7919 &+ bootNanoseconds() &+ life,
                        pauseMax: pauseMax)
                    do {
                        try writer.run()
                    } catch {
                        // The mirror is gone from here. Whoever took it away will kill this process, or give it back.
                        print("w\(number): \(error)")
                        usleep(200_000)
                    }
                }
            }
            thread.stackSize = 4 << 20
            thread.start()
        }
        while true { sleep(3600) }
    }
}
