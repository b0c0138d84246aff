internal import CLinux
public import Format
internal import Glibc
internal import Ring

/// Images of what is: for a full comparison, with which a node that has lost touch is brought back.
extension PlainTree {
    // MARK: The side that has it

    /// A directory with its attributes and all its names, in parts of at most `RecordLimits.imageEntries`. The
    /// caller sees to it that no record of this directory is applied meanwhile.
    public func imageOfDirectory(_ directory: FileID) throws(TreeError) -> [RecordBody] {
        let status = try status(of: directory)
        let xattrs = try imageXattrs(of: directory)
        var entries: [ImageEntry] = []
        var cursor: UInt64 = 0
        while true {
            let names = try readDirectory(directory, from: cursor, limit: 1024, withStatus: false)
            guard let last = names.last else { break }
            cursor = last.cursor
            for entry in names {
                if entry.name == [UInt8(ascii: ".")] || entry.name == [UInt8(ascii: "."), UInt8(ascii: ".")] {
                    continue
                }
                entries.append(ImageEntry(name: entry.name, file: entry.file, mode: entry.type))
            }
        }
        var parts: [RecordBody] = []
        var start = 0
        repeat {
            let end = min(start + RecordLimits.imageEntries, entries.count)
            parts.append(
                .imageDirectory(
                    directory: directory, attributes: status.attributes, xattrs: xattrs, part: UInt32(parts.count),
                    isLast: end == entries.count, entries: Array(entries[start..<end])))
            start = end
        } while start < entries.count
        return parts
    }

    /// Attributes, link target and extended attributes of anything that is not a directory.
    public func imageOfFile(_ file: FileID) throws(TreeError) -> RecordBody {
        let status = try status(of: file)
        let target = status.isSymbolicLink ? try readLink(file) : []
        return .imageFile(
            file: file, attributes: status.attributes, target: target, xattrs: try imageXattrs(of: file))
    }

    /// As `allXattrs`, for a record.
    /// - Throws: E2BIG for more than a record carries, with the path: what no reader takes must not get into the log.
    private func imageXattrs(of file: FileID) throws(TreeError) -> [ExtendedAttribute] {
        let found = try allXattrs(of: file)
        let bytes = found.reduce(0) { $0 + RecordLimits.xattrBytes($1.name, $1.value.count) }
        guard found.count > RecordLimits.xattrCount || bytes > RecordLimits.xattrsBytes else { return found }
        let place = try withDescriptor(of: file, writable: false) { (fd) throws(TreeError) in path(of: fd) }
        throw PlainTree.tooManyXattrs(found.count, bytes, place)
    }

    static func tooManyXattrs(_ count: Int, _ bytes: Int, _ path: String) -> TreeError {
        TreeError(
            "mirror the extended attributes of", "\(path): \(count) of \(bytes) bytes", code: E2BIG,
            remedy: "At most \(RecordLimits.xattrCount) of \(RecordLimits.xattrsBytes) bytes together (32 for each "
                + "included) go to the other room. Remove some (`getfattr -d -m - FILE` shows them, `setfattr -x NAME "
                + "FILE` removes one), or take the file out")
    }

    /// Extended attributes in the order of their names.
    func allXattrs(of file: FileID) throws(TreeError) -> [ExtendedAttribute] {
        var found: [ExtendedAttribute] = []
        for name in try xattrNames(of: file).sorted(by: { $0.lexicographicallyPrecedes($1) }) {
            if let value = try xattr(of: file, name: name) { found.append(ExtendedAttribute(name: name, value: value)) }
        }
        return found
    }

    /// Hashes of the blocks of a range, for comparing it with the other room's.
    ///
    /// - Parameters:
    ///   - offset, length: whole blocks; the file may end before.
    ///   - seed: drawn anew for each comparison, so that two blocks that collide do not do so for ever.
    ///   - zerosAreHoles: a block of zeros that were written counts as a hole. Without that, holes stay holes and written
    ///     zeros take the same space in both rooms.
    /// - Returns: one for each block; nil for a block that is a hole, or behind the end. A short last block is hashed as if
    ///   zeros followed.
    public func blockHashes(
        of file: FileID, at offset: UInt64, length: UInt64, blockBytes: Int, seed: UInt64, zerosAreHoles: Bool = true
    ) throws(TreeError) -> [Hash128?] {
        var hashes = [Hash128?](repeating: nil, count: Int(length / UInt64(blockBytes)))
        try unsafe visitBlocks(
            of: file, at: offset, length: length, blockBytes: blockBytes, zerosAreHoles: zerosAreHoles
        ) { index, bytes in
            hashes[index] = unsafe Hash128(of: bytes, seed: seed)
        }
        return hashes
    }

    /// Every block of a range that is no hole (and, as a rule, not all zeros), with its number in the range. A short last
    /// block is shown as if zeros followed.
    ///
    /// - Parameter fromDisk: forget what the page cache holds of the range (what has not been written to the disk stays):
    ///   what is asked is whether the disk has the bytes, and the application's own pages are not pushed out.
    func visitBlocks(
        of file: FileID, at offset: UInt64, length: UInt64, blockBytes: Int, zerosAreHoles: Bool = true,
        fromDisk: Bool = false, _ body: (_ index: Int, _ bytes: UnsafeRawBufferPointer) -> Void
    ) throws(TreeError) {
        let block = UInt64(blockBytes)
        precondition(blockBytes > 0 && offset % block == 0 && length % block == 0, "whole blocks")
        try withDescriptor(of: file, writable: false) { (fd) throws(TreeError) in
            let space = UnsafeMutableRawBufferPointer.allocate(byteCount: blockBytes, alignment: 4096)
            defer { unsafe space.deallocate() }
            if fromDisk { _ = posix_fadvise(fd, off_t(offset), off_t(length), POSIX_FADV_DONTNEED) }
            defer { if fromDisk { _ = posix_fadvise(fd, off_t(offset), off_t(length), POSIX_FADV_DONTNEED) } }
            var position = offset
            while position < offset + length {
                // Holes are not read: a sparse file of many GiB costs what is in it.
                guard let data = try PlainTree.nextData(fd, from: position), data < offset + length else { return }
                position = data / block * block
                let count = try unsafe System.read(fd, space, at: position)
                guard count > 0 else { return }
                unsafe memset(space.baseAddress! + count, 0, blockBytes - count)
                let isZero =
                    unsafe zerosAreHoles && space[0] == 0
                    && memcmp(space.baseAddress!, space.baseAddress! + 1, blockBytes - 1) == 0
                if !isZero { unsafe body(Int((position - offset) / block), UnsafeRawBufferPointer(space)) }
                position += block
            }
        }
    }

    /// nil when only a hole, or nothing, follows.
    private static func nextData(_ fd: Int32, from offset: UInt64) throws(TreeError) -> UInt64? {
        do throws(TreeError) { return try seek(fd, from: offset, toHole: false) } catch {
            if error.code == ENXIO { return nil }
            throw error
        }
    }

    // MARK: The side that gets it

    /// A resynchronisation is under way: records may name objects that are not here yet.
    public var isImaging: Bool { state.withLock { $0.image != nil } }

    /// A resynchronisation that was broken off goes on.
    func goOnImaging() {
        state.withLock { if $0.image == nil { $0.image = ImageSession(number: 0, isResumed: true) } }
    }

    /// Applies a record while the tree is not (yet) the mirror: what is missing is left out, what is in the way goes to
    /// staging; the images that follow set it right.
    func applyImaging(
        _ record: Record, payload: UnsafeRawBufferPointer, settingTimes: Bool
    ) throws(TreeError) {
        switch record.body {
        case .epochStart: return
        case .imageStart(let number):
            state.withLock { $0.image = ImageSession(number: number) }
        case .imageEnd:
            // Names that vanished on the other side, and have not come back under another name.
            state.withLock { $0.image = nil }
            try clearStaging()
        case .imageDirectory(let directory, let attributes, let xattrs, let part, let isLast, let entries):
            try applyImage(
                ofDirectory: directory, attributes, xattrs, isFirst: part == 0, isLast: isLast, entries, record.time)
        case .imageFile(let file, let attributes, let target, let xattrs):
            try applyImage(ofFile: file, attributes, target, xattrs) { () throws(TreeError) in }
        case .verify: return
        case .write, .setAttributes, .setXattr, .removeXattr, .allocate, .repair, .repairFile:
            guard let file = record.body.touched.first, try objectIfKnown(file) != nil else { return }
            try unsafe applyToFile(record, payload: payload, settingTimes: settingTimes)
        case .create, .link, .remove, .rename:
            try applyNamesImaging(record)
        }
    }

    private func applyImage(
        ofDirectory directory: FileID, _ attributes: FileAttributes, _ xattrs: [ExtendedAttribute], isFirst: Bool,
        isLast: Bool, _ entries: [ImageEntry], _ time: Int64
    ) throws(TreeError) {
        if try referenceIfKnown(to: directory) == nil {
            // Its name comes with the image of its parent.
            try build(directory, attributes, [], xattrs)
        }
        try withDirectory(directory) { (fd) throws(TreeError) in
            for entry in entries {
                try checkName(directory, entry.name)
                try applyImage(ofEntry: entry, in: fd, directory)
            }
            let names = state.withLock { state in
                var names = isFirst ? [] : state.image?.names[directory] ?? []
                names.formUnion(entries.map(\.name))
                state.image?.names[directory] = isLast ? nil : names
                return names
            }
            guard isLast else { return }
            for raw in try allNames(fd, of: directory) where !names.contains(raw) { try evict(raw, from: fd) }
            try setAll(fd, type: S_IFDIR, attributes, xattrs)
        }
    }

    func allNames(_ shared: Int32, of directory: FileID) throws(TreeError) -> [FileName] {
        let fd = try System.open(shared, [UInt8(ascii: ".")], O_RDONLY | CLINUX_O_DIRECTORY | CLINUX_O_NOATIME)
        var found: [FileName] = []
        while true {
            let names = try rawNames(fd.rawValue, of: directory)
            if names.isEmpty { return found }
            found += names.filter { !$0.isDots }.map(\.name)
        }
    }

    private func applyImage(
        ofEntry entry: ImageEntry, in directory: Int32, _ parent: FileID
    ) throws(TreeError) {
        let type = entry.mode & S_IFMT
        try adoptByName(entry, in: directory)
        if let known = try referenceIfKnown(to: entry.file), try System.stat(known.rawValue).mode & S_IFMT != type {
            // A number whose object has another type: not from this mirror's history. It goes, by its place.
            try discard(entry.file, known.rawValue)
        }
        if try !place(entry.file, in: directory, entry.name) {
            try build(entry.file, FileAttributes(mode: type | 0o600, uid: 0, gid: 0), PlainTree.unknownTarget, [])
            try evict(entry.name, from: directory)
            try System.rename(staging.rawValue, PlainTree.encodeTag(entry.file), to: directory, entry.name)
        }
        if PlainTree.isReplaceable(type) {
            state.withLock { $0.image?.replaceable[entry.file, default: []].append((parent, entry.name)) }
        }
    }

    /// An object without a number that stands where the image has one of the same type is taken for it: so a node that
    /// was filled from a backup is compared, not copied.
    func adoptByName(_ entry: ImageEntry, in directory: Int32) throws(TreeError) {
        guard let object = try child(entry.name, of: directory), try tag(of: object.rawValue) == nil,
            try System.stat(object.rawValue).mode & S_IFMT == entry.mode & S_IFMT,
            try referenceIfKnown(to: entry.file) == nil
        else { return }
        try System.setXattr(object.rawValue, PlainTree.fileIDXattr, PlainTree.encodeTag(entry.file))
        try table.insert(entry.file, try handle(of: object.rawValue))
    }

    /// Takes the number off an object, which then counts as put there by nobody.
    func discard(_ file: FileID, _ fd: Int32) throws(TreeError) {
        try System.removeXattr(fd, PlainTree.fileIDXattr)
        try forget(file)
    }

    /// - Parameter step: as in `replace`.
    func applyImage(
        ofFile file: FileID, _ attributes: FileAttributes, _ target: [UInt8], _ xattrs: [ExtendedAttribute],
        _ step: ReplayStep
    ) throws(TreeError) {
        let known = try objectIfKnown(file)
        defer { withExtendedLifetime(known) {} }
        if PlainTree.isReplaceable(attributes.mode & S_IFMT) {
            var isTorn = isBeingReplaced(file)
            if !isTorn, known == nil { isTorn = try isLost(file) }
            if isTorn { return try replaceEverywhere(file, attributes, target, xattrs, step) }
        }
        guard let known else { return }
        let stat = try System.stat(known.fd)
        let type = stat.mode & S_IFMT
        guard type == attributes.mode & S_IFMT else { return }
        guard try isSame(known.fd, stat, as: attributes, target) else {
            return try replace(file, attributes, target, xattrs, links: Int(stat.links), step)
        }
        let object = try object(file, writable: type == S_IFREG)
        defer { withExtendedLifetime(object) {} }
        if type == S_IFREG, stat.size != attributes.size {
            try System.check(clinux_ftruncate(object.fd, attributes.size), "set the size of", "file \(file)")
        }
        try setAll(object.fd, type: type, attributes, xattrs)
    }

    /// All attributes and exactly these extended attributes. Most are as they should be: each that is set again would be
    /// a change for the file system's journal.
    func setAll(
        _ fd: Int32, type: UInt32, _ attributes: FileAttributes, _ xattrs: [ExtendedAttribute]
    ) throws(TreeError) {
        let before = try System.stat(fd)
        if before.user != attributes.uid || before.group != attributes.gid {
            try setOwnerAndMode(fd, type: type, [.uid, .gid, .mode], attributes)
        } else if before.mode & 0o7777 != attributes.mode & 0o7777 {
            try setOwnerAndMode(fd, type: type, .mode, attributes)
        }
        let wanted = Set(xattrs.map(\.name))
        for name in try System.xattrNames(fd) where !wanted.contains(name) && !PlainTree.isLabel(name) {
            if !name.starts(with: PlainTree.ownXattrPrefix) { try System.removeXattr(fd, name) }
        }
        for xattr in xattrs where !xattr.name.starts(with: PlainTree.ownXattrPrefix) {
            if try System.xattr(fd, xattr.name) != xattr.value { try System.setXattr(fd, xattr.name, xattr.value) }
        }
        try setTimes(fd, type: type, atime: attributes.atime, mtime: attributes.mtime)
    }

    // MARK: Names in a tree that is not the mirror yet

    private func applyNamesImaging(_ record: Record) throws(TreeError) {
        let time = record.time
        switch record.body {
        case .create(let file, let parent, let name, let attributes, let target, let xattrs):
            try checkName(parent, name)
            if try referenceIfKnown(to: file) == nil { try build(file, attributes, target, xattrs) }
            try inDirectoryIfKnown(parent, time) { (directory) throws(TreeError) in
                try placeIfPossible(file, in: directory, name)
            }
        case .link(let file, let parent, let name):
            try checkName(parent, name)
            try inDirectoryIfKnown(parent, time) { (directory) throws(TreeError) in
                try placeIfPossible(file, in: directory, name)
            }
        case .remove(let file, let parent, let name, _, _):
            try checkName(parent, name)
            try inDirectoryIfKnown(parent, time) { (directory) throws(TreeError) in
                if try occupant(of: name, in: directory) == file { try evict(name, from: directory) }
            }
        case .rename(let file, let parent, let name, let newParent, let newName, let exchange, let replaced, _):
            try checkName(parent, name)
            try checkName(newParent, newName)
            try inDirectoryIfKnown(parent, time) { (directory) throws(TreeError) in
                // What was replaced stands at the old name if an earlier try was broken off after the exchange.
                let found = try occupant(of: name, in: directory)
                if found == file || found != nil && found == record.body.removed { try evict(name, from: directory) }
            }
            try inDirectoryIfKnown(newParent, time) { (directory) throws(TreeError) in
                try evict(newName, from: directory)
                try placeIfPossible(file, in: directory, newName)
            }
            if exchange {
                try inDirectoryIfKnown(parent, time) { (directory) throws(TreeError) in
                    try placeIfPossible(replaced, in: directory, name)
                }
            }
        default: return
        }
    }

    /// An old tree may have a directory inside the one that is to be inside it. It stays where it is until the images
    /// of the directories above, which come first, have put those right.
    private func placeIfPossible(_ file: FileID, in directory: Int32, _ name: FileName) throws(TreeError) {
        do throws(TreeError) { _ = try place(file, in: directory, name) } catch {
            guard error.code == EINVAL else { throw error }
        }
    }

    private func inDirectoryIfKnown(
        _ directory: FileID, _ time: Int64, _ body: (Int32) throws(TreeError) -> Void
    ) throws(TreeError) {
        guard try referenceIfKnown(to: directory) != nil else { return }
        try withDirectory(directory) { (fd) throws(TreeError) in
            try body(fd)
            try touch(fd, time)
        }
    }
}
