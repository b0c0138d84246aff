import Testing

@testable import Quorum

/// The second node has forgotten its votes; the witness is a real voter, the other node only what the test says of it.
private struct ForgottenBench {
    var member = Member(node: .b, timing: QuorumTiming(), seed: 7)
    var witness: Bench
    var now = long
    var holdsWrites = false
    var writes: [(state: AcceptorState?, token: UInt64)] = []
    var sentToPeer: [QuorumMessage.Body] = []
    var sentToWitness: [QuorumMessage.Body] = []
    var promotions: [PromotionState] = []
    var refusals: [String] = []
    var served: Inheritance?
    var loses: (QuorumMessage.Body) -> Bool = { _ in false }
    /// What the witness says is lost.
    var hearsNothing = false

    static let old: AcceptorState = {
        var state = AcceptorState(
            mirror: mirror, name: "ledger", birth: 88, starts: 3, promised: ballot(40, .a),
            acceptedBallot: ballot(30, .a), accepted: both, chosenBallot: ballot(30, .a))
        state.longestGrantMilliseconds = 9000
        // Of another life of the other node: it must not be told that this is more than it remembers.
        state.memory.a = VoterMemory(promised: ballot(41, .a), accepted: ballot(30, .a))
        return state
    }()

    init(forgotten: AcceptorState? = old, witness state: AcceptorState? = genesis, startedAt: UInt64 = long) {
        now = startedAt
        witness = Bench(state, voter: .witness)
        step(
            .start(
                MemberStart(
                    state: nil, forgotten: forgotten, logComplete: true, lastEpoch: Epoch(rawValue: 1), lastSeq: .zero))
        )
    }

    mutating func step(_ event: MemberEvent) {
        var effects: [MemberEffect] = []
        member.step(event, now: now, effects: &effects)
        for effect in effects {
            switch effect {
            case .persist(let state, let token):
                writes.append((state, token))
                if !holdsWrites { step(.persisted(token: token)) }
            case .setPolicy(_, let token): step(.policyInForce(token: token))
            case .send(.witness, let message): ask(message)
            case .send(_, let message): sentToPeer.append(message.body)
            case .promotion(let state): promotions.append(state)
            case .adminRefused(let text): refusals.append(text)
            case .serve(_, let inheritance): served = inheritance
            case .close: step(.closed)
            default: break
            }
        }
    }

    private mutating func ask(_ message: QuorumMessage) {
        sentToWitness.append(message.body)
        guard !loses(message.body) else { return }
        witness.now = now
        var effects: [AcceptorEffect] = []
        witness.acceptor.receive(message, from: .b, now: now, effects: &effects)
        carryOut(effects)
    }

    private mutating func carryOut(_ effects: [AcceptorEffect]) {
        for effect in effects {
            switch effect {
            case .persist(_, let token):
                var more: [AcceptorEffect] = []
                witness.acceptor.persisted(token, effects: &more)
                carryOut(more)
            case .reply(_, let message): if !hearsNothing { step(.message(from: .witness, message)) }
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

    private var number: UInt64 = 0
    /// What the other node says; what it is answered.
    mutating func hear(_ body: QuorumMessage.Body) -> [QuorumMessage.Body] {
        number += 1
        sentToPeer = []
        step(
            .message(
                from: .a, QuorumMessage(sender: Incarnation(birth: 77, session: 1), number: number, body: body)))
        return sentToPeer
    }

    var refusal: String? {
        for case .refused(let why) in promotions { return why }
        return refusals.first
    }
}

private let status = QuorumMessage.Body.status(.idle, chosen: both, witness: VoterMemory())

@Suite struct ForgottenVoteTests {
    // MARK: The two files

    @Test func failure18OfVotesAndForgottenVotesTheOnesOfAnotherBirthCount() {
        let old = ForgottenBench.old
        var newer = old
        newer.birth = 99
        #expect(AcceptorState.recalled(votes: newer, forgotten: old) == (newer, nil))
        #expect(AcceptorState.recalled(votes: nil, forgotten: old) == (nil, old))
        #expect(AcceptorState.recalled(votes: newer, forgotten: nil) == (newer, nil))
        // Copied back once more, from an earlier or a later backup: forgotten all the same.
        var copied = old
        copied.starts -= 1
        #expect(AcceptorState.recalled(votes: copied, forgotten: old) == (nil, old))
        copied.promised = ballot(50, .b)
        #expect(AcceptorState.recalled(votes: copied, forgotten: old) == (nil, copied))
    }

    @Test func failure18WhatIsForgottenIsKept() {
        var bench = Bench(ForgottenBench.old, voter: .b)
        let before = bench.acceptor.state
        var effects: [AcceptorEffect] = []
        bench.acceptor.forget(effects: &effects)
        #expect(bench.acceptor.state == nil && bench.acceptor.forgotten == before)
        // Put aside again without votes: not replaced by nothing.
        bench.acceptor.forget(effects: &effects)
        #expect(bench.acceptor.forgotten == before)
    }

    // MARK: The order

    @Test func failure18AnOrderMakesTheForgottenVotesTheBaseOfAForcedPromotion() throws {
        var bench = ForgottenBench()
        #expect(bench.member.whyNotPromote(seedWitness: false) == nil)
        bench.run(milliseconds: 10_000)
        #expect(bench.sentToWitness.isEmpty && bench.sentToPeer.isEmpty && bench.writes.isEmpty)
        bench.step(.requestPromotion(seedWitness: false))
        bench.run(milliseconds: 15_000)
        let state = try #require(bench.member.state)
        // The first thing that is ever written is the whole of it.
        let first = try #require(bench.writes.first?.state)
        #expect(first.forcedEpoch == first.accepted.epoch && first.birth != 88 && first.starts == 1)
        #expect(first.promised == first.acceptedBallot && first.chosenBallot == .zero)
        #expect(first.acceptedBallot > ballot(40 + 1 << 20, .b) && first.accepted.sequence > 1 << 20)
        #expect(first.accepted.epoch.rawValue > 1 << 12 && first.accepted.inSync == .b)
        #expect(first.longestGrantMilliseconds == 9000)
        #expect(first.memory.a == VoterMemory())
        #expect(state.chosenBallot == state.acceptedBallot)
        #expect(bench.served == .byForce(since: first.accepted.epoch))
        #expect(bench.promotions.last == .recorded(first.accepted))
        #expect(bench.member.forgotten == nil)
    }

    /// The witness is asked to accept only when the own disk has it.
    @Test func failure18NothingIsAcceptedElsewhereBeforeItIsOnTheOwnDisk() {
        var bench = ForgottenBench()
        bench.run(milliseconds: 10_000)
        bench.holdsWrites = true
        bench.step(.requestPromotion(seedWitness: false))
        bench.run(milliseconds: 3000)
        #expect(bench.writes.count == 1 && bench.writes.first?.state?.forcedEpoch != nil)
        let isAccept = { (body: QuorumMessage.Body) in if case .accept = body { true } else { false } }
        #expect(!bench.sentToWitness.contains(where: isAccept))
        // Nor does the other node hear anything.
        #expect(bench.hear(status).isEmpty)
        bench.holdsWrites = false
        bench.step(.persisted(token: bench.writes[0].token))
        bench.run(milliseconds: 500)
        #expect(bench.sentToWitness.contains(where: isAccept))
    }

    /// To everybody else it has no votes as long as its decision is not on its disk.
    @Test func failure18WhileItAsksTheOtherNodeHearsThatItIsEmpty() {
        var bench = ForgottenBench()
        bench.run(milliseconds: 10_000)
        bench.loses = { _ in true }
        bench.step(.requestPromotion(seedWitness: false))
        bench.run(milliseconds: 500)
        #expect(!bench.sentToWitness.isEmpty && bench.sentToPeer.isEmpty)
        let questions: [QuorumMessage.Body] = [
            .prepare(ballot(9_000_000, .a), memory: VoterMemory()),
            .accept(ballot(9_000_000, .a), both, memory: VoterMemory()),
            .leaseRequest(
                number: 1, heard: 0, epoch: Epoch(rawValue: 1), grantMilliseconds: 4000, memory: VoterMemory(),
                committed: .zero),
        ]
        for question in questions {
            let answers = bench.hear(question)
            #expect(answers.count == 1)
            guard case .empty = answers.first else {
                Issue.record("\(answers)")
                continue
            }
        }
        // And it is there, so the order ends.
        bench.run(milliseconds: 100)
        #expect(bench.refusal?.contains("is heard, and has its votes") == true)
        #expect(bench.member.state == nil && bench.writes.isEmpty && bench.member.draft == nil)
        #expect(bench.member.forgotten == ForgottenBench.old)
    }

    @Test func failure18TheOrderIsRefusedWhileTheOtherNodeIsHeardWithVotes() {
        var bench = ForgottenBench()
        bench.run(milliseconds: 10_000)
        _ = bench.hear(status)
        #expect(bench.member.whyNotPromote(seedWitness: false)?.contains("has its votes") == true)
        bench.step(.requestPromotion(seedWitness: false))
        bench.run(milliseconds: 500)
        #expect(bench.refusals.count == 1 && bench.sentToWitness.isEmpty)
        // It is silent for good.
        bench.run(milliseconds: 7000)
        #expect(bench.member.whyNotPromote(seedWitness: false) == nil)
        // One that has no votes itself answers only, and knows nothing better.
        _ = bench.hear(.empty(birth: 5))
        #expect(bench.member.whyNotPromote(seedWitness: false) == nil)
    }

    /// New votes, which come while it asks, are what counts.
    @Test func failure18NewVotesEndTheOrder() throws {
        var bench = ForgottenBench()
        bench.run(milliseconds: 10_000)
        bench.hearsNothing = true
        bench.step(.requestPromotion(seedWitness: false))
        bench.run(milliseconds: 300)
        guard case .empty(let birth)? = bench.hear(status).first else {
            Issue.record("not empty")
            return
        }
        _ = bench.hear(
            .seed(
                birth: birth, mirror: mirror, name: "ledger", promised: ballot(60, .a), acceptedBallot: ballot(60, .a),
                accepted: genesis.accepted))
        bench.hearsNothing = false
        bench.run(milliseconds: 12_000)
        let state = try #require(bench.member.state)
        #expect(state.promised == ballot(60, .a) && state.forcedEpoch == nil && bench.member.mode == .standby)
        #expect(bench.refusal != nil && bench.member.draft == nil)
        // What the witness has heard of the attempt is not held against them, in the next process either, which greets it.
        bench.member = Member(node: .b, timing: QuorumTiming(), seed: 8)
        bench.step(
            .start(MemberStart(state: state, logComplete: false, lastEpoch: Epoch(rawValue: 1), lastSeq: .zero)))
        bench.run(milliseconds: 2000)
        #expect(bench.sentToWitness.contains { if case .greet = $0 { true } else { false } })
        #expect(bench.member.state != nil && bench.writes.allSatisfy { $0.state != nil })
    }

    /// What its earlier process may have granted runs for as long as the forgotten votes say.
    @Test func failure18TheOrderWaitsForWhatTheEarlierProcessMayHaveGranted() {
        var bench = ForgottenBench()
        bench.step(.requestPromotion(seedWitness: false))
        bench.run(milliseconds: 8900)
        #expect(bench.sentToWitness.isEmpty && bench.writes.isEmpty)
        bench.run(milliseconds: 1000)
        #expect(!bench.sentToWitness.isEmpty)
    }

    @Test func failure18WithoutTheWitnessTheOrderEndsAndNothingIsLeftOfIt() {
        var bench = ForgottenBench()
        bench.run(milliseconds: 10_000)
        bench.loses = { _ in true }
        bench.step(.requestPromotion(seedWitness: false))
        bench.run(milliseconds: 20_000)
        #expect(bench.refusal?.contains("the witness has not answered") == true)
        #expect(bench.writes.isEmpty && bench.member.mode == .unformed)
        let asked = bench.sentToWitness.count
        bench.loses = { _ in false }
        bench.run(milliseconds: 10_000)
        #expect(bench.sentToWitness.count == asked)
        // Another order is another attempt.
        bench.step(.requestPromotion(seedWitness: false))
        bench.run(milliseconds: 10_000)
        #expect(bench.served != nil)
    }

    @Test func failure18TheWitnessRefusesWhileTheOtherNodeHoldsTheLease() {
        var bench = ForgottenBench()
        bench.run(milliseconds: 10_000)
        bench.witness.now = bench.now
        for number in 1...60 {
            bench.witness.now = bench.now
            #expect(bench.witness.lease(.a, UInt64(number)) == true)
            if number == 1 { bench.step(.requestPromotion(seedWitness: false)) }
            bench.run(milliseconds: 250)
        }
        #expect(bench.refusal?.contains("still serves") == true)
        #expect(bench.writes.isEmpty && bench.member.state == nil)
    }

    /// A copy of this machine, which has forgotten nothing, serves: to the witness it is the same node.
    @Test func failure18TheWitnessRefusesWhileACopyOfTheNodeHoldsTheLease() {
        var bench = ForgottenBench()
        bench.run(milliseconds: 10_000)
        for number in 1...60 {
            bench.witness.now = bench.now
            #expect(bench.witness.lease(.b, UInt64(number), epoch: 2) == true)
            if number == 1 { bench.step(.requestPromotion(seedWitness: false)) }
            bench.run(milliseconds: 250)
        }
        #expect(bench.refusal?.contains("a copy of this node") == true)
        #expect(bench.writes.isEmpty && bench.member.state == nil)
        // It is gone.
        bench.run(milliseconds: 4000)
        bench.step(.requestPromotion(seedWitness: false))
        bench.run(milliseconds: 10_000)
        #expect(bench.served != nil)
        // Or was it only cut off: it may not serve in its earlier epoch beside the one that was promoted.
        bench.witness.now = bench.now
        #expect(bench.witness.lease(.b, 61, epoch: 2) != true)
        bench.run(milliseconds: 1000)
        #expect(bench.witness.lease(.b, 62, epoch: 2) != true)
    }

    @Test func failure18WithoutForgottenVotesThereIsNothingToServe() {
        var bench = ForgottenBench(forgotten: nil)
        bench.step(.requestPromotion(seedWitness: false))
        #expect(bench.refusal?.contains("no part in the mirror") == true)
    }

    @Test func failure18AnEmptyWitnessIsSeededOnlyWhenToldTo() throws {
        var bench = ForgottenBench(witness: nil)
        bench.run(milliseconds: 10_000)
        bench.step(.requestPromotion(seedWitness: false))
        bench.run(milliseconds: 2000)
        #expect(bench.refusal?.contains("--seed-witness") == true && bench.witness.acceptor.state == nil)
        bench.step(.requestPromotion(seedWitness: true))
        bench.run(milliseconds: 15_000)
        let state = try #require(bench.member.state)
        #expect(bench.served != nil && state.promised.instance.generation >= 1 << 16)
        #expect(bench.witness.acceptor.state?.accepted == state.accepted)
    }
}
