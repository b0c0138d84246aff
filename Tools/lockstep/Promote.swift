import ArgumentParser
import Foundation
import Node

struct Promote: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract:
            "Lets this node serve although it is not in sync: only when the node that is in sync is lost for good.",
        discussion: """
            Without --accept-loss it says what would be lost and whether it is possible, changes nothing, and ends with \
            status 1. With it, two of three rooms record that this node leads alone from its old point; what the other \
            node acknowledged since is lost to the application. It is refused while the other node still serves. If the \
            other node ever returns, what only it has is saved there as a rescue journal.
            """)
    @OptionGroup var options: MirrorOptions
    @Flag(name: .long, help: "Do it, and accept the loss that is named.")
    var acceptLoss = false
    @Flag(
        name: .long,
        help:
            "The witness is empty (installed anew), and the other node, which could fill it, is lost: fill it from here."
    )
    var seedWitness = false
    @Flag(name: .long, help: "Print JSON with stable keys (docs/operations.md).")
    var json = false
    @Option(name: .long, help: "Seconds to wait for the end.")
    var timeout = 60

    struct Answer: Encodable {
        var report: PromotionReport
        /// `notOrdered`, `refused`, `serves`, `unknown` (the time is over).
        var outcome: String
    }

    func run() throws {
        var request = AdminRequest(.promote)
        request.acceptLoss = acceptLoss
        request.seedWitness = seedWitness
        guard var report = try reply(to: request, options).promotion else {
            throw Failure.failed("lockstepd sent an empty answer; are both of one version?")
        }
        if !json { show(report) }
        guard acceptLoss, report.refusal == nil else {
            try finish(report, report.refusal == nil ? "notOrdered" : "refused")
            if let refusal = report.refusal { throw Failure.failed("not possible now: \(refusal)") }
            let command =
                "lockstep promote --config \(options.config) --accept-loss\(seedWitness ? " --seed-witness" : "")"
            throw Failure.failed("nothing was changed. To do it all the same: \(command)")
        }
        let status: NodeStatus
        do {
            status = try wait(options, seconds: timeout) {
                ["refused", "overtaken"].contains($0.promotion) || $0.role == "ALONE" || $0.role == "PRIM"
            }
        } catch {
            try finish(report, "unknown")
            throw error
        }
        guard status.role == "ALONE" || status.role == "PRIM" else {
            report.refusal = status.promotionMessage
            try finish(report, "refused")
            throw Failure.failed("not promoted: \(status.promotionMessage)")
        }
        try finish(report, "serves")
        if !json {
            print("\(status.node) serves since epoch \(status.epoch), by force; `lockstep status` remembers it")
        }
    }

    private func show(_ report: PromotionReport) {
        print("forced promotion of \(report.node)")
        for line in report.lost { print("  \(line)") }
    }

    private func finish(_ report: PromotionReport, _ outcome: String) throws {
        guard json else { return }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        print(String(decoding: try encoder.encode(Answer(report: report, outcome: outcome)), as: UTF8.self))
    }
}

struct Rejoin: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Gives up what this node alone has and could not save, so that it is brought back.",
        discussion: """
            A node that returns after the other one was promoted by force saves what only it has in `state`/rescue. If it \
            cannot (no room, damage, records older than its journal), it waits, and `lockstep status` says why. Copy \
            `backing` away first if what may be lost counts.
            """)
    @OptionGroup var options: MirrorOptions
    @Flag(name: .long, help: "Discard what could not be saved.")
    var discard = false

    func run() throws {
        guard discard else {
            let status = try call(.status, options)
            throw Failure.failed(
                status.heldBack.isEmpty
                    ? "nothing holds this node back: there is nothing to discard"
                    : "\(status.heldBack)\nTo discard it: lockstep rejoin --config \(options.config) --discard")
        }
        _ = try call(.rejoin, options)
        print("what could not be saved is discarded; the node is being brought back, see `lockstep status`")
    }
}
