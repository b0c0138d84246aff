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
///   staging/replacing-<number>      the new object is built
///   staging/replacement-<number>    its name when it is complete: now two objects have one number
///   the file table has the new one
///   for each name:                  the directory's time goes to staging: times-<directory>-<time>
///                                   the new one, again as replacing-<number>, over the old one
///                                   the directory gets its time back
///                                   staging/times-... goes
///   staging/replacement-<number> goes
/// ```
/// As long as one of these two is in staging, nobody takes the object that the table has for what is at every name: the
/// image, which comes again or is in the journal that is replayed, then replaces all of them anew, found by a scan. An
/// object that only waits in staging for its name is called by its bare number, and costs no scan. The times are given
/// back by the next process that opens the tree, before anything else can set them.
///
/// A power cut, in addition, may have kept the table's page and lost the object. Then the scan enters what it finds.
extension PlainTree {
    static func isReplaceable(_ type: UInt32) -> Bool { [S_IFLNK, S_IFCHR, S_IFBLK].contains(type) }

    /// Whether a link leads where it shall, a device is what it shall be. Everything else can be changed, and is.
    /// - Parameter stat: of `fd`.
    func isSame(
        _ fd: Int32, _ stat: clinux_stat, as attributes: FileAttributes, _ target: [UInt8]
    ) throws(TreeError) -> Bool {
        switch stat.mode & S_IFMT {
        case S_IFLNK: try System.readLink(fd) == target
        case S_IFCHR, S_IFBLK:
            deviceNumber(major: stat.special_major, minor: stat.special_minor) == attributes.rdev
        default: true
        }
    }

    private static func replacing(_ file: FileID) -> FileName { Array("replacing-\(file)".utf8) }
    private static func replacement(_ file: FileID) -> FileName { Array("replacement-\(file)".utf8) }

    /// Whether this object is being replaced, or was when a process died or the file system failed: its names may lead to
    /// different ones.
    func isBeingReplaced(_ file: FileID) -> Bool { state.withLock { $0.torn.contains(file) } }

    /// What an earlier process has left.
    func findTorn() throws(TreeError) {
        let torn = Set(try stagingNames().compactMap(PlainTree.replacedFile))
        state.withLock { $0.torn = torn }
    }

    /// Whether the table has an object that the files do not have (any more).
    func isLost(_ file: FileID) throws(TreeError) -> Bool {
        guard try table.find(file) != nil else { return false }
        return try referenceIfKnown(to: file) == nil
    }

    /// The object behind a name in staging that only a replacement uses.
    static func replacedFile(_ name: FileName) -> FileID? {
        for prefix in ["replacing-", "replacement-"] where name.starts(with: prefix.utf8) {
            return decodeTag(Array(name.dropFirst(prefix.utf8.count)))
        }
        return nil
    }

    /// As `replace`, when it is not known which object is at which name.
    func replaceEverywhere(
        _ file: FileID, _ attributes: FileAttributes, _ target: [UInt8], _ xattrs: [ExtendedAttribute],
        _ step: ReplayStep
    ) throws(TreeError) {
        state.withLock { $0.image?.isResumed = true }
        try replace(file, attributes, target, xattrs, links: 0, step)
    }

    /// Puts a new object in place of one that cannot be changed, at every name it has, one in staging included.
    /// - Parameters:
    ///   - links: how many names that is.
    ///   - step: called before every change; a test throws from it, which is a crash as the process sees it.
    func replace(
        _ file: FileID, _ attributes: FileAttributes, _ target: [UInt8], _ xattrs: [ExtendedAttribute], links: Int,
        _ step: ReplayStep
    ) throws(TreeError) {
        try findReplaceable()
        // Stays so if this fails.
        _ = state.withLock { $0.torn.insert(file) }
        try step()
        // Not taken out of the table: that would forget the old one.
        try System.unlink(staging.rawValue, PlainTree.replacing(file), isDirectory: false)
        try step()
        let new = try make(file, attributes, target, xattrs, inStaging: PlainTree.replacing(file))
        defer { withExtendedLifetime(new) {} }
        try step()
        let mark = PlainTree.replacement(file)
        try System.rename(staging.rawValue, PlainTree.replacing(file), to: staging.rawValue, mark)
        try step()
        try table.insert(file, try handle(of: new.fd))
        cache.insert(file, new)
        // A record has moved it into a directory that is not here yet: it waits for that, and so must the new one.
        let waits = try replaceInStaging(file, new.fd, step)
        var done: [(parent: FileID, name: FileName)] = []
        try replacePlaces(of: file, new.fd, &done, step)
        if done.count + (waits ? 1 : 0) < links {
            // A record has moved it since the image of its directory, or an earlier session placed it.
            state.withLock { $0.image?.isResumed = true }
            try findReplaceable()
            try replacePlaces(of: file, new.fd, &done, step)
        }
        try step()
        if done.isEmpty, !waits {
            // Nobody has it; an image still to come may.
            try System.rename(staging.rawValue, mark, to: staging.rawValue, PlainTree.encodeTag(file))
        } else {
            try System.unlink(staging.rawValue, mark, isDirectory: false)
        }
        _ = state.withLock { $0.torn.remove(file) }
    }

    /// - Returns: whether the old one waits in staging for a name.
    private func replaceInStaging(_ file: FileID, _ new: Int32, _ step: ReplayStep) throws(TreeError) -> Bool {
        let name = PlainTree.encodeTag(file)
        guard try occupant(of: name, in: staging.rawValue) == file else { return false }
        try step()
        try System.link(new, to: staging.rawValue, PlainTree.replacing(file))
        try step()
        try System.rename(staging.rawValue, PlainTree.replacing(file), to: staging.rawValue, name)
        return true
    }

    /// - Parameter done: names that lead to the new object.
    private func replacePlaces(
        of file: FileID, _ new: Int32, _ done: inout [(parent: FileID, name: FileName)], _ step: ReplayStep
    ) throws(TreeError) {
        let places = state.withLock { $0.image?.replaceable[file] ?? [] }
        for (parent, name) in places where !done.contains(where: { $0.parent == parent && $0.name == name }) {
            let isReplaced = try withDirectory(parent) { (directory) throws(TreeError) in
                try directoryTimes.withLock { (_) throws(TreeError) in
                    try replace(file, new, in: directory, parent, name, step)
                }
            }
            if isReplaced { done.append((parent, name)) }
        }
    }

    /// Puts the new object over the old one at this name.
    /// - Precondition: `directoryTimes` is held.
    /// - Returns: whether the old one stood there.
    private func replace(
        _ file: FileID, _ new: Int32, in directory: Int32, _ parent: FileID, _ name: FileName, _ step: ReplayStep
    ) throws(TreeError) -> Bool {
        guard try occupant(of: name, in: directory) == file else { return false }
        let mtime = FileStatus(try System.stat(directory), file: parent).attributes.mtime
        try step()
        try System.link(new, to: staging.rawValue, PlainTree.replacing(file))
        let kept = PlainTree.keptTimes(of: parent, mtime)
        try step()
        _ = try System.open(staging.rawValue, kept, O_WRONLY | O_CREAT)
        try step()
        do throws(TreeError) {
            try System.rename(staging.rawValue, PlainTree.replacing(file), to: directory, name)
        } catch {
            // Nothing has changed: what is kept would be wrong later.
            try System.unlink(staging.rawValue, kept, isDirectory: false)
            throw error
        }
        try step()
        try System.setTimes(directory, atime: nil, mtime: mtime)
        try step()
        try System.unlink(staging.rawValue, kept, isDirectory: false)
        return true
    }

    /// Where links and devices stand is known from the images of their directories. Those came to an earlier process, if
    /// the resynchronisation was broken off: then a scan finds it, once. Directories that wait in staging for their own
    /// name are searched too.
    func findReplaceable() throws(TreeError) {
        guard state.withLock({ $0.image?.isResumed ?? false }) else { return }
        var found: [FileID: [(parent: FileID, name: FileName)]] = [:]
        var waiting: [FileID] = [.root]
        for name in try stagingNames() where PlainTree.decodeTag(name) != nil {
            guard let (file, type) = try enterIfLost(name, of: staging.rawValue) else { continue }
            if type == S_IFDIR { waiting.append(file) }
        }
        while let directory = waiting.popLast() {
            try withDirectory(directory) { (fd) throws(TreeError) in
                for name in try allNames(fd, of: directory) {
                    guard let (file, type) = try enterIfLost(name, of: fd) else { continue }
                    if type == S_IFDIR { waiting.append(file) }
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

    /// A crash may have left the table without a directory, or with an object that is not there any more.
    /// - Returns: nil when there is no such name, or something without a number.
    private func enterIfLost(
        _ name: FileName, of directory: Int32
    ) throws(TreeError) -> (file: FileID, type: UInt32)? {
        guard let object = try child(name, of: directory), let file = try tag(of: object.rawValue) else { return nil }
        let type = try System.stat(object.rawValue).mode & S_IFMT
        guard type == S_IFDIR || PlainTree.isReplaceable(type) else { return (file, type) }
        let handle = try handle(of: object.rawValue)
        // One that is being replaced gets the new object from who does that.
        if try table.find(file) != handle, try referenceIfKnown(to: file) == nil, !isBeingReplaced(file) {
            try table.insert(file, handle)
        }
        return (file, type)
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

    /// A process that died while it replaced an object: the directory gets back the time it had. Only before anything
    /// else has changed since. A directory that the table does not know is younger than the last sync: its time comes with
    /// the records that come again.
    func giveBackTimes() throws(TreeError) {
        for name in try stagingNames() where name.starts(with: PlainTree.keptTimesPrefix) {
            let rest = name.dropFirst(PlainTree.keptTimesPrefix.count)
            guard let directory = PlainTree.decodeTag(Array(rest.prefix(16))),
                let mtime = Int64(String(decoding: rest.dropFirst(17), as: UTF8.self))
            else { continue }
            if try referenceIfKnown(to: directory) != nil {
                try withDirectory(directory) { (fd) throws(TreeError) in
                    try System.setTimes(fd, atime: nil, mtime: mtime)
                }
            }
            try System.unlink(staging.rawValue, name, isDirectory: false)
        }
    }
}
