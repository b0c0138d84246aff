#include "clinux_ring.h"

#include <errno.h>
#include <libaio.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

// ---------------------------------------------------------------------------------------------------------------------
// io_uring

struct clinux_ring {
    struct io_uring ring;
};

int clinux_ring_create(unsigned entries, unsigned completion_entries, struct clinux_ring **out, int *deferred) {
    struct clinux_ring *self = calloc(1, sizeof *self);
    if (self == NULL) return -ENOMEM;
    struct io_uring_params parameters = {0};
    parameters.cq_entries = completion_entries;
    parameters.flags = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER |
                       IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
    int result = io_uring_queue_init_params(entries, &self->ring, &parameters);
    *deferred = result == 0;
    if (result == -EINVAL) {
        // Older than 6.1: the same ring without deferred task work.
        memset(&self->ring, 0, sizeof self->ring);
        parameters = (struct io_uring_params){.cq_entries = completion_entries,
                                              .flags = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP};
        result = io_uring_queue_init_params(entries, &self->ring, &parameters);
    }
    if (result == 0 && !(parameters.features & IORING_FEAT_EXT_ARG)) {
        // Without it a wait with a time limit would cost a second request.
        io_uring_queue_exit(&self->ring);
        result = -EOPNOTSUPP;
    }
    if (result < 0) {
        free(self);
        return result;
    }
    *out = self;
    return 0;
}

void clinux_ring_destroy(struct clinux_ring *self) {
    io_uring_queue_exit(&self->ring);
    free(self);
}

/// A free submission entry; hands the full queue to the kernel when there is none.
static struct io_uring_sqe *next_entry(struct clinux_ring *self) {
    struct io_uring_sqe *entry = io_uring_get_sqe(&self->ring);
    if (entry != NULL) return entry;
    io_uring_submit(&self->ring);
    return io_uring_get_sqe(&self->ring);
}

int clinux_ring_prepare_transfer(struct clinux_ring *self, int kind, int fd, const struct iovec *vectors, unsigned count,
                                 uint64_t offset, uint64_t tag) {
    struct io_uring_sqe *entry = next_entry(self);
    if (entry == NULL) return -EBUSY;
    switch (kind) {
        case CLINUX_TRANSFER_READ: io_uring_prep_readv(entry, fd, vectors, count, offset); break;
        case CLINUX_TRANSFER_WRITE: io_uring_prep_writev(entry, fd, vectors, count, offset); break;
        case CLINUX_TRANSFER_SYNC: io_uring_prep_fsync(entry, fd, 0); break;
        default: io_uring_prep_fsync(entry, fd, IORING_FSYNC_DATASYNC); break;
    }
    io_uring_sqe_set_data64(entry, tag);
    return 0;
}

int clinux_ring_prepare_poll(struct clinux_ring *self, int fd, uint32_t events, uint64_t tag) {
    struct io_uring_sqe *entry = next_entry(self);
    if (entry == NULL) return -EBUSY;
    io_uring_prep_poll_add(entry, fd, events);
    io_uring_sqe_set_data64(entry, tag);
    return 0;
}

int clinux_ring_prepare_poll_remove(struct clinux_ring *self, uint64_t target, uint64_t tag) {
    struct io_uring_sqe *entry = next_entry(self);
    if (entry == NULL) return -EBUSY;
    io_uring_prep_poll_remove(entry, target);
    io_uring_sqe_set_data64(entry, tag);
    return 0;
}

int clinux_ring_prepare_read(struct clinux_ring *self, int fd, void *buffer, unsigned length, uint64_t tag) {
    struct io_uring_sqe *entry = next_entry(self);
    if (entry == NULL) return -EBUSY;
    io_uring_prep_read(entry, fd, buffer, length, 0);
    io_uring_sqe_set_data64(entry, tag);
    return 0;
}

static int reap(struct clinux_ring *self, struct clinux_completion *out, unsigned capacity) {
    unsigned head, count = 0;
    struct io_uring_cqe *entry;
    io_uring_for_each_cqe(&self->ring, head, entry) {
        if (count == capacity) break;
        out[count++] = (struct clinux_completion){.tag = entry->user_data, .result = entry->res};
    }
    io_uring_cq_advance(&self->ring, count);
    return (int)count;
}

int clinux_ring_enter(struct clinux_ring *self, int64_t timeout_ns, struct clinux_completion *out, unsigned capacity) {
    int result;
    if (timeout_ns == 0) {
        result = io_uring_submit_and_get_events(&self->ring);
    } else if (timeout_ns < 0) {
        result = io_uring_submit_and_wait(&self->ring, 1);
    } else {
        struct __kernel_timespec limit = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
        struct io_uring_cqe *first;
        result = io_uring_submit_and_wait_timeout(&self->ring, &first, 1, &limit, NULL);
    }
    // -EAGAIN and -EBUSY: the kernel is short of memory, or wants completions taken first; what was not submitted
    // stays queued for the next call.
    if (result < 0 && result != -ETIME && result != -EINTR && result != -EAGAIN && result != -EBUSY) return result;
    return reap(self, out, capacity);
}

int clinux_ring_has_completions(const struct clinux_ring *self) {
    return io_uring_cq_ready(&self->ring) > 0 ||
           (__atomic_load_n(self->ring.sq.kflags, __ATOMIC_RELAXED) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW));
}

unsigned clinux_ring_unsubmitted(const struct clinux_ring *self) { return io_uring_sq_ready(&self->ring); }

int clinux_ring_submit(struct clinux_ring *self) { return io_uring_submit(&self->ring); }

// ---------------------------------------------------------------------------------------------------------------------
// libaio

struct clinux_aio {
    io_context_t context;
    int event_fd;
    unsigned capacity;
    struct iocb *blocks;
    /// Stack of unused blocks.
    struct iocb **unused;
    unsigned unused_count;
    /// Prepared, not yet submitted; in order.
    struct iocb **pending;
    unsigned pending_count;
    /// Refused at submission; reported by the next reap.
    struct clinux_completion *refused;
    unsigned refused_count;
    unsigned submitted;
};

static void aio_free(struct clinux_aio *self) {
    free(self->blocks);
    free(self->unused);
    free(self->pending);
    free(self->refused);
    free(self);
}

int clinux_aio_create(unsigned capacity, int event_fd, struct clinux_aio **out) {
    struct clinux_aio *self = calloc(1, sizeof *self);
    if (self == NULL) return -ENOMEM;
    self->event_fd = event_fd;
    self->capacity = capacity;
    self->blocks = calloc(capacity, sizeof *self->blocks);
    self->unused = calloc(capacity, sizeof *self->unused);
    self->pending = calloc(capacity, sizeof *self->pending);
    self->refused = calloc(capacity, sizeof *self->refused);
    int result = -ENOMEM;
    if (self->blocks && self->unused && self->pending && self->refused) result = io_setup((int)capacity, &self->context);
    if (result < 0) {
        aio_free(self);
        return result;
    }
    for (unsigned index = 0; index < capacity; index++) self->unused[index] = &self->blocks[capacity - 1 - index];
    self->unused_count = capacity;
    *out = self;
    return 0;
}

void clinux_aio_destroy(struct clinux_aio *self) {
    io_destroy(self->context);
    aio_free(self);
}

int clinux_aio_prepare_transfer(struct clinux_aio *self, int kind, int fd, const struct iovec *vectors, unsigned count,
                                uint64_t offset, uint64_t tag) {
    if (self->unused_count == 0) return -EBUSY;
    struct iocb *block = self->unused[--self->unused_count];
    switch (kind) {
        case CLINUX_TRANSFER_READ: io_prep_preadv(block, fd, vectors, (int)count, (long long)offset); break;
        case CLINUX_TRANSFER_WRITE: io_prep_pwritev(block, fd, vectors, (int)count, (long long)offset); break;
        case CLINUX_TRANSFER_SYNC: io_prep_fsync(block, fd); break;
        default: io_prep_fdsync(block, fd); break;
    }
    io_set_eventfd(block, self->event_fd);
    block->data = (void *)(uintptr_t)tag;  // a number that travels in a pointer-sized field
    self->pending[self->pending_count++] = block;
    return 0;
}

static void refuse(struct clinux_aio *self, struct iocb *block, int result) {
    self->refused[self->refused_count++] =
        (struct clinux_completion){.tag = (uint64_t)(uintptr_t)block->data, .result = result};
    self->unused[self->unused_count++] = block;
}

int clinux_aio_submit(struct clinux_aio *self) {
    unsigned done = 0;
    while (done < self->pending_count) {
        int result = io_submit(self->context, (long)(self->pending_count - done), self->pending + done);
        if (result > 0) {
            done += (unsigned)result;
            self->submitted += (unsigned)result;
        } else if (result == -EINTR) {
            continue;
        } else if (result == -EAGAIN && self->submitted > 0) {
            break;  // try again when something in flight has finished
        } else {
            if (self->refused_count == self->capacity) break;  // reap first
            refuse(self, self->pending[done++], result == 0 ? -EAGAIN : result);
        }
    }
    self->pending_count -= done;
    memmove(self->pending, self->pending + done, self->pending_count * sizeof *self->pending);
    return (int)self->pending_count;
}

int clinux_aio_reap(struct clinux_aio *self, struct clinux_completion *out, unsigned capacity) {
    unsigned count = 0;
    while (count < capacity && self->refused_count > 0) out[count++] = self->refused[--self->refused_count];
    while (count < capacity) {
        struct io_event events[64];
        unsigned room = capacity - count < 64 ? capacity - count : 64;
        struct timespec none = {0};
        int found = io_getevents(self->context, 0, room, events, &none);
        if (found == -EINTR) continue;
        if (found <= 0) break;
        for (int index = 0; index < found; index++) {
            self->unused[self->unused_count++] = events[index].obj;
            self->submitted--;
            out[count++] = (struct clinux_completion){.tag = (uint64_t)(uintptr_t)events[index].data,
                                                      .result = (int32_t)(long)events[index].res};
        }
        if ((unsigned)found < room) break;
    }
    return (int)count;
}

unsigned clinux_aio_unsubmitted(const struct clinux_aio *self) { return self->pending_count; }

// ---------------------------------------------------------------------------------------------------------------------
// epoll, eventfd

int clinux_epoll_create(void) {
    int fd = epoll_create1(EPOLL_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

_Static_assert(CLINUX_EPOLL_ADD == EPOLL_CTL_ADD && CLINUX_EPOLL_REMOVE == EPOLL_CTL_DEL &&
                   CLINUX_EPOLL_CHANGE == EPOLL_CTL_MOD && EPOLLIN == POLLIN && EPOLLOUT == POLLOUT,
               "the header's numbers are the kernel's");

int clinux_epoll_control(int epoll_fd, int operation, int fd, uint32_t events, int edge, uint64_t tag) {
    // The bits that we use (IN, OUT, ERR, HUP, RDHUP) have the same values in poll and epoll.
    struct epoll_event event = {.events = events | (edge ? EPOLLET : 0), .data.u64 = tag};
    return epoll_ctl(epoll_fd, operation, fd, &event) < 0 ? -errno : 0;
}

int clinux_epoll_wait(int epoll_fd, int64_t timeout_ns, struct clinux_completion *out, unsigned capacity) {
    struct epoll_event events[128];
    if (capacity > 128) capacity = 128;
    struct timespec limit = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    int found = epoll_pwait2(epoll_fd, events, (int)capacity, timeout_ns < 0 ? NULL : &limit, NULL);
    if (found < 0 && errno == ENOSYS)  // before 5.11: milliseconds, rounded up
        found = epoll_wait(epoll_fd, events, (int)capacity,
                           timeout_ns < 0 ? -1 : (int)((timeout_ns + 999999) / 1000000));
    if (found < 0) return errno == EINTR ? 0 : -errno;
    for (int index = 0; index < found; index++)
        out[index] =
            (struct clinux_completion){.tag = events[index].data.u64, .result = (int32_t)events[index].events};
    return found;
}

int clinux_eventfd(unsigned initial, int nonblocking) {
    int fd = eventfd(initial, EFD_CLOEXEC | (nonblocking ? EFD_NONBLOCK : 0));
    return fd < 0 ? -errno : fd;
}

int clinux_accept(int fd, void *address, uint32_t *length) {
    socklen_t room = *length;
    int result = accept4(fd, address, &room, SOCK_NONBLOCK | SOCK_CLOEXEC);
    *length = room;
    return result < 0 ? -errno : result;
}
