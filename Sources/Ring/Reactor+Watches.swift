import CLinux
import Glibc

/// A descriptor being watched. Cancel it BEFORE the descriptor is closed: its number may be given out again at once.
public final class Watch {
    private weak let reactor: Reactor?
    private let slot: Int
    private let serial: UInt64
    private var active = true

    init(reactor: Reactor, slot: Int, serial: UInt64) {
        self.reactor = reactor
        self.slot = slot
        self.serial = serial
    }

    /// Watches for something else from now on; with neither the watch rests.
    public func change(read: Bool, write: Bool) {
        guard active else { return }
        reactor?.changeWatch(slot, serial: serial, read: read, write: write)
    }

    /// The handler is not called any more, not even for an event that has been collected already. May be called from
    /// inside the handler, and more than once.
    public func cancel() {
        guard active else { return }
        active = false
        reactor?.cancelWatch(slot, serial: serial)
    }
}

/// All watches of a reactor, by slot.
struct WatchTable {
    struct Entry {
        var descriptor: Int32 = -1
        /// Grows with every use of the slot; 64 bits, so a `Watch` of an earlier life can be told.
        var serial: UInt64 = 0
        /// Grows whenever completions under way become stale.
        var generation: UInt32 = 0
        /// Poll bits asked for; 0 rests.
        var events: UInt32 = 0
        /// Whether the kernel holds a request (io_uring) or a registration (epoll) for `generation`.
        var armed = false
        var queued = false
        var handler: ((Readiness) -> Void)?
    }
    var entries: ContiguousArray<Entry> = []
    var unused: [Int] = []
    /// Slots to be armed at the end of the iteration.
    var dirty: [Int] = []
    /// Slots that could not be armed, to be told.
    var failures: [(slot: Int, serial: UInt64)] = []
    var hasFailures: Bool { !failures.isEmpty }

    /// Empties the table. The caller lets go of the handlers after this access has ended, because the end of what they
    /// hold may cancel other watches.
    mutating func takeHandlers() -> [((Readiness) -> Void)?] {
        let handlers = entries.map(\.handler)
        for index in entries.indices { entries[index].handler = nil }
        return handlers
    }
}

extension Reactor {
    /// Calls `handler` in every iteration in which the descriptor is ready, until the watch is cancelled.
    ///
    /// A descriptor that cannot be watched (closed; with epoll also a plain file) is reported once as `.failed` and then
    /// rests.
    /// - Precondition: one watch for each descriptor at a time.
    public func watch(
        _ descriptor: Int32, read: Bool, write: Bool, _ handler: @escaping (Readiness) -> Void
    ) -> Watch {
        preconditionOnThread()
        let slot: Int
        if let free = watches.unused.popLast() {
            slot = free
        } else {
            slot = watches.entries.count
            watches.entries.append(WatchTable.Entry())
        }
        watches.entries[slot].descriptor = descriptor
        watches.entries[slot].serial += 1
        watches.entries[slot].generation &+= 1
        watches.entries[slot].events = pollEvents(read: read, write: write)
        watches.entries[slot].handler = handler
        enqueue(slot)
        return Watch(reactor: self, slot: slot, serial: watches.entries[slot].serial)
    }

    private func pollEvents(read: Bool, write: Bool) -> UInt32 {
        UInt32(bitPattern: (read ? POLLIN : 0) | (write ? POLLOUT : 0))
    }

    private func enqueue(_ slot: Int) {
        guard !watches.entries[slot].queued else { return }
        watches.entries[slot].queued = true
        watches.dirty.append(slot)
    }

    func changeWatch(_ slot: Int, serial: UInt64, read: Bool, write: Bool) {
        preconditionOnThread()
        guard watches.entries[slot].serial == serial, watches.entries[slot].descriptor >= 0 else { return }
        let events = pollEvents(read: read, write: write)
        guard watches.entries[slot].events != events else { return }
        watches.entries[slot].events = events
        if engine.watchesAreOneShot || events == 0 { disarm(slot) }
        enqueue(slot)
    }

    func cancelWatch(_ slot: Int, serial: UInt64) {
        preconditionOnThread()
        guard watches.entries[slot].serial == serial, watches.entries[slot].descriptor >= 0 else { return }
        disarm(slot)
        watches.entries[slot].descriptor = -1
        watches.entries[slot].events = 0
        // Released last: the end of what it holds may call back here.
        let handler = watches.entries[slot].handler
        watches.entries[slot].handler = nil
        if !watches.entries[slot].queued { watches.unused.append(slot) }
        withExtendedLifetime(handler) {}
    }

    /// Takes the request back from the kernel; what it still answers is stale.
    private func disarm(_ slot: Int) {
        let entry = watches.entries[slot]
        watches.entries[slot].generation &+= 1
        guard entry.armed else { return }
        watches.entries[slot].armed = false
        engine.disarm(fd: entry.descriptor, tag: Tag(.watch, slot: slot, generation: entry.generation))
    }

    /// Brings the kernel's view up to date; once per iteration, so several changes cost one.
    func armWatches() {
        guard !watches.dirty.isEmpty else { return }
        for slot in watches.dirty {
            watches.entries[slot].queued = false
            let entry = watches.entries[slot]
            guard entry.descriptor >= 0 else {
                watches.unused.append(slot)
                continue
            }
            guard entry.events != 0, !(engine.watchesAreOneShot && entry.armed) else { continue }
            let tag = Tag(.watch, slot: slot, generation: entry.generation)
            let result = engine.arm(fd: entry.descriptor, events: entry.events, tag: tag, changing: entry.armed)
            precondition(result != -EEXIST, "descriptor \(entry.descriptor) is watched twice")
            if result == 0 {
                watches.entries[slot].armed = true
            } else {
                watches.failures.append((slot, entry.serial))
            }
        }
        watches.dirty.removeAll(keepingCapacity: true)
    }

    func dispatchWatch(_ tag: Tag, result: Int32) {
        let slot = tag.slot
        let entry = watches.entries[slot]
        guard entry.generation & Tag.generationMask == tag.generation, let handler = entry.handler else { return }
        if result < 0 {
            watches.entries[slot].armed = false
            watches.entries[slot].events = 0
            handler(.failed)
            return
        }
        if engine.watchesAreOneShot {
            watches.entries[slot].armed = false
            enqueue(slot)
        }
        // The interest may have changed since the event was collected.
        let relevant = result & (Int32(bitPattern: entry.events) | POLLHUP | POLLERR | POLLNVAL)
        if relevant != 0 { handler(Readiness(pollEvents: relevant)) }
    }

    func deliverFailedWatches() {
        guard !watches.failures.isEmpty else { return }
        let failures = watches.failures
        watches.failures = []
        for (slot, serial) in failures where watches.entries[slot].serial == serial {
            watches.entries[slot].events = 0
            watches.entries[slot].handler?(.failed)
        }
    }
}
