/// What the witness remembers of the two nodes of a mirror beside its vote, so that a node whose disks were put back to an
/// older state, consistently, is noticed although the other node is not there.
///
/// Written now and then, and never waited for: it only ever makes a node that is behind wait. What is lost with an old or
/// missing file is the notice, for what happened since it was written. Layout of the file, little-endian:
///
/// ```
/// magic u32 'LSNM' | version u16 | reserved u16 | mirror 16 | mark: epoch u32, seq u64 |
/// 2 lives (a, b): known u8, birth u64, session u64, ballot 21 | CRC-32C of everything before, u32
/// ```
public struct NodeMemory: Sendable, Hashable {
    /// First bytes of the file: 'LSNM'.
    static let magic: UInt32 = 0x4D4E_534C
    /// 1: the first.
    static let version: UInt16 = 1
    static let byteCount = 24 + 12 + 2 * 38 + 4

    /// On the disk of every node of the in-sync set, as the primary of this epoch said.
    public var mark: LogMark
    public var lifeA: Life?
    public var lifeB: Life?

    /// The newest process heard of a node, and the highest ballot that it, or an earlier one on the same votes, proposed.
    public struct Life: Sendable, Hashable {
        public var incarnation: Incarnation
        public var ballot: Ballot
        public init(incarnation: Incarnation, ballot: Ballot) {
            self.incarnation = incarnation
            self.ballot = ballot
        }
    }

    public init(mark: LogMark = .zero, lifeA: Life? = nil, lifeB: Life? = nil) {
        self.mark = mark
        self.lifeA = lifeA
        self.lifeB = lifeB
    }

    public func encoded(mirror: MirrorID) -> [UInt8] {
        var writer = ByteWriter(reserving: NodeMemory.byteCount)
        writer.put(NodeMemory.magic)
        writer.put(NodeMemory.version)
        writer.put(UInt16(0))
        writer.put(mirror)
        writer.put(mark.epoch)
        writer.put(mark.seq)
        for life in [lifeA, lifeB] {
            writer.put(life != nil)
            writer.put(life?.incarnation.birth ?? 0)
            writer.put(life?.incarnation.session ?? 0)
            writer.put(life?.ballot ?? .zero)
        }
        writer.put(crc32c(writer.bytes))
        return writer.bytes
    }

    public init(decoding bytes: [UInt8], mirror: MirrorID) throws(DecodingError) {
        guard bytes.count == NodeMemory.byteCount else { throw DecodingError("\(bytes.count) bytes", at: 0) }
        var reader = ByteReader(bytes)
        var tail = ByteReader(bytes[(bytes.count - 4)...])
        guard try reader.get(UInt32.self, "magic") == NodeMemory.magic else {
            throw DecodingError("not what is remembered of nodes", at: 0)
        }
        guard try tail.get(UInt32.self, "checksum") == crc32c(bytes[..<(bytes.count - 4)]) else {
            throw DecodingError("checksum", at: bytes.count - 4)
        }
        let version = try reader.get(UInt16.self, "version")
        guard version == NodeMemory.version, try reader.get(UInt16.self, "reserved") == 0 else {
            throw DecodingError("version \(version)", at: 4)
        }
        guard try reader.getMirrorID() == mirror else { throw DecodingError("another mirror's", at: 8) }
        mark = LogMark(epoch: try reader.getEpoch(), seq: try reader.getSeq())
        lifeA = try NodeMemory.life(&reader)
        lifeB = try NodeMemory.life(&reader)
    }

    private static func life(_ reader: inout ByteReader) throws(DecodingError) -> Life? {
        let isKnown = try reader.getBool("life")
        let incarnation = Incarnation(
            birth: try reader.get(UInt64.self, "birth"), session: try reader.get(UInt64.self, "session"))
        let ballot = try reader.getBallot()
        return isKnown ? Life(incarnation: incarnation, ballot: ballot) : nil
    }
}
