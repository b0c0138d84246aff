import Foundation
import Rooms
import Testing

/// The demonstration's applications by themselves, on a plain directory: what goes wrong later is then not their fault.
@Suite(.serialized) struct HarnessApplicationTests {
    static let applications = ClusterApplication.allCases.filter {
        $0 != .postgresql || FileManager.default.fileExists(atPath: "/usr/lib/postgresql/15/bin/initdb")
    }

    @Test(arguments: applications)
    func shippedScriptsStartAndStopItAndACrashLosesNoTransfer(application: ClusterApplication) throws {
        try Harness.withRooms(application: application) { cluster in
            let room = cluster.alpha.room
            try room.succeed(["ip", "addr", "add", "\(Cluster.virtualAddress)/24", "dev", Room.interface])
            try room.succeed(["/etc/lockstep/ledger/start"], within: 60)
            let client = try HarnessClient(cluster)

            try room.succeed(["/etc/lockstep/ledger/stop"])
            let stopped = bootSeconds()
            #expect(room.processIdentifiers.isEmpty)
            try room.succeed(["/etc/lockstep/ledger/start"], within: 60)
            try client.waitForTransfers(since: stopped, within: 10)

            try room.killAll()
            let killed = bootSeconds()
            try room.succeed(["/etc/lockstep/ledger/start"], within: 60)
            try client.waitForTransfers(since: killed, within: 10)
            try client.stopAndVerify()
        }
    }
}
