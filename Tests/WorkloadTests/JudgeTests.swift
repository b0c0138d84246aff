//  The judge of the soak: what it accepts, and that it finds each thing it is there to find.
import Foundation
import Testing

@testable import Workload

/// A life of drawn operations, and the state after each.
private struct Story {
    var life: Life
    var states: [FileModel]

    init(seed: UInt64, count: Int) {
        var source = OperationSource(seed: seed)
        var model = FileModel()
        life = Life(writer: "w0", node: "alpha", begun: 1, base: model)
        states = [model]
        for index in 0..<count {
            let operation = source.next(in: model)
            var step = Life.Step(operation: operation, begun: UInt64(index * 10 + 2), ended: UInt64(index * 10 + 3))
            step.result = operation.isDivisible ? operation.length : 0
            model.apply(operation, result: step.result)
            life.steps.append(step)
            states.append(model)
        }
    }

    init(_ operations: [FileOperation]) {
        self.init(seed: 1, count: 0)
        for operation in operations {
            let begun = UInt64(life.steps.count * 10 + 2)
            var step = Life.Step(operation: operation, begun: begun, ended: begun + 1)
            step.result = operation.isDivisible ? operation.length : 0
            life.steps.append(step)
            states.append(states[states.count - 1])
            states[states.count - 1].apply(operation, result: step.result)
        }
    }
}

private func writing(_ path: String, at offset: Int, _ length: Int, _ access: FileOperation.Access = .buffered)
    -> FileOperation
{
    var operation = FileOperation(.write, path)
    (operation.offset, operation.length, operation.pattern, operation.access) = (offset, length, 7, access)
    return operation
}

@Suite struct JudgeTests {
    @Test(arguments: 1...8) func whatEveryAnswerLedToIsAccepted(seed: UInt64) throws {
        let story = Story(seed: seed, count: 300)
        let finding = try Judge.judge(story.life, then: story.states[300], demand: .everythingAnswered)
        #expect(finding.most == 300)
    }

    @Test(arguments: 1...8) func aMissingAnsweredOperationIsFound(seed: UInt64) throws {
        let story = Story(seed: seed, count: 300)
        // The last one that changed something that is modelled.
        let last = try #require((1...300).last { !story.states[$0].differences(from: story.states[$0 - 1]).isEmpty })
        #expect(throws: Judge.Violation.self) {
            try Judge.judge(story.life, then: story.states[last - 1], demand: .everythingAnswered)
        }
    }

    @Test func anOperationInProgressMayBeThereOrNotOrHalf() throws {
        var story = Story([FileOperation(.create, "f"), writing("f", at: 0, 8192)])
        story.life.steps[1].ended = nil
        for state in story.states[1...] {
            _ = try Judge.judge(story.life, then: state, demand: .everythingAnswered)
        }
        var half = story.states[1]
        half.apply(writing("f", at: 0, 4096), result: 4096)
        _ = try Judge.judge(story.life, then: half, demand: .everythingAnswered)
        half.apply(writing("f", at: 8192, 1), result: 1)
        #expect(throws: Judge.Violation.self) {
            try Judge.judge(story.life, then: half, demand: .everythingAnswered)
        }
    }

    /// The server died between two requests of one write: the rest is open, but only at the end of a life.
    @Test func theRestOfAShortWriteMayBeThereAtTheEndOnly() throws {
        var story = Story([FileOperation(.create, "f"), writing("f", at: 0, 8192), FileOperation(.create, "g")])
        story.life.steps[1].result = 4096
        story.life.steps[2].ended = nil
        _ = try Judge.judge(story.life, then: story.states[2], demand: .everythingAnswered)
        #expect(throws: Judge.Violation.self) {
            try Judge.judge(story.life, then: story.states[1], demand: .everythingAnswered)
        }
        story.life.steps[2].ended = 100
        #expect(throws: Judge.Violation.self) {
            try Judge.judge(story.life, then: story.states[3], demand: .everythingAnswered)
        }
    }

    @Test func afterALossOfBothMemoriesOnlyWhatWasSyncedMustBeThere() throws {
        let story = Story([
            FileOperation(.create, "f"), writing("f", at: 0, 100), FileOperation(.fsync, "f"),
            writing("f", at: 50, 100),
        ])
        for kept in [2, 3, 4] {
            _ = try Judge.judge(story.life, then: story.states[kept], demand: .everythingSynced)
        }
        #expect(throws: Judge.Violation.self) {
            try Judge.judge(story.life, then: story.states[1], demand: .everythingSynced)
        }
        #expect(throws: Judge.Violation.self) {
            try Judge.judge(story.life, then: story.states[2], demand: .everythingAnswered)
        }
    }

    @Test func aSynchronousWriteOrANameCoversEverythingBeforeIt() {
        #expect(
            Judge.leastAllowed(
                Story([
                    FileOperation(.create, "f"), writing("f", at: 0, 9), FileOperation(.create, "g"),
                    writing("g", at: 0, 9, .dataSync),
                    writing("f", at: 9, 9),
                ]).life, .everythingSynced) == 4)
        // fdatasync covers bytes, not the mode.
        var mode = FileOperation(.mode, "f")
        mode.value = 0o600
        let steps = [FileOperation(.create, "f"), writing("f", at: 0, 9), mode]
        #expect(Judge.leastAllowed(Story(steps + [FileOperation(.fdatasync, "f")]).life, .everythingSynced) == 2)
        #expect(Judge.leastAllowed(Story(steps + [FileOperation(.fsync, "f")]).life, .everythingSynced) == 3)
    }

    /// Something of the middle is missing while something later is there: no prefix.
    @Test func aHoleInTheOrderIsFound() throws {
        let story = Story([
            FileOperation(.create, "f"), FileOperation(.create, "g"), writing("f", at: 0, 100),
            writing("g", at: 0, 100),
        ])
        var found = story.states[2]
        found.apply(writing("g", at: 0, 100), result: 100)
        #expect(throws: Judge.Violation.self) {
            try Judge.judge(story.life, then: found, demand: .everythingSynced)
        }
    }

    @Test func anErrorThatCannotBeIsFound() throws {
        var story = Story([FileOperation(.create, "f")])
        story.life.steps[0].result = -Int(EEXIST)
        #expect(throws: Judge.Violation.self) {
            try Judge.judge(story.life, then: story.states[0], demand: .everythingAnswered)
        }
        story.life.steps[0].result = -Int(ENOSPC)
        _ = try Judge.judge(story.life, then: story.states[0], demand: .everythingAnswered)
    }

    @Test func twoWritersMustFitOneOrder() throws {
        let first = Story([FileOperation(.create, "f"), writing("f", at: 0, 1)])
        var second = Story([FileOperation(.create, "f")])
        second.life.writer = "w1"
        second.life.steps[0].begun = 1000
        let all = { (most: Int) in
            [
                (life: first.life, finding: Judge.Finding(least: 1, most: most)),
                (life: second.life, finding: Judge.Finding(least: 1, most: 1)),
            ]
        }
        try Judge.judgeOrder(all(2))
        #expect(throws: Judge.Violation.self) { try Judge.judgeOrder(all(1)) }
        second.life.steps[0].begun = 13
        try Judge.judgeOrder(all(1))
    }

    @Test func anAnswerAfterTheSuccessorBeganIsFound() throws {
        let first = Story([FileOperation(.create, "f"), writing("f", at: 0, 1)])
        var second = Story([FileOperation(.create, "g")])
        second.life.begun = 20
        try Judge.judgeSuccession([first.life, second.life])
        second.life.begun = 5
        #expect(throws: Judge.Violation.self) { try Judge.judgeSuccession([first.life, second.life]) }
    }
}

@Suite struct WorkloadModelTests {
    /// The model against a real file system, with everything that a writer may do.
    @Test(arguments: 1...6) func theModelDoesWhatAFileSystemDoes(seed: UInt64) throws {
        var template = Array("/var/tmp/lockstep-workload-XXXXXX".utf8CString)
        let made = template.withUnsafeMutableBufferPointer { mkdtemp($0.baseAddress!).map { String(cString: $0) } }
        let root = try #require(made)
        defer { try? FileManager.default.removeItem(atPath: root) }
        try #require(chmod(root, 0o755) == 0)
        let old = umask(0)
        defer { umask(old) }
        let executor = Executor(root: root)
        var source = OperationSource(seed: seed)
        var model = FileModel()
        for number in 0..<400 {
            let operation = source.next(in: model)
            let result = executor.perform(operation)
            try #require(result >= 0, "\(number) \(operation.line)")
            model.apply(operation, result: result)
            guard number % 20 == 19 else { continue }
            let found = try FileModel(reading: root, direct: true)
            try #require(found.differences(from: model) == [], "\(number) \(operation.line)")
        }
    }

    @Test func notesAreReadAsTheyWereWritten() throws {
        var source = OperationSource(seed: 3)
        var model = FileModel()
        for _ in 0..<200 {
            let operation = source.next(in: model)
            #expect(FileOperation(fields: operation.line.split(separator: " ")) == operation)
            model.apply(operation, result: operation.isDivisible ? operation.length : 0)
        }
    }
}
