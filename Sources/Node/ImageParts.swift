import Format

/// Where in the log images of directories lie that take several records.
///
/// A replay reads the log from the checkpoint on. If that were in the middle of such an image, the replay would take the
/// names of the second half for all there are, and set the others aside. So no checkpoint is made there.
struct ImageParts {
    /// First part and last part; nil while the last has not come.
    private var images: [(first: Seq, last: Seq?)] = []

    mutating func note(_ batch: Batch) {
        for (index, record) in batch.records.enumerated() {
            // What was not finished by now never will be; nothing behind needs it.
            if case .imageEnd = record.body { images.removeAll { $0.last == nil } }
            guard case .imageDirectory(_, _, _, let part, let isLast, _) = record.body else { continue }
            let seq = batch.firstSeq + index
            if part == 0 {
                // Begun again before it was finished: the earlier beginning counts for nothing.
                if images.last?.last == nil { _ = images.popLast() }
                if !isLast { images.append((seq, nil)) }
            } else if isLast, !images.isEmpty {
                images[images.count - 1].last = seq
            }
        }
    }

    /// Records above `seq` are gone.
    mutating func cut(to seq: Seq) {
        images.removeAll { $0.first > seq }
        if let last = images.last?.last, last > seq { images[images.count - 1].last = nil }
    }

    /// The highest end of a batch not above `seq` at which a replay may begin.
    /// - Parameter boundary: the highest end of a batch at or below a seq; nil when there is none.
    mutating func checkpoint(atOrBelow seq: Seq, boundary: (Seq) -> Seq?) -> Seq? {
        guard var found = boundary(seq) else { return nil }
        while let image = images.first(where: { $0.first <= found && $0.last.map({ found < $0 }) ?? true }) {
            guard let lower = boundary(image.first.previous) else { return nil }
            found = lower
        }
        images.removeAll { image in image.last.map { $0 <= found } ?? false }
        return found
    }
}
