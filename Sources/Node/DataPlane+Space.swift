import Format
import Glibc
import Ring
import Tree

/// Room in the plain files: looked at twice a second and told to the other node, so that the application hears ENOSPC
/// before anything breaks. If a record finds no room all the same, it is kept and tried again, and nothing is
/// checkpointed past it: a disk that is full has not failed.
extension DataPlane {
    static let fullRetryMilliseconds = 1000

    func checkSpace() {
        // The numbers of one question never overtake those of another.
        guard !isAskingForSpace else { return }
        isAskingForSpace = true
        let tree = tree
        let handle = reactor.handle
        let seq = log.applied
        let bound = ThreadBound({ [self] (room: DiskRoom?) in
            isAskingForSpace = false
            guard let room else { return }
            setRoom(fullAt == nil ? room : DiskRoom(bytes: 0, files: 0, seq: seq))
        })
        workers.submit {
            let found = try? tree.statistics()
            let room = found.map {
                DiskRoom(
                    bytes: $0.blocksAvailable * $0.blockSize, files: $0.files, filesFree: $0.filesFree, seq: seq)
            }
            _ = handle.post { bound.value(room) }
        }
    }

    private func setRoom(_ room: DiskRoom) {
        log.space.setOwn(room)
        link.room = room
    }

    /// A record found no room.
    func ranOutOfSpace(_ seq: Seq, _ error: TreeError) {
        guard !isBroken else { return }
        let isNew = fullAt == nil
        fullAt = seq
        setRoom(DiskRoom(bytes: 0, files: 0, seq: log.applied))
        guard isNew else { return }
        let text =
            "the file system of \(configuration.backing) is full: record \(seq) waits for room (\(error)). Make room "
            + "there; it is tried again every second, and the application is told ENOSPC meanwhile"
        logger.critical("\(text)")
        report(.full(text))
        retryLater()
    }

    private func retryLater() {
        _ = reactor.after(milliseconds: DataPlane.fullRetryMilliseconds) { [weak self] in
            guard let self, let fullAt, !isBroken else { return }
            if log.applied >= fullAt {
                self.fullAt = nil
                logger.notice("there is room in \(configuration.backing) again: record \(fullAt) is in the files")
                report(.full(nil))
                checkSpace()
            } else {
                log.applier.retry()
                retryLater()
            }
        }
    }
}
