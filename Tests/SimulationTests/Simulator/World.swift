import Quorum

/// Faults of Lockstep itself that the simulator must find. They are planted in the model around the cores, never in
/// them.
enum PlantedBug: Hashable, CaseIterable {
    /// Acknowledges after the lease has ended.
    case acknowledgesWithoutLease
    /// Rule 2 broken: alone, it acknowledges from memory.
    case aloneFromMemory
    /// Rule 11 broken: the other node is added when its memory has reached everything.
    case addsNodeFromMemory
    /// Says that the voter's state is on the disk before it is.
    case answersBeforeWriting
    /// Rule 8 broken: a restarted voter knows nothing of its earlier grants and does not wait.
    case voterForgetsGrants
    /// Rule 10 broken: a witness that was installed anew starts from the first decision instead of waiting for a seed.
    case witnessReinventsItself
    /// What a forced promotion leaves out is cut without being saved.
    case cutsWithoutSaving
    /// The witness is told nothing of what is committed, and remembers nothing of the nodes.
    case witnessForgetsNodes
}

/// How bad the world is.
struct WorldOptions {
    var loss: UInt64 = 10  // of a thousand messages
    var duplicates: UInt64 = 20
    var delay: ClosedRange<UInt64> = 1...20  // ms
    /// So many of a thousand messages are late by up to `lateBy` ms.
    var late: UInt64 = 10
    var lateBy: UInt64 = 3000
    var driftPerMillion: UInt64 = 4000
    var writeEvery: ClosedRange<UInt64> = 60...200  // ms
    var loneRestart: UInt64? = nil  // ms
    var bugs: Set<PlantedBug> = []
    /// Administrators promote by force, at random.
    var forces = false
    var traces = false
}

/// A clock of its own, and a process that may be down, paused, or an earlier one.
class Machine {
    let voter: Voter
    var process = 0
    var isUp = false
    var isPaused = false
    var backlog: [() -> Void] = []
    var clockOffset: UInt64 = 0
    var clockRate: UInt64 = 1_000_000  // millionths
    var disk: AcceptorState?
    /// What a node has forgotten and kept aside.
    var forgotten: AcceptorState?
    /// When the last write of the voter's state ends: they reach the disk in order.
    var writtenAt: UInt64 = 0
    /// Writes of the voter's state take this long at most, in ms.
    var slowDisk: UInt64 = 5

    init(voter: Voter) { self.voter = voter }
    func clock(_ now: UInt64) -> UInt64 { clockOffset + now / 1_000_000 * clockRate + now % 1_000_000 }
}

final class SimulatedNode: Machine {
    let node: NodeID
    var member: Member?
    var data: DataModel
    var toDataAt: UInt64 = 0
    var toMemberAt: UInt64 = 0
    var role: RoleState?
    var promotion = PromotionState.none
    var linkSession = 0  // 0: down
    var kills = 0
    /// The journal's writes take so much longer, in ms.
    var slowFlush: UInt64 = 0
    /// All of its disks, as they were at one moment.
    var snapshot: (votes: AcceptorState?, data: DataModel)?

    init(node: NodeID, bugs: Set<PlantedBug>) {
        self.node = node
        data = DataModel(node: node, bugs: bugs)
        super.init(voter: Voter(node))
    }
}

final class SimulatedWitness: Machine {
    var acceptor: Acceptor?
    var backup: AcceptorState?
    /// On its disk, and when it was written.
    var memory = NodeMemory()
    var memoryAt: UInt64 = 0
}

/// Two nodes, a witness, the network between them, and what must always be true.
final class World {
    let seed: UInt64
    let options: WorldOptions
    var timing = QuorumTiming()
    var random: SeededGenerator
    var now: UInt64 = 1_000 * ms
    var queue = EventQueue()
    let a: SimulatedNode
    let b: SimulatedNode
    let witness: SimulatedWitness
    /// cut[from][to]
    var cut = [[Bool]](repeating: [false, false, false], count: 3)
    /// The nodes' voters do not hear each other, whatever the data connection does.
    var nodesAreDeaf = false
    // The data link.
    private var dataLinkMayBeUp = true
    var session = 0
    var sessionBroken = true
    var linkAt = [UInt64](repeating: 0, count: 2)

    // What was seen.
    var violations: [String] = []
    var trace: [String] = []
    var written = 0
    struct Acknowledgement {
        var fsync: Bool
        /// Acknowledged from two memories: how often each node had been killed when it had it. nil: one disk was enough.
        var kills: [Int]?
        var at: UInt64
    }
    var acknowledged: [Int: Acknowledgement] = [:]
    var forgiven = 0
    var everAcknowledged: Set<Int> = []
    /// Acknowledged writes that a forced promotion left out.
    var lostByForce: Set<Int> = []
    var forcedEpochs: Set<Epoch> = []
    /// When a forced promotion was first on the disk of any voter: what is acknowledged later it must not leave out.
    var forcesRecorded: [Epoch: UInt64] = [:]
    var openings: [(node: NodeID, epoch: Epoch)] = []
    var epochOwners: [Epoch: NodeID] = [:]
    var votes: [Ballot: (decision: Decision, voters: Set<Voter>)] = [:]
    var chosen: [UInt64: Decision] = [:]
    var lastAcknowledgement: UInt64 = 0
    var isStormy = false
    var calmUntil: UInt64 = 0
    /// Until then nothing is lost that remembers more than the witness, which was put back.
    var witnessIsOldUntil: UInt64 = 0
    /// The bounds on liveness were broken, not safety.
    var isStuck = false

    init(seed: UInt64, options: WorldOptions = WorldOptions()) {
        self.seed = seed
        self.options = options
        random = SeededGenerator(seed: seed)
        timing.loneRestart = options.loneRestart.map { $0 * ms }
        a = SimulatedNode(node: .a, bugs: options.bugs)
        b = SimulatedNode(node: .b, bugs: options.bugs)
        witness = SimulatedWitness(voter: .witness)
        for machine in machines {
            machine.clockOffset = random.between(1_000_000 * ms, 9_000_000 * ms)
            machine.clockRate = 1_000_000 - options.driftPerMillion + random.next() % (2 * options.driftPerMillion + 1)
        }
        a.disk = .genesis(mirror: MirrorID(high: 7, low: 7), name: "ledger", node: .a, birth: random.next())
        note(vote: a.disk, of: .a)
        a.data.isComplete = true
        for machine in machines { start(machine) }
        planLink()
        planWrite()
    }

    var machines: [Machine] { [a, b, witness] }
    var nodes: [SimulatedNode] { [a, b] }
    subscript(node: NodeID) -> SimulatedNode { node == .a ? a : b }
    func machine(_ voter: Voter) -> Machine { voter.node.map { self[$0] } ?? witness }

    func say(_ text: @autoclosure () -> String) {
        if options.traces { trace.append("\(now / ms) \(text())") }
    }
    func violate(_ text: String) {
        say("VIOLATION \(text)")
        if violations.count < 5 { violations.append("at \(now / ms) ms: \(text)") }
    }

    // MARK: Time

    func run(milliseconds: UInt64) {
        let end = now + milliseconds * ms
        while let next = queue.nextTime, next <= end, violations.isEmpty {
            guard let event = queue.take() else { break }
            now = event.at
            event.action()
        }
        now = max(now, end)
    }

    /// Runs until it holds, at most so long.
    @discardableResult
    func run(until isTrue: () -> Bool, milliseconds: UInt64) -> Bool {
        let end = now + milliseconds * ms
        while !isTrue() {
            guard let next = queue.nextTime, next <= end, violations.isEmpty, let event = queue.take() else {
                return false
            }
            now = event.at
            event.action()
        }
        return true
    }

    func after(_ time: UInt64, _ action: @escaping () -> Void) { queue.plan(at: now + time, action) }

    /// Something that happens in a process of a machine: not if that process is gone, and later if it is paused.
    func after(_ time: UInt64, on machine: Machine, _ action: @escaping () -> Void) {
        let process = machine.process
        queue.plan(at: now + time) { [unowned self] in deliver(to: machine, process: process, action) }
    }

    private func deliver(to machine: Machine, process: Int, _ action: @escaping () -> Void) {
        guard machine.isUp, machine.process == process else { return }
        if machine.isPaused {
            machine.backlog.append { [unowned self] in deliver(to: machine, process: process, action) }
        } else {
            action()
        }
    }

    // MARK: Processes

    func start(_ machine: Machine) {
        guard !machine.isUp else { return }
        machine.isUp = true
        machine.process += 1
        machine.backlog = []
        machine.writtenAt = 0
        say("start \(machine.voter)")
        if let node = machine as? SimulatedNode {
            startNode(node)
        } else {
            startWitness()
        }
    }

    private func startNode(_ node: SimulatedNode) {
        node.member = Member(node: node.node, timing: timing, seed: random.next())
        node.role = nil
        node.linkSession = 0
        node.toDataAt = 0
        node.toMemberAt = 0
        let complete = node.data.isComplete && node.data.durable == node.data.log.count
        let found = AcceptorState.recalled(votes: node.disk, forgotten: node.forgotten)
        node.disk = found.votes
        if found.votes == nil { node.forgotten = found.forgotten }
        let start = MemberStart(
            state: found.votes, forgotten: found.forgotten, logComplete: complete,
            lastEpoch: node.data.log.last?.epoch ?? .none, lastSeq: Seq(rawValue: UInt64(node.data.log.count)),
            committed: node.data.committedMark)
        step(node, .start(start))
        tick(node)
    }

    private func tick(_ node: SimulatedNode) {
        after(120 * ms, on: node) { [unowned self] in
            step(node, .tick)
            data(node) { data, now, out in
                data.inherit(out: &out)
                data.advance(now: now, out: &out)
                data.report(now: now, out: &out)
            }
            tick(node)
        }
    }

    private func startWitness() {
        // A restarted voter waits from its start; a planted bug makes it believe that it started long ago.
        let clock = witness.clock(now)
        let startedAt = options.bugs.contains(.voterForgetsGrants) ? clock - timing.grant * 2 : clock
        if options.bugs.contains(.witnessReinventsItself), witness.disk == nil {
            witness.disk = a.disk.map {
                var first = AcceptorState.genesis(mirror: $0.mirror, name: $0.name, node: .a, birth: 1)
                first.promised = .zero
                first.acceptedBallot = .zero
                first.chosenBallot = .zero
                return first
            }
        }
        var acceptor = Acceptor(
            voter: .witness, state: witness.disk, timing: timing, startedAt: startedAt, seed: random.next(),
            memory: options.bugs.contains(.witnessForgetsNodes) ? NodeMemory() : witness.memory)
        var effects: [AcceptorEffect] = []
        acceptor.start(effects: &effects)
        witness.acceptor = acceptor
        carryOut(effects)
    }

    func kill(_ machine: Machine) {
        guard machine.isUp else { return }
        say("kill \(machine.voter)")
        machine.isUp = false
        machine.isPaused = false
        machine.process += 1
        machine.backlog = []
        if let node = machine as? SimulatedNode {
            node.member = nil
            node.data.crash()
            node.kills += 1
            forgiveLossOfBothRooms()
            node.linkSession = 0
            breakLink()
        } else {
            witness.acceptor = nil
        }
    }

    func pause(_ machine: Machine) {
        guard machine.isUp else { return }
        say("pause \(machine.voter)")
        machine.isPaused = true
    }

    func resume(_ machine: Machine) {
        guard machine.isPaused else { return }
        say("resume \(machine.voter)")
        machine.isPaused = false
        let backlog = machine.backlog
        machine.backlog = []
        for action in backlog { action() }
    }

    // MARK: Members

    func step(_ node: SimulatedNode, _ event: MemberEvent) {
        guard var member = node.member else { return }
        node.member = nil  // keeps the copy unique
        var effects: [MemberEffect] = []
        member.step(event, now: node.clock(now), effects: &effects)
        node.member = member
        node.data.vote = ModelVote(member.state)
        for effect in effects { carryOut(effect, node) }
    }

    private func carryOut(_ effect: MemberEffect, _ node: SimulatedNode) {
        switch effect {
        case .persist(let state, let token): persist(state, token: token, node)
        case .send(let voter, let message): send(message, from: node.voter, to: voter)
        case .role(let role):
            node.role = role
            // Faults like best to come when something is under way.
            if isStormy, random.chance(120) { after(random.between(0, 150) * ms) { [unowned self] in stormFault() } }
            say(
                "\(node.node) \(role.role.rawValue) \(role.reason) \(role.inDoubt) \(role.decision.map { "\($0)" } ?? "-")"
            )
        case .log(let level, let text):
            say("\(node.node) \(level): \(text)")
        case .witnessState(let state): say("\(node.node) witness \(state)")
        case .grantTooLong(let voters): say("\(node.node) is granted too little by \(voters)")
        case .promotion(let state):
            node.promotion = state
            say("\(node.node) promotion \(state)")
        case .adminRefused(let text): say("\(node.node) refuses: \(text)")
        default:
            switch effect {
            case .lease: break
            default: say("\(node.node) -> data \(effect)")
            }
            // To the data thread, in order, a little later.
            node.toDataAt = max(node.toDataAt, now + random.between(10, 3000) * 1000)
            after(node.toDataAt - now, on: node) { [unowned self] in
                data(node) { data, now, out in data.take(effect, now: now, out: &out) }
            }
        }
    }

    private func persist(_ state: AcceptorState?, token: UInt64, _ machine: Machine) {
        let end = now + random.between(0, machine.slowDisk) * ms + random.between(1, 1000) * 1000
        machine.writtenAt = max(machine.writtenAt, end) + 1
        let process = machine.process
        let done = { [unowned self] in
            if let node = machine as? SimulatedNode {
                step(node, .persisted(token: token))
            } else {
                var effects: [AcceptorEffect] = []
                witness.acceptor?.persisted(token, effects: &effects)
                carryOut(effects)
            }
        }
        let early = options.bugs.contains(.answersBeforeWriting)
        if early { after(1, on: machine, done) }
        let coin = random.chance(500)
        queue.plan(at: machine.writtenAt) { [unowned self] in
            // A write that was under way when the process died may or may not have reached the disk.
            guard machine.process == process || (coin && !early && machine.process == process + 1 && !machine.isUp)
            else {
                return
            }
            if state == nil {
                machine.forgotten = machine.disk ?? machine.forgotten
            } else if machine.process == process {
                // Who dies now may leave both.
                machine.forgotten = nil
            }
            machine.disk = state
            note(vote: state, of: machine.voter)
            if !early { deliver(to: machine, process: process, done) }
        }
    }

    private func carryOut(_ effects: [AcceptorEffect]) {
        for effect in effects {
            switch effect {
            case .persist(let state, let token): persist(state, token: token, witness)
            case .reply(let node, let message): send(message, from: .witness, to: Voter(node))
            case .log(let level, let text): say("witness \(level): \(text)")
            }
        }
    }

    // MARK: Network

    func send(_ message: QuorumMessage, from: Voter, to: Voter) {
        let copies = random.chance(options.duplicates) ? 2 : 1
        for _ in 0..<copies {
            if nodesAreDeaf, from != .witness, to != .witness { continue }
            if cut[Int(from.rawValue)][Int(to.rawValue)] || random.chance(options.loss) { continue }
            var delay = random.between(options.delay.lowerBound * 1000, options.delay.upperBound * 1000) * 1000
            if random.chance(options.late) { delay += random.between(0, options.lateBy) * ms }
            // To whichever process runs when it arrives.
            after(delay) { [unowned self] in arrive(message, from: from, to: to) }
        }
    }

    private func arrive(_ message: QuorumMessage, from: Voter, to: Voter) {
        let target = machine(to)
        after(0, on: target) { [unowned self] in
            if let node = target as? SimulatedNode {
                step(node, .message(from: from, message))
            } else if let asker = from.node {
                var effects: [AcceptorEffect] = []
                var heard = message
                if options.bugs.contains(.witnessForgetsNodes) {
                    guard case .some = forgetting(&heard) else { return }
                }
                witness.acceptor?.receive(heard, from: asker, now: witness.clock(now), effects: &effects)
                carryOut(effects)
                keepMemory()
            }
        }
    }

    private func forgetting(_ message: inout QuorumMessage) -> Void? {
        switch message.body {
        case .leaseRequest(let number, let heard, let epoch, let grant, let memory, _):
            message.body = .leaseRequest(
                number: number, heard: heard, epoch: epoch, grantMilliseconds: grant, memory: memory, committed: .zero)
        case .greet: return nil
        default: break
        }
        return ()
    }

    /// The witness writes what it remembers of the nodes now and then, and waits for nothing.
    private func keepMemory() {
        guard let memory = witness.acceptor?.nodeMemory, memory != witness.memory, now >= witness.memoryAt + 2000 * ms
        else { return }
        witness.memoryAt = now
        after(random.between(1, 100) * ms, on: witness) { [unowned self] in witness.memory = memory }
    }

    /// All disks of a node as they are now: what a snapshot of its machine holds.
    func takeSnapshot(of node: SimulatedNode) {
        var data = node.data
        data.crash()
        node.snapshot = (node.disk, data)
    }

    /// The machine is put back to its snapshot, and started.
    func putBack(_ node: SimulatedNode) {
        guard let snapshot = node.snapshot else { return }
        kill(node)
        say("\(node.node) put back to \(snapshot.data.log.count) records")
        node.disk = snapshot.votes
        node.data = snapshot.data
        start(node)
    }

    /// Cuts or heals one direction.
    func setCut(_ from: Voter, _ to: Voter, _ value: Bool) {
        say("\(value ? "cut" : "heal") \(from)>\(to)")
        cut[Int(from.rawValue)][Int(to.rawValue)] = value
    }
    func setCut(between left: Voter, _ right: Voter, _ value: Bool) {
        setCut(left, right, value)
        setCut(right, left, value)
    }

    // MARK: Data link

    private func planLink() {
        after(50 * ms) { [unowned self] in
            tendLink()
            planLink()
        }
    }

    /// Only the data connection; the voters go on hearing each other.
    func setDataLink(_ isUp: Bool) { dataLinkMayBeUp = isUp }

    private func tendLink() {
        let isCut = cut[0][1] || cut[1][0] || !dataLinkMayBeUp
        if !sessionBroken, isCut { breakLink() }
        guard sessionBroken, !isCut, nodes.allSatisfy({ $0.isUp && !$0.isPaused && $0.linkSession == 0 }) else {
            return
        }
        session += 1
        sessionBroken = false
        linkAt = [now, now]
        for node in nodes {
            node.linkSession = session
            data(node) { data, _, out in data.linkChanged(up: true, out: &out) }
        }
    }

    func breakLink() {
        guard !sessionBroken else { return }
        sessionBroken = true
        let broken = session
        for node in nodes where node.isUp {
            after(random.between(10, 500) * ms, on: node) { [unowned self] in
                guard node.linkSession == broken else { return }
                node.linkSession = 0
                data(node) { data, _, out in data.linkChanged(up: false, out: &out) }
            }
        }
    }

    private func sendData(_ message: DataMessage, from node: SimulatedNode) {
        guard !sessionBroken, node.linkSession == session else { return }
        if cut[Int(node.node.rawValue)][Int(node.node.peer.rawValue)] {
            breakLink()
            return
        }
        let target = self[node.node.peer]
        let index = Int(node.node.rawValue)
        linkAt[index] = max(
            linkAt[index], now + random.between(options.delay.lowerBound, options.delay.upperBound) * ms)
        let number = session
        after(linkAt[index] - now, on: target) { [unowned self] in
            guard target.linkSession == number else { return }
            data(target) { data, now, out in data.receive(message, now: now, out: &out) }
        }
    }

    // MARK: Data side

    func data(_ node: SimulatedNode, _ change: (inout DataModel, UInt64, inout [DataOutput]) -> Void) {
        var out: [DataOutput] = []
        change(&node.data, node.clock(now), &out)
        for output in out { carryOut(output, node) }
        checkServers()
    }

    private func carryOut(_ output: DataOutput, _ node: SimulatedNode) {
        switch output {
        case .event(let event):
            say("\(node.node) <- data \(event)")
            node.toMemberAt = max(node.toMemberAt, now + random.between(10, 2000) * 1000)
            after(node.toMemberAt - now, on: node) { [unowned self] in step(node, event) }
        case .send(let message): sendData(message, from: node)
        case .flush(let count):
            after(random.between(1, 60) * ms + node.slowFlush * ms, on: node) { [unowned self] in
                data(node) { data, now, out in data.flushed(count: count, now: now, out: &out) }
            }
        case .acknowledged(let id, let fsync):
            // The other one may have died since it said that it has it.
            let mayHaveDied = nodes.map { !$0.isUp && !$0.data.log.contains { $0.id == id } }
            let inBoth = nodes.enumerated().allSatisfy { index, node in
                mayHaveDied[index] || node.data.log.contains { $0.id == id }
            }
            let kills = nodes.enumerated().map { index, node in node.kills - (mayHaveDied[index] ? 1 : 0) }
            let isByMemory = inBoth && !(node.data.policy.ownDisk && mayHaveDied.contains(true))
            acknowledged[id] = Acknowledgement(fsync: fsync, kills: isByMemory ? kills : nil, at: now)
            everAcknowledged.insert(id)
            lastAcknowledgement = now
        case .opened(let decision, let inheritance): opened(node, decision, inheritance)
        case .dropped(let ids):
            // What the other node holds comes back from there.
            let held = Set(self[node.node.peer].data.log.map(\.id))
            for id in ids where everAcknowledged.contains(id) && !held.contains(id) {
                violate("\(node.node) cuts acknowledged write \(id) without saving it")
            }
        case .breakLink: breakLink()
        }
    }

    private func planWrite() {
        after(random.between(options.writeEvery.lowerBound, options.writeEvery.upperBound) * ms) { [unowned self] in
            for node in nodes where node.isUp && !node.isPaused && node.data.role == .primary {
                written += 1
                let id = written
                let fsync = random.chance(300)
                data(node) { data, now, out in data.write(id: id, fsync: fsync, now: now, out: &out) }
            }
            planWrite()
        }
    }
}
