import Format
import Quorum

/// The voter's memory on disk: replaced as a whole, so that a crash leaves the old or the new one and never a mixture.
/// Blocking; used from a thread of its own, so that a slow disk never looks like a dead node.
struct VoteFile: Sendable {
    let path: String

    struct Damaged: Error, CustomStringConvertible {
        let path: String
        let error: DecodingError
        var description: String {
            "\(path), this node's votes, is damaged (\(error)). Remove it only together with the journal: this node "
                + "then joins as a new one; then run `lockstep init`"
        }
    }

    /// nil when there is no file: the voter is empty.
    func load() throws -> AcceptorState? {
        guard let bytes = try StateFile.load(path) else { return nil }
        do {
            return try AcceptorState(decoding: bytes)
        } catch {
            throw Damaged(path: path, error: error)
        }
    }

    /// nil removes the file.
    func store(_ state: AcceptorState?) throws(StateFile.Failure) {
        guard let state else { return try StateFile.remove(path) }
        try StateFile.replace(path, with: state.encoded())
    }
}
