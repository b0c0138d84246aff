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
final class DescriptorCache: Sendable {
    let limit: Int

    private struct State {
        var objects: [FileID: (object: OpenObject, used: UInt64)] = [:]
        var clock: UInt64 = 0
    }
    private let state = Mutex(State())

    init(limit: Int) {
        precondition(limit >= 8, "a cache of \(limit) descriptors")
        self.limit = limit
    }

    func find(_ file: FileID) -> OpenObject? {
        state.withLock { state in
            guard let found = state.objects[file] else { return nil }
            state.clock += 1
            state.objects[file]?.used = state.clock
            return found.object
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
