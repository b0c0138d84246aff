//  One line for each event; at a terminal a bar below them.
import Foundation
import Rooms
import Synchronization

final class Progress: Sendable {
    private let begun = bootSeconds()
    private let seconds: Double
    private let isTerminal = isatty(STDOUT_FILENO) == 1
    private struct State {
        var lines: [String] = []
        var words = ""
    }
    private let state = Mutex(State())

    init(seconds: Double) {
        self.seconds = seconds
        onInterrupt { [self] in end() }
    }

    var elapsed: Double { bootSeconds() - begun }
    /// Everything said so far, for whoever looks for a cause.
    var lines: [String] { state.withLock { $0.lines } }

    func say(_ words: String) {
        let line = String(format: "%7.1f  ", elapsed) + words
        state.withLock { state in
            state.lines.append(line)
            clear()
            put(line + "\n")
            draw(state.words)
        }
    }

    /// What stands beside the bar.
    func now(_ words: String) {
        guard isTerminal else { return }
        state.withLock { state in
            state.words = words
            clear()
            draw(words)
        }
    }

    func end() { state.withLock { _ in clear() } }

    private func clear() {
        if isTerminal { put("\r\u{1B}[K") }
    }

    private func draw(_ words: String) {
        guard isTerminal else { return }
        let width = 30
        let done = Int(Double(width) * min(1, elapsed / seconds))
        let bar = String(repeating: "█", count: done) + String(repeating: "░", count: width - done)
        put("\(bar) \(Int(elapsed)) of \(Int(seconds)) s  \(words)")
    }

    private func put(_ text: String) { try? FileHandle.standardOutput.write(contentsOf: Data(text.utf8)) }
}
