internal import Format

/// What a resynchronisation in progress remembers on the side that is overwritten. After a crash the replay gives back
/// `names`; `replaceable` is found by a scan when it is needed.
struct ImageSession {
    let number: UInt64
    /// This process has not seen its beginning: what is not in `replaceable` may be somewhere all the same.
    var isResumed = false
    /// Names of directories whose image has come in part.
    var names: [FileID: Set<FileName>] = [:]
    /// Where objects stand that cannot be changed, only replaced, once their image says what they are: symbolic links
    /// and devices.
    var replaceable: [FileID: [(parent: FileID, name: FileName)]] = [:]
}
