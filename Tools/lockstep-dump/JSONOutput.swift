import Format
import Foundation
import Journal

/// One JSON object, written as it goes: `{journal, superblocks, superblock, batches: [...], report}`. Numbers of 64 bits
/// that are not counts (chains, instances) are strings, because many readers keep only 53 bits.
final class JSONOutput: Output {
    private let payload: Bool
    private var isFirst = true
    init(payload: Bool) { self.payload = payload }

    private func encoded(_ value: [String: Any?]) -> String {
        let object = value.compactMapValues { $0 }
        guard
            let data = try? JSONSerialization.data(
                withJSONObject: object, options: [.sortedKeys, .withoutEscapingSlashes])
        else { return "{}" }
        return String(decoding: data, as: UTF8.self)
    }

    private func head(_ journal: String, _ superblocks: SuperblockSet) -> [String: Any?] {
        let copies = superblocks.copies.enumerated().map { index, copy -> [String: Any] in
            switch copy {
            case .success(let superblock): ["copy": index, "generation": superblock.generation]
            case .failure(let fault): ["copy": index, "fault": "\(fault)"]
            }
        }
        return ["journal": journal, "superblocks": copies]
    }

    /// Prints a dictionary without its closing brace, so that more can follow.
    private func open(_ value: [String: Any?]) {
        print(encoded(value).dropLast() + ",\"batches\":[", terminator: "")
    }

    func begin(journal: String, superblocks: SuperblockSet, report: RecoveryReport) {
        let superblock = report.superblock
        var value = head(journal, superblocks)
        value["superblock"] =
            [
                "mirror": "\(superblock.mirror)", "node": "\(superblock.node)",
                "nodeInstance": "\(superblock.nodeInstance)", "generation": superblock.generation,
                "incarnation": "\(superblock.incarnation)", "fileSize": superblock.fileSize,
                "createdAt": timeText(superblock.createdAt), "checkpointSeq": superblock.checkpointSeq.rawValue,
                "durableSeq": superblock.durableSeq.rawValue, "committedSeq": superblock.committedSeq.rawValue,
                "cutSeq": superblock.cutSeq.rawValue, "incomplete": superblock.isIncomplete,
                "cleanStop": superblock.completeThrough != nil, "strict": superblock.isStrict,
                "misfit": superblock.misfitLife != nil,
                "loneRestarts": superblock.loneRestarts,
                "forcedPromotions": superblock.forcedPromotions,
                "statements": superblock.statements.map { statement -> [String: Any] in
                    [
                        "kind": "\(statement.kind)", "epoch": statement.epoch.rawValue,
                        "seq": statement.seq.rawValue, "time": timeText(statement.time),
                    ]
                },
                "epochs": report.epochs.starts.map { start -> [String: Any] in
                    ["epoch": start.epoch.rawValue, "firstSeq": start.firstSeq.rawValue]
                },
            ] as [String: Any]
        open(value)
    }

    func refused(journal: String, superblocks: SuperblockSet, error: JournalError) {
        var value = head(journal, superblocks)
        value["refused"] = "\(error)"
        open(value)
    }

    func rescue(journal: String, _ header: RescueHeader) {
        open([
            "journal": journal,
            "rescue": [
                "mirror": "\(header.mirror)", "node": "\(header.node)", "nodeInstance": "\(header.nodeInstance)",
                "commonSeq": header.common.rawValue, "lastSeq": header.last.rawValue,
                "firstSaved": header.firstSaved.rawValue, "lastSaved": header.lastSaved.rawValue,
                "batchCount": header.batches, "missing": header.missing, "savedAt": timeText(header.savedAt),
            ] as [String: Any],
        ])
    }

    private func item(_ value: [String: Any?]) {
        print((isFirst ? "\n" : ",\n") + encoded(value), terminator: "")
        isFirst = false
    }

    func batch(_ header: BatchHeader, position: Int, _ records: [ShownRecord]) {
        item([
            "firstSeq": header.firstSeq.rawValue, "lastSeq": header.lastSeq.rawValue, "epoch": header.epoch.rawValue,
            "closedAt": timeText(header.closedAt), "position": position, "bytes": header.diskLength,
            "chain": String(header.chain, radix: 16), "committedSeq": header.committedSeq.rawValue,
            "durableSeq": header.durableSeq.rawValue,
            "records": records.map { shown -> [String: Any] in encodable(shown) },
        ])
    }

    private func encodable(_ shown: ShownRecord) -> [String: Any] {
        let record = shown.record
        var value: [String: Any] = [
            "seq": shown.seq.rawValue, "time": timeText(record.time), "kind": "\(record.body.kind)",
            "what": record.body.words(length: record.payload.length), "state": shown.state.rawValue,
        ]
        if let file = record.body.touched.first { value["file"] = "\(file)" }
        if let path = shown.path { value["path"] = path }
        if record.isImage { value["image"] = true }
        if case .write(_, let offset) = record.body {
            value["offset"] = offset
            value["length"] = record.payload.length
        }
        if payload, let bytes = shown.bytes { value["payload"] = Data(bytes).base64EncodedString() }
        return value
    }

    func missing(_ first: Seq, _ last: Seq, _ position: Int?, _ reason: String) {
        item(["firstSeq": first.rawValue, "lastSeq": last.rawValue, "position": position, "missing": reason])
    }

    func end(report: RecoveryReport?, verify: Bool) {
        print("\n]", terminator: "")
        if let report {
            let verdict =
                switch report.verdict {
                case .intact: "intact"
                case .tailCut: "tailCut"
                case .damaged: "damaged"
                }
            var value: [String: Any?] = [
                "verdict": verdict, "lastSeq": report.lastSeq.rawValue, "lastEpoch": report.lastEpoch.rawValue,
                "oldestSeq": report.oldestSeq.rawValue, "knownCommittedSeq": report.knownCommittedSeq.rawValue,
                "stoppedCleanly": report.wasStoppedCleanly, "incomplete": report.isIncomplete,
                "doubts": report.doubts.map { "\($0)" }, "doubtsNotListed": report.doubtsNotListed,
                "unreadablePages": report.unreadablePages, "notes": report.notes,
                "alone": report.decisions[0].decision, "withPeer": report.decisions[1].decision,
            ]
            if case .damaged(let through) = report.verdict { value["damagedThrough"] = through.rawValue }
            print(",\"report\":" + encoded(value), terminator: "")
        }
        print("}")
    }
}
