/// What a node starts with.
public struct MemberStart: Sendable {
    /// What the acceptor's file holds; nil if there is none: the node is empty until the other one seeds it.
    public var state: AcceptorState?
    /// Without a state: the one that this node has forgotten, if it was kept (`MemberEffect.persist`). Which of the two
    /// counts when both are there, `AcceptorState.recalled` says.
    public var forgotten: AcceptorState?
    /// The journal holds everything this node ever received: it was stopped cleanly, or the mirror is wholly `strict`.
    public var logComplete: Bool
    /// This node's files are whole, and its journal's. If not, it may serve nothing until the other node has mended them,
    /// however long that takes: `merged` says that it has.
    public var isUsable: Bool
    /// Epoch of the last record in the journal.
    public var lastEpoch: Epoch
    /// The last record in the journal.
    public var lastSeq: Seq
    /// The last record that the journal knows to have been on the disk of every node in sync.
    public var committed: LogMark
    public init(
        state: AcceptorState?, forgotten: AcceptorState? = nil, logComplete: Bool, isUsable: Bool = true,
        lastEpoch: Epoch, lastSeq: Seq, committed: LogMark = .zero
    ) {
        self.state = state
        self.forgotten = forgotten
        self.logComplete = logComplete
        self.isUsable = isUsable
        self.lastEpoch = lastEpoch
        self.lastSeq = lastSeq
        self.committed = committed
    }
}

/// Why the other node cannot be replicated to.
public enum PeerSilence: Sendable, Hashable {
    /// Nothing usable arrives on the data link. The primary waits `peerLoss` before it goes on alone.
    case linkLost
    /// The other node said that it cannot, or it holds up writes for longer than it may. No more waiting.
    case failed
}

/// What the shell tells the member.
public enum MemberEvent: Sendable {
    /// First event of all, once.
    case start(MemberStart)
    case message(from: Voter, QuorumMessage)
    case connection(Voter, up: Bool)
    /// Time has passed. At least each `QuorumTiming.resend / 2`; more often does no harm.
    case tick
    /// The state of `MemberEffect.persist` with this token is on the disk, flushed. While it cannot be written, try
    /// the newest again, and do not send this: the voter is silent then, but for leases.
    case persisted(token: UInt64)
    /// The policy of `MemberEffect.setPolicy` with this token is in force: no acknowledgement will follow from now on
    /// that violates it, and if it asked for a flush, everything received is durable.
    case policyInForce(token: UInt64)

    // From the data side.

    /// Since this process started, the logs were exchanged with the other member and this node has received everything
    /// that the other one received.
    case merged
    /// The logs were exchanged, and the other node's disk lacks records that were on it: it was put back to an older state.
    /// What this node may lack will not come from there. Until it is withdrawn, with the session.
    case peerWasPutBack(Bool)
    /// The data link to the other node cannot be used.
    case peerSilent(PeerSilence)
    /// The data link to the other node can be used again (also the first time).
    case peerBack
    /// The other node has cut its log to mine in this epoch and follows it. Ends with `peerSilent`.
    case peerFollows(Epoch)
    /// The last record on this node's disk; and, from a primary that is open, what it knows to be on the disk of every node
    /// in sync, as of a second ago at least (zero: not known): the other node has told of it by now, so that it does not
    /// look behind because one report is younger than another.
    case log(last: LogMark, committed: Seq)
    /// Whether the other node's *durable* log has reached everything that was acknowledged. The data side keeps it true
    /// (it counts that node's disk for every later acknowledgement, see `AckPolicy`) or withdraws it, before it
    /// reports the next policy in force.
    case peerCaughtUp(Bool)
    /// This node's journal or files failed: it cannot be primary, nor in sync.
    case ownDiskFailed
    /// Answer to `MemberEffect.drain`: the application is stopped; everything is durable and applied on both nodes
    /// (or on this one, if it is alone).
    case drained
    /// Answer to `MemberEffect.close`: no acknowledgement will leave any more.
    case closed
    /// The application could not be stopped, or draining takes too long. Service goes on here, after a restart; unless
    /// this node is to stop, which it does then by force, or the application is not well here (`requestMove`).
    case drainFailed
    /// The mirrored directory was unmounted, and not by this node.
    case directoryLost

    // From the administrator.

    /// Lead although this node is not in sync: what the other one acknowledged and this one lacks is lost. Carried out at
    /// most once, within a bounded time, and never again after a restart (`Member+Promotion`). The shell has made sure
    /// that this node's copy is whole. Also on a node that has forgotten its votes (`Member+Reforming`).
    ///
    /// - `seedWitness`: also give an empty witness its memory from here, which otherwise takes the other node too.
    case requestPromotion(seedWitness: Bool)
    case requestSwap
    /// The application is not well here. As `requestSwap`, but the other node gets the service also if the application
    /// cannot be stopped in order: what does not end here is no reason to stay.
    case requestMove
    case requestStop
    case requestStart
}

/// What an acknowledgement needs under one in-sync set.
public struct AckRequirement: Sendable, Hashable {
    /// Every one of these has received the record (or has it on disk, as the mode asks).
    public var inSync: NodeSet
    /// The record is on this node's disk, whatever the mode.
    public var ownDisk: Bool
    public init(inSync: NodeSet, ownDisk: Bool) {
        self.inSync = inSync
        self.ownDisk = ownDisk
    }
}

/// The rule for acknowledgements.
public struct AckPolicy: Sendable, Hashable {
    /// Every in-sync set that may be the recorded one. An acknowledgement satisfies all of them.
    public var possible: [AckRequirement]
    /// First make everything received so far durable on this node's disk, then report the policy in force.
    public var flushFirst: Bool
    public init(possible: [AckRequirement], flushFirst: Bool) {
        self.possible = possible
        self.flushFirst = flushFirst
    }
    /// The nodes that must have received a record under at least one of the possible sets.
    public var nodes: NodeSet { possible.reduce(NodeSet()) { $0.union($1.inSync) } }
    /// Whether some possible set asks for this node's disk in every mode.
    public var ownDisk: Bool { possible.contains { $0.ownDisk } }
}

/// Why a node stops serving.
public enum CloseReason: Sendable, Hashable {
    /// The other node is primary, or will be: held requests get EIO, the application is killed.
    case deposed(by: Epoch)
    /// A planned move to the other node; already drained.
    case swapped
    /// Stopped by the administrator; already drained. Mark the journal complete.
    case stopped
    /// Draining failed or was interrupted, or the mount is gone: the application is killed. It starts again in a new
    /// epoch, here or on the other node.
    case restarting
    case ownDiskFailed
    /// This voter's memory was found to be older than what it has answered: its disk was put back to an older state.
    case rolledBack
}

/// What may be missing from the log that a node starts to serve with.
public enum Inheritance: Sendable, Hashable {
    /// Every acknowledged write is there.
    case complete
    /// The node restarted and waited for the other one in vain. Everything fsynced is there; writes that were
    /// acknowledged from memory may be missing. Say so, loudly, for ever.
    case unsyncedMayBeMissing
    /// An administrator promoted this node by force, in this epoch: what the other node acknowledged alone is not there.
    /// Say so for ever, BEFORE the directory opens. Comes with every start of serving until the other node is in sync
    /// again, because a crash may have come between the decision and the statement.
    case byForce(since: Epoch)
}

/// What became of an administrator's order to promote this node by force.
public enum PromotionState: Sendable, Hashable {
    case none
    /// Being tried, until this moment at the latest.
    case ordered(until: BootNanoseconds)
    /// Nothing was recorded anywhere, and nothing will be.
    case refused(String)
    /// Recorded in this room; whether a second room has it too is not known yet. It cannot be taken back.
    case inDoubt
    /// Two of three rooms have recorded it.
    case recorded(Decision)
    /// The other node's decision came first: nothing was promoted.
    case overtaken
}

/// What the member asks of the shell. Carry them out in this order, with the duties named at each.
public enum MemberEffect: Sendable {
    /// Write the acceptor's file: temporary file, flush, rename, flush of the directory; remove what was put aside. THEN
    /// report `persisted`. nil: put the file aside, by one rename, for `MemberStart.forgotten`; without a file leave what
    /// was put aside before. When several wait, writing only the newest and reporting all of their tokens is enough.
    case persist(AcceptorState?, token: UInt64)
    /// Send, or drop if there is no connection: every question is repeated.
    case send(Voter, QuorumMessage)
    /// Put this rule in force for every acknowledgement from now on, THEN report `policyInForce`.
    case setPolicy(AckPolicy, token: UInt64)
    /// Recorded as primary in this decision, not open yet: follow nobody any more, acknowledge nothing to anybody, and
    /// have the other node cut to this log in this epoch (then `peerFollows`). If something acknowledged may be missing
    /// here, the other node is told with the log, BEFORE it cuts anything: it saves what it is about to lose.
    case prepareToServe(Decision, Inheritance)
    /// Start to serve: make the inherited records durable, THEN write the epoch-start record, THEN open the
    /// directory and start the application. Nothing is acknowledged beyond the lease. The epoch may be later than that
    /// of `prepareToServe` (the other node was removed meanwhile); it then has to cut to this log anew, in this epoch.
    case serve(Decision, Inheritance)
    /// The in-sync set has shrunk while this node serves: write a new epoch-start record.
    case epochChanged(Decision)
    /// The in-sync set has grown while this node serves.
    case inSyncChanged(Decision)
    /// Serve, and refresh the address, no longer than until this moment. Look at it BEFORE EVERY acknowledgement.
    case lease(until: BootNanoseconds)
    /// No lease: hold every request, freeze the application, let the address go.
    case freeze
    case thaw
    /// Stop the application, make everything durable and applied on both nodes, THEN report `drained`.
    case drain
    /// Stop serving now: let no acknowledgement leave any more, THEN report `closed`. Until then the leases are kept.
    case close(CloseReason)
    /// Take records from this node, in the epoch of the decision; cut what it does not have. Comes again with each new
    /// decision; within one epoch there is nothing to cut again.
    case follow(NodeID, Decision?)
    /// The role or its reason has changed.
    case role(RoleState)
    case witnessState(WitnessState)
    /// These voters refuse this node the lease because it would have to be granted for longer than they grant. Others
    /// that grant it are enough, until one of those is lost. Empty: none does.
    case grantTooLong([Voter])
    case promotion(PromotionState)
    /// What the administrator asked for cannot be done, and why.
    case adminRefused(String)
    /// A fact worth a line.
    case log(QuorumLogLevel, String)
}

/// How loud a line is.
public enum QuorumLogLevel: Sendable, Hashable {
    case debug, info, warning, error, critical
}

/// The role as an administrator sees it.
public enum Role: String, Sendable, Hashable {
    case stop = "STOP"
    case wait = "WAIT"
    case alone = "ALONE"
    case primary = "PRIM"
    case secondary = "SECOND"
    case frozen = "FROZEN"
}

/// Why a node is not simply ready.
public enum RoleReason: Sendable, Hashable {
    case none
    /// Empty, until the other node, alone in the in-sync set, seeds it.
    case notSeeded
    /// Asks the voters for the decision.
    case asking
    /// Restarted and still bound by grants that its earlier process may have given, until this moment.
    case restartGrant(until: BootNanoseconds)
    /// The other node holds, or may hold, writes that this one lacks. Until this moment; nil: without end.
    case waitingForMerge(with: NodeID, until: BootNanoseconds?)
    /// Another voter remembers records on this node's disk that it does not have: it was put back to an older state.
    case putBack(needs: NodeID, remembered: LogMark, last: LogMark)
    /// The recorded in-sync set is the other node alone: this one's files are behind.
    case behind(NodeID)
    /// This node's files or its journal cannot be used until this node has mended them.
    case copyUnusable(needs: NodeID)
    /// No second voter can be reached.
    case noSecondVoter
    /// A voter says that the other node holds the lease, but that node cannot be heard here.
    case leaseElsewhere
    /// The witness has no memory, and seeding it takes this node, which cannot be reached.
    case witnessNeeds(NodeID)
    /// Follows the primary, and is not in sync yet.
    case catchingUp
    /// Primary; waits for the other node to cut to this log, or for its removal.
    case opening
    case leaseLost
    case draining
    /// Waits for the other node to take over.
    case handedOver
    case byAdministrator
    case ownDiskFailed
}

/// A role with its reason, for status.
public struct RoleState: Sendable, Hashable {
    public var role: Role
    public var reason: RoleReason
    public var since: BootNanoseconds
    /// The newest decision known to be chosen.
    public var decision: Decision?
    /// While the outcome of a proposal is unknown: every in-sync set that may be the recorded one.
    public var inDoubt: [NodeSet]
}

/// What is known of the witness.
public enum WitnessState: Sendable, Hashable {
    case unknown
    case answering
    case silent(since: BootNanoseconds)
    /// It has no memory and is being seeded, or waits for it.
    case empty
    /// It serves another mirror of the same name and refuses this one.
    case nameTaken(by: MirrorID)
}
