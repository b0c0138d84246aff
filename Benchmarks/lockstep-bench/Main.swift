//  lockstep-bench: what a synchronous write costs, against what it must cost at least.
//
//  Only ratios taken in one run mean anything on a shared machine, so every run measures its own floor:
//
//      floor = max(local flush, round trip + remote flush), both at once
//
//  with the same number of bytes, on the same disk, through the cheapest means there are (Floor.swift). A mirror cannot be
//  faster than that; how much slower it is, is the number to look at.
//
//  Main.swift     commands              Cells.swift     one combination measured: writers, size, engine, durability
//  WriteBench     all combinations      Report.swift    table and JSON
//  Floor.swift    the floor             Plot.swift      SVG
//  BothCommand    both nodes here       CachedReads     reads from the cache
//  Resync*.swift  bringing a node back
import ArgumentParser
import CLinux
import CommandMain
import Format
import Foundation
import Synchronization

@main
enum Main {
    static func main() {
        catchInterrupts()
        _ = signal(SIGPIPE, SIG_IGN)
        Bench.runAsProgram()
    }
}

struct Bench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "lockstep-bench",
        abstract: "Measure synchronous write latency on a mirrored or plain directory, beside its floor.",
        subcommands: [
            BothCommand.self, WriteCommand.self, JournalCommand.self, FloorCommand.self, ReadCommand.self,
            ResyncCommand.self,
        ])
}

/// Where the results go.
struct OutputOptions: ParsableArguments {
    @Flag(help: "Print the results as JSON instead of a table.") var json = false
    @Option(help: "Draw the results into this SVG file.") var plot: String?

    func put(_ report: Report) throws {
        print(json ? try report.json() : report.words())
        if let plot { try Data(report.svg().utf8).write(to: URL(fileURLWithPath: plot)) }
    }
}

struct WriteCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "write", abstract: "Write to files in a directory, mirrored or plain.",
        discussion: """
            Every writer overwrites a file of its own that was written before. Engine pwrite writes through the page \
            cache and calls fsync; io_uring and libaio keep one O_DIRECT|O_DSYNC write of each writer in flight, as \
            Oracle does. All combinations of --size, --writers, --engine and --durability are measured.
            """)
    @Option(help: "The directory to write in; a subdirectory is made and removed.") var directory: String
    @Option(help: "Bytes of one write, such as 4K,64K,1M.") var size = Sizes(values: [4096])
    @Option(help: "Writers at the same time, such as 1,16,64.") var writers = Counts(values: [1, 16])
    @Option(help: "pwrite, io_uring, libaio; several with commas.") var engine = Engines(values: [.pwrite])
    @Option(help: "fsync (each write is durable) or none; both with a comma.")
    var durability = Durabilities(values: [.fsync])
    @Option(help: "Seconds for each combination, after a warm-up of a tenth of it.") var seconds = 3.0
    @Option(help: "A plain directory on this node's disk for the floor; needed if --directory is mirrored.")
    var floor: String?
    @Option(
        help: "A plain directory on the other node's disk, if it can be reached from here; as --floor if not given.")
    var floorRemote: String?
    @Option(help: "Ask 'lockstep --config FILE status' for the batches written meanwhile.") var statusConfig: String?
    @Option(help: "The node to ask; by default the host's name.") var statusNode: String?
    @OptionGroup var output: OutputOptions

    func validate() throws {
        guard seconds >= 0.2, seconds <= 3600 else { throw ValidationError("--seconds must be between 0.2 and 3600.") }
    }

    func run() throws {
        let floorDirectory = floor ?? directory
        if try isFuse(floorDirectory) {
            throw ValidationError(
                "\(floorDirectory) is a mirrored directory: give --floor a directory on a plain disk.")
        }
        var bench = WriteBench(
            sizes: size.values, writers: writers.values, engines: engine.values, durabilities: durability.values,
            seconds: seconds, isQuiet: output.json)
        if let statusConfig { bench.batches = { try BatchSizes(configuration: statusConfig, node: statusNode) } }
        try output.put(bench.run(in: directory, floor: floorDirectory, remote: floorRemote ?? floorDirectory))
    }
}

struct JournalCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "journal", abstract: "Write through a pair of journals alone, joined by TCP on loopback.",
        discussion:
            "Both journals are made new and removed. What is missing to a mirrored directory: FUSE, plain files.")
    @Option(help: "A directory on this node's disk.") var directory: String
    @Option(help: "A directory on the other node's disk; the same if not given.") var remote: String?
    @Option(help: "Bytes of one write, such as 4K,64K,1M.") var size = Sizes(values: [4096])
    @Option(help: "Writers at the same time, such as 1,16,64.") var writers = Counts(values: [1, 16])
    @Option(help: "io_uring, libaio or both with a comma.") var engine = Engines(values: [.ioUring])
    @Option(help: "Seconds for each combination.") var seconds = 3.0
    @Option(help: "Size of each journal in MiB (64 to 4096).") var journalSize = 256
    @Option(help: "Batches on their way at once (1 to 16).") var inFlight = 2
    @OptionGroup var output: OutputOptions

    func validate() throws {
        guard (64...4096).contains(journalSize) else { throw ValidationError("--journal-size must be 64 to 4096.") }
        guard (1...16).contains(inFlight) else { throw ValidationError("--in-flight must be 1 to 16.") }
        guard seconds >= 0.2, seconds <= 3600 else { throw ValidationError("--seconds must be between 0.2 and 3600.") }
        guard !engine.values.contains(.pwrite) else { throw ValidationError("A journal has no pwrite engine.") }
        guard size.values.allSatisfy({ $0 <= RecordLimits.payloadBytes }) else {
            throw ValidationError("A record holds at most \(byteText(RecordLimits.payloadBytes)).")
        }
    }

    func run() throws {
        var report = Report(directory: directory)
        if !output.json { print(Cell.header) }
        for engine in engine.values {
            let pair = try JournalPair(
                near: directory, far: remote ?? directory, megabytes: journalSize,
                engine: engine == .libaio ? .libaio : .ioUring, window: inFlight)
            defer { pair.close() }
            for bytes in size.values {
                let meter = try FloorMeter(local: directory, remote: remote ?? directory, bytes: bytes)
                for count in writers.values {
                    let cell = try measure(
                        Combination(engine: engine, durability: .fsync, bytes: bytes, writers: count), pair, meter)
                    report.cells.append(cell)
                    if !output.json { print(cell.line) }
                }
                report.floors.append(meter.floor)
            }
        }
        try output.put(report)
    }

    private func measure(_ combination: Combination, _ pair: JournalPair, _ meter: FloorMeter) throws -> Cell {
        var latencies = emptyLatencies()
        var floor = FloorSamples()
        var batches: [Int: Int] = [:]
        let turns = 4
        for _ in 0..<turns {
            floor.add(try meter.sample(seconds: seconds * 0.2 / Double(turns)))
            let result = try pair.run(combination, seconds: seconds / Double(turns))
            latencies.add(result.latencies)
            batches.merge(result.batches, uniquingKeysWith: +)
        }
        guard latencies.totalCount > 0 else {
            throw BenchError("Not one write of \(combination.bytes) bytes ended in \(seconds) s; give more --seconds.")
        }
        var cell = Cell(combination, latencies, seconds: seconds)
        cell.compare(with: floor.floor(bytes: combination.bytes))
        cell.batches = BatchSizes(records: batches)
        return cell
    }
}

struct FloorCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "floor",
        abstract: "Measure only the floor: max(local flush, round trip + remote flush), both at once.")
    @Option(help: "A plain directory on this node's disk.") var directory: String
    @Option(help: "A plain directory on the other node's disk; the same if not given.") var remote: String?
    @Option(help: "Bytes of one write, such as 4K,64K,1M.")
    var size = Sizes(values: [4096, 16_384, 65_536, 262_144, 1 << 20])
    @Option(help: "Seconds for each size.") var seconds = 2.0
    @OptionGroup var output: OutputOptions

    func run() throws {
        var report = Report(directory: directory)
        for bytes in size.values {
            let meter = try FloorMeter(local: directory, remote: remote ?? directory, bytes: bytes)
            _ = try meter.sample(seconds: seconds)
            report.floors.append(meter.floor)
        }
        try output.put(report)
    }
}

struct ReadCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "read", abstract: "Compare cached 4 KiB reads in two directories, in turns.")
    @Option(help: "The mirrored directory.") var directory: String
    @Option(help: "A directory on a plain disk.") var plain: String
    @Option(help: "Seconds for each of the two.") var seconds = 3.0
    @Option(help: "Readers at the same time.") var readers = 1
    @OptionGroup var output: OutputOptions

    func validate() throws {
        guard (1...64).contains(readers) else { throw ValidationError("--readers must be between 1 and 64.") }
    }

    func run() throws {
        var report = Report(directory: directory)
        report.cachedReads = try CachedReads.measure(
            mirrored: directory, plain: plain, readers: readers, seconds: seconds)
        try output.put(report)
    }
}

// MARK: Arguments

struct Sizes: ExpressibleByArgument {
    var values: [Int]
    init(values: [Int]) { self.values = values }

    init?(argument: String) {
        values = argument.split(separator: ",").compactMap { word in
            let unit = word.last.flatMap { ["k": 1 << 10, "m": 1 << 20][$0.lowercased()] }
            guard let number = Int(unit == nil ? word : word.dropLast()) else { return nil }
            let bytes = number * (unit ?? 1)
            return bytes % 4096 == 0 && (4096...16 << 20).contains(bytes) ? bytes : nil
        }
        guard !values.isEmpty, values.count == argument.split(separator: ",").count else { return nil }
    }
    var defaultValueDescription: String { values.map { byteText($0) }.joined(separator: ",") }
}

struct Counts: ExpressibleByArgument {
    var values: [Int]
    init(values: [Int]) { self.values = values }

    init?(argument: String) {
        values = argument.split(separator: ",").compactMap { Int($0) }.filter { (1...256).contains($0) }
        guard !values.isEmpty, values.count == argument.split(separator: ",").count else { return nil }
    }
    var defaultValueDescription: String { values.map(String.init).joined(separator: ",") }
}

enum WriteEngine: String, Codable, CaseIterable {
    case pwrite
    case ioUring = "io_uring"
    case libaio
}
enum Durability: String, Codable, CaseIterable { case fsync, none }

struct Engines: ExpressibleByArgument {
    var values: [WriteEngine]
    init(values: [WriteEngine]) { self.values = values }

    init?(argument: String) {
        values = argument.split(separator: ",").compactMap { WriteEngine(rawValue: String($0)) }
        guard !values.isEmpty, values.count == argument.split(separator: ",").count else { return nil }
    }
    var defaultValueDescription: String { values.map(\.rawValue).joined(separator: ",") }
}

struct Durabilities: ExpressibleByArgument {
    var values: [Durability]
    init(values: [Durability]) { self.values = values }

    init?(argument: String) {
        values = argument.split(separator: ",").compactMap { Durability(rawValue: String($0)) }
        guard !values.isEmpty, values.count == argument.split(separator: ",").count else { return nil }
    }
    var defaultValueDescription: String { values.map(\.rawValue).joined(separator: ",") }
}

// MARK: Small things

struct BenchError: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }

    /// A failed system call.
    static func system(_ what: String, _ number: Int32) -> BenchError {
        BenchError("\(what): \(unsafe String(cString: strerror(number))).")
    }
}

private let interruptSeen = Atomic<Bool>(false)

/// After Ctrl-C the measurement in hand ends, its files are removed, and the program ends with an error.
func catchInterrupts() {
    for number in [SIGINT, SIGTERM] {
        _ = signal(number) { _ in interruptSeen.store(true, ordering: .relaxed) }
    }
}

/// Where this program is, and the others beside it.
var ownDirectory: URL {
    URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath().deletingLastPathComponent()
}

var interrupted: Bool { interruptSeen.load(ordering: .relaxed) }

func throwIfInterrupted() throws { if interrupted { throw BenchError("Interrupted.") } }

func note(_ text: String) { try? FileHandle.standardError.write(contentsOf: Data((text + "\n").utf8)) }

func byteText(_ bytes: Int) -> String { bytes % (1 << 20) == 0 ? "\(bytes >> 20)M" : "\(bytes >> 10)K" }

func isFuse(_ directory: String) throws -> Bool {
    let descriptor = unsafe clinux_open(directory, CLINUX_O_DIRECTORY, 0)
    guard descriptor >= 0 else { throw BenchError.system("Cannot open the directory \(directory)", -descriptor) }
    defer { _ = clinux_close(descriptor) }
    var information = clinux_statfs()
    let result = unsafe clinux_fstatfs(descriptor, &information)
    guard result >= 0 else { throw BenchError.system("Cannot look at the file system of \(directory)", -result) }
    return information.type == 0x6573_5546
}
