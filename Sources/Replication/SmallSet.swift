import Format

/// A set of 16-bit numbers that is small in memory whatever is in it: a sorted list while there are few, a bit map when
/// there are many, nothing at all when all are in it.
///
/// ```
///   values   up to 2048 numbers, sorted, 2 bytes each       (an array of 2048 may have been given 4 KiB)
///   bits     1024 words, 8 KiB                              from then on
///   isFull   neither
/// ```
///
/// Three plain fields and no enum with payloads: a number is added in place, without a copy of the list.
struct SmallSet: Sendable {
    static let limit = 65_536
    static let valueLimit = 2048
    static let words = limit / 64
    /// What the allocator and the array's own head cost, bytes.
    static let arrayOverhead = 48
    /// A run of so many numbers goes into a bit map at once.
    private static let runForBits = 256

    private var values: [UInt16] = []
    private var bits: [UInt64] = []
    private(set) var isFull = false

    var isEmpty: Bool { !isFull && values.isEmpty && bits.isEmpty }

    /// Memory beside the struct itself, bytes.
    var heapBytes: Int {
        (values.capacity == 0 ? 0 : SmallSet.arrayOverhead + values.capacity * 2)
            + (bits.capacity == 0 ? 0 : SmallSet.arrayOverhead + bits.capacity * 8)
    }

    var count: Int {
        if isFull { return SmallSet.limit }
        return bits.isEmpty ? values.count : bits.reduce(0) { $0 + $1.nonzeroBitCount }
    }

    func contains(_ value: Int) -> Bool {
        if isFull { return true }
        if !bits.isEmpty { return bits[value / 64] & 1 << UInt64(value % 64) != 0 }
        let place = position(of: UInt16(value))
        return place < values.count && values[place] == value
    }

    /// The index of the first number not below `value`.
    private func position(of value: UInt16) -> Int {
        guard let last = values.last, last >= value else { return values.count }
        var low = 0
        var high = values.count
        while low < high {
            let middle = (low + high) / 2
            if values[middle] < value { low = middle + 1 } else { high = middle }
        }
        return low
    }

    // MARK: Adding

    /// Adds every number of `range`.
    mutating func insert(_ range: Range<Int>) {
        precondition(range.lowerBound >= 0 && range.upperBound <= SmallSet.limit, "beyond 16 bits")
        guard !isFull, !range.isEmpty else { return }
        if range.count == SmallSet.limit { return fill() }
        if bits.isEmpty, range.count >= SmallSet.runForBits || values.count + range.count > SmallSet.valueLimit {
            spread()
        }
        guard bits.isEmpty else { return setBits(range) }
        for value in range {
            let place = position(of: UInt16(value))
            if place < values.count, values[place] == value { continue }
            if place == values.count { values.append(UInt16(value)) } else { values.insert(UInt16(value), at: place) }
        }
    }

    private mutating func fill() {
        isFull = true
        values = []
        bits = []
    }

    /// From the list to the bit map.
    private mutating func spread() {
        bits = [UInt64](repeating: 0, count: SmallSet.words)
        for value in values { bits[Int(value) / 64] |= 1 << UInt64(value % 64) }
        values = []
    }

    private mutating func setBits(_ range: Range<Int>) {
        let isLong = range.count >= SmallSet.runForBits
        forWords(range) { word, mask, bits in bits[word] |= mask }
        if isLong, bits.allSatisfy({ $0 == .max }) { fill() }
    }

    private mutating func forWords(_ range: Range<Int>, _ body: (Int, UInt64, inout [UInt64]) -> Void) {
        var position = range.lowerBound
        while position < range.upperBound {
            let word = position / 64
            let end = min(range.upperBound, (word + 1) * 64)
            let count = end - position
            let mask = count == 64 ? UInt64.max : ((1 << UInt64(count)) - 1) << UInt64(position % 64)
            body(word, mask, &bits)
            position = end
        }
    }

    mutating func formUnion(_ other: SmallSet) {
        if other.isFull { return fill() }
        guard !isFull else { return }
        if other.bits.isEmpty {
            for value in other.values { insert(Int(value)..<Int(value) + 1) }
        } else {
            if bits.isEmpty { spread() }
            for word in 0..<SmallSet.words { bits[word] |= other.bits[word] }
            if bits.allSatisfy({ $0 == .max }) { fill() }
        }
    }

    // MARK: Taking away

    mutating func remove(_ range: Range<Int>) {
        guard !range.isEmpty else { return }
        if isFull {
            isFull = false
            bits = [UInt64](repeating: .max, count: SmallSet.words)
        }
        if bits.isEmpty {
            values.removeAll { range.contains(Int($0)) }
        } else {
            forWords(range) { word, mask, bits in bits[word] &= ~mask }
            if bits.allSatisfy({ $0 == 0 }) { bits = [] }
        }
        if values.isEmpty { values = [] }
    }

    // MARK: Looking

    /// The first run of numbers at or above `start`; nil when there is none.
    func run(from start: Int) -> Range<Int>? {
        if isFull { return start < SmallSet.limit ? start..<SmallSet.limit : nil }
        if bits.isEmpty {
            guard start < SmallSet.limit else { return nil }
            var place = position(of: UInt16(start))
            guard place < values.count else { return nil }
            let first = Int(values[place])
            var end = first + 1
            place += 1
            while place < values.count, Int(values[place]) == end {
                end += 1
                place += 1
            }
            return first..<end
        }
        guard let first = bit(from: start, set: true) else { return nil }
        return first..<(bit(from: first, set: false) ?? SmallSet.limit)
    }

    /// The first bit at or above `start` that is set, or clear.
    private func bit(from start: Int, set: Bool) -> Int? {
        var word = start / 64
        guard word < SmallSet.words else { return nil }
        var rest = (set ? bits[word] : ~bits[word]) & (UInt64.max << UInt64(start % 64))
        while rest == 0 {
            word += 1
            guard word < SmallSet.words else { return nil }
            rest = set ? bits[word] : ~bits[word]
        }
        return word * 64 + rest.trailingZeroBitCount
    }

    /// This set with every number divided by 2 to the power `shift`, plus `offset`.
    func coarsened(by shift: Int, offset: Int, into target: inout SmallSet) {
        var position = 0
        while let run = run(from: position) {
            target.insert((run.lowerBound >> shift) + offset..<((run.upperBound - 1) >> shift) + 1 + offset)
            position = run.upperBound
        }
    }

    // MARK: Coding

    /// `kind u8`: 0 a list (count u16, values), 1 a bit map (1024 words), 2 all.
    func encode(into writer: inout ByteWriter) {
        if isFull { return writer.put(UInt8(2)) }
        guard bits.isEmpty else {
            writer.put(UInt8(1))
            for word in bits { writer.put(word) }
            return
        }
        writer.put(UInt8(0))
        writer.put(UInt16(values.count))
        for value in values { writer.put(value) }
    }

    init() {}

    init(decoding reader: inout ByteReader) throws(DecodingError) {
        let start = reader.offset
        switch try reader.get(UInt8.self, "kind of a set") {
        case 0:
            let count = Int(try reader.get(UInt16.self, "numbers of a set"))
            guard count <= SmallSet.valueLimit, count > 0 else { throw DecodingError("\(count) numbers", at: start) }
            values.reserveCapacity(count)
            for _ in 0..<count {
                let value = try reader.get(UInt16.self, "number")
                if let last = values.last, last >= value { throw DecodingError("numbers out of order", at: start) }
                values.append(value)
            }
        case 1:
            guard reader.remaining >= SmallSet.words * 8 else { throw DecodingError("truncated bit map", at: start) }
            bits.reserveCapacity(SmallSet.words)
            for _ in 0..<SmallSet.words { bits.append(try reader.get(UInt64.self, "bits")) }
            guard bits.contains(where: { $0 != 0 }) else { throw DecodingError("an empty bit map", at: start) }
        case 2: isFull = true
        case let kind: throw DecodingError("unknown kind \(kind) of a set", at: start)
        }
    }
}
