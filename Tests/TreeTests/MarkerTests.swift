import Format
import Glibc
import Testing

@testable import Tree

/// What the plain files say of themselves.
@Suite struct MarkerTests {
    private static let point = TreeMarker.Point(
        seq: Seq(rawValue: 0x0102), chain: 0x1112_1314, incarnation: 0x2122_2324_0000_0005)
    private static let marker = TreeMarker(
        journal: 0x3132_3334, points: [point, TreeMarker.Point(seq: Seq(rawValue: 7), chain: 8, incarnation: 9)],
        voteBirth: 0x41, voteStarts: 0x51)

    @Test func goldenBytes() throws {
        let bytes = MarkerTests.marker.encoded(generation: 6)
        let expected: [UInt8] =
            Array("LSMARK1".utf8) + [0, 1, 0, 2, 0, 0, 0, 0, 0] + [6, 0, 0, 0, 0, 0, 0, 0]
            + [0x34, 0x33, 0x32, 0x31, 0, 0, 0, 0] + [0x41, 0, 0, 0, 0, 0, 0, 0] + [0x51, 0, 0, 0, 0, 0, 0, 0]
            + [0x02, 0x01, 0, 0, 0, 0, 0, 0] + [0x14, 0x13, 0x12, 0x11, 0, 0, 0, 0]
            + [5, 0, 0, 0, 0x24, 0x23, 0x22, 0x21] + [7, 0, 0, 0, 0, 0, 0, 0] + [8, 0, 0, 0, 0, 0, 0, 0]
            + [9, 0, 0, 0, 0, 0, 0, 0]
        #expect(Array(bytes.prefix(expected.count)) == expected)
        #expect(bytes.count == TreeMarker.slotBytes)
        #expect(bytes[expected.count..<(bytes.count - 4)].allSatisfy { $0 == 0 })
        let (marker, generation) = try TreeMarker.decode(bytes)
        #expect(marker == MarkerTests.marker && generation == 6)
    }

    @Test func aMarkerWithAnyByteChangedIsRefused() {
        let bytes = MarkerTests.marker.encoded(generation: 6)
        for index in bytes.indices {
            var damaged = bytes
            damaged[index] ^= 0x10
            #expect(throws: DecodingError.self) { try TreeMarker.decode(damaged) }
        }
    }

    /// Each write goes to the other slot: one that was torn leaves the one before.
    @Test func aTornWriteLeavesTheEarlierMarker() throws {
        let directory = Scratch()
        let tree = try openTree(directory)
        #expect(try tree.marker() == nil)
        for count in 1...5 {
            let next = TreeMarker(
                journal: 1, points: [TreeMarker.Point(seq: Seq(rawValue: UInt64(count)), chain: 0, incarnation: 0)])
            let before = try tree.marker()
            try tree.setMarker(next)
            #expect(try tree.marker() == next)
            let path = tree.backing + "/.lockstep/marker"
            var status = stat()
            #expect(stat(path, &status) == 0 && status.st_size == 8192)
            guard count > 1 else { continue }
            let fd = open(path, O_RDWR)
            defer { close(fd) }
            var bytes = [UInt8](repeating: 0, count: 512)
            let place = off_t((count % 2) * 4096)
            #expect(pread(fd, &bytes, 512, place) == 512)
            var torn = bytes
            torn.replaceSubrange(256..., with: [UInt8](repeating: 0xEE, count: 256))
            #expect(pwrite(fd, torn, 512, place) == 512)
            #expect(try tree.marker() == before)
            #expect(pwrite(fd, bytes, 512, place) == 512)
            #expect(try tree.marker() == next)
        }
    }

    @Test func failure18AnEmptyDirectoryIsToldFromTheMirrorsAndFromSomebodyElsesFiles() throws {
        let directory = Scratch()
        let tree = try openTree(directory)
        #expect(try PlainTree.look(at: tree.backing) == .mirrored)
        let other = directory.path + "/other"
        mkdir(other, 0o700)
        #expect(try PlainTree.look(at: other) == .empty(isMountPoint: false))
        mkdir(other + "/lost+found", 0o700)
        #expect(try PlainTree.look(at: other) == .empty(isMountPoint: false))
        mkdir(other + "/something", 0o700)
        #expect(try PlainTree.look(at: other) == .foreign)
        #expect(throws: TreeError.self) {
            try PlainTree(backing: other, state: directory.path, opening: .existing, logger: tree.logger)
        }
    }
}
