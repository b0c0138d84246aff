//  What happens to a room's disk images (see `Room.addDisk`): power cuts, and disks that get full or hang.
import CLinux
import Foundation

extension Room {
    /// The power goes: what the file systems of the room's images have not written is lost, and with faulty disks what
    /// they have not flushed. Call it after `killAll`; the images are mounted again, and their file systems recover, at
    /// `reboot`.
    ///
    /// - Parameter unflushed: says it for faulty disks; other images lose only what never left the page cache.
    public func loseUnwrittenData(_ unflushed: UnflushedBlocks = .areLost) throws {
        // The disks first, because they need no answer: no file system writes while the others are shut down.
        for image in images { try image.faultyDisk?.cut(unflushed) }
        for image in images where image.faultyDisk == nil { try shutDownFileSystem(at: image.mountPoint) }
    }

    /// The faulty disk under a mount point answers nothing from now on, reads neither, until `releaseDisk`. Whoever waits
    /// for it cannot be killed meanwhile.
    public func hangDisk(at mountPoint: String) throws { try faultyDisk(at: mountPoint).signal(SIGUSR1) }

    /// A hung disk goes on, and answers what waited, in order.
    public func releaseDisk(at mountPoint: String) throws { try faultyDisk(at: mountPoint).signal(SIGUSR2) }

    private func faultyDisk(at mountPoint: String) throws -> FaultyDisk {
        guard let disk = images.first(where: { $0.mountPoint == mountPoint })?.faultyDisk else {
            throw RoomsError("Room \(name) has no faulty disk at \(mountPoint): make it with addDisk(isFaulty: true).")
        }
        return disk
    }

    /// The file system of one image writes nothing from now on, and every call on it fails: what is left of a disk that broke.
    public func shutDownFileSystem(at mountPoint: String) throws {
        try withDirectory(mountPoint) { descriptor in
            let error = clinux_fs_shutdown(descriptor, 2)
            guard error == 0 else {
                throw RoomsError(
                    "Cannot shut down the file system at \(mountPoint) in room \(name): \(String(cString: strerror(-error)))."
                )
            }
        }
    }

    /// Every write to the file system of one image hangs, until `thawFileSystem`.
    public func freezeFileSystem(at mountPoint: String) throws {
        try inMounts(["fsfreeze", "--freeze", mountPoint])
    }

    public func thawFileSystem(at mountPoint: String) throws {
        try inMounts(["fsfreeze", "--unfreeze", mountPoint])
    }

    /// Takes space on the file system of one image, with a file that has no name.
    ///
    /// - Parameter bytes: what is left free, nearly.
    /// - Returns: what holds the space, until it is closed.
    public func fillFileSystem(at mountPoint: String, leaving bytes: Int) throws -> HeldSpace {
        try withDirectory(mountPoint) { descriptor in
            let file = clinux_open("/proc/self/fd/\(descriptor)", CLINUX_O_TMPFILE | O_RDWR, 0o600)
            guard file >= 0 else {
                throw RoomsError("Cannot fill \(mountPoint) in room \(name): \(String(cString: strerror(-file))).")
            }
            let held = HeldSpace(descriptor: file)
            var space = clinux_statfs()
            var at = 0
            // A piece at a time: the file system takes some for itself.
            while clinux_fstatfs(descriptor, &space) == 0 {
                let free = Int(space.blocks_available * space.block_size) - bytes
                guard free >= 1 << 16 else { break }
                let piece = max(1 << 16, free / 2)
                guard clinux_fallocate(file, 0, UInt64(at), UInt64(piece)) == 0 else { break }
                at += piece
            }
            return held
        }
    }

    private func withDirectory<T>(_ path: String, _ body: (Int32) throws -> T) throws -> T {
        let descriptor = clinux_open(hostPath(path), CLINUX_O_DIRECTORY | O_RDONLY, 0)
        guard descriptor >= 0 else {
            throw RoomsError("Cannot open \(path) in room \(name): \(String(cString: strerror(-descriptor))).")
        }
        defer { _ = clinux_close(descriptor) }
        return try body(descriptor)
    }
}

/// Space of a file system that is taken until `release`.
public final class HeldSpace: Sendable {
    private let descriptor: Int32
    init(descriptor: Int32) { self.descriptor = descriptor }
    deinit { _ = clinux_close(descriptor) }
}
