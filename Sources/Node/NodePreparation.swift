public import Configuration
public import Format
import Foundation
import Glibc
import Journal
public import Logging
import Quorum
import Tree

/// `lockstep init` and `lockstep adopt`: what an administrator does once, before the daemon runs on a node. What the
/// command says is done, a loss of power does not undo.
public enum NodePreparation {
    /// Makes this node the one that has the data: journal, votes with the first decision (this node alone), numbers for
    /// the files that are there.
    ///
    /// Steps in an order that a crash may break off anywhere: the votes come last, and without them the daemon does not
    /// start; a second run goes on.
    public static func first(
        _ configuration: MirrorConfiguration, node: NodeID, logger: Logger,
        progress: ((_ written: Int, _ total: Int) -> Void)? = nil
    ) throws -> MirrorID {
        try makeDirectories(configuration)
        let lock = try StateLock(configuration)
        defer { withExtendedLifetime(lock) {} }
        let votes = VoteFile(configuration)
        guard try votes.load() == nil else {
            throw StartError(
                "this node already has a part in mirror \(configuration.name) (\(votes.path)). Start it with "
                    + "`systemctl start lockstepd@\(configuration.name)`; to begin anew, remove \(configuration.state)")
        }
        var generator = SystemRandomNumberGenerator()
        let mirror = MirrorID(random: &generator)
        try discardJournal(configuration, logger)
        // Votes of another mirror, or of this one before: see `join`.
        try StateFile.remove(StateFiles.forgottenVotes(configuration))
        // Before the files are gone through, which may take long.
        try checkRoomForJournal(configuration)
        let tree = try PlainTree(
            backing: configuration.backing, state: configuration.state, opening: .create, logger: logger)
        var allocator = FileIDAllocator(epoch: Epoch(rawValue: 1))
        let adopted = try tree.adoptScan(allocator: &allocator, retagging: true)
        try tree.sync()
        try tree.close()
        // Files that were there before the first record cannot be caught up from the journal: a log that begins at
        // record 1 instead of 0 makes the other node compare.
        try makeJournal(
            configuration, node: node, mirror: mirror, base: adopted > 0 ? Seq(rawValue: 1) : .zero,
            isIncomplete: false, logger: logger, progress: progress)
        try votes.store(
            AcceptorState.genesis(mirror: mirror, name: configuration.name, node: node, birth: generator.next()))
        logger.notice("mirror \(configuration.name) begins here", metadata: ["id": "\(mirror)", "files": "\(adopted)"])
        return mirror
    }

    /// Prepares this node to be filled from the other one. What is in its backing directory will be made equal to the
    /// other node's: files that are equal already are not sent.
    public static func join(_ configuration: MirrorConfiguration, node: NodeID, logger: Logger) throws {
        try makeDirectories(configuration)
        let lock = try StateLock(configuration)
        defer { withExtendedLifetime(lock) {} }
        guard try VoteFile(configuration).load() == nil else {
            // Its disk was replaced: the votes and the journal stay, and the daemon finds that the files are gone.
            if case .empty = try PlainTree.look(at: configuration.backing) {
                let tree = try PlainTree(
                    backing: configuration.backing, state: configuration.state, opening: .create, logger: logger)
                try tree.sync()
                return try tree.close()
            }
            throw StartError(
                "this node already has a part in mirror \(configuration.name) "
                    + "(\(StateFiles.votes(configuration))); just start it")
        }
        try discardJournal(configuration, logger)
        // After the journal, which cannot be served without them. From here the node has no part in the mirror.
        try StateFile.remove(StateFiles.forgottenVotes(configuration))
        let tree = try PlainTree(
            backing: configuration.backing, state: configuration.state, opening: .create, logger: logger)
        try tree.sync()
        try tree.close()
        try StateFile.replace(StateFiles.joining(configuration), with: [])
    }

    /// Moves the application's directory to where the plain files live. Both are on one file system; `backing` is empty or
    /// not there.
    public static func adopt(_ directory: String, _ configuration: MirrorConfiguration) throws {
        let backing = configuration.backing
        // The link would be moved, and the files stay where whoever knows that place writes past the mirror.
        let kind = try? FileManager.default.attributesOfItem(atPath: directory)[.type] as? FileAttributeType
        guard kind != .typeSymbolicLink else {
            throw StartError("\(directory) is a symbolic link: name the directory that it leads to")
        }
        try makeDirectory((backing as NSString).deletingLastPathComponent)
        guard unsafe rename(directory, backing) == 0 else {
            throw StartError(
                unsafe "cannot move \(directory) to \(backing): \(String(cString: strerror(errno))). If it is another file "
                    + "system, copy the files there with `cp -a`, and compare before you remove the originals")
        }
        try StateFile.flushNames(of: backing)
        try StateFile.flushNames(of: URL(fileURLWithPath: directory).standardizedFileURL.path)
        try makeDirectory(configuration.path)
    }

    /// A journal without votes: of a preparation that was broken off, or of a node that has lost its votes, or forgotten
    /// them. That one may hold the only copy of something: it is kept, for `lockstep-dump`.
    private static func discardJournal(_ configuration: MirrorConfiguration, _ logger: Logger) throws {
        let path = StateFiles.journal(configuration)
        guard unsafe access(path, F_OK) == 0 else { return }
        // Every start that came as far as its files has written its superblock; one that cannot be read may be anything.
        let generation = try SuperblockSet(image: JournalReader(path: path)).agreed?.superblock.generation
        if generation != 0 {
            let kept = path + ".set-aside-\(generation ?? 0)"
            guard unsafe rename(path, kept) == 0 else {
                throw StartError(unsafe "cannot rename \(path): \(String(cString: strerror(errno)))")
            }
            try StateFile.flushNames(of: kept)
            return logger.warning(
                "the journal that was here is kept as \(kept): remove it when both nodes are in sync")
        }
        guard unsafe unlink(path) == 0 else {
            throw StartError(unsafe "cannot remove \(path): \(String(cString: strerror(errno)))")
        }
    }

    /// Before it is begun: a journal that takes the last free block keeps the votes beside it from being written.
    private static func checkRoomForJournal(_ configuration: MirrorConfiguration) throws {
        // What a creation that was killed has left would be overwritten, and must not count as used.
        unsafe _ = unlink(Journal.unfinishedPath(StateFiles.journal(configuration)))
        var space = statvfs()
        guard unsafe statvfs(configuration.state, &space) == 0 else { return }
        let free = UInt64(geteuid() == 0 ? space.f_bfree : space.f_bavail) * UInt64(space.f_frsize)
        let needed = UInt64(configuration.journal.sizeBytes) + roomBesideJournal
        guard free < needed else { return }
        let mebibytes = { (bytes: UInt64) in "\(bytes >> 20) MiB" }
        throw StartError(
            "no room for the journal: \(mebibytes(free)) are free for \(configuration.state), and \(mebibytes(needed)) "
                + "are needed. Free space there, or lower journal.sizeMebibytes in \(configuration.file)")
    }
    /// What is left for votes and other small files, in bytes.
    private static let roomBesideJournal: UInt64 = 4 << 20

    private static func makeDirectories(_ configuration: MirrorConfiguration) throws {
        for directory in [configuration.state, configuration.backing, configuration.path] {
            try makeDirectory(directory)
        }
        unsafe chmod(configuration.state, 0o700)
    }

    private static func makeDirectory(_ directory: String) throws {
        do {
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: true, attributes: nil)
        } catch {
            throw StartError("cannot create \(directory): \(error.localizedDescription)")
        }
        try StateFile.flushNames(of: directory)
    }

    static func makeJournal(
        _ configuration: MirrorConfiguration, node: NodeID, mirror: MirrorID, base: Seq = .zero, isIncomplete: Bool,
        logger: Logger, progress: ((_ written: Int, _ total: Int) -> Void)? = nil
    ) throws {
        try checkRoomForJournal(configuration)
        var time = timespec()
        unsafe clock_gettime(CLOCK_REALTIME, &time)
        // The files say first which journal they belong to. A crash in between leaves the name of one that never was; the
        // next try writes another.
        var generator = SystemRandomNumberGenerator()
        let instance: UInt64 = generator.next()
        let point = TreeMarker.Point(seq: base, chain: 0, incarnation: 0)
        try PlainTree.setMarker(TreeMarker(journal: instance, points: [point]), backing: configuration.backing)
        try Journal.create(
            path: StateFiles.journal(configuration), size: Int(configuration.journal.sizeBytes), mirror: mirror,
            node: node, time: Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec), base: base,
            isIncomplete: isIncomplete, isStrict: configuration.mode == .strict, instance: instance, progress: progress)
    }
}
