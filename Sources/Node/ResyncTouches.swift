import Format

/// What the application has changed lately, while a comparison of the files runs: so that an image is never older than
/// a record that comes before it in the order.
///
/// A worker reads the plain file while records of the same file are logged and applied. Of what it read, every byte that
/// a record from `since` on has changed may be old. Those bytes need no image: the record itself brings them to the
/// other node, which has known the file since before `since`. So an image is what was read, less what was touched.
///
/// Holds the records since the oldest read in flight, or since the last applied one: bounded by what can be logged in
/// the time of one read.
struct TouchLog {
    struct Touch {
        var seq: Seq
        var file: FileID
        /// Bytes whose content the record brings; empty for other changes.
        var start: UInt64 = 0
        var end: UInt64 = 0
        /// Changes extended attributes, or (mode) may: an ACL is both.
        var changesAttributes = false
        /// The file's last name goes.
        var removes = false
    }

    private var touches: [Touch] = []
    private var head = 0

    var count: Int { touches.count - head }

    /// - Parameter length: of a write's payload, bytes.
    mutating func note(_ seq: Seq, _ body: RecordBody, length: Int) {
        switch body {
        case .write(let file, let offset), .repair(let file, let offset):
            touches.append(Touch(seq: seq, file: file, start: offset, end: offset + UInt64(length)))
        case .allocate(let file, let mode, let offset, let length):
            // Without PUNCH_HOLE (2) or ZERO_RANGE (16) the content stays what it is, in both rooms.
            let bringsZeros = mode & 0x12 != 0
            touches.append(
                Touch(seq: seq, file: file, start: offset, end: bringsZeros ? offset + length : offset))
        case .repairFile(let file, let attributes, _):
            touches.append(Touch(seq: seq, file: file, start: attributes.size, end: .max, changesAttributes: true))
        case .verify: return
        case .setAttributes(let file, let mask, let attributes):
            // A shorter file has nothing behind its end, a longer one a hole: the record brings that too.
            let bringsEnd = mask.contains(.size)
            touches.append(
                Touch(
                    seq: seq, file: file, start: bringsEnd ? attributes.size : 0, end: bringsEnd ? .max : 0,
                    changesAttributes: true))
        case .setXattr(let file, _, _), .removeXattr(let file, _):
            touches.append(Touch(seq: seq, file: file, changesAttributes: true))
        default:
            for file in body.touched { touches.append(Touch(seq: seq, file: file, removes: file == body.removed)) }
        }
    }

    /// Forgets records up to `seq`.
    mutating func prune(through seq: Seq) {
        while head < touches.count, touches[head].seq <= seq { head += 1 }
        if head == touches.count {
            touches.removeAll(keepingCapacity: touches.count <= 65_536)
            head = 0
        } else if head > 4096, head * 2 > touches.count {
            touches.removeFirst(head)
            head = 0
        }
    }

    /// The index of the first record above `seq`.
    private func first(after seq: Seq) -> Int {
        var low = head
        var high = touches.count
        while low < high {
            let middle = (low + high) / 2
            if touches[middle].seq <= seq { low = middle + 1 } else { high = middle }
        }
        return low
    }

    /// Whether any record above `seq` is about this file or directory.
    func isTouched(_ file: FileID, after seq: Seq, attributesOnly: Bool = false) -> Bool {
        touches[first(after: seq)...].contains { $0.file == file && (!attributesOnly || $0.changesAttributes) }
    }

    /// Whether the file's last name has gone with a record above `seq`.
    func isRemoved(_ file: FileID, after seq: Seq) -> Bool {
        touches[first(after: seq)...].contains { $0.file == file && $0.removes }
    }

    /// What is left of [start, end) when everything is taken away that records above `seq` bring.
    func untouched(_ file: FileID, after seq: Seq, _ start: UInt64, _ end: UInt64) -> [Range<UInt64>] {
        var left = start < end ? [start..<end] : []
        for touch in touches[first(after: seq)...] where touch.file == file && touch.start < touch.end {
            guard touch.start < end, touch.end > start else { continue }
            var next: [Range<UInt64>] = []
            for range in left {
                guard range.overlaps(touch.start..<touch.end) else {
                    next.append(range)
                    continue
                }
                if range.lowerBound < touch.start { next.append(range.lowerBound..<touch.start) }
                if range.upperBound > touch.end { next.append(touch.end..<range.upperBound) }
            }
            left = next
            if left.isEmpty { break }
        }
        return left
    }
}
