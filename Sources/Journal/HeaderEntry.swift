public import Format

/// A slot of the header ring: says that a batch, and every batch before it, was durable on this disk.
///
/// It is what tells a torn write from later damage: it is written after the batch and after all earlier batches are
/// durable, so where it stands, a bad checksum in the body ring means that acknowledged data has rotted.
///
/// ```
/// byte  0  first seq                                   u64
///       8  chain of the batch                          u64
///      16  chain of the batch before                   u64
///      24  incarnation, as in the batch                u64
///      32  position: file offset of the batch          u64
///      40  length on disk, bytes                       u32
///      44  record count                                u32
///      48  epoch                                       u32
///      52  reserved                                    u32
///      56  magic "LSHE"                                u32
///      60  CRC-32C of bytes 0 to 59                    u32
/// ```
public struct HeaderEntry: Sendable, Hashable {
    public static let magic: UInt32 = 0x4548_534C

    public var firstSeq: Seq
    public var chain: UInt64
    public var previousChain: UInt64
    public var incarnation: Incarnation
    public var position: Int
    public var length: Int
    public var recordCount: Int
    public var epoch: Epoch

    public var lastSeq: Seq { firstSeq + (recordCount - 1) }

    public func encode(into writer: inout ByteWriter) {
        var entry = ByteWriter(reserving: JournalLayout.entryBytes)
        entry.put(firstSeq)
        entry.put(chain)
        entry.put(previousChain)
        entry.put(incarnation.rawValue)
        entry.put(UInt64(position))
        entry.put(UInt32(length))
        entry.put(UInt32(recordCount))
        entry.put(epoch)
        entry.put(UInt32(0))
        entry.put(HeaderEntry.magic)
        entry.put(crc32c(entry.bytes))
        writer.put(raw: entry.bytes)
    }

    /// What a slot holds: an entry, nothing (zeros), or something that is neither.
    public enum Slot: Sendable, Hashable {
        case empty
        case damaged
        case entry(HeaderEntry)
    }

    /// Reads the slot of the body page at file offset `page`.
    public static func slot(_ bytes: ArraySlice<UInt8>, page: Int, layout: JournalLayout) -> Slot {
        precondition(bytes.count == JournalLayout.entryBytes, "a slot has 64 bytes")
        if !bytes.contains(where: { $0 != 0 }) { return .empty }
        var tail = ByteReader(bytes.suffix(8))
        guard let found = try? (tail.get(UInt32.self), tail.get(UInt32.self)), found.0 == magic,
            found.1 == crc32c(bytes.dropLast(4))
        else { return .damaged }
        var reader = ByteReader(bytes)
        guard
            let entry = try? HeaderEntry(
                firstSeq: reader.getSeq(), chain: reader.get(), previousChain: reader.get(),
                incarnation: Incarnation(rawValue: reader.get()),
                position: Int(truncatingIfNeeded: reader.get(UInt64.self)), length: Int(reader.get(UInt32.self)),
                recordCount: Int(reader.get(UInt32.self)), epoch: reader.getEpoch()),
            entry.position == page, layout.holdsBatch(at: entry.position, length: entry.length),
            entry.firstSeq > .zero, entry.firstSeq.rawValue < BatchLimits.seqLimit, entry.recordCount >= 1,
            entry.recordCount <= BatchLimits.records
        else { return .damaged }
        return .entry(entry)
    }
}
