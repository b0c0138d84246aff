import Quorum
import Testing

#if canImport(Glibc)
    import Glibc
#endif

/// How many worlds: LOCKSTEP_SEEDS in the environment, for long runs.
private var seedCount: UInt64 {
    getenv("LOCKSTEP_SEEDS").flatMap { unsafe UInt64(String(cString: $0)) } ?? 100
}
private var firstSeed: UInt64 {
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

@Test func replay() {
    guard let seed = getenv("LOCKSTEP_REPLAY").flatMap({ unsafe UInt64(String(cString: $0)) }) else { return }
    var options = stormOptions(seed)
    options.traces = true
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
            (PlantedBug.aloneFromMemory, 1), (.witnessReinventsItself, 1), (.acknowledgesWithoutLease, 1),
            (.answersBeforeWriting, 1), (.addsNodeFromMemory, 1), (.voterForgetsGrants, 1),
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
}
