internal import Format

/// Opens that came too late, and how their second try is made to succeed.
///
/// The kernel opens what it has cached, without a lookup. When the last name of that file has been removed or replaced
/// meanwhile, the answer is ESTALE: the kernel then looks the whole path up anew and opens what is there, once more. A
/// second ESTALE reaches the application, which a local file system never shows it. So from a late open until the
/// second one has come, every file that loses its last name is kept, open or not, and what the lookup found can be opened.
///
/// ```
///   OPEN of a removed file ─ESTALE─> LOOKUP ... LOOKUP ──> OPEN ─answer─> nobody expected: files kept are let go
///                                       │
///                                       └ from here on another removal keeps its file
/// ```
///
/// A program that never comes back (it was killed, or may not open the file) is expected for `patienceMilliseconds`.
struct LateOpens {
    /// How long after its last step a program is expected.
    static let patienceMilliseconds = 5000
    /// Lookups of one program: a path has fewer names than this, or it is another path.
    static let lookupsMax = 2048
    /// Programs expected at most; the open of one beyond that may fail with ESTALE.
    static let programsMax = 1024
    /// Files kept without an open handle at most; the oldest goes first.
    static let keptMax = 256

    private struct Program {
        var deadline: UInt64
        var lookupsLeft: Int
    }

    /// By the number of the thread that asked. Those outside the daemon's own namespace all have 0: then they are
    /// expected until any of them has come.
    private var programs: [UInt32: Program] = [:]
    /// Removed, applied, and without a handle.
    private var kept: [Inode] = []

    var isExpecting: Bool { !programs.isEmpty }

    func expects(_ program: UInt32) -> Bool { programs[program] != nil }

    /// An open of `program` was answered ESTALE.
    mutating func late(_ program: UInt32, now: UInt64) {
        guard programs.count < LateOpens.programsMax || expects(program) else { return }
        programs[program] = Program(deadline: deadline(now), lookupsLeft: LateOpens.lookupsMax)
    }

    /// A lookup of `program`, expected when it asked, is about to be answered.
    mutating func found(_ program: UInt32, now: UInt64) {
        let left = programs[program]?.lookupsLeft ?? LateOpens.lookupsMax
        programs[program] = left > 0 ? Program(deadline: deadline(now), lookupsLeft: left - 1) : nil
    }

    private func deadline(_ now: UInt64) -> UInt64 { now + UInt64(LateOpens.patienceMilliseconds) * 1_000_000 }

    /// `program` has come, or does something else.
    mutating func came(_ program: UInt32) { programs[program] = nil }

    mutating func giveUp(now: UInt64) { programs = programs.filter { $0.value.deadline > now } }

    /// Keeps a file that has no handle. Returns one that is kept no longer.
    mutating func keep(_ inode: Inode) -> Inode? {
        guard !inode.isKept else { return nil }
        inode.isKept = true
        kept.append(inode)
        return kept.count > LateOpens.keptMax ? kept.removeFirst() : nil
    }

    /// All files kept, when nobody is expected any more.
    mutating func letGo() -> [Inode] {
        guard programs.isEmpty else { return [] }
        defer { kept = [] }
        return kept
    }
}

extension MirroredDirectory {
    /// Whatever a program does that is no part of finding and opening a file says that it opens none now.
    func noteStep(of request: FuseRequest) {
        guard late.expects(request.pid) else { return }
        switch request.operation {
        case .lookup, .getAttributes, .readLink, .open, .refused: break
        default: came(request.pid)
        }
    }

    /// An open was answered ESTALE: the kernel is about to try once more.
    func cameLate(_ program: UInt32) {
        tally.opensLate += 1
        late.late(program, now: reactor.now)
        giveUpLater()
    }

    /// The file that a lookup found is kept until `program` has opened it. BEFORE the lock of its directory is given back.
    func foundLate(_ program: UInt32) {
        late.found(program, now: reactor.now)
        giveUpLater()
    }

    func came(_ program: UInt32) {
        guard late.expects(program) else { return }
        late.came(program)
        letGo()
    }

    private func giveUpLater() {
        guard !isGivingUpLater else { return }
        isGivingUpLater = true
        reactor.after(milliseconds: LateOpens.patienceMilliseconds) { [weak self] in
            guard let self else { return }
            isGivingUpLater = false
            late.giveUp(now: reactor.now)
            letGo()
            if late.isExpecting { giveUpLater() }
        }
    }

    private func letGo() {
        for inode in late.letGo() { dropKept(inode) }
    }

    /// Keeps a removed file without a handle for a program that is about to open it.
    func keepForLateOpen(_ inode: Inode) {
        if let oldest = late.keep(inode) { dropKept(oldest) }
    }

    private func dropKept(_ inode: Inode) {
        inode.isKept = false
        dropRemoved(inode, isWanted: false)
    }
}
