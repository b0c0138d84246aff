import CLinux
import Format
import Glibc
import Synchronization
import Testing

@testable import Journal
@testable import Node
@testable import Tree

/// SplitMix64: a seed printed is a seed replayed.
private struct Draw {
    private var state: UInt64
    init(_ seed: UInt64) { state = seed }
    mutating func next(_ below: Int) -> Int {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
        return Int((value ^ (value >> 31)) % UInt64(below))
    }
}

extension Pair {
    /// In sync, with these files on both.
    static func inSync(mounted: Bool = false, prepare: ((String) throws -> Void)? = nil) throws -> Pair {
        let pair = try Pair(mounted: mounted, prepare: prepare)
        pair.serve(pair.a, epoch: 2)
        pair.connect()
        pair.admit(to: pair.a, epoch: 2)
        pair.settle()
        return pair
    }

    func startVerify(_ options: VerifyOptions = VerifyOptions()) {
        let why = a.call { $0.verification.start(options) }
        #expect(why == nil)
    }

    /// Runs one to its end.
    func verify(_ options: VerifyOptions = VerifyOptions()) -> [VerifyFinding] {
        startVerify(options)
        return finishVerify()
    }

    func finishVerify() -> [VerifyFinding] {
        a.wait("verified", seconds: 60) { $0.verification.run == nil && $0.verification.facts?.running == false }
        let last = a.call { $0.verification.facts?.last }
        #expect(last?.complete == true, "\(last?.problem ?? "no result")")
        return a.call { $0.verification.findings(from: 0, limit: 1000) }
    }

    func path(_ node: TestNode, _ name: String) -> String { "\(node.configuration.backing)/\(name)" }
}

func bytes(_ path: String) -> [UInt8] {
    let fd = open(path, O_RDONLY)
    defer { close(fd) }
    var found = [UInt8](repeating: 0, count: 64 << 20)
    let count = found.withUnsafeMutableBytes { pread(fd, $0.baseAddress, $0.count, 0) }
    return Array(found.prefix(max(0, count)))
}

@Suite(.serialized) struct VerifyTests {
    @Test func twoEqualNodesShowNoDifference() throws {
        let pair = try Pair.inSync(prepare: NodeTests.fill)
        #expect(pair.verify() == [])
        let facts = try #require(pair.a.call { $0.verification.facts?.last })
        #expect(facts.files > 600 && facts.bytes > 3_000_000)
        #expect(pair.differences() == [])
    }

    @Test(arguments: [UInt64(1), 2, 3])
    func noFalseAlarmWhileTheApplicationWrites(seed: UInt64) throws {
        let pair = try Pair.inSync(mounted: true) { root in
            NodeTests.fill(root)
            put("\(root)/hot", noise(12 << 20, 5))
        }
        let root = pair.a.configuration.path
        let fd = open("\(root)/hot", O_RDWR)
        #expect(fd >= 0)
        defer { close(fd) }
        var draw = Draw(seed)
        for _ in 0..<2 {
            pair.startVerify()
            var round = 0
            while pair.a.call({ $0.verification.run != nil }) || round < 300, round < 20_000 {
                round += 1
                let data = noise(1 + draw.next(9_000), UInt64(round) &* seed)
                _ = data.withUnsafeBytes { pwrite(fd, $0.baseAddress, $0.count, off_t(draw.next(13 << 20))) }
                switch draw.next(13) {
                case 0: _ = ftruncate(fd, off_t(draw.next(14 << 20)))
                case 1: _ = clinux_fallocate(fd, 3, UInt64(draw.next(12 << 20)), UInt64(1 + draw.next(200_000)))
                case 2: put("\(root)/dir/made-\(draw.next(50))", data)
                case 3: _ = rename("\(root)/dir/made-\(draw.next(50))", "\(root)/moved-\(draw.next(20))")
                case 4: _ = unlink("\(root)/moved-\(draw.next(20))")
                case 5: _ = link("\(root)/small", "\(root)/dir/link-\(draw.next(10))")
                case 6: _ = unlink("\(root)/dir/link-\(draw.next(10))")
                case 7: _ = chmod("\(root)/dir/data", UInt32(0o600 + draw.next(0o100)))
                case 8: _ = clinux_setxattr("\(root)/small", "user.n", data, min(data.count, 40), 0, 1)
                case 10:
                    // Without a name, and there until it is closed.
                    let gone = "\(root)/dir/made-\(draw.next(50))"
                    let open = Glibc.open(gone, O_RDONLY)
                    _ = unlink(gone)
                    if open >= 0 { close(open) }
                case 9: _ = rename("\(root)/empty/file-\(draw.next(600))", "\(root)/dir/file-\(draw.next(600))")
                default: put("\(root)/dir/data", data, at: draw.next(2_900_000))
                }
            }
            #expect(pair.finishVerify() == [], "seed \(seed)")
        }
        #expect(pair.a.problems == [] && pair.b.problems == [])
    }

    @Test func failure37AFlippedByteOnEitherSideIsFoundAndRepairedFromTheRightOne() throws {
        let pair = try Pair.inSync()
        let data = noise(3_000_000, 7)
        let file = pair.a.create("ledger")
        for start in stride(from: 0, to: data.count, by: 500_000) {
            let last = pair.a.write(file, Array(data[start..<min(start + 500_000, data.count)]), at: UInt64(start))
            pair.a.waitForSync(last)
        }
        pair.settle()
        for node in [pair.b, pair.a] {
            let other = node === pair.a ? pair.b : pair.a
            put(pair.path(node, "ledger"), [data[1_234_567] ^ 0x40], at: 1_234_567)
            let time = snapshot(other.configuration.backing)["/ledger"]
            // Writing behind Lockstep's back has changed the time as well: that is a difference of its own.
            let found = pair.verify().filter { $0.kind == .data }
            #expect(found.count == 1)
            #expect(found.first?.path == "ledger" && found.first?.state == .found)
            #expect(found.first?.offset == 1_232_896 && found.first?.length == 4096)
            #expect(bytes(pair.path(node, "ledger")) != data, "only looked at")
            let repaired = pair.verify(VerifyOptions(repair: true))
            #expect(repaired.allSatisfy { $0.state == .repaired } && repaired.contains { $0.kind == .data })
            #expect(bytes(pair.path(pair.a, "ledger")) == data)
            #expect(bytes(pair.path(pair.b, "ledger")) == data)
            #expect(snapshot(node.configuration.backing)["/ledger"] == time, "its time as well")
            #expect(pair.verify() == [])
        }
        #expect(pair.differences() == [])
    }

    /// A block at the beginning of a file that one node cannot read, until it is written anew.
    @Test func failure37AnUnreadableBlockAtTheBeginningIsRepairedAndHidesNothingBehindIt() throws {
        let pair = try Pair.inSync()
        let data = noise(3_000_000, 7)
        let file = pair.a.create("ledger")
        for start in stride(from: 0, to: data.count, by: 500_000) {
            let last = pair.a.write(file, Array(data[start..<min(start + 500_000, data.count)]), at: UInt64(start))
            pair.a.waitForSync(last)
        }
        pair.settle()
        let path = pair.path(pair.b, "ledger")
        let bad: Range<UInt64> = 8192..<12_288
        let block = Array(data[8192..<12_288])
        put(path, [block[5] ^ 1], at: 8197)
        put(path, [data[2_500_000] ^ 1], at: 2_500_000)
        precondition(chmod(path, 0o600) == 0)
        pair.b.call { plane in
            plane.tree.state.withLock { state in
                state.verifyFault = { check in
                    guard check.file == file, check.aspect != .names, check.aspect != .entries,
                        check.offset < bad.upperBound, check.offset + check.length > bad.lowerBound
                    else { return nil }
                    return Array(bytes(path)[8192..<12_288]) == block ? nil : EIO
                }
            }
        }
        let found = pair.verify()
        #expect(found.contains { $0.kind == .unreadable } && found.contains { $0.kind == .attributes })
        #expect(found.contains { $0.kind == .data && $0.offset == 2_498_560 })
        let repaired = pair.verify(VerifyOptions(repair: true))
        #expect(repaired.count == 3 && repaired.allSatisfy { $0.state == .repaired })
        #expect(repaired.contains { $0.kind == .attributes })
        #expect(repaired.contains { $0.kind == .data && $0.detail.contains("could read it") })
        let isRight = bytes(path) == data
        #expect(isRight)
        #expect(pair.verify() == [] && pair.differences() == [])
    }

    @Test func whatNothingProvesIsNotRepairedUnlessTheAdministratorChooses() throws {
        // In the files of both before there was a journal, so no record covers it.
        let fill: (String) -> Void = { root in
            put("\(root)/old", noise(100_000, 3))
            NodeTests.setTime("\(root)/old", 1_600_000_000)
        }
        let pair = try Pair(prepare: fill, seed: fill)
        pair.serve(pair.a, epoch: 2)
        pair.connect()
        pair.admit(to: pair.a, epoch: 2)
        pair.settle()
        let before = bytes(pair.path(pair.b, "old"))
        put(pair.path(pair.a, "old"), [before[50_000] ^ 1], at: 50_000)
        NodeTests.setTime(pair.path(pair.a, "old"), 1_600_000_000)
        let found = pair.verify(VerifyOptions(repair: true))
        #expect(found.count == 1 && found.first?.kind == .data && found.first?.state == .undecided)
        #expect(bytes(pair.path(pair.a, "old")) != before && bytes(pair.path(pair.b, "old")) == before, "no guess")
        let chosen = pair.verify(VerifyOptions(repair: true, prefer: "b"))
        #expect(chosen.count == 1 && chosen.first?.state == .repaired)
        #expect(bytes(pair.path(pair.a, "old")) == before && bytes(pair.path(pair.b, "old")) == before)
        #expect(pair.differences() == [])
        // In one block a byte that nothing proves, and a write that the journal has and the chosen disk has lost.
        pair.a.waitForSync(pair.a.write(pair.a.file("old"), [1, 2, 3, 4], at: 50_010))
        pair.settle()
        put(pair.path(pair.a, "old"), [before[50_000] ^ 1], at: 50_000)
        put(pair.path(pair.b, "old"), Array(before[50_010..<50_014]), at: 50_010)
        for node in [pair.a, pair.b] { NodeTests.setTime(pair.path(node, "old"), 1_600_000_000) }
        let mixed = pair.verify(VerifyOptions(repair: true, prefer: "b"))
        #expect(mixed.count == 1 && mixed.first?.state == .repaired)
        let right = before[..<50_010] + [1, 2, 3, 4] + before[50_014...]
        for node in [pair.a, pair.b] { #expect(bytes(pair.path(node, "old")) == Array(right), "\(node.id)") }
    }

    @Test func attributesNamesAndSizesAreCompared() throws {
        let pair = try Pair.inSync(prepare: NodeTests.fill)
        let b = pair.b.configuration.backing
        precondition(chmod("\(b)/nothing", 0o600) == 0)
        setAttribute("\(b)/dir/data", "user.extra", [1])
        put("\(b)/dir/stray", [1, 2, 3])
        precondition(unlink("\(b)/pipe") == 0)
        precondition(truncate("\(b)/dir/deep/deeper/odd", 200_000) == 0)
        put("\(b)/sparse", noise(5_000, 9), at: 120 << 20)
        let found = pair.verify()
        func has(_ path: String, _ kind: VerifyFinding.Kind, _ word: String) -> Bool {
            found.contains { $0.path == path && $0.kind == kind && $0.detail.contains(word) }
        }
        #expect(has("nothing", .attributes, "mode"))
        #expect(has("dir/data", .attributes, "extended"))
        #expect(has("dir/stray", .name, "only on b"))
        #expect(has("pipe", .name, "only on a"))
        #expect(has("dir/deep/deeper/odd", .attributes, "size"))
        #expect(found.contains { $0.path == "sparse" && $0.kind == .data && $0.offset == 120 << 20 })
        #expect(!found.contains { $0.state != .found })
        // Below one directory, and one file.
        let below = pair.verify(VerifyOptions(path: "dir"))
        #expect(below.contains { $0.path == "dir/stray" } && !below.contains { $0.path == "nothing" })
        let one = pair.verify(VerifyOptions(path: "nothing"))
        #expect(one.count == 1 && one.first?.path == "nothing")
    }

    /// At its name in both rooms, and one of them would not find it by its number.
    @Test func failure37AnEntryOfTheFileTableThatLeadsNowhereIsFoundOnEitherSide() throws {
        let pair = try Pair.inSync()
        let file = pair.a.create("ledger")
        let other = pair.a.create("other")
        pair.a.waitForSync(pair.a.write(file, noise(5_000, 7), at: 0))
        pair.settle()
        for node in [pair.b, pair.a] {
            let table = node.call { $0.tree.table }
            let handle = try #require(try table.find(file))
            try table.insert(file, try #require(try table.find(other)))
            let found = pair.verify()
            #expect(found.count == 1)
            #expect(found.first?.kind == .missing)
            #expect(found.first?.detail == "not on \(node === pair.a ? "a" : "b")")
            try table.insert(file, handle)
            #expect(pair.verify() == [])
        }
    }

    /// Small limits instead of a million names.
    @Test func aLargeDirectoryIsAskedAboutInABoundedNumberOfParts() throws {
        let pair = try Pair.inSync { root in
            precondition(mkdir("\(root)/large", 0o755) == 0)
            for index in 0..<1_500 { put("\(root)/large/file-\(index)", []) }
        }
        let limits = VerifyDirectories(namesOfPart: 50, partsLimit: 4, namesOfAnswer: 2)
        pair.a.call { $0.verification.directories = limits }
        let asked = Mutex<[VerifyCheck]>([])
        pair.b.call { plane in
            plane.tree.state.withLock { state in
                state.verifyFault = { check in
                    if check.aspect == .names || check.aspect == .entries { asked.withLock { $0.append(check) } }
                    return nil
                }
            }
        }
        #expect(pair.verify(VerifyOptions(path: "large")) == [])
        #expect(asked.withLock { $0.count } == 4)
        let removed = (0..<1_500).filter { $0 % 70 == 0 }
        for index in removed { precondition(unlink(pair.path(pair.b, "large/file-\(index)")) == 0) }
        put(pair.path(pair.b, "large/stray"), [])
        let found = pair.verify(VerifyOptions(path: "large")).filter { $0.kind == .name }
        let wanted = ["large/stray"] + removed.map { "large/file-\($0)" }
        #expect(found.map(\.path).sorted() == wanted.sorted())
        #expect(found.allSatisfy { $0.state == .found })
        let entries = asked.withLock { $0.filter { $0.aspect == .entries } }
        #expect(!entries.isEmpty && entries.allSatisfy { $0.length % (4 * 64) == 0 && $0.length > 4 * 64 })
        #expect(limits.parts(names: 0) == 1 && limits.parts(names: 51) == 2)
        // A directory of ten million names: what is asked for one by one fits into the answers.
        let large = VerifyDirectories()
        #expect(large.parts(names: 10_000_000) == 611)
        let answers = large.answers(names: 10_000_000 / 611)
        #expect(10_000_000 / 611 / 64 / answers <= 256 && answers == 1)
    }

    /// All names are read for each part, and that counts for the limit on the rate.
    @Test func whatIsReadOfDirectoriesCountsForTheRate() throws {
        let pair = try Pair.inSync { root in
            precondition(mkdir("\(root)/large", 0o755) == 0)
            put("\(root)/large/file-0", [])
            for index in 1..<2_000 {
                precondition(link("\(root)/large/file-0", "\(root)/large/file-\(index)") == 0)
            }
        }
        pair.a.call { plane in
            plane.verification.directories = VerifyDirectories(namesOfPart: 100, partsLimit: 8)
            plane.verification.bucket.setRate(1 << 20, now: plane.reactor.now)
        }
        let start = pair.a.call { $0.reactor.now }
        #expect(pair.verify(VerifyOptions(path: "large")) == [])
        let seconds = Double(pair.a.call { $0.reactor.now } - start) / 1e9
        // Nine times 2,000 names of 64 bytes, and 2,000 inodes of 256, at 1 MiB a second.
        #expect(seconds > 1, "\(seconds) s")
    }

    @Test func aBrokenOffVerificationGoesOnWhereItWas() throws {
        let pair = try Pair.inSync { root in
            for index in 0..<400 { put("\(root)/file-\(index)", noise(20_000, UInt64(index))) }
        }
        put(pair.path(pair.b, "file-399"), [1, 2, 3], at: 5_000)
        // Slow enough to be caught in the middle.
        pair.a.call { $0.verification.bucket.setRate(2 << 20, now: $0.reactor.now) }
        pair.startVerify()
        pair.a.wait("half done", seconds: 60) { ($0.verification.run?.progress.files ?? 0) > 100 }
        pair.cut()
        pair.a.wait("paused") { $0.verification.obstacle != nil }
        let position = pair.a.call { $0.verification.run?.progress.position ?? 0 }
        #expect(position > 0)
        usleep(300_000)
        #expect(pair.a.call { $0.verification.run?.progress.position ?? 0 } == position, "it waits")
        pair.connect()
        pair.a.wait("in sync again") { $0.verification.obstacle == nil }
        pair.a.call { $0.verification.bucket.setRate(nil, now: $0.reactor.now) }
        let found = pair.finishVerify()
        #expect(found.contains { $0.path == "file-399" && $0.kind == .data })
        let files = try #require(pair.a.call { $0.verification.facts?.last?.files })
        #expect(files >= 401 && files < 440, "\(files) objects: nothing was compared twice but what was under way")
    }

    @Test func aNodeThatStepsDownInTheMiddleAsksNothingMore() throws {
        let pair = try Pair.inSync { root in
            for index in 0..<200 { put("\(root)/file-\(index)", noise((3 << 20) >> (index % 8), UInt64(index))) }
        }
        put(pair.path(pair.b, "file-0"), [1, 2, 3], at: 5_000)
        for epoch in UInt32(3)...5 {
            if epoch == 3 { pair.startVerify() }
            pair.a.wait("under way", seconds: 60) {
                ($0.verification.run?.progress.files ?? 0) > 10 || $0.verification.facts?.running == false
            }
            // The service goes, with questions and answers under way, and comes back.
            pair.a.call { plane in
                plane.follow()
                plane.close(.restarting)
            }
            usleep(200_000)
            pair.a.wait("closed") { if case .idle = $0.phase { true } else { false } }
            pair.serve(pair.a, epoch: epoch)
            pair.connect()
            pair.admit(to: pair.a, epoch: epoch)
        }
        #expect(pair.finishVerify().contains { $0.path == "file-0" && $0.kind == .data })
        #expect(pair.a.problems == [] && pair.b.problems == [])
    }

    @Test func aVerificationOutlivesItsProcess() throws {
        let pair = try Pair.inSync { root in
            for index in 0..<300 { put("\(root)/file-\(index)", noise(20_000, UInt64(index))) }
        }
        pair.a.call { $0.verification.bucket.setRate(1 << 20, now: $0.reactor.now) }
        pair.startVerify()
        pair.a.wait("under way", seconds: 60) { ($0.verification.run?.progress.files ?? 0) > 50 }
        // Kept on the disk every few seconds.
        let kept = pair.a.configuration.state
        for _ in 0..<100 where (VerifyMemory.load(kept).current?.position ?? 0) == 0 { usleep(100_000) }
        let position = try #require(VerifyMemory.load(kept).current?.position)
        #expect(position > 0)
        pair.cut()
        pair.a.stop()
        try pair.a.start()
        pair.serve(pair.a, epoch: 3)
        pair.connect()
        pair.admit(to: pair.a, epoch: 3)
        #expect(pair.finishVerify() == [])
    }

    @Test func aHugeSparseFileCostsWhatIsInIt() throws {
        let pair = try Pair.inSync { root in
            put("\(root)/sparse", noise(70_000, 3), at: 10 << 30)
            precondition(truncate("\(root)/sparse", 20 << 30) == 0)
        }
        let start = pair.a.call { $0.reactor.now }
        #expect(pair.verify() == [])
        let seconds = Double(pair.a.call { $0.reactor.now } - start) / 1e9
        #expect(seconds < 20, "\(seconds) s")
    }

    @Test func itIsRefusedWhenTheNodesAreNotInSync() throws {
        let pair = try Pair()
        #expect(pair.a.call { $0.verification.start(VerifyOptions()) }?.contains("does not serve") == true)
        pair.serve(pair.a, epoch: 2)
        #expect(pair.a.call { $0.verification.start(VerifyOptions()) }?.contains("not in sync") == true)
    }
}
