#include "clinux_fuse.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

int clinux_fuse_open(void) {
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

int clinux_fuse_mount(int fd, const char *type, const char *source, const char *target, int read_only) {
    char options[160];
    // The root is a directory (40000 octal). The kernel checks permissions itself, from the attributes it caches.
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", fd);
    unsigned long flags = MS_NOATIME | (read_only ? MS_RDONLY : 0);
    return mount(source, target, type, flags, options) < 0 ? -errno : 0;
}

int64_t clinux_fuse_receive(int fd, void *head, size_t head_length, void *place, size_t place_length) {
    struct iovec pieces[2] = {{head, head_length}, {place, place_length}};
    ssize_t count = readv(fd, pieces, 2);
    return count < 0 ? -errno : count;
}

int64_t clinux_fuse_send(int fd, const void *head, size_t head_length, const void *body, size_t body_length) {
    struct iovec pieces[2] = {{(void *)head, head_length}, {(void *)body, body_length}};
    ssize_t count = writev(fd, pieces, body_length > 0 ? 2 : 1);
    return count < 0 ? -errno : count;
}

int clinux_unmount(const char *target, int lazy, int force) {
    int flags = UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0) | (force ? MNT_FORCE : 0);
    return umount2(target, flags) < 0 ? -errno : 0;
}

int clinux_mount_guard(const char *source, const char *target) {
    unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    return mount(source, target, "tmpfs", flags, "size=4k,nr_inodes=4,mode=0555") < 0 ? -errno : 0;
}

int clinux_remount_guard_read_only(const char *target) {
    unsigned long flags = MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
    return mount("none", target, "tmpfs", flags, "size=4k,nr_inodes=4,mode=0555") < 0 ? -errno : 0;
}

int clinux_fuse_control_mount(void) {
    if (mount("fusectl", "/sys/fs/fuse/connections", "fusectl", 0, "") < 0 && errno != EBUSY) return -errno;
    return 0;
}
