import Foundation

/// What `lockstep status` tells. The keys are stable; docs/operations.md describes them.
public struct NodeStatus: Codable, Sendable {
    public struct Peer: Codable, Sendable {
        public var name: String
        /// The data connection stands.
        public var connected: Bool
        /// `disconnected`, `greeting`, `cutting`, `streaming`, `comparing`, `awaitingCut`, `following`, `refused`, `waiting`.
        public var stage: String
        /// Records the follower does not have on disk; nil when unknown.
        public var behindRecords: UInt64?
        /// Seconds until it has caught up, at the present rate; nil when unknown.
        public var remainingSeconds: Double?
        public var sentBytes: UInt64
        public var receivedBytes: UInt64
        public var refusedMessages: UInt64
    }
    public struct Witness: Codable, Sendable {
        public var address: String
        /// `unknown`, `answering`, `silent`, `empty`, `nameTaken`, `grantTooLong`.
        public var state: String
        public var silentSeconds: Double?
    }
    public struct Address: Codable, Sendable {
        public var address: String
        public var held: Bool
    }
    public struct Log: Codable, Sendable {
        public var engine: String
        public var lastSeq: UInt64
        public var durableSeq: UInt64
        public var committedSeq: UInt64
        public var appliedSeq: UInt64
        public var checkpointSeq: UInt64
        public var oldestSeq: UInt64
        public var journalFreeBytes: UInt64
        public var batches: UInt64
        public var records: UInt64
        public var payloadBytes: UInt64
        /// Batches of 1, 2, 3-4, 5-8, ... records.
        public var batchesBySize: [UInt64]
    }
    /// This node's own files.
    public struct Copy: Codable, Sendable {
        /// The files are what the application had at one moment. False while they are being brought up to date: then they
        /// are a mixture of old and new.
        public var usable: Bool
        /// The last record in them.
        public var record: UInt64
        /// When it was written, ISO 8601; nil when unknown.
        public var time: String?
    }
    /// How the other node was last brought back.
    public struct Resync: Codable, Sendable {
        /// `journal`, `ranges` or `comparison`.
        public var kind: String
        public var running: Bool
        /// Bytes changed while the other node was away: written, and records of names and attributes.
        public var changedBytes: UInt64
        /// Bytes sent to bring it back.
        public var sentBytes: UInt64
        public var seconds: Double
        public var phase: String
        public var bytesDone: UInt64
        public var bytesTotal: UInt64
        /// Not on the other node yet; nil when unknown.
        public var bytesLeft: UInt64?
        /// Of the last ten seconds.
        public var bytesPerSecond: Double?
        /// At the rate at which it got less in the last ten seconds; nil when that says nothing.
        public var remainingSeconds: Double?
        /// The administrator's limit; nil: none.
        public var limitBytesPerSecond: UInt64?
        /// The application is slowed to this; nil: it is not.
        public var applicationBytesPerSecond: UInt64?
    }
    /// The comparison of both nodes while they serve (`lockstep verify`); on the node that began it.
    public struct Verify: Codable, Sendable {
        public struct Last: Codable, Sendable {
            /// ISO 8601.
            public var started: String
            public var finished: String
            /// Everything was compared.
            public var complete: Bool
            public var path: String
            public var files: UInt64
            public var bytes: UInt64
            public var differences: UInt64
            public var repaired: UInt64
            /// Why it was broken off.
            public var problem: String?
        }
        public var running = false
        /// Why it waits; nil when it does not.
        public var paused: String?
        public var path: String?
        public var repair: Bool?
        public var scheduled: Bool?
        public var started: String?
        /// Objects compared, and known.
        public var files: UInt64?
        public var filesTotal: UInt64?
        /// Content compared.
        public var bytes: UInt64?
        public var bytesPerSecond: Double?
        public var differences: UInt64?
        public var repaired: UInt64?
        public var last: Last?
        public init() {}
    }
    public struct Takeover: Codable, Sendable {
        /// ISO 8601.
        public var time: String
        public var epoch: UInt32
        public var reason: String
    }

    public var mirror: String
    public var mirrorID: String
    public var node: String
    /// `STOP`, `WAIT`, `ALONE`, `PRIM`, `SECOND`, `FROZEN`.
    public var role: String
    /// `red`, `orange`, `green`.
    public var color: String
    /// A machine-readable word; `none` when all is well.
    public var reason: String
    /// A sentence for people.
    public var explanation: String
    public var sinceSeconds: Double
    /// Both nodes hold every acknowledged write.
    public var inSync: Bool
    public var inSyncNodes: [String]
    public var primary: String?
    public var epoch: UInt32
    public var decision: UInt64
    public var mode: String
    public var path: String
    /// This node serves and the files are open here. Without it, after a takeover, what was inherited is still being written.
    public var filesOpen: Bool
    public var leaseRemainingMilliseconds: Int?
    public var peer: Peer
    public var witness: Witness
    public var addresses: [Address]
    /// `none`, `starting`, `running`, `failed`, `stopping`, `stopped`, `frozen`.
    public var application: String
    public var applicationMessage: String
    public var log: Log?
    public var copy: Copy?
    public var resync: Resync?
    public var verify: Verify?
    public var lastTakeover: Takeover?
    /// Statements that stay for good: what may be missing, and since when.
    public var statements: [String]
    /// The last order to promote this node by force, since the daemon started: `none`, `ordered`, `refused`, `inDoubt`,
    /// `recorded`, `overtaken`.
    public var promotion: String
    public var promotionMessage: String
    /// Rescue journals: records that this node gave up, saved before they were cut. Paths.
    public var rescues: [String]
    /// What is broken on this node, and what to do; empty when nothing is.
    public var problem: String
    /// Why this node is not brought back: what it would lose cannot be saved. Empty when nothing holds it. It is the
    /// problem too, unless there is a worse one.
    public var heldBack: String
    public var residentBytes: UInt64
    public var processID: Int32

    public func json() throws -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        return try encoder.encode(self)
    }
}
