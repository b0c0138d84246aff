import CLinux
import Format
import Foundation
import Glibc
import Testing

@testable import Tree

/// Batches of drawn records, as a journal would have them.
func batches(of drawn: [Generator.Drawn], from first: Seq = Seq(rawValue: 1), size: Int = 10) -> [Batch] {
    var result: [Batch] = []
    var index = 0
    while index < drawn.count {
        let piece = drawn[index..<min(index + size, drawn.count)]
        var writer = ByteWriter()
        writer.put(raw: [UInt8](repeating: 0, count: BatchHeader.byteCount))
        var records: [Record] = []
        for drawn in piece {
            let isWrite = drawn.record.body.kind == .write || drawn.record.body.kind == .repair
            var record = drawn.record
            record.payload = .none
            records.append(
                drawn.payload.withUnsafeBytes { record.encode(into: &writer, inlinePayload: isWrite ? $0 : nil) })
        }
        result.append(
            Batch(
                records: records, encoded: writer, region: nil, epoch: Epoch(rawValue: 7), mirror: .none,
                firstSeq: first + index, previousChain: 0, committedSeq: .zero, closedAt: 0))
        index += piece.count
    }
    return result
}

extension PlainTree {
    func replay(
        _ drawn: [Generator.Drawn], after checkpoint: Int, through last: Int? = nil, isBehind: Bool = false,
        ahead: RecordsAhead = RecordsAhead(),
        step: @escaping ReplayStep = { () throws(TreeError) in }
    ) throws -> ReplayResult {
        // Large payloads one to a batch: the records of a batch have a limit in bytes.
        let all = batches(of: drawn, size: drawn.contains { $0.payload.count > 40_000 } ? 1 : 10)
        return try replay(
            after: Seq(rawValue: UInt64(checkpoint)), through: Seq(rawValue: UInt64(last ?? drawn.count)),
            isBehind: isBehind, ahead: ahead,
            batches: { (visit) throws(TreeError) in for batch in all { try visit(batch) } }, step: step)
    }

    /// Some of the window's changes, in any mixture, as a crash may leave them: each record may be missing, names move
    /// whatever is in their way, contents are written in part. Nothing that is needed at the end is destroyed.
    func disturb(_ window: [Generator.Drawn], _ random: inout Seeded) throws {
        for drawn in window where Int.random(in: 0..<100, using: &random) < 55 {
            var drawn = drawn
            if case .write(let file, let offset) = drawn.record.body, Bool.random(using: &random) {
                let start = Int.random(in: 0..<drawn.payload.count, using: &random)
                drawn.payload = Array(drawn.payload[start...])
                drawn.record.body = .write(file: file, offset: offset + UInt64(start))
                drawn.record.payload = .inline(offset: 0, length: drawn.payload.count, checksum: 0)
            }
            try drawn.payload.withUnsafeBytes {
                try applyImaging(drawn.record, payload: $0, settingTimes: Bool.random(using: &random))
            }
        }
    }
}

@Suite struct ReplayTests {
    @Test(arguments: 1...24)
    func failure36ReplayOfAnyMixtureGivesTheCommittedState(seed: UInt64) throws {
        let scratch = try #require(Scratch(ext4: true), "needs root, loop devices and mkfs.ext4")
        let tree = try openTree(scratch)
        var generator = Generator(seed: seed &* 7919)
        var drawn = generator.draw(120)
        for record in drawn { try tree.apply(record) }
        try tree.sync()
        drawn += generator.draw(150)
        var random = Seeded(seed)
        // A whole prefix, then any of the rest.
        let prefix = Int.random(in: 120...270, using: &random)
        for record in drawn[120..<prefix] { try tree.apply(record) }
        try tree.disturb(Array(drawn[prefix...]), &random)
        _ = try tree.replay(drawn, after: 120)
        try expectSame(tree, generator.model)
        #expect(try tree.stagingNames() == [])
        // Once more: nothing changes.
        _ = try tree.replay(drawn, after: 120)
        try expectSame(tree, generator.model)
    }

    /// The files have everything, the disk knows less to be committed: what comes again changes nothing in the end.
    @Test(arguments: 1...16)
    func failure36FilesAheadOfWhatIsKnownToBeCommittedConverge(seed: UInt64) throws {
        let scratch = try #require(Scratch(ext4: true), "needs root, loop devices and mkfs.ext4")
        let tree = try openTree(scratch)
        var generator = Generator(seed: seed &* 15_485_863)
        let drawn = generator.draw(280)
        for record in drawn[..<120] { try tree.apply(record) }
        try tree.sync()
        for record in drawn[120...] { try tree.apply(record) }
        var random = Seeded(seed)
        let committed = Int.random(in: 120...280, using: &random)
        var ahead = RecordsAhead()
        for batch in batches(of: Array(drawn[committed...]), size: 1) { ahead.note(batch) }
        // Also when it is interrupted before everything has come again.
        for end in [Int.random(in: committed...280, using: &random), 280] {
            _ = try tree.replay(drawn, after: 120, through: committed, ahead: ahead)
            for record in drawn[committed..<end] {
                try record.payload.withUnsafeBytes {
                    try tree.apply(record.record, payload: $0, role: .secondary, again: true)
                }
            }
        }
        try tree.clearStaging()
        try expectSame(tree, generator.model)
        #expect(!FileManager.default.fileExists(atPath: "\(scratch.path)/backing/.lockstep/found"))
    }

    /// A security module gives every new file one, and refuses to take it away again.
    @Test func aReplayLeavesTheLabelsOfSecurityModules() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        let file = FileID(epoch: Epoch(rawValue: 7), counter: 1)
        let (label, other): (FileName, FileName) = (Array("security.selinux".utf8), Array("trusted.other".utf8))
        let create = RecordBody.create(
            file: file, parent: .root, name: Array("f".utf8),
            attributes: FileAttributes(mode: S_IFREG | 0o644, uid: 0, gid: 0), target: [], xattrs: [])
        let drawn = Generator.Drawn(record: Record(time: 1, body: create), payload: [])
        try tree.apply(drawn)
        try tree.withDescriptor(of: file, writable: false) { (fd) throws(TreeError) in
            for name in [label, other] { try System.setXattr(fd, name, [1]) }
        }
        _ = try tree.replay([drawn], after: 0)
        #expect(try tree.xattr(of: file, name: label) == [1])
        #expect(try tree.xattr(of: file, name: other) == nil)
    }

    @Test(arguments: 1...5)
    func failure36ACrashAtAnyStepOfAReplayIsMendedByTheNext(seed: UInt64) throws {
        let scratch = try #require(Scratch(ext4: true), "needs root, loop devices and mkfs.ext4")
        var generator = Generator(seed: seed &* 104_729)
        var drawn = generator.draw(80)
        var random = Seeded(seed)
        try {
            let tree = try openTree(scratch)
            for record in drawn { try tree.apply(record) }
            try tree.sync()
            drawn += generator.draw(120)
            try tree.disturb(Array(drawn[80...]), &random)
        }()
        var limit = 0
        var isDone = false
        while !isDone {
            // The process is gone each time: only what is in the files counts.
            let tree = try openTree(scratch, .existing)
            final class Counter: @unchecked Sendable { var left = 0 }
            let counter = Counter()
            counter.left = limit
            do {
                _ = try tree.replay(drawn, after: 80) { () throws(TreeError) in
                    if counter.left == 0 { throw TreeError("go on", code: EINTR) }
                    counter.left -= 1
                }
                isDone = true
            } catch let error as TreeError where error.code == EINTR {
                limit = limit * 5 / 4 + Int.random(in: 1...7, using: &random)
                if Bool.random(using: &random) { unlink("\(scratch.path)/state/file-table") }
            }
        }
        try expectSame(openTree(scratch, .existing), generator.model)
    }

    @Test func aReplayStopsAtTheCommittedRecord() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        var generator = Generator(seed: 99)
        let drawn = generator.draw(100)
        var model = Model()
        for record in drawn[..<60] { model.apply(record.record, payload: record.payload) }
        _ = try tree.replay(drawn, after: 0, through: 60)
        try expectSame(tree, model)
    }

    /// The record of a repair is in both journals; only the room that crashed replays it.
    @Test func aRepairThatIsRedoneChangesBytesAndNothingElse() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        let id = { (number: Int) in FileID(rawValue: 7 << 40 | UInt64(number)) }
        // CAP_NET_RAW, permitted: version 2 of the kernel's format.
        let capability: [UInt8] = [1, 0, 0, 2, 0, 0x20] + [UInt8](repeating: 0, count: 14)
        var drawn = [1, 2].map { number in
            Generator.Drawn(
                record: Record(
                    time: 5,
                    body: .create(
                        file: id(number), parent: .root, name: Array("f\(number)".utf8),
                        attributes: FileAttributes(
                            mode: S_IFREG | 0o755, uid: 0, gid: 0, size: 9000, mtime: 1_000_000_007),
                        target: [], xattrs: [])), payload: [])
        }
        for number in [1, 2] {
            drawn.append(
                Generator.Drawn(
                    record: Record(
                        time: 6,
                        body: .setXattr(
                            file: id(number), name: Array("security.capability".utf8), value: capability)),
                    payload: []))
        }
        let checkpoint = drawn.count
        func add(_ body: RecordBody) {
            drawn.append(
                Generator.Drawn(
                    record: Record(
                        time: 2_000_000_009, body: body, payload: .inline(offset: 0, length: 3, checksum: 0)),
                    payload: [7, 7, 7]))
        }
        add(.repair(file: id(1), offset: 4000))
        // What the application wrote counts, whatever was repaired before or after.
        add(.write(file: id(2), offset: 100))
        add(.repair(file: id(2), offset: 4000))
        for record in drawn { try tree.apply(record) }
        let before = try [1, 2].map { try tree.status(of: id($0)).attributes }
        #expect(before[0].mtime == 1_000_000_007 && before[1].mtime == 2_000_000_009)
        for _ in 0..<2 {
            _ = try tree.replay(drawn, after: checkpoint)
            #expect(try [1, 2].map { try tree.status(of: id($0)).attributes } == before)
            #expect(try tree.xattr(of: id(1), name: Array("security.capability".utf8)) == capability)
            #expect(try tree.xattr(of: id(2), name: Array("security.capability".utf8)) == nil)
            #expect(try tree.contents(id(1))[4000..<4003] == [7, 7, 7])
        }
    }

    @Test func aTreeThatIsNotTheJournalsIsRefused() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        var generator = Generator(seed: 4)
        let drawn = generator.draw(200)
        let error = #expect(throws: TreeError.self) { try tree.replay(drawn, after: 150) }
        #expect(error?.code == ENOENT)
    }

    @Test(arguments: 1...10)
    func onlyTheBytesThatSurviveAreWrittenAgain(seed: UInt64) {
        var random = Seeded(seed)
        var fold = ByteFold()
        var wanted: [UInt8] = []
        var payloads: [Seq: [UInt8]] = [:]
        for number in 1...200 {
            let seq = Seq(rawValue: UInt64(number))
            let offset = Int.random(in: 0..<900_000, using: &random)
            let length = Int.random(in: 1..<(number % 10 == 0 ? 400_000 : 9000), using: &random)
            switch Int.random(in: 0..<12, using: &random) {
            case 0:
                let size = number % 3 == 0 ? 0 : offset
                fold.truncate(to: UInt64(size))
                wanted = Array(wanted.prefix(size)) + [UInt8](repeating: 0, count: max(0, size - wanted.count))
            case 1:
                fold.allocate(mode: 3, offset: UInt64(offset), length: UInt64(length))
                for index in offset..<max(offset, min(offset + length, wanted.count)) { wanted[index] = 0 }
            default:
                let payload = (0..<length).map { UInt8(truncatingIfNeeded: number &+ $0) | 1 }
                payloads[seq] = payload
                fold.write(seq, offset: UInt64(offset), length: UInt64(length))
                if wanted.count < offset + length {
                    wanted += [UInt8](repeating: 0, count: offset + length - wanted.count)
                }
                wanted.replaceSubrange(offset..<(offset + length), with: payload)
            }
        }
        var found = [UInt8](repeating: 0, count: Int(fold.finalSize(from: 0)))
        var written = [Bool](repeating: false, count: found.count)
        var isOverlapping = false
        fold.survivors { piece in
            for index in 0..<Int(piece.length) {
                if written[Int(piece.offset) + index] { isOverlapping = true }
                written[Int(piece.offset) + index] = true
                found[Int(piece.offset) + index] = payloads[piece.seq]![Int(piece.start) + index]
            }
        }
        #expect(!isOverlapping, "two survivors for one byte")
        #expect(found == wanted)
    }
}
