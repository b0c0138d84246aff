internal import CLinux
internal import Format
internal import Glibc
internal import Ring
internal import Synchronization

/// Symbolic links and devices cannot be changed, only replaced. The image of a directory says that there is one, and puts
/// something of its type there; its own image says where it leads, or what it is, and puts a new object in its place, at
/// every name. To the application that is no change of those directories: they keep their times.
///
/// No record names the directories that this changes, so nothing keeps it apart from others: several objects of one
/// directory are replaced at once, while a record sets the time of that directory. Hence `directoryTimes`.
///
/// A process may die between any two steps, and what it leaves must be known for what it is:
/// ```
///   build in staging     two objects with one number: the new one in staging, the old one at its names
///   for each name:       the directory's time goes to staging: times-<directory>-<time>
///                        the new one over the old one
///                        the directory gets its time back
///                        staging/times-... goes
///   staging/<number> goes
/// ```
/// The replay gives the times back, and replaces all that its journal has an image of and that is not right everywhere.
extension PlainTree {
    static func isReplaceable(_ type: UInt32) -> Bool { [S_IFLNK, S_IFCHR, S_IFBLK].contains(type) }

    /// Whether a link leads where it shall, a device is what it shall be. Everything else can be changed, and is.
    func isSame(_ fd: Int32, as attributes: FileAttributes, _ target: [UInt8]) throws(TreeError) -> Bool {
        let stat = try System.stat(fd)
        return switch stat.mode & S_IFMT {
        case S_IFLNK: try System.readLink(fd) == target
        case S_IFCHR, S_IFBLK:
            deviceNumber(major: stat.special_major, minor: stat.special_minor) == attributes.rdev
        default: true
        }
    }

    /// Puts a new object in place of one that cannot be changed, at every name it has, one in staging included.
    /// - Parameter links: how many names that is.
    func replace(
        _ file: FileID, _ attributes: FileAttributes, _ target: [UInt8], _ xattrs: [ExtendedAttribute], links: Int
    ) throws(TreeError) {
        try findReplaceable()
        let stagingName = PlainTree.encodeTag(file)
        // A record has moved it into a directory that is not here yet: it waits for that, and so must the new one.
        let waits = try occupant(of: stagingName, in: staging.rawValue) == file
        let old = Array("replaced-\(file)".utf8)
        // Not removed before the new one is complete, or a crash in between would leave neither.
        if waits { try System.rename(staging.rawValue, stagingName, to: staging.rawValue, old) }
        try build(file, attributes, target, xattrs)
        var done: [(parent: FileID, name: FileName)] = []
        try replacePlaces(of: file, &done)
        if done.count < links {
            // A record has moved it since the image of its directory, or an earlier session placed it.
            state.withLock { $0.image?.isResumed = true }
            try findReplaceable()
            try replacePlaces(of: file, &done)
        }
        if waits {
            try removeFromStaging(old)
        } else {
            try System.unlink(staging.rawValue, stagingName, isDirectory: false)
        }
    }

    /// - Parameter done: names that lead to the new object.
    private func replacePlaces(
        of file: FileID, _ done: inout [(parent: FileID, name: FileName)]
    ) throws(TreeError) {
        let places = state.withLock { $0.image?.replaceable[file] ?? [] }
        for (parent, name) in places where !done.contains(where: { $0.parent == parent && $0.name == name }) {
            let isReplaced = try withDirectory(parent) { (directory) throws(TreeError) in
                try directoryTimes.withLock { (_) throws(TreeError) in
                    try replace(file, in: directory, parent, name)
                }
            }
            if isReplaced { done.append((parent, name)) }
        }
    }

    /// Puts the new object, which is in staging, over the old one at this name.
    /// - Precondition: `directoryTimes` is held.
    /// - Returns: whether the old one stood there.
    private func replace(
        _ file: FileID, in directory: Int32, _ parent: FileID, _ name: FileName
    ) throws(TreeError) -> Bool {
        guard try occupant(of: name, in: directory) == file else { return false }
        let mtime = FileStatus(try System.stat(directory), file: parent).attributes.mtime
        let fresh = Array("replacing-\(file)".utf8)
        try removeFromStaging(fresh)
        try withDescriptor(of: file, writable: false) { (fd) throws(TreeError) in
            try System.link(fd, to: staging.rawValue, fresh)
        }
        let kept = PlainTree.keptTimes(of: parent, mtime)
        _ = try System.open(staging.rawValue, kept, O_WRONLY | O_CREAT)
        do throws(TreeError) {
            try System.rename(staging.rawValue, fresh, to: directory, name)
        } catch {
            // Nothing has changed: what is kept would be wrong later.
            try System.unlink(staging.rawValue, kept, isDirectory: false)
            throw error
        }
        try System.setTimes(directory, atime: nil, mtime: mtime)
        try System.unlink(staging.rawValue, kept, isDirectory: false)
        return true
    }

    /// Where links and devices stand is known from the images of their directories. Those came to an earlier process, if
    /// the resynchronisation was broken off: then a scan finds it, once.
    func findReplaceable() throws(TreeError) {
        guard state.withLock({ $0.image?.isResumed ?? false }) else { return }
        var found: [FileID: [(parent: FileID, name: FileName)]] = [:]
        var waiting: [FileID] = [.root]
        while let directory = waiting.popLast() {
            try withDirectory(directory) { (fd) throws(TreeError) in
                for name in try allNames(fd, of: directory) {
                    guard let object = try child(name, of: fd), let file = try tag(of: object.rawValue) else {
                        continue
                    }
                    let type = try System.stat(object.rawValue).mode & S_IFMT
                    if type == S_IFDIR {
                        // A crash may have left the table without it.
                        if try table.find(file) == nil { try table.insert(file, try handle(of: object.rawValue)) }
                        waiting.append(file)
                    }
                    if PlainTree.isReplaceable(type) { found[file, default: []].append((directory, name)) }
                }
            }
        }
        state.withLock { state in
            // What images of this process said is among it.
            state.image?.replaceable = found
            state.image?.isResumed = false
        }
    }

    // MARK: - Times of directories

    /// Sets times: of a directory never while one of its objects is being replaced.
    func setTimes(_ fd: Int32, type: UInt32, atime: Int64?, mtime: Int64?) throws(TreeError) {
        guard type == S_IFDIR else { return try System.setTimes(fd, atime: atime, mtime: mtime) }
        try directoryTimes.withLock { (_) throws(TreeError) in
            try System.setTimes(fd, atime: atime, mtime: mtime)
        }
    }

    private static let keptTimesPrefix: FileName = Array("times-".utf8)

    /// The time is in the name, so that one call makes all of it: no crash leaves it without.
    static func keptTimes(of directory: FileID, _ mtime: Int64) -> FileName {
        keptTimesPrefix + encodeTag(directory) + Array("-\(mtime)".utf8)
    }

    /// A process that died while it replaced an object: the directory gets back the time it had.
    func giveBackTimes(_ step: ReplayStep) throws(TreeError) {
        for name in try stagingNames() where name.starts(with: PlainTree.keptTimesPrefix) {
            let rest = name.dropFirst(PlainTree.keptTimesPrefix.count)
            guard let directory = PlainTree.decodeTag(Array(rest.prefix(16))),
                let mtime = Int64(String(decoding: rest.dropFirst(17), as: UTF8.self))
            else { continue }
            try step()
            if try referenceIfKnown(to: directory) != nil {
                try withDirectory(directory) { (fd) throws(TreeError) in
                    try System.setTimes(fd, atime: nil, mtime: mtime)
                }
            }
            try System.unlink(staging.rawValue, name, isDirectory: false)
        }
    }
}
