public import Logging
public import Quorum

/// The witness's votes in all mirrors.
public final class WitnessVoters {
    /// Mirrors with a memory here.
    public static let mirrorLimit = 10_000
    /// Mirrors that are empty here: each costs memory, and anyone who connects can name one.
    public static let emptyLimit = 256

    /// What is remembered of nodes is written so seldom: it changes with every write of an application.
    public static let memoryNanoseconds: BootNanoseconds = 60_000_000_000

    /// A memory that could not be written is tried again after this time, with the next message.
    public static let retryNanoseconds: BootNanoseconds = 1_000_000_000

    private let store: VoteStore
    private let timing: QuorumTiming
    private let startedAt: BootNanoseconds
    private let logger: Logger
    private var generator: any RandomNumberGenerator
    private var voters: [MirrorID: Acceptor] = [:]
    private var begun: Set<MirrorID> = []
    private var empties: [MirrorID] = []
    private var names: [String: MirrorID] = [:]
    /// Silent until the witness is restarted: what they would say cannot be trusted.
    private var silenced: Set<MirrorID> = []
    /// Whose newest memory is not on the disk: the write it is, and when it is tried again. What rests on it waits in
    /// the voter.
    private var unwritten: [MirrorID: (token: UInt64, retryAt: BootNanoseconds)] = [:]
    /// As it was last written, and when.
    private var memories: [MirrorID: (memory: NodeMemory, at: BootNanoseconds)] = [:]
    /// Mirrors that were heard of since then.
    private var heard: Set<MirrorID> = []

    /// - Parameter startedAt: when this process started. For one grant from then it promises nothing to anybody:
    ///   its earlier process may have granted a lease.
    public init(
        store: VoteStore, timing: QuorumTiming, startedAt: BootNanoseconds, generator: any RandomNumberGenerator,
        logger: Logger
    ) throws(VoteStoreError) {
        self.store = store
        self.timing = timing
        self.startedAt = startedAt
        self.generator = generator
        self.logger = logger
        let (states, damaged) = try store.load()
        for damage in damaged {
            silenced.insert(damage.mirror)
            logger.critical("\(damage.description)")
        }
        for state in states {
            voters[state.mirror] = Acceptor(
                voter: .witness, state: state, timing: timing, startedAt: startedAt, seed: self.generator.next(),
                memory: recall(state.mirror))
            if let other = names[state.name] {
                logger.error("mirrors \(other) and \(state.mirror) have one name, \(state.name): rename one of them")
            } else {
                names[state.name] = state.mirror
            }
        }
    }

    public var mirrorCount: Int { voters.count - empties.count }

    /// Whether this witness votes in the mirror, or would if its memory could be read.
    public func hasMemory(of mirror: MirrorID) -> Bool {
        silenced.contains(mirror) || voters[mirror]?.state != nil
    }

    /// Why a node of this mirror gets no answer; nil if it does.
    public func objection(mirror: MirrorID, name: String) -> String? {
        if silenced.contains(mirror) {
            return "this witness's memory of mirror \(name) is damaged; its log says what to do"
        }
        if mirror != .none, let other = names[name], other != mirror {
            return
                "this witness already serves another mirror named \(name), with the identity \(other), not \(mirror): "
                + "give one of the two another name"
        }
        return nil
    }

    /// A message of one node of `mirror`; the answers, to that node or the other, in order. What an answer rests on is
    /// on the disk when this returns.
    public func receive(
        _ message: QuorumMessage, from node: NodeID, mirror: MirrorID, now: BootNanoseconds
    ) -> [(to: NodeID, QuorumMessage)] {
        guard mirror != .none, !silenced.contains(mirror) else { return [] }
        if case .seed(_, let seeded, let name, _, _, _) = message.body {
            guard seeded == mirror else { return [] }
            if let other = names[name], other != mirror {
                // Two clusters of one name: the second is told, and gets no vote.
                let sender = Incarnation(birth: 0, session: 0)
                return [
                    (
                        node,
                        QuorumMessage(sender: sender, number: 0, echo: message.number, body: .nameTaken(by: other))
                    )
                ]
            }
        }
        guard var voter = takeVoter(mirror) else { return [] }
        let wasEmpty = voter.state == nil
        var effects: [AcceptorEffect] = []
        if let waiting = unwritten[mirror], now >= waiting.retryAt {
            effects.append(.persist(voter.state, token: waiting.token))
        }
        var answers = carryOut(effects, &voter, mirror, now: now)
        effects = []
        if !wasEmpty, begun.insert(mirror).inserted { voter.start(effects: &effects) }
        voter.receive(message, from: node, now: now, effects: &effects)
        answers += carryOut(effects, &voter, mirror, now: now)
        voters[mirror] = voter
        heard.insert(mirror)
        noteMemory(of: voter, mirror, wasEmpty: wasEmpty)
        return answers
    }

    private func takeVoter(_ mirror: MirrorID) -> Acceptor? {
        if let voter = voters[mirror] { return voter }
        guard mirrorCount < WitnessVoters.mirrorLimit else {
            logger.error(
                "mirror \(mirror) gets no vote: this witness serves \(mirrorCount) mirrors, which is its limit")
            return nil
        }
        // The oldest empty one makes room; if it is a real mirror it just gets another number.
        if empties.count >= WitnessVoters.emptyLimit {
            // Not one that shall have forgotten, while its disk still remembers.
            guard let oldest = empties.firstIndex(where: { unwritten[$0] == nil }) else { return nil }
            voters[empties.remove(at: oldest)] = nil
        }
        empties.append(mirror)
        return Acceptor(
            voter: .witness, state: nil, timing: timing, startedAt: startedAt, seed: generator.next(),
            memory: recall(mirror))
    }

    private func recall(_ mirror: MirrorID) -> NodeMemory {
        let (memory, complaint) = NodeMemoryFiles(directory: store.directory).load(mirror)
        if let complaint { logger.warning("\(complaint)") }
        if let memory { memories[mirror] = (memory, 0) }
        return memory ?? NodeMemory()
    }

    /// What is remembered of nodes and has to be written now: at once when a node has started, else now and then.
    /// - Parameter all: whatever has changed, because the process stops.
    public func memoriesToWrite(now: BootNanoseconds, all: Bool = false) -> [(MirrorID, NodeMemory)] {
        var found: [(MirrorID, NodeMemory)] = []
        for mirror in heard.sorted(by: { ($0.high, $0.low) < ($1.high, $1.low) }) {
            guard let voter = voters[mirror], voter.state != nil else {
                heard.remove(mirror)
                continue
            }
            let memory = voter.nodeMemory
            let written = memories[mirror]
            let isNewLife = written?.memory.lifeA != memory.lifeA || written?.memory.lifeB != memory.lifeB
            guard memory != written?.memory else {
                heard.remove(mirror)
                continue
            }
            guard all || isNewLife || now >= (written?.at ?? 0) + WitnessVoters.memoryNanoseconds else { continue }
            memories[mirror] = (memory, now)
            heard.remove(mirror)
            found.append((mirror, memory))
        }
        return found
    }

    /// What `memoriesToWrite` gave out is not on the disk: it is given out again.
    public func memoryWasNotWritten(of mirror: MirrorID) {
        memories[mirror] = nil
        heard.insert(mirror)
    }

    private func noteMemory(of voter: Acceptor, _ mirror: MirrorID, wasEmpty: Bool) {
        guard wasEmpty != (voter.state == nil) else { return }
        if let state = voter.state {
            empties.removeAll { $0 == mirror }
            names[state.name] = mirror
            begun.insert(mirror)
        } else {
            empties.append(mirror)
            for (name, id) in names where id == mirror { names[name] = nil }
        }
    }

    /// Writes first, then lets the answers go that waited for it.
    private func carryOut(
        _ effects: [AcceptorEffect], _ voter: inout Acceptor, _ mirror: MirrorID, now: BootNanoseconds
    ) -> [(to: NodeID, QuorumMessage)] {
        var answers: [(to: NodeID, QuorumMessage)] = []
        var rest = effects[...]
        while let effect = rest.popFirst() {
            switch effect {
            case .reply(let node, let message): answers.append((node, message))
            case .log(let level, let text): log(level, text, mirror)
            case .persist(let state, let token):
                guard isWritten(state, token, of: mirror, now: now) else { continue }
                var more: [AcceptorEffect] = []
                voter.persisted(token, effects: &more)
                rest.append(contentsOf: more)
            }
        }
        return answers
    }

    private func isWritten(
        _ state: AcceptorState?, _ token: UInt64, of mirror: MirrorID, now: BootNanoseconds
    ) -> Bool {
        let failed = unwritten[mirror]
        if let failed, now < failed.retryAt {
            unwritten[mirror]?.token = token
            return false
        }
        do throws(VoteStoreError) {
            try store.store(state, of: mirror)
        } catch {
            unwritten[mirror] = (token, now + WitnessVoters.retryNanoseconds)
            if failed == nil {
                logger.critical(
                    "\(error). Until then this witness has no vote in this mirror; it tries again each second",
                    metadata: ["mirror": "\(mirror)"])
            }
            return false
        }
        unwritten[mirror] = nil
        if failed != nil { logger.notice("the vote is on the disk again", metadata: ["mirror": "\(mirror)"]) }
        return true
    }

    private func log(_ level: QuorumLogLevel, _ text: String, _ mirror: MirrorID) {
        let level: Logger.Level =
            switch level {
            case .debug: .debug
            case .info: .info
            case .warning: .warning
            case .error: .error
            case .critical: .critical
            }
        logger.log(level: level, "\(text)", metadata: ["mirror": "\(mirror)"])
    }
}
