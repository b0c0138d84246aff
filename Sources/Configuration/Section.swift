import Glibc
import TOMLKit

/// A value of the parsed text, copied out of the parser's tree so that nothing outlives it.
indirect enum TOMLNode {
    case table([String: TOMLNode])
    case array([TOMLNode])
    case string(String)
    case integer(Int)
    case boolean(Bool)
    /// Something no key of ours takes: a floating-point number, a date.
    case other(String)

    init(_ value: TOMLValueConvertible) {
        switch value.type {
        case .table:
            var entries: [String: TOMLNode] = [:]
            for (key, entry) in value.table ?? TOMLTable() { entries[key] = TOMLNode(entry) }
            self = .table(entries)
        case .array: self = .array((value.array ?? TOMLArray()).map { TOMLNode($0) })
        case .string: self = .string(value.string ?? "")
        case .int: self = .integer(value.int ?? 0)
        case .bool: self = .boolean(value.bool ?? false)
        default: self = .other(value.type.description)
        }
    }

    /// The kind, as an administrator would call it.
    var kind: String {
        switch self {
        case .table: "a table"
        case .array: "an array"
        case .string: "a string"
        case .integer: "an integer"
        case .boolean: "true or false"
        case .other(let name): "a \(name)"
        }
    }
}

/// The text of a configuration file, and where things stand in it.
struct Document {
    /// No configuration of ours comes near it; it keeps a wrong file name (a disk image) from being read whole.
    static let sizeBytesMaximum = 1 << 20

    let file: String
    let lines: LineIndex
    let root: [String: TOMLNode]

    init(text: String, file: String) throws(ConfigurationError) {
        self.file = file
        lines = LineIndex(text)
        do {
            guard case .table(let entries) = TOMLNode(try TOMLTable(string: text)) else {
                throw ConfigurationError(
                    file: file, line: 1, key: nil, problem: "the file is not a table of keys",
                    remedy: "Compare it with the example in docs/configuration.md")
            }
            root = entries
        } catch let error as TOMLParseError {
            throw ConfigurationError(
                file: file, line: error.source.begin.line, key: nil, problem: "not valid TOML: \(error.description)",
                remedy: "Correct the line (or the one before it), column \(error.source.begin.column)")
        } catch let error as ConfigurationError {
            throw error
        } catch {
            throw ConfigurationError(
                file: file, line: nil, key: nil, problem: "the TOML parser failed: \(error)",
                remedy: "Compare the file with the example in docs/configuration.md")
        }
    }

    init(path: String) throws(ConfigurationError) {
        func failure(_ problem: String, _ remedy: String) -> ConfigurationError {
            ConfigurationError(file: path, line: nil, key: nil, problem: problem, remedy: remedy)
        }
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw failure(
                "cannot open it: \(String(cString: strerror(errno)))", "Check the name and that this user may read it")
        }
        defer { close(descriptor) }
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = read(descriptor, &chunk, chunk.count)
            if count < 0 && errno == EINTR { continue }
            guard count >= 0 else {
                throw failure("cannot read it: \(String(cString: strerror(errno)))", "Name a regular file")
            }
            if count == 0 { break }
            bytes += chunk[..<count]
            guard bytes.count <= Document.sizeBytesMaximum else {
                throw failure("it is larger than \(Document.sizeBytesMaximum) bytes", "Name a configuration file")
            }
        }
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw failure("it is not UTF-8 text", "Save it as UTF-8")
        }
        try self.init(text: text, file: path)
    }
}

/// One table of the file, read key by key; what was not read when `finish()` is called is an unknown key.
struct Section {
    let document: Document
    /// The path of the table (`node[1]`); empty for the whole file.
    let path: String
    /// The entries of the table.
    private let entries: [String: TOMLNode]
    private var known: Set<String> = []

    init(_ document: Document, path: String = "", entries: [String: TOMLNode]? = nil) {
        self.document = document
        self.path = path
        self.entries = entries ?? document.root
    }

    var keys: [String] { entries.keys.sorted() }

    private func full(_ key: String) -> String { path.isEmpty ? key : key.isEmpty ? path : "\(path).\(key)" }

    /// An error at `key` of this table.
    func failure(_ key: String, _ problem: String, _ remedy: String) -> ConfigurationError {
        ConfigurationError(
            file: document.file, line: document.lines.line(of: full(key)), key: full(key), problem: problem,
            remedy: remedy)
    }

    func line(of key: String) -> Int { document.lines.line(of: full(key)) }

    private func wrongType(_ key: String, _ found: TOMLNode, wanted: String, example: String) -> ConfigurationError {
        failure(key, "\(found.kind) where \(wanted) is needed", "Write \(key) = \(example)")
    }

    /// The raw value, for keys that take more than one type.
    mutating func node(_ key: String) -> TOMLNode? {
        known.insert(key)
        return entries[key]
    }

    mutating func string(_ key: String, example: String) throws(ConfigurationError) -> String? {
        guard let node = node(key) else { return nil }
        guard case .string(let text) = node else {
            throw wrongType(key, node, wanted: "a string", example: "\"\(example)\"")
        }
        guard !text.isEmpty else { throw failure(key, "an empty string", "Write \(key) = \"\(example)\"") }
        guard !text.utf8.contains(where: { $0 < 0x20 || $0 == 0x7f }) else {
            throw failure(key, "it contains control characters", "Remove them")
        }
        return text
    }

    mutating func requiredString(_ key: String, example: String) throws(ConfigurationError) -> String {
        guard let text = try string(key, example: example) else { throw missing(key, example: "\"\(example)\"") }
        return text
    }

    func missing(_ key: String, example: String) -> ConfigurationError {
        failure(key, "it is missing", "Add \(key) = \(example)")
    }

    /// An integer within `range`; `unit` is a plural noun for messages.
    mutating func integer(
        _ key: String, default: Int, in range: ClosedRange<Int>, unit: String
    ) throws(ConfigurationError) -> Int {
        guard let node = node(key) else { return `default` }
        guard case .integer(let value) = node else {
            throw wrongType(key, node, wanted: "an integer (\(unit))", example: "\(`default`)")
        }
        try check(key, value, in: range, unit: unit)
        return value
    }

    func check(_ key: String, _ value: Int, in range: ClosedRange<Int>, unit: String) throws(ConfigurationError) {
        if value < range.lowerBound {
            throw failure(
                key, "\(value) is below the minimum of \(range.lowerBound) \(unit)",
                "Give at least \(range.lowerBound)")
        }
        if value > range.upperBound {
            throw failure(
                key, "\(value) is above the maximum of \(range.upperBound) \(unit)",
                "Give at most \(range.upperBound)")
        }
    }

    /// One of the raw values of an enumeration.
    mutating func choice<Choice: RawRepresentable & CaseIterable>(
        _ key: String, default: Choice
    ) throws(ConfigurationError) -> Choice where Choice.RawValue == String {
        guard let text = try string(key, example: `default`.rawValue) else { return `default` }
        guard let value = Choice(rawValue: text) else {
            let choices = Choice.allCases.map { "\"\($0.rawValue)\"" }.joined(separator: ", ")
            throw failure(key, "\"\(text)\" is not known", "Write one of \(choices)")
        }
        return value
    }

    /// An absolute path without `.` and `..`, and without a slash at its end.
    mutating func absolutePath(_ key: String, example: String) throws(ConfigurationError) -> String? {
        guard let text = try string(key, example: example) else { return nil }
        return try checkedPath(key, text)
    }

    func checkedPath(_ key: String, _ text: String) throws(ConfigurationError) -> String {
        guard text.hasPrefix("/") else {
            throw failure(key, "\"\(text)\" is a relative path", "Write the whole path, beginning with /")
        }
        let components = text.split(separator: "/")
        guard !components.isEmpty else { throw failure(key, "it is the root directory", "Name a directory below /") }
        guard !components.contains("."), !components.contains("..") else {
            throw failure(key, "\"\(text)\" contains . or ..", "Write the path without them")
        }
        guard text.utf8.count < 4096 else { throw failure(key, "longer than 4095 bytes", "Use a shorter path") }
        return "/" + components.joined(separator: "/")
    }

    /// A sub-table, nil when it is absent.
    mutating func section(_ key: String) throws(ConfigurationError) -> Section? {
        guard let node = node(key) else { return nil }
        guard case .table(let entries) = node else {
            throw failure(key, "\(node.kind) where a table is needed", "Write it as a section: [\(full(key))]")
        }
        return Section(document, path: full(key), entries: entries)
    }

    /// The tables of an array of tables; empty when it is absent.
    mutating func sections(_ key: String) throws(ConfigurationError) -> [Section] {
        guard let node = node(key) else { return [] }
        var sections: [Section] = []
        if case .array(let items) = node {
            for item in items {
                guard case .table(let entries) = item else {
                    sections = []
                    break
                }
                sections.append(Section(document, path: "\(full(key))[\(sections.count)]", entries: entries))
            }
        }
        guard !sections.isEmpty else {
            throw failure(
                key, "\(node.kind) where tables are needed", "Write each as a section: [[\(full(key))]]")
        }
        return sections
    }

    /// Refuses keys that nobody asked for: a misspelt key would otherwise silently keep its default.
    func finish() throws(ConfigurationError) {
        for key in keys where !known.contains(key) {
            let near = known.map { ($0, editDistance($0.lowercased(), key.lowercased())) }
                .filter { $0.1 <= 3 }.min { ($0.1, $0.0) < ($1.1, $1.0) }
            let list = known.sorted().joined(separator: ", ")
            throw failure(
                key, "unknown key",
                near.map { "Did you mean \($0.0)? Else remove it" } ?? "Remove it; known here are: \(list)")
        }
    }
}

/// The number of single-character changes between two short words (Levenshtein).
private func editDistance(_ left: String, _ right: String) -> Int {
    let right = Array(right.utf8)
    var row = Array(0...right.count)
    for (i, a) in left.utf8.enumerated() {
        var diagonal = row[0]
        row[0] = i + 1
        for (j, b) in right.enumerated() {
            let above = row[j + 1]
            row[j + 1] = min(above + 1, row[j] + 1, diagonal + (a == b ? 0 : 1))
            diagonal = above
        }
    }
    return row[right.count]
}
