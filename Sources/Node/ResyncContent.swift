import Format
import Glibc
import Replication
import Tree

/// One file under comparison.
final class FileComparison {
    enum Stage {
        /// Nobody knows yet what it is.
        case look
        case size, data, attributes, done
    }
    let file: FileID
    var stage: Stage
    /// Everything up to here is applied before the plain file is read; later records bring their own bytes.
    var knownSince: Seq
    var size: UInt64 = 0
    var next: UInt64 = 0
    /// Probes without an answer, and ranges that differ and have no image yet.
    var windows = 0
    var isBusy = false
    /// Not everything at once (`lookAtFiles`): it was touched meanwhile, or more is owed of it.
    var goesStepByStep = false

    /// - Parameter owed: what of it, if not all.
    init(_ file: FileID, isRegular: Bool, knownSince: Seq, owed: DirtyMap.Changes? = nil) {
        self.file = file
        self.knownSince = knownSince
        if let owed, owed.hasNames, owed.hasContent {
            stage = .look
        } else {
            stage = isRegular && owed?.hasContent ?? true ? .size : .attributes
        }
    }
}

/// Content that was read and waits for its place in the order.
final class ReadImage {
    let task: FileComparison
    /// What is there when every piece is.
    let range: Range<UInt64>
    var pieces: [ContentPiece]
    let since: Seq
    let ticket: UInt64
    /// Bytes, as long as it has no place.
    let reserved: Int
    init(
        task: FileComparison, range: Range<UInt64>, pieces: [ContentPiece], since: Seq, ticket: UInt64, reserved: Int
    ) {
        self.task = task
        self.range = range
        self.pieces = pieces
        self.since = since
        self.ticket = ticket
        self.reserved = reserved
    }
}

/// Data or a hole.
struct ContentPiece: Sendable {
    /// FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    static let punchHole: UInt32 = 3
    /// FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE
    static let zeroRange: UInt32 = 17
    var start: UInt64
    var end: UInt64
    /// nil: a hole, or zeros that take space (`mode`). Zeros are never sent as bytes: a file system also says "data" of a
    /// range that was only allocated, once it has been read.
    var bytes: [UInt8]?
    var mode = ContentPiece.punchHole
}

extension PlainTree {
    /// The type bits of an object; 0 when it is gone.
    func typeIfThere(_ file: FileID) throws(TreeError) -> UInt32 {
        do throws(TreeError) {
            return try status(of: file).attributes.mode & S_IFMT
        } catch {
            guard error.code == ESTALE || error.code == ENOENT else { throw error }
            return 0
        }
    }

    /// The next data from `offset` on; `UInt64.max` when only a hole, or nothing, follows.
    func nextData(_ file: FileID, from offset: UInt64) throws(TreeError) -> UInt64 {
        do throws(TreeError) {
            return try seek(file, from: offset, toHole: false)
        } catch {
            guard error.code == ENXIO else { throw error }
            return .max
        }
    }

    /// The end of the data at `offset`; nil behind the end of the file.
    private func nextHole(_ file: FileID, from offset: UInt64) throws(TreeError) -> UInt64? {
        do throws(TreeError) {
            return try seek(file, from: offset, toHole: true)
        } catch {
            guard error.code == ENXIO else { throw error }
            return nil
        }
    }

    /// Data and holes of a range, up to the end of the file or until `limit` bytes of data were read.
    /// - Returns: the pieces, and where they end.
    func content(
        of file: FileID, in range: Range<UInt64>, limit: Int
    ) throws(TreeError) -> (pieces: [ContentPiece], end: UInt64) {
        let size = try status(of: file).attributes.size
        let end = min(range.upperBound, size)
        var pieces: [ContentPiece] = []
        var position = range.lowerBound
        var room = limit
        while position < end {
            let data = min(try nextData(file, from: position), end)
            if data > position {
                pieces.append(ContentPiece(start: position, end: data, bytes: nil))
                position = data
                continue
            }
            guard room > 0 else { return (pieces, position) }
            // Cut off meanwhile: there is nothing more, and the record that did it brings the rest.
            guard let next = try nextHole(file, from: position) else { break }
            let hole = min(next, end)
            // Data that became a hole meanwhile: a record did it, and brings it.
            guard hole > position else { continue }
            var bytes = [UInt8](repeating: 0, count: Int(min(UInt64(room), hole - position)))
            let wanted = bytes.count
            let start = position
            var failure: TreeError?
            let count = unsafe bytes.withUnsafeMutableBytes { space in
                do throws(TreeError) {
                    return try unsafe read(file, at: start, into: space)
                } catch {
                    failure = error
                    return 0
                }
            }
            if let failure { throw failure }
            guard count > 0 else { break }
            if count < wanted { bytes.removeLast(wanted - count) }
            let isZero = unsafe bytes.withUnsafeBytes { unsafe $0[0] == 0 && $0.allSatisfy { $0 == 0 } }
            pieces.append(
                ContentPiece(
                    start: position, end: position + UInt64(count), bytes: isZero ? nil : bytes,
                    mode: ContentPiece.zeroRange))
            position += UInt64(count)
            room -= count
        }
        return (pieces, range.upperBound)
    }
}
