/// An epoch and the seq of its first record.
public struct EpochStart: Sendable, Hashable {
    public var epoch: Epoch
    public var firstSeq: Seq
    public init(epoch: Epoch, firstSeq: Seq) {
        self.epoch = epoch
        self.firstSeq = firstSeq
    }
}

/// What a node's log holds: both nodes send theirs first on a data connection, and again when it changes meaning
/// (serving begins, a merge ends).
public struct LogState: Sendable, Hashable {
    /// The sender has planned anew and wants to know what the other log holds now. The answer wants none itself, or two
    /// nodes would answer each other for ever.
    public var wantsAnswer = false
    /// What this node acknowledges when it serves is on the disk of every in-sync node (mode `strict`).
    public var isStrict = false
    /// The node serves: it holds the lease of the newest decision and gives out seqs.
    public var isServing: Bool
    /// A resynchronisation was begun and is not complete: the files are no state the application ever had.
    public var isIncomplete: Bool
    /// The resynchronisation in which an incomplete copy is; 0 when it is complete, or nobody knows.
    public var resyncNumber: UInt64 = 0
    /// The newest decision this node has accepted or learnt; nil when it has none.
    public var decision: Decision?
    /// Orders `decision` against the other node's: witness instance, number, node of the ballot it was accepted at.
    public var ballot: [UInt64]
    /// Everything received, in memory or on disk.
    public var lastSeq: Seq
    public var lastChain: UInt64
    public var durableSeq: Seq
    public var committedSeq: Seq
    /// The first seq that can still be read from the journal; `lastSeq.next` when none can.
    public var oldestSeq: Seq
    /// The last record of this node when it last began to serve, or was promoted to, without everything that was
    /// acknowledged (a forced promotion, a lone restart); nil: never. The other node saves what it gives up, see
    /// `DivergedTail`.
    public var lossAt: Seq?
    /// The same, of forced promotions alone: what the other node has above it may be in its files already, committed by
    /// it alone, so that its log is not simply cut.
    public var forcedAt: Seq?
    /// What the sender's plain files can hold.
    public var limits = FileLimits.widest
    /// Epochs in the log, oldest first; those before the first one are older than the history kept.
    public var epochs: [EpochStart]

    public init(
        isServing: Bool, isIncomplete: Bool, decision: Decision?, ballot: [UInt64], lastSeq: Seq, lastChain: UInt64,
        durableSeq: Seq, committedSeq: Seq, oldestSeq: Seq, epochs: [EpochStart]
    ) {
        self.isServing = isServing
        self.isIncomplete = isIncomplete
        self.decision = decision
        self.ballot = ballot
        self.lastSeq = lastSeq
        self.lastChain = lastChain
        self.durableSeq = durableSeq
        self.committedSeq = committedSeq
        self.oldestSeq = oldestSeq
        self.epochs = epochs
    }

    public var lastEpoch: Epoch { epochs.last?.epoch ?? .none }
    /// Epochs a message may carry.
    public static let epochLimit = 1024
}

/// What the follower holds, cumulative: one message stands for every batch up to it.
public struct Acknowledgement: Sendable, Hashable {
    /// In memory, checked.
    public var received: Seq
    /// On disk.
    public var durable: Seq
    /// In the plain files.
    public var applied: Seq
    /// In the follower's backing file system.
    public var room: DiskRoom

    public init(received: Seq, durable: Seq, applied: Seq, room: DiskRoom) {
        self.received = received
        self.durable = durable
        self.applied = applied
        self.room = room
    }
}

/// What a node's backing file system still takes.
public struct DiskRoom: Sendable, Hashable {
    public var bytes: UInt64
    /// Files that may still be made, the node's reserve apart; the highest number when there is no limit.
    public var files: UInt64
    /// Everything up to here was in the files when the room was looked at; what lies behind may need some of it.
    public var seq: Seq

    public init(bytes: UInt64, files: UInt64, seq: Seq) {
        self.bytes = bytes
        self.files = files
        self.seq = seq
    }
}

/// A question of the full comparison: does your file hold blocks with these hashes?
public struct Probe: Sendable, Hashable {
    public var number: UInt64
    public var file: FileID
    public var offset: UInt64
    public var blockBytes: UInt32
    public var seed: UInt64
    /// The answer is computed when everything up to here has been applied.
    public var atSeq: Seq
    /// One for each block; nil: a hole.
    public var hashes: [Hash128?]

    public init(
        number: UInt64, file: FileID, offset: UInt64, blockBytes: UInt32, seed: UInt64, atSeq: Seq, hashes: [Hash128?]
    ) {
        self.number = number
        self.file = file
        self.offset = offset
        self.blockBytes = blockBytes
        self.seed = seed
        self.atSeq = atSeq
        self.hashes = hashes
    }
    /// Blocks of one probe.
    public static let blockLimit = 4096
}

/// How a node is to be brought back.
public struct ResyncStart: Sendable, Hashable {
    public enum Kind: UInt8, Sendable, CaseIterable {
        /// All files are compared.
        case comparison = 0
        /// Your copy at record `through` is known here; only what has changed since is sent.
        case ranges = 1
        /// What was broken off with this number goes on: your log stays.
        case resumed = 2
    }
    public var kind: Kind
    /// Drawn at random, never 0.
    public var number: UInt64
    /// The follower's log begins anew behind this record (not with `resumed`: there it ends here).
    public var base: Seq
    public var chain: UInt64
    public var epochs: [EpochStart]
    /// With `ranges`: everything up to here is applied and on disk before the log begins anew.
    public var through: Seq

    public init(kind: Kind, number: UInt64, base: Seq, chain: UInt64, epochs: [EpochStart], through: Seq) {
        self.kind = kind
        self.number = number
        self.base = base
        self.chain = chain
        self.epochs = epochs
        self.through = through
    }
}

/// Messages of the data connection besides batches.
public enum DataMessage: Sendable, Hashable {
    case logState(LogState)
    /// Source to follower: cut everything above `seq`, whose batch has this chain; what follows comes from me.
    case cut(seq: Seq, chain: UInt64)
    /// The cut is durable; batches from `seq` on are welcome.
    case cutDone(seq: Seq)
    /// The chain at `seq` is another one here: the histories part earlier.
    case cutRefused(seq: Seq)
    case acknowledgement(Acknowledgement)
    /// On the disk of every in-sync node up to here: may be applied.
    case commit(seq: Seq)
    /// Source to follower: your log cannot be continued.
    case resyncStart(ResyncStart)
    /// The follower's journal is empty, marked incomplete, and begins at the base.
    case resyncReady(number: UInt64)
    case probe(Probe)
    /// One bit for each block of the probe, least significant first: set = differs.
    case probeAnswer(number: UInt64, differs: [UInt8])
    /// Source to follower: the last image is the record `seq`.
    case resyncEnd(number: UInt64, seq: Seq)
    /// Follower to source: everything is in the files and durable, and the journal no longer says "incomplete".
    case resyncDone(number: UInt64)
    /// Follower to source: what it found at a record of a verification.
    case verifyAnswer(VerifyAnswer)

    public func encoded() -> [UInt8] {
        var writer = ByteWriter(reserving: 64)
        switch self {
        case .logState(let state):
            writer.put(UInt8(1))
            writer.put(state)
        case .cut(let seq, let chain):
            writer.put(UInt8(2))
            writer.put(seq)
            writer.put(chain)
        case .cutDone(let seq):
            writer.put(UInt8(3))
            writer.put(seq)
        case .cutRefused(let seq):
            writer.put(UInt8(4))
            writer.put(seq)
        case .acknowledgement(let acknowledgement):
            writer.put(UInt8(5))
            writer.put(acknowledgement.received)
            writer.put(acknowledgement.durable)
            writer.put(acknowledgement.applied)
            writer.put(acknowledgement.room.bytes)
            writer.put(acknowledgement.room.files)
            writer.put(acknowledgement.room.seq)
        case .commit(let seq):
            writer.put(UInt8(6))
            writer.put(seq)
        case .resyncStart(let start):
            writer.put(UInt8(7))
            writer.put(start.kind.rawValue)
            writer.put(start.number)
            writer.put(start.base)
            writer.put(start.chain)
            writer.put(start.epochs)
            writer.put(start.through)
        case .resyncReady(let number):
            writer.put(UInt8(8))
            writer.put(number)
        case .probe(let probe):
            writer.put(UInt8(9))
            writer.put(probe)
        case .probeAnswer(let number, let differs):
            writer.put(UInt8(10))
            writer.put(number)
            writer.put(counted: differs)
        case .resyncEnd(let number, let seq):
            writer.put(UInt8(11))
            writer.put(number)
            writer.put(seq)
        case .resyncDone(let number):
            writer.put(UInt8(12))
            writer.put(number)
        case .verifyAnswer(let answer):
            writer.put(UInt8(48))
            writer.put(answer)
        }
        return writer.bytes
    }

    public init(decoding bytes: [UInt8]) throws(DecodingError) {
        var reader = ByteReader(bytes)
        let kind = try reader.get(UInt8.self, "message kind")
        switch kind {
        case 1: self = .logState(try reader.getLogState())
        case 2: self = .cut(seq: try reader.getSeq(), chain: try reader.get(UInt64.self, "chain"))
        case 3: self = .cutDone(seq: try reader.getSeq())
        case 4: self = .cutRefused(seq: try reader.getSeq())
        case 5:
            self = .acknowledgement(
                Acknowledgement(
                    received: try reader.getSeq(), durable: try reader.getSeq(), applied: try reader.getSeq(),
                    room: DiskRoom(
                        bytes: try reader.get(UInt64.self, "free space"),
                        files: try reader.get(UInt64.self, "free files"), seq: try reader.getSeq())))
        case 6: self = .commit(seq: try reader.getSeq())
        case 7:
            let raw = try reader.get(UInt8.self, "kind of resynchronisation")
            guard let kind = ResyncStart.Kind(rawValue: raw) else {
                throw DecodingError("unknown kind \(raw) of resynchronisation", at: 1)
            }
            self = .resyncStart(
                ResyncStart(
                    kind: kind, number: try reader.get(UInt64.self, "number"), base: try reader.getSeq(),
                    chain: try reader.get(UInt64.self, "chain"), epochs: try reader.getEpochs(),
                    through: try reader.getSeq()))
        case 8: self = .resyncReady(number: try reader.get(UInt64.self, "number"))
        case 9: self = .probe(try reader.getProbe())
        case 10:
            self = .probeAnswer(
                number: try reader.get(UInt64.self, "number"),
                differs: try reader.getCounted(limit: Probe.blockLimit / 8, "answer"))
        case 11:
            self = .resyncEnd(number: try reader.get(UInt64.self, "number"), seq: try reader.getSeq())
        case 12: self = .resyncDone(number: try reader.get(UInt64.self, "number"))
        case 48: self = .verifyAnswer(try reader.getVerifyAnswer())
        default: throw DecodingError("unknown data message \(kind)", at: 0)
        }
        try reader.finish()
    }
}

extension ByteWriter {
    fileprivate mutating func put(_ epochs: [EpochStart]) {
        put(UInt32(epochs.count))
        for start in epochs {
            put(start.epoch)
            put(start.firstSeq)
        }
    }
    fileprivate mutating func put(_ state: LogState) {
        put(state.wantsAnswer)
        put(state.isStrict)
        put(state.isServing)
        put(state.isIncomplete)
        put(state.resyncNumber)
        put(state.decision != nil)
        if let decision = state.decision { put(decision) }
        put(UInt8(state.ballot.count))
        for part in state.ballot { put(part) }
        put(state.lastSeq)
        put(state.lastChain)
        put(state.durableSeq)
        put(state.committedSeq)
        put(state.oldestSeq)
        put(state.epochs)
        for seq in [state.lossAt, state.forcedAt] {
            put(seq != nil)
            if let seq { put(seq) }
        }
        put(state.limits)
    }
    fileprivate mutating func put(_ probe: Probe) {
        put(probe.number)
        put(probe.file)
        put(probe.offset)
        put(probe.blockBytes)
        put(probe.seed)
        put(probe.atSeq)
        put(UInt32(probe.hashes.count))
        for hash in probe.hashes {
            put(hash != nil)
            if let hash {
                put(hash.low)
                put(hash.high)
            }
        }
    }
}

extension ByteReader {
    fileprivate mutating func getEpochs() throws(DecodingError) -> [EpochStart] {
        let count = Int(try get(UInt32.self, "epoch count"))
        guard count <= LogState.epochLimit else { throw DecodingError("\(count) epochs", at: offset - 4) }
        var epochs: [EpochStart] = []
        for _ in 0..<count {
            let start = EpochStart(epoch: try getEpoch(), firstSeq: try getSeq())
            if let last = epochs.last, start.epoch <= last.epoch || start.firstSeq <= last.firstSeq {
                throw DecodingError("epochs out of order", at: offset)
            }
            epochs.append(start)
        }
        return epochs
    }
    fileprivate mutating func getLogState() throws(DecodingError) -> LogState {
        let wantsAnswer = try getBool()
        let isStrict = try getBool()
        let isServing = try getBool()
        let isIncomplete = try getBool()
        let resyncNumber = try get(UInt64.self, "resynchronisation")
        let decision: Decision? = try getBool() ? try getDecision() : nil
        let parts = Int(try get(UInt8.self, "ballot parts"))
        guard parts <= 4 else { throw DecodingError("ballot of \(parts) parts", at: offset - 1) }
        var ballot: [UInt64] = []
        for _ in 0..<parts { ballot.append(try get(UInt64.self, "ballot")) }
        var state = LogState(
            isServing: isServing, isIncomplete: isIncomplete, decision: decision, ballot: ballot,
            lastSeq: try getSeq(), lastChain: try get(UInt64.self, "chain"), durableSeq: try getSeq(),
            committedSeq: try getSeq(), oldestSeq: try getSeq(), epochs: try getEpochs())
        state.lossAt = try getBool() ? try getSeq() : nil
        state.forcedAt = try getBool() ? try getSeq() : nil
        state.limits = try getFileLimits()
        state.wantsAnswer = wantsAnswer
        state.isStrict = isStrict
        state.resyncNumber = resyncNumber
        return state
    }
    fileprivate mutating func getProbe() throws(DecodingError) -> Probe {
        let number = try get(UInt64.self, "number")
        let file = try getFileID()
        let place = try get(UInt64.self, "offset")
        let blockBytes = try get(UInt32.self, "block size")
        let seed = try get(UInt64.self, "seed")
        let atSeq = try getSeq()
        let count = Int(try get(UInt32.self, "hash count"))
        guard count <= Probe.blockLimit, blockBytes >= 512, blockBytes <= 1 << 20 else {
            throw DecodingError("impossible probe", at: offset)
        }
        var hashes: [Hash128?] = []
        hashes.reserveCapacity(count)
        for _ in 0..<count {
            hashes.append(
                try getBool() ? Hash128(low: try get(UInt64.self, "hash"), high: try get(UInt64.self, "hash")) : nil)
        }
        return Probe(
            number: number, file: file, offset: place, blockBytes: blockBytes, seed: seed, atSeq: atSeq, hashes: hashes)
    }
}
