import Foundation

/// What `lockstep status --json` says about one node: the only place here that knows its keys.
public struct NodeStatus: Sendable {
    /// STOP, WAIT, ALONE, PRIM, SECOND or FROZEN.
    public var role: String
    public var isInSync: Bool
    public var epoch: Int
    /// green, orange or red.
    public var color: String
    /// Why it has that role, in one word: none, behind, waitingForMerge, leaseLost, …
    public var reason: String
    /// The mirror's identity, 32 hexadecimal digits.
    public var mirrorID: String
    /// The number of the last recorded decision that the node knows.
    public var decision: Int
    /// Statements that stay for good: what may be missing.
    public var statements: [String]
    /// What is broken on this node; empty when nothing is.
    public var problem: String
    /// What the connection to the other node is doing, and how many messages were refused on it.
    public var peerStage: String
    public var refusedMessages: Int
    /// answering, silent, nameTaken, …
    public var witnessState: String
    /// ISO 8601, by the node's own clock.
    public var lastTakeoverTime: String?
    /// What the node says to people about its role.
    public var explanation: String
    /// Records that the other node does not have on its disk; nil when unknown.
    public var behindRecords: Int?
    /// Room in this node's journal, its last record, and the last one that the plain files have for certain.
    public var journalFreeBytes: Int?
    public var lastRecord: Int?
    public var checkpointRecord: Int?
    /// Whether this node holds the virtual addresses.
    public var holdsAddress: Bool
    /// How the other node was last brought back: journal, ranges, comparison; nil if it never was.
    public var resyncKind: String?
    /// Of the last time that the other node was brought back: bytes that the application changed meanwhile, bytes sent.
    public var resyncChangedBytes: Int?
    public var resyncSentBytes: Int?
    /// Everything, as it came.
    public var text: String

    /// Serves the application now.
    public var serves: Bool { role == "PRIM" || role == "ALONE" }

    /// - Throws: `RoomsError` when a key that is needed is missing or of another type.
    public init(json: String) throws {
        guard let object = try? JSONSerialization.jsonObject(with: Data(json.utf8)) as? [String: Any] else {
            throw RoomsError("The status is not a JSON object: \(json)")
        }
        func value(_ path: String) -> Any? {
            path.split(separator: ".").reduce(object as Any?) { ($0 as? [String: Any])?[String($1)] }
        }
        guard let role = value("role") as? String, let isInSync = (value("inSync") as? NSNumber)?.boolValue else {
            throw RoomsError("The status lacks 'role' or 'inSync': \(json)")
        }
        func integer(_ path: String) -> Int? { (value(path) as? NSNumber)?.intValue }
        self.role = role
        self.isInSync = isInSync
        epoch = integer("epoch") ?? 0
        color = value("color") as? String ?? ""
        reason = value("reason") as? String ?? ""
        mirrorID = value("mirrorID") as? String ?? ""
        decision = integer("decision") ?? 0
        statements = value("statements") as? [String] ?? []
        problem = value("problem") as? String ?? ""
        peerStage = value("peer.stage") as? String ?? ""
        refusedMessages = integer("peer.refusedMessages") ?? 0
        witnessState = value("witness.state") as? String ?? ""
        lastTakeoverTime = value("lastTakeover.time") as? String
        explanation = value("explanation") as? String ?? ""
        behindRecords = integer("peer.behindRecords")
        journalFreeBytes = integer("log.journalFreeBytes")
        lastRecord = integer("log.lastSeq")
        checkpointRecord = integer("log.checkpointSeq")
        let addresses = value("addresses") as? [[String: Any]] ?? []
        holdsAddress = addresses.contains { ($0["held"] as? NSNumber)?.boolValue == true }
        resyncKind = value("resync.kind") as? String
        resyncChangedBytes = integer("resync.changedBytes")
        resyncSentBytes = integer("resync.sentBytes")
        text = json
    }
}
