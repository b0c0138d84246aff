import Quorum
import Testing

/// Votes are put back while the other node is lost: the node forgets them, and nobody can give it new ones. Only an
/// administrator's order makes it serve: never two that serve, and one history afterwards, whenever the other node returns.
@Suite struct ForgottenVotesTests {
    static let seeds: [UInt64] = Array(1...12)

    /// A node with votes of three processes ago; the other one, which served, is down. Whether that one went alone before is
    /// drawn; so is what it wrote then.
    private func forgetful(
        _ seed: UInt64, loss: UInt64 = 0, bothForget: Bool = false, waitsAlone: Bool? = nil
    ) -> (World, primary: SimulatedNode, other: SimulatedNode)? {
        let loneRestart: UInt64? = waitsAlone ?? (seed % 2 == 0) ? 6000 : nil
        guard let (world, primary, other) = whole(seed, loneRestart: loneRestart, loss: loss) else { return nil }
        let votes = nodesVotes(world)
        for node in bothForget ? [other, primary] : [other] {
            for _ in 0..<2 {
                world.kill(node)
                world.start(node)
                guard world.run(until: { world.isHealthy }, milliseconds: 90_000) else {
                    Issue.record("seed \(seed): never whole again: \(world.roles)")
                    return nil
                }
                world.run(milliseconds: 2000)
            }
        }
        guard let server = world.server else { return nil }
        let (last, first) = (world[server], world[server.peer])
        let (old, lost) = bothForget ? (first, last) : (other, primary)
        if seed % 3 == 0 {
            world.kill(old)
            world.run(milliseconds: 6000)
            #expect(lost.role?.role == .alone, "seed \(seed): \(world.roles)")
        }
        world.kill(lost)
        world.kill(old)
        for node in bothForget ? [old, lost] : [old] {
            node.disk = votes[node.node]
            world.start(node)
            let forgets = world.run(
                until: { node.disk == nil && node.forgotten != nil && node.role?.reason == .notSeeded },
                milliseconds: 10_000)
            #expect(forgets, "seed \(seed): \(world.roles)")
            // Whatever it was: from here on its process is not the one that noticed.
            if seed % 4 < 2 {
                world.kill(node)
                world.start(node)
            }
            if bothForget { world.kill(node) }
        }
        if bothForget { for node in [old, lost] { world.start(node) } }
        return (world, lost, old)
    }

    private func nodesVotes(_ world: World) -> [NodeID: AcceptorState] {
        var votes: [NodeID: AcceptorState] = [:]
        for node in world.nodes { votes[node.node] = node.disk }
        return votes
    }

    private func promote(_ world: World, _ node: SimulatedNode, seedWitness: Bool = false) {
        world.step(node, .requestPromotion(seedWitness: seedWitness))
    }

    private func expectServes(_ world: World, _ node: SimulatedNode) {
        #expect(
            world.run(until: { world.server == node.node }, milliseconds: 15_000),
            "seed \(world.seed): \(world.roles), \(node.promotion)")
        guard case .recorded = node.promotion else {
            Issue.record("seed \(world.seed): \(node.promotion)")
            return
        }
        if case .byForce = node.data.inheritance {} else { Issue.record("it does not say so") }
        #expect(node.disk?.forcedEpoch != nil && node.forgotten == nil)
    }

    @Test(arguments: seeds) func failure18ANodeThatHasForgottenItsVotesServesOnlyByForce(seed: UInt64) {
        guard let (world, primary, other) = forgetful(seed) else { return }
        world.run(milliseconds: 20_000)
        world.kill(other)
        world.start(other)
        world.run(milliseconds: 20_000)
        #expect(world.server == nil && other.role?.reason == .notSeeded && other.forgotten != nil, "\(world.roles)")
        promote(world, other)
        expectServes(world, other)
        world.run(milliseconds: 2000)
        // It is remembered, and the votes count, also in the next process.
        world.kill(other)
        world.start(other)
        #expect(world.run(until: { world.server == other.node }, milliseconds: 30_000), "\(world.roles)")
        if case .byForce = other.data.inheritance {} else { Issue.record("seed \(seed): it does not say so") }
        world.start(primary)
        #expect(world.run(until: { world.isHealthy }, milliseconds: 100_000), "\(world.roles)")
        #expect(world.server == other.node)
        #expect(world.lostByForce.isSubset(of: primary.data.rescued))
        expectWholeAgain(world)
    }

    /// Without an order it is given new votes by the other node, whenever that returns.
    @Test(arguments: seeds) func failure18ANodeThatHasForgottenItsVotesIsGivenNewOnesAlsoAfterARestart(seed: UInt64) {
        guard let (world, primary, other) = forgetful(seed) else { return }
        world.kill(other)
        world.start(other)
        world.run(milliseconds: 5000)
        world.start(primary)
        #expect(world.run(until: { world.isHealthy }, milliseconds: 100_000), "seed \(seed): \(world.roles)")
        #expect(world.server == primary.node && other.disk != nil && other.forgotten == nil)
        #expect(world.lostByForce.isEmpty)
        expectWholeAgain(world)
    }

    /// It is not promoted over the head of the other one: neither while that serves nor while it is only there.
    @Test(arguments: seeds) func failure18ANodeThatHasForgottenItsVotesIsNotPromotedWhileTheOtherIsThere(seed: UInt64) {
        guard let (world, primary, other) = forgetful(seed) else { return }
        if seed % 2 == 0 {
            world.setCut(between: .a, .b, true)
            world.start(primary)
            #expect(world.run(until: { world.server == primary.node }, milliseconds: 40_000), "\(world.roles)")
        } else {
            world.start(primary)
            world.run(milliseconds: 700)
            if other.member?.state != nil { return }
        }
        promote(world, other)
        world.run(milliseconds: 15_000)
        #expect(world.server != other.node && other.disk?.forcedEpoch == nil)
        #expect(world.forcedEpochs.isEmpty)
        expectWholeAgain(world)
    }

    /// The old primary comes back, or the promoted node dies, at every moment of the promotion.
    @Test(arguments: 0..<40) func failure18TheOldPrimaryReturnsAtAnyMomentOfThePromotionByForgottenVotes(step: UInt64) {
        for dies in [false, true] {
            guard let (world, primary, other) = forgetful(step + 700, loss: step % 3 == 0 ? 100 : 0) else { return }
            world.run(milliseconds: 4500)
            promote(world, other)
            world.run(milliseconds: dies ? step * 5 : step * step * 4)
            if dies {
                world.kill(other)
                world.run(milliseconds: 500)
                if step % 2 == 0 {
                    world.start(other)
                    world.run(milliseconds: step * 100)
                    promote(world, other)
                    world.run(milliseconds: step * 5)
                }
            }
            world.start(primary)
            world.run(milliseconds: 8000)
            world.start(other)
            #expect(world.run(until: { world.isServing }, milliseconds: 60_000), "step \(step): \(world.roles)")
            expectWholeAgain(world)
        }
    }

    /// The witness has promised, the rest never reaches it; then the old primary serves, and is lost. The order must not be
    /// carried out any more: neither by the votes that it made, nor by those that it began with.
    @Test(arguments: seeds) func failure18AHalfRecordedPromotionByForgottenVotesLosesNothingSince(seed: UInt64) {
        guard let (world, primary, other) = forgetful(seed + 800, waitsAlone: true) else { return }
        world.run(milliseconds: 5000)
        let earlier = world.witness.disk?.promised ?? .zero
        promote(world, other)
        #expect(world.run(until: { world.witness.disk.map { $0.promised > earlier } == true }, milliseconds: 10_000))
        other.slowDisk = 1500
        world.after(25 * ms) { world.setCut(other.voter, .witness, true) }
        #expect(world.run(until: { other.disk?.forcedEpoch != nil }, milliseconds: 3000), "seed \(seed)")
        world.kill(other)
        world.start(primary)
        #expect(world.run(until: { world.server == primary.node }, milliseconds: 60_000), "\(world.roles)")
        world.run(milliseconds: 5000)
        world.kill(primary)
        other.slowDisk = 5
        world.setCut(other.voter, .witness, false)
        world.start(other)
        world.run(milliseconds: 30_000)
        #expect(world.server == nil && other.role?.role == .wait, "seed \(seed): \(world.roles)")
        expectWholeAgain(world)
    }

    /// Both nodes were put back together, the witness was not.
    @Test(arguments: seeds) func failure18OfTwoNodesThatHaveForgottenTheirVotesOneIsPromoted(seed: UInt64) {
        guard let (world, lost, old) = forgetful(seed, bothForget: true) else { return }
        world.run(milliseconds: 15_000)
        #expect(world.server == nil)
        let node = seed % 2 == 0 ? lost : old
        promote(world, node)
        // The other one as well: one of the two decisions stands.
        if seed % 3 == 1 {
            world.run(milliseconds: world.random.between(0, 60))
            promote(world, world[node.node.peer])
        } else {
            expectServes(world, node)
        }
        #expect(world.run(until: { world.isHealthy }, milliseconds: 100_000), "seed \(seed): \(world.roles)")
        #expect(world.nodes.allSatisfy { $0.disk != nil && $0.forgotten == nil })
        expectWholeAgain(world)
    }

    @Test(arguments: seeds) func failure18ForgottenVotesAndAnEmptyWitness(seed: UInt64) {
        guard let (world, primary, other) = forgetful(seed) else { return }
        world.reinstallWitness()
        world.run(milliseconds: 5000)
        promote(world, other)
        world.run(milliseconds: 15_000)
        guard case .refused(let why) = other.promotion, why.contains("--seed-witness") else {
            Issue.record("seed \(seed): \(other.promotion)")
            return
        }
        #expect(world.server == nil && world.witness.disk == nil)
        promote(world, other, seedWitness: true)
        expectServes(world, other)
        world.start(primary)
        #expect(world.run(until: { world.isHealthy }, milliseconds: 100_000), "\(world.roles)")
        #expect(world.server == other.node)
        expectWholeAgain(world)
    }

    @Test(arguments: 0..<40) func failure18AForcedSeedWithoutVotesThatIsBrokenOffLeavesOneHistory(step: UInt64) {
        for first in [Voter.a, .b] {
            guard let (world, primary, other) = forgetful(step + 900) else { return }
            world.reinstallWitness()
            world.run(milliseconds: 5000)
            promote(world, other, seedWitness: true)
            world.run(milliseconds: step * 8)
            world.kill(other)
            world.run(milliseconds: 500)
            world.start(world.machine(first))
            world.run(milliseconds: 8000)
            for node in [primary, other] { world.start(node) }
            world.run(milliseconds: 20_000)
            // The witness knows the half of it, or nothing at all, and the old primary is in sync, but not alone: then nobody
            // serves without another order, for which the old primary, which has votes, is stopped.
            if world.server == nil {
                #expect(other.disk == nil, "step \(step): \(world.roles)")
                world.kill(primary)
                world.run(milliseconds: 8000)
                promote(world, other, seedWitness: true)
                expectServes(world, other)
            }
            expectWholeAgain(world)
        }
    }

    /// Orders, crashes, returns and cuts in any order.
    @Test(arguments: 0..<4) func failure18StormsWithForgottenVotesLeaveOneHistory(part: UInt64) {
        var forced = 0
        for seed in firstSeed..<firstSeed + seedCount / 2 where seed % 4 == part {
            guard let (world, primary, other) = forgetful(seed + 10_000, loss: seed % 3 == 0 ? 100 : 10) else { return }
            for _ in 0..<25 where world.violations.isEmpty {
                switch world.random.next() % 12 {
                case 0, 1, 2, 3: for node in world.nodes { promote(world, node) }
                case 4: world.kill(other)
                case 5, 6: world.start(other)
                case 7: world.start(primary)
                case 8: world.kill(primary)
                case 9: world.setCut([.a, .b, .witness].randomElement(using: &world.random) ?? .a, .witness, true)
                case 10: world.setCut(between: .a, .b, true)
                default: world.healNetwork()
                }
                world.run(milliseconds: world.random.between(10, 2500))
            }
            forced += world.forcedEpochs.count
            expectWholeAgain(world)
        }
        print("forced promotions by forgotten votes: \(forced)")
        #expect(forced > 0)
    }
}
