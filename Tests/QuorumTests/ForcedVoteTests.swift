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
}
