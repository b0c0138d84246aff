import Foundation

/// A thread for each connection, one transaction at a time.
final class Server: @unchecked Sendable {
    /// Protected by `lock`.
    private let store: LedgerStore
    private let lock = NSLock()
    private let endpoint: Endpoint

    init(store: LedgerStore, endpoint: Endpoint) {
        self.store = store
        self.endpoint = endpoint
    }

    func run() throws {
        let listener = try endpoint.withAddress { address in
            let listener = socket(address.pointee.ai_family, Int32(SOCK_STREAM.rawValue), 0)
            var on: Int32 = 1
            setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, socklen_t(MemoryLayout<Int32>.size))
            guard listener >= 0, bind(listener, address.pointee.ai_addr, address.pointee.ai_addrlen) == 0,
                listen(listener, 64) == 0
            else { throw LedgerError("Cannot listen on \(endpoint): \(String(cString: strerror(errno))).") }
            return listener
        }
        note("ledger: serving on \(endpoint)")
        while true {
            let descriptor = accept(listener, nil, nil)
            if descriptor < 0 {
                guard errno == EINTR || errno == ECONNABORTED else {
                    throw LedgerError("Cannot accept a connection: \(String(cString: strerror(errno))).")
                }
                continue
            }
            let thread = Thread { [self] in
                let socket = LineSocket(descriptor: descriptor)
                do { try converse(socket) } catch { note("ledger: connection closed: \(error)") }
            }
            thread.stackSize = 512 << 10
            thread.start()
        }
    }

    private func converse(_ socket: LineSocket) throws {
        while let line = try socket.line(timeoutMilliseconds: -1) {
            let words = line.split(separator: " ")
            switch words.first {
            case "TRANSFER":
                guard let transfer = Transfer(words: words.dropFirst()) else {
                    try socket.send("ERROR not a transfer\n")
                    continue
                }
                try socket.send(make(transfer))
            case "DUMP":
                let contents = try lock.withLock { try store.contents() }
                var answer = contents.balances.map { "ACCOUNT \($0.key) \($0.value)\n" }.joined()
                answer += contents.transfers.map { "MADE \($0.words)\n" }.joined()
                try socket.send(answer + "END\n")
            default:
                try socket.send("ERROR unknown command\n")
            }
        }
    }

    private func make(_ transfer: Transfer) -> String {
        lock.withLock {
            do {
                try store.make(transfer)
                return "OK \(transfer.id)\n"
            } catch {
                note("ledger: \(transfer.id): \(error)")
                return "ERROR \(error)\n"
            }
        }
    }
}

func note(_ text: String) { try? FileHandle.standardError.write(contentsOf: Data((text + "\n").utf8)) }
