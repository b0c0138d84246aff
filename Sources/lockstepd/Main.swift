import ArgumentParser
import CommandMain
import Configuration
import Foundation
import Logging
import Node
import Ring

@main
enum Main {
    static func main() { Lockstepd.runAsProgram() }
}

struct Lockstepd: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "lockstepd",
        abstract: "Keeps one mirror on one node: replicates its files, serves them, takes over.",
        discussion: """
            Runs in the foreground and logs to standard error; SIGTERM hands the service over (if the other node can take \
            it) and stops cleanly. A second SIGTERM leaves at once.
            Exit status: 0 stopped, 1 failed, 2 wrong usage or configuration.
            """)

    @Option(name: .long, help: "The mirror's configuration file, the same on both nodes.")
    var config: String

    @Option(name: .long, help: "Which of the two nodes this is (default: the host name).")
    var node: String?

    @Option(name: .long, help: "How the journal is written: auto, io_uring or libaio (default: as configured).")
    var engine: String?

    @Flag(
        name: .long,
        help: """
            Only remove what a daemon that has ended left on this machine: the processes of its application, its \
            addresses, its mount.
            """)
    var cleanUp = false

    func run() throws {
        var settings: MirrorConfiguration
        let identity: MirrorConfiguration.Node
        do {
            settings = try MirrorConfiguration.load(config)
            identity = try settings.node(named: node ?? ProcessInfo.processInfo.hostName)
            if let engine {
                guard let choice = MirrorConfiguration.Journal.Engine(rawValue: engine) else {
                    throw ValidationError("--engine is auto, io_uring or libaio, not \(engine)")
                }
                settings.journal.engine = choice
            }
        } catch let error as ValidationError {
            throw error
        } catch {
            tell("lockstepd: \(error)")
            throw ExitCode(2)
        }
        let level = Logger.Level(rawValue: settings.logLevel.rawValue) ?? .info
        try ProgramLog.begin(level: level)
        var logger = Logger(label: "lockstepd")
        logger[metadataKey: "mirror"] = "\(settings.name)"
        logger[metadataKey: "node"] = "\(identity.name)"
        if cleanUp {
            do {
                try NodeProcess.cleanUp(settings, node: identity.id, logger: logger)
                return
            } catch {
                logger.error("\(error)")
                throw ExitCode(1)
            }
        }
        let signals = StopSignals()
        do {
            let process = try NodeProcess(configuration: settings, node: identity.id, logger: logger)
            try process.start()
            logger.notice("started")
            signals.wait()
            logger.notice("stopping")
            signals.exitOnNext()
            process.stop(timeoutSeconds: settings.stopLimitSeconds)
        } catch {
            logger.critical("\(error)")
            throw ExitCode(1)
        }
    }
}

extension MirrorConfiguration {
    /// Stopping the application, closing the directory, handing over: then the daemon leaves all the same.
    var stopLimitSeconds: Int { (application?.stopTimeoutSeconds ?? 0) + 30 }
}
