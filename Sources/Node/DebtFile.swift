import Format
import Foundation
import Replication

/// `dirty` in the state directory: what this node owes the other one, as of a record.
///
/// ```
/// byte  0  magic "LSDIRTY1"                                    u64
///       8  version (1)                                         u16
///      10  node                                                u8, 5 reserved
///      16  mirror id                                           16
///      32  through: every record up to here is in it           u64
///      40  chain of the journal there                          u64
///      48  length of the body                                  u64
///      56  CRC-32C of bytes 0 to 55 and of the body            u32, 4 reserved
///      64  body: `Debt`
/// ```
///
/// Written before the checkpoint moves to `through`, so before any journal space that it covers is used again. With the
/// chain it fits one history of one journal: a file from before a cut, a reset or another disk is refused. More may be in
/// it than `through` says; less never.
struct DebtFile: Sendable {
    static let headerBytes = 64
    /// "LSDIRTY1" read as a little-endian number.
    static let magic: UInt64 = 0x3159_5452_4944_534C
    /// 1: the first.
    static let version: UInt16 = 1

    let path: String
    let mirror: MirrorID
    let node: NodeID

    struct Contents: Sendable {
        var through: Seq
        var chain: UInt64
        var debt: Debt
    }

    func encode(_ contents: Contents) -> [UInt8] {
        var body = ByteWriter()
        contents.debt.encode(into: &body)
        var writer = ByteWriter(reserving: DebtFile.headerBytes + body.count)
        writer.put(DebtFile.magic)
        writer.put(DebtFile.version)
        writer.put(node)
        writer.pad(to: 16)
        writer.put(mirror)
        writer.put(contents.through)
        writer.put(contents.chain)
        writer.put(UInt64(body.count))
        writer.put(crc32c(body.bytes, continuing: crc32c(writer.bytes)))
        writer.pad(to: DebtFile.headerBytes)
        writer.put(raw: body.bytes)
        return writer.bytes
    }

    func decode(_ bytes: [UInt8]) throws(DecodingError) -> Contents {
        var reader = ByteReader(bytes)
        guard try reader.get(UInt64.self, "magic") == DebtFile.magic else {
            throw DecodingError("not a file of dirty ranges", at: 0)
        }
        let version = try reader.get(UInt16.self, "version")
        guard version == DebtFile.version else { throw DecodingError("version \(version)", at: 8) }
        guard try reader.getNodeID() == node else { throw DecodingError("the other node's file", at: 10) }
        try reader.skip(5)
        guard try reader.getMirrorID() == mirror else { throw DecodingError("another mirror's file", at: 16) }
        let through = try reader.getSeq()
        let chain = try reader.get(UInt64.self, "chain")
        let length = try reader.get(UInt64.self, "length")
        let checksum = try reader.get(UInt32.self, "checksum")
        try reader.skip(4)
        guard length == UInt64(reader.remaining) else { throw DecodingError("length", at: 48) }
        guard checksum == crc32c(bytes[DebtFile.headerBytes...], continuing: crc32c(bytes[..<56])) else {
            throw DecodingError("checksum", at: 56)
        }
        let debt = try Debt(decoding: &reader)
        try reader.finish()
        return Contents(through: through, chain: chain, debt: debt)
    }

    /// nil when there is no file.
    func load() throws -> Contents? { try StateFile.load(path).map { try decode($0) } }

    func store(_ contents: Contents) throws(StateFile.Failure) { try StateFile.replace(path, with: encode(contents)) }
}
