internal import Format

/// The last attributes of files that are gone, for what the kernel still knows of them: an open FIFO, socket or device, a
/// descriptor that is only a path, a current directory. None of these has a handle here, and `fstat` never fails.
///
/// Nearly every entry goes at once: the kernel forgets a file that nobody has open right after its removal.
struct GoneFiles {
    /// About 150 bytes each; beyond it the oldest goes, and `fstat` of that one is ESTALE.
    static let filesMax = 16_384

    private var attributes: [FileID: FuseAttributes] = [:]
    /// Oldest first, with those that were forgotten since. No number comes twice: a removed file stays removed.
    private var order: [FileID] = []
    private var head = 0

    var count: Int { attributes.count }
    /// Entries of the queue, for tests.
    var queued: Int { order.count }

    subscript(_ file: FileID) -> FuseAttributes? { attributes[file] }

    mutating func insert(_ gone: FuseAttributes) {
        attributes[gone.file] = gone
        order.append(gone.file)
        while attributes.count > GoneFiles.filesMax {
            attributes[order[head]] = nil
            head += 1
        }
        guard order.count > 2 * attributes.count + 64 else { return }
        order = order[head...].filter { attributes[$0] != nil }
        head = 0
    }

    mutating func forget(_ file: FileID) { attributes[file] = nil }
}
