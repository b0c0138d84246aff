import Format
import Glibc
import Ring
import Tree

/// Room in the plain files: looked at twice a second and told to the other node, so that the application hears ENOSPC
/// before anything breaks. If a record finds no room all the same, it is kept and tried again, and nothing is
/// checkpointed past it: a disk that is full has not failed.
extension DataPlane {
    static let fullRetryMilliseconds = 1000
    /// Tries in a row for which the file system said that there is room, and had none.
    static let fullRetriesWithRoom = 5

    /// With so much free, a record that finds none does not want for room.
    static let roomBytesEnough: UInt64 = 64 << 20

    func checkSpace() {
        // The numbers of one question never overtake those of another.
        guard !isAskingForSpace else { return }
        isAskingForSpace = true
        let tree = tree
        let handle = reactor.handle
        let seq = log.applied
        let ended = log.space.localEnded
        let bound = ThreadBound({ [self] (room: DiskRoom?) in
            isAskingForSpace = false
            guard let room else { return }
            seenRoom = room
            setRoom(fullAt == nil ? room : DiskRoom(bytes: 0, files: 0, seq: seq), localEnded: ended)
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

    private func setRoom(_ room: DiskRoom, localEnded: Int64? = nil) {
        log.space.setOwn(room, localEnded: localEnded)
        link.room = room
    }

    /// A record found no room.
    func ranOutOfSpace(_ seq: Seq, _ error: TreeError) {
        guard !isBroken else { return }
        let isNew = fullAt == nil
        fullAt = seq
        fullError = error
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
                fullRetries = 0
                logger.notice("there is room in \(configuration.backing) again: record \(fullAt) is in the files")
                report(.full(nil))
                return checkSpace()
            }
            let isRoomThere = seenRoom.map { $0.bytes > DataPlane.roomBytesEnough && $0.files > 0 } ?? false
            fullRetries = isRoomThere && fullError?.isBeyondFreeBlocks == false ? fullRetries + 1 : 0
            guard fullRetries <= DataPlane.fullRetriesWithRoom else { return cannotHold(fullAt) }
            log.applier.retry()
            retryLater()
        }
    }

    /// Room will not help: one object is more than this file system takes (an extended attribute, the index of a
    /// directory). The application must not be told for ever that a disk is full which is not.
    private func cannotHold(_ seq: Seq) {
        let error = fullError.map { "\($0)" } ?? "no room"
        failed(
            .apply(
                seq,
                "\(error), although \(seenRoom?.bytes ?? 0) bytes are free: the file system of "
                    + "\(configuration.backing) cannot hold this one object"))
    }
}
