// Frames between machines.
//
// A `Connection` carries frames (`FrameHeader` and a body) over a `ByteStream`: plain TCP today, TLS later behind the
// same protocol. It belongs to one reactor and calls its owner there: for each frame, and once when it has closed.
//
//            accept                    first frame is a good hello             hello sent back
//   Listener ─────────> unauthenticated ─────────────────────────> admitted? ──────────────────> open ──> closed
//                        │ garbage, no hello in time,               │ no
//                        │ too many from one source                 │
//                        └──> closed, ONE log line ────             └──> refusal with its reason, closed
//
//            connect       hello sent        hello received
//   Dialer ──────────────> greeting ─────────────────────> open ──> closed ──┐
//     ^   └─ failed ──────────┴─ refusal, garbage, no answer in time ──┐     │
//     └───────────── wait: growing, jittered, bounded <────────────────┴─────┘
//
// Whoever connects is a stranger until its hello has been read: until then only a frame of a hello's size is accepted,
// memory per connection is that of one hello, the number of such connections is limited, for each source and in all, and
// so is the number of log lines. Behind the hello only the types that belong to its channel come through: on a
// connection for decisions nothing longer than a hello, so that a witness holds no more for each of thousands than for
// a stranger.
//
// Sending: frames are queued and leave in one system call at the end of the reactor's iteration. The queue is bounded;
// a full queue refuses, it does not grow. Pieces of memory may be queued without a copy; their completion says when the
// memory is free again (the kernel has taken the bytes, or the connection is closed).
//
// Receiving: small frames are collected in one staging buffer. Frames of chosen types (batches) go straight to memory
// that their `BodySink` supplies, stage by stage; a sink without memory stops the reading, and TCP slows the sender.
//
// What a frame means, its session, epoch and mirror, is for the owner to judge.
