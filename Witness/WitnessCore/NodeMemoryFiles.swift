import Format

/// What the witness remembers of nodes, one file a mirror: `<32 hexadecimal digits of the mirror id>.nodes`, each replaced
/// as a whole. Nothing that is answered waits for it, so it is written on a thread of its own: a disk that hangs then
/// delays no lease.
public struct NodeMemoryFiles: Sendable {
    let directory: String
    static let suffix = ".nodes"

    public init(directory: String) { self.directory = directory }

    private func path(_ mirror: MirrorID) -> String { directory + "/\(mirror)" + NodeMemoryFiles.suffix }

    /// nil when there is none. One that is damaged or cannot be read is as good as none, and `complaint` says so: what
    /// it remembered is lost, no more.
    func load(_ mirror: MirrorID) -> (memory: NodeMemory?, complaint: String?) {
        do {
            guard let bytes = try VoteStore.read(path(mirror)) else { return (nil, nil) }
            return (try NodeMemory(decoding: bytes, mirror: mirror), nil)
        } catch {
            return (nil, "\(path(mirror)) cannot be used (\(error)); it is written anew")
        }
    }

    /// The directory is not flushed: an older file does no harm.
    func store(_ memory: NodeMemory, of mirror: MirrorID) throws(VoteStoreError) {
        try VoteStore.replace(path(mirror), with: memory.encoded(mirror: mirror))
    }
}
