import Format
import Testing

@testable import Replication

private let file = FileID(epoch: Epoch(rawValue: 3), counter: 7)
private let other = FileID(epoch: Epoch(rawValue: 3), counter: 8)
private let plain = FileAttributes(mode: 0o100644, uid: 1, gid: 2, size: 100, mtime: 50)

private func record(_ body: RecordBody, time: Int64 = 10, length: Int = 0) -> Record {
    Record(time: time, body: body, payload: length > 0 ? .inline(offset: 0, length: length, checksum: 0) : .none)
}

@Suite struct VerifyEvidenceTests {
    @Test func theLastRecordOfEachByteProvesIt() {
        var evidence = ContentEvidence(file: file, offset: 1000, length: 8)
        evidence.add(record(.write(file: file, offset: 998), length: 5)) { [1, 2, 3, 4, 5] }
        evidence.add(record(.write(file: other, offset: 1000), length: 8)) { [9, 9, 9, 9, 9, 9, 9, 9] }
        evidence.add(record(.write(file: file, offset: 1001), length: 2)) { [6, 7] }
        #expect(
            evidence.bytes[..<3] == [3, 6, 7]
                && evidence.known == [true, true, true] + [false, false, false, false, false])
        let mine: [UInt8] = [3, 6, 7, 0, 0, 0, 0, 0]
        var theirs = mine
        theirs[1] = 5
        #expect(evidence.judge(0..<8, mine: mine, theirs: theirs) == .proved(mine))
        #expect(evidence.judge(0..<8, mine: theirs, theirs: mine) == .proved(mine))
        // Wrong in places on both sides.
        var mixed = mine
        mixed[2] = 1
        #expect(evidence.judge(0..<8, mine: mixed, theirs: theirs) == .proved(mine))
        // A byte that no record covers.
        theirs[5] = 1
        #expect(evidence.judge(0..<8, mine: mine, theirs: theirs) == .unproved)
        #expect(evidence.judge(0..<4, mine: mine, theirs: theirs) == .proved([3, 6, 7, 0]))
        // What one side alone can read.
        #expect(evidence.correcting([8, 8, 8, 8, 8, 8, 8, 8]) == [3, 6, 7, 8, 8, 8, 8, 8])
    }

    /// An image is what a disk held when it was read; the disk may have been wrong.
    @Test func anImageProvesOnlyWhatNoRecordOfTheApplicationDoes() {
        var evidence = ContentEvidence(file: file, offset: 0, length: 6)
        evidence.add(record(.write(file: file, offset: 1), length: 2)) { [1, 2] }
        var image = record(.write(file: file, offset: 0), length: 4)
        image.isImage = true
        evidence.add(image) { [9, 9, 9, 9] }
        #expect(evidence.bytes[..<4] == [9, 1, 2, 9])
        evidence.add(
            record(
                .imageFile(
                    file: file, attributes: FileAttributes(mode: 0o100644, uid: 0, gid: 0, size: 2), target: [],
                    xattrs: []))
        ) { [] }
        #expect(evidence.bytes == [9, 1, 2, 9, 0, 0] && !evidence.known.contains(false))
        evidence.add(record(.write(file: file, offset: 0), length: 1)) { [7] }
        #expect(evidence.bytes[0] == 7)
    }

    @Test func zerosAreProvedByHolesTruncationsAndBirth() {
        var evidence = ContentEvidence(file: file, offset: 0, length: 10)
        evidence.add(record(.allocate(file: file, mode: 3, offset: 2, length: 2))) { [] }
        #expect(evidence.known == [false, false, true, true] + [Bool](repeating: false, count: 6))
        evidence.add(record(.allocate(file: file, mode: 1, offset: 4, length: 2))) { [] }
        #expect(!evidence.known[4], "keeps what was there")
        evidence.add(
            record(
                .setAttributes(file: file, mask: .size, attributes: FileAttributes(mode: 0, uid: 0, gid: 0, size: 7)))
        ) { [] }
        #expect(evidence.known[7...] == [true, true, true] && !evidence.known[6])
        evidence.add(
            record(.create(file: file, parent: .root, name: [65], attributes: plain, target: [], xattrs: []))
        ) { [] }
        #expect(evidence.known.allSatisfy { $0 })
        evidence.restart()
        #expect(!evidence.known.contains(true))
    }

    @Test func attributesAreProvedOneByOne() throws {
        func found(_ attributes: FileAttributes, _ xattrs: [ExtendedAttribute] = []) -> VerifiedFile {
            VerifiedFile(
                attributes: attributes, target: [], xattrHash: Hash128(low: UInt64(xattrs.count), high: 0),
                xattrs: xattrs, content: Hash128(low: 0, high: 0))
        }
        var wrong = plain
        wrong.mode = 0o100600
        var evidence = AttributeEvidence(file: file)
        #expect(evidence.judge(found(plain), found(wrong)) == nil)
        evidence.add(record(.setAttributes(file: file, mask: .mode, attributes: plain)))
        #expect(try #require(evidence.judge(found(wrong), found(plain))).0 == plain)
        // The size counts only from a record that set it.
        var longer = plain
        longer.size = 300
        evidence.add(record(.write(file: file, offset: 50), time: 50, length: 50))
        #expect(evidence.judge(found(plain), found(longer)) == nil)
        evidence.add(
            record(
                .setAttributes(file: file, mask: .size, attributes: FileAttributes(mode: 0, uid: 0, gid: 0, size: 10)),
                time: 50))
        evidence.add(record(.write(file: file, offset: 50), time: 50, length: 50))
        #expect(try #require(evidence.judge(found(longer), found(plain))).0 == plain)
        let xattr = ExtendedAttribute(name: [97], value: [1])
        #expect(evidence.judge(found(plain, [xattr]), found(plain)) == nil)
        evidence.add(record(.removeXattr(file: file, name: [97])))
        #expect(try #require(evidence.judge(found(plain, [xattr]), found(plain))).1 == [])
    }
}

@Suite struct TokenBucketTests {
    @Test func theAverageIsTheRateAndTheBurstIsShort() {
        var bucket = TokenBucket(rate: 1_000_000, now: 0)
        var moved = 0
        for now in stride(from: UInt64(0), through: 10_000_000_000, by: 1_000_000) {
            while bucket.allows(now: now) {
                bucket.take(30_000, now: now)
                moved += 30_000
            }
        }
        #expect(moved >= 10_000_000 && moved <= 10_200_000)
        // What gathers in an hour is a tenth of a second's worth.
        moved = 0
        while bucket.allows(now: 3_600_000_000_000) {
            bucket.take(1000, now: 3_600_000_000_000)
            moved += 1000
        }
        #expect(moved <= 101_000)
        let wait = bucket.wait(now: 3_600_000_000_000)
        let isOver = bucket.allows(now: 3_600_000_000_000 + wait)
        #expect(wait > 0 && isOver)
    }

    @Test func theRateChangesAtOnce() {
        var bucket = TokenBucket(rate: 1000, now: 0)
        bucket.take(100_000, now: 0)
        let before = bucket.allows(now: 1_000_000_000)
        bucket.setRate(1_000_000, now: 1_000_000_000)
        let after = bucket.allows(now: 1_001_000_000)
        #expect(!before && after)
        bucket.setRate(nil, now: 1_200_000_000)
        bucket.take(1 << 40, now: 1_200_000_000)
        let unlimited = bucket.allows(now: 1_200_000_000)
        #expect(unlimited)
    }
}
