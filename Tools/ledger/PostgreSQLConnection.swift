import Foundation

/// The ledger in PostgreSQL, through the `psql` program with a pipe to it and one from it: the client needs no library.
///
/// `transfer(id, payer, payee, amount)` is a function in the database, made once by the start script; it does what
/// `LedgerStore.make` does and returns the id. `psql` prints its result when the server has completed the statement, which
/// is after the commit.
final class PostgreSQLConnection: LedgerConnection {
    private let process = Process()
    private let input = Pipe()
    private let answers: LineReader

    init(_ endpoint: Endpoint) throws {
        // A quick look first: psql itself cannot wait for less than two seconds.
        _ = try LineSocket(to: endpoint, timeoutMilliseconds: Patience.connectMilliseconds)
        let output = Pipe()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = ["psql", "-X", "-q", "-A", "-t", "-F", " ", "-v", "ON_ERROR_STOP=1"]
        process.environment = ProcessInfo.processInfo.environment.merging([
            "PGHOST": endpoint.host, "PGPORT": endpoint.port, "PGUSER": "postgres", "PGDATABASE": "ledger",
            "PGCONNECT_TIMEOUT": "2", "LC_ALL": "C",
        ]) { $1 }
        process.standardInput = input
        process.standardOutput = output
        process.standardError = FileHandle.nullDevice
        answers = LineReader(output.fileHandleForReading)
        try process.run()
    }

    deinit {
        kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }

    private func send(_ text: String) throws {
        do {
            try input.fileHandleForWriting.write(contentsOf: Data(text.utf8))
        } catch {
            throw LedgerError("psql has ended: \(error.localizedDescription)")
        }
    }

    func make(_ transfer: Transfer) throws {
        // The id holds only letters, digits and dashes (see Transfer), the rest are numbers.
        try send("SELECT transfer('\(transfer.id)', \(transfer.from), \(transfer.to), \(transfer.amount));\n")
        let answer = try answers.line(timeoutMilliseconds: Patience.answerMilliseconds)
        guard answer == transfer.id else { throw LedgerError(answer ?? "psql lost its connection.") }
    }

    func contents() throws -> LedgerContents {
        try send(
            """
            SELECT 'ACCOUNT', number, balance FROM accounts;
            SELECT 'MADE', id, payer, payee, amount FROM transfers;
            SELECT 'END';

            """)
        return try readContents { try answers.line(timeoutMilliseconds: 30_000) }
    }
}

/// Lines from a pipe, with a time limit.
final class LineReader {
    private let handle: FileHandle
    private var buffer: [UInt8] = []
    private var consumed = 0
    init(_ handle: FileHandle) { self.handle = handle }

    func line(timeoutMilliseconds: Int32) throws -> String? {
        while true {
            if let end = buffer[consumed...].firstIndex(of: UInt8(ascii: "\n")) {
                defer { consumed = end + 1 }
                return String(decoding: buffer[consumed..<end], as: UTF8.self)
            }
            buffer.removeFirst(consumed)
            consumed = 0
            var waiting = pollfd(fd: handle.fileDescriptor, events: Int16(POLLIN), revents: 0)
            let ready = poll(&waiting, 1, timeoutMilliseconds)
            if ready < 0 && errno == EINTR && !interrupted() { continue }
            guard ready > 0 else { throw LedgerError("No answer within \(timeoutMilliseconds) ms.") }
            var chunk = [UInt8](repeating: 0, count: 65_536)
            let count = read(handle.fileDescriptor, &chunk, chunk.count)
            if count <= 0 { return nil }
            buffer.append(contentsOf: chunk[..<count])
        }
    }
}
