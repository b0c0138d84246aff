import Format
import Replication
import Tree

/// Everything that is owed of a file in one look: its size, its first changed bytes and its attributes, together with those
/// of other files, in one call. Step by step each file would cost three hand-overs to a worker, and the wait for the
/// record of its size to be applied here; of many small files that is nearly all of the time.
///
/// Right for the same reason as step by step, and simpler: what was read is sent only if no record since the look began
/// touches the file. Then the plain file was all the time what the log says at the place that the images get, which
/// they get together: the bytes first, then the attributes, and with them the size. If one does touch it, the file goes
/// step by step. If not all of it finds room at once, the size goes where the room ends: records of the application may
/// come there, and an old copy's bytes must not come to light when one of them extends the file.
extension ResyncSource {
    /// What one look found of a file.
    struct Look: Sendable {
        var attributes: FileAttributes
        var target: [UInt8]
        var xattrs: [ExtendedAttribute]
        /// Of each range asked for: what is there.
        var pieces: [[ContentPiece]]
    }

    /// What is asked of a file.
    private struct Question: Sendable {
        var file: FileID
        var ranges: [Range<UInt64>]
        /// The ranges are all that has changed below here.
        var through: UInt64
    }

    /// Looks at the files that have just begun, as many in a call as fit.
    func lookAtFiles() {
        guard kind != .comparison else { return }
        var next = 0
        while next < tasks.count, jobs < ResyncLimits.jobs, hasRoom,
            unacknowledgedBytes + bytesToLog < ResyncLimits.inFlightBytes
        {
            var group: [FileComparison] = []
            while next < tasks.count, group.count < ResyncLimits.filesOfLook {
                if waitsForLook(tasks[next]), mayBeLookedAt(tasks[next]) { group.append(tasks[next]) }
                next += 1
            }
            guard !group.isEmpty else { return }
            look(at: group)
        }
    }

    /// Nothing of it has been sent, and nothing is known to speak against sending all of it at once.
    func waitsForLook(_ task: FileComparison) -> Bool {
        kind != .comparison && !task.goesStepByStep && (task.stage == .size || task.stage == .attributes)
    }

    private func mayBeLookedAt(_ task: FileComparison) -> Bool {
        guard !task.isBusy, plane.log.applied >= task.knownSince else { return false }
        // Somebody is changing it: it need not wait for a moment without.
        task.goesStepByStep = touches.isTouched(task.file, after: plane.log.applied)
        return !task.goesStepByStep
    }

    private func look(at group: [FileComparison]) {
        let questions = group.map(question)
        for task in group { task.isBusy = true }
        bytesToLog += ResyncLimits.readBytes
        read { tree throws(TreeError) in
            var found: [Result<Look, TreeError>] = []
            var bytes = 0
            for question in questions { for range in question.ranges { try? tree.willRead(question.file, range) } }
            for question in questions where bytes < ResyncLimits.readBytes {
                let look = Result { () throws(TreeError) in try tree.look(at: question.file, question.ranges) }
                if case .success(let look) = look {
                    for pieces in look.pieces { for piece in pieces { bytes += piece.bytes?.count ?? 0 } }
                }
                found.append(look)
            }
            return found
        } then: { [self] result, since in
            bytesToLog -= ResyncLimits.readBytes
            for task in group { task.isBusy = false }
            // Those that the call did not come to are asked for again.
            guard case .success(let found) = result else { return }
            for (index, look) in found.enumerated() where !isCancelled {
                switch look {
                case .failure(let error): if isGone(error) { gone(group[index]) }
                case .success(let look): took(look, of: group[index], questions[index], since: since)
                }
            }
        }
    }

    private func question(_ task: FileComparison) -> Question {
        var question = Question(file: task.file, ranges: [], through: 0)
        guard task.stage == .size, let map = plane.keeper.debt?.owed?.map else { return question }
        // How long the file is, the look will tell; what is behind the end is cut off then.
        while question.through < .max, question.ranges.count < ResyncLimits.rangesOfRead {
            let left = ResyncLimits.bytesOfLook - question.ranges.reduce(0) { $0 + $1.count }
            guard left > 0 else { break }
            let range = map.range(of: task.file, from: question.through, size: .max, limit: UInt64(left))
            guard let range else {
                question.through = .max
                break
            }
            // Granules have become large: step by step.
            guard range.count <= ResyncLimits.readBytes else { break }
            question.ranges.append(range)
            question.through = range.upperBound
        }
        return question
    }

    private func took(_ look: Look, of task: FileComparison, _ question: Question, since: Seq) {
        let newest = plane.directory?.attributesInMemory(of: task.file) ?? look.attributes
        guard !touches.isTouched(task.file, after: since), newest.size == look.attributes.size else {
            task.goesStepByStep = true
            return
        }
        // Without room it is looked at again.
        guard hasRoom else { return }
        if task.stage == .size {
            takeSize(task, newest)
            let hasHole = look.pieces.joined().contains { $0.bytes == nil && $0.mode == ContentPiece.punchHole }
            if hasHole { imageSize(task, newest) }
            task.goesStepByStep = true
            for (range, pieces) in zip(question.ranges, look.pieces) where range.lowerBound < task.size {
                let range = range.lowerBound..<min(range.upperBound, task.size)
                task.windows += 1
                progress.differingBytes += UInt64(range.count)
                bytesToLog += range.count
                images.append(
                    ReadImage(
                        task: task, range: range, pieces: pieces, since: since, ticket: keep(since),
                        reserved: range.count))
            }
            task.next = min(question.through, task.size)
            logImages()
            // The rest of it goes step by step.
            guard task.next == task.size, task.windows == 0, hasRoom else { return imageSize(task, newest) }
        }
        sendAttributes(task, newest, target: look.target, look.xattrs)
    }
}

extension PlainTree {
    /// - Parameter ranges: of each what is there, up to the end of the file.
    func look(at file: FileID, _ ranges: [Range<UInt64>]) throws(TreeError) -> ResyncSource.Look {
        guard case .imageFile(_, let attributes, let target, let xattrs) = try imageOfFile(file) else {
            preconditionFailure("the image of a file is one of a file")
        }
        var pieces: [[ContentPiece]] = []
        for range in ranges { pieces.append(try content(of: file, in: range, limit: range.count).pieces) }
        return ResyncSource.Look(attributes: attributes, target: target, xattrs: xattrs, pieces: pieces)
    }
}
