import Format
import Foundation
import Glibc
import Logging
import Ring
import Synchronization
import Testing

@testable import Transport
@testable import WitnessCore

private let quiet = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }

/// A state directory that goes away with the test.
private final class Scratch {
    let path = NSTemporaryDirectory() + "lockstep-witness-\(UInt64.random(in: 0 ... .max))"
    deinit { try? FileManager.default.removeItem(atPath: path) }
}

private func voters(_ scratch: Scratch, startedAt: UInt64 = 0) throws -> WitnessVoters {
    try voters(in: scratch.path, startedAt: startedAt)
}

private func voters(in directory: String, startedAt: UInt64 = 0) throws -> WitnessVoters {
    try WitnessVoters(
        store: VoteStore(directory: directory), timing: QuorumTiming(), startedAt: startedAt,
        generator: SystemRandomNumberGenerator(), logger: quiet)
}

private let now: UInt64 = 100_000_000_000

/// A node that asks the witness by hand.
private struct Asker {
    let mirror: MirrorID
    var number: UInt64 = 0
    /// Boot clock.
    var time = now
    init(_ low: UInt64) { mirror = MirrorID(high: 0, low: low) }

    mutating func ask(_ voters: WitnessVoters, _ body: QuorumMessage.Body) -> QuorumMessage.Body? {
        askForAll(voters, body).first
    }
    mutating func askForAll(_ voters: WitnessVoters, _ body: QuorumMessage.Body) -> [QuorumMessage.Body] {
        number += 1
        let message = QuorumMessage(sender: Incarnation(birth: 1, session: 1), number: number, body: body)
        return voters.receive(message, from: .a, mirror: mirror, now: time).map(\.1.body)
    }
    func ballot(_ birth: UInt64, _ number: UInt64) -> Ballot {
        Ballot(instance: WitnessInstance(generation: 1, birth: birth), number: number, node: .a)
    }
    /// Asks, is told that the witness is empty, and seeds it. Returns what came of the seed.
    mutating func seed(_ voters: WitnessVoters, name: String) -> (birth: UInt64, answer: QuorumMessage.Body?) {
        let first = ask(voters, .prepare(ballot(0, 1), memory: VoterMemory()))
        guard case .empty(let birth) = first else { return (0, first) }
        let genesis = AcceptorState.genesis(mirror: mirror, name: name, node: .a, birth: 3)
        let answer = ask(
            voters,
            .seed(
                birth: birth, mirror: mirror, name: name, promised: ballot(birth, 0),
                acceptedBallot: genesis.acceptedBallot, accepted: genesis.accepted))
        return (birth, answer)
    }
}

@Suite struct WitnessVotersTests {
    @Test func serves1000MirrorsAndRemembersEachAfterARestart() throws {
        let scratch = Scratch()
        var births: [UInt64] = []
        do {
            let witness = try voters(scratch)
            for index in 1...1000 {
                var asker = Asker(UInt64(index))
                let (birth, _) = asker.seed(witness, name: "mirror\(index)")
                births.append(birth)
                guard case .promise = asker.ask(witness, .prepare(asker.ballot(birth, 1), memory: VoterMemory())) else {
                    Issue.record("no promise")
                    return
                }
            }
            #expect(witness.mirrorCount == 1000)
        }
        let witness = try voters(scratch)
        #expect(witness.mirrorCount == 1000)
        for index in [1, 500, 1000] {
            var asker = Asker(UInt64(index))
            let ballot = asker.ballot(births[index - 1], 1)
            // What it promised before it still has promised.
            let answer = asker.ask(witness, .prepare(ballot, memory: VoterMemory()))
            #expect(answer == .refused(ballot, .prepare, promised: ballot, .ballot))
        }
    }

    @Test func failure19ARestartedWitnessPromisesNothingEarly() throws {
        let scratch = Scratch()
        var asker = Asker(1)
        let (birth, _) = asker.seed(try voters(scratch), name: "ledger")
        let witness = try voters(scratch, startedAt: now - 1_000_000_000)
        let ballot = asker.ballot(birth, 5)
        guard
            case .refused(_, _, _, .restarted(let left)) = asker.ask(
                witness, .prepare(ballot, memory: VoterMemory()))
        else {
            Issue.record("it promised")
            return
        }
        #expect(left == 3000)
    }

    @Test func failure33ASecondMirrorOfOneNameIsRefused() throws {
        let scratch = Scratch()
        let witness = try voters(scratch)
        var first = Asker(1)
        var second = Asker(2)
        _ = first.seed(witness, name: "ledger")
        #expect(second.seed(witness, name: "ledger").answer == .nameTaken(by: first.mirror))
        #expect(witness.objection(mirror: second.mirror, name: "ledger")?.contains("another name") == true)
        #expect(witness.objection(mirror: first.mirror, name: "ledger") == nil)
        guard case .empty = second.ask(witness, .prepare(second.ballot(1, 1), memory: VoterMemory())) else {
            Issue.record("the second got a vote")
            return
        }
    }

    @Test func failure37ADamagedFileSilencesItsMirrorAlone() throws {
        let scratch = Scratch()
        var first = Asker(1)
        var second = Asker(2)
        do {
            let witness = try voters(scratch)
            _ = first.seed(witness, name: "one")
            _ = second.seed(witness, name: "two")
        }
        let path = scratch.path + "/\(first.mirror).votes"
        var bytes = try #require(FileManager.default.contents(atPath: path))
        bytes[40] ^= 1
        try bytes.write(to: URL(fileURLWithPath: path))
        try Data("half".utf8).write(to: URL(fileURLWithPath: path + ".new"))

        let witness = try voters(scratch)
        #expect(first.ask(witness, .prepare(first.ballot(0, 9), memory: VoterMemory())) == nil)
        #expect(witness.objection(mirror: first.mirror, name: "one") != nil)
        #expect(second.ask(witness, .prepare(second.ballot(0, 9), memory: VoterMemory())) != nil)
        #expect(!FileManager.default.fileExists(atPath: path + ".new"))
    }

    /// An unreadable block, for one; here it is a directory. What the mirror was promised may be in the file: it gets
    /// no vote, the other mirrors get theirs.
    @Test func failure37AFileThatCannotBeReadSilencesItsMirrorAlone() throws {
        let scratch = Scratch()
        var first = Asker(1)
        var second = Asker(2)
        do {
            let witness = try voters(scratch)
            _ = first.seed(witness, name: "one")
            _ = second.seed(witness, name: "two")
        }
        let path = scratch.path + "/\(first.mirror).votes"
        try FileManager.default.removeItem(atPath: path)
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
        let memory = scratch.path + "/\(second.mirror).nodes"
        try FileManager.default.createDirectory(atPath: memory, withIntermediateDirectories: false)
        do {
            let damage = try #require(try VoteStore(directory: scratch.path).load().damaged.first)
            #expect(damage.mirror == first.mirror && damage.description.contains("cannot read \(path): "))
            #expect(damage.description.contains("restart the witness"))
        }
        let witness = try voters(scratch)
        #expect(first.ask(witness, .prepare(first.ballot(0, 9), memory: VoterMemory())) == nil)
        #expect(witness.objection(mirror: first.mirror, name: "one")?.contains("its log says what to do") == true)
        #expect(second.ask(witness, .prepare(second.ballot(0, 9), memory: VoterMemory())) != nil)
    }

    /// A full disk, for one: no vote that is not on the disk, and all of them when there is space again.
    @Test func failure23AVoteThatCannotBeWrittenIsTriedAgain() throws {
        let scratch = Scratch()
        let witness = try voters(scratch)
        var asker = Asker(1)
        let (birth, _) = asker.seed(witness, name: "ledger")
        // A directory where the new file would be made.
        let obstacle = scratch.path + "/\(asker.mirror).votes.new"
        try FileManager.default.createDirectory(atPath: obstacle, withIntermediateDirectories: false)
        #expect(asker.ask(witness, .prepare(asker.ballot(birth, 1), memory: VoterMemory())) == nil)
        asker.time += 2_000_000_000
        #expect(asker.ask(witness, .prepare(asker.ballot(birth, 2), memory: VoterMemory())) == nil)
        try FileManager.default.removeItem(atPath: obstacle)
        // Not with each message: a disk that fails may be slow, and there are other mirrors.
        #expect(asker.ask(witness, .prepare(asker.ballot(birth, 3), memory: VoterMemory())) == nil)
        #expect(witness.objection(mirror: asker.mirror, name: "ledger") == nil)
        asker.time += 2_000_000_000
        let answers = asker.askForAll(witness, .prepare(asker.ballot(birth, 4), memory: VoterMemory()))
        let promised = answers.compactMap { if case .promise(let ballot, _, _, _) = $0 { ballot.number } else { nil } }
        #expect(promised == [1, 2, 3, 4])
    }

    @Test func twoWitnessesOnOneDirectoryAreRefused() throws {
        let scratch = Scratch()
        let store = try VoteStore(directory: scratch.path)
        #expect(throws: VoteStoreError.self) { try VoteStore(directory: scratch.path) }
        withExtendedLifetime(store) {}
    }

    @Test func strangersCannotFillItsMemory() throws {
        let witness = try voters(Scratch())
        for index in 1...2000 {
            var asker = Asker(UInt64(index))
            guard case .empty = asker.ask(witness, .prepare(asker.ballot(1, 1), memory: VoterMemory())) else {
                Issue.record("not empty")
                return
            }
        }
        #expect(witness.mirrorCount == 0)
    }
}

/// What the witness remembers of nodes beside its votes.
@Suite struct NodeMemoryTests {
    private static let later: UInt64 = now + WitnessVoters.memoryNanoseconds

    private func lease(_ number: UInt64, committed: UInt64) -> QuorumMessage.Body {
        .leaseRequest(
            number: number, heard: number - 1, epoch: Epoch(rawValue: 1), grantMilliseconds: 4000,
            memory: VoterMemory(), committed: Seq(rawValue: committed))
    }

    @Test func failure18ItIsWrittenNowAndThenAndToldAfterARestart() throws {
        let scratch = Scratch()
        let files = NodeMemoryFiles(directory: scratch.path)
        var asker = Asker(1)
        let birth: UInt64
        do {
            let witness = try voters(scratch)
            birth = asker.seed(witness, name: "ledger").birth
            // A decision in the instance that it is now.
            let decision = Decision(sequence: 2, epoch: Epoch(rawValue: 1), primary: .a, inSync: .a)
            _ = asker.ask(witness, .prepare(asker.ballot(birth, 10), memory: VoterMemory()))
            _ = asker.ask(witness, .accept(asker.ballot(birth, 10), decision, memory: VoterMemory()))
            // A node that has started is written down at once, what is committed not more than once a minute.
            let first = witness.memoriesToWrite(now: now)
            #expect(first.count == 1 && first[0].1.lifeA?.incarnation == Incarnation(birth: 1, session: 1))
            for (mirror, memory) in first { try files.store(memory, of: mirror) }
            #expect(asker.ask(witness, lease(1, committed: 500)) == .leaseGranted(number: 1))
            #expect(witness.memoriesToWrite(now: now + 1).isEmpty)
            #expect(witness.memoriesToWrite(now: now + 1, all: true).count == 1)
            // The disk refused it: it is written at the next turn, not in a minute.
            witness.memoryWasNotWritten(of: asker.mirror)
            #expect(witness.memoriesToWrite(now: now + 2).count == 1)
            #expect(witness.memoriesToWrite(now: NodeMemoryTests.later + 2).isEmpty)
            #expect(asker.ask(witness, lease(2, committed: 600)) == .leaseGranted(number: 2))
            for (mirror, memory) in witness.memoriesToWrite(now: NodeMemoryTests.later + 2) {
                #expect(memory.mark == LogMark(epoch: Epoch(rawValue: 1), seq: Seq(rawValue: 600)))
                try files.store(memory, of: mirror)
            }
            #expect(asker.ask(witness, lease(3, committed: 700)) == .leaseGranted(number: 3))
        }
        let witness = try voters(scratch)
        guard
            case .promise(_, _, _, let mark) = asker.ask(
                witness, .prepare(asker.ballot(birth, 50), memory: VoterMemory()))
        else {
            Issue.record("no promise")
            return
        }
        #expect(mark.seq == Seq(rawValue: 600))
    }

    @Test func failure37ADamagedMemoryCostsNothingButTheMemory() throws {
        let scratch = Scratch()
        var asker = Asker(1)
        do {
            let witness = try voters(scratch)
            _ = asker.seed(witness, name: "ledger")
            for (mirror, memory) in witness.memoriesToWrite(now: now, all: true) {
                try NodeMemoryFiles(directory: scratch.path).store(memory, of: mirror)
            }
        }
        let path = "\(scratch.path)/\(asker.mirror).nodes"
        var bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
        for index in bytes.indices {
            bytes[index] ^= 4
            #expect(throws: DecodingError.self) { try NodeMemory(decoding: bytes, mirror: asker.mirror) }
            bytes[index] ^= 4
        }
        #expect(try NodeMemory(decoding: bytes, mirror: asker.mirror).lifeA != nil)
        #expect(throws: DecodingError.self) { try NodeMemory(decoding: bytes, mirror: MirrorID(high: 3, low: 3)) }
        bytes[30] ^= 4
        try Data(bytes).write(to: URL(fileURLWithPath: path))
        let witness = try voters(scratch)
        #expect(witness.mirrorCount == 1)
        // It answers as ever.
        guard case .leaseRefused(1, _, _) = asker.ask(witness, lease(1, committed: 5)) else {
            Issue.record("no answer")
            return
        }
    }
}

/// A connection that says hello, and then as much as it is told to.
private final class Caller {
    private let descriptor: Int32
    private let mirror: MirrorID
    private var room = [UInt8](repeating: 0, count: 8192)

    init(_ address: SocketAddress, _ voter: Voter, mirror: MirrorID, name: String) throws {
        self.mirror = mirror
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        try #require(address.withSockaddr { raw, length in connect(descriptor, raw, length) } == 0)
        let body = Hello(channel: .control, voter: voter, mirrorName: name, session: 4).encoded()
        send(FrameHeader(type: .hello, bodyLength: body.count, session: 4, epoch: .none, mirror: mirror), body)
    }
    deinit { close(descriptor) }

    private func send(_ header: FrameHeader, _ body: [UInt8]) {
        let bytes = header.encoded(body: body) + body
        _ = Glibc.send(descriptor, bytes, bytes.count, Int32(MSG_NOSIGNAL))
    }

    func ask() {
        let body = QuorumMessage(
            sender: Incarnation(birth: 1, session: 1), number: 1, body: .prepare(.zero, memory: VoterMemory())
        ).encoded()
        send(FrameHeader(type: .quorum, bodyLength: body.count, session: 4, epoch: .none, mirror: mirror), body)
    }

    /// Something came within some seconds; false: the end, or nothing.
    func hears(seconds: Int = 5) -> Bool {
        var limit = timeval(tv_sec: seconds, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        return recv(descriptor, &room, room.count, 0) > 0
    }

    var isClosed: Bool { recv(descriptor, &room, room.count, Int32(MSG_DONTWAIT)) == 0 }
}

/// A witness on a thread of its own.
private final class Running {
    private let scratch: Scratch
    private let thread: ReactorThread
    private let server = Mutex<ThreadBound<WitnessServer>?>(nil)
    let address: SocketAddress

    init(_ scratch: Scratch, connectionsMaximum: Int = WitnessServer.connectionsMaximum) throws {
        self.scratch = scratch
        let path = scratch.path
        let made = Mutex<(ThreadBound<WitnessServer>, SocketAddress)?>(nil)
        thread = try ReactorThread(name: "witness-test", logger: quiet) { reactor in
            let server = try WitnessServer(
                reactor: reactor, address: try #require(SocketAddress("127.0.0.1", port: 0)),
                voters: try voters(in: path), session: 9, logger: quiet, connectionsMaximum: connectionsMaximum)
            let bound = ThreadBound(server)
            let address = try #require(server.address)
            made.withLock { $0 = (bound, address) }
        }
        let (bound, address) = try #require(made.withLock { $0 })
        self.address = address
        server.withLock { $0 = bound }
    }

    var connectionCount: Int {
        let bound = server.withLock { $0 }
        return thread.call { bound?.value.connectionCount ?? 0 } ?? 0
    }

    func stop() {
        let bound = server.withLock { server in
            defer { server = nil }
            return server
        }
        _ = thread.call { bound?.value.close() }
        thread.handle.stop()
        thread.join()
    }
}

@Suite struct WitnessConnectionTests {
    /// What the system gives is for the votes first.
    @Test func votesHaveDescriptorsThatConnectionsNeverGet() {
        #expect(WitnessServer.connections(withDescriptors: 1024) == 896)
        #expect(WitnessServer.connections(withDescriptors: 16) == 2)
        let most = WitnessServer.connections(withDescriptors: 1 << 20)
        #expect(most >= 2 * WitnessVoters.mirrorLimit)
        #expect(most + WitnessServer.reservedDescriptors == WitnessServer.wantedDescriptors)
    }

    @Test func bothNodesOfMoreThan2000MirrorsAreConnectedAtOnce() throws {
        let mirrors = 2100
        // Both ends of each connection are here.
        try #require(DescriptorLimit.raise(to: 4 * mirrors + 1000) >= 4 * mirrors + 1000)
        let witness = try Running(Scratch())
        var callers: [Caller] = []
        for index in 1...mirrors {
            for voter in [Voter.a, .b] {
                let caller = try Caller(
                    witness.address, voter, mirror: MirrorID(high: 1, low: UInt64(index)), name: "mirror\(index)")
                try #require(caller.hears())
                callers.append(caller)
            }
        }
        #expect(witness.connectionCount == 2 * mirrors)
        let last = try #require(callers.last)
        last.ask()
        #expect(last.hears())
        witness.stop()
    }

    /// Strangers that stay: places are never taken from a mirror that the witness knows, however long its nodes are
    /// silent, and one that asks keeps its place as well.
    @Test func failure38WhoNamesNoMirrorThatIsKnownAndStaysSilentMakesRoom() throws {
        let scratch = Scratch()
        var known = Asker(1)
        do { _ = known.seed(try voters(scratch), name: "ledger") }
        let witness = try Running(scratch, connectionsMaximum: 6)
        let standby = try Caller(witness.address, .b, mirror: known.mirror, name: "ledger")
        #expect(standby.hears())
        var strangers: [Caller] = []
        for index in 0..<5 {
            let mirror = index == 4 ? MirrorID.none : MirrorID(high: 7, low: UInt64(index))
            strangers.append(try Caller(witness.address, .a, mirror: mirror, name: "stranger\(index)"))
            #expect(strangers[index].hears())
        }
        #expect(witness.connectionCount == 6)
        for _ in 0..<16 {
            strangers[0].ask()
            _ = strangers[0].hears()
            usleep(250_000)
        }
        #expect(strangers.map(\.isClosed) == [false, true, true, true, true])
        #expect(!standby.isClosed && witness.connectionCount == 2)
        // There is room for a new mirror.
        let new = try Caller(witness.address, .a, mirror: MirrorID(high: 8, low: 8), name: "new")
        new.ask()
        #expect(new.hears())
        witness.stop()
    }

    /// A mirror is known by its identity: nobody gets more places by giving it many names.
    @Test func aNodeHasOneConnectionWhateverNameItGives() throws {
        let witness = try Running(Scratch())
        var callers: [Caller] = []
        for index in 0..<5 {
            callers.append(
                try Caller(witness.address, .a, mirror: MirrorID(high: 0, low: 5), name: "name\(index)"))
            #expect(callers[index].hears())
        }
        #expect(witness.connectionCount == 1)
        witness.stop()
    }
}

@Suite struct WitnessServerTests {
    /// Greets the witness over loopback, sends `body` for `mirror`, and returns what comes back, or why nothing does.
    private func talk(
        mirror: MirrorID, name: String, scratch: Scratch, before: @escaping @Sendable (WitnessVoters) -> Void
    )
        throws -> String
    {
        let path = scratch.path
        let done = DispatchSemaphore(value: 0)
        let result = Mutex("nothing came")
        let thread = try ReactorThread(name: "witness-test", logger: quiet) { reactor in
            let voters = try WitnessVoters(
                store: VoteStore(directory: path), timing: QuorumTiming(), startedAt: 0,
                generator: SystemRandomNumberGenerator(), logger: quiet)
            before(voters)
            let address = try #require(SocketAddress("127.0.0.1", port: 0))
            let server = try WitnessServer(
                reactor: reactor, address: address, voters: voters, session: 9, logger: quiet)
            let hello = Greeting(
                hello: Hello(channel: .control, voter: .b, mirrorName: name, session: 4), epoch: .none, mirror: mirror)
            let dialer = Dialer(
                reactor: reactor, remote: try #require(server.address), options: DialerOptions(),
                generator: SystemRandomNumberGenerator(), logger: quiet, own: { hello }
            ) { connection, greeting in
                connection.onFrame = { header, body in
                    let answer = try? QuorumMessage(decoding: body[...])
                    let isEmpty = if case .empty = answer?.body { true } else { false }
                    result.withLock {
                        $0 = "\(greeting.hello.voter) \(isEmpty) \(header.mirror == mirror) \(header.session)"
                    }
                    done.signal()
                }
                connection.onClosed = { reason in
                    result.withLock { if $0 == "nothing came" { $0 = "\(reason)" } }
                    done.signal()
                }
                let question = QuorumMessage(
                    sender: Incarnation(birth: 1, session: 1), number: 1,
                    body: .status(.idle, chosen: nil, witness: .init()))
                let bytes = question.encoded()
                // One of another session first: it must be dropped.
                for session: UInt64 in [5, 4] {
                    connection.send(
                        FrameHeader(
                            type: .quorum, bodyLength: bytes.count, session: session, epoch: .none, mirror: mirror),
                        body: bytes)
                }
                return nil
            }
            reactor.beforeSleep { withExtendedLifetime((server, dialer)) {} }
            _ = reactor.after(milliseconds: 1500) { done.signal() }
        }
        done.wait()
        thread.handle.stop()
        thread.join()
        return result.withLock { $0 }
    }

    @Test func answersOverTheNetworkInTheNameOfTheMirrorThatAsks() throws {
        let answer = try talk(mirror: MirrorID(high: 0, low: 5), name: "ledger", scratch: Scratch()) { _ in }
        #expect(answer == "witness true true 9")
    }

    @Test func failure33RefusesASecondMirrorOfOneNameOverTheNetwork() throws {
        // The dialer is told in the witness's words and tries again later; no question of it is ever answered.
        let answer = try talk(mirror: MirrorID(high: 0, low: 5), name: "ledger", scratch: Scratch()) { voters in
            var first = Asker(1)
            _ = first.seed(voters, name: "ledger")
        }
        #expect(answer == "nothing came")
    }
}
