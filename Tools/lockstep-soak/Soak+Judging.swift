//  After each round: writers wait, both rooms' plain files are compared, and what is there is judged by the notes.
import Foundation
import Rooms
import Workload

extension Soak {
    /// Longer than writers need to begin, or to finish the operation that they do.
    private static let quietSecondsMax = 60.0
    /// An operation that was answered so long before a loss was on the disks by then.
    private static let flushNanosecondsMax: UInt64 = 5_000_000_000

    func judge() throws {
        let names = (0..<settings.writers).map { "w\($0)" }
        for name in names { unlink(Writer.waitingFile(records, name)) }
        try Data().write(to: URL(fileURLWithPath: Writer.pauseFile(records)))
        try waitUntil("all writers wait", within: Soak.quietSecondsMax, every: 0.05) {
            names.allSatisfy { access(Writer.waitingFile(records, $0), F_OK) == 0 }
        } otherwise: {
            cluster.describe()
        }
        let comparison = try identicalTrees()
        result.entriesCompared += comparison.entriesCompared
        result.bytesCompared += comparison.bytesCompared
        try judgeNotes(names)
        try judgeVerifications()
        unlink(Writer.pauseFile(records))
    }

    /// No verification has found a difference between files that are equal. A disk that failed cannot be read: that is one.
    private func judgeVerifications() throws {
        for node in cluster.nodes {
            guard let log = cluster.daemon(node)?.log else { continue }
            let lines = try String(contentsOfFile: log, encoding: .utf8).split(separator: "\n")
            let claims = lines.filter { $0.contains("the two rooms differ: ") && !$0.contains("cannot be read") }
            guard let claim = claims.first else { continue }
            throw RoomsError(
                "\(claims.count) differences claimed by a verification between files that are equal: \(claim)")
        }
    }

    /// Waits for what is still being applied.
    private func identicalTrees() throws -> TreeComparison {
        let end = bootSeconds() + Soak.quietSecondsMax
        while true {
            let trees = Result { try cluster.compareTrees() }
            if case .success(let trees) = trees, trees.isIdentical { return trees }
            if bootSeconds() > end {
                let differences = try trees.get().differences.prefix(20).joined(separator: "\n  ")
                throw RoomsError("the plain files of the rooms differ (alpha / beta):\n  \(differences)")
            }
            usleep(200_000)
        }
    }

    private func judgeNotes(_ names: [String]) throws {
        let now = bootNanoseconds()
        let all = try Life.readAll(in: records)
        var finals: [(life: Life, finding: Judge.Finding)] = []
        var operations = 0
        for name in names {
            let lives = all[name] ?? []
            guard let last = lives.last else { throw RoomsError("\(name) has noted nothing") }
            try Judge.judgeSuccession(lives)
            if let before = verified[name] {
                let differences = lives[0].base.differences(from: before)
                guard differences.isEmpty else {
                    throw RoomsError(
                        "\(name) began on \(lives[0].node) with other files than it had stopped with (found / wanted):\n  "
                            + differences.joined(separator: "\n  "))
                }
            }
            let found = try FileModel(
                reading: cluster.alpha.room.hostPath(Cluster.backing + "/" + name), direct: false)
            for (index, life) in lives.enumerated() {
                let isLast = index == lives.count - 1
                let finding = try judge(
                    life, then: isLast ? found : lives[index + 1].base, until: isLast ? now : lives[index + 1].begun)
                if isLast { finals.append((last, finding)) }
                operations += life.steps.count
            }
            verified[name] = found
        }
        try Judge.judgeOrder(finals)
        progress.say("         \(operations) operations judged, trees identical")
        for file in try FileManager.default.contentsOfDirectory(atPath: records)
        where file.hasSuffix(".base") || file.hasSuffix(".log") {
            unlink(records + "/" + file)
        }
        memoryLosses.removeAll { $0.time + Soak.flushNanosecondsMax < now }
    }

    private func judge(_ life: Life, then found: FileModel, until end: UInt64) throws -> Judge.Finding {
        let lastActive = life.steps.last.map { $0.ended ?? $0.begun } ?? life.begun
        let from = lastActive - min(lastActive, Soak.flushNanosecondsMax)
        let lost = Set(memoryLosses.filter { (from...end).contains($0.time) }.map(\.node))
        let demand: Judge.Demand = lost.count == 2 ? .everythingSynced : .everythingAnswered
        let finding = try Judge.judge(life, then: found, demand: demand)
        result.livesJudged += 1
        let answered = life.steps.filter(\.isAnswered).count
        result.operationsAnswered += answered
        result.operationsSynced += life.steps.filter { $0.isAnswered && $0.operation.isDurableWhenAnswered }.count
        if demand == .everythingSynced {
            result.livesJudgedAfterDoubleLoss += 1
            result.unsyncedLost += max(0, answered - finding.most)
        }
        return finding
    }
}
