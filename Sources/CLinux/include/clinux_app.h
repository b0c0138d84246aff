/// Starting the application's commands: born inside a control group, with nothing of the daemon's about them.
#ifndef CLINUX_APP_H
#define CLINUX_APP_H
#include <stddef.h>
#include <stdint.h>

#define CLINUX_GROUPS_MAX 256

/// A user as the system knows it.
struct clinux_user {
    uint32_t uid, gid;
    uint32_t groups[CLINUX_GROUPS_MAX];
    int group_count;
    char home[256];
};
/// 0, -ENOENT when there is no such user, or another negative errno.
int clinux_user_find(const char *name, struct clinux_user *result);

/// What `clinux_spawn_in_cgroup` was doing when it failed.
enum clinux_spawn_step {
    CLINUX_SPAWN_FORK = 0,
    CLINUX_SPAWN_CGROUP = 1,
    CLINUX_SPAWN_OUTPUT = 2,
    CLINUX_SPAWN_USER = 3,
    CLINUX_SPAWN_EXEC = 4,
};

struct clinux_spawn {
    const char *path;
    char *const *arguments;
    char *const *environment;
    /// cgroup.procs of the control group, open for writing. The child writes itself into it before it runs anything, so
    /// that no descendant is ever outside.
    int cgroup_procs;
    /// Becomes standard output and standard error; standard input is /dev/null.
    int output;
    /// NULL: the user of the daemon.
    const struct clinux_user *user;
};

/// Starts a program in a session of its own, working directory /, umask 022, default signals, no descriptor but 0 to 2.
/// Returns its process id and a pidfd in `pidfd`; or a negative errno, and `step` says at what.
int clinux_spawn_in_cgroup(const struct clinux_spawn *spawn, int *pidfd, enum clinux_spawn_step *step);

/// Waits up to `milliseconds` for the end of a child and reaps it: 1 with the status as of waitpid in `status`, 0 when it
/// still runs, or a negative errno.
int clinux_pidfd_wait(int pidfd, int milliseconds, int *status);

/// A pipe whose ends are closed on exec: 0, or a negative errno.
int clinux_pipe(int ends[2]);
#endif
