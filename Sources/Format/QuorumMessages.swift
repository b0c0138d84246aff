// What the three voters say to each other, and what each of them keeps on its disk.
//
// Every message starts with the sender's incarnation, so that whatever an earlier life of a voter said is recognised and
// dropped, and with a growing number that answers echo, so that "I have lost my memory" and "I know" cannot be confused
// when one of them is late. Layout on the wire, little-endian:
//
// ```
//   birth u64 | session u64 | number u64 | echo u64 | kind u8 | body (fixed for each kind, except a seed's name)
// ```
//
// The mirror's id is not repeated here: the frame that carries a message has it.

/// Which memory of the witness a ballot belongs to.
///
/// A witness that was installed anew has forgotten its promises. It gets a new instance, larger than every earlier one,
/// and answers given by an earlier instance count for nothing.
public struct WitnessInstance: Sendable, Hashable, Comparable, CustomStringConvertible {
    /// Grows by one each time the witness is seeded.
    public var generation: UInt32
    /// Instances of this generation and later ones are refused, as with `Ballot.numberLimit`.
    public static let generationLimit: UInt32 = 1 << 31
    /// The number the empty witness drew when it started, so that a late seed for one never fits another.
    public var birth: UInt64
    public init(generation: UInt32, birth: UInt64) {
        self.generation = generation
        self.birth = birth
    }
    /// Before any witness was seeded.
    public static let none = WitnessInstance(generation: 0, birth: 0)
    public static func < (left: WitnessInstance, right: WitnessInstance) -> Bool {
        (left.generation, left.birth) < (right.generation, right.birth)
    }
    public var description: String { "\(generation)/\(hexadecimal(birth))" }
}

/// The number of one round of voting; unique, because a node's own acceptor stores it before anyone else hears of it.
public struct Ballot: Sendable, Hashable, Comparable, CustomStringConvertible {
    public var instance: WitnessInstance
    public var number: UInt64
    public var node: NodeID
    public init(instance: WitnessInstance, number: UInt64, node: NodeID) {
        self.instance = instance
        self.number = number
        self.node = node
    }
    /// Ballots of this number and later ones are refused: the last ones are kept for those that follow on one that was
    /// heard of.
    public static let numberLimit: UInt64 = 1 << 62
    /// Below every ballot that is ever used.
    public static let zero = Ballot(instance: .none, number: 0, node: .a)
    public static func < (left: Ballot, right: Ballot) -> Bool {
        if left.instance != right.instance { return left.instance < right.instance }
        return (left.number, left.node.rawValue) < (right.number, right.node.rawValue)
    }
    /// `none` is spelled out: an instance's birth is long and says little to a reader.
    public var description: String { "\(instance.generation).\(number)\(node)" }
}

/// The highest ballots a voter is known to have answered. If it later shows lower ones, its disk was put back to an older
/// state, and it has forgotten promises that others rely on.
public struct VoterMemory: Sendable, Hashable {
    public var promised: Ballot
    public var accepted: Ballot
    public init(promised: Ballot = .zero, accepted: Ballot = .zero) {
        self.promised = promised
        self.accepted = accepted
    }
    public mutating func note(promised ballot: Ballot) { promised = max(promised, ballot) }
    public mutating func note(accepted ballot: Ballot) {
        promised = max(promised, ballot)
        accepted = max(accepted, ballot)
    }
}

/// One value for each of the three voters, in their fixed order.
public struct PerVoter<Value> {
    public var a: Value
    public var b: Value
    public var witness: Value
    public init(_ value: Value) {
        a = value
        b = value
        witness = value
    }
    public subscript(voter: Voter) -> Value {
        get {
            switch voter {
            case .a: a
            case .b: b
            case .witness: witness
            }
        }
        set {
            switch voter {
            case .a: a = newValue
            case .b: b = newValue
            case .witness: witness = newValue
            }
        }
    }
}
extension PerVoter: Sendable where Value: Sendable {}
extension PerVoter: Equatable where Value: Equatable {}
extension PerVoter: Hashable where Value: Hashable {}

/// What a voter keeps on its disk. It is written and flushed *before* any answer that depends on it leaves.
///
/// A voter without this state is *empty*: it answers nothing but that it is empty, until it is seeded.
public struct AcceptorState: Sendable, Hashable {
    public var mirror: MirrorID
    /// The mirror's name, so that two mirrors of one name are told apart by a witness. At most `nameLimit` bytes.
    public var name: String
    /// Drawn when this memory began. A voter that lost its disk comes back with another one.
    public var birth: UInt64
    /// How many processes have run on this memory: the number of the running one, so that late messages of an earlier
    /// process are recognised.
    public var starts: UInt64
    public var promised: Ballot
    public var acceptedBallot: Ballot
    public var accepted: Decision
    /// The highest ballot known to have been chosen by two of three. If it is `acceptedBallot`, `accepted` was chosen.
    public var chosenBallot: Ballot
    /// What the other voters are known to have answered (used on nodes only).
    public var memory: PerVoter<VoterMemory>
    /// On a node: it accepted from itself, on an administrator's order, a decision that makes it the sole member
    /// although it was not in sync; the epoch of that decision. Forgotten with the next decision that does not leave it
    /// the sole member. Whoever finds it on the disk after a crash knows that serving from here rests on that order.
    public var forcedEpoch: Epoch?
    /// A ballot that may stand for a forced promotion which is recorded in one room only: this voter promised it, or was
    /// seeded without knowing whether there is one. It grants no lease to anybody before a decision of a ballot at least
    /// as high counts: else writes could be acknowledged that the half of the promotion, completed later, leaves out.
    /// On the disk in the same write as the promise; nil as soon as such a decision was accepted (from the node that
    /// asks, so that two of three have it).
    public var leaseBar: Ballot?
    /// The longest lease, in milliseconds, that a process on this memory may have granted and that may still run: what a
    /// process that restarts has to outwait, whatever it is configured for itself. 0: not known (an earlier version).
    public var longestGrantMilliseconds: UInt32 = 0

    /// Whether two nodes that compare their logs may go by `accepted`. An ordinary proposal may be: whoever is in its set
    /// holds everything that was acknowledged. A forced one that is not known to be chosen may not: the other node,
    /// which alone has every write, would give its log up for one that never counts.
    public var mayBeToldOfLogs: Bool { forcedEpoch == nil || chosenBallot == acceptedBallot }

    /// Longest mirror name, in bytes of UTF-8.
    public static let nameLimit = 255

    public init(
        mirror: MirrorID, name: String, birth: UInt64, starts: UInt64, promised: Ballot, acceptedBallot: Ballot,
        accepted: Decision, chosenBallot: Ballot
    ) {
        self.mirror = mirror
        self.name = name
        self.birth = birth
        self.starts = starts
        self.promised = promised
        self.acceptedBallot = acceptedBallot
        self.accepted = accepted
        self.chosenBallot = chosenBallot
        memory = PerVoter(VoterMemory())
    }

    /// The first state of all: `node` has the data and is alone. It is chosen by definition, because the other two
    /// voters are empty and can only learn it from here.
    ///
    /// - Parameter birth: a random number.
    public static func genesis(mirror: MirrorID, name: String, node: NodeID, birth: UInt64) -> AcceptorState {
        let ballot = Ballot(instance: .none, number: 1, node: node)
        return AcceptorState(
            mirror: mirror, name: name, birth: birth, starts: 0, promised: ballot, acceptedBallot: ballot,
            accepted: Decision(sequence: 1, epoch: Epoch(rawValue: 1), primary: node, inSync: NodeSet(node)),
            chosenBallot: ballot)
    }
}

/// Which life of which memory a message comes from.
public struct Incarnation: Sendable, Hashable {
    public var birth: UInt64
    /// `AcceptorState.starts` of the sender; 0 for an empty voter.
    public var session: UInt64
    public init(birth: UInt64, session: UInt64) {
        self.birth = birth
        self.session = session
    }
}

/// A record of the mirror's order, and the epoch in which the one who speaks of it served or wrote it.
public struct LogMark: Sendable, Hashable, Comparable, CustomStringConvertible {
    public var epoch: Epoch
    public var seq: Seq
    public init(epoch: Epoch, seq: Seq) {
        self.epoch = epoch
        self.seq = seq
    }
    public static let zero = LogMark(epoch: .none, seq: .zero)
    public static func < (left: LogMark, right: LogMark) -> Bool {
        (left.epoch, left.seq) < (right.epoch, right.seq)
    }
    public var description: String { "record \(seq), epoch \(epoch)" }
}

/// Why a voter did not promise or accept.
public enum RoundRefusal: Sendable, Hashable {
    /// It has promised a ballot at least as high.
    case ballot
    /// It has granted a lease to the other node that runs for so many milliseconds more.
    case leaseHeld(remainingMilliseconds: UInt32)
    /// It restarted, and may have granted a lease in its earlier life that runs for so many milliseconds more.
    case restarted(remainingMilliseconds: UInt32)
}

/// Why a voter did not grant a lease.
public enum LeaseRefusal: UInt8, Sendable, Hashable {
    /// It has accepted a decision in which the asker is not primary.
    case notPrimary = 1
    /// The other node holds its grant.
    case held = 2
    /// The asker has not heard the last answers.
    case unheard = 3
    /// The asker wants a longer grant than this voter gives (it would not wait long enough after a restart).
    case tooLong = 4
    /// It has promised a forced promotion: the asker completes a round with it first (`AcceptorState.leaseBar`).
    case roundFirst = 5
}

/// What a node does, as it tells the other node.
public enum NodePhase: UInt8, Sendable, Hashable {
    case idle = 0
    /// Recorded as primary, not open yet.
    case opening = 1
    case serving = 2
    /// Primary without a lease.
    case frozen = 3
    /// Has stopped serving and released its leases: the other one shall take over now.
    case handedOver = 4
    /// Stopped by an administrator, or unable to serve.
    case stopped = 5
}

/// Which half of a round an answer belongs to.
public enum RoundPhase: UInt8, Sendable, Hashable {
    case prepare = 1
    case accept = 2
}

/// One message between two voters.
public struct QuorumMessage: Sendable, Hashable {
    public var sender: Incarnation
    /// Grows with each message that the sender's process sends.
    public var number: UInt64
    /// The number of the message that this one answers, or 0.
    public var echo: UInt64
    public var body: Body

    public enum Body: Sendable, Hashable {
        /// First half of a round. `memory` is what the asker knows the voter to have answered before; `forced`: the
        /// second half will be a forced promotion.
        case prepare(Ballot, memory: VoterMemory, forced: Bool = false)
        /// `mark`: what the voter has heard to be on the disk of every node of the in-sync set.
        case promise(Ballot, acceptedBallot: Ballot, accepted: Decision, mark: LogMark)
        /// Second half of a round.
        case accept(Ballot, Decision, memory: VoterMemory)
        case accepted(Ballot)
        case refused(Ballot, RoundPhase, promised: Ballot, RoundRefusal)
        /// Asks for a lease. `number` grows with each request of one process; `heard` is the highest number whose
        /// answer from this voter has arrived; the epoch is that of the decision that makes the asker primary. The voter
        /// keeps its grant for `grantMilliseconds`, which covers the asker's lease whatever the voter is configured for.
        /// `committed` is on the disk of every node of the in-sync set; zero while that is not known.
        case leaseRequest(
            number: UInt64, heard: UInt64, epoch: Epoch, grantMilliseconds: UInt32, memory: VoterMemory,
            committed: Seq)
        case leaseGranted(number: UInt64)
        case leaseRefused(number: UInt64, LeaseRefusal, accepted: Epoch)
        /// Gives back every grant up to `number`.
        case leaseRelease(number: UInt64)
        /// The voter has no memory; its number for this life.
        case empty(birth: UInt64)
        /// Gives an empty voter its memory. `birth` is the number that it drew; anyone else ignores the seed.
        case seed(
            birth: UInt64, mirror: MirrorID, name: String, promised: Ballot, acceptedBallot: Ballot,
            accepted: Decision)
        /// The witness refuses a seed: it serves another mirror of the same name.
        case nameTaken(by: MirrorID)
        /// One node to the other, every half second: what it does, the newest decision it knows to be chosen, and what
        /// it knows the witness to have answered, so that either node notices a witness that was put back.
        case status(NodePhase, chosen: Decision?, witness: VoterMemory)
        /// What the sender has heard of the one it talks to, whose votes have this birth: the newest process, and the
        /// highest ballot that it proposed. Both are on a disk before anybody hears of them. A process that knows less of
        /// itself runs on votes that were put back to an older state, or on a copy of another machine's.
        case heard(birth: UInt64, session: UInt64, ballot: Ballot)
        /// A node that has started, to the witness: what its votes have promised. Answered with `heard` if that is too low.
        case greet(promised: Ballot)
    }

    public init(sender: Incarnation, number: UInt64, echo: UInt64 = 0, body: Body) {
        self.sender = sender
        self.number = number
        self.echo = echo
        self.body = body
    }
}

// MARK: - Encoding

extension ByteWriter {
    mutating func put(_ ballot: Ballot) {
        put(ballot.instance.generation)
        put(ballot.instance.birth)
        put(ballot.number)
        put(ballot.node)
    }
    mutating func put(_ memory: VoterMemory) {
        put(memory.promised)
        put(memory.accepted)
    }
}

extension ByteReader {
    mutating func getBallot() throws(DecodingError) -> Ballot {
        let generation = try get(UInt32.self, "ballot generation")
        let birth = try get(UInt64.self, "ballot birth")
        let number = try get(UInt64.self, "ballot number")
        // Nobody counts as far as that. A voter that took one of a stranger could never count on.
        guard number < Ballot.numberLimit, generation < WitnessInstance.generationLimit else {
            throw DecodingError("invalid ballot", at: offset)
        }
        return Ballot(
            instance: WitnessInstance(generation: generation, birth: birth), number: number, node: try getNodeID())
    }
    mutating func getVoterMemory() throws(DecodingError) -> VoterMemory {
        let promised = try getBallot()
        return VoterMemory(promised: promised, accepted: try getBallot())
    }
}

extension QuorumMessage {
    /// The longest message, in bytes: a seed with the longest name.
    public static let encodedLimit = 512

    public func encoded() -> [UInt8] {
        var writer = ByteWriter(reserving: 128)
        writer.put(sender.birth)
        writer.put(sender.session)
        writer.put(number)
        writer.put(echo)
        body.encode(into: &writer)
        return writer.bytes
    }

    public init(decoding bytes: ArraySlice<UInt8>) throws(DecodingError) {
        guard bytes.count <= QuorumMessage.encodedLimit else {
            throw DecodingError("quorum message of \(bytes.count) bytes, limit \(QuorumMessage.encodedLimit)", at: 0)
        }
        var reader = ByteReader(bytes)
        let birth = try reader.get(UInt64.self, "birth")
        let session = try reader.get(UInt64.self, "session")
        let number = try reader.get(UInt64.self, "number")
        let echo = try reader.get(UInt64.self, "echo")
        let body = try Body(from: &reader)
        try reader.finish()
        self.init(sender: Incarnation(birth: birth, session: session), number: number, echo: echo, body: body)
    }
}

extension QuorumMessage.Body {
    /// The byte that stands for each kind. Never reused for another meaning.
    enum Kind: UInt8 {
        case prepare = 1
        case promise = 2
        case accept = 3
        case accepted = 4
        case refused = 5
        case leaseRequest = 6
        case leaseGranted = 7
        case leaseRefused = 8
        case leaseRelease = 9
        case empty = 10
        case seed = 11
        case nameTaken = 12
        case status = 13
        /// Of its own kind, so that a voter that does not know what it promises is not asked.
        case prepareForced = 14
        case heard = 15
        case greet = 16
    }

    func encode(into writer: inout ByteWriter) {
        switch self {
        case .prepare, .promise, .accept, .accepted, .refused: encodeRound(into: &writer)
        case .leaseRequest, .leaseGranted, .leaseRefused, .leaseRelease: encodeLease(into: &writer)
        case .empty(let birth):
            writer.put(Kind.empty.rawValue)
            writer.put(birth)
        case .seed(let birth, let mirror, let name, let promised, let acceptedBallot, let accepted):
            writer.put(Kind.seed.rawValue)
            writer.put(birth)
            writer.put(mirror)
            writer.put(name)
            writer.put(promised)
            writer.put(acceptedBallot)
            writer.put(accepted)
        case .nameTaken(let mirror):
            writer.put(Kind.nameTaken.rawValue)
            writer.put(mirror)
        case .status(let phase, let chosen, let witness):
            writer.put(Kind.status.rawValue)
            writer.put(phase.rawValue)
            writer.put(witness)
            writer.put(chosen != nil)
            if let chosen { writer.put(chosen) }
        case .heard(let birth, let session, let ballot):
            writer.put(Kind.heard.rawValue)
            writer.put(birth)
            writer.put(session)
            writer.put(ballot)
        case .greet(let promised):
            writer.put(Kind.greet.rawValue)
            writer.put(promised)
        }
    }

    private func encodeRound(into writer: inout ByteWriter) {
        switch self {
        case .prepare(let ballot, let memory, let forced):
            writer.put((forced ? Kind.prepareForced : .prepare).rawValue)
            writer.put(ballot)
            writer.put(memory)
        case .promise(let ballot, let acceptedBallot, let accepted, let mark):
            writer.put(Kind.promise.rawValue)
            writer.put(ballot)
            writer.put(acceptedBallot)
            writer.put(accepted)
            writer.put(mark.epoch)
            writer.put(mark.seq)
        case .accept(let ballot, let decision, let memory):
            writer.put(Kind.accept.rawValue)
            writer.put(ballot)
            writer.put(decision)
            writer.put(memory)
        case .accepted(let ballot):
            writer.put(Kind.accepted.rawValue)
            writer.put(ballot)
        case .refused(let ballot, let phase, let promised, let reason):
            writer.put(Kind.refused.rawValue)
            writer.put(ballot)
            writer.put(phase.rawValue)
            writer.put(promised)
            switch reason {
            case .ballot: putReason(1, 0, into: &writer)
            case .leaseHeld(let remaining): putReason(2, remaining, into: &writer)
            case .restarted(let remaining): putReason(3, remaining, into: &writer)
            }
        default: preconditionFailure("not a message of a round")
        }
    }

    private func putReason(_ code: UInt8, _ remaining: UInt32, into writer: inout ByteWriter) {
        writer.put(code)
        writer.put(remaining)
    }

    private func encodeLease(into writer: inout ByteWriter) {
        switch self {
        case .leaseRequest(let number, let heard, let epoch, let grantMilliseconds, let memory, let committed):
            writer.put(Kind.leaseRequest.rawValue)
            writer.put(number)
            writer.put(heard)
            writer.put(epoch)
            writer.put(grantMilliseconds)
            writer.put(memory)
            writer.put(committed)
        case .leaseGranted(let number):
            writer.put(Kind.leaseGranted.rawValue)
            writer.put(number)
        case .leaseRefused(let number, let reason, let epoch):
            writer.put(Kind.leaseRefused.rawValue)
            writer.put(number)
            writer.put(reason.rawValue)
            writer.put(epoch)
        case .leaseRelease(let number):
            writer.put(Kind.leaseRelease.rawValue)
            writer.put(number)
        default: preconditionFailure("not a message about a lease")
        }
    }

    init(from reader: inout ByteReader) throws(DecodingError) {
        let place = reader.offset
        let code = try reader.get(UInt8.self, "kind of quorum message")
        guard let kind = Kind(rawValue: code) else {
            throw DecodingError("unknown kind of quorum message \(code)", at: place)
        }
        switch kind {
        case .prepare, .prepareForced, .promise, .accept, .accepted, .refused:
            self = try Self.round(kind, from: &reader)
        case .leaseRequest, .leaseGranted, .leaseRefused, .leaseRelease: self = try Self.lease(kind, from: &reader)
        case .empty: self = .empty(birth: try reader.get(UInt64.self, "birth"))
        case .seed:
            let birth = try reader.get(UInt64.self, "birth")
            let mirror = try reader.getMirrorID()
            let name = try reader.getText(limit: AcceptorState.nameLimit, "mirror name")
            let promised = try reader.getBallot()
            let acceptedBallot = try reader.getBallot()
            self = .seed(
                birth: birth, mirror: mirror, name: name, promised: promised, acceptedBallot: acceptedBallot,
                accepted: try reader.getDecision())
        case .nameTaken: self = .nameTaken(by: try reader.getMirrorID())
        case .status:
            let place = reader.offset
            guard let phase = NodePhase(rawValue: try reader.get(UInt8.self, "node phase")) else {
                throw DecodingError("unknown node phase", at: place)
            }
            let witness = try reader.getVoterMemory()
            let chosen = try reader.getBool("decision flag") ? try reader.getDecision() : nil
            self = .status(phase, chosen: chosen, witness: witness)
        case .heard:
            self = .heard(
                birth: try reader.get(UInt64.self, "birth"), session: try reader.get(UInt64.self, "session"),
                ballot: try reader.getBallot())
        case .greet: self = .greet(promised: try reader.getBallot())
        }
    }

    private static func round(_ kind: Kind, from reader: inout ByteReader) throws(DecodingError) -> Self {
        let ballot = try reader.getBallot()
        switch kind {
        case .prepare, .prepareForced:
            return .prepare(ballot, memory: try reader.getVoterMemory(), forced: kind == .prepareForced)
        case .promise:
            let acceptedBallot = try reader.getBallot()
            let accepted = try reader.getDecision()
            let mark = LogMark(epoch: try reader.getEpoch(), seq: try reader.getSeq())
            return .promise(ballot, acceptedBallot: acceptedBallot, accepted: accepted, mark: mark)
        case .accept:
            let decision = try reader.getDecision()
            return .accept(ballot, decision, memory: try reader.getVoterMemory())
        case .accepted: return .accepted(ballot)
        default:
            let place = reader.offset
            guard let phase = RoundPhase(rawValue: try reader.get(UInt8.self, "half of a round")) else {
                throw DecodingError("unknown half of a round", at: place)
            }
            let promised = try reader.getBallot()
            let code = try reader.get(UInt8.self, "reason of a refusal")
            let remaining = try reader.get(UInt32.self, "remaining time")
            switch code {
            case 1 where remaining == 0: return .refused(ballot, phase, promised: promised, .ballot)
            case 2: return .refused(ballot, phase, promised: promised, .leaseHeld(remainingMilliseconds: remaining))
            case 3: return .refused(ballot, phase, promised: promised, .restarted(remainingMilliseconds: remaining))
            default: throw DecodingError("unknown reason of a refusal \(code)", at: reader.offset - 5)
            }
        }
    }

    private static func lease(_ kind: Kind, from reader: inout ByteReader) throws(DecodingError) -> Self {
        let number = try reader.get(UInt64.self, "lease number")
        switch kind {
        case .leaseRequest:
            let heard = try reader.get(UInt64.self, "heard lease number")
            let epoch = try reader.getEpoch()
            let grant = try reader.get(UInt32.self, "grant")
            return .leaseRequest(
                number: number, heard: heard, epoch: epoch, grantMilliseconds: grant,
                memory: try reader.getVoterMemory(), committed: try reader.getSeq())
        case .leaseGranted: return .leaseGranted(number: number)
        case .leaseRefused:
            let code = try reader.get(UInt8.self, "reason of a lease refusal")
            guard let reason = LeaseRefusal(rawValue: code) else {
                throw DecodingError("unknown reason of a lease refusal \(code)", at: reader.offset - 1)
            }
            return .leaseRefused(number: number, reason, accepted: try reader.getEpoch())
        default: return .leaseRelease(number: number)
        }
    }
}

// MARK: - The file on disk

extension AcceptorState {
    /// First bytes of the file: 'LSAC'.
    static let magic: UInt32 = 0x4341_534C
    /// 1: the first. 2: the epoch of a forced promotion behind the memories. 3: that epoch (0: none) and the lease bar behind
    /// it. 4, the one that is written: that epoch, the lease bar (all zero: none) and the longest grant.
    static let oldestVersion: UInt16 = 1
    static let versionForced: UInt16 = 2
    static let versionBarred: UInt16 = 3
    static let version: UInt16 = 4
    /// The longest encoding, in bytes.
    public static let encodedLimit = 1024

    /// ```
    /// magic u32 'LSAC' | version u16 | reserved u16 | mirror 16 | name (u32 length, bytes) | birth u64 | starts u64 |
    /// promised 21 | accepted ballot 21 | accepted decision 14 | chosen ballot 21 | memory of a, b, witness 3 x 42 |
    /// epoch of the forced promotion u32 | lease bar 21 | longest grant in milliseconds u32 |
    /// CRC-32C of everything before, u32
    /// ```
    public func encoded() -> [UInt8] {
        precondition(name.utf8.count <= AcceptorState.nameLimit, "mirror name too long")
        var writer = ByteWriter(reserving: 512)
        writer.put(AcceptorState.magic)
        writer.put(AcceptorState.version)
        writer.put(UInt16(0))
        writer.put(mirror)
        writer.put(name)
        writer.put(birth)
        writer.put(starts)
        writer.put(promised)
        writer.put(acceptedBallot)
        writer.put(accepted)
        writer.put(chosenBallot)
        for voter in Voter.allCases { writer.put(memory[voter]) }
        writer.put(forcedEpoch ?? .none)
        writer.put(leaseBar ?? .zero)
        writer.put(longestGrantMilliseconds)
        writer.put(crc32c(writer.bytes))
        return writer.bytes
    }

    public init(decoding bytes: [UInt8]) throws(DecodingError) {
        guard bytes.count <= AcceptorState.encodedLimit else { throw DecodingError("voter state too long", at: 0) }
        guard bytes.count >= 12 else { throw DecodingError("truncated voter state", at: bytes.count) }
        var tail = ByteReader(bytes[(bytes.count - 4)...])
        guard try tail.get(UInt32.self, "checksum") == crc32c(bytes[..<(bytes.count - 4)]) else {
            throw DecodingError("wrong checksum of the voter state", at: bytes.count - 4)
        }
        var reader = ByteReader(bytes[..<(bytes.count - 4)])
        guard try reader.get(UInt32.self, "magic") == AcceptorState.magic else {
            throw DecodingError("not a voter state", at: 0)
        }
        let version = try reader.get(UInt16.self, "version")
        guard (AcceptorState.oldestVersion...AcceptorState.version).contains(version),
            try reader.get(UInt16.self, "reserved") == 0
        else {
            throw DecodingError(
                "voter state of version \(version), this program knows 1 to \(AcceptorState.version)", at: 4)
        }
        let mirror = try reader.getMirrorID()
        let name = try reader.getText(limit: AcceptorState.nameLimit, "mirror name")
        let birth = try reader.get(UInt64.self, "birth")
        let starts = try reader.get(UInt64.self, "starts")
        let promised = try reader.getBallot()
        let acceptedBallot = try reader.getBallot()
        let accepted = try reader.getDecision()
        self.init(
            mirror: mirror, name: name, birth: birth, starts: starts, promised: promised,
            acceptedBallot: acceptedBallot, accepted: accepted, chosenBallot: try reader.getBallot())
        for voter in Voter.allCases { memory[voter] = try reader.getVoterMemory() }
        if version >= AcceptorState.versionForced {
            let epoch = try reader.getEpoch()
            forcedEpoch = version > AcceptorState.versionForced && epoch == .none ? nil : epoch
        }
        if version >= AcceptorState.versionBarred {
            let bar = try reader.getBallot()
            leaseBar = version > AcceptorState.versionBarred && bar == .zero ? nil : bar
        }
        if version > AcceptorState.versionBarred {
            longestGrantMilliseconds = try reader.get(UInt32.self, "longest grant")
        }
        guard promised >= acceptedBallot, acceptedBallot >= chosenBallot, promised >= leaseBar ?? .zero else {
            throw DecodingError("voter state whose ballots contradict each other", at: 0)
        }
        try reader.finish()
    }
}
