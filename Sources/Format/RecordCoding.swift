/// Encoding and decoding of records; the picture stands on `Record`.
extension Record {
    static let imageFlag: UInt16 = 1

    /// Appends the record to a batch's meta area. `inlinePayload` is stored with it when not nil; otherwise `payload`
    /// must be `.none` or `.pages`.
    /// - Returns: the record as a reader will see it, inline offsets filled in.
    @discardableResult
    public func encode(into writer: inout ByteWriter, inlinePayload: UnsafeRawBufferPointer? = nil) -> Record {
        precondition(writer.count % 8 == 0, "records start on 8 bytes")
        var fields = ByteWriter(reserving: 96)
        body.encodeFields(into: &fields)
        var stored = self
        let inlineLength = unsafe inlinePayload?.count ?? 0
        let unpadded = RecordLimits.headerBytes + fields.count + inlineLength
        let start = writer.count
        writer.put(UInt32((unpadded + 7) / 8 * 8))
        writer.put(body.kind.rawValue)
        if let inlinePayload = unsafe inlinePayload {
            let checksum = unsafe crc32c(inlinePayload)
            stored.payload = .inline(
                offset: start + RecordLimits.headerBytes + fields.count, length: inlineLength, checksum: checksum)
        }
        switch stored.payload {
        case .none:
            writer.put(UInt8(0))
            putRest(&writer, first: 0, length: 0, checksum: 0)
        case .inline(_, let length, let checksum):
            unsafe precondition(inlinePayload != nil, "an inline payload needs its bytes")
            writer.put(UInt8(1))
            putRest(&writer, first: 0, length: length, checksum: checksum)
        case .pages(let first, let length, let checksum):
            writer.put(UInt8(2))
            putRest(&writer, first: first, length: length, checksum: checksum)
        }
        writer.put(raw: fields.bytes)
        if let inlinePayload = unsafe inlinePayload { unsafe writer.put(raw: inlinePayload) }
        writer.pad(to: 8)
        return stored
    }

    private func putRest(_ writer: inout ByteWriter, first: Int, length: Int, checksum: UInt32) {
        writer.put(isImage ? Record.imageFlag : 0)
        writer.put(time)
        writer.put(UInt32(first))
        writer.put(UInt32(length))
        writer.put(checksum)
        writer.put(UInt32(0))
    }

    /// Reads the record that starts at `offset` of a batch's meta area.
    /// - Returns: the record and the offset of the next one.
    public static func decode(
        _ meta: ArraySlice<UInt8>, at offset: Int, payloadPages: Int
    ) throws(DecodingError) -> (record: Record, next: Int) {
        guard offset % 8 == 0, offset + RecordLimits.headerBytes <= meta.count else {
            throw DecodingError("truncated record", at: offset)
        }
        var reader = ByteReader(meta[(meta.startIndex + offset)...])
        let length = Int(try reader.get(UInt32.self, "record length"))
        guard length >= RecordLimits.headerBytes, length % 8 == 0, offset + length <= meta.count else {
            throw DecodingError("invalid record length \(length)", at: offset)
        }
        reader = ByteReader(meta[(meta.startIndex + offset)..<(meta.startIndex + offset + length)])
        try reader.skip(4)
        let rawKind = try reader.get(UInt8.self, "record kind")
        guard let kind = RecordKind(rawValue: rawKind) else {
            throw DecodingError("unknown record kind \(rawKind)", at: offset + 4)
        }
        let placement = try reader.get(UInt8.self, "payload placement")
        let flags = try reader.get(UInt16.self, "record flags")
        guard flags & ~imageFlag == 0 else { throw DecodingError("unknown record flags \(flags)", at: offset + 6) }
        let time = try reader.get(Int64.self, "record time")
        let first = Int(try reader.get(UInt32.self, "payload page"))
        let payloadLength = Int(try reader.get(UInt32.self, "payload length"))
        let checksum = try reader.get(UInt32.self, "payload checksum")
        try reader.skip(4)
        let body = try RecordBody.decodeFields(kind, from: &reader)
        var record = Record(time: time, body: body, isImage: flags & imageFlag != 0)
        switch placement {
        case 0:
            guard payloadLength == 0 else { throw DecodingError("payload without a place", at: offset + 20) }
        case 1:
            guard payloadLength <= reader.remaining else { throw DecodingError("truncated payload", at: offset) }
            record.payload = .inline(offset: offset + reader.offset, length: payloadLength, checksum: checksum)
            try reader.skip(payloadLength)
        case 2:
            let pages = (payloadLength + Batch.pageBytes - 1) / Batch.pageBytes
            guard payloadLength > 0, payloadLength <= RecordLimits.payloadBytes, first + pages <= payloadPages else {
                throw DecodingError("payload outside the batch", at: offset + 16)
            }
            record.payload = .pages(first: first, length: payloadLength, checksum: checksum)
        default:
            throw DecodingError("unknown payload placement \(placement)", at: offset + 5)
        }
        guard reader.remaining < 8 else { throw DecodingError("bytes after the record's fields", at: offset) }
        guard (placement != 0) == kind.hasPayload else {
            throw DecodingError("payload and kind do not fit", at: offset + 5)
        }
        return (record, offset + length)
    }
}

extension RecordBody {
    fileprivate func encodeFields(into writer: inout ByteWriter) {
        switch self {
        case .epochStart(let epoch, let primary, let inSync):
            writer.put(epoch)
            writer.put(primary)
            writer.put(inSync)
        case .write(let file, let offset):
            writer.put(file)
            writer.put(offset)
        case .setAttributes(let file, let mask, let attributes):
            writer.put(file)
            writer.put(mask.rawValue)
            writer.put(attributes)
        case .setXattr(let file, let name, let value):
            writer.put(file)
            writer.put(counted: name)
            writer.put(counted: value)
        case .removeXattr(let file, let name):
            writer.put(file)
            writer.put(counted: name)
        case .allocate(let file, let mode, let offset, let length):
            writer.put(file)
            writer.put(mode)
            writer.put(offset)
            writer.put(length)
        case .create(let file, let parent, let name, let attributes, let target, let xattrs):
            writer.put(file)
            writer.put(parent)
            writer.put(counted: name)
            writer.put(attributes)
            writer.put(counted: target)
            writer.put(recorded: xattrs)
        case .link(let file, let parent, let name):
            writer.put(file)
            writer.put(parent)
            writer.put(counted: name)
        case .remove(let file, let parent, let name, let isDirectory, let wasLast):
            writer.put(file)
            writer.put(parent)
            writer.put(counted: name)
            writer.put(isDirectory)
            writer.put(wasLast)
        case .rename(
            let file, let parent, let name, let newParent, let newName, let exchange, let replaced, let replacedWasLast):
            writer.put(file)
            writer.put(parent)
            writer.put(counted: name)
            writer.put(newParent)
            writer.put(counted: newName)
            writer.put(exchange)
            writer.put(replaced)
            writer.put(replacedWasLast)
        case .imageStart(let number), .imageEnd(let number):
            writer.put(number)
        case .imageDirectory(let directory, let attributes, let xattrs, let part, let isLast, let entries):
            writer.put(directory)
            writer.put(attributes)
            writer.put(recorded: xattrs)
            writer.put(part)
            writer.put(isLast)
            writer.put(UInt32(entries.count))
            for entry in entries {
                writer.put(counted: entry.name)
                writer.put(entry.file)
                writer.put(entry.mode)
            }
        case .imageFile(let file, let attributes, let target, let xattrs):
            writer.put(file)
            writer.put(attributes)
            writer.put(counted: target)
            writer.put(recorded: xattrs)
        case .verify(let check): writer.put(check)
        case .repair(let file, let offset):
            writer.put(file)
            writer.put(offset)
        case .repairFile(let file, let attributes, let xattrs):
            writer.put(file)
            writer.put(attributes)
            writer.put(recorded: xattrs)
        }
    }

    fileprivate static func decodeFields(
        _ kind: RecordKind, from reader: inout ByteReader
    ) throws(DecodingError) -> RecordBody {
        switch kind {
        case .epochStart:
            let epoch = try reader.getEpoch()
            let primary = try reader.getNodeID()
            let inSync = try reader.getNodeSet()
            guard inSync.isValid, inSync.contains(primary) else {
                throw DecodingError("invalid in-sync set", at: reader.offset - 1)
            }
            return .epochStart(epoch: epoch, primary: primary, inSync: inSync)
        case .write:
            return .write(file: try reader.getFileID(), offset: try reader.get(UInt64.self, "offset"))
        case .setAttributes:
            return .setAttributes(
                file: try reader.getFileID(), mask: AttributeMask(rawValue: try reader.get(UInt32.self, "mask")),
                attributes: try reader.getAttributes())
        case .setXattr:
            return .setXattr(
                file: try reader.getFileID(), name: try reader.getXattrName(),
                value: try reader.getCounted(limit: RecordLimits.xattrValueBytes, "xattr value"))
        case .removeXattr:
            return .removeXattr(file: try reader.getFileID(), name: try reader.getXattrName())
        case .allocate:
            return .allocate(
                file: try reader.getFileID(), mode: try reader.get(UInt32.self, "mode"),
                offset: try reader.get(UInt64.self, "offset"), length: try reader.get(UInt64.self, "length"))
        case .create:
            return .create(
                file: try reader.getFileID(), parent: try reader.getFileID(), name: try reader.getName(),
                attributes: try reader.getAttributes(), target: try reader.getTarget(), xattrs: try reader.getXattrs())
        case .link:
            return .link(file: try reader.getFileID(), parent: try reader.getFileID(), name: try reader.getName())
        case .remove:
            return .remove(
                file: try reader.getFileID(), parent: try reader.getFileID(), name: try reader.getName(),
                isDirectory: try reader.getBool(), wasLast: try reader.getBool())
        case .rename:
            return .rename(
                file: try reader.getFileID(), parent: try reader.getFileID(), name: try reader.getName(),
                newParent: try reader.getFileID(), newName: try reader.getName(), exchange: try reader.getBool(),
                replaced: try reader.getFileID(), replacedWasLast: try reader.getBool())
        case .imageStart: return .imageStart(number: try reader.get(UInt64.self, "image number"))
        case .imageEnd: return .imageEnd(number: try reader.get(UInt64.self, "image number"))
        case .imageDirectory: return try reader.getImageDirectory()
        case .imageFile:
            return .imageFile(
                file: try reader.getFileID(), attributes: try reader.getAttributes(), target: try reader.getTarget(),
                xattrs: try reader.getXattrs())
        case .verify: return .verify(try reader.getVerifyCheck())
        case .repair:
            return .repair(file: try reader.getFileID(), offset: try reader.get(UInt64.self, "offset"))
        case .repairFile:
            return .repairFile(
                file: try reader.getFileID(), attributes: try reader.getAttributes(), xattrs: try reader.getXattrs())
        }
    }
}

extension ByteWriter {
    public mutating func put(_ attributes: FileAttributes) {
        put(attributes.mode)
        put(attributes.uid)
        put(attributes.gid)
        put(attributes.rdev)
        put(attributes.size)
        put(attributes.atime)
        put(attributes.mtime)
    }
    fileprivate mutating func put(recorded xattrs: [ExtendedAttribute]) {
        assert(xattrs.count <= RecordLimits.xattrCount, "no reader takes so many extended attributes")
        put(xattrs)
    }
    public mutating func put(_ xattrs: [ExtendedAttribute]) {
        put(UInt32(xattrs.count))
        for xattr in xattrs {
            put(counted: xattr.name)
            put(counted: xattr.value)
        }
    }
}

extension ByteReader {
    public mutating func getAttributes() throws(DecodingError) -> FileAttributes {
        FileAttributes(
            mode: try get(UInt32.self, "mode"), uid: try get(UInt32.self, "uid"), gid: try get(UInt32.self, "gid"),
            rdev: try get(UInt32.self, "rdev"), size: try get(UInt64.self, "size"),
            atime: try get(Int64.self, "atime"), mtime: try get(Int64.self, "mtime"))
    }
    /// A directory entry's name: nothing that could lead out of its directory passes.
    public mutating func getName() throws(DecodingError) -> FileName {
        let start = offset
        let name = try getCounted(limit: RecordLimits.nameBytes, "name")
        let dot = UInt8(ascii: ".")
        guard !name.isEmpty, !name.contains(0), !name.contains(UInt8(ascii: "/")), name != [dot], name != [dot, dot]
        else { throw DecodingError("invalid name", at: start) }
        return name
    }
    public mutating func getXattrName() throws(DecodingError) -> FileName {
        let start = offset
        let name = try getCounted(limit: RecordLimits.nameBytes, "xattr name")
        guard !name.isEmpty, !name.contains(0) else { throw DecodingError("invalid xattr name", at: start) }
        return name
    }
    public mutating func getTarget() throws(DecodingError) -> [UInt8] {
        let start = offset
        let target = try getCounted(limit: RecordLimits.targetBytes, "link target")
        guard !target.contains(0) else { throw DecodingError("NUL in a link target", at: start) }
        return target
    }
    public mutating func getXattrs() throws(DecodingError) -> [ExtendedAttribute] {
        let count = Int(try get(UInt32.self, "xattr count"))
        guard count <= RecordLimits.xattrCount else { throw DecodingError("\(count) xattrs", at: offset - 4) }
        var xattrs: [ExtendedAttribute] = []
        for _ in 0..<count {
            xattrs.append(
                ExtendedAttribute(
                    name: try getXattrName(),
                    value: try getCounted(limit: RecordLimits.xattrValueBytes, "xattr value")))
        }
        return xattrs
    }
    fileprivate mutating func getImageDirectory() throws(DecodingError) -> RecordBody {
        let directory = try getFileID()
        let attributes = try getAttributes()
        let xattrs = try getXattrs()
        let part = try get(UInt32.self, "part")
        let isLast = try getBool()
        let count = Int(try get(UInt32.self, "entry count"))
        guard count <= RecordLimits.imageEntries else { throw DecodingError("\(count) entries", at: offset - 4) }
        var entries: [ImageEntry] = []
        for _ in 0..<count {
            entries.append(
                ImageEntry(name: try getName(), file: try getFileID(), mode: try get(UInt32.self, "entry mode")))
        }
        return .imageDirectory(
            directory: directory, attributes: attributes, xattrs: xattrs, part: part, isLast: isLast, entries: entries)
    }
}
