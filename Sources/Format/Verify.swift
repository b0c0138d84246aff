// A verification of both rooms. Its questions are records in the mirror's one order, so both nodes answer each for
// exactly the same state, whatever the application writes meanwhile. They change nothing: a replay after a crash
// leaves them out, and a node that applies one for nobody only loses the time it takes.

/// What a verification looks at.
public enum VerifyAspect: UInt8, Sendable, CaseIterable {
    /// Attributes, extended attributes and link target, and one hash over a range of the content. Small files need no
    /// second question.
    case file = 1
    /// One hash over a range of the content.
    case content = 2
    /// A hash of each block of a range.
    case blocks = 3
    /// The bytes of a range.
    case bytes = 4
    /// One hash for each group of a directory's names. `offset` and `length` choose the names: those whose hash leaves
    /// the rest `offset` when it is divided by `length`. So a directory of any size is asked about in parts.
    case names = 5
    /// The chosen names themselves.
    case entries = 6
}

/// One question of a verification.
public struct VerifyCheck: Sendable, Hashable {
    /// The verification it belongs to: drawn at random, so that an answer of an earlier one is not taken for this one's.
    public var number: UInt64
    public var file: FileID
    public var aspect: VerifyAspect
    /// Bytes, or for names the rest of the division.
    public var offset: UInt64
    /// Bytes, or for names the divisor (at least 1).
    public var length: UInt64
    public var blockBytes: UInt32
    /// Of the hashes: drawn anew for each verification, so that two blocks that collide do not do so for ever.
    public var seed: UInt64

    public init(
        number: UInt64, file: FileID, aspect: VerifyAspect, offset: UInt64 = 0, length: UInt64 = 0,
        blockBytes: UInt32 = VerifyCheck.blockBytes, seed: UInt64
    ) {
        self.number = number
        self.file = file
        self.aspect = aspect
        self.offset = offset
        self.length = length
        self.blockBytes = blockBytes
        self.seed = seed
    }

    /// What is read at once.
    public static let blockBytes: UInt32 = 64 << 10
    /// A difference is named as exactly as this.
    public static let fineBlockBytes: UInt32 = 4 << 10
    /// Content that one question may cover; most of it a hole, or it takes long.
    public static let lengthLimit: UInt64 = 64 << 20
    /// Blocks of one question.
    public static let blockLimit: UInt64 = 4096
    /// Bytes of one answer.
    public static let bytesLimit: UInt64 = 64 << 10
    /// Groups of names in one answer.
    public static let nameGroups = 64
    /// Names in one answer; so long that 512 of the longest fit a message.
    public static let entryLimit = 512
    /// Extended attributes sent in full; of more, only the hash is compared.
    public static let xattrBytesLimit = 64 << 10
}

/// What one node found: the state after every record before the question.
public enum VerifyOutcome: Sendable, Hashable {
    /// No object with this number has a name.
    case gone
    /// It cannot be read; errno.
    case failed(Int32)
    case file(VerifiedFile)
    /// The hash of everything that is not zero.
    case content(Hash128)
    /// nil: zeros or a hole.
    case blocks([Hash128?])
    /// Shorter than asked for where the file ends.
    case bytes([UInt8])
    case names(count: UInt64, groups: [Hash128])
    /// `isComplete`: all of them. An object without a number has `.none`.
    case entries([ImageEntry], isComplete: Bool)
}

/// What a file or directory is besides its content.
public struct VerifiedFile: Sendable, Hashable {
    /// Without the access time, which is not mirrored, and for a directory without its size.
    public var attributes: FileAttributes
    public var target: [UInt8]
    /// Of all extended attributes.
    public var xattrHash: Hash128
    /// Empty, too, when they are too long for one message.
    public var xattrs: [ExtendedAttribute]
    /// Of the range that was asked about.
    public var content: Hash128

    public init(
        attributes: FileAttributes, target: [UInt8], xattrHash: Hash128, xattrs: [ExtendedAttribute], content: Hash128
    ) {
        self.attributes = attributes
        self.target = target
        self.xattrHash = xattrHash
        self.xattrs = xattrs
        self.content = content
    }
}

/// A follower's answer.
public struct VerifyAnswer: Sendable, Hashable {
    public var number: UInt64
    /// The record that asked.
    public var seq: Seq
    public var outcome: VerifyOutcome
    public init(number: UInt64, seq: Seq, outcome: VerifyOutcome) {
        self.number = number
        self.seq = seq
        self.outcome = outcome
    }
}

// MARK: - Encoding

extension ByteWriter {
    mutating func put(_ check: VerifyCheck) {
        put(check.number)
        put(check.file)
        put(check.aspect.rawValue)
        put(check.offset)
        put(check.length)
        put(check.blockBytes)
        put(check.seed)
    }

    private mutating func put(_ hash: Hash128) {
        put(hash.low)
        put(hash.high)
    }

    mutating func put(_ answer: VerifyAnswer) {
        put(answer.number)
        put(answer.seq)
        switch answer.outcome {
        case .gone: put(UInt8(1))
        case .failed(let errno):
            put(UInt8(2))
            put(errno)
        case .file(let file):
            put(UInt8(3))
            put(file.attributes)
            put(counted: file.target)
            put(file.xattrHash)
            put(file.xattrs)
            put(file.content)
        case .content(let hash):
            put(UInt8(4))
            put(hash)
        case .blocks(let hashes):
            put(UInt8(5))
            put(UInt32(hashes.count))
            for hash in hashes {
                put(hash != nil)
                if let hash { put(hash) }
            }
        case .bytes(let bytes):
            put(UInt8(6))
            put(counted: bytes)
        case .names(let count, let groups):
            put(UInt8(7))
            put(count)
            put(UInt32(groups.count))
            for group in groups { put(group) }
        case .entries(let entries, let isComplete):
            put(UInt8(8))
            put(isComplete)
            put(UInt32(entries.count))
            for entry in entries {
                put(counted: entry.name)
                put(entry.file)
                put(entry.mode)
            }
        }
    }
}

extension ByteReader {
    mutating func getVerifyCheck() throws(DecodingError) -> VerifyCheck {
        let start = offset
        let number = try get(UInt64.self, "number")
        let file = try getFileID()
        let raw = try get(UInt8.self, "aspect")
        guard let aspect = VerifyAspect(rawValue: raw) else { throw DecodingError("unknown aspect \(raw)", at: start) }
        let check = VerifyCheck(
            number: number, file: file, aspect: aspect, offset: try get(UInt64.self, "offset"),
            length: try get(UInt64.self, "length"), blockBytes: try get(UInt32.self, "block size"),
            seed: try get(UInt64.self, "seed"))
        guard check.isPossible else { throw DecodingError("impossible question of a verification", at: start) }
        return check
    }

    private mutating func getHash() throws(DecodingError) -> Hash128 {
        Hash128(low: try get(UInt64.self, "hash"), high: try get(UInt64.self, "hash"))
    }

    private mutating func getCount(_ limit: Int, _ what: String) throws(DecodingError) -> Int {
        let count = Int(try get(UInt32.self, what))
        guard count <= limit else { throw DecodingError("\(count) \(what)", at: offset - 4) }
        return count
    }

    mutating func getVerifyAnswer() throws(DecodingError) -> VerifyAnswer {
        let number = try get(UInt64.self, "number")
        let seq = try getSeq()
        let outcome: VerifyOutcome
        let kind = try get(UInt8.self, "outcome")
        switch kind {
        case 1: outcome = .gone
        case 2: outcome = .failed(try get(Int32.self, "errno"))
        case 3:
            outcome = .file(
                VerifiedFile(
                    attributes: try getAttributes(), target: try getTarget(), xattrHash: try getHash(),
                    xattrs: try getXattrs(), content: try getHash()))
        case 4: outcome = .content(try getHash())
        case 5:
            var hashes: [Hash128?] = []
            for _ in 0..<(try getCount(Int(VerifyCheck.blockLimit), "blocks")) {
                hashes.append(try getBool() ? try getHash() : nil)
            }
            outcome = .blocks(hashes)
        case 6: outcome = .bytes(try getCounted(limit: Int(VerifyCheck.bytesLimit), "bytes"))
        case 7:
            let count = try get(UInt64.self, "names")
            var groups: [Hash128] = []
            for _ in 0..<(try getCount(VerifyCheck.nameGroups, "groups")) { groups.append(try getHash()) }
            outcome = .names(count: count, groups: groups)
        case 8:
            let isComplete = try getBool()
            var entries: [ImageEntry] = []
            for _ in 0..<(try getCount(VerifyCheck.entryLimit, "entries")) {
                let name = try getName()
                let file = FileID(rawValue: try get(UInt64.self, "file"))
                entries.append(ImageEntry(name: name, file: file, mode: try get(UInt32.self, "entry mode")))
            }
            outcome = .entries(entries, isComplete: isComplete)
        default: throw DecodingError("unknown outcome \(kind)", at: offset - 1)
        }
        return VerifyAnswer(number: number, seq: seq, outcome: outcome)
    }
}

extension VerifyCheck {
    /// Within the limits, and of whole blocks: what comes from disk or wire is checked before it is used.
    var isPossible: Bool {
        let block = UInt64(blockBytes)
        guard blockBytes >= 512, blockBytes <= 1 << 20 else { return false }
        switch aspect {
        case .names, .entries: return length >= 1 && offset < length
        case .file, .content:
            return offset % block == 0 && length % block == 0 && length <= VerifyCheck.lengthLimit
                && offset <= UInt64(Int64.max) - VerifyCheck.lengthLimit
        case .blocks:
            return offset % block == 0 && length % block == 0 && length / block <= VerifyCheck.blockLimit
                && length <= VerifyCheck.lengthLimit && offset <= UInt64(Int64.max) - VerifyCheck.lengthLimit
        case .bytes:
            return length <= VerifyCheck.bytesLimit && offset <= UInt64(Int64.max) - VerifyCheck.lengthLimit
        }
    }
}
