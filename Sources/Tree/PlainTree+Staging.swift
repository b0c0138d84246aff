internal import CLinux
internal import Format
internal import Glibc
internal import Ring

/// Staging: where objects are built before they get their name, and where they wait when a name is taken from them.
/// The name of an object there is its number.
extension PlainTree {
    /// Removes an object of staging with everything in it; one that is not there is no error.
    func removeFromStaging(_ name: FileName) throws(TreeError) {
        try removeTree(name, in: staging.rawValue, depth: 0)
    }

    /// A name with all that is below it. Only for what has no place in the tree any more.
    func removeTree(_ name: FileName, in directory: Int32, depth: Int) throws(TreeError) {
        guard let stat = try System.stat(directory, name) else { return }
        guard stat.mode & S_IFMT == S_IFDIR else {
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
        // Each level holds a descriptor; deeper trees than this cannot be made by paths of any application.
        guard depth < 512 else { throw TreeError("remove the directory", shown(name), code: ELOOP) }
        let fd = try System.open(directory, name, O_RDONLY | CLINUX_O_DIRECTORY | CLINUX_O_NOATIME)
        while true {
            let names = try rawNames(fd.rawValue, of: .none).filter { !$0.isDots }
            if names.isEmpty { break }
            for raw in names {
                if let file = try occupant(of: raw.name, in: fd.rawValue), file != .none { cache.remove(file) }
                try removeTree(raw.name, in: fd.rawValue, depth: depth + 1)
            }
            // Names vanish while the directory is read: start over until it is empty.
            _ = lseek(fd.rawValue, 0, SEEK_SET)
        }
        try System.unlink(directory, name, isDirectory: true)
    }

    /// Names in staging now.
    func stagingNames() throws(TreeError) -> [FileName] {
        let fd = try System.open(staging.rawValue, [UInt8(ascii: ".")], O_RDONLY | CLINUX_O_DIRECTORY)
        var found: [FileName] = []
        while true {
            let names = try rawNames(fd.rawValue, of: .none)
            if names.isEmpty { return found }
            found += names.filter { !$0.isDots }.map(\.name)
        }
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
