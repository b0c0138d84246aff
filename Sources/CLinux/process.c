#include "clinux_process.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

static int checked(long result) { return result < 0 ? -errno : (int)result; }

int clinux_flush_stdout(void) {
    int failed = ferror(stdout);
    if (fflush(stdout) != 0) return -errno;
    return failed ? -EIO : 0;
}

uint64_t clinux_boottime_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int32_t clinux_thread_id(void) {
    static _Thread_local int32_t id;
    if (id == 0) id = (int32_t)syscall(SYS_gettid);
    return id;
}

int clinux_thread_name(const char *name) {
    char kept[16];
    snprintf(kept, sizeof kept, "%s", name);
    return -pthread_setname_np(pthread_self(), kept);
}

int clinux_thread_pin(int processor) {
    if (processor < 0 || processor >= CPU_SETSIZE) return -EINVAL;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    return checked(sched_setaffinity(0, sizeof set, &set));
}

int clinux_set_io_flusher(int on) { return checked(prctl(PR_SET_IO_FLUSHER, on, 0, 0, 0)); }

int clinux_set_parent_death_signal(int signal) { return checked(prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0)); }

int clinux_set_child_subreaper(int on) { return checked(prctl(PR_SET_CHILD_SUBREAPER, on, 0, 0, 0)); }

int clinux_raise_descriptor_limit(uint64_t wanted) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return -errno;
    if (limit.rlim_cur < wanted) {
        struct rlimit raised = {.rlim_cur = wanted, .rlim_max = limit.rlim_max < wanted ? wanted : limit.rlim_max};
        if (setrlimit(RLIMIT_NOFILE, &raised) < 0) {  // not root: as far as the hard limit
            raised = (struct rlimit){.rlim_cur = limit.rlim_max, .rlim_max = limit.rlim_max};
            if (setrlimit(RLIMIT_NOFILE, &raised) < 0) return -errno;
        }
        limit = raised;
    }
    return limit.rlim_cur > INT32_MAX ? INT32_MAX : (int)limit.rlim_cur;
}

int clinux_pidfd_open(int32_t pid) { return checked(syscall(SYS_pidfd_open, pid, 0)); }

int clinux_pidfd_send_signal(int pidfd, int signal) {
    return checked(syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0));
}

int clinux_set_namespace(int fd, int type) { return checked(setns(fd, type)); }

const int CLINUX_SYS_IO_URING_SETUP = SYS_io_uring_setup;

int clinux_refuse_system_call(int number, int error) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ((unsigned)error & SECCOMP_RET_DATA)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof code[0], .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return -errno;
    return checked(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0));
}
