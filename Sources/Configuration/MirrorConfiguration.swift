import Format

/// The configuration of one mirror: one TOML file, the same on both nodes.
///
/// It is read and checked as a whole before anything on the machine is touched. Everything that can be wrong in the text
/// alone (unknown keys, wrong types, values out of range, two things with one name, times that would let two nodes serve
/// at once) is refused here, with file, line and remedy; what depends on the machine is `MachineCheck`'s.
/// docs/configuration.md describes every key.
public struct MirrorConfiguration: Sendable, Equatable {
    /// When a write is acknowledged; promise 1 of the product.
    public enum Mode: String, Sendable, CaseIterable {
        /// `write` returns when it is in both memories, `fsync` when it is on both disks.
        case balanced
        /// Every `write` returns when it is on both disks.
        case strict
    }

    /// One of the two servers that hold data.
    public struct Node: Sendable, Equatable {
        public var id: NodeID
        public var name: String
        /// Where it listens for the other node.
        public var endpoint: Endpoint
        /// The network interface for virtual addresses that name none themselves.
        public var interface: String?
    }

    /// A virtual address that moves with the application.
    public struct VirtualAddress: Sendable, Equatable {
        public var address: IPAddress
        /// Bits of the network part, 1 to 32 or 1 to 128.
        public var prefixLength: Int
        /// The interface on each node, in the order of the nodes.
        public var interfaces: [String]
        /// `10.0.9.1/24`
        public var text: String { "\(address)/\(prefixLength)" }
        /// The interface that carries it on `node`.
        public func interface(on node: NodeID) -> String { interfaces[Int(node.rawValue)] }
    }

    /// A program with its arguments. No shell reads it.
    public struct Command: Sendable, Equatable {
        public var executable: String
        public var arguments: [String]
        public var text: String { ([executable] + arguments).joined(separator: " ") }
    }

    /// How the application is started, stopped and watched.
    public struct Application: Sendable, Equatable {
        public var start: Command
        public var stop: Command?
        /// Exit status 0 means the application is well.
        public var check: Command?
        public var startTimeoutSeconds: Int
        public var stopTimeoutSeconds: Int
        public var checkIntervalSeconds: Int
        public var checkTimeoutSeconds: Int
        /// So many failed checks in a row count as a failure.
        public var checkFailuresMaximum: Int
        /// The user the commands run as; nil is root.
        public var user: String?
    }

    public struct Journal: Sendable, Equatable {
        public enum Engine: String, Sendable, CaseIterable {
            case auto
            case ioUring = "io_uring"
            case libaio
        }
        public var sizeMebibytes: Int
        public var engine: Engine
        /// How long the thread that answers the application looks for the next event before it sleeps; 0: not at all.
        public var spinMicroseconds = spinMicrosecondsDefault
        public static let spinMicrosecondsDefault = 200
        public static let spinMicrosecondsMaximum = 1000
        public var sizeBytes: UInt64 { UInt64(sizeMebibytes) << 20 }
    }

    /// What a node does that restarted alone and cannot reach the other.
    public enum LoneRestart: Sendable, Equatable {
        case serveAfter(seconds: Int)
        case wait
    }

    public struct Timing: Sendable, Equatable {
        /// The primary serves so long after it *sent* a lease request that was granted.
        public var leaseMilliseconds: Int
        public var renewMilliseconds: Int
        /// A voter refuses others so long after it *received* the request.
        public var grantMilliseconds: Int
        /// Silence after which the other node counts as lost.
        public var peerLossMilliseconds: Int
        public var loneRestart: LoneRestart
    }

    /// The comparison of both nodes while they serve.
    public struct Verify: Sendable, Equatable {
        /// When one begins by itself; nil: only when an administrator asks.
        public var at: WeeklyTime?
        /// What each node reads for it in a second at most; nil: no limit.
        public var rateMebibytesPerSecond: Int?
    }

    /// Bringing the other node back.
    public struct Resync: Sendable, Equatable {
        /// What is sent in a second besides what the application writes; nil: no limit.
        public var rateMebibytesPerSecond: Int?
    }

    public enum LogLevel: String, Sendable, CaseIterable {
        case trace, debug, info, notice, warning, error, critical
    }

    /// The file it was read from.
    public var file: String
    public var name: String
    /// Where the application sees the files.
    public var path: String
    /// Where the plain files are.
    public var backing: String
    /// Journal, votes and file table.
    public var state: String
    public var mode: Mode
    /// Exactly two.
    public var nodes: [Node]
    public var witness: Endpoint
    public var addresses: [VirtualAddress]
    /// nil: only files and addresses move.
    public var application: Application?
    public var journal: Journal
    public var timing: Timing
    public var verify: Verify
    public var resync: Resync
    public var logLevel: LogLevel
    /// Lines of keys, for findings about the machine.
    let lines: LineIndex

    /// The sockets of the daemon on this machine: `/run/lockstep/<name>`.
    public var runtimeDirectory: String { "/run/lockstep/\(name)" }

    public func node(_ id: NodeID) -> Node { nodes[Int(id.rawValue)] }

    /// The node called `name`, as given with `--node`, or as the host is called (with or without its domain).
    public func node(named name: String) throws(ConfigurationError) -> Node {
        let short = name.split(separator: ".").first.map(String.init) ?? name
        if let node = nodes.first(where: { $0.name == name }) ?? nodes.first(where: { $0.name == short }) {
            return node
        }
        throw ConfigurationError(
            file: file, line: lines.line(of: "node"), key: "node",
            problem: "no node is called \"\(name)\"; there are \"\(nodes[0].name)\" and \"\(nodes[1].name)\"",
            remedy: "Say which node this machine is with --node \(nodes[0].name) or --node \(nodes[1].name)")
    }

    /// Reads and checks the file at `path`.
    public static func load(_ path: String) throws(ConfigurationError) -> MirrorConfiguration {
        try MirrorConfiguration(document: Document(path: path))
    }

    /// Reads and checks a text; `file` is only for messages.
    public static func parse(_ text: String, file: String) throws(ConfigurationError) -> MirrorConfiguration {
        try MirrorConfiguration(document: Document(text: text, file: file))
    }

    public static func == (left: MirrorConfiguration, right: MirrorConfiguration) -> Bool {
        left.name == right.name && left.path == right.path && left.backing == right.backing
            && left.state == right.state && left.mode == right.mode && left.nodes == right.nodes
            && left.witness == right.witness && left.addresses == right.addresses
            && left.application == right.application && left.journal == right.journal && left.timing == right.timing
            && left.verify == right.verify && left.resync == right.resync
            && left.logLevel == right.logLevel
    }
}
