import CLinux
import Format
import Glibc
import Synchronization
import Testing

@testable import Fuse

extension MountedTests {
    /// Files that are open and have no name any more.
    @Suite(.serialized) struct Removed {
        /// A file that is open and removed.
        private func removedFile(_ mounted: Mounted, _ name: String, _ content: [UInt8] = []) throws -> Int32 {
            let path = mounted.path + "/" + name
            let fd = open(path, O_RDWR | O_CREAT, 0o644)
            try #require(fd >= 0)
            if !content.isEmpty { #expect(write(fd, content, content.count) == content.count) }
            #expect(unlink(path) == 0)
            return fd
        }

        @Test func failure23FilesWithoutANameAskForSpaceToo() throws {
            try withMounted { mounted in
                let fd = try removedFile(mounted, "temporary", [UInt8](repeating: 1, count: 8192))
                #expect(pwrite(fd, [UInt8](repeating: 2, count: 8192), 8192, 8192) == 8192)
                #expect(clinux_fallocate(fd, 0, 16384, 4096) == 0)
                #expect(mounted.onData { _, log in log.localBytes } == 0, "granted and never given back")
                #expect(mounted.onData { _, log in log.localBytesMost } == 8192)
                mounted.onData { _, log in log.spaceError = ENOSPC }
                #expect(errnoOf(pwrite(fd, [1], 1, 30_000)) == ENOSPC)
                #expect(clinux_fallocate(fd, 1, 20480, 4096) == -ENOSPC)
                // What is allocated is overwritten, and room is made.
                #expect(pwrite(fd, [3], 1, 16383) == 1)
                #expect(clinux_fallocate(fd, 3, 0, 4096) == 0)
                #expect(ftruncate(fd, 4096) == 0)
                #expect(errnoOf(pwrite(fd, [1], 1, 4096)) == ENOSPC)
                mounted.onData { _, log in log.spaceError = nil }
                #expect(pwrite(fd, [1], 1, 4096) == 1)
                close(fd)
            }
        }

        @Test func payloadsThatWaitForAWorkerCount() throws {
            try withMounted { mounted in
                // The first write of all would ask for file capabilities, which a worker answers.
                let files = try (0..<24).map { try removedFile(mounted, "temporary\($0)", [1]) }
                defer { for fd in files { close(fd) } }
                let busy = Busy()
                for _ in 0..<3 { mounted.pool.submit { busy.wait() } }
                let writers = files.map { fd in
                    Concurrent {
                        let piece = [UInt8](repeating: 7, count: 1 << 20)
                        #expect(pwrite(fd, piece, piece.count, 0) == piece.count)
                    }
                }
                let most = MirroredDirectory.heldBytesMax
                #expect(eventually(5000) { mounted.onData { directory, _ in directory.heldBytes } == most })
                usleep(50_000)
                #expect(mounted.onData { directory, _ in directory.heldBytes } == most, "memory without a bound")
                busy.end()
                for writer in writers {
                    #expect(writer.ends(within: 10_000))
                    writer.join()
                }
                #expect(mounted.onData { directory, _ in directory.heldBytes } == 0)
            }
        }

        @Test func writersOfRemovedFilesDoNotOccupyAllWorkers() throws {
            try withMounted(on: "ext4") { mounted in
                put(mounted.path + "/other", [1])
                let files = try (0..<4).map { try removedFile(mounted, "temporary\($0)") }
                defer { for fd in files { close(fd) } }
                mounted.settle()
                // Whoever writes to the plain files waits; reading goes on.
                try #require(run("/sbin/fsfreeze", "-f", mounted.backing) == 0)
                let writers = files.map { fd in Concurrent { #expect(write(fd, "x", 1) == 1) } }
                usleep(100_000)
                let looker = Concurrent {
                    #expect(errnoOf(access(mounted.path + "/nothing", F_OK)) == ENOENT)
                    #expect(status(mounted.path + "/other")?.st_size == 1)
                }
                let isAnswered = looker.ends(within: 2000)
                let isWaiting = writers.allSatisfy { !$0.isFinished }
                #expect(run("/sbin/fsfreeze", "-u", mounted.backing) == 0)
                #expect(isAnswered, "lookups wait for writers of files that nobody else can see")
                #expect(isWaiting, "not frozen: no test of anything")
                for thread in writers + [looker] {
                    #expect(thread.ends(within: 5000))
                    thread.join()
                }
            }
        }

        @Test func fstatNeverFailsWhateverIsOpen() throws {
            try withMounted { mounted in
                let path = mounted.path
                #expect(errnoOf(mkfifo(path + "/pipe", 0o600)) == 0)
                #expect(errnoOf(mknod(path + "/null", S_IFCHR | 0o666, 0x103)) == 0)
                #expect(errnoOf(mkdir(path + "/directory", 0o755)) == 0)
                put(path + "/file", [1, 2, 3])
                #expect(errnoOf(symlink("away", path + "/link")) == 0)
                let open = [
                    open(path + "/pipe", O_RDWR), open(path + "/null", O_RDWR),
                    open(path + "/directory", O_RDONLY | CLINUX_O_DIRECTORY), open(path + "/file", CLINUX_O_PATH),
                    open(path + "/link", CLINUX_O_PATH | CLINUX_O_NOFOLLOW),
                ]
                #expect(open.allSatisfy { $0 >= 0 })
                for name in ["pipe", "null", "file", "link"] { #expect(errnoOf(unlink(path + "/" + name)) == 0) }
                #expect(errnoOf(rmdir(path + "/directory")) == 0)
                mounted.settle()
                for (fd, type) in zip(open, [S_IFIFO, S_IFCHR, S_IFDIR, S_IFREG, S_IFLNK]) {
                    var seen = stat()
                    #expect(errnoOf(fstat(fd, &seen)) == 0)
                    #expect(seen.st_mode & S_IFMT == type && seen.st_nlink == 0)
                    close(fd)
                }
                // And once the kernel knows them no more, neither do we.
                #expect(eventually { mounted.onData { directory, _ in directory.gone.count } == 0 })
            }
        }
    }
}

/// Keeps threads busy.
private final class Busy: Sendable {
    private let isOver = Atomic(false)
    func wait() { while !isOver.load(ordering: .acquiring) { usleep(1000) } }
    func end() { isOver.store(true, ordering: .releasing) }
}

@Suite struct RememberedFiles {
    private func inode(_ number: UInt64) -> Inode {
        Inode(
            new: FileID(rawValue: number),
            FileAttributes(mode: LinuxFlags.regular, uid: 0, gid: 0, rdev: 0, size: 0, atime: 0, mtime: 0), links: 1)
    }

    /// A program that makes and removes files for ever.
    @Test func filesThatAreRemovedLeaveNothingBehindInTheTable() {
        var table = InodeTable()
        for number in 1...100 { table.insert(inode(UInt64(number))) }
        for number in 1000..<200_000 {
            let file = inode(UInt64(number))
            table.insert(file)
            table.remove(file)
        }
        #expect(table.count == 100)
        #expect(table.queued < 10_000)
    }

    @Test func whatIsUsedStaysAndTheRestIsDroppedOldestFirst() {
        var table = InodeTable()
        let most = InodeTable.idleMax
        for number in 1...(most + 20_000) {
            let file = inode(UInt64(number))
            file.isRecent = false
            if number <= 10 { file.cachedHandles = 1 }
            table.insert(file)
            if number % 3 == 0 { table.remove(file) }
        }
        #expect(table.count <= most)
        #expect((1...10).allSatisfy { $0 % 3 == 0 || table[FileID(rawValue: UInt64($0))] != nil })
        #expect(table[FileID(rawValue: UInt64(most + 20_000))] != nil)
        #expect(table.queued <= 2 * table.count + 4096)
    }

    @Test func attributesOfGoneFilesAreKeptUpToABound() {
        var gone = GoneFiles()
        let most = UInt64(GoneFiles.filesMax)
        for number in 1...most + 5 { gone.insert(FuseAttributes(inode(number))) }
        #expect(gone.count == Int(most))
        #expect(gone[FileID(rawValue: 5)] == nil && gone[FileID(rawValue: 6)]?.file == FileID(rawValue: 6))
        for number in 1...most + 5 { gone.forget(FileID(rawValue: number)) }
        for number in most + 6...most + 100_000 {
            gone.insert(FuseAttributes(inode(number)))
            gone.forget(FileID(rawValue: number))
        }
        #expect(gone.count == 0)
        #expect(gone.queued < 1000)
    }
}
