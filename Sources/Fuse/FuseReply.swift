internal import Format
internal import Tree

/// Attributes as FUSE has them (struct fuse_attr).
struct FuseAttributes: Sendable, Hashable {
    var file: FileID
    var size: UInt64
    var blocks: UInt64
    var atime: Int64
    var mtime: Int64
    var ctime: Int64
    var mode: UInt32
    var links: UInt32
    var uid: UInt32
    var gid: UInt32
    var rdev: UInt32
    var blockSize: UInt32

    init(_ inode: Inode) {
        file = inode.file
        size = inode.size
        blocks = inode.blocks
        atime = inode.atime
        mtime = inode.mtime
        ctime = inode.ctime
        mode = inode.mode
        links = inode.links
        uid = inode.uid
        gid = inode.gid
        rdev = inode.rdev
        blockSize = inode.blockSize
    }

    init(_ status: FileStatus) {
        file = status.file
        size = status.attributes.size
        blocks = status.blocks
        atime = status.attributes.atime
        mtime = status.attributes.mtime
        ctime = status.ctime
        mode = status.attributes.mode
        links = status.links
        uid = status.attributes.uid
        gid = status.attributes.gid
        rdev = status.attributes.rdev
        blockSize = status.blockSize
    }

    func put(_ out: inout ByteWriter) {
        let (atimeSeconds, atimeRest) = FuseAttributes.split(atime)
        let (mtimeSeconds, mtimeRest) = FuseAttributes.split(mtime)
        let (ctimeSeconds, ctimeRest) = FuseAttributes.split(ctime)
        out.put(file)
        out.put(size)
        out.put(blocks)
        out.put(atimeSeconds)
        out.put(mtimeSeconds)
        out.put(ctimeSeconds)
        out.put(atimeRest)
        out.put(mtimeRest)
        out.put(ctimeRest)
        out.put(mode)
        out.put(links)
        out.put(uid)
        out.put(gid)
        out.put(rdev)
        out.put(blockSize)
        out.put(UInt32(0))
    }

    /// Seconds, and nanoseconds that are never negative.
    private static func split(_ time: Int64) -> (Int64, UInt32) {
        let rest = time % 1_000_000_000
        let seconds = time / 1_000_000_000
        return rest < 0 ? (seconds - 1, UInt32(rest + 1_000_000_000)) : (seconds, UInt32(rest))
    }
}

/// The bodies of answers.
enum FuseReply {
    static let entryBytes = 128

    static func attributes(_ attributes: FuseAttributes, seconds: UInt64) -> [UInt8] {
        var out = ByteWriter(reserving: 104)
        out.put(seconds)
        out.put(UInt64(0))
        attributes.put(&out)
        return out.bytes
    }

    static func entry(_ attributes: FuseAttributes, entrySeconds: UInt64, seconds: UInt64) -> [UInt8] {
        var out = ByteWriter(reserving: entryBytes)
        putEntry(&out, attributes, entrySeconds: entrySeconds, seconds: seconds)
        return out.bytes
    }

    /// There is no such name, and there will be none for so long.
    static func noEntry(seconds: UInt64) -> [UInt8] {
        var out = ByteWriter(reserving: entryBytes)
        out.put(UInt64(0))
        out.put(UInt64(0))
        out.put(seconds)
        while out.count < entryBytes { out.put(UInt64(0)) }
        return out.bytes
    }

    static func created(
        _ attributes: FuseAttributes, entrySeconds: UInt64, seconds: UInt64, handle: UInt64, flags: UInt32
    ) -> [UInt8] {
        var out = ByteWriter(reserving: entryBytes + 16)
        putEntry(&out, attributes, entrySeconds: entrySeconds, seconds: seconds)
        out.put(handle)
        out.put(flags)
        out.put(UInt32(0))
        return out.bytes
    }

    static func opened(handle: UInt64, flags: UInt32) -> [UInt8] {
        var out = ByteWriter(reserving: 16)
        out.put(handle)
        out.put(flags)
        out.put(UInt32(0))
        return out.bytes
    }

    static func putEntry(
        _ out: inout ByteWriter, _ attributes: FuseAttributes, entrySeconds: UInt64, seconds: UInt64
    ) {
        out.put(attributes.file)
        // The generation: a file number is never used again.
        out.put(UInt64(0))
        out.put(entrySeconds)
        out.put(seconds)
        out.put(UInt64(0))
        attributes.put(&out)
    }

    /// In READDIRPLUS: this name comes without attributes.
    static func putNoEntry(_ out: inout ByteWriter) {
        for _ in 0..<(entryBytes / 8) { out.put(UInt64(0)) }
    }

    static func directoryEntryBytes(_ nameBytes: Int, plus: Bool) -> Int {
        (plus ? entryBytes : 0) + (24 + nameBytes + 7) / 8 * 8
    }

    static func putDirectoryEntry(_ out: inout ByteWriter, _ entry: DirectoryEntry) {
        out.put(entry.file)
        out.put(entry.cursor)
        out.put(UInt32(entry.name.count))
        out.put(entry.type >> 12)
        out.put(raw: entry.name)
        out.pad(to: 8)
    }

    static func statistics(_ statistics: FileSystemStatistics) -> [UInt8] {
        var out = ByteWriter(reserving: 80)
        out.put(statistics.blocks)
        out.put(statistics.blocksFree)
        out.put(statistics.blocksAvailable)
        out.put(statistics.files)
        out.put(statistics.filesFree)
        out.put(UInt32(clamping: statistics.blockSize))
        out.put(UInt32(min(statistics.nameLength, UInt64(RecordLimits.nameBytes))))
        out.put(UInt32(clamping: statistics.blockSize))
        while out.count < 80 { out.put(UInt32(0)) }
        return out.bytes
    }

    /// The length of an attribute's value, or of the list of names.
    static func size(_ bytes: Int) -> [UInt8] {
        var out = ByteWriter(reserving: 8)
        out.put(UInt32(bytes))
        out.put(UInt32(0))
        return out.bytes
    }

    static func offset(_ offset: UInt64) -> [UInt8] {
        var out = ByteWriter(reserving: 8)
        out.put(offset)
        return out.bytes
    }
}
