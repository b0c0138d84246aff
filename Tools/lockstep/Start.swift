import ArgumentParser
import Node

struct Start: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Lets this node take part again after `lockstep stop`.",
        discussion: "lockstepd itself is started by systemd: systemctl start lockstepd@MIRROR.")
    @OptionGroup var options: MirrorOptions

    func run() throws {
        _ = try call(.start, options)
        let status = try wait(options, seconds: 10) { $0.role != "STOP" }
        print("\(status.node) takes part again: \(status.role), \(status.explanation)")
    }
}

struct Stop: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Stops this node's part; the other node takes over if it is in sync.",
        discussion:
            "The application is stopped with its stop script first. Nothing is lost, and no lease is waited for.")
    @OptionGroup var options: MirrorOptions
    @Option(name: .long, help: "Seconds to wait for the end.")
    var timeout = 120

    func run() throws {
        _ = try call(.stop, options)
        let status = try wait(options, seconds: timeout) { $0.role == "STOP" }
        print("\(status.node) has stopped; \(service(status))")
    }

    /// Where the service is now. The decision names the other node also while that is lost.
    private func service(_ status: NodeStatus) -> String {
        let other = status.peer.name
        if status.primary == other {
            return status.peer.connected ? "\(other) serves" : "\(other) is recorded as the one that serves"
        }
        return status.inSyncNodes.contains(other)
            ? "\(other) is to take over: look at its status" : "nobody serves: \(other) is not in sync"
    }
}

struct Swap: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Moves the service to the other node.",
        discussion: "Run it on the node that serves. Both nodes must be in sync; otherwise it says why not.")
    @OptionGroup var options: MirrorOptions
    @Option(name: .long, help: "Seconds to wait for the end.")
    var timeout = 120

    func run() throws {
        let before = try call(.status, options)
        guard before.primary == before.node else {
            throw Failure.failed("this node does not serve; run it on \(before.primary ?? "the node that serves")")
        }
        _ = try call(.swap, options)
        let status = try wait(options, seconds: timeout) { $0.role == "SECOND" }
        print("the service is on \(status.primary ?? "the other node") now")
    }
}
