internal import CLinux
public import Format
internal import Glibc
internal import Ring

/// What the plain files say of themselves: which journal they belong to, and how far they are on their disk.
///
/// Journal and plain files may lie on different disks, and each of them can be replaced, cloned or put back alone. The
/// marker lies with the files, so a start can tell whether the two still belong together (`CopyCheck`).
///
/// **The order at a checkpoint**: the files are synced, then the marker is on their disk, then the journal's checkpoint
/// moves. So the marker is never behind the checkpoint, whatever the moment of a crash; between the two it is ahead, which
/// means nothing. A journal that begins anew gets its checkpoint without the files: the marker then names both points, the
/// old and the new one, before; the next checkpoint names one again.
///
/// `marker` in our own directory at the root of the plain files: two slots of 512 bytes, 4096 bytes apart, written in
/// turn, so that a torn write leaves the earlier one. A slot:
///
/// ```
/// byte  0  magic "LSMARK1\0"                                   u64
///       8  version (1)                                         u16
///      10  points, 1 or 2                                      u8, 5 reserved
///      16  generation: the higher one counts                   u64
///      24  instance of the journal                             u64
///      32  this node's votes: birth                            u64
///      40  and how many processes had run on them              u64
///      48  2 points of {seq u64, chain u64, incarnation u64}
///      96  reserved
///     508  CRC-32C of bytes 0 to 507                           u32
/// ```
public struct TreeMarker: Sendable, Hashable {
    /// "LSMARK1" read as a little-endian number.
    static let magic: UInt64 = 0x0031_4B52_414D_534C
    /// 1: the first.
    static let version: UInt16 = 1
    public static let slotBytes = 512
    static let slotDistance = 4096
    static let pointLimit = 2

    /// Everything up to `seq` is in the files, and on their disk.
    public struct Point: Sendable, Hashable {
        public var seq: Seq
        /// Of the journal there.
        public var chain: UInt64
        /// Of the journal when this was written; 0: of one that was about to begin anew.
        public var incarnation: UInt64
        public init(seq: Seq, chain: UInt64, incarnation: UInt64) {
            self.seq = seq
            self.chain = chain
            self.incarnation = incarnation
        }
    }

    /// Drawn when the journal was made.
    public var journal: UInt64
    /// The newest last. Two: the journal was about to begin anew, and may or may not have.
    public var points: [Point]
    /// What the votes of this node were known to be on their disk.
    public var voteBirth: UInt64
    public var voteStarts: UInt64

    public init(journal: UInt64, points: [Point], voteBirth: UInt64 = 0, voteStarts: UInt64 = 0) {
        precondition(!points.isEmpty && points.count <= TreeMarker.pointLimit, "a marker has one point or two")
        self.journal = journal
        self.points = points
        self.voteBirth = voteBirth
        self.voteStarts = voteStarts
    }

    public func encoded(generation: UInt64) -> [UInt8] {
        var writer = ByteWriter(reserving: TreeMarker.slotBytes)
        writer.put(TreeMarker.magic)
        writer.put(TreeMarker.version)
        writer.put(UInt8(points.count))
        writer.pad(to: 8)
        for value in [generation, journal, voteBirth, voteStarts] { writer.put(value) }
        for point in points {
            writer.put(point.seq)
            writer.put(point.chain)
            writer.put(point.incarnation)
        }
        writer.put(raw: repeatElement(0, count: TreeMarker.slotBytes - 4 - writer.count))
        writer.put(crc32c(writer.bytes))
        return writer.bytes
    }

    public static func decode(_ bytes: [UInt8]) throws(DecodingError) -> (marker: TreeMarker, generation: UInt64) {
        guard bytes.count == slotBytes else { throw DecodingError("marker of \(bytes.count) bytes", at: 0) }
        var reader = ByteReader(bytes)
        var tail = ByteReader(bytes[(slotBytes - 4)...])
        guard try reader.get(UInt64.self, "magic") == magic else { throw DecodingError("no marker", at: 0) }
        guard try tail.get(UInt32.self, "checksum") == crc32c(bytes[..<(slotBytes - 4)]) else {
            throw DecodingError("checksum of the marker", at: slotBytes - 4)
        }
        let found = try reader.get(UInt16.self, "version")
        guard found == version else { throw DecodingError("marker of version \(found)", at: 8) }
        let count = Int(try reader.get(UInt8.self, "points"))
        guard count >= 1, count <= pointLimit else { throw DecodingError("marker of \(count) points", at: 10) }
        try reader.skip(5)
        let generation = try reader.get(UInt64.self, "generation")
        let journal = try reader.get(UInt64.self, "journal")
        let birth = try reader.get(UInt64.self, "birth")
        let starts = try reader.get(UInt64.self, "starts")
        var points: [Point] = []
        for _ in 0..<count {
            points.append(
                Point(
                    seq: try reader.getSeq(), chain: try reader.get(UInt64.self, "chain"),
                    incarnation: try reader.get(UInt64.self, "incarnation")))
        }
        return (TreeMarker(journal: journal, points: points, voteBirth: birth, voteStarts: starts), generation)
    }
}

extension PlainTree {
    static let markerName: FileName = Array("marker".utf8)

    /// The newest whole marker; nil: none, or none that can be read.
    public func marker() throws(TreeError) -> TreeMarker? {
        try PlainTree.markerSlots(in: root.rawValue).newest?.marker
    }

    private typealias Slots = (newest: (marker: TreeMarker, generation: UInt64)?, isThere: Bool)

    private static func markerSlots(in root: Int32) throws(TreeError) -> Slots {
        let own = try PlainTree.directory(PlainTree.ownName, in: root, creating: false)
        guard let file = try System.openIfPresent(own.rawValue, PlainTree.markerName, O_RDONLY) else {
            return (nil, false)
        }
        // Made with the directory, so that it is what the table of files was made with: see `PlainTree.identity`.
        guard try System.stat(file.rawValue).size > 0 else { return (nil, false) }
        var newest: (marker: TreeMarker, generation: UInt64)?
        for slot in 0..<2 {
            var bytes = [UInt8](repeating: 0, count: TreeMarker.slotBytes)
            let count = unsafe bytes.withUnsafeMutableBytes { space in
                unsafe clinux_pread(
                    file.rawValue, space.baseAddress!, space.count, UInt64(slot * TreeMarker.slotDistance))
            }
            // A page that cannot be read is as good as a torn one.
            guard count == TreeMarker.slotBytes, let found = try? TreeMarker.decode(bytes) else { continue }
            if found.generation >= newest?.generation ?? 0 { newest = found }
        }
        return (newest, true)
    }

    /// Puts `marker` on the disk of the plain files. Durable when it returns.
    ///
    /// One writer at a time.
    public func setMarker(_ marker: TreeMarker) throws(TreeError) {
        try PlainTree.setMarker(marker, in: root.rawValue, backing: backing)
    }

    /// The same for a directory that is prepared and in nobody's use.
    public static func setMarker(_ marker: TreeMarker, backing: String) throws(TreeError) {
        let root = try System.open(backing, O_RDONLY | CLINUX_O_DIRECTORY)
        try setMarker(marker, in: root.rawValue, backing: backing)
    }

    private static func setMarker(_ marker: TreeMarker, in root: Int32, backing: String) throws(TreeError) {
        let before = try markerSlots(in: root)
        let generation = (before.newest?.generation ?? 0) + 1
        let own = try PlainTree.directory(PlainTree.ownName, in: root, creating: false)
        let file = try System.open(own.rawValue, PlainTree.markerName, O_RDWR | O_CREAT)
        var bytes = marker.encoded(generation: generation)
        var place = UInt64(generation % 2) * UInt64(TreeMarker.slotDistance)
        if !before.isThere {
            // All of it at once, so that later writes need no space.
            place = 0
            bytes += [UInt8](repeating: 0, count: TreeMarker.slotDistance - bytes.count)
            bytes += bytes
        }
        let written: Result<Void, TreeError> = unsafe bytes.withUnsafeBytes { raw in
            do throws(TreeError) { return .success(try unsafe System.write(file.rawValue, raw, at: place)) } catch {
                return .failure(error)
            }
        }
        try written.get()
        try System.check(clinux_fdatasync(file.rawValue), "flush the marker of", backing)
        if !before.isThere { try System.check(clinux_fsync(own.rawValue), "flush", shown(PlainTree.ownName)) }
    }
}
