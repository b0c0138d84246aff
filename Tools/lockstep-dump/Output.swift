import Format
import Foundation
import Journal

/// Where the findings go.
protocol Output: AnyObject {
    func begin(journal: String, superblocks: SuperblockSet, report: RecoveryReport)
    func refused(journal: String, superblocks: SuperblockSet, error: JournalError)
    func rescue(journal: String, _ header: RescueHeader)
    func batch(_ header: BatchHeader, position: Int, _ records: [ShownRecord])
    func missing(_ first: Seq, _ last: Seq, _ position: Int?, _ reason: String)
    func end(report: RecoveryReport?, verify: Bool)
}

/// A time as ISO 8601 with nanoseconds.
func timeText(_ nanoseconds: Int64) -> String {
    var seconds = time_t(nanoseconds / 1_000_000_000)
    var rest = nanoseconds % 1_000_000_000
    if rest < 0 {
        rest += 1_000_000_000
        seconds -= 1
    }
    var parts = tm()
    gmtime_r(&seconds, &parts)
    return String(
        format: "%04d-%02d-%02dT%02d:%02d:%02d.%09lldZ", Int(parts.tm_year) + 1900, Int(parts.tm_mon) + 1,
        Int(parts.tm_mday), Int(parts.tm_hour), Int(parts.tm_min), Int(parts.tm_sec), rest)
}

func text(_ name: FileName) -> String { String(decoding: name, as: UTF8.self) }

extension RecordBody {
    /// What the record does, in words; the file itself is named elsewhere.
    func words(length: Int) -> String {
        switch self {
        case .epochStart(let epoch, let primary, let inSync):
            "epoch \(epoch) begins: primary \(primary), in sync \(inSync)"
        case .write(_, let offset): "write \(length) bytes at \(offset)"
        case .setAttributes(_, let mask, let attributes): "set " + attributes.words(mask)
        case .setXattr(_, let name, let value): "set xattr \(text(name)) (\(value.count) bytes)"
        case .removeXattr(_, let name): "remove xattr \(text(name))"
        case .allocate(_, let mode, let offset, let length): "allocate (mode \(mode)) \(length) bytes at \(offset)"
        case .create(_, let parent, let name, let attributes, let target, _):
            "create \(text(name)) in \(parent), mode \(String(attributes.mode, radix: 8))"
                + (target.isEmpty ? "" : " -> \(text(target))")
        case .link(_, let parent, let name): "link as \(text(name)) in \(parent)"
        case .remove(_, let parent, let name, let isDirectory, let wasLast):
            "remove \(isDirectory ? "directory " : "")\(text(name)) from \(parent)"
                + (wasLast ? "" : " (has other names)")
        case .rename(_, let parent, let name, let newParent, let newName, let exchange, let replaced, _):
            "\(exchange ? "exchange" : "rename") \(text(name)) in \(parent) \(exchange ? "with" : "to") \(text(newName))"
                + " in \(newParent)" + (replaced == .none || exchange ? "" : ", replacing \(replaced)")
        case .imageStart(let number): "resynchronisation \(number) begins"
        case .imageDirectory(_, _, _, let part, let isLast, let entries):
            "image of directory, part \(part)\(isLast ? " (last)" : ""), \(entries.count) names"
        case .imageFile(_, let attributes, _, let xattrs):
            "image of file: \(attributes.words(.all)), \(xattrs.count) xattrs"
        case .imageEnd(let number): "resynchronisation \(number) is complete"
        case .verify(let check): "verify \(check.aspect) from \(check.offset), \(check.length)"
        case .repair(_, let offset): "repair \(length) bytes at \(offset)"
        case .repairFile(_, let attributes, let xattrs):
            "repair attributes: \(attributes.words(.all)), \(xattrs.count) xattrs"
        }
    }
}

extension FileAttributes {
    func words(_ mask: AttributeMask) -> String {
        var words: [String] = []
        if mask.contains(.size) { words.append("size \(size)") }
        if mask.contains(.mode) { words.append("mode \(String(mode, radix: 8))") }
        if mask.contains(.uid) { words.append("uid \(uid)") }
        if mask.contains(.gid) { words.append("gid \(gid)") }
        if mask.contains(.atime) { words.append("atime \(timeText(atime))") }
        if mask.contains(.mtime) { words.append("mtime \(timeText(mtime))") }
        return words.joined(separator: ", ")
    }
}

extension RecoveryReport {
    /// What a node would do with it, in words.
    var decisions: [(situation: String, decision: String)] {
        RecoveryTable.Company.allCases.map { company in
            let decision =
                switch outcome(company) {
                case .intact: "open it: every record is there"
                case .tailCut: "cut the torn tail behind record \(lastSeq), which nobody was promised, and open it"
                case .fetch:
                    isIncomplete
                        ? "be resynchronised by the other node" : "fetch the damaged records from the other node"
                case .refusePrimary: "refuse to be primary"
                case .refuse: "refuse to open it"
                }
            return (company == .alone ? "alone" : "with the other node", decision)
        }
    }
}

final class TextOutput: Output {
    private let payload: Bool
    init(payload: Bool) { self.payload = payload }

    func begin(journal: String, superblocks: SuperblockSet, report: RecoveryReport) {
        let superblock = report.superblock
        print("journal    \(journal), \(superblock.fileSize) bytes, made \(timeText(superblock.createdAt))")
        print("mirror     \(superblock.mirror), node \(superblock.node), instance \(superblock.nodeInstance)")
        show(superblocks)
        print("life       incarnation \(superblock.incarnation), last cut at record \(superblock.cutSeq)")
        print(
            "checkpoint record \(superblock.checkpointSeq); durable \(superblock.durableSeq), committed "
                + "\(superblock.committedSeq) when the superblock was written")
        if superblock.isStrict {
            print("mode       strict: whoever was told of a record, it was on every in-sync disk")
        }
        if let through = superblock.completeThrough { print("stop       clean, complete through record \(through)") }
        for start in report.epochs.starts { print("epoch      \(start.epoch) from record \(start.firstSeq)") }
        for statement in superblock.statements {
            let what =
                statement.kind == .loneRestart
                ? "served alone after a restart: writes never fsynced may be missing" : "promoted by force"
            print("STATEMENT  \(timeText(statement.time)) record \(statement.seq), epoch \(statement.epoch): \(what)")
        }
    }

    func refused(journal: String, superblocks: SuperblockSet, error: JournalError) {
        print("journal    \(journal)")
        show(superblocks)
        print("REFUSED    \(error)")
        print("What follows are all batches that can be found by themselves, whatever they belong to.")
    }

    func rescue(journal: String, _ header: RescueHeader) {
        print("rescue     \(journal), \(header.byteLength) bytes, saved \(timeText(header.savedAt))")
        print("mirror     \(header.mirror), node \(header.node), instance \(header.nodeInstance)")
        print(
            "given up   records \(header.common.next) to \(header.last): they are part of no history of the mirror; "
                + "\(header.batches) batches, records \(header.firstSaved) to \(header.lastSaved), are saved here")
        if header.missing > 0 { print("MISSING    \(header.missing) stretches of records could not be saved whole") }
    }

    private func show(_ superblocks: SuperblockSet) {
        for (index, copy) in superblocks.copies.enumerated() {
            switch copy {
            case .success(let superblock): print("superblock \(index): generation \(superblock.generation)")
            case .failure(let fault): print("superblock \(index): \(fault)")
            }
        }
    }

    func batch(_ header: BatchHeader, position: Int, _ records: [ShownRecord]) {
        print(
            "batch      \(header.firstSeq)..\(header.lastSeq) epoch \(header.epoch) closed \(timeText(header.closedAt)) "
                + "at \(position), \(header.diskLength) bytes, committed \(header.committedSeq), durable here \(header.durableSeq)"
        )
        for shown in records {
            let file = shown.record.body.touched.first.map { " file \($0)" } ?? ""
            let path = shown.path.map { " \($0)" } ?? ""
            let image = shown.record.isImage ? " [image]" : ""
            let damaged = shown.state == .damaged ? "  DAMAGED PAYLOAD" : ""
            print(
                "  \(shown.seq) \(timeText(shown.record.time))\(file)\(path): "
                    + "\(shown.record.body.words(length: shown.record.payload.length))\(image)\(damaged)")
            if payload, let bytes = shown.bytes { printHexadecimal(bytes) }
        }
    }

    private func printHexadecimal(_ bytes: [UInt8]) {
        var previous: ArraySlice<UInt8> = []
        var isRepeating = false
        for start in stride(from: 0, to: bytes.count, by: 16) {
            let line = bytes[start..<min(start + 16, bytes.count)]
            if start > 0, line.elementsEqual(previous), start + 16 < bytes.count {
                if !isRepeating { print("    *") }
                isRepeating = true
                continue
            }
            isRepeating = false
            previous = line
            let hex = line.map { String(format: "%02x", $0) }.joined(separator: " ")
            let visible = String(decoding: line.map { $0 >= 32 && $0 < 127 ? $0 : UInt8(ascii: ".") }, as: UTF8.self)
            print(
                "    \(String(format: "%08x", start))  \(hex.padding(toLength: 48, withPad: " ", startingAt: 0)) \(visible)"
            )
        }
    }

    func missing(_ first: Seq, _ last: Seq, _ position: Int?, _ reason: String) {
        print("records    \(first)..\(last)\(position.map { " at \($0)" } ?? ""): \(reason)")
    }

    func end(report: RecoveryReport?, verify: Bool) {
        guard let report else { return }
        print("verdict    " + report.description.replacingOccurrences(of: "\n", with: "\n           "))
        guard verify else { return }
        for (situation, decision) in report.decisions { print("recovery   \(situation): \(decision)") }
    }
}
