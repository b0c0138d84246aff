import Foundation
import Testing

@testable import Configuration

/// A place on this machine where a mirror would work, to be spoilt by one thing at a time.
final class Site: Sendable {
    let directory: String

    init(under parent: String = "/var/tmp") throws {
        directory = "\(parent)/lockstep-check-\(getpid())-\(UUID().uuidString.prefix(8))"
        for name in ["path", "backing"] {
            try FileManager.default.createDirectory(
                atPath: directory + "/" + name, withIntermediateDirectories: true,
                attributes: [.posixPermissions: 0o700])
        }
        for name in ["start", "stop"] { try script(name, "#!/bin/sh\ntrue\n") }
    }

    deinit { try? FileManager.default.removeItem(atPath: directory) }

    func script(_ name: String, _ text: String, mode: Int = 0o755) throws {
        try text.write(toFile: directory + "/" + name, atomically: true, encoding: .utf8)
        try FileManager.default.setAttributes([.posixPermissions: mode], ofItemAtPath: directory + "/" + name)
    }

    func text() -> String {
        """
        name = "checked"
        path = "\(directory)/path"
        backing = "\(directory)/backing"
        state = "\(directory)/state"
        [[node]]
        name = "alpha"
        address = "127.0.0.1:7400"
        [[node]]
        name = "beta"
        address = "127.0.0.1:7401"
        [witness]
        address = "127.0.0.1:7402"
        [[address]]
        address = "10.0.9.1/24"
        interface = "lo"
        [application]
        start = "\(directory)/start"
        stop = "\(directory)/stop"
        [journal]
        sizeMebibytes = 64
        """
    }

    func findings(_ replacements: (String, String)...) throws -> [Finding] {
        var text = text()
        for (old, new) in replacements {
            let range = try #require(text.firstRange(of: old))
            text = text.replacingCharacters(in: range, with: new)
        }
        return MachineCheck(try MirrorConfiguration.parse(text, file: "check.toml"), node: .a).findings()
    }
}

/// The finding about `key`, which must name the line and a remedy.
func expect(
    _ findings: [Finding], _ severity: Finding.Severity, _ key: String, _ says: String,
    sourceLocation: SourceLocation = #_sourceLocation
) {
    let match = findings.first { $0.severity == severity && $0.place.hasSuffix(key) && $0.what.contains(says) }
    #expect(match != nil, "\(findings.map(\.description))", sourceLocation: sourceLocation)
    #expect(match?.remedy.isEmpty != (severity != .note), sourceLocation: sourceLocation)
    if key.contains(".") { #expect(match?.place.hasPrefix("check.toml:") == true, sourceLocation: sourceLocation) }
}

@Suite struct MachineCheckTests {
    let site: Site
    init() throws { site = try Site() }

    @Test func aSoundMachineHasNoErrorsAndIsNotChanged() throws {
        let before = try FileManager.default.subpathsOfDirectory(atPath: site.directory)
        let findings = try site.findings()
        #expect(findings.filter { $0.severity == .error } == [])
        #expect(try FileManager.default.subpathsOfDirectory(atPath: site.directory) == before)
        #expect(!FileManager.default.fileExists(atPath: site.directory + "/state"), "the state is not made by a check")
    }

    @Test func directoriesThatAreMissingFullOrMountedAreErrors() throws {
        expect(try site.findings(("/path\"", "/nowhere\"")), .error, "path", "No such file")
        expect(try site.findings(("/backing\"", "/nowhere\"")), .error, "backing", "No such file")
        expect(try site.findings(("/backing\"", "/start\"")), .error, "backing", "not a directory")
        try site.script("path/precious", "data")
        expect(try site.findings(), .error, "path", "not empty (precious)")
        expect(try site.findings(("\(site.directory)/path\"", "/proc\"")), .error, "path", "proc is mounted there")
    }

    @Test func aFileSystemThatCannotHoldThePlainFilesIsRefusedWithTheReason() throws {
        let memory = try Site(under: "/dev/shm")
        let findings = try site.findings(("\(site.directory)/backing", "\(memory.directory)/backing"))
        expect(findings, .error, "backing", "forgets everything")
        expect(try site.findings(("\(site.directory)/state", "/dev/shm/state")), .error, "state", "forgets everything")
    }

    @Test func aLinkThatLeadsOneDirectoryIntoTheOtherIsFound() throws {
        let link = site.directory + "/link"
        try FileManager.default.createSymbolicLink(atPath: link, withDestinationPath: site.directory + "/path")
        expect(try site.findings(("/backing\"", "/link\"")), .error, "backing", "over a symbolic link")
    }

    @Test func aJournalThatDoesNotFitIsFound() throws {
        expect(try site.findings(("sizeMebibytes = 64", "sizeMebibytes = 1048576")), .error, "state", "MiB are free")
    }

    @Test func scriptsThatCannotRunAreNamed() throws {
        expect(try site.findings(("/start\"", "/none\"")), .error, "application.start", "No such file")
        try site.script("stop", "#!/bin/sh\n", mode: 0o644)
        expect(try site.findings(), .error, "application.stop", "not executable")
        try site.script("stop", "#!/no/such/shell\n")
        expect(try site.findings(), .error, "application.stop", "interpreter")
        try site.script("stop", "#!/bin/sh\r\ntrue\r\n")
        let windows = try site.findings()
        expect(windows, .error, "application.stop", "interpreter")
        #expect(windows.contains { $0.remedy.contains("UNIX line ends") })
        try site.script("stop", "true\n")
        expect(try site.findings(), .error, "application.stop", "neither a program nor a script")
        expect(try site.findings(("/stop\"", "/path\"")), .warning, "application.stop", "on the mirrored directory")
        try site.script("start", "#!/bin/sh\n", mode: 0o777)
        expect(try site.findings(), .warning, "application.start", "may change")
        let stranger = try site.findings(("[application]", "[application]\nuser = \"no-such-user\""))
        expect(stranger, .error, "application.user", "no user")
    }

    @Test func addressesAndInterfacesThatAreNotHereAreNamed() throws {
        expect(
            try site.findings(("127.0.0.1:7400", "192.0.2.7:7400")), .error, "node[0].address",
            "does not have 192.0.2.7")
        expect(
            try site.findings(("127.0.0.1:7400", "192.0.2.7:7400")), .error, "node[0].address", "that of node \"beta\"")
        expect(try site.findings(("\"lo\"", "\"eth77\"")), .error, "address[0].interface", "no interface eth77")
    }

    @Test func aGrantThatTheWitnessMustKnowOfIsSaid() throws {
        let longer = try site.findings(("[journal]", "[timing]\ngrantMilliseconds = 8000\n[journal]"))
        expect(longer, .note, "timing.grantMilliseconds", "must grant for 8000 ms")
        #expect(try site.findings().allSatisfy { !$0.place.contains("timing") })
    }
}
