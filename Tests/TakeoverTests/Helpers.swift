import CLinux
import Foundation
import Logging
import Synchronization
import Testing

@testable import Takeover

/// Runs a program to its end and returns what it wrote.
@discardableResult
func run(_ arguments: String..., mayFail: Bool = false) throws -> String {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = arguments
    let pipe = Pipe()
    process.standardOutput = pipe
    process.standardError = pipe
    try process.run()
    let data = pipe.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    let text = String(decoding: data, as: UTF8.self)
    if process.terminationStatus != 0 && !mayFail {
        throw Failure("\(arguments.joined(separator: " ")): \(text)")
    }
    return text
}

struct Failure: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

let serial = Atomic<Int>(0)
/// A name that no other run of the tests uses.
func uniqueName() -> String { "lstk\(getpid())-\(serial.add(1, ordering: .relaxed).newValue)" }

/// Two network namespaces with a cable between them: `server` has 10.0.9.11 and fd00:9::11, `client` 10.0.9.20 and
/// fd00:9::20, each on its interface `eth0`.
final class Cable: Sendable {
    let server: String
    let client: String

    init() throws {
        let name = uniqueName()
        server = name + "s"
        client = name + "c"
        try run("ip", "netns", "add", server)
        try run("ip", "netns", "add", client)
        try run(
            "ip", "-n", server, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", client)
        for (space, host) in [(server, 11), (client, 20)] {
            try run("ip", "-n", space, "link", "set", "eth0", "up")
            try run("ip", "-n", space, "address", "add", "10.0.9.\(host)/24", "dev", "eth0")
            try run("ip", "-n", space, "address", "add", "fd00:9::\(host)/64", "dev", "eth0", "nodad")
        }
    }

    deinit {
        _ = try? run("ip", "netns", "delete", server, mayFail: true)
        _ = try? run("ip", "netns", "delete", client, mayFail: true)
    }

    /// Runs `body` on a thread inside the server's namespace.
    func inServer<Result: Sendable>(_ body: @escaping @Sendable () throws -> Result) throws -> Result {
        let outcome = Mutex<Swift.Result<Result, any Error>?>(nil)
        let done = DispatchSemaphore(value: 0)
        withExtendedLifetime(self) {
            let space = server
            let thread = Thread {
                let descriptor = open("/run/netns/\(space)", O_RDONLY | O_CLOEXEC)
                let entered = clinux_set_namespace(descriptor, 0)
                close(descriptor)
                let result = Swift.Result { () throws -> Result in
                    guard entered >= 0 else { throw Failure("cannot enter \(space): \(entered)") }
                    return try body()
                }
                outcome.withLock { $0 = result }
                done.signal()
            }
            thread.start()
            done.wait()
        }
        return try outcome.withLock { try $0!.get() }
    }

    func addresses() throws -> String { try run("ip", "-n", server, "address", "show", "dev", "eth0") }

    func has(_ address: String) -> Bool {
        (try? addresses())?.contains("\(address) ") == true
    }
}

/// Seconds until `condition` holds, or nil when it did not within `seconds`.
@discardableResult
func eventually(_ seconds: Double, _ condition: () throws -> Bool) rethrows -> Double? {
    let start = bootNanoseconds()
    func passed() -> Double { Double(bootNanoseconds() - start) / 1e9 }
    while true {
        if try condition() { return passed() }
        if passed() > seconds { return nil }
        usleep(10_000)
    }
}

/// The end of a lease that begins now.
func lease(_ seconds: Double) -> UInt64 { bootNanoseconds() + UInt64(seconds * 1e9) }

let quiet = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }

/// Keeps what is logged.
final class Journalist: Sendable {
    let lines = Mutex<[String]>([])
    var text: String { lines.withLock { $0.joined(separator: "\n") } }
    var logger: Logger { Logger(label: "test") { _ in Handler(owner: self) } }

    struct Handler: LogHandler {
        let owner: Journalist
        var metadata: Logger.Metadata = [:]
        var logLevel: Logger.Level = .trace
        subscript(metadataKey key: String) -> Logger.Metadata.Value? {
            get { metadata[key] }
            set { metadata[key] = newValue }
        }
        func log(event: LogEvent) { owner.lines.withLock { $0.append("\(event.message)") } }
    }
}

/// A directory with scripts, and a control group; both vanish with it.
final class Stage: Sendable {
    let directory: String
    let group: ControlGroup
    let name: String

    init() throws {
        name = uniqueName()
        directory = "/tmp/" + name
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        group = try ControlGroup(name: name, logger: quiet)
    }

    deinit {
        _ = try? group.kill()
        try? group.remove()
        try? FileManager.default.removeItem(atPath: directory)
    }

    func script(_ name: String, _ text: String, mode: Int = 0o755) throws -> ApplicationCommand {
        let path = directory + "/" + name
        try ("#!/bin/sh\n" + text + "\n").write(toFile: path, atomically: true, encoding: .utf8)
        try FileManager.default.setAttributes([.posixPermissions: mode], ofItemAtPath: path)
        return ApplicationCommand(path)
    }

    func content(_ name: String) -> String {
        (try? String(contentsOfFile: directory + "/" + name, encoding: .utf8)) ?? ""
    }

    func settings(start: ApplicationCommand) -> ApplicationSettings {
        ApplicationSettings(
            mirror: "ledger", node: "alpha", path: "/srv/ledger", addresses: ["10.0.9.1", "fd00:9::1"], start: start)
    }

    func application(_ settings: ApplicationSettings, _ logger: Logger = quiet) -> Application {
        Application(settings: settings, group: group, logger: logger)
    }
}

func exists(_ process: Int32) -> Bool { kill(process, 0) == 0 }
