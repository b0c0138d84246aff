internal import CLinux
public import Format
internal import Glibc

/// Records that a node saves before it gives them up: after a forced promotion, or another start of serving without
/// everything that was acknowledged, the loser's log holds writes that are part of no history any more.
///
/// ```
///   0         4 KiB
///   +---------+---------+---------+-----
///   | header  | batch   | batch   | ...     batches as they lie in the journal, damaged ones too
///   +---------+---------+---------+-----
/// ```
///
/// ```
/// byte  0  magic "LSRESCU1"                          8
///       8  version (1)                               u16, 2 reserved
///      12  node                                      u8, 3 reserved
///      16  mirror id                                 16
///      32  node instance of the journal              u64
///      40  last common record                        u64
///      48  last record that the log had              u64
///      56  first and last record saved               2 x u64
///      72  batches                                   u32
///      76  stretches that could not be saved         u32
///      80  when it was saved, ns since 1970          i64
///      88  length of the file                        u64
///      96  reserved; 4092 CRC-32C of bytes 0 to 4091
/// ```
///
/// Written under another name, the header last, flushed, then renamed: a file with its proper name is whole. The name
/// follows from what is in it, and nothing is ever overwritten; so a crash anywhere only leads to the same file again.
public struct RescueHeader: Sendable, Hashable {
    public static let byteCount = 4096
    /// "LSRESCU1" read as a little-endian number.
    public static let magic: UInt64 = 0x3155_4353_4552_534C
    public static let version: UInt16 = 1

    public var node: NodeID
    public var mirror: MirrorID
    public var nodeInstance: UInt64
    /// The last record that is part of the other node's history too.
    public var common: Seq
    /// The last record of this node's log, readable or not.
    public var last: Seq
    public var firstSaved: Seq
    public var lastSaved: Seq
    public var batches: UInt32
    /// Stretches above `common` that are not in here: older than the journal, or damaged.
    public var missing: UInt32
    public var savedAt: Int64
    public var byteLength: UInt64

    func encoded() -> [UInt8] {
        var writer = ByteWriter(reserving: RescueHeader.byteCount)
        writer.put(RescueHeader.magic)
        writer.put(RescueHeader.version)
        writer.put(UInt16(0))
        writer.put(node)
        writer.pad(to: 16)
        writer.put(mirror)
        writer.put(nodeInstance)
        for seq in [common, last, firstSaved, lastSaved] { writer.put(seq) }
        writer.put(batches)
        writer.put(missing)
        writer.put(savedAt)
        writer.put(byteLength)
        writer.pad(to: RescueHeader.byteCount - 4)
        writer.put(crc32c(writer.bytes))
        return writer.bytes
    }

    public init(decoding bytes: [UInt8]) throws(DecodingError) {
        guard bytes.count == RescueHeader.byteCount else { throw DecodingError("truncated rescue header", at: 0) }
        var reader = ByteReader(bytes[...])
        guard try reader.get(UInt64.self, "magic") == RescueHeader.magic else {
            throw DecodingError("no rescue journal", at: 0)
        }
        let version = try reader.get(UInt16.self, "version")
        guard version == RescueHeader.version else { throw DecodingError("rescue journal version \(version)", at: 8) }
        var tail = ByteReader(bytes[(RescueHeader.byteCount - 4)...])
        guard try tail.get(UInt32.self, "checksum") == crc32c(bytes[..<(RescueHeader.byteCount - 4)]) else {
            throw DecodingError("checksum of the rescue journal's header", at: RescueHeader.byteCount - 4)
        }
        try reader.skip(2)
        node = try reader.getNodeID()
        try reader.skip(3)
        mirror = try reader.getMirrorID()
        nodeInstance = try reader.get(UInt64.self, "node instance")
        common = try reader.getSeq()
        last = try reader.getSeq()
        firstSaved = try reader.getSeq()
        lastSaved = try reader.getSeq()
        batches = try reader.get(UInt32.self, "batches")
        missing = try reader.get(UInt32.self, "missing")
        savedAt = try reader.get(Int64.self, "time")
        byteLength = try reader.get(UInt64.self, "length")
    }

    init(
        node: NodeID, mirror: MirrorID, nodeInstance: UInt64, common: Seq, last: Seq, firstSaved: Seq, lastSaved: Seq,
        batches: UInt32, missing: UInt32, savedAt: Int64, byteLength: UInt64
    ) {
        self.node = node
        self.mirror = mirror
        self.nodeInstance = nodeInstance
        self.common = common
        self.last = last
        self.firstSaved = firstSaved
        self.lastSaved = lastSaved
        self.batches = batches
        self.missing = missing
        self.savedAt = savedAt
        self.byteLength = byteLength
    }
}

/// A rescue journal, for reading.
public struct RescueFile {
    public let header: RescueHeader
    /// In order.
    public let batches: [BatchHeader]
    /// The file ends, or a batch cannot be found, before everything was read.
    public let isTorn: Bool

    /// nil when the file is no rescue journal at all.
    public init?(image: JournalImage) throws(DecodingError) {
        guard image.byteCount >= RescueHeader.byteCount else { return nil }
        var unreadable: [Int] = []
        let page = image.readPages(at: 0, count: RescueHeader.byteCount, unreadable: &unreadable)
        let bytes = unsafe Array(page.constBytes)
        var reader = ByteReader(bytes[...])
        guard try reader.get(UInt64.self, "magic") == RescueHeader.magic else { return nil }
        header = try RescueHeader(decoding: bytes)
        var found: [BatchHeader] = []
        var offset = RescueHeader.byteCount
        for _ in 0..<header.batches {
            guard let batch = image.header(at: offset) else { break }
            found.append(batch)
            offset += batch.diskLength
        }
        batches = found
        isTorn = found.count != Int(header.batches) || header.byteLength != UInt64(image.byteCount)
    }
}

/// What saving came to.
public struct RescueResult: Sendable {
    public var path: String
    public var header: RescueHeader
    /// What is above the common record and could not be saved, in words; empty when everything is.
    public var missing: [String]
    /// It had been saved before (a crash, or a broken connection, came before the cut).
    public var wasThere: Bool
}

/// Saves a journal's records above a seq.
public struct RescueWriter: Sendable {
    /// Rescue journals in one directory: beyond this an administrator has to look at them first.
    public static let fileLimit = 64
    /// Left free on the state directory's file system, bytes.
    public static let reserveBytes: UInt64 = 64 << 20
    public static let suffix = ".rescue"

    let directory: String
    let journal: String

    public init(directory: String, journal: String) {
        self.directory = directory
        self.journal = journal
    }

    private struct Found {
        var locations: [BatchLocation] = []
        /// Where those of them lie whose bytes are as they were written.
        var whole: Set<Int> = []
        /// Behind them: never in the journal.
        var queued: [Batch] = []
        var incarnation: UInt64
        var missing: [String] = []
        var count: Int { locations.count + queued.count }
        var first: Seq? { locations.first?.firstSeq ?? queued.first?.firstSeq }
        var last: Seq? { queued.last?.lastSeq ?? locations.last?.lastSeq }
        var chain: UInt64 { queued.last?.header.chain ?? locations.last?.chain ?? 0 }
        var bytes: Int {
            queued.reduce(locations.reduce(RescueHeader.byteCount) { $0 + $1.length }) { $0 + $1.header.diskLength }
        }
    }

    /// Everything above `common` that can be read, durable when it returns. Blocking; what is saved from the journal must
    /// be at rest there.
    ///
    /// - Parameters:
    ///   - last: the last record of the log.
    ///   - queued: the end of the log, if that waits in memory for room in the journal.
    /// - Throws: when it cannot be saved whole: no room, too many rescue journals, an I/O error. Then nothing may be cut.
    public func save(
        above common: Seq, through last: Seq, queued: [Batch] = [], now: Int64
    ) throws(JournalError) -> RescueResult {
        let reader = try JournalReader(path: journal)
        let map = try JournalMap(image: reader, mirror: nil)
        let found = look(map, reader, above: common, through: last, queued)
        let digits = String(found.chain, radix: 16)
        let first = found.first ?? common.next
        let name = "records-\(first)-\(last)-" + String(repeating: "0", count: 16 - digits.count) + digits
        let path = directory + "/" + name + RescueWriter.suffix
        let header = RescueHeader(
            node: map.report.superblock.node, mirror: map.report.superblock.mirror,
            nodeInstance: map.report.superblock.nodeInstance, common: common, last: last, firstSaved: first,
            lastSaved: found.last ?? .zero, batches: UInt32(found.count),
            missing: UInt32(found.missing.count), savedAt: now, byteLength: UInt64(found.bytes))
        if let there = try existing(path) {
            guard there.common <= common, there.batches >= header.batches, there.missing <= header.missing else {
                throw JournalError(.exists, "\(path) exists and holds something else, or less: move it away")
            }
            // The process may have died, or the disk have failed, before it was all on the disk.
            try flush(path)
            try flushNames()
            // Whole, whatever has become of the journal since.
            let missing = there.missing == 0 ? [] : found.missing
            return RescueResult(path: path, header: there, missing: missing, wasThere: true)
        }
        try prepareDirectory(bytes: UInt64(found.bytes))
        try write(found, header, reader, to: path)
        return RescueResult(path: path, header: header, missing: found.missing, wasThere: false)
    }

    private func look(
        _ map: JournalMap, _ reader: JournalReader, above common: Seq, through last: Seq, _ queued: [Batch]
    ) -> Found {
        var found = Found(incarnation: map.report.superblock.incarnation.rawValue)
        var next = common.next
        // What is in memory counts, also if a part of it gets room in the journal meanwhile.
        let firstQueued = queued.first?.firstSeq ?? Seq(rawValue: .max)
        let note = { (first: Seq, last: Seq, why: String, found: inout Found) in
            found.missing.append("\(first == last ? "record \(first)" : "records \(first) to \(last)"): \(why)")
        }
        for segment in map.segments {
            switch segment {
            case .batch(let location):
                guard location.lastSeq > common, location.firstSeq < firstQueued else { continue }
                if location.firstSeq > next {
                    note(next, location.firstSeq.previous, "no longer in the journal", &found)
                }
                // The map knows of it by its entry in the header ring: whether its bytes are whole, only they say.
                let bytes = location.inspect(in: reader)
                if case .intact = bytes {
                    found.whole.insert(location.position)
                } else {
                    note(location.firstSeq, location.lastSeq, "damaged at journal offset \(location.position)", &found)
                }
                if bytes != nil { found.locations.append(location) }
                next = max(next, location.lastSeq.next)
            case .damaged(let first, let through, let position):
                guard through > common, first < firstQueued else { continue }
                note(first, through, "damaged\(position.map { " at journal offset \($0)" } ?? "")", &found)
                next = max(next, through.next)
                // Of a batch whose head can be read, what is readable is saved.
                if let position, let header = reader.header(at: position), header.firstSeq == first {
                    found.locations.append(BatchLocation(header))
                }
            }
        }
        for batch in queued where batch.lastSeq > common {
            if batch.firstSeq > next { note(next, batch.firstSeq.previous, "not in the journal", &found) }
            found.queued.append(batch)
            next = batch.lastSeq.next
        }
        if next <= last { note(next, last, "not in the journal", &found) }
        return found
    }

    private func existing(_ path: String) throws(JournalError) -> RescueHeader? {
        guard unsafe access(path, F_OK) == 0 else { return nil }
        let image = try JournalReader(path: path, direct: false)
        do throws(DecodingError) {
            guard let file = try RescueFile(image: image), !file.isTorn else {
                throw DecodingError("not whole", at: 0)
            }
            return file.header
        } catch {
            throw JournalError(.exists, "\(path) exists and is not whole (\(error)): move it away")
        }
    }

    private func prepareDirectory(bytes: UInt64) throws(JournalError) {
        if unsafe mkdir(directory, 0o700) != 0, errno != EEXIST {
            throw JournalError.system(errno, "cannot create", directory)
        }
        let count = RescueWriter.list(directory).count
        guard count < RescueWriter.fileLimit else {
            throw JournalError(
                .full,
                "\(directory) holds \(count) rescue journals already: look at them with lockstep-dump, and move them away"
            )
        }
        var space = statvfs()
        guard unsafe statvfs(directory, &space) == 0 else {
            throw JournalError.system(errno, "cannot look at the free space of", directory)
        }
        let free = UInt64(space.f_bavail) * UInt64(space.f_frsize)
        guard free >= bytes + RescueWriter.reserveBytes else {
            throw JournalError(
                .full,
                "\(directory): \(bytes) bytes of records must be saved there and \(free) are free (besides, "
                    + "\(RescueWriter.reserveBytes) stay free): make room on that file system")
        }
    }

    /// Names of the rescue journals in a directory, sorted.
    public static func list(_ directory: String) -> [String] {
        guard let stream = unsafe opendir(directory) else { return [] }
        defer { unsafe closedir(stream) }
        var names: [String] = []
        while let entry = unsafe readdir(stream) {
            let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                unsafe pointer.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
            }
            if name.hasSuffix(suffix) { names.append(name) }
        }
        return names.sorted()
    }

    private func write(
        _ found: Found, _ header: RescueHeader, _ reader: JournalReader, to path: String
    ) throws(JournalError) {
        let temporary = path + ".part"
        let descriptor = unsafe clinux_open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        guard descriptor >= 0 else { throw JournalError.system(descriptor, "cannot create", temporary) }
        do throws(JournalError) {
            defer { _ = clinux_close(descriptor) }
            var offset = RescueHeader.byteCount
            for location in found.locations {
                let isWhole = found.whole.contains(location.position)
                try copy(location, isWhole: isWhole, reader, to: descriptor, at: offset, temporary)
                offset += location.length
            }
            for batch in found.queued {
                try copy(batch, found.incarnation, to: descriptor, at: offset, temporary)
                offset += batch.header.diskLength
            }
            let page = Pages(header.encoded())
            try unsafe writeFully(descriptor, at: 0, page.constBytes, temporary)
            guard fsync(descriptor) == 0 else { throw JournalError.system(errno, "cannot flush", temporary) }
        } catch {
            unsafe unlink(temporary)
            throw error
        }
        guard unsafe rename(temporary, path) == 0 else { throw JournalError.system(errno, "cannot rename", temporary) }
        try flushNames()
    }

    private func flushNames() throws(JournalError) {
        try flush(directory)
        // The directory itself may be new.
        try flush(directory.split(separator: "/").dropLast().reduce("") { $0 + "/" + $1 })
    }

    /// The bytes as they are, whole or damaged; only the head says where they lie now.
    private func copy(
        _ location: BatchLocation, isWhole: Bool, _ reader: JournalReader, to descriptor: Int32, at offset: Int,
        _ name: String
    ) throws(JournalError) {
        var unreadable: [Int] = []
        let pages = reader.readPages(at: location.position, count: location.length, unreadable: &unreadable)
        guard var header = unsafe try? BatchHeader(decoding: pages.constBytes.prefix(BatchHeader.byteCount)),
            header.chain == location.chain, header.diskLength == location.length,
            unreadable.isEmpty || !isWhole
        else {
            throw JournalError(
                .damaged,
                "journal \(reader.name), offset \(location.position): records \(location.firstSeq) to "
                    + "\(location.lastSeq) cannot be saved: they could be read a moment ago")
        }
        header.position = UInt64(offset)
        unsafe pages.bytes.copyBytes(from: header.encoded())
        try unsafe writeFully(descriptor, at: offset, pages.constBytes, name)
    }

    private func copy(
        _ batch: Batch, _ incarnation: UInt64, to descriptor: Int32, at offset: Int, _ name: String
    ) throws(JournalError) {
        var header = batch.header
        header.incarnation = incarnation
        header.position = UInt64(offset)
        let meta = Pages(count: unsafe batch.meta.count)
        unsafe meta.bytes.copyMemory(from: batch.meta)
        unsafe meta.bytes.copyBytes(from: header.encoded())
        try unsafe writeFully(descriptor, at: offset, meta.constBytes, name)
        try unsafe writeFully(descriptor, at: offset + meta.constBytes.count, batch.payload, name)
    }

    private func writeFully(
        _ descriptor: Int32, at offset: Int, _ bytes: UnsafeRawBufferPointer, _ name: String
    ) throws(JournalError) {
        var done = 0
        while done < bytes.count {
            let rest = unsafe UnsafeRawBufferPointer(rebasing: bytes[done...])
            let count = unsafe pwrite(descriptor, rest.baseAddress, rest.count, off_t(offset + done))
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw JournalError.system(count == 0 ? ENOSPC : errno, "cannot write", name) }
            done += count
        }
    }

    private func flush(_ path: String) throws(JournalError) {
        let descriptor = unsafe clinux_open(path, O_RDONLY, 0)
        guard descriptor >= 0 else { throw JournalError.system(descriptor, "cannot open", path) }
        defer { _ = clinux_close(descriptor) }
        guard fsync(descriptor) == 0 else { throw JournalError.system(errno, "cannot flush", path) }
    }
}
