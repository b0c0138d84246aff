//  Decides whether what is there now may be there, after what a writer noted.
//
//  One writer does one operation after another, and the mirror has one order. So its directory must be what it was after
//  the first K of its operations, for some K; and if the operation that was in progress is one that may be cut, a mixture
//  of before and after it. Which K may be depends on what was lost:
//
//  * at most one room's memory: K is everything answered, or that and the one in progress;
//  * both memories at once: K is at least what an answered fsync, O_SYNC write, msync or change of names covers.
//
//  And over all writers: what is there may not have begun after the answer to something that is not there.
import Foundation

public struct Judge {
    /// What must have survived.
    public enum Demand: String, Sendable { case everythingAnswered, everythingSynced }

    /// What was found: the operations that are there, from the least to the most that would explain it.
    public struct Finding: Sendable {
        public var least: Int
        public var most: Int
    }

    /// Why what is there may not be there.
    public struct Violation: Error, CustomStringConvertible, Sendable { public let description: String }

    /// - Parameter found: the directory as it is now, with nobody writing.
    /// - Returns: how much of the life is there.
    /// - Throws: `Violation` if nothing explains it.
    public static func judge(_ life: Life, then found: FileModel, demand: Demand) throws -> Finding {
        for step in life.steps where step.isAnswered && step.result < 0 && !isHarmless(step.result) {
            throw Violation(
                description: """
                    \(life.writer) on \(life.node) was answered \(step.result) to '\(step.operation.line)', which what it was \
                    answered before leaves no room for.
                    """)
        }
        let floor = leastAllowed(life, demand)
        var model = life.base
        var states: [FileModel] = []
        for (index, step) in life.steps.enumerated() {
            if index >= floor { states.append(model) }
            // Without an answer, the effect as if it had succeeded.
            model.apply(step.operation, result: step.isAnswered ? step.result : fullResult(step.operation))
        }
        states.append(model)
        var matching: [Int] = []
        for (index, state) in states.enumerated() {
            let isHere =
                found.differences(from: state, limit: 1).isEmpty
                || (index > 0 && isHalfway(found, life.steps[floor + index - 1], from: states[index - 1], to: state))
            if isHere { matching.append(floor + index) }
        }
        if matching.isEmpty, let most = shortWriteContinued(life, found) { return Finding(least: most, most: most) }
        if let least = matching.first, let most = matching.last { return Finding(least: least, most: most) }
        throw Violation(description: explain(life, found, states, floor, demand))
    }

    /// A full disk does nothing; so does a file that got too many links. Any other error contradicts what was answered
    /// before: a writer asks for nothing that cannot be done.
    public static func isHarmless(_ result: Int) -> Bool {
        [-Int(ENOSPC), -Int(EDQUOT), -Int(EMLINK)].contains(result)
    }

    /// A life ends before the next one of the same writer begins.
    ///
    /// - Throws: `Violation` if an operation that began in an earlier life, after the later one, succeeded.
    public static func judgeSuccession(_ lives: [Life]) throws {
        for (life, next) in zip(lives, lives.dropFirst()) {
            guard let late = life.steps.first(where: { $0.begun > next.begun && $0.isAnswered && $0.result >= 0 })
            else { continue }
            throw Violation(
                description: """
                    \(life.writer) on \(life.node) was answered '\(late.operation.line)', begun \
                    \((late.begun - next.begun) / 1000) us after it had begun anew on \(next.node): two served at once.
                    """)
        }
    }

    private static func isHalfway(
        _ found: FileModel, _ step: Life.Step, from before: FileModel, to after: FileModel
    ) -> Bool {
        step.operation.isDivisible && found.isHalfway(from: before, to: after, at: step.operation.path)
    }

    /// A write of several requests whose server died between them: the kernel answers with what was written until then, and
    /// the request under way is as open as any that had no answer. Nothing after it can have been done.
    ///
    /// - Returns: how many operations are there, if that is what was found.
    private static func shortWriteContinued(_ life: Life, _ found: FileModel) -> Int? {
        guard let last = life.steps.lastIndex(where: \.isAnswered), last >= life.steps.count - 2 else { return nil }
        let step = life.steps[last]
        guard step.operation.isDivisible, (1..<step.operation.length).contains(step.result) else { return nil }
        var before = life.base
        for step in life.steps[..<last] { before.apply(step.operation, result: step.result) }
        var (short, full) = (before, before)
        short.apply(step.operation, result: step.result)
        full.apply(step.operation, result: step.operation.length)
        return found.isHalfway(from: short, to: full, at: step.operation.path) ? last + 1 : nil
    }

    private static func fullResult(_ operation: FileOperation) -> Int { operation.isDivisible ? operation.length : 0 }

    /// The least number of operations that must be there.
    static func leastAllowed(_ life: Life, _ demand: Demand) -> Int {
        let answered = life.steps.last?.isAnswered == false ? life.steps.count - 1 : life.steps.count
        guard demand == .everythingSynced else { return answered }
        var model = life.base
        /// The last step that changed each file: its bytes and size; anything of it.
        var lastData: [Int: Int] = [:]
        var lastAny: [Int: Int] = [:]
        var floor = 0
        for (index, step) in life.steps[..<answered].enumerated() where step.result >= 0 {
            let operation = step.operation
            model.apply(operation, result: step.result)
            let file = model.find(operation.path) ?? -1
            switch operation.kind {
            case .fsync: floor = max(floor, lastAny[file] ?? 0)
            case .fdatasync: floor = max(floor, lastData[file] ?? 0)
            case .write, .append, .mapWrite, .truncate, .allocate, .punch, .zero:
                lastData[file] = index + 1
                lastAny[file] = index + 1
            case .mode, .owner, .times: lastAny[file] = index + 1
            default: break
            }
            if operation.isDurableWhenAnswered { floor = max(floor, index + 1) }
        }
        return floor
    }

    /// Over all writers: each with its life and what was found of it.
    public static func judgeOrder(_ all: [(life: Life, finding: Finding)]) throws {
        for (one, missing) in all {
            guard missing.most < one.steps.count, let answered = one.steps[missing.most].ended else { continue }
            for (other, present) in all where present.least > 0 {
                let step = other.steps[present.least - 1]
                guard step.begun > answered else { continue }
                throw Violation(
                    description: """
                        \(one.writer) lacks its operation \(missing.most) (\(one.steps[missing.most].operation.line)), \
                        answered \((step.begun - answered) / 1000) us before \(other.writer) began its operation \
                        \(present.least - 1) (\(step.operation.line)), which is there.
                        """)
            }
        }
    }

    private static func explain(
        _ life: Life, _ found: FileModel, _ states: [FileModel], _ floor: Int, _ demand: Demand
    ) -> String {
        // Whichever is nearest is told.
        let counted = states.enumerated().map { ($0.offset, found.differences(from: $0.element, limit: 20)) }
        let nearest = counted.min { $0.1.count < $1.1.count } ?? (0, [])
        let paths = nearest.1.compactMap { $0.split(separator: ":").first.map(String.init) }
        let touching = life.steps.enumerated().filter { step in
            paths.contains(step.element.operation.path) || paths.contains(step.element.operation.other)
        }.suffix(6).map {
            "  \($0.offset) \($0.element.operation.line) -> \($0.element.ended == nil ? "no answer" : "\($0.element.result)")"
        }
        return """
            \(life.writer) on \(life.node), \(life.steps.count) operations, demand \(demand.rawValue): at least \(floor) must \
            be there. Nothing from there on explains what is found. Nearest, after \(floor + nearest.0) operations \
            (found / wanted):
              \(nearest.1.joined(separator: "\n  "))
            Last operations on these:
            \(touching.joined(separator: "\n"))
            """
    }
}
