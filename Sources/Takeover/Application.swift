import Glibc
import Logging
import Synchronization

/// What an application consists of on this node.
public struct ApplicationSettings: Sendable {
    public var mirror: String
    public var node: String
    /// Where it sees its files.
    public var path: String
    /// Its virtual addresses, without prefix length.
    public var addresses: [String]
    public var start: ApplicationCommand
    /// nil: stopping is killing.
    public var stop: ApplicationCommand?
    /// Exit status 0 means that the application is well.
    public var check: ApplicationCommand?
    public var startTimeoutMilliseconds = 60_000
    public var stopTimeoutMilliseconds = 30_000
    public var checkIntervalMilliseconds = 10_000
    public var checkTimeoutMilliseconds = 10_000
    /// So many failed checks in a row are a failure.
    public var checkFailuresMaximum = 3
    /// The user the commands run as; nil is the daemon's.
    public var user: String?

    public init(
        mirror: String, node: String, path: String, addresses: [String], start: ApplicationCommand,
        stop: ApplicationCommand? = nil, check: ApplicationCommand? = nil, user: String? = nil
    ) {
        self.mirror = mirror
        self.node = node
        self.path = path
        self.addresses = addresses
        self.start = start
        self.stop = stop
        self.check = check
        self.user = user
    }
}

/// Starts, watches, freezes and stops one application, in a control group of its own.
///
///               start()             the script ended with 0
///     stopped ──────────> starting ─────────────────────────> running ──── freeze/thaw ────> frozen
///        ▲                   │ error, time limit: kill all       │ stop(): script, then kill all   │
///        └───────────────────┴───────────────────────────────────┴────── stop()/kill(): kill all ──┘
///
/// The start script returns when the application serves; what it leaves in the background stays in the group. Every
/// command gets LOCKSTEP_MIRROR, LOCKSTEP_NODE, LOCKSTEP_PATH and LOCKSTEP_ADDRESSES (separated by blanks), the working
/// directory / and nothing else of the daemon's. No descriptor of the daemon's ever lies on the mirrored directory: the
/// scripts are opened by the kernel, in the child.
///
/// `start`, `stop` and `kill` are for one thread, one after the other, except that `kill` may come from another thread at
/// any time and ends a running `start` or `stop`. `freeze` and `thaw` may come from any thread and do not wait for others.
public final class Application: Sendable {
    /// How a stop went.
    public struct StopReport: Sendable {
        /// How the stop script ended; nil when there was none, or it was not run (frozen).
        public var script: CommandEnd?
        /// How many processes were left for SIGKILL after the script.
        public var killed: Int
        /// Processes that even SIGKILL did not end in time: they hang inside the kernel. Empty: it is certainly stopped.
        public var left: [Int32]
    }

    public let settings: ApplicationSettings
    public let group: ControlGroup
    private let logger: Logger
    /// Grows with every start, stop and kill: who finds it changed has been overtaken.
    private let generation = Atomic<UInt64>(0)
    /// The generation whose checker may run; 0 for none.
    private let checked = Atomic<UInt64>(0)

    public init(settings: ApplicationSettings, group: ControlGroup, logger: Logger) {
        self.settings = settings
        self.group = group
        self.logger = logger
    }

    private func advance() -> UInt64 {
        checked.store(0, ordering: .sequentiallyConsistent)
        return generation.add(1, ordering: .sequentiallyConsistent).newValue
    }

    private var environment: [String] {
        [
            "LOCKSTEP_MIRROR=\(settings.mirror)", "LOCKSTEP_NODE=\(settings.node)", "LOCKSTEP_PATH=\(settings.path)",
            "LOCKSTEP_ADDRESSES=\(settings.addresses.joined(separator: " "))",
        ]
    }

    private func spawn(_ command: ApplicationCommand, _ mine: UInt64) throws(TakeoverError) -> RunningCommand {
        guard generation.load(ordering: .sequentiallyConsistent) == mine else { throw overtaken(command) }
        let running = try group.whileThawed("run \(command)") { () throws(TakeoverError) in
            try RunningCommand(command, as: settings.user, environment: environment, in: group, logger: logger)
        }
        // A kill that came between the look above and the birth has not seen the child.
        guard generation.load(ordering: .sequentiallyConsistent) == mine else {
            running.killGroup()
            throw overtaken(command)
        }
        return running
    }

    private func overtaken(_ command: ApplicationCommand) -> TakeoverError {
        TakeoverError(
            "run \(command)", reason: "the application was killed or stopped meanwhile",
            remedy: "Nothing: this is how a start is called off")
    }

    /// What a start must bring along that is not to happen any more when the application is stopped or killed meanwhile.
    public var ticket: UInt64 { generation.load(ordering: .sequentiallyConsistent) }

    /// As `start()`, if nothing has started, stopped or killed it since `ticket`.
    /// - Returns: false when something has; nothing was done then.
    public func start(_ ticket: UInt64) throws(TakeoverError) -> Bool {
        let mine = ticket + 1
        guard
            generation.compareExchange(expected: ticket, desired: mine, ordering: .sequentiallyConsistent).exchanged
        else { return false }
        checked.store(0, ordering: .sequentiallyConsistent)
        try start(as: mine)
        return true
    }

    /// Kills what an earlier life left in the group, then runs the start script to its end.
    ///
    /// Blocks for at most the start time limit and ten seconds of killing.
    /// - Throws: when the script cannot be run, fails, or does not end in time. Nothing of it is left running then, or the
    ///   error names who is left.
    public func start() throws(TakeoverError) { try start(as: advance()) }

    private func start(as mine: UInt64) throws(TakeoverError) {
        let leftovers = try group.processes()
        if !leftovers.isEmpty {
            logger.notice("Killing \(leftovers.count) processes that an earlier run of the application left.")
            try emptyGroup(before: "start the application")
        }
        // Also where it does not know of being frozen: who is born into a frozen group never returns to here.
        try group.thaw()
        let running = try spawn(settings.start, mine)
        let end = running.wait(milliseconds: settings.startTimeoutMilliseconds)
        let isMine = generation.load(ordering: .sequentiallyConsistent) == mine
        if end == .exited(status: 0), isMine { return }
        let output = running.output
        if case .timedOut = end { running.killGroup() }
        guard isMine else { throw overtaken(settings.start) }
        try emptyGroup(before: "clean up after \(settings.start), of which \(end)")
        let lines = output.lastLines(milliseconds: 300)
        let said = lines.isEmpty ? "" : "; it said: \(lines)"
        let remedy =
            if case .timedOut = end {
                "The script must return once the application serves; put the server into the background, "
                    + "or raise startTimeoutSeconds"
            } else {
                "Run it by hand on this node and look at the application's own log"
            }
        throw TakeoverError("start the application with \(settings.start)", reason: "\(end)\(said)", remedy: remedy)
    }

    private func emptyGroup(before action: String) throws(TakeoverError) {
        let left = try group.kill(milliseconds: 5000)
        guard left.isEmpty else {
            throw TakeoverError(
                action, reason: "processes \(left) do not die of SIGKILL: they hang inside the kernel",
                remedy: "See what they wait for (cat /proc/\(left[0])/stack); at the last, reboot this node")
        }
    }

    /// Runs the stop script to its end, then kills everything that is left.
    ///
    /// Blocks for at most the stop time limit and `killMilliseconds`. A script that fails or hangs does not make stopping
    /// fail: it is logged, and the rest is killed. A frozen application is killed without its script, which could not run
    /// without letting the application run too.
    /// - Returns: whether anything is left, and how it went.
    /// - Throws: when the group itself cannot be used.
    public func stop(killMilliseconds: Int = 5000) throws(TakeoverError) -> StopReport {
        let mine = advance()
        var report = StopReport(script: nil, killed: 0, left: [])
        if let command = settings.stop, !group.isFrozen, try !group.processes().isEmpty {
            do throws(TakeoverError) {
                let running = try spawn(command, mine)
                let end = running.wait(milliseconds: settings.stopTimeoutMilliseconds)
                report.script = end
                if case .timedOut = end { running.killGroup() }
                if end != .exited(status: 0) {
                    logger.warning("The stop script \(command) failed: \(end). What is left is killed.")
                }
            } catch {
                logger.warning("\(error) What is left is killed.")
            }
        }
        report.killed = try group.processes().count
        report.left = try group.kill(milliseconds: killMilliseconds)
        return report
    }

    /// Kills everything at once, without the stop script. May be called from any thread.
    /// - Returns: processes that are left after the time, inside the kernel; empty when it is certainly stopped.
    @discardableResult
    public func kill(milliseconds: Int = 5000) throws(TakeoverError) -> [Int32] {
        _ = advance()
        return try group.kill(milliseconds: milliseconds)
    }

    /// Stops all its processes where they are; checks pause. See `ControlGroup.freeze`.
    @discardableResult
    public func freeze(milliseconds: Int = 1000) throws(TakeoverError) -> Bool {
        try group.freeze(milliseconds: milliseconds)
    }

    /// Lets it go on.
    public func thaw() throws(TakeoverError) { try group.thaw() }

    /// Whether a process of the application exists.
    public var isPopulated: Bool { get throws(TakeoverError) { try !group.processes().isEmpty } }

    /// Runs the checker at its interval, on a thread of its own, until the application is stopped, killed or started anew.
    ///
    /// - Parameter onFailure: called once, on that thread, with a sentence, after so many failures in a row as the settings
    ///   say; no check runs after that. Checks do not run, and do not count, while the application is frozen.
    /// - Throws: when there is no thread to give.
    public func startChecking(onFailure: @escaping @Sendable (String) -> Void) throws(TakeoverError) {
        guard let command = settings.check else { return }
        let mine = generation.load(ordering: .sequentiallyConsistent)
        checked.store(mine, ordering: .sequentiallyConsistent)
        let launched = launchThread("checker") { [self] in
            var failures = 0
            while pause(milliseconds: settings.checkIntervalMilliseconds, mine) {
                if group.isFrozen { continue }
                guard let problem = check(command, mine) else {
                    failures = 0
                    continue
                }
                // A check that was frozen in its middle has failed for no fault of the application's.
                if group.isFrozen || !mayCheck(mine) { continue }
                // Nor has one over an address that went a moment before the application stood still.
                if failures + 1 >= settings.checkFailuresMaximum {
                    guard pause(milliseconds: Application.freezeIsLateMilliseconds, mine) else { return }
                    if group.isFrozen { continue }
                }
                failures += 1
                logger.warning("Check \(failures) of \(settings.checkFailuresMaximum) failed: \(problem)")
                if failures >= settings.checkFailuresMaximum {
                    stopChecking()
                    onFailure("\(failures) checks in a row failed: \(problem)")
                    return
                }
            }
        }
        guard launched else {
            throw TakeoverError("check the application", code: EAGAIN, remedy: "Raise the limit of threads")
        }
    }

    /// A freeze that belongs to the same loss of the lease as a check that failed has begun by then.
    private static let freezeIsLateMilliseconds = 500

    /// Ends the checks; one that is under way is not waited for.
    public func stopChecking() { checked.store(0, ordering: .sequentiallyConsistent) }

    private func mayCheck(_ mine: UInt64) -> Bool {
        checked.load(ordering: .sequentiallyConsistent) == mine
            && generation.load(ordering: .sequentiallyConsistent) == mine
    }

    /// Sleeps in short pieces; false when the checks have ended.
    private func pause(milliseconds: Int, _ mine: UInt64) -> Bool {
        let end = bootNanoseconds() + UInt64(milliseconds) * 1_000_000
        while mayCheck(mine) {
            let now = bootNanoseconds()
            if now >= end { return true }
            sleepMilliseconds(min(100, Int((end - now) / 1_000_000) + 1))
        }
        return false
    }

    /// One check: nil when all is well, else what is wrong.
    private func check(_ command: ApplicationCommand, _ mine: UInt64) -> String? {
        do throws(TakeoverError) {
            let running = try spawn(command, mine)
            let end = running.wait(milliseconds: settings.checkTimeoutMilliseconds)
            if end == .exited(status: 0) { return nil }
            let output = running.output
            if case .timedOut = end { running.killGroup() }
            let lines = output.lastLines(milliseconds: 100)
            return "\(command): \(end)\(lines.isEmpty ? "" : "; it said: \(lines)")"
        } catch {
            return "\(error)"
        }
    }
}
