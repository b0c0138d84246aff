//  Rooms: several machines on one machine, for the demonstration and the integration tests.
//
//  A room is what a server sees of its surroundings: an own network namespace with an own address on a common bridge,
//  an own mount namespace, so that two nodes can use one configuration file with the same paths, and an own cgroup
//  subtree, so that "all processes of this room" has one exact meaning that the kernel enforces.
//
//      hub (network namespace)                     nothing of this is visible in the host's own network
//      ┌───────────── br0 ─────────────┐
//      │  v-north    v-south    v-west │           nftables, family bridge: one-way and two-way cuts between rooms
//      └────┬──────────┬──────────┬────┘
//         eth0       eth0       eth0               10.77.0.N/24 and fd77::N/64
//      ┌────┴───┐  ┌───┴────┐ ┌───┴────┐
//      │ north  │  │ south  │ │  west  │           network + mount namespace + cgroup subtree each
//      └────────┘  └────────┘ └────────┘
//
//  The mount namespace of a room is kept alive by a sleeping holder process; `reboot()` replaces the holder, and with it
//  every mount that a killed daemon left behind. A room's own directories are ordinary directories under the building's
//  directory, bound over the configured paths inside the room only.
//
//  Everything has a name that begins with `lsk-<pid>-<serial>`. `close()` removes it all; so do the end of the process and
//  SIGINT, SIGTERM and SIGHUP (see Signals.swift); and what a run that was killed with SIGKILL left behind is removed by
//  the next run, which touches only names of runs whose process is gone (see Sweep.swift).
import Foundation
import Synchronization

/// What went wrong while rooms were made, used or waited for: one sentence with the object and the remedy.
public struct RoomsError: Error, CustomStringConvertible {
    public let description: String
    public init(_ description: String) { self.description = description }
}

/// A set of rooms on one bridge. Blocking calls, usable from any thread.
public final class Building: Sendable {
    /// `lsk-<pid>-<serial>`, the beginning of the name of all that this building makes.
    public let identifier: String
    /// Where the rooms' directories, disk images and logs are; on a disk, because file handles and O_DIRECT are needed.
    public let directory: String
    /// The directory of the programs that the rooms need themselves.
    let programs: String
    /// The first three numbers of the rooms' IPv4 addresses, and what stands before the host number in IPv6 (`fd77::`).
    let network: String
    let network6: String

    struct State {
        var rooms: [Room] = []
        var drops: Set<Drop> = []
        var isClosed = false
    }
    /// One direction between two rooms in which nothing passes.
    struct Drop: Hashable, Comparable {
        var from: String
        var to: String
        static func < (a: Drop, b: Drop) -> Bool { (a.from, a.to) < (b.from, b.to) }
    }
    private let state = Mutex(State())

    /// The most rooms that a building can have: each gets the next host number of one /24.
    public static let roomsMax = 200
    /// Buildings of this process, numbered; also those still open, for the clean-up at the end of the process.
    static let open = Mutex<(next: Int, buildings: [Building])>((1, []))

    /// Makes the hub. Removes first what dead runs left behind.
    ///
    /// - Parameters:
    ///   - parent: an existing directory on a disk; the building's own directory is made in it.
    ///   - network: the first three numbers of the IPv4 addresses, a /24. Two buildings may use the same.
    ///   - network6: the IPv6 prefix, a /64, with its `::`.
    ///   - programs: the directory that holds faulty-disk; by default that of this program.
    /// - Throws: `RoomsError` when not root, or when a needed program (`ip`, `nsenter`, `nft`) is missing or fails.
    public init(
        in parent: String = "/var/tmp", network: String = "10.77.0", network6: String = "fd77::",
        programs: String? = nil
    ) throws {
        guard geteuid() == 0 else {
            throw RoomsError("Rooms need root, to make network and mount namespaces: run this with sudo.")
        }
        installCleanUp()
        sweepDeadRuns(in: parent)
        self.programs =
            programs
            ?? URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath().deletingLastPathComponent().path
        self.network = network
        self.network6 = network6
        let serial = Building.open.withLock { open in
            defer { open.next += 1 }
            return open.next
        }
        identifier = "lsk-\(getpid())-\(serial)"
        directory = parent + "/" + identifier
        try makeDirectory(directory)
        try write("\(getpid()) \(startTime(of: getpid()) ?? "0")\n", to: directory + "/owner")
        Building.open.withLock { $0.buildings.append(self) }
        do {
            try succeedOnHost(["ip", "netns", "add", hub])
            try inHub(
                [
                    "ip", "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0",
                    "mcast_snooping", "0",
                ])
            try inHub(["ip", "link", "set", "br0", "up"])
        } catch {
            close()
            throw error
        }
    }

    var hub: String { identifier + "-hub" }
    func inHub(_ arguments: [String]) throws {
        try succeedOnHost(["nsenter", "--net=/run/netns/" + hub] + arguments)
    }

    /// Adds a room that is connected and empty.
    ///
    /// - Parameters:
    ///   - name: lower-case letters, digits and dashes, 12 at most; not `hub`.
    ///   - number: the host number in the building's networks; by default the next free one.
    ///   - privatePaths: absolute directories that this room has for itself. They begin empty. A path that does not exist
    ///     on the host is made there as an empty mount point and removed by `close()`.
    ///   - sharedPaths: directories of the host that the room sees, read-only, at another path: path in room -> on host.
    public func addRoom(
        _ name: String, number: Int? = nil, privatePaths: [String] = [], sharedPaths: [String: String] = [:]
    ) throws -> Room {
        guard name != "hub", (1...12).contains(name.utf8.count),
            name.allSatisfy({ ($0.isASCII && $0.isLowercase) || $0.isWholeNumber || $0 == "-" })
        else {
            throw RoomsError("A room cannot be called '\(name)': use 1 to 12 lower-case letters, digits or dashes.")
        }
        let number = try state.withLock { state -> Int in
            guard !state.isClosed else { throw RoomsError("Building \(identifier) is already closed.") }
            guard state.rooms.count < Building.roomsMax, !state.rooms.contains(where: { $0.name == name }) else {
                throw RoomsError("Building \(identifier) already has a room '\(name)', or is full.")
            }
            let used = Set(state.rooms.map(\.number))
            guard let free = number ?? (1...Building.roomsMax + 1).first(where: { !used.contains($0) }),
                (1...254).contains(free), !used.contains(free)
            else {
                throw RoomsError(
                    "Room '\(name)' cannot have the host number \(number ?? 0): it is in use or not 1…254.")
            }
            return free
        }
        let room = Room(
            name: name, number: number, building: self, privatePaths: privatePaths, sharedPaths: sharedPaths)
        // In the list before it is made, so that a failure half-way is cleaned up too.
        state.withLock { $0.rooms.append(room) }
        try room.make()
        return room
    }

    public var rooms: [Room] { state.withLock { $0.rooms } }

    // MARK: Links

    /// Takes the room's cable out: its interface loses the carrier, nothing gets in or out.
    public func cut(_ room: Room) throws { try inHub(["ip", "link", "set", room.hubInterface, "down"]) }

    /// Puts the room's cable back in.
    public func restore(_ room: Room) throws { try inHub(["ip", "link", "set", room.hubInterface, "up"]) }

    /// Loses every frame (IPv4, IPv6, ARP, neighbour discovery) between two rooms, both ways; others are not touched.
    public func cut(between a: Room, and b: Room) throws {
        try changeDrops { $0.formUnion([Drop(from: a.name, to: b.name), Drop(from: b.name, to: a.name)]) }
    }

    public func restore(between a: Room, and b: Room) throws {
        try changeDrops { $0.subtract([Drop(from: a.name, to: b.name), Drop(from: b.name, to: a.name)]) }
    }

    /// Loses every frame in one direction only.
    public func cut(from a: Room, to b: Room) throws {
        try changeDrops { $0.insert(Drop(from: a.name, to: b.name)) }
    }

    public func restore(from a: Room, to b: Room) throws {
        try changeDrops { $0.remove(Drop(from: a.name, to: b.name)) }
    }

    /// Puts all cables in and removes all losses.
    public func restoreAll() throws {
        try changeDrops { $0.removeAll() }
        for room in rooms { try restore(room) }
    }

    /// Installs the whole set of losses as one nftables transaction: there is no moment with half of it.
    private func changeDrops(_ change: (inout Set<Drop>) -> Void) throws {
        let drops = state.withLock { state in
            change(&state.drops)
            return state.drops.sorted()
        }
        let rules = drops.map { "    iifname \"v-\($0.from)\" oifname \"v-\($0.to)\" counter drop\n" }.joined()
        let ruleset = """
            table bridge rooms
            delete table bridge rooms
            table bridge rooms {
              chain forward {
                type filter hook forward priority 0; policy accept;
            \(rules)  }
            }

            """
        let file = directory + "/losses.nft"
        try write(ruleset, to: file)
        try inHub(["nft", "-f", file])
    }

    // MARK: The end

    /// Kills all that runs in the rooms and removes all that was made. Safe to call twice; never throws: what cannot be
    /// removed now is removed by the next run's sweep.
    public func close() {
        // A second caller waits for the first: the process must not end in the middle of it.
        closing.withLock { isDone in
            guard !isDone else { return }
            isDone = true
            state.withLock { $0.isClosed = true }
            let rooms = state.withLock { $0.rooms }
            killDiskServers(under: directory)
            for room in rooms { room.killAndCollectAll() }
            demolish(identifier, directory: directory)
            for room in rooms { room.killAndCollectAll() }
            let identifier = self.identifier
            Building.open.withLock { open in open.buildings.removeAll { $0.identifier == identifier } }
        }
    }

    private let closing = Mutex(false)
}
