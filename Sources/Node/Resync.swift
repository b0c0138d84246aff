import Format
import Journal
import Ring
import Tree

// The full comparison of the files: used when a node joins for the first time (empty, or seeded from a copy), when the
// journal no longer reaches back, and when a node's copy is incomplete.
//
// ```
//  source (primary)                                         follower
//    resyncStart(base) ─────────────────────────────────▶ old records applied, journal quiet
//    imageStart is record base+1                           journal reset to base and marked INCOMPLETE, durable
//                      ◀───────────────────────────────── resyncReady
//    streaming from base: new records and images, one order ─▶ applied in that order, leniently
//      directories: imageDirectory                         unknown objects made, others moved or set aside
//      files: size; then windows of hashes: probe ───────▶ answered when applied up to the probe's seq
//             what differs: write, punched holes  ◀─────── probeAnswer
//             then imageFile (attributes)
//    imageEnd; resyncEnd(seq) ──────────────────────────▶ applied; files synced, checkpoint; NOT incomplete, durable
//                      ◀───────────────────────────────── resyncDone
//    the ordinary way of bringing a node in goes on
// ```
//
// What makes it right, whatever the application does meanwhile:
//
// * Images travel in the mirror's one order. A record behind an image is newer than it, on both nodes.
// * From `imageStart` on the follower applies leniently: a record about an object it does not know is left out. The
//   source knows which objects the follower knows (those in an image of a directory, and those created since): an
//   object's own image is read after it became known, so it has everything that was left out.
// * Of a known file, every record since is applied by the follower. So what is read from the plain file, less the bytes
//   that records have changed since the read began, is right at the place of its image in the order (`TouchLog`). The
//   application never waits, and a range that is written all the time does not hold up the end.
// * The same holds for hashes: a byte that a record has changed since is right on the follower anyway; if the hashes are
//   equal, all the others are equal too.
// * A file's size goes first: behind the end there is a hole in both rooms from then on, so that a later extension shows
//   zeros and not what an old copy had there.
// * The directories come first, in quiet moments (no unapplied record of that directory, none logged while it was
//   read; if there is never one, the application's changes of its names wait for one reading). A rename or a link of an object that the follower does not know yet brings its directory back into the queue.
//
// If anything dies on the way, the follower's journal says "incomplete": its log state says so on the next connection,
// and the comparison begins again; what was already made equal costs reading and hashes. Only after the follower's disk
// says that it is complete does the source hear of it, and only then may a decision name that node in sync.

enum ResyncLimits {
    /// Until what is owed is written again, after the disk refused it.
    static let recordAgainMilliseconds = 1000
    /// Bytes of one hashed block.
    static let blockBytes = 16 << 10
    /// Bytes of one probe over data.
    static let windowBytes: UInt64 = 4 << 20
    /// Bytes of one probe over a hole.
    static let holeWindowBytes = UInt64(blockBytes * Probe.blockLimit)
    /// Probes under way at once (each is answered after a flush on both nodes, so many small files go together), those
    /// of one file, and what a follower keeps waiting at most.
    static let probes = 64
    static let probesOfFile = 8
    static let waitingProbes = 128
    /// Objects looked at in one call.
    static let looks = 512
    /// Files under way at once.
    static let files = 128
    /// After so many tries without a quiet moment the names of a directory are held for one reading.
    static let busyTries = 8
    /// Directories being read at once.
    static let directories = 2
    /// Blocking calls under way for a comparison at once: the application's have the other workers.
    static let jobs = 4
    /// Data read at once, and the longest image write.
    static let readBytes = 256 << 10
    /// Ranges read in one call. A hand-over to a worker and back costs more than 4 KiB from the disk.
    static let rangesOfRead = 64
    /// Files looked at in one call, and the bytes of each.
    static let filesOfLook = 32
    static let bytesOfLook = 64 << 10
    /// Ranges that wait to be read: enough for every job.
    static let differing = 4 * jobs * rangesOfRead
    /// Images read and not yet on the follower's disk. Bounds both the memory and what the application's records queue
    /// behind on the line.
    static let inFlightBytes = 4 << 20
}

extension DataPlane {
    /// Runs a blocking call of a comparison on a worker and goes on with its result here.
    func compareOnWorker<Value: Sendable>(
        _ call: @escaping @Sendable (PlainTree) throws(TreeError) -> Value,
        then: @escaping (Result<Value, TreeError>) -> Void
    ) {
        let tree = tree
        let handle = reactor.handle
        let bound = ThreadBound(then)
        workers.submit {
            let result: Result<Value, TreeError>
            do throws(TreeError) {
                result = .success(try call(tree))
            } catch {
                result = .failure(error)
            }
            _ = handle.post { bound.value(result) }
        }
    }
}
