internal import CLinux
internal import Format
internal import Glibc
internal import Ring

/// Putting objects where they belong, wherever they are now. Used where the state before is not known: after a crash,
/// and while a resynchronisation overwrites an old tree.
extension PlainTree {
    /// Makes `name` in `directory` lead to `file`. Whatever else is there goes to staging; the file comes from staging
    /// or, if it is elsewhere, a directory is moved and anything else gets a further link.
    /// - Returns: false when the file is not known.
    func place(_ file: FileID, in directory: Int32, _ name: FileName) throws(TreeError) -> Bool {
        guard let reference = try referenceIfKnown(to: file) else { return false }
        if try occupant(of: name, in: directory) == file { return true }
        try evict(name, from: directory)
        let isDirectory = try System.stat(reference.rawValue).mode & S_IFMT == S_IFDIR
        let stagingName = PlainTree.encodeTag(file)
        if try occupant(of: stagingName, in: staging.rawValue) == file {
            try System.rename(staging.rawValue, stagingName, to: directory, name)
        } else if isDirectory {
            let place = try location(of: reference.rawValue, file)
            try System.rename(place.parent.rawValue, place.name, to: directory, name)
        } else {
            try System.link(reference.rawValue, to: directory, name)
        }
        return true
    }

    /// Takes whatever is at `name` out of the tree, into staging.
    func evict(_ name: FileName, from directory: Int32) throws(TreeError) {
        guard let object = try child(name, of: directory) else { return }
        let stat = try System.stat(object.rawValue)
        let isDirectory = stat.mode & S_IFMT == S_IFDIR
        if let file = try tag(of: object.rawValue) {
            try table.insert(file, try handle(of: object.rawValue))
            try moveToStaging(file, from: directory, name, isDirectory: isDirectory)
            return
        }
        logger.warning(
            "an object that no record made is in the way of one that a record made; it is removed",
            metadata: ["tree.path": "\(path(of: object.rawValue))"])
        let stagingName = Array("foreign-\(stat.inode)".utf8)
        try removeFromStaging(stagingName)
        try System.rename(directory, name, to: staging.rawValue, stagingName)
    }

    struct Place: ~Copyable {
        var parent: FileDescriptor
        var name: FileName
    }

    /// The one name of a directory.
    func location(of fd: Int32, _ file: FileID) throws(TreeError) -> Place {
        let raw = System.reopen(fd, O_RDONLY | CLINUX_O_DIRECTORY | CLINUX_O_NOATIME)
        let directory = FileDescriptor(owning: try System.check(raw, "open", "file \(file)"))
        let dots: FileName = [UInt8(ascii: "."), UInt8(ascii: ".")]
        let parent = try System.open(directory.rawValue, dots, O_RDONLY | CLINUX_O_DIRECTORY)
        let path: [UInt8]
        do throws(TreeError) {
            path = try System.readLink(CLINUX_AT_FDCWD, Array("/proc/self/fd/\(directory.rawValue)".utf8))
        } catch {
            // The kernel tells no path of more than 4,095 bytes.
            guard error.code == ENAMETOOLONG else { throw error }
            for name in try allNames(parent.rawValue, of: .none) {
                if try occupant(of: name, in: parent.rawValue) == file { return Place(parent: parent, name: name) }
            }
            throw TreeError("find the name of the directory", "file \(file)", code: ENOENT)
        }
        if let slash = path.lastIndex(of: UInt8(ascii: "/")) {
            let name = Array(path[(slash + 1)...])
            if !name.isEmpty {
                if try occupant(of: name, in: parent.rawValue) == file { return Place(parent: parent, name: name) }
            }
        }
        throw TreeError("find the name of the directory", "file \(file)", code: ENOENT)
    }
}
