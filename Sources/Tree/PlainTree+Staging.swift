internal import CLinux
internal import Format
internal import Glibc
internal import Ring

/// Staging: where objects are built before they get their name, and where they wait when a name is taken from them.
/// The name of an object there is its number.
extension PlainTree {
    /// Removes an object of staging with everything in it; one that is not there is no error.
    func removeFromStaging(_ name: FileName) throws(TreeError) {
        var waiting = [name]
        while let next = waiting.popLast() { try removeTree(next, in: staging.rawValue, depth: 0, &waiting) }
        if let file = PlainTree.replacedFile(name) { _ = state.withLock { $0.torn.remove(file) } }
    }

    /// Each level that is worked on holds a descriptor.
    private static let depthMax = 256

    /// A name with all that is below it. Only for what has no place in the tree any more.
    ///
    /// - Parameter waiting: gets the names in staging under which directories too deep down wait for their turn.
    private func removeTree(
        _ name: FileName, in directory: Int32, depth: Int, _ waiting: inout [FileName]
    ) throws(TreeError) {
        guard let isDirectory = try forgetIfLast(name, in: directory) else { return }
        guard isDirectory else {
            try System.unlink(directory, name, isDirectory: false)
            return
        }
        let empty = unsafe System.withText(name) { text in
            System.errnoResult(unsafe unlinkat(directory, text, CLINUX_AT_REMOVEDIR))
        }
        if empty >= 0 || empty == -ENOENT { return }
        guard empty == -ENOTEMPTY || empty == -EEXIST else {
            throw TreeError("remove the directory", shown(name), code: -empty)
        }
        let fd = try System.open(directory, name, O_RDONLY | CLINUX_O_DIRECTORY | CLINUX_O_NOATIME)
        guard depth < PlainTree.depthMax else {
            // No number: nobody takes it for an object that waits for its place. Free, for no other has this inode.
            let shallow = Array("deep-\(try System.stat(fd.rawValue).inode)".utf8)
            try System.rename(directory, name, to: staging.rawValue, shallow)
            waiting.append(shallow)
            return
        }
        while true {
            let names = try allNames(fd.rawValue, of: .none)
            if names.isEmpty { break }
            for name in names {
                try removeTree(name, in: fd.rawValue, depth: depth + 1, &waiting)
            }
        }
        try System.unlink(directory, name, isDirectory: true)
    }

    /// Takes what is about to be removed out of the table, unless it is a further link of a file that stays.
    /// - Returns: whether it is a directory; nil when there is no such name.
    private func forgetIfLast(_ name: FileName, in directory: Int32) throws(TreeError) -> Bool? {
        guard let object = try child(name, of: directory) else { return nil }
        let stat = try System.stat(object.rawValue)
        let isDirectory = stat.mode & S_IFMT == S_IFDIR
        if let file = try tag(of: object.rawValue), isDirectory || stat.links == 1 {
            if try table.find(file) == handle(of: object.rawValue) { try forget(file) }
        }
        return isDirectory
    }

    /// Everything that has a name has it by now.
    func clearStaging() throws(TreeError) {
        for name in try stagingNames() { try removeFromStaging(name) }
    }

    /// Names in staging now.
    func stagingNames() throws(TreeError) -> [FileName] {
        try allNames(staging.rawValue, of: .none)
    }

    /// Takes an object away from a name without losing it: into staging, unless it is there already under another
    /// link (a rename between two links of one inode succeeds and does nothing, so the name is unlinked).
    func moveToStaging(
        _ file: FileID, from directory: Int32, _ name: FileName, isDirectory: Bool
    ) throws(TreeError) {
        let stagingName = PlainTree.encodeTag(file)
        if let there = try occupant(of: stagingName, in: staging.rawValue) {
            if there == file, !isDirectory {
                try System.unlink(directory, name, isDirectory: false)
                return
            }
            try removeFromStaging(stagingName)
        }
        try System.rename(directory, name, to: staging.rawValue, stagingName)
    }
}
