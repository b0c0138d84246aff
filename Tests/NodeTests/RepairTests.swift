import Format
import Glibc
import Synchronization
import Testing

@testable import Node
@testable import Tree

/// Repairs while the application goes on writing, with answers that come as late as they like.
@Suite(.serialized) struct RepairTests {
    /// Changes a file behind Lockstep's back, but for its time.
    private static func spoil(_ path: String, _ change: (String) -> Void) {
        var status = stat()
        precondition(stat(path, &status) == 0)
        change(path)
        precondition(utimensat(AT_FDCWD, path, [status.st_atim, status.st_mtim], 0) == 0)
    }

    /// The bytes of one piece, as the other node has them.
    @Sendable private static func isPiece(_ message: DataMessage) -> Bool {
        if case .verifyAnswer(let answer) = message, case .bytes = answer.outcome { true } else { false }
    }

    private static func file(_ pair: Pair, _ name: String, _ data: [UInt8]) -> FileID {
        let file = pair.a.create(name)
        pair.a.waitForSync(pair.a.write(file, data, at: 0))
        return file
    }

    /// Two pieces are asked about, the application writes into the second, and the first is done before the other node's
    /// answer about the second comes, which the journal proves: as of the question.
    @Test func failure37ARepairNeverOverwritesWhatWasWrittenSinceItsQuestion() throws {
        let pair = try Pair.inSync()
        var data = noise(1_000_000, 7)
        let file = RepairTests.file(pair, "ledger", data)
        pair.settle()
        let wire = try #require(pair.wire)
        wire.holds(RepairTests.isPiece)
        RepairTests.spoil(pair.path(pair.b, "ledger")) { path in
            put(path, [data[100_000] ^ 1], at: 100_000)
            put(path, [data[700_000] ^ 1], at: 700_000)
        }
        pair.startVerify(VerifyOptions(repair: true))
        pair.b.wait("both pieces answered") { _ in wire.heldBack.count == 2 }
        // In the block of the second one, beside the byte that is wrong.
        let newer = noise(1000, 8)
        data.replaceSubrange(700_100..<701_100, with: newer)
        pair.a.waitForSync(pair.a.write(file, newer, at: 700_100))
        let first = wire.heldBack[0]
        wire.release { $0 == first }
        pair.a.wait("first piece done") { $0.verification.run?.repair.active == 1 }
        wire.release()
        let found = pair.finishVerify()
        #expect(found.count == 2 && found.allSatisfy { $0.kind == .data && $0.state == .repaired })
        pair.settle()
        // Not compared in the expectation itself, which would print a million numbers.
        for node in pair.nodes {
            let isRight = bytes(pair.path(node, "ledger")) == data
            #expect(isRight, "the newer write stays on \(node.id)")
        }
        #expect(pair.differences() == [])
        #expect(pair.a.problems == [] && pair.b.problems == [])
    }

    /// From here on the disk of a node cannot read these blocks, until they are written as they should be.
    private static func lose(
        _ pair: Pair, _ node: TestNode, _ file: FileID, _ path: String, _ blocks: [Int], of data: [UInt8],
        _ errno: Int32 = EIO
    ) {
        let path = pair.path(node, path)
        RepairTests.spoil(path) { path in
            for block in blocks { put(path, [data[block * 4096] ^ 1], at: block * 4096) }
        }
        node.call { plane in
            plane.tree.state.withLock { state in
                state.verifyFault = { check in
                    guard check.file == file, check.aspect != .names, check.aspect != .entries else { return nil }
                    let range = Int(check.offset)..<Int(check.offset + check.length)
                    let isBad = blocks.contains { block in
                        guard range.overlaps(block * 4096..<(block + 1) * 4096) else { return false }
                        let place = block * 4096..<min((block + 1) * 4096, data.count)
                        return bytes(path)[place] != data[place]
                    }
                    return isBad ? errno : nil
                }
            }
        }
    }

    enum Neighbour: CaseIterable {
        /// The other node has another block of the same piece wrong, and can read it.
        case isRotten
        /// It cannot read another block of the same piece.
        case isUnreadable
        /// It has the very same block wrong, and can read it.
        case isTheSame
    }

    /// What is read together with an unreadable block is another matter, and no node is right because it can read.
    @Test(arguments: Neighbour.allCases)
    func failure37AnUnreadableBlockMakesNobodyRightAboutItsNeighbours(neighbour: Neighbour) throws {
        let pair = try Pair.inSync()
        let data = noise(200_000, 7)
        let file = RepairTests.file(pair, "ledger", data)
        pair.settle()
        RepairTests.lose(pair, pair.b, file, "ledger", [3], of: data)
        switch neighbour {
        case .isRotten: RepairTests.spoil(pair.path(pair.a, "ledger")) { put($0, [data[30_000] ^ 1], at: 30_000) }
        case .isUnreadable: RepairTests.lose(pair, pair.a, file, "ledger", [7], of: data)
        case .isTheSame: RepairTests.spoil(pair.path(pair.a, "ledger")) { put($0, [data[13_000] ^ 1], at: 13_000) }
        }
        let found = pair.verify(VerifyOptions(repair: true))
        let places = neighbour == .isTheSame ? [UInt64(12_288)] : [12_288, 28_672]
        #expect(found.map(\.offset).sorted { $0! < $1! } == places)
        #expect(found.allSatisfy { $0.kind == .data && $0.length == 4096 && $0.state == .repaired }, "\(found)")
        for node in pair.nodes {
            let isRight = bytes(pair.path(node, "ledger")) == data
            #expect(isRight, "on \(node.id)")
        }
        #expect(pair.verify() == [] && pair.differences() == [])
        #expect(pair.a.problems == [] && pair.b.problems == [])
    }

    /// It says nothing about what is on the disk.
    @Test func failure37WhatANodeCannotReadForWantOfADescriptorIsNotOverwritten() throws {
        let pair = try Pair.inSync()
        let data = noise(200_000, 7)
        let file = RepairTests.file(pair, "ledger", data)
        pair.settle()
        pair.b.call { plane in
            plane.tree.state.withLock { state in
                state.verifyFault = { check in
                    guard check.file == file, check.length > 0, check.offset <= 12_288,
                        check.offset + check.length > 12_288
                    else { return nil }
                    return EMFILE
                }
            }
        }
        RepairTests.spoil(pair.path(pair.a, "ledger")) { put($0, [data[13_000] ^ 1], at: 13_000) }
        let found = pair.verify(VerifyOptions(repair: true))
        #expect(found.count == 1 && found.first?.kind == .unreadable && found.first?.state == .failed)
        #expect(found.first?.offset == 0 && found.first?.length == 65_536)
        #expect(found.first?.detail == "Too many open files on b")
        let isRight = bytes(pair.path(pair.b, "ledger")) == data
        #expect(isRight)
        #expect(pair.a.problems == [] && pair.b.problems == [])
    }

    /// The journal is long, and while it is read the file goes. Who has it open writes to it, in this room alone.
    @Test func failure37NothingIsRepairedInAFileThatWasRemovedSinceTheQuestion() throws {
        let pair = try Pair.inSync()
        let data = noise(200_000, 7)
        let file = RepairTests.file(pair, "ledger", data)
        pair.settle()
        let wire = try #require(pair.wire)
        wire.holds(RepairTests.isPiece)
        RepairTests.spoil(pair.path(pair.b, "ledger")) { put($0, [data[13_000] ^ 1], at: 13_000) }
        pair.startVerify(VerifyOptions(repair: true))
        pair.b.wait("answered") { _ in wire.heldBack.count == 1 }
        pair.a.call { $0.tree.hold(file) }
        let removal = pair.a.log(
            .remove(file: file, parent: .root, name: Array("ledger".utf8), isDirectory: false, wasLast: true))
        pair.a.wait("removed") { $0.log.applied >= removal }
        let newer = noise(4096, 8)
        let written = pair.a.call { plane in
            try? plane.tree.withDescriptor(of: file, writable: true) { (fd) throws(TreeError) in
                pwrite(fd, newer, newer.count, 12_288)
            }
        }
        #expect(written == newer.count)
        wire.release()
        #expect(pair.finishVerify() == [])
        pair.settle()
        let kept = pair.a.call { plane in
            var space = [UInt8](repeating: 0, count: 4096)
            return space.withUnsafeMutableBytes { (try? plane.tree.read(file, at: 12_288, into: $0)) == 4096 }
                && space == newer
        }
        #expect(kept)
        #expect(!RepairTests.logged(pair.a).contains(.repair))
        #expect(pair.a.problems == [] && pair.b.problems == [])
    }

    /// The kinds of all records in the journal.
    private static func logged(_ node: TestNode) -> [RecordKind] {
        node.call { plane in
            var kinds: [RecordKind] = []
            var next = plane.journal.oldestSeq
            while next <= plane.log.applied, let plan = plane.journal.plan(from: next, limitBytes: 4 << 20),
                let batches = try? plane.link.reader.read(plan), let last = batches.last?.lastSeq
            {
                kinds += batches.flatMap { $0.records.map(\.body.kind) }
                next = last.next
            }
            return kinds
        }
    }

    enum Change: CaseIterable { case mode, append, xattr }

    /// The same with attributes: a repair of them sets all of them, the size too.
    @Test(arguments: Change.allCases)
    func failure37ARepairOfAttributesUndoesNothingSetSinceItsQuestion(change: Change) throws {
        let pair = try Pair.inSync()
        var data = noise(20_000, 9)
        let file = RepairTests.file(pair, "first", data)
        let other = noise(50_000, 10)
        _ = RepairTests.file(pair, "second", other)
        pair.settle()
        let wire = try #require(pair.wire)
        let answers = Mutex(0)
        wire.holds { message in
            if RepairTests.isPiece(message) { return true }
            guard case .verifyAnswer(let answer) = message, case .file(let file) = answer.outcome,
                file.attributes.mode & 0o777 == 0o600
            else { return false }
            // The first one finds the difference, the second one is what is judged.
            return answers.withLock { count in
                count += 1
                return count == 2
            }
        }
        RepairTests.spoil(pair.path(pair.b, "first")) { precondition(chmod($0, 0o600) == 0) }
        RepairTests.spoil(pair.path(pair.b, "second")) { put($0, [other[30_000] ^ 1], at: 30_000) }
        pair.startVerify(VerifyOptions(repair: true))
        pair.b.wait("both answered") { _ in wire.heldBack.count == 2 && answers.withLock { $0 } == 2 }
        let last: Seq
        switch change {
        case .mode:
            last = pair.a.log(
                .setAttributes(
                    file: file, mask: .mode, attributes: FileAttributes(mode: S_IFREG | 0o4711, uid: 0, gid: 0)))
        case .append:
            let more = noise(5000, 11)
            last = pair.a.write(file, more, at: UInt64(data.count))
            data += more
        case .xattr: last = pair.a.log(.setXattr(file: file, name: Array("user.new".utf8), value: [1, 2]))
        }
        pair.a.waitForSync(last)
        // The piece of the other file is done before the attributes are judged.
        wire.release(RepairTests.isPiece)
        pair.a.wait("piece done") { $0.verification.run?.repair.active == 1 }
        wire.release()
        let found = pair.finishVerify()
        #expect(!found.isEmpty && found.allSatisfy { $0.state == .repaired || $0.state == .overwritten })
        pair.settle()
        #expect(pair.differences() == [])
        let isRight = bytes(pair.path(pair.a, "first")) == data
        #expect(isRight, "what was appended stays")
        let state = try #require(snapshot(pair.a.configuration.backing)["/first"])
        #expect(state.contains("mode \(String(S_IFREG | (change == .mode ? 0o4711 : 0o644), radix: 8)) "), "\(state)")
        #expect(state.contains("user.new=1,2") == (change == .xattr), "\(state)")
        #expect(pair.a.problems == [] && pair.b.problems == [])
    }
}
