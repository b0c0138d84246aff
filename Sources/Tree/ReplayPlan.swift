internal import Format
internal import Glibc

/// What the records since the checkpoint amount to. Pure: it knows no file.
///
/// After a crash the tree may be at any mixture of the states since the checkpoint: each name and each byte as some
/// record left it, in no common order. Redoing the records one by one does not work there (after exchange(a, b) the
/// names may be before or after; a directory may already be inside the one that is to be moved into it). So the records
/// are folded to their end: a final file for every name that was touched, and for every file the bytes that survive and
/// its final attributes. Bringing the tree there does not depend on where it is.
struct ReplayPlan {
    /// One object's end.
    struct Object {
        /// What to make if it is not there: made by a record, or named by an image.
        var birth: Birth?
        /// Its last name went: nothing of it is needed.
        var isRemoved = false
        var bytes = ByteFold()
        var attributes = FileAttributes(mode: 0, uid: 0, gid: 0)
        var mask: AttributeMask = []
        /// When mode and ACL were last set: each changes the other, so the later one is set last.
        var modeSet = Seq.zero
        var aclSet = Seq.zero
        /// nil: removed.
        var xattrs: [FileName: [UInt8]?] = [:]
        /// All extended attributes are in `xattrs`; others go.
        var hasAllXattrs = false
        /// A repair wrote bytes: what no record sets stays as it is, though the kernel changes it with the bytes.
        var isRepaired = false
        /// Its own image came: a link or device may have to be replaced, at names that no record here touches.
        var hasImage = false

        var keepsTime: Bool { isRepaired && !mask.contains(.mtime) }
        var keepsCapability: Bool { isRepaired && !hasAllXattrs && xattrs[PlainTree.capabilityXattr] == nil }
    }

    struct Birth {
        /// Type bits.
        var type: UInt32
        var rdev: UInt32
        /// Of a symbolic link; nil: not known (an image of its directory came, its own did not).
        var target: [UInt8]?
    }

    private(set) var objects: [FileID: Object] = [:]
    /// Directory -> name -> final file; `.none` for no file.
    private(set) var names: [FileID: [FileName: FileID]] = [:]
    /// Directories all of whose names are in `names`: anything else in them goes.
    private(set) var complete: Set<FileID> = []
    /// Names of directories whose image has come in part.
    private(set) var partial: [FileID: Set<FileName>] = [:]
    private(set) var records = 0
    private(set) var hasImages = false
    /// A resynchronisation had begun (true) or was complete (false) at the end; nil: no record says.
    private(set) var endsInImages: Bool?

    private static let acl: FileName = Array("system.posix_acl_access".utf8)

    mutating func add(_ seq: Seq, _ record: Record) {
        records += 1
        if record.isImage || record.body.isImageMark { hasImages = true }
        let time = record.time
        switch record.body {
        case .epochStart, .verify: break
        case .repair(let file, let offset):
            objects[file, default: Object()].bytes.write(seq, offset: offset, length: UInt64(record.payload.length))
            objects[file]?.isRepaired = true
        case .repairFile(let file, let attributes, let xattrs):
            setAll(file, attributes, xattrs, seq)
            objects[file]?.mask.remove(.atime)
            if attributes.mode & S_IFMT == S_IFREG { objects[file]?.bytes.truncate(to: attributes.size) }
        case .imageStart: endsInImages = true
        case .imageEnd: endsInImages = false
        case .write(let file, let offset):
            objects[file, default: Object()].bytes.write(seq, offset: offset, length: UInt64(record.payload.length))
            changedContents(file, time)
        case .allocate(let file, let mode, let offset, let length):
            objects[file, default: Object()].bytes.allocate(mode: mode, offset: offset, length: length)
            changedContents(file, time)
        case .setAttributes(let file, let mask, let attributes): set(file, mask, attributes, seq, time)
        case .setXattr(let file, let name, let value): setXattr(file, name, value, seq)
        case .removeXattr(let file, let name): setXattr(file, name, nil, seq)
        case .create(let file, let parent, let name, let attributes, let target, let xattrs):
            create(file, attributes, target, xattrs, seq)
            put(file, parent, name, time)
        case .link(let file, let parent, let name): put(file, parent, name, time)
        case .remove(let file, let parent, let name, _, let wasLast):
            put(.none, parent, name, time)
            if wasLast { remove(file) }
        case .rename(let file, let parent, let name, let newParent, let newName, let exchange, let replaced, let last):
            put(exchange ? replaced : .none, parent, name, time)
            put(file, newParent, newName, time)
            if last, !exchange, replaced != .none, replaced != file { remove(replaced) }
        case .imageDirectory(let directory, let attributes, let xattrs, let part, let isLast, let entries):
            imageDirectory(directory, isFirst: part == 0, isLast: isLast, entries)
            setAll(directory, attributes, xattrs, seq)
        case .imageFile(let file, let attributes, let target, let xattrs):
            setAll(file, attributes, xattrs, seq)
            let type = attributes.mode & S_IFMT
            objects[file, default: Object()].birth = Birth(type: type, rdev: attributes.rdev, target: target)
            objects[file]?.hasImage = true
            if type == S_IFREG { objects[file]?.bytes.truncate(to: attributes.size) }
        }
    }

    /// The surviving bytes of all files, in the order of their records.
    func survivors() -> [(file: FileID, piece: ByteFold.Piece)] {
        var all: [(file: FileID, piece: ByteFold.Piece)] = []
        for (file, object) in objects where !object.isRemoved {
            object.bytes.survivors { all.append((file, $0)) }
        }
        return all.sorted { ($0.piece.seq, $0.piece.offset) < ($1.piece.seq, $1.piece.offset) }
    }

    // MARK: Folding

    private mutating func put(_ file: FileID, _ parent: FileID, _ name: FileName, _ time: Int64) {
        names[parent, default: [:]][name] = file
        objects[parent, default: Object()].attributes.mtime = time
        objects[parent]?.mask.insert(.mtime)
    }

    private mutating func remove(_ file: FileID) {
        var gone = Object()
        gone.isRemoved = true
        objects[file] = gone
    }

    private mutating func create(
        _ file: FileID, _ attributes: FileAttributes, _ target: [UInt8], _ xattrs: [ExtendedAttribute], _ seq: Seq
    ) {
        let type = attributes.mode & S_IFMT
        var object = Object()
        object.birth = Birth(type: type, rdev: attributes.rdev, target: target)
        if type == S_IFREG {
            object.bytes = .empty
            if attributes.size > 0 { object.bytes.truncate(to: attributes.size) }
        }
        objects[file] = object
        setAll(file, attributes, xattrs, seq)
        if type == S_IFDIR {
            names[file] = names[file] ?? [:]
            complete.insert(file)
        }
    }

    private mutating func changedContents(_ file: FileID, _ time: Int64) {
        objects[file]?.attributes.mtime = time
        objects[file]?.mask.insert(.mtime)
        objects[file]?.xattrs.updateValue(nil, forKey: PlainTree.capabilityXattr)
    }

    private mutating func set(
        _ file: FileID, _ mask: AttributeMask, _ attributes: FileAttributes, _ seq: Seq, _ time: Int64
    ) {
        var object = objects[file] ?? Object()
        if mask.contains(.size) {
            object.bytes.truncate(to: attributes.size)
            object.attributes.mtime = time
            object.mask.insert(.mtime)
        }
        if !mask.isDisjoint(with: [.size, .uid, .gid]) {
            object.xattrs.updateValue(nil, forKey: PlainTree.capabilityXattr)
        }
        if mask.contains(.mode) {
            object.attributes.mode = attributes.mode
            object.modeSet = seq
        }
        if mask.contains(.uid) { object.attributes.uid = attributes.uid }
        if mask.contains(.gid) { object.attributes.gid = attributes.gid }
        if mask.contains(.atime) { object.attributes.atime = attributes.atime }
        if mask.contains(.mtime) { object.attributes.mtime = attributes.mtime }
        object.mask.formUnion(mask.subtracting(.size))
        objects[file] = object
    }

    private mutating func setXattr(_ file: FileID, _ name: FileName, _ value: [UInt8]?, _ seq: Seq) {
        objects[file, default: Object()].xattrs.updateValue(value, forKey: name)
        if name == ReplayPlan.acl { objects[file]?.aclSet = seq }
    }

    private mutating func setAll(
        _ file: FileID, _ attributes: FileAttributes, _ xattrs: [ExtendedAttribute], _ seq: Seq
    ) {
        var object = objects[file] ?? Object()
        object.isRemoved = false
        object.attributes = attributes
        object.mask = [.mode, .uid, .gid, .atime, .mtime]
        object.xattrs = [:]
        for xattr in xattrs { object.xattrs[xattr.name] = xattr.value }
        object.hasAllXattrs = true
        object.modeSet = seq
        object.aclSet = seq
        objects[file] = object
    }

    private mutating func imageDirectory(
        _ directory: FileID, isFirst: Bool, isLast: Bool, _ entries: [ImageEntry]
    ) {
        var known = isFirst ? [] : partial[directory] ?? []
        for entry in entries {
            known.insert(entry.name)
            names[directory, default: [:]][entry.name] = entry.file
            var object = objects[entry.file] ?? Object()
            object.isRemoved = false
            if object.birth == nil {
                object.birth = Birth(type: entry.mode & S_IFMT, rdev: 0, target: nil)
            }
            objects[entry.file] = object
        }
        objects[directory, default: Object()].birth = Birth(type: S_IFDIR, rdev: 0, target: nil)
        partial[directory] = isLast ? nil : known
        guard isLast else { return }
        for name in names[directory, default: [:]].keys where !known.contains(name) {
            names[directory]?[name] = FileID.none
        }
        complete.insert(directory)
    }
}
