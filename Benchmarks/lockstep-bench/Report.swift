//  What was measured: as a table for people, as JSON for programs.
import Foundation

/// Microseconds.
struct Percentiles: Codable {
    var p50: Double
    var p90: Double
    var p99: Double
    var p999: Double
    var max: Double
    var mean: Double

    init(_ latencies: Latencies) {
        func at(_ percentile: Double) -> Double { Double(latencies.valueAtPercentile(percentile)) / 1e3 }
        p50 = at(50)
        p90 = at(90)
        p99 = at(99)
        p999 = at(99.9)
        max = Double(latencies.max) / 1e3
        mean = latencies.mean / 1e3
    }
}

/// One combination's result.
struct Cell: Codable {
    var combination: Combination
    var operations: Int
    var perSecond: Double
    var megabytesPerSecond: Double
    var microseconds: Percentiles
    /// The floor as it was in turns with this combination, and the median over it; where each write was durable.
    var floorMicroseconds: Double?
    var ratioToFloor: Double?
    /// Rate over the rate of one writer with everything else the same, where that was measured too.
    var ratioToOneWriter: Double?
    var batches: BatchSizes?
    /// Of all threads of each node's daemon, by its name; empty where the nodes were not made by this program.
    var processorMicrosecondsPerWrite: [String: Double] = [:]

    init(_ combination: Combination, _ latencies: Latencies, seconds: Double) {
        self.combination = combination
        operations = Int(latencies.totalCount)
        perSecond = Double(operations) / seconds
        megabytesPerSecond = perSecond * Double(combination.bytes) / 1e6
        microseconds = Percentiles(latencies)
    }

    mutating func compare(with floor: Floor) {
        floorMicroseconds = floor.floorMicroseconds
        ratioToFloor = microseconds.p50 / floor.floorMicroseconds
    }

    static let header = """
        engine    durable  size  writers     writes/s     MB/s    p50 us    p90 us    p99 us  p99.9 us    max us  floor us  x floor
        """

    var line: String {
        let cells: [(String, Int)] = [
            (byteText(combination.bytes), 6), ("\(combination.writers)", 9), (String(format: "%.0f", perSecond), 13),
            (String(format: "%.1f", megabytesPerSecond), 9), (String(format: "%.0f", microseconds.p50), 10),
            (String(format: "%.0f", microseconds.p90), 10), (String(format: "%.0f", microseconds.p99), 10),
            (String(format: "%.0f", microseconds.p999), 10), (String(format: "%.0f", microseconds.max), 10),
            (floorMicroseconds.map { String(format: "%.0f", $0) } ?? "-", 10),
            (ratioToFloor.map { String(format: "%.2f", $0) } ?? "-", 9),
        ]
        return left(combination.engine.rawValue, 10) + left(combination.durability == .fsync ? "yes" : "no", 7)
            + cells.map { right($0.0, $0.1) }.joined()
    }
}

struct Report: Codable {
    var directory: String
    var floors: [Floor] = []
    var cells: [Cell] = []
    var cachedReads: CachedReads?
    /// At the end; nil where the nodes were not made by this program.
    var nodes: [ProcessUsage]?

    init(directory: String) { self.directory = directory }

    /// The cells, each beside the one that differs from it only in having one writer.
    private func compared() -> [Cell] {
        cells.map { cell in
            var cell = cell
            let own = cell.combination
            let single = cells.first {
                $0.combination.writers == 1 && $0.combination.bytes == own.bytes
                    && $0.combination.engine == own.engine && $0.combination.durability == own.durability
            }
            if own.writers > 1, let single { cell.ratioToOneWriter = cell.perSecond / single.perSecond }
            return cell
        }
    }

    func json() throws -> String {
        var copy = self
        copy.cells = compared()
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        return String(decoding: try encoder.encode(copy), as: UTF8.self)
    }

    /// What stands below the table's rows, which are printed as they are measured.
    func words() -> String {
        var lines: [String] = []
        for floor in floors {
            lines.append(
                String(
                    format:
                        "floor of %@: p50 %.0f us, both disks at once (alone: local flush %.0f us, round trip + remote flush %.0f us)",
                    byteText(floor.bytes), floor.floorMicroseconds, floor.localFlushMicroseconds,
                    floor.roundTripAndRemoteFlushMicroseconds))
        }
        let cells = compared()
        for cell in cells {
            guard let ratio = cell.ratioToOneWriter else { continue }
            let own = cell.combination
            lines.append(
                "\(own.engine.rawValue), \(byteText(own.bytes)), \(own.durability.rawValue): \(own.writers) writers make "
                    + String(format: "%.1f x the rate of one", ratio))
        }
        for cell in cells {
            guard let batches = cell.batches else { continue }
            lines.append("batches with \(cell.combination.writers) writers: \(batches.words)")
        }
        for cell in cells where !cell.processorMicrosecondsPerWrite.isEmpty {
            let each = cell.processorMicrosecondsPerWrite.sorted { $0.key < $1.key }
                .map { String(format: "%@ %.0f us", $0.key, $0.value) }
            lines.append(
                "processor time of a write with \(cell.combination.writers) writers: \(each.joined(separator: ", "))")
        }
        if let reads = cachedReads {
            lines.append(
                String(
                    format: "cached 4K reads, %d at once: %.0f/s here, %.0f/s on the plain directory: %.0f %%",
                    reads.readers, reads.mirroredPerSecond, reads.plainPerSecond, reads.ratio * 100))
            lines.append(
                String(
                    format: "with the plain file in pages of 4K as well: %.0f/s on the plain directory: %.0f %%",
                    reads.plainSmallPagesPerSecond, reads.ratioSmallPages * 100))
        }
        for node in nodes ?? [] {
            lines.append(
                String(
                    format: "memory of %@: %.0f MiB resident, %.0f MiB at most", node.node,
                    Double(node.residentBytes) / 1_048_576, Double(node.residentPeakBytes) / 1_048_576))
        }
        return lines.joined(separator: "\n")
    }
}

func left(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(0, width - text.count))
}

func right(_ text: String, _ width: Int) -> String {
    String(repeating: " ", count: max(0, width - text.count)) + text
}

/// How many records were in one batch, from the counters of a mirror's node: the one place here that knows the key.
///
/// `lockstep status --json` has `log.batchesBySize`: how many batches of 1, 2, 3 to 4, 5 to 8, ... records were written since
/// the daemon started.
struct BatchSizes: Codable {
    var batchesByRecordsAtMost: [String: Int]

    init(_ counts: [String: Int]) { batchesByRecordsAtMost = counts }

    /// From exact numbers of records: each class holds up to a power of two.
    init(records: [Int: Int]) {
        batchesByRecordsAtMost = records.reduce(into: [:]) { result, entry in
            var limit = 1
            while limit < entry.key { limit *= 2 }
            result["\(limit)", default: 0] += entry.value
        }
    }

    /// Asks the node.
    init(configuration: String, node: String?) throws {
        let beside = ownDirectory.appendingPathComponent("lockstep")
        let process = Process()
        process.executableURL = beside
        process.arguments =
            ["status", "--json", "--config", configuration] + (node.map { ["--node", $0] } ?? [])
        let output = Pipe()
        process.standardOutput = output
        try process.run()
        let data = try output.fileHandleForReading.readToEnd() ?? Data()
        process.waitUntilExit()
        try self.init(status: data)
    }

    /// From what `lockstep status --json` printed.
    init(status: Data) throws {
        let object = try? JSONSerialization.jsonObject(with: status) as? [String: Any]
        let log = object?["log"] as? [String: Any]
        guard let counts = log?["batchesBySize"] as? [Int] else {
            throw BenchError("'lockstep status --json' did not give the batch counters.")
        }
        self.init(Dictionary(uniqueKeysWithValues: counts.enumerated().map { ("\(1 << $0.offset)", $0.element) }))
    }

    func since(_ before: BatchSizes?) -> BatchSizes {
        guard let before else { return self }
        return BatchSizes(
            batchesByRecordsAtMost.compactMapValues { $0 }.reduce(into: [:]) { result, entry in
                let difference = entry.value - before.batchesByRecordsAtMost[entry.key, default: 0]
                if difference > 0 { result[entry.key] = difference }
            })
    }

    var words: String {
        let total = max(1, batchesByRecordsAtMost.values.reduce(0, +))
        return batchesByRecordsAtMost.sorted { (Int($0.key) ?? 0) < (Int($1.key) ?? 0) }
            .map { "up to \($0.key): \($0.value * 100 / total) %" }.joined(separator: ", ")
    }
}
