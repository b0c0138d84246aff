import CLinux
import Format
import Glibc
import Testing

@testable import Fuse

extension MountedTests {
    /// What is seen of a file whose records are not in the plain files yet, and what stays of it when they are.
    @Suite(.serialized) struct Looking {
        @Test func aFileThatWasWrittenAndIsNotAppliedYetHasBlocks() throws {
            try withMounted { mounted in
                let fd = open(mounted.path + "/new", O_RDWR | O_CREAT, 0o644)
                mounted.settle()
                mounted.onData { _, log in log.holdsApply = true }
                var seen = stat()
                #expect(fstat(fd, &seen) == 0 && seen.st_blocks == 0)
                #expect(write(fd, "secret", 6) == 6)
                // tar -S writes zeros for a file without blocks, and does not read it.
                #expect(fstat(fd, &seen) == 0 && seen.st_size == 6 && seen.st_blocks == 1)
                #expect(pwrite(fd, [UInt8](repeating: 1, count: 4096), 4096, 1 << 20) == 4096)
                #expect(fstat(fd, &seen) == 0 && seen.st_blocks == 9)
                #expect(clinux_fallocate(fd, 0, 0, 1 << 20) == 0)
                #expect(fstat(fd, &seen) == 0 && seen.st_blocks == 2048 + 8)
                close(fd)
                mounted.onData { _, log in
                    log.holdsApply = false
                    log.settle()
                }
                mounted.settle()
            }
        }

        @Test func theTimeOfAChangeDoesNotMoveWhenTheChangeIsApplied() throws {
            try withMounted { mounted in
                let path = mounted.path + "/steady"
                #expect(put(path, [1]) == 0)
                mounted.settle()
                let changes: [@Sendable (String) -> Int32] = [
                    { errnoOf(truncate($0, 4096)) }, { errnoOf(chmod($0, 0o600)) }, { put($0, [1, 2, 3]) },
                    { setAttribute($0, "user.a", [1]) },
                ]
                for change in changes {
                    let before = status(path)
                    mounted.onData { _, log in log.holdsApply = true }
                    let changer = Concurrent { #expect(change(path) == 0) }
                    usleep(20_000)
                    mounted.onData { _, log in
                        log.holdsApply = false
                        log.settle()
                    }
                    #expect(changer.ends(within: 2000))
                    changer.join()
                    let at = status(path)
                    mounted.settle()
                    usleep(20_000)
                    let after = status(path)
                    #expect(at?.st_ctim.tv_nsec != before?.st_ctim.tv_nsec)
                    #expect(at?.st_ctim.tv_sec == after?.st_ctim.tv_sec)
                    #expect(at?.st_ctim.tv_nsec == after?.st_ctim.tv_nsec)
                }
            }
        }

        @Test(arguments: [(0, CLINUX_SEEK_DATA), (65536, CLINUX_SEEK_DATA), (65536, CLINUX_SEEK_HOLE)])
        func lookingForDataDoesNotWaitForWhatIsWrittenMeanwhile(offset: Int, whence: Int32) throws {
            try withMounted { mounted in
                let path = mounted.path + "/busy"
                let bytes = 256 << 10
                let fd = open(path, O_WRONLY | O_CREAT, 0o644)
                #expect(ftruncate(fd, off_t(bytes)) == 0)
                mounted.settle()
                mounted.onData { _, log in log.holdsApply = true }
                #expect(pwrite(fd, "early", 5, 0) == 5)
                let early = mounted.onData { _, log in log.lastSeq }
                let seeker = Concurrent {
                    let other = open(path, O_RDONLY)
                    // Behind the first block the plain file has nothing, and the late write is not in it.
                    #expect(lseek(other, off_t(offset), whence) == off_t(offset))
                    close(other)
                }
                #expect(!seeker.ends(within: 50))
                // What is written back of a mapping passes by the kernel's lock of the file, which the seeker holds.
                let mappable = open(path, O_RDWR)
                let mapped = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, mappable, 0)!
                memset(mapped + 131_072, 7, 4096)
                posix_fadvise(mappable, 131_072, 4096, POSIX_FADV_DONTNEED)
                #expect(eventually { mounted.onData { _, log in log.lastSeq } > early })
                // As long as somebody might store more, everything would be data.
                munmap(mapped, bytes)
                close(mappable)
                #expect(
                    eventually { mounted.onData { at, _ in at.inodes.all.allSatisfy { $0.mappableHandles == 0 } } })
                mounted.onData { _, log in
                    log.appliesThrough = early
                    log.holdsApply = false
                    log.settle()
                }
                #expect(seeker.ends(within: 1000), "it waits for what came after it")
                mounted.onData { _, log in
                    log.appliesThrough = nil
                    log.settle()
                }
                seeker.join()
                close(fd)
            }
        }

        /// As cp and tar -S see it: what was stored through a mapping is in the file, though nobody has written it back.
        @Test(arguments: [0, CLINUX_O_DIRECT])
        func whatWasStoredThroughAMappingIsNoHole(flags: Int32) throws {
            try withMounted { mounted in
                let path = mounted.path + "/sparse"
                let size = 1 << 30
                let place = 512 << 20
                let fd = open(path, O_RDWR | O_CREAT | flags, 0o644)
                #expect(ftruncate(fd, off_t(size)) == 0)
                let mapped = try #require(mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0))
                try #require(mapped != MAP_FAILED)
                mounted.settle()
                memset(mapped + place, 7, 1)
                let reader = open(path, O_RDONLY)
                let data = lseek(reader, 0, CLINUX_SEEK_DATA)
                #expect(data >= 0 && data <= off_t(place))
                if data >= 0 { #expect(lseek(reader, data, CLINUX_SEEK_HOLE) > off_t(place)) }
                // Nobody can store any more: what is a hole is one.
                munmap(mapped, size)
                close(fd)
                #expect(eventually { lseek(reader, 0, CLINUX_SEEK_DATA) == off_t(place) })
                #expect(lseek(reader, off_t(place), CLINUX_SEEK_HOLE) < off_t(size))
                close(reader)
            }
        }

        @Test func blocksBehindTheEndDoNotStandForAHoleBeforeIt() throws {
            try withMounted { mounted in
                let path = mounted.path + "/holed"
                #expect(put(path, [UInt8](repeating: 1, count: 4096)) == 0)
                let fd = open(path, O_RDWR)
                #expect(ftruncate(fd, 65536) == 0)
                #expect(clinux_fallocate(fd, 1, 65536, 65536) == 0)
                mounted.settle()
                #expect(status(path)?.st_blocks ?? 0 >= 128)
                mounted.onData { _, log in log.spaceError = ENOSPC }
                #expect(pwrite(fd, [1], 1, 100) == 1)
                #expect(errnoOf(pwrite(fd, [1], 1, 8192)) == ENOSPC)
                mounted.onData { _, log in log.spaceError = nil }
                close(fd)
            }
        }

        @Test func allocatingWhatIsAllocatedNeedsNoSpace() throws {
            try withMounted { mounted in
                let path = mounted.path + "/dense"
                #expect(put(path, [UInt8](repeating: 1, count: 8192)) == 0)
                mounted.settle()
                mounted.onData { _, log in log.spaceError = ENOSPC }
                let fd = open(path, O_RDWR)
                #expect(clinux_fallocate(fd, 0, 0, 8192) == 0)
                #expect(clinux_fallocate(fd, 0x10, 0, 4096) == 0)
                #expect(clinux_fallocate(fd, 0, 0, 8193) == -ENOSPC)
                #expect(clinux_fallocate(fd, 1, 8192, 1) == -ENOSPC)
                mounted.onData { _, log in log.spaceError = nil }
                #expect(clinux_fallocate(fd, 0, 4096, 8192) == 0)
                // Only what was new is reckoned.
                #expect(mounted.onData { _, log in log.lastReckoned } == 4096)
                #expect(clinux_fallocate(fd, 0, 20_000, 10) == 0)
                #expect(mounted.onData { _, log in log.lastReckoned } == 10)
                close(fd)
            }
        }
    }
}
