import CLinux
import Format
import Glibc
import Testing

@testable import Fuse

/// Everything that mounts runs one after the other.
@Suite(.serialized) enum MountedTests {}

extension MountedTests {
    @Suite(.serialized) struct Files {
        @Test func whatIsWrittenIsReadBackAndInThePlainFiles() throws {
            try withMounted { mounted in
                let path = mounted.path + "/a"
                #expect(put(path, bytes("hello")) == 0)
                #expect(contents(path) == bytes("hello"))
                mounted.settle()
                #expect(contents(mounted.backing + "/a") == bytes("hello"))
                #expect(status(path)?.st_size == 5)
                #expect(mkdir(mounted.path + "/d", 0o755) == 0)
                #expect(rename(path, mounted.path + "/d/b") == 0)
                #expect(contents(mounted.path + "/d/b") == bytes("hello"))
                #expect(errnoOf(open(path, O_RDONLY)) == ENOENT)
                #expect(errnoOf(rmdir(mounted.path + "/d")) == ENOTEMPTY)
                #expect(unlink(mounted.path + "/d/b") == 0)
                #expect(rmdir(mounted.path + "/d") == 0)
            }
        }

        @Test(arguments: [0, O_SYNC, O_DSYNC])
        func largeFilesKeepEveryByteWithAnyKindOfWrite(flags: Int32) throws {
            try withMounted { mounted in
                let path = mounted.path + "/large"
                let data = (0..<3_300_000).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 9) }
                #expect(put(path, data, flags: flags) == 0)
                #expect(contents(path) == data)
                mounted.settle()
                #expect(contents(mounted.backing + "/large") == data)
            }
        }

        @Test func directWritesAndReadsPassThePageCacheAndKeepEveryByte() throws {
            try withMounted { mounted in
                let fd = open(mounted.path + "/direct", O_RDWR | O_CREAT | CLINUX_O_DIRECT, 0o644)
                try #require(fd >= 0)
                let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 65536, alignment: 4096)
                defer { buffer.deallocate() }
                for block in 0..<16 {
                    memset(buffer.baseAddress!, Int32(block + 1), 65536)
                    #expect(pwrite(fd, buffer.baseAddress!, 65536, off_t(block * 65536)) == 65536)
                }
                for block in [15, 0, 7] {
                    #expect(pread(fd, buffer.baseAddress!, 65536, off_t(block * 65536)) == 65536)
                    #expect(buffer.allSatisfy { $0 == UInt8(block + 1) })
                }
                // A reader beside it sees a direct write at once, and so does one that opened before.
                let reader = open(mounted.path + "/direct", O_RDONLY)
                var byte: UInt8 = 0
                #expect(pread(reader, &byte, 1, 0) == 1 && byte == 1)
                memset(buffer.baseAddress!, 99, 4096)
                #expect(pwrite(fd, buffer.baseAddress!, 4096, 0) == 4096)
                #expect(pread(reader, &byte, 1, 0) == 1 && byte == 99)
                close(reader)
                close(fd)
            }
        }

        @Test func aCachedReaderSeesWhatADirectWriterWrites() throws {
            try withMounted { mounted in
                let path = mounted.path + "/mixed"
                #expect(put(path, [UInt8](repeating: 1, count: 8192)) == 0)
                let reader = open(path, O_RDONLY)
                var byte: UInt8 = 0
                #expect(pread(reader, &byte, 1, 5000) == 1 && byte == 1)
                let writer = open(path, O_RDWR | CLINUX_O_DIRECT)
                let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
                defer { buffer.deallocate() }
                memset(buffer.baseAddress!, 2, 4096)
                #expect(pwrite(writer, buffer.baseAddress!, 4096, 4096) == 4096)
                #expect(pread(reader, &byte, 1, 5000) == 1 && byte == 2)
                close(writer)
                close(reader)
            }
        }

        /// Linux before 6.6: files that are open past the page cache cannot be mapped there.
        @Test func aDirectHandleTakesNobodysMappingWhereTheKernelCannotMapPastThePageCache() throws {
            try withMounted(lacking: .directIOAllowMmap) { mounted in
                let path = mounted.path + "/mapped"
                #expect(put(path, [UInt8](repeating: 1, count: 8192)) == 0)
                let direct = open(path, O_RDWR | CLINUX_O_DIRECT)
                let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
                defer { buffer.deallocate() }
                #expect(pread(direct, buffer.baseAddress!, 4096, 4096) == 4096)
                let fd = open(path, O_RDWR)
                let mapped = mmap(nil, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)!
                try #require(mapped != MAP_FAILED, "error \(errno)")
                // Each sees what the other does.
                #expect(mapped.load(fromByteOffset: 4096, as: UInt8.self) == 1)
                memset(buffer.baseAddress!, 2, 4096)
                #expect(pwrite(direct, buffer.baseAddress!, 4096, 4096) == 4096)
                #expect(mapped.load(fromByteOffset: 4096, as: UInt8.self) == 2)
                memset(mapped, 3, 1)
                #expect(pread(direct, buffer.baseAddress!, 4096, 0) == 4096 && buffer[0] == 3)
                munmap(mapped, 8192)
                close(fd)
                close(direct)
            }
        }

        @Test func appendsGoToTheEndWhoeverAppends() throws {
            try withMounted { mounted in
                let path = mounted.path + "/log"
                let first = open(path, O_WRONLY | O_CREAT | O_APPEND, 0o644)
                let second = open(path, O_WRONLY | O_APPEND)
                for index in 0..<200 {
                    #expect(write(index % 2 == 0 ? first : second, "line\n", 5) == 5)
                }
                close(first)
                close(second)
                #expect(contents(path)?.count == 1000)
                let direct = open(path, O_WRONLY | O_APPEND | CLINUX_O_DIRECT)
                let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
                defer { buffer.deallocate() }
                memset(buffer.baseAddress!, 7, 4096)
                #expect(write(direct, buffer.baseAddress!, 4096) == 4096)
                #expect(write(direct, buffer.baseAddress!, 4096) == 4096)
                close(direct)
                #expect(status(path)?.st_size == 1000 + 8192)
                mounted.settle()
                #expect(contents(mounted.backing + "/log")?.count == 1000 + 8192)
            }
        }

        @Test func sharedMappingsAndDeepQueuesOfLibaioKeepEveryByte() throws {
            try withMounted { mounted in
                for engine in ["mmap", "libaio", "psync"] {
                    let result = run(
                        "/usr/bin/fio", "--name=t", "--directory=\(mounted.path)", "--filename=\(engine)", "--size=4m",
                        "--rw=randwrite", "--bs=4k", "--verify=crc32c", "--verify_state_save=0", "--verify_fatal=1",
                        "--ioengine=\(engine)",
                        "--iodepth=32", "--direct=\(engine == "libaio" ? 1 : 0)", "--fsync_on_close=1")
                    #expect(result == 0, "fio with \(engine)")
                }
                mounted.settle()
                #expect(contents(mounted.path + "/mmap") == contents(mounted.backing + "/mmap"))
            }
        }

        @Test func aFileUnlinkedWhileOpenStaysUsableAndItsWritesStayLocal() throws {
            try withMounted { mounted in
                let path = mounted.path + "/temporary"
                let fd = open(path, O_RDWR | O_CREAT, 0o600)
                #expect(write(fd, "before", 6) == 6)
                #expect(unlink(path) == 0)
                let logged = mounted.onData { _, log in log.lastSeq }
                #expect(pwrite(fd, "after!", 6, 6) == 6)
                var found = [UInt8](repeating: 0, count: 20)
                #expect(pread(fd, &found, 20, 0) == 12)
                #expect(Array(found[..<12]) == bytes("beforeafter!"))
                var seen = stat()
                #expect(fstat(fd, &seen) == 0 && seen.st_nlink == 0 && seen.st_size == 12)
                #expect(ftruncate(fd, 3) == 0)
                #expect(fsync(fd) == 0)
                #expect(fstat(fd, &seen) == 0 && seen.st_size == 3)
                #expect(mounted.onData { _, log in log.lastSeq } == logged, "a change of a removed file was logged")
                close(fd)
                // Its last handle is gone, and so is the file: nothing is left in staging.
                usleep(50_000)
                #expect(run("/bin/sh", "-c", "test -z \"$(ls -A \(mounted.backing)/.lockstep/staging)\"") == 0)
            }
        }

        @Test func tenThousandNamesAreListedOnceEach() throws {
            try withMounted { mounted in
                let directory = mounted.path + "/many"
                #expect(mkdir(directory, 0o755) == 0)
                mounted.settle()
                for index in 0..<10_000 {
                    #expect(errnoOf(mknod("\(directory)/file\(index)", S_IFREG | 0o644, 0)) == 0)
                }
                var names: Set<String> = []
                let stream = try #require(opendir(directory))
                while let entry = readdir(stream) {
                    let name = withUnsafeBytes(of: &entry.pointee.d_name) {
                        String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
                    }
                    #expect(names.insert(name).inserted, "\(name) twice")
                }
                closedir(stream)
                #expect(names.count == 10_002)
                #expect(run("/bin/sh", "-c", "test $(ls -l \(directory) | wc -l) = 10001") == 0)
            }
        }

        @Test func ourOwnDirectoryAndNumbersAreInvisibleAndRefused() throws {
            try withMounted { mounted in
                let path = mounted.path + "/x"
                put(path, [1])
                #expect(errnoOf(open(mounted.path + "/.lockstep", O_RDONLY)) == ENOENT)
                #expect(errnoOf(mkdir(mounted.path + "/.lockstep", 0o755)) == EPERM)
                #expect(errnoOf(rename(path, mounted.path + "/.lockstep")) == EPERM)
                #expect(run("/bin/sh", "-c", "! ls -A \(mounted.path) | grep -q lockstep") == 0)
                let own = "trusted.lockstep.fid"
                #expect(attribute(path, own) == .failure(FuseErrno(ENODATA)))
                #expect(setAttribute(path, own, [1]) == EPERM)
                #expect(removeAttribute(path, own) == EPERM)
                #expect(attributeNames(path).isEmpty)
                mounted.settle()
                #expect(attributeNames(mounted.backing + "/x") == [own])
            }
        }

        @Test func whatCannotBeReplicatedIsRefusedWithTheUsualErrors() throws {
            try withMounted { mounted in
                let fd = open(mounted.path + "/f", O_RDWR | O_CREAT, 0o644)
                #expect(ftruncate(fd, 65536) == 0)
                #expect(clinux_fallocate(fd, 0x08, 4096, 4096) == -EOPNOTSUPP)
                #expect(clinux_fallocate(fd, 0x20, 4096, 4096) == -EOPNOTSUPP)
                #expect(setAttribute(mounted.path + "/f", "system.posix_acl_access", [2, 0, 0, 0]) != 0)
                #expect(errnoOf(open(mounted.path, 0o20200000 | O_RDWR, 0o600)) == EOPNOTSUPP)
                #expect(
                    errnoOf(open(mounted.path + "/" + String(repeating: "n", count: 256), O_RDONLY)) == ENAMETOOLONG)
                close(fd)
            }
        }

        @Test func fullDisksAreToldToTheApplicationBeforeAnythingIsLogged() throws {
            try withMounted { mounted in
                let path = mounted.path + "/full"
                #expect(put(path, [UInt8](repeating: 1, count: 8192)) == 0)
                mounted.onData { _, log in log.spaceError = ENOSPC }
                let before = mounted.onData { _, log in log.lastSeq }
                let fd = open(path, O_RDWR)
                #expect(errnoOf(pwrite(fd, [1, 2, 3], 3, 100_000)) == ENOSPC)
                #expect(errnoOf(mkdir(mounted.path + "/d", 0o755)) == ENOSPC)
                #expect(mounted.onData { _, log in log.lastSeq } == before)
                // What is allocated can be overwritten, and room can be made.
                #expect(pwrite(fd, [9], 1, 17) == 1)
                #expect(ftruncate(fd, 100) == 0)
                close(fd)
                #expect(unlink(path) == 0)
                mounted.onData { _, log in log.spaceError = nil }
            }
        }
    }
}
