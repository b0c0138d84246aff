internal import CLinux
internal import Format
internal import Glibc
internal import Logging
internal import Ring
internal import Synchronization

/// A file system's own name for an inode (`name_to_handle_at`): finds it without a path, however often it was renamed.
struct FileHandle: Sendable {
    var type: Int32
    var bytes: [UInt8]
    /// Type bits of `st_mode`, for whoever opens it; 0: not known (an earlier build wrote it). No part of what it names.
    var objectType: UInt32 = 0

    /// What a slot of the file table has room for. ext4 needs 8 bytes, XFS 12, btrfs 20.
    static let byteLimit = 40
}

extension FileHandle: Equatable {
    static func == (left: FileHandle, right: FileHandle) -> Bool {
        left.type == right.type && left.bytes == right.bytes
    }
}

/// Where the files are: file number -> handle, in a flat hash on disk.
///
/// It is a cache of the xattr `trusted.lockstep.fid`, which is the truth: whoever opens a handle compares the xattr,
/// and a table that is missing, damaged or of another tree is built again by a scan. So the table needs no journal of
/// its own: it is flushed at every checkpoint, before the plain files are, and a replay puts back what came later.
///
/// Built again, it lies beside its place until every file is in it and on the disk. Half a table in its place would be
/// believed by the next start, and what it lacks found by nobody.
///
/// ```
/// path           the table
/// path.scan      one that is being filled by a scan; then renamed over `path`
/// path.new, path.scan.new   a larger one into which the entries are copied; then renamed
///
/// page 0   magic "LSTABLE1" 8 | version u32 | condition u32 | slots u64 | identity of the tree u64 | ... | CRC-32C u32
/// then     slots of 64 bytes, eight to a disk sector, so that none is ever torn:
///            file number 8 (0 empty, all ones removed) | handle type i32 | handle length u32 | handle 40 |
///            type of the object u32 (0 not known) | CRC-32C of the 60 bytes before
/// ```
///
/// Open addressing with linear probing; a power of two of slots, at most 70 % in use. A slot once used never becomes
/// empty again (removed ones keep a mark), so that a probe never stops early at a page the disk has not got yet.
/// It is rebuilt into a new file when full, and after every unclean end.
final class FileTable: Sendable {
    static let magic: UInt64 = 0x3145_4C42_4154_534C
    static let version: UInt32 = 1
    static let headerBytes = 4096
    static let slotBytes = 64
    static let slotsMinimum: UInt64 = 4096
    static let removed = UInt64.max

    private struct State: ~Copyable {
        var fd: FileDescriptor
        /// Where the table lies: beside its place until `putIntoPlace`.
        var path: String
        var slots: UInt64
        /// Slots that are not empty, removed ones included.
        var used: UInt64
        /// How often it grew: then every entry has another place.
        var growths = 0
        var dirty = false
        /// The first flush that failed. The kernel says so once, and then "ok": whoever heard it first tells all others.
        var failure: TreeError?
        var isWrong = false
        /// What is in the header as long as it is used.
        var condition: Condition { isWrong ? .wrong : .inUse }
    }

    /// What the next start may make of the table.
    private enum Condition: UInt32 {
        /// Whoever used it last has not closed it: entries may be half-written.
        case inUse = 0
        /// Closed, every entry on the disk.
        case complete = 1
        /// It does not lead to a file that is there: it is built again from the files.
        case wrong = 2
    }

    private let state: Mutex<State>
    /// Held by who flushes: that there is nothing to flush must not be said before the disk has said it.
    private let flushing = Mutex(())
    private let path: String
    private let identity: UInt64

    /// One slot as it is on disk.
    private struct Slot {
        var file: UInt64
        var handle: FileHandle
    }

    /// - Parameter current: where the table lies now, if not at `path`.
    private init(
        path: String, current: String? = nil, identity: UInt64, fd: consuming FileDescriptor, slots: UInt64,
        used: UInt64
    ) {
        self.path = path
        self.identity = identity
        state = Mutex(State(fd: fd, path: current ?? path, slots: slots, used: used))
    }

    /// An empty table beside `path`. Whatever is there stays, and is what the next start finds, until `putIntoPlace`.
    /// - Parameter identity: tells this tree from another one.
    static func create(path: String, identity: UInt64) throws(TreeError) -> FileTable {
        let scan = path + scanSuffix
        let fd = try build(path: scan, identity: identity, slots: slotsMinimum, from: nil)
        return FileTable(
            path: path, current: scan, identity: identity, fd: fd.descriptor, slots: slotsMinimum, used: 0)
    }

    /// Makes the table the one that the next start finds. Called when every file is in it.
    func putIntoPlace() throws(TreeError) {
        try locked { (state) throws(TreeError) in
            precondition(state.path != path, "the table is in its place")
            try FileTable.flush(&state)
            state.dirty = false
            try FileTable.rename(state.path, to: path)
            state.path = path
        }
    }

    private static let scanSuffix = ".scan"
    private static let freshSuffix = ".new"

    /// Opens the table at `path`.
    /// - Returns: nil when there is none, or when it is damaged or of another tree; `logger` was told which.
    static func open(path: String, identity: UInt64, logger: Logger) throws(TreeError) -> FileTable? {
        // What a process that died has left half done.
        for suffix in [freshSuffix, scanSuffix, scanSuffix + freshSuffix] { _ = unsafe unlink(path + suffix) }
        let raw = unsafe clinux_open(path, O_RDWR, 0)
        if raw == -ENOENT { return nil }
        let fd = FileDescriptor(owning: try System.check(raw, "open the file table", path))
        let header: (slots: UInt64, isComplete: Bool)
        do throws(DecodingError) { header = try readHeader(fd.rawValue, identity: identity) } catch {
            logger.warning(
                "file table unusable, building it again", metadata: ["table.path": "\(path)", "cause": "\(error)"])
            return nil
        }
        // A whole pass: it finds damage now and not under an application's feet, and after an unclean end it drops
        // what an earlier life had left behind.
        var live: UInt64 = 0
        var used: UInt64 = 0
        do {
            try FileTable.visit(fd.rawValue, slots: header.slots) { slot in
                used += 1
                if slot.file != removed { live += 1 }
            }
        } catch {
            logger.warning(
                "file table unusable, building it again", metadata: ["table.path": "\(path)", "cause": "\(error)"])
            return nil
        }
        if !header.isComplete {
            let slots = slotsNeeded(for: live)
            let built = try build(path: path, identity: identity, slots: slots, from: (fd.rawValue, header.slots))
            return FileTable(path: path, identity: identity, fd: built.descriptor, slots: slots, used: built.used)
        }
        try writeHeader(fd.rawValue, slots: header.slots, identity: identity, .inUse)
        return FileTable(path: path, identity: identity, fd: fd, slots: header.slots, used: used)
    }

    /// The handle of a file; nil when the table does not know it.
    func find(_ file: FileID) throws(TreeError) -> FileHandle? {
        try locked { (state) throws(TreeError) in
            try probe(state.fd.rawValue, state.slots, file)?.slot.handle
        }
    }

    /// Enters or replaces a file's handle.
    func insert(_ file: FileID, _ handle: FileHandle) throws(TreeError) {
        precondition(file != .none && file.rawValue != FileTable.removed, "not a file number")
        guard handle.bytes.count <= FileHandle.byteLimit else {
            throw TreeError(
                "keep the handle of", "file \(file) (\(handle.bytes.count) bytes)", code: EOVERFLOW,
                remedy: "Use ext4, XFS or btrfs for the plain files")
        }
        try locked { (state) throws(TreeError) in
            if (state.used + 1) * 10 > state.slots * 7 { try grow(&state) }
            let (index, isNew) = try place(state.fd.rawValue, state.slots, file)
            try FileTable.writeSlot(state.fd.rawValue, index, Slot(file: file.rawValue, handle: handle))
            state.dirty = true
            if isNew { state.used += 1 }
        }
    }

    /// Forgets a file; one that is not there is no error.
    func remove(_ file: FileID) throws(TreeError) {
        try locked { (state) throws(TreeError) in
            guard let index = try probe(state.fd.rawValue, state.slots, file)?.index else { return }
            let mark = Slot(file: FileTable.removed, handle: FileHandle(type: 0, bytes: []))
            try FileTable.writeSlot(state.fd.rawValue, index, mark)
            state.dirty = true
        }
    }

    /// Makes everything durable. Called before the plain files are synced, at every checkpoint. Others use the table
    /// meanwhile: the disk may take its time.
    func flush() throws(TreeError) {
        let result: Result<Void, TreeError> = flushing.withLock { _ in
            do throws(TreeError) { return .success(try flushAlone()) } catch { return .failure(error) }
        }
        try result.get()
    }

    private func flushAlone() throws(TreeError) {
        let found = try locked { (state) throws(TreeError) -> (fd: Int32, path: String)? in
            if let failure = state.failure { throw failure }
            guard state.dirty else { return nil }
            state.dirty = false
            // A descriptor of its own: the table may grow meanwhile, and the one that takes its place is on the disk.
            let copy = fcntl(state.fd.rawValue, F_DUPFD_CLOEXEC, 0)
            return (try System.check(System.errnoResult(copy), "flush the file table", state.path), state.path)
        }
        guard let found else { return }
        let copy = FileDescriptor(owning: found.fd)
        let result = clinux_fdatasync(copy.rawValue)
        try locked { (state) throws(TreeError) in
            if result < 0 { try FileTable.failed(result, &state) }
            // Somebody else may have heard it meanwhile, for both.
            if let failure = state.failure { throw failure }
        }
    }

    /// Writes the table to its disk while nobody else uses it.
    private static func flush(_ state: inout State) throws(TreeError) {
        if let failure = state.failure { throw failure }
        let result = clinux_fdatasync(state.fd.rawValue)
        if result < 0 { try failed(result, &state) }
    }

    private static func failed(_ result: Int32, _ state: inout State) throws(TreeError) {
        let failure = TreeError("flush the file table", state.path, code: -result)
        if state.failure == nil { state.failure = failure }
        throw failure
    }

    /// Lets the next start build the table again from the files.
    /// - Returns: false when that was said already.
    func markWrong() throws(TreeError) -> Bool {
        try locked { (state) throws(TreeError) in
            guard !state.isWrong else { return false }
            state.isWrong = true
            try FileTable.writeHeader(state.fd.rawValue, slots: state.slots, identity: identity, .wrong)
            // Also behind an earlier failure: it may get there.
            let result = clinux_fdatasync(state.fd.rawValue)
            if result < 0 { try FileTable.failed(result, &state) }
            return true
        }
    }

    /// Flushes and marks the table complete, so that the next start needs no rebuild, unless it was found wrong.
    func close() throws(TreeError) {
        try locked { (state) throws(TreeError) in
            try FileTable.flush(&state)
            let condition = state.isWrong ? Condition.wrong : .complete
            try FileTable.writeHeader(state.fd.rawValue, slots: state.slots, identity: identity, condition)
            try FileTable.flush(&state)
        }
    }

    /// Every file with its handle, in no order that means anything. Others use the table meanwhile: a pass over all of
    /// a large one takes seconds, and nobody must wait for that. A file that is entered or removed meanwhile may come
    /// or not; all others come.
    ///
    /// When the table grows all begins anew. It grows only after a third of its slots were filled, and a pass is much
    /// faster than that.
    /// - Parameter anew: what came so far comes again.
    func visit(
        anew: () -> Void, _ body: (FileID, FileHandle) throws(TreeError) -> Void
    ) throws(TreeError) {
        var piece = [UInt8](repeating: 0, count: Int(FileTable.pieceSlots) * FileTable.slotBytes)
        var first: UInt64 = 0
        var growths = try locked { (state) throws(TreeError) in state.growths }
        while true {
            let now = try locked { (state) throws(TreeError) -> (growths: Int, isEnd: Bool) in
                guard state.growths == growths else { return (state.growths, false) }
                guard first < state.slots else { return (growths, true) }
                try FileTable.read(state.fd.rawValue, from: first, into: &piece)
                return (growths, false)
            }
            guard now.growths == growths else {
                growths = now.growths
                first = 0
                anew()
                continue
            }
            guard !now.isEnd else { return }
            try FileTable.visit(piece, from: first) { (slot) throws(TreeError) in
                if slot.file != FileTable.removed { try body(FileID(rawValue: slot.file), slot.handle) }
            }
            first += FileTable.pieceSlots
        }
    }

    private func locked<Value>(_ body: (inout State) throws(TreeError) -> Value) throws(TreeError) -> Value {
        let result: Result<Value, TreeError> = state.withLock { state in
            do throws(TreeError) { return .success(try body(&state)) } catch { return .failure(error) }
        }
        return try result.get()
    }

    // MARK: Probing

    private static func home(_ file: UInt64, _ slots: UInt64) -> UInt64 {
        // Fibonacci hashing: numbers of one epoch differ in their low bits, the product spreads them over the high ones.
        (file &* 0x9E37_79B9_7F4A_7C15) >> UInt64(64 - slots.trailingZeroBitCount)
    }

    private func probe(
        _ fd: Int32, _ slots: UInt64, _ file: FileID
    ) throws(TreeError) -> (index: UInt64, slot: Slot)? {
        var index = FileTable.home(file.rawValue, slots)
        for _ in 0..<slots {
            guard let slot = try FileTable.slot(fd, index) else { return nil }
            if slot.file == file.rawValue { return (index, slot) }
            index = (index + 1) & (slots - 1)
        }
        return nil
    }

    /// Where `file` is or belongs, and whether that slot was empty.
    private func place(_ fd: Int32, _ slots: UInt64, _ file: FileID) throws(TreeError) -> (UInt64, Bool) {
        var index = FileTable.home(file.rawValue, slots)
        var reusable: UInt64?
        while true {
            guard let slot = try FileTable.slot(fd, index) else { return (reusable ?? index, reusable == nil) }
            if slot.file == file.rawValue { return (index, false) }
            if slot.file == FileTable.removed, reusable == nil { reusable = index }
            index = (index + 1) & (slots - 1)
        }
    }

    private func grow(_ state: inout State) throws(TreeError) {
        // A page that could not be written may be gone from memory: it must not be copied as it was before.
        try FileTable.flush(&state)
        var live: UInt64 = 0
        try FileTable.visit(state.fd.rawValue, slots: state.slots) { slot in
            if slot.file != FileTable.removed { live += 1 }
        }
        let slots = FileTable.slotsNeeded(for: live)
        let built = try FileTable.build(
            path: state.path, identity: identity, slots: slots, from: (state.fd.rawValue, state.slots),
            state.condition)
        state.fd = built.descriptor
        state.slots = slots
        state.used = built.used
        state.growths += 1
    }

    /// Room for twice as many as there are, at most 35 % in use.
    private static func slotsNeeded(for live: UInt64) -> UInt64 {
        var slots = slotsMinimum
        while live * 20 > slots * 7 { slots *= 2 }
        return slots
    }

    private struct Built: ~Copyable {
        var descriptor: FileDescriptor
        var used: UInt64
    }

    /// Writes a new table beside the old one and renames it into place.
    private static func build(
        path: String, identity: UInt64, slots: UInt64, from old: (fd: Int32, slots: UInt64)?,
        _ condition: Condition = .inUse
    ) throws(TreeError) -> Built {
        let fresh = path + freshSuffix
        let fd = try System.open(fresh, O_RDWR | O_CREAT | O_TRUNC)
        let length = UInt64(headerBytes) + slots * UInt64(slotBytes)
        try System.check(clinux_ftruncate(fd.rawValue, length), "make the file table", fresh)
        var used: UInt64 = 0
        if let old {
            try visit(old.fd, slots: old.slots) { (slot) throws(TreeError) in
                guard slot.file != removed else { return }
                var index = home(slot.file, slots)
                while let other = try self.slot(fd.rawValue, index) {
                    if other.file == slot.file { return }
                    index = (index + 1) & (slots - 1)
                }
                try writeSlot(fd.rawValue, index, slot)
                used += 1
            }
        }
        try writeHeader(fd.rawValue, slots: slots, identity: identity, condition)
        try System.check(clinux_fsync(fd.rawValue), "flush the file table", fresh)
        try rename(fresh, to: path)
        return Built(descriptor: fd, used: used)
    }

    private static func rename(_ fresh: String, to path: String) throws(TreeError) {
        let result = unsafe clinux_renameat2(CLINUX_AT_FDCWD, fresh, CLINUX_AT_FDCWD, path, 0)
        try System.check(result, "put the file table into place", path)
        // It may lie on another file system than the plain files, which nothing else would flush: then a power cut would
        // bring back the old one, which nobody has written to the disk since.
        let directory = path.lastIndex(of: "/").map { $0 == path.startIndex ? "/" : String(path[..<$0]) } ?? "."
        let parent = try System.open(directory, O_RDONLY | CLINUX_O_DIRECTORY)
        try System.check(clinux_fsync(parent.rawValue), "flush", directory)
    }

    // MARK: Bytes

    private static func readHeader(
        _ fd: Int32, identity: UInt64
    ) throws(DecodingError) -> (slots: UInt64, isComplete: Bool) {
        var page = [UInt8](repeating: 0, count: headerBytes)
        let count = unsafe page.withUnsafeMutableBytes { space in
            unsafe clinux_pread(fd, space.baseAddress!, space.count, 0)
        }
        guard count == headerBytes else { throw DecodingError("truncated file table", at: 0) }
        var reader = ByteReader(page)
        guard try reader.get(UInt64.self) == magic else { throw DecodingError("not a file table", at: 0) }
        let found = try reader.get(UInt32.self)
        guard found == version else { throw DecodingError("file table version \(found)", at: 8) }
        let condition = Condition(rawValue: try reader.get(UInt32.self))
        let slots = try reader.get(UInt64.self)
        let tree = try reader.get(UInt64.self)
        let checksum = crc32c(page[..<(headerBytes - 4)])
        var tail = ByteReader(page[(headerBytes - 4)...])
        guard try tail.get(UInt32.self) == checksum else { throw DecodingError("file table checksum", at: 4092) }
        guard tree == identity else { throw DecodingError("file table of another directory tree", at: 24) }
        guard slots >= slotsMinimum, slots.nonzeroBitCount == 1, slots < 1 << 40 else {
            throw DecodingError("file table of \(slots) slots", at: 16)
        }
        guard condition != .wrong else { throw DecodingError("file table that did not lead to a file", at: 12) }
        return (slots, condition == .complete)
    }

    private static func writeHeader(
        _ fd: Int32, slots: UInt64, identity: UInt64, _ condition: Condition
    ) throws(TreeError) {
        var writer = ByteWriter(reserving: headerBytes)
        writer.put(magic)
        writer.put(version)
        writer.put(condition.rawValue)
        writer.put(slots)
        writer.put(identity)
        writer.put(raw: [UInt8](repeating: 0, count: headerBytes - 4 - writer.count))
        writer.put(crc32c(writer.bytes))
        try writeBytes(fd, writer.bytes, at: 0)
    }

    private static func writeBytes(_ fd: Int32, _ bytes: [UInt8], at offset: UInt64) throws(TreeError) {
        let result: Result<Void, TreeError> = unsafe bytes.withUnsafeBytes { raw in
            do throws(TreeError) { return .success(try unsafe System.write(fd, raw, at: offset)) } catch {
                return .failure(error)
            }
        }
        try result.get()
    }

    /// nil when the slot is empty.
    private static func slot(_ fd: Int32, _ index: UInt64) throws(TreeError) -> Slot? {
        var bytes = [UInt8](repeating: 0, count: slotBytes)
        let count = unsafe bytes.withUnsafeMutableBytes { space in
            unsafe clinux_pread(fd, space.baseAddress!, space.count, offset(of: index))
        }
        guard count == slotBytes else {
            throw TreeError("read the file table", "slot \(index)", code: count < 0 ? Int32(-count) : EIO)
        }
        return try decode(bytes[...], index)
    }

    private static func offset(of index: UInt64) -> UInt64 { UInt64(headerBytes) + index * UInt64(slotBytes) }

    private static func decode(_ bytes: ArraySlice<UInt8>, _ index: UInt64) throws(TreeError) -> Slot? {
        do throws(DecodingError) {
            var reader = ByteReader(bytes)
            let file = try reader.get(UInt64.self)
            let type = try reader.get(Int32.self)
            let length = Int(try reader.get(UInt32.self))
            if file == 0, type == 0, length == 0 { return nil }
            let handle = try reader.get(raw: FileHandle.byteLimit)
            let objectType = try reader.get(UInt32.self)
            let start = bytes.startIndex
            guard try reader.get(UInt32.self) == crc32c(bytes[start..<(start + slotBytes - 4)]),
                length <= FileHandle.byteLimit
            else { throw DecodingError("slot checksum", at: 60) }
            let found = FileHandle(type: type, bytes: Array(handle[..<length]), objectType: objectType)
            return Slot(file: file, handle: found)
        } catch {
            throw TreeError(
                "use the file table", "slot \(index): \(error)", code: EIO,
                remedy: "Restart Lockstep on this node: it builds the table again from the files")
        }
    }

    private static func writeSlot(_ fd: Int32, _ index: UInt64, _ slot: Slot) throws(TreeError) {
        var writer = ByteWriter(reserving: slotBytes)
        writer.put(slot.file)
        writer.put(slot.handle.type)
        writer.put(UInt32(slot.handle.bytes.count))
        writer.put(raw: slot.handle.bytes)
        writer.put(raw: repeatElement(0, count: FileHandle.byteLimit - slot.handle.bytes.count))
        writer.put(slot.handle.objectType)
        writer.put(crc32c(writer.bytes))
        try writeBytes(fd, writer.bytes, at: offset(of: index))
    }

    /// All slots that are not empty, read in large pieces.
    private static func visit(
        _ fd: Int32, slots: UInt64, _ body: (Slot) throws(TreeError) -> Void
    ) throws(TreeError) {
        var piece = [UInt8](repeating: 0, count: Int(pieceSlots) * slotBytes)
        for first in stride(from: 0, to: slots, by: Int(pieceSlots)) {
            try read(fd, from: first, into: &piece)
            try visit(piece, from: first, body)
        }
    }

    /// Slots read at once: 256 KiB.
    private static let pieceSlots = slotsMinimum

    private static func read(_ fd: Int32, from first: UInt64, into piece: inout [UInt8]) throws(TreeError) {
        let count = unsafe piece.withUnsafeMutableBytes { space in
            unsafe clinux_pread(fd, space.baseAddress!, space.count, offset(of: first))
        }
        guard count == piece.count else {
            throw TreeError("read the file table", "from slot \(first)", code: count < 0 ? Int32(-count) : EIO)
        }
    }

    private static func visit(
        _ piece: [UInt8], from first: UInt64, _ body: (Slot) throws(TreeError) -> Void
    ) throws(TreeError) {
        for index in 0..<Int(pieceSlots) {
            let start = index * slotBytes
            if let slot = try decode(piece[start..<(start + slotBytes)], first + UInt64(index)) { try body(slot) }
        }
    }
}
