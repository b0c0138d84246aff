//  lockstep-bench both: the whole mirror on this one machine, beside its floor, with one command.
//
//  Two nodes, a witness and the shipped configuration in rooms of their own (see Rooms); then durable 4 KiB writes by one
//  and by sixteen writers, cached reads, and what each node needs: memory, and processor time for each write. Both nodes
//  write to one disk and share the processors: what a second machine would give is not in these figures.
import ArgumentParser
import Foundation
import Glibc
import Rooms

struct BothCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "both", abstract: "Set up both nodes and a witness on this machine and measure writes and reads.",
        discussion: """
            Needs root and the programs of a release build. Makes its own rooms (network and mount namespaces) and removes \
            them.
            """)
    @Option(help: "Bytes of one write, such as 4K,64K,1M.") var size = Sizes(values: [4096])
    @Option(help: "Writers at the same time, such as 1,16,64.") var writers = Counts(values: [1, 16])
    @Option(help: "pwrite, io_uring, libaio; several with commas.") var engine = Engines(values: [.pwrite])
    @Option(help: "fsync (each write is durable) or none; both with a comma.")
    var durability = Durabilities(values: [.fsync])
    @Option(help: "Seconds for each combination.") var seconds = 5.0
    @Option(help: "The directory of lockstepd and the others; by default this program's own.") var binaries: String?
    @Option(help: "The directory of the shipped configuration files.") var etc = "etc"
    @OptionGroup var output: OutputOptions

    func validate() throws {
        guard seconds >= 0.2, seconds <= 3600 else { throw ValidationError("--seconds must be between 0.2 and 3600.") }
    }

    func run() throws {
        let cluster = try Cluster(binaries: binaries ?? ownDirectory.path, etc: etc)
        defer { cluster.close() }
        try cluster.start()
        let mirrored = cluster.alpha.room.hostPath(Cluster.path)
        let plain = cluster.building.directory
        var bench = WriteBench(
            sizes: size.values, writers: writers.values, engines: engine.values, durabilities: durability.values,
            seconds: seconds, isQuiet: output.json)
        bench.usage = { try cluster.nodes.map { try ProcessUsage(of: $0, in: cluster) } }
        bench.batches = {
            try cluster.status(cluster.alpha).map { try BatchSizes(status: Data($0.text.utf8)) }
        }
        var report = try bench.run(in: mirrored, floor: plain, remote: plain)
        report.cachedReads = try CachedReads.measure(mirrored: mirrored, plain: plain, readers: 1, seconds: seconds)
        report.nodes = try cluster.nodes.map { try ProcessUsage(of: $0, in: cluster) }
        try output.put(report)
    }
}

/// What a node's daemon has used so far.
struct ProcessUsage: Codable {
    var node: String
    /// Of all its threads, in user and kernel mode.
    var processorMicroseconds: Double
    var residentBytes: Int
    var residentPeakBytes: Int

    init(of node: ClusterNode, in cluster: Cluster) throws {
        guard let daemon = cluster.daemon(node), daemon.isRunning else {
            throw BenchError("The daemon of \(node.name) is not running.")
        }
        self.node = node.name
        let status = try String(contentsOfFile: "/proc/\(daemon.pid)/status", encoding: .utf8)
        func kibibytes(_ key: String) -> Int {
            status.split(separator: "\n").first { $0.hasPrefix(key + ":") }
                .flatMap { $0.split(separator: "\t").last?.split(separator: " ").first.flatMap { Int($0) } } ?? 0
        }
        residentBytes = kibibytes("VmRSS") << 10
        residentPeakBytes = kibibytes("VmHWM") << 10
        // After the name in parentheses: utime and stime are fields 14 and 15 of proc_pid_stat(5), in ticks.
        let stat = try String(contentsOfFile: "/proc/\(daemon.pid)/stat", encoding: .utf8)
        let fields = stat.split(separator: ")").last?.split(separator: " ") ?? []
        guard fields.count > 12, let user = Double(fields[11]), let system = Double(fields[12]) else {
            throw BenchError("/proc/\(daemon.pid)/stat cannot be read.")
        }
        processorMicroseconds = (user + system) / Double(sysconf(Int32(_SC_CLK_TCK))) * 1e6
    }
}
