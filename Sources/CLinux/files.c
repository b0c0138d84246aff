#include "clinux_files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <linux/btrfs.h>
#include <linux/btrfs_tree.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#ifndef FS_IOC_SHUTDOWN
#define FS_IOC_SHUTDOWN _IOR('X', 125, __u32)
#endif

const int CLINUX_O_DIRECT = O_DIRECT, CLINUX_O_TMPFILE = O_TMPFILE, CLINUX_O_PATH = O_PATH,
          CLINUX_O_NOATIME = O_NOATIME, CLINUX_O_DSYNC = O_DSYNC, CLINUX_O_SYNC = O_SYNC,
          CLINUX_O_DIRECTORY = O_DIRECTORY, CLINUX_O_NOFOLLOW = O_NOFOLLOW, CLINUX_O_CLOEXEC = O_CLOEXEC;
const int CLINUX_AT_EMPTY_PATH = AT_EMPTY_PATH, CLINUX_AT_SYMLINK_NOFOLLOW = AT_SYMLINK_NOFOLLOW,
          CLINUX_AT_SYMLINK_FOLLOW = AT_SYMLINK_FOLLOW, CLINUX_AT_FDCWD = AT_FDCWD, CLINUX_AT_REMOVEDIR = AT_REMOVEDIR;
const unsigned CLINUX_RENAME_NOREPLACE = RENAME_NOREPLACE, CLINUX_RENAME_EXCHANGE = RENAME_EXCHANGE;
const int CLINUX_FALLOC_KEEP_SIZE = FALLOC_FL_KEEP_SIZE, CLINUX_FALLOC_PUNCH_HOLE = FALLOC_FL_PUNCH_HOLE,
          CLINUX_FALLOC_ZERO_RANGE = FALLOC_FL_ZERO_RANGE, CLINUX_FALLOC_COLLAPSE_RANGE = FALLOC_FL_COLLAPSE_RANGE,
          CLINUX_FALLOC_INSERT_RANGE = FALLOC_FL_INSERT_RANGE, CLINUX_FALLOC_UNSHARE_RANGE = FALLOC_FL_UNSHARE_RANGE;
const int CLINUX_SEEK_DATA = SEEK_DATA, CLINUX_SEEK_HOLE = SEEK_HOLE;
const int CLINUX_XATTR_CREATE = XATTR_CREATE, CLINUX_XATTR_REPLACE = XATTR_REPLACE;
const uint32_t CLINUX_TIME_OMIT = UTIME_OMIT;
const int CLINUX_MNT_DETACH = MNT_DETACH, CLINUX_MNT_FORCE = MNT_FORCE;
const unsigned long CLINUX_MS_NOSUID = MS_NOSUID, CLINUX_MS_NODEV = MS_NODEV, CLINUX_MS_NOATIME = MS_NOATIME;

static int checked(long result) { return result < 0 ? -errno : (int)result; }
static ssize_t counted(ssize_t result) { return result < 0 ? -errno : result; }

int clinux_open(const char *path, int flags, unsigned mode) { return checked(open(path, flags | O_CLOEXEC, mode)); }
int clinux_openat(int directory, const char *path, int flags, unsigned mode) {
    return checked(openat(directory, path, flags | O_CLOEXEC, mode));
}
int clinux_close(int fd) { return checked(close(fd)); }

// The kernel's struct file_handle ends in a flexible array; here it has room for the largest one.
union handle_room {
    struct file_handle handle;
    char room[sizeof(struct file_handle) + CLINUX_HANDLE_BYTES];
};
_Static_assert(CLINUX_HANDLE_BYTES >= MAX_HANDLE_SZ, "a handle must fit");

int clinux_name_to_handle(int directory, const char *path, int flags, struct clinux_handle *out, int *mount_id) {
    union handle_room room = {.handle.handle_bytes = CLINUX_HANDLE_BYTES};
    int mount = 0;
    if (name_to_handle_at(directory, path, &room.handle, &mount, flags) < 0) return -errno;
    if (room.handle.handle_bytes > CLINUX_HANDLE_BYTES) return -EOVERFLOW;
    memset(out, 0, sizeof *out);
    out->type = room.handle.handle_type;
    out->length = room.handle.handle_bytes;
    memcpy(out->bytes, room.room + offsetof(struct file_handle, f_handle), out->length);
    if (mount_id) *mount_id = mount;
    return 0;
}

int clinux_open_by_handle(int mount_fd, const struct clinux_handle *handle, int flags) {
    if (handle->length > CLINUX_HANDLE_BYTES) return -EINVAL;
    union handle_room room = {.handle = {.handle_bytes = handle->length, .handle_type = handle->type}};
    memcpy(room.room + offsetof(struct file_handle, f_handle), handle->bytes, handle->length);
    return checked(open_by_handle_at(mount_fd, &room.handle, flags | O_CLOEXEC));
}

int clinux_renameat2(int old_directory, const char *old_path, int new_directory, const char *new_path, unsigned flags) {
    return checked(renameat2(old_directory, old_path, new_directory, new_path, flags));
}
int clinux_linkat(int old_directory, const char *old_path, int new_directory, const char *new_path, int flags) {
    return checked(linkat(old_directory, old_path, new_directory, new_path, flags));
}
int clinux_mknodat(int directory, const char *path, unsigned mode, uint64_t device) {
    return checked(mknodat(directory, path, mode, (dev_t)device));
}
int clinux_fallocate(int fd, int mode, uint64_t offset, uint64_t length) {
    return checked(fallocate(fd, mode, (off_t)offset, (off_t)length));
}
int clinux_syncfs(int fd) { return checked(syncfs(fd)); }
int clinux_fsync(int fd) { return checked(fsync(fd)); }
int clinux_fdatasync(int fd) { return checked(fdatasync(fd)); }
int clinux_write_out(int fd, uint64_t offset, uint64_t length) {
    unsigned flags = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    return checked(sync_file_range(fd, (off_t)offset, (off_t)length, flags));
}
int clinux_ftruncate(int fd, uint64_t size) { return checked(ftruncate(fd, (off_t)size)); }
int clinux_next_extent(int fd, uint64_t offset, uint64_t *start, uint64_t *length, int *written) {
    union {
        struct fiemap map;
        char space[sizeof(struct fiemap) + sizeof(struct fiemap_extent)];
    } request;
    memset(&request, 0, sizeof request);
    request.map.fm_start = offset;
    request.map.fm_length = UINT64_MAX - offset;
    request.map.fm_flags = FIEMAP_FLAG_SYNC;
    request.map.fm_extent_count = 1;
    if (ioctl(fd, FS_IOC_FIEMAP, &request) != 0) return -errno;
    if (request.map.fm_mapped_extents == 0) return 0;
    *start = request.map.fm_extents[0].fe_logical;
    *length = request.map.fm_extents[0].fe_length;
    *written = (request.map.fm_extents[0].fe_flags & FIEMAP_EXTENT_UNWRITTEN) == 0;
    return 1;
}

const uint32_t CLINUX_INODE_APPEND = FS_APPEND_FL, CLINUX_INODE_IMMUTABLE = FS_IMMUTABLE_FL,
               CLINUX_INODE_EXTENTS = FS_EXTENT_FL, CLINUX_INODE_INLINE_DATA = FS_INLINE_DATA_FL,
               CLINUX_INODE_PROJECT_INHERIT = FS_PROJINHERIT_FL, CLINUX_INODE_CASEFOLD = FS_CASEFOLD_FL,
               CLINUX_INODE_ENCRYPTED = FS_ENCRYPT_FL, CLINUX_INODE_VERITY = FS_VERITY_FL;
int clinux_inode_flags(int fd, uint32_t *flags) { return checked(ioctl(fd, FS_IOC_GETFLAGS, flags)); }

int clinux_fs_shutdown(int fd, uint32_t mode) { return checked(ioctl(fd, FS_IOC_SHUTDOWN, &mode)); }

ssize_t clinux_pread_nowait(int fd, void *buffer, size_t length, uint64_t offset) {
    struct iovec vector = {.iov_base = buffer, .iov_len = length};
    return counted(preadv2(fd, &vector, 1, (off_t)offset, RWF_NOWAIT));
}
ssize_t clinux_pread(int fd, void *buffer, size_t length, uint64_t offset) {
    return counted(pread(fd, buffer, length, (off_t)offset));
}
ssize_t clinux_pwrite(int fd, const void *buffer, size_t length, uint64_t offset) {
    return counted(pwrite(fd, buffer, length, (off_t)offset));
}
ssize_t clinux_pwritev(int fd, const struct iovec *vectors, int count, uint64_t offset) {
    return counted(pwritev(fd, vectors, count, (off_t)offset));
}

int clinux_statx(int directory, const char *path, int flags, struct clinux_stat *out) {
    struct statx found;
    unsigned mask = STATX_BASIC_STATS | STATX_BTIME | 0x1000 /* mount id */ | 0x2000 /* O_DIRECT alignment */;
    if (statx(directory, path, flags, mask, &found) < 0) return -errno;
    // glibc 2.36 does not name the two alignment fields that follow stx_mnt_id (kernel 6.1).
    uint32_t alignment[2] = {0, 0};
    if (found.stx_mask & 0x2000)
        memcpy(alignment, (const char *)&found + offsetof(struct statx, stx_mnt_id) + sizeof(uint64_t), sizeof alignment);
    *out = (struct clinux_stat){
        .inode = found.stx_ino,
        .size = found.stx_size,
        .blocks = found.stx_blocks,
        .mount_id = found.stx_mnt_id,
        .mode = found.stx_mode,
        .links = found.stx_nlink,
        .user = found.stx_uid,
        .group = found.stx_gid,
        .block_size = found.stx_blksize,
        .device_major = found.stx_dev_major,
        .device_minor = found.stx_dev_minor,
        .special_major = found.stx_rdev_major,
        .special_minor = found.stx_rdev_minor,
        .mask = found.stx_mask,
        .access_s = found.stx_atime.tv_sec,
        .modify_s = found.stx_mtime.tv_sec,
        .change_s = found.stx_ctime.tv_sec,
        .birth_s = found.stx_btime.tv_sec,
        .access_ns = found.stx_atime.tv_nsec,
        .modify_ns = found.stx_mtime.tv_nsec,
        .change_ns = found.stx_ctime.tv_nsec,
        .birth_ns = found.stx_btime.tv_nsec,
        .direct_memory_alignment = alignment[0],
        .direct_offset_alignment = alignment[1],
    };
    return 0;
}

int clinux_utimens(int directory, const char *path, int64_t access_s, uint32_t access_ns, int64_t modify_s,
                   uint32_t modify_ns, int flags) {
    struct timespec times[2] = {{.tv_sec = access_s, .tv_nsec = access_ns}, {.tv_sec = modify_s, .tv_nsec = modify_ns}};
    return checked(syscall(SYS_utimensat, directory, path, times, flags));
}
int clinux_fchmodat(int directory, const char *path, unsigned mode) { return checked(fchmodat(directory, path, mode, 0)); }
int clinux_fchownat(int directory, const char *path, uint32_t user, uint32_t group, int flags) {
    return checked(fchownat(directory, path, user, group, flags));
}

ssize_t clinux_getxattr(const char *path, const char *name, void *value, size_t capacity, int follow) {
    return counted(follow ? getxattr(path, name, value, capacity) : lgetxattr(path, name, value, capacity));
}
int clinux_setxattr(const char *path, const char *name, const void *value, size_t length, int flags, int follow) {
    return checked(follow ? setxattr(path, name, value, length, flags) : lsetxattr(path, name, value, length, flags));
}
ssize_t clinux_listxattr(const char *path, char *names, size_t capacity, int follow) {
    return counted(follow ? listxattr(path, names, capacity) : llistxattr(path, names, capacity));
}
int clinux_removexattr(const char *path, const char *name, int follow) {
    return checked(follow ? removexattr(path, name) : lremovexattr(path, name));
}
ssize_t clinux_fgetxattr(int fd, const char *name, void *value, size_t capacity) {
    return counted(fgetxattr(fd, name, value, capacity));
}
int clinux_fsetxattr(int fd, const char *name, const void *value, size_t length, int flags) {
    return checked(fsetxattr(fd, name, value, length, flags));
}
int clinux_fremovexattr(int fd, const char *name) { return checked(fremovexattr(fd, name)); }
ssize_t clinux_flistxattr(int fd, char *names, size_t capacity) { return counted(flistxattr(fd, names, capacity)); }

int clinux_fstatfs(int fd, struct clinux_statfs *out) {
    struct statfs found;
    if (fstatfs(fd, &found) < 0) return -errno;
    *out = (struct clinux_statfs){
        .type = (uint64_t)found.f_type & 0xFFFFFFFFu,
        .block_size = (uint64_t)found.f_bsize,
        .fragment_size = (uint64_t)found.f_frsize,
        .blocks = found.f_blocks,
        .blocks_free = found.f_bfree,
        .blocks_available = found.f_bavail,
        .files = found.f_files,
        .files_free = found.f_ffree,
        .name_length = (uint64_t)found.f_namelen,
    };
    return 0;
}

int clinux_btrfs_free_for_names(int directory, uint64_t inode, uint32_t hash, uint64_t *free) {
    // There is no room for the item itself: the answer is how much it would need.
    enum { HEADER = sizeof(struct btrfs_ioctl_search_header) };
    _Alignas(8) uint8_t space[sizeof(struct btrfs_ioctl_search_args_v2) + HEADER] = {0};
    struct btrfs_ioctl_search_args_v2 *search = (struct btrfs_ioctl_search_args_v2 *)space;
    search->key = (struct btrfs_ioctl_search_key){
        .min_objectid = inode, .max_objectid = inode, .min_type = BTRFS_DIR_ITEM_KEY, .max_type = BTRFS_DIR_ITEM_KEY,
        .min_offset = hash, .max_offset = hash, .max_transid = UINT64_MAX, .nr_items = 1,
    };
    search->buf_size = HEADER;
    *free = UINT64_MAX;
    if (ioctl(directory, BTRFS_IOC_TREE_SEARCH_V2, search) == 0) return 0;
    if (errno != EOVERFLOW) return -errno;
    uint64_t names = search->buf_size - HEADER;
    struct btrfs_ioctl_fs_info_args info = {0};
    if (ioctl(directory, BTRFS_IOC_FS_INFO, &info) < 0) return -errno;
    // As the kernel reckons (btrfs_check_dir_item_collision): a node begins with 101 bytes, an item in it takes 25, and a
    // name in that 30.
    uint64_t taken = names + 101 + 25 + 30;
    *free = info.nodesize > taken ? info.nodesize - taken : 0;
    return 0;
}

int clinux_lock_exclusive(int fd) { return checked(flock(fd, LOCK_EX | LOCK_NB)); }

ssize_t clinux_getdents(int fd, void *buffer, size_t capacity) {
    return counted(syscall(SYS_getdents64, fd, buffer, capacity));
}

int clinux_mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data) {
    return checked(mount(source, target, type, flags, data));
}
int clinux_umount(const char *target, int flags) { return checked(umount2(target, flags)); }
