import Foundation
import Rooms
import Testing

/// The pieces that the demonstration's verdict is made of: each must be able to say no.
@Suite struct HarnessVerdictTests {
    /// Two equal trees with a bit of everything; `change` is a shell command that runs in the second.
    func comparison(after change: String) throws -> TreeComparison {
        let base = "/var/tmp/lockstep-trees-\(getpid())-\(UInt32.random(in: 0..<UInt32.max))"
        defer { try? FileManager.default.removeItem(atPath: base) }
        try succeedOnHost([
            "sh", "-ec",
            """
            mkdir -p \(base)/a/sub/empty; cd \(base)/a
            echo hello > file; ln file sub/same; ln -s file link; mkfifo pipe
            head -c 3000000 /dev/zero > sub/large; truncate -s 300000 sub/sparse; setfattr -n trusted.test -v one file; chmod 640 file
            cp -a \(base)/a \(base)/b; mkdir \(base)/a/.lockstep; touch -r \(base)/b \(base)/a
            cd \(base)/b; \(change)
            """,
        ])
        return try TreeComparison(base + "/a", base + "/b")
    }

    @Test func equalTreesAreIdentical() throws {
        let result = try comparison(after: "true")
        #expect(result.isIdentical, "\(result.differences)")
        #expect(result.entriesCompared == 9)
        #expect(result.bytesCompared == 2 * 6 + 3_300_000)
    }

    @Test(arguments: [
        ("touch -r . t; printf x | dd of=sub/large bs=1 seek=2999999 conv=notrunc status=none", "byte 2999999"),
        ("echo more >> file", "size"), ("rm pipe", "exists"), ("touch extra", "exists"), ("chmod 641 file", "mode"),
        ("chown 1:1 file", "owner"), ("chown -h 1:1 link", "owner"), ("touch -h -d @1 link", "modification time"),
        ("touch -d @1.000000001 sub/large", "modification time"), ("touch -d @1 sub", "modification time"),
        ("setfattr -n trusted.test -v two file", "attribute trusted.test"), ("setfattr -x trusted.test file", "none"),
        ("rm sub/same; cp -a file sub/same", "links"), ("ln -sfn elsewhere link", "target"),
        ("rm pipe; mkdir pipe", "type"), ("setfattr -n user.more -v x sub", "attribute user.more"),
        ("head -c 300000 /dev/zero > sub/sparse; touch -r ../a/sub/sparse sub/sparse", "of data"),
        ("cp -a file other; rm sub/same; ln other sub/same; rm other; ln file other", "is the same file as"),
    ])
    func everyKindOfDifferenceIsFound(change: String, words: String) throws {
        let result = try comparison(after: change)
        #expect(result.differences.contains { $0.contains(words) }, "\(result.differences)")
    }

    @Test func pauseIsTheLongestTimeBetweenTwoAcknowledgementsAroundAnEvent() {
        let log = ServiceLog(times: [1, 2, 3, 8, 9, 9.5])
        #expect(log.longestPause(from: 4, to: 9) == 5)
        #expect(log.longestPause(from: 0, to: 2.5) == 1)
        #expect(log.longestPause(from: 8.5, to: 9.4) == 1)
        #expect(log.longestPause(from: 9, to: 20) == 10.5)
        #expect(ServiceLog(times: []).longestPause(from: 3, to: 7) == 4)
        #expect(log.count(since: 3) == 3)
    }

    @Test func growingListIsReadByWholeLines() throws {
        let file = "/tmp/lockstep-service-\(getpid())-\(UInt32.random(in: 0..<UInt32.max))"
        defer { unlink(file) }
        try Data("a-0 1 2 3 10.5\na-1 1 2 3 11".utf8).write(to: URL(fileURLWithPath: file))
        let log = ServiceLog(file: file)
        #expect(log.count == 1)
        #expect(log.last == 10.5)
        let handle = try #require(FileHandle(forWritingAtPath: file))
        try handle.seekToEnd()
        try handle.write(contentsOf: Data(".25\n".utf8))
        #expect(log.last == 11.25)
    }

    static let good = DemonstrationReport(
        acknowledged: 10, missing: 0, balanceConserved: true, treesIdentical: true,
        events: [.init(name: "room 1 lost", secondsWithoutService: 4.5)], resync: .init(changedBytes: 5, sentBytes: 6))

    @Test func verdictHoldsOnlyIfEveryPartHolds() {
        #expect(Self.good.holds)
        for spoil in [
            { (report: inout DemonstrationReport) in report.acknowledged = 0 }, { $0.missing = 1 },
            { $0.balanceConserved = false }, { $0.treesIdentical = false },
        ] {
            var report = Self.good
            spoil(&report)
            #expect(!report.holds)
            #expect(report.complaints.count == 1)
        }
    }

    @Test func reportHasExactlyTheKeysThatReadersRelyOn() throws {
        let object = try #require(try JSONSerialization.jsonObject(with: Self.good.json()) as? [String: Any])
        #expect(
            object.keys.sorted() == [
                "acknowledged", "balanceConserved", "events", "missing", "resync", "treesIdentical",
            ])
        let event = try #require((object["events"] as? [[String: Any]])?.first)
        #expect(event.keys.sorted() == ["name", "secondsWithoutService"])
        #expect((object["resync"] as? [String: Any])?.keys.sorted() == ["changedBytes", "sentBytes"])
    }

    @Test func statusIsReadInOnePlaceAndRefusesWhatItDoesNotKnow() throws {
        let status = try NodeStatus(
            json: """
                {"role": "PRIM", "inSync": true, "epoch": 3, "color": "green", "peer": {"behindRecords": 7},
                 "addresses": [{"address": "10.0.9.1/24", "held": true}],
                 "resync": {"changedBytes": 100, "sentBytes": 110}}
                """)
        #expect(status.serves && status.isInSync && status.holdsAddress)
        #expect(status.resyncSentBytes == 110)
        #expect(status.behindRecords == 7)
        #expect(throws: RoomsError.self) { try NodeStatus(json: "{}") }
        #expect(throws: RoomsError.self) { try NodeStatus(json: "not yet") }
    }
}
