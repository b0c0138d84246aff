import CLinux
import Format
import Glibc
import Testing

@testable import Fuse

extension MountedTests {
    /// The mirrored directory beside a plain one on ext4: the same operations give the same results.
    @Suite(.serialized) struct LikeALocalFileSystem {
        @Test(arguments: [1, 2, 3] as [UInt64])
        func randomOperationsGiveTheSameResultsAsOnExt4(seed: UInt64) throws {
            try withMounted { mounted in
                var random = SplitMix(seed: seed)
                var trace: [String] = []
                for _ in 0..<700 {
                    let operation = Operation(&random)
                    let mirrored = operation.run(mounted.path)
                    let plain = operation.run(mounted.plain)
                    trace.append("\(operation) -> \(plain)")
                    guard mirrored == plain else {
                        Issue.record(
                            "seed \(seed): \(operation) gave \(mirrored), ext4 \(plain)\n\(trace.suffix(40).joined(separator: "\n"))"
                        )
                        return
                    }
                }
                let found = snapshot(mounted.path)
                #expect(found == snapshot(mounted.plain), "seed \(seed)")
                mounted.settle()
                #expect(found == snapshot(mounted.backing), "seed \(seed): the plain files differ from what is shown")
            }
        }

        /// As fsx does: one file, random writes, truncations, holes and mapped reads, compared after each step.
        @Test(arguments: [11, 12] as [UInt64])
        func oneFileUnderRandomWritesTruncationsAndHolesNeverShowsAWrongByte(seed: UInt64) throws {
            try withMounted { mounted in
                var random = SplitMix(seed: seed)
                var model: [UInt8] = []
                let direct = open(mounted.path + "/fsx", O_RDWR | O_CREAT, 0o644)
                defer { close(direct) }
                for step in 0..<1500 {
                    let offset = Int.random(in: 0..<200_000, using: &random)
                    let length = Int.random(in: 1..<20_000, using: &random)
                    switch Int.random(in: 0..<10, using: &random) {
                    case 0..<4:
                        let data = (0..<length).map { UInt8(truncatingIfNeeded: $0 &+ step) }
                        #expect(pwrite(direct, data, length, off_t(offset)) == length)
                        grow(&model, offset + length)
                        model.replaceSubrange(offset..<offset + length, with: data)
                    case 4:
                        #expect(ftruncate(direct, off_t(offset)) == 0)
                        if offset < model.count { model.removeSubrange(offset...) } else { grow(&model, offset) }
                    case 5:
                        #expect(clinux_fallocate(direct, 3, UInt64(offset), UInt64(length)) == 0)
                        zero(&model, offset, length)
                    case 6:
                        #expect(clinux_fallocate(direct, 16, UInt64(offset), UInt64(length)) == 0)
                        grow(&model, offset + length)
                        zero(&model, offset, length)
                    case 7: #expect(posix_fadvise(direct, 0, 0, POSIX_FADV_DONTNEED) == 0)
                    default:
                        var found = [UInt8](repeating: 0xEE, count: length)
                        let count = pread(direct, &found, length, off_t(offset))
                        let wanted =
                            offset < model.count ? Array(model[offset..<min(model.count, offset + length)]) : []
                        try #require(Array(found[..<max(0, count)]) == wanted, "seed \(seed), step \(step)")
                    }
                }
                #expect(contents(mounted.path + "/fsx") == model)
                mounted.settle()
                #expect(contents(mounted.backing + "/fsx") == model)
            }
        }

        private func grow(_ model: inout [UInt8], _ size: Int) {
            if size > model.count { model += [UInt8](repeating: 0, count: size - model.count) }
        }
        private func zero(_ model: inout [UInt8], _ offset: Int, _ length: Int) {
            for index in offset..<max(offset, min(model.count, offset + length)) { model[index] = 0 }
        }
    }
}

/// One operation on names out of a few, so that they meet.
private struct Operation: CustomStringConvertible {
    var kind: Int
    var first: String
    var second: String
    var offset: Int
    var length: Int
    var flag: Int
    static let kinds = 20

    init(_ random: inout SplitMix) {
        kind = Int.random(in: 0..<Operation.kinds, using: &random)
        first = Operation.place(&random)
        second = Operation.place(&random)
        offset = Int.random(in: 0..<30_000, using: &random)
        length = Int.random(in: 1..<9_000, using: &random)
        flag = Int.random(in: 0..<6, using: &random)
    }

    private static func place(_ random: inout SplitMix) -> String {
        let names = ["a", "b", "c", "d", "e"]
        return (0..<Int.random(in: 1...3, using: &random)).map { _ in "/" + names.randomElement(using: &random)! }
            .joined()
    }

    var description: String { "kind \(kind) \(first) \(second) offset \(offset) length \(length) flag \(flag)" }

    /// What the application sees: errno, and whatever else the call tells.
    func run(_ root: String) -> String {
        let one = root + first
        let two = root + second
        switch kind {
        case 0, 1: return withFile(one, O_WRONLY | O_CREAT | (flag == 0 ? O_EXCL : 0)) { write($0) }
        case 2: return withFile(one, O_WRONLY | O_APPEND | (flag < 2 ? O_CREAT : 0)) { write($0) }
        case 3: return withFile(one, O_RDWR) { String(errnoOf(ftruncate($0, off_t(offset)))) }
        case 4, 5: return String(errnoOf(mkdir(one, 0o700 | mode_t(flag))))
        case 6: return String(errnoOf(rmdir(one)))
        case 7: return String(errnoOf(unlink(one)))
        case 8, 9, 10:
            // Moving a directory into itself and the like included.
            return String(-clinux_renameat2(AT_FDCWD, one, AT_FDCWD, two, [0, 0, 0, 0, 1, 2][flag]))
        case 11: return String(errnoOf(Glibc.link(one, two)))
        case 12: return String(errnoOf(symlink(String(first.dropFirst()), two)))
        case 13: return String(errnoOf(chmod(one, 0o600 | mode_t(flag << 9) | mode_t(flag))))
        case 14: return String(errnoOf(lchown(one, uid_t(flag), gid_t(flag + 1))))
        case 15:
            let times = [timespec(tv_sec: offset, tv_nsec: length), timespec(tv_sec: length, tv_nsec: offset)]
            return String(errnoOf(utimensat(AT_FDCWD, one, times, AT_SYMLINK_NOFOLLOW)))
        case 16: return attributes(one)
        case 17:
            let modes: [Int32] = [0, 1, 3, 16, 17, 0]
            return withFile(one, O_RDWR) {
                String(clinux_fallocate($0, modes[flag], UInt64(offset), UInt64(length)))
            }
        case 18: return String(errnoOf(mkfifo(one, 0o640)))
        default: return readAll(one)
        }
    }

    private func withFile(_ path: String, _ flags: Int32, _ body: (Int32) -> String) -> String {
        let fd = open(path, flags | O_NOFOLLOW | O_NONBLOCK, 0o644)
        guard fd >= 0 else { return "open \(errno)" }
        defer { close(fd) }
        return body(fd)
    }

    private func write(_ fd: Int32) -> String {
        let data = (0..<length).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ offset) }
        var seen = stat()
        guard fstat(fd, &seen) == 0, seen.st_mode & S_IFMT == S_IFREG else { return "not a file" }
        let count = flag % 2 == 0 ? Glibc.write(fd, data, length) : pwrite(fd, data, length, off_t(offset))
        return "\(count) \(fstat(fd, &seen)) \(seen.st_size)"
    }

    private func readAll(_ path: String) -> String {
        var seen = stat()
        guard lstat(path, &seen) == 0 else { return String(errno) }
        guard seen.st_mode & S_IFMT == S_IFREG else { return "\(seen.st_mode) \(seen.st_nlink)" }
        let data = contents(path) ?? []
        return "\(data.count) \(crc32c(data)) \(seen.st_size) \(seen.st_nlink) \(seen.st_mode)"
    }

    private func attributes(_ path: String) -> String {
        let name = ["user.one", "user.two", "trusted.three"][length % 3]
        if flag == 0 { return String(removeAttribute(path, name)) }
        let result = setAttribute(
            path, name, [UInt8](repeating: UInt8(flag), count: length % 200), flags: Int32(flag % 3))
        return "\(result) \(attribute(path, name)) \(attributeNames(path).sorted())"
    }
}

/// Everything about a tree that an application can see and that does not differ by nature (ctime, inode numbers).
private func snapshot(_ root: String) -> [String] {
    var lines: [String] = []
    var waiting = [""]
    while let directory = waiting.popLast() {
        guard let stream = opendir(root + directory) else { continue }
        defer { closedir(stream) }
        while let entry = readdir(stream) {
            let name = withUnsafeBytes(of: &entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name.hasPrefix(".") { continue }
            let place = directory + "/" + name
            let path = root + place
            guard let seen = status(path) else {
                lines.append("\(place): \(errno)")
                continue
            }
            let type = seen.st_mode & S_IFMT
            var line =
                "\(place): \(String(seen.st_mode, radix: 8)) \(seen.st_uid):\(seen.st_gid) links \(seen.st_nlink)"
            if type == S_IFREG { line += " size \(seen.st_size) crc \(crc32c(contents(path) ?? []))" }
            if type == S_IFLNK {
                var target = [CChar](repeating: 0, count: 256)
                let count = readlink(path, &target, 255)
                let text = target[..<max(0, count)].map(UInt8.init(bitPattern:))
                line += " to \(String(decoding: text, as: UTF8.self))"
            }
            for attributeName in attributeNames(path).sorted() where attributeName != "trusted.lockstep.fid" {
                line += " \(attributeName)=\(attribute(path, attributeName))"
            }
            lines.append(line)
            if type == S_IFDIR { waiting.append(place) }
        }
    }
    return lines.sorted()
}
