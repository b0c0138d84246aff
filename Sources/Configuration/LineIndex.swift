/// The line of each key in a TOML text, found by a scan of its own: the parser does not keep positions.
///
/// It is used only to point at the place of an error, on a text that has already been parsed, so that it may be simple:
/// a key that it does not find (one inside an inline table, say) is reported with the line of what encloses it.
struct LineIndex: Sendable {
    private var lines: [String: Int] = [:]

    /// The line of `path` (`node[1].address`), or of the nearest thing around it; 1 for the whole file.
    func line(of path: String) -> Int {
        var path = path[...]
        while true {
            if let line = lines[String(path)] { return line }
            guard let cut = path.lastIndex(where: { $0 == "." || $0 == "[" }) else { return 1 }
            path = path[..<cut]
        }
    }

    init(_ text: String) {
        var section = ""
        var counts: [String: Int] = [:]
        var scanner = ValueScanner()
        // "\r\n" is one Character.
        let lines = text.split(omittingEmptySubsequences: false) { $0 == "\n" || $0 == "\r\n" }
        for (offset, line) in lines.enumerated() {
            if scanner.isInsideValue {
                scanner.scan(line)
                continue
            }
            let trimmed = line.drop { $0 == " " || $0 == "\t" }
            if trimmed.isEmpty || trimmed.hasPrefix("#") { continue }
            if trimmed.hasPrefix("[[") {
                let name = Self.key(trimmed.dropFirst(2).prefix { $0 != "]" })
                section = "\(name)[\(counts[name, default: 0])]"
                counts[name, default: 0] += 1
                note(section, offset + 1)
                note(name, offset + 1)
            } else if trimmed.hasPrefix("[") {
                section = Self.key(trimmed.dropFirst().prefix { $0 != "]" })
                note(section, offset + 1)
            } else if let equals = trimmed.firstIndex(of: "=") {
                let key = Self.key(trimmed[..<equals])
                note(section.isEmpty ? key : "\(section).\(key)", offset + 1)
                scanner.scan(trimmed[trimmed.index(after: equals)...])
            }
        }
    }

    private mutating func note(_ path: String, _ line: Int) {
        if lines[path] == nil { lines[path] = line }
    }

    private static func key(_ text: Substring) -> String {
        text.split(separator: ".").map { part in String(part.filter { !" \t\"'".contains($0) }) }
            .joined(separator: ".")
    }
}

/// Follows a value over line ends: arrays, inline tables and strings of several lines.
private struct ValueScanner {
    private var depth = 0
    private var quote = ""
    var isInsideValue: Bool { depth > 0 || !quote.isEmpty }

    mutating func scan(_ line: Substring) {
        var rest = line
        while let character = rest.first {
            if quote.isEmpty {
                if character == "#" { break }
                if character == "[" || character == "{" { depth += 1 }
                if character == "]" || character == "}" { depth = max(0, depth - 1) }
                if let opening = ["\"\"\"", "'''", "\"", "'"].first(where: { rest.hasPrefix($0) }) {
                    quote = opening
                    rest = rest.dropFirst(opening.count)
                    continue
                }
            } else if rest.hasPrefix(quote) {
                rest = rest.dropFirst(quote.count)
                quote = ""
                continue
            } else if character == "\\", quote.hasPrefix("\"") {
                rest = rest.dropFirst()
            }
            rest = rest.dropFirst()
        }
        if quote.count == 1 { quote = "" }
    }
}
