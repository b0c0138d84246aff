import Foundation
import Glibc
public import Quorum

/// What is wrong with the witness's directory, and what to do.
public struct VoteStoreError: Error, Sendable, CustomStringConvertible {
    public let description: String
    init(_ text: String) { description = text }
    init(_ action: String, _ path: String, _ code: Int32) {
        description =
            "cannot \(action) \(path): \(String(cString: strerror(code))). "
            + "Free space there, or mend the disk or the permissions of the state directory"
    }
}

/// The voters' memories on disk: `<32 hexadecimal digits of the mirror id>.votes`, each replaced as a whole, so that a
/// crash leaves the old or the new one. Every call waits for the disk.
public final class VoteStore {
    public let directory: String
    private let lock: Int32

    /// Makes the directory if it is not there, and locks it: two witnesses on one directory would vote twice.
    public init(directory: String) throws(VoteStoreError) {
        self.directory = directory
        if mkdir(directory, 0o700) != 0, errno != EEXIST { throw VoteStoreError("create", directory, errno) }
        let path = directory + "/lock"
        lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard lock >= 0 else { throw VoteStoreError("create", path, errno) }
        guard flock(lock, LOCK_EX | LOCK_NB) == 0 else {
            let code = errno
            close(lock)
            guard code == EWOULDBLOCK else { throw VoteStoreError("lock", path, code) }
            throw VoteStoreError(
                "another lockstep-witness uses \(directory): stop it, or give this one another state directory")
        }
    }

    deinit { close(lock) }

    /// A file that holds no valid memory, or cannot be read, with what is wrong. Its mirror gets no answer until it is
    /// dealt with: what it promised may be in there. The other mirrors have nothing to do with it.
    public struct Damage: Sendable {
        public let mirror: MirrorID
        public let description: String
    }

    private static let suffix = ".votes"
    private func path(_ mirror: MirrorID) -> String { directory + "/\(mirror)" + VoteStore.suffix }

    /// Everything there is; what an interrupted write left behind is removed.
    public func load() throws(VoteStoreError) -> (states: [AcceptorState], damaged: [Damage]) {
        let names: [String]
        do {
            names = try FileManager.default.contentsOfDirectory(atPath: directory).sorted()
        } catch {
            throw VoteStoreError("cannot list \(directory): \(error)")
        }
        var states: [AcceptorState] = []
        var damaged: [Damage] = []
        for name in names {
            if name.hasSuffix(".new") { unlink(directory + "/" + name) }
            guard name.hasSuffix(VoteStore.suffix), let mirror = VoteStore.mirror(inName: name) else { continue }
            let path = directory + "/" + name
            let bytes: [UInt8]
            do throws(VoteStoreError) {
                guard let found = try VoteStore.read(path) else { continue }
                bytes = found
            } catch {
                damaged.append(
                    Damage(
                        mirror: mirror,
                        description: "\(error), then restart the witness. If the file is lost for good, remove it and "
                            + "restart: the nodes then seed the witness anew, together, or the one that serves alone"))
                continue
            }
            do throws(DecodingError) {
                let state = try AcceptorState(decoding: bytes)
                guard state.mirror == mirror else { throw DecodingError("memory of mirror \(state.mirror)", at: 8) }
                states.append(state)
            } catch {
                damaged.append(
                    Damage(
                        mirror: mirror,
                        description: "\(path) is damaged (\(error)). Remove it and restart the witness: the nodes then "
                            + "seed it anew, together, or the one that serves alone"))
            }
        }
        return (states, damaged)
    }

    /// No file of ours comes near it.
    private static let fileBytesMaximum = 64 << 10

    /// nil when there is no such file.
    static func read(_ path: String) throws(VoteStoreError) -> [UInt8]? {
        let file = open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else {
            guard errno != ENOENT else { return nil }
            throw VoteStoreError("open", path, errno)
        }
        defer { close(file) }
        var bytes: [UInt8] = []
        var room = [UInt8](repeating: 0, count: 4096)
        // One that is longer is damaged, and its beginning is enough to find that.
        while bytes.count < fileBytesMaximum {
            let count = Glibc.read(file, &room, room.count)
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { throw VoteStoreError("read", path, errno) }
            guard count > 0 else { break }
            bytes += room[..<count]
        }
        return bytes
    }

    private static func mirror(inName name: String) -> MirrorID? {
        let digits = name.dropLast(suffix.count)
        guard digits.count == 32, let high = UInt64(digits.prefix(16), radix: 16),
            let low = UInt64(digits.suffix(16), radix: 16)
        else { return nil }
        return MirrorID(high: high, low: low)
    }

    /// Temporary file, flush, rename, flush of the directory; nil removes. Durable when it returns.
    public func store(_ state: AcceptorState?, of mirror: MirrorID) throws(VoteStoreError) {
        let path = path(mirror)
        guard let state else {
            guard unlink(path) == 0 || errno == ENOENT else { throw VoteStoreError("remove", path, errno) }
            return try flushDirectory()
        }
        try VoteStore.replace(path, with: state.encoded())
        try flushDirectory()
    }

    /// Temporary file, flush, rename: the old bytes or the new ones, whatever happens. The directory is not flushed.
    static func replace(_ path: String, with bytes: [UInt8]) throws(VoteStoreError) {
        let temporary = path + ".new"
        let file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard file >= 0 else { throw VoteStoreError("create", temporary, errno) }
        let count = write(file, bytes, bytes.count)
        let writeCode = count < 0 ? errno : ENOSPC
        let flushCode = fsync(file) == 0 ? 0 : errno
        close(file)
        guard count == bytes.count else { throw VoteStoreError("write", temporary, writeCode) }
        guard flushCode == 0 else { throw VoteStoreError("flush", temporary, flushCode) }
        guard rename(temporary, path) == 0 else { throw VoteStoreError("rename", temporary, errno) }
    }

    private func flushDirectory() throws(VoteStoreError) {
        let file = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard file >= 0 else { throw VoteStoreError("open", directory, errno) }
        defer { close(file) }
        guard fsync(file) == 0 else { throw VoteStoreError("flush", directory, errno) }
    }
}
