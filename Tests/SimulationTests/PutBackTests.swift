import Quorum
import Testing

/// Line 18 of the table of failures, where a node's own disks agree with each other and only others can know better: the
/// whole machine is put back to a snapshot.
@Suite struct PutBackTests {
    static let seeds: [UInt64] = Array(1...16)

    private static func reasonTellsOfIt(_ node: SimulatedNode) -> Bool {
        switch node.role?.reason {
        // Behind: its votes are from before it was added.
        case .putBack, .notSeeded, .behind: true
        default: false
        }
    }

    /// Both in sync; the standby's snapshot is taken; more is written; it is put back at the moment at which the primary
    /// is lost. It believes to hold everything, and only the witness knows better.
    private static func lonely(
        _ seed: UInt64, cleanly: Bool, bugs: Set<PlantedBug> = []
    ) -> (World, SimulatedNode, SimulatedNode)? {
        guard let (world, primary, other) = whole(seed, loneRestart: 6000, bugs: bugs) else { return nil }
        if cleanly {
            world.step(other, .requestStop)
            world.run(milliseconds: 200)
            other.data.isComplete = true
        }
        world.takeSnapshot(of: other)
        if cleanly {
            other.snapshot?.data.isComplete = true
            world.kill(other)
            world.start(other)
        }
        world.run(until: { world.isHealthy }, milliseconds: 90_000)
        let written = world.written
        world.run(milliseconds: 5000)
        #expect(world.written > written && world.isHealthy, "seed \(seed): \(world.roles)")
        world.kill(primary)
        world.putBack(other)
        return (world, primary, other)
    }

    @Test(arguments: seeds) func failure18AMachineThatWasPutBackDoesNotServeWithoutTheOther(seed: UInt64) {
        guard let (world, _, other) = PutBackTests.lonely(seed, cleanly: seed % 2 == 0) else { return }
        world.run(milliseconds: 40_000)
        #expect(world.server == nil)
        #expect(PutBackTests.reasonTellsOfIt(other), "seed \(seed): \(world.roles)")
        expectWholeAgain(world)
    }

    /// The same with a witness that remembers nothing of the nodes: the test above would notice.
    @Test func failure18WithoutTheWitnesssMemoryAcknowledgedWritesWouldBeLost() {
        var found = 0
        for seed in PutBackTests.seeds {
            guard
                let (world, _, _) = PutBackTests.lonely(seed, cleanly: seed % 2 == 0, bugs: [.witnessForgetsNodes])
            else { return }
            world.run(milliseconds: 40_000)
            if world.violations.contains(where: { $0.contains("without acknowledged write") }) { found += 1 }
        }
        #expect(found >= PutBackTests.seeds.count / 2, "\(found)")
    }

    /// The witness restarts in between: it has written down what it remembers.
    @Test(arguments: seeds) func failure18TheWitnessRemembersAfterItsRestart(seed: UInt64) {
        guard let (world, _, other) = PutBackTests.lonely(seed, cleanly: false) else { return }
        world.kill(world.witness)
        world.start(world.witness)
        world.run(milliseconds: 40_000)
        #expect(world.server == nil)
        #expect(PutBackTests.reasonTellsOfIt(other), "seed \(seed): \(world.roles)")
        expectWholeAgain(world)
    }

    /// The node that alone is in sync is put back: nobody has what it acknowledged. It says so, and serves only by force.
    @Test(arguments: seeds) func failure18TheOnlyNodeInSyncThatWasPutBackServesOnlyByForce(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        world.kill(other)
        #expect(world.run(until: { primary.role?.role == .alone }, milliseconds: 10_000))
        world.run(milliseconds: 2000)
        world.takeSnapshot(of: primary)
        world.run(milliseconds: 6000)
        world.putBack(primary)
        world.run(milliseconds: 30_000)
        #expect(world.server == nil)
        guard case .putBack = primary.role?.reason else {
            Issue.record("seed \(seed): \(world.roles)")
            return
        }
        world.step(primary, .requestPromotion(seedWitness: false))
        #expect(
            world.run(until: { world.server == primary.node }, milliseconds: 20_000), "seed \(seed): \(world.roles)")
        #expect(world.violations.isEmpty, "seed \(seed)")
        if case .byForce = primary.data.inheritance {} else { Issue.record("it does not say so") }
    }

    /// Both rooms lose power, and one machine is put back. The other one has everything: it serves, without waiting for what
    /// cannot come, and the one that was put back never, however much it has been sent when the other one is lost again.
    @Test(arguments: seeds) func failure18BothReturnAndOneWasPutBack(seed: UInt64) {
        guard let (world, primary, other) = whole(seed, loneRestart: seed % 2 == 0 ? 6000 : nil) else { return }
        world.takeSnapshot(of: other)
        world.run(milliseconds: 10_000)
        world.kill(primary)
        world.putBack(other)
        world.run(milliseconds: 8000)
        for _ in 0..<3 {
            world.start(primary)
            world.run(milliseconds: world.random.between(50, 1500))
            world.kill(primary)
            #expect(world.server == nil, "seed \(seed)")
            world.kill(other)
            world.start(other)
            world.run(milliseconds: 9000)
            #expect(world.server == nil && world.violations.isEmpty, "seed \(seed): \(world.roles)")
        }
        world.start(primary)
        #expect(
            world.run(until: { world.server == primary.node }, milliseconds: 20_000), "seed \(seed): \(world.roles)")
        expectWholeAgain(world)
    }

    /// The same without the witness: the other node's voter knows what its own journal says of both disks.
    @Test(arguments: seeds) func failure18BothReturnAndOneWasPutBackWithoutTheWitness(seed: UInt64) {
        guard let (world, primary, other) = whole(seed, loneRestart: 6000) else { return }
        world.takeSnapshot(of: other)
        world.run(milliseconds: 10_000)
        world.kill(primary)
        world.kill(world.witness)
        world.putBack(other)
        world.run(milliseconds: 8000)
        // The files are compared later than the voters are asked.
        world.setDataLink(false)
        world.start(primary)
        world.run(milliseconds: 5000)
        #expect(world.server != other.node, "seed \(seed): \(world.roles)")
        world.setDataLink(true)
        #expect(
            world.run(until: { world.server == primary.node }, milliseconds: 20_000), "seed \(seed): \(world.roles)")
        expectWholeAgain(world)
    }

    /// Only the votes are put back, of a node that follows and counts as in sync: it is given new ones without anybody's help,
    /// and can take over again.
    @Test(arguments: seeds) func failure18VotesThatWerePutBackAreGivenAnewToANodeInSync(seed: UInt64) {
        guard let (world, primary, other) = whole(seed) else { return }
        let votes = other.disk
        for _ in 0..<2 {
            world.kill(other)
            world.start(other)
            #expect(world.run(until: { world.isHealthy }, milliseconds: 30_000), "seed \(seed): \(world.roles)")
            world.run(milliseconds: 2000)
        }
        world.kill(other)
        other.disk = votes
        world.start(other)
        #expect(
            world.run(until: { world.isHealthy && other.disk != nil }, milliseconds: 30_000),
            "seed \(seed): \(world.roles)")
        world.run(milliseconds: 2000)
        world.kill(primary)
        #expect(world.run(until: { world.server == other.node }, milliseconds: 30_000), "seed \(seed): \(world.roles)")
        expectWholeAgain(world)
    }

    /// Either node, with everything else well: it is brought up to date, and nothing is lost.
    @Test(arguments: seeds) func failure18AMachineThatWasPutBackIsBroughtUpToDate(seed: UInt64) {
        guard let (world, primary, other) = whole(seed, loneRestart: seed % 3 == 0 ? 6000 : nil) else { return }
        let node = seed % 2 == 0 ? primary : other
        world.takeSnapshot(of: node)
        world.run(milliseconds: 3000 + world.random.between(0, 9000))
        world.putBack(node)
        // Sometimes not the first time.
        if seed % 4 == 0 {
            world.run(milliseconds: world.random.between(100, 9000))
            world.putBack(node)
        }
        expectWholeAgain(world)
    }
}
