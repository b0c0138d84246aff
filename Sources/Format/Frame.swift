/// The head of every message on every connection: peer and witness, control and data.
///
/// ```
/// byte  0  magic "LSF1"                                                          u32
///       4  body length, bytes                                                    u32
///       8  type                                                                  u16
///      10  protocol version                                                      u16
///      12  CRC-32C of these 48 bytes with this field zero, then of the body      u32
///          (of batches: not of the body, which has checksums of its own)
///      16  session of the sender                                                 u64
///      24  epoch of the sender                                                   u32
///      28  reserved                                                              u32
///      32  mirror id                                                             16
/// ```
public struct FrameHeader: Sendable, Hashable {
    public static let byteCount = 48
    /// "LSF1" read as a little-endian number.
    public static let magic: UInt32 = 0x3146_534C

    public var bodyLength: Int
    public var type: FrameType
    public var version: UInt16
    public var checksum: UInt32 = 0
    public var session: UInt64
    public var epoch: Epoch
    public var mirror: MirrorID

    public init(
        type: FrameType, bodyLength: Int, version: UInt16 = ProtocolVersion.current, session: UInt64, epoch: Epoch,
        mirror: MirrorID
    ) {
        self.type = type
        self.bodyLength = bodyLength
        self.version = version
        self.session = session
        self.epoch = epoch
        self.mirror = mirror
    }

    /// The 48 bytes with the checksum over them and `body` (empty for a batch).
    public func encoded(body: some Collection<UInt8> = []) -> [UInt8] {
        let zero = bytes(checksum: 0)
        return bytes(checksum: type.checksumCoversBody ? crc32c(body, continuing: crc32c(zero)) : crc32c(zero))
    }

    private func bytes(checksum: UInt32) -> [UInt8] {
        var writer = ByteWriter(reserving: FrameHeader.byteCount)
        writer.put(FrameHeader.magic)
        writer.put(UInt32(bodyLength))
        writer.put(type.rawValue)
        writer.put(version)
        writer.put(checksum)
        writer.put(session)
        writer.put(epoch)
        writer.put(UInt32(0))
        writer.put(mirror)
        return writer.bytes
    }

    /// Reads a header: magic, a known type, and a body within the type's limit. The checksum is checked by `verify`
    /// when the body is there.
    public init(decoding bytes: some Collection<UInt8>) throws(DecodingError) {
        var reader = ByteReader(Array(bytes.prefix(FrameHeader.byteCount)))
        guard try reader.get(UInt32.self, "magic") == FrameHeader.magic else {
            throw DecodingError("not a Lockstep message", at: 0)
        }
        bodyLength = Int(try reader.get(UInt32.self, "body length"))
        let rawType = try reader.get(UInt16.self, "type")
        guard let type = FrameType(rawValue: rawType) else {
            throw DecodingError("unknown message type \(rawType)", at: 8)
        }
        self.type = type
        guard bodyLength <= type.bodyLimit else {
            throw DecodingError("\(type) of \(bodyLength) bytes, limit \(type.bodyLimit)", at: 4)
        }
        version = try reader.get(UInt16.self, "version")
        checksum = try reader.get(UInt32.self, "checksum")
        session = try reader.get(UInt64.self, "session")
        epoch = try reader.getEpoch()
        try reader.skip(4)
        mirror = try reader.getMirrorID()
    }

    /// Whether the checksum fits this header and `body`.
    public func verify(body: some Collection<UInt8>) -> Bool {
        let expected = crc32c(bytes(checksum: 0))
        return checksum == (type.checksumCoversBody ? crc32c(body, continuing: expected) : expected)
    }
}

/// Versions of the protocol. A hello carries the range a program speaks; both sides take the highest common one.
///
/// | | |
/// |---|---|
/// | 1 | the first |
/// | 2 | verification: batches of version 2, `DataMessage.verifyAnswer` |
/// | 3 | a log state says in which resynchronisation its copy is, `resyncStart` of which kind it is |
/// | 4 | batches cross the wire with a head of 60 bytes, several in a message |
/// | 5 | an acknowledgement says how many files the follower's disk takes, and as of which record |
/// | 6 | a log state says whether its node acknowledges in mode `strict` |
/// | 7 | a log state says what the sender's plain files can hold |
/// | 8 | the same of directories |
/// | 9 | the same of times |
public enum ProtocolVersion {
    public static let current: UInt16 = 9
    public static let oldest: UInt16 = 9
}

/// What a frame carries.
public enum FrameType: UInt16, Sendable, CaseIterable {
    /// First on every connection: who speaks, in which channel.
    case hello = 1
    /// A refusal with its reason; the connection closes behind it.
    case refusal = 2
    /// A message of decisions and leases (`QuorumMessage`).
    case quorum = 16
    /// Control messages between the nodes other than `quorum`.
    case control = 17
    /// Batches in their wire form, one behind the other.
    case batch = 32
    /// A message of the data connection (`DataMessage`).
    case data = 33

    /// Bytes a body may have.
    public var bodyLimit: Int {
        switch self {
        case .hello: 4096
        case .refusal: 4096
        case .quorum: 4096
        case .control: 64 << 10
        case .batch: BatchLimits.diskBytes
        case .data: 1 << 20
        }
    }

    public var checksumCoversBody: Bool { self != .batch }
}

extension Hello.Channel {
    /// What may come on such a connection behind the hello. Anything else ends it: else whoever connects for decisions
    /// could have the memory of the longest message between the nodes held for it.
    public var frameTypes: Set<FrameType> {
        switch self {
        case .control: [.refusal, .quorum]
        case .data: [.refusal, .batch, .data]
        }
    }
}
