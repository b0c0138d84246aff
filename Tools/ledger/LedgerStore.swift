import CSQLite
import Foundation

/// The ledger in a SQLite database. Not safe for use by two threads at once: the server holds a lock.
final class LedgerStore {
    private let database: OpaquePointer
    private var statements: [String: OpaquePointer] = [:]

    /// - Parameter create: make the file and the accounts if they are missing; otherwise that is an error.
    init(path: String, create: Bool) throws {
        var handle: OpaquePointer?
        let flags = SQLITE_OPEN_READWRITE | (create ? SQLITE_OPEN_CREATE : 0)
        let result = sqlite3_open_v2(path, &handle, flags, nil)
        guard result == SQLITE_OK, let handle else {
            throw LedgerError("Cannot open the database \(path): \(String(cString: sqlite3_errstr(result))).")
        }
        database = handle
        sqlite3_busy_timeout(handle, 5_000)
        // The default of an embedded SQLite, stated because everything here depends on it.
        try execute("PRAGMA synchronous=FULL")
        if create { try makeTables() }
    }

    deinit {
        for statement in statements.values { sqlite3_finalize(statement) }
        sqlite3_close_v2(database)
    }

    private func makeTables() throws {
        try transaction {
            try execute("CREATE TABLE IF NOT EXISTS accounts (number INTEGER PRIMARY KEY, balance INTEGER NOT NULL)")
            try execute(
                """
                CREATE TABLE IF NOT EXISTS transfers (id TEXT PRIMARY KEY, payer INTEGER NOT NULL, \
                payee INTEGER NOT NULL, amount INTEGER NOT NULL)
                """)
            var count = 0
            try query("SELECT count(*) FROM accounts") { count = Int(sqlite3_column_int64($0, 0)) }
            guard count == 0 else { return }
            for number in 0..<Bank.accounts {
                try query("INSERT INTO accounts VALUES (?, ?)", [.integer(number), .integer(Bank.openingBalance)])
            }
        }
    }

    /// Makes a transfer durable; does nothing if one with this id is there already.
    ///
    /// - Throws: when it has not been made, or when it is not known whether it was (an I/O error on commit): the client
    ///   repeats it with the same id.
    func make(_ transfer: Transfer) throws {
        try transaction {
            try query(
                "INSERT OR IGNORE INTO transfers VALUES (?, ?, ?, ?)",
                [.text(transfer.id), .integer(transfer.from), .integer(transfer.to), .integer(transfer.amount)])
            guard sqlite3_changes(database) == 1 else { return }
            for (account, change) in [(transfer.from, -transfer.amount), (transfer.to, transfer.amount)] {
                try query(
                    "UPDATE accounts SET balance = balance + ? WHERE number = ?", [.integer(change), .integer(account)])
                guard sqlite3_changes(database) == 1 else { throw LedgerError("There is no account \(account).") }
            }
        }
    }

    func contents() throws -> LedgerContents {
        var contents = LedgerContents()
        try query("SELECT number, balance FROM accounts") {
            contents.balances[Int(sqlite3_column_int64($0, 0))] = Int(sqlite3_column_int64($0, 1))
        }
        try query("SELECT id, payer, payee, amount FROM transfers") {
            contents.transfers.append(
                Transfer(
                    id: sqlite3_column_text($0, 0).map { String(cString: $0) } ?? "",
                    from: Int(sqlite3_column_int64($0, 1)), to: Int(sqlite3_column_int64($0, 2)),
                    amount: Int(sqlite3_column_int64($0, 3))))
        }
        return contents
    }

    // MARK: SQLite

    private enum Value {
        case integer(Int)
        case text(String)
    }

    private func transaction(_ body: () throws -> Void) throws {
        try query("BEGIN IMMEDIATE")
        do {
            try body()
            try query("COMMIT")
        } catch {
            if sqlite3_get_autocommit(database) == 0 { try? query("ROLLBACK") }
            throw error
        }
    }

    private func execute(_ sql: String) throws {
        guard sqlite3_exec(database, sql, nil, nil, nil) == SQLITE_OK else { throw failure(sql) }
    }

    private func query(_ sql: String, _ values: [Value] = [], _ row: (OpaquePointer) -> Void = { _ in }) throws {
        let statement = try prepared(sql)
        defer {
            sqlite3_reset(statement)
            sqlite3_clear_bindings(statement)
        }
        for (index, value) in values.enumerated() {
            switch value {
            case .integer(let number): sqlite3_bind_int64(statement, Int32(index + 1), Int64(number))
            case .text(let text):
                // SQLITE_TRANSIENT, which the module cannot express: SQLite makes its own copy.
                let copy = unsafeBitCast(-1, to: sqlite3_destructor_type.self)
                sqlite3_bind_text(statement, Int32(index + 1), text, -1, copy)
            }
        }
        while true {
            switch sqlite3_step(statement) {
            case SQLITE_ROW: row(statement)
            case SQLITE_DONE: return
            default: throw failure(sql)
            }
        }
    }

    private func prepared(_ sql: String) throws -> OpaquePointer {
        if let statement = statements[sql] { return statement }
        var statement: OpaquePointer?
        guard sqlite3_prepare_v2(database, sql, -1, &statement, nil) == SQLITE_OK, let statement else {
            throw failure(sql)
        }
        statements[sql] = statement
        return statement
    }

    private func failure(_ sql: String) -> LedgerError {
        LedgerError("\(String(cString: sqlite3_errmsg(database))) (\(sqlite3_extended_errcode(database))) in: \(sql)")
    }
}
