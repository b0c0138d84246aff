import Format
import Foundation
import Glibc
import Quorum

/// The voter's memory on disk: replaced as a whole, so that a crash leaves the old or the new one and never a mixture.
/// Blocking; used from a thread of its own, so that a slow disk never looks like a dead node.
struct VoteFile: Sendable {
    let path: String

    enum Failure: Error, CustomStringConvertible {
        case system(String, String, Int32)
        case damaged(String, DecodingError)
        var description: String {
            switch self {
            case .system(let action, let path, let code):
                unsafe "cannot \(action) \(path): \(String(cString: strerror(code))). Mend the disk or its permissions, then start again"
            case .damaged(let path, let error):
                "\(path), this node's votes, is damaged (\(error)). Remove it only together with the journal: this node "
                    + "then joins as a new one; then run `lockstep init`"
            }
        }
    }

    /// nil when there is no file: the voter is empty.
    func load() throws -> AcceptorState? {
        guard let data = FileManager.default.contents(atPath: path) else {
            guard unsafe access(path, F_OK) != 0 else { throw Failure.system("read", path, errno) }
            return nil
        }
        do {
            return try AcceptorState(decoding: [UInt8](data))
        } catch {
            throw Failure.damaged(path, error)
        }
    }

    /// Temporary file, flush, rename, flush of the directory; nil removes the file.
    func store(_ state: AcceptorState?) throws {
        guard let state else {
            guard unsafe unlink(path) == 0 || errno == ENOENT else { throw Failure.system("remove", path, errno) }
            return try flushDirectory()
        }
        let temporary = path + ".new"
        let descriptor = unsafe open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw Failure.system("create", temporary, errno) }
        let bytes = state.encoded()
        let written = unsafe bytes.withUnsafeBytes { buffer in
            unsafe write(descriptor, buffer.baseAddress, buffer.count)
        }
        let writeError = errno
        let flushed = fsync(descriptor)
        let flushError = errno
        let closed = close(descriptor)
        guard written == bytes.count else {
            throw Failure.system("write", temporary, written < 0 ? writeError : ENOSPC)
        }
        guard flushed == 0 else { throw Failure.system("flush", temporary, flushError) }
        guard closed == 0 else { throw Failure.system("close", temporary, errno) }
        guard unsafe rename(temporary, path) == 0 else { throw Failure.system("rename", temporary, errno) }
        try flushDirectory()
    }

    private func flushDirectory() throws {
        let directory = (path as NSString).deletingLastPathComponent
        let descriptor = unsafe open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw Failure.system("open", directory, errno) }
        defer { close(descriptor) }
        guard fsync(descriptor) == 0 else { throw Failure.system("flush", directory, errno) }
    }
}
