import Configuration
import Dispatch
import Format
import Fuse
import Logging
import Ring
import Synchronization
import Takeover

/// The virtual addresses and the application on this node: raised when the directory is open and the lease runs, gone
/// or frozen when not. Orders come from the control thread; scripts run on a thread of their own, in order.
///
/// If the process dies anywhere here, the kernel drops the addresses with their lifetime, and the next start kills what
/// is left in the control group before it does anything else (`removeLeftovers`).
final class Service: Sendable {
    enum ApplicationState: String, Sendable, Codable {
        case none, starting, running, failed, stopping, stopped, frozen
    }

    let addresses: AddressManager
    let announcer: Announcer
    let application: Application?
    private let scripts: WorkerPool
    /// Killing must not wait behind a start script that hangs.
    private let killer: WorkerPool
    /// Grows with every kill that is asked for: a start that was asked for before is called off.
    private let kills = Atomic<UInt64>(0)
    /// Whether the application is to stand still, also one that is only about to be born.
    private let isFrozen = Atomic<Bool>(false)
    private let control: ReactorHandle
    private let logger: Logger
    /// Why the addresses could not be raised the last time; said once, not with each renewal.
    private let addressComplaint = Mutex("")
    private let onState: @Sendable (ApplicationState, String) -> Void
    private let onCheckFailed: @Sendable (String) -> Void

    init(
        configuration: MirrorConfiguration, node: NodeID, control: ReactorHandle, logger: Logger,
        onState: @escaping @Sendable (ApplicationState, String) -> Void,
        onCheckFailed: @escaping @Sendable (String) -> Void
    ) throws {
        let own = try Service.addresses(configuration, node)
        addresses = try AddressManager(addresses: own, logger: logger)
        announcer = try Announcer(addresses: own, logger: logger)
        application = try configuration.application.map { application in
            var settings = ApplicationSettings(
                mirror: configuration.name, node: configuration.node(node).name, path: configuration.path,
                addresses: configuration.addresses.map { "\($0.address)" },
                start: ApplicationCommand(application.start.executable, application.start.arguments))
            settings.stop = application.stop.map { ApplicationCommand($0.executable, $0.arguments) }
            settings.check = application.check.map { ApplicationCommand($0.executable, $0.arguments) }
            settings.startTimeoutMilliseconds = application.startTimeoutSeconds * 1000
            settings.stopTimeoutMilliseconds = application.stopTimeoutSeconds * 1000
            settings.checkIntervalMilliseconds = application.checkIntervalSeconds * 1000
            settings.checkTimeoutMilliseconds = application.checkTimeoutSeconds * 1000
            settings.checkFailuresMaximum = application.checkFailuresMaximum
            settings.user = application.user
            let group = try ControlGroup(name: Service.groupName(configuration, node), logger: logger)
            return Application(settings: settings, group: group, logger: logger)
        }
        scripts = try WorkerPool(threads: 1, name: "scripts")
        killer = try WorkerPool(threads: 1, name: "killer")
        self.control = control
        self.logger = logger
        self.onState = onState
        self.onCheckFailed = onCheckFailed
    }

    /// Joined by what neither name can have: of mirror `db`, node `x-1` and mirror `db-x`, node `1` each has its own.
    private static func groupName(_ configuration: MirrorConfiguration, _ node: NodeID) -> String {
        "\(configuration.name)@\(configuration.node(node).name)"
    }

    private static func addresses(
        _ configuration: MirrorConfiguration, _ node: NodeID
    ) throws(TakeoverError) -> [ServiceAddress] {
        try configuration.addresses.map { address throws(TakeoverError) in
            try ServiceAddress(address.text, interface: address.interface(on: node))
        }
    }

    /// Removes what an earlier life of this node left on this machine: its addresses, the processes of its application,
    /// its mount. One part that fails is logged, and leaves the others to be done.
    ///
    /// The application has lost its files and its address with its daemon, but it still runs, and so does the one in
    /// the other room by now. So this comes BEFORE all that can fail or take long in a start: a node that never gets
    /// any further must not keep it alive.
    static func removeLeftovers(_ configuration: MirrorConfiguration, node: NodeID, logger: Logger) {
        do {
            try AddressManager(addresses: addresses(configuration, node), logger: logger).removeLeftovers()
        } catch {
            logger.error("\(error)")
        }
        removeApplication(of: groupName(configuration, node), configuration, logger)
        // What an earlier build called it.
        removeApplication(of: "\(configuration.name)-\(configuration.node(node).name)", configuration, logger)
    }

    private static func removeApplication(of name: String, _ configuration: MirrorConfiguration, _ logger: Logger) {
        do {
            // Also where the configuration names no application any more.
            let group = try ControlGroup.left(name: name, logger: logger)
            do { try group?.kill(milliseconds: 0) } catch { logger.error("\(error)") }
            // Who waits in a request for the mirrored directory dies when that has gone.
            MountGuard.clear(configuration.path)
            guard let left = try group?.kill(), !left.isEmpty else { return }
            logger.error("processes of the application are stuck in the kernel and could not be killed: \(left)")
        } catch {
            logger.error("\(error)")
        }
    }

    /// Runs the start script. The addresses are the caller's (`holdAddresses`).
    func startApplication() {
        guard let application else { return }
        // Only where nothing is frozen: what was, may have been given up since, before there was an application.
        isFrozen.store(false, ordering: .sequentiallyConsistent)
        report(.starting)
        let asked = kills.load(ordering: .sequentiallyConsistent)
        scripts.submit { [self] in
            // What was to be killed before is dead before this begins; what is to be killed from here on finds the ticket
            // old, or the start under way.
            let isQuiet = DispatchSemaphore(value: 0)
            if killer.trySubmit({ isQuiet.signal() }) { isQuiet.wait() }
            let ticket = application.ticket
            guard kills.load(ordering: .sequentiallyConsistent) == asked else { return }
            // Nobody was there to be frozen. It is started when the lease is back.
            guard !isFrozen.load(ordering: .sequentiallyConsistent) else {
                return report(.failed, "the lease was lost before it was started")
            }
            do {
                guard try application.start(ticket) else { return }
                report(.running)
                if isFrozen.load(ordering: .sequentiallyConsistent) { freezeWhatIsThere(application) }
                try application.startChecking { [onCheckFailed, control] text in
                    _ = control.post { onCheckFailed(text) }
                }
            } catch {
                logger.error("\(error)")
                report(.failed, "\(error)")
            }
        }
    }

    /// Runs the stop script, kills what is left, then `done` on the control thread.
    func stopApplication(_ done: @escaping @Sendable (_ isStopped: Bool) -> Void) {
        guard let application else {
            _ = control.post { done(true) }
            return
        }
        report(.stopping)
        scripts.submit { [self] in
            var isStopped = false
            do {
                let end = try application.stop()
                isStopped = end.left.isEmpty
                report(isStopped ? .stopped : .failed, isStopped ? "" : "processes \(end.left) cannot be killed")
            } catch {
                logger.error("\(error)")
                report(.failed, "\(error)")
            }
            _ = control.post { [isStopped] in done(isStopped) }
        }
    }

    /// Kills the application at once, whatever its scripts are doing.
    func killApplication() {
        guard let application else { return }
        kills.add(1, ordering: .sequentiallyConsistent)
        isFrozen.store(false, ordering: .sequentiallyConsistent)
        killer.submit { [self] in
            do {
                let left = try application.kill()
                report(.stopped, left.isEmpty ? "" : "processes \(left) are stuck in the kernel")
            } catch {
                logger.error("\(error)")
                report(.failed, "\(error)")
            }
        }
    }

    func freezeApplication() {
        guard let application else { return }
        isFrozen.store(true, ordering: .sequentiallyConsistent)
        freezeWhatIsThere(application)
    }

    /// The same on the calling thread, which waits for no other: for the guard.
    /// - Parameters:
    ///   - isNews: not tried once more.
    ///   - noted: before anybody hears of it.
    func freezeApplicationHere(isNews: Bool, _ noted: () -> Void) {
        guard let application else { return noted() }
        isFrozen.store(true, ordering: .sequentiallyConsistent)
        let hasFrozen = freeze(application, milliseconds: 200, isNews: isNews)
        noted()
        if hasFrozen { report(.frozen) }
    }

    private func freezeWhatIsThere(_ application: Application) {
        killer.submit { [self] in if freeze(application, milliseconds: 1000) { report(.frozen) } }
    }

    /// - Returns: whether there was something to freeze.
    private func freeze(_ application: Application, milliseconds: Int, isNews: Bool = true) -> Bool {
        do {
            guard isFrozen.load(ordering: .sequentiallyConsistent), try application.isPopulated else { return false }
            if try !application.freeze(milliseconds: milliseconds), isNews {
                logger.warning("the application is not frozen completely yet")
            }
            return true
        } catch {
            if isNews { logger.error("\(error)") }
            return false
        }
    }

    func thawApplication() {
        guard let application else { return }
        isFrozen.store(false, ordering: .sequentiallyConsistent)
        killer.submit { [self] in
            do {
                // It waited behind another job here, and the lease is over again.
                guard !isFrozen.load(ordering: .sequentiallyConsistent) else { return }
                try application.thaw()
                if try application.isPopulated { report(.running) }
            } catch {
                logger.error("\(error)")
            }
        }
    }

    /// Raises the addresses, or renews them, until the end of the lease. Control thread; one system call when they are up.
    /// - Returns: whether they are held now.
    func holdAddresses(until leaseEnd: UInt64) -> Bool {
        do {
            switch try addresses.refresh(until: leaseEnd) {
            case .tooLate: return false
            case .lowered:
                try addresses.raise(until: leaseEnd)
                announcer.start()
                logger.notice("virtual addresses are up: \(addresses.addresses.map(\.text).joined(separator: ", "))")
            default: break
            }
            addressComplaint.withLock { $0 = "" }
            return true
        } catch {
            let text = "\(error)"
            let isNews = addressComplaint.withLock { complaint in
                defer { complaint = text }
                return complaint != text
            }
            if isNews { logger.error("\(text)") }
            return false
        }
    }

    func dropAddresses() {
        announcer.cancel()
        do { try addresses.lower() } catch { logger.error("\(error)") }
    }

    func shutdown() {
        scripts.shutdown()
        killer.shutdown()
    }

    private func report(_ state: ApplicationState, _ text: String = "") {
        _ = control.post { [onState] in onState(state, text) }
    }
}
