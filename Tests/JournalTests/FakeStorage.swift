import Format
import Journal

/// A seeded generator (SplitMix64, https://prng.di.unimi.it/splitmix64.c): a seed printed is a seed replayed.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
        return value ^ (value >> 31)
    }
    mutating func chance(_ percent: Int) -> Bool { Int.random(in: 0..<100, using: &self) < percent }
}

/// What survives a power cut: pages, zero where never written.
final class FakeDisk {
    static let page = 4096
    let byteCount: Int
    var pages: [Int: [UInt8]] = [:]
    /// Pages that the disk refuses to read.
    var unreadable: Set<Int> = []

    init(byteCount: Int) { self.byteCount = byteCount }

    func put(_ bytes: ArraySlice<UInt8>, at offset: Int) {
        precondition(offset % FakeDisk.page == 0 && bytes.count % FakeDisk.page == 0)
        precondition(offset >= 0 && offset + bytes.count <= byteCount, "a write outside the journal")
        for start in stride(from: 0, to: bytes.count, by: FakeDisk.page) {
            let from = bytes.startIndex + start
            unreadable.remove((offset + start) / FakeDisk.page)  // a disk maps a rewritten bad sector elsewhere
            pages[(offset + start) / FakeDisk.page] = Array(bytes[from..<from + FakeDisk.page])
        }
    }

    /// A torn write: each sector of 512 bytes is there or not.
    func tear(_ bytes: [UInt8], at offset: Int, _ generator: inout SeededGenerator) {
        for start in stride(from: 0, to: bytes.count, by: 512) where generator.chance(50) {
            var page = pages[(offset + start) / FakeDisk.page] ?? [UInt8](repeating: 0, count: FakeDisk.page)
            let within = (offset + start) % FakeDisk.page
            page.replaceSubrange(within..<within + 512, with: bytes[start..<start + 512])
            pages[(offset + start) / FakeDisk.page] = page
        }
    }

    /// Flips bits of one byte.
    func damage(at offset: Int, with mask: UInt8 = 0x55) {
        var page = pages[offset / FakeDisk.page] ?? [UInt8](repeating: 0, count: FakeDisk.page)
        page[offset % FakeDisk.page] ^= mask
        pages[offset / FakeDisk.page] = page
    }

    func bytes(at offset: Int, count: Int) -> [UInt8] {
        var result: [UInt8] = []
        for number in (offset / FakeDisk.page)..<((offset + count + FakeDisk.page - 1) / FakeDisk.page) {
            result += pages[number] ?? [UInt8](repeating: 0, count: FakeDisk.page)
        }
        return Array(result[(offset % FakeDisk.page)...].prefix(count))
    }

    func copy() -> FakeDisk {
        let other = FakeDisk(byteCount: byteCount)
        other.pages = pages
        return other
    }
}

/// A storage whose writes wait until the test lets them go, in any order; and that can lose power at any of them.
final class FakeStorage: JournalStorage {
    struct Pending {
        var bytes: [UInt8]
        var pieces: [UnsafeRawBufferPointer]
        var offset: Int
        var completion: (Int32) -> Void
    }
    let disk: FakeDisk
    var name: String { "fake" }
    var byteCount: Int { disk.byteCount }
    var pending: [Pending] = []
    /// Writes (of any kind) until the power goes; nil: never.
    var writesLeft: Int?
    var isDead = false
    var isClosed = false

    init(_ disk: FakeDisk, writesLeft: Int? = nil) {
        self.disk = disk
        self.writesLeft = writesLeft
    }

    func read(at offset: Int, into buffer: UnsafeMutableRawBufferPointer) throws(JournalError) {
        precondition(offset % FakeDisk.page == 0 && buffer.count % FakeDisk.page == 0, "unaligned read")
        for start in stride(from: 0, to: buffer.count, by: FakeDisk.page) {
            let number = (offset + start) / FakeDisk.page
            if disk.unreadable.contains(number) { throw JournalError(.system(5), "fake: bad sector") }
            let target = UnsafeMutableRawBufferPointer(rebasing: buffer[start..<start + FakeDisk.page])
            if let page = disk.pages[number] {
                target.copyBytes(from: page)
            } else {
                target.initializeMemory(as: UInt8.self, repeating: 0)
            }
        }
    }

    func write(_ pieces: [UnsafeRawBufferPointer], at offset: Int, completion: @escaping (Int32) -> Void) {
        pending.append(
            Pending(bytes: pieces.flatMap { Array($0) }, pieces: pieces, offset: offset, completion: completion))
    }

    struct PowerCut: Error {}

    func writeNow(_ bytes: UnsafeRawBufferPointer, at offset: Int) throws(JournalError) {
        guard spend() else { throw JournalError(.failed, "fake: power cut") }
        disk.put(Array(bytes)[...], at: offset)
    }

    func close() { isClosed = true }

    /// Whether the power is still there for one more write.
    private func spend() -> Bool {
        if isDead { return false }
        guard let left = writesLeft else { return true }
        writesLeft = left - 1
        if left <= 0 { isDead = true }
        return left > 0
    }

    /// Completes the pending write at `index`. False when the power goes instead.
    @discardableResult
    func complete(_ index: Int = 0, result: Int32? = nil) -> Bool {
        guard spend() else { return false }
        let write = pending.remove(at: index)
        precondition(write.pieces.flatMap { Array($0) } == write.bytes, "memory changed while it was being written")
        if let result, result < 0 {
            write.completion(result)
        } else {
            disk.put(write.bytes[...], at: write.offset)
            write.completion(result ?? Int32(write.bytes.count))
        }
        return true
    }

    /// Completes everything, also what follows from it. False when the power goes.
    @discardableResult
    func settle() -> Bool {
        while !pending.isEmpty { if !complete() { return false } }
        return true
    }

    @discardableResult
    func settle(_ generator: inout SeededGenerator) -> Bool {
        while !pending.isEmpty {
            if !complete(Int.random(in: 0..<pending.count, using: &generator)) { return false }
        }
        return true
    }

    /// The power goes: of what was in flight, each write is on the disk, torn, or not there.
    func cutPower(_ generator: inout SeededGenerator) -> FakeDisk {
        isDead = true
        for write in pending {
            switch Int.random(in: 0..<3, using: &generator) {
            case 0: disk.put(write.bytes[...], at: write.offset)
            case 1: disk.tear(write.bytes, at: write.offset, &generator)
            default: break
            }
        }
        return disk
    }
}

let testMirror = MirrorID(high: 0x1111_2222_3333_4444, low: 0x5555_6666_7777_8889)

/// A fresh journal on a fake disk, 64 MiB.
func freshDisk(mirror: MirrorID = testMirror, node: NodeID = .a, incarnation: UInt32 = 7) -> FakeDisk {
    let disk = FakeDisk(byteCount: JournalLayout.minimumSize)
    guard let layout = JournalLayout(fileSize: disk.byteCount) else { preconditionFailure("minimum size") }
    let superblock = Superblock(
        mirror: mirror, node: node, nodeInstance: 99, incarnation: Incarnation(base: incarnation, count: 0),
        layout: layout, createdAt: 0)
    for copy in 0..<4 { disk.put(superblock.encoded(copy: copy)[...], at: layout.superblockOffset(copy)) }
    return disk
}

func openJournal(_ storage: FakeStorage) throws(JournalError) -> Journal {
    try Journal(storage: storage, mirror: testMirror, node: .a)
}

/// Makes batches that follow one another.
struct BatchMaker {
    var seq: Seq
    var chain: UInt64
    var epoch = Epoch(rawValue: 1)
    var committed = Seq.zero
    var mirror = testMirror

    init(seq: Seq = .zero, chain: UInt64 = 0) {
        self.seq = seq
        self.chain = chain
    }
    init(after journal: Journal) { self.init(seq: journal.lastSeq, chain: journal.lastChain) }

    /// A batch of writes, one for each length (bytes), filled with `fill`.
    mutating func make(_ lengths: [Int] = [100], fill: UInt8 = 0xAB, bytes: [UInt8]? = nil) -> Batch {
        var writer = ByteWriter()
        writer.put(raw: repeatElement(0, count: BatchHeader.byteCount))
        let pages = lengths.filter { $0 > RecordLimits.inlinePayloadBytes }.map { ($0 + 4095) / 4096 }.reduce(0, +)
        let arena = Arena(bytes: max(1, pages) * 4096)
        var region: Arena.Region?
        if pages > 0 {
            _ = arena.peek(pages * 4096)
            region = arena.take(pages * 4096)
            UnsafeMutableRawBufferPointer(start: region!.pointer, count: region!.count)
                .initializeMemory(as: UInt8.self, repeating: 0)
        }
        var records: [Record] = []
        var page = 0
        for (index, length) in lengths.enumerated() {
            let payload = bytes ?? [UInt8](repeating: fill &+ UInt8(index % 100), count: length)
            let body = RecordBody.write(file: FileID(rawValue: 2 + UInt64(index)), offset: UInt64(index) * 8192)
            if length <= RecordLimits.inlinePayloadBytes {
                payload.withUnsafeBytes { inline in
                    records.append(Record(time: 5, body: body).encode(into: &writer, inlinePayload: inline))
                }
            } else {
                let target = UnsafeMutableRawBufferPointer(
                    start: region!.pointer + page * 4096, count: length)
                target.copyBytes(from: payload)
                records.append(
                    Record(
                        time: 5, body: body,
                        payload: .pages(first: page, length: length, checksum: crc32c(UnsafeRawBufferPointer(target)))
                    ).encode(into: &writer))
                page += (length + 4095) / 4096
            }
        }
        return close(records, writer, region)
    }

    mutating func epochStart(_ next: Epoch) -> Batch {
        epoch = next
        var writer = ByteWriter()
        writer.put(raw: repeatElement(0, count: BatchHeader.byteCount))
        let record = Record(time: 6, body: .epochStart(epoch: next, primary: .a, inSync: .both)).encode(into: &writer)
        return close([record], writer, nil)
    }

    private mutating func close(_ records: [Record], _ writer: ByteWriter, _ region: Arena.Region?) -> Batch {
        let batch = Batch(
            records: records, encoded: writer, region: region, epoch: epoch, mirror: mirror, firstSeq: seq.next,
            previousChain: chain, committedSeq: min(committed, seq), closedAt: 1_700_000_000_000_000_000)
        seq = batch.lastSeq
        chain = batch.header.chain
        return batch
    }
}

/// Everything of a batch that both rooms must have alike.
struct Contents: Hashable {
    var header: [UInt8]
    var payloads: [[UInt8]]
    init(_ batch: Batch) {
        header = Array(batch.header.encoded()[..<BatchHeader.sharedByteCount])
        payloads = batch.records.indices.map { Array(batch.payload(of: $0)) }
    }
}

func read(_ journal: Journal, from: Seq) throws -> [Batch] {
    var result: [Batch] = []
    var next = from
    while next <= journal.durableSeq {
        let batches = try journal.read(from: next, limitBytes: 8 << 20)
        result += batches
        next = batches[batches.count - 1].lastSeq.next
    }
    return result
}
