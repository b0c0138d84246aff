//  What one writer did from one moment on: what it found, then each operation with the moment before and the answer.
//
//      WRITER-BEGIN-NODE.base     the directory as it was found, JSON
//      WRITER-BEGIN-NODE.log      b NUMBER TIME OPERATION...     before the call
//                                 e NUMBER TIME RESULT           after it
//
//  A line is one write() to a file outside of the mirror: it outlives the writer, whatever kills it. Times are
//  nanoseconds of the boot clock, which all rooms share.
import Foundation

public struct Life: Sendable {
    public struct Step: Sendable {
        public var operation: FileOperation
        public var begun: UInt64
        /// Nil when no answer came.
        public var ended: UInt64?
        public var result = 0
        public var isAnswered: Bool { ended != nil }
    }
    public var writer: String
    public var node: String
    /// When what it found had been read.
    public var begun: UInt64
    public var base: FileModel
    public var steps: [Step] = []

    public init(writer: String, node: String, begun: UInt64, base: FileModel) {
        (self.writer, self.node, self.begun, self.base) = (writer, node, begun, base)
    }

    /// Reads all lives noted in a directory, those of each writer in order. A life whose base is not complete is one
    /// that never began.
    public static func readAll(in directory: String) throws -> [String: [Life]] {
        var result: [String: [Life]] = [:]
        for name in try FileManager.default.contentsOfDirectory(atPath: directory).sorted()
        where name.hasSuffix(".base") {
            let parts = name.dropLast(5).split(separator: "-")
            guard parts.count == 3, let begun = UInt64(parts[1]),
                let data = FileManager.default.contents(atPath: directory + "/" + name)
            else { continue }
            var life = Life(
                writer: String(parts[0]), node: String(parts[2]), begun: begun,
                base: try JSONDecoder().decode(FileModel.self, from: data))
            let log = FileManager.default.contents(atPath: directory + "/" + name.dropLast(5) + ".log") ?? Data()
            try life.read(String(decoding: log, as: UTF8.self))
            result[life.writer, default: []].append(life)
        }
        return result.mapValues { $0.sorted { $0.begun < $1.begun } }
    }

    private mutating func read(_ text: String) throws {
        for line in text.split(separator: "\n") {
            let fields = line.split(separator: " ")
            guard fields.count >= 4, let number = Int(fields[1]), let time = UInt64(fields[2]) else {
                throw WorkloadError("read the line '\(line)' of", writer, 0)
            }
            if fields[0] == "b", let operation = FileOperation(fields: Array(fields[3...])), number == steps.count {
                steps.append(Step(operation: operation, begun: time))
            } else if fields[0] == "e", let result = Int(fields[3]), number == steps.count - 1 {
                steps[number].ended = time
                steps[number].result = result
            } else {
                throw WorkloadError("understand the line '\(line)' of", writer, 0)
            }
        }
    }
}

/// Nanoseconds of a clock that no one can set (CLOCK_BOOTTIME).
public func bootNanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_BOOTTIME, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}
