//  A node comes back with other files, or with bytes that flipped: lines 13, 15 and 37 of the table of failures.
import CLinux
import Foundation
import Rooms
import Testing

extension WholeSystem {
    @Suite struct ComingBackTests {
        /// A dies while B's files are being compared. B's plain files hang meanwhile, so that the comparison cannot end.
        @Test func failure13HalfACopyIsNeverPromotedAndSaysSo() throws {
            try Harness.withDisks { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let (alpha, beta) = (cluster.alpha, cluster.beta)
                try alpha.room.succeed(
                    [
                        "sh", "-c",
                        "mkdir \(Cluster.path)/many; cd \(Cluster.path)/many; for i in $(seq 300); do echo $i >$i; done",
                    ])
                try cluster.outrunJournal(on: alpha)
                try cluster.lose(beta)
                try cluster.emptyDisks(of: beta)
                try cluster.waitFor(alpha, "goes on alone") { $0.role == "ALONE" }
                try client.waitForTransfers(count: 5, within: Small.stepSecondsMax)

                try cluster.building.restore(beta.room)
                try cluster.startDaemon(beta)
                try waitUntil("beta's files are being compared", within: Small.stepSecondsMax, every: 0.01) {
                    try cluster.isLogged(beta, "the files here are compared")
                }
                try beta.room.freezeFileSystem(at: RoomDisk.files)
                usleep(500_000)
                try alpha.room.killAll()
                try beta.room.thawFileSystem(at: RoomDisk.files)
                guard try !cluster.isLogged(beta, "the files here are equal") else {
                    throw RoomsError("The comparison had ended before alpha was killed: nothing was shown.")
                }
                try cluster.watchThatDoesNotServe(beta, for: Small.temptationSeconds)
                let status = try cluster.waitFor(beta, "says for whom it waits") { $0.role == "WAIT" }
                try #require(status.explanation.contains("alpha"), "\(status.explanation)")
                // Nor by force, whatever would be accepted.
                let forced = try beta.room.run([
                    Cluster.programs + "/lockstep", "promote", "--accept-loss", "--config", Cluster.configurationFile,
                    "--node", beta.name,
                ])
                try #require(
                    forced.status == 1 && forced.error.contains("not complete"), "\(forced.output)\(forced.error)")
                try #require(status.text.contains(#""usable" : false"#), "its copy counts")
                // Its own restart makes it no better.
                try beta.room.killAll()
                try beta.room.reboot()
                try cluster.startDaemon(beta)
                try cluster.watchThatDoesNotServe(beta, for: Small.temptationSeconds)
                let again = try cluster.waitFor(beta, "says for whom it waits") { $0.role == "WAIT" }
                try #require(again.explanation.contains("alpha"), "\(again.explanation)")

                try cluster.bringBack(alpha)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// The application writes all the time into the files that are being compared.
        @Test func failure15WritesIntoFilesThatAreBeingComparedStayOnBoth() throws {
            try Harness.withDisks { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let (alpha, beta) = (cluster.alpha, cluster.beta)
                let files = (0..<4).map { "\(Cluster.path)/hot-\($0)" }
                for file in files {
                    try alpha.room.succeed(["dd", "if=/dev/urandom", "of=\(file)", "bs=1M", "count=8", "conv=fsync"])
                }
                let writers = try files.map { try HotWriter(alpha.room.hostPath($0), bytes: 8 << 20) }
                defer { for writer in writers { writer.stop() } }
                try cluster.outrunJournal(on: alpha)
                try cluster.lose(beta)
                try cluster.emptyDisks(of: beta)
                try cluster.waitFor(alpha, "goes on alone") { $0.role == "ALONE" }
                try cluster.building.restore(beta.room)
                try cluster.startDaemon(beta)
                try cluster.waitUntilInSync(within: 2 * Small.stepSecondsMax)
                try #require(try cluster.isLogged(beta, "the files here are compared"))
                let expected = try writers.map { writer in
                    writer.stop()
                    return try writer.contents()
                }
                try #require(writers.allSatisfy { $0.count > 100 }, "the writers hardly wrote: nothing was shown")
                try cluster.expectWellAfterwards(client, guardian)
                for node in cluster.nodes {
                    for (file, bytes) in zip(files, expected) {
                        let name = (file as NSString).lastPathComponent
                        let found = FileManager.default.contents(
                            atPath: node.room.hostPath("\(Cluster.backing)/\(name)"))
                        try #require(found == bytes, "\(file) on \(node.name) is not what was written last")
                    }
                }
            }
        }

        /// Each kind of file of a node's state, damaged while the node is down and the other serves.
        @Test func failure37DamageInAnyFileOfANodesStateIsMendedFromTheOtherRoomOrRefused() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let beta = cluster.beta
                for damage in Damage.allCases {
                    try client.waitForTransfers(count: 10, within: Small.stepSecondsMax)
                    try cluster.lose(beta)
                    try cluster.waitFor(cluster.alpha, "goes on alone") { $0.role == "ALONE" }
                    let file = cluster.stateFile(beta, damage.file)
                    let before = try #require(FileManager.default.contents(atPath: file), "no \(file)")
                    try damage.flip(file, size: before.count)
                    try beta.room.reboot()
                    try cluster.building.restore(beta.room)
                    let daemon = try cluster.startDaemon(beta)
                    if damage.isRefused {
                        let status = try daemon.waitForEnd(within: Small.stepSecondsMax)
                        try #require(status == 1, "\(damage): ended with \(status)")
                        let words = daemon.logTail(lines: 3)
                        try #require(
                            words.contains("/ledger/\(damage.file)"), "\(damage): does not name the file: \(words)")
                        // The room has been started anew since: another path leads to it.
                        try before.write(to: URL(fileURLWithPath: cluster.stateFile(beta, damage.file)))
                        try cluster.startDaemon(beta)
                    }
                    do {
                        try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                    } catch { throw RoomsError("\(damage): \(error)") }
                }
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        enum Damage: String, CaseIterable {
            case journalEarly, journalMiddle, oneSuperblock, threeSuperblocks, votes, fileTable

            var file: String {
                switch self {
                case .votes: "votes"
                case .fileTable: "file-table"
                default: "journal"
                }
            }
            /// The daemon ends, and names the file; all else is mended without anybody.
            var isRefused: Bool { self == .threeSuperblocks || self == .votes }

            /// Flips bits in the file. The four superblock copies are at the beginning and the end of the journal.
            func flip(_ path: String, size: Int) throws {
                let copies = Damage.superblockOffsets(size)
                let offsets: [Int] =
                    switch self {
                    case .oneSuperblock: [copies[1] + 40]
                    case .threeSuperblocks: copies.prefix(3).map { $0 + 40 }
                    case .votes: [size / 2]
                    case .fileTable: stride(from: 4096 + 8, to: size, by: 512).map { $0 }
                    // Where records are: the body begins behind the superblocks and the header ring.
                    case .journalEarly, .journalMiddle: []
                    }
                let handle = try #require(FileHandle(forUpdatingAtPath: path))
                defer { try? handle.close() }
                for offset in offsets { try Damage.flip(handle, offset) }
                guard self == .journalEarly || self == .journalMiddle else { return }
                // Records hold their bytes as they are: SQLite's header is in the first, its pages further on.
                let bytes = FileManager.default.contents(atPath: path) ?? Data()
                var found: [Int] = []
                var at = bytes.startIndex
                while found.count < 400,
                    let range = bytes.range(of: Data("SQLite format 3".utf8), in: at..<bytes.endIndex)
                {
                    found.append(range.lowerBound)
                    at = range.upperBound
                }
                try #require(!found.isEmpty, "no record of the ledger in the journal")
                try Damage.flip(handle, self == .journalEarly ? found[0] : found[found.count / 2])
            }

            private static func flip(_ handle: FileHandle, _ offset: Int) throws {
                try handle.seek(toOffset: UInt64(offset))
                let byte = try #require(try handle.read(upToCount: 1)?.first)
                try handle.seek(toOffset: UInt64(offset))
                try handle.write(contentsOf: [byte ^ 0x40])
            }

            static func superblockOffsets(_ size: Int) -> [Int] { [0, 65_536, size - 131_072, size - 65_536] }
        }
    }
}

extension Cluster {
    /// The node is down; its disks are replaced by empty ones, and it is prepared to join.
    func emptyDisks(of node: ClusterNode) throws {
        try node.room.reboot()
        try building.cut(node.room)
        for disk in [RoomDisk.state, RoomDisk.files] {
            try node.room.succeed(["find", disk, "-mindepth", "1", "-delete"])
        }
        try lockstep(node, ["init"])
    }

    /// Writes more than a small journal holds: a node without anything can no longer be brought in from it.
    func outrunJournal(on node: ClusterNode) throws {
        let file = Cluster.path + "/outrun"
        try node.room.succeed(["dd", "if=/dev/zero", "of=\(file)", "bs=1M", "count=96", "conv=fsync", "status=none"])
        try node.room.succeed(["rm", file])
    }

    /// Whether the present daemon's log has the words.
    func isLogged(_ node: ClusterNode, _ words: String) throws -> Bool {
        guard let daemon = daemon(node) else { return false }
        let text = try String(contentsOfFile: daemon.log, encoding: .utf8)
        // All daemons of a node write to one file: only what the last one wrote counts.
        let last = text.range(of: "[lockstepd] started", options: .backwards)?.lowerBound ?? text.startIndex
        return text[last...].contains(words)
    }
}

/// A thread that overwrites random places of one open file without pause, and knows what must be there.
final class HotWriter: @unchecked Sendable {
    private let descriptor: Int32
    private let lock = NSLock()
    // Protected by `lock`.
    private var image: [UInt8]
    private var written = 0
    private var isStopping = false
    private var failure: String?
    private let ended = DispatchSemaphore(value: 0)

    init(_ path: String, bytes: Int) throws {
        descriptor = clinux_open(path, O_RDWR, 0)
        try #require(descriptor >= 0, "cannot open \(path)")
        image = [UInt8](repeating: 0, count: bytes)
        let count = image.withUnsafeMutableBytes { clinux_pread(descriptor, $0.baseAddress!, bytes, 0) }
        try #require(count == bytes)
        let thread = Thread { [self] in
            run()
            ended.signal()
        }
        thread.start()
    }

    private func run() {
        var random = SystemRandomNumberGenerator()
        while !lock.withLock({ isStopping }) {
            let length = Int.random(in: 1...20_000, using: &random)
            let offset = Int.random(in: 0...image.count - length, using: &random)
            let byte = UInt8.random(in: 1...255, using: &random)
            let bytes = [UInt8](repeating: byte, count: length)
            let count = clinux_pwrite(descriptor, bytes, length, UInt64(offset))
            lock.withLock {
                if count == length {
                    image.replaceSubrange(offset..<offset + length, with: bytes)
                    written += 1
                } else {
                    failure = "a write of \(length) bytes gave \(count)"
                    isStopping = true
                }
            }
            usleep(500)
        }
    }

    var count: Int { lock.withLock { written } }

    func stop() {
        let wasStopping = lock.withLock {
            defer { isStopping = true }
            return isStopping
        }
        guard !wasStopping else { return }
        ended.wait()
        _ = clinux_close(descriptor)
    }

    /// What must be in the file.
    func contents() throws -> Data {
        try lock.withLock {
            if let failure { throw RoomsError(failure) }
            return Data(image)
        }
    }
}
