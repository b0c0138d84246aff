import Format
import Testing

@testable import Node

@Suite struct OpenBatchTests {
    @Test func aBatchThatIsNotFullHasRoomForTheLongestRecord() {
        let name = FileName(repeating: 1, count: RecordLimits.nameBytes)
        let entry = ImageEntry(name: name, file: .root, mode: 0)
        // One attribute of 64 KiB weighs as much as 512 short ones of as many bytes together.
        let xattrs = [ExtendedAttribute(name: name, value: [UInt8](repeating: 1, count: RecordLimits.xattrValueBytes))]
        let body = RecordBody.imageDirectory(
            directory: .root, attributes: FileAttributes(mode: 0, uid: 0, gid: 0), xattrs: xattrs, part: 0,
            isLast: false, entries: Array(repeating: entry, count: RecordLimits.imageEntries))
        var writer = ByteWriter(reserving: 1 << 18)
        _ = Record(time: 0, body: body).encode(into: &writer)
        #expect(writer.count <= OpenBatch.metaHeadroomBytes, "\(writer.count) bytes")
    }
}
