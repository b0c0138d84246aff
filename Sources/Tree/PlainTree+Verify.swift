internal import CLinux
public import Format
internal import Glibc
internal import Ring

/// Answering the questions of a verification. The caller (`Applier`) asks between two records of the file, so what is
/// read here is the state after every record before the question, on both nodes.
///
/// What may differ between two rooms that are well is left out: access times, change times, what blocks are allocated
/// (a block of zeros is as good as a hole), the sizes of directories, link counts (names say the same), and the labels
/// that a security module of the kernel gives by its own rules.
extension PlainTree {
    /// Never fails: what cannot be read is an answer too.
    public func verify(_ check: VerifyCheck) -> VerifyOutcome {
        if let errno = state.withLock({ $0.verifyFault })?(check) { return .failed(errno) }
        do throws(TreeError) {
            // An object that was removed and is still open has no name: nobody could reach it after a takeover.
            guard !isImaging, !isParked(check.file), try referenceIfKnown(to: check.file) != nil else { return .gone }
            switch check.aspect {
            case .file: return try verifyFile(check)
            case .content: return .content(try contentHash(of: check))
            case .blocks:
                return .blocks(
                    try blockHashes(
                        of: check.file, at: check.offset, length: check.length, blockBytes: Int(check.blockBytes),
                        seed: check.seed))
            case .bytes: return .bytes(try bytes(of: check))
            case .names: return try verifyNames(check)
            case .entries: return try verifyEntries(check)
            }
        } catch {
            return .failed(error.code)
        }
    }

    private func isParked(_ file: FileID) -> Bool { state.withLock { $0.parked.contains(file) } }

    // MARK: Files

    private func verifyFile(_ check: VerifyCheck) throws(TreeError) -> VerifyOutcome {
        let status = try status(of: check.file)
        var attributes = status.attributes
        attributes.atime = 0
        if !status.isRegular { attributes.size = 0 }
        let target = status.isSymbolicLink ? try readLink(check.file) : []
        let xattrs = try allXattrs(of: check.file).filter { !PlainTree.isLabel($0.name) }
        var writer = ByteWriter()
        writer.put(xattrs)
        let encoded = writer.bytes
        let fits = encoded.count <= VerifyCheck.xattrBytesLimit && xattrs.count <= RecordLimits.xattrCount
        let hash = unsafe encoded.withUnsafeBytes { unsafe Hash128(of: $0, seed: check.seed) }
        return .file(
            VerifiedFile(
                attributes: attributes, target: target, xattrHash: hash, xattrs: fits ? xattrs : [],
                content: status.isRegular ? try contentHash(of: check) : Hash128(low: 0, high: 0)))
    }

    /// Set by the kernel of each machine as its policy says; the mirror does not carry them.
    static func isLabel(_ name: FileName) -> Bool {
        ["security.selinux", "security.SMACK64", "security.apparmor"].contains { name.starts(with: Array($0.utf8)) }
    }

    /// The sum of the hashes of all blocks that are not zero, each with its place: a block more or less, or in another
    /// place, changes it; a block of zeros does not.
    private func contentHash(of check: VerifyCheck) throws(TreeError) -> Hash128 {
        var sum = HashSum()
        try unsafe visitBlocks(
            of: check.file, at: check.offset, length: check.length, blockBytes: Int(check.blockBytes), fromDisk: true
        ) { index, bytes in
            unsafe sum.add(Hash128(of: bytes, seed: check.seed &+ UInt64(index)))
        }
        return sum.value
    }

    /// From the disk, and nothing but that: the kernel reads ahead, and keeps, pieces of many blocks, which cannot be read
    /// when one of their blocks cannot. A block would seem lost that is not.
    private func bytes(of check: VerifyCheck) throws(TreeError) -> [UInt8] {
        let piece = PlainTree.cachedPieceBytes
        let start = off_t(check.offset / piece * piece)
        let length = off_t((check.offset + check.length + piece - 1) / piece * piece) - start
        return try withDescriptor(of: check.file, writable: false) { (fd) throws(TreeError) in
            var space = [UInt8](repeating: 0, count: Int(check.length))
            func read() throws(TreeError) -> Int {
                _ = posix_fadvise(fd, start, length, POSIX_FADV_DONTNEED)
                var failure: TreeError?
                let count = unsafe space.withUnsafeMutableBytes { raw in
                    do throws(TreeError) { return try unsafe System.read(fd, raw, at: check.offset) } catch {
                        failure = error
                        return 0
                    }
                }
                if let failure { throw failure }
                return count
            }
            let count: Int
            do throws(TreeError) { count = try read() } catch {
                guard error.code == EIO else { throw error }
                // A piece that was written to is kept until the disk has that.
                _ = clinux_write_out(fd, UInt64(start), UInt64(length))
                count = try read()
            }
            space.removeLast(space.count - count)
            return space
        }
    }

    /// The largest piece of a file that the page cache keeps as one (x86-64), at a multiple of its size.
    private static let cachedPieceBytes: UInt64 = 2 << 20

    // MARK: Directories

    /// How many names a directory has, for choosing a divisor; by the way it may be wrong at once.
    public func countNames(of directory: FileID) throws(TreeError) -> Int {
        try withDirectory(directory) { (shared) throws(TreeError) in
            let fd = try System.open(shared, [UInt8(ascii: ".")], O_RDONLY | CLINUX_O_DIRECTORY | CLINUX_O_NOATIME)
            var count = 0
            while true {
                let names = try rawNames(fd.rawValue, of: directory)
                if names.isEmpty { return count }
                count += names.count
            }
        }
    }

    private func verifyNames(_ check: VerifyCheck) throws(TreeError) -> VerifyOutcome {
        var groups = [HashSum](repeating: HashSum(), count: VerifyCheck.nameGroups)
        var count: UInt64 = 0
        try visitNames(check) { entry, group in
            count += 1
            var writer = ByteWriter(reserving: 280)
            writer.put(entry.file)
            writer.put(entry.mode)
            writer.put(raw: entry.name)
            let bytes = writer.bytes
            groups[group].add(unsafe bytes.withUnsafeBytes { unsafe Hash128(of: $0, seed: check.seed) })
        }
        return .names(count: count, groups: groups.map(\.value))
    }

    private func verifyEntries(_ check: VerifyCheck) throws(TreeError) -> VerifyOutcome {
        var entries: [ImageEntry] = []
        var isComplete = true
        try visitNames(check) { entry, _ in
            if entries.count < VerifyCheck.entryLimit { entries.append(entry) } else { isComplete = false }
        }
        entries.sort { $0.name.lexicographicallyPrecedes($1.name) }
        return .entries(entries, isComplete: isComplete)
    }

    /// Every chosen name with its object, and which group of names it belongs to. The names are read all, only the
    /// chosen ones are opened.
    private func visitNames(
        _ check: VerifyCheck, _ body: (ImageEntry, _ group: Int) -> Void
    ) throws(TreeError) {
        precondition(check.length > 0, "names are chosen by a divisor")
        try withDirectory(check.file) { (shared) throws(TreeError) in
            let fd = try System.open(shared, [UInt8(ascii: ".")], O_RDONLY | CLINUX_O_DIRECTORY | CLINUX_O_NOATIME)
            while true {
                let names = try rawNames(fd.rawValue, of: check.file)
                if names.isEmpty { return }
                for raw in names where !raw.isDots {
                    let hash = unsafe raw.name.withUnsafeBytes { unsafe hash64($0, seed: check.seed) }
                    guard hash % check.length == check.offset else { continue }
                    guard let object = try child(raw.name, of: fd.rawValue) else { continue }
                    let file = try tag(of: object.rawValue) ?? .none
                    let mode = try System.stat(object.rawValue).mode & S_IFMT
                    let group = Int(hash / check.length % UInt64(VerifyCheck.nameGroups))
                    body(ImageEntry(name: raw.name, file: file, mode: mode), group)
                }
            }
        }
    }

    // MARK: For whoever asks

    /// The numbers above `file` in the file table, ascending, at most `limit`: a walk over everything in one order that
    /// is the same on both nodes and stays when names change. Takes a pass over the table, and memory for twice the
    /// limit.
    public func files(above file: FileID, limit: Int) throws(TreeError) -> (files: [FileID], total: Int) {
        var found: [FileID] = []
        var total = 0
        // Of more than twice the limit, those that are too large go.
        var bound = FileID(rawValue: .max)
        try table.visit {
            found = []
            total = 0
            bound = FileID(rawValue: .max)
        } _: { (candidate, _) throws(TreeError) in
            total += 1
            guard candidate > file, candidate < bound else { return }
            found.append(candidate)
            guard found.count >= 2 * limit else { return }
            found.sort()
            found.removeLast(found.count - limit)
            bound = found[limit - 1]
        }
        found.sort()
        return (Array(found.prefix(limit)), total)
    }

    /// A `limit` for `files`: few passes, and at most 16 MiB.
    public static let filesOfPass = 1 << 20

    /// What all files hold, without their holes: a pass over the file table and a look at each file.
    public func bytesOfFiles() throws(TreeError) -> UInt64 {
        var sum: UInt64 = 0
        var last = FileID.none
        while true {
            let files = try self.files(above: last, limit: PlainTree.filesOfPass).files
            guard let end = files.last else { return sum }
            last = end
            for file in files {
                guard let reference = try referenceIfKnown(to: file) else { continue }
                let stat = try System.stat(reference.rawValue)
                if stat.mode & S_IFMT == S_IFREG { sum += min(stat.blocks * 512, (stat.size + 4095) / 4096 * 4096) }
            }
        }
    }

    /// Where an object is now, below the plain files: "dir/file"; "" for the root.
    public func relativePath(of file: FileID) throws(TreeError) -> String {
        guard let reference = try referenceIfKnown(to: file) else {
            throw TreeError("find", "file \(file)", code: ESTALE)
        }
        let whole = path(of: reference.rawValue)
        guard whole != backing else { return "" }
        return whole.hasPrefix(backing + "/") ? String(whole.dropFirst(backing.utf8.count + 1)) : whole
    }
}

/// Hashes of a set, in any order.
private struct HashSum {
    private var low: UInt64 = 0
    private var high: UInt64 = 0
    mutating func add(_ hash: Hash128) {
        low &+= hash.low
        high &+= hash.high
    }
    var value: Hash128 { Hash128(low: low, high: high) }
}
