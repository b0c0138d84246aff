//  Two models compared: equal, or with one operation half done.
import Foundation

extension FileModel {
    /// Differences, a line each; empty when all that is modelled is equal. At most `limit`.
    public func differences(from other: FileModel, limit: Int = 10) -> [String] {
        differences(from: other, halfDone: nil, limit: limit)
    }

    /// Whether `self` is what may be there when an operation that leads from `before` to `after` was cut short: the file
    /// that it writes to may have each byte old or new, and a size between both.
    public func isHalfway(from before: FileModel, to after: FileModel, at path: String) -> Bool {
        guard let number = after.find(path), let old = before.find(path), let oldObject = before.objects[old] else {
            return false
        }
        return differences(from: after, halfDone: (number, oldObject.content), limit: 1).isEmpty
    }

    private func differences(from other: FileModel, halfDone: (number: Int, old: Data)?, limit: Int) -> [String] {
        var lines: [String] = []
        /// What an object of this model was met as in the other, and the other way round: one file, several names.
        var partner: [Int: Int] = [:]
        var partnerBack: [Int: Int] = [:]
        func differ(_ path: String, _ words: String) { if lines.count < limit { lines.append("\(path): \(words)") } }

        func compare(_ mine: Int, _ its: Int, _ path: String) {
            guard let a = objects[mine], let b = other.objects[its], lines.count < limit else { return }
            if partner[mine, default: its] != its || partnerBack[its, default: mine] != mine {
                differ(path, "is one file with other names here than there")
                return
            }
            let isKnown = partner[mine] != nil
            (partner[mine], partnerBack[its]) = (its, mine)
            guard !isKnown else { return }
            guard a.kind == b.kind else { return differ(path, "\(a.kind) / \(b.kind)") }
            if a.mode != b.mode, a.kind != .symlink {
                differ(path, "mode \(String(a.mode, radix: 8)) / \(String(b.mode, radix: 8))")
            }
            if (a.user, a.group) != (b.user, b.group) {
                differ(path, "owner \(a.user):\(a.group) / \(b.user):\(b.group)")
            }
            if a.target != b.target { differ(path, "target \(a.target) / \(b.target)") }
            for name in Set(a.attributes.keys).union(b.attributes.keys).sorted()
            where a.attributes[name] != b.attributes[name] {
                let size = { (data: Data?) in data.map { "\($0.count) bytes" } ?? "none" }
                differ(path, "attribute \(name): \(size(a.attributes[name])) / \(size(b.attributes[name]))")
            }
            if a.content != b.content {
                if let halfDone, halfDone.number == its {
                    if !isMixture(a.content, halfDone.old, b.content) { differ(path, "neither old nor new bytes") }
                } else {
                    differ(path, describe(a.content, b.content))
                }
            }
            for name in Set(a.entries.keys).union(b.entries.keys).sorted() {
                let below = path == "." ? name : path + "/" + name
                switch (a.entries[name], b.entries[name]) {
                case (let one?, let two?): compare(one, two, below)
                case (nil, _): differ(below, "is missing / exists")
                case (_, nil): differ(below, "exists / is missing")
                }
            }
        }
        compare(FileModel.root, FileModel.root, ".")
        return lines
    }
}

private func isMixture(_ found: Data, _ old: Data, _ new: Data) -> Bool {
    guard found.count >= min(old.count, new.count), found.count <= max(old.count, new.count) else { return false }
    return found.withUnsafeBytes { found in
        old.withUnsafeBytes { old in
            new.withUnsafeBytes { new in
                for index in found.indices {
                    let before = index < old.count ? old[index] : 0
                    let after = index < new.count ? new[index] : 0
                    if found[index] != before && found[index] != after { return false }
                }
                return true
            }
        }
    }
}

private func describe(_ a: Data, _ b: Data) -> String {
    guard a.count == b.count else { return "size \(a.count) / \(b.count)" }
    var ranges: [String] = []
    var start: Int?
    var count = 0
    for index in 0...a.count {
        let differs = index < a.count && a[a.startIndex + index] != b[b.startIndex + index]
        if differs { count += 1 }
        if differs, start == nil { start = index }
        // Bytes that are equal by chance do not end a range.
        if !differs, let from = start, index == a.count || index - from >= 4096 || ranges.isEmpty {
            if ranges.count < 4 { ranges.append("\(from)..<\(index)") }
            start = nil
        }
    }
    return "\(count) of \(a.count) bytes differ, at \(ranges.joined(separator: ", ")) …"
}
