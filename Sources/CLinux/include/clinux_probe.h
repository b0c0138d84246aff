/// Questions to the machine that change nothing on it. 1 is yes, 0 is no, a negative errno is "could not ask".
#ifndef CLINUX_PROBE_H
#define CLINUX_PROBE_H

/// Whether this process may make an io_uring (sysctl, seccomp); a negative errno names the refusal.
int clinux_probe_io_uring(void);

/// Whether the file system of `path` keeps trusted.* extended attributes, asked by reading one that is not there.
int clinux_probe_trusted_attributes(const char *path);

/// Whether the file system of `path` gives handles by which files can be opened again.
int clinux_probe_file_handles(const char *path);

/// Whether `name` is a user.
int clinux_probe_user(const char *name);
#endif
