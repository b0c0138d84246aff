internal import Format

/// What many writes, truncations and holes in one file amount to: which bytes of which record survive to the end. Pure.
///
/// Redoing all of them would need more space than the final state has (write f1, truncate f1, write f2 on a full disk);
/// redoing the survivors never does.
///
/// Bytes that no record touched are not mentioned: they are on the disk as they were at the checkpoint.
struct ByteFold: Equatable {
    /// Bytes of a record's payload that nothing later changed.
    struct Piece: Equatable {
        var seq: Seq
        /// In the file, bytes.
        var offset: UInt64
        var length: UInt64
        /// In the record's payload.
        var start: UInt64
        var end: UInt64 { offset + length }
    }

    /// A range whose allocation changed; done before the data is written, so later writes need not be cut out.
    struct Range: Equatable {
        var mode: UInt32
        var offset: UInt64
        var length: UInt64
    }

    /// The size, if a record set it; then it is at least `minimum` too.
    private(set) var size: UInt64?
    /// Where writes and allocations reached since then.
    private(set) var minimum: UInt64 = 0
    /// Everything from here on was cut off at some time, so that nothing the disk has there counts; nil: never.
    private(set) var cutFrom: UInt64?
    private(set) var ranges: [Range] = []
    /// Pieces by the part of the file they lie in, each list in order and without overlaps; so that a file with
    /// hundreds of thousands of random writes costs a short list for each.
    private var parts: [UInt64: [Piece]] = [:]
    static let partBytes: UInt64 = 256 << 10

    static let keepSize: UInt32 = 1
    static let punchOrZero: UInt32 = 0x02 | 0x10

    /// A file that is made: empty, whatever is on the disk under its number.
    static let empty = {
        var fold = ByteFold()
        fold.truncate(to: 0)
        return fold
    }()

    /// Nothing of the file's contents or size changes.
    var isEmpty: Bool { size == nil && minimum == 0 && ranges.isEmpty && parts.isEmpty }

    /// The size at the end for a file that has `current` bytes now: any mixture of states between the checkpoint and
    /// the end, so without a truncation never more than at the end.
    func finalSize(from current: UInt64) -> UInt64 { max(size ?? current, minimum) }

    mutating func write(_ seq: Seq, offset: UInt64, length: UInt64) {
        guard length > 0 else { return }
        remove(offset, offset + length)
        for (part, start, end) in ByteFold.parts(of: offset, offset + length) {
            let piece = Piece(seq: seq, offset: start, length: end - start, start: start - offset)
            var list = parts[part] ?? []
            list.insert(piece, at: list.firstIndex { $0.offset > start } ?? list.count)
            parts[part] = list
        }
        minimum = max(minimum, offset + length)
    }

    mutating func truncate(to length: UInt64) {
        size = length
        minimum = 0
        cutFrom = min(cutFrom ?? length, length)
        for part in parts.keys where (part + 1) * ByteFold.partBytes > length { cut(part, length, .max) }
        ranges = ranges.compactMap { range in
            guard range.offset < length else { return nil }
            var range = range
            range.length = min(range.length, length - range.offset)
            return range
        }
    }

    /// `fallocate`: modes 0, keep size, punch hole, zero range.
    mutating func allocate(mode: UInt32, offset: UInt64, length: UInt64) {
        if mode & ByteFold.punchOrZero != 0 { remove(offset, offset + length) }
        ranges.append(Range(mode: mode | ByteFold.keepSize, offset: offset, length: length))
        if mode & ByteFold.keepSize == 0 { minimum = max(minimum, offset + length) }
    }

    /// All survivors, in no order.
    func survivors(_ body: (Piece) -> Void) {
        for list in parts.values { for piece in list { body(piece) } }
    }

    private mutating func remove(_ start: UInt64, _ end: UInt64) {
        let wide = (end - start) / ByteFold.partBytes > UInt64(parts.count)
        if wide {
            // A huge hole: only the parts that there are.
            for part in parts.keys { cut(part, start, end) }
        } else {
            for (part, _, _) in ByteFold.parts(of: start, end) { cut(part, start, end) }
        }
    }

    private static func parts(of start: UInt64, _ end: UInt64) -> [(part: UInt64, start: UInt64, end: UInt64)] {
        var found: [(UInt64, UInt64, UInt64)] = []
        var position = start
        while position < end {
            let part = position / partBytes
            let stop = min(end, (part + 1) * partBytes)
            found.append((part, position, stop))
            position = stop
        }
        return found
    }

    /// Takes [start, end) out of one part's pieces.
    private mutating func cut(_ part: UInt64, _ start: UInt64, _ end: UInt64) {
        guard let list = parts[part] else { return }
        var kept: [Piece] = []
        for piece in list {
            if piece.end <= start || piece.offset >= end {
                kept.append(piece)
                continue
            }
            if piece.offset < start {
                var left = piece
                left.length = start - piece.offset
                kept.append(left)
            }
            if piece.end > end {
                var right = piece
                right.offset = end
                right.length = piece.end - end
                right.start = piece.start + (end - piece.offset)
                kept.append(right)
            }
        }
        parts[part] = kept.isEmpty ? nil : kept
    }
}
