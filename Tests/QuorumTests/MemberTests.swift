import Testing

@testable import Quorum

/// The first node on a bench, alone in the set, with both other voters: every write, every message and every order to
/// the data side is carried out at once.
private struct MemberBench {
    var member = Member(node: .a, timing: QuorumTiming(), seed: 7)
    var voters: [Voter: Acceptor] = [:]
    var now = long
    var closes: [CloseReason] = []
    /// What the data side has been told of epochs.
    var epochs: [Decision] = []
    var additions = 0
    /// Who was last said to refuse the lease because it is too long.
    var refusers: [Voter] = []
    /// Lost on the way to the other voters.
    var loses: (QuorumMessage.Body) -> Bool = { _ in false }

    init() {
        for voter in [Voter.b, .witness] {
            var acceptor = Acceptor(voter: voter, state: genesis, timing: QuorumTiming(), startedAt: 0, seed: 5)
            var effects: [AcceptorEffect] = []
            acceptor.start(effects: &effects)
            voters[voter] = acceptor
            carryOut(effects, of: voter)
        }
        step(.start(MemberStart(state: genesis, logComplete: true, lastEpoch: .none, lastSeq: .zero)))
    }

    mutating func step(_ event: MemberEvent) {
        var effects: [MemberEffect] = []
        member.step(event, now: now, effects: &effects)
        for effect in effects {
            switch effect {
            case .persist(_, let token): step(.persisted(token: token))
            case .setPolicy(_, let token): step(.policyInForce(token: token))
            case .close(let reason): closes.append(reason)
            case .epochChanged(let decision): epochs.append(decision)
            case .inSyncChanged: additions += 1
            case .grantTooLong(let voters): refusers = voters
            case .send(_, let message) where loses(message.body): break
            case .send(let voter, let message):
                var answers: [AcceptorEffect] = []
                voters[voter]?.receive(message, from: .a, now: now, effects: &answers)
                carryOut(answers, of: voter)
            default: break
            }
        }
    }

    private mutating func carryOut(_ effects: [AcceptorEffect], of voter: Voter) {
        for effect in effects {
            switch effect {
            case .persist(_, let token):
                var more: [AcceptorEffect] = []
                voters[voter]?.persisted(token, effects: &more)
                carryOut(more, of: voter)
            case .reply(_, let message): step(.message(from: voter, message))
            case .log: break
            }
        }
    }

    mutating func run(milliseconds: UInt64) {
        for _ in 0..<milliseconds / 50 {
            now += 50 * ms
            step(.tick)
        }
    }

    /// The voter's process is restarted with another longest grant.
    mutating func restart(_ voter: Voter, longestGrant: UInt64) {
        var timing = QuorumTiming()
        timing.grant = longestGrant
        var acceptor = Acceptor(
            voter: voter, state: voters[voter]?.state, timing: timing, startedAt: now, seed: 6)
        var effects: [AcceptorEffect] = []
        acceptor.start(effects: &effects)
        voters[voter] = acceptor
        carryOut(effects, of: voter)
    }

    mutating func say(_ voter: Voter, _ body: QuorumMessage.Body) {
        let sender = voters[voter]?.incarnation ?? Incarnation(birth: 0, session: 0)
        step(.message(from: voter, QuorumMessage(sender: sender, number: 1_000_000, body: body)))
    }
}

@Suite struct MemberTests {
    /// The other node's own voter accepts its takeover first, and alone that may never be chosen. The witness accepts it
    /// afterwards: two of three.
    @Test func failure06ARefusalByTheOtherNodesOwnVoterDeposesNobodyTheWitnesssDoes() throws {
        var bench = MemberBench()
        bench.run(milliseconds: 10_000)
        #expect(bench.member.mode == .serving)
        let epoch = try #require(bench.member.known?.epoch)
        let later = Epoch(rawValue: epoch.rawValue + 1)
        bench.say(.b, .leaseRefused(number: 1, .notPrimary, accepted: later))
        bench.run(milliseconds: 1000)
        #expect(bench.closes == [] && bench.member.mode == .serving)
        // Nor does what the witness accepted in this node's own epoch.
        bench.say(.witness, .leaseRefused(number: 1, .notPrimary, accepted: epoch))
        #expect(bench.closes == [] && bench.member.mode == .serving)
        bench.say(.witness, .leaseRefused(number: 1, .notPrimary, accepted: later))
        #expect(bench.closes == [.deposed(by: later)])
    }

    /// The addition of the other node was accepted in this room and nowhere else; then that node fails. The set is what it
    /// was, in another epoch: the data side must write that one, or nobody could tell the records apart.
    @Test func theDataSideHearsOfTheEpochAfterAnAdditionThatWasGivenUpInDoubt() throws {
        var bench = MemberBench()
        bench.run(milliseconds: 10_000)
        let before = try #require(bench.member.known)
        #expect(bench.member.mode == .serving && before.inSync == .a)
        bench.loses = { if case .accept = $0 { true } else { false } }
        bench.step(.peerFollows(before.epoch))
        bench.step(.peerCaughtUp(true))
        bench.run(milliseconds: 1000)
        #expect(bench.member.possible.count == 2 && bench.member.state?.accepted.inSync == .both)
        #expect(bench.epochs == [] && bench.member.known == before)
        bench.step(.peerSilent(.failed))
        // Another round is under way at the witness: this one is over, whoever has accepted it.
        let ballot = bench.member.proposer.ballot
        bench.say(
            .witness,
            .refused(
                ballot, .accept, promised: Ballot(instance: ballot.instance, number: ballot.number + 1, node: .b),
                .ballot))
        bench.loses = { if case .accept(_, let decision, _) = $0 { decision.inSync == .both } else { false } }
        bench.run(milliseconds: 10_000)
        let after = try #require(bench.member.known)
        #expect(after.inSync == .a && after.epoch > before.epoch && bench.member.possible == [.a])
        #expect(bench.additions == 0 && bench.epochs == [after] && bench.member.mode == .serving)
    }

    /// It waits for its part in the mirror: whoever stops it need not wait with it.
    @Test func aNodeWithoutAPartStopsAtOnceAndStartsAsWhatItWas() {
        var member = Member(node: .b, timing: QuorumTiming(), seed: 7)
        var roles: [Role] = []
        for event in [
            .start(MemberStart(state: nil, logComplete: true, lastEpoch: .none, lastSeq: .zero)), .tick, .requestStop,
            .tick, .requestStart, .tick,
        ] as [MemberEvent] {
            var effects: [MemberEffect] = []
            member.step(event, now: long, effects: &effects)
            for case .role(let state) in effects { roles.append(state.role) }
        }
        #expect(roles == [.wait, .stop, .wait] && member.mode == .unformed)
    }

    /// The disks of a stopped node were put back: it has no part any more, and does not serve because of that. The same if it
    /// is stopped while it gives its part up.
    @Test(arguments: [true, false]) func failure18AStoppedNodeWhoseVotesWerePutBackStaysStopped(before: Bool) throws {
        var bench = MemberBench()
        bench.run(milliseconds: 10_000)
        #expect(bench.member.mode == .serving)
        func stop() {
            bench.step(.requestStop)
            bench.step(.drained)
            bench.run(milliseconds: 100)
            bench.step(.closed)
        }
        let state = try #require(bench.member.state)
        if before {
            stop()
            #expect(bench.member.mode == .stopped(diskFailed: false))
        }
        bench.say(.witness, .heard(birth: state.birth, session: state.starts + 3, ballot: .zero))
        #expect(bench.member.state == nil)
        if !before {
            #expect(bench.member.mode == .closing(next: .unformed))
            bench.step(.requestStop)
        }
        bench.step(.closed)
        #expect(bench.member.mode == .stopped(diskFailed: false))
        bench.step(.requestStart)
        #expect(bench.member.mode == .unformed)
    }

    /// The application is still being stopped when that is found.
    @Test func failure18AStopThatIsUnderWayEndsAsOneWhenVotesWerePutBack() throws {
        var bench = MemberBench()
        bench.run(milliseconds: 10_000)
        let state = try #require(bench.member.state)
        bench.step(.requestStop)
        #expect(bench.member.mode == .draining(stop: true, done: false))
        bench.say(.witness, .heard(birth: state.birth, session: state.starts + 3, ballot: .zero))
        bench.step(.closed)
        #expect(bench.member.mode == .stopped(diskFailed: false))
    }

    /// Who may take over.
    @Test func onlyANodeThatIsHeardAndNotStoppedIsPresent() {
        var bench = MemberBench()
        bench.run(milliseconds: 10_000)
        let process = bench.voters[.b]?.incarnation
        func say(_ phase: NodePhase) { bench.say(.b, .status(phase, chosen: nil, witness: VoterMemory())) }
        say(.idle)
        #expect(process != nil && bench.member.presentPeer(now: bench.now) == process)
        say(.stopped)
        #expect(bench.member.presentPeer(now: bench.now) == nil)
        say(.idle)
        #expect(bench.member.presentPeer(now: bench.now + 60_000 * ms) == nil)
    }

    /// Who wants to stop gets it, also if the application or the directory cannot be left in order; who wants to move
    /// the service keeps it.
    @Test(arguments: [true, false]) func aDrainThatFailsEndsAStopByForceAndASwapHere(stop: Bool) {
        var bench = MemberBench()
        bench.run(milliseconds: 10_000)
        #expect(bench.member.mode == .serving)
        bench.step(.requestStop)
        #expect(bench.member.mode == .draining(stop: true, done: false))
        if !stop { bench.member.mode = .draining(stop: false, done: false) }
        bench.step(.drainFailed)
        #expect(bench.closes == [.restarting])
        bench.step(.closed)
        bench.run(milliseconds: 10_000)
        #expect(bench.member.mode == (stop ? .stopped(diskFailed: false) : .serving))
    }

    /// An application that is not well here is no reason to stay because it does not end, either; unless nobody else has
    /// everything.
    @Test(arguments: [true, false]) func aDrainThatFailsMovesAnApplicationThatIsNotWell(isPeerInSync: Bool) throws {
        var bench = MemberBench()
        bench.run(milliseconds: 10_000)
        let known = try #require(bench.member.known)
        if isPeerInSync {
            bench.member.known?.inSync = .both
            bench.member.peerSilentSince = nil
            bench.member.peerPhase = .idle
        }
        #expect(bench.member.known?.inSync == (isPeerInSync ? .both : known.inSync))
        bench.member.mode = .draining(stop: false, done: false)
        bench.member.movesByForce = true
        bench.step(.drainFailed)
        #expect(bench.closes == [.restarting])
        bench.step(.closed)
        if case .handedOver(_, stop: false) = bench.member.mode {
            #expect(isPeerInSync)
        } else {
            #expect(!isPeerInSync)
        }
    }

    /// The other node does not take the service over: who gave it up for a swap goes on, who was stopped stays so.
    @Test(arguments: [true, false]) func aHandOverThatNobodyTakesUndoesASwapAndNoStop(stop: Bool) {
        var bench = MemberBench()
        bench.run(milliseconds: 10_000)
        bench.member.mode = .handedOver(until: bench.now + 8000 * ms, stop: stop)
        bench.run(milliseconds: 7000)
        #expect(bench.member.mode == .handedOver(until: bench.now + 1000 * ms, stop: stop))
        bench.run(milliseconds: 10_000)
        #expect(bench.member.mode == (stop ? .stopped(diskFailed: false) : .serving))
    }

    /// One voter that grants is enough, until it is lost. So whoever refuses for good is named at once, and as long as
    /// it does; not by a node that asks no more, which would never hear that it was mended.
    @Test func aVoterThatGrantsForLessTimeThanIsAskedForIsNamed() {
        var bench = MemberBench()
        bench.run(milliseconds: 10_000)
        #expect(bench.member.mode == .serving && bench.refusers == [])
        bench.restart(.witness, longestGrant: 3500 * ms)
        bench.run(milliseconds: 2000)
        #expect(bench.refusers == [.witness] && bench.member.mode == .serving && bench.member.hasLease)
        bench.restart(.b, longestGrant: 3500 * ms)
        bench.run(milliseconds: 5000)
        #expect(bench.refusers == [.b, .witness] && bench.member.isFrozen)
        bench.restart(.witness, longestGrant: 9000 * ms)
        bench.run(milliseconds: 2000)
        #expect(bench.refusers == [.b] && !bench.member.isFrozen)
        bench.step(.requestStop)
        bench.step(.drained)
        #expect(bench.refusers == [])
    }

    @Test func aDirectoryThatWasTakenAwayIsServedAnew() throws {
        var bench = MemberBench()
        bench.step(.directoryLost)
        #expect(bench.closes == [])
        bench.run(milliseconds: 10_000)
        let before = try #require(bench.member.known?.epoch)
        bench.step(.directoryLost)
        #expect(bench.closes == [.restarting])
        bench.step(.closed)
        bench.run(milliseconds: 10_000)
        let after = try #require(bench.member.known?.epoch)
        #expect(bench.member.mode == .serving && after > before)
    }
}
