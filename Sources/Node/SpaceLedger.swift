import Format

/// What may still be put into the plain files of both nodes. Pure.
///
/// How much is free on a disk is looked at twice a second, and shows only what was in the files by then. So whatever the
/// application was granted is added up here, with its place in the mirror's order:
///
/// ```
///  usable room of a node = free when it was looked at
///                        - granted behind the last record that was in its files then
///                        - granted to files without a name (this node's alone) and not ended then
///                        - reserve
/// ```
///
/// A record that gets into the files while they are looked at may count twice, never not at all. A node that is being
/// brought back is reckoned from the moment on at which it follows: what it lacks from before is not known here, and may
/// be there already.
struct SpaceLedger {
    /// Growth of the plain files in the worst case.
    struct Amount: Equatable {
        var bytes: Int64 = 0
        var files: Int64 = 0
    }

    private struct Node {
        var room: DiskRoom
        /// Granted, of everything that was in the files when they were looked at.
        var counted: Amount
        /// The same of files without a name; of this node only.
        var countedLocal: Int64 = 0
    }

    private struct Entry {
        var last: Seq
        /// Granted for the records up to `last`, since the beginning.
        var granted: Amount
    }

    /// Grants are added up to entries of about this size: as exact as anybody needs.
    static let entryBytes: Int64 = 1 << 20
    static let entryFiles: Int64 = 64
    static let entryLimit = 1024

    private var own: Node?
    private var peer: Node?
    private var granted = Amount()
    private var entries: [Entry] = []
    /// Entries are so many times as large as said: very much is granted that is in nobody's files yet.
    private var scale: Int64 = 1
    /// Granted for the records before the first entry.
    private var forgotten = Amount()

    /// Bytes granted to files that are open here and have no name, since the beginning, and how many of them are in the
    /// files or will never be.
    private var localGranted: Int64 = 0
    var localEnded: Int64 = 0

    /// As it was looked at last.
    var peerRoom: DiskRoom? { peer?.room }

    /// A life as primary begins: nothing has been granted in it.
    mutating func restart() {
        granted = Amount()
        forgotten = Amount()
        entries = []
        scale = 1
        own?.counted = Amount()
        peer?.counted = Amount()
    }

    /// - Parameter localEnded: as it was when the question was asked; nil when this is no new look.
    mutating func setOwn(_ room: DiskRoom, localEnded: Int64? = nil) {
        let local = localEnded ?? own?.countedLocal ?? 0
        if room == own?.room, local == own?.countedLocal { return }
        own = Node(room: room, counted: granted(through: room.seq), countedLocal: local)
        forget()
    }

    /// - Parameter room: nil when nobody follows: then this node's room alone counts.
    mutating func setPeer(_ room: DiskRoom?) {
        if room == peer?.room { return }
        peer = room.map { Node(room: $0, counted: granted(through: $0.seq)) }
        forget()
    }

    /// Whether both nodes have room for `growth`; if so it is theirs no more.
    ///
    /// - Parameters:
    ///   - seq: of the record that will need it.
    ///   - reserve: bytes that stay free.
    mutating func grant(_ growth: Amount, for seq: Seq, reserve: Int64) -> Bool {
        guard let own, hasRoom(own, growth, reserve, local: localGranted - own.countedLocal),
            peer.map({ hasRoom($0, growth, reserve) }) ?? true
        else { return false }
        guard growth != Amount() else { return true }
        granted.bytes += growth.bytes
        granted.files += growth.files
        add(seq)
        return true
    }

    /// Whether this node has room for more in its files without a name; if so it is theirs until they have ended.
    mutating func grantLocal(bytes: Int64, reserve: Int64) -> Bool {
        guard let own, hasRoom(own, Amount(bytes: bytes), reserve, local: localGranted - own.countedLocal) else {
            return false
        }
        localGranted += bytes
        return true
    }

    private func hasRoom(_ node: Node, _ growth: Amount, _ reserve: Int64, local: Int64 = 0) -> Bool {
        // What needs no space of its own asks only whether there is any: grants have left the reserve alone.
        let isGrowing = growth != Amount()
        let bytes = Int64(clamping: node.room.bytes) - (isGrowing ? granted.bytes - node.counted.bytes + local : 0)
        let files = Int64(clamping: node.room.files) - (granted.files - node.counted.files)
        return bytes - reserve >= growth.bytes && (growth.files == 0 || files >= growth.files)
    }

    private mutating func add(_ seq: Seq) {
        let before = entries.count > 1 ? entries[entries.count - 2].granted : forgotten
        let isSmall =
            granted.bytes - before.bytes <= SpaceLedger.entryBytes * scale
            && granted.files - before.files <= SpaceLedger.entryFiles * scale
        if isSmall, !entries.isEmpty {
            entries[entries.count - 1] = Entry(last: seq, granted: granted)
        } else {
            entries.append(Entry(last: seq, granted: granted))
        }
        guard entries.count > SpaceLedger.entryLimit else { return }
        // Of two entries the later one stays: what both say counts until its record is in the files.
        entries = stride(from: 1 - entries.count % 2, to: entries.count, by: 2).map { entries[$0] }
        scale *= 2
    }

    private func granted(through seq: Seq) -> Amount { entries.last { $0.last <= seq }?.granted ?? forgotten }

    /// What is in the files of both nodes is asked for no more.
    private mutating func forget() {
        guard let own else { return }
        let seq = min(own.room.seq, peer?.room.seq ?? own.room.seq)
        let count = entries.prefix { $0.last <= seq }.count
        guard count > 0 else { return }
        forgotten = entries[count - 1].granted
        entries.removeFirst(count)
        if entries.count < SpaceLedger.entryLimit / 4 { scale = 1 }
    }
}

extension DiskRoom {
    /// Files that stay free on each node, for what no grant has foreseen; of a small file system a part.
    static let reservedFiles: UInt64 = 1000
    static let reservedFilesFraction: UInt64 = 8

    /// - Parameters:
    ///   - files: that the file system can hold, 0 when it knows no such limit (btrfs).
    ///   - seq: everything up to it was in the files before the numbers were asked for.
    init(bytes: UInt64, files: UInt64, filesFree: UInt64, seq: Seq) {
        let reserve = min(DiskRoom.reservedFiles, files / DiskRoom.reservedFilesFraction)
        self.init(
            bytes: bytes, files: files == 0 ? .max : filesFree - min(filesFree, reserve), seq: seq)
    }
}
