import ArgumentParser
import CommandMain
import Configuration
import Foundation
import Node

struct Verify: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Compares both nodes' files while the application writes, and repairs on request.",
        discussion: """
            Run it on the node that serves; both must be in sync. What each node reads in a second is limited \
            (`verify.rateMebibytesPerSecond`). It goes on in the background when this command is interrupted, and after \
            a loss of the other node or a restart of the daemon where it was; run the command again to follow it.

            A repair takes what the journal, or an unreadable block on the other side, proves right. Where nothing \
            proves it, nothing is changed, unless --prefer names the node to believe.

            Exit status: 0 equal, 3 differences found and not all of them repaired, 4 differences found and all of them \
            repaired, 1 failed or broken off, 2 wrong usage.
            """)
    @OptionGroup var options: MirrorOptions
    @Argument(help: "A file or directory of the mirror, absolute or below its root (default: everything).")
    var path: String?
    @Flag(name: .long, help: "Repair what can be proved.")
    var repair = false
    @Option(name: .long, help: "With --repair: the node whose copy is right where nothing proves it.")
    var prefer: String?
    @Flag(name: .long, help: "Only begin; `lockstep status` shows how far it is.")
    var background = false
    @Flag(name: .long, help: "End a verification that is under way.")
    var stop = false
    @Flag(name: .long, help: "Print the result as JSON: `result` as in status, `findings`.")
    var json = false

    func validate() throws {
        if prefer != nil, !repair { throw ValidationError("--prefer goes with --repair") }
        if stop, repair || path != nil || background { throw ValidationError("--stop goes alone") }
    }

    func run() throws {
        if stop {
            _ = try reply(to: AdminRequest(.verifyStop), options)
            return print("the verification has been ended")
        }
        let wanted = VerifyOptions(path: try relative(), repair: repair, prefer: prefer)
        let before = try call(.status, options)
        let began = try begin(wanted, before)
        if background { return print("the verification has begun; `lockstep status` shows how far it is") }
        let status = try follow(since: began)
        let findings = try report()
        try show(status, findings)
    }

    /// The path below the mirrored directory.
    private func relative() throws -> String {
        guard let path else { return "" }
        let (configuration, _) = try options.load()
        var words = path.split(separator: "/").map(String.init).filter { $0 != "." }
        guard !words.contains("..") else { throw Failure.usage("\(path): write the path without `..`") }
        if path.hasPrefix("/") {
            let base = configuration.path.split(separator: "/").map(String.init)
            guard words.starts(with: base) else {
                throw Failure.usage("\(path) is not below the mirrored directory \(configuration.path)")
            }
            words.removeFirst(base.count)
        }
        return words.joined(separator: "/")
    }

    /// Begins one, or joins the one that runs. Returns when the last one had finished before.
    private func begin(_ wanted: VerifyOptions, _ before: NodeStatus) throws -> String? {
        if let verify = before.verify, verify.running {
            guard verify.path == "/" + wanted.path, verify.repair == wanted.repair else {
                throw Failure.failed(
                    "a verification of \(verify.path ?? "/") runs already\(verify.repair == true ? ", with --repair" : ""); "
                        + "wait for it, or end it with `lockstep verify --stop`")
            }
            tell("a verification runs already; following it")
        } else {
            var request = AdminRequest(.verify)
            request.verify = wanted
            _ = try reply(to: request, options)
        }
        return before.verify?.last?.finished
    }

    private func follow(since last: String?) throws -> NodeStatus {
        let progress = ProgressLine()
        while true {
            let status = try call(.status, options)
            guard let verify = status.verify, verify.running else {
                progress.end()
                return status
            }
            progress.show(text(verify), fraction: fraction(verify))
            Thread.sleep(forTimeInterval: 0.2)
        }
    }

    private func fraction(_ verify: NodeStatus.Verify) -> Double? {
        guard let total = verify.filesTotal, total > 0, let files = verify.files else { return nil }
        return min(1, Double(files) / Double(total))
    }

    private func text(_ verify: NodeStatus.Verify) -> String {
        var text = "\(verify.files ?? 0) of \(verify.filesTotal ?? 0) objects, \(Units.bytes(verify.bytes ?? 0))"
        if let rate = verify.bytesPerSecond { text += ", \(Units.bytes(UInt64(rate)))/s" }
        if let differences = verify.differences, differences > 0 { text += ", \(differences) DIFFERENCES" }
        if let paused = verify.paused { text += "; waits: \(paused)" }
        return text
    }

    private func report() throws -> [VerifyFinding] {
        var findings: [VerifyFinding] = []
        while true {
            var request = AdminRequest(.verifyReport)
            request.from = findings.count
            let more = try reply(to: request, options).findings ?? []
            if more.isEmpty { return findings }
            findings += more
        }
    }

    private func show(_ status: NodeStatus, _ findings: [VerifyFinding]) throws {
        guard let last = status.verify?.last else { throw Failure.failed("the daemon does not know how it ended") }
        if json {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
            print(String(decoding: try encoder.encode(Output(result: last, findings: findings)), as: UTF8.self))
        } else {
            for finding in findings { print(finding.text) }
            if UInt64(findings.count) < last.differences {
                print("... and \(last.differences - UInt64(findings.count)) more")
            }
            let compared = "\(last.files) objects, \(Units.bytes(last.bytes)) compared"
            print(
                last.differences == 0
                    ? "no difference: \(compared)"
                    : "\(last.differences) differences, \(last.repaired) repaired: \(compared)")
        }
        if let problem = last.problem { throw Failure.failed("the verification was broken off: \(problem)") }
        guard last.differences > 0 else { return }
        throw ExitCode(last.repaired == last.differences ? 4 : 3)
    }

    private struct Output: Encodable {
        var result: NodeStatus.Verify.Last
        var findings: [VerifyFinding]
    }
}

/// Progress on standard error: a bar that is drawn over on a terminal, a line now and then elsewhere.
final class ProgressLine {
    static let logSeconds: TimeInterval = 30
    private let isTerminal = isatty(STDERR_FILENO) == 1
    private var lastLine: Date?

    func show(_ text: String, fraction: Double?) {
        if isTerminal {
            let width = 30
            let filled = Int((fraction ?? 0) * Double(width))
            let bar = String(repeating: "#", count: filled) + String(repeating: ".", count: width - filled)
            write("\r\u{1B}[K[\(bar)] \(text)")
        } else if lastLine.map({ Date().timeIntervalSince($0) >= ProgressLine.logSeconds }) ?? true {
            lastLine = Date()
            write(text + "\n")
        }
    }

    func end() { if isTerminal { write("\r\u{1B}[K") } }

    private func write(_ text: String) { try? FileHandle.standardError.write(contentsOf: Data(text.utf8)) }
}
