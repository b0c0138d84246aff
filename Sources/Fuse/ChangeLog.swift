public import Format

/// How far a record must have come before a request is answered.
public enum AckLevel: Sendable, Hashable {
    /// The mode's level for a write: `balanced` the memory of every in-sync node, `strict` their disks.
    case write
    /// On the disk of every in-sync node.
    case sync
    /// On the disk of every in-sync node, and this record and every one before it are in this node's plain files.
    case applied
    /// As `applied`, asked by somebody whom nobody waits for: the log may gather more before it applies.
    case settled
}

public enum AckOutcome: Sendable, Hashable {
    case done
    /// The errno for the application; EIO when this node was deposed.
    case failed(Int32)
}

/// Where the mirrored directory puts its changes: one numbered order, replicated and journalled behind this seam.
///
/// All calls come from the data thread, and handlers are called there, never from inside `when` itself unless the
/// level has been reached already.
public protocol ChangeLog: AnyObject {
    /// Where the payload of the next WRITE may land: page aligned, room for `FuseLimits.transferBytes`; nil when memory
    /// is used up (then `onRoom` is called later). The same place may be asked for several times before it is used.
    func payloadPlace() -> UnsafeMutableRawBufferPointer?
    /// Called when `payloadPlace` has an answer again.
    var onRoom: (() -> Void)? { get set }
    /// Logs a write whose payload lies at the start of the last place given.
    func appendWrite(file: FileID, offset: UInt64, length: Int, time: Int64) -> Seq
    /// Logs any other change.
    func append(_ body: RecordBody, time: Int64) -> Seq
    /// Calls back when the record has reached `level`.
    func when(_ seq: Seq, _ level: AckLevel, _ handler: @escaping (AckOutcome) -> Void)
    /// Whether this node may answer at this moment. A process that slept past its lease must not serve even a read: the
    /// other node may have newer data. Looked at before every request.
    var mayServe: Bool { get }
    /// The last seq given out.
    var lastSeq: Seq { get }
    /// A number that no file of this mirror ever had.
    func allocateFileID() -> FileID
    /// Nanoseconds since 1970.
    func wallClock() -> Int64
    /// nil, or the errno for the application (ENOSPC) when a node is short of space or the journal cannot take it.
    /// `bytes`: what the plain files may grow by in the worst case; 0 for a change that needs no space worth naming.
    /// `files`: how many it makes. Asked right before the change is logged.
    func spaceFor(bytes: Int, files: Int) -> Int32?
    /// As `spaceFor`, of a change that stays on this node and has no record: of a file that is open and has no name.
    func localSpaceFor(bytes: Int) -> Int32?
    /// A change that `localSpaceFor` granted was made, or failed, or will not be made.
    func localDone(bytes: Int)
}

extension ChangeLog {
    /// A log without a lease always may.
    public var mayServe: Bool { true }
    /// Of a change that makes no file.
    public func spaceFor(bytes: Int) -> Int32? { spaceFor(bytes: bytes, files: 0) }
}
