/// Threads, processes, clocks.
///
/// Every function that can fail returns a value below zero, the negated errno.
#ifndef CLINUX_PROCESS_H
#define CLINUX_PROCESS_H
#include <stddef.h>
#include <stdint.h>

/// CLOCK_BOOTTIME in nanoseconds: never set by anybody, and counts the time asleep.
uint64_t clinux_boottime_ns(void);

/// The kernel's number of the calling thread (asked once per thread).
int32_t clinux_thread_id(void);
/// Hands what was printed to the kernel; below zero also if that failed earlier.
int clinux_flush_stdout(void);

/// At most 15 bytes are kept.
int clinux_thread_name(const char *name);
/// Binds the calling thread to one processor.
int clinux_thread_pin(int processor);
/// PR_SET_IO_FLUSHER: memory that this process allocates never waits for file systems that it serves itself.
int clinux_set_io_flusher(int on);
/// The calling process gets `signal` when the thread that started it ends.
int clinux_set_parent_death_signal(int signal);
/// Orphans among the descendants become children of this process.
int clinux_set_child_subreaper(int on);
/// Raises RLIMIT_NOFILE to at least `wanted` where allowed; returns the limit in force (at most 2^31 - 1).
int clinux_raise_descriptor_limit(uint64_t wanted);

/// A descriptor that becomes readable when the process ends.
int clinux_pidfd_open(int32_t pid);
int clinux_pidfd_send_signal(int pidfd, int signal);

/// Enters the namespace behind `fd` (`type`: 0 for any, or CLONE_NEWNET, ...) with the calling thread.
int clinux_set_namespace(int fd, int type);

/// From now on system call `number` fails with `error` on the calling thread (seccomp; cannot be undone; implies
/// no-new-privileges for the thread). To show what happens where a container forbids a call.
int clinux_refuse_system_call(int number, int error);
extern const int CLINUX_SYS_IO_URING_SETUP;
#endif
