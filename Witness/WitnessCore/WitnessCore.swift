// The third vote.
//
// A witness holds no data. For each mirror it keeps one small file, the voter's memory, and answers the two nodes of that
// mirror. One process serves many mirrors and knows none of them beforehand: a mirror that it has no memory of is
// *empty* here, and the nodes seed it (see `Acceptor`).
//
// ```
//   Listener ── frames ──> WitnessServer ── by mirror id ──> WitnessVoters ── Acceptor (pure)
//                                ^                                │
//                                └──────── answers ────── VoteStore (one file for each mirror, flushed)
// ```
//
// One thread does it all. It waits for the disk when a vote changes: that is when a primary changes or a node is lost or
// added, a few times in a mirror's month. A lease is renewed without touching the disk. A disk that hangs for seconds
// silences the witness for that long, for every mirror; services go on meanwhile, as long as both nodes are well.

@_exported public import Quorum
