import Testing

@testable import Quorum

private let forced = Decision(sequence: 1030, epoch: Epoch(rawValue: 9), primary: .b, inSync: .b)

/// What a node's own voter keeps of a forced promotion.
@Suite struct ForcedVoteTests {
    @Test func failure34TheEpochOfAForcedDecisionIsKeptWithItUntilTheNodeIsNotAloneAnyMore() {
        var bench = Bench(genesis, voter: .b)
        bench.acceptor.noteForced(ballot(5, .b))
        #expect(bench.prepare(ballot(5, .b)).count == 1)
        #expect(bench.accept(ballot(5, .b), forced) == [.accepted(ballot(5, .b))])
        #expect(bench.acceptor.state?.forcedEpoch == forced.epoch)
        // Another start of serving, still alone: what it rests on stays known.
        let again = Decision(sequence: 1031, epoch: Epoch(rawValue: 10), primary: .b, inSync: .b)
        _ = bench.accept(ballot(6, .b), again)
        #expect(bench.acceptor.state?.forcedEpoch == forced.epoch)
        _ = bench.accept(ballot(7, .b), Decision(sequence: 1032, epoch: again.epoch, primary: .b, inSync: .both))
        #expect(bench.acceptor.state?.forcedEpoch == nil)
        // Alone again, by an ordinary loss of the other node.
        _ = bench.accept(ballot(8, .b), Decision(sequence: 1033, epoch: Epoch(rawValue: 11), primary: .b, inSync: .b))
        #expect(bench.acceptor.state?.forcedEpoch == nil)
    }

    @Test func failure34TheOtherNodesDecisionEndsIt() {
        var bench = Bench(genesis, voter: .b)
        bench.acceptor.noteForced(ballot(5, .b))
        _ = bench.accept(ballot(5, .b), forced)
        _ = bench.accept(ballot(6, .a), Decision(sequence: 1040, epoch: Epoch(rawValue: 10), primary: .a, inSync: .a))
        #expect(bench.acceptor.state?.forcedEpoch == nil)
    }

    @Test func failure34AForcedSeedIsNotPromisedWhileTheOtherNodeHoldsALease() {
        var bench = Bench(genesis, voter: .b)
        #expect(bench.lease(.a, 1) == true)
        var effects: [AcceptorEffect] = []
        let instance = WitnessInstance(generation: 70_000, birth: 5)
        let ballot = Ballot(instance: instance, number: 9, node: .b)
        let refusal = bench.acceptor.promiseForcedSeed(
            ballot, epoch: forced.epoch, now: bench.now, effects: &effects)
        guard case .leaseHeld = refusal else {
            Issue.record("\(String(describing: refusal))")
            return
        }
        #expect(bench.acceptor.state?.forcedEpoch == nil && effects.isEmpty)
        bench.now += 5000 * ms
        #expect(
            bench.acceptor.promiseForcedSeed(ballot, epoch: forced.epoch, now: bench.now, effects: &effects) == nil)
        #expect(bench.acceptor.state?.promised == ballot)
        #expect(bench.acceptor.state?.accepted == genesis.accepted)
    }

    @Test func failure34ASoleMemberThatWasOverruledByForceRenouncesForGood() {
        var bench = Bench(genesis, voter: .a)
        var effects: [AcceptorEffect] = []
        bench.acceptor.renounce(effects: &effects)
        #expect(effects.count == 1)
        #expect(bench.acceptor.state?.chosenBallot == .zero)
        // What it accepts from itself as the sole member is not as good as chosen any more.
        _ = bench.accept(
            ballot(9, .a), Decision(sequence: 9, epoch: Epoch(rawValue: 2), primary: .a, inSync: .a))
        #expect(bench.acceptor.state?.chosenBallot == .zero)
    }

    private func leaseAnswer(_ bench: inout Bench, _ node: NodeID, _ number: UInt64) -> LeaseRefusal? {
        let request = QuorumMessage.Body.leaseRequest(
            number: number, heard: number - 1, epoch: Epoch(rawValue: 1), grantMilliseconds: 4000,
            memory: VoterMemory(), committed: .zero)
        guard case .leaseRefused(_, let reason, _) = bench.ask(request, from: node).first else { return nil }
        return reason
    }

    /// The half of the promotion that its proposer may have on its disk is overruled first.
    @Test func failure34AVoterThatPromisedAForcedPromotionGrantsNothingBeforeADecisionAboveIt() {
        var bench = Bench(genesis, voter: .witness)
        #expect(bench.lease(.a, 1) == true)
        bench.now += 5000 * ms
        _ = bench.ask(.prepare(ballot(5, .b), memory: VoterMemory(), forced: true), from: .b)
        #expect(leaseAnswer(&bench, .a, 2) == .roundFirst)
        // A promise to the old primary is no decision yet; nor is a restart of this voter.
        #expect(isPromise(bench.prepare(ballot(6, .a))))
        #expect(leaseAnswer(&bench, .a, 3) == .roundFirst)
        var again = Bench(bench.acceptor.state, voter: .witness)
        #expect(leaseAnswer(&again, .a, 4) == .roundFirst)
        again.now += 5000 * ms
        #expect(again.accept(ballot(6, .a), genesis.accepted) == [.accepted(ballot(6, .a))])
        #expect(again.acceptor.state?.leaseBar == nil)
        #expect(again.lease(.a, 5) == true)
    }

    /// The old primary's own voter has promised it: what that voter accepts from its own node may be half itself.
    @Test func failure34TheOldPrimarysOwnVoterWaitsForTheWholeRound() {
        var bench = Bench(genesis, voter: .a)
        _ = bench.ask(.prepare(ballot(5, .b), memory: VoterMemory(), forced: true), from: .b)
        _ = bench.prepare(ballot(6, .a))
        #expect(bench.accept(ballot(6, .a), genesis.accepted) == [.accepted(ballot(6, .a))])
        #expect(leaseAnswer(&bench, .a, 1) == .roundFirst)
        #expect(bench.acceptor.state?.chosenBallot != ballot(6, .a))
        var effects: [AcceptorEffect] = []
        bench.acceptor.noteChosen(ballot(6, .a), memory: PerVoter(VoterMemory()), effects: &effects)
        #expect(leaseAnswer(&bench, .a, 2) == nil)
    }

    /// The sole member gives a new witness its memory; the earlier witness may have promised a forced promotion.
    @Test func failure34AWitnessSeededFromAnOlderInstanceGrantsNothingBeforeARound() {
        var bench = Bench(nil, voter: .witness)
        guard case .empty(let birth) = bench.prepare(ballot(5, .a)).first else {
            Issue.record("not empty")
            return
        }
        let promised = Ballot(instance: WitnessInstance(generation: 1, birth: birth), number: 0, node: .a)
        _ = bench.ask(
            .seed(
                birth: birth, mirror: mirror, name: "ledger", promised: promised,
                acceptedBallot: genesis.acceptedBallot, accepted: genesis.accepted), from: .a)
        #expect(leaseAnswer(&bench, .a, 1) == .roundFirst)
    }
}
