import Foundation
import Rooms
import Testing

/// The rooms that the other integration tests rely on: what they separate, and that nothing of them stays.
@Suite(.serialized) struct HarnessRoomsTests {
    /// Whether a TCP connection attempt gets any answer (here "refused": nothing listens on the port).
    func reaches(_ room: Room, _ address: String) throws -> Bool {
        let output = try room.run(["timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/\(address)/9"])
        return output.error.contains("refused")
    }

    /// How many datagrams to closed ports have arrived in a room.
    func datagrams(in room: Room) throws -> Int {
        let lines = try room.succeed(["cat", "/proc/net/snmp"]).split(separator: "\n").filter { $0.hasPrefix("Udp:") }
        let names = lines[0].split(separator: " ")
        let values = lines[1].split(separator: " ")
        return Int(values[try #require(names.firstIndex(of: "NoPorts"))]) ?? -1
    }

    @Test func roomsReachEachOtherAndCutsSeparateExactlyThoseNamed() throws {
        let building = try Building()
        defer { building.close() }
        let north = try building.addRoom("north")
        let south = try building.addRoom("south")
        let west = try building.addRoom("west")
        #expect(try reaches(north, south.address))
        #expect(try reaches(north, south.address6))

        try building.cut(between: north, and: south)
        #expect(try !reaches(north, south.address))
        #expect(try !reaches(south, north.address6))
        #expect(try reaches(north, west.address))
        #expect(try reaches(south, west.address))
        try building.restore(between: north, and: south)
        #expect(try reaches(south, north.address))

        try building.cut(north)
        #expect(try !reaches(north, west.address))
        #expect(try reaches(south, west.address))
        try building.restoreAll()
        try waitUntil("the restored cable works", within: 5) { try reaches(west, north.address) }
    }

    @Test func oneWayLossLosesOneWayOnly() throws {
        let building = try Building()
        defer { building.close() }
        let north = try building.addRoom("north")
        let south = try building.addRoom("south")
        #expect(try reaches(north, south.address))
        try building.cut(from: north, to: south)
        let before = (try datagrams(in: north), try datagrams(in: south))
        try north.succeed(["bash", "-c", "echo x > /dev/udp/\(south.address)/9"])
        try south.succeed(["bash", "-c", "echo x > /dev/udp/\(north.address)/9"])
        try waitUntil("the datagram against the loss arrives", within: 2) { try datagrams(in: north) == before.0 + 1 }
        #expect(try datagrams(in: south) == before.1)
    }

    @Test func samePathIsAnotherDirectoryInEachRoomAndSurvivesReboot() throws {
        let building = try Building()
        defer { building.close() }
        let path = "/srv/\(building.identifier)-files/deep"
        let north = try building.addRoom("north", privatePaths: [path])
        let south = try building.addRoom("south", privatePaths: [path])
        try north.succeed(["sh", "-c", "echo north > \(path)/name"])
        try south.succeed(["sh", "-c", "echo south > \(path)/name"])
        #expect(try north.succeed(["cat", path + "/name"]) == "north\n")
        #expect(FileManager.default.contents(atPath: south.hostPath(path + "/name")) == Data("south\n".utf8))
        #expect(!FileManager.default.fileExists(atPath: path + "/name"))

        try north.succeed(["mount", "-t", "tmpfs", "left-behind", path])
        try north.reboot()
        #expect(try north.succeed(["cat", path + "/name"]) == "north\n")
        #expect(try reaches(south, north.address6))
        building.close()
        #expect(!FileManager.default.fileExists(atPath: "/srv/\(building.identifier)-files"))
    }

    @Test(arguments: ["ext4", "xfs"]) func aRoomCanHaveADiskOfItsOwn(fileSystem: String) throws {
        let building = try Building()
        defer { building.close() }
        let path = "/srv/\(building.identifier)-disk"
        let north = try building.addRoom("north", privatePaths: [path])
        try north.addDisk(at: path, fileSystem: fileSystem, megabytes: 320)
        #expect(try north.succeed(["stat", "-f", "-c", "%T", path]).contains(fileSystem == "xfs" ? "xfs" : "ext"))
        try north.succeed(["sh", "-c", "echo kept > \(path)/file"])
        try north.reboot()
        #expect(try north.succeed(["cat", path + "/file"]) == "kept\n")
    }

    @Test func killAllReachesGrandchildrenAndNobodyElse() throws {
        let building = try Building()
        defer { building.close() }
        let north = try building.addRoom("north")
        let south = try building.addRoom("south")
        let parent = try north.start(["sh", "-c", "setsid sleep 300 & sleep 300"], as: "parent")
        let other = try south.start(["sleep", "300"])
        try waitUntil("all three sleep", within: 5) { north.processIdentifiers.count == 3 }
        north.pauseAll()
        try north.killAll()
        #expect(north.processIdentifiers.isEmpty)
        #expect(parent.exitStatus == 128 + SIGKILL)
        #expect(other.isRunning)
        #expect(try other.stop() == 128 + SIGTERM)
    }

    /// The children of this process that have ended and that nobody collected.
    func zombies() -> [Int32] {
        let processes = ((try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []).compactMap { Int32($0) }
        return processes.filter { pid in
            let text = (try? String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8)) ?? ""
            let fields = text.split(separator: ")").last?.split(separator: " ") ?? []
            return fields.count > 1 && fields[0] == "Z" && fields[1] == "\(getpid())"
        }
    }

    @Test func closingLeavesNothingBehind() throws {
        let building = try Building()
        let north = try building.addRoom("north", privatePaths: ["/srv/\(building.identifier)"])
        for _ in 0..<20 { _ = try north.start(["sleep", "300"]) }
        #expect(throws: RoomsError.self) { try north.run(["sleep", "300"], within: 0.1) }
        building.close()
        #expect(zombies() == [], "children that ended and were not collected")
        for place in ["/run/netns", "/var/tmp", "/srv", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            let names = (try? FileManager.default.contentsOfDirectory(atPath: place)) ?? []
            #expect(!names.contains { $0.hasPrefix(building.identifier) }, "in \(place)")
        }
    }

    @Test func aWaitThatFailsSaysWhatWasWaitedFor() {
        let error = #expect(throws: RoomsError.self) {
            try waitUntil("pigs fly", within: 0.1) {
                false
            } otherwise: {
                "They sit."
            }
        }
        #expect(error?.description.contains("in vain until pigs fly. They sit.") == true)
    }
}
