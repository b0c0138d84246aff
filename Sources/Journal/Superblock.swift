public import Format

/// The journal's own state, in four copies of 4 KiB. The copies are written one after another, so that a crash leaves
/// at most one torn; the highest generation that two copies agree on counts.
///
/// ```
/// byte  0  magic "LSSUPER1"                                   u64
///       8  version (1)                                        u16
///      10  which copy this is, 0 to 3                         u16
///      12  flags: 1 clean stop, 2 incomplete, 4 strict        u32
///      16  mirror id                                          16
///      32  node (0 = first in the configuration, 1 = second)  u8, 7 reserved
///      40  node instance, random at creation                  u64
///      48  generation, grows with every write                 u64
///      56  incarnation that new batches carry                 u64
///      64  file size                                          u64
///      72  checkpoint seq: everything up to it is on the plain files' disk   u64
///      80  chain there                                        u64
///      88  file offset behind the batch that ends there       u64
///      96  first seq of the oldest batch kept (a hint)        u64
///     104  its file offset (a hint)                           u64
///     112  durable seq when this was written; of a damaged journal the last that ever was  u64
///     120  committed seq known when this was written          u64
///     128  clean stop: complete through this seq              u64
///     136  last cut: batches above this seq ...               u64
///     144  ... count only with at least this incarnation      u64
///     152  creation, nanoseconds since 1970                   i64
///     160  number of the last resynchronisation, 0: none known u64
///     168  epochs: count                                      u32
///     172  statements: count in the list                      u32
///     176  lone restarts, ever                                u32
///     180  forced promotions, ever                            u32
///     184  statements: 16 of {kind u8, 3 reserved, epoch u32, seq u64, time i64}
///     568  misfit: incarnation, 0: none                       u64
///     576  reserved
///     960  epochs: 256 of {epoch u32, first seq u64}
///    4032  reserved
///    4092  CRC-32C of bytes 0 to 4091                         u32
/// ```
public struct Superblock: Sendable, Hashable {
    public static let byteCount = 4096
    /// "LSSUPER1" read as a little-endian number.
    public static let magic: UInt64 = 0x3152_4550_5553_534C
    /// 1: the first.
    public static let version: UInt16 = 1
    public static let epochLimit = 256
    public static let statementLimit = 16
    static let misfitOffset = 568
    static let epochsOffset = 960

    public var mirror: MirrorID
    public var node: NodeID
    /// Drawn at creation: tells a replaced or cloned disk from the one it stands for.
    public var nodeInstance: UInt64
    public var generation: UInt64 = 0
    public var incarnation: Incarnation
    public var fileSize: Int
    public var checkpointSeq: Seq = .zero
    public var checkpointChain: UInt64 = 0
    public var checkpointEnd: Int
    public var tailSeq: Seq = .zero
    public var tailPosition: Int = 0
    public var durableSeq: Seq = .zero
    public var committedSeq: Seq = .zero
    /// Set by a clean stop: nothing that was received or acknowledged is missing up to this seq.
    public var completeThrough: Seq?
    /// A resynchronisation is going on: the plain files are a mixture, this node cannot be promoted.
    public var isIncomplete = false
    /// Incomplete only because the plain files that were found do not belong to this journal. As long as they do not say
    /// that they do, and the journal has not begun anew, the right ones make the copy complete again. The incarnation is
    /// that of the journal when they were found first: what the right ones say of it is not newer.
    public var misfitLife: Incarnation?
    /// Nothing was ever acknowledged of this log that was not on the disk of every in-sync node by then: whatever is not
    /// here after a crash, nobody was told of. Not the mode of the configuration, which may have changed since, and not of
    /// this node alone: it depends on who served.
    public var isStrict = false
    /// Which resynchronisation made this copy incomplete: the other node may know how to go on with it. 0 in journals
    /// of programs that did not write it, and then nobody knows, which only costs a comparison.
    public var resyncNumber: UInt64 = 0
    public var cutSeq: Seq = .zero
    public var cutIncarnation: Incarnation
    public var createdAt: Int64
    public var epochs: EpochHistory = EpochHistory()
    public var loneRestarts: UInt32 = 0
    public var forcedPromotions: UInt32 = 0
    public var statements: [PermanentStatement] = []

    public init(
        mirror: MirrorID, node: NodeID, nodeInstance: UInt64, incarnation: Incarnation, layout: JournalLayout,
        createdAt: Int64
    ) {
        self.mirror = mirror
        self.node = node
        self.nodeInstance = nodeInstance
        self.incarnation = incarnation
        cutIncarnation = incarnation
        fileSize = layout.fileSize
        checkpointEnd = layout.bodyStart
        self.createdAt = createdAt
    }

    /// Whether a batch with this first seq and incarnation belongs to the journal's present history. After a cut a
    /// batch above the cut counts only if it was written after it: otherwise a batch from before the cut, lying beyond a
    /// torn one, would look like damage in the middle.
    public func admits(firstSeq: Seq, incarnation other: Incarnation) -> Bool {
        guard other.base == incarnation.base, other.count <= incarnation.count else { return false }
        return firstSeq <= cutSeq || other.count >= cutIncarnation.count
    }

    /// What the superblock itself proves to have been on this disk.
    public var provenSeq: Seq { max(checkpointSeq, durableSeq, cutSeq, completeThrough ?? .zero) }
}

/// Which life of the journal a batch was written in: a random number drawn at creation and at every reset, and a count
/// that grows with every cut and every start.
public struct Incarnation: RawRepresentable, Sendable, Hashable, CustomStringConvertible {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    public init(base: UInt32, count: UInt32) { rawValue = UInt64(base) << 32 | UInt64(count) }
    public init(random generator: inout some RandomNumberGenerator) {
        self.init(base: UInt32.random(in: 1...UInt32.max, using: &generator), count: 0)
    }
    public var base: UInt32 { UInt32(truncatingIfNeeded: rawValue >> 32) }
    public var count: UInt32 { UInt32(truncatingIfNeeded: rawValue) }
    public var next: Incarnation { Incarnation(base: base, count: count + 1) }
    public var description: String { "\(String(base, radix: 16))/\(count)" }
}

/// Where each epoch began, oldest first: the last 256.
public struct EpochHistory: Sendable, Hashable {
    public private(set) var starts: [EpochStart] = []
    public init() {}

    public init(_ starts: [EpochStart]) { for start in starts { note(start.epoch, from: start.firstSeq) } }

    public var last: EpochStart? { starts.last }

    /// Adds an epoch; the oldest goes when there are too many. An epoch that is known already changes nothing; one that
    /// begins where (or before) a known one began takes its place, for then nothing of that one is left.
    public mutating func note(_ epoch: Epoch, from firstSeq: Seq) {
        guard epoch > starts.last?.epoch ?? .none else { return }
        while let last = starts.last, last.firstSeq >= firstSeq { starts.removeLast() }
        if starts.count == Superblock.epochLimit { starts.removeFirst() }
        starts.append(EpochStart(epoch: epoch, firstSeq: firstSeq))
    }

    /// Forgets epochs that began above `seq`.
    public mutating func cut(to seq: Seq) { starts.removeAll { $0.firstSeq > seq } }

    /// The epoch in which `seq` was written; nil when the history does not reach back to it.
    public func epoch(of seq: Seq) -> Epoch? { starts.last { $0.firstSeq <= seq }?.epoch }
}

/// Something that must never be forgotten: shown by `status` and `lockstep-dump` for as long as the journal lives.
public struct PermanentStatement: Sendable, Hashable {
    public enum Kind: UInt8, Sendable, CaseIterable {
        /// Served without the other node after a restart: writes that were never fsynced may be missing.
        case loneRestart = 1
        /// An administrator promoted this node by force.
        case forcedPromotion = 2
    }
    public var kind: Kind
    public var epoch: Epoch
    public var seq: Seq
    /// Nanoseconds since 1970.
    public var time: Int64
    public init(kind: Kind, epoch: Epoch, seq: Seq, time: Int64) {
        self.kind = kind
        self.epoch = epoch
        self.seq = seq
        self.time = time
    }
}

extension Superblock {
    /// Adds a statement; the counters never forget, the list keeps the last 16.
    public mutating func add(_ statement: PermanentStatement) {
        switch statement.kind {
        case .loneRestart: loneRestarts += 1
        case .forcedPromotion: forcedPromotions += 1
        }
        if statements.count == Superblock.statementLimit { statements.removeFirst() }
        statements.append(statement)
    }

    public func encoded(copy: Int) -> [UInt8] {
        precondition(epochs.starts.count <= Superblock.epochLimit && statements.count <= Superblock.statementLimit)
        var writer = ByteWriter(reserving: Superblock.byteCount)
        writer.put(Superblock.magic)
        writer.put(Superblock.version)
        writer.put(UInt16(copy))
        writer.put(UInt32((completeThrough == nil ? 0 : 1) | (isIncomplete ? 2 : 0) | (isStrict ? 4 : 0)))
        writer.put(mirror)
        writer.put(node)
        writer.pad(to: 8)
        for value in [nodeInstance, generation, incarnation.rawValue, UInt64(fileSize)] { writer.put(value) }
        writer.put(checkpointSeq)
        writer.put(checkpointChain)
        writer.put(UInt64(checkpointEnd))
        writer.put(tailSeq)
        writer.put(UInt64(tailPosition))
        writer.put(durableSeq)
        writer.put(committedSeq)
        writer.put(completeThrough ?? .zero)
        writer.put(cutSeq)
        writer.put(cutIncarnation.rawValue)
        writer.put(createdAt)
        writer.put(resyncNumber)
        writer.put(UInt32(epochs.starts.count))
        writer.put(UInt32(statements.count))
        writer.put(loneRestarts)
        writer.put(forcedPromotions)
        for statement in statements {
            writer.put(statement.kind.rawValue)
            writer.pad(to: 4)
            writer.put(statement.epoch)
            writer.put(statement.seq)
            writer.put(statement.time)
        }
        writer.pad(to: Superblock.misfitOffset)
        writer.put(misfitLife?.rawValue ?? 0)
        writer.pad(to: Superblock.epochsOffset)
        precondition(writer.count == Superblock.epochsOffset, "the statements overlap the epochs")
        for start in epochs.starts {
            writer.put(start.epoch)
            writer.put(start.firstSeq)
        }
        writer.put(raw: repeatElement(0, count: Superblock.byteCount - 4 - writer.count))
        writer.put(crc32c(writer.bytes))
        return writer.bytes
    }

    /// Why a copy was not taken.
    public enum Fault: Error, Sendable, Hashable, CustomStringConvertible {
        case noSuperblock
        case checksum
        case version(UInt16)
        case impossible(String)
        public var description: String {
            switch self {
            case .noSuperblock: "no superblock there"
            case .checksum: "wrong checksum"
            case .version(let version): "format version \(version), this program knows version \(Superblock.version)"
            case .impossible(let what): what
            }
        }
    }

    /// Reads one copy and checks everything in it.
    public init(decoding bytes: [UInt8], copy: Int) throws(Fault) {
        guard bytes.count == Superblock.byteCount else { throw .impossible("\(bytes.count) bytes") }
        var reader = ByteReader(bytes)
        var tail = ByteReader(bytes[(Superblock.byteCount - 4)...])
        do {
            guard try reader.get(UInt64.self) == Superblock.magic else { throw Fault.noSuperblock }
            guard try tail.get(UInt32.self) == crc32c(bytes[..<(Superblock.byteCount - 4)]) else {
                throw Fault.checksum
            }
            let version = try reader.get(UInt16.self)
            guard version == Superblock.version else { throw Fault.version(version) }
            let found = try reader.get(UInt16.self)
            guard Int(found) == copy else { throw Fault.impossible("copy \(found) in the place of copy \(copy)") }
            let flags = try reader.get(UInt32.self)
            guard flags & ~7 == 0 else { throw Fault.impossible("unknown flags \(flags)") }
            isIncomplete = flags & 2 != 0
            isStrict = flags & 4 != 0
            mirror = try reader.getMirrorID()
            node = try reader.getNodeID()
            try reader.skip(7)
            nodeInstance = try reader.get()
            generation = try reader.get()
            incarnation = Incarnation(rawValue: try reader.get())
            guard let size = Int(exactly: try reader.get(UInt64.self)), let layout = JournalLayout(fileSize: size)
            else {
                throw Fault.impossible("impossible file size")
            }
            fileSize = size
            checkpointSeq = try reader.getSeq()
            checkpointChain = try reader.get()
            let end = try reader.get(UInt64.self)
            guard end >= layout.bodyStart, end <= layout.bodyStart + layout.bodyBytes,
                end % UInt64(JournalLayout.pageBytes) == 0
            else { throw Fault.impossible("checkpoint outside the body ring") }
            checkpointEnd = Int(end)
            tailSeq = try reader.getSeq()
            tailPosition = Int(truncatingIfNeeded: try reader.get(UInt64.self))
            durableSeq = try reader.getSeq()
            committedSeq = try reader.getSeq()
            let through = try reader.getSeq()
            completeThrough = flags & 1 != 0 ? through : nil
            cutSeq = try reader.getSeq()
            cutIncarnation = Incarnation(rawValue: try reader.get())
            createdAt = try reader.get()
            resyncNumber = try reader.get()
            try self.readLists(&reader, bytes)
        } catch let fault as Fault {
            throw fault
        } catch {
            throw .impossible("\(error)")
        }
        guard max(provenSeq, committedSeq).rawValue < BatchLimits.seqLimit else { throw .impossible("impossible seq") }
    }

    private mutating func readLists(_ reader: inout ByteReader, _ bytes: [UInt8]) throws {
        let epochCount = Int(try reader.get(UInt32.self))
        let statementCount = Int(try reader.get(UInt32.self))
        guard epochCount <= Superblock.epochLimit, statementCount <= Superblock.statementLimit else {
            throw Fault.impossible("\(epochCount) epochs, \(statementCount) statements")
        }
        loneRestarts = try reader.get()
        forcedPromotions = try reader.get()
        for _ in 0..<statementCount {
            guard let kind = PermanentStatement.Kind(rawValue: try reader.get()) else {
                throw Fault.impossible("unknown statement")
            }
            try reader.skip(3)
            statements.append(
                PermanentStatement(
                    kind: kind, epoch: try reader.getEpoch(), seq: try reader.getSeq(), time: try reader.get()))
        }
        var misfit = ByteReader(bytes[Superblock.misfitOffset...])
        let life: UInt64 = try misfit.get()
        misfitLife = life == 0 ? nil : Incarnation(rawValue: life)
        var list = ByteReader(bytes[Superblock.epochsOffset...])
        for _ in 0..<epochCount {
            let start = EpochStart(epoch: try list.getEpoch(), firstSeq: try list.getSeq())
            if let last = epochs.last, start.epoch <= last.epoch || start.firstSeq <= last.firstSeq {
                throw Fault.impossible("epochs out of order")
            }
            epochs.note(start.epoch, from: start.firstSeq)
        }
    }
}
