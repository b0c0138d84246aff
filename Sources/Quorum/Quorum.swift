// Who may serve: decisions, leases, roles.
//
// Three voters (node a, node b, the witness) agree on one record, the *decision* {sequence, epoch, primary, inSync}.
// Agreement is CASPaxos (Rystsov, 2018): a round reads the newest accepted value from two of three, applies a change
// function to it, and has two of three accept the result. Beside the register each voter hands out *leases*: the right
// to serve until a moment. The register makes wrong decisions impossible without any clock; the lease makes a primary
// that was overruled stop by itself before the other one starts.
//
// ```
//   Acceptor      one voter: promises, accepts, grants.     On both nodes and, alone, in the witness.
//   Proposer      one round of one node.
//   LeaseHolder   what the voters granted to this node.
//   Member        a node's role: drives the three, and is the only thing a node's shell talks to.
// ```
//
// Everything here is pure: `step(event, now) -> effects`. No I/O, no clock, no randomness but a seeded generator.
//
// The life of a node:
//
// ```
//                 seeded               a round makes it primary           may open
//   unformed ───────────────> standby ────────────────────────> opening ───────────> serving <──> frozen (no lease)
//                              │  ^ ^                              │                   │  │
//                    requestStop  │ └──────── deposed ─────────────┴───────────────────┘  │ requestSwap, requestStop
//                              v  │ requestStart                                          v
//                            stopped <── the other serves ── handedOver <── drained ── draining
// ```
//
// A *standby* follows the other node when it hears it serve, and otherwise tries to lead, again and again, if it may.
// *opening*: recorded as primary; it opens when the other node has cut to its log, or has been removed by a second
// decision.

@_exported public import Format

/// A moment, or a length of time, in nanoseconds of CLOCK_BOOTTIME: it counts on while a machine sleeps, and no
/// administrator can turn it.
public typealias BootNanoseconds = UInt64

/// SplitMix64 (Steele, Lea, Flood, 2014): for waits that must differ between the nodes, seeded by the shell.
struct SmallGenerator: Sendable {
    private var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
    /// A number in 0 ... `limit`.
    mutating func upTo(_ limit: UInt64) -> UInt64 { limit == .max ? next() : next() % (limit + 1) }
}
