import Format
import Foundation
import Journal

/// Which records are shown.
struct Filter {
    var seqs: ClosedRange<UInt64>?
    var file: String?
    /// Nanoseconds since 1970.
    var since: Int64?
    var until: Int64?

    func admits(_ seq: Seq, _ record: Record, _ names: Names) -> Bool {
        if let seqs, !seqs.contains(seq.rawValue) { return false }
        if let since, record.time < since { return false }
        if let until, record.time >= until { return false }
        guard let file else { return true }
        return record.body.touched.contains { touched in
            if touched.description == file.lowercased() { return true }
            guard let path = names.path(touched) else { return false }
            return path == file || path.hasSuffix("/" + file)
        }
    }

    /// Whether anything of a stretch could pass, judged by its numbers alone.
    func admits(first: Seq, last: Seq) -> Bool {
        guard let seqs else { return true }
        return seqs.overlaps(first.rawValue...max(first.rawValue, last.rawValue))
    }
}

/// One record as it is shown.
struct ShownRecord {
    enum State: String { case whole, damaged }
    var seq: Seq
    var record: Record
    var state: State
    var path: String?
    /// Nil when the payload is damaged or there is none.
    var bytes: [UInt8]?
}

/// Walks over what was found and shows what passes the filter.
struct Listing {
    let reader: JournalReader
    let filter: Filter
    var names: Names
    let output: any Output
    let extractor: Extractor?

    /// - Returns: false when something could not be read.
    mutating func list(_ segments: [JournalMap.Segment]) -> Bool {
        var complete = true
        for segment in segments {
            switch segment {
            case .batch(let location):
                // Records before the filter's range are read all the same: they give the files their names.
                if let found = location.inspect(in: reader) {
                    complete = show(found, location.position) && complete
                } else {
                    // Overwritten meanwhile (a live journal, or space behind the checkpoint that had been reused).
                    let text = "no longer there: overwritten by newer records"
                    if filter.admits(first: location.firstSeq, last: location.lastSeq) {
                        output.missing(location.firstSeq, location.lastSeq, location.position, text)
                    }
                }
            case .damaged(let first, let last, let position):
                complete = false
                if let position, let header = reader.header(at: position), header.firstSeq == first {
                    _ = show(header.inspect(in: reader), position)
                } else if filter.admits(first: first, last: last) {
                    output.missing(first, last, position, "DAMAGED: cannot be read")
                }
            }
        }
        return complete
    }

    mutating func list(_ headers: [BatchHeader]) -> Bool {
        var complete = true
        for header in headers { complete = show(header.inspect(in: reader), Int(header.position)) && complete }
        return complete
    }

    private mutating func show(_ found: FoundBatch, _ position: Int) -> Bool {
        switch found {
        case .intact(let batch):
            show(batch.header, batch.records, position, damaged: []) { Array(batch.payload(of: $0)) }
            return true
        case .damagedPayloads(let header, let records, let indices):
            show(header, records, position, damaged: Set(indices)) { _ in nil }
            return false
        case .damagedRecords(let header, let reason):
            if filter.admits(first: header.firstSeq, last: header.lastSeq) {
                output.missing(header.firstSeq, header.lastSeq, position, "DAMAGED: \(reason)")
            }
            return false
        }
    }

    private mutating func show(
        _ header: BatchHeader, _ records: [Record], _ position: Int, damaged: Set<Int>, payload: (Int) -> [UInt8]?
    ) {
        var shown: [ShownRecord] = []
        for (index, record) in records.enumerated() {
            names.noteBefore(record.body)
            if case .remove = record.body {} else { names.note(record.body) }
            let seq = header.firstSeq + index
            guard filter.admits(seq, record, names) else { continue }
            shown.append(
                ShownRecord(
                    seq: seq, record: record, state: damaged.contains(index) ? .damaged : .whole,
                    path: record.body.touched.first.flatMap { names.path($0) },
                    bytes: record.payload == .none || damaged.contains(index) ? nil : payload(index)))
        }
        if !shown.isEmpty { output.batch(header, position: position, shown) }
        guard let extractor else { return }
        do {
            for record in shown { try extractor.take(record) }
        } catch {
            extractor.failure = extractor.failure ?? error
        }
    }
}
