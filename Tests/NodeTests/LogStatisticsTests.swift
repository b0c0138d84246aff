import Format
import Testing

@testable import Node

@Suite struct LogStatisticsTests {
    private let attributes = FileAttributes(mode: 0o100644, uid: 0, gid: 0)

    private func closed(_ fill: (inout OpenBatch, Arena) -> Void) -> Batch {
        let arena = Arena(bytes: 4 << 20)
        var open = OpenBatch()
        fill(&open, arena)
        return open.close(
            arena: arena, epoch: Epoch(rawValue: 1), mirror: MirrorID(high: 1, low: 2), firstSeq: Seq(rawValue: 1),
            previousChain: 0, committedSeq: .zero, closedAt: 0)
    }

    private func write(_ length: Int, isImage: Bool = false, _ open: inout OpenBatch, _ arena: Arena) {
        _ = unsafe open.payloadPlace(bytes: RecordLimits.payloadBytes, in: arena)
        open.addWrite(file: FileID(rawValue: 7), offset: 0, length: length, time: 0, isImage: isImage)
    }

    @Test func writesCountTheirPayloadAndNothingElse() {
        var statistics = LogStatistics()
        statistics.note(
            closed { open, arena in
                write(100, &open, arena)
                write(4096, &open, arena)
                write(70_000, &open, arena)
            })
        #expect(statistics.changedBytes == 100 + 4096 + 70_000)
        #expect(statistics.payloadBytes == statistics.changedBytes)
    }

    @Test func namesCountAsTheirRecords() {
        var statistics = LogStatistics()
        let name = [UInt8]("ledger.db-journal".utf8)
        let body = RecordBody.create(
            file: FileID(rawValue: 9), parent: .root, name: name, attributes: attributes, target: [], xattrs: [])
        var encoded = ByteWriter()
        _ = unsafe Record(time: 0, body: body).encode(into: &encoded)
        statistics.note(
            closed { open, arena in
                open.add(body, time: 0)
                write(10, &open, arena)
            })
        #expect(statistics.changedBytes == UInt64(encoded.count) + 10)
    }

    @Test func imagesAreNoChangeOfTheApplication() {
        var statistics = LogStatistics()
        statistics.note(
            closed { open, arena in
                open.add(
                    .imageFile(file: FileID(rawValue: 9), attributes: attributes, target: [], xattrs: []), time: 0,
                    isImage: true)
                write(4096, isImage: true, &open, arena)
                write(50, &open, arena)
            })
        #expect(statistics.changedBytes == 50)
        #expect(statistics.payloadBytes == 4146)
    }
}
