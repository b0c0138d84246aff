import Quorum
import Testing

/// A world in which nothing goes wrong unless the test says so.
private func calmWorld(
    seed: UInt64, loneRestart: UInt64? = nil, bugs: Set<PlantedBug> = [], loss: UInt64 = 0
) -> World {
    var options = WorldOptions()
    options.loss = loss
    options.duplicates = 0
    options.late = 0
    options.traces = true
    options.loneRestart = loneRestart
    options.bugs = bugs
    return World(seed: seed, options: options)
}

/// Both nodes in sync, and the one that serves; nil if it never came to that.
func whole(
    _ seed: UInt64, loneRestart: UInt64? = nil, bugs: Set<PlantedBug> = [], loss: UInt64 = 0
) -> (World, SimulatedNode, SimulatedNode)? {
    let world = calmWorld(seed: seed, loneRestart: loneRestart, bugs: bugs, loss: loss)
    guard world.run(until: { world.isHealthy }, milliseconds: 30_000), let server = world.server else {
        Issue.record("seed \(seed): never whole: \(world.roles)")
        return nil
    }
    return (world, world[server], world[server.peer])
}

func expectWholeAgain(_ world: World) {
    world.healEverything()
    world.settle()
    #expect(world.violations.isEmpty, "seed \(world.seed)")
    if !world.violations.isEmpty { print(world.trace.joined(separator: "\n")) }
}

/// The lines of the list of failures that are about order and time, each in a few worlds.
@Suite struct FailureTests {
    static let seeds: [UInt64] = Array(1...12)

    @Test(arguments: seeds) func failure01TheStaleNodeWaitsForTheOneThatWroteAlone(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        world.kill(other)
        world.run(milliseconds: 6000)
        #expect(primary.role?.role == .alone)
        world.kill(primary)
        world.start(other)
        world.run(milliseconds: 40_000)
        #expect(other.role?.role == .wait)
        // Its own disk may still name both; either way it says for whom it waits.
        let reasons: [RoleReason] = [.behind(primary.node), .waitingForMerge(with: primary.node, until: nil)]
        #expect(other.role.map { reasons.contains($0.reason) } == true)
        expectWholeAgain(world)
    }

    @Test(arguments: seeds) func failure02AStaleNodeWithTheWitnessIsNotPromoted(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        world.setCut(between: primary.voter, other.voter, true)
        world.setCut(between: other.voter, .witness, true)
        world.run(milliseconds: 6000)
        #expect(primary.role?.role == .alone)
        world.setCut(between: primary.voter, .witness, true)
        world.setCut(between: other.voter, .witness, false)
        world.run(milliseconds: 30_000)
        #expect(primary.role?.role == .frozen)
        #expect(other.role?.role == .wait)
        expectWholeAgain(world)
    }

    @Test(arguments: seeds) func failure04GoingAloneAndTakingOverHaveOneWinner(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        // The primary stands still until its grants run out, then both want the decision at once.
        world.pause(primary)
        world.setCut(between: primary.voter, other.voter, true)
        world.run(milliseconds: 3500 + world.random.between(0, 1200))
        world.resume(primary)
        #expect(world.run(until: { world.isServing }, milliseconds: 12_000))
        world.run(milliseconds: 3000)
        #expect(world.server != nil)
        expectWholeAgain(world)
    }

    @Test(arguments: seeds) func failure05ALostReplyIsReadBack(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        // The witness hears and stores; nothing comes back. What was decided shows when it does.
        world.kill(other)
        world.setCut(.witness, primary.voter, true)
        world.run(milliseconds: 5000)
        #expect(primary.role?.role == .frozen)
        #expect(primary.role?.inDoubt.count == 2)
        world.setCut(.witness, primary.voter, false)
        #expect(world.run(until: { primary.role?.role == .alone }, milliseconds: 10_000))
        expectWholeAgain(world)
    }

    /// The witness has recorded it, and the word of that is lost: to the primary that goes alone, or to the one that takes over.
    @Test(arguments: seeds) func failure05ALostReplyToADecisionIsReadBack(seed: UInt64) {
        for takesOver in [false, true] {
            guard let (world, primary, other) = whole(seed) else { return }
            let (asker, gone) = takesOver ? (other, primary) : (primary, other)
            world.kill(gone)
            let isRecorded = {
                guard let accepted = world.witness.disk?.accepted else { return false }
                return accepted.primary == asker.node && (takesOver || accepted.inSync.isOnly(asker.node))
            }
            #expect(world.run(until: isRecorded, milliseconds: 20_000))
            let recorded = world.witness.disk?.accepted.epoch
            world.setCut(.witness, asker.voter, true)
            let serves = { asker.role?.role == .alone || asker.role?.role == .primary }
            world.run(milliseconds: 5000)
            #expect(!serves(), "it knew without being told")
            world.setCut(.witness, asker.voter, false)
            #expect(world.run(until: serves, milliseconds: 20_000))
            if !takesOver { #expect(world.witness.disk?.accepted.epoch == recorded, "decided once more") }
            expectWholeAgain(world)
        }
    }

    @Test(arguments: seeds) func failure06ADecisionThatOneNodeAloneStoredLocksNobodyOut(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        // The primary stores its own shrink, nobody else hears of it, and it dies for good. The link is cut while its
        // disk is busy with it: the witness has promised already.
        world.setCut(between: .a, .b, true)
        let promised = world.witness.disk?.promised ?? .zero
        #expect(world.run(until: { world.witness.disk?.promised != promised }, milliseconds: 10_000))
        primary.slowDisk = 1500
        world.after(25 * ms) { world.setCut(primary.voter, .witness, true) }
        #expect(
            world.run(until: { primary.disk?.accepted.inSync.isOnly(primary.node) == true }, milliseconds: 3000))
        #expect(world.witness.disk?.accepted.inSync == .both)
        #expect(primary.disk?.accepted.inSync.isOnly(primary.node) == true)
        world.kill(primary)
        #expect(world.run(until: { world.server == other.node }, milliseconds: 20_000))
        expectWholeAgain(world)
    }

    /// It cannot hear the node that took over, only the witness: that is enough to know.
    @Test(arguments: seeds) func failure07APausedPrimaryThatHearsTheWitnessAloneStepsDownWithinASecond(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        world.pause(primary)
        world.setCut(between: primary.voter, other.voter, true)
        #expect(world.run(until: { world.server == other.node }, milliseconds: 20_000))
        world.resume(primary)
        #expect(world.run(until: { primary.role?.role == .wait }, milliseconds: 1000))
        world.run(milliseconds: 5000)
        #expect(primary.role?.role == .wait)
        #expect(world.server == other.node)
        expectWholeAgain(world)
    }

    @Test(arguments: seeds) func failure07APausedPrimaryAcknowledgesNothingWhenItWakes(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        world.pause(primary)
        #expect(world.run(until: { world.server == other.node }, milliseconds: 15_000))
        world.run(milliseconds: 2000)
        world.resume(primary)
        world.run(milliseconds: 3000)
        #expect(world.server == other.node)
        expectWholeAgain(world)
    }

    @Test(arguments: 0..<6) func failure08OneSideServesUnderOneWayLoss(direction: Int) {
        for seed in 1...4 {
            guard let (world, _, _) = whole(UInt64(seed)) else { return }
            let pairs: [(Voter, Voter)] = [
                (.a, .b), (.b, .a), (.a, .witness), (.witness, .a), (.b, .witness), (.witness, .b),
            ]
            world.setCut(pairs[direction].0, pairs[direction].1, true)
            world.run(milliseconds: 12_000)
            #expect(world.isServing, "seed \(seed), \(pairs[direction])")
            expectWholeAgain(world)
        }
    }

    @Test(arguments: seeds) func failure09WithTheLinkCutThePrimaryGoesOnAlone(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        world.setCut(between: .a, .b, true)
        #expect(world.run(until: { primary.role?.role == .alone }, milliseconds: 4000))
        world.run(milliseconds: 10_000)
        #expect(world.server == primary.node)
        #expect(other.role?.role == .wait)
        #expect(world.openings.count == 1)
        expectWholeAgain(world)
    }

    @Test(arguments: seeds) func failure16ARestartedSecondaryIsNoCandidateBeforeItIsMerged(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        // It comes back and loses the primary before they could talk; the set still names both.
        world.setCut(between: .a, .b, true)
        world.kill(other)
        world.start(other)
        world.kill(primary)
        world.run(milliseconds: 30_000)
        #expect(world.server == nil)
        let reasons: [RoleReason] = [.behind(primary.node), .waitingForMerge(with: primary.node, until: nil)]
        #expect(other.role.map { reasons.contains($0.reason) } == true)
        expectWholeAgain(world)
    }

    @Test(arguments: seeds) func failure19AWitnessInstalledAnewIsSeededByBothTogether(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        world.reinstallWitness()
        world.run(milliseconds: 6000)
        #expect(world.witness.disk?.accepted.inSync == .both)
        #expect(world.isServing)
        // And it decides again.
        world.kill(other)
        #expect(world.run(until: { primary.role?.role == .alone }, milliseconds: 8000))
        expectWholeAgain(world)
    }

    @Test(arguments: seeds) func failure19AnEmptyWitnessHelpsNobodyWhoIsNotAlone(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        world.kill(primary)
        world.reinstallWitness()
        world.run(milliseconds: 30_000)
        #expect(world.server == nil)
        #expect(other.role?.reason == .witnessNeeds(primary.node))
        expectWholeAgain(world)
    }

    @Test(arguments: seeds) func failure19AnEmptyWitnessIsSeededByTheSoleMember(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        world.kill(other)
        world.run(milliseconds: 5000)
        world.reinstallWitness()
        world.run(milliseconds: 1000)
        world.kill(primary)
        world.run(milliseconds: 2000)
        world.start(primary)
        #expect(world.run(until: { primary.role?.role == .alone }, milliseconds: 20_000))
        expectWholeAgain(world)
    }

    @Test(arguments: seeds) func failure20FrozenWithoutTheOtherTwoItResumesThroughADecision(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        world.kill(world.witness)
        world.run(milliseconds: 6000)
        #expect(world.isServing)
        world.kill(other)
        world.run(milliseconds: 5000)
        #expect(primary.role?.role == .frozen)
        #expect(world.server == nil)
        world.start(world.witness)
        #expect(world.run(until: { primary.role?.role == .alone && world.isServing }, milliseconds: 10_000))
        #expect(world.openings.count == 1)  // the same life: it thawed
        expectWholeAgain(world)
    }

    @Test(arguments: seeds) func failure22TheLastOfBothServesAfterItsWaitAndSaysWhatMayBeMissing(seed: UInt64) {
        guard let (world, primary, other) = whole(seed, loneRestart: 10_000) else { return }
        for machine in world.machines { world.kill(machine) }
        world.start(world.witness)
        let survivor = seed % 2 == 0 ? primary : other
        world.start(survivor)
        world.run(milliseconds: 9000)
        #expect(world.server == nil)
        #expect(world.run(until: { world.server == survivor.node }, milliseconds: 20_000))
        #expect(survivor.data.inheritance == .unsyncedMayBeMissing)
        expectWholeAgain(world)
    }

    @Test(arguments: seeds) func failure25AFlappingLinkCostsABoundedNumberOfEpochs(seed: UInt64) {
        guard let (world, _, _) = whole(seed) else { return }
        let before = world.epochs
        for _ in 0..<200 {
            world.setCut(between: .a, .b, true)
            world.run(milliseconds: world.random.between(500, 2500))
            world.setCut(between: .a, .b, false)
            world.run(milliseconds: world.random.between(500, 2500))
        }
        #expect(world.epochs - before <= 24)
        #expect(world.openings.count == 1)
        expectWholeAgain(world)
    }

    @Test(arguments: 0..<40) func failure31ASwapInterruptedAtAnyMomentLeavesOnePrimary(step: UInt64) {
        for victim in [Voter.a, .b, .witness] {
            guard let (world, primary, _) = whole(step + 100) else { return }
            world.step(primary, .requestSwap)
            world.run(milliseconds: step * 8)
            world.kill(world.machine(victim))
            world.run(milliseconds: 15_000)
            #expect(world.server != nil, "step \(step), \(victim) lost: \(world.roles)")
            expectWholeAgain(world)
        }
    }

    @Test(arguments: seeds) func failure31ASwapMovesTheServiceWithinASecond(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        let start = world.now
        world.step(primary, .requestSwap)
        #expect(world.run(until: { world.server == other.node }, milliseconds: 5000))
        #expect(world.now - start < 2000 * ms)
        #expect(world.run(until: { world.isHealthy }, milliseconds: 20_000))
        expectWholeAgain(world)
    }

    @Test(arguments: 0..<40) func failure35ANodeThatDiesAtAnyStepOfItsTakeoverComesBackByItself(step: UInt64) {
        guard let (world, primary, other) = whole(step + 200) else { return }
        world.kill(primary)
        // Its grants run out after 4 s; the steps of the takeover lie in the next half second.
        world.run(milliseconds: 3800 + step * 15)
        world.kill(other)
        world.run(milliseconds: 1000)
        world.start(other)
        world.start(primary)
        #expect(world.run(until: { world.isServing }, milliseconds: 20_000), "\(world.roles)")
        expectWholeAgain(world)
    }

    @Test(arguments: seeds) func theOtherRoomServesWithinFiveSeconds(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        let start = world.now
        world.kill(primary)
        world.setCut(between: primary.voter, .witness, true)
        world.setCut(between: .a, .b, true)
        #expect(world.run(until: { world.server == other.node }, milliseconds: 20_000))
        #expect(world.now - start < 5000 * ms, "took \((world.now - start) / ms) ms")
        expectWholeAgain(world)
    }

    @Test func theSameSeedGivesTheSameWorld() {
        func trace() -> [String] {
            var options = stormOptions(9)
            options.traces = true
            let world = World(seed: 9, options: options)
            world.storm(milliseconds: 15_000)
            return world.trace
        }
        #expect(trace() == trace())
    }
}
