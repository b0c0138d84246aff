import ArgumentParser
import Configuration
import Foundation
import Logging
import Node

struct Init: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Prepares this node for the mirror, once.",
        discussion: """
            With --first on the node that has the data; without it on the other one, whose backing directory is then made \
            equal to the first node's. Start lockstepd afterwards.
            """)
    @OptionGroup var options: MirrorOptions
    @Flag(name: .long, help: "This node has the data: the mirror begins here.")
    var first = false

    func run() throws {
        let (configuration, node) = try options.load()
        let logger = Logger(label: "lockstep") { label in
            var handler = StreamLogHandler.standardError(label: label)
            handler.logLevel = .warning
            return handler
        }
        do {
            if first {
                let progress = Progress(what: "writing the journal once")
                let id = try NodePreparation.first(configuration, node: node.id, logger: logger) { written, total in
                    progress.show(written, total)
                }
                progress.finish()
                print("mirror \(configuration.name) (\(id)) begins on \(node.name); start lockstepd here")
            } else {
                try NodePreparation.join(configuration, node: node.id, logger: logger)
                print("\(node.name) is prepared to join mirror \(configuration.name); start lockstepd here")
            }
        } catch {
            throw Failure.failed("\(error)")
        }
    }
}

struct Adopt: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Moves an existing directory into place as the mirror's files.",
        discussion: """
            The directory is moved (renamed; it must be on the file system of `backing`) to where the plain files live. \
            Stop the application first, and run `lockstep init --first` afterwards.
            """)
    @OptionGroup var options: MirrorOptions
    @Argument(help: "The directory that holds the application's files now.")
    var directory: String

    func run() throws {
        let (configuration, _) = try options.load()
        let backing = configuration.backing
        let files = FileManager.default
        var isDirectory: ObjCBool = false
        guard files.fileExists(atPath: directory, isDirectory: &isDirectory), isDirectory.boolValue else {
            throw Failure.failed("\(directory) is not a directory")
        }
        if let present = try? files.contentsOfDirectory(atPath: backing), !present.isEmpty {
            throw Failure.failed("\(backing) is not empty: \(present.sorted().prefix(3).joined(separator: ", ")) ...")
        }
        do {
            try NodePreparation.adopt(directory, configuration)
        } catch {
            throw Failure.failed("\(error)")
        }
        print("\(directory) is now \(backing); next: lockstep init --first --config \(options.config)")
    }
}

/// A bar on a terminal, a line now and then in a log.
final class Progress {
    private let what: String
    private let started = Date()
    private let isTerminal = isatty(STDERR_FILENO) == 1
    private var lastTenth = -1

    init(what: String) { self.what = what }

    func show(_ done: Int, _ total: Int) {
        let fraction = Double(done) / Double(max(1, total))
        let elapsed = Date().timeIntervalSince(started)
        let left = fraction > 0.02 ? ", about \(Units.duration(elapsed / fraction - elapsed)) left" : ""
        if isTerminal {
            let filled = Int(fraction * 30)
            let bar = String(repeating: "#", count: filled) + String(repeating: ".", count: 30 - filled)
            write("\r\(what) [\(bar)] \(Int(fraction * 100)) %\(left)   ")
        } else if Int(fraction * 4) != lastTenth {
            lastTenth = Int(fraction * 4)
            write("\(what): \(Int(fraction * 100)) %\(left)\n")
        }
    }

    func finish() { if isTerminal { write("\n") } }
    private func write(_ text: String) { try? FileHandle.standardError.write(contentsOf: Data(text.utf8)) }
}
