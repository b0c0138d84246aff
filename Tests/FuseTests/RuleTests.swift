import CLinux
import Dispatch
import Format
import Glibc
import Mounts
import Testing

@testable import Fuse

extension MountedTests {
    /// What an acknowledgement means, and what is seen while records are not applied yet.
    @Suite(.serialized) struct Acknowledgements {
        @Test func aSynchronousWriteIsAnsweredOnlyWhenItIsOnEveryDisk() throws {
            try withMounted { mounted in
                let path = mounted.path + "/redo"
                #expect(put(path, [0]) == 0)
                mounted.onData { _, log in log.holdsSync = true }
                for flag in [O_DSYNC, O_SYNC] {
                    let writer = Concurrent {
                        let fd = open(path, O_WRONLY | flag)
                        write(fd, "x", 1)
                        close(fd)
                    }
                    #expect(!writer.ends(within: 100), "answered before it was on every disk")
                    mounted.onData { _, log in
                        log.holdsSync = false
                        log.settle()
                        log.holdsSync = true
                    }
                    #expect(writer.ends(within: 2000))
                    writer.join()
                }
                let syncer = Concurrent {
                    let fd = open(path, O_WRONLY)
                    write(fd, "y", 1)
                    fdatasync(fd)
                    close(fd)
                }
                #expect(!syncer.ends(within: 100), "fdatasync came back before the data was on every disk")
                mounted.onData { _, log in
                    log.holdsSync = false
                    log.settle()
                }
                #expect(syncer.ends(within: 2000))
                syncer.join()
            }
        }

        @Test func aWriteWaitsForItsAcknowledgementAndNoLonger() throws {
            try withMounted { mounted in
                let path = mounted.path + "/w"
                #expect(put(path, [0]) == 0)
                mounted.onData { _, log in
                    log.holdsWrite = true
                    log.holdsSync = true
                }
                let writer = Concurrent { put(path, [1, 2, 3]) }
                #expect(!writer.ends(within: 100))
                mounted.onData { _, log in
                    log.holdsWrite = false
                    log.settle()
                }
                #expect(writer.ends(within: 2000))
                writer.join()
                mounted.onData { _, log in log.holdsSync = false }
            }
        }

        @Test func theSizeAfterAnAppendIsRightBeforeItIsApplied() throws {
            try withMounted { mounted in
                let path = mounted.path + "/append"
                #expect(put(path, bytes("0123456789")) == 0)
                mounted.settle()
                mounted.onData { _, log in log.holdsApply = true }
                let fd = open(path, O_WRONLY | O_APPEND)
                for index in 1...50 {
                    #expect(write(fd, "abcde", 5) == 5)
                    var seen = stat()
                    #expect(fstat(fd, &seen) == 0 && seen.st_size == off_t(10 + 5 * index))
                    #expect(status(path)?.st_size == off_t(10 + 5 * index))
                }
                #expect(chmod(path, 0o600) == 0)
                #expect(status(path)?.st_mode == S_IFREG | 0o600)
                #expect(truncate(path, 12) == 0)
                #expect(status(path)?.st_size == 12)
                close(fd)
                #expect(
                    status(mounted.backing + "/append")?.st_size == 10, "applied although held: no test of anything")
                mounted.onData { _, log in
                    log.holdsApply = false
                    log.settle()
                }
                mounted.settle()
                #expect(contents(path) == bytes("0123456789ab"))
                #expect(status(mounted.backing + "/append")?.st_mode == S_IFREG | 0o600)
                #expect(status(mounted.backing + "/append")?.st_mtim.tv_nsec == status(path)?.st_mtim.tv_nsec)
            }
        }

        @Test func aReadOfAnUnappliedRangeWaitsAndOtherReadsDoNot() throws {
            try withMounted { mounted in
                let path = mounted.path + "/r"
                #expect(put(path, [UInt8](repeating: 1, count: 1 << 20)) == 0)
                mounted.settle()
                mounted.onData { _, log in log.holdsApply = true }
                let fd = open(path, O_RDWR | CLINUX_O_DIRECT)
                let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
                memset(buffer.baseAddress!, 2, 4096)
                #expect(pwrite(fd, buffer.baseAddress!, 4096, 8192) == 4096)
                #expect(pread(fd, buffer.baseAddress!, 4096, 65536) == 4096)
                #expect(buffer[0] == 1)
                nonisolated(unsafe) let shared = buffer
                let reader = Concurrent { pread(fd, shared.baseAddress!, 4096, 8192) }
                #expect(!reader.ends(within: 100))
                mounted.onData { _, log in
                    log.holdsApply = false
                    log.settle()
                }
                #expect(reader.ends(within: 2000))
                reader.join()
                #expect(buffer.allSatisfy { $0 == 2 })
                buffer.deallocate()
                close(fd)
            }
        }

        @Test func aHoleBeforeAnUnappliedWriteReadsAsZeros() throws {
            try withMounted { mounted in
                let path = mounted.path + "/hole"
                #expect(put(path, [1]) == 0)
                mounted.settle()
                mounted.onData { _, log in log.holdsApply = true }
                let fd = open(path, O_RDWR)
                #expect(pwrite(fd, "end", 3, 1 << 20) == 3)
                var found = [UInt8](repeating: 9, count: 4096)
                #expect(pread(fd, &found, 4096, 500_000) == 4096)
                #expect(found.allSatisfy { $0 == 0 })
                close(fd)
                mounted.onData { _, log in
                    log.holdsApply = false
                    log.settle()
                }
            }
        }

        @Test func aRenameIsAnsweredWhenItIsInThePlainFiles() throws {
            try withMounted { mounted in
                let path = mounted.path + "/from"
                #expect(put(path, [1]) == 0)
                mounted.settle()
                mounted.onData { _, log in log.holdsApply = true }
                let target = mounted.path + "/to"
                let renamer = Concurrent { rename(path, target) }
                #expect(!renamer.ends(within: 100))
                mounted.onData { _, log in
                    log.holdsApply = false
                    log.settle()
                }
                #expect(renamer.ends(within: 2000))
                renamer.join()
                #expect(status(mounted.backing + "/to") != nil)
            }
        }

        @Test func aFullLogStopsWritersAndLosesNothing() throws {
            try withMounted { mounted in
                let path = mounted.path + "/pressure"
                #expect(put(path, [0]) == 0)
                mounted.onData { _, log in log.hasRoom = false }
                let writer = Concurrent { put(path, bytes("all of it")) }
                #expect(!writer.ends(within: 100))
                mounted.onData { _, log in
                    log.hasRoom = true
                    log.onRoom?()
                }
                #expect(writer.ends(within: 2000))
                writer.join()
                #expect(contents(path) == bytes("all of it"))
            }
        }

        @Test func recordsAreFullyResolved() throws {
            try withMounted { mounted in
                let path = mounted.path
                put(path + "/a", [1])
                put(path + "/b", [2])
                #expect(Glibc.link(path + "/b", path + "/c") == 0)
                #expect(rename(path + "/a", path + "/b") == 0)
                #expect(unlink(path + "/c") == 0)
                let bodies = mounted.onData { _, log in log.bodies }
                let files = bodies.compactMap { body -> FileID? in
                    if case .create(let file, _, _, _, _, _) = body { file } else { nil }
                }
                try #require(files.count == 2)
                #expect(
                    bodies.contains(
                        .rename(
                            file: files[0], parent: .root, name: bytes("a"), newParent: .root, newName: bytes("b"),
                            exchange: false, replaced: files[1], replacedWasLast: false)))
                #expect(
                    bodies.last
                        == .remove(file: files[1], parent: .root, name: bytes("c"), isDirectory: false, wasLast: true))
            }
        }

        @Test func aWriteByAnotherUserClearsSetUserID() throws {
            try withMounted { mounted in
                let path = mounted.path + "/suid"
                put(path, [1])
                #expect(chmod(path, 0o6777) == 0)
                #expect(
                    run("/usr/bin/setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", "echo x >> \(path)") == 0)
                #expect(status(path)?.st_mode == S_IFREG | 0o777)
                #expect(chmod(path, 0o6777) == 0)
                #expect(chown(path, 65534, 65534) == 0)
                #expect(status(path)?.st_mode == S_IFREG | 0o777)
                mounted.settle()
                #expect(status(mounted.backing + "/suid")?.st_mode == S_IFREG | 0o777)
            }
        }
    }

    /// The kernel goes by the mode that it knows when it executes a file: `id` tells whose rights it got.
    @Suite(.serialized) struct ChangedPrograms {
        private func asNobody(_ script: String) -> Int32 {
            run("/usr/bin/setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", script)
        }

        @Test(arguments: [
            "echo x >>PROGRAM", "dd if=/dev/zero of=PROGRAM bs=4k count=1 seek=100 oflag=direct conv=notrunc",
            "fallocate -l 1M PROGRAM", "truncate -s 1M PROGRAM",
        ])
        func aProgramThatAnotherUserChangedRunsWithoutItsPrivileges(change: String) throws {
            try withMounted { mounted in
                let path = mounted.path + "/id"
                try #require(run("/bin/cp", "/usr/bin/id", path) == 0)
                #expect(chmod(path, 0o4777) == 0)
                mounted.settle()
                #expect(status(path)?.st_mode == S_IFREG | 0o4777)
                #expect(asNobody("test $(\(path) -u) = 0") == 0, "needs a mount with set-user-id")
                let script = change.replacing("PROGRAM", with: path)
                let before = mounted.onData { _, log in log.bodies.count }
                #expect(asNobody("\(script); test $(\(path) -u) = 65534") == 0)
                // Before the change itself: a power cut may leave the one without the other.
                let first = mounted.onData { _, log in log.bodies.dropFirst(before).first }
                guard case .setAttributes(_, let mask, _) = first else {
                    Issue.record("the bit goes after the change")
                    return
                }
                #expect(mask.contains(.mode))
                #expect(status(path)?.st_mode == S_IFREG | 0o777)
                mounted.settle()
                #expect(status(mounted.backing + "/id")?.st_mode == S_IFREG | 0o777)
            }
        }

        @Test(arguments: ["echo x >>/proc/self/fd/9", "fallocate -l 1M /proc/self/fd/9"])
        func soDoesARemovedOne(change: String) throws {
            try withMounted { mounted in
                let path = mounted.path + "/id"
                try #require(run("/bin/cp", "/usr/bin/id", path) == 0)
                #expect(chmod(path, 0o4777) == 0)
                mounted.settle()
                #expect(status(path)?.st_mode == S_IFREG | 0o4777)
                let nobody = "setpriv --reuid=65534 --clear-groups sh -c"
                let test = "test $(/proc/self/fd/9 -u) ="
                let script = "exec 9<\(path); rm \(path); \(nobody) '\(test) 0 && \(change) && \(test) 65534'"
                #expect(run("/bin/sh", "-c", script) == 0)
            }
        }

        @Test func whatRootAllocatesForKeepsItsPrivileges() throws {
            try withMounted { mounted in
                let path = mounted.path + "/file"
                #expect(put(path, [1]) == 0 && chmod(path, 0o6777) == 0)
                #expect(run("/usr/bin/fallocate", "-l", "1M", path) == 0)
                #expect(status(path)?.st_mode == S_IFREG | 0o6777)
            }
        }
    }

    /// Leases come and go.
    @Suite(.serialized) struct SteppingDown {
        @Test func heldWritesDoNotFailAndGoOnWhenTheLeaseReturns() throws {
            try withMounted { mounted in
                let path = mounted.path + "/f"
                #expect(put(path, [0]) == 0)
                mounted.onData { directory, _ in directory.freeze() }
                let before = mounted.onData { _, log in log.lastSeq }
                let writers = (0..<8).map { index in
                    Concurrent {
                        #expect(put("\(path)\(index)", [UInt8](repeating: UInt8(index), count: 200_000)) == 0)
                    }
                }
                usleep(100_000)
                #expect(writers.allSatisfy { !$0.isFinished })
                #expect(mounted.onData { _, log in log.lastSeq } == before, "logged without a lease")
                mounted.onData { directory, _ in directory.thaw() }
                for writer in writers {
                    #expect(writer.ends(within: 5000))
                    writer.join()
                }
                for index in 0..<8 {
                    #expect(contents("\(path)\(index)") == [UInt8](repeating: UInt8(index), count: 200_000))
                }
            }
        }

        @Test func nothingIsAcknowledgedWithoutALease() throws {
            try withMounted { mounted in
                let path = mounted.path + "/f"
                #expect(put(path, [0]) == 0)
                mounted.onData { _, log in log.holdsWrite = true }
                let writer = Concurrent { put(path, [1]) }
                #expect(!writer.ends(within: 50))
                mounted.onData { directory, log in
                    directory.freeze()
                    log.holdsWrite = false
                    log.settle()
                }
                #expect(!writer.ends(within: 100), "an acknowledgement left a frozen node")
                mounted.onData { directory, _ in directory.thaw() }
                #expect(writer.ends(within: 2000))
                writer.join()
            }
        }

        @Test func aDeposedNodeAnswersEverythingHeldAndNewWithAnErrorWithinASecond() throws {
            try withMounted { mounted in
                let path = mounted.path + "/f"
                #expect(put(path, [0]) == 0)
                mounted.onData { _, log in log.holdsWrite = true }
                let held = Concurrent {
                    let fd = open(path, O_WRONLY)
                    #expect(errnoOf(write(fd, "x", 1)) == EIO)
                    close(fd)
                }
                #expect(!held.ends(within: 50))
                mounted.onData { directory, _ in directory.freeze() }
                let frozen = Concurrent { #expect(errnoOf(mkdir(mounted.path + "/d", 0o755)) == EIO) }
                #expect(!frozen.ends(within: 50))
                let before = mounted.onData { _, log in log.lastSeq }
                mounted.onData { directory, _ in directory.depose() }
                #expect(held.ends(within: 1000))
                #expect(frozen.ends(within: 1000))
                held.join()
                frozen.join()
                #expect(put(mounted.path + "/new", [1]) == EIO)
                #expect(mounted.onData { _, log in log.lastSeq } == before)
                mounted.onData { directory, log in
                    log.holdsWrite = false
                    directory.dismount {}
                }
                #expect(eventually { MountGuard.isPlaced(at: mounted.path) })
            }
        }

        /// A disk hangs, and every thread that reads waits for it: who waits for those reads hears so, and the mount comes away.
        @Test func failure24ADeposedNodeWhoseDiskHangsAnswersItsReadsAndTakesTheMountAway() throws {
            try withMounted { mounted in
                let path = mounted.path + "/f"
                #expect(put(path, [UInt8](repeating: 7, count: 8192)) == 0)
                mounted.settle()
                // Nobody has it in memory: a worker must read it.
                for place in [mounted.backing, mounted.path] { #expect(evict(place + "/f")) }
                let isReleased = DispatchSemaphore(value: 0)
                for _ in 0..<Mounted.workers { mounted.pool.submit { isReleased.wait() } }
                let reader = Concurrent {
                    let fd = open(path, O_RDONLY)
                    var byte: UInt8 = 0
                    #expect(errnoOf(pread(fd, &byte, 1, 0)) == EIO)
                    close(fd)
                }
                #expect(!reader.ends(within: 100))
                #expect(mounted.counters.readsByWorker == 1)
                mounted.onData { directory, _ in directory.dismount {} }
                #expect(reader.ends(within: 1000))
                #expect(eventually { mounted.onData { directory, _ in directory.state } == .ended })
                #expect(MountGuard.isPlaced(at: mounted.path))
                for _ in 0..<Mounted.workers { isReleased.signal() }
                reader.join()
            }
        }

        @Test func aNodeThatIsNotPrimaryRefusesAndSaysWhy() throws {
            try withMounted { mounted in
                put(mounted.path + "/f", [1])
                mounted.onData { directory, _ in directory.dismount {} }
                #expect(eventually { mounted.onData { directory, _ in directory.state } == .ended })
                #expect(errnoOf(open(mounted.path + "/f", O_RDONLY)) == ENOENT)
                #expect(errnoOf(open(mounted.path + "/new", O_WRONLY | O_CREAT, 0o644)) == EROFS)
                #expect(status(mounted.path + "/" + MountGuard.noticeName)?.st_mode == S_IFREG)
                try MountGuard.place(at: mounted.path, name: "test")
                #expect(MountTable.current()?.mounts(at: mounted.path).count == 1)
            }
        }

        @Test func aPlannedUnmountWritesMappingsBackAndNamesWhoIsInTheWay() throws {
            try withMounted { mounted in
                let path = mounted.path + "/busy"
                let fd = open(path, O_RDWR | O_CREAT, 0o644)
                #expect(write(fd, "x", 1) == 1)
                nonisolated(unsafe) var answer: FuseMountError??
                mounted.onData { directory, _ in directory.drainAndUnmount { answer = .some($0) } }
                #expect(eventually { mounted.onData { _, _ in answer != nil } })
                #expect(mounted.onData { _, _ in answer.flatMap { $0 }?.code } == EBUSY)
                #expect(mounted.onData { _, _ in answer.flatMap { $0 }?.remedy.contains("(\(getpid()))") } == true)
                close(fd)
                mounted.onData { directory, _ in
                    answer = nil
                    directory.drainAndUnmount { answer = .some($0) }
                }
                #expect(eventually { mounted.onData { _, _ in answer != nil } })
                #expect(mounted.onData { _, _ in answer.map { $0 == nil } } == true)
                #expect(mounted.onData { directory, _ in directory.state } == .ended)
                #expect(MountGuard.isPlaced(at: mounted.path))
            }
        }
    }
}
