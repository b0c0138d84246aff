#include "clinux_app.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <pwd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif
#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

int clinux_user_find(const char *name, struct clinux_user *result) {
    char buffer[16384];
    struct passwd entry, *found = NULL;
    int error = getpwnam_r(name, &entry, buffer, sizeof buffer, &found);
    if (error != 0) return -error;
    if (found == NULL) return -ENOENT;
    memset(result, 0, sizeof *result);
    result->uid = entry.pw_uid;
    result->gid = entry.pw_gid;
    result->group_count = CLINUX_GROUPS_MAX;
    if (getgrouplist(name, entry.pw_gid, result->groups, &result->group_count) < 0) return -E2BIG;
    strncpy(result->home, entry.pw_dir, sizeof result->home - 1);
    return 0;
}

/// What the child tells its parent; they share memory until the child has exec'ed.
struct failure {
    volatile int error;
    volatile enum clinux_spawn_step step;
};

/// The child's part. It shares memory with a process of many threads, so that it may only make system calls: no
/// allocation, no locks, and no glibc setuid(), which would signal the parent's threads.
static void become(const struct clinux_spawn *spawn, struct failure *failure) {
    failure->step = CLINUX_SPAWN_CGROUP;
    if (write(spawn->cgroup_procs, "0\n", 2) != 2) return;

    // The daemon's own settings are not for the application.
    struct sigaction standard = {.sa_handler = SIG_DFL};
    for (int signal = 1; signal <= 64; signal++) sigaction(signal, &standard, NULL);
    prctl(PR_SET_IO_FLUSHER, 0, 0, 0, 0);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur > 1024) {
        // The daemon raises its own; 1024 is what programs expect to start with, and they may raise it themselves.
        files.rlim_cur = 1024;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    setsid();
    umask(022);

    failure->step = CLINUX_SPAWN_OUTPUT;
    int null = open("/dev/null", O_RDONLY);
    if (null < 0 || chdir("/") < 0) return;
    if (dup2(null, 0) < 0 || dup2(spawn->output, 1) < 0 || dup2(spawn->output, 2) < 0) return;
    if (syscall(SYS_close_range, 3u, ~0u, 0u) < 0)
        for (int fd = 3; fd < 65536; fd++) close(fd);  // before Linux 5.9

    if (spawn->user != NULL) {
        failure->step = CLINUX_SPAWN_USER;
        const struct clinux_user *user = spawn->user;
        if (syscall(SYS_setgroups, (size_t)user->group_count, user->groups) < 0) return;
        if (syscall(SYS_setresgid, user->gid, user->gid, user->gid) < 0) return;
        if (syscall(SYS_setresuid, user->uid, user->uid, user->uid) < 0) return;
    }
    failure->step = CLINUX_SPAWN_EXEC;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execve(spawn->path, spawn->arguments, spawn->environment);
}

int clinux_spawn_in_cgroup(const struct clinux_spawn *spawn, int *pidfd, enum clinux_spawn_step *step) {
    struct failure failure = {0, CLINUX_SPAWN_FORK};
    // vfork, not fork: a fork would make every buffer of the daemon copy-on-write and stall its data thread. Signals are
    // blocked so that no handler of the parent ever runs in the child.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t child = vfork();
    if (child == 0) {
        become(spawn, &failure);
        failure.error = errno != 0 ? errno : EIO;
        _exit(127);
    }
    int fork_error = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    *step = failure.step;
    if (child < 0) return -fork_error;
    if (failure.error != 0) {
        while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {}
        return -failure.error;
    }
    *pidfd = (int)syscall(SYS_pidfd_open, child, 0);
    if (*pidfd < 0) {
        int error = -errno;
        *step = CLINUX_SPAWN_FORK;
        kill(child, SIGKILL);
        while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {}
        return error;
    }
    fcntl(*pidfd, F_SETFD, FD_CLOEXEC);
    return child;
}

int clinux_pidfd_wait(int pidfd, int milliseconds, int *status) {
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    int left = milliseconds;
    for (;;) {
        struct pollfd ended = {.fd = pidfd, .events = POLLIN};
        int polled = poll(&ended, 1, left);
        if (polled < 0 && errno != EINTR) return -errno;
        if (polled == 0) return 0;
        if (polled > 0) break;
        clock_gettime(CLOCK_MONOTONIC, &now);
        long passed = (now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000;
        left = passed >= milliseconds ? 0 : (int)(milliseconds - passed);
    }
    siginfo_t information;
    memset(&information, 0, sizeof information);
    if (waitid((idtype_t)P_PIDFD, (id_t)pidfd, &information, WEXITED | WNOHANG) < 0) return -errno;
    if (information.si_pid == 0) return 0;
    *status = information.si_code == CLD_EXITED ? (information.si_status & 0xff) << 8 : information.si_status & 0x7f;
    return 1;
}

int clinux_pipe(int ends[2]) { return pipe2(ends, O_CLOEXEC) == 0 ? 0 : -errno; }
