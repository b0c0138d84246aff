import Format
import Foundation
import Tree

/// What an administrator, or the schedule, asks of a verification.
public struct VerifyOptions: Codable, Sendable, Equatable {
    /// Below the mirrored directory, "" for all of it.
    public var path: String
    public var repair: Bool
    /// Name of the node whose copy is taken where nothing proves which one is right; nil: then nothing is repaired.
    public var prefer: String?
    public init(path: String = "", repair: Bool = false, prefer: String? = nil) {
        self.path = path
        self.repair = repair
        self.prefer = prefer
    }
}

/// One difference between the two rooms.
public struct VerifyFinding: Codable, Sendable, Equatable {
    public enum Kind: String, Codable, Sendable {
        /// Bytes of a file.
        case data
        /// Attributes, extended attributes, the target of a link.
        case attributes
        /// A name of a directory.
        case name
        /// One node cannot read it.
        case unreadable
        /// There by name, but not to be found.
        case missing
    }
    public enum State: String, Codable, Sendable {
        case found
        case repaired
        /// A repair was asked for, and nothing proves which side is right.
        case undecided
        /// A repair was asked for and did not help.
        case failed
        /// The application has overwritten it before it could be looked at closely.
        case overwritten
    }
    public var path: String
    public var kind: Kind
    public var state: State
    /// Bytes of the file, when the kind is `data` or `unreadable`.
    public var offset: UInt64?
    public var length: UInt64?
    public var detail: String

    /// One line for people.
    public var text: String {
        var text = "/\(path): "
        switch kind {
        case .data: text += "bytes \(offset ?? 0) to \((offset ?? 0) + max(1, length ?? 1) - 1) differ"
        case .unreadable: text += "cannot be read"
        case .attributes: text += "attributes differ"
        case .name: text += "names differ"
        case .missing: text += "missing"
        }
        if !detail.isEmpty { text += ": \(detail)" }
        switch state {
        case .found: break
        case .repaired: text += " (repaired)"
        case .undecided: text += " (NOT repaired: nothing proves which side is right; see --prefer)"
        case .failed: text += " (NOT repaired)"
        case .overwritten: text += " (overwritten by the application meanwhile)"
        }
        return text
    }
}

/// A verification under way, as far as it has to outlive the process: a few hundred bytes and its findings, in the state
/// directory. If it is lost or damaged, the next verification begins anew; nothing else depends on it.
struct VerifyProgress: Codable, Sendable {
    var options: VerifyOptions
    var isScheduled: Bool
    var started: Date
    /// Every object with a number up to this one has been compared.
    var position: UInt64 = 0
    /// Objects with higher numbers were made after the start.
    var end: UInt64
    var files: UInt64 = 0
    var bytes: UInt64 = 0
    var counts = VerifyCounts()
    /// The first `VerifyLimits.findings` of them.
    var findings: [VerifyFinding] = []
}

struct VerifyCounts: Codable, Sendable, Equatable {
    var differences: UInt64 = 0
    var repaired: UInt64 = 0
}

/// How the last verification ended.
struct VerifySummary: Codable, Sendable {
    var options: VerifyOptions
    var started: Date
    var finished: Date
    /// false: stopped by an administrator or an error.
    var isComplete: Bool
    var files: UInt64
    var bytes: UInt64
    var counts: VerifyCounts
    var problem: String?
}

/// The file `verify.json` in the state directory.
struct VerifyMemory: Codable, Sendable {
    var current: VerifyProgress?
    var last: VerifySummary?
    /// Of the last verification, finished or not.
    var findings: [VerifyFinding] = []
    /// When the schedule began one last, or this file was made.
    var lastScheduled = Date()

    static func path(_ state: String) -> String { state + "/verify.json" }

    static func load(_ state: String) -> VerifyMemory {
        guard let data = FileManager.default.contents(atPath: path(state)),
            let memory = try? JSONDecoder().decode(VerifyMemory.self, from: data)
        else { return VerifyMemory() }
        return memory
    }

    /// Written beside and renamed into place; not flushed: after a power cut an older position costs comparing again.
    func store(_ state: String) throws {
        try JSONEncoder().encode(self).write(to: URL(fileURLWithPath: VerifyMemory.path(state)), options: .atomic)
    }
}

/// How directories are asked about. Each question reads all names of its directory, because it chooses by their hashes,
/// and the directory's records wait for it meanwhile.
struct VerifyDirectories {
    /// Names of one question.
    var namesOfPart: UInt64 = 4096
    /// Questions for one directory; in larger ones each covers more names, because each reads all of them.
    var partsLimit: UInt64 = 32
    /// But no more than so many: each is opened, and whoever changes a name of the directory waits for the answer.
    var namesOfPartLimit: UInt64 = 16_384
    /// Names asked for one by one: half of what fits, because a hash does not divide evenly.
    var namesOfAnswer = UInt64(VerifyCheck.entryLimit / 2)

    func parts(names: UInt64) -> UInt64 {
        let small = (names + namesOfPart - 1) / namesOfPart
        let few = (names + namesOfPartLimit - 1) / namesOfPartLimit
        return max(1, min(small, partsLimit), few)
    }

    /// - Parameter names: of all groups of an answer together.
    func answers(names: UInt64) -> UInt64 {
        let ofGroup = names / UInt64(VerifyCheck.nameGroups)
        return max(1, (ofGroup + namesOfAnswer - 1) / namesOfAnswer)
    }

    /// What a question reads, for the limit on the rate: an entry of the directory for each name, an inode for each
    /// that is opened.
    func cost(names: UInt64, opened: UInt64) -> UInt64 { names * 64 + opened * 256 }
}

enum VerifyLimits {
    /// Objects under way at once.
    static let tasks = 32
    /// Windows of one file under way at once.
    static let windowsOfFile = 4
    /// Content of one question when there is data: so long at most do other changes of that file wait to be applied.
    static let windowBytes: UInt64 = 1 << 20
    /// What a question costs besides its content, for the limit on the rate.
    static let questionBytes = 4096
    /// Numbers fetched from the file table at once, by a pass over all of it: ten passes for ten million files.
    static let batch = PlainTree.filesOfPass
    /// Objects below a path that is given: 8 bytes each.
    static let pathObjects = 4_000_000
    /// Findings kept; more are only counted.
    static let findings = 1000
    /// The position goes to the disk so often, seconds.
    static let storeSeconds: UInt64 = 5
    /// Ranges of one file that are repaired one by one; a file with more is better made equal as a whole.
    static let repairsOfFile = 4096
    /// Tries to repair attributes that the application changes all the time.
    static let attributeTries = 8
}
