import ArgumentParser
import Format
import Foundation
import Journal

extension Dump {
    /// nil: it is none.
    func rescueFile(_ reader: JournalReader) throws -> RescueFile? {
        do throws(DecodingError) {
            return try RescueFile(image: reader)
        } catch {
            throw DumpError("\(journal) is a damaged rescue journal: \(error)")
        }
    }

    /// Lists (or extracts from) a rescue journal.
    func show(_ file: RescueFile, _ listing: inout Listing) throws {
        let output = listing.output
        output.rescue(journal: journal, file.header)
        let isWhole = listing.list(file.batches) && !file.isTorn
        try listing.extractor?.finish()
        output.end(report: nil, verify: verify)
        if !isWhole || file.header.missing > 0 { throw ExitCode(1) }
    }
}

/// Writes what the records of a journal wrote into a directory, for people to look at: for each file one sparse file that
/// holds the written ranges at their places, and a list of all ranges in order.
final class Extractor {
    private let directory: String
    private var index = "seq\ttime\tfile\tpath\twhat\toffset\tlength\n"
    /// One name for each file, whatever it is called later.
    private var files: [FileID: String] = [:]
    /// The first failure; thrown at the end, so that everything that can be listed is.
    var failure: (any Error)?

    init(directory: String) throws {
        self.directory = directory
        let manager = FileManager.default
        if let present = try? manager.contentsOfDirectory(atPath: directory), !present.isEmpty {
            throw ValidationError("--extract \(directory): not empty; name a new directory")
        }
        do {
            try manager.createDirectory(
                atPath: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        } catch {
            throw DumpError("--extract \(directory): \(error.localizedDescription)")
        }
    }

    func take(_ shown: ShownRecord) throws {
        let file = shown.record.body.touched.first
        var columns = [
            "\(shown.seq)", timeText(shown.record.time), file.map { "\($0)" } ?? "", clean(shown.path ?? ""),
            clean(shown.record.body.words(length: shown.record.payload.length))
                + (shown.state == .damaged ? " DAMAGED" : ""),
        ]
        if case .write(let number, let offset) = shown.record.body {
            columns += ["\(offset)", "\(shown.record.payload.length)"]
            if let bytes = shown.bytes { try write(bytes, at: offset, to: name(number, shown.path)) }
        } else {
            columns += ["", ""]
        }
        index += columns.joined(separator: "\t") + "\n"
    }

    /// The file's number, and its last name as far as it is known, without anything that could lead elsewhere.
    private func name(_ file: FileID, _ path: String?) -> String {
        if let known = files[file] { return known }
        let last = path?.split(separator: "/").last.map(String.init) ?? ""
        let safe = last.unicodeScalars.map { scalar -> String in
            let isSafe =
                (scalar.isASCII && (scalar.properties.isAlphabetic || ("0"..."9").contains(scalar)))
                || "._-".unicodeScalars.contains(scalar)
            return isSafe ? String(scalar) : "_"
        }.joined().prefix(100)
        let name = "\(file)" + (safe.isEmpty ? "" : "-\(safe)")
        files[file] = name
        return name
    }

    private func clean(_ text: String) -> String {
        text.replacingOccurrences(of: "\t", with: " ").replacingOccurrences(of: "\n", with: " ")
    }

    private func write(_ bytes: [UInt8], at offset: UInt64, to name: String) throws {
        let path = directory + "/" + name
        let descriptor = open(path, O_WRONLY | O_CREAT | O_NOFOLLOW, 0o600)
        guard descriptor >= 0 else { throw DumpError("cannot create \(path): \(String(cString: strerror(errno)))") }
        defer { close(descriptor) }
        guard offset <= UInt64(Int64.max), pwrite(descriptor, bytes, bytes.count, off_t(offset)) == bytes.count else {
            throw DumpError("cannot write \(path): \(String(cString: strerror(errno)))")
        }
    }

    func finish() throws {
        if let failure { throw failure }
        do {
            try Data(index.utf8).write(to: URL(fileURLWithPath: directory + "/index.tsv"))
        } catch {
            throw DumpError("cannot write \(directory)/index.tsv: \(error.localizedDescription)")
        }
    }
}
