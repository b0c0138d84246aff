import Format

// When the two rooms differ, the journal may prove which one is right: its payloads carry checksums, and the last record
// that touched a byte says what that byte is. Pure: records go in, in their order, and what they prove comes out.

/// What the journal proves of a range of one file's content.
public struct ContentEvidence: Sendable {
    public let file: FileID
    public let offset: UInt64
    /// What each byte must be; meaningful where `known`.
    public private(set) var bytes: [UInt8]
    public private(set) var known: [Bool]

    public init(file: FileID, offset: UInt64, length: Int) {
        self.file = file
        self.offset = offset
        bytes = [UInt8](repeating: 0, count: length)
        known = [Bool](repeating: false, count: length)
    }

    /// - Parameter payload: of a write or repair; asked for only when the record is about these bytes.
    ///
    /// An image says what a disk held, which may have been wrong; a record that the application made says what it must
    /// hold, and an image is of what was in the files by then. So an image proves only bytes that nothing else does.
    public mutating func add(_ record: Record, payload: () -> [UInt8]) {
        let isImage = record.isImage
        switch record.body {
        case .write(file, let start), .repair(file, let start):
            guard let place = overlap(start, start &+ UInt64(record.payload.length)) else { return }
            let payload = payload()
            let shift = Int(truncatingIfNeeded: Int64(bitPattern: offset &- start))
            for index in place where !isImage || !known[index] {
                bytes[index] = payload[index + shift]
                known[index] = true
            }
        case .allocate(file, let mode, let start, let length) where mode & 0x12 != 0:
            // PUNCH_HOLE (2), ZERO_RANGE (16).
            let (end, overflow) = start.addingReportingOverflow(length)
            zero(start, overflow ? .max : end, isImage)
        case .setAttributes(file, let mask, let attributes) where mask.contains(.size):
            zero(attributes.size, .max, isImage)
        case .imageFile(file, let attributes, _, _): zero(attributes.size, .max, true)
        case .repairFile(file, let attributes, _): zero(attributes.size, .max, false)
        case .create(file, _, _, _, _, _): zero(0, .max, isImage)
        default: return
        }
    }

    /// Forgets everything: records between those seen and those to come cannot be read any more.
    public mutating func restart() { known = [Bool](repeating: false, count: known.count) }

    /// Contents that only one room can read, with everything that is proved of them: that room may be wrong too.
    public func correcting(_ contents: [UInt8]) -> [UInt8] {
        precondition(contents.count == bytes.count, "the contents of the range")
        var right = contents
        for index in right.indices where known[index] { right[index] = bytes[index] }
        return right
    }

    private func overlap(_ start: UInt64, _ end: UInt64) -> Range<Int>? {
        let low = max(start, offset)
        let high = min(end, offset + UInt64(bytes.count))
        return low < high ? Int(low - offset)..<Int(high - offset) : nil
    }

    private mutating func zero(_ start: UInt64, _ end: UInt64, _ isImage: Bool) {
        guard let place = overlap(start, end) else { return }
        for index in place where !isImage || !known[index] {
            bytes[index] = 0
            known[index] = true
        }
    }

    /// Which of two contents of a block is right.
    public enum Verdict: Sendable, Equatable {
        /// This is the content; both rooms may be wrong in places.
        case proved([UInt8])
        /// Some byte that differs was last written before the journal begins.
        case unproved
    }

    /// - Parameters:
    ///   - place: in the range; a block.
    ///   - mine, theirs: of the range, equally long.
    public func judge(_ place: Range<Int>, mine: [UInt8], theirs: [UInt8]) -> Verdict {
        precondition(mine.count == theirs.count && place.upperBound <= mine.count, "contents of one length")
        var right = Array(mine[place])
        for index in place where mine[index] != theirs[index] {
            guard known[index] else { return .unproved }
            right[index - place.lowerBound] = bytes[index]
        }
        return .proved(right)
    }
}

/// What the journal proves of a file's attributes and extended attributes.
public struct AttributeEvidence: Sendable {
    public let file: FileID
    private var mask: AttributeMask = []
    private var attributes = FileAttributes(mode: 0, uid: 0, gid: 0)
    /// nil: it has none of that name.
    private var xattrs: [FileName: [UInt8]?] = [:]
    private var hasAllXattrs = false

    public init(file: FileID) { self.file = file }

    public mutating func restart() { self = AttributeEvidence(file: file) }

    public mutating func add(_ record: Record) {
        let time = record.time
        switch record.body {
        case .create(file, let parent, _, let all, _, let list):
            setAll(all, list)
            if parent == file { changed(time) }
        case .imageFile(file, let all, _, let list), .repairFile(file, let all, let list): setAll(all, list)
        case .imageDirectory(file, let all, let list, _, _, _): setAll(all, list)
        case .setAttributes(file, let new, let values): set(new, values, time)
        case .write(file, let offset):
            grow(offset + UInt64(record.payload.length))
            changed(time)
            xattrs.updateValue(nil, forKey: AttributeEvidence.capability)
        case .allocate(file, let mode, let offset, let length):
            if mode & 1 == 0 { grow(offset &+ length) }
            changed(time)
            xattrs.updateValue(nil, forKey: AttributeEvidence.capability)
        case .setXattr(file, let name, let value): xattrs.updateValue(value, forKey: name)
        case .removeXattr(file, let name): xattrs.updateValue(nil, forKey: name)
        case .create(_, file, _, _, _, _), .link(_, file, _), .remove(_, file, _, _, _): changed(time)
        case .rename(_, let parent, _, let newParent, _, _, _, _):
            if parent == file || newParent == file { changed(time) }
        default: return
        }
    }

    private static let capability: FileName = Array("security.capability".utf8)

    private mutating func changed(_ time: Int64) {
        attributes.mtime = time
        mask.insert(.mtime)
    }

    private mutating func grow(_ end: UInt64) { attributes.size = max(attributes.size, end) }

    private mutating func set(_ new: AttributeMask, _ values: FileAttributes, _ time: Int64) {
        if new.contains(.size) {
            attributes.size = values.size
            changed(time)
        }
        if new.contains(.mode) { attributes.mode = values.mode }
        if new.contains(.uid) { attributes.uid = values.uid }
        if new.contains(.gid) { attributes.gid = values.gid }
        if new.contains(.mtime) { attributes.mtime = values.mtime }
        mask.formUnion(new)
    }

    private mutating func setAll(_ all: FileAttributes, _ list: [ExtendedAttribute]) {
        attributes = all
        mask = .all
        xattrs = [:]
        for xattr in list { xattrs[xattr.name] = xattr.value }
        hasAllXattrs = true
    }

    /// What the file must have; nil when something that differs was last set before the journal begins.
    public func judge(_ mine: VerifiedFile, _ theirs: VerifiedFile) -> (FileAttributes, [ExtendedAttribute])? {
        var right = mine.attributes
        func take<Value: Equatable>(_ one: AttributeMask, _ path: WritableKeyPath<FileAttributes, Value>) -> Bool {
            guard mine.attributes[keyPath: path] != theirs.attributes[keyPath: path] else { return true }
            guard mask.contains(one) else { return false }
            right[keyPath: path] = attributes[keyPath: path]
            return true
        }
        // A record of the mode has the permission bits, the type is the file's own.
        let type: UInt32 = 0o170000
        guard mine.attributes.mode & type == theirs.attributes.mode & type, take(.mode, \.mode), take(.uid, \.uid),
            take(.gid, \.gid), take(.mtime, \.mtime), take(.size, \.size)
        else { return nil }
        right.mode = right.mode & ~type | mine.attributes.mode & type
        guard let list = judgeXattrs(mine, theirs) else { return nil }
        return (right, list)
    }

    private func judgeXattrs(_ mine: VerifiedFile, _ theirs: VerifiedFile) -> [ExtendedAttribute]? {
        guard mine.xattrHash != theirs.xattrHash else { return mine.xattrs }
        // Too long for one message: nothing to compare.
        guard mine.xattrs != theirs.xattrs else { return nil }
        let ours = Dictionary(mine.xattrs.map { ($0.name, $0.value) }) { first, _ in first }
        let others = Dictionary(theirs.xattrs.map { ($0.name, $0.value) }) { first, _ in first }
        var right: [ExtendedAttribute] = []
        let names = Set(ours.keys).union(others.keys).sorted { $0.lexicographicallyPrecedes($1) }
        for name in names {
            if ours[name] == others[name] {
                if let value = ours[name] { right.append(ExtendedAttribute(name: name, value: value)) }
            } else if let found = xattrs[name] {
                if let value = found { right.append(ExtendedAttribute(name: name, value: value)) }
            } else if !hasAllXattrs {
                return nil
            }
        }
        return right
    }
}
