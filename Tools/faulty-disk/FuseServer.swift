import CLinux
import Foundation

/// The few FUSE requests that a file under a loop device gets, answered one after the other.
///
/// Only one file, of a size that never changes, so all attributes are constants. It is opened past the page cache:
/// every read and write of the loop device arrives here, and a hang holds up reads as well.
@safe
final class FuseServer {
    let image: VolatileImage
    private(set) var descriptor: Int32 = -1
    /// The first 80 bytes of a request: header and the fixed part of a WRITE.
    private let head: UnsafeMutableRawBufferPointer
    /// The payload of a WRITE.
    private let payload: UnsafeMutableRawBufferPointer

    static let headBytes = 80
    /// The longest READ and WRITE, in bytes.
    static let transferBytes = 1 << 20
    private static let root: UInt64 = 1
    private static let file: UInt64 = 2
    private static let name = Array("disk".utf8)
    /// Attributes and names are good for a day: they never change.
    private static let validSeconds: UInt64 = 86_400

    init(_ image: VolatileImage) {
        self.image = image
        unsafe head = .allocate(byteCount: FuseServer.headBytes, alignment: 16)
        unsafe payload = .allocate(byteCount: FuseServer.transferBytes, alignment: VolatileImage.blockBytes)
    }

    deinit {
        unsafe head.deallocate()
        unsafe payload.deallocate()
    }

    /// Mounts under a type of its own, so that nobody who looks for mirrored directories takes it for one.
    func mount(at directory: String) throws {
        descriptor = clinux_fuse_open()
        guard descriptor >= 0 else { throw DiskError("Cannot open /dev/fuse", -descriptor) }
        let result = unsafe clinux_fuse_mount(descriptor, "fuse.faulty-disk", "faulty-disk", directory, 0)
        guard result == 0 else { throw DiskError("Cannot mount at \(directory)", -result) }
    }

    /// Answers what waits, but no more than a few requests, so that a signal is seen soon. False when the connection is
    /// gone: unmounted.
    func answerAll() throws -> Bool {
        for _ in 0..<16 {
            let count = unsafe clinux_fuse_receive(
                descriptor, head.baseAddress, head.count, payload.baseAddress, payload.count)
            switch count {
            case Int64(-EAGAIN): return true
            // ENOENT: the request was interrupted while it was read.
            case Int64(-EINTR), Int64(-ENOENT): continue
            case Int64(-ENODEV): return false
            case ..<40: throw DiskError("Cannot read a request", Int32(-min(count, 0)))
            default: try answer()
            }
        }
        return true
    }

    private func field<T: FixedWidthInteger & BitwiseCopyable>(_ offset: Int, _: T.Type) -> T {
        unsafe head.loadUnaligned(fromByteOffset: offset, as: T.self)
    }

    /// Opcodes and layouts: include/uapi/linux/fuse.h. Numbers are the machine's own byte order.
    private func answer() throws {
        let node = field(16, UInt64.self)
        switch field(4, UInt32.self) {
        case 1: lookUp()  // LOOKUP
        case 2, 36, 42: break  // FORGET, INTERRUPT and BATCH_FORGET get no answer
        case 3: reply(body: FuseServer.words(FuseServer.validSeconds, 0) + attributes(of: node))  // GETATTR
        case 14: reply(body: opened(flags: FuseServer.openFlags))  // OPEN
        case 27: reply(body: opened(flags: 0))  // OPENDIR
        case 15:  // READ
            unsafe send(image.bytes(at: Int(field(48, UInt64.self)), count: Int(field(56, UInt32.self))))
        case 16: write()  // WRITE
        case 20:  // FSYNC
            try image.flush()
            reply()
        case 26: initialize()  // INIT
        case 28: readDirectory()  // READDIR
        case 17: reply(body: [UInt8](repeating: 0, count: 80))  // STATFS
        case 18, 29, 38: reply()  // RELEASE, RELEASEDIR, DESTROY
        // Told once: the loop device then says that it cannot discard, and file systems write zeros themselves.
        case 43: reply(error: EOPNOTSUPP)  // FALLOCATE
        default: reply(error: ENOSYS)
        }
    }

    // MARK: Requests

    /// Version 7.31 is enough, and every kernel still speaks it.
    private func initialize() {
        let asyncRead: UInt32 = 1 << 0
        let bigWrites: UInt32 = 1 << 5
        let asyncDirectIO: UInt32 = 1 << 15
        let maxPages: UInt32 = 1 << 22
        // Not among them: the write-back cache. What was written must be here, not in the kernel.
        let flags = field(52, UInt32.self) & (asyncRead | bigWrites | asyncDirectIO | maxPages)
        let background = UInt32(64) | UInt32(48) << 16
        let pages = UInt32(FuseServer.transferBytes / 4096)
        let body = [7, 31, 128 << 10, flags, background, UInt32(FuseServer.transferBytes), 1, pages]
        reply(body: (body + [UInt32](repeating: 0, count: 8)).flatMap(FuseServer.bytes))
    }

    private func lookUp() {
        let length = Int(field(0, UInt32.self)) - 40
        let asked = unsafe Array(head[40..<min(head.count, 40 + max(0, length))].prefix { $0 != 0 })
        guard field(16, UInt64.self) == FuseServer.root, asked == FuseServer.name else { return reply(error: ENOENT) }
        let valid = FuseServer.validSeconds
        reply(body: FuseServer.words(FuseServer.file, 0, valid, valid, 0) + attributes(of: FuseServer.file))
    }

    private func write() {
        let size = field(56, UInt32.self)
        let bytes = unsafe UnsafeRawBufferPointer(rebasing: payload[..<min(payload.count, Int(size))])
        guard unsafe image.write(bytes, at: Int(field(48, UInt64.self))) else { return reply(error: ENOSPC) }
        reply(body: FuseServer.bytes(size) + FuseServer.bytes(UInt32(0)))
    }

    /// The whole directory in one answer; nothing at any later offset.
    private func readDirectory() {
        var body: [UInt8] = []
        let entries: [(node: UInt64, type: UInt32, name: [UInt8])] = [
            (FuseServer.root, 4, Array(".".utf8)), (FuseServer.root, 4, Array("..".utf8)),
            (FuseServer.file, 8, FuseServer.name),
        ]
        for (index, entry) in entries.enumerated() where field(48, UInt64.self) == 0 {
            body += FuseServer.words(entry.node, UInt64(index + 1))
            body += FuseServer.bytes(UInt32(entry.name.count)) + FuseServer.bytes(entry.type) + entry.name
            while body.count % 8 != 0 { body.append(0) }
        }
        reply(body: body)
    }

    /// FOPEN_DIRECT_IO, and no FLUSH at close(): whoever closes must not hang with the disk.
    private static let openFlags: UInt32 = 1 << 0 | 1 << 5

    private func opened(flags: UInt32) -> [UInt8] { FuseServer.words(0, UInt64(flags)) }

    /// struct fuse_attr.
    private func attributes(of node: UInt64) -> [UInt8] {
        let isFile = node == FuseServer.file
        let size = UInt64(isFile ? image.byteCount : 0)
        let mode: UInt32 = isFile ? 0o100600 : 0o040700
        let rest: [UInt32] = [0, 0, 0, mode, isFile ? 1 : 2, 0, 0, 0, UInt32(VolatileImage.blockBytes), 0]
        return FuseServer.words(node, size, size / 512, 0, 0, 0) + rest.flatMap(FuseServer.bytes)
    }

    // MARK: Answers

    private static func bytes<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
        unsafe withUnsafeBytes(of: value) { unsafe Array($0) }
    }

    private static func words(_ values: UInt64...) -> [UInt8] { values.flatMap(bytes) }

    private func reply(error: Int32 = 0, body: [UInt8] = []) {
        unsafe body.withUnsafeBytes { unsafe send($0, error: error) }
    }

    /// An answer to a request that was given up meanwhile is refused by the kernel, and nobody misses it.
    private func send(_ body: UnsafeRawBufferPointer, error: Int32 = 0) {
        let header =
            FuseServer.bytes(UInt32(16 + body.count)) + FuseServer.bytes(-error)
            + FuseServer.bytes(field(8, UInt64.self))
        unsafe _ = header.withUnsafeBytes {
            unsafe clinux_fuse_send(descriptor, $0.baseAddress, $0.count, body.baseAddress, body.count)
        }
    }
}
