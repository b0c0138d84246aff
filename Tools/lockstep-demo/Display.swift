//  Words with times, and at a terminal one living line below them that shows both rooms and the transfers.
import Foundation
import Rooms
import Synchronization

final class Display: Sendable {
    private let start = bootSeconds()
    private let isTerminal = isatty(STDOUT_FILENO) == 1
    private struct State {
        var following = false
        var lineShown = false
        var rooms = ""
        var progress = ""
        var steps = 0
        var lastPlainProgress = 0.0
    }
    private let state = Mutex(State())
    private static let stepsInAll = 9
    private static let clearLine = "\r\u{1B}[K"

    init() { onInterrupt { [self] in end() } }

    func title(_ text: String) { write("\n\(bold(text))\n\n") }

    /// A new step of the story.
    func step(_ text: String) {
        let step = state.withLock { state in
            state.steps = min(state.steps + 1, Display.stepsInAll)
            return state.steps
        }
        write("\(clock())  \(bold("[\(step)/\(Display.stepsInAll)] \(text)"))\n")
    }

    /// Something that happened within the step.
    func say(_ text: String) { write("\(clock())        \(text)\n") }

    func failure(_ text: String) {
        write("\n\(colour(31, "The story stopped:")) \(text)\n\n\(colour(31, "VERDICT: FAILED"))\n")
    }

    /// Starts the living line: two threads, one that asks the nodes, one that counts and draws.
    func follow(cluster: Cluster, service: ServiceLog) {
        state.withLock { $0.following = true }
        let asking = Thread { [self] in
            while state.withLock({ $0.following }) {
                let rooms = cluster.nodes.map { node in
                    "\(node.name) \(paint(cluster.status(node)))"
                }
                state.withLock { $0.rooms = rooms.joined(separator: "  ") }
                usleep(500_000)
            }
        }
        asking.name = "display-status"
        asking.start()
        let drawing = Thread { [self] in
            var before = (time: bootSeconds(), count: 0)
            var rate = 0.0
            while state.withLock({ $0.following }) {
                let now = bootSeconds()
                let count = service.count
                if now - before.time >= 1 {
                    rate = Double(count - before.count) / (now - before.time)
                    before = (now, count)
                }
                let quiet = now - (service.last ?? now)
                let waiting = quiet > 0.5 ? colour(33, "  no answer for \(seconds(quiet))") : ""
                draw("\(count) transfers acknowledged, \(Int(rate))/s\(waiting)", now: now)
                usleep(100_000)
            }
        }
        drawing.name = "display"
        drawing.start()
    }

    /// Ends the living line.
    func end() {
        state.withLock { state in
            state.following = false
            if state.lineShown { put(Display.clearLine) }
            state.lineShown = false
        }
    }

    private func draw(_ progress: String, now: Double) {
        let clock = clock()
        state.withLock { state in
            guard state.following else { return }
            state.progress = progress
            if isTerminal {
                put("\(Display.clearLine)\(clock)  \(state.rooms)  \(progress)")
                state.lineShown = true
            } else if now - state.lastPlainProgress >= 5 {
                state.lastPlainProgress = now
                put("\(clock)          \(state.rooms)  \(progress)\n")
            }
        }
    }

    private func write(_ text: String) {
        state.withLock { state in
            if state.lineShown { put(Display.clearLine) }
            state.lineShown = false
            put(text)
        }
    }

    private func put(_ text: String) { try? FileHandle.standardOutput.write(contentsOf: Data(text.utf8)) }

    private func clock() -> String { String(format: "%6.1f s", bootSeconds() - start) }

    // MARK: Colours, as administrators know them

    private func paint(_ status: NodeStatus?) -> String {
        guard let status else { return colour(31, "no answer") }
        let number = ["green": 32, "orange": 33][status.color] ?? 31
        return colour(number, status.role)
    }

    private func colour(_ number: Int, _ text: String) -> String {
        isTerminal ? "\u{1B}[\(number)m\(text)\u{1B}[0m" : text
    }

    private func bold(_ text: String) -> String { colour(1, text) }

    // MARK: The verdict

    func verdict(_ result: StoryResult) {
        let report = result.report
        let good = { (holds: Bool) in holds ? self.colour(32, "good") : self.colour(31, "BAD") }
        func row(_ name: String, _ value: String, _ judgement: String = "") -> String {
            "  " + name.padding(toLength: 46, withPad: " ", startingAt: 0)
                + String(repeating: " ", count: max(0, 14 - value.count)) + value + "  \(judgement)\n"
        }
        var text = "\n\(bold("Verdict")) after \(seconds(result.seconds))\n"
        text += row("transfers acknowledged", "\(report.acknowledged)")
        text += row("transfers missing", "\(report.missing)", good(report.missing == 0))
        if !result.ledger.firstMissing.isEmpty {
            text += row("  the first", result.ledger.firstMissing.joined(separator: " "))
        }
        text += row(
            "sum of all accounts (\(result.ledger.expectedSum) at the start)", "\(result.ledger.sum)",
            good(report.balanceConserved))
        text += "  seconds without service\n"
        for event in report.events {
            text += row("    " + event.name, String(format: "%.1f", event.secondsWithoutService))
        }
        text += row("bytes changed while room 1 was away", "\(report.resync.changedBytes)")
        text += row("bytes sent to bring it back", "\(report.resync.sentBytes)")
        text += row(
            "plain files: \(result.trees.entriesCompared) entries, \(bytes(result.trees.bytesCompared))",
            report.treesIdentical ? "identical" : "DIFFERENT", good(report.treesIdentical))
        for difference in result.trees.differences.prefix(10) { text += "      \(difference)\n" }
        for complaint in report.complaints { text += "  \(colour(31, complaint))\n" }
        text += "\n" + (report.holds ? colour(32, "VERDICT: GOOD") : colour(31, "VERDICT: FAILED")) + "\n"
        write(text)
    }
}
