import Format
import Foundation
import Glibc
import Testing

@testable import Node

/// The votes on disk, and those that were forgotten beside them, whatever a crash has left.
@Suite struct VoteFileTests {
    private let directory: String
    private let file: VoteFile
    private let old: AcceptorState
    private let new: AcceptorState

    init() throws {
        directory = NSTemporaryDirectory() + "/votes-\(UInt64.random(in: 0...UInt64.max))"
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        file = VoteFile(path: directory + "/votes", forgottenPath: directory + "/votes.forgotten")
        let mirror = MirrorID(high: 1, low: 2)
        old = AcceptorState.genesis(mirror: mirror, name: "ledger", node: .b, birth: 5)
        new = AcceptorState.genesis(mirror: mirror, name: "ledger", node: .b, birth: 6)
    }

    private var names: [String] {
        (try? FileManager.default.contentsOfDirectory(atPath: directory).sorted()) ?? []
    }

    @Test func failure18ForgottenVotesAreKeptAsideUntilThereAreNewOnes() throws {
        defer { try? FileManager.default.removeItem(atPath: directory) }
        try file.store(old)
        try file.store(nil)
        #expect(names == ["votes.forgotten"])
        #expect(try file.recall() == (nil, old))
        // Once more, without votes: what is kept is not replaced by nothing.
        try file.store(nil)
        #expect(try file.recall() == (nil, old) && file.load() == nil)
        try file.store(new)
        #expect(names == ["votes"])
        #expect(try file.recall() == (new, nil))
    }

    @Test func failure18WhatACrashLeavesOfBothFilesIsToldApart() throws {
        defer { try? FileManager.default.removeItem(atPath: directory) }
        // It died before it removed what was forgotten.
        try Data(old.encoded()).write(to: URL(fileURLWithPath: file.forgottenPath))
        try Data(new.encoded()).write(to: URL(fileURLWithPath: file.path))
        #expect(try file.recall() == (new, nil))
        try file.store(new)
        #expect(names == ["votes"])
        // Somebody has copied the old votes back, older or newer ones than those that were put aside.
        for isNewer in [false, true] {
            var copied = old
            copied.starts = isNewer ? 9 : 0
            var kept = old
            kept.starts = 4
            try Data(kept.encoded()).write(to: URL(fileURLWithPath: file.forgottenPath))
            try Data(copied.encoded()).write(to: URL(fileURLWithPath: file.path))
            let wanted = isNewer ? copied : kept
            #expect(try file.recall() == (nil, wanted))
            #expect(names == ["votes.forgotten"])
            #expect(try file.recall() == (nil, wanted))
        }
    }

    /// A damaged one is in nobody's way as long as there are votes.
    @Test func failure18DamagedForgottenVotesCountForNothing() throws {
        defer { try? FileManager.default.removeItem(atPath: directory) }
        try Data([1, 2, 3]).write(to: URL(fileURLWithPath: file.forgottenPath))
        #expect(throws: VoteFile.Damaged.self) { try file.recall() }
        try file.store(new)
        #expect(names == ["votes"])
        try Data([1, 2, 3]).write(to: URL(fileURLWithPath: file.forgottenPath))
        #expect(try file.recall() == (new, nil))
    }
}
