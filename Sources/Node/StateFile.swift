import Foundation
import Glibc

/// A file of the state directory that is replaced as a whole, so that a crash leaves the old or the new one and never a
/// mixture. Blocking.
enum StateFile {
    struct Failure: Error, CustomStringConvertible {
        var action: String
        var path: String
        var code: Int32
        /// Without what to do.
        var cause: String { unsafe "cannot \(action) \(path): \(String(cString: strerror(code)))" }
        var description: String { "\(cause). Mend the disk or its permissions, then start again" }
    }

    /// nil when there is no file.
    static func load(_ path: String) throws(Failure) -> [UInt8]? {
        if let data = FileManager.default.contents(atPath: path) { return [UInt8](data) }
        guard unsafe access(path, F_OK) != 0 else { throw Failure(action: "read", path: path, code: errno) }
        return nil
    }

    /// Temporary file, flush, rename, flush of the directory.
    static func replace(_ path: String, with bytes: [UInt8]) throws(Failure) {
        let temporary = path + ".new"
        let descriptor = unsafe open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw Failure(action: "create", path: temporary, code: errno) }
        var failure = write(bytes, to: descriptor, temporary)
        if failure == nil, fsync(descriptor) != 0 { failure = Failure(action: "flush", path: temporary, code: errno) }
        if close(descriptor) != 0, failure == nil { failure = Failure(action: "close", path: temporary, code: errno) }
        if let failure { throw failure }
        guard unsafe rename(temporary, path) == 0 else { throw Failure(action: "rename", path: temporary, code: errno) }
        try flushDirectory(of: path)
    }

    private static func write(_ bytes: [UInt8], to descriptor: Int32, _ path: String) -> Failure? {
        unsafe bytes.withUnsafeBytes { buffer in
            var done = 0
            while done < buffer.count {
                let rest = unsafe UnsafeRawBufferPointer(rebasing: buffer[done...])
                let count = unsafe Glibc.write(descriptor, rest.baseAddress, rest.count)
                if count < 0, errno == EINTR { continue }
                guard count > 0 else { return Failure(action: "write", path: path, code: count < 0 ? errno : ENOSPC) }
                done += count
            }
            return nil
        }
    }

    /// Removes the file; one that is not there is no error.
    static func remove(_ path: String) throws(Failure) {
        guard unsafe unlink(path) == 0 || errno == ENOENT else {
            throw Failure(action: "remove", path: path, code: errno)
        }
        try flushDirectory(of: path)
    }

    /// Renames the file over `other`, and flushes the directory; a file that is not there is no error.
    static func putAside(_ path: String, as other: String) throws(Failure) {
        guard unsafe rename(path, other) == 0 || errno == ENOENT else {
            throw Failure(action: "rename", path: path, code: errno)
        }
        try flushDirectory(of: path)
    }

    /// The names on the way to a file or directory, its own included, are on the disk when this returns.
    /// - Parameter path: absolute.
    static func flushNames(of path: String) throws(Failure) {
        var path = path
        while path != "/", !path.isEmpty {
            do throws(Failure) { try flushDirectory(of: path) } catch {
                // Some file systems know of no flush of a directory.
                guard error.code == EINVAL else { throw error }
            }
            path = (path as NSString).deletingLastPathComponent
        }
    }

    private static func flushDirectory(of path: String) throws(Failure) {
        let directory = (path as NSString).deletingLastPathComponent
        let descriptor = unsafe open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw Failure(action: "open", path: directory, code: errno) }
        defer { close(descriptor) }
        guard fsync(descriptor) == 0 else { throw Failure(action: "flush", path: directory, code: errno) }
    }
}
