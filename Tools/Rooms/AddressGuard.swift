import Foundation
import Synchronization

/// Looks all the time who holds the virtual address: two at once would be two services.
public final class AddressGuard: Sendable {
    private struct State {
        var stopped = false
        var violations = 0
    }
    private let state = Mutex(State())

    public init(_ cluster: Cluster) {
        let thread = Thread { [self] in
            while !state.withLock({ $0.stopped }) {
                // The rooms are looked at one after the other: only if the first still has it after the second had it
                // did both have it at one moment.
                let holds = { (node: ClusterNode) in
                    node.room.addresses().intersection([Cluster.virtualAddress, Cluster.virtualAddress6])
                }
                let first = holds(cluster.alpha)
                let both = first.intersection(holds(cluster.beta))
                if !both.isEmpty, !both.isDisjoint(with: holds(cluster.alpha)) {
                    state.withLock { $0.violations += 1 }
                }
                usleep(20_000)
            }
        }
        thread.name = "address-guard"
        thread.start()
    }

    public func stop() { state.withLock { $0.stopped = true } }

    /// - Throws: if both ever held it at one moment.
    public func check() throws {
        let violations = state.withLock { $0.violations }
        guard violations == 0 else {
            throw RoomsError("Both rooms held the virtual address at once (seen \(violations) times).")
        }
    }
}
