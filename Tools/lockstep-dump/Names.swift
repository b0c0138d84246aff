import ArgumentParser
import CLinux
import CommandMain
import Format
import Foundation

/// Names of files, from the journal's own records and, if asked for, from the plain files.
struct Names {
    private struct Place {
        var parent: FileID
        var name: FileName
    }
    private var places: [FileID: Place] = [:]
    /// Paths found by a scan: as they are now, below the mirrored directory.
    private var scanned: [FileID: String] = [:]

    /// Reads the file numbers under `directory`.
    mutating func scan(_ directory: String) throws {
        var isDirectory: ObjCBool = false
        guard FileManager.default.fileExists(atPath: directory, isDirectory: &isDirectory), isDirectory.boolValue else {
            throw ValidationError("--backing \(directory): no such directory")
        }
        scanned[.root] = "/"
        guard let walker = FileManager.default.enumerator(atPath: directory) else { return }
        var found = 0
        for case let path as String in walker {
            // Sixteen hexadecimal digits.
            var tag = [UInt8](repeating: 0, count: 16)
            let count = clinux_getxattr(directory + "/" + path, "trusted.lockstep.fid", &tag, tag.count, 0)
            guard count == tag.count, let number = UInt64(String(decoding: tag, as: UTF8.self), radix: 16) else {
                continue
            }
            scanned[FileID(rawValue: number)] = "/" + path
            found += 1
        }
        if found == 0 {
            tell("lockstep-dump: no file below \(directory) shows a file number (only root may read them)")
        }
    }

    /// Takes in what a record says, after it has happened.
    mutating func note(_ body: RecordBody) {
        switch body {
        case .create(let file, let parent, let name, _, _, _), .link(let file, let parent, let name):
            places[file] = Place(parent: parent, name: name)
        case .rename(let file, let parent, let name, let newParent, let newName, let exchange, let replaced, _):
            places[file] = Place(parent: newParent, name: newName)
            if exchange { places[replaced] = Place(parent: parent, name: name) }
        case .imageDirectory(let directory, _, _, _, _, let entries):
            for entry in entries { places[entry.file] = Place(parent: directory, name: entry.name) }
        default: break
        }
    }

    /// Takes in what a record says of the time before it.
    mutating func noteBefore(_ body: RecordBody) {
        switch body {
        case .remove(let file, let parent, let name, _, _), .rename(let file, let parent, let name, _, _, _, _, _):
            if places[file] == nil { places[file] = Place(parent: parent, name: name) }
        default: break
        }
    }

    /// The path as far as it is known; nil when nothing is.
    func path(_ file: FileID) -> String? {
        if file == .root { return "/" }
        var parts: [String] = []
        var current = file
        for _ in 0..<64 {
            guard let place = places[current] else { break }
            parts.append(String(decoding: place.name, as: UTF8.self))
            current = place.parent
            if current == .root { return "/" + parts.reversed().joined(separator: "/") }
        }
        if let known = scanned[current] { return ([known] + parts.reversed()).joined(separator: "/") }
        return parts.isEmpty ? nil : ".../" + parts.reversed().joined(separator: "/")
    }
}

struct DumpError: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}
