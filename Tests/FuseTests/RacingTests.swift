import CLinux
import Format
import Glibc
import Testing

@testable import Fuse

extension MountedTests {
    /// An open that meets a removal or a replacement gets one file or the other, as on a local file system.
    @Suite(.serialized) struct Racing {
        @Test func anOpenOfAFileThatIsBeingReplacedWaitsAndGetsTheNewOne() throws {
            try withMounted { mounted in
                let path = mounted.path + "/config"
                put(path, bytes("old"))
                put(path + ".new", bytes("new"))
                mounted.settle()
                // The kernel knows the name from here on, and asks no more for it.
                #expect(contents(path) == bytes("old"))
                mounted.onData { _, log in log.holdsApply = true }
                let before = mounted.onData { _, log in log.lastSeq }
                let renamer = Concurrent { #expect(errnoOf(rename(path + ".new", path)) == 0) }
                #expect(eventually { mounted.onData { _, log in log.lastSeq } > before })
                let opener = Concurrent { #expect(contents(path) == bytes("new"), "error \(errno)") }
                #expect(!opener.ends(within: 50))
                mounted.onData { _, log in
                    log.holdsApply = false
                    log.settle()
                }
                #expect(renamer.ends(within: 2000))
                #expect(opener.ends(within: 2000))
                renamer.join()
                opener.join()
                #expect(mounted.counters.opensLate > 0, "the open met no removal: no test of anything")
            }
        }

        @Test func whoeverOpensWhileFilesAreReplacedNeverMeetsAnError() throws {
            try withMounted { mounted in
                let path = mounted.path + "/current"
                let size = 5000
                put(path, [UInt8](repeating: 0, count: size))
                let end = Clock(seconds: 3)
                let writers = (1...2).map { number in
                    Concurrent {
                        var round = 0
                        while !end.isOver {
                            round += 1
                            let next = path + ".\(number)"
                            #expect(put(next, [UInt8](repeating: UInt8(round & 255), count: size)) == 0)
                            #expect(errnoOf(rename(next, path)) == 0)
                        }
                        #expect(round > 20)
                    }
                }
                let readers = (0..<6).map { number in
                    Concurrent {
                        while !end.isOver {
                            let fd = open(path, number % 2 == 0 ? O_RDONLY : O_RDWR)
                            guard fd >= 0 else {
                                Issue.record("open: error \(errno)")
                                return
                            }
                            var found = [UInt8](repeating: 1, count: size + 1)
                            let count = read(fd, &found, found.count)
                            #expect(count == size && found[..<size].allSatisfy { $0 == found[0] })
                            close(fd)
                        }
                    }
                }
                for thread in writers + readers { thread.join() }
                // What was kept for them goes.
                #expect(eventually(10_000) { mounted.onData { directory, _ in !directory.late.isExpecting } })
                #expect(
                    eventually {
                        run("/bin/sh", "-c", "test -z \"$(ls -A \(mounted.backing)/.lockstep/staging)\"") == 0
                    })
            }
        }

        @Test func whoeverCreatesOrOpensWhileTheFileIsRemovedNeverMeetsAnError() throws {
            try withMounted { mounted in
                let path = mounted.path + "/lock"
                let end = Clock(seconds: 3)
                let removers = (0..<2).map { _ in
                    Concurrent {
                        while !end.isOver {
                            let error = errnoOf(unlink(path))
                            #expect(error == 0 || error == ENOENT)
                        }
                    }
                }
                let makers = (0..<4).map { _ in
                    Concurrent {
                        while !end.isOver {
                            let fd = open(path, O_RDWR | O_CREAT, 0o644)
                            guard fd >= 0 else {
                                Issue.record("open: error \(errno)")
                                return
                            }
                            #expect(write(fd, "x", 1) == 1)
                            var seen = stat()
                            #expect(fstat(fd, &seen) == 0 && seen.st_size == 1)
                            close(fd)
                        }
                    }
                }
                for thread in removers + makers { thread.join() }
            }
        }
    }
}

/// A moment that comes.
private struct Clock: Sendable {
    private let end: Int
    init(seconds: Int) { end = time(nil) + seconds }
    var isOver: Bool { time(nil) >= end }
}

@Suite struct LateOpenTests {
    private func inode(_ number: UInt64) -> Inode {
        Inode(
            new: FileID(rawValue: number),
            FileAttributes(mode: LinuxFlags.regular, uid: 0, gid: 0, rdev: 0, size: 0, atime: 0, mtime: 0), links: 0)
    }

    @Test func whoDoesNotComeIsExpectedForAWhileOnly() {
        var late = LateOpens()
        late.late(7, now: 0)
        late.late(8, now: 3_000_000_000)
        late.giveUp(now: 4_999_999_999)
        #expect(late.expects(7))
        late.giveUp(now: 5_000_000_000)
        #expect(!late.expects(7) && late.expects(8))
        late.found(8, now: 7_000_000_000)
        late.giveUp(now: 11_000_000_000)
        #expect(late.isExpecting)
        // Whoever looks up names for ever opens nothing.
        for _ in 1..<LateOpens.lookupsMax { late.found(8, now: 7_000_000_000) }
        #expect(late.isExpecting)
        late.found(8, now: 7_000_000_000)
        #expect(!late.isExpecting)
    }

    @Test func aBoundedNumberOfFilesIsKeptEachOnce() {
        var late = LateOpens()
        late.late(7, now: 0)
        let inodes = (1...UInt64(LateOpens.keptMax) + 1).map { inode($0) }
        for inode in inodes.dropLast() {
            #expect(late.keep(inode) == nil)
            #expect(late.keep(inode) == nil)
        }
        #expect(late.keep(inodes.last!) === inodes[0])
        #expect(late.letGo().isEmpty, "let go while somebody is expected")
        late.came(7)
        #expect(late.letGo().count == LateOpens.keptMax)
        #expect(late.letGo().isEmpty)
    }
}
