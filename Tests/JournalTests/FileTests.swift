import CLinux
import Format
import Foundation
import Journal
import Logging
import Ring
import Synchronization
import Testing

let quiet = Logger(label: "journal.tests") { _ in SwiftLogNoOpLogHandler() }

/// A directory on a real file system, gone afterwards.
func withDirectory<Result>(_ body: (String) throws -> Result) throws -> Result {
    let path = "/var/tmp/lockstep-journal-\(getpid())-\(UInt32.random(in: 0...UInt32.max))"
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: path) }
    return try body(path)
}

/// Opens the journal on a reactor of this thread and runs the reactor until `stop` is called.
func run(
    _ path: String, _ engine: EngineChoice, _ body: @escaping (Journal, _ stop: @escaping () -> Void) throws -> Void
) throws {
    let reactor = try Reactor(engine: engine, logger: quiet)
    let journal = try Journal(path: path, mirror: testMirror, node: .a, reactor: reactor)
    let late = reactor.after(milliseconds: 20_000) {
        Issue.record("the journal did not finish in time")
        reactor.stop()
    }
    try body(journal) { reactor.stop() }
    reactor.run()
    late.cancel()
    journal.close()
}

@Suite struct FileTests {
    private func create(_ directory: String) throws -> String {
        let path = directory + "/journal"
        try Journal.create(path: path, size: JournalLayout.minimumSize, mirror: testMirror, node: .a, time: 1)
        return path
    }

    @Test(arguments: [EngineChoice.ioUring, .libaio])
    func bothEnginesKeepWhatWasAppended(engine: EngineChoice) throws {
        try withDirectory { directory in
            let path = try create(directory)
            var maker = BatchMaker()
            let batches = [[100], [5000, 20], [1 << 20], [4096]].map { maker.make($0) }
            let wanted = batches.map(Contents.init)
            try run(path, engine) { journal, stop in
                journal.onDurable = { seq in
                    guard seq == batches[3].lastSeq else { return }
                    journal.checkpoint(batches[0].lastSeq) { journal.markCleanStop { stop() } }
                }
                for batch in batches { try journal.append(batch) }
            }
            try run(path, engine) { journal, stop in
                #expect(journal.report.wasStoppedCleanly && journal.checkpointSeq == batches[0].lastSeq)
                #expect(try read(journal, from: Seq(rawValue: 1)).map(Contents.init) == wanted)
                // A reader on another thread sees the same, past the lock.
                let plan = try #require(journal.plan(from: Seq(rawValue: 1), limitBytes: 64 << 20))
                let found = Mutex<[Contents]>([])
                let thread = Thread {
                    let batches = (try? JournalReader(path: path).read(plan)) ?? []
                    found.withLock { $0 = batches.map(Contents.init) }
                }
                thread.start()
                while !thread.isFinished { usleep(1000) }
                #expect(found.withLock { $0 } == wanted)
                stop()
            }
        }
    }

    @Test func aJournalIsOpenOnlyOnce() throws {
        try withDirectory { directory in
            let path = try create(directory)
            let reactor = try Reactor(engine: .auto, logger: quiet)
            let first = try Journal(path: path, mirror: testMirror, node: .a, reactor: reactor)
            let error = #expect(throws: JournalError.self) {
                try Journal(path: path, mirror: testMirror, node: .a, reactor: reactor)
            }
            #expect(error?.code == .locked)
            first.close()
            try Journal(path: path, mirror: testMirror, node: .a, reactor: reactor).close()
        }
    }

    @Test func creationWritesEveryByteTellsProgressAndNeverOverwrites() throws {
        try withDirectory { directory in
            let path = directory + "/journal"
            var told: [Int] = []
            try Journal.create(
                path: path, size: 65 << 20, mirror: testMirror, node: .b, time: 1
            ) { written, total in
                #expect(total == 65 << 20)
                told.append(written)
            }
            #expect(told.last == 65 << 20 && told == told.sorted())
            var status = stat()
            #expect(stat(path, &status) == 0 && status.st_size == 65 << 20)
            #expect(status.st_blocks >= (65 << 20) / 512, "written, not only reserved")
            let error = #expect(throws: JournalError.self) {
                try Journal.create(path: path, mirror: testMirror, node: .b, time: 1)
            }
            #expect(error?.code == .exists)
            #expect(try FileManager.default.contentsOfDirectory(atPath: directory) == ["journal"])
        }
    }

    @Test func impossibleSizesAreRefusedBeforeAnythingIsMade() throws {
        try withDirectory { directory in
            for size in [0, 1 << 20, (64 << 20) + 4096] {
                let error = #expect(throws: JournalError.self) {
                    try Journal.create(path: directory + "/j", size: size, mirror: testMirror, node: .a, time: 1)
                }
                #expect(error?.code == .wrongSize)
            }
            let left = try FileManager.default.contentsOfDirectory(atPath: directory)
            #expect(left.isEmpty)
        }
    }

    @Test func aMissingFileAndAnyOtherFileAreRefused() throws {
        try withDirectory { directory in
            let reactor = try Reactor(engine: .auto, logger: quiet)
            let missing = #expect(throws: JournalError.self) {
                try Journal(path: directory + "/none", mirror: testMirror, node: .a, reactor: reactor)
            }
            #expect(missing?.code == .notFound)
            let text = directory + "/text"
            try Data(repeating: 65, count: 100_000).write(to: URL(fileURLWithPath: text))
            #expect(throws: JournalError.self) {
                try Journal(path: text, mirror: testMirror, node: .a, reactor: reactor)
            }
            #expect(try Data(contentsOf: URL(fileURLWithPath: text)) == Data(repeating: 65, count: 100_000))
        }
    }
}

/// The program itself, as an administrator runs it.
@Suite struct DumpTests {
    /// The program stands beside the test bundle.
    private func dump(_ arguments: String...) throws -> (status: Int32, output: String) {
        let maps = try String(contentsOfFile: "/proc/self/maps", encoding: .utf8)
        let bundle = try #require(
            maps.split(separator: "\n").compactMap { line in
                line.firstIndex(of: "/").map { String(line[$0...]) }
            }.first { $0.hasSuffix(".xctest") })
        let process = Process()
        process.executableURL = URL(fileURLWithPath: bundle).deletingLastPathComponent()
            .appendingPathComponent("lockstep-dump")
        process.arguments = arguments
        let pipe = Pipe()
        process.standardOutput = pipe
        process.standardError = pipe
        try process.run()
        let data = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return (process.terminationStatus, String(decoding: data, as: UTF8.self))
    }

    /// A journal with four batches; the third holds 9000 bytes.
    private func withJournal(_ body: (String, [BatchLocation]) throws -> Void) throws {
        try withDirectory { directory in
            let path = directory + "/journal"
            try Journal.create(path: path, size: JournalLayout.minimumSize, mirror: testMirror, node: .a, time: 1)
            var maker = BatchMaker()
            let batches = [
                maker.epochStart(Epoch(rawValue: 4)), maker.make([20, 30]), maker.make([9000]), maker.make([5]),
            ]
            var plan: [BatchLocation] = []
            try run(path, .auto) { journal, stop in
                journal.onDurable = { seq in
                    guard seq == journal.lastSeq else { return }
                    plan = journal.plan(from: Seq(rawValue: 1), limitBytes: 1 << 20) ?? []
                    journal.markCleanStop { stop() }
                }
                for batch in batches { try journal.append(batch) }
            }
            try body(path, plan)
        }
    }

    private func damage(_ path: String, at offset: Int) throws {
        let file = try FileHandle(forUpdating: URL(fileURLWithPath: path))
        try file.seek(toOffset: UInt64(offset))
        let byte = try #require(try file.read(upToCount: 1)?.first)
        try file.seek(toOffset: UInt64(offset))
        try file.write(contentsOf: Data([byte ^ 0xFF]))
        try file.close()
    }

    @Test func itShowsSuperblockBatchesAndRecords() throws {
        try withJournal { path, _ in
            let before = try Data(contentsOf: URL(fileURLWithPath: path))
            let all = try dump(path, "--payload")
            #expect(all.status == 0)
            for text in [
                "\(testMirror)", "epoch      4 from record 1", "epoch 4 begins", "write 9000 bytes at 0",
                "stopped cleanly", "ab ab ab",
            ] { #expect(all.output.contains(text), "no '\(text)' in: \(all.output.prefix(3000))") }
            let some = try dump(path, "--seq", "2..3", "--file", "0000000000000003")
            #expect(some.output.contains("write 30 bytes") && !some.output.contains("write 20 bytes"))
            #expect(try !dump(path, "--since", "2020-01-01T00:00:00Z").output.contains("write"))
            #expect(try dump(path, "--until", "2020-01-01T00:00:00Z").output.contains("write 9000"))
            #expect(try Data(contentsOf: URL(fileURLWithPath: path)) == before, "it never writes")
        }
    }

    @Test func jsonIsJson() throws {
        try withJournal { path, _ in
            let result = try dump(path, "--json", "--payload")
            let object = try #require(
                try JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [String: Any])
            #expect((object["batches"] as? [Any])?.count == 4)
            #expect((object["report"] as? [String: Any])?["verdict"] as? String == "intact")
        }
    }

    @Test func itWorksOnALiveJournal() throws {
        try withJournal { path, _ in
            let reactor = try Reactor(engine: .auto, logger: quiet)
            let journal = try Journal(path: path, mirror: testMirror, node: .a, reactor: reactor)
            #expect(try dump(path, "--verify").status == 0)
            journal.close()
        }
    }

    @Test func failure37ofADamagedJournalItShowsAllThatCanBeRead() throws {
        try withJournal { path, plan in
            try damage(path, at: plan[2].position + 4096 + 100)
            let listed = try dump(path)
            #expect(listed.status == 1)
            #expect(listed.output.contains("DAMAGED PAYLOAD") && listed.output.contains("write 5 bytes"))
            let verified = try dump(path, "--verify", "--json")
            #expect(verified.status == 1 && verified.output.contains("\"alone\":\"refuse to be primary\""))
            for copy in [0, 65536, (64 << 20) - 65536] { try damage(path, at: copy + 30) }
            let refused = try dump(path)
            #expect(refused.status == 1 && refused.output.contains("REFUSED"))
            #expect(refused.output.contains("write 5 bytes") && refused.output.contains("write 20 bytes"))
        }
    }

    @Test func wrongUsageAndMissingFilesAreStatusTwo() throws {
        #expect(try dump("/nonexistent").status == 2)
        #expect(try dump("--seq", "9..2", "/dev/null").status == 2)
        #expect(try dump("/dev/null").status == 1)
        #expect(try dump("--help").status == 0)
    }
}
