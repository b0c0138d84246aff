extension MirrorConfiguration {
    static func readApplication(_ root: inout Section) throws(ConfigurationError) -> Application? {
        guard var section = try root.section("application") else { return nil }
        guard let start = try readCommand(&section, "start") else {
            throw section.missing("start", example: "\"/etc/lockstep/start\"")
        }
        let application = Application(
            start: start,
            stop: try readCommand(&section, "stop"),
            check: try readCommand(&section, "check"),
            startTimeoutSeconds: try section.integer(
                "startTimeoutSeconds", default: 60, in: 1...3600, unit: "seconds"),
            stopTimeoutSeconds: try section.integer(
                "stopTimeoutSeconds", default: 30, in: 1...3600, unit: "seconds"),
            checkIntervalSeconds: try section.integer(
                "checkIntervalSeconds", default: 10, in: 1...3600, unit: "seconds"),
            checkTimeoutSeconds: try section.integer(
                "checkTimeoutSeconds", default: 10, in: 1...3600, unit: "seconds"),
            checkFailuresMaximum: try section.integer(
                "checkFailuresMaximum", default: 3, in: 1...100, unit: "failures"),
            user: try section.string("user", example: "postgres"))
        try section.finish()
        return application
    }

    /// A command is an array of strings, or one string that is split at blanks. No shell reads it, so that a string with
    /// characters that only a shell understands is refused instead of being taken literally.
    private static func readCommand(_ section: inout Section, _ key: String) throws(ConfigurationError) -> Command? {
        guard let node = section.node(key) else { return nil }
        var words: [String] = []
        switch node {
        case .string(let text):
            if let special = text.first(where: { "'\"\\|&;<>$`*?(){}[]~#".contains($0) }) {
                throw section.failure(
                    key, "\(special) has a meaning only to a shell, and no shell reads this",
                    "Write an array, \(key) = [\"/path/of/script\", \"argument\"], or put the line into a script")
            }
            words = text.split(whereSeparator: { $0 == " " || $0 == "\t" }).map(String.init)
        case .array(let items):
            for item in items {
                guard case .string(let word) = item else {
                    throw section.failure(key, "\(item.kind) among the words", "Put each word into quotation marks")
                }
                words.append(word)
            }
        default:
            throw section.failure(
                key, "\(node.kind) where a command is needed", "Write \(key) = [\"/path/of/script\", \"argument\"]")
        }
        guard let program = words.first, !words.contains(where: { $0.utf8.contains(0) }), words.count <= 256 else {
            throw section.failure(key, "no command", "Write \(key) = [\"/path/of/script\", \"argument\"]")
        }
        return Command(executable: try section.checkedPath(key, program), arguments: Array(words.dropFirst()))
    }

    static func readJournal(_ root: inout Section) throws(ConfigurationError) -> Journal {
        guard var section = try root.section("journal") else { return Journal(sizeMebibytes: 1024, engine: .auto) }
        let journal = Journal(
            sizeMebibytes: try section.integer(
                "sizeMebibytes", default: 1024, in: journalSizeMebibytesMinimum...(1 << 20), unit: "MiB"),
            engine: try section.choice("engine", default: .auto),
            spinMicroseconds: try section.integer(
                "spinMicroseconds", default: Journal.spinMicrosecondsDefault, in: 0...Journal.spinMicrosecondsMaximum,
                unit: "us"))
        try section.finish()
        return journal
    }

    static let rateMebibytesMaximum = 1 << 20

    static func readVerify(_ root: inout Section) throws(ConfigurationError) -> Verify {
        var section = try root.section("verify") ?? Section(root.document, path: "verify", entries: [:])
        var at: WeeklyTime?
        if let text = try section.string("at", example: "Sun 03:00") {
            guard let time = WeeklyTime(text) else {
                throw section.failure(
                    "at", "\"\(text)\" is not a time", "Write \"Sun 03:00\" for once a week, or \"03:00\" for every day"
                )
            }
            at = time
        }
        let rate = try section.integer(
            "rateMebibytesPerSecond", default: 64, in: 0...rateMebibytesMaximum, unit: "MiB")
        try section.finish()
        return Verify(at: at, rateMebibytesPerSecond: rate == 0 ? nil : rate)
    }

    static func readResync(_ root: inout Section) throws(ConfigurationError) -> Resync {
        var section = try root.section("resync") ?? Section(root.document, path: "resync", entries: [:])
        let rate = try section.integer("rateMebibytesPerSecond", default: 0, in: 0...rateMebibytesMaximum, unit: "MiB")
        try section.finish()
        return Resync(rateMebibytesPerSecond: rate == 0 ? nil : rate)
    }

    /// What a witness gives that is not told otherwise, and what a node asks for.
    static let grantMillisecondsDefault = 4000
    static let grantMillisecondsRange = 2000...1_200_000

    static func readTiming(_ root: inout Section) throws(ConfigurationError) -> Timing {
        var section = try root.section("timing") ?? Section(root.document, path: "timing", entries: [:])
        let timing = Timing(
            leaseMilliseconds: try section.integer(
                "leaseMilliseconds", default: 2000, in: 1200...600_000, unit: "milliseconds"),
            renewMilliseconds: try section.integer(
                "renewMilliseconds", default: 500, in: 50...60_000, unit: "milliseconds"),
            grantMilliseconds: try section.integer(
                "grantMilliseconds", default: grantMillisecondsDefault, in: grantMillisecondsRange,
                unit: "milliseconds"),
            peerLossMilliseconds: try section.integer(
                "peerLossMilliseconds", default: 1000, in: 100...600_000, unit: "milliseconds"),
            loneRestart: try readLoneRestart(&section))
        try section.finish()
        try checkRelations(timing, section)
        return timing
    }

    private static func readLoneRestart(_ section: inout Section) throws(ConfigurationError) -> LoneRestart {
        switch section.node("loneRestartSeconds") {
        case nil: return .serveAfter(seconds: 60)
        case .string("wait"): return .wait
        case .integer(let seconds):
            try section.check("loneRestartSeconds", seconds, in: 1...86_400, unit: "seconds")
            return .serveAfter(seconds: seconds)
        case .some(let other):
            throw section.failure(
                "loneRestartSeconds", "\(other.kind) where seconds or \"wait\" is needed",
                "Write loneRestartSeconds = 60 or loneRestartSeconds = \"wait\"")
        }
    }

    /// The times that keep two nodes from serving at once.
    private static func checkRelations(_ timing: Timing, _ section: Section) throws(ConfigurationError) {
        let drift = timing.grantMilliseconds * clockDriftPercent / 100
        let needed = timing.leaseMilliseconds + kernelSlackMilliseconds + drift
        // The holder may serve for its lease; the kernel may keep its address for the slack beyond it; its clock may run
        // slower than the voter's. Only after all three may a voter help another node.
        guard needed <= timing.grantMilliseconds else {
            throw section.failure(
                "grantMilliseconds",
                "lease \(timing.leaseMilliseconds) + kernel slack \(kernelSlackMilliseconds) + clock drift \(drift) = "
                    + "\(needed) ms is longer than the grant of \(timing.grantMilliseconds) ms, so that two nodes could "
                    + "hold the address at once",
                "Raise grantMilliseconds to \(needed + drift / 10 + 1) or lower leaseMilliseconds")
        }
        guard timing.renewMilliseconds + addressLifetimeMilliseconds <= timing.leaseMilliseconds else {
            throw section.failure(
                "renewMilliseconds",
                "\(timing.renewMilliseconds) ms leaves less than \(addressLifetimeMilliseconds) ms of the lease "
                    + "(\(timing.leaseMilliseconds) ms) when it is renewed, and the kernel counts an address's life in "
                    + "whole seconds",
                "Lower renewMilliseconds to at most \(timing.leaseMilliseconds - addressLifetimeMilliseconds)")
        }
        guard timing.renewMilliseconds * 3 <= timing.leaseMilliseconds else {
            throw section.failure(
                "renewMilliseconds",
                "\(timing.renewMilliseconds) ms is more than a third of the lease (\(timing.leaseMilliseconds) ms), so that "
                    + "one lost message could freeze the service",
                "Lower renewMilliseconds to at most \(timing.leaseMilliseconds / 3)")
        }
    }

    static func readLogLevel(_ root: inout Section) throws(ConfigurationError) -> LogLevel {
        guard var section = try root.section("log") else { return .info }
        let level = try section.choice("level", default: LogLevel.info)
        try section.finish()
        return level
    }
}

/// The configuration of a witness. It serves many mirrors and knows none of them by name.
public struct WitnessConfiguration: Sendable, Equatable {
    public var file: String
    /// Where it listens; the address may be `0.0.0.0` (all IPv4) or `[::]` (all IPv6).
    public var listen: Endpoint
    /// Its durable decisions.
    public var state: String
    /// The longest grant that it gives; after a restart it promises nothing for as long.
    public var longestGrantMilliseconds: Int
    public var logLevel: MirrorConfiguration.LogLevel

    /// Reads and checks the file at `path`.
    public static func load(_ path: String) throws(ConfigurationError) -> WitnessConfiguration {
        try WitnessConfiguration(document: Document(path: path))
    }

    /// Reads and checks a text; `file` is only for messages.
    public static func parse(_ text: String, file: String) throws(ConfigurationError) -> WitnessConfiguration {
        try WitnessConfiguration(document: Document(text: text, file: file))
    }

    private init(document: Document) throws(ConfigurationError) {
        var root = Section(document)
        file = document.file
        let text = try root.string("listen", example: "0.0.0.0:7401") ?? "0.0.0.0:7401"
        guard let endpoint = Endpoint(text), !endpoint.address.isMulticast else {
            throw root.failure(
                "listen", "\"\(text)\" is not an address with a port", "Write 0.0.0.0:7401, [::]:7401 or one address")
        }
        listen = endpoint
        state = try root.absolutePath("state", example: "/var/lib/lockstep-witness") ?? "/var/lib/lockstep-witness"
        longestGrantMilliseconds = try root.integer(
            "longestGrantMilliseconds", default: MirrorConfiguration.grantMillisecondsDefault,
            in: MirrorConfiguration.grantMillisecondsRange, unit: "milliseconds")
        logLevel = try MirrorConfiguration.readLogLevel(&root)
        try root.finish()
    }
}
