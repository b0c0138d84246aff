//  A writer: changes its own directory of the mirror for as long as it may, and notes everything outside of it.
import CLinux
import Foundation

public final class Writer {
    private let name: String
    private let root: String
    private let records: String
    private let node: String
    /// Milliseconds between two operations, at most.
    private let pauseMax: Int
    private var source: OperationSource
    private let executor: Executor

    /// - Parameters:
    ///   - directory: the mirrored directory; the writer makes its own in it.
    ///   - records: a directory outside of the mirror.
    ///   - pauseMax: milliseconds between two operations, at most.
    public init(name: String, directory: String, records: String, node: String, seed: UInt64, pauseMax: Int) {
        self.name = name
        root = directory + "/" + name
        self.records = records
        self.node = node
        self.pauseMax = pauseMax
        source = OperationSource(seed: seed)
        executor = Executor(root: root)
    }

    /// The file whose presence makes all writers finish their operation and wait.
    public static func pauseFile(_ records: String) -> String { records + "/pause" }
    /// The file by which a writer says that it waits.
    public static func waitingFile(_ records: String, _ name: String) -> String { records + "/\(name).waiting" }

    /// Lives one life after another until the mirror is gone from under it.
    ///
    /// - Throws: what ended it: the mirror refuses, which is where an application ends too.
    public func run() throws {
        if mkdir(root, 0o755) != 0, errno != EEXIST { throw WorkloadError("make", root, errno) }
        while true { try live() }
    }

    private func live() throws {
        let device = try device()
        var model = try FileModel(reading: root, direct: true)
        guard try self.device() == device else { throw WorkloadError("go on in", root, EIO) }
        let begun = bootNanoseconds()
        let base = "\(records)/\(name)-\(begun)-\(node)"
        let data = try JSONEncoder().encode(model)
        try data.write(to: URL(fileURLWithPath: base + ".new"))
        let log = clinux_open(base + ".log", O_WRONLY | O_CREAT | O_APPEND, 0o644)
        guard log >= 0 else { throw WorkloadError("open", base + ".log", -log) }
        defer { _ = clinux_close(log) }
        guard rename(base + ".new", base + ".base") == 0 else { throw WorkloadError("name", base, errno) }

        var number = 0
        while access(Writer.pauseFile(records), F_OK) != 0 {
            let operation = source.next(in: model)
            try note("b \(number) \(bootNanoseconds()) \(operation.line)\n", log)
            let result = executor.perform(operation)
            guard try isAnswer(result, to: operation, device: device) else { return }
            try note("e \(number) \(bootNanoseconds()) \(result)\n", log)
            model.apply(operation, result: result)
            number += 1
            if pauseMax > 0 { usleep(useconds_t(source.below(pauseMax * 1000))) }
        }
        try wait()
    }

    /// The file system that is now at the writer's directory.
    private func device() throws -> UInt64 {
        var status = stat()
        guard lstat(root, &status) == 0 else { throw WorkloadError("look at", root, errno) }
        return UInt64(status.st_dev)
    }

    /// Whether the result counts as an answer of the mirror.
    ///
    /// - Returns: false if it leaves open what was done: stores through a mapping that could not all be written.
    /// - Throws: when the mirror refuses, or is not there any more; what was asked for remains without an answer.
    private func isAnswer(_ result: Int, to operation: FileOperation, device: UInt64) throws -> Bool {
        if result >= 0 || Judge.isHarmless(result) {
            return result >= 0 || operation.kind != .mapWrite
        }
        // What is below the mount answers too (no such file, read-only): then it was not the mirror.
        let isMirror = (try? self.device()) == device
        guard isMirror, ![EIO, ENOTCONN, ECONNABORTED].contains(Int32(clamping: -result)) else {
            throw WorkloadError("do '\(operation.line)' in", root, Int32(clamping: -result))
        }
        return true
    }

    private func note(_ line: String, _ log: Int32) throws {
        var text = line
        let written = text.withUTF8 { Foundation.write(log, $0.baseAddress, $0.count) }
        guard written == line.utf8.count else { throw WorkloadError("note in the log of", name, errno) }
    }

    private func wait() throws {
        let file = Writer.waitingFile(records, name)
        guard FileManager.default.createFile(atPath: file, contents: nil) else {
            throw WorkloadError("make", file, errno)
        }
        defer { unlink(file) }
        while access(Writer.pauseFile(records), F_OK) == 0 { usleep(10_000) }
    }
}
