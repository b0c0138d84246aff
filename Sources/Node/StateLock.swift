import CLinux
import Configuration
import Foundation
import Glibc
import Ring

/// One process at a time works on a node's state directory: the daemon, or a command that prepares the node. Held until it
/// goes away.
struct StateLock: ~Copyable {
    private let descriptor: FileDescriptor

    /// - Throws: when another process has it; the words name that one.
    init(_ configuration: MirrorConfiguration) throws { descriptor = try StateLock.take(configuration) }

    private static func take(_ configuration: MirrorConfiguration) throws -> FileDescriptor {
        let path = StateFiles.lock(configuration)
        let raw = unsafe open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard raw >= 0 else {
            throw StartError("cannot create \(path): \(errorText(errno)). Mend the disk or its permissions")
        }
        let descriptor = FileDescriptor(owning: raw)
        guard clinux_lock_exclusive(raw) >= 0 else {
            var text = [UInt8](repeating: 0, count: 16)
            let count = unsafe pread(raw, &text, text.count, 0)
            let holder = String(decoding: text.prefix(max(0, count)), as: UTF8.self)
            throw StartError(
                "lockstepd runs here already for mirror \(configuration.name) (process \(holder)): `lockstep status` "
                    + "asks it, and it alone may use \(configuration.state)")
        }
        // Only for the words above: a full disk is no reason not to start.
        let number = Array("\(getpid())".utf8)
        if ftruncate(raw, 0) == 0 { _ = unsafe pwrite(raw, number, number.count, 0) }
        return descriptor
    }
}
