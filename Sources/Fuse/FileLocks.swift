internal import Format

/// Locks on files and directories for operations that take several steps. On the data thread; nobody blocks: who must
/// wait is called later.
///
/// A set is taken as a whole or not at all, so there is no order to obey and no deadlock. Waiters are served in order
/// as far as their sets are free.
struct FileLocks {
    struct Request {
        var exclusive: [FileID]
        var shared: [FileID] = []
    }

    private var exclusive: Set<FileID> = []
    private var shared: [FileID: Int] = [:]
    private var waiters: [(request: Request, run: () -> Void)] = []

    var isIdle: Bool { exclusive.isEmpty && shared.isEmpty && waiters.isEmpty }

    private func isFree(_ request: Request) -> Bool {
        for file in request.exclusive where exclusive.contains(file) || shared[file] != nil { return false }
        for file in request.shared where exclusive.contains(file) { return false }
        return true
    }

    private mutating func take(_ request: Request) {
        for file in request.exclusive { exclusive.insert(file) }
        for file in request.shared { shared[file, default: 0] += 1 }
    }

    /// True when the locks were free and are taken now.
    mutating func tryAcquire(_ request: Request) -> Bool {
        guard isFree(request) else { return false }
        // Somebody who waits for one of these goes first, or a stream of readers would starve a writer.
        for waiter in waiters where FileLocks.conflict(waiter.request, request) { return false }
        take(request)
        return true
    }

    /// Takes further files exclusively for the holder of others; nobody who waits is asked, because the holder may be
    /// whom they wait for.
    mutating func tryExtend(_ files: [FileID]) -> Bool {
        let request = Request(exclusive: files)
        guard isFree(request) else { return false }
        take(request)
        return true
    }

    mutating func wait(_ request: Request, _ run: @escaping () -> Void) { waiters.append((request, run)) }

    /// Gives locks back. Returns whom to call now: their locks are taken.
    mutating func release(_ request: Request) -> [() -> Void] {
        for file in request.exclusive { exclusive.remove(file) }
        for file in request.shared {
            if let count = shared[file], count > 1 { shared[file] = count - 1 } else { shared[file] = nil }
        }
        guard !waiters.isEmpty else { return [] }
        var ready: [() -> Void] = []
        var rest: [(request: Request, run: () -> Void)] = []
        for waiter in waiters {
            if isFree(waiter.request), !rest.contains(where: { FileLocks.conflict($0.request, waiter.request) }) {
                take(waiter.request)
                ready.append(waiter.run)
            } else {
                rest.append(waiter)
            }
        }
        waiters = rest
        return ready
    }

    private static func conflict(_ left: Request, _ right: Request) -> Bool {
        left.exclusive.contains { right.exclusive.contains($0) || right.shared.contains($0) }
            || left.shared.contains { right.exclusive.contains($0) }
    }
}
