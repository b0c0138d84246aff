import CLinux
import Foundation
import Synchronization
import Testing

@testable import Takeover

@Suite(.serialized, .timeLimit(.minutes(2))) struct AddressTests {
    let cable: Cable
    let four: ServiceAddress
    let six: ServiceAddress

    init() throws {
        cable = try Cable()
        four = try ServiceAddress("10.0.9.1/24", interface: "eth0")
        six = try ServiceAddress("fd00:9::1/64", interface: "eth0")
    }

    func manager(_ addresses: [ServiceAddress]) throws -> AddressManager {
        try cable.inServer { try AddressManager(addresses: addresses, logger: quiet) }
    }

    @Test func anAddressThatIsNotRefreshedVanishesByItselfWithinTheSlack() throws {
        let (cable, addresses) = (cable, [four, six])
        let manager = try manager(addresses)
        let end = lease(2.2)
        try cable.inServer { try manager.raise(until: end) }
        #expect(cable.has("10.0.9.1/24") && cable.has("fd00:9::1/64"))
        usleep(1_000_000)
        #expect(cable.has("10.0.9.1/24") && cable.has("fd00:9::1/64"), "it must not vanish before its lifetime")
        _ = eventually(4) { !cable.has("10.0.9.1/24") && !cable.has("fd00:9::1/64") }
        let late = Double(bootNanoseconds()) / 1e9 - Double(end) / 1e9
        #expect(late <= Double(AddressManager.kernelSlackMilliseconds) / 1000, "\(late) s after the lease")
        #expect(cable.has("10.0.9.11/24") && cable.has("fd00:9::11/64"), "the node's own addresses stay")
    }

    @Test func aRefreshedAddressStaysAndALoweredOneIsGoneAtOnce() throws {
        let (cable, addresses) = (cable, [four, six])
        let manager = try manager(addresses)
        try cable.inServer { try manager.raise(until: lease(2)) }
        for _ in 0..<8 {
            usleep(500_000)
            let outcome = try cable.inServer { try manager.refresh(until: lease(2)) }
            #expect(outcome == .held(seconds: 1))
            #expect(cable.has("10.0.9.1/24") && cable.has("fd00:9::1/64"))
        }
        try manager.lower()
        #expect(!cable.has("10.0.9.1/24") && !cable.has("fd00:9::1/64") && !manager.isRaised)
        #expect(try manager.refresh(until: lease(2)) == .lowered)
        #expect(!cable.has("10.0.9.1/24"), "a refresh after lowering must bring nothing back")
    }

    @Test func nothingIsSentWhenLessThanASecondOfTheLeaseIsLeft() throws {
        let (cable, addresses) = (cable, [four])
        let manager = try manager(addresses)
        #expect(throws: TakeoverError.self) { try cable.inServer { try manager.raise(until: lease(0.9)) } }
        #expect(!cable.has("10.0.9.1/24") && !manager.isRaised)
        try cable.inServer { try manager.raise(until: lease(2.5)) }
        #expect(try manager.refresh(until: lease(0.9)) == .runningOut)
        #expect(try manager.refresh(until: 1) == .runningOut, "a lease that is long over")
    }

    @Test func failure07aPauseBetweenClockAndSystemCallTakesTheAddressBackAtOnce() throws {
        let (cable, addresses) = (cable, [four, six])
        // What the second look at the clock adds: the length of the pause.
        let pause = Mutex<UInt64>(0)
        let looks = Mutex(0)
        let manager = try cable.inServer {
            try AddressManager(addresses: addresses, logger: quiet) {
                let isAfter = looks.withLock { count in
                    count += 1
                    return count > 1
                }
                return bootNanoseconds() + (isAfter ? pause.withLock { $0 } : 0)
            }
        }
        try cable.inServer { try manager.raise(until: lease(2)) }
        #expect(cable.has("10.0.9.1/24"))
        for (seconds, outcome) in [(UInt64(10), AddressManager.Refresh.tooLate), (3, .held(seconds: 1))] {
            pause.withLock { $0 = seconds * 1_000_000_000 }
            looks.withLock { $0 = 0 }
            // The pause of 10 s outlasts the lease; that of 3 s leaves more than a second of it.
            let end = lease(seconds == 10 ? 9.5 : 4.5)
            #expect(try manager.refresh(until: end) == outcome)
            #expect(cable.has("10.0.9.1/24") == (outcome != .tooLate))
            #expect(cable.has("fd00:9::1/64") == (outcome != .tooLate))
        }
        try manager.lower()
    }

    @Test func anAddressThatSomebodyRemovedIsBackWithTheNextRefresh() throws {
        let (cable, addresses) = (cable, [four, six])
        let manager = try manager(addresses)
        try cable.inServer { try manager.raise(until: lease(3)) }
        try run("ip", "-n", cable.server, "address", "del", "10.0.9.1/24", "dev", "eth0")
        try run("ip", "-n", cable.server, "address", "del", "fd00:9::1/64", "dev", "eth0")
        #expect(try cable.inServer { try manager.refresh(until: lease(3)) } == .held(seconds: 2))
        #expect(cable.has("10.0.9.1/24") && cable.has("fd00:9::1/64"))
        try manager.lower()
    }

    @Test func anIPv6AddressCanBeUsedAtOnce() throws {
        let (cable, addresses) = (cable, [six])
        let manager = try manager(addresses)
        let bound = try cable.inServer { () throws -> Int32 in
            try manager.raise(until: lease(3))
            let socket = socket(AF_INET6, Int32(SOCK_STREAM.rawValue), 0)
            defer { close(socket) }
            var address = sockaddr_in6()
            address.sin6_family = sa_family_t(AF_INET6)
            inet_pton(AF_INET6, "fd00:9::1", &address.sin6_addr)
            return withUnsafePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    bind(socket, $0, socklen_t(MemoryLayout<sockaddr_in6>.size))
                }
            }
        }
        #expect(bound == 0)
        try manager.lower()
    }

    @Test func theNodeKeepsItsOwnIPv6NetworkWhenTheVirtualAddressExpires() throws {
        let cable = cable
        // As router advertisements give it: the route has a lifetime of its own, and the kernel would put ours onto it.
        try run(
            "ip", "-n", cable.server, "address", "add", "fd00:10::11/64", "dev", "eth0", "nodad", "valid_lft", "600",
            "preferred_lft", "600")
        func secondsLeft() throws -> Int {
            let words = try run("ip", "-n", cable.server, "-6", "route", "show", "fd00:10::/64").split(separator: " ")
            guard let index = words.firstIndex(of: "expires") else { return 0 }
            return Int(words[index + 1].prefix { $0.isNumber }) ?? 0
        }
        #expect(try secondsLeft() > 500)
        let addresses = [try ServiceAddress("fd00:10::1/64", interface: "eth0")]
        let manager = try manager(addresses)
        try cable.inServer { try manager.raise(until: lease(2)) }
        #expect(try manager.refresh(until: lease(2)) == .held(seconds: 1))
        #expect(try secondsLeft() > 500)
        eventually(4) { !cable.has("fd00:10::1/64") }
        #expect(try secondsLeft() > 500)
    }

    @Test func anAddressOfANetworkOfItsOwnBringsTheRoute() throws {
        let addresses = [
            try ServiceAddress("10.0.77.1/24", interface: "eth0"),
            try ServiceAddress("fd00:77::1/64", interface: "eth0"),
        ]
        let cable = cable
        let manager = try manager(addresses)
        try cable.inServer { try manager.raise(until: lease(3)) }
        #expect(try run("ip", "-n", cable.server, "route", "show", "10.0.77.0/24").contains("eth0"))
        #expect(try run("ip", "-n", cable.server, "-6", "route", "show", "fd00:77::/64").contains("eth0"))
        try manager.lower()
    }

    @Test func aRestartRemovesItsOwnAddressesAndOnlyThose() throws {
        let cable = cable
        let mine = [four, six]
        let theirs = [try ServiceAddress("10.0.9.2/24", interface: "eth0")]
        let before = try manager(mine)
        let otherMirror = try manager(theirs)
        try cable.inServer {
            try before.raise(until: lease(60))
            try otherMirror.raise(until: lease(60))
        }
        try run("ip", "-n", cable.server, "address", "add", "10.0.9.3/24", "dev", "eth0")
        let after = try manager(mine)
        let removed = try cable.inServer { try after.removeLeftovers() }
        #expect(Set(removed) == Set(mine))
        #expect(!cable.has("10.0.9.1/24") && !cable.has("fd00:9::1/64"))
        #expect(cable.has("10.0.9.2/24") && cable.has("10.0.9.3/24") && cable.has("10.0.9.11/24"))
        #expect(try cable.inServer { try after.removeLeftovers() } == [])
        #expect(try cable.inServer { try otherMirror.present() } == theirs)
    }

    @Test func anAddressThatWasAddedByHandIsRefusedAndNotTouched() throws {
        let (cable, addresses) = (cable, [four])
        try run("ip", "-n", cable.server, "address", "add", "10.0.9.1/24", "dev", "eth0")
        let manager = try manager(addresses)
        #expect(try cable.inServer { try manager.removeLeftovers() } == [])
        let error = #expect(throws: TakeoverError.self) { try cable.inServer { try manager.raise(until: lease(3)) } }
        #expect(error?.description.contains("not added by Lockstep") == true)
        #expect(try cable.addresses().contains("valid_lft forever"))
        #expect(cable.has("10.0.9.1/24"))
    }

    @Test func aMissingInterfaceAndOneThatIsDownAreNamed() throws {
        let (cable, addresses) = (cable, [four])
        let missing = [try ServiceAddress("10.0.9.1/24", interface: "eth7")]
        let first = try manager(missing)
        let error = #expect(throws: TakeoverError.self) { try cable.inServer { try first.raise(until: lease(3)) } }
        #expect(error?.code == ENODEV && error?.description.contains("eth7") == true)
        let second = try manager(addresses)
        try run("ip", "-n", cable.server, "link", "set", "eth0", "down")
        let down = #expect(throws: TakeoverError.self) { try cable.inServer { try second.raise(until: lease(3)) } }
        #expect(down?.remedy.contains("ip link set eth0 up") == true)
    }

    @Test(arguments: ["10.0.9.1", "10.0.9.1/0", "10.0.9.1/33", "fd00::1/129", "alpha/24", ""])
    func aMalformedAddressIsRefused(_ text: String) {
        #expect(throws: TakeoverError.self) { try ServiceAddress(text, interface: "eth0") }
    }
}

@Suite(.serialized, .timeLimit(.minutes(1))) struct AnnouncerTests {
    /// The hardware address that the client believes in.
    func believed(_ cable: Cable, _ address: String) throws -> String {
        let words = try run("ip", "-n", cable.client, "neighbour", "show", address, "dev", "eth0").split(separator: " ")
        guard let index = words.firstIndex(of: "lladdr"), index + 1 < words.count else { return "" }
        return String(words[index + 1])
    }

    @Test(arguments: ["10.0.9.1/24", "fd00:9::1/64"])
    func failure27aStaleNeighbourEntryIsCorrectedByEachAnnouncement(_ text: String) throws {
        let cable = try Cable()
        let host = String(text.prefix { $0 != "/" })
        let addresses = [try ServiceAddress(text, interface: "eth0")]
        let mac = try run("nsenter", "--net=/run/netns/\(cable.server)", "ip", "-br", "link", "show", "eth0")
            .split(separator: " ")[2]
        func poison() throws {
            try run(
                "ip", "-n", cable.client, "neighbour", "replace", host, "lladdr", "02:00:00:00:00:99", "dev", "eth0",
                "nud",
                "reachable")
        }
        try poison()
        let (manager, announcer) = try cable.inServer {
            let manager = try AddressManager(addresses: addresses, logger: quiet)
            try manager.raise(until: lease(60))
            let announcer = try Announcer(addresses: addresses, logger: quiet)
            announcer.start()
            return (manager, announcer)
        }
        #expect(try eventually(0.8) { try believed(cable, host) == mac } != nil)
        try poison()
        #expect(try eventually(3.5) { try believed(cable, host) == mac } != nil, "a repetition corrects it again")

        try cable.inServer { announcer.start() }
        usleep(500_000)
        announcer.cancel()
        try poison()
        #expect(try eventually(3) { try believed(cable, host) == mac } == nil, "a cancelled burst says no more")
        try manager.lower()
    }

    @Test func anInterfaceWithoutHardwareAddressNeedsNoAnnouncement() throws {
        let cable = try Cable()
        let addresses = [try ServiceAddress("10.0.50.1/32", interface: "lo")]
        try cable.inServer { try Announcer(addresses: addresses, logger: quiet).announceOnce() }
    }
}
