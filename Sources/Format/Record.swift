/// One change of the mirror: data or metadata, as a result and not as a request.
///
/// Records hold absolute bytes, offsets and final values (never "append", "now" or "create if missing"), so that
/// applying one twice gives what applying it once gives. The number of a record is its place: the first seq of its
/// batch plus its index.
///
/// ```
/// byte  0  length of this record in the batch's meta area, padding included, multiple of 8   u32
///       4  kind                                                                              u8
///       5  payload placement: 0 none, 1 inline, 2 pages                                      u8
///       6  flags (image = 1)                                                                 u16
///       8  time, nanoseconds since 1970                                                      i64
///      16  payload: first 4 KiB page in the batch's payload area (placement 2), else 0       u32
///      20  payload: length in bytes                                                          u32
///      24  payload: CRC-32C                                                                  u32
///      28  reserved, 0                                                                       u32
///      32  fields by kind, then the inline payload (placement 1), zeros up to a multiple of 8
/// ```
public struct Record: Sendable, Hashable {
    /// The one timestamp of the change, nanoseconds since 1970: applied to the file and the directories it touches.
    public var time: Int64
    public var body: RecordBody
    public var payload: PayloadReference
    /// Part of a resynchronisation: a copy of what the primary already has. The primary itself never applies it.
    public var isImage: Bool

    public init(time: Int64, body: RecordBody, payload: PayloadReference = .none, isImage: Bool = false) {
        self.time = time
        self.body = body
        self.payload = payload
        self.isImage = isImage
    }
}

/// Where the bytes of a write are.
public enum PayloadReference: Sendable, Hashable {
    case none
    /// In the meta area itself: small payloads do not cost a page.
    case inline(offset: Int, length: Int, checksum: UInt32)
    /// In the payload area, from the start of a 4 KiB page.
    case pages(first: Int, length: Int, checksum: UInt32)

    /// Bytes.
    public var length: Int {
        switch self {
        case .none: 0
        case .inline(_, let length, _), .pages(_, let length, _): length
        }
    }
}

/// Attributes of a file as records carry them. Times are nanoseconds since 1970.
public struct FileAttributes: Sendable, Hashable {
    /// Type and permission bits as in `st_mode`.
    public var mode: UInt32
    public var uid: UInt32
    public var gid: UInt32
    public var rdev: UInt32
    public var size: UInt64
    public var atime: Int64
    public var mtime: Int64

    public init(
        mode: UInt32, uid: UInt32, gid: UInt32, rdev: UInt32 = 0, size: UInt64 = 0, atime: Int64 = 0, mtime: Int64 = 0
    ) {
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.rdev = rdev
        self.size = size
        self.atime = atime
        self.mtime = mtime
    }
}

/// Which attributes a `setAttributes` record changes.
public struct AttributeMask: OptionSet, Sendable, Hashable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let mode = AttributeMask(rawValue: 1)
    public static let uid = AttributeMask(rawValue: 2)
    public static let gid = AttributeMask(rawValue: 4)
    public static let size = AttributeMask(rawValue: 8)
    public static let atime = AttributeMask(rawValue: 16)
    public static let mtime = AttributeMask(rawValue: 32)
    public static let all: AttributeMask = [.mode, .uid, .gid, .size, .atime, .mtime]
}

/// A name in a directory: 1 to 255 bytes, no `/`, no NUL, not `.` or `..`.
public typealias FileName = [UInt8]

/// An extended attribute with its value.
public struct ExtendedAttribute: Sendable, Hashable {
    public var name: FileName
    public var value: [UInt8]
    public init(name: FileName, value: [UInt8]) {
        self.name = name
        self.value = value
    }
}

/// One entry of a directory's image.
public struct ImageEntry: Sendable, Hashable {
    public var name: FileName
    public var file: FileID
    /// Type bits of `st_mode`.
    public var mode: UInt32
    public init(name: FileName, file: FileID, mode: UInt32) {
        self.name = name
        self.file = file
        self.mode = mode
    }
}

/// What a record does. Raw values of `RecordKind` name them on disk and wire.
public enum RecordBody: Sendable, Hashable {
    /// The first record of an epoch.
    case epochStart(epoch: Epoch, primary: NodeID, inSync: NodeSet)
    /// The payload at `offset` bytes. `time` becomes the file's mtime.
    case write(file: FileID, offset: UInt64)
    /// Final values of the attributes in `mask` (size: truncate or extend).
    case setAttributes(file: FileID, mask: AttributeMask, attributes: FileAttributes)
    case setXattr(file: FileID, name: FileName, value: [UInt8])
    case removeXattr(file: FileID, name: FileName)
    /// `fallocate` with its mode bits (0, keep size, punch hole, zero range).
    case allocate(file: FileID, mode: UInt32, offset: UInt64, length: UInt64)
    /// A new object of any type under its first name. `target`: of a symbolic link.
    case create(
        file: FileID, parent: FileID, name: FileName, attributes: FileAttributes, target: [UInt8],
        xattrs: [ExtendedAttribute])
    /// A further name of a file.
    case link(file: FileID, parent: FileID, name: FileName)
    /// A name goes. `wasLast`: no other name was left, so the file goes with it.
    case remove(file: FileID, parent: FileID, name: FileName, isDirectory: Bool, wasLast: Bool)
    /// `replaced`: what stood at the new name (none if nothing did); with `exchange` it moves to the old name.
    case rename(
        file: FileID, parent: FileID, name: FileName, newParent: FileID, newName: FileName, exchange: Bool,
        replaced: FileID, replacedWasLast: Bool)
    /// A resynchronisation begins; its number tells it from an earlier, broken one.
    case imageStart(number: UInt64)
    /// All or a part of a directory's names: `part` counts from 0, `isLast` marks the end.
    case imageDirectory(
        directory: FileID, attributes: FileAttributes, xattrs: [ExtendedAttribute], part: UInt32, isLast: Bool,
        entries: [ImageEntry])
    /// A file's attributes after its data; a symbolic link's target.
    case imageFile(file: FileID, attributes: FileAttributes, target: [UInt8], xattrs: [ExtendedAttribute])
    /// The resynchronisation is complete at this record.
    case imageEnd(number: UInt64)
    /// A question of a verification: each node answers it for the state at exactly this record. Changes nothing.
    case verify(VerifyCheck)
    /// The payload is what the file holds at `offset` already, in the room that a verification found right. Both nodes
    /// write it; nothing else changes, not even a time.
    case repair(file: FileID, offset: UInt64)
    /// All attributes and exactly these extended attributes, as the room that was found right has them.
    case repairFile(file: FileID, attributes: FileAttributes, xattrs: [ExtendedAttribute])
}

public enum RecordKind: UInt8, Sendable, CaseIterable {
    case epochStart = 1
    case write = 2
    case setAttributes = 3
    case setXattr = 4
    case removeXattr = 5
    case allocate = 6
    case create = 7
    case link = 8
    case remove = 9
    case rename = 10
    case imageStart = 32
    case imageDirectory = 33
    case imageFile = 34
    case imageEnd = 35
    // Since batch version 2.
    case verify = 48
    case repair = 49
    case repairFile = 50

    /// Carries bytes of a file.
    public var hasPayload: Bool { self == .write || self == .repair }
}

/// Limits of a record. The kernel's own (`NAME_MAX`, `PATH_MAX`, `XATTR_SIZE_MAX`) plus ours.
public enum RecordLimits {
    public static let nameBytes = 255
    public static let targetBytes = 4096
    public static let xattrValueBytes = 65536
    public static let xattrCount = 512
    /// Extended attributes of one file together, as `xattrBytes(_:_:)` counts them: an image carries all in one record.
    public static let xattrsBytes = 65536
    /// What an attribute counts: its name, its value, and the head that file systems have.
    public static func xattrBytes(_ name: FileName, _ valueCount: Int) -> Int { 32 + name.count + valueCount }
    /// Entries of one `imageDirectory` record.
    public static let imageEntries = 512
    /// A payload up to this length is stored inline.
    public static let inlinePayloadBytes = 1024
    /// The longest payload: what one FUSE WRITE carries.
    public static let payloadBytes = 1 << 20
    /// Bytes of the fixed part of a record.
    public static let headerBytes = 32
    /// Bytes of a write before its payload: the fixed part, the file and the offset.
    public static let writeHeadBytes = headerBytes + 16
}

extension RecordBody {
    public var kind: RecordKind {
        switch self {
        case .epochStart: .epochStart
        case .write: .write
        case .setAttributes: .setAttributes
        case .setXattr: .setXattr
        case .removeXattr: .removeXattr
        case .allocate: .allocate
        case .create: .create
        case .link: .link
        case .remove: .remove
        case .rename: .rename
        case .imageStart: .imageStart
        case .imageDirectory: .imageDirectory
        case .imageFile: .imageFile
        case .imageEnd: .imageEnd
        case .verify: .verify
        case .repair: .repair
        case .repairFile: .repairFile
        }
    }

    /// The object whose last name goes with this record.
    public var removed: FileID? {
        switch self {
        case .remove(let file, _, _, _, true): file
        case .rename(_, _, _, _, _, false, let replaced, true) where replaced != .none: replaced
        default: nil
        }
    }

    /// Whether it gives a file what a verification found right.
    public var isRepair: Bool { kind == .repair || kind == .repairFile }

    /// Every file and directory the record touches: two records that share none may be applied in either order.
    public var touched: [FileID] {
        switch self {
        case .epochStart, .imageStart, .imageEnd: []
        case .write(let file, _), .setAttributes(let file, _, _), .setXattr(let file, _, _), .removeXattr(let file, _),
            .allocate(let file, _, _, _), .imageFile(let file, _, _, _), .repair(let file, _),
            .repairFile(let file, _, _):
            [file]
        case .verify(let check): [check.file]
        case .create(let file, let parent, _, _, _, _), .link(let file, let parent, _),
            .remove(let file, let parent, _, _, _):
            [file, parent]
        case .rename(let file, let parent, _, let newParent, _, _, let replaced, _):
            (parent == newParent ? [file, parent] : [file, parent, newParent]) + (replaced == .none ? [] : [replaced])
        case .imageDirectory(let directory, _, _, _, _, let entries): [directory] + entries.map(\.file)
        }
    }
}
