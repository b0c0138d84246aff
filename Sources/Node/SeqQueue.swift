import Format

/// Handlers that wait for a seq to be reached, kept in the order of their seqs.
///
/// Nearly all arrive in order (a write waits for its own, newest seq), so insertion looks from the back; the handlers
/// of one seq run in the order they came.
struct SeqQueue<Handler> {
    private var entries: [(seq: Seq, handler: Handler)] = []
    private var head = 0

    var count: Int { entries.count - head }
    var isEmpty: Bool { count == 0 }

    mutating func insert(_ handler: Handler, at seq: Seq) {
        var index = entries.count
        while index > head, entries[index - 1].seq > seq { index -= 1 }
        entries.insert((seq, handler), at: index)
    }

    /// Takes the next handler whose seq is at most `seq`.
    mutating func next(through seq: Seq) -> Handler? {
        guard head < entries.count, entries[head].seq <= seq else { return nil }
        let handler = entries[head].handler
        head += 1
        if head == entries.count {
            entries.removeAll(keepingCapacity: true)
            head = 0
        } else if head > 1024, head * 2 > entries.count {
            entries.removeFirst(head)
            head = 0
        }
        return handler
    }

    mutating func removeAll() -> [Handler] {
        defer {
            entries.removeAll()
            head = 0
        }
        return entries[head...].map(\.handler)
    }
}
