import Format

/// What a resynchronisation of ranges asks the map, and what it takes out again.
extension DirtyMap {
    /// What is known of one object.
    public struct Changes: Sendable, Hashable {
        /// Names in it, if it is a directory.
        public var hasNames: Bool
        /// Bytes or size, if it is a regular file.
        public var hasContent: Bool
        public var hasAttributes: Bool
        /// The other node does not have it.
        public var isCreated: Bool
    }

    /// All objects, in the order of their numbers.
    public var files: [FileID] { (Array(objects.keys) + wholes.all + createdWholes.all).sorted() }

    /// Objects that were made since.
    public var created: [FileID] {
        (objects.filter { $0.value.flags.contains(.created) }.map(\.key) + createdWholes.all).sorted()
    }

    public func changes(of file: FileID) -> Changes? {
        if createdWholes.contains(file) {
            return Changes(hasNames: true, hasContent: true, hasAttributes: true, isCreated: true)
        }
        if wholes.contains(file) {
            return Changes(hasNames: true, hasContent: true, hasAttributes: true, isCreated: false)
        }
        guard let changes = objects[file] else { return nil }
        return Changes(
            hasNames: changes.flags.contains(.names), hasContent: changes.hasContent,
            hasAttributes: changes.flags.contains(.attributes), isCreated: changes.flags.contains(.created))
    }

    /// The first changed range of a file at or behind `offset`, in whole granules except at `size` and where a cut of
    /// the file began. Of about `limit` bytes at most.
    public func range(of file: FileID, from offset: UInt64, size: UInt64, limit: UInt64) -> Range<UInt64>? {
        guard offset < size else { return nil }
        let length = max(limit / granuleBytes, 1) * granuleBytes
        guard let changes = objects[file] else {
            guard wholes.contains(file) || createdWholes.contains(file) else { return nil }
            return offset..<min(size, offset / granuleBytes * granuleBytes + length)
        }
        var found: Range<UInt64>?
        if let run = changes.run(from: offset >> UInt64(shift)) {
            let start = max(offset, run.lowerBound << UInt64(shift))
            let end = min(run.upperBound << UInt64(shift), start / granuleBytes * granuleBytes + length)
            if start < end { found = start..<end }
        }
        let from = max(offset, changes.changedFrom)
        if changes.changedFrom != .max, from < size, found.map({ from < $0.lowerBound }) ?? true {
            found = from..<from / granuleBytes * granuleBytes + length
        }
        guard let found, found.lowerBound < size else { return nil }
        return found.lowerBound..<min(found.upperBound, size)
    }

    /// Bytes that `range` would give for a file of `size` bytes.
    public func changedBytes(of file: FileID, size: UInt64) -> UInt64 {
        guard let changes = objects[file] else { return isKnownWhole(file) ? size : 0 }
        var total: UInt64 = 0
        let end = min(size, changes.changedFrom)
        for chunk in changes.chunks {
            let base = chunk.index * UInt64(SmallSet.limit)
            guard base << UInt64(shift) < end else { break }
            total += UInt64(chunk.set.count) << UInt64(shift)
        }
        return min(total, end) + (size - end)
    }

    /// The bytes from where the file was cut, or all of a new one, up to `size`: what `extentBytes` leaves out.
    public func tailBytes(of file: FileID, size: UInt64) -> UInt64 {
        guard let changes = objects[file] else { return isKnownWhole(file) ? size : 0 }
        return size - min(size, changes.changedFrom)
    }

    private func isKnownWhole(_ file: FileID) -> Bool { wholes.contains(file) || createdWholes.contains(file) }

    /// An upper bound of what all extents hold, bytes; files changed from some byte to their end not included.
    public var extentBytes: UInt64 {
        objects.values.reduce(0) { sum, changes in
            sum + changes.chunks.reduce(0) { $0 + UInt64($1.set.count) } << UInt64(shift)
        }
    }

    // MARK: Taking out what the other node has on its disk

    /// Everything of this object is there.
    public mutating func forgetObject(_ file: FileID) { forget(file) }

    /// The other node has the object now, though not what is in it.
    public mutating func becomesKnown(_ file: FileID) { clearCreated(file) }

    /// `range`, as `range(of:from:size:limit:)` gave it, is there.
    public mutating func forgetContent(of file: FileID, _ range: Range<UInt64>) {
        guard !range.isEmpty else { return }
        removeExtents(of: file, range)
    }
}
