import Format
import Testing

@testable import Fuse

/// Deterministic: a seed that is printed is a seed that is replayed.
struct SplitMix: RandomNumberGenerator {
    var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

private func decode(_ bytes: [UInt8]) throws -> FuseRequest {
    let split = min(80, bytes.count)
    return try bytes.withUnsafeBytes {
        try FuseRequest.decode(
            head: UnsafeRawBufferPointer(rebasing: $0[..<split]), rest: UnsafeRawBufferPointer(rebasing: $0[split...]))
    }
}

private func request(_ opcode: UInt32, _ body: [UInt8]) -> [UInt8] {
    var out = ByteWriter()
    out.put(UInt32(40 + body.count))
    out.put(opcode)
    out.put(UInt64(77))
    out.put(UInt64(1))
    for value: UInt32 in [10, 20, 30, 0] { out.put(value) }
    out.put(raw: body)
    return out.bytes
}

@Suite struct Decoding {
    @Test func requestsAreUnderstood() throws {
        let lookup = try decode(request(1, bytes("name") + [0]))
        #expect(lookup.unique == 77 && lookup.node == .root && lookup.uid == 10 && lookup.gid == 20 && lookup.pid == 30)
        #expect(lookup.operation == .lookup(name: bytes("name")))
        var write = ByteWriter()
        write.put(UInt64(5))
        write.put(UInt64(4096))
        write.put(UInt32(3))
        write.put(UInt32(2))
        write.put(UInt64(0))
        write.put(UInt32(0o10001))
        write.put(UInt32(0))
        write.put(raw: [1, 2, 3])
        #expect(
            try decode(request(16, write.bytes)).operation
                == .write(FuseWrite(handle: 5, offset: 4096, length: 3, writeFlags: 2, openFlags: 0o10001)))
        #expect(
            try decode(request(12, [9, 0, 0, 0, 0, 0, 0, 0] + bytes("a") + [0] + bytes("b") + [0])).operation
                == .rename(name: bytes("a"), newParent: FileID(rawValue: 9), newName: bytes("b"), flags: 0))
    }

    @Test func whatTheKernelForgetsIsNamed() throws {
        #expect(try decode(request(2, [3, 0, 0, 0, 0, 0, 0, 0])).operation == .forget(files: [.root]))
        var batch = ByteWriter()
        batch.put(UInt32(2))
        batch.put(UInt32(0))
        for value: UInt64 in [8, 1, 9, 4] { batch.put(value) }
        #expect(
            try decode(request(42, batch.bytes)).operation
                == .forget(files: [FileID(rawValue: 8), FileID(rawValue: 9)]))
    }

    @Test(arguments: [
        request(1, bytes("no end")), request(1, [0]), request(1, bytes("a/b") + [0]), request(1, bytes("..") + [0]),
        request(16, [1, 2, 3]), request(15, [0]), request(12, [9, 0, 0, 0]), request(21, bytes("x")),
        request(1, [UInt8](repeating: 65, count: 2000) + [0]), request(999, []), [1, 2, 3], [],
        request(42, [2, 0, 0, 0, 0, 0, 0, 0] + [UInt8](repeating: 1, count: 16)),
    ])
    func whatIsMalformedIsRefused(_ bytes: [UInt8]) {
        #expect(throws: FuseRequestError.self) { try decode(bytes) }
    }

    @Test func aWriteWhosePayloadIsNotWhatItSaysIsRefused() {
        var write = ByteWriter()
        for value: UInt64 in [5, 0] { write.put(value) }
        write.put(UInt32(4))
        for value: UInt32 in [0, 0, 0, 0, 0] { write.put(value) }
        write.put(raw: [1, 2, 3])
        #expect(throws: FuseRequestError.self) { try decode(request(16, write.bytes)) }
    }

    /// No bytes may stop the process, and what is understood respects the limits.
    @Test func noBytesBreakTheDecoder() {
        var random = SplitMix(seed: 20_261_122)
        for _ in 0..<60_000 {
            let length = Int.random(in: 0...200, using: &random)
            var body = (0..<length).map { _ in UInt8.random(in: 0...255, using: &random) }
            if Bool.random(using: &random) { body = body.map { $0 > 128 ? $0 & 3 : $0 } }
            var bytes = request(UInt32.random(in: 0...60, using: &random), body)
            for _ in 0..<Int.random(in: 0...3, using: &random) {
                bytes[Int.random(in: 0..<bytes.count, using: &random)] = UInt8.random(in: 0...255, using: &random)
            }
            if Int.random(in: 0..<4, using: &random) == 0 {
                bytes.removeLast(Int.random(in: 0...bytes.count, using: &random))
            }
            guard let request = try? decode(bytes) else { continue }
            switch request.operation {
            case .lookup(let name), .unlink(let name), .makeDirectory(let name, _), .create(let name, _, _):
                #expect(!name.isEmpty && !name.contains(0) && !name.contains(UInt8(ascii: "/")))
            case .write(let write): #expect(write.length <= FuseLimits.transferBytes)
            case .read(_, let size): #expect(Int(size) <= FuseLimits.transferBytes)
            default: break
            }
        }
    }
}

@Suite struct Locks {
    private func tag(_ number: UInt64) -> FileID { FileID(rawValue: number) }

    @Test func waitersAreServedInOrderAndNobodyStarves() {
        var locks = FileLocks()
        var order: [String] = []
        let one = FileLocks.Request(exclusive: [tag(1)])
        let both = FileLocks.Request(exclusive: [tag(1), tag(2)])
        let reader = FileLocks.Request(exclusive: [], shared: [tag(2)])
        let first = locks.tryAcquire(one)
        let second = locks.tryAcquire(both)
        #expect(first && !second)
        locks.wait(both) { order.append("both") }
        let passed = locks.tryAcquire(reader)
        #expect(!passed, "a reader passed a writer that was there first")
        locks.wait(reader) { order.append("reader") }
        for run in locks.release(one) { run() }
        #expect(order == ["both"])
        for run in locks.release(both) { run() }
        #expect(order == ["both", "reader"])
        let shared = locks.tryAcquire(reader)
        #expect(shared)
        let woken = locks.release(reader).count + locks.release(reader).count
        #expect(woken == 0)
        #expect(locks.isIdle)
    }
}

@Suite struct Inodes {
    private func inode(_ number: UInt64) -> Inode {
        Inode(new: FileID(rawValue: number), FileAttributes(mode: 0o100644, uid: 0, gid: 0), links: 1)
    }

    @Test func moreFilesThanOneStepTakesAreAllCleanInTheEnd() {
        var table = InodeTable()
        let count = 3 * InodeTable.appliedStep + 7
        for number in 1...count {
            let inode = inode(UInt64(number))
            table.insert(inode)
            inode.addPending(Seq(rawValue: UInt64(number)), 0, 10)
            table.touch(inode, Seq(rawValue: UInt64(number)))
        }
        #expect(table.hasUnapplied)
        table.advance(Seq(rawValue: UInt64(count)))
        #expect(table.hasUnapplied)
        table.collectAll()
        #expect(!table.hasUnapplied)
        #expect(table.all.allSatisfy { !$0.isQueued && !table.isDirty($0) && $0.pending.isEmpty })
    }

    @Test func idleInodesAreDroppedAndThoseInUseAreKept() {
        var table = InodeTable()
        let open = inode(1)
        open.cachedHandles = 1
        table.insert(open)
        for number in 2...(2 * InodeTable.idleMax) { table.insert(inode(UInt64(number))) }
        #expect(table.count <= InodeTable.idleMax + 64)
        #expect(table[open.file] === open)
    }

    @Test func rangesAreBoundedAndNeverForgotten() {
        let inode = inode(1)
        for index in 0..<1000 {
            inode.addPending(Seq(rawValue: UInt64(index + 1)), UInt64(index * 100), UInt64(index * 100 + 10))
        }
        #expect(inode.pending.count <= Inode.pendingRangesMax)
        for index in 0..<1000 {
            let start = UInt64(index * 100)
            #expect(inode.pendingSeq(start, start + 10, applied: .zero) != nil)
        }
        inode.dropApplied(Seq(rawValue: 1000))
        #expect(inode.pending.isEmpty)
    }
}
