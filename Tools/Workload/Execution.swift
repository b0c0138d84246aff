//  An operation done with system calls, as an application would.
import CLinux
import Foundation

/// Does operations in one directory. Not for several threads.
public final class Executor {
    private let root: String
    /// Aligned for O_DIRECT; the largest single write.
    private let buffer: UnsafeMutableRawPointer
    /// In bytes.
    public static let writeMax = 256 << 10

    public init(root: String) {
        self.root = root
        buffer = .allocate(byteCount: Executor.writeMax, alignment: 4096)
        buffer.initializeMemory(as: UInt8.self, repeating: 0, count: Executor.writeMax)
    }
    deinit { buffer.deallocate() }

    /// - Returns: what the system call said: at least 0 (for writes the bytes written), or a negated errno.
    public func perform(_ operation: FileOperation) -> Int {
        let path = full(operation.path)
        let other = full(operation.other)
        let here = CLINUX_AT_FDCWD
        switch operation.kind {
        case .create:
            let descriptor = clinux_open(path, O_WRONLY | O_CREAT | O_EXCL, UInt32(operation.value))
            return descriptor < 0 ? Int(descriptor) : Int(clinux_close(descriptor))
        case .write, .append: return write(operation, path)
        case .mapWrite: return mapWrite(operation, path)
        case .truncate: return with(path, O_WRONLY) { Int(clinux_ftruncate($0, UInt64(operation.length))) }
        case .allocate:
            return allocate(operation, path, operation.value == 0 ? 0 : CLINUX_FALLOC_KEEP_SIZE)
        case .punch: return allocate(operation, path, CLINUX_FALLOC_PUNCH_HOLE | CLINUX_FALLOC_KEEP_SIZE)
        case .zero:
            let keep = operation.value == 0 ? 0 : CLINUX_FALLOC_KEEP_SIZE
            return allocate(operation, path, CLINUX_FALLOC_ZERO_RANGE | keep)
        case .rename: return Int(clinux_renameat2(here, path, here, other, 0))
        case .exchange: return Int(clinux_renameat2(here, path, here, other, CLINUX_RENAME_EXCHANGE))
        case .link: return Int(clinux_linkat(here, path, here, other, 0))
        case .unlink: return unlink(path) == 0 ? 0 : -Int(errno)
        case .unlinkOpen: return unlinkOpen(operation, path)
        case .makeDirectory: return mkdir(path, mode_t(operation.value)) == 0 ? 0 : -Int(errno)
        case .removeDirectory: return rmdir(path) == 0 ? 0 : -Int(errno)
        case .symlink: return Foundation.symlink(operation.other, path) == 0 ? 0 : -Int(errno)
        case .makeNode:
            let isPipe = operation.other == FileOperation.NodeKind.pipe.rawValue
            // The null device.
            return Int(
                clinux_mknodat(
                    here, path, UInt32(operation.value) | UInt32(isPipe ? S_IFIFO : S_IFCHR), isPipe ? 0 : 0x103))
        case .mode: return Int(clinux_fchmodat(here, path, UInt32(operation.value)))
        case .owner:
            return Int(
                clinux_fchownat(
                    here, path, UInt32(operation.value), UInt32(operation.length), CLINUX_AT_SYMLINK_NOFOLLOW))
        case .times:
            let seconds = Int64(operation.value)
            let nanoseconds = UInt32(operation.length)
            return Int(
                clinux_utimens(
                    here, path, seconds, nanoseconds, seconds + 1, nanoseconds, CLINUX_AT_SYMLINK_NOFOLLOW))
        case .setAttribute:
            let value = patternBytes(operation.pattern, at: 0, count: operation.length)
            return Int(clinux_setxattr(path, operation.other, value, value.count, 0, 0))
        case .removeAttribute: return Int(clinux_removexattr(path, operation.other, 0))
        case .fsync: return with(path, O_RDONLY) { Int(clinux_fsync($0)) }
        case .fdatasync: return with(path, O_RDWR) { Int(clinux_fdatasync($0)) }
        case .syncDirectory: return with(path, O_RDONLY | CLINUX_O_DIRECTORY) { Int(clinux_fsync($0)) }
        }
    }

    private func full(_ path: String) -> String { path == "." ? root : root + "/" + path }

    private func with(_ path: String, _ flags: Int32, _ body: (Int32) -> Int) -> Int {
        let descriptor = clinux_open(path, flags | CLINUX_O_NOFOLLOW, 0)
        guard descriptor >= 0 else { return Int(descriptor) }
        let result = body(descriptor)
        let closed = clinux_close(descriptor)
        return result < 0 ? result : closed < 0 ? Int(closed) : result
    }

    private func allocate(_ operation: FileOperation, _ path: String, _ mode: Int32) -> Int {
        with(path, O_RDWR) {
            Int(clinux_fallocate($0, mode, UInt64(operation.offset), UInt64(operation.length)))
        }
    }

    private func fill(_ operation: FileOperation) {
        let bytes = patternBytes(operation.pattern, at: operation.offset, count: operation.length)
        bytes.withUnsafeBytes { buffer.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
    }

    private func write(_ operation: FileOperation, _ path: String) -> Int {
        fill(operation)
        var flags = O_WRONLY
        switch operation.access {
        case .buffered: break
        case .direct: flags |= CLINUX_O_DIRECT
        case .sync: flags |= CLINUX_O_SYNC
        case .dataSync: flags |= CLINUX_O_DSYNC
        case .directSync: flags |= CLINUX_O_DIRECT | CLINUX_O_DSYNC
        }
        if operation.kind == .append {
            return with(path, flags | O_APPEND) {
                let count = Foundation.write($0, buffer, operation.length)
                return count < 0 ? -Int(errno) : count
            }
        }
        return with(path, flags) { clinux_pwrite($0, buffer, operation.length, UInt64(operation.offset)) }
    }

    /// Stores through a shared mapping, then `msync`. The file is long enough.
    private func mapWrite(_ operation: FileOperation, _ path: String) -> Int {
        fill(operation)
        return with(path, O_RDWR) { descriptor in
            let start = operation.offset / 4096 * 4096
            let length = operation.offset + operation.length - start
            guard let map = mmap(nil, length, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, off_t(start)),
                map != MAP_FAILED
            else { return -Int(errno) }
            (map + (operation.offset - start)).copyMemory(from: buffer, byteCount: operation.length)
            var result = msync(map, length, Int32(MS_SYNC)) == 0 ? operation.length : -Int(errno)
            if munmap(map, length) != 0, result >= 0 { result = -Int(errno) }
            return result
        }
    }

    /// Removes a file that is open, and goes on using it: what one process does to it stays visible to that process.
    private func unlinkOpen(_ operation: FileOperation, _ path: String) -> Int {
        fill(operation)
        return with(path, O_RDWR) { descriptor in
            guard unlink(path) == 0 else { return -Int(errno) }
            let count = clinux_pwrite(descriptor, buffer, operation.length, UInt64(operation.offset))
            // Removed all the same: a full disk is none of its business.
            guard count == operation.length else { return 0 }
            var back = [UInt8](repeating: 0, count: operation.length)
            let read = clinux_pread(descriptor, &back, back.count, UInt64(operation.offset))
            if read != back.count { return 0 }
            let isSame = back.withUnsafeBytes { memcmp($0.baseAddress!, buffer, operation.length) == 0 }
            return isSame ? 0 : Executor.wrongBytes
        }
    }

    /// Not an errno: an open file without a name gave other bytes than were written to it.
    public static let wrongBytes = -10_000
}
