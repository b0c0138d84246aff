import Configuration
import Format
import Glibc
import Quorum

/// The voter's memory on disk: replaced as a whole, so that a crash leaves the old or the new one and never a mixture.
/// Blocking; used from a thread of its own, so that a slow disk never looks like a dead node.
///
/// Votes that were put back to an older state are forgotten, and kept aside in another file (`Member+Reforming`):
///
/// | dies right after | then there is |
/// |---|---|
/// | the rename to `votes.forgotten`, not flushed yet | either of the two. The old votes are found out again, as they were |
/// | the rename, flushed | forgotten votes only: the node waits to be given new ones, or to be promoted by force |
/// | new votes were stored | both, of two births: the votes count |
/// | `votes.forgotten` was removed | the votes |
struct VoteFile: Sendable {
    let path: String
    /// Where votes that were forgotten are kept.
    let forgottenPath: String

    struct Damaged: Error, CustomStringConvertible {
        let path: String
        let error: DecodingError
        var description: String {
            "\(path), this node's votes, is damaged (\(error)). Remove it only together with the journal: this node "
                + "then joins as a new one; then run `lockstep init`"
        }
    }

    /// nil when there is no file: the voter is empty.
    func load() throws -> AcceptorState? { try load(path) }

    private func load(_ path: String) throws -> AcceptorState? {
        guard let bytes = try StateFile.load(path) else { return nil }
        do {
            return try AcceptorState(decoding: bytes)
        } catch {
            throw Damaged(path: path, error: error)
        }
    }

    /// Both files, as they count when a process starts; the disk is made to say the same.
    func recall() throws -> (votes: AcceptorState?, forgotten: AcceptorState?) {
        guard let votes = try load() else { return (nil, try load(forgottenPath)) }
        // Beside votes that count it is only in the way, and goes with their next write. So whatever it holds is no
        // reason not to start.
        guard let kept = try? load(forgottenPath) else { return (votes, nil) }
        let found = AcceptorState.recalled(votes: votes, forgotten: kept)
        if found.votes == nil {
            // Somebody has copied the old votes back.
            if found.forgotten == votes { try store(nil) } else { try StateFile.remove(path) }
        }
        return found
    }

    /// nil puts the file aside. What was put aside before stays if there is none; it goes when there are votes again.
    func store(_ state: AcceptorState?) throws(StateFile.Failure) {
        guard let state else { return try StateFile.putAside(path, as: forgottenPath) }
        try StateFile.replace(path, with: state.encoded())
        // Beside votes that count it does no harm (`recall`): no reason to be silent.
        if unsafe access(forgottenPath, F_OK) == 0 { try? StateFile.remove(forgottenPath) }
    }
}

extension VoteFile {
    init(_ configuration: MirrorConfiguration) {
        self.init(
            path: StateFiles.votes(configuration), forgottenPath: StateFiles.forgottenVotes(configuration))
    }
}
