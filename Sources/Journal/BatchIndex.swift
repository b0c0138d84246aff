internal import Format

/// Where one batch of the journal lies.
struct IndexEntry: Hashable, Sendable {
    var address: RingAddress
    var firstSeq: Seq
    var chain: UInt64
    var previousChain: UInt64
    var incarnation: Incarnation
    var length: UInt32
    var recordCount: UInt32
    var epoch: Epoch

    var lastSeq: Seq { firstSeq + (Int(recordCount) - 1) }
    var end: RingAddress { address + Int(length) }
}

/// The batches in the body ring, oldest first, without gaps: 64 bytes of memory each.
struct BatchIndex: Sendable {
    private var entries: [IndexEntry] = []
    private var start = 0

    var count: Int { entries.count - start }
    var isEmpty: Bool { count == 0 }
    var first: IndexEntry? { isEmpty ? nil : entries[start] }
    var last: IndexEntry? { isEmpty ? nil : entries[entries.count - 1] }
    subscript(index: Int) -> IndexEntry { entries[start + index] }

    mutating func append(_ entry: IndexEntry) {
        if let last {
            precondition(
                entry.firstSeq == last.lastSeq.next && entry.previousChain == last.chain && entry.address >= last.end,
                "the index has no gaps")
        }
        entries.append(entry)
    }

    mutating func removeFirst() {
        precondition(!isEmpty, "nothing to forget")
        start += 1
        if start > 4096, start > entries.count / 2 {
            entries.removeFirst(start)
            start = 0
        }
    }

    /// Removes what lies above `seq` and returns it.
    mutating func cut(to seq: Seq) -> [IndexEntry] {
        let keep = position(ofFirstAbove: seq)
        let removed = Array(entries[(start + keep)...])
        entries.removeLast(removed.count)
        return removed
    }

    mutating func removeAll() {
        entries = []
        start = 0
    }

    /// Position of the first batch whose last seq is above `seq`; `count` when there is none.
    func position(ofFirstAbove seq: Seq) -> Int {
        var low = 0
        var high = count
        while low < high {
            let middle = (low + high) / 2
            if self[middle].lastSeq > seq { high = middle } else { low = middle + 1 }
        }
        return low
    }

    /// Position of the first batch that starts at or behind `address`.
    func position(ofFirstAt address: RingAddress) -> Int {
        var low = 0
        var high = count
        while low < high {
            let middle = (low + high) / 2
            if self[middle].address >= address { high = middle } else { low = middle + 1 }
        }
        return low
    }
}
