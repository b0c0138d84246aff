/// One of the two servers that hold data, in the order of the configuration file (the same file on both).
public enum NodeID: UInt8, Sendable, Hashable, CaseIterable, Comparable {
    case a = 0
    case b = 1

    /// The other of the two.
    public var peer: NodeID { self == .a ? .b : .a }

    public static func < (left: NodeID, right: NodeID) -> Bool { left.rawValue < right.rawValue }
}

/// One of the three rooms that vote: the two nodes and the witness.
public enum Voter: UInt8, Sendable, Hashable, CaseIterable, Comparable {
    case a = 0
    case b = 1
    case witness = 2

    public init(_ node: NodeID) { self = node == .a ? .a : .b }

    /// The node behind this voter; nil for the witness.
    public var node: NodeID? { NodeID(rawValue: rawValue) }

    public static func < (left: Voter, right: Voter) -> Bool { left.rawValue < right.rawValue }
}

/// A set of nodes; as the in-sync set of a decision, the nodes that hold every acknowledged write.
public struct NodeSet: OptionSet, Sendable, Hashable, CustomStringConvertible {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    public init(_ node: NodeID) { rawValue = 1 << node.rawValue }

    public static let a = NodeSet(.a)
    public static let b = NodeSet(.b)
    public static let both: NodeSet = [.a, .b]

    public func contains(_ node: NodeID) -> Bool { contains(NodeSet(node)) }
    /// Whether `node` is the only member.
    public func isOnly(_ node: NodeID) -> Bool { self == NodeSet(node) }
    /// A set that a decision may hold: at least one node, and only the two there are.
    public var isValid: Bool { !isEmpty && rawValue & ~NodeSet.both.rawValue == 0 }
    public var description: String {
        "{" + NodeID.allCases.filter { contains($0) }.map { "\($0)" }.joined(separator: ",") + "}"
    }
}

/// The identity of a mirror, drawn at random by `lockstep init` on the node that has the data.
/// Every message and every journal carries it; anything of another mirror is refused.
public struct MirrorID: Sendable, Hashable, CustomStringConvertible {
    public let high: UInt64
    public let low: UInt64
    public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }
    /// Nothing has been given an identity yet.
    public static let none = MirrorID(high: 0, low: 0)

    public init(random generator: inout some RandomNumberGenerator) {
        self.init(high: generator.next(), low: generator.next() | 1)
    }

    /// 32 hexadecimal digits.
    public var description: String { hexadecimal(high) + hexadecimal(low) }
}

/// Sixteen lower-case hexadecimal digits.
func hexadecimal(_ value: UInt64) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: 16 - digits.count) + digits
}

/// One life of one primary. Grows with every start of serving and with every shrink of the in-sync set.
public struct Epoch: RawRepresentable, Sendable, Hashable, Comparable, CustomStringConvertible {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let none = Epoch(rawValue: 0)
    /// Decisions of this epoch and later ones are refused: the number of a file has 23 bits for its epoch, and the last
    /// of them are kept for those that follow on one that was heard of.
    public static let limit = Epoch(rawValue: 1 << 23 - 1 << 16)
    public var next: Epoch { Epoch(rawValue: rawValue + 1) }
    public static func < (left: Epoch, right: Epoch) -> Bool { left.rawValue < right.rawValue }
    public var description: String { "\(rawValue)" }
}

/// The number of a record in the mirror's one order. The first record is 1; 0 is "nothing yet".
public struct Seq: RawRepresentable, Sendable, Hashable, Comparable, CustomStringConvertible {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    public static let zero = Seq(rawValue: 0)
    public var next: Seq { Seq(rawValue: rawValue + 1) }
    public var previous: Seq { Seq(rawValue: rawValue - 1) }
    public static func < (left: Seq, right: Seq) -> Bool { left.rawValue < right.rawValue }
    public static func + (left: Seq, right: Int) -> Seq { Seq(rawValue: left.rawValue + UInt64(right)) }
    public static func - (left: Seq, right: Seq) -> Int { Int(left.rawValue) - Int(right.rawValue) }
    public var description: String { "\(rawValue)" }
}

/// The number of a file, directory or other object, the same on both nodes, given at creation and never used again.
///
/// Bits 40 to 62 hold the epoch in which it was created and bits 0 to 39 a counter, so that two histories (after a
/// forced promotion) never give one number to two files. Bit 63 stays clear. The root is 1, as FUSE demands of its
/// node ids, which these are.
public struct FileID: RawRepresentable, Sendable, Hashable, Comparable, CustomStringConvertible {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    public static let none = FileID(rawValue: 0)
    public static let root = FileID(rawValue: 1)
    public static let counterBits: UInt64 = 40
    public static let counterLimit: UInt64 = 1 << counterBits

    /// - Precondition: `counter` is below `counterLimit` and the epoch fits in 23 bits.
    public init(epoch: Epoch, counter: UInt64) {
        precondition(counter < FileID.counterLimit && epoch.rawValue < 1 << 23, "file number out of range")
        rawValue = UInt64(epoch.rawValue) << FileID.counterBits | counter
    }

    public var epoch: Epoch { Epoch(rawValue: UInt32(truncatingIfNeeded: rawValue >> FileID.counterBits)) }
    public var counter: UInt64 { rawValue & (FileID.counterLimit - 1) }
    public static func < (left: FileID, right: FileID) -> Bool { left.rawValue < right.rawValue }
    /// Sixteen hexadecimal digits: the name it has in staging.
    public var description: String { hexadecimal(rawValue) }
}

/// The record that two of three rooms agree on.
public struct Decision: Sendable, Hashable, CustomStringConvertible {
    /// Grows by one with every change.
    public var sequence: UInt64
    /// Decisions of this number and later ones are refused, as those of `Epoch.limit`.
    public static let sequenceLimit: UInt64 = 1 << 62
    public var epoch: Epoch
    public var primary: NodeID
    /// The nodes that hold every acknowledged write.
    public var inSync: NodeSet

    public init(sequence: UInt64, epoch: Epoch, primary: NodeID, inSync: NodeSet) {
        self.sequence = sequence
        self.epoch = epoch
        self.primary = primary
        self.inSync = inSync
    }

    public var description: String {
        "decision \(sequence): epoch \(epoch), primary \(primary), in sync \(inSync)"
    }
}
