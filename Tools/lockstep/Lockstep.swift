import ArgumentParser
import CommandMain
import Configuration
import Foundation
import Logging
import Node

/// The administrator's command. Every subcommand works on one mirror on this machine.
struct Lockstep: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "lockstep",
        abstract: "Looks after a mirror on this node.",
        discussion: """
            Exit status: 0 done, 1 failed, 2 wrong usage or configuration. `lockstep status` tells the role: 0 PRIM or \
            SECOND, 10 ALONE, 11 WAIT, 12 FROZEN, 13 STOP; 1 when the daemon does not answer. `lockstep verify`: 3 or 4 when \
            the nodes differ.
            """,
        subcommands: [
            Status.self, Start.self, Stop.self, Swap.self, Promote.self, Rejoin.self, Verify.self, Resync.self,
            Check.self,
            Init.self, Adopt.self,
        ])
}

@main
enum Main {
    static func main() { Lockstep.runAsProgram() }
}

/// Which mirror, and which of its nodes this is.
struct MirrorOptions: ParsableArguments {
    @Option(name: .long, help: "The mirror's configuration file.")
    var config: String

    @Option(name: .long, help: "Which of the two nodes this is (default: the host name).")
    var node: String?

    /// Reads the configuration, or ends with status 2 and the reason.
    func load() throws -> (MirrorConfiguration, MirrorConfiguration.Node) {
        do {
            let configuration = try MirrorConfiguration.load(config)
            return (configuration, try configuration.node(named: node ?? ProcessInfo.processInfo.hostName))
        } catch {
            throw Failure.usage("\(error)")
        }
    }
}

/// Ends a command with words and a status.
enum Failure {
    static func usage(_ text: String) -> ExitCode { saying(text, ExitCode(2)) }
    static func failed(_ text: String) -> ExitCode { saying(text, ExitCode(1)) }
    private static func saying(_ text: String, _ code: ExitCode) -> ExitCode {
        tell("lockstep: \(text)")
        return code
    }
}

/// Sends a request to the daemon; ends with status 1 and the reason when it cannot.
func call(_ command: AdminRequest.Command, _ options: MirrorOptions) throws -> NodeStatus {
    guard let status = try reply(to: AdminRequest(command), options).status else {
        throw Failure.failed("lockstepd sent an empty answer")
    }
    return status
}

/// The same, with the whole answer.
func reply(to request: AdminRequest, _ options: MirrorOptions) throws -> AdminReply {
    let (configuration, node) = try options.load()
    do {
        let reply = try AdminClient.call(request, configuration: configuration, node: node.id)
        if let error = reply.error { throw Failure.failed(error) }
        return reply
    } catch let code as ExitCode {
        throw code
    } catch {
        throw Failure.failed("\(error)")
    }
}

/// Waits until `reached` holds, telling what happens meanwhile.
func wait(
    _ options: MirrorOptions, seconds: Int, until reached: (NodeStatus) -> Bool
) throws -> NodeStatus {
    // Not the wall clock, which may be set meanwhile.
    let deadline = ContinuousClock.now + .seconds(seconds)
    var said = ""
    while true {
        let status = try call(.status, options)
        if reached(status) { return status }
        let text = "\(status.role): \(status.explanation)"
        if text != said {
            tell(text)
            said = text
        }
        if ContinuousClock.now > deadline {
            throw Failure.failed("not done within \(seconds) s; `lockstep status` says where it is")
        }
        Thread.sleep(forTimeInterval: 0.2)
    }
}
