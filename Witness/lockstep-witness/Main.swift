import ArgumentParser
import CommandMain
import Configuration
import Foundation
import Logging
import Ring
import Synchronization
import Transport
import WitnessCore

@main
enum Main {
    static func main() { LockstepWitness.runAsProgram() }
}

struct LockstepWitness: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "lockstep-witness",
        abstract: "The third vote: decides with the two nodes of each mirror which of them serves. Holds no data.",
        discussion: """
            Runs in the foreground and logs to standard error; SIGTERM or SIGINT ends it. It may be restarted at any time: \
            services go on as long as both their nodes are well. Installed anew, with an empty state directory, it waits \
            until the nodes of a mirror give it its memory back.
            Exit status: 0 stopped, 1 failed, 2 wrong usage or configuration.
            """)

    @Option(name: .long, help: "The configuration file; the options below override it.")
    var config: String?

    @Option(name: .long, help: "Address and port to listen on (default: 0.0.0.0:7401).")
    var listen: String?

    @Option(name: .long, help: "Directory of its durable votes (default: /var/lib/lockstep-witness).")
    var state: String?

    @Option(name: .long, help: "trace, debug, info, notice, warning, error or critical.")
    var logLevel: String?

    @Option(
        name: .long,
        help: "The longest grant it gives, in ms (default: 4000); after a restart it promises nothing for as long.")
    var longestGrant: UInt32?

    func run() throws {
        let (address, directory, level, grant) = try settings()
        try ProgramLog.begin(level: level)
        var timing = QuorumTiming()
        timing.grant = BootNanoseconds(grant) * 1_000_000
        if let problem = timing.problems().first { throw ValidationError("the longest grant: \(problem)") }
        let chosenTiming = timing
        let logger = Logger(label: "lockstep-witness")
        let signals = StopSignals()
        let connections = raiseDescriptors(logger)
        do {
            let files = NodeMemoryFiles(directory: directory)
            let writer = try WorkerPool(threads: 1, name: "memories")
            let running = Mutex<ThreadBound<WitnessServer>?>(nil)
            let thread = try ReactorThread(name: "witness", logger: logger) { reactor in
                let voters = try WitnessVoters(
                    store: VoteStore(directory: directory), timing: chosenTiming, startedAt: reactor.now,
                    generator: SystemRandomNumberGenerator(), logger: logger)
                let server = try WitnessServer(
                    reactor: reactor, address: address, voters: voters, session: UInt64.random(in: 1 ... .max),
                    logger: logger, connectionsMaximum: connections)
                server.keepMemories(in: files, writer: writer)
                // The reactor's handlers refer to it; this keeps it as long as they run.
                reactor.beforeSleep { withExtendedLifetime(server) {} }
                let bound = ThreadBound(server)
                running.withLock { $0 = bound }
                logger.notice(
                    "listening on \(address)",
                    metadata: ["state": "\(directory)", "mirrors": "\(voters.mirrorCount)"])
            }
            signals.wait()
            logger.notice("stopping")
            _ = thread.call {
                running.withLock { bound in
                    bound?.value.writeMemories(all: true)
                    bound = nil
                }
            }
            thread.handle.stop()
            thread.join()
            writer.shutdown()
        } catch {
            logger.critical("\(error)")
            throw ExitCode(1)
        }
    }

    /// - Returns: how many connections there are descriptors for, beside what the votes need.
    private func raiseDescriptors(_ logger: Logger) -> Int {
        let descriptors = DescriptorLimit.raise(to: WitnessServer.wantedDescriptors)
        let connections = WitnessServer.connections(withDescriptors: descriptors)
        if connections < WitnessServer.connectionsMaximum {
            logger.warning(
                """
                this process may have \(descriptors) descriptors: enough for \(connections / 2) mirrors, each of which \
                takes two. For \(WitnessVoters.mirrorLimit), raise LimitNOFILE= in its unit (ulimit -n) to \
                \(WitnessServer.wantedDescriptors)
                """)
        }
        return connections
    }

    private func settings() throws -> (SocketAddress, String, Logger.Level, longestGrant: UInt32) {
        var endpoint = Endpoint("0.0.0.0:7401")
        var directory = "/var/lib/lockstep-witness"
        var level = Logger.Level.info
        var grant: UInt32 = 4000
        do {
            if let config {
                let file = try WitnessConfiguration.load(config)
                endpoint = file.listen
                directory = file.state
                level = Logger.Level(rawValue: file.logLevel.rawValue) ?? .info
                grant = UInt32(file.longestGrantMilliseconds)
            }
        } catch {
            tell("lockstep-witness: \(error)")
            throw ExitCode(2)
        }
        if let listen { endpoint = Endpoint(listen) }
        if let state { directory = state }
        if let logLevel {
            guard let chosen = Logger.Level(rawValue: logLevel) else {
                throw ValidationError("--log-level: \"\(logLevel)\" is no level; write for example info or debug")
            }
            level = chosen
        }
        guard let endpoint, let address = SocketAddress(endpoint.host, port: endpoint.port) else {
            throw ValidationError("--listen: write an address with a port, for example 0.0.0.0:7401 or [::]:7401")
        }
        return (address, directory, level, longestGrant ?? grant)
    }
}
