//  ledger: a small bank, to have something to lose.
//
//  `serve` keeps accounts and transfers in SQLite as an application that embeds it would, with SQLite's own defaults
//  (rollback journal, synchronous=FULL). `client` makes transfers without pause and writes each acknowledged one down.
//  `verify` compares that list with what the service has: nothing may be missing, no money may appear or vanish.
//
//  The wire protocol is lines of text over TCP:
//
//      TRANSFER <id> <from> <to> <amount>   ->  OK <id>            durable, or was so already: safe to repeat
//                                               ERROR <words>      not done
//      DUMP                                 ->  ACCOUNT <number> <balance>   for each
//                                               MADE <id> <from> <to> <amount>    for each
//                                               END
//
//  The client speaks the same words to PostgreSQL through the `psql` program (see PostgreSQLConnection.swift).
import ArgumentParser
import Foundation

@main
struct Ledger: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ledger",
        abstract: "A small ledger server with its client, to show that no acknowledged transfer is lost.",
        subcommands: [Serve.self, Client.self, Verify.self])
}

struct Serve: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Serve the ledger in one SQLite database.")
    @Option(help: "The database file; made with its accounts if it does not exist.") var database: String
    @Option(help: "Address and port to listen on, such as 0.0.0.0:5400 or [::]:5400.") var listen: Endpoint

    func run() throws {
        signal(SIGPIPE, SIG_IGN)
        let store = try LedgerStore(path: database, create: true)
        try Server(store: store, endpoint: listen).run()
    }
}

enum Application: String, ExpressibleByArgument, CaseIterable { case ledger, postgresql }

struct Client: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Make transfers without pause; append each acknowledged one to a file.",
        discussion: "Ends with status 0 on SIGTERM or SIGINT, after the transfer in hand or its time limit.")
    @Option(help: "Address and port of the service.") var connect: Endpoint
    @Option(help: "Appended to, a line each: id, from, to, amount, seconds on the boot clock.") var acknowledged: String
    @Option(help: "What speaks at that address.") var application = Application.ledger
    @Option(help: "Ends by itself after so many transfers; 0 for never.") var count = 0

    func run() throws {
        signal(SIGPIPE, SIG_IGN)
        try TransferLoop(endpoint: connect, application: application, file: acknowledged, count: count).run()
    }
}

struct Verify: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Compare the acknowledged transfers with what the service or its database has.",
        discussion: "Status 0 if nothing is missing and all balances follow from the transfers.")
    @Option(help: "Ask the service at this address and port …") var connect: Endpoint?
    @Option(help: "… or read this database file, which nobody may be serving.") var database: String?
    @Option(help: "What speaks at that address.") var application = Application.ledger
    @Option(help: "The file that the client wrote; may be given more than once.") var acknowledged: [String]
    @Flag(help: "Print the result as JSON.") var json = false

    func validate() throws {
        guard (connect == nil) != (database == nil) else {
            throw ValidationError("Give either --connect or --database.")
        }
    }

    func run() throws {
        signal(SIGPIPE, SIG_IGN)
        let contents: LedgerContents
        if let connect {
            contents = try openConnection(to: connect, application).contents()
        } else {
            contents = try LedgerStore(path: database ?? "", create: false).contents()
        }
        let result = Verification(contents: contents, acknowledged: try acknowledged.flatMap(readAcknowledged))
        if json {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
            print(String(decoding: try encoder.encode(result), as: UTF8.self))
        } else {
            print(result.words)
        }
        if !result.holds { throw ExitCode.failure }
    }
}
