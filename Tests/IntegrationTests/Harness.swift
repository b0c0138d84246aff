//  What every integration test with whole nodes begins with: a cluster in rooms (see Rooms/Cluster.swift), the programs
//  that were built together with the tests, the shipped configuration, and a clean end whatever happens.
import Foundation
import Rooms
import Testing

enum Harness {
    /// The top of the source tree.
    static let repository = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent().path

    /// Where the build has put the programs: beside the test program itself.
    static let binaries = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
        .deletingLastPathComponent().path

    /// One cluster at a time: two would be measuring each other's load instead of the time limits under test.
    private static let turn = NSLock()

    /// Makes the rooms, without starting anything in them.
    ///
    /// - Parameters:
    ///   - configure: changes the shipped ledger.toml.
    ///   - body: gets the cluster; what it throws comes with both nodes' status and the ends of their logs.
    static func withRooms(
        application: ClusterApplication = .ledger, configure: (String) -> String = { $0 },
        _ body: (Cluster) throws -> Void
    ) throws {
        try turn.withLock {
            let cluster = try Cluster(
                binaries: binaries, etc: repository + "/etc", application: application, configure: configure)
            defer { cluster.close() }
            do {
                try body(cluster)
            } catch {
                let words = "\(error)\n\(cluster.describe(lines: 40))"
                keepLogs(of: cluster)
                throw RoomsError(words)
            }
        }
    }

    /// For whoever looks for the cause: all logs of a failed test, where LOCKSTEP_TEST_LOGS says.
    private static func keepLogs(of cluster: Cluster) {
        guard let place = ProcessInfo.processInfo.environment["LOCKSTEP_TEST_LOGS"] else { return }
        for room in cluster.building.rooms {
            let target = "\(place)/\(cluster.building.identifier)/\(room.name)"
            try? FileManager.default.createDirectory(atPath: target, withIntermediateDirectories: true)
            _ = try? succeedOnHost(["cp", "-a", room.directory + "/logs/.", target])
        }
    }

    /// As `withRooms`, with everything started: alpha serves, beta is in sync.
    static func withCluster(
        application: ClusterApplication = .ledger, configure: (String) -> String = { $0 },
        _ body: (Cluster) throws -> Void
    ) throws {
        try withRooms(application: application, configure: configure) { cluster in
            try cluster.start()
            try body(cluster)
        }
    }
}

/// A client that makes transfers in its own room, and the list of those that were acknowledged.
struct HarnessClient {
    let cluster: Cluster
    let process: RoomProcess
    let service: ServiceLog

    /// Returns when the first transfers have been acknowledged.
    init(_ cluster: Cluster, within seconds: Double = 20) throws {
        self.cluster = cluster
        let file = "\(cluster.building.directory)/acknowledged-\(UInt32.random(in: 0..<UInt32.max))"
        process = try cluster.startClient(acknowledged: file)
        service = ServiceLog(file: file)
        try waitForTransfers(since: 0, within: seconds)
    }

    /// Waits until some transfers have been acknowledged after a moment on the boot clock.
    func waitForTransfers(since moment: Double = bootSeconds(), count: Int = 3, within seconds: Double) throws {
        try waitUntil("\(count) transfers are acknowledged", within: seconds) {
            service.count(since: moment) >= count
        }
    }

    /// Stops the client, and throws if an acknowledged transfer is missing or money is.
    func stopAndVerify() throws {
        try process.stop()
        let result = try cluster.verify(acknowledged: service.file)
        guard result.acknowledged > 0, result.missing == 0, result.balanceConserved else {
            throw RoomsError(
                "Of \(result.acknowledged) acknowledged transfers \(result.missing) are missing "
                    + "(\(result.firstMissing)); the sum is \(result.sum) of \(result.expectedSum).")
        }
    }
}

extension Cluster {
    /// Waits until the plain files of both rooms are identical, and throws the differences if they do not become so.
    /// Nobody should be writing; the wait is for what is still being applied.
    func expectIdenticalTrees(within seconds: Double = 20) throws {
        let end = bootSeconds() + seconds
        while true {
            // Something may vanish between being listed and being read; then look again.
            let trees = Result { try compareTrees() }
            if case .success(let trees) = trees, trees.isIdentical { return }
            if bootSeconds() > end {
                let differences = try trees.get().differences
                throw RoomsError("The plain files differ: \(differences.joined(separator: "; "))")
            }
            usleep(200_000)
        }
    }
}
