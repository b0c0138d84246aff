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
                        FileLimits(fileBytes: 1_000_000, links: 1, xattrBytes: 40, targetBytes: 5))
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
    }
}
