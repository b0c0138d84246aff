/// What a decoder found wrong. Carries the place, so that a message can name it.
public struct DecodingError: Error, Sendable, Hashable, CustomStringConvertible {
    /// What was being read.
    public let what: String
    /// Byte offset at which it failed.
    public let offset: Int
    public init(_ what: String, at offset: Int) {
        self.what = what
        self.offset = offset
    }
    public var description: String { "\(what) at byte \(offset)" }
}

/// Writes little-endian values to the end of a byte array.
public struct ByteWriter: Sendable {
    @usableFromInline var storage: [UInt8] = []
    public init(reserving capacity: Int = 0) { storage.reserveCapacity(capacity) }

    public var bytes: [UInt8] { storage }
    public var count: Int { storage.count }

    // Inlinable, here and in `ByteReader`: other modules encode headers in every turn of the data path, and the
    // unspecialised form costs more than the system calls beside it.
    @inlinable public mutating func put(_ value: some FixedWidthInteger) {
        unsafe withUnsafeBytes(of: value.littleEndian) { raw in unsafe storage.append(contentsOf: raw) }
    }
    public mutating func put(_ value: Bool) { storage.append(value ? 1 : 0) }
    public mutating func put(raw: some Sequence<UInt8>) { storage.append(contentsOf: raw) }
    /// A length (32 bits) and the bytes.
    public mutating func put(counted raw: some Collection<UInt8>) {
        put(UInt32(raw.count))
        storage.append(contentsOf: raw)
    }
    public mutating func put(_ text: String) { put(counted: Array(text.utf8)) }
    public mutating func put(_ mirror: MirrorID) {
        put(mirror.high)
        put(mirror.low)
    }
    public mutating func put(_ epoch: Epoch) { put(epoch.rawValue) }
    public mutating func put(_ seq: Seq) { put(seq.rawValue) }
    public mutating func put(_ file: FileID) { put(file.rawValue) }
    public mutating func put(_ node: NodeID) { put(node.rawValue) }
    public mutating func put(_ nodes: NodeSet) { put(nodes.rawValue) }
    public mutating func put(_ decision: Decision) {
        put(decision.sequence)
        put(decision.epoch)
        put(decision.primary)
        put(decision.inSync)
    }
    /// Zeros up to the next multiple of `alignment` bytes.
    public mutating func pad(to alignment: Int) {
        while storage.count % alignment != 0 { storage.append(0) }
    }
}

/// Reads little-endian values from bytes that nobody vouches for: every length is checked before use.
public struct ByteReader: Sendable {
    @usableFromInline let bytes: ArraySlice<UInt8>
    @usableFromInline var position = 0
    public var offset: Int { position }

    public init(_ bytes: ArraySlice<UInt8>) { self.bytes = bytes }
    public init(_ bytes: [UInt8]) { self.bytes = bytes[...] }

    @inlinable public var remaining: Int { bytes.count - position }

    @inlinable public mutating func get<Value: FixedWidthInteger>(
        _ type: Value.Type = Value.self, _ what: String = "integer"
    ) throws(DecodingError) -> Value {
        let width = Value.bitWidth / 8
        guard remaining >= width else { throw DecodingError("truncated \(what)", at: position) }
        let start = position
        position += width
        return unsafe bytes.withUnsafeBytes { raw in
            Value(littleEndian: unsafe raw.loadUnaligned(fromByteOffset: start, as: Value.self))
        }
    }
    public mutating func getBool(_ what: String = "flag") throws(DecodingError) -> Bool {
        let value: UInt8 = try get(UInt8.self, what)
        guard value <= 1 else { throw DecodingError("invalid \(what) \(value)", at: offset - 1) }
        return value == 1
    }
    public mutating func get(raw count: Int, _ what: String = "bytes") throws(DecodingError) -> [UInt8] {
        guard count >= 0, remaining >= count else { throw DecodingError("truncated \(what)", at: offset) }
        let start = bytes.startIndex + offset
        position += count
        return Array(bytes[start..<start + count])
    }
    /// A length (32 bits) and the bytes; refused above `limit`.
    public mutating func getCounted(limit: Int, _ what: String = "bytes") throws(DecodingError) -> [UInt8] {
        let count = Int(try get(UInt32.self, what))
        guard count <= limit else { throw DecodingError("\(what) of \(count) bytes, limit \(limit)", at: offset - 4) }
        return try get(raw: count, what)
    }
    public mutating func getText(limit: Int = 4096, _ what: String = "text") throws(DecodingError) -> String {
        let start = offset
        guard let text = String(validating: try getCounted(limit: limit, what), as: UTF8.self) else {
            throw DecodingError("\(what) is not UTF-8", at: start)
        }
        return text
    }
    public mutating func getMirrorID() throws(DecodingError) -> MirrorID {
        MirrorID(high: try get(UInt64.self, "mirror id"), low: try get(UInt64.self, "mirror id"))
    }
    public mutating func getEpoch() throws(DecodingError) -> Epoch { Epoch(rawValue: try get(UInt32.self, "epoch")) }
    public mutating func getSeq() throws(DecodingError) -> Seq { Seq(rawValue: try get(UInt64.self, "seq")) }
    public mutating func getFileID() throws(DecodingError) -> FileID {
        FileID(rawValue: try get(UInt64.self, "file number"))
    }
    public mutating func getNodeID() throws(DecodingError) -> NodeID {
        let value: UInt8 = try get(UInt8.self, "node")
        guard let node = NodeID(rawValue: value) else { throw DecodingError("invalid node \(value)", at: offset - 1) }
        return node
    }
    public mutating func getNodeSet() throws(DecodingError) -> NodeSet {
        NodeSet(rawValue: try get(UInt8.self, "node set"))
    }
    public mutating func getDecision() throws(DecodingError) -> Decision {
        let start = offset
        let decision = Decision(
            sequence: try get(UInt64.self, "decision sequence"), epoch: try getEpoch(), primary: try getNodeID(),
            inSync: try getNodeSet())
        guard decision.inSync.isValid, decision.inSync.contains(decision.primary), decision.epoch < Epoch.limit,
            decision.sequence < Decision.sequenceLimit
        else {
            throw DecodingError("invalid decision", at: start)
        }
        return decision
    }
    public mutating func skip(_ count: Int) throws(DecodingError) {
        guard count >= 0, remaining >= count else { throw DecodingError("truncated", at: offset) }
        position += count
    }
    /// Fails unless everything was read.
    public func finish() throws(DecodingError) {
        guard remaining == 0 else { throw DecodingError("\(remaining) bytes too many", at: offset) }
    }
}
