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
                throw RoomsError("\(error)\n\(cluster.describe())")
            }
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

    /// Stops the client, and records an issue for every acknowledged transfer that is missing and if money is.
    func stopAndVerify(sourceLocation: SourceLocation = #_sourceLocation) throws {
        try process.stop()
        let result = try cluster.verify(acknowledged: service.file)
        #expect(result.acknowledged > 0, sourceLocation: sourceLocation)
        #expect(result.missing == 0, "missing: \(result.firstMissing)", sourceLocation: sourceLocation)
        #expect(result.balanceConserved, "the sum is \(result.sum)", sourceLocation: sourceLocation)
    }
}

extension Cluster {
    /// Waits until the plain files of both rooms are identical, and records the differences if they do not become so.
    /// Nobody should be writing; the wait is for what is still being applied.
    func expectIdenticalTrees(within seconds: Double = 20, sourceLocation: SourceLocation = #_sourceLocation) throws {
        let end = bootSeconds() + seconds
        while true {
            // Something may vanish between being listed and being read; then look again.
            let trees = Result { try compareTrees() }
            if case .success(let trees) = trees, trees.isIdentical { return }
            if bootSeconds() > end {
                let differences = try trees.get().differences
                #expect(differences.isEmpty, sourceLocation: sourceLocation)
                return
            }
            usleep(200_000)
        }
    }
}
