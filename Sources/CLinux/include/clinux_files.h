/// File system calls and constants that Swift's Glibc module does not export.
///
/// Every function that can fail returns a value below zero, the negated errno (0 or a count otherwise).
#ifndef CLINUX_FILES_H
#define CLINUX_FILES_H
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/// Open flags, AT_ flags, rename and fallocate modes: values of this machine's headers.
extern const int CLINUX_O_DIRECT, CLINUX_O_TMPFILE, CLINUX_O_PATH, CLINUX_O_NOATIME, CLINUX_O_DSYNC, CLINUX_O_SYNC,
    CLINUX_O_DIRECTORY, CLINUX_O_NOFOLLOW, CLINUX_O_CLOEXEC;
extern const int CLINUX_AT_EMPTY_PATH, CLINUX_AT_SYMLINK_NOFOLLOW, CLINUX_AT_SYMLINK_FOLLOW, CLINUX_AT_FDCWD,
    CLINUX_AT_REMOVEDIR;
extern const unsigned CLINUX_RENAME_NOREPLACE, CLINUX_RENAME_EXCHANGE;
extern const int CLINUX_FALLOC_KEEP_SIZE, CLINUX_FALLOC_PUNCH_HOLE, CLINUX_FALLOC_ZERO_RANGE,
    CLINUX_FALLOC_COLLAPSE_RANGE, CLINUX_FALLOC_INSERT_RANGE, CLINUX_FALLOC_UNSHARE_RANGE;
extern const int CLINUX_SEEK_DATA, CLINUX_SEEK_HOLE;
extern const int CLINUX_XATTR_CREATE, CLINUX_XATTR_REPLACE;

/// `open` and `openat` without variable arguments; close-on-exec always.
int clinux_open(const char *path, int flags, unsigned mode);
int clinux_openat(int directory, const char *path, int flags, unsigned mode);
int clinux_close(int fd);

/// The largest file handle that the kernel gives out.
enum { CLINUX_HANDLE_BYTES = 128 };
/// A file system's own name for an inode, flat, so that it can be stored.
struct clinux_handle {
    int32_t type;
    uint32_t length;
    uint8_t bytes[CLINUX_HANDLE_BYTES];
};
/// `flags`: AT_EMPTY_PATH, AT_SYMLINK_FOLLOW. -EOPNOTSUPP: this file system has no handles (overlayfs).
int clinux_name_to_handle(int directory, const char *path, int flags, struct clinux_handle *out, int *mount_id);
/// -ESTALE: the inode is gone (or recycled). `mount_fd` is any descriptor on that mount, not O_PATH.
int clinux_open_by_handle(int mount_fd, const struct clinux_handle *handle, int flags);

int clinux_renameat2(int old_directory, const char *old_path, int new_directory, const char *new_path, unsigned flags);
int clinux_linkat(int old_directory, const char *old_path, int new_directory, const char *new_path, int flags);
int clinux_mknodat(int directory, const char *path, unsigned mode, uint64_t device);
int clinux_fallocate(int fd, int mode, uint64_t offset, uint64_t length);
int clinux_syncfs(int fd);
int clinux_fsync(int fd);
int clinux_fdatasync(int fd);
/// Writes what the page cache holds of a range, and waits for it; nothing is durable by that (sync_file_range).
int clinux_write_out(int fd, uint64_t offset, uint64_t length);
int clinux_ftruncate(int fd, uint64_t size);
/// FS_IOC_SHUTDOWN: the file system stops writing at once, as a power cut would (ext4, xfs). For tests.
/// `mode`: 0 flush everything, 1 flush the log, 2 flush nothing.
int clinux_fs_shutdown(int fd, uint32_t mode);

/// Flags of an inode, as lsattr shows them.
extern const uint32_t CLINUX_INODE_APPEND, CLINUX_INODE_IMMUTABLE, CLINUX_INODE_EXTENTS, CLINUX_INODE_INLINE_DATA,
    CLINUX_INODE_PROJECT_INHERIT, CLINUX_INODE_CASEFOLD, CLINUX_INODE_ENCRYPTED, CLINUX_INODE_VERITY;
/// FS_IOC_GETFLAGS.
int clinux_inode_flags(int fd, uint32_t *flags);

/// FS_IOC_FIEMAP: the extent at or behind `offset`, flushed first. `written` is 0 for one that is only allocated.
/// 0 when there is none.
int clinux_next_extent(int fd, uint64_t offset, uint64_t *start, uint64_t *length, int *written);

/// Reads only what is in the page cache: -EAGAIN when that needs the disk (RWF_NOWAIT).
ssize_t clinux_pread_nowait(int fd, void *buffer, size_t length, uint64_t offset);
ssize_t clinux_pread(int fd, void *buffer, size_t length, uint64_t offset);
ssize_t clinux_pwrite(int fd, const void *buffer, size_t length, uint64_t offset);
ssize_t clinux_pwritev(int fd, const struct iovec *vectors, int count, uint64_t offset);

/// statx, flat.
struct clinux_stat {
    uint64_t inode, size, blocks /* of 512 bytes */, mount_id;
    uint32_t mode, links, user, group, block_size, device_major, device_minor, special_major, special_minor;
    /// Bits of STATX_*: what the file system filled in.
    uint32_t mask;
    int64_t access_s, modify_s, change_s, birth_s;
    uint32_t access_ns, modify_ns, change_ns, birth_ns;
    /// Alignment that O_DIRECT needs for memory and offsets, in bytes; 0 when the kernel does not tell.
    uint32_t direct_memory_alignment, direct_offset_alignment;
};
/// With AT_EMPTY_PATH and "" the descriptor itself.
int clinux_statx(int directory, const char *path, int flags, struct clinux_stat *out);

/// Times to set; CLINUX_TIME_OMIT leaves one as it is.
extern const uint32_t CLINUX_TIME_OMIT;
/// `path` may be "" with AT_EMPTY_PATH: then the descriptor itself, which may be O_PATH.
int clinux_utimens(int directory, const char *path, int64_t access_s, uint32_t access_ns, int64_t modify_s,
                   uint32_t modify_ns, int flags);
int clinux_fchmodat(int directory, const char *path, unsigned mode);
int clinux_fchownat(int directory, const char *path, uint32_t user, uint32_t group, int flags);

/// Extended attributes by path, following or (`follow` 0) not following a last symbolic link. An O_PATH descriptor has
/// none of its own: use "/proc/self/fd/N" with `follow` 1.
ssize_t clinux_getxattr(const char *path, const char *name, void *value, size_t capacity, int follow);
int clinux_setxattr(const char *path, const char *name, const void *value, size_t length, int flags, int follow);
ssize_t clinux_listxattr(const char *path, char *names, size_t capacity, int follow);
int clinux_removexattr(const char *path, const char *name, int follow);
ssize_t clinux_fgetxattr(int fd, const char *name, void *value, size_t capacity);
int clinux_fsetxattr(int fd, const char *name, const void *value, size_t length, int flags);
int clinux_fremovexattr(int fd, const char *name);
ssize_t clinux_flistxattr(int fd, char *names, size_t capacity);

/// statfs, flat. `type` is the magic number: ext4 0xEF53, xfs 0x58465342, btrfs 0x9123683E, FUSE 0x65735546.
struct clinux_statfs {
    uint64_t type, block_size, fragment_size, blocks, blocks_free, blocks_available, files, files_free, name_length;
};
int clinux_fstatfs(int fd, struct clinux_statfs *out);

/// btrfs keeps the names of a directory that share a hash in one item, which must fit into a leaf. `free`: bytes that the
/// next such name may have; UINT64_MAX when there is none yet. Needs CAP_SYS_ADMIN.
int clinux_btrfs_free_for_names(int directory, uint64_t inode, uint32_t hash, uint64_t *free);

/// An exclusive lock on the whole file, held by the open file; -EWOULDBLOCK when another process has it.
int clinux_lock_exclusive(int fd);

/// Fills the flat directory stream: entries as the kernel gives them (struct linux_dirent64). 0 at the end.
ssize_t clinux_getdents(int fd, void *buffer, size_t capacity);

int clinux_mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data);
/// `flags`: CLINUX_MNT_DETACH, CLINUX_MNT_FORCE.
int clinux_umount(const char *target, int flags);
extern const int CLINUX_MNT_DETACH, CLINUX_MNT_FORCE;
extern const unsigned long CLINUX_MS_NOSUID, CLINUX_MS_NODEV, CLINUX_MS_NOATIME;
#endif
