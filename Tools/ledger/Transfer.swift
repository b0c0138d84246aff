import Foundation

/// One transfer; the id is unique over all clients and all time, so a repeated request does nothing twice.
struct Transfer: Equatable {
    var id: String
    var from: Int
    var to: Int
    var amount: Int

    var words: String { "\(id) \(from) \(to) \(amount)" }

    /// Reads `<id> <from> <to> <amount>`; nil unless that is what it is. Ids are letters, digits and dashes, 64 at most:
    /// they are written into SQL by the PostgreSQL client.
    init?(words: some Sequence<Substring>) {
        let words = Array(words)
        guard words.count == 4, (1...64).contains(words[0].utf8.count),
            words[0].utf8.allSatisfy({ (48...57).contains($0) || (97...122).contains($0) || $0 == 45 }),
            let from = Int(words[1]), let to = Int(words[2]), let amount = Int(words[3]),
            amount > 0, amount <= 1_000_000, from != to
        else { return nil }
        (id, self.from, self.to, self.amount) = (String(words[0]), from, to, amount)
    }

    init(id: String, from: Int, to: Int, amount: Int) {
        (self.id, self.from, self.to, self.amount) = (id, from, to, amount)
    }
}

/// The bank as it opens: so many accounts with so much in each. Both sides know it, so that a lost account is noticed.
enum Bank {
    static let accounts = 100
    static let openingBalance = 10_000
    static var total: Int { accounts * openingBalance }
}

/// Everything that the ledger holds.
struct LedgerContents {
    var balances: [Int: Int] = [:]
    var transfers: [Transfer] = []
}

struct LedgerError: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

/// Reads a client's file. A last line without its end is a transfer that was being noted when the client ended: the
/// acknowledgement had arrived, but the words may be incomplete, so it cannot be checked and does not count.
func readAcknowledged(_ file: String) throws -> [Transfer] {
    guard let data = FileManager.default.contents(atPath: file) else {
        throw LedgerError("Cannot read the list of acknowledged transfers, \(file).")
    }
    let text = String(decoding: data, as: UTF8.self)
    let lines = text[..<(text.lastIndex(of: "\n") ?? text.startIndex)].split(separator: "\n")
    return try lines.enumerated().map { number, line in
        guard let transfer = Transfer(words: line.split(separator: " ").prefix(4)) else {
            throw LedgerError("\(file), line \(number + 1), is not a transfer: '\(line)'.")
        }
        return transfer
    }
}

/// The comparison that the whole story is about.
struct Verification: Encodable {
    var acknowledged: Int
    var missing: Int
    /// Of the missing ones, the first few, to look for in logs and dumps.
    var firstMissing: [String]
    /// Transfers that the ledger holds; more than were acknowledged when an answer was lost on its way.
    var transfers: Int
    var sum: Int
    var expectedSum: Int
    /// Every balance is the opening balance plus what came minus what went, and the sum is what it was at the beginning.
    var balanceConserved: Bool

    var holds: Bool { missing == 0 && balanceConserved }

    init(contents: LedgerContents, acknowledged: [Transfer]) {
        let made = Dictionary(contents.transfers.map { ($0.id, $0) }) { first, _ in first }
        let lost = acknowledged.filter { made[$0.id] != $0 }
        var expected = Dictionary(uniqueKeysWithValues: (0..<Bank.accounts).map { ($0, Bank.openingBalance) })
        for transfer in contents.transfers {
            expected[transfer.from, default: 0] -= transfer.amount
            expected[transfer.to, default: 0] += transfer.amount
        }
        self.acknowledged = acknowledged.count
        missing = lost.count
        firstMissing = lost.prefix(10).map(\.id)
        transfers = contents.transfers.count
        sum = contents.balances.values.reduce(0, +)
        expectedSum = Bank.total
        balanceConserved = expected == contents.balances && sum == Bank.total && made.count == contents.transfers.count
    }

    var words: String {
        """
        transfers acknowledged: \(acknowledged)
        transfers in the ledger: \(transfers)
        transfers missing: \(missing)\(firstMissing.isEmpty ? "" : " (" + firstMissing.joined(separator: ", ") + ")")
        sum of all accounts: \(sum), \(balanceConserved ? "conserved" : "NOT CONSERVED (\(expectedSum) expected)")
        """
    }
}
