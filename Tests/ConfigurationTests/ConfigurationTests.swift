import Foundation
import Testing

@testable import Configuration

let sound = """
    name = "ledger"
    path = "/srv/ledger"
    backing = "/var/lib/ledger-files"

    [[node]]
    name = "alpha"
    address = "10.0.9.11:7400"
    interface = "eth0"

    [[node]]
    name = "beta"
    address = "[fd00::12]:7400"
    interface = "ens3"

    [witness]
    address = "10.0.9.13:7401"

    [[address]]
    address = "10.0.9.1/24"

    [[address]]
    address = "fd00:9::1/64"
    interface = { alpha = "eth1", beta = "ens4" }

    [application]
    start = "/etc/lockstep/start now"
    stop = ["/etc/lockstep/stop", "the server"]

    [journal]
    sizeMebibytes = 64
    engine = "libaio"
    spinMicroseconds = 50

    [timing]
    leaseMilliseconds = 2000
    loneRestartSeconds = "wait"
    """

/// The error of `sound` with one text replaced by another.
func refusal(_ old: String, _ new: String, sourceLocation: SourceLocation = #_sourceLocation) -> ConfigurationError? {
    guard let range = sound.firstRange(of: old) else {
        Issue.record("the sound text lacks \(old)", sourceLocation: sourceLocation)
        return nil
    }
    do {
        _ = try MirrorConfiguration.parse(sound.replacingCharacters(in: range, with: new), file: "ledger.toml")
        Issue.record("accepted: \(new)", sourceLocation: sourceLocation)
        return nil
    } catch {
        return error
    }
}

extension String {
    func replacingCharacters(in range: Range<String.Index>, with new: String) -> String {
        String(self[..<range.lowerBound]) + new + String(self[range.upperBound...])
    }
    func firstRange(of text: String) -> Range<String.Index>? {
        var start = startIndex
        while start < endIndex {
            if self[start...].hasPrefix(text) { return start..<index(start, offsetBy: text.count) }
            start = index(after: start)
        }
        return nil
    }
}

@Suite struct ReadingTests {
    @Test func everyKeyIsReadAndTheRestHasItsDefault() throws {
        let read = try MirrorConfiguration.parse(sound, file: "ledger.toml")
        #expect(read.name == "ledger" && read.path == "/srv/ledger" && read.backing == "/var/lib/ledger-files")
        #expect(read.state == "/var/lib/lockstep/ledger" && read.mode == .balanced)
        #expect(read.nodes.map(\.name) == ["alpha", "beta"] && read.nodes.map(\.id) == [.a, .b])
        #expect(read.nodes[1].endpoint.description == "[fd00::12]:7400")
        #expect(read.witness.port == 7401 && read.witness.host == "10.0.9.13")
        #expect(read.addresses.map(\.text) == ["10.0.9.1/24", "fd00:9::1/64"])
        #expect(read.addresses[0].interfaces == ["eth0", "ens3"])
        #expect(read.addresses[1].interface(on: .b) == "ens4")
        let application = try #require(read.application)
        #expect(application.start == .init(executable: "/etc/lockstep/start", arguments: ["now"]))
        #expect(application.stop == .init(executable: "/etc/lockstep/stop", arguments: ["the server"]))
        #expect(application.check == nil && application.startTimeoutSeconds == 60)
        #expect(read.journal == .init(sizeMebibytes: 64, engine: .libaio, spinMicroseconds: 50))
        #expect(read.timing.leaseMilliseconds == 2000 && read.timing.grantMilliseconds == 4000)
        #expect(read.timing.loneRestart == .wait && read.logLevel == .info)
    }

    @Test func aHostNameWithItsDomainFindsTheNode() throws {
        let read = try MirrorConfiguration.parse(sound, file: "ledger.toml")
        #expect(try read.node(named: "beta.example.org").id == .b)
        let error = #expect(throws: ConfigurationError.self) { try read.node(named: "gamma") }
        #expect(error?.remedy.contains("--node alpha") == true)
    }

    @Test func theShippedExamplesAreSound() throws {
        let root = #filePath.split(separator: "/").dropLast(3).joined(separator: "/")
        let mirror = try MirrorConfiguration.load("/\(root)/etc/ledger.toml")
        #expect(mirror.name == "ledger" && mirror.addresses.count == 2)
        let witness = try WitnessConfiguration.load("/\(root)/etc/witness.toml")
        #expect(witness.listen.port == mirror.witness.port)
        #expect(witness.longestGrantMilliseconds == mirror.timing.grantMilliseconds)
    }

    @Test func aWitnessIsToldItsLongestGrant() throws {
        #expect(try WitnessConfiguration.parse("", file: "witness.toml").longestGrantMilliseconds == 4000)
        let longer = "longestGrantMilliseconds = 9000"
        #expect(try WitnessConfiguration.parse(longer, file: "witness.toml").longestGrantMilliseconds == 9000)
        let error = #expect(throws: ConfigurationError.self) {
            try WitnessConfiguration.parse("longestGrantMilliseconds = 9", file: "witness.toml")
        }
        #expect(error?.description.contains("longestGrantMilliseconds: 9 is below the minimum of 2000") == true)
    }

    @Test func aMissingFileIsNamed() {
        let error = #expect(throws: ConfigurationError.self) { try MirrorConfiguration.load("/nowhere/ledger.toml") }
        #expect(error?.description.hasPrefix("/nowhere/ledger.toml: cannot open it: No such file") == true)
    }
}

/// One line for each mistake: what is written instead of what, the line and key that must be named, and a word of the
/// message or remedy.
struct Mistake: CustomTestStringConvertible, Sendable {
    var old: String, new: String, line: Int, key: String, says: String
    var testDescription: String { new }
    init(_ old: String, _ new: String, _ line: Int, _ key: String, _ says: String) {
        (self.old, self.new, self.line, self.key, self.says) = (old, new, line, key, says)
    }
}

@Suite struct RefusalTests {
    static let mistakes: [Mistake] = [
        Mistake("sizeMebibytes = 64", "sizeMebibyte = 64", 30, "journal.sizeMebibyte", "Did you mean sizeMebibytes"),
        Mistake("name = \"ledger\"", "name = \"ledger\"\ncolour = 3", 2, "colour", "unknown key"),
        Mistake("interface = \"eth0\"", "mac = 1", 8, "node[0].mac", "unknown key"),
        Mistake("beta = \"ens4\"", "gamma = \"ens4\"", 23, "address[1].interface.gamma", "unknown key"),
        Mistake("sizeMebibytes = 64", "sizeMebibytes = \"64\"", 30, "journal.sizeMebibytes", "a string where"),
        Mistake("sizeMebibytes = 64", "sizeMebibytes = 63", 30, "journal.sizeMebibytes", "minimum of 64"),
        Mistake("spinMicroseconds = 50", "spinMicroseconds = 1001", 32, "journal.spinMicroseconds", "maximum of 1000"),
        Mistake("\"libaio\"", "\"aio\"", 31, "journal.engine", "\"io_uring\""),
        Mistake("name = \"ledger\"\n", "", 1, "name", "missing"),
        Mistake("name = \"ledger\"", "name = \"../ledger\"", 1, "name", "cannot be a name"),
        Mistake("path = \"/srv/ledger\"", "path = \"srv/ledger\"", 2, "path", "relative"),
        Mistake("path = \"/srv/ledger\"", "path = \"/srv/../ledger\"", 2, "path", ".."),
        Mistake("path = \"/srv/ledger\"", "path = 7", 2, "path", "an integer where a string"),
        Mistake("\"/var/lib/ledger-files\"", "\"/srv/ledger/files\"", 3, "backing", "inside path"),
        Mistake("\"/var/lib/ledger-files\"", "\"/srv\"", 2, "path", "inside backing"),
        Mistake("\"/var/lib/ledger-files\"", "\"/srv/ledger/\"", 3, "backing", "same directory"),
        Mistake(
            "name = \"ledger\"", "name = \"ledger\"\nstate = \"/srv/ledger/state\"", 2, "state", "inside path"),
        Mistake("name = \"ledger\"", "name = \"ledger\"\nstate = \"/srv\"", 3, "path", "inside state"),
        Mistake("name = \"ledger\"", "name = \"ledger\"\nstate = \"/var/lib\"", 4, "backing", "inside state"),
        Mistake("name = \"beta\"", "name = \"alpha\"", 11, "node[1].name", "both nodes"),
        Mistake("[fd00::12]:7400", "10.0.9.11:7402", 12, "node[1].address", "other node's"),
        Mistake("10.0.9.11:7400", "10.0.9.11", 7, "node[0].address", "address with a port"),
        Mistake("10.0.9.11:7400", "alpha.example.org:7400", 7, "node[0].address", "names are not looked up"),
        Mistake("10.0.9.11:7400", "0.0.0.0:7400", 7, "node[0].address", "one machine"),
        Mistake("10.0.9.13:7401", "10.0.9.11:7401", 16, "witness.address", "third room"),
        Mistake("[witness]\naddress = \"10.0.9.13:7401\"", "", 1, "witness", "missing"),
        Mistake("10.0.9.1/24", "10.0.9.1/33", 19, "address[0].address", "prefix"),
        Mistake("10.0.9.1/24", "10.0.9.1", 19, "address[0].address", "prefix"),
        Mistake("10.0.9.1/24", "10.0.9.11/24", 19, "address[0].address", "node \"alpha\""),
        Mistake("fd00:9::1/64", "10.0.9.1/24", 22, "address[1].address", "twice"),
        Mistake("\"eth0\"", "\"an-interface-too-long\"", 8, "node[0].interface", "ip link"),
        Mistake("interface = \"ens3\"", "", 18, "address[0].interface", "node \"beta\""),
        Mistake("/etc/lockstep/start now", "/etc/lockstep/start > log", 26, "application.start", "shell"),
        Mistake("/etc/lockstep/start now", "start now", 26, "application.start", "relative"),
        Mistake("\"the server\"]", "3]", 27, "application.stop", "quotation marks"),
        Mistake(
            "leaseMilliseconds = 2000", "leaseMilliseconds = 3000", 34, "timing.grantMilliseconds", "hold the address"),
        Mistake(
            "leaseMilliseconds = 2000", "renewMilliseconds = 1100", 35, "timing.renewMilliseconds", "whole seconds"),
        Mistake("leaseMilliseconds = 2000", "renewMilliseconds = 700", 35, "timing.renewMilliseconds", "a third"),
        Mistake("\"wait\"", "\"never\"", 36, "timing.loneRestartSeconds", "\"wait\""),
        Mistake("\"wait\"", "0", 36, "timing.loneRestartSeconds", "minimum of 1"),
        Mistake("[journal]", "[journal]\nsizeMebibytes = 99", 31, "", "TOML"),
        Mistake("[journal]", "[journal", 29, "", "TOML"),
    ]

    @Test(arguments: mistakes) func aMistakeIsRefusedWithLineKeyAndRemedy(_ mistake: Mistake) throws {
        let error = try #require(refusal(mistake.old, mistake.new))
        #expect(error.line == mistake.line, "\(error)")
        #expect((error.key ?? "") == mistake.key, "\(error)")
        #expect(error.description.contains(mistake.says), "\(error)")
        #expect(!error.remedy.isEmpty && error.description.hasPrefix("ledger.toml:\(mistake.line): "))
    }

    /// Together they are the path of a socket, which the kernel limits.
    @Test func namesThatAreTooLongTogetherAreRefused() throws {
        let mirror = String(repeating: "m", count: 40)
        let text = sound.replacingOccurrences(of: "name = \"ledger\"", with: "name = \"\(mirror)\"")
        func read(_ name: String) throws -> MirrorConfiguration {
            try .parse(
                text.replacingOccurrences(of: "name = \"beta\"", with: "name = \"\(name)\"")
                    .replacingOccurrences(of: "beta = \"ens4\"", with: "\(name) = \"ens4\""), file: "f")
        }
        #expect(try read(String(repeating: "b", count: 47)).nodes[1].name.count == 47)
        let error = #expect(throws: ConfigurationError.self) { try read(String(repeating: "b", count: 48)) }
        #expect(error?.line == 11 && error?.key == "node[1].name" && error?.problem.contains("too long") == true)
    }

    @Test func onlyOneNodeIsRefused() throws {
        let error = try #require(
            refusal("[[node]]\nname = \"beta\"\naddress = \"[fd00::12]:7400\"\ninterface = \"ens3\"", ""))
        #expect(error.key == "node" && error.line == 5 && error.problem.hasPrefix("1 nodes"))
    }

    @Test func linesAreRightAfterValuesOfSeveralLines() throws {
        let text = sound + "\n\n[log]\nlevel = \"loud\"\n"
        let long = text.replacingCharacters(
            in: try #require(text.firstRange(of: "[\"/etc/lockstep/stop\", \"the server\"]")),
            with: "[\n  \"/etc/lockstep/stop\", # ] not the end\n  '''name = \"no key\"\n''',\n]")
        let error = #expect(throws: ConfigurationError.self) { try MirrorConfiguration.parse(long, file: "f") }
        #expect(error?.line == 43 && error?.key == "log.level")
    }

    @Test func linesThatEndAsInWindowsCountToo() throws {
        let text = sound.replacingOccurrences(of: "10.0.9.1/24", with: "10.0.9.1/33")
            .replacingOccurrences(of: "\n", with: "\r\n")
        let error = #expect(throws: ConfigurationError.self) { try MirrorConfiguration.parse(text, file: "f") }
        #expect(error?.line == 19 && error?.key == "address[0].address", "\(String(describing: error))")
    }
}

@Suite struct DocumentationTests {
    /// docs/configuration.md, from the root of the package.
    static func page() throws -> String {
        let root = "/" + #filePath.split(separator: "/").dropLast(3).joined(separator: "/")
        return try #require(readText(root + "/docs/configuration.md"))
    }

    @Test func theDocumentedExampleIsSoundAndShowsTheDefaults() throws {
        let page = try Self.page()
        let start = try #require(page.firstRange(of: "```toml\n")).upperBound
        let rest = String(page[start...])
        let example = String(rest[..<(try #require(rest.firstRange(of: "```"))).lowerBound])
        let read = try MirrorConfiguration.parse(example, file: "docs/configuration.md")
        let bare = try MirrorConfiguration.parse(
            """
            name = "ledger"
            path = "/srv/ledger"
            backing = "/var/lib/lockstep-files/ledger"
            node = [{ name = "alpha", address = "10.0.9.11:7400" }, { name = "beta", address = "10.0.9.12:7400" }]
            witness = { address = "10.0.9.13:7401" }
            application = { start = "/bin/true" }
            """, file: "bare")
        #expect(read.state == bare.state && read.mode == bare.mode && read.logLevel == bare.logLevel)
        #expect(read.journal == bare.journal && read.timing == bare.timing && read.resync == bare.resync)
        #expect(read.verify.at == WeeklyTime("Sun 03:00") && bare.verify.at == nil)
        #expect(read.verify.rateMebibytesPerSecond == bare.verify.rateMebibytesPerSecond)
        let (written, silent) = (try #require(read.application), try #require(bare.application))
        #expect(written.startTimeoutSeconds == silent.startTimeoutSeconds)
        #expect(written.stopTimeoutSeconds == silent.stopTimeoutSeconds)
        #expect(written.checkIntervalSeconds == silent.checkIntervalSeconds)
        #expect(written.checkTimeoutSeconds == silent.checkTimeoutSeconds)
        #expect(written.checkFailuresMaximum == silent.checkFailuresMaximum)
    }
}

@Suite struct WeeklyTimeTests {
    @Test func itIsReadStrictly() {
        #expect(WeeklyTime("Sun 03:05") == WeeklyTime("sun 03:05") && WeeklyTime("Sun 03:05")?.weekday == 1)
        #expect(WeeklyTime("23:59")?.weekday == nil && WeeklyTime("23:59")?.hour == 23)
        for bad in ["", "3:00", "24:00", "03:60", "Sunday 03:00", "Sun", "Sun 03:00 x", "03:00:00", "-1:00", "03 00"] {
            #expect(WeeklyTime(bad) == nil, "\(bad)")
        }
    }

    @Test func aTimeIsDueOnceAndNotForEver() throws {
        var calendar = Calendar(identifier: .gregorian)
        calendar.timeZone = try #require(TimeZone(identifier: "UTC"))
        // Sunday, 2026-11-22 03:00 UTC.
        let sunday = Date(timeIntervalSince1970: 1_795_316_400)
        let time = try #require(WeeklyTime("Sun 03:00"))
        func isDue(_ last: TimeInterval, _ now: TimeInterval) -> Bool {
            time.isDue(since: sunday + last, now: sunday + now, calendar: calendar)
        }
        #expect(!isDue(-3600, -1))
        #expect(isDue(-3600, 0) && isDue(-3600, 60) && isDue(-3600, 23 * 3600))
        #expect(!isDue(10, 60), "has begun already")
        #expect(!isDue(-3600, 25 * 3600), "too late: the next time")
        #expect(isDue(10, 7 * 86_400 + 60))
        let daily = try #require(WeeklyTime("03:00"))
        #expect(daily.isDue(since: sunday + 10, now: sunday + 86_400 + 60, calendar: calendar))
    }
}
