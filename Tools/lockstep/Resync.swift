import ArgumentParser
import Foundation
import Node

struct Resync: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Makes the other node equal to this one from the beginning, or limits how fast it is brought back.",
        discussion: """
            It is never needed: a node that returns is brought back by itself, and what it lacks is known exactly. --full \
            is for an administrator who does not trust what lies on the other node's disk, or whom `lockstep verify` has \
            told of names that differ. Run it on the node that serves. First two of three rooms record that the other \
            node is not in sync: from then on, until it is done, it cannot take over. Then all files are compared, and \
            what differs is sent. The application goes on.

            --rate limits what is sent, and read for a comparison, in a second, besides what the application itself \
            writes: a number with K, M or G (powers of 1024), 64K or more, or none. It holds until the daemon restarts; \
            `resync.rateMebibytesPerSecond` in the configuration holds for good.
            """)
    @OptionGroup var options: MirrorOptions
    @Flag(name: .long, help: "Compare everything, and send what differs.")
    var full = false
    @Option(name: .long, help: "Bytes a second, such as 50M, or none.")
    var rate: String?
    @Flag(name: .long, help: "With --full: only begin; `lockstep status` shows how far it is.")
    var background = false

    func validate() throws {
        guard full || rate != nil else { throw ValidationError("say what: --full or --rate RATE") }
        if background, !full { throw ValidationError("--background goes with --full") }
        if let rate, Resync.bytes(rate) == nil {
            throw ValidationError("--rate \(rate): write bytes a second with K, M or G, 64K or more, or none")
        }
    }

    func run() throws {
        if let rate {
            var request = AdminRequest(.resyncRate)
            request.rate = Resync.bytes(rate)
            _ = try reply(to: request, options)
            print(request.rate == 0 ? "no limit" : "at most \(Units.bytes(request.rate ?? 0)) a second")
        }
        guard full else { return }
        _ = try reply(to: AdminRequest(.resyncFull), options)
        if background { return print("the comparison begins; `lockstep status` shows how far it is") }
        let progress = ProgressLine()
        var wasAlone = false
        while true {
            let status = try call(.status, options)
            wasAlone = wasAlone || !status.inSync
            if wasAlone, status.inSync {
                progress.end()
                return print("both nodes are in sync; \(Units.bytes(status.resync?.sentBytes ?? 0)) were sent")
            }
            guard status.primary == status.node else {
                progress.end()
                throw Failure.failed("this node does not serve any more: \(status.explanation)")
            }
            let resync = status.resync
            progress.show(
                StatusText.comingBack(status) ?? status.explanation,
                fraction: resync.flatMap {
                    $0.bytesTotal > 0 ? min(1, Double($0.bytesDone) / Double($0.bytesTotal)) : nil
                })
            Thread.sleep(forTimeInterval: 0.2)
        }
    }

    /// Bytes a second. Slower, a node would practically never come back.
    private static let slowestRate: UInt64 = 64 << 10

    /// 0: none; nil: not a rate.
    static func bytes(_ text: String) -> UInt64? {
        if text == "none" { return 0 }
        guard let unit = text.last, let index = ["K", "M", "G"].firstIndex(of: unit) else { return nil }
        let shift = 10 * UInt64(index + 1)
        let digits = text.dropLast()
        guard digits.allSatisfy(\.isNumber), let number = UInt64(digits), number <= (1 << 40) >> shift
        else { return nil }
        let rate = number << shift
        return rate >= Resync.slowestRate ? rate : nil
    }
}
