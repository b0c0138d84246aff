import CLinux
import Glibc
import Logging
import Synchronization

/// Tells the machines around that the virtual addresses have moved here: gratuitous ARP for IPv4 (RFC 5227, 3), an
/// unsolicited neighbour advertisement with the override flag for IPv6 (RFC 4861, 7.2.6).
///
/// One packet may be lost, and a switch may still be learning the port, so that it is said again and again for three
/// seconds.
public final class Announcer: Sendable {
    /// When it is said, from the call of `start()`.
    public static let scheduleMilliseconds = [0, 100, 300, 1000, 3000]
    /// What is so much later than the schedule is not said any more.
    static let lateMilliseconds = 500

    private let addresses: [ServiceAddress]
    private let arp: Int32
    private let neighbour: Int32
    private let logger: Logger
    /// Grows with each `start` and `cancel`: a burst ends when it is not the newest any more.
    private let generation = Atomic<UInt64>(0)

    /// Opens the sockets in the network namespace of the calling thread.
    public init(addresses: [ServiceAddress], logger: Logger) throws(TakeoverError) {
        self.addresses = addresses
        self.logger = logger
        arp = addresses.contains { !$0.isIPv6 } ? clinux_arp_open() : -1
        neighbour = addresses.contains { $0.isIPv6 } ? clinux_neighbour_open() : -1
        let failed = addresses.contains { !$0.isIPv6 } && arp < 0 ? arp : neighbour
        let complete = addresses.allSatisfy { ($0.isIPv6 ? neighbour : arp) >= 0 }
        guard complete else {
            if arp >= 0 { close(arp) }
            if neighbour >= 0 { close(neighbour) }
            throw TakeoverError(
                "open a socket to announce addresses with", code: -failed,
                remedy: "Run as root (CAP_NET_RAW is needed)")
        }
    }

    deinit {
        if arp >= 0 { close(arp) }
        if neighbour >= 0 { close(neighbour) }
    }

    /// Says it once for every address; all are tried.
    /// - Throws: the first failure. An interface without Ethernet addresses needs no announcement.
    public func announceOnce() throws(TakeoverError) {
        var failure: TakeoverError?
        for address in addresses {
            do throws(TakeoverError) {
                var interface = try findInterface(address.interface, for: "announce \(address)")
                guard interface.is_ethernet != 0 else { continue }
                let result =
                    address.isIPv6
                    ? unsafe clinux_neighbour_announce(neighbour, &interface, address.bytes)
                    : unsafe clinux_arp_announce(arp, &interface, address.bytes)
                guard result == 0 else {
                    throw TakeoverError(
                        "announce \(address)", code: -result,
                        remedy: "Clients find the address when their own caches end (about a minute); look at "
                            + "`ip link show \(address.interface)`")
                }
            } catch {
                failure = failure ?? error
            }
        }
        if let failure { throw failure }
    }

    /// Says it at once, and again by the schedule on a thread of its own. Returns at once; an earlier burst ends.
    /// A failure is logged: clients would find the address later by themselves.
    public func start() {
        let mine = generation.add(1, ordering: .sequentiallyConsistent).newValue
        let began = bootNanoseconds()
        let launched = launchThread("announcer") { [self] in
            for milliseconds in Self.scheduleMilliseconds {
                let passed = Int((bootNanoseconds() - began) / 1_000_000)
                if milliseconds > passed { sleepMilliseconds(milliseconds - passed) }
                guard generation.load(ordering: .sequentiallyConsistent) == mine else { return }
                // This process stood still, and its lease may be over: the address may be another node's by now.
                let late = Int((bootNanoseconds() - began) / 1_000_000) - milliseconds
                guard late < Self.lateMilliseconds else { continue }
                do throws(TakeoverError) {
                    try announceOnce()
                } catch {
                    logger.warning("\(error)")
                }
            }
        }
        if !launched { logger.warning("No thread to announce addresses with; clients may take a minute to find them.") }
    }

    /// Ends the burst; call it before the addresses are lowered.
    public func cancel() { generation.add(1, ordering: .sequentiallyConsistent) }
}
