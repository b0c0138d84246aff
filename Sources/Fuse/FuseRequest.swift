public import Format

/// One request of the kernel, decoded and checked.
public struct FuseRequest: Sendable, Hashable {
    /// Names the request; the answer carries it unchanged (bit 63: sent again after a restart of the daemon).
    public let unique: UInt64
    /// The file or directory it is about.
    public let node: FileID
    /// Who asks.
    public let uid: UInt32
    public let gid: UInt32
    public let pid: UInt32
    public let operation: FuseOperation
}

/// What a request asks for.
public enum FuseOperation: Sendable, Hashable {
    case initialize(major: UInt32, minor: UInt32, maxReadahead: UInt32, features: UInt64)
    case lookup(name: FileName)
    /// FORGET and BATCH_FORGET: no answer. Only for files that are gone it means anything: node ids need no memory here.
    case forget(files: [FileID])
    case getAttributes
    case setAttributes(FuseAttributeChange)
    case readLink
    case symlink(name: FileName, target: [UInt8])
    case makeNode(name: FileName, mode: UInt32, rdev: UInt32)
    case makeDirectory(name: FileName, mode: UInt32)
    case unlink(name: FileName)
    case removeDirectory(name: FileName)
    case rename(name: FileName, newParent: FileID, newName: FileName, flags: UInt32)
    case link(file: FileID, name: FileName)
    case open(flags: UInt32)
    case create(name: FileName, flags: UInt32, mode: UInt32)
    case read(offset: UInt64, size: UInt32)
    /// The payload lies at the place that was given for it.
    case write(FuseWrite)
    case statistics
    case release(handle: UInt64)
    case sync
    case syncDirectory
    case setXattr(name: FileName, value: [UInt8], flags: UInt32)
    case getXattr(name: FileName, size: UInt32)
    case listXattrs(size: UInt32)
    case removeXattr(name: FileName)
    case flush
    case readDirectory(offset: UInt64, size: UInt32, plus: Bool)
    case interrupt(unique: UInt64)
    case destroy
    case allocate(offset: UInt64, length: UInt64, mode: UInt32)
    case seek(offset: UInt64, whence: UInt32)
    /// Known to the protocol, answered with `errno` (ENOSYS tells the kernel not to ask again).
    case refused(opcode: UInt32, errno: Int32)
}

public struct FuseWrite: Sendable, Hashable {
    public let handle: UInt64
    public let offset: UInt64
    /// Bytes, 1 to 1 MiB.
    public let length: Int
    /// The FUSE_WRITE_* bits.
    public let writeFlags: UInt32
    /// The flags of open(2), as of now (O_DSYNC is seen here).
    public let openFlags: UInt32
}

public struct FuseAttributeChange: Sendable, Hashable {
    let mask: FuseSetAttributeMask
    public let size: UInt64
    /// Nanoseconds since 1970.
    public let atime: Int64
    public let mtime: Int64
    public let mode: UInt32
    public let uid: UInt32
    public let gid: UInt32
}

/// Why a request was not understood.
public struct FuseRequestError: Error, Sendable, Hashable {
    /// 0 when not even the header could be read: then nothing can be answered.
    public let unique: UInt64
    public let errno: Int32
    public let reason: String
}

/// Limits of a request, the kernel's own.
public enum FuseLimits {
    /// Bytes of the longest WRITE payload and READ answer; also what `ChangeLog.payloadPlace()` has room for.
    public static let transferBytes = 1 << 20
    /// Requests the kernel keeps in flight in the background (rule: 64 would cap a deep queue of libaio).
    public static let backgroundRequests: UInt16 = 1024
    public static let congestionThreshold: UInt16 = 768
    /// Files are no longer than this (the kernel's own limit is 2^63 - 1).
    public static let offsetMax: UInt64 = 1 << 62
}

extension FuseRequest {
    /// Decodes what `readv` brought: pure, no assumption about the bytes.
    ///
    /// - Parameters:
    ///   - head: the first 80 bytes at most.
    ///   - rest: the bytes behind them. Of a WRITE only its length is used.
    public static func decode(
        head: UnsafeRawBufferPointer, rest: UnsafeRawBufferPointer
    ) throws(FuseRequestError) -> FuseRequest {
        let headCount = head.count
        let total = headCount + rest.count
        guard headCount >= FuseProtocol.requestHeaderBytes,
            headCount == FuseProtocol.writeHeadBytes || total == headCount
        else {
            throw FuseRequestError(unique: 0, errno: 5, reason: "a request of \(total) bytes has no header")
        }
        let length = unsafe UInt32(littleEndian: head.loadUnaligned(fromByteOffset: 0, as: UInt32.self))
        let rawOpcode = unsafe UInt32(littleEndian: head.loadUnaligned(fromByteOffset: 4, as: UInt32.self))
        let unique = unsafe UInt64(littleEndian: head.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
        guard Int(length) == total else {
            throw FuseRequestError(unique: unique, errno: 5, reason: "length \(length) in a request of \(total) bytes")
        }
        guard let opcode = FuseOpcode(rawValue: rawOpcode) else {
            throw FuseRequestError(unique: unique, errno: 38, reason: "unknown opcode \(rawOpcode)")
        }
        let node = unsafe UInt64(littleEndian: head.loadUnaligned(fromByteOffset: 16, as: UInt64.self))
        let operation: FuseOperation
        do throws(DecodingError) {
            if opcode == .write {
                operation = .write(try unsafe decodeWrite(head, payload: rest.count))
            } else if opcode == .forget {
                operation = .forget(files: [FileID(rawValue: node)])
            } else {
                var bytes = unsafe Array(head[FuseProtocol.requestHeaderBytes...])
                unsafe bytes.append(contentsOf: rest)
                var reader = ByteReader(bytes)
                operation = try decode(opcode, &reader)
            }
        } catch {
            throw FuseRequestError(unique: unique, errno: 22, reason: "\(opcode): \(error)")
        }
        return unsafe FuseRequest(
            unique: unique, node: FileID(rawValue: node),
            uid: UInt32(littleEndian: head.loadUnaligned(fromByteOffset: 24, as: UInt32.self)),
            gid: UInt32(littleEndian: head.loadUnaligned(fromByteOffset: 28, as: UInt32.self)),
            pid: UInt32(littleEndian: head.loadUnaligned(fromByteOffset: 32, as: UInt32.self)),
            operation: operation)
    }

    /// The data path: no array is made.
    private static func decodeWrite(
        _ head: UnsafeRawBufferPointer, payload: Int
    ) throws(DecodingError) -> FuseWrite {
        guard head.count == FuseProtocol.writeHeadBytes else {
            throw DecodingError("truncated WRITE", at: FuseProtocol.requestHeaderBytes)
        }
        let handle = unsafe UInt64(littleEndian: head.loadUnaligned(fromByteOffset: 40, as: UInt64.self))
        let offset = unsafe UInt64(littleEndian: head.loadUnaligned(fromByteOffset: 48, as: UInt64.self))
        let size = unsafe UInt32(littleEndian: head.loadUnaligned(fromByteOffset: 56, as: UInt32.self))
        let writeFlags = unsafe UInt32(littleEndian: head.loadUnaligned(fromByteOffset: 60, as: UInt32.self))
        let openFlags = unsafe UInt32(littleEndian: head.loadUnaligned(fromByteOffset: 72, as: UInt32.self))
        guard Int(size) == payload, payload <= FuseLimits.transferBytes else {
            throw DecodingError("WRITE of \(size) bytes with a payload of \(payload)", at: 56)
        }
        guard offset <= FuseLimits.offsetMax else { throw DecodingError("offset \(offset)", at: 48) }
        return FuseWrite(
            handle: handle, offset: offset, length: payload, writeFlags: writeFlags, openFlags: openFlags)
    }

    private static func decode(
        _ opcode: FuseOpcode, _ reader: inout ByteReader
    ) throws(DecodingError) -> FuseOperation {
        switch opcode {
        case .initialize: try decodeInit(&reader)
        case .lookup: .lookup(name: try reader.getLookupName())
        case .forget, .batchForget: try decodeBatchForget(&reader)
        case .getattr: .getAttributes
        case .setattr: .setAttributes(try FuseAttributeChange(&reader))
        case .readlink: .readLink
        case .symlink, .mknod, .mkdir, .create, .link, .unlink, .rmdir, .rename, .rename2:
            try decodeNamespace(opcode, &reader)
        case .setxattr, .getxattr, .listxattr, .removexattr: try decodeXattr(opcode, &reader)
        case .open: .open(flags: try reader.get(UInt32.self, "flags"))
        case .read, .readdir, .readdirplus: try decodeRead(opcode, &reader)
        case .statfs: .statistics
        case .release: .release(handle: try reader.get(UInt64.self, "handle"))
        case .fsync: .sync
        case .fsyncdir: .syncDirectory
        case .flush: .flush
        case .interrupt: .interrupt(unique: try reader.get(UInt64.self, "unique"))
        case .destroy: .destroy
        case .fallocate, .lseek: try decodeRange(opcode, &reader)
        case .ioctl: .refused(opcode: opcode.rawValue, errno: 25)
        case .tmpfile: .refused(opcode: opcode.rawValue, errno: 95)
        case .write: throw DecodingError("WRITE has its own decoder", at: 0)
        case .opendir, .releasedir, .access, .getlk, .setlk, .setlkw, .bmap, .poll, .notifyReply, .copyFileRange,
            .setupMapping, .removeMapping, .syncfs, .statx:
            .refused(opcode: opcode.rawValue, errno: 38)
        }
    }

    private static func decodeInit(_ reader: inout ByteReader) throws(DecodingError) -> FuseOperation {
        let major = try reader.get(UInt32.self, "major")
        let minor = try reader.get(UInt32.self, "minor")
        // An old kernel sends less; it is refused later by its number.
        guard reader.remaining >= 8 else {
            return .initialize(major: major, minor: minor, maxReadahead: 0, features: 0)
        }
        let readahead = try reader.get(UInt32.self, "readahead")
        var features = UInt64(try reader.get(UInt32.self, "features"))
        if features & FuseFeatures.extended.rawValue != 0 {
            features |= UInt64(try reader.get(UInt32.self, "further features")) << 32
        }
        return .initialize(major: major, minor: minor, maxReadahead: readahead, features: features)
    }

    /// FORGET is about the node of its header.
    private static func decodeBatchForget(_ reader: inout ByteReader) throws(DecodingError) -> FuseOperation {
        let count = Int(try reader.get(UInt32.self, "count"))
        try reader.skip(4)
        guard count * 16 == reader.remaining else {
            throw DecodingError("\(count) files to forget in \(reader.remaining) bytes", at: reader.offset)
        }
        var files: [FileID] = []
        files.reserveCapacity(count)
        for _ in 0..<count {
            files.append(FileID(rawValue: try reader.get(UInt64.self, "node")))
            try reader.skip(8)
        }
        return .forget(files: files)
    }

    private static func decodeNamespace(
        _ opcode: FuseOpcode, _ reader: inout ByteReader
    ) throws(DecodingError) -> FuseOperation {
        switch opcode {
        case .symlink:
            let name = try reader.getNewName()
            return .symlink(name: name, target: try reader.getTerminated(limit: RecordLimits.targetBytes, "target"))
        case .mknod:
            let mode = try reader.get(UInt32.self, "mode")
            let rdev = try reader.get(UInt32.self, "device")
            try reader.skip(8)
            return .makeNode(name: try reader.getNewName(), mode: mode, rdev: rdev)
        case .mkdir:
            let mode = try reader.get(UInt32.self, "mode")
            try reader.skip(4)
            return .makeDirectory(name: try reader.getNewName(), mode: mode)
        case .create:
            let flags = try reader.get(UInt32.self, "flags")
            let mode = try reader.get(UInt32.self, "mode")
            try reader.skip(8)
            return .create(name: try reader.getNewName(), flags: flags, mode: mode)
        case .link:
            let file = try reader.getFileID()
            return .link(file: file, name: try reader.getNewName())
        case .unlink: return .unlink(name: try reader.getNewName())
        case .rmdir: return .removeDirectory(name: try reader.getNewName())
        default:
            let newParent = try reader.getFileID()
            var flags: UInt32 = 0
            if opcode == .rename2 {
                flags = try reader.get(UInt32.self, "flags")
                try reader.skip(4)
            }
            let name = try reader.getNewName()
            return .rename(name: name, newParent: newParent, newName: try reader.getNewName(), flags: flags)
        }
    }

    private static func decodeXattr(
        _ opcode: FuseOpcode, _ reader: inout ByteReader
    ) throws(DecodingError) -> FuseOperation {
        switch opcode {
        case .setxattr:
            let size = Int(try reader.get(UInt32.self, "size"))
            let flags = try reader.get(UInt32.self, "flags")
            let name = try reader.getTerminated(limit: RecordLimits.nameBytes, "xattr name")
            guard size <= RecordLimits.xattrValueBytes, size == reader.remaining else {
                throw DecodingError("xattr value of \(size) bytes with \(reader.remaining) sent", at: reader.offset)
            }
            return .setXattr(name: name, value: try reader.get(raw: size, "value"), flags: flags)
        case .getxattr:
            let size = try reader.get(UInt32.self, "size")
            try reader.skip(4)
            return .getXattr(
                name: try reader.getTerminated(limit: RecordLimits.nameBytes, "xattr name"), size: size)
        case .listxattr: return .listXattrs(size: try reader.get(UInt32.self, "size"))
        default:
            return .removeXattr(name: try reader.getTerminated(limit: RecordLimits.nameBytes, "xattr name"))
        }
    }

    private static func decodeRead(
        _ opcode: FuseOpcode, _ reader: inout ByteReader
    ) throws(DecodingError) -> FuseOperation {
        try reader.skip(8)
        let offset = try reader.get(UInt64.self, "offset")
        let size = min(try reader.get(UInt32.self, "size"), UInt32(FuseLimits.transferBytes))
        guard opcode == .read else {
            return .readDirectory(offset: offset, size: size, plus: opcode == .readdirplus)
        }
        guard offset <= FuseLimits.offsetMax else { throw DecodingError("offset \(offset)", at: 8) }
        return .read(offset: offset, size: size)
    }

    private static func decodeRange(
        _ opcode: FuseOpcode, _ reader: inout ByteReader
    ) throws(DecodingError) -> FuseOperation {
        try reader.skip(8)
        let offset = try reader.get(UInt64.self, "offset")
        guard opcode == .fallocate else {
            return .seek(offset: offset, whence: try reader.get(UInt32.self, "whence"))
        }
        let length = try reader.get(UInt64.self, "length")
        let mode = try reader.get(UInt32.self, "mode")
        guard offset <= FuseLimits.offsetMax, length > 0, length <= FuseLimits.offsetMax else {
            throw DecodingError("range \(offset) + \(length)", at: 8)
        }
        return .allocate(offset: offset, length: length, mode: mode)
    }
}

extension FuseAttributeChange {
    /// struct fuse_setattr_in.
    init(_ reader: inout ByteReader) throws(DecodingError) {
        mask = FuseSetAttributeMask(rawValue: try reader.get(UInt32.self, "mask"))
        try reader.skip(12)
        size = try reader.get(UInt64.self, "size")
        try reader.skip(8)
        let atimeSeconds = try reader.get(Int64.self, "atime")
        let mtimeSeconds = try reader.get(Int64.self, "mtime")
        try reader.skip(8)
        let atimeRest = try reader.get(UInt32.self, "atime")
        let mtimeRest = try reader.get(UInt32.self, "mtime")
        try reader.skip(4)
        mode = try reader.get(UInt32.self, "mode")
        try reader.skip(4)
        uid = try reader.get(UInt32.self, "uid")
        gid = try reader.get(UInt32.self, "gid")
        atime = FuseAttributeChange.nanoseconds(atimeSeconds, atimeRest)
        mtime = FuseAttributeChange.nanoseconds(mtimeSeconds, mtimeRest)
        guard !mask.contains(.size) || size <= FuseLimits.offsetMax else { throw DecodingError("size \(size)", at: 16) }
    }

    /// Clamped to what 64 bits of nanoseconds hold (the years 1677 to 2262).
    private static func nanoseconds(_ seconds: Int64, _ rest: UInt32) -> Int64 {
        let (product, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
        guard !overflow else { return seconds < 0 ? .min : .max }
        let (sum, carry) = product.addingReportingOverflow(Int64(rest))
        return carry ? .max : sum
    }
}

extension ByteReader {
    /// Bytes up to a NUL, which is taken too.
    fileprivate mutating func getTerminated(limit: Int, _ what: String) throws(DecodingError) -> [UInt8] {
        let start = offset
        var bytes: [UInt8] = []
        while true {
            let byte = try get(UInt8.self, what)
            if byte == 0 { break }
            guard bytes.count < limit else { throw DecodingError("\(what) of more than \(limit) bytes", at: start) }
            bytes.append(byte)
        }
        guard !bytes.isEmpty else { throw DecodingError("empty \(what)", at: start) }
        return bytes
    }

    /// A name that is looked up. `.` and `..` are resolved by the kernel and never sent without EXPORT_SUPPORT.
    fileprivate mutating func getLookupName() throws(DecodingError) -> FileName { try getNewName() }

    /// A directory entry's name. The kernel allows up to 1024 bytes here; longer than 255 is answered ENAMETOOLONG by
    /// whoever uses it, so it passes.
    fileprivate mutating func getNewName() throws(DecodingError) -> FileName {
        let start = offset
        let name = try getTerminated(limit: 1024, "name")
        let dot = UInt8(ascii: ".")
        guard !name.contains(UInt8(ascii: "/")), name != [dot], name != [dot, dot] else {
            throw DecodingError("invalid name", at: start)
        }
        return name
    }
}
