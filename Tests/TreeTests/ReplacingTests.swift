import CLinux
import Format
import Glibc
import Ring
import Testing

@testable import Tree

/// A copy that is being brought back, with one object that can only be replaced; the process may die between any two
/// changes that its image makes.
private final class ReplacingRoom {
    /// Where the object is when its image comes, and where it is at the end.
    enum Place: CaseIterable {
        /// At two names.
        case named
        /// One of its names waits in staging for a directory whose image has not come yet.
        case waiting
        /// One of its names is in a directory that waits in staging for its own new place.
        case inWaitingDirectory
    }

    /// How the image comes to the next process.
    enum Way: CaseIterable {
        /// Nothing was to be replayed: its record is above all that is known to be committed.
        case above
        /// Other records were replayed.
        case aboveReplay
        case replayed
        /// The other node has begun again.
        case nextSession
    }

    let type: UInt32
    let place: Place
    let scratch = Scratch()
    var tree: PlainTree! = nil
    let object = FileID(epoch: Epoch(rawValue: 7), counter: 1)
    let directory = FileID(epoch: Epoch(rawValue: 7), counter: 2)
    let late = FileID(epoch: Epoch(rawValue: 7), counter: 3)
    let name: FileName = Array("object".utf8)
    let own: FileName = Array("directory".utf8)
    let folder = FileAttributes(mode: S_IFDIR | 0o755, uid: 0, gid: 0, mtime: -1_000_000_007)
    let attributes: FileAttributes
    let target: [UInt8]

    init(_ type: UInt32, _ place: Place) throws {
        self.type = type
        self.place = place
        attributes = FileAttributes(
            mode: type | 0o777, uid: 5, gid: 6, rdev: type == S_IFCHR ? 0x103 : 0, mtime: 1_600_000_000_000_000_000)
        target = type == S_IFLNK ? Array("where/it/leads".utf8) : []
        tree = try openTree(scratch)
        try tree.apply(.imageStart(number: 1))
        try image(.root, [entry(name, object), ImageEntry(name: own, file: directory, mode: S_IFDIR)])
        try image(directory, [entry(name, object)])
        switch place {
        case .named: break
        case .waiting:
            try tree.apply(
                .rename(
                    file: object, parent: .root, name: name, newParent: late, newName: name, exchange: false,
                    replaced: .none, replacedWasLast: false))
            try image(.root, [ImageEntry(name: own, file: directory, mode: S_IFDIR)])
        case .inWaitingDirectory: try image(.root, [entry(name, object)])
        }
    }

    private func entry(_ name: FileName, _ file: FileID) -> ImageEntry {
        ImageEntry(name: name, file: file, mode: type)
    }

    private func image(_ directory: FileID, _ entries: [ImageEntry]) throws {
        try tree.apply(
            .imageDirectory(
                directory: directory, attributes: folder, xattrs: [], part: 0, isLast: true, entries: entries),
            isImage: true)
    }

    func restart() throws {
        // One at a time works on the plain files.
        tree = nil
        tree = try openTree(scratch, .existing)
    }

    /// The object's image comes.
    func apply(step: @escaping ReplayStep = { () throws(TreeError) in }) throws {
        try tree.applyImage(ofFile: object, attributes, target, [], step)
    }

    func comesAgain(_ way: Way, step: @escaping ReplayStep = { () throws(TreeError) in }) throws {
        switch way {
        case .above:
            tree.goOnImaging()
            try apply(step: step)
        case .aboveReplay:
            let other = FileID(epoch: Epoch(rawValue: 7), counter: 9)
            _ = try tree.replay(
                [drawn(.setAttributes(file: other, mask: .mode, attributes: folder))], after: 0, isBehind: true)
            try apply(step: step)
        case .replayed:
            let body = RecordBody.imageFile(file: object, attributes: attributes, target: target, xattrs: [])
            _ = try tree.replay([drawn(body, isImage: true)], after: 0, isBehind: true, step: step)
        case .nextSession:
            tree.goOnImaging()
            try tree.apply(.imageStart(number: 2))
            try apply(step: step)
        }
    }

    func drawn(_ body: RecordBody, isImage: Bool = false) -> Generator.Drawn {
        Generator.Drawn(record: Record(time: 1, body: body, isImage: isImage), payload: [])
    }

    /// What is still missing comes, and everything is as in the other room.
    func finish(_ comment: String) throws {
        var places = [(FileID.root, name), (directory, name)]
        switch place {
        case .named: break
        case .waiting:
            places[0].0 = late
            try image(
                .root, [directory, late].map { ImageEntry(name: $0 == late ? name : own, file: $0, mode: S_IFDIR) })
            try image(late, [entry(name, object)])
        case .inWaitingDirectory:
            try image(.root, [entry(name, object), ImageEntry(name: Array("late".utf8), file: late, mode: S_IFDIR)])
            try image(late, [ImageEntry(name: own, file: directory, mode: S_IFDIR)])
        }
        try tree.apply(.imageEnd(number: 1))
        for (parent, name) in places {
            let status = try tree.lookup(parent: parent, name: name)
            #expect(status.file == object && Int(status.links) == places.count, "\(comment)")
            #expect(status.attributes.mode & S_IFMT == type && status.attributes.uid == 5, "\(comment)")
            #expect(status.attributes.rdev == attributes.rdev, "\(comment)")
            #expect(status.attributes.mtime == attributes.mtime, "\(comment)")
            #expect(try tree.status(of: parent).attributes.mtime == folder.mtime, "\(comment)")
            // What stands there, not what the table says of it.
            try tree.withDirectory(parent) { (fd) throws(TreeError) in
                guard type == S_IFLNK, let there = try tree.child(name, of: fd) else { return }
                let target = try System.readLink(there.rawValue)
                #expect(target == self.target, "\(comment)")
            }
        }
        #expect(try tree.status(of: object).attributes == tree.lookup(parent: directory, name: name).attributes)
        #expect(try tree.stagingNames() == [], "\(comment)")
    }

    /// Runs `work` and lets the process die before its change number `count`.
    /// - Returns: whether it came so far.
    func die(before count: Int, _ work: (@escaping ReplayStep) throws -> Void) throws -> Bool {
        var left = count
        var hasDied = false
        do {
            try work { () throws(TreeError) in
                left -= 1
                guard left < 0 else { return }
                hasDied = true
                throw TreeError("go on", "dead", code: EINTR)
            }
        } catch {
            guard hasDied else { throw error }
        }
        try restart()
        return hasDied
    }
}

@Suite struct ReplacingTests {
    @Test(arguments: [S_IFLNK, S_IFCHR], ReplacingRoom.Place.allCases)
    fileprivate func failure36AReplacementThatDiedAnywhereIsFinished(type: UInt32, place: ReplacingRoom.Place) throws {
        for way in ReplacingRoom.Way.allCases {
            var count = 0
            while true {
                let room = try ReplacingRoom(type, place)
                guard try room.die(before: count, room.apply) else { break }
                try room.comesAgain(way)
                try room.finish("\(way), before change \(count)")
                count += 1
            }
            #expect(count > 8)
        }
    }

    /// The next process dies at it too.
    @Test(arguments: [(ReplacingRoom.Place.named, ReplacingRoom.Way.replayed), (.waiting, .above)])
    fileprivate func failure36AReplacementThatDiedTwiceIsFinished(
        place: ReplacingRoom.Place, way: ReplacingRoom.Way
    ) throws {
        for first in 0..<100 {
            for second in 0..<100 {
                let room = try ReplacingRoom(S_IFLNK, place)
                guard try room.die(before: first, room.apply) else { return }
                let hasDied = try room.die(before: second) { try room.comesAgain(way, step: $0) }
                if hasDied { try room.comesAgain(.above) }
                try room.finish("before changes \(first) and \(second)")
                guard hasDied else { break }
            }
        }
    }

    /// A power cut: the table's page was on the disk before the object was.
    @Test(arguments: ReplacingRoom.Way.allCases)
    fileprivate func failure36AnObjectThatOnlyTheTableKnowsIsReplaced(way: ReplacingRoom.Way) throws {
        let room = try ReplacingRoom(S_IFLNK, .named)
        let old = try room.tree.table.find(room.object)
        try room.tree.build(room.object, room.attributes, room.target, [])
        #expect(try room.tree.table.find(room.object) != old)
        room.tree.cache.removeAll()
        try System.unlink(room.tree.staging.rawValue, PlainTree.encodeTag(room.object), isDirectory: false)
        try room.restart()
        #expect(try room.tree.referenceIfKnown(to: room.object) == nil)
        try room.comesAgain(way)
        try room.finish("\(way)")
    }

    /// The table is built anew while two objects have one number.
    @Test func failure36TheTableIsBuiltAnewInTheMiddleOfAReplacement() throws {
        for count in 0..<100 {
            let room = try ReplacingRoom(S_IFLNK, .named)
            guard try room.die(before: count, room.apply) else { return }
            try room.tree.rebuildTable()
            try room.comesAgain(.above)
            try room.finish("before change \(count)")
        }
    }

    // MARK: - Times

    /// The time that a replacement keeps is given back by the next process, whether or not it has anything to replay, and
    /// never later.
    @Test(arguments: [true, false])
    func failure36ADirectoryGetsItsTimeBackAtOnce(isReplayed: Bool) throws {
        for count in 0..<100 {
            let room = try ReplacingRoom(S_IFLNK, .named)
            guard try room.die(before: count, room.apply) else { return }
            for directory in [FileID.root, room.directory] {
                #expect(try room.tree.status(of: directory).attributes.mtime == room.folder.mtime, "\(count)")
            }
            #expect(try !room.tree.stagingNames().contains { $0.starts(with: Array("times-".utf8)) }, "\(count)")
            // Then the application sets another, and the process dies once more.
            var later = room.folder
            later.mtime = 3000
            room.tree.goOnImaging()
            for directory in [FileID.root, room.directory] {
                try room.tree.apply(.setAttributes(file: directory, mask: .mtime, attributes: later))
            }
            try room.restart()
            if isReplayed { _ = try room.tree.replay([], after: 0, isBehind: true) }
            for directory in [FileID.root, room.directory] {
                #expect(try room.tree.status(of: directory).attributes.mtime == 3000, "\(count)")
            }
        }
    }

    // MARK: - What it costs

    /// Links that wait in staging for a directory are not what a replacement has left there: the tree is not searched for
    /// their names. A search would enter a directory that the table does not know.
    @Test func linksThatWaitAreNotSearchedFor() throws {
        let room = try ReplacingRoom(S_IFLNK, .named)
        let link = FileID(epoch: Epoch(rawValue: 7), counter: 20)
        try room.tree.apply(
            .create(
                file: link, parent: room.late, name: room.name, attributes: room.attributes, target: room.target,
                xattrs: []))
        #expect(try room.tree.stagingNames() == [PlainTree.encodeTag(link)])
        try room.tree.table.remove(room.directory)
        for isRestarted in [false, true] {
            if isRestarted {
                try room.restart()
                room.tree.goOnImaging()
            }
            try room.tree.apply(
                .imageFile(file: link, attributes: room.attributes, target: room.target, xattrs: []), isImage: true)
            #expect(try room.tree.table.find(room.directory) == nil)
        }
        #expect(try room.tree.readLink(link) == room.target)
    }

    @Test func linksThatAReplayHasMadeAreNotSearchedFor() throws {
        let room = try ReplacingRoom(S_IFLNK, .named)
        let link = FileID(epoch: Epoch(rawValue: 7), counter: 20)
        try room.tree.table.remove(room.directory)
        let bodies: [RecordBody] = [
            .create(
                file: link, parent: .root, name: Array("made".utf8), attributes: room.attributes, target: room.target,
                xattrs: []),
            .imageFile(file: link, attributes: room.attributes, target: room.target, xattrs: []),
        ]
        _ = try room.tree.replay(bodies.map { room.drawn($0, isImage: true) }, after: 0, isBehind: true)
        #expect(try room.tree.table.find(room.directory) == nil)
        #expect(try room.tree.lookup(parent: .root, name: Array("made".utf8)).file == link)
        #expect(try room.tree.readLink(link) == room.target)
    }
}
