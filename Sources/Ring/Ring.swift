// One thread, one ring.
//
// A `Reactor` is the event loop of one thread: descriptors that become ready, disk requests that finish, timers that
// run out and closures that other threads post all end up as calls on that thread, one at a time. So state that belongs
// to a reactor needs no lock, and the order of its events is the order of its handlers.
//
//                 ┌──────────────────────────── one iteration ─────────────────────────────┐
//   post() ──────>│ posted closures -> due timers -> beforeSleep -> submit and wait ──────>│ handlers of completions
//   (any thread)  └─────────────────────────────^────────────────────────────────────────┬─┘
//                                               └────────────────────────────────────────┘
//
// Two engines sit behind one seam (`Engine`): io_uring, and epoll with libaio where the kernel or a container forbids
// io_uring. Both give the same promises:
//
// * Watches are level-triggered: as long as the descriptor is ready, the handler is called in every iteration. With
//   io_uring that is a one-shot poll, armed again after the handler has run, in the system call that the iteration
//   makes anyway.
// * Disk requests may finish in any order. The memory of a request must live until its completion; the io vectors
//   themselves are copied.
// * Everything prepared during an iteration reaches the kernel in one `io_uring_enter` (libaio: one `io_submit` and one
//   `epoll_pwait2`), after the `beforeSleep` handlers.
// * Requests are told apart by a tag of slot, generation and kind, never by an address: a late completion of something
//   that was cancelled finds a newer generation and is dropped.
//
// Nothing on a reactor thread may block. Slow system calls go to a `WorkerPool`, whose work posts its result back.
//
//   reactor life:   created ──run()──> running ──stop()──> draining (disk requests in flight) ──> ended
//
// A stopping reactor waits for its disk requests, because the kernel still writes into, or reads from, their memory.
