internal import Format
internal import Tree

/// What is known in memory of one file: the truth while records of it have not reached the plain file.
///
/// The plain file lags behind the log. If a size came from it, the kernel would shrink an append that was acknowledged
/// already and let the next one overwrite it. So while a file has unapplied records its attributes come from here.
final class Inode {
    /// Ranges remembered one by one; more are folded into one that covers all.
    static let pendingRangesMax = 64

    let file: FileID
    var mode: UInt32
    var links: UInt32
    var uid: UInt32
    var gid: UInt32
    var rdev: UInt32
    var size: UInt64
    /// In units of 512 bytes: as of the last look at the plain file, and what was written since, roughly.
    var blocks: UInt64
    var atime: Int64
    var mtime: Int64
    var ctime: Int64
    var blockSize: UInt32

    /// The last record that touches the file; 0 when none since it was loaded.
    var lastSeq = Seq.zero
    /// The last record that touches its extended attributes.
    var lastXattrSeq = Seq.zero
    /// Unapplied changes of content, ascending seq.
    private(set) var pending: [PendingRange] = []
    /// Whether it stands in the table's queue of files with unapplied records.
    var isQueued = false
    /// Blocks and ctime have changed since the last look; look again once all is applied.
    var isStale = false
    /// Grows with every change: an answer of the plain file that was asked for earlier is dropped.
    var changes: UInt64 = 0

    /// Open handles: through the page cache, and past it.
    var cachedHandles = 0
    var directHandles = 0
    /// Of those, open for reading and writing: they may be mapped, and stored to without our knowing.
    var mappableHandles = 0
    /// Its last name is gone from the log.
    var isRemoved = false
    /// ... and from the plain files of this node, committed: from here on its changes stay local.
    var isLocal = false
    /// The plain tree keeps it for open handles.
    var isHeld = false
    /// It has no handle and waits for one (`LateOpens`).
    var isKept = false
    /// The kernel knows it no more; noted of removed ones only.
    var isForgotten = false
    /// Everything below is allocated, so overwriting there needs no further space.
    var denseBytes: UInt64 = 0
    /// It may have file capabilities (`security.capability`), which a write removes.
    var mayHaveCapability = false
    /// Operations under way that rely on this very object.
    var pins = 0
    /// The record that removes the last name.
    var removalSeq = Seq.zero
    /// Used since the table last looked for something to drop.
    var isRecent = true

    struct PendingRange {
        var seq: Seq
        var start: UInt64
        var end: UInt64
    }

    /// - Parameter dense: what is known to be allocated from the start on.
    init(_ status: FileStatus, dense: UInt64) {
        file = status.file
        mode = status.attributes.mode
        links = status.links
        uid = status.attributes.uid
        gid = status.attributes.gid
        rdev = status.attributes.rdev
        size = status.attributes.size
        blocks = status.blocks
        atime = status.attributes.atime
        mtime = status.attributes.mtime
        ctime = status.ctime
        blockSize = status.blockSize
        denseBytes = dense
    }

    /// A file that was just logged and is not among the plain files yet.
    init(new file: FileID, _ attributes: FileAttributes, links: UInt32) {
        self.file = file
        mode = attributes.mode
        self.links = links
        uid = attributes.uid
        gid = attributes.gid
        rdev = attributes.rdev
        size = attributes.size
        blocks = 0
        atime = attributes.atime
        mtime = attributes.mtime
        ctime = attributes.mtime
        blockSize = 4096
    }

    var isDirectory: Bool { mode & LinuxFlags.typeMask == LinuxFlags.directory }
    var isRegular: Bool { mode & LinuxFlags.typeMask == LinuxFlags.regular }
    var handles: Int { cachedHandles + directHandles }
    /// As records carry them.
    var attributes: FileAttributes {
        FileAttributes(mode: mode, uid: uid, gid: gid, rdev: rdev, size: size, atime: atime, mtime: mtime)
    }

    /// Takes over what the plain file says. Only when nothing is unapplied.
    ///
    /// Its ctime is the time of applying. What was seen at the change itself stays: a file whose ctime moves by itself is
    /// one that "changed as we read it" for tar, and is hashed again by git.
    func refresh(_ status: FileStatus, dense: UInt64) {
        mode = status.attributes.mode
        links = status.links
        uid = status.attributes.uid
        gid = status.attributes.gid
        size = status.attributes.size
        blocks = status.blocks
        atime = status.attributes.atime
        mtime = status.attributes.mtime
        denseBytes = min(size, max(denseBytes, dense))
        isStale = false
    }

    /// So many bytes were written or allocated that no look has seen; `size` counts them already. A file that has content
    /// never shows no blocks, for `tar -S` does not read such a one and archives zeros.
    func addBlocks(_ length: UInt64) {
        let sum = blocks.addingReportingOverflow(length / 512 + (length % 512 > 0 ? 1 : 0))
        blocks = max(blocks, min(size / 512 + (size % 512 > 0 ? 1 : 0), sum.overflow ? .max : sum.partialValue))
    }

    /// Bytes of [offset, end) that may not be allocated yet.
    func growth(_ offset: UInt64, _ end: UInt64) -> UInt64 {
        // Behind a gap nothing is known.
        offset > denseBytes ? end - offset : end - min(end, denseBytes)
    }

    /// The content of [start, end) changes with `seq`.
    func addPending(_ seq: Seq, _ start: UInt64, _ end: UInt64) {
        if let last = pending.last, start <= last.end, end >= last.start {
            // Appends and rewrites of one place: one range. The later seq waits a little longer than needed, no more.
            pending[pending.count - 1] = PendingRange(
                seq: seq, start: min(start, last.start), end: max(end, last.end))
            return
        }
        if pending.count == Inode.pendingRangesMax {
            let low = pending.reduce(start) { min($0, $1.start) }
            let high = pending.reduce(end) { max($0, $1.end) }
            pending.removeAll(keepingCapacity: true)
            pending.append(PendingRange(seq: seq, start: low, end: high))
            return
        }
        pending.append(PendingRange(seq: seq, start: start, end: end))
    }

    /// The last unapplied record that changes [start, end); nil when the plain file is right there.
    func pendingSeq(_ start: UInt64, _ end: UInt64, applied: Seq) -> Seq? {
        guard !pending.isEmpty else { return nil }
        for range in pending.reversed() where range.seq > applied && range.start < end && start < range.end {
            return range.seq
        }
        return nil
    }

    func dropApplied(_ applied: Seq) {
        guard let first = pending.first, first.seq <= applied else { return }
        pending.removeAll { $0.seq <= applied }
    }
}

/// The inodes in memory: all with open handles, locks or unapplied records, and as many others as fit.
struct InodeTable {
    /// Inodes kept that nobody needs, about 400 bytes each.
    static let idleMax = 32_768
    /// Inodes looked at when something was applied; the rest at the next time. A clean inode may thus count as queued
    /// a little longer, which only keeps it in memory.
    static let appliedStep = 256

    private var inodes: [FileID: Inode] = [:]
    /// Candidates for dropping, oldest first; each file at most once.
    private var queue: [FileID] = []
    private var queueHead = 0
    /// Files with unapplied records, roughly in the order of those; each at most once.
    private var unapplied: [Inode] = []
    private var unappliedHead = 0
    /// Every record up to here is in the plain files.
    private(set) var applied = Seq.zero
    /// The newest record of any inode that was dropped: an answer of the plain files asked for before it may be old.
    private(set) var droppedSeq = Seq.zero

    var count: Int { inodes.count }
    /// Entries of the queue, for tests.
    var queued: Int { queue.count }
    var all: Dictionary<FileID, Inode>.Values { inodes.values }
    /// Whether records are known that are not applied.
    var hasUnapplied: Bool { unappliedHead < unapplied.count }

    subscript(_ file: FileID) -> Inode? {
        guard let inode = inodes[file] else { return nil }
        inode.isRecent = true
        return inode
    }

    func isDirty(_ inode: Inode) -> Bool { inode.lastSeq > applied }

    mutating func insert(_ inode: Inode) {
        precondition(inodes.updateValue(inode, forKey: inode.file) == nil, "inode \(inode.file) is there twice")
        queue.append(inode.file)
        if inodes.count > InodeTable.idleMax { dropSome() }
        if queue.count > 2 * inodes.count + InodeTable.deadMin { compactQueue() }
    }

    /// Files that were removed leave their entries behind: these go when they outnumber the others.
    private mutating func compactQueue() {
        queue = queue[queueHead...].filter { inodes[$0] != nil }
        queueHead = 0
    }

    /// Dead entries of a queue that are left alone.
    private static let deadMin = 4096

    /// The kernel knows a file no more: of a removed one nobody can ask for attributes.
    mutating func forgotten(_ file: FileID) {
        guard let inode = inodes[file], inode.isRemoved else { return }
        inode.isForgotten = true
    }

    mutating func remove(_ inode: Inode) {
        inodes[inode.file] = nil
        droppedSeq = max(droppedSeq, inode.lastSeq)
    }

    /// Notes that `seq` touches `inode`.
    mutating func touch(_ inode: Inode, _ seq: Seq) {
        inode.lastSeq = seq
        inode.changes &+= 1
        inode.isStale = true
        guard seq > applied else { return inode.dropApplied(applied) }
        guard !inode.isQueued else { return }
        inode.isQueued = true
        unapplied.append(inode)
    }

    /// Every record up to `seq` is in the plain files. Looks at some of the inodes that wait for that.
    mutating func advance(_ seq: Seq) {
        guard seq > applied else { return }
        applied = seq
        collect(InodeTable.appliedStep)
    }

    /// Looks at all inodes that wait for something to be applied, after the newest record has been.
    mutating func collectAll() { collect(unapplied.count - unappliedHead) }

    private mutating func collect(_ limit: Int) {
        var rest = min(unapplied.count - unappliedHead, limit)
        while rest > 0 {
            let inode = unapplied[unappliedHead]
            inode.dropApplied(applied)
            if inode.lastSeq > applied {
                // Touched again since: to the end of the queue.
                unapplied.append(inode)
            } else {
                inode.isQueued = false
            }
            unappliedHead += 1
            rest -= 1
        }
        // Emptied when its dead half has grown: constant work for each inode.
        if unappliedHead == unapplied.count || unappliedHead > 1024 && unappliedHead > unapplied.count / 2 {
            unapplied.removeFirst(unappliedHead)
            unappliedHead = 0
        }
    }

    /// Second chance: what was used since the last pass stays for another one.
    private mutating func dropSome() {
        var looked = 0
        while inodes.count > InodeTable.idleMax, looked < 64, queueHead < queue.count {
            looked += 1
            let file = queue[queueHead]
            queueHead += 1
            guard let inode = inodes[file] else { continue }
            if inode.isRecent || inode.handles > 0 || inode.pins > 0 || inode.isQueued || inode.isHeld || isDirty(inode)
            {
                inode.isRecent = false
                queue.append(file)
            } else {
                remove(inode)
            }
        }
        if queueHead > InodeTable.deadMin, queueHead > queue.count / 2 {
            queue.removeFirst(queueHead)
            queueHead = 0
        }
    }
}
