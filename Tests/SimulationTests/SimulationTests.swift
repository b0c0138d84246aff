import Quorum
import Testing

#if canImport(Glibc)
    import Glibc
#endif

/// How many worlds: LOCKSTEP_SEEDS in the environment, for long runs.
var seedCount: UInt64 {
    getenv("LOCKSTEP_SEEDS").flatMap { unsafe UInt64(String(cString: $0)) } ?? 400
}
var firstSeed: UInt64 {
    getenv("LOCKSTEP_FIRST_SEED").flatMap { unsafe UInt64(String(cString: $0)) } ?? 1
}

func stormOptions(_ seed: UInt64) -> WorldOptions {
    var options = WorldOptions()
    if seed % 2 == 0 { options.loneRestart = 6000 }
    if seed % 5 == 0 { options.loss = 100 }
    if seed % 7 == 0 { options.late = 100 }
    return options
}

@Suite struct SimulationTests {
    @Test(arguments: 0..<4)
    func stormsOfFaultsLoseNothingAndEnd(part: UInt64) {
        for seed in firstSeed..<firstSeed + seedCount where seed % 4 == part {
            let world = World(seed: seed, options: stormOptions(seed))
            world.storm(milliseconds: 25_000)
            #expect(world.violations.isEmpty, "seed \(seed)")
        }
    }
}

/// Prints the story of one world: LOCKSTEP_REPLAY=<seed>, LOCKSTEP_BUG=<planted bug> if it had one, and
/// LOCKSTEP_FORCES=1 for one with forced promotions.
@Test func replay() {
    guard let seed = getenv("LOCKSTEP_REPLAY").flatMap({ unsafe UInt64(String(cString: $0)) }) else { return }
    var options = stormOptions(seed)
    options.traces = true
    options.forces = getenv("LOCKSTEP_FORCES") != nil
    if let bug = getenv("LOCKSTEP_BUG").map({ unsafe String(cString: $0) }) {
        options.bugs = Set(PlantedBug.allCases.filter { "\($0)" == bug })
    }
    let world = World(seed: seed, options: options)
    world.storm(milliseconds: 25_000)
    for line in world.trace { print(line) }
    print("votes", world.chosen.count)
    print(world.violations, world.acknowledged.count, world.openings.count, world.forgiven, world.now / ms)
}

/// The simulator is worth something only if it finds what is wrong. Each of these faults is planted in the model around
/// the cores, and some world must notice.
@Suite struct PlantedBugTests {
    /// A bug, and a seed near one that shows it; others are tried if the cores changed since.
    @Test(
        arguments: [
            (PlantedBug.aloneFromMemory, 63), (.acknowledgesWithoutLease, 437), (.witnessReinventsItself, 514),
            (.answersBeforeWriting, 720),
        ] as [(PlantedBug, UInt64)])
    func isFoundByTheSimulator(bug: PlantedBug, near start: UInt64) {
        for seed in start..<start + 3000 {
            var options = stormOptions(seed)
            options.bugs = [bug]
            let world = World(seed: seed, options: options)
            world.storm(milliseconds: 25_000)
            guard let first = world.violations.first, !world.isStuck else { continue }
            print("planted \(bug): found by seed \(seed), \(first)")
            return
        }
        Issue.record("\(bug) was not found")
    }

    /// Rule 8: the primary holds its lease by the witness alone; then it is cut off from everybody, the witness restarts, and
    /// the other node, whose own grant has run out long ago, asks it at once. It asks every few seconds.
    @Test(arguments: [false, true])
    func aVoterThatForgetsItsGrantsLetsTwoServe(planted: Bool) {
        var found = 0
        for seed: UInt64 in 1...40 {
            guard let (world, primary, _) = whole(seed, bugs: planted ? [.voterForgetsGrants] : []) else { return }
            world.nodesAreDeaf = true
            world.run(milliseconds: 5000 + seed * 200)
            world.setDataLink(false)
            world.setCut(between: primary.voter, .witness, true)
            world.kill(world.witness)
            world.start(world.witness)
            world.run(milliseconds: 6000)
            if !world.violations.isEmpty { found += 1 }
        }
        #expect(planted ? found > 0 : found == 0, "\(found)")
        if planted { print("found in \(found) of 40") }
    }

    /// Rule 11: a node whose disk lags far behind is not added, however much it has in memory.
    @Test(arguments: [false, true])
    func aNodeAddedFromItsMemoryLosesFsyncedWrites(planted: Bool) {
        var options = WorldOptions()
        options.loneRestart = 3000
        // A witness that remembers what was committed would not let it serve.
        options.bugs = planted ? [.addsNodeFromMemory, .witnessForgetsNodes] : []
        let world = World(seed: 11, options: options)
        #expect(world.run(until: { world.isHealthy }, milliseconds: 30_000))
        guard let server = world.server else { return }
        let (primary, other) = (world[server], world[server.peer])
        world.kill(other)
        world.run(milliseconds: 8000)
        other.slowFlush = 60_000
        world.start(other)
        world.run(milliseconds: 3000)
        #expect((primary.role?.role == .primary) == planted)
        for machine in world.machines { world.kill(machine) }
        world.start(world.witness)
        world.start(other)
        world.run(milliseconds: 20_000)
        #expect(world.violations.isEmpty != planted)
        #expect((other.role?.reason == .behind(primary.node)) != planted)
    }
}
