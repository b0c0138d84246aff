import Quorum
import Testing

/// Forced promotions at any moment: never two that serve, one history afterwards, and nothing that was acknowledged and
/// is left out is lost without being saved.
@Suite struct PromotionTests {
    static let seeds: [UInt64] = Array(1...12)

    /// The other node was lost, the primary wrote alone and is lost too; the other one is back and waits.
    private func stale(_ seed: UInt64, loneRestart: UInt64? = nil) -> (World, SimulatedNode, SimulatedNode)? {
        guard let (world, primary, other) = whole(seed, loneRestart: loneRestart) else { return nil }
        world.kill(other)
        world.run(milliseconds: 6000)
        #expect(primary.role?.role == .alone)
        world.kill(primary)
        world.start(other)
        return (world, primary, other)
    }

    private func promote(_ world: World, _ node: SimulatedNode, seedWitness: Bool = false) {
        world.step(node, .requestPromotion(seedWitness: seedWitness))
    }

    @Test(arguments: seeds) func failure34AStaleNodeIsPromotedByForceAndTheOthersWritesAreSaved(seed: UInt64) {
        guard let (world, primary, other) = stale(seed) else { return }
        world.run(milliseconds: 10_000)
        #expect(other.role?.role == .wait)
        promote(world, other)
        #expect(world.run(until: { world.server == other.node }, milliseconds: 10_000), "\(world.roles)")
        guard case .recorded = other.promotion else {
            Issue.record("seed \(seed): \(other.promotion)")
            return
        }
        #expect(!world.lostByForce.isEmpty)
        world.run(milliseconds: 2000)
        world.start(primary)
        #expect(world.run(until: { world.isHealthy }, milliseconds: 100_000), "\(world.roles)")
        #expect(world.server == other.node)
        #expect(world.lostByForce.isSubset(of: primary.data.rescued))
        expectWholeAgain(world)
    }

    /// It serves only when its disk knows that the order was chosen: else it would give its log up after a crash.
    @Test(arguments: seeds) func failure34APromotedNodeServesOnlyWhenItsDiskSaysThatItMay(seed: UInt64) {
        guard let (world, primary, other) = stale(seed) else { return }
        world.run(milliseconds: 10_000)
        promote(world, other)
        #expect(world.run(until: { other.disk?.forcedEpoch != nil }, milliseconds: 10_000))
        other.slowDisk = 1500
        #expect(world.run(until: { world.server == other.node }, milliseconds: 10_000), "\(world.roles)")
        #expect(other.disk?.mayBeToldOfLogs == true)
        let before = world.everAcknowledged.count
        #expect(world.run(until: { world.everAcknowledged.count > before }, milliseconds: 5000))
        world.kill(other)
        for node in [primary, other] { world.start(node) }
        #expect(world.run(until: { world.isServing }, milliseconds: 30_000), "\(world.roles)")
        expectWholeAgain(world)
    }

    /// The order is not obeyed while the other node serves, whatever the asker can hear.
    @Test(arguments: seeds) func failure34ANodeIsNotPromotedWhileTheOtherOneServes(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        world.setCut(between: .a, .b, true)
        world.run(milliseconds: 6000)
        #expect(primary.role?.role == .alone)
        world.kill(other)
        world.start(other)
        world.run(milliseconds: 6000)
        promote(world, other)
        world.run(milliseconds: 20_000)
        #expect(world.server == primary.node)
        guard case .refused(let why) = other.promotion else {
            Issue.record("seed \(seed): \(other.promotion)")
            return
        }
        #expect(why.contains("node \(primary.node) still serves"))
        // Nor is it remembered: the primary is lost now, and the node waits as before.
        world.kill(primary)
        world.run(milliseconds: 20_000)
        #expect(world.server == nil)
        expectWholeAgain(world)
    }

    /// One room decides nothing alone, and the order ends by itself.
    @Test(arguments: seeds) func failure34WithoutASecondRoomNothingIsPromoted(seed: UInt64) {
        guard let (world, _, other) = stale(seed) else { return }
        world.kill(world.witness)
        promote(world, other)
        world.run(milliseconds: 20_000)
        guard case .refused = other.promotion else {
            Issue.record("seed \(seed): \(other.promotion)")
            return
        }
        world.start(world.witness)
        world.run(milliseconds: 20_000)
        #expect(world.server == nil)
        #expect(other.role?.role == .wait)
        expectWholeAgain(world)
    }

    /// The old primary, dead, cut off or frozen, comes back at every moment of the promotion.
    @Test(arguments: 0..<40) func failure34TheOldPrimaryReturnsAtAnyMomentOfTheForcedPromotion(step: UInt64) {
        for isCutOff in [false, true] {
            guard let (world, primary, other) = whole(step + 300) else { return }
            world.setCut(between: .a, .b, true)
            world.run(milliseconds: 6000)
            if isCutOff {
                world.setCut(between: primary.voter, .witness, true)
                world.run(milliseconds: 4200)
            } else {
                world.kill(primary)
            }
            promote(world, other)
            world.run(milliseconds: step * step * 4)
            world.start(primary)
            world.healNetwork()
            #expect(world.run(until: { world.isServing }, milliseconds: 30_000), "step \(step): \(world.roles)")
            expectWholeAgain(world)
        }
    }

    /// The promoted node dies at every moment of its promotion; the old primary, or it, or both, come back.
    @Test(arguments: 0..<40) func failure34ANodeThatDiesInItsForcedPromotionLeavesOneHistory(step: UInt64) {
        for first in [Voter.a, .b] {
            guard let (world, primary, other) = stale(step + 400) else { return }
            world.run(milliseconds: 6000)
            promote(world, other)
            world.run(milliseconds: step * 4)
            world.kill(other)
            world.run(milliseconds: 500)
            world.start(world.machine(first))
            world.run(milliseconds: 8000)
            for node in [primary, other] { world.start(node) }
            #expect(world.run(until: { world.isServing }, milliseconds: 30_000), "step \(step): \(world.roles)")
            expectWholeAgain(world)
        }
    }

    /// The order was recorded in the promoted node's room only: the witness has promised, and the rest never reached it.
    /// Then the old primary is back, serves for hours, and is lost. What it acknowledged since is more than the
    /// administrator was told: the order must not be carried out any more.
    @Test(arguments: seeds) func failure34AHalfRecordedPromotionLosesNothingThatWasWrittenSince(seed: UInt64) {
        for how in 0..<6 {
            guard let (world, primary, other) = whole(seed + 600) else { return }
            world.setCut(between: .a, .b, true)
            world.run(milliseconds: 6000)
            #expect(primary.role?.role == .alone)
            world.setCut(between: primary.voter, .witness, true)
            #expect(world.run(until: { other.role?.reason == .behind(primary.node) }, milliseconds: 10_000))
            #expect(primary.role?.role == .frozen)
            let accepted = world.witness.disk?.accepted
            let earlier = other.member?.state?.promised ?? .zero
            promote(world, other)
            #expect(
                world.run(until: { world.witness.disk.map { $0.promised > earlier } == true }, milliseconds: 10_000))
            // Its own disk is slow with the second half; when it is done, nobody hears of it.
            other.slowDisk = 1500
            world.after(25 * ms) { world.setCut(other.voter, .witness, true) }
            #expect(world.run(until: { other.disk?.forcedEpoch != nil }, milliseconds: 3000))
            #expect(world.witness.disk?.accepted == accepted)
            if how % 2 == 0 { world.kill(other) }
            // What the witness has promised outlives its process, and its disk too.
            if how / 2 == 1 {
                world.kill(world.witness)
                world.start(world.witness)
            }
            if how / 2 == 2 { world.reinstallWitness() }
            let before = world.everAcknowledged.count
            world.setCut(between: primary.voter, .witness, false)
            // The promoted node will never be back for all that anyone knows: that keeps nobody from serving.
            #expect(world.run(until: { world.server == primary.node }, milliseconds: 10_000), "\(world.roles)")
            world.run(milliseconds: 5000)
            #expect(world.everAcknowledged.count > before + 10)
            world.kill(primary)
            other.slowDisk = 5
            world.start(other)
            world.setCut(other.voter, .witness, false)
            world.run(milliseconds: 30_000)
            #expect(world.server == nil, "seed \(seed), \(how)")
            #expect(other.role?.role == .wait)
            expectWholeAgain(world)
        }
    }

    /// Rule 10: with an empty witness the ordinary way is refused by name; seeding it is an order of its own.
    @Test(arguments: seeds) func failure34AnEmptyWitnessIsSeededByForceOnlyWhenToldTo(seed: UInt64) {
        guard let (world, primary, other) = stale(seed) else { return }
        world.reinstallWitness()
        world.run(milliseconds: 10_000)
        promote(world, other)
        world.run(milliseconds: 20_000)
        #expect(world.server == nil)
        #expect(world.witness.disk == nil)
        promote(world, other, seedWitness: true)
        #expect(world.run(until: { world.server == other.node }, milliseconds: 20_000), "\(world.roles)")
        world.start(primary)
        #expect(world.run(until: { world.isHealthy }, milliseconds: 100_000), "\(world.roles)")
        #expect(world.server == other.node)
        expectWholeAgain(world)
    }

    @Test(arguments: 0..<40) func failure34AForcedSeedThatIsBrokenOffLeavesOneHistory(step: UInt64) {
        for first in [Voter.a, .b] {
            guard let (world, primary, other) = stale(step + 500) else { return }
            world.reinstallWitness()
            world.run(milliseconds: 5000)
            promote(world, other, seedWitness: true)
            world.run(milliseconds: step * 4)
            world.kill(other)
            world.run(milliseconds: 500)
            world.start(world.machine(first))
            world.run(milliseconds: 8000)
            for node in [primary, other] { world.start(node) }
            #expect(world.run(until: { world.isServing }, milliseconds: 30_000), "step \(step): \(world.roles)")
            expectWholeAgain(world)
        }
    }

    @Test(arguments: 0..<4)
    func failure34StormsWithForcedPromotionsLeaveOneHistory(part: UInt64) {
        var forced = 0
        var lost = 0
        for seed in firstSeed..<firstSeed + seedCount where seed % 4 == part {
            var options = stormOptions(seed)
            options.forces = true
            let world = World(seed: seed, options: options)
            world.storm(milliseconds: 25_000)
            #expect(world.violations.isEmpty, "seed \(seed)")
            forced += world.forcedEpochs.count
            lost += world.lostByForce.count
        }
        print("forced promotions: \(forced), acknowledged writes left out and saved: \(lost)")
        #expect(forced > 0 && lost > 0)
    }

    /// The simulator notices when what a forced promotion leaves out is not saved.
    @Test func cuttingWithoutSavingIsFoundByTheSimulator() {
        for seed in UInt64(1)...200 {
            var options = stormOptions(seed)
            options.forces = true
            options.bugs = [.cutsWithoutSaving]
            let world = World(seed: seed, options: options)
            world.storm(milliseconds: 25_000)
            if let first = world.violations.first, first.contains("without saving it") { return }
        }
        Issue.record("not found")
    }
}
