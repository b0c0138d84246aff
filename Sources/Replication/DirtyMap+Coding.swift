import Format

/// The map as bytes, all numbers little-endian:
///
/// ```
///   version u8 (1), everything u8, granule shift u8
///   wholes, created wholes:  count u32, { numbers / 65536 u64, set }
///   objects:                 count u32, { file u64, flags u8, changed from u64, chunks u32, { index u64, set } }
///   set:                     kind u8: 0 list (count u16, u16 ...), 1 bit map (1024 x u64), 2 all 65,536
/// ```
///
/// Everything is in ascending order, so that equal maps are equal bytes, and a list that is not is damage.
extension DirtyMap {
    static let encodingVersion: UInt8 = 1

    public func encoded() -> [UInt8] {
        var writer = ByteWriter(reserving: 1024)
        encode(into: &writer)
        return writer.bytes
    }

    public func encode(into writer: inout ByteWriter) {
        writer.put(DirtyMap.encodingVersion)
        writer.put(isEverything)
        writer.put(shift)
        wholes.encode(into: &writer)
        createdWholes.encode(into: &writer)
        writer.put(UInt32(objects.count))
        for file in objects.keys.sorted() {
            guard let changes = objects[file] else { continue }
            writer.put(file)
            writer.put(changes.flags.rawValue)
            writer.put(changes.changedFrom)
            writer.put(UInt32(changes.chunks.count))
            for chunk in changes.chunks {
                writer.put(chunk.index)
                chunk.set.encode(into: &writer)
            }
        }
    }

    public init(decoding reader: inout ByteReader, budgetBytes: Int = DirtyMap.defaultBudgetBytes) throws(DecodingError)
    {
        let version = try reader.get(UInt8.self, "version")
        guard version == DirtyMap.encodingVersion else { throw DecodingError("map of version \(version)", at: 0) }
        let isEverything = try reader.getBool("everything")
        let shift = try reader.get(UInt8.self, "granule")
        guard shift >= DirtyMap.finestShift, shift <= DirtyMap.coarsestShift, shift % 2 == 0 else {
            throw DecodingError("granules of 2^\(shift) bytes", at: reader.offset - 1)
        }
        let wholes = try ObjectSet(decoding: &reader)
        let createdWholes = try ObjectSet(decoding: &reader)
        let count = Int(try reader.get(UInt32.self, "objects"))
        var objects: [FileID: ObjectChanges] = [:]
        var last = FileID.none
        for _ in 0..<count {
            let file = try reader.getFileID()
            guard file > last else { throw DecodingError("objects out of order", at: reader.offset - 8) }
            last = file
            objects[file] = try ObjectChanges(decoding: &reader)
        }
        self.init(
            shift: shift, isEverything: isEverything, objects: objects, wholes: wholes, createdWholes: createdWholes,
            budgetBytes: budgetBytes)
    }
}

extension ObjectChanges {
    fileprivate init(decoding reader: inout ByteReader) throws(DecodingError) {
        let raw = try reader.get(UInt8.self, "flags")
        guard raw & ~Flags.all.rawValue == 0 else { throw DecodingError("unknown flags \(raw)", at: reader.offset - 1) }
        flags = Flags(rawValue: raw)
        changedFrom = try reader.get(UInt64.self, "changed from")
        let count = Int(try reader.get(UInt32.self, "chunks"))
        for _ in 0..<count {
            let index = try reader.get(UInt64.self, "chunk")
            guard index < 1 << 40, index > chunks.last?.index ?? 0 || chunks.isEmpty else {
                throw DecodingError("chunk \(index) out of order", at: reader.offset - 8)
            }
            chunks.append(Chunk(index: index, set: try SmallSet(decoding: &reader)))
        }
    }
}
