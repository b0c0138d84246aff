internal import CLinux
internal import Glibc
internal import Mounts

/// What stands at the application's path while this node is not primary: an empty, read-only file system with one file
/// whose name says why.
///
/// It is mounted before anything else and stays: the mirrored directory is mounted over it and, when that goes, at
/// whatever moment and for whatever reason, the guard is what is seen. So nobody ever writes into the bare directory
/// below, and nobody reads stale data. Everything under it answers "no such file", and every write EROFS, to root too.
public enum MountGuard {
    /// The name that an administrator sees.
    public static let noticeName = "THIS-NODE-IS-NOT-PRIMARY"

    /// Clears away what a killed daemon left mounted, and puts the guard at `path`. Does nothing when it is there.
    ///
    /// - Parameter name: the mirror's name, shown in mount tables.
    public static func place(at path: String, name: String) throws(FuseMountError) {
        MirrorMounts.detach(path)
        if isPlaced(at: path) { return }
        let result = unsafe clinux_mount_guard(sourcePrefix + name, path)
        guard result == 0 else {
            throw FuseMountError(
                "put the guard at", path, code: -result,
                remedy: -result == ENOENT || -result == ENOTDIR
                    ? "Create the directory, or correct `path` in the configuration" : "Run lockstepd as root")
        }
        let notice = path + "/" + noticeName
        let descriptor = unsafe open(notice, O_WRONLY | O_CREAT | O_CLOEXEC, 0)
        let code = errno
        if descriptor >= 0 { _ = close(descriptor) }
        let sealed = unsafe clinux_remount_guard_read_only(path)
        guard descriptor >= 0, sealed == 0 else {
            _ = unsafe clinux_unmount(path, 1, 0)
            throw FuseMountError("seal the guard at", path, code: descriptor < 0 ? code : -sealed, remedy: "Try again")
        }
    }

    /// Takes the guard away, for `lockstep adopt` and removal of a mirror.
    public static func remove(at path: String) {
        guard isPlaced(at: path) else { return }
        _ = unsafe clinux_unmount(path, 1, 0)
    }

    /// Whether the guard is what is seen at `path`.
    public static func isPlaced(at path: String) -> Bool {
        guard let top = MountTable.current()?.top(at: path) else { return false }
        return top.type == "tmpfs" && top.source.hasPrefix(sourcePrefix)
    }

    /// Aborts and detaches mirrored directories that an earlier process left at `path`.
    public static func clear(_ path: String) { MirrorMounts.detach(path) }

    private static let sourcePrefix = "lockstep-guard:"
}
