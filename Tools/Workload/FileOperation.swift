//  One change that a writer makes in its own directory, as a value: drawn, done, noted, and judged later.
import Foundation

/// A file operation with everything that its effect depends on.
public struct FileOperation: Equatable, Sendable {
    public enum Kind: String, CaseIterable, Sendable {
        case create, write, append, mapWrite, truncate, allocate, punch, zero
        case rename, exchange, link, unlink, unlinkOpen, makeDirectory, removeDirectory, symlink, makeNode
        case mode, owner, times, setAttribute, removeAttribute
        case fsync, fdatasync, syncDirectory
    }
    /// How the file is opened to write.
    public enum Access: String, CaseIterable, Sendable { case buffered, direct, sync, dataSync, directSync }

    public var kind: Kind
    public var access = Access.buffered
    /// Relative to the writer's directory; `.` is that directory.
    public var path: String
    /// The second name of a rename, exchange or link; the target of a symbolic link; an attribute's name; what a node is
    /// (`NodeKind`).
    public var other = "."
    /// In bytes.
    public var offset = 0
    /// In bytes.
    public var length = 0
    /// What the bytes are made from; 0 stands for zeros.
    public var pattern: UInt64 = 0
    /// Mode, owner, or seconds since 1970.
    public var value = 0

    /// What `makeNode` makes.
    public enum NodeKind: String, CaseIterable, Sendable { case pipe, device }

    public init(_ kind: Kind, _ path: String) {
        self.kind = kind
        self.path = path
    }

    /// One line, fields separated by blanks. No name that a writer draws has a blank.
    public var line: String {
        "\(kind.rawValue) \(access.rawValue) \(path) \(other) \(offset) \(length) \(pattern) \(value)"
    }

    public init?(fields: [Substring]) {
        guard fields.count == 8, let kind = Kind(rawValue: String(fields[0])),
            let access = Access(rawValue: String(fields[1])), let offset = Int(fields[4]), let length = Int(fields[5]),
            let pattern = UInt64(fields[6]), let value = Int(fields[7])
        else { return nil }
        (self.kind, self.access, path, other) = (kind, access, String(fields[2]), String(fields[3]))
        (self.offset, self.length, self.pattern, self.value) = (offset, length, pattern, value)
    }

    /// Whether a process that dies in it may leave a part of it: one call may be several records.
    public var isDivisible: Bool { kind == .write || kind == .append || kind == .mapWrite }

    /// Changes names: answered when it is on every in-sync disk.
    public var changesNames: Bool {
        switch kind {
        case .create, .rename, .exchange, .link, .unlink, .unlinkOpen, .makeDirectory, .removeDirectory, .symlink,
            .makeNode, .setAttribute, .removeAttribute:
            true
        default: false
        }
    }

    /// An answer to it means that its own effect is on every in-sync disk.
    public var isDurableWhenAnswered: Bool {
        changesNames || kind == .mapWrite || (kind == .write && [.sync, .dataSync, .directSync].contains(access))
            || (kind == .append && access == .sync)
    }
}

/// The bytes of a pattern at a place of a file: the same place has the same bytes, whatever the length written.
public func patternBytes(_ pattern: UInt64, at offset: Int, count: Int) -> [UInt8] {
    guard pattern != 0 else { return [UInt8](repeating: 0, count: count) }
    var result = [UInt8]()
    result.reserveCapacity(count + 8)
    var word = UInt64(offset / 8)
    var skip = offset % 8
    while result.count < count {
        var mixed = (word &+ pattern) &* 0x9E37_79B9_7F4A_7C15
        mixed = (mixed ^ (mixed >> 31)) &* 0xBF58_476D_1CE4_E5B9
        mixed ^= mixed >> 29
        for byte in skip..<8 { result.append(UInt8(truncatingIfNeeded: mixed >> (UInt64(byte) * 8))) }
        skip = 0
        word += 1
    }
    result.removeLast(result.count - count)
    return result
}

/// A generator whose sequence depends on its seed alone (splitmix64).
public struct SeededGenerator: RandomNumberGenerator, Sendable {
    private var state: UInt64
    public init(seed: UInt64) { state = seed }
    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
