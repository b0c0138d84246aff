import Format
import Glibc
import Ring
import Synchronization
import Testing

@testable import Node

/// The file of what is owed: written and removed by whatever worker is free.
@Suite(.serialized) struct DebtKeeperTests {
    /// Everything in it is used on the data thread, but `isOpen` and what counts.
    private final class Bench: @unchecked Sendable {
        let isOpen = Mutex(false)
        let removals = Mutex(0)
        let written = Mutex(0)
        var keeper: DebtKeeper?
    }

    @Test func aRemovalThatIsLateTakesNothingNewAway() throws {
        let pair = try Pair()
        let bench = Bench()
        let file = DebtFile(path: pair.scratch.path + "/owed", mirror: pair.mirror, node: .a)
        let write: @Sendable (DataPlane) -> Void = { _ in
            bench.keeper?.startNoting(base: .zero, batches: [])
            bench.keeper?.persist(through: .zero, chain: 0) { isDurable in
                if isDurable { bench.written.withLock { $0 += 1 } }
            }
        }
        pair.a.call { plane in
            bench.keeper = DebtKeeper(
                file: file, debt: nil, reactor: plane.reactor, workers: plane.workers, logger: quiet
            ) { path in
                while !bench.isOpen.withLock({ $0 }) { usleep(1000) }
                try? StateFile.remove(path)
                bench.removals.withLock { $0 += 1 }
            }
            write(plane)
        }
        pair.a.wait("written") { _ in bench.written.withLock { $0 } == 1 }
        pair.a.call { plane in
            bench.keeper?.stopNoting()
            write(plane)
        }
        usleep(100_000)
        bench.isOpen.withLock { $0 = true }
        pair.a.wait("written again, and removed before") { _ in
            bench.written.withLock { $0 } == 2 && bench.removals.withLock { $0 } == 1
        }
        #expect(try file.load() != nil, "said to be durable, and gone")
        // And the reverse: what is over while it is being written does not stay.
        pair.a.call { plane in
            bench.keeper?.persist(through: .zero, chain: 0) { _ in }
            bench.keeper?.stopNoting()
        }
        pair.a.wait("removed") { _ in bench.removals.withLock { $0 } == 2 }
        #expect(try file.load() == nil)
        pair.a.call { _ in bench.keeper = nil }
    }
}
