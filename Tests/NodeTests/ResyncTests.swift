import CLinux
import Dispatch
import Format
import Glibc
import Quorum
import Replication
import Synchronization
import Testing

@testable import Journal
@testable import Node
@testable import Tree

/// Bringing a node back under load, with a limit, and on request.
@Suite(.serialized) struct ResyncTests {
    private func goAlone(_ pair: Pair, epoch: UInt32) {
        pair.cut()
        pair.a.call { plane in
            plane.setPolicy(
                AckPolicy(possible: [AckRequirement(inSync: .a, ownDisk: true)], flushFirst: false), token: 2)
            plane.epochChanged(
                Decision(sequence: UInt64(epoch), epoch: Epoch(rawValue: epoch), primary: .a, inSync: .a))
        }
    }

    /// Writes without a pause until `isDone`; returns bytes and seconds.
    private func write(_ path: String, seconds limit: Double, until isDone: () -> Bool) -> (bytes: Int, seconds: Double)
    {
        let fd = open(path, O_RDWR | O_CREAT, 0o644)
        #expect(fd >= 0)
        defer { close(fd) }
        let data = noise(256 << 10, 1)
        let start = DispatchTime.now().uptimeNanoseconds
        var written = 0
        var seconds = 0.0
        while !isDone(), seconds < limit {
            let count = data.withUnsafeBytes { pwrite(fd, $0.baseAddress, $0.count, off_t(written % (32 << 20))) }
            #expect(count == data.count)
            written += count
            seconds = Double(DispatchTime.now().uptimeNanoseconds - start) / 1e9
        }
        return (written, seconds)
    }

    @Test func aCatchUpEndsAlthoughTheApplicationWritesFasterThanTheLine() throws {
        let pair = try Pair.inSync(mounted: true)
        let a = pair.a
        let path = "\(a.configuration.path)/hot"
        goAlone(pair, epoch: 3)
        let free = write(path, seconds: 2) { false }
        let unpaced = Double(free.bytes) / free.seconds
        // A third of what the application would like.
        let line = max(4 << 20, Int(unpaced / 3))
        // The journal holds some 50 MiB: without a pace, and without keeping what is needed, it would start over for ever.
        pair.connect(bytesPerSecond: line)
        let during = write(path, seconds: 120) { a.isCaughtUp }
        #expect(a.isCaughtUp, "it ends although the application never stops writing")
        let paced = Double(during.bytes) / during.seconds
        #expect(paced >= Double(line) / 2, "\(paced) of \(line) bytes a second of the line, \(unpaced) alone")
        pair.admit(to: a, epoch: 3)
        pair.settle()
        #expect(pair.differences() == [])
        #expect(a.problems == [] && pair.b.problems == [])
    }

    @Test func aComparisonEndsAlthoughTheApplicationWritesFasterThanTheLine() throws {
        let pair = try Pair(mounted: true, prepare: { root in put("\(root)/big", noise(16 << 20, 5)) })
        let a = pair.a
        pair.serve(a, epoch: 2)
        pair.connect(bytesPerSecond: 12 << 20)
        let during = write("\(a.configuration.path)/hot", seconds: 150) { a.isCaughtUp }
        #expect(a.isCaughtUp)
        #expect(Double(during.bytes) / during.seconds >= 0.5 * 0.75 * Double(12 << 20))
        pair.admit(to: a, epoch: 2)
        pair.settle()
        #expect(pair.differences() == [])
        #expect(a.problems == [] && pair.b.problems == [])
    }

    @Test func aLimitHoldsAndChangesLive() throws {
        let pair = try Pair.inSync()
        let file = pair.a.create("file")
        goAlone(pair, epoch: 3)
        let data = noise(1 << 20, 3)
        for index in 0..<40 { pair.a.waitForSync(pair.a.write(file, data, at: UInt64(index) << 20)) }
        pair.a.call { $0.resyncPacer.setLimit(4 << 20) }
        pair.connect()
        sleep(3)
        let sent = try #require(pair.wire).bytesToB
        // Read back in pieces of 4 MiB, and the newest 16 MiB are in memory.
        #expect(sent > 4 << 20 && sent < 24 << 20, "\(sent) bytes in 3 s")
        let facts = try #require(pair.a.call { $0.returnFacts })
        #expect(facts.kind == "journal" && facts.running && facts.limitBytesPerSecond == 4 << 20)
        let left = try #require(facts.bytesLeft)
        #expect(left > 10 << 20 && left < 42 << 20, "\(left) bytes left")
        #expect(!pair.a.isCaughtUp)
        pair.a.call { $0.resyncPacer.setLimit(nil) }
        pair.admit(to: pair.a, epoch: 3)
        pair.settle()
        #expect(pair.a.call { $0.returnFacts?.running } == false)
        #expect(pair.differences() == [])
    }

    @Test func aFullComparisonOnRequestRepairsWhatNoRecordKnows() throws {
        let pair = try Pair.inSync(prepare: NodeTests.fill)
        let b = pair.b.configuration.backing
        put("\(b)/dir/data", noise(5_000, 77), at: 700_000)
        put("\(b)/dir/stray", [1, 2, 3])
        precondition(unlink("\(b)/pipe") == 0)
        #expect(pair.differences() != [])
        #expect(pair.a.call { $0.compareOnRequest() } == nil)
        #expect(pair.a.problems == [])
        // The decision comes first: until then nothing of the other node's copy is touched.
        usleep(300_000)
        #expect(pair.b.call { $0.link.isIncomplete } == false)
        pair.a.call { plane in
            plane.setPolicy(
                AckPolicy(possible: [AckRequirement(inSync: .a, ownDisk: true)], flushFirst: false), token: 2)
            plane.epochChanged(Decision(sequence: 3, epoch: Epoch(rawValue: 3), primary: .a, inSync: .a))
        }
        pair.b.wait("incomplete") { $0.link.isIncomplete || $0.resync != nil }
        #expect(pair.a.call { $0.returnFacts?.kind } == "comparison")
        #expect(pair.a.call { $0.compareOnRequest() } != nil, "one at a time")
        pair.admit(to: pair.a, epoch: 3)
        pair.settle()
        #expect(pair.differences() == [])
        // And only once.
        pair.cut()
        pair.connect()
        pair.a.wait("streaming again") { $0.link.stage == .streaming }
        #expect(pair.a.call { $0.resync == nil })
    }

    @Test func aFullComparisonIsRefusedWhenItMakesNoSense() throws {
        let pair = try Pair()
        #expect(pair.a.call { $0.compareOnRequest() }?.contains("does not serve") == true)
        pair.serve(pair.a, epoch: 2)
        #expect(pair.a.call { $0.compareOnRequest() }?.contains("not connected") == true)
    }
}
