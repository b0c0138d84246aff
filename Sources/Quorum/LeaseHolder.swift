/// What the voters have granted to this node.
///
/// Requests carry a growing number. A grant counts from the moment its request was *sent*, on this node's own clock; a
/// voter counts a longer time from the moment it received it. So the holder always stops first, whatever the network
/// did to the messages between them.
struct LeaseHolder: Sendable {
    private let timing: QuorumTiming
    /// Number of the last request.
    private(set) var number: UInt64 = 0
    /// When the last requests were sent, newest last. A grant to one that has left the list is worthless by then.
    private var sent: [(number: UInt64, at: BootNanoseconds)] = []
    /// Grants for requests up to this number are void: they were given back.
    private var released: UInt64 = 0
    private var until = PerVoter<BootNanoseconds>(0)
    /// The highest request whose answer from each voter arrived.
    private(set) var heard = PerVoter<UInt64>(0)

    private static let remembered = 16

    init(timing: QuorumTiming) { self.timing = timing }

    /// The number for a request that is sent now.
    mutating func request(now: BootNanoseconds) -> UInt64 {
        number += 1
        sent.append((number, now))
        if sent.count > LeaseHolder.remembered { sent.removeFirst() }
        return number
    }

    /// A grant has arrived. One for a request that was given back meanwhile counts for nothing: that voter may have
    /// granted to the other node since.
    mutating func granted(by voter: Voter, number: UInt64) {
        answered(by: voter, number: number)
        guard number > released, let request = sent.first(where: { $0.number == number }) else { return }
        until[voter] = max(until[voter], request.at + timing.lease)
    }

    /// Any answer, also a refusal, shows that this node hears the voter (rule 12).
    mutating func answered(by voter: Voter, number: UInt64) {
        guard number <= self.number else { return }
        heard[voter] = max(heard[voter], number)
    }

    /// Gives everything back; the number goes into the releases.
    mutating func release() -> UInt64 {
        released = number
        until = PerVoter(0)
        return released
    }

    /// The lease holds until this moment: two of three, this node's own voter among them. 0: none.
    func validUntil(own: Voter) -> BootNanoseconds {
        var best: BootNanoseconds = 0
        for voter in Voter.allCases where voter != own { best = max(best, until[voter]) }
        return min(until[own], best)
    }
}
