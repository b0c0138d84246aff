import Format

/// What has changed since a point in the mirror's order: which bytes of which files, which directories' names, whose
/// attributes. Pure, and bounded whatever is put in.
///
/// The rule it lives by: *more than what changed may be in it, never less*. So everything that makes it smaller makes it
/// coarser, and at the very end it says `isEverything`, which means that the files must be compared.
///
/// ```
///   objects   file -> { flags, changed from byte N on, chunks }     a chunk: 65,536 granules, 2 bytes or a bit each
///   wholes    files of which everything counts as changed           2 bytes each
///   when the budget is used up:
///     granules of 4 -> 16 -> 64 KiB -> 256 KiB ... 64 MiB   while the extents are what takes the room
///     files of few extents become wholes                    while it is the number of files
///     isEverything                                          when both are at their end
/// ```
///
/// | workload | memory |
/// |---|---|
/// | 10 million random 4 KiB writes in a database of 1 TiB | about 35 MiB, exact to 4 KiB |
/// | 500,000 new small files | about 50 MiB, exact |
/// | 10 million new files | about 20 MiB, as wholes, which they are |
public struct DirtyMap: Sendable {
    public static let defaultBudgetBytes = 64 << 20
    /// The finest granule: 4 KiB.
    static let finestShift: UInt8 = 12
    /// The coarsest one: 64 MiB.
    static let coarsestShift: UInt8 = 26
    /// Longer ranges, and ranges farther out, are taken for "from here to the end": a file system's limit is 8 EiB, and
    /// a list of 2^38 granules would be no bound.
    static let rangeLimit: UInt64 = 16 << 40

    /// As in `st_mode`.
    private static let typeMask: UInt32 = 0o170_000
    private static let directoryType: UInt32 = 0o040_000
    private static let regularType: UInt32 = 0o100_000

    let budgetBytes: Int
    private(set) var shift = DirtyMap.finestShift
    private(set) var objects: [FileID: ObjectChanges] = [:]
    /// Of these everything has changed, as far as is known.
    private(set) var wholes = ObjectSet()
    /// The same, and the other node does not have them.
    private(set) var createdWholes = ObjectSet()
    /// Too much to tell: compare the files.
    public private(set) var isEverything = false
    /// Of all extents, bytes.
    private var heapBytes = 0

    public init(budgetBytes: Int = DirtyMap.defaultBudgetBytes) { self.budgetBytes = budgetBytes }

    public var isEmpty: Bool { !isEverything && objects.isEmpty && wholes.isEmpty && createdWholes.isEmpty }

    /// Bytes of one granule: how exact the extents are.
    public var granuleBytes: UInt64 { 1 << UInt64(shift) }

    /// Memory, bytes: what the arrays and tables have been given, not only what they use.
    public var byteCount: Int { heapBytes + tableBytes(objects.capacity) + wholes.bytes + createdWholes.bytes }

    private func tableBytes(_ capacity: Int) -> Int {
        DirtyMap.tableBytes(capacity, stride: MemoryLayout<ObjectChanges>.stride + MemoryLayout<FileID>.stride)
    }

    /// A hash table of the standard library has a power of two of places, three quarters of them usable.
    static func tableBytes(_ capacity: Int, stride: Int) -> Int {
        guard capacity > 0 else { return 0 }
        let least = (capacity * 4 + 2) / 3
        let places = 1 << (Int.bitWidth - (least - 1).leadingZeroBitCount)
        return places * stride + places / 8
    }

    // MARK: - Noting

    /// Notes every record of a batch but images: whoever made those has what they bring, and whoever took them had it from
    /// there.
    public mutating func note(_ batch: Batch) {
        for record in batch.records where !record.isImage { note(record.body, length: record.payload.length) }
    }

    /// Notes what a record changes.
    /// - Parameter length: of a write's payload, bytes.
    public mutating func note(_ body: RecordBody, length: Int = 0) {
        guard !isEverything else { return }
        switch body {
        case .epochStart, .imageStart, .imageEnd, .verify: return
        case .write(let file, let offset), .repair(let file, let offset):
            noteContent(file, offset, UInt64(length), [.attributes])
        case .allocate(let file, let mode, let offset, let count):
            // Only PUNCH_HOLE (2) and ZERO_RANGE (16) change bytes; the others may make the file longer.
            noteContent(file, offset, mode & 0x12 != 0 ? count : 0, [.attributes, .size])
        case .setAttributes(let file, let mask, let attributes):
            noteContent(file, 0, 0, mask.contains(.size) ? [.attributes, .size] : [.attributes])
            // What was behind the new end is gone, what comes there later is noted when it comes.
            if mask.contains(.size) { noteEnd(file, attributes.size) }
        case .repairFile(let file, let attributes, _):
            noteContent(file, 0, 0, [.attributes, .size])
            noteEnd(file, attributes.size)
        case .setXattr(let file, _, _), .removeXattr(let file, _), .imageFile(let file, _, _, _):
            noteContent(file, 0, 0, [.attributes])
        case .create(let file, let parent, _, let attributes, _, _):
            let type = attributes.mode & DirtyMap.typeMask
            add(file, type == DirtyMap.directoryType ? [.created, .names] : [.created, .attributes])
            if type == DirtyMap.regularType { noteEnd(file, 0) }
            add(parent, [.names])
        case .link(_, let parent, _): add(parent, [.names])
        case .remove(let file, let parent, _, _, let wasLast):
            add(parent, [.names])
            if wasLast { forget(file) }
        case .rename(_, let parent, _, let newParent, _, let exchange, let replaced, let replacedWasLast):
            add(parent, [.names])
            add(newParent, [.names])
            if replacedWasLast, !exchange, replaced != .none { forget(replaced) }
        case .imageDirectory(let directory, _, _, _, _, _): add(directory, [.names])
        }
        keepWithinBudget()
    }

    private func isWhole(_ file: FileID) -> Bool { wholes.contains(file) || createdWholes.contains(file) }

    private mutating func add(_ file: FileID, _ flags: ObjectChanges.Flags) {
        guard !isWhole(file) else { return }
        objects[file, default: ObjectChanges()].flags.formUnion(flags)
    }

    private mutating func noteContent(
        _ file: FileID, _ offset: UInt64, _ length: UInt64, _ flags: ObjectChanges.Flags
    ) {
        guard !isWhole(file) else { return }
        let (end, isOver) = offset.addingReportingOverflow(length)
        guard !isOver, length <= DirtyMap.rangeLimit, end <= UInt64(Int64.max) else {
            objects[file, default: ObjectChanges()].flags.formUnion(flags)
            return noteEnd(file, offset)
        }
        add(file, flags)
        guard length > 0, let changedFrom = objects[file]?.changedFrom, offset < changedFrom else { return }
        let granules = offset >> UInt64(shift)..<((end - 1) >> UInt64(shift)) + 1
        let grown = objects[file]?.insert(granules: granules) ?? 0
        heapBytes += grown
    }

    private mutating func noteEnd(_ file: FileID, _ end: UInt64) {
        guard !isWhole(file) else { return }
        let before = objects[file]?.changedFrom ?? .max
        guard end < before else { return }
        objects[file, default: ObjectChanges()].changedFrom = end
        // What lies wholly behind it is said twice.
        guard let changes = objects[file], !changes.chunks.isEmpty else { return }
        heapBytes -= changes.heapBytes
        let granuleBytes = granuleBytes
        objects[file]?.remove(granulesFrom: end, granuleBytes: granuleBytes)
        heapBytes += objects[file]?.heapBytes ?? 0
    }

    /// The object is gone from the mirror.
    mutating func forget(_ file: FileID) {
        wholes.remove(file)
        createdWholes.remove(file)
        guard let changes = objects.removeValue(forKey: file) else { return }
        heapBytes -= changes.heapBytes
    }

    /// Adds what `other` holds.
    public mutating func formUnion(_ other: DirtyMap) {
        guard !isEverything else { return }
        if other.isEverything { return giveUp() }
        var other = other
        while other.shift < shift { other.coarsenExtents() }
        while shift < other.shift { coarsenExtents() }
        for file in other.wholes.all { makeWhole(file, isCreated: false) }
        for file in other.createdWholes.all { makeWhole(file, isCreated: true) }
        for file in other.objects.keys.sorted() {
            guard let changes = other.objects[file] else { continue }
            guard !isWhole(file) else {
                if changes.flags.contains(.created) { makeWhole(file, isCreated: true) }
                continue
            }
            heapBytes -= objects[file]?.heapBytes ?? 0
            let granuleBytes = granuleBytes
            objects[file, default: ObjectChanges()].formUnion(changes, granuleBytes: granuleBytes)
            heapBytes += objects[file]?.heapBytes ?? 0
            keepWithinBudget()
            guard !isEverything else { return }
            // It may have become coarser on the way.
            if other.shift < shift { return formUnion(other) }
        }
        keepWithinBudget()
    }

    mutating func clearCreated(_ file: FileID) {
        if createdWholes.contains(file) {
            createdWholes.remove(file)
            wholes.insert(file)
        }
        objects[file]?.flags.remove(.created)
    }

    mutating func removeExtents(of file: FileID, _ range: Range<UInt64>) {
        guard let changes = objects[file] else { return }
        heapBytes -= changes.heapBytes
        let granules = range.lowerBound >> UInt64(shift)..<((range.upperBound - 1) >> UInt64(shift)) + 1
        objects[file]?.remove(granules: granules)
        heapBytes += objects[file]?.heapBytes ?? 0
        // A file that is new, or was cut, is sent from there to its end, piece by piece.
        if range.lowerBound <= changes.changedFrom, changes.changedFrom < range.upperBound {
            objects[file]?.changedFrom = range.upperBound
        }
    }

    init(
        shift: UInt8, isEverything: Bool, objects: [FileID: ObjectChanges], wholes: ObjectSet, createdWholes: ObjectSet,
        budgetBytes: Int
    ) {
        self.budgetBytes = budgetBytes
        self.shift = shift
        self.isEverything = isEverything
        self.objects = objects
        self.wholes = wholes
        self.createdWholes = createdWholes
        heapBytes = objects.values.reduce(0) { $0 + $1.heapBytes }
        keepWithinBudget()
    }

    // MARK: - The bound

    private mutating func keepWithinBudget() {
        while byteCount > budgetBytes, !isEverything {
            if heapBytes * 2 >= byteCount, shift < DirtyMap.coarsestShift {
                coarsenExtents()
            } else {
                makeWholes()
            }
        }
    }

    private mutating func coarsenExtents() {
        precondition(shift < DirtyMap.coarsestShift, "coarser than the coarsest")
        shift += 2
        heapBytes = 0
        for file in Array(objects.keys) {
            objects[file]?.coarsen()
            heapBytes += objects[file]?.heapBytes ?? 0
        }
    }

    /// Files that lose least first: new ones, of which everything is sent anyway; then those of one chunk at most; then
    /// all.
    private mutating func makeWholes() {
        let goal = budgetBytes / 2
        let rounds: [(ObjectChanges) -> Bool] = [
            { $0.flags.contains(.created) && $0.changedFrom == 0 },
            { $0.chunks.count <= 1 },
            { _ in true },
        ]
        for isChosen in rounds {
            for file in objects.filter({ isChosen($0.value) }).keys.sorted() {
                guard let changes = objects[file] else { continue }
                makeWhole(file, isCreated: changes.flags.contains(.created))
            }
            // A new table: the old one keeps its size.
            objects = Dictionary(uniqueKeysWithValues: objects.map { ($0.key, $0.value) })
            if byteCount <= goal { return }
        }
        if byteCount > budgetBytes { giveUp() }
    }

    private mutating func makeWhole(_ file: FileID, isCreated: Bool) {
        if let changes = objects.removeValue(forKey: file) {
            heapBytes -= changes.heapBytes
            if changes.flags.contains(.created) { return turn(file, isCreated: true) }
        }
        turn(file, isCreated: isCreated || createdWholes.contains(file))
    }

    private mutating func turn(_ file: FileID, isCreated: Bool) {
        if isCreated {
            wholes.remove(file)
            createdWholes.insert(file)
        } else {
            wholes.insert(file)
        }
    }

    private mutating func giveUp() {
        self = DirtyMap(budgetBytes: budgetBytes)
        isEverything = true
    }
}

extension ObjectChanges {
    /// Forgets the granules that lie wholly behind `byte`.
    mutating func remove(granulesFrom byte: UInt64, granuleBytes: UInt64) {
        guard !chunks.isEmpty, byte <= UInt64(Int64.max) else { return }
        remove(granules: (byte + granuleBytes - 1) / granuleBytes..<UInt64.max)
    }

    mutating func formUnion(_ other: ObjectChanges, granuleBytes: UInt64) {
        flags.formUnion(other.flags)
        changedFrom = min(changedFrom, other.changedFrom)
        for chunk in other.chunks {
            var position = 0
            while let run = chunk.set.run(from: position) {
                let base = chunk.index * UInt64(SmallSet.limit)
                _ = insert(granules: base + UInt64(run.lowerBound)..<base + UInt64(run.upperBound))
                position = run.upperBound
            }
        }
        if changedFrom != .max { remove(granulesFrom: changedFrom, granuleBytes: granuleBytes) }
    }
}
