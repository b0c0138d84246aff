internal import Glibc
internal import Synchronization

/// Bounded, page-aligned memory for the payloads of batches between the first byte read and the last use.
///
/// A ring: regions are handed out in order and their space is reused once the oldest has been released. Each region is
/// contiguous. When the arena is full its owner stops reading requests or batches; that is the backpressure.
///
/// One thread opens and grows regions; releases come from any thread (a region releases itself when its last reference
/// goes).
@safe public final class Arena: Sendable {
    /// Bytes in all, a multiple of the page size.
    public let capacity: Int
    private nonisolated(unsafe) let base: UnsafeMutableRawPointer
    private let state: Mutex<State>

    fileprivate struct State {
        /// Offsets grow for ever; position in memory = offset modulo capacity.
        var head: UInt64 = 0
        var tail: UInt64 = 0
        /// Ends of the regions in order, oldest first, with whether each was released.
        var regions: [(end: UInt64, released: Bool)] = []
        var firstRegion: UInt64 = 0
    }

    /// - Parameter bytes: rounded up to whole pages.
    public init(bytes: Int) {
        capacity = (bytes + Batch.pageBytes - 1) / Batch.pageBytes * Batch.pageBytes
        var pointer: UnsafeMutableRawPointer?
        let status = unsafe posix_memalign(&pointer, Batch.pageBytes, capacity)
        guard status == 0, let pointer = unsafe pointer else { fatalError("no memory for \(bytes) bytes of batches") }
        unsafe base = pointer
        state = Mutex(State())
    }

    deinit { unsafe free(base) }

    /// Bytes that no live region holds.
    public var available: Int { state.withLock { capacity - Int($0.head - $0.tail) } }

    /// Contiguous bytes of a region that is in use by one batch.
    @safe public final class Region: Sendable {
        public nonisolated(unsafe) let pointer: UnsafeMutableRawPointer
        public let count: Int
        private let arena: Arena
        private let number: UInt64
        fileprivate init(_ pointer: UnsafeMutableRawPointer, _ count: Int, _ arena: Arena, _ number: UInt64) {
            unsafe self.pointer = pointer
            self.count = count
            self.arena = arena
            self.number = number
        }
        deinit { arena.release(number) }
    }

    /// The place where `bytes` contiguous bytes would go next, not yet taken; nil when they do not fit now.
    ///
    /// - Parameter after: bytes already gathered for the open batch at the previous answer; they must stay contiguous
    ///   with what is asked for.
    public func peek(_ bytes: Int, after gathered: Int = 0) -> UnsafeMutableRawPointer? {
        precondition(gathered % Batch.pageBytes == 0 && bytes >= 0, "regions grow in pages")
        let found: Int? = state.withLock { state in
            let position = Int(state.head % UInt64(capacity))
            let contiguous = capacity - position
            let unused = capacity - Int(state.head - state.tail)
            if gathered + bytes <= contiguous {
                guard gathered + bytes <= unused else { return nil }
                return position + gathered
            }
            // The rest of the ring is too short: skip it, but only before anything has been gathered.
            guard gathered == 0, contiguous + bytes <= unused || state.head == state.tail && bytes <= capacity else {
                return nil
            }
            state.skip(contiguous)
            return 0
        }
        guard let found else { return nil }
        return unsafe base + found
    }

    /// Takes `bytes` (whole pages) at the place `peek` named.
    public func take(_ bytes: Int) -> Region {
        precondition(bytes > 0 && bytes % Batch.pageBytes == 0, "regions are whole pages")
        let (position, number) = state.withLock { state in
            let position = Int(state.head % UInt64(capacity))
            precondition(position + bytes <= capacity, "take without a peek")
            precondition(Int(state.head - state.tail) + bytes <= capacity, "the arena is full")
            state.head += UInt64(bytes)
            state.regions.append((state.head, false))
            return (position, state.firstRegion + UInt64(state.regions.count) - 1)
        }
        return unsafe Region(base + position, bytes, self, number)
    }

    fileprivate func release(_ number: UInt64) {
        state.withLock { state in
            state.regions[Int(number - state.firstRegion)].released = true
            state.collect()
        }
    }
}

extension Arena.State {
    fileprivate mutating func skip(_ bytes: Int) {
        head += UInt64(bytes)
        regions.append((head, true))
        collect()
    }
    fileprivate mutating func collect() {
        var count = 0
        while count < regions.count, regions[count].released {
            tail = regions[count].end
            count += 1
        }
        if count > 0 {
            regions.removeFirst(count)
            firstRegion += UInt64(count)
        }
    }
}
