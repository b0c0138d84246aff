internal import CLinux
public import Format
internal import Glibc
internal import Ring

/// Whose plain files a record goes to. Only a copy that is behind takes images: to everybody else they are copies of
/// what is there already. So a complete node that catches up through the records of a resynchronisation that was broken
/// off, and was not its own, passes over them.
public enum ApplyRole: Sendable {
    case primary
    case secondary
    /// A secondary whose copy is incomplete and is being brought up to date.
    case behind
}

/// Applying records. Each gives the same final state however often it is applied, also when an earlier try stopped in
/// the middle: what is already as the record wants it is left, and what is neither as before nor as after the record
/// is an error, because then this tree is not the mirror any more.
extension PlainTree {
    /// `fallocate` modes that can be redone; the others move data.
    static var repeatableModes: Set<UInt32> {
        let keep = UInt32(CLINUX_FALLOC_KEEP_SIZE)
        let zero = UInt32(CLINUX_FALLOC_ZERO_RANGE)
        return [0, keep, keep | UInt32(CLINUX_FALLOC_PUNCH_HOLE), zero, zero | keep]
    }

    /// Brings the plain files to the state after `record`.
    ///
    /// - Parameters:
    ///   - payload: of a write, `record.payload.length` bytes.
    ///   - settingTimes: false leaves a written file's mtime to a later record of the same file (`Applier` knows when
    ///     one follows).
    ///   - again: it may have been applied before, and records that came after it too.
    /// - Throws: what the file system said. The state is then before or after the record, or between; applying it
    ///   again once the cause is gone mends that.
    public func apply(
        _ record: Record, payload: UnsafeRawBufferPointer, role: ApplyRole, settingTimes: Bool = true,
        again: Bool = false
    ) throws(TreeError) {
        let isImage = record.isImage || record.body.isImageMark
        if isImage, role != .behind { return }
        do throws(TreeError) {
            if again || role == .behind && (isImaging || isImage) {
                return try unsafe applyImaging(record, payload: payload, settingTimes: settingTimes)
            }
            try unsafe applyExactly(record, payload: payload, settingTimes: settingTimes)
        } catch {
            throw explained(error, record.body.touched)
        }
    }

    func applyExactly(
        _ record: Record, payload: UnsafeRawBufferPointer, settingTimes: Bool
    ) throws(TreeError) {
        let time = record.time
        switch record.body {
        case .epochStart, .imageStart, .imageEnd, .imageDirectory, .imageFile, .verify: return
        case .write, .setAttributes, .setXattr, .removeXattr, .allocate, .repair, .repairFile:
            do throws(TreeError) {
                try unsafe applyToFile(record, payload: payload, settingTimes: settingTimes)
            } catch {
                // Who has a removed file open goes on writing to it; until everybody has applied the removal those
                // writes are records too, and change nothing that anybody could open.
                // A repair is logged some time after what it is to repair was looked at. What is not there is wrong no
                // more.
                guard error.code == ESTALE, let file = record.body.touched.first,
                    wasRemoved(file) || record.body.isRepair
                else { throw error }
            }
        case .create(let file, let parent, let name, let attributes, let target, let xattrs):
            try checkName(parent, name)
            try create(file, parent, name, attributes, target, xattrs, time)
        case .link(let file, let parent, let name):
            try checkName(parent, name)
            try link(file, parent, name, time)
        case .remove(let file, let parent, let name, let isDirectory, let wasLast):
            try checkName(parent, name)
            try remove(file, parent, name, isDirectory: isDirectory, wasLast: wasLast, time)
        case .rename(let file, let parent, let name, let newParent, let newName, let exchange, let replaced, let last):
            try checkName(parent, name)
            try checkName(newParent, newName)
            if exchange {
                try self.exchange(file, parent, name, replaced, newParent, newName, time)
            } else {
                try rename(file, parent, name, newParent, newName, replaced: replaced, replacedWasLast: last, time)
            }
        }
    }

    /// Our own directory is out of reach for records.
    func checkName(_ parent: FileID, _ name: FileName) throws(TreeError) {
        guard parent != .root || name != PlainTree.ownName else {
            throw TreeError("change", shown(name), code: EPERM)
        }
    }

    // MARK: One file

    /// Records that name no directory.
    func applyToFile(_ record: Record, payload: UnsafeRawBufferPointer, settingTimes: Bool) throws(TreeError) {
        switch record.body {
        case .write(let file, let offset):
            precondition(payload.count == record.payload.length, "the payload is not the record's")
            try withDescriptor(of: file, writable: true) { (fd) throws(TreeError) in
                try unsafe System.write(fd, payload, at: offset)
                if settingTimes { try System.setTimes(fd, atime: nil, mtime: record.time) }
            }
        case .repair(let file, _), .repairFile(let file, _, _):
            // Without a name it is this room's alone, and may have newer bytes than any record.
            guard !state.withLock({ $0.parked.contains(file) }) else { return }
            if case .repair(_, let offset) = record.body { try unsafe repair(file, payload, at: offset) }
            if case .repairFile(_, let attributes, let xattrs) = record.body { try repair(file, attributes, xattrs) }
        case .setAttributes(let file, let mask, let attributes):
            try setAttributes(of: file, mask, attributes, time: record.time)
        case .setXattr(let file, let name, let value):
            try checkXattr(name)
            try withDescriptor(of: file, writable: false) { (fd) throws(TreeError) in
                try System.setXattr(fd, name, value)
            }
        case .removeXattr(let file, let name):
            try checkXattr(name)
            try withDescriptor(of: file, writable: false) { (fd) throws(TreeError) in
                try System.removeXattr(fd, name)
            }
        case .allocate(let file, let mode, let offset, let length):
            guard PlainTree.repeatableModes.contains(mode) else {
                throw TreeError("allocate with mode \(mode)", "file \(file)", code: EOPNOTSUPP)
            }
            try withDescriptor(of: file, writable: true) { (fd) throws(TreeError) in
                let result = clinux_fallocate(fd, Int32(mode), offset, length)
                try System.check(result, TreeError.allocating, "\(length) bytes at \(offset) of file \(file)")
                if settingTimes { try System.setTimes(fd, atime: nil, mtime: record.time) }
            }
        default: return
        }
    }

    /// Bytes that the file has in the room that is right: no time changes, and what the kernel takes away with every
    /// write is given back. What the disk cannot read is mended as far as these bytes are all of a block.
    private func repair(_ file: FileID, _ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(TreeError) {
        try withDescriptor(of: file, writable: true) { (fd) throws(TreeError) in
            let before = try System.stat(fd)
            let capability = try System.xattr(fd, PlainTree.capabilityXattr)
            let end = offset + UInt64(bytes.count)
            let left = try unsafe writeMending(fd, bytes, at: offset) { block in
                offset <= block.lowerBound && block.upperBound <= end
            }
            if let left { reportUnmended(file, left) }
            if let capability { try System.setXattr(fd, PlainTree.capabilityXattr, capability) }
            try System.setTimes(fd, atime: nil, mtime: FileStatus(before, file: file).attributes.mtime)
        }
    }

    private func repair(
        _ file: FileID, _ attributes: FileAttributes, _ xattrs: [ExtendedAttribute]
    ) throws(TreeError) {
        let object = try object(file, writable: attributes.mode & S_IFMT == S_IFREG)
        defer { withExtendedLifetime(object) {} }
        let before = FileStatus(try System.stat(object.fd), file: file).attributes
        guard object.type == attributes.mode & S_IFMT else {
            throw TreeError("repair", "file \(file): it is of another type", code: EINVAL)
        }
        if object.type == S_IFREG, before.size != attributes.size {
            do throws(TreeError) {
                try System.check(clinux_ftruncate(object.fd, attributes.size), "set the size of", "file \(file)")
            } catch {
                // What lies behind a size within a block is zeroed, and read for it.
                guard error.code == EIO else { throw error }
                return reportUnmended(file, error)
            }
        }
        var wanted = attributes
        wanted.atime = before.atime
        // What a security module gave here is not the mirror's.
        let labels = try allXattrs(of: file).filter { PlainTree.isLabel($0.name) }
        try setAll(object.fd, type: object.type, wanted, xattrs + labels)
    }

    /// The kernel takes it away with every change of contents or owner.
    static let capabilityXattr: FileName = Array("security.capability".utf8)

    private func checkXattr(_ name: FileName) throws(TreeError) {
        guard !name.starts(with: PlainTree.ownXattrPrefix) else {
            throw TreeError("change the extended attribute", shown(name), code: EPERM)
        }
    }

    /// Sets what `mask` names, size first and times last. A changed size without an mtime takes the record's time.
    func setAttributes(
        of file: FileID, _ mask: AttributeMask, _ attributes: FileAttributes, time: Int64
    ) throws(TreeError) {
        let object = try object(file, writable: mask.contains(.size))
        defer { withExtendedLifetime(object) {} }
        if mask.contains(.size) {
            try System.check(clinux_ftruncate(object.fd, attributes.size), "set the size of", "file \(file)")
        }
        try setOwnerAndMode(object.fd, type: object.type, mask, attributes)
        let mtime = mask.contains(.mtime) ? attributes.mtime : mask.contains(.size) ? time : nil
        try setTimes(
            object.fd, type: object.type, atime: mask.contains(.atime) ? attributes.atime : nil, mtime: mtime)
    }

    /// The kernel takes set-user-id and set-group-id away with every change of the owner, whoever asks. What the
    /// application was to lose is in the record's mode; without one, the mode stays.
    func setOwnerAndMode(
        _ fd: Int32, type: UInt32, _ mask: AttributeMask, _ attributes: FileAttributes
    ) throws(TreeError) {
        var mode = mask.contains(.mode) ? attributes.mode : nil
        if !mask.isDisjoint(with: [.uid, .gid]) {
            if mode == nil {
                let before = try System.stat(fd).mode
                if before & 0o6000 != 0 { mode = before }
            }
            try System.setOwner(
                fd, user: mask.contains(.uid) ? attributes.uid : .max,
                group: mask.contains(.gid) ? attributes.gid : .max)
        }
        // Symbolic links have no mode of their own.
        if let mode, type != S_IFLNK { try System.setMode(fd, mode) }
    }

    // MARK: Names

    /// Both directories of a namespace record get its time.
    func touch(_ directory: Int32, _ time: Int64) throws(TreeError) {
        try System.setTimes(directory, atime: nil, mtime: time)
    }

    private func create(
        _ file: FileID, _ parent: FileID, _ name: FileName, _ attributes: FileAttributes, _ target: [UInt8],
        _ xattrs: [ExtendedAttribute], _ time: Int64
    ) throws(TreeError) {
        try withDirectory(parent) { (directory) throws(TreeError) in
            switch try occupant(of: name, in: directory) {
            case nil:
                try build(file, attributes, target, xattrs)
                try System.rename(
                    staging.rawValue, PlainTree.encodeTag(file), to: directory, name, flags: CLINUX_RENAME_NOREPLACE)
            case file?: break
            case let other?: throw unexpected("create", file, name, parent, holds: other)
            }
            try touch(directory, time)
        }
    }

    /// Makes a complete object in staging: number, owner, mode and attributes are on it before it gets its name, so
    /// that no crash leaves a named object without its number.
    ///
    /// Staging has neither default ACLs nor a set-group-id bit to inherit: the record carries what the target
    /// directory would have given.
    func build(
        _ file: FileID, _ attributes: FileAttributes, _ target: [UInt8], _ xattrs: [ExtendedAttribute]
    ) throws(TreeError) {
        let name = PlainTree.encodeTag(file)
        // A leftover of a try that a crash or an error interrupted.
        try removeFromStaging(name)
        let object = try make(file, attributes, target, xattrs, inStaging: name)
        defer { withExtendedLifetime(object) {} }
        try table.insert(file, try handle(of: object.fd))
        cache.insert(file, object)
    }

    /// As `build`, under any name in staging, which must be free; the table does not get to know it.
    ///
    /// Its number comes last: a process may die anywhere in here, and whoever finds a number in staging takes the object
    /// for whole.
    ///
    /// - Parameter step: called before every change; a test throws from it, which is a crash as the process sees it.
    func make(
        _ file: FileID, _ attributes: FileAttributes, _ target: [UInt8], _ xattrs: [ExtendedAttribute],
        inStaging name: FileName, _ step: ReplayStep = { () throws(TreeError) in }
    ) throws(TreeError) -> OpenObject {
        try step()
        let object = try makeBare(name, attributes, target)
        let type = object.type
        try step()
        if type == S_IFREG, attributes.size > 0 {
            try System.check(clinux_ftruncate(object.fd, attributes.size), "set the size of", "file \(file)")
        }
        try step()
        if attributes.uid != 0 || attributes.gid != 0 {
            try System.setOwner(object.fd, user: attributes.uid, group: attributes.gid)
        }
        try step()
        if type != S_IFLNK { try System.setMode(object.fd, attributes.mode) }
        for xattr in xattrs where !xattr.name.starts(with: PlainTree.ownXattrPrefix) {
            try step()
            try System.setXattr(object.fd, xattr.name, xattr.value)
        }
        try step()
        try System.setTimes(object.fd, atime: attributes.atime, mtime: attributes.mtime)
        try step()
        try System.setXattr(object.fd, PlainTree.fileIDXattr, PlainTree.encodeTag(file))
        return object
    }

    /// An object of the right type, for nobody but this process.
    private func makeBare(
        _ name: FileName, _ attributes: FileAttributes, _ target: [UInt8]
    ) throws(TreeError) -> OpenObject {
        let type = attributes.mode & S_IFMT
        let directory = staging.rawValue
        var opened: Int32 = -1
        switch type {
        case S_IFREG:
            opened = try System.open(directory, name, O_RDWR | O_CREAT | O_EXCL | CLINUX_O_NOATIME).release()
        case S_IFDIR: try System.makeDirectory(directory, name, mode: 0o700)
        case S_IFLNK: try System.makeSymbolicLink(directory, name, target: target)
        case S_IFIFO, S_IFSOCK, S_IFCHR, S_IFBLK:
            try System.makeNode(directory, name, mode: type | 0o600, device: attributes.rdev)
        default:
            throw TreeError("create", "an object of type \(String(type, radix: 8))", code: EINVAL)
        }
        if opened < 0 {
            let flags = type == S_IFDIR ? O_RDONLY | CLINUX_O_DIRECTORY | CLINUX_O_NOATIME : CLINUX_O_PATH
            opened = try System.open(directory, name, flags).release()
        }
        return OpenObject(owning: opened, type: type, isWritable: type == S_IFREG)
    }

    private func link(_ file: FileID, _ parent: FileID, _ name: FileName, _ time: Int64) throws(TreeError) {
        try withDirectory(parent) { (directory) throws(TreeError) in
            switch try occupant(of: name, in: directory) {
            case nil:
                try withDescriptor(of: file, writable: false) { (fd) throws(TreeError) in
                    try System.link(fd, to: directory, name)
                }
            case file?: break
            case let other?: throw unexpected("link", file, name, parent, holds: other)
            }
            try touch(directory, time)
        }
    }

    private func remove(
        _ file: FileID, _ parent: FileID, _ name: FileName, isDirectory: Bool, wasLast: Bool, _ time: Int64
    ) throws(TreeError) {
        try withDirectory(parent) { (directory) throws(TreeError) in
            switch try occupant(of: name, in: directory) {
            case nil: break
            case file?:
                if wasLast, isHeld(file) {
                    try moveToStaging(file, from: directory, name, isDirectory: isDirectory)
                    try park(file)
                } else if wasLast {
                    try removeLast(file) { () throws(TreeError) in
                        try System.unlink(directory, name, isDirectory: isDirectory)
                    }
                } else {
                    try System.unlink(directory, name, isDirectory: isDirectory)
                }
            case let other?: throw unexpected("remove", file, name, parent, holds: other)
            }
            try touch(directory, time)
        }
    }

    /// Remembers that a held file waits in staging; it may have been released meanwhile.
    private func park(_ file: FileID) throws(TreeError) {
        let isStillHeld = state.withLock { state in
            if state.held.contains(file) { state.parked.insert(file) }
            return state.held.contains(file)
        }
        guard !isStillHeld else { return }
        try removeFromStaging(PlainTree.encodeTag(file))
        try forget(file)
    }

    private func rename(
        _ file: FileID, _ parent: FileID, _ name: FileName, _ newParent: FileID, _ newName: FileName,
        replaced: FileID, replacedWasLast: Bool, _ time: Int64
    ) throws(TreeError) {
        try withDirectory(parent) { (from) throws(TreeError) in
            try withDirectory(newParent) { (to) throws(TreeError) in
                let there = try occupant(of: newName, in: to)
                if try occupant(of: name, in: from) == file {
                    if there == file {
                        // Two links of one inode, or an earlier try: rename would succeed and do nothing.
                        if parent != newParent || name != newName {
                            try System.unlink(from, name, isDirectory: false)
                        }
                    } else if there == nil || there == replaced {
                        try move(file, from, name, to, newName, over: there, removing: replacedWasLast)
                    } else {
                        throw unexpected("rename", file, newName, newParent, holds: there ?? .none)
                    }
                } else if there != file {
                    throw unexpected("rename", file, name, parent, holds: try occupant(of: name, in: from) ?? .none)
                } else {
                    try finishMove(from, name, removing: replacedWasLast ? replaced : .none)
                }
                try touch(from, time)
                if parent != newParent { try touch(to, time) }
            }
        }
    }

    private func move(
        _ file: FileID, _ from: Int32, _ name: FileName, _ to: Int32, _ newName: FileName, over replaced: FileID?,
        removing: Bool
    ) throws(TreeError) {
        if let replaced, removing, isHeld(replaced) {
            // Exchanged first, so that the new name never leads to nothing.
            try System.rename(from, name, to: to, newName, flags: CLINUX_RENAME_EXCHANGE)
            return try finishMove(from, name, removing: replaced)
        }
        guard let replaced, removing else { return try System.rename(from, name, to: to, newName) }
        try removeLast(replaced) { () throws(TreeError) in try System.rename(from, name, to: to, newName) }
    }

    /// After the exchange, which an earlier try may have made and not come further: what was replaced stands at the old
    /// name.
    private func finishMove(_ from: Int32, _ name: FileName, removing replaced: FileID) throws(TreeError) {
        guard replaced != .none, try occupant(of: name, in: from) == replaced else { return }
        let isDirectory = try System.stat(from, name).map { $0.mode & S_IFMT == S_IFDIR } ?? false
        try moveToStaging(replaced, from: from, name, isDirectory: isDirectory)
        try park(replaced)
    }

    private func exchange(
        _ file: FileID, _ parent: FileID, _ name: FileName, _ other: FileID, _ newParent: FileID,
        _ newName: FileName, _ time: Int64
    ) throws(TreeError) {
        try withDirectory(parent) { (from) throws(TreeError) in
            try withDirectory(newParent) { (to) throws(TreeError) in
                let here = try occupant(of: name, in: from)
                let there = try occupant(of: newName, in: to)
                if here == file, there == other {
                    try exchange(from, name, to, newName, other, acrossDirectories: parent != newParent)
                } else if here != other || there != file {
                    guard try finishExchange(file, from, name, to, newName, other, here: here, there: there) else {
                        throw unexpected("exchange", file, name, parent, holds: here ?? .none)
                    }
                }
                try touch(from, time)
                if parent != newParent { try touch(to, time) }
            }
        }
    }

    /// XFS gives a directory that is exchanged into another directory the present time, which is another one in the other
    /// room; one that is only moved keeps its own. So such a one goes by way of staging. Dying on the way leaves there what
    /// a replay gives its name back.
    private func exchange(
        _ from: Int32, _ name: FileName, _ to: Int32, _ newName: FileName, _ other: FileID, acrossDirectories: Bool
    ) throws(TreeError) {
        func isDirectory(_ directory: Int32, _ name: FileName) throws(TreeError) -> Bool {
            try System.stat(directory, name).map { $0.mode & S_IFMT == S_IFDIR } ?? false
        }
        let isOther = try isDirectory(to, newName)
        let isOne = try isDirectory(from, name)
        guard acrossDirectories, isOne || isOther else {
            return try System.rename(from, name, to: to, newName, flags: CLINUX_RENAME_EXCHANGE)
        }
        try moveToStaging(other, from: to, newName, isDirectory: isOther)
        try System.rename(from, name, to: to, newName)
        try System.rename(staging.rawValue, PlainTree.encodeTag(other), to: from, name)
    }

    /// Goes on where the file system refused one of the steps by way of staging: for want of room, so that the record is
    /// tried again.
    /// - Returns: false when it is not that.
    private func finishExchange(
        _ file: FileID, _ from: Int32, _ name: FileName, _ to: Int32, _ newName: FileName, _ other: FileID,
        here: FileID?, there: FileID?
    ) throws(TreeError) -> Bool {
        let stagingName = PlainTree.encodeTag(other)
        guard here == file && there == nil || here == nil && there == file,
            try occupant(of: stagingName, in: staging.rawValue) == other
        else { return false }
        if here == file { try System.rename(from, name, to: to, newName) }
        try System.rename(staging.rawValue, stagingName, to: from, name)
        return true
    }

    private func unexpected(
        _ operation: String, _ file: FileID, _ name: FileName, _ parent: FileID, holds other: FileID
    ) -> TreeError {
        let found = other == .none ? "nothing or an object without a number" : "file \(other)"
        return TreeError(
            operation, "file \(file) as \(shown(name)) in \(parent), where there is \(found)", code: ESTALE,
            remedy:
                "The plain files are not what the mirror says. If something wrote to \(backing) directly, stop that; "
                + "then resynchronise this node")
    }
}

extension RecordBody {
    /// Start or end of a resynchronisation.
    var isImageMark: Bool {
        switch self {
        case .imageStart, .imageEnd: true
        default: false
        }
    }
}
