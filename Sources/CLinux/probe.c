#include "clinux_probe.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pwd.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

int clinux_probe_io_uring(void) {
    struct io_uring_params parameters;
    memset(&parameters, 0, sizeof parameters);
    long fd = syscall(SYS_io_uring_setup, 1u, &parameters);
    if (fd < 0) return -errno;
    close((int)fd);
    return 1;
}

int clinux_probe_trusted_attributes(const char *path) {
    char value[16];
    if (getxattr(path, "trusted.lockstep.fid", value, sizeof value) >= 0 || errno == ENODATA || errno == ERANGE)
        return 1;
    return errno == ENOTSUP ? 0 : -errno;
}

int clinux_probe_file_handles(const char *path) {
    struct {
        struct file_handle handle;
        unsigned char bytes[MAX_HANDLE_SZ];
    } storage;
    storage.handle.handle_bytes = MAX_HANDLE_SZ;
    int mount;
    if (name_to_handle_at(AT_FDCWD, path, &storage.handle, &mount, 0) == 0) return 1;
    return errno == EOPNOTSUPP ? 0 : -errno;
}

int clinux_probe_user(const char *name) {
    char buffer[16384];
    struct passwd entry, *found = NULL;
    int error = getpwnam_r(name, &entry, buffer, sizeof buffer, &found);
    return error != 0 ? -error : found != NULL;
}
