import CLinux
import Format
import Glibc
import Testing

@testable import Fuse

extension MountedTests {
    /// What the plain files' file system cannot hold is refused before it is logged: a record that cannot be applied
    /// stops both rooms.
    @Suite(.serialized) struct BeyondTheFileSystem {
        @Test func aLinkTargetThatXFSRefusesIsNotLogged() throws {
            try withMounted(on: "xfs") { mounted in
                let path = mounted.path + "/link"
                let long = String(repeating: "t", count: 1024)
                #expect(errnoOf(symlink(String(long.dropLast()), path)) == 0)
                let before = mounted.onData { _, log in log.lastSeq }
                let maker = Concurrent { #expect(errnoOf(symlink(long, mounted.path + "/longer")) == ENAMETOOLONG) }
                #expect(maker.ends(within: 2000), "the target was logged and cannot be applied")
                #expect(mounted.onData { _, log in log.lastSeq } == before)
                if maker.isFinished { maker.join() }
            }
        }

        @Test func aFileEndsAtAPebibyteAlsoWhereTheFileSystemTakesMore() throws {
            try withMounted(on: "xfs") { mounted in
                let path = mounted.path + "/huge"
                #expect(put(path, [1]) == 0)
                #expect(errnoOf(truncate(path, 1 << 50)) == 0)
                #expect(errnoOf(truncate(path, 1 << 50 + 1)) == EFBIG)
                let fd = open(path, O_WRONLY)
                #expect(errnoOf(pwrite(fd, [1], 1, 1 << 50)) == EFBIG)
                #expect(clinux_fallocate(fd, 1, 1 << 50, 1) == -EFBIG)
                close(fd)
            }
        }

        @Test func whatTheOtherRoomCannotHoldIsRefusedFromWhenItIsKnown() throws {
            try withMounted { mounted in
                let path = mounted.path + "/file"
                #expect(put(path, [1]) == 0)
                #expect(truncate(path, 2_000_000) == 0)
                mounted.onData { directory, _ in
                    directory.limits = directory.limits.narrower(
                        FileLimits(
                            fileBytes: 1_000_000, links: 1, xattrBytes: 40, targetBytes: 5,
                            directoryBytes: .max))
                }
                let before = mounted.onData { _, log in log.lastSeq }
                #expect(errnoOf(truncate(path, 1_000_001)) == EFBIG)
                #expect(errnoOf(link(path, mounted.path + "/other")) == EMLINK)
                #expect(setAttribute(path, "user.a", [1, 2, 3]) == ENOSPC)
                #expect(errnoOf(symlink("target", mounted.path + "/link")) == ENAMETOOLONG)
                #expect(mounted.onData { _, log in log.lastSeq } == before)
                #expect(errnoOf(symlink("targe", mounted.path + "/link")) == 0)
            }
        }

        @Test func timesAreThoseThatTheOtherRoomKeeps() throws {
            try withMounted { mounted in
                let last: Int64 = 2_147_483_647_000_000_000
                mounted.onData { directory, _ in
                    directory.limits.times = -last...last
                    directory.limits.timeStep = 1_000_000_000
                }
                let path = mounted.path + "/directory"
                #expect(mkdir(path, 0o755) == 0 && put(path + "/new", [1]) == 0 && symlink("new", path + "/link") == 0)
                #expect(put(path + "/set", [1]) == 0 && put(path + "/changed", [1]) == 0)
                let late = [timespec(tv_sec: 5_000_000_000, tv_nsec: 0), timespec(tv_sec: -5, tv_nsec: 7)]
                #expect(utimensat(AT_FDCWD, path + "/set", late, 0) == 0)
                #expect(truncate(path + "/changed", 7) == 0)
                #expect(setAttribute(path + "/changed", "user.a", [1]) == 0)
                let fd = open(path + "/changed", O_RDWR)
                #expect(clinux_fallocate(fd, 0, 0, 100) == 0)
                close(fd)
                mounted.settle()
                for name in ["", "/new", "/link", "/set", "/changed"] {
                    let (shown, kept) = (status(path + name), status(mounted.backing + "/directory" + name))
                    #expect(shown?.st_mtim.tv_nsec == 0 && kept?.st_mtim.tv_nsec == 0, "\(name)")
                    #expect(shown?.st_mtim.tv_sec == kept?.st_mtim.tv_sec, "\(name)")
                }
                let set = status(mounted.backing + "/directory/set")
                #expect(set?.st_atim.tv_sec == 2_147_483_647 && set?.st_mtim.tv_sec == -5)
            }
        }

        @Test func theLongestLinkTargetOfExt4IsTaken() throws {
            try withMounted { mounted in
                let long = String(repeating: "t", count: 4095)
                let plain = errnoOf(symlink(long, mounted.plain + "/link"))
                #expect(errnoOf(symlink(long, mounted.path + "/link")) == plain)
            }
        }

        @Test func noFileGetsMoreAttributesThanAnImageOfItMayCarry() throws {
            try withMounted(on: "xfs") { mounted in
                let path = mounted.path + "/tagged"
                #expect(put(path, [1]) == 0)
                mounted.settle()
                // Past the mount, which looks at all of them each time.
                for index in 1...510 { #expect(setAttribute(mounted.backing + "/tagged", "user.\(index)", [1]) == 0) }
                #expect(setAttribute(path, "user.511", [1]) == 0)
                #expect(setAttribute(path, "user.512", [1]) == 0)
                let before = mounted.onData { _, log in log.lastSeq }
                #expect(setAttribute(path, "user.513", [1]) == ENOSPC)
                #expect(mounted.onData { _, log in log.lastSeq } == before)
                #expect(setAttribute(path, "user.7", [2]) == 0)
                #expect(removeAttribute(path, "user.8") == 0)
                #expect(setAttribute(path, "user.513", [1]) == 0)
            }
        }

        @Test func aDirectoryWhoseIndexMayBeFullTakesNoMoreNames() throws {
            try withMounted(on: "ext4") { mounted in
                #expect(mkdir(mounted.path + "/full", 0o755) == 0)
                #expect(mkdir(mounted.path + "/other", 0o755) == 0)
                mounted.onData { directory, _ in directory.limits.directoryBytes = 8192 }
                let long = String(repeating: "n", count: 250)
                var count = 0
                while count < 1000, put("\(mounted.path)/full/\(long)\(count)", [1]) == 0 { count += 1 }
                let first = "\(mounted.path)/full/\(long)0"
                #expect(count > 8 && count < 1000)
                let before = mounted.onData { _, log in log.lastSeq }
                #expect(put(mounted.path + "/full/more", [1]) == ENOSPC)
                #expect(errnoOf(mkdir(mounted.path + "/full/more", 0o755)) == ENOSPC)
                #expect(errnoOf(link(first, mounted.path + "/full/more")) == ENOSPC)
                #expect(errnoOf(rename(first, mounted.path + "/full/more")) == ENOSPC)
                #expect(mounted.onData { _, log in log.lastSeq } == before)
                // What needs no new name goes on.
                #expect(errnoOf(rename(first, "\(mounted.path)/full/\(long)1")) == 0)
                #expect(errnoOf(rename("\(mounted.path)/full/\(long)1", mounted.path + "/other/moved")) == 0)
                #expect(put("\(mounted.path)/full/\(long)2", [2]) == 0)
                #expect(errnoOf(unlink("\(mounted.path)/full/\(long)2")) == 0)
            }
        }

        /// Whoever looks for such names could otherwise stop both rooms for good.
        @Test func namesThatBtrfsCannotTellApartAreRefusedBeforeTheyAreLogged() throws {
            try withMounted(on: "btrfs") { mounted in
                let names = namesOfOneHash(80)
                let taken = names.prefix { put(mounted.path + "/" + $0, [1]) == 0 }
                #expect(taken.count < names.count)
                let before = mounted.onData { _, log in log.lastSeq }
                let next = names[taken.count]
                #expect(put(mounted.path + "/" + next, [1]) == EOVERFLOW)
                #expect(errnoOf(rename(mounted.path + "/" + taken[0], mounted.path + "/" + next)) == EOVERFLOW)
                #expect(mounted.onData { _, log in log.lastSeq } == before)
                // As the file system itself.
                mounted.settle()
                #expect(errnoOf(mknod(mounted.backing + "/" + next, S_IFREG | 0o644, 0)) == EOVERFLOW)
                #expect(put(mounted.path + "/another", [1]) == 0)
                #expect(errnoOf(unlink(mounted.path + "/" + taken[0])) == 0)
                #expect(put(mounted.path + "/" + next, [1]) == 0)
            }
        }
    }
}

/// Names of 255 letters with one checksum: changes of letters that together change nothing in it, found by elimination.
private func namesOfOneHash(_ count: Int) -> [String] {
    let base = [UInt8](repeating: UInt8(ascii: "a"), count: 255)
    func checksum(_ name: [UInt8]) -> UInt32 { clinux_crc32c(1, name, name.count) }
    var pivots: [(change: UInt32, letters: Set<Int>)] = []
    var neutral: [Set<Int>] = []
    for place in 0..<40 {
        var name = base
        name[place] ^= 2
        var (change, letters) = (checksum(name) ^ checksum(base), Set([place]))
        for pivot in pivots where change ^ pivot.change < change {
            change ^= pivot.change
            letters.formSymmetricDifference(pivot.letters)
        }
        if change == 0 { neutral.append(letters) } else { pivots.append((change, letters)) }
        pivots.sort { $0.change > $1.change }
    }
    return (0..<count).map { number in
        var name = base
        for (bit, letters) in neutral.enumerated() where number >> bit & 1 == 1 {
            for place in letters { name[place] ^= 2 }
        }
        return String(decoding: name, as: UTF8.self)
    }
}
