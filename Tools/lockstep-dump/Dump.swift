import ArgumentParser
import Format
import Foundation
import Journal

struct Dump: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "lockstep-dump",
        abstract:
            "Show what is in a journal or a rescue journal. Never writes to it; works on a live journal, a copy, and a "
            + "damaged one.",
        discussion: """
            Without --verify it lists the superblock, the batches and their records. Everything that can be read is \
            shown, and what cannot is named.

            A rescue journal (`state`/rescue) holds records that a node gave up after the other one was promoted by force.

            Exit status: 0 all is well; 1 the journal is damaged or would be refused, or a rescue journal does not hold \
            everything that was given up; 2 it cannot be read at all, or wrong usage.
            """)

    @Argument(help: "The journal file or device, or a copy of one.")
    var journal: String

    @Option(help: ArgumentHelp("Only records with these numbers.", valueName: "A..B"))
    var seq: SeqRange?

    @Option(
        help: ArgumentHelp("Only records of this file: its number (16 hex digits), name, or path.", valueName: "FILE"))
    var file: String?

    @Option(help: ArgumentHelp("Only records from this time on, such as 2026-01-31T12:00:00Z.", valueName: "TIME"))
    var since: Moment?

    @Option(help: ArgumentHelp("Only records before this time.", valueName: "TIME"))
    var until: Moment?

    @Option(help: ArgumentHelp("Take file names from the plain files here (their xattrs).", valueName: "DIR"))
    var backing: String?

    @Option(
        help: ArgumentHelp(
            "Also write what the listed records wrote into this new directory: for each file its written ranges, and "
                + "index.tsv with all records.", valueName: "DIR"))
    var extract: String?

    @Flag(help: "Say what recovery would decide, and why. Does not list records.")
    var verify = false

    @Flag(help: "Show the bytes of writes.")
    var payload = false

    @Flag(help: "One JSON object; one line per batch within it.")
    var json = false

    func run() throws {
        let reader = try open()
        // What is wrong with the options is said before the first line goes out.
        let rescue = try rescueFile(reader)
        let output: any Output = json ? JSONOutput(payload: payload) : TextOutput(payload: payload)
        var listing = Listing(
            reader: reader, filter: filter(), names: try names(), output: output,
            extractor: verify && rescue == nil ? nil : try extract.map { try Extractor(directory: $0) })
        if let rescue { return try show(rescue, &listing) }
        let map: JournalMap
        do {
            map = try look(reader)
        } catch {
            try showRefused(&listing, error)
            throw ExitCode(1)
        }
        output.begin(journal: journal, superblocks: SuperblockSet(image: reader), report: map.report)
        var complete = true
        if !verify {
            complete = listing.list(map.segments)
            try listing.extractor?.finish()
        }
        output.end(report: map.report, verify: verify)
        let isGood =
            switch map.report.verdict {
            case .intact, .tailCut: complete && !map.report.isIncomplete
            case .damaged: false
            }
        if !isGood { throw ExitCode(1) }
    }

    /// A live journal changes while it is read, which can look like damage: then a second and third look decide.
    private func look(_ reader: JournalReader) throws(JournalError) -> JournalMap {
        for _ in 0..<2 {
            let map = try JournalMap(image: reader, mirror: nil)
            guard case .damaged = map.report.verdict else { return map }
            let generation = SuperblockSet(image: reader).highestGeneration
            usleep(200_000)
            let again = try JournalMap(image: reader, mirror: nil)
            if again.report == map.report, again.superblocks.highestGeneration == generation { return again }
        }
        return try JournalMap(image: reader, mirror: nil)
    }

    /// Past the page cache when the file system can, because the journal is written that way.
    private func open() throws -> JournalReader {
        do {
            return try JournalReader(path: journal)
        } catch {
            switch error.code {
            case .system(EINVAL): return try JournalReader(path: journal, direct: false)
            // Not the status of a damaged journal: nobody has looked at it.
            case .notFound, .system: throw ValidationError("\(error)")
            default: throw error
            }
        }
    }

    /// No superblocks to go by: every batch that can be found by itself.
    private func showRefused(_ listing: inout Listing, _ error: JournalError) throws {
        let (reader, output) = (listing.reader, listing.output)
        output.refused(journal: journal, superblocks: SuperblockSet(image: reader), error: error)
        if !verify {
            _ = listing.list(JournalMap.everyHeader(in: reader))
            try listing.extractor?.finish()
        }
        output.end(report: nil, verify: verify)
    }

    private func filter() -> Filter {
        Filter(
            seqs: seq?.range, file: file, since: since?.nanoseconds, until: until?.nanoseconds)
    }

    private func names() throws -> Names {
        var names = Names()
        if let backing { try names.scan(backing) }
        return names
    }
}

/// `A..B`, `A..`, `..B` or `A`; both ends belong to it.
struct SeqRange: ExpressibleByArgument {
    let range: ClosedRange<UInt64>

    init?(argument: String) {
        if let one = UInt64(argument) {
            range = one...one
            return
        }
        guard let dots = argument.range(of: "..") else { return nil }
        let low = argument[..<dots.lowerBound]
        let high = argument[dots.upperBound...]
        guard let from = low.isEmpty ? 0 : UInt64(low), let to = high.isEmpty ? UInt64.max : UInt64(high), from <= to
        else { return nil }
        range = from...to
    }
}

/// A moment: ISO 8601 or seconds since 1970.
struct Moment: ExpressibleByArgument {
    let nanoseconds: Int64
    private static let secondsMax = 9_200_000_000.0

    init?(argument: String) {
        if let seconds = Int64(argument), seconds.magnitude < 1 << 33 {
            nanoseconds = seconds * 1_000_000_000
            return
        }
        let formatter = ISO8601DateFormatter()
        var date = formatter.date(from: argument)
        if date == nil {
            formatter.formatOptions = [.withInternetDateTime, .withFractionalSeconds]
            date = formatter.date(from: argument)
        }
        // Nanoseconds since 1970 in 64 bits end in 2262.
        guard let date, abs(date.timeIntervalSince1970) < Moment.secondsMax else { return nil }
        nanoseconds = Int64((date.timeIntervalSince1970 * 1000).rounded()) * 1_000_000
    }
}
