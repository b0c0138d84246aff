internal import Format

/// What a resynchronisation in progress remembers on the side that is overwritten. Lost with a crash: then the primary
/// begins again, with a new number.
struct ImageSession {
    let number: UInt64
    /// Names of directories whose image has come in part.
    var names: [FileID: Set<FileName>] = [:]
    /// Where objects stand that cannot be changed, only replaced, once their image says what they are: symbolic links
    /// and devices.
    var replaceable: [FileID: [(parent: FileID, name: FileName)]] = [:]
}
