internal import CLinux
internal import Format
internal import Synchronization

/// An open object of the tree; closed when the last user and the cache have let go of it.
final class OpenObject: Sendable {
    let fd: Int32
    /// Type bits of `st_mode`.
    let type: UInt32
    /// Opened for reading and writing (regular files only).
    let isWritable: Bool

    init(owning fd: Int32, type: UInt32, isWritable: Bool) {
        self.fd = fd
        self.type = type
        self.isWritable = isWritable
    }

    deinit { _ = clinux_close(fd) }
}

/// A bounded number of open descriptors, the least recently used going first.
///
/// One for each file that the kernel knows would run out: applications with many files have brought pass-through file
/// systems down that way. The bound can be passed by as many as there are threads using one at this moment.
///
/// Every record that is applied asks here, from several threads. A thread that loses the processor inside a lock leaves
/// the others spinning at it, so there are several locks, each for its share of the files.
final class DescriptorCache: Sendable {
    /// Descriptors kept at most.
    let limit: Int

    private let shards: [Shard]
    private static let shardCount = 8
    /// The smallest share for which "least recently used" still means something.
    private static let shardLimit = 8

    init(limit: Int) {
        precondition(limit >= DescriptorCache.shardLimit, "a cache of \(limit) descriptors")
        let count = min(DescriptorCache.shardCount, limit / DescriptorCache.shardLimit)
        shards = (0..<count).map { _ in Shard(limit: limit / count) }
        self.limit = limit / count * count
    }

    /// File identifiers are given out one after the other.
    private func shard(of file: FileID) -> Shard { shards[Int(file.rawValue % UInt64(shards.count))] }

    func find(_ file: FileID) -> OpenObject? { shard(of: file).find(file) }
    func insert(_ file: FileID, _ object: OpenObject) { shard(of: file).insert(file, object) }
    func remove(_ file: FileID) { shard(of: file).remove(file) }
    func removeAll() { for shard in shards { shard.removeAll() } }
    var count: Int { shards.reduce(0) { $0 + $1.count } }
}

private final class Shard: Sendable {
    private struct State {
        var objects: [FileID: (object: OpenObject, used: UInt64)] = [:]
        var clock: UInt64 = 0
    }
    private let limit: Int
    private let state = Mutex(State())

    init(limit: Int) { self.limit = limit }

    func find(_ file: FileID) -> OpenObject? {
        state.withLock { state in
            guard let index = state.objects.index(forKey: file) else { return nil }
            state.clock += 1
            state.objects.values[index].used = state.clock
            return state.objects.values[index].object
        }
    }

    func insert(_ file: FileID, _ object: OpenObject) {
        // What goes is released outside the lock: closing may wait for the disk.
        let evicted: [OpenObject] = state.withLock { state in
            state.clock += 1
            let before = state.objects.updateValue((object, state.clock), forKey: file)?.object
            guard state.objects.count > limit else { return before.map { [$0] } ?? [] }
            // An eighth at once, so that a miss does not cost a pass over the whole cache each time.
            let oldest = state.objects.sorted { $0.value.used < $1.value.used }.prefix(limit / 8)
            for entry in oldest { state.objects[entry.key] = nil }
            return oldest.map(\.value.object) + (before.map { [$0] } ?? [])
        }
        _ = evicted
    }

    func remove(_ file: FileID) {
        let gone = state.withLock { $0.objects.removeValue(forKey: file)?.object }
        _ = gone
    }

    func removeAll() {
        let gone = state.withLock { state in
            defer { state.objects = [:] }
            return state.objects
        }
        _ = gone
    }

    var count: Int { state.withLock { $0.objects.count } }
}
