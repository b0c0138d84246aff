//  The whole installation in rooms: two nodes, a witness and a client, with the shipped configuration files.
//
//      room1 (alpha)   10.0.9.11   lockstepd, lockstep, the application when it is primary
//      room2 (beta)    10.0.9.12   the same
//      room3           10.0.9.13   lockstep-witness
//      client          10.0.9.50   knows only 10.0.9.1 (fd00:9::1), the virtual address
//
//  Every room has the same paths (see Room.swift), so that both nodes read one and the same /etc/lockstep/ledger.toml.
import Foundation
import Synchronization

/// What is protected in the demonstration.
public enum ClusterApplication: String, CaseIterable, Sendable { case ledger, postgresql }

/// One of the two nodes.
public struct ClusterNode: Sendable {
    /// Its name in the configuration.
    public let name: String
    public let room: Room
}

public final class Cluster: Sendable {
    public let building: Building
    public let alpha: ClusterNode
    public let beta: ClusterNode
    public let witness: Room
    public let client: Room
    public var nodes: [ClusterNode] { [alpha, beta] }

    /// As in etc/ledger.toml; checked when the cluster is made.
    public static let virtualAddress = "10.0.9.1"
    public static let virtualAddress6 = "fd00:9::1"
    /// As in the start scripts.
    public static let servicePort = 5400
    public static let configurationFile = "/etc/lockstep/ledger.toml"
    public static let path = "/srv/ledger"
    public static let backing = "/var/lib/lockstep-files/ledger"
    /// Where every room sees the programs.
    public static let programs = "/opt/lockstep/bin"

    private let application: ClusterApplication
    private struct Daemons {
        var nodes: [String: RoomProcess] = [:]
        var witness: RoomProcess?
    }
    private let daemons = Mutex(Daemons())

    /// Makes the rooms and puts the configuration there; starts nothing.
    ///
    /// - Parameters:
    ///   - binaries: the directory that holds lockstepd, lockstep-witness, lockstep and ledger.
    ///   - etc: the directory of shipped configuration files.
    ///   - configure: changes the text of ledger.toml, for tests of other settings; the shipped text by default.
    public init(
        binaries: String, etc: String, application: ClusterApplication = .ledger, configure: (String) -> String = { $0 }
    ) throws {
        for program in ["lockstepd", "lockstep-witness", "lockstep", "ledger"]
        where access("\(binaries)/\(program)", X_OK) != 0 {
            throw RoomsError("There is no program \(binaries)/\(program): build it with 'swift build'.")
        }
        guard let data = FileManager.default.contents(atPath: etc + "/ledger.toml") else {
            throw RoomsError("Cannot read the shipped configuration \(etc)/ledger.toml.")
        }
        let shipped = String(decoding: data, as: UTF8.self)
        for needed in [Cluster.virtualAddress + "/", Cluster.virtualAddress6 + "/", Cluster.backing, "10.0.9.11:"]
        where !shipped.contains("\"" + needed) {
            throw RoomsError("\(etc)/ledger.toml does not mention \(needed), for which the rooms are made.")
        }
        self.application = application
        building = try Building(network: "10.0.9", network6: "fd00:9::", programs: binaries)
        do {
            let programs = [Cluster.programs: URL(fileURLWithPath: binaries).standardizedFileURL.path]
            let own = [
                "/etc/lockstep", "/run/lockstep", "/var/lib/lockstep", Cluster.backing, Cluster.path,
            ]
            let room1 = try building.addRoom("room1", number: 11, privatePaths: own, sharedPaths: programs)
            let room2 = try building.addRoom("room2", number: 12, privatePaths: own, sharedPaths: programs)
            witness = try building.addRoom(
                "room3", number: 13, privatePaths: ["/etc/lockstep", "/var/lib/lockstep-witness"],
                sharedPaths: programs)
            client = try building.addRoom("client", number: 50, sharedPaths: programs)
            alpha = ClusterNode(name: "alpha", room: room1)
            beta = ClusterNode(name: "beta", room: room2)
            for room in [room1, room2] {
                let place = room.hostPath("/etc/lockstep")
                try write(configure(shipped), to: place + "/ledger.toml")
                try makeDirectory(place + "/ledger")
                for script in ["start", "stop"] {
                    try FileManager.default.copyItem(
                        atPath: "\(etc)/demo-\(application.rawValue)/\(script)", toPath: "\(place)/ledger/\(script)")
                }
            }
            try FileManager.default.copyItem(
                atPath: etc + "/witness.toml", toPath: witness.hostPath("/etc/lockstep/witness.toml"))
        } catch {
            building.close()
            throw error
        }
    }

    public func close() { building.close() }

    public func other(than node: ClusterNode) -> ClusterNode { node.name == alpha.name ? beta : alpha }

    // MARK: Starting and stopping

    /// Witness, identities and both daemons; returns when the first node serves and the second is in sync.
    ///
    /// - Parameter environment: added to the environment of the daemon in each room.
    public func start(
        within seconds: Double = 60, environment: (Room) -> [String: String] = { _ in [:] }
    ) throws {
        try startWitness(environment: environment(witness))
        try lockstep(alpha, ["init", "--first"])
        try lockstep(beta, ["init"])
        var started = try nodes.map { try startDaemon($0, environment: environment($0.room)) }
        if let witnessProcess { started.append(witnessProcess) }
        try waitUntilInSync(within: seconds) {
            for process in started {
                guard let status = process.exitStatus else { continue }
                throw RoomsError("\(process.title) in \(process.room) ended with \(status): \(process.logTail())")
            }
        }
    }

    /// - Parameters:
    ///   - environment: added to the daemon's environment.
    ///   - wrapper: a program that runs the daemon, with its arguments.
    public func startWitness(environment: [String: String] = [:], under wrapper: [String] = []) throws {
        let process = try witness.start(
            wrapper + [Cluster.programs + "/lockstep-witness", "--config", "/etc/lockstep/witness.toml"], as: "witness",
            environment: environment)
        daemons.withLock { $0.witness = process }
    }

    /// - Parameters:
    ///   - environment: added to the daemon's environment.
    ///   - wrapper: a program that runs the daemon, with its arguments.
    @discardableResult
    public func startDaemon(
        _ node: ClusterNode, environment: [String: String] = [:], under wrapper: [String] = []
    ) throws -> RoomProcess {
        let process = try node.room.start(
            wrapper + [Cluster.programs + "/lockstepd", "--config", Cluster.configurationFile, "--node", node.name],
            as: "lockstepd", environment: environment)
        daemons.withLock { $0.nodes[node.name] = process }
        return process
    }

    public func daemon(_ node: ClusterNode) -> RoomProcess? { daemons.withLock { $0.nodes[node.name] } }
    public var witnessProcess: RoomProcess? { daemons.withLock { $0.witness } }

    /// Runs the administrator's command on a node; throws with what it said unless it succeeds.
    @discardableResult
    public func lockstep(_ node: ClusterNode, _ arguments: [String], within seconds: Double = 60) throws -> String {
        try node.room.succeed(
            command(node, arguments), within: seconds)
    }

    private func command(_ node: ClusterNode, _ arguments: [String]) -> [String] {
        [Cluster.programs + "/lockstep", arguments[0], "--config", Cluster.configurationFile, "--node", node.name]
            + arguments.dropFirst()
    }

    /// What the node says about itself; nil while its daemon does not answer.
    public func status(_ node: ClusterNode) -> NodeStatus? {
        // Its exit status tells the role.
        guard let output = try? node.room.run(command(node, ["status", "--json"]), within: 5) else { return nil }
        return try? NodeStatus(json: output.output)
    }

    // MARK: Waiting

    /// The node that serves, if exactly one does.
    public func serving() -> ClusterNode? {
        let found = nodes.filter { status($0)?.serves == true }
        return found.count == 1 ? found[0] : nil
    }

    public func waitUntilServing(_ node: ClusterNode, within seconds: Double) throws {
        try waitUntil("\(node.name) serves", within: seconds, every: 0.1) {
            status(node)?.serves == true
        } otherwise: {
            describe()
        }
    }

    /// One node serves as PRIM and the other follows in sync.
    ///
    /// - Parameter check: called before each look; throws to give up early.
    public func waitUntilInSync(within seconds: Double, check: () throws -> Void = {}) throws {
        try waitUntil("both rooms are in sync", within: seconds, every: 0.2) {
            try check()
            let all = nodes.map { status($0) }
            return all.contains { $0?.role == "PRIM" && $0?.isInSync == true }
                && all.contains { $0?.role == "SECOND" && $0?.isInSync == true }
        } otherwise: {
            describe()
        }
    }

    /// Both nodes' status and the ends of all logs: for messages about something that did not come.
    public func describe(lines: Int = 15) -> String {
        nodes.map { node in
            """

            \(node.name): \(status(node)?.text ?? "gives no status")
            \(daemon(node)?.logTail(lines: lines) ?? "has no daemon")
            """
        }.joined() + "\nwitness: " + (witnessProcess?.logTail(lines: lines) ?? "has no daemon")
    }

    /// The nodes whose kernel answers for the virtual addresses now.
    public func addressHolders() -> [ClusterNode] {
        nodes.filter { !$0.room.addresses().isDisjoint(with: [Cluster.virtualAddress, Cluster.virtualAddress6]) }
    }

    // MARK: The application

    /// Starts the client in its room; it writes each acknowledged transfer to `file`, a path on the host.
    public func startClient(acknowledged file: String) throws -> RoomProcess {
        try client.start(
            [
                Cluster.programs + "/ledger", "client", "--connect", "\(Cluster.virtualAddress):\(Cluster.servicePort)",
                "--application", application.rawValue, "--acknowledged", file,
            ], as: "ledger-client")
    }

    /// Compares the client's list with what the service says, asked through the virtual address.
    public func verify(acknowledged file: String) throws -> LedgerVerification {
        let output = try client.run(
            [
                Cluster.programs + "/ledger", "verify", "--connect", "\(Cluster.virtualAddress):\(Cluster.servicePort)",
                "--application", application.rawValue, "--acknowledged", file, "--json",
            ], within: 60)
        guard let result = try? JSONDecoder().decode(LedgerVerification.self, from: Data(output.output.utf8)) else {
            throw RoomsError("The ledger could not be verified: \(output.error)\(output.output)")
        }
        return result
    }

    /// Compares the plain files of both rooms; nobody may be writing.
    public func compareTrees() throws -> TreeComparison {
        try TreeComparison(alpha.room.hostPath(Cluster.backing), beta.room.hostPath(Cluster.backing))
    }
}

/// What `ledger verify --json` prints.
public struct LedgerVerification: Decodable, Sendable {
    public var acknowledged: Int
    public var missing: Int
    public var firstMissing: [String]
    public var transfers: Int
    public var sum: Int
    public var expectedSum: Int
    public var balanceConserved: Bool
}
