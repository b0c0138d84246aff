import Foundation
import Synchronization

private let stopRequested = Atomic<Bool>(false)
/// Whether SIGTERM or SIGINT has asked the client to end.
func interrupted() -> Bool { stopRequested.load(ordering: .relaxed) }

/// A way to reach the ledger; a new one is made after every failure.
protocol LedgerConnection {
    /// Returns when the transfer has been acknowledged as durable.
    func make(_ transfer: Transfer) throws
    func contents() throws -> LedgerContents
}

/// How long a connection attempt and an answer may take until the client tries anew. Held writes do come through after
/// longer; but the service may by then be in another room, and nobody tells a client.
enum Patience {
    static let connectMilliseconds: Int32 = 300
    static let answerMilliseconds: Int32 = 1_000
    /// Between two attempts when the refusal came at once, so as not to burn a processor.
    static let retryMicroseconds: UInt32 = 20_000
}

func openConnection(to endpoint: Endpoint, _ application: Application) throws -> any LedgerConnection {
    switch application {
    case .ledger: try SocketConnection(endpoint)
    case .postgresql: try PostgreSQLConnection(endpoint)
    }
}

struct SocketConnection: LedgerConnection {
    let socket: LineSocket

    init(_ endpoint: Endpoint) throws {
        socket = try LineSocket(to: endpoint, timeoutMilliseconds: Patience.connectMilliseconds)
    }

    func make(_ transfer: Transfer) throws {
        try socket.send("TRANSFER \(transfer.words)\n")
        let answer = try socket.line(timeoutMilliseconds: Patience.answerMilliseconds)
        guard answer == "OK \(transfer.id)" else {
            throw LedgerError(answer ?? "The server closed the connection.")
        }
    }

    func contents() throws -> LedgerContents {
        try socket.send("DUMP\n")
        return try readContents { try socket.line(timeoutMilliseconds: 30_000) }
    }
}

func readContents(_ next: () throws -> String?) throws -> LedgerContents {
    var contents = LedgerContents()
    while let line = try next() {
        let words = line.split(separator: " ")
        if words.first == "END" { return contents }
        if words.first == "ACCOUNT", words.count == 3, let number = Int(words[1]), let balance = Int(words[2]) {
            contents.balances[number] = balance
        } else if words.first == "MADE", let transfer = Transfer(words: words.dropFirst()) {
            contents.transfers.append(transfer)
        } else {
            throw LedgerError("Not understood: '\(line)'.")
        }
    }
    throw LedgerError("The connection ended in the middle of the contents.")
}

/// Makes transfers, one after the other, without pause; repeats each until it is acknowledged; notes each one that is.
struct TransferLoop {
    let endpoint: Endpoint
    let application: Application
    let file: String
    let count: Int

    func run() throws {
        for number in [SIGTERM, SIGINT] {
            var action = sigaction()
            action.__sigaction_handler.sa_handler = { _ in stopRequested.store(true, ordering: .relaxed) }
            sigaction(number, &action, nil)  // no SA_RESTART: a wait for an answer ends
        }
        let list = open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o644)
        guard list >= 0 else { throw LedgerError("Cannot write \(file): \(String(cString: strerror(errno))).") }
        // Unique over all clients that ever were.
        let name = String(UInt64.random(in: 0...UInt64.max), radix: 36)
        var connection: (any LedgerConnection)?
        var made = 0
        var failing = false
        while !interrupted() && (count == 0 || made < count) {
            let from = Int.random(in: 0..<Bank.accounts)
            let to = (from + Int.random(in: 1..<Bank.accounts)) % Bank.accounts
            let transfer = Transfer(id: "\(name)-\(made)", from: from, to: to, amount: Int.random(in: 1...100))
            while !interrupted() {
                do {
                    if connection == nil { connection = try openConnection(to: endpoint, application) }
                    try connection?.make(transfer)
                    let line = "\(transfer.words) \(String(format: "%.6f", bootSeconds()))\n"
                    guard write(list, line, line.utf8.count) == line.utf8.count else {
                        throw LedgerError("Cannot write \(file): \(String(cString: strerror(errno))).")
                    }
                    if failing { note("client: service is back") }
                    failing = false
                    made += 1
                    break
                } catch {
                    if !failing { note("client: \(error)") }
                    failing = true
                    connection = nil
                    usleep(Patience.retryMicroseconds)
                }
            }
        }
    }
}

/// Seconds on the clock that also counts sleep and that nobody can set.
func bootSeconds() -> Double {
    var time = timespec()
    clock_gettime(CLOCK_BOOTTIME, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}
