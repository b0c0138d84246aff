import Testing

@testable import Quorum

let ms: UInt64 = 1_000_000
let long: UInt64 = 100_000 * ms
let mirror = MirrorID(high: 1, low: 2)
let genesis = AcceptorState.genesis(mirror: mirror, name: "ledger", node: .a, birth: 77)
let both = Decision(sequence: 2, epoch: Epoch(rawValue: 1), primary: .a, inSync: .both)
let takenOver = Decision(sequence: 3, epoch: Epoch(rawValue: 2), primary: .b, inSync: .both)

func ballot(_ number: UInt64, _ node: NodeID) -> Ballot { Ballot(instance: .none, number: number, node: node) }

/// A voter on a bench: every write is done at once, unless the test holds it back.
struct Bench {
    var acceptor: Acceptor
    var now: UInt64
    var number: UInt64 = 0
    var holdsWrites = false
    var tokens: [UInt64] = []
    var session: UInt64 = 1

    /// Started long ago unless `fresh`.
    init(_ state: AcceptorState?, fresh: Bool = false, voter: Voter = .witness, timing: QuorumTiming = QuorumTiming()) {
        now = long
        acceptor = Acceptor(voter: voter, state: state, timing: timing, startedAt: fresh ? long : 0, seed: 5)
        var effects: [AcceptorEffect] = []
        acceptor.start(effects: &effects)
        _ = settle(effects)
    }

    mutating func settle(_ effects: [AcceptorEffect]) -> [QuorumMessage.Body] {
        var answers: [QuorumMessage.Body] = []
        for effect in effects {
            switch effect {
            case .persist(_, let token):
                tokens.append(token)
                if !holdsWrites { answers += finishWrites() }
            case .reply(_, let message): answers.append(message.body)
            case .log: break
            }
        }
        return answers
    }

    mutating func finishWrites() -> [QuorumMessage.Body] {
        var effects: [AcceptorEffect] = []
        for token in tokens { acceptor.persisted(token, effects: &effects) }
        tokens = []
        return settle(effects)
    }

    mutating func ask(_ body: QuorumMessage.Body, from node: NodeID, birth: UInt64 = 9) -> [QuorumMessage.Body] {
        number += 1
        var effects: [AcceptorEffect] = []
        acceptor.receive(
            QuorumMessage(sender: Incarnation(birth: birth, session: session), number: number, body: body),
            from: node, now: now, effects: &effects)
        return settle(effects)
    }

    mutating func prepare(_ ballot: Ballot) -> [QuorumMessage.Body] {
        ask(.prepare(ballot, memory: VoterMemory()), from: ballot.node)
    }
    mutating func accept(_ ballot: Ballot, _ decision: Decision) -> [QuorumMessage.Body] {
        ask(.accept(ballot, decision, memory: VoterMemory()), from: ballot.node)
    }
    mutating func lease(
        _ node: NodeID, _ number: UInt64, heard: UInt64? = nil, epoch: UInt32 = 1, committed: Seq = .zero
    ) -> Bool? {
        let answers = ask(
            .leaseRequest(
                number: number, heard: heard ?? number - 1, epoch: Epoch(rawValue: epoch), grantMilliseconds: 4000,
                memory: VoterMemory(), committed: committed), from: node)
        switch answers.first {
        case .leaseGranted: return true
        case .leaseRefused: return false
        default: return nil
        }
    }
}

func isRefused(_ answers: [QuorumMessage.Body]) -> Bool {
    if case .refused = answers.first, answers.count == 1 { true } else { false }
}
func isPromise(_ answers: [QuorumMessage.Body]) -> Bool {
    if case .promise = answers.first, answers.count == 1 { true } else { false }
}

@Suite struct AcceptorTests {
    @Test func answersOnlyWhenItsDiskHasTheAnswer() {
        var bench = Bench(genesis)
        bench.holdsWrites = true
        #expect(bench.prepare(ballot(5, .a)).isEmpty)
        #expect(isPromise(bench.finishWrites()))
        #expect(bench.accept(ballot(5, .a), both).isEmpty)
        // A doubled question must not be answered earlier than the first.
        #expect(bench.accept(ballot(5, .a), both).isEmpty)
        #expect(bench.finishWrites() == [.accepted(ballot(5, .a)), .accepted(ballot(5, .a))])
    }

    @Test func refusesEqualAndLowerBallots() {
        var bench = Bench(genesis)
        #expect(isPromise(bench.prepare(ballot(5, .b))))
        #expect(isRefused(bench.prepare(ballot(5, .b))))
        #expect(isRefused(bench.prepare(ballot(5, .a))))
        #expect(isRefused(bench.accept(ballot(4, .a), both)))
        #expect(bench.accept(ballot(5, .b), takenOver) == [.accepted(ballot(5, .b))])
        #expect(bench.acceptor.state?.accepted == takenOver)
    }

    @Test func refusesTheOtherNodeWhileALeaseRuns() {
        var bench = Bench(genesis)
        #expect(bench.lease(.a, 1) == true)
        #expect(isRefused(bench.prepare(ballot(5, .b))))
        #expect(isRefused(bench.accept(ballot(5, .b), takenOver)))
        #expect(isPromise(bench.prepare(ballot(5, .a))))
        bench.now += 4000 * ms
        #expect(isPromise(bench.prepare(ballot(6, .b))))
    }

    @Test func failure19ARestartedVoterPromisesNothingForOneGrantButGrants() {
        var bench = Bench(genesis, fresh: true)
        #expect(isRefused(bench.prepare(ballot(5, .a))))
        #expect(isRefused(bench.accept(ballot(5, .a), both)))
        #expect(bench.lease(.a, 1) == true)
        bench.now += 4000 * ms
        #expect(isPromise(bench.prepare(ballot(5, .a))))
    }

    /// An administrator lowers the lease from 8 s to the default, one machine after the other: what the process before has
    /// granted still runs for as long as it was granted.
    @Test func failure19ARestartedVoterOutwaitsWhatWasGrantedBeforeItsConfigurationWasChanged() {
        var longer = QuorumTiming()
        longer.lease = 8000 * ms
        longer.grant = 10_000 * ms
        let before = Bench(genesis, timing: longer)
        let once = Bench(before.acceptor.state, fresh: true)
        // And once more, before anybody could ask for a promise.
        var bench = Bench(once.acceptor.state, fresh: true)
        bench.now += 9999 * ms
        #expect(isRefused(bench.prepare(ballot(5, .b))))
        bench.now += 1 * ms
        #expect(isPromise(bench.prepare(ballot(5, .b))))
        // What was granted before has run out: from now on its own time counts.
        var later = Bench(bench.acceptor.state, fresh: true)
        later.now += 4000 * ms
        #expect(isPromise(later.prepare(ballot(6, .b))))
    }

    @Test func failure19AnEmptyVoterSaysNothingElse() {
        var bench = Bench(nil)
        let questions: [QuorumMessage.Body] = [
            .prepare(ballot(5, .a), memory: VoterMemory()), .accept(ballot(5, .a), both, memory: VoterMemory()),
            .leaseRequest(
                number: 1, heard: 0, epoch: Epoch(rawValue: 9), grantMilliseconds: 4000, memory: VoterMemory(),
                committed: .zero),
            .status(.serving, chosen: both, witness: VoterMemory()),
        ]
        for question in questions {
            guard case .empty = bench.ask(question, from: .a).first else {
                Issue.record("answered \(question)")
                return
            }
        }
    }

    @Test func failure19ASeedFitsOnlyTheLifeItWasMadeFor() {
        var bench = Bench(nil)
        guard case .empty(let birth) = bench.prepare(ballot(5, .a)).first else {
            Issue.record("not empty")
            return
        }
        func seed(_ birth: UInt64) -> QuorumMessage.Body {
            let instance = WitnessInstance(generation: 1, birth: birth)
            return .seed(
                birth: birth, mirror: mirror, name: "ledger", promised: Ballot(instance: instance, number: 0, node: .a),
                acceptedBallot: ballot(1, .a), accepted: genesis.accepted)
        }
        _ = bench.ask(seed(birth &+ 1), from: .a)
        #expect(bench.acceptor.state == nil)
        _ = bench.ask(seed(birth), from: .a)
        #expect(bench.acceptor.state?.accepted == genesis.accepted)
        // A second one changes nothing.
        _ = bench.ask(seed(birth), from: .b)
        #expect(bench.acceptor.state?.starts == 1)
    }

    @Test func failure19AVoterPutBackFromABackupForgetsWhatItKnows() {
        var bench = Bench(genesis)
        let memory = VoterMemory(promised: ballot(8, .a), accepted: ballot(8, .a))
        guard case .empty = bench.ask(.prepare(ballot(9, .a), memory: memory), from: .a).first else {
            Issue.record("it answered as if nothing had happened")
            return
        }
        #expect(bench.acceptor.state == nil)
    }

    @Test func leasesGoOnlyToTheRecordedPrimaryOrALaterEpoch() {
        var bench = Bench(genesis)
        #expect(bench.lease(.b, 1, epoch: 1) == false)
        #expect(bench.lease(.b, 2, epoch: 2) == true)
        #expect(bench.lease(.a, 1, epoch: 1) == false)
    }

    @Test func aLateReleaseTakesAwayNothingNewer() {
        var bench = Bench(genesis)
        #expect(bench.lease(.a, 1) == true)
        #expect(bench.lease(.a, 2) == true)
        _ = bench.ask(.leaseRelease(number: 1), from: .a)
        #expect(isRefused(bench.prepare(ballot(5, .b))))
        _ = bench.ask(.leaseRelease(number: 2), from: .a)
        #expect(isPromise(bench.prepare(ballot(5, .b))))
        // And a request from before the release, late, takes nothing.
        #expect(bench.lease(.a, 2) == nil)
    }

    @Test func failure08ANodeThatHearsNothingIsNotRenewedForEver() {
        var bench = Bench(genesis)
        var granted = 0
        for number in 1...20 where bench.lease(.a, UInt64(number), heard: 0) == true { granted += 1 }
        #expect(granted == QuorumTiming().unheardLimit)
        // One answer heard makes it good.
        #expect(bench.lease(.a, 21, heard: 20) == true)
    }

    @Test func failure29MessagesOfAnEarlierProcessAreDropped() {
        var bench = Bench(genesis)
        bench.session = 2
        #expect(bench.lease(.a, 1) == true)
        bench.session = 1
        let said: [QuorumMessage.Body] = [
            .heard(birth: 9, session: 2, ballot: .zero)
        ]
        #expect(bench.ask(.leaseRelease(number: 100), from: .a) == said)
        #expect(bench.prepare(ballot(9, .a)) == said)
        bench.session = 2
        #expect(isRefused(bench.prepare(ballot(5, .b))))
    }

    /// What is said to be committed counts from the holder of a lease only, and never goes back but with the epoch.
    @Test func failure18AVoterTellsWhatWasCommitted() {
        var bench = Bench(genesis)
        func told(_ number: UInt64) -> LogMark? {
            bench.now += 5000 * ms
            guard case .promise(_, _, _, let mark) = bench.prepare(ballot(number, .a)).first else { return nil }
            return mark
        }
        let mark = { (epoch: UInt32, seq: UInt64) in LogMark(epoch: Epoch(rawValue: epoch), seq: Seq(rawValue: seq)) }
        #expect(told(5) == .zero)
        #expect(bench.lease(.a, 1, epoch: 1, committed: Seq(rawValue: 40)) == true)
        #expect(told(6) == mark(1, 40))
        #expect(bench.lease(.a, 2, epoch: 1, committed: Seq(rawValue: 30)) == true)
        #expect(bench.lease(.a, 3, epoch: 1, committed: .zero) == true)
        #expect(told(7) == mark(1, 40))
        #expect(bench.lease(.b, 1, epoch: 1, committed: Seq(rawValue: 90)) == false)
        #expect(told(8) == mark(1, 40))
        // A promotion by force left something out.
        bench.now += 5000 * ms
        #expect(bench.lease(.b, 2, epoch: 9, committed: Seq(rawValue: 20)) == true)
        #expect(told(9) == mark(9, 20))
    }

    /// A witness restored from a backup in which only its own starts are fewer: the nodes would drop all that it says.
    @Test func failure19AWitnessIsToldThatALaterProcessOfItWasHeard() {
        var bench = Bench(genesis)
        let starts = bench.acceptor.state?.starts ?? 0
        let birth = bench.acceptor.state?.birth ?? 0
        _ = bench.ask(.heard(birth: birth, session: starts, ballot: .zero), from: .a)
        _ = bench.ask(.heard(birth: birth + 1, session: starts + 7, ballot: .zero), from: .a)
        #expect(bench.acceptor.state?.birth == birth)
        _ = bench.ask(.heard(birth: birth, session: starts + 1, ballot: .zero), from: .a)
        #expect(bench.acceptor.state == nil)
        // A node's own voter leaves that to its member.
        var node = Bench(genesis, voter: .b)
        _ = node.ask(
            .heard(birth: node.acceptor.state?.birth ?? 0, session: 1000, ballot: .zero), from: .a)
        #expect(node.acceptor.state != nil)
    }

    /// Each way in which a node can know less of itself than this voter has heard.
    @Test func failure18ANodeIsToldWhatWasHeardOfIt() {
        var bench = Bench(genesis)
        bench.session = 3
        #expect(bench.ask(.greet(promised: .zero), from: .a).isEmpty)
        #expect(isPromise(bench.prepare(ballot(7, .a))))
        #expect(bench.ask(.greet(promised: ballot(7, .a)), from: .a).isEmpty)
        let said: [QuorumMessage.Body] = [.heard(birth: 9, session: 3, ballot: ballot(7, .a))]
        #expect(bench.ask(.greet(promised: ballot(6, .a)), from: .a) == said)
        bench.session = 2
        #expect(bench.ask(.greet(promised: ballot(7, .a)), from: .a) == said)
        // A later process on the same votes, and then votes that began anew: nothing is held against those.
        bench.session = 4
        #expect(
            bench.ask(.greet(promised: ballot(6, .a)), from: .a)
                == [.heard(birth: 9, session: 4, ballot: ballot(7, .a))])
        bench.session = 1
        #expect(bench.ask(.greet(promised: .zero), from: .a, birth: 10).isEmpty)
    }

    @Test func aGrantLongerThanItsRestartWaitIsRefused() {
        var bench = Bench(genesis)
        let answers = bench.ask(
            .leaseRequest(
                number: 1, heard: 0, epoch: Epoch(rawValue: 1), grantMilliseconds: 4001, memory: VoterMemory(),
                committed: .zero),
            from: .a)
        #expect(answers == [.leaseRefused(number: 1, .tooLong, accepted: Epoch(rawValue: 1))])
    }
}

@Suite struct LeaseHolderTests {
    @Test func countsFromTheSendingAndNeedsItselfAndAnother() {
        var holder = LeaseHolder(timing: QuorumTiming())
        let number = holder.request(now: 1000 * ms)
        holder.granted(by: .witness, number: number)
        #expect(holder.validUntil(own: .a) == 0)
        holder.granted(by: .a, number: number)
        #expect(holder.validUntil(own: .a) == 3000 * ms)
        #expect(holder.validUntil(own: .b) == 0)
    }

    @Test func aReleaseVoidsEarlierAnswers() {
        var holder = LeaseHolder(timing: QuorumTiming())
        let number = holder.request(now: 1000 * ms)
        #expect(holder.release() == number)
        holder.granted(by: .a, number: number)
        holder.granted(by: .b, number: number)
        #expect(holder.validUntil(own: .a) == 0)
    }
}

@Suite struct TimingTests {
    @Test func theDefaultsAgreeWithEachOther() { #expect(QuorumTiming().problems() == []) }

    @Test func aGrantThatDoesNotCoverTheLeaseIsNamed() {
        var timing = QuorumTiming()
        timing.grant = timing.lease
        #expect(timing.problems().count == 1)
        timing.renewal = timing.lease
        #expect(timing.problems().count == 3)
    }
}
