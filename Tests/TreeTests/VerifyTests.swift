import CLinux
import Format
import Glibc
import Ring
import Synchronization
import Testing

@testable import Tree

private func id(_ counter: UInt64) -> FileID { FileID(epoch: Epoch(rawValue: 3), counter: counter) }
private func name(_ text: String) -> FileName { Array(text.utf8) }

private func check(
    _ file: FileID, _ aspect: VerifyAspect, _ offset: UInt64 = 0, _ length: UInt64 = 0, block: UInt32 = 4096
) -> VerifyCheck {
    VerifyCheck(number: 1, file: file, aspect: aspect, offset: offset, length: length, blockBytes: block, seed: 5)
}

private func make(_ tree: PlainTree, _ file: FileID, _ text: String, mode: UInt32 = S_IFREG | 0o644) throws {
    try tree.apply(
        .create(
            file: file, parent: .root, name: name(text), attributes: FileAttributes(mode: mode, uid: 0, gid: 0),
            target: [], xattrs: []))
}

@Suite struct VerifyTests {
    private final class Told: Sendable {
        let state = Mutex<(found: [Seq: VerifyOutcome], watermark: Seq)>(([:], .zero))
    }
    private final class Held: @unchecked Sendable { var applier: Applier? }

    /// Questions between writes to a few files, applied by several workers: each is answered for exactly its place.
    @Test(arguments: [UInt64](1...5))
    func aQuestionIsAnsweredForTheStateAtItsOwnRecord(seed: UInt64) throws {
        let scratch = Scratch()
        var random = Seeded(seed)
        var model: [FileID: [UInt8]] = [:]
        var expected: [Seq: [UInt8]] = [:]
        var drawn: [Generator.Drawn] = []
        func add(_ body: RecordBody, _ payload: [UInt8] = []) {
            var record = Record(time: Int64(drawn.count), body: body)
            if !payload.isEmpty { record.payload = .inline(offset: 0, length: payload.count, checksum: 0) }
            drawn.append(Generator.Drawn(record: record, payload: payload))
        }
        for file in 1...3 {
            model[id(UInt64(file))] = []
            add(
                .create(
                    file: id(UInt64(file)), parent: .root, name: name("f\(file)"),
                    attributes: FileAttributes(mode: S_IFREG | 0o644, uid: 0, gid: 0), target: [], xattrs: []))
        }
        for _ in 0..<600 {
            let file = id(UInt64.random(in: 1...3, using: &random))
            if Int.random(in: 0..<4, using: &random) == 0 {
                add(.verify(check(file, .bytes, 0, 16384)))
                expected[Seq(rawValue: UInt64(drawn.count))] = Array(model[file]!.prefix(16384))
                continue
            }
            let offset = Int.random(in: 0..<12_000, using: &random)
            let bytes = [UInt8](
                repeating: UInt8.random(in: 1...255, using: &random), count: Int.random(in: 1...900, using: &random))
            var content = model[file]!
            if content.count < offset + bytes.count {
                content += [UInt8](repeating: 0, count: offset + bytes.count - content.count)
            }
            content.replaceSubrange(offset..<offset + bytes.count, with: bytes)
            model[file] = content
            add(.write(file: file, offset: UInt64(offset)), bytes)
        }
        let last = Seq(rawValue: UInt64(drawn.count))
        let told = try run(scratch, batches(of: drawn, size: 40), until: last)
        let found = told.state.withLock { $0.found }
        #expect(found.count == expected.count && expected.count > 100)
        for (seq, bytes) in expected { #expect(found[seq] == .bytes(bytes), "record \(seq)") }
    }

    private func run(_ scratch: Scratch, _ all: [Batch], until last: Seq) throws -> Told {
        let tree = try openTree(scratch)
        let told = Told()
        let held = Held()
        let pool = try WorkerPool(threads: 3, name: "apply")
        let thread = try ReactorThread(name: "data", engine: .libaio, logger: quiet) { reactor in
            let applier = Applier(
                tree: tree, role: .secondary, reactor: reactor, pool: pool, jobLimit: 3, applied: .zero, logger: quiet)
            applier.onVerified = { seq, _, outcome in told.state.withLock { $0.found[seq] = outcome } }
            applier.onWatermark = { seq in told.state.withLock { $0.watermark = seq } }
            held.applier = applier
        }
        for batch in all { thread.post { held.applier?.submit([batch]) } }
        for _ in 0..<3000 where told.state.withLock({ $0.watermark < last }) { usleep(10_000) }
        usleep(50_000)
        pool.shutdown()
        _ = thread.call { held.applier = nil }
        thread.stop()
        thread.join()
        return told
    }

    @Test func zerosAndHolesAreTheSameAndAMovedBlockIsNot() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        for file in 1...4 { try make(tree, id(UInt64(file)), "f\(file)") }
        let block = [UInt8](repeating: 7, count: 65536)
        try tree.write(id(1), block, at: 1 << 20)
        try tree.write(id(2), [UInt8](repeating: 0, count: 1 << 20), at: 0)
        try tree.write(id(2), block, at: 1 << 20)
        try tree.write(id(3), block, at: 1 << 20 | 65536)
        let answers = (1...3).map { tree.verify(check(id(UInt64($0)), .content, 0, 2 << 20, block: 65536)) }
        #expect(answers[0] == answers[1])
        #expect(answers[0] != answers[2])
        #expect(tree.verify(check(id(4), .content, 0, 2 << 20, block: 65536)) == .content(Hash128(low: 0, high: 0)))
        #expect(tree.verify(check(id(9), .file)) == .gone)
    }

    @Test func namesAreAskedAboutInParts() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        for file in 1...500 { try make(tree, id(UInt64(file)), "name-\(file)") }
        var count: UInt64 = 0
        var listed: Set<FileName> = []
        for part in 0..<7 {
            guard case .names(let found, _) = tree.verify(check(.root, .names, UInt64(part), 7)) else {
                Issue.record("no names")
                return
            }
            count += found
            for group in 0..<VerifyCheck.nameGroups {
                let question = check(.root, .entries, UInt64(part + 7 * group), UInt64(7 * VerifyCheck.nameGroups))
                guard case .entries(let entries, true) = tree.verify(question) else {
                    Issue.record("no entries")
                    return
                }
                listed.formUnion(entries.map(\.name))
            }
        }
        #expect(count == 500 && listed.count == 500)
    }

    @Test func aRepairChangesBytesAndNothingElse() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        try make(tree, id(1), "f")
        try tree.write(id(1), [UInt8](repeating: 1, count: 10_000))
        let before = try tree.status(of: id(1)).attributes
        let record = Record(
            time: 5, body: .repair(file: id(1), offset: 4_000),
            payload: .inline(offset: 0, length: 3, checksum: 0))
        for role in [ApplyRole.primary, .secondary] {
            try ([9, 9, 9] as [UInt8]).withUnsafeBytes { try tree.apply(record, payload: $0, role: role) }
        }
        var wanted = [UInt8](repeating: 1, count: 10_000)
        wanted.replaceSubrange(4_000..<4_003, with: [9, 9, 9])
        #expect(try tree.contents(id(1)) == wanted)
        #expect(try tree.status(of: id(1)).attributes == before)
    }

    /// Whoever has it open writes to it, in this room alone.
    @Test func failure37ARepairLeavesARemovedFileAlone() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        try make(tree, id(1), "f")
        try tree.write(id(1), [1, 2, 3])
        tree.hold(id(1))
        try tree.apply(.remove(file: id(1), parent: .root, name: name("f"), isDirectory: false, wasLast: true))
        try tree.write(id(1), [7, 8, 9])
        let record = Record(
            time: 5, body: .repair(file: id(1), offset: 0), payload: .inline(offset: 0, length: 3, checksum: 0))
        let attributes = FileAttributes(mode: S_IFREG | 0o600, uid: 0, gid: 0, size: 1)
        for role in [ApplyRole.primary, .secondary] {
            try ([1, 2, 3] as [UInt8]).withUnsafeBytes { try tree.apply(record, payload: $0, role: role) }
            let nothing = unsafe UnsafeRawBufferPointer(start: nil, count: 0)
            try tree.apply(
                Record(time: 5, body: .repairFile(file: id(1), attributes: attributes, xattrs: [])),
                payload: nothing, role: role)
        }
        #expect(try tree.contents(id(1)) == [7, 8, 9])
    }

    /// Both rooms would stop at it, at the same record.
    @Test func failure37ARepairOfAFileThatWentLongAgoIsNoError() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        try make(tree, id(1), "f")
        try tree.apply(.remove(file: id(1), parent: .root, name: name("f"), isDirectory: false, wasLast: true))
        // As after so many others that nobody remembers it.
        tree.state.withLock { $0.removed = [] }
        func apply(_ body: RecordBody, _ role: ApplyRole) throws {
            let record = Record(time: 5, body: body, payload: .inline(offset: 0, length: 3, checksum: 0))
            try ([1, 2, 3] as [UInt8]).withUnsafeBytes { try tree.apply(record, payload: $0, role: role) }
        }
        for role in [ApplyRole.primary, .secondary] {
            try apply(.repair(file: id(1), offset: 0), role)
            // Of anything else it says that the files are not what the journal belongs to.
            #expect(throws: TreeError.self) { try apply(.write(file: id(1), offset: 0), role) }
        }
    }

    @Test func theWalkGoesByNumberAndFindsEveryObjectOnce() throws {
        let scratch = Scratch()
        let tree = try openTree(scratch)
        for file in 1...250 { try make(tree, id(UInt64(file)), "f\(file)") }
        var found: [FileID] = []
        while true {
            let more = try tree.files(above: found.last ?? .none, limit: 60)
            #expect(more.total == 251)
            if more.files.isEmpty { break }
            found += more.files
        }
        #expect(found == [.root] + (1...250).map { id(UInt64($0)) })
    }
}
