public import CLinux
import Glibc

/// The disk requests in flight, by slot.
@safe
struct OperationTable {
    @safe
    struct Entry {
        var generation: UInt32 = 0
        var vectors: UnsafeMutablePointer<iovec>?
        var capacity = 0
        var completion: ((Int32) -> Void)?
    }
    var entries: ContiguousArray<Entry> = []
    var unused: [Int] = []
    var inFlight = 0
    /// Requests that never reached the kernel; told in the next iteration, never inside the call that made them.
    var refusals: [(completion: (Int32) -> Void, result: Int32)] = []
    var hasRefusals: Bool { !refusals.isEmpty }

    /// A slot with room for `count` vectors; slots and their room are kept for the next request.
    mutating func acquire(_ count: Int) -> Int {
        let slot: Int
        if let free = unused.popLast() {
            slot = free
        } else {
            slot = entries.count
            entries.append(Entry())
        }
        if entries[slot].capacity < count {
            unsafe entries[slot].vectors?.deallocate()
            let room = max(count, 8)
            unsafe entries[slot].vectors = .allocate(capacity: room)
            entries[slot].capacity = room
        }
        inFlight += 1
        return slot
    }

    mutating func release(_ slot: Int) {
        entries[slot].generation &+= 1
        unused.append(slot)
        inFlight -= 1
    }

    mutating func deallocate() {
        for index in entries.indices { unsafe entries[index].vectors?.deallocate() }
        entries = []
    }
}

extension Reactor {
    /// Vectors of one request at most (the kernel's IOV_MAX).
    public static let vectorLimit = 1024

    /// Disk requests in flight.
    public var operationsInFlight: Int { operations.inFlight }

    /// Writes to a file at `offset` bytes. The vectors are copied; their memory must live until `completion`, which is
    /// called on this thread with the number of bytes written (it can be less than asked: check it) or a negated errno.
    /// Requests may finish in any order. With `O_DIRECT`, addresses, lengths and offset must be aligned (else -EINVAL).
    public func write(
        _ descriptor: Int32, _ vectors: UnsafeBufferPointer<iovec>, at offset: UInt64,
        completion: @escaping (Int32) -> Void
    ) {
        unsafe transfer(.write, descriptor, vectors, offset, completion)
    }

    /// Writes from one piece of memory.
    public func write(
        _ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64, completion: @escaping (Int32) -> Void
    ) {
        var vector = unsafe iovec(
            iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
        unsafe withUnsafePointer(to: &vector) { one in
            unsafe transfer(.write, descriptor, UnsafeBufferPointer(start: one, count: 1), offset, completion)
        }
    }

    /// Reads from a file at `offset` bytes; at the end of the file the result is less than asked for.
    public func read(
        _ descriptor: Int32, _ vectors: UnsafeBufferPointer<iovec>, at offset: UInt64,
        completion: @escaping (Int32) -> Void
    ) {
        unsafe transfer(.read, descriptor, vectors, offset, completion)
    }

    /// Reads into one piece of memory.
    public func read(
        _ descriptor: Int32, into bytes: UnsafeMutableRawBufferPointer, at offset: UInt64,
        completion: @escaping (Int32) -> Void
    ) {
        var vector = unsafe iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
        unsafe withUnsafePointer(to: &vector) { one in
            unsafe transfer(.read, descriptor, UnsafeBufferPointer(start: one, count: 1), offset, completion)
        }
    }

    /// fsync, or with `dataOnly` fdatasync. Not ordered with writes in flight: start it when they have completed.
    public func synchronize(_ descriptor: Int32, dataOnly: Bool, completion: @escaping (Int32) -> Void) {
        unsafe transfer(
            dataOnly ? .synchronizeData : .synchronize, descriptor, UnsafeBufferPointer(start: nil, count: 0), 0,
            completion)
    }

    private func transfer(
        _ kind: Transfer, _ descriptor: Int32, _ vectors: UnsafeBufferPointer<iovec>, _ offset: UInt64,
        _ completion: @escaping (Int32) -> Void
    ) {
        preconditionOnThread()
        let count = vectors.count
        precondition(count <= Reactor.vectorLimit, "a request of \(count) vectors, limit \(Reactor.vectorLimit)")
        guard operations.inFlight < Reactor.operationLimit else {
            operations.refusals.append((completion, -EBUSY))
            return
        }
        let slot = operations.acquire(count)
        let copy = unsafe operations.entries[slot].vectors
        for index in 0..<count { unsafe copy?[index] = vectors[index] }
        operations.entries[slot].completion = completion
        let tag = Tag(.operation, slot: slot, generation: operations.entries[slot].generation)
        let result = unsafe engine.prepare(
            kind, fd: descriptor, vectors: copy, count: count, offset: offset, tag: tag)
        if result < 0 {
            operations.entries[slot].completion = nil
            operations.release(slot)
            operations.refusals.append((completion, result))
        }
    }

    func dispatchOperation(_ tag: Tag, result: Int32) {
        let slot = tag.slot
        guard operations.entries[slot].generation & Tag.generationMask == tag.generation,
            let completion = operations.entries[slot].completion
        else { fatalError("\(engine.name) completed a disk request twice") }
        operations.entries[slot].completion = nil
        operations.release(slot)
        completion(result)
    }

    /// Tells what never reached the kernel.
    func deliverRefusals() {
        deliverFailedWatches()
        guard operations.hasRefusals else { return }
        let refusals = operations.refusals
        operations.refusals = []
        for refusal in refusals { refusal.completion(refusal.result) }
    }
}
