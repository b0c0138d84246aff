import Format

/// What has changed of one object since a point in the order.
struct ObjectChanges: Sendable {
    struct Flags: OptionSet, Sendable, Hashable {
        let rawValue: UInt8
        /// Names in this directory.
        static let names = Flags(rawValue: 1)
        /// Owner, mode, times, extended attributes.
        static let attributes = Flags(rawValue: 2)
        /// Made since: the other node does not have it.
        static let created = Flags(rawValue: 4)
        /// The size may have changed, although no byte is listed.
        static let size = Flags(rawValue: 8)
        static let all: Flags = [.names, .attributes, .created, .size]
    }

    /// 65,536 granules of the file.
    struct Chunk: Sendable {
        var index: UInt64
        var set = SmallSet()
    }

    var flags: Flags = []
    /// Everything from this byte on: the file was cut there, or is new.
    var changedFrom = UInt64.max
    /// By index.
    var chunks: [Chunk] = []

    var hasContent: Bool { changedFrom != .max || !chunks.isEmpty || flags.contains(.size) }
    var isNothing: Bool { flags.isEmpty && changedFrom == .max && chunks.isEmpty }

    /// Memory beside the struct itself, bytes; counts every chunk.
    var heapBytes: Int { chunks.reduce(listBytes) { $0 + $1.set.heapBytes } }
    private var listBytes: Int {
        chunks.capacity == 0 ? 0 : SmallSet.arrayOverhead + chunks.capacity * MemoryLayout<Chunk>.stride
    }

    /// The index in `chunks` of the first chunk not below `index`.
    private func position(of index: UInt64) -> Int {
        guard let last = chunks.last, last.index >= index else { return chunks.count }
        var low = 0
        var high = chunks.count
        while low < high {
            let middle = (low + high) / 2
            if chunks[middle].index < index { low = middle + 1 } else { high = middle }
        }
        return low
    }

    /// Notes `range` in granules.
    /// - Returns: by how many bytes the memory grew.
    mutating func insert(granules range: Range<UInt64>) -> Int {
        var grown = 0
        var position = range.lowerBound
        while position < range.upperBound {
            let index = position / UInt64(SmallSet.limit)
            let base = index * UInt64(SmallSet.limit)
            let end = min(range.upperBound, base + UInt64(SmallSet.limit))
            let place = self.position(of: index)
            if place == chunks.count || chunks[place].index != index {
                let before = listBytes
                chunks.insert(Chunk(index: index), at: place)
                grown += listBytes - before
            }
            let before = chunks[place].set.heapBytes
            chunks[place].set.insert(Int(position - base)..<Int(end - base))
            grown += chunks[place].set.heapBytes - before
            position = end
        }
        return grown
    }

    mutating func remove(granules range: Range<UInt64>) {
        var place = position(of: range.lowerBound / UInt64(SmallSet.limit))
        while place < chunks.count {
            let base = chunks[place].index * UInt64(SmallSet.limit)
            guard base < range.upperBound else { break }
            let start = max(range.lowerBound, base) - base
            let end = min(range.upperBound - base, UInt64(SmallSet.limit))
            chunks[place].set.remove(Int(start)..<Int(end))
            if chunks[place].set.isEmpty { chunks.remove(at: place) } else { place += 1 }
        }
        if chunks.isEmpty { chunks = [] }
    }

    /// The first run of granules at or above `start`, within one chunk or over neighbouring ones.
    func run(from start: UInt64) -> Range<UInt64>? {
        let limit = UInt64(SmallSet.limit)
        var place = position(of: start / limit)
        var found: Range<UInt64>?
        while place < chunks.count {
            let base = chunks[place].index * limit
            let from = found?.upperBound ?? max(start, base)
            guard from >= base, let run = chunks[place].set.run(from: Int(from - base)) else {
                if found != nil { break }
                place += 1
                continue
            }
            let range = base + UInt64(run.lowerBound)..<base + UInt64(run.upperBound)
            if let before = found {
                guard range.lowerBound == before.upperBound else { break }
                found = before.lowerBound..<range.upperBound
            } else {
                found = range
            }
            // Only a run that reaches the end of its chunk can go on in the next.
            guard range.upperBound == base + limit, place + 1 < chunks.count,
                chunks[place + 1].index == chunks[place].index + 1
            else { break }
            place += 1
        }
        return found
    }

    /// Granules become four times as large.
    mutating func coarsen() {
        var coarse: [Chunk] = []
        let quarter = SmallSet.limit / 4
        for chunk in chunks {
            let index = chunk.index / 4
            if coarse.last?.index != index { coarse.append(Chunk(index: index)) }
            chunk.set.coarsened(
                by: 2, offset: Int(chunk.index % 4) * quarter, into: &coarse[coarse.count - 1].set)
        }
        chunks = coarse
    }
}

/// A set of objects, two bytes each when their numbers are close together.
struct ObjectSet: Sendable {
    private(set) var sets: [UInt64: SmallSet] = [:]
    private(set) var heapBytes = 0

    var isEmpty: Bool { sets.isEmpty }
    var bytes: Int { heapBytes + DirtyMap.tableBytes(sets.capacity, stride: MemoryLayout<SmallSet>.stride + 8) }

    func contains(_ file: FileID) -> Bool {
        guard !sets.isEmpty else { return false }
        return sets[file.rawValue >> 16]?.contains(Int(file.rawValue & 0xFFFF)) ?? false
    }

    mutating func insert(_ file: FileID) {
        let low = Int(file.rawValue & 0xFFFF)
        let before = sets[file.rawValue >> 16]?.heapBytes ?? 0
        sets[file.rawValue >> 16, default: SmallSet()].insert(low..<low + 1)
        heapBytes += (sets[file.rawValue >> 16]?.heapBytes ?? 0) - before
    }

    mutating func remove(_ file: FileID) {
        guard contains(file), var set = sets.removeValue(forKey: file.rawValue >> 16) else { return }
        heapBytes -= set.heapBytes
        let low = Int(file.rawValue & 0xFFFF)
        set.remove(low..<low + 1)
        guard !set.isEmpty else { return }
        heapBytes += set.heapBytes
        sets[file.rawValue >> 16] = set
    }

    var all: [FileID] {
        var found: [FileID] = []
        for high in sets.keys.sorted() {
            var position = 0
            while let run = sets[high]?.run(from: position) {
                for low in run { found.append(FileID(rawValue: high << 16 | UInt64(low))) }
                position = run.upperBound
            }
        }
        return found
    }

    mutating func formUnion(_ other: ObjectSet) {
        for (high, set) in other.sets { sets[high, default: SmallSet()].formUnion(set) }
        heapBytes = sets.values.reduce(0) { $0 + $1.heapBytes }
    }

    func encode(into writer: inout ByteWriter) {
        writer.put(UInt32(sets.count))
        for high in sets.keys.sorted() {
            writer.put(high)
            sets[high]?.encode(into: &writer)
        }
    }

    init() {}

    init(decoding reader: inout ByteReader) throws(DecodingError) {
        var last: UInt64?
        for _ in 0..<(try reader.get(UInt32.self, "sets of objects")) {
            let high = try reader.get(UInt64.self, "objects")
            if let last, high <= last { throw DecodingError("objects out of order", at: reader.offset - 8) }
            last = high
            let set = try SmallSet(decoding: &reader)
            heapBytes += set.heapBytes
            sets[high] = set
        }
    }
}
