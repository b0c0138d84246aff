import ArgumentParser
import Foundation
import Node

struct Status: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Says what this node does, how far the other one is, and what to do if something is wrong.",
        discussion: """
            Exit status: 0 PRIM or SECOND, 10 ALONE, 11 WAIT, 12 FROZEN, 13 STOP, \
            14 PRIM or ALONE without the application, an address or open files, 1 no answer.
            """)
    @OptionGroup var options: MirrorOptions
    @Flag(name: .long, help: "Print JSON with stable keys (docs/operations.md).")
    var json = false
    @Flag(name: .long, help: "Print again every second until interrupted.")
    var watch = false

    func run() throws {
        while watch {
            if isatty(STDOUT_FILENO) == 1 { print("\u{1B}[H\u{1B}[2J", terminator: "") }
            do {
                try show(try call(.status, options))
            } catch let code as ExitCode where code.rawValue == 1 {
                // Said already; it may come back.
            }
            fflush(nil)
            Thread.sleep(forTimeInterval: 1)
        }
        let status = try call(.status, options)
        try show(status)
        throw ExitCode(Status.code(status))
    }

    static func code(_ status: NodeStatus) -> Int32 {
        let isServing = status.role == "PRIM" || status.role == "ALONE"
        let isComplete =
            status.filesOpen && status.application != "failed" && status.addresses.allSatisfy(\.held)
        if isServing, !isComplete { return 14 }
        return switch status.role {
        case "PRIM", "SECOND": 0
        case "ALONE": 10
        case "WAIT": 11
        case "FROZEN": 12
        case "STOP": 13
        default: 1
        }
    }

    private func show(_ status: NodeStatus) throws {
        if json {
            print(String(decoding: try status.json(), as: UTF8.self))
        } else {
            print(StatusText(status: status, colors: isatty(STDOUT_FILENO) == 1).text)
        }
    }
}

/// The status in words an administrator uses.
struct StatusText {
    let status: NodeStatus
    let colors: Bool

    var text: String {
        var lines = [
            "\(status.mirror) on \(status.node): \(colored(status.role)), \(status.explanation) "
                + "(for \(Units.duration(status.sinceSeconds)))"
        ]
        if !status.problem.isEmpty { lines.append("  problem     \(status.problem)") }
        lines.append("  in sync     \(inSync)")
        if let copy { lines.append("  copy        \(copy)") }
        if let resync { lines.append("  coming back \(resync)") }
        lines.append("  addresses   \(addresses)")
        lines.append("  application \(status.application)\(suffix(status.applicationMessage))")
        lines.append("  other node  \(peer)")
        lines.append("  witness     \(witness)")
        if let verify { lines.append("  verified    \(verify)") }
        if let takeover = status.lastTakeover {
            lines.append("  last start  \(takeover.time), epoch \(takeover.epoch): \(takeover.reason)")
        }
        if let log = status.log { lines.append("  journal     \(journal(log))") }
        if status.promotion != "none" {
            lines.append("  promotion   \(status.promotion)\(suffix(status.promotionMessage))")
        }
        for rescue in status.rescues {
            lines.append("  rescued     \(rescue): given up by this node; lockstep-dump lists it, then move it away")
        }
        for statement in status.statements { lines.append("  remember    \(statement)") }
        return lines.joined(separator: "\n")
    }

    private func suffix(_ text: String) -> String { text.isEmpty ? "" : " (\(text))" }

    private func colored(_ role: String) -> String {
        guard colors else { return role }
        let code = ["red": 31, "orange": 33, "green": 32][status.color] ?? 0
        return "\u{1B}[\(code);1m\(role)\u{1B}[0m"
    }

    private var inSync: String {
        if status.inSync { return "yes: both nodes hold every acknowledged write" }
        guard let only = status.inSyncNodes.first else { return "not known yet" }
        return "no: only \(only) holds every acknowledged write"
    }

    /// Only where it is not the newest there is.
    private var copy: String? {
        guard let copy = status.copy, !status.inSync, status.role != "ALONE" else { return nil }
        guard copy.usable else { return "being brought up to date, not usable: a mixture of old and new" }
        return "usable, as of \(copy.time ?? "an unknown time"), record \(copy.record)"
    }

    private var resync: String? { StatusText.comingBack(status) }

    /// How far the other node is on its way back; nil when it is not on it.
    static func comingBack(_ status: NodeStatus) -> String? {
        guard let resync = status.resync, resync.running, status.primary == status.node else { return nil }
        var text = ["journal": "from the journal", "ranges": "sending what changed"][resync.kind] ?? "comparing files"
        if !resync.phase.isEmpty { text += ", \(resync.phase)" }
        if resync.kind == "journal" {
            if let left = resync.bytesLeft { text += ": \(Units.bytes(left)) left" }
            text += ", \(Units.bytes(resync.sentBytes)) sent"
        } else {
            let total = resync.bytesTotal > 0 ? Units.bytes(resync.bytesTotal) : "what is being counted"
            text += ": \(Units.bytes(resync.bytesDone)) of \(total), \(Units.bytes(resync.sentBytes)) sent"
        }
        if let rate = resync.bytesPerSecond { text += ", \(Units.bytes(UInt64(max(0, rate))))/s" }
        if let limit = resync.limitBytesPerSecond { text += " (limit \(Units.bytes(limit))/s)" }
        if let seconds = resync.remainingSeconds { text += ", about \(Units.duration(seconds)) left" }
        if let slowed = resync.applicationBytesPerSecond {
            text += "; the application is slowed to \(Units.bytes(slowed))/s"
        }
        return text
    }

    private var verify: String? {
        guard let verify = status.verify else { return nil }
        if verify.running {
            var text = "being compared: \(verify.files ?? 0) of \(verify.filesTotal ?? 0) objects, "
            text += "\(Units.bytes(verify.bytes ?? 0)), \(verify.differences ?? 0) differences"
            if let paused = verify.paused { text += "; waits: \(paused)" }
            return text
        }
        guard let last = verify.last else { return nil }
        let result =
            last.differences == 0
            ? "no difference" : "\(last.differences) DIFFERENCES, \(last.repaired) repaired (`lockstep verify --help`)"
        let what = last.path == "/" ? "" : "\(last.path): "
        return "\(last.finished), \(what)\(last.problem.map { "broken off, \($0); " } ?? "")\(result)"
    }

    private var addresses: String {
        guard !status.addresses.isEmpty else { return "none configured" }
        let holder = status.primary ?? "nobody"
        return status.addresses.map { $0.held ? "\($0.address) is here" : "\($0.address) is with \(holder)" }
            .joined(separator: ", ").replacingOccurrences(of: "is with \(status.node)", with: "is not up here")
    }

    private var peer: String {
        status.peer.connected
            ? "\(status.peer.name), connected (\(status.peer.stage))" : "\(status.peer.name), not connected"
    }

    private var witness: String {
        switch status.witness.state {
        case "answering": "\(status.witness.address), answering"
        case "silent": "\(status.witness.address), silent for \(Units.duration(status.witness.silentSeconds ?? 0))"
        case "empty": "\(status.witness.address), has no memory yet"
        case "grantTooLong":
            "\(status.witness.address), REFUSES the lease: grantMilliseconds is longer than it grants; see problem"
        case "nameTaken":
            "\(status.witness.address), REFUSES: it serves another mirror of this name; rename one of the two"
        default: "\(status.witness.address), not heard yet"
        }
    }

    private func journal(_ log: NodeStatus.Log) -> String {
        "record \(log.lastSeq), on disk \(log.durableSeq), confirmed \(log.committedSeq), in the files "
            + "\(log.appliedSeq); \(Units.bytes(log.journalFreeBytes)) free, \(log.engine)"
    }
}

enum Units {
    /// `12.4 MiB`
    static func bytes(_ count: UInt64) -> String {
        var value = Double(count)
        for unit in ["B", "KiB", "MiB", "GiB"] {
            if value < 1024 { return unit == "B" ? "\(count) B" : String(format: "%.1f %@", value, unit) }
            value /= 1024
        }
        return String(format: "%.1f TiB", value)
    }

    /// `12 s`, `3 min 20 s`, `2 h 5 min`
    static func duration(_ seconds: Double) -> String {
        let whole = Int(seconds.rounded())
        if whole < 60 { return "\(whole) s" }
        if whole < 3600 { return "\(whole / 60) min \(whole % 60) s" }
        return "\(whole / 3600) h \(whole % 3600 / 60) min"
    }
}
