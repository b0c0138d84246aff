public import Format

/// The four superblock copies as they were found.
public struct SuperblockSet: Sendable {
    /// What stands at each of the four places: a superblock, or why it is not one.
    public let copies: [Result<Superblock, Superblock.Fault>]

    /// Reads what a file of any size has at the places where the copies should be.
    public init(image: JournalImage) {
        let layout = JournalLayout(fileSize: image.byteCount)
        copies = (0..<JournalLayout.superblockCopies).map { index in
            let offset = layout?.superblockOffset(index) ?? index * JournalLayout.superblockSpacing
            guard layout != nil || index < 2, offset + Superblock.byteCount <= image.byteCount else {
                return .failure(.noSuperblock)
            }
            var unreadable: [Int] = []
            let pages = image.readPages(at: offset, count: Superblock.byteCount, unreadable: &unreadable)
            guard unreadable.isEmpty else { return .failure(.impossible("the disk cannot read it")) }
            do throws(Superblock.Fault) {
                return .success(try Superblock(decoding: unsafe Array(pages.constBytes), copy: index))
            } catch {
                return .failure(error)
            }
        }
    }

    init(copies: [Result<Superblock, Superblock.Fault>]) { self.copies = copies }

    private var valid: [Superblock] { copies.compactMap { try? $0.get() } }

    /// The highest generation that two copies agree on, and how many do.
    public var agreed: (superblock: Superblock, count: Int)? {
        let groups = Dictionary(grouping: valid, by: { $0 }).filter { $0.value.count >= 2 }
        guard let best = groups.max(by: { $0.key.generation < $1.key.generation }) else { return nil }
        return (best.key, best.value.count)
    }

    /// The highest generation seen in any copy: the next write must be above it, or a copy that a crash left behind
    /// could later be taken for the other half of a pair.
    public var highestGeneration: UInt64 { valid.map(\.generation).max() ?? 0 }

    /// Whether the journal may be opened.
    public func finding(mirror: MirrorID?, byteCount: Int) -> RecoveryTable.SuperblockFinding {
        guard let (superblock, _) = agreed else {
            let versions = copies.contains {
                if case .failure(.version) = $0 { true } else { false }
            }
            return versions ? .otherVersion : JournalLayout(fileSize: byteCount) == nil ? .wrongSize : .disagree
        }
        if superblock.fileSize != byteCount { return .wrongSize }
        if let mirror, superblock.mirror != mirror { return .otherMirror }
        return .agreed
    }

    /// The refusal in words.
    func refusal(_ finding: RecoveryTable.SuperblockFinding, mirror: MirrorID?, image: JournalImage) -> JournalError {
        let name = image.name
        switch finding {
        case .agreed: preconditionFailure("no reason to refuse")
        case .wrongSize:
            let made = agreed.map { "it was made with \($0.superblock.fileSize) bytes" } ?? "no journal has that size"
            return JournalError(
                .wrongSize,
                "journal \(name) has \(image.byteCount) bytes, but \(made). Was it cut short or copied badly? Do not "
                    + "change its size by hand: restore the file, or make a new journal and let the other node fill it."
            )
        case .otherMirror:
            return JournalError(
                .otherMirror,
                "journal \(name) belongs to mirror \(agreed.map { "\($0.superblock.mirror)" } ?? "?"), not to "
                    + "\(mirror.map { "\($0)" } ?? "?"). Check `state` in the configuration.")
        case .otherVersion:
            let found = copies.compactMap { copy -> UInt16? in
                if case .failure(.version(let version)) = copy { version } else { nil }
            }
            return JournalError(
                .otherVersion,
                "journal \(name) has format version \(found.first ?? 0); this program reads version "
                    + "\(Superblock.version). Use the version of Lockstep that wrote it.")
        case .disagree:
            let reasons = copies.enumerated().map { index, copy in
                switch copy {
                case .success(let superblock): "copy \(index): generation \(superblock.generation)"
                case .failure(let fault): "copy \(index): \(fault)"
                }
            }
            return JournalError(
                .superblocks,
                "journal \(name): no two of its four superblocks agree (\(reasons.joined(separator: "; "))). Nothing "
                    + "has been changed. `lockstep-dump \(name)` shows what can still be read; a new journal is filled "
                    + "from the other node.")
        }
    }
}
