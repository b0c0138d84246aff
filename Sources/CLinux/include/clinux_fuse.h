/// The kernel's side of the mirrored directory: /dev/fuse, mounts. Every function answers a negated errno on failure.
#ifndef CLINUX_FUSE_H
#define CLINUX_FUSE_H
#include <stddef.h>
#include <stdint.h>

/// Opens /dev/fuse for a new connection: non-blocking, close-on-exec.
int clinux_fuse_open(void);
/// Mounts. `fd`: the descriptor of the connection; `type` (fuse.something) and `source`: what mount tables show.
int clinux_fuse_mount(int fd, const char *type, const char *source, const char *target, int read_only);
/// Reads one request: the first `head_length` bytes to `head`, the rest to `place`. Bytes read.
int64_t clinux_fuse_receive(int fd, void *head, size_t head_length, void *place, size_t place_length);
/// Writes one answer or notification in two pieces (`body` may be NULL).
int64_t clinux_fuse_send(int fd, const void *head, size_t head_length, const void *body, size_t body_length);
/// umount2(2) without following a symbolic link. `lazy`: MNT_DETACH; `force`: MNT_FORCE, which aborts a connection.
int clinux_unmount(const char *target, int lazy, int force);
/// Mounts an empty tmpfs of one page, writable for the moment.
int clinux_mount_guard(const char *source, const char *target);
/// Makes a mount read-only.
int clinux_remount_guard_read_only(const char *target);
/// Mounts fusectl at /sys/fs/fuse/connections when it is not there.
int clinux_fuse_control_mount(void);
#endif
