/// The two disk engines (io_uring; epoll + libaio) and the descriptors a reactor needs.
///
/// Every function that can fail returns a value below zero, the negated errno. Nothing here is safe to call from two
/// threads: one reactor thread owns a ring, and the kernel ties each request to the thread that submitted it.
#ifndef CLINUX_RING_H
#define CLINUX_RING_H
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/// What a request asked for by `clinux_*_prepare_transfer` does.
enum {
    CLINUX_TRANSFER_READ = 0,
    CLINUX_TRANSFER_WRITE = 1,
    /// fsync; the io vectors are ignored.
    CLINUX_TRANSFER_SYNC = 2,
    /// fdatasync; the io vectors are ignored.
    CLINUX_TRANSFER_DATASYNC = 3,
};

/// One finished request or one ready descriptor.
struct clinux_completion {
    /// As given when the request was made; never an address.
    uint64_t tag;
    /// Bytes or poll bits; below zero a negated errno.
    int32_t result;
    uint32_t reserved;
};

struct clinux_ring;

/// Opens an io_uring for the calling thread: SINGLE_ISSUER and DEFER_TASKRUN where the kernel knows them (6.1).
/// `*deferred` receives 1 when both are on.
int clinux_ring_create(unsigned entries, unsigned completion_entries, struct clinux_ring **out, int *deferred);
void clinux_ring_destroy(struct clinux_ring *ring);

/// Queue one request; the kernel sees it at the next `enter`. The io vectors and their memory must live until the
/// completion with this tag has been seen.
int clinux_ring_prepare_transfer(struct clinux_ring *ring, int kind, int fd, const struct iovec *vectors, unsigned count,
                                 uint64_t offset, uint64_t tag);
/// One-shot poll: completes at once if the descriptor is ready already, so re-arming after the handler has run is
/// level-triggered.
int clinux_ring_prepare_poll(struct clinux_ring *ring, int fd, uint32_t events, uint64_t tag);
/// Cancels the poll with tag `target`; the cancelled one completes with -ECANCELED, this one with `tag`.
int clinux_ring_prepare_poll_remove(struct clinux_ring *ring, uint64_t target, uint64_t tag);
/// Reads `length` bytes from a stream-like descriptor (an eventfd).
int clinux_ring_prepare_read(struct clinux_ring *ring, int fd, void *buffer, unsigned length, uint64_t tag);

/// One system call: submits what was prepared and waits for a completion, at most `timeout_ns` nanoseconds
/// (0: do not wait; below zero: for ever). Returns how many completions were stored.
int clinux_ring_enter(struct clinux_ring *ring, int64_t timeout_ns, struct clinux_completion *out, unsigned capacity);
/// Whether completions wait, told without a system call.
int clinux_ring_has_completions(const struct clinux_ring *ring);
/// Prepared requests that the kernel has not seen.
unsigned clinux_ring_unsubmitted(const struct clinux_ring *ring);
int clinux_ring_submit(struct clinux_ring *ring);

struct clinux_aio;

/// Opens a libaio context for `capacity` requests in flight; completions are signalled on `event_fd`.
int clinux_aio_create(unsigned capacity, int event_fd, struct clinux_aio **out);
/// Waits for requests in flight.
void clinux_aio_destroy(struct clinux_aio *aio);
/// Queue one request; -EBUSY when `capacity` are in use.
int clinux_aio_prepare_transfer(struct clinux_aio *aio, int kind, int fd, const struct iovec *vectors, unsigned count,
                                uint64_t offset, uint64_t tag);
/// Submits what was prepared. A request that the kernel refuses is completed with that error. Returns how many
/// requests are still waiting to be submitted (the kernel was out of resources).
int clinux_aio_submit(struct clinux_aio *aio);
/// Stores finished requests, never waits.
int clinux_aio_reap(struct clinux_aio *aio, struct clinux_completion *out, unsigned capacity);
/// Requests prepared and not yet submitted.
unsigned clinux_aio_unsubmitted(const struct clinux_aio *aio);

int clinux_epoll_create(void);
enum { CLINUX_EPOLL_ADD = 1, CLINUX_EPOLL_REMOVE = 2, CLINUX_EPOLL_CHANGE = 3 };
/// Changes the set of descriptors. `events` are poll bits; `edge`: report only changes.
int clinux_epoll_control(int epoll_fd, int operation, int fd, uint32_t events, int edge, uint64_t tag);
/// Waits at most `timeout_ns` nanoseconds (0: not at all; below zero: for ever); returns how many were stored.
int clinux_epoll_wait(int epoll_fd, int64_t timeout_ns, struct clinux_completion *out, unsigned capacity);

/// A close-on-exec eventfd.
int clinux_eventfd(unsigned initial, int nonblocking);

/// accept4, non-blocking and close-on-exec; `address` receives a struct sockaddr of at most `*length` bytes.
int clinux_accept(int fd, void *address, uint32_t *length);
#endif
