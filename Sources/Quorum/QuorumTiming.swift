/// The times that decisions and leases live by, in nanoseconds. The same on all three machines.
public struct QuorumTiming: Sendable, Hashable {
    /// How long a granted lease lets its holder serve, counted from the moment it *sent* the request.
    public var lease: BootNanoseconds = 2_000_000_000
    /// Time between two requests for the lease.
    public var renewal: BootNanoseconds = 500_000_000
    /// How long a voter keeps a grant, counted from the moment it *received* the request: what a holder asks for, the
    /// longest that a voter gives, and what it waits after a restart.
    public var grant: BootNanoseconds = 4_000_000_000
    /// What the kernel may take, after the lease has ended, to drop an address whose lifetime has run out.
    public var addressSlack: BootNanoseconds = 1_000_000_000
    /// How much the clocks of two machines may differ in speed, in millionths.
    public var driftPerMillion: UInt64 = 10_000
    /// How long the data link to an in-sync node may be unusable before the primary proposes to go on without it.
    public var peerLoss: BootNanoseconds = 1_000_000_000
    /// Silence after which the other node is no longer taken to be serving.
    public var hearing: BootNanoseconds = 1_500_000_000
    /// Time between two sendings of a question that nobody answered.
    public var resend: BootNanoseconds = 250_000_000
    /// How long a round waits for the rest of the answers once one voter has refused.
    public var refusedRound: BootNanoseconds = 1_000_000_000
    /// Wait before the next round after a lost one: random, up to a bound that doubles from the first to the second.
    public var roundWaitFirst: BootNanoseconds = 50_000_000
    public var roundWaitLast: BootNanoseconds = 2_000_000_000
    /// A restarted member of a two-node set that cannot reach the other serves alone after this time, without the writes
    /// that were never fsynced and are only there. nil: it waits for the other, however long.
    public var loneRestart: BootNanoseconds? = 60_000_000_000
    /// How long a new primary waits for a reachable other node to cut to its log before it goes on without it.
    public var opening: BootNanoseconds = 10_000_000_000
    /// How long a node that handed over waits for the other to serve before it may lead again.
    public var handOver: BootNanoseconds = 8_000_000_000
    /// Waits before a node that was lost is added again: they double from the first to the last with each loss, and
    /// start anew after a quiet time. They bound the number of epochs under a link that flaps.
    public var addWaitFirst: BootNanoseconds = 500_000_000
    public var addWaitLast: BootNanoseconds = 60_000_000_000
    public var addQuiet: BootNanoseconds = 600_000_000_000
    /// How many answers the holder of a lease may miss before a voter stops granting.
    public var unheardLimit: Int = 4

    public init() {}

    /// What is wrong with these times, one sentence each; empty if they can be used.
    public func problems() -> [String] {
        var found: [String] = []
        let drift = lease / 1_000_000 * driftPerMillion
        if lease + addressSlack + drift > grant {
            found.append(
                "grant (\(milliseconds(grant))) must be at least lease (\(milliseconds(lease))) + what the kernel takes to "
                    + "drop an address (\(milliseconds(addressSlack))) + clock drift (\(milliseconds(drift)))")
        }
        if renewal == 0 || renewal * 3 > lease {
            found.append("lease (\(milliseconds(lease))) must be at least 3 x renewal (\(milliseconds(renewal)))")
        }
        if hearing < renewal * 2 {
            found.append("hearing (\(milliseconds(hearing))) must be at least 2 x renewal (\(milliseconds(renewal)))")
        }
        if resend == 0 || resend > refusedRound {
            found.append("resend (\(milliseconds(resend))) must be above 0 and at most \(milliseconds(refusedRound))")
        }
        if roundWaitFirst == 0 || roundWaitLast < roundWaitFirst {
            found.append("the wait between rounds must be above 0, and its last value at least its first")
        }
        if addWaitFirst == 0 || addWaitLast < addWaitFirst {
            found.append("the wait before adding a node must be above 0, and its last value at least its first")
        }
        if unheardLimit < 2 { found.append("a voter must let at least 2 answers go unheard") }
        return found
    }

    private func milliseconds(_ time: BootNanoseconds) -> String { "\(time / 1_000_000) ms" }
}
