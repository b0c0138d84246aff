//  All combinations of size, writers, engine and durability in one directory, in turns with the floor.

struct WriteBench {
    var sizes: [Int]
    var writers: [Int]
    var engines: [WriteEngine]
    var durabilities: [Durability]
    var seconds: Double
    /// The rows are not printed as they are measured.
    var isQuiet: Bool
    /// Asks for the sizes of the batches written so far; nil where nobody can be asked.
    var batches: () throws -> BatchSizes? = { nil }
    /// Asks what the nodes have used so far; empty where nobody can be asked.
    var usage: () throws -> [ProcessUsage] = { [] }

    /// - Parameters:
    ///   - directory: where the writes go; a subdirectory is made and removed.
    ///   - floor, remote: plain directories on the disks of both nodes.
    func run(in directory: String, floor: String, remote: String) throws -> Report {
        var report = Report(directory: directory)
        let files = try WorkFiles(
            in: directory, writers: writers.max() ?? 1, bytesOfLargestWrite: sizes.max() ?? 4096)
        defer { files.remove() }
        if !isQuiet { print(Cell.header) }
        for bytes in sizes {
            let meter = try FloorMeter(local: floor, remote: remote, bytes: bytes)
            _ = try meter.sample(seconds: 0.2)
            for engine in engines {
                for durability in durabilities {
                    for count in writers {
                        let combination = Combination(
                            engine: engine, durability: durability, bytes: bytes, writers: count)
                        let cell = try measure(combination, files, meter)
                        report.cells.append(cell)
                        if !isQuiet { print(cell.line) }
                    }
                }
            }
            report.floors.append(meter.floor)
        }
        return report
    }

    /// In turns with the floor, where each write is durable: both meet the same moments of the machine.
    private func measure(_ combination: Combination, _ files: WorkFiles, _ meter: FloorMeter) throws -> Cell {
        let before = (batches: try batches(), usage: try usage())
        var latencies = emptyLatencies()
        var floor = FloorSamples()
        let turns = 4
        for _ in 0..<turns {
            if combination.durability == .fsync { floor.add(try meter.sample(seconds: seconds * 0.2 / Double(turns))) }
            latencies.add(try measureOnce(files, combination, seconds: seconds / Double(turns)))
        }
        guard latencies.totalCount > 0 else {
            throw BenchError("Not one write of \(combination.bytes) bytes ended in \(seconds) s; give more --seconds.")
        }
        var cell = Cell(combination, latencies, seconds: seconds)
        if combination.durability == .fsync { cell.compare(with: floor.floor(bytes: combination.bytes)) }
        cell.batches = try batches().map { $0.since(before.batches) }
        // The warm-ups are a tenth of the counted time, and write like it.
        let writes = Double(latencies.totalCount) * 1.1
        cell.processorMicrosecondsPerWrite = Dictionary(
            uniqueKeysWithValues: zip(before.usage, try usage()).map { before, after in
                (after.node, (after.processorMicroseconds - before.processorMicroseconds) / writes)
            })
        return cell
    }
}
