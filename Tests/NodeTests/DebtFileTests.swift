import Format
import Replication
import Testing

@testable import Node

private func hexadecimal(_ bytes: [UInt8]) -> String {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
}

@Suite struct DebtFileTests {
    private static let file = DebtFile(
        path: "/nowhere", mirror: MirrorID(high: 0x1111_2222_3333_4444, low: 0x5555_6666_7777_8888), node: .b)

    /// What is owed: two granules, a new file, a directory. Since then: an extended attribute.
    private static func contents() -> DebtFile.Contents {
        var debt = Debt(base: Seq(rawValue: 0x10))
        var before = DirtyMap()
        before.note(.write(file: FileID(rawValue: 9), offset: 4096), length: 8192)
        before.note(
            .create(
                file: FileID(rawValue: 0x20), parent: FileID(rawValue: 5), name: [65],
                attributes: FileAttributes(mode: 0o100644, uid: 0, gid: 0), target: [], xattrs: []))
        debt.add(before)
        debt.begin(
            number: 0x0102_0304_0506_0708, start: Seq(rawValue: 0x30), way: .fresh(withOwed: false),
            common: Seq(rawValue: 0x10))
        var since = DirtyMap()
        since.note(.removeXattr(file: FileID(rawValue: 9), name: [97]))
        debt.add(since)
        return DebtFile.Contents(through: Seq(rawValue: 0x31), chain: 0xAABB_CCDD_EEFF_0011, debt: debt)
    }

    /// Another byte here is another version of the file.
    @Test func theBytesOfTheFileStayWhatTheyAre() throws {
        let never = "ffffffffffffffff"
        let since =
            "01" + "00" + "0c" + "00000000" + "00000000" + "01000000" + "0900000000000000" + "02" + never + "00000000"
        let owed =
            "01" + "00" + "0c" + "00000000" + "00000000" + "03000000" + "0500000000000000" + "01" + never + "00000000"
            + "0900000000000000" + "02" + never + "01000000" + "0000000000000000" + "00" + "0200" + "0100" + "0200"
            + "2000000000000000" + "06" + "0000000000000000" + "00000000"
        let body =
            "3000000000000000" + since + "01" + "0807060504030201" + "1000000000000000" + "3000000000000000"
            + "3000000000000000" + "0000000000000000" + "01" + owed
        let header =
            "4c53444952545931" + "0100" + "01" + "0000000000" + "4444333322221111" + "8888777766665555"
            + "3100000000000000" + "1100ffeeddccbbaa" + "\(hexadecimal([UInt8(body.count / 2)]))00000000000000"
        let bytes = DebtFileTests.file.encode(DebtFileTests.contents())
        #expect(hexadecimal(Array(bytes[..<56])) == header)
        #expect(hexadecimal(Array(bytes[56..<64])) == "11c87650" + "00000000")
        #expect(hexadecimal(Array(bytes[64...])) == body)
    }

    @Test func aFileComesBackAsItWasWrittenOrNotAtAll() throws {
        let file = DebtFileTests.file
        let bytes = file.encode(DebtFileTests.contents())
        let back = try file.decode(bytes)
        #expect(file.encode(back) == bytes && back.debt.terms == DebtFileTests.contents().debt.terms)
        for index in bytes.indices where !(11..<16).contains(index) && !(60..<64).contains(index) {
            var damaged = bytes
            damaged[index] ^= 0x10
            #expect(throws: DecodingError.self, "byte \(index)") { try file.decode(damaged) }
        }
        for length in bytes.indices {
            #expect(throws: DecodingError.self) { try file.decode(Array(bytes.prefix(length))) }
        }
        let other = DebtFile(path: file.path, mirror: file.mirror, node: .a)
        #expect(throws: DecodingError.self) { try other.decode(bytes) }
    }
}
