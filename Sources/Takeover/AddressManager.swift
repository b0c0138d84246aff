import CLinux
import Glibc
import Logging
import Synchronization

/// Adds, renews and removes the virtual addresses of one mirror on this node, through rtnetlink.
///
/// **Lifetimes.** The kernel counts an address's life in whole seconds and looks at most once a second whether it is over,
/// so that an address may stay up to one second (the *slack*) longer than it was given. A lifetime is therefore the time
/// left of the lease, rounded *down*: the address is gone at the latest one slack after the lease, which the voters' grant
/// covers. With a lease of 2 s renewed each 0.5 s every refresh gives 1 s, which lasts past the next two refreshes.
/// When less than one second is left no message is sent, and the address runs out with what it has.
///
/// **A pause** (SIGSTOP, a halted virtual machine) may fall between looking at the clock and the system call. After the
/// call the clock is looked at again, and what was given too late is taken back at once. What remains is a pause that
/// falls into both gaps, which are some microseconds long, and which ends with the lifetime at the latest.
///
/// **Refreshing re-creates.** The kernel knows no "renew only if it is there"; that is welcome, since it also brings back
/// an address that a network manager or a cable pulled for a moment has removed, as long as the lease holds.
///
/// May be used from any thread; calls wait for each other. Works in the network namespace of the thread that made it.
public final class AddressManager: Sendable {
    /// Marks addresses as added by Lockstep (IFA_PROTO, an 8-bit number free for programs; the kernel uses 1 to 3).
    /// Kernels before 5.18 do not keep it; there, a finite lifetime tells ours. IPv4 addresses also carry the label
    /// `<interface>:lockstep`, for whoever looks at `ip address`.
    public static let tag: UInt8 = 76
    /// How much later than its lifetime an address may vanish (measured; see above).
    public static let kernelSlackMilliseconds = 1000
    /// Kernel work on a refresh that takes longer than this past the lease is taken back.
    private static let lateNanoseconds: UInt64 = 100_000_000
    private static let second: UInt64 = 1_000_000_000

    /// What a refresh has done.
    public enum Refresh: Sendable, Equatable {
        /// The kernel keeps the addresses for so many seconds more.
        case held(seconds: Int)
        /// Less than a second of the lease is left: nothing was sent, and the addresses run out by themselves.
        case runningOut
        /// The call took so long that the lease was over: the addresses were removed.
        case tooLate
        /// The addresses are not raised, so that there is nothing to renew.
        case lowered
    }

    private struct State {
        var sequence: UInt32 = 0
        /// As they are sent; only lifetimes change from one refresh to the next. Empty while lowered.
        var raised: [clinux_address] = []
    }

    public let addresses: [ServiceAddress]
    private let netlink: Int32
    private let logger: Logger
    private let state = Mutex(State())
    private let now: @Sendable () -> UInt64

    /// - Throws: when the kernel gives no rtnetlink socket, or there are more than 64 addresses.
    public convenience init(addresses: [ServiceAddress], logger: Logger) throws(TakeoverError) {
        try self.init(addresses: addresses, logger: logger, now: bootNanoseconds)
    }

    /// `now` is CLOCK_BOOTTIME; tests put a clock there that jumps, as a paused process sees it.
    init(
        addresses: [ServiceAddress], logger: Logger, now: @escaping @Sendable () -> UInt64
    ) throws(TakeoverError) {
        guard addresses.count <= Int(CLINUX_ADDRESSES_MAX) else {
            throw TakeoverError(
                "manage \(addresses.count) virtual addresses", reason: "the limit is \(CLINUX_ADDRESSES_MAX)",
                remedy: "Remove some from the configuration")
        }
        netlink = clinux_netlink_open()
        guard netlink >= 0 else {
            throw TakeoverError(
                "open a rtnetlink socket", code: -netlink, remedy: "Run as root; look for a seccomp or container policy"
            )
        }
        self.addresses = addresses
        self.logger = logger
        self.now = now
    }

    deinit { close(netlink) }

    public var isRaised: Bool { state.withLock { !$0.raised.isEmpty } }

    /// Removes what an earlier life of this process left: addresses of this mirror that carry Lockstep's mark. Others are
    /// not touched, neither other mirrors' nor those an administrator added by hand.
    /// - Returns: what was removed.
    @discardableResult
    public func removeLeftovers() throws(TakeoverError) -> [ServiceAddress] {
        try locked { state throws(TakeoverError) in
            var found: [(ServiceAddress, clinux_address)] = []
            let present = try list(&state)
            for address in addresses {
                // An interface that is not there holds nothing of ours.
                guard let interface = try? findInterface(address.interface, for: "find \(address.text)") else {
                    continue
                }
                for other in present
                where address.matches(other, index: Int32(interface.index)) && Self.isOurs(other) {
                    found.append((address, other))
                }
            }
            try remove(found.map(\.1), &state)
            for (address, _) in found { logger.notice("Removed \(address), left by an earlier run.") }
            return found.map(\.0)
        }
    }

    /// The addresses of this mirror that are on this machine now and carry Lockstep's mark.
    public func present() throws(TakeoverError) -> [ServiceAddress] {
        try locked { state throws(TakeoverError) in
            let present = try list(&state)
            return addresses.filter { address in
                guard let interface = try? findInterface(address.interface, for: "look for \(address.text)") else {
                    return false
                }
                return present.contains { address.matches($0, index: Int32(interface.index)) && Self.isOurs($0) }
            }
        }
    }

    /// Adds the addresses until the end of the lease.
    ///
    /// - Parameter leaseEnd: nanoseconds of CLOCK_BOOTTIME.
    /// - Throws: when an interface is missing or down, when an address is already there and not ours, when the kernel
    ///   refuses one, or when less than a second of the lease is left. Nothing stays raised then.
    public func raise(until leaseEnd: UInt64) throws(TakeoverError) {
        try locked { state throws(TakeoverError) in
            guard !addresses.isEmpty else { return }
            let present = try list(&state)
            var messages: [clinux_address] = []
            for address in addresses { messages.append(try compose(address, present)) }
            state.raised = messages
            do throws(TakeoverError) {
                guard case .held = try renew(&state, until: leaseEnd) else {
                    throw TakeoverError(
                        "add \(addresses[0])", reason: "less than a second of the lease is left",
                        remedy:
                            "It is tried again with the next lease; if this repeats, look at the delay to the witness")
                }
            } catch {
                try? remove(state.raised, &state)
                state.raised = []
                throw error
            }
        }
    }

    /// Renews the addresses until the end of the lease: one system call that does not wait.
    ///
    /// Call it with each renewal of the lease, at least twice a second. The kernel's routing lock is taken inside: another
    /// program that reconfigures thousands of routes can delay it, which the look at the clock afterwards covers.
    ///
    /// - Parameter leaseEnd: nanoseconds of CLOCK_BOOTTIME.
    /// - Throws: when the kernel refuses an address; the others are renewed.
    public func refresh(until leaseEnd: UInt64) throws(TakeoverError) -> Refresh {
        try locked { state throws(TakeoverError) in
            if state.raised.isEmpty { return .lowered }
            return try renew(&state, until: leaseEnd)
        }
    }

    /// Removes the addresses at once. Those that are not there any more are no error.
    /// - Throws: when the kernel refuses; they then run out by themselves with their lifetime.
    public func lower() throws(TakeoverError) {
        try locked { state throws(TakeoverError) in
            let raised = state.raised
            state.raised = []
            try remove(raised, &state)
        }
    }

    // MARK: - With the lock held

    private func locked<Result: Sendable>(
        _ body: (inout State) throws(TakeoverError) -> Result
    ) throws(TakeoverError) -> Result {
        let outcome: Swift.Result<Result, TakeoverError> = state.withLock { state in
            do throws(TakeoverError) {
                return .success(try body(&state))
            } catch {
                return .failure(error)
            }
        }
        return try outcome.get()
    }

    /// The label of our IPv4 addresses, where the interface's name leaves room for it (15 characters in all).
    private static func label(_ interface: String) -> String? {
        let label = interface + ":lockstep"
        return label.utf8.count <= 15 ? label : nil
    }

    /// Whether an address that stands in our configuration was added by Lockstep.
    private static func isOurs(_ address: clinux_address) -> Bool {
        if address.tag == tag { return true }
        // Before 5.18 there is no tag: then it is the finite lifetime, which nobody else would give to this address.
        return !keepsTags && address.valid_seconds != CLINUX_LIFETIME_FOREVER
    }

    /// Whether the kernel keeps IFA_PROTO: Linux 5.18 and newer.
    private static let keepsTags: Bool = {
        let release = ((try? readFile("/proc/sys/kernel/osrelease")) ?? "").split(separator: ".")
        let major = release.first.flatMap { Int($0) } ?? 0
        let minor = release.count > 1 ? Int(release[1].prefix { $0.isNumber }) ?? 0 : 0
        return (major, minor) >= (5, 18)
    }()

    private func list(_ state: inout State) throws(TakeoverError) -> [clinux_address] {
        var result = [clinux_address](repeating: clinux_address(), count: 1024)
        for _ in 0..<10 {
            let count = unsafe clinux_addresses_list(netlink, &state.sequence, &result, result.count)
            if count == -EINTR { continue }
            guard count >= 0 else {
                throw TakeoverError(
                    "list the addresses of this machine", code: -count,
                    remedy: "Try `ip address`; if that works, start again")
            }
            if Int(count) <= result.count { return Array(result[..<Int(count)]) }
            result = [clinux_address](repeating: clinux_address(), count: Int(count) * 2)
        }
        throw TakeoverError(
            "list the addresses of this machine", reason: "they change faster than they can be listed",
            remedy: "Look with `ip monitor address` who changes them")
    }

    private func compose(
        _ address: ServiceAddress, _ present: [clinux_address]
    ) throws(TakeoverError) -> clinux_address {
        let interface = try findInterface(address.interface, for: "add \(address)")
        guard interface.is_up != 0 else {
            throw TakeoverError(
                "add \(address)", reason: "\(address.interface) is down",
                remedy: "Bring it up: ip link set \(address.interface) up")
        }
        let index = Int32(interface.index)
        if present.contains(where: { address.matches($0, index: index) && !Self.isOurs($0) }) {
            throw TakeoverError(
                "add \(address)", reason: "it is already there and was not added by Lockstep",
                remedy: "Remove it (ip address del \(address.text) dev \(address.interface)), also from the "
                    + "network configuration of this machine: it moves between the nodes")
        }
        var result = clinux_address()
        unsafe withUnsafeMutableBytes(of: &result.bytes) { unsafe $0.copyBytes(from: address.bytes) }
        result.is_ipv6 = address.isIPv6 ? 1 : 0
        result.prefix_length = address.prefixLength
        result.tag = Self.tag
        result.interface_index = index
        if address.isIPv6 {
            // Usable at once: duplicate detection would take a second, and the lease says that nobody else has it.
            result.flags = CLINUX_ADDRESS_NODAD
            // A finite address brings a finite route to its network, and where such a route is there already with a
            // lifetime of its own (from router advertisements), the kernel shortens that to ours: the node would lose
            // its own network with its virtual address. So it brings a route only where the network is not there.
            let hasNetwork = present.contains { other in
                other.interface_index == index && address.sharesNetwork(with: other) && other.tag != Self.tag
                    && !addresses.contains { $0.matches(other, index: index) }
            }
            if hasNetwork { result.flags |= CLINUX_ADDRESS_NOPREFIXROUTE }
        } else if let label = Self.label(address.interface) {
            unsafe withUnsafeMutableBytes(of: &result.label) { unsafe $0.copyBytes(from: label.utf8) }
        }
        return result
    }

    private func renew(_ state: inout State, until leaseEnd: UInt64) throws(TakeoverError) -> Refresh {
        // Twice at most: when the first call was slow, the second has what is left of the lease.
        for attempt in 0..<2 {
            let before = now()
            let seconds = leaseEnd > before ? (leaseEnd - before) / Self.second : 0
            if seconds < 1 {
                if attempt == 0 { return .runningOut }
                break
            }
            for index in state.raised.indices {
                state.raised[index].valid_seconds = UInt32(clamping: seconds)
                // A preferred lifetime of 0 keeps the kernel from choosing an IPv6 address for connections that this
                // node opens itself: they would break when the address moves. Clients reach it all the same.
                state.raised[index].preferred_seconds = state.raised[index].is_ipv6 != 0 ? 0 : UInt32(clamping: seconds)
            }
            let failure = send(&state)
            if now() + seconds * Self.second <= leaseEnd + Self.lateNanoseconds {
                if let failure { throw failure }
                return .held(seconds: Int(seconds))
            }
        }
        try remove(state.raised, &state)
        return .tooLate
    }

    /// Sends all addresses with their lifetimes; finds an interface again that was replaced by one of the same name.
    private func send(_ state: inout State) -> TakeoverError? {
        for attempt in 0..<2 {
            var errors = [Int32](repeating: 0, count: state.raised.count)
            let result = unsafe clinux_addresses_set(
                netlink, &state.sequence, state.raised, state.raised.count, &errors)
            guard result == 0 else {
                return TakeoverError(
                    "talk to the kernel's rtnetlink", code: -result, remedy: "It is tried again with the next renewal")
            }
            guard let failed = errors.firstIndex(where: { $0 != 0 }) else { return nil }
            let address = addresses[failed]
            if attempt == 0, errors[failed] == -ENODEV,
                let interface = try? findInterface(address.interface, for: "add \(address)")
            {
                for index in state.raised.indices where addresses[index].interface == address.interface {
                    state.raised[index].interface_index = Int32(interface.index)
                }
                continue
            }
            return TakeoverError(
                "add \(address)", code: -errors[failed], remedy: Self.remedy(-errors[failed], address))
        }
        return nil
    }

    private static func remedy(_ code: Int32, _ address: ServiceAddress) -> String {
        switch code {
        case EPERM: "Run as root (CAP_NET_ADMIN is needed)"
        case EACCES where address.isIPv6:
            "IPv6 is switched off there: sysctl net.ipv6.conf.\(address.interface).disable_ipv6=0"
        case ENODEV: "There is no interface \(address.interface): correct `interface` in the configuration"
        case EEXIST: "It is already on this machine: look at `ip address`"
        default: "Try it by hand: ip address add \(address.text) dev \(address.interface)"
        }
    }

    private func remove(_ list: [clinux_address], _ state: inout State) throws(TakeoverError) {
        guard !list.isEmpty else { return }
        var errors = [Int32](repeating: 0, count: list.count)
        let result = unsafe clinux_addresses_remove(netlink, &state.sequence, list, list.count, &errors)
        // Gone already, or gone with its interface, is what was wanted.
        let code = result != 0 ? result : errors.first { $0 != 0 && $0 != -EADDRNOTAVAIL && $0 != -ENODEV } ?? 0
        guard code == 0 else {
            throw TakeoverError(
                "remove \(addresses.map(\.text).joined(separator: ", "))", code: -code,
                remedy: "The kernel removes it when its lifetime is over; look at `ip address`")
        }
    }
}
