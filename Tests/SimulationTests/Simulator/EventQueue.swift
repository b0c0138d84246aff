/// What happens when, in simulated time; events of one moment happen in the order in which they were planned.
struct EventQueue {
    private struct Entry {
        var at: UInt64
        var order: UInt64
        var action: () -> Void
    }
    private var heap: [Entry] = []
    private var lastOrder: UInt64 = 0

    var isEmpty: Bool { heap.isEmpty }
    var nextTime: UInt64? { heap.first?.at }

    mutating func plan(at: UInt64, _ action: @escaping () -> Void) {
        lastOrder += 1
        heap.append(Entry(at: at, order: lastOrder, action: action))
        var child = heap.count - 1
        while child > 0 {
            let parent = (child - 1) / 2
            guard precedes(child, parent) else { break }
            heap.swapAt(child, parent)
            child = parent
        }
    }

    mutating func take() -> (at: UInt64, action: () -> Void)? {
        guard let first = heap.first else { return nil }
        let last = heap.removeLast()
        if !heap.isEmpty {
            heap[0] = last
            var parent = 0
            while true {
                var child = parent * 2 + 1
                guard child < heap.count else { break }
                if child + 1 < heap.count, precedes(child + 1, child) { child += 1 }
                guard precedes(child, parent) else { break }
                heap.swapAt(child, parent)
                parent = child
            }
        }
        return (first.at, first.action)
    }

    private func precedes(_ left: Int, _ right: Int) -> Bool {
        (heap[left].at, heap[left].order) < (heap[right].at, heap[right].order)
    }
}

/// SplitMix64: the same numbers for the same seed, on every machine.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
    /// In `low ... high`.
    mutating func between(_ low: UInt64, _ high: UInt64) -> UInt64 { low + next() % (high - low + 1) }
    /// True `perMille` times in a thousand.
    mutating func chance(_ perMille: UInt64) -> Bool { next() % 1000 < perMille }
}

/// One millisecond, in nanoseconds.
let ms: UInt64 = 1_000_000
