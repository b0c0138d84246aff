//  The story: what happens, in which order, and what each step waits for.
//
//      start ─ calm ─ room 1 lost ─ calm ─ room 1 returns ─ calm ─ swap ─ calm ─ link cut ─ calm ─ healed ─ verdict
//
//  Transfers go on all the time. The pause of an event is the longest time between two acknowledgements around it, as the
//  client saw it; nothing is taken from what the nodes say about themselves.
import Foundation
import Rooms

/// The verdict with the details that are shown but not part of the report file.
struct StoryResult: Sendable {
    var report: DemonstrationReport
    var ledger: LedgerVerification
    var trees: TreeComparison
    var seconds: Double
}

final class Story {
    private let cluster: Cluster
    private let display: Display
    /// One of the stretches in which nothing happens but transfers.
    private let calm: Double
    private let acknowledged: String
    private let service: ServiceLog
    private let start = bootSeconds()
    private var events: [DemonstrationReport.Event] = []
    private static let stretches = 5.0
    /// Far beyond what any step takes; a step that exceeds it has failed.
    private static let stepSecondsMax = 45.0

    init(cluster: Cluster, display: Display, calmSeconds: Double) {
        self.cluster = cluster
        self.display = display
        calm = calmSeconds / Story.stretches
        acknowledged = cluster.building.directory + "/acknowledged"
        service = ServiceLog(file: acknowledged)
    }

    func tell() throws -> StoryResult {
        display.step("Three rooms and a client are ready: room 1 (alpha), room 2 (beta), room 3 (the witness).")
        try cluster.start(within: Story.stepSecondsMax)
        let guardian = AddressGuard(cluster)
        defer { guardian.stop() }
        display.follow(cluster: cluster, service: service)
        display.say("Both rooms are in sync. alpha serves the application at \(Cluster.virtualAddress).")

        let client = try cluster.startClient(acknowledged: acknowledged)
        try waitForTransfers(since: start)
        display.say("The client makes transfers without pause and writes down each one that was acknowledged.")
        try letTimePass(client)

        try loseRoomOne(client)
        let resync = try bringRoomOneBack(client)
        try swapBack(client)
        try cutTheLink(client)
        try guardian.check()
        return try judge(client, resync: resync)
    }

    // MARK: The events

    private func loseRoomOne(_ client: RoomProcess) throws {
        try event("room 1 lost", "Room 1 is lost: its cable is out and every process in it is killed.") {
            try cluster.building.cut(cluster.alpha.room)
            try cluster.alpha.room.killAll()
            try cluster.waitUntilServing(cluster.beta, within: Story.stepSecondsMax)
        } afterwards: { pause in
            display.say("Room 2 serves; the client waited \(seconds(pause)). The witness agreed that room 1 is out.")
            try letTimePass(client)
        }
    }

    private func bringRoomOneBack(_ client: RoomProcess) throws -> DemonstrationReport.Resync {
        var resync: DemonstrationReport.Resync?
        try event("room 1 returns", "Room 1 comes back: power and cable. It must catch up while transfers go on.") {
            try cluster.alpha.room.reboot()
            try cluster.building.restore(cluster.alpha.room)
            let before = service.count
            try cluster.startDaemon(cluster.alpha)
            try cluster.waitUntilInSync(within: Story.stepSecondsMax)
            let meanwhile = service.count - before
            guard meanwhile > 0 else { throw RoomsError("No transfer was acknowledged while room 1 caught up.") }
            guard let status = cluster.status(cluster.beta), let changed = status.resyncChangedBytes,
                let sent = status.resyncSentBytes
            else { throw RoomsError("beta's status does not say what the resynchronisation took.") }
            resync = .init(changedBytes: changed, sentBytes: sent)
            display.say(
                "Room 1 is in sync again: \(bytes(changed)) had changed, \(bytes(sent)) were sent, and \(meanwhile) "
                    + "transfers were made meanwhile.")
        } afterwards: { _ in
            try letTimePass(client)
        }
        guard let resync else { throw RoomsError("The resynchronisation was not measured.") }
        return resync
    }

    private func swapBack(_ client: RoomProcess) throws {
        try event("swap", "The administrator moves the service back to room 1: lockstep swap.") {
            try cluster.lockstep(cluster.beta, ["swap"], within: Story.stepSecondsMax)
            try cluster.waitUntilServing(cluster.alpha, within: Story.stepSecondsMax)
        } afterwards: { pause in
            display.say("Room 1 serves again; the client waited \(seconds(pause)).")
            try cluster.waitUntilInSync(within: Story.stepSecondsMax)
            try letTimePass(client)
        }
    }

    private func cutTheLink(_ client: RoomProcess) throws {
        let rooms = (cluster.alpha.room, cluster.beta.room)
        try event("link between the rooms cut", "The link between room 1 and room 2 is cut. Both live.") {
            try cluster.building.cut(between: rooms.0, and: rooms.1)
            try waitUntil("exactly one room serves, alone", within: Story.stepSecondsMax, every: 0.2) {
                cluster.nodes.filter { cluster.status($0)?.role == "ALONE" }.count == 1
            } otherwise: {
                cluster.describe()
            }
        } afterwards: { pause in
            guard let one = cluster.serving() else {
                throw RoomsError("After the cut not exactly one room serves." + cluster.describe())
            }
            display.say("\(one.name) goes on alone, the other stands by; the client waited \(seconds(pause)).")
            try letTimePass(client)
            let holders = cluster.addressHolders().map(\.name)
            guard holders == [one.name] else {
                throw RoomsError("\(one.name) serves, but the address is held by: \(holders).")
            }
        }
        try cluster.building.restore(between: rooms.0, and: rooms.1)
        display.step("The link works again.")
        try cluster.waitUntilInSync(within: Story.stepSecondsMax)
        display.say("Both rooms are in sync.")
    }

    /// Runs an event, waits until transfers go on, and measures the pause; then once more with the calm after it, so that
    /// nothing that comes late is missed.
    private func event(
        _ name: String, _ words: String, action: () throws -> Void, afterwards: (Double) throws -> Void
    ) throws {
        display.step(words)
        let begin = bootSeconds()
        try action()
        try waitForTransfers(since: bootSeconds())
        try afterwards(service.longestPause(from: begin, to: bootSeconds()))
        events.append(.init(name: name, secondsWithoutService: service.longestPause(from: begin, to: bootSeconds())))
    }

    // MARK: Waiting

    private func waitForTransfers(since moment: Double) throws {
        try waitUntil("transfers are acknowledged", within: Story.stepSecondsMax) {
            service.count(since: moment) >= 3
        } otherwise: {
            cluster.describe()
        }
    }

    private func letTimePass(_ client: RoomProcess) throws {
        let end = bootSeconds() + calm
        while bootSeconds() < end {
            guard client.isRunning else {
                throw RoomsError("The client has ended by itself: \(client.logTail(lines: 5))")
            }
            usleep(50_000)
        }
    }

    // MARK: The verdict

    private func judge(_ client: RoomProcess, resync: DemonstrationReport.Resync) throws -> StoryResult {
        display.step("The client stops. Every transfer that it wrote down is looked for.")
        try client.stop(within: 10)
        let ledger = try cluster.verify(acknowledged: acknowledged)
        display.step("The plain files of both rooms are compared byte by byte.")
        let trees = try compareWhenQuiet()
        let report = DemonstrationReport(
            acknowledged: ledger.acknowledged, missing: ledger.missing, balanceConserved: ledger.balanceConserved,
            treesIdentical: trees.isIdentical, events: events, resync: resync)
        return StoryResult(report: report, ledger: ledger, trees: trees, seconds: bootSeconds() - start)
    }

    /// The server still runs and may be tidying up, so that a comparison can catch a change between its two sides: such a
    /// difference goes away by itself, a real one stays.
    private func compareWhenQuiet() throws -> TreeComparison {
        let end = bootSeconds() + 20
        while true {
            let result = Result { try cluster.compareTrees() }
            if case .success(let trees) = result, trees.isIdentical { return trees }
            if bootSeconds() > end { return try result.get() }
            usleep(500_000)
        }
    }
}

func seconds(_ value: Double) -> String { String(format: "%.1f s", value) }

func bytes(_ count: Int) -> String {
    switch count {
    case ..<10_000: "\(count) bytes"
    case ..<10_000_000: String(format: "%.1f kB", Double(count) / 1e3)
    default: String(format: "%.1f MB", Double(count) / 1e6)
    }
}
