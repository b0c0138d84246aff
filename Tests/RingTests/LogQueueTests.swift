import Dispatch
import Glibc
import Logging
import Synchronization
import Testing

@testable import Ring

/// A pipe whose reader reads when told.
private final class SlowReader: Sendable {
    let writer: Int32
    private let reader: Int32

    init() {
        var ends: [Int32] = [-1, -1]
        precondition(pipe(&ends) == 0)
        (reader, writer) = (ends[0], ends[1])
    }

    /// No write to it returns before somebody reads.
    func fill() {
        _ = fcntl(writer, F_SETFL, O_NONBLOCK)
        while Glibc.write(writer, "\n", 1) == 1 {}
        _ = fcntl(writer, F_SETFL, 0)
    }

    /// Reads until a line ends with `last`; empty lines are left out.
    func lines(until last: String) -> [Substring] {
        var text = ""
        var room = [UInt8](repeating: 0, count: 65536)
        while !text.hasSuffix(last + "\n") {
            let count = read(reader, &room, room.count)
            guard count > 0 else { break }
            text += String(decoding: room[..<count], as: UTF8.self)
        }
        return text.split(separator: "\n")
    }
}

@Suite struct LogQueueTests {
    @Test func linesOfSeveralThreadsAllArriveEachThreadsInOrder() throws {
        let pipe = SlowReader()
        let queue = try LogQueue(descriptor: pipe.writer)
        DispatchQueue.global().async {
            DispatchQueue.concurrentPerform(iterations: 4) { thread in
                for index in 0..<1000 { queue.append("\(thread) \(index)\n") }
            }
            queue.append("end\n")
        }
        let lines = pipe.lines(until: "end").dropLast()
        #expect(lines.count == 4000)
        for thread in 0..<4 {
            let own = lines.filter { $0.hasPrefix("\(thread) ") }.compactMap { Int($0.dropFirst(2)) }
            #expect(own == Array(0..<1000))
        }
    }

    @Test func linesLookAsThoseOfTheStandardHandler() throws {
        let pipe = SlowReader()
        let queue = try LogQueue(descriptor: pipe.writer)
        var logger = Logger(label: "lockstepd") { queue.handler(label: $0, level: .info) }
        logger[metadataKey: "mirror"] = "ledger"
        logger.debug("not asked for")
        logger.notice("started", metadata: ["node": "alpha"])
        let line = try #require(pipe.lines(until: "started").first)
        let words = line.split(separator: " ")
        #expect(
            words.dropFirst().joined(separator: " ")
                == "notice lockstepd: mirror=ledger node=alpha [RingTests] started")
        #expect(words[0].count == "2026-01-01T00:00:00+0000".count)
    }

    @Test func whoLogsNeverWaitsForAReaderAndHearsLaterHowManyLinesWereLost() throws {
        let pipe = SlowReader()
        pipe.fill()
        let queue = try LogQueue(descriptor: pipe.writer, bytesMaximum: 1000)
        let begun = BootClock.now
        for index in 0..<150 { queue.append("line \(index) \n".padded) }
        #expect(!queue.flush(milliseconds: 50))
        #expect(BootClock.now - begun < 1_000_000_000)
        // The reader is back.
        let lines = pipe.lines(until: "did not for a while")
        #expect(lines.count == 101)
        #expect(lines.dropLast().elementsEqual((0..<100).map { "line \($0) \n".padded.dropLast() }))
        #expect(
            lines.last?.hasSuffix("warning log: [Ring] 50 log lines were lost: whoever reads them did not for a while")
                == true)
        queue.append("again\n")
        #expect(pipe.lines(until: "again") == ["again"])
        #expect(queue.flush(milliseconds: 1000))
    }

    @Test func aReaderWhoHasGoneStopsNobody() throws {
        var ends: [Int32] = [-1, -1]
        precondition(pipe(&ends) == 0)
        let queue = try LogQueue(descriptor: ends[1])
        close(ends[0])
        queue.append("nobody\n")
        #expect(queue.flush(milliseconds: 2000))
    }

    @Test func nothingIsLostWithAProcessThatFails() async {
        let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
            try ProgramLog.begin(level: .info)
            for index in 0..<500 { Logger(label: "test").info("line \(index)") }
            preconditionFailure("as it may happen")
        }
        let text = String(decoding: result?.standardErrorContent ?? [], as: UTF8.self)
        #expect(text.contains("line 499\n"))
    }

    @Test func nothingIsLostWithAProcessThatEnds() async {
        let result = await #expect(processExitsWith: .exitCode(3), observing: [\.standardErrorContent]) {
            try ProgramLog.begin(level: .info)
            for index in 0..<500 { Logger(label: "test").info("line \(index)") }
            exit(3)
        }
        let text = String(decoding: result?.standardErrorContent ?? [], as: UTF8.self)
        #expect(text.contains("line 499\n"))
    }
}

extension String {
    /// Ten bytes, its end of line included.
    fileprivate var padded: String { String(repeating: "x", count: 10 - utf8.count) + self }
}
