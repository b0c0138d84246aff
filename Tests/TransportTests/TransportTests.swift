import Format
import Glibc
import Ring
import Synchronization
import Testing

@testable import Transport

@Suite struct Addresses {
    @Test func addressesAreReadAndShown() {
        #expect(SocketAddress("192.0.2.7", port: 7000)?.description == "192.0.2.7:7000")
        #expect(SocketAddress("2001:db8::1", port: 7000)?.description == "[2001:db8::1]:7000")
        #expect(SocketAddress("fe80::1%lo", port: 1)?.scope == if_nametoindex("lo"))
        for wrong in ["", "room1", "1.2.3", "1.2.3.4.5", "::g", "fe80::1%nosuch", "1.2.3.4%lo"] {
            #expect(SocketAddress(wrong, port: 1) == nil, "\(wrong)")
        }
    }
}

@Suite struct Conversations {
    /// Two ends on one reactor: what `node` sends arrives at `peer`, and the other way round.
    func conversation(
        _ address: SocketAddress = anyPort, engine: EngineChoice = .auto, limits: ListenerLimits = ListenerLimits(),
        options: DialerOptions = DialerOptions(),
        _ body: @escaping (Reactor, _ node: Connection, _ peer: Connection) -> Void
    ) throws {
        try withReactor(engine) { reactor in
            var node: Connection?
            var peer: Connection?
            func both() { if let node, let peer { body(reactor, node, peer) } }
            let listener = try Listener(
                reactor: reactor, address: address, limits: limits, logger: reactor.logger,
                own: { greeting(.b) },
                admit: { stranger, source in
                    #expect(stranger == greeting(.a))
                    #expect(source.host == address.host)
                    // A dialler comes back; one conversation is enough.
                    if peer != nil { return .refuse("one conversation") }
                    return .accept(greeting(.b)) { connection in
                        peer = connection
                        both()
                    }
                })
            _ = Dialer(
                reactor: reactor, remote: listener.address, options: options, generator: SeededGenerator(1),
                logger: reactor.logger, own: { greeting(.a) },
                opened: { connection, other in
                    #expect(other == greeting(.b))
                    node = connection
                    both()
                    return nil
                })
        }
    }

    @Test(arguments: [EngineChoice.ioUring, .libaio], ["127.0.0.1", "::1"])
    func framesGoBothWays(engine: EngineChoice, host: String) throws {
        var log: [String] = []
        try conversation(SocketAddress(host, port: 0)!, engine: engine) { reactor, node, peer in
            peer.onFrame = { header, body in
                log.append("peer \(header.type) \(header.session) \(body)")
                peer.send(head(.data), body: [9])
            }
            node.onFrame = { header, body in
                log.append("node \(header.type) \(body)")
                node.close("done")
            }
            peer.onClosed = { reason in
                log.append("\(reason)")
                reactor.stop()
            }
            node.onClosed = { log.append("\($0)") }
            node.send(head(.data), body: [1, 2, 3])
        }
        #expect(
            log == ["peer data 7 [1, 2, 3]", "node data [9]", "closed here: done", "the other side closed"])
    }

    @Test func batchesGoFromMemoryToMemory() throws {
        let pieces = (0..<300).map { index in
            let piece = UnsafeMutableRawBufferPointer.allocate(byteCount: index * 37 % 5000, alignment: 8)
            for offset in piece.indices { piece[offset] = UInt8(truncatingIfNeeded: offset &* 31 &+ index) }
            return piece
        }
        defer { for piece in pieces { piece.deallocate() } }
        let start = [UInt8](repeating: 5, count: 128)
        let expected = start + pieces.flatMap { Array($0) }
        var sinks: [TestSink] = []
        var released = 0
        var after: [UInt8] = []
        try conversation { reactor, node, peer in
            peer.receiveDirectly([.batch]) { header in
                #expect(header.bodyLength == expected.count)
                sinks.append(TestSink())
                return sinks.last!
            }
            peer.onFrame = { _, body in
                after = body
                reactor.stop()
            }
            for _ in 0..<3 {
                let queued = node.send(
                    head(.batch), head: start, pieces: pieces.map { UnsafeRawBufferPointer($0) }
                ) { sent in if sent { released += 1 } }
                #expect(queued)
            }
            node.send(head(.data), body: [42])
        }
        #expect(released == 3)
        #expect(sinks.count == 3)
        for sink in sinks {
            #expect(sink.complete)
            let same = sink.bytes == expected
            #expect(same)
        }
        #expect(after == [42])
    }

    @Test func aSinkWithoutMemoryStopsTheSenderUntilItResumes() throws {
        var limits = DialerOptions()
        limits.connection.queuedBytes = 8 << 20
        let body = [UInt8](repeating: 3, count: 256 << 10)
        var log: [String] = []
        var sinks: [TestSink] = []
        try conversation(options: limits) { reactor, node, peer in
            var accepted = 0
            peer.receiveDirectly([.batch]) { _ in
                sinks.append(TestSink(stalls: sinks.isEmpty ? 1 : 0))
                return sinks.last!
            }
            while node.send(head(.batch), head: body, pieces: [], completion: { _ in }) { accepted += 1 }
            #expect(accepted == (8 << 20) / (body.count + 48))
            #expect(node.queuedBytes <= 8 << 20)
            node.onDrained = { log.append("drained") }
            reactor.after(milliseconds: 100) {
                #expect(sinks.count == 1)
                #expect(!sinks[0].complete)
                #expect(node.queuedBytes > 0, "what the other side does not take stays here")
                #expect(log.isEmpty)
                log.append("resumed")
                peer.resumeReading()
            }
            reactor.repeating(milliseconds: 5) {
                if sinks.count == accepted, sinks.last!.complete { reactor.stop() }
            }
        }
        #expect(log.first == "resumed")
        #expect(log.contains("drained"))
        let same = sinks.allSatisfy { $0.bytes == body }
        #expect(same)
    }

    @Test func aClosedConnectionGivesItsMemoryBackAndTakesNothing() throws {
        let piece = UnsafeMutableRawBufferPointer.allocate(byteCount: 4 << 20, alignment: 8)
        defer { piece.deallocate() }
        var answers: [Bool] = []
        try conversation { reactor, node, peer in
            peer.pauseReading()
            for _ in 0..<4 {
                let part = UnsafeRawBufferPointer(rebasing: piece[..<(1 << 20)])
                node.send(head(.batch), head: [], pieces: [part]) {
                    answers.append($0)
                }
            }
            node.close("enough")
            #expect(!node.send(head(.control), body: [1]))
            #expect(answers.isEmpty, "told at the end of the iteration, not inside the call")
            node.onClosed = { _ in reactor.stop() }
        }
        #expect(answers == [false, false, false, false])
    }

    @Test func aConnectionThatClosesInTheMiddleOfABatchLetsGoOfItsMemory() throws {
        weak var abandoned: TestSink?
        var gone = false
        try conversation { reactor, node, peer in
            peer.receiveDirectly([.batch]) { _ in
                let sink = TestSink(stalls: 1)
                abandoned = sink
                reactor.after(milliseconds: 10) { node.close("in the middle") }
                reactor.after(milliseconds: 20) { peer.resumeReading() }
                return sink
            }
            peer.onClosed = { _ in
                reactor.after(milliseconds: 1) {
                    gone = abandoned == nil && peer.isClosed
                    reactor.stop()
                }
            }
            // More than the sockets hold, so that a part is never sent.
            let body = [UInt8](repeating: 1, count: 1 << 20)
            for _ in 0..<16 { node.send(head(.batch), head: body, pieces: []) { _ in } }
        }
        #expect(gone)
    }

    @Test func garbageOnAnOpenConnectionClosesIt() throws {
        let server = try Server()
        let client = RawClient(server.address)
        client.send(helloBytes(greeting(.a)))
        client.send(wire(.data, [1]) + [UInt8](repeating: 0xEE, count: 100))
        let (_, ended) = client.receiveAll()
        #expect(ended)
        #expect(eventually { server.state.closed.count == 1 })
        #expect(server.state.frames.map(\.1) == [[1]])
        #expect(server.state.closed.first?.contains("not a Lockstep message") == true)
        #expect(server.log.all.count == 1)
        server.stop()
    }

    @Test func anOpenConnectionMovesToAnotherReactorWithoutLosingAByte() throws {
        let data = try ReactorThread(name: "data", logger: LogLines().logger) { _ in }
        let address = Mutex<SocketAddress?>(nil)
        let control = try ReactorThread(name: "control", logger: LogLines().logger) { reactor in
            let listener = try Listener(
                reactor: reactor, address: anyPort, logger: reactor.logger, own: { greeting(.b) },
                admit: { _, _ in
                    .handOver(greeting(.b)) { detached in
                        data.perform { reactor in
                            let connection = detached.attach(to: reactor, logger: reactor.logger)
                            connection.onFrame = { [unowned connection] header, body in
                                #expect(reactor.isCurrentThread)
                                connection.send(header, body: body)
                            }
                        }
                    }
                })
            address.withLock { $0 = listener.address }
        }
        let bodies = (0..<50).map { [UInt8](repeating: UInt8($0), count: 100 * $0) }
        let client = RawClient(address.withLock { $0 }!)
        // Hello, a run of frames behind it in the same segment, and half a frame that is completed later.
        var bytes = helloBytes(greeting(.a))
        for body in bodies { bytes += wire(.data, body) }
        client.send(Array(bytes[..<5000]))
        usleep(50_000)
        client.send(Array(bytes[5000...]))
        let expected = helloBytes(greeting(.b)) + bodies.flatMap { wire(.data, $0) }
        var received: [UInt8] = []
        while received.count < expected.count {
            let (more, ended) = client.receiveAll(milliseconds: 300)
            received += more
            if ended || more.isEmpty { break }
        }
        let same = received == expected
        #expect(same, "\(received.count) bytes of \(expected.count)")
        for thread in [control, data] {
            thread.stop()
            thread.join()
        }
    }
}

@Suite struct Strangers {
    @Test func garbageIsClosedAndLoggedOnceWithItsSource() throws {
        let server = try Server()
        for _ in 0..<20 {
            let client = RawClient(server.address)
            client.send([UInt8]("GET / HTTP/1.1\r\nHost: example\r\n\r\n".utf8) + [UInt8](repeating: 0, count: 100))
            #expect(client.receiveAll().ended)
        }
        #expect(server.log.all.count == 1)
        #expect(server.log.all.first?.contains("127.0.0.1") == true)
        #expect(server.log.all.first?.contains("not a Lockstep message") == true)
        #expect(server.state.opened == 0)
        #expect(eventually { server.onListener { $0.unauthenticatedCount } == 0 })
        server.stop()
    }

    /// Of the types that go between nodes, the header alone ends a connection for decisions; the longest message that
    /// belongs there fits into what a stranger has.
    @Test func failure38OnAConnectionForDecisionsNothingLongIsWaitedFor() throws {
        for type in [FrameType.data, .batch, .control, .hello] {
            let server = try Server()
            let client = RawClient(server.address)
            client.send(helloBytes(greeting(.a, channel: .control)))
            client.send(Array(wire(type, [UInt8](repeating: 1, count: min(type.bodyLimit, 60_000))).dropLast()))
            #expect(client.receiveAll().ended, "\(type)")
            #expect(eventually { server.state.closed.count == 1 })
            #expect(server.state.closed.first?.contains("\(type) is not expected here") == true)
            server.stop()
        }
        let receiver = FrameReceiver(accepted: Hello.Channel.control.frameTypes)
        receiver.grow()
        var bytes = wire(.quorum, [UInt8](repeating: 0, count: FrameType.quorum.bodyLimit))
        bytes.removeLast()
        feed(receiver, bytes[...])
        guard case .hungry = try receiver.next() else {
            Issue.record("an incomplete message was taken")
            return
        }
        #expect(receiver.capacity == FrameReceiver.greetingBytes)
    }

    @Test func aFloodOfGarbageDoesNotGrowMemory() async {
        // In a process of its own: nobody else's memory is in the measure.
        let result = await #expect(processExitsWith: .success, observing: [\.standardErrorContent]) {
            let server = try Server()
            func flood(_ connections: Int) {
                var generator = SeededGenerator(5)
                for _ in 0..<connections {
                    let client = RawClient(server.address)
                    var bytes = wire(.hello, [UInt8](repeating: 1, count: 4096))
                    bytes.removeLast(generator.below(4000))
                    client.send(bytes)
                    client.send(generator.bytes(5000))
                    client.close()
                }
            }
            flood(200)
            let before = residentBytes()
            flood(1500)
            #expect(eventually { server.onListener { $0.unauthenticatedCount } == 0 })
            #expect(residentBytes() - before < 4 << 20)
            #expect(server.log.all.count == 1)
            server.stop()
        }
        // What the process said, should it ever stop.
        let words = String(decoding: result?.standardErrorContent.prefix(2000) ?? [], as: UTF8.self)
        #expect(words == "")
    }

    @Test func aHalfOpenConnectionIsClosedInTime() throws {
        var limits = ListenerLimits()
        limits.helloMilliseconds = 150
        let server = try Server(limits: limits)
        let silent = RawClient(server.address)
        let half = RawClient(server.address)
        half.send(Array(helloBytes(greeting(.a)).dropLast(3)))
        let start = BootClock.now
        #expect(silent.receiveAll().ended)
        #expect(half.receiveAll().ended)
        #expect(BootClock.now - start >= 100_000_000)
        #expect(server.log.all.count == 1)
        #expect(server.log.all.first?.contains("no hello within 150 ms") == true)
        server.stop()
    }

    @Test func oneSourceCannotTakeAllPlaces() throws {
        var limits = ListenerLimits()
        limits.unauthenticatedPerSource = 3
        let server = try Server(limits: limits)
        let clients = (0..<6).map { _ in RawClient(server.address) }
        #expect(eventually { server.onListener { $0.droppedCount } == 3 })
        #expect(server.onListener { $0.unauthenticatedCount } == 3)
        // Whoever says hello frees a place.
        clients[0].send(helloBytes(greeting(.a)))
        #expect(eventually { server.state.opened == 1 })
        let late = RawClient(server.address)
        late.send(helloBytes(greeting(.a)))
        #expect(eventually { server.state.opened == 2 })
        #expect(server.log.all.count == 1)
        server.stop()
    }

    @Test func anotherMirrorOrVersionIsRefusedWithWords() throws {
        let server = try Server()
        func answer(_ mine: Greeting) -> String {
            let client = RawClient(server.address)
            client.send(helloBytes(mine))
            let (bytes, _) = client.receiveAll(milliseconds: 300)
            guard let head = try? FrameHeader(decoding: bytes), head.type == .refusal else { return "no refusal" }
            return String(decoding: bytes.dropFirst(48), as: UTF8.self)
        }
        #expect(answer(greeting(.a, mirror: MirrorID(high: 9, low: 9))).contains("this is mirror \(mirror)"))
        #expect(answer(greeting(.a, versions: 5...6)).contains("yours are 5 to 6, mine 1 to 1"))
        #expect(server.state.opened == 0)
        server.stop()
    }

    @Test func theLogOfManySourcesIsBounded() {
        var log = SourceLog()
        var lines = 0
        for index in 0..<1000 where log.admit("source \(index)", now: 100).log { lines += 1 }
        #expect(lines == SourceLog.sourceLimit + 1)
        for _ in 0..<5 { #expect(!log.admit("source 1", now: 200).log) }
        let later = log.admit("source 1", now: 100 + SourceLog.period)
        #expect(later.log)
        #expect(later.note == "; 5 more like it in the minute before")
    }
}

@Suite struct Dialling {
    @Test func aLostConnectionComesBack() throws {
        var opened = 0
        var reasons: [String] = []
        try withReactor { reactor in
            let listener = try Listener(
                reactor: reactor, address: anyPort, logger: reactor.logger, own: { greeting(.b) },
                admit: { _, _ in
                    .accept(greeting(.b)) { connection in
                        reactor.after(milliseconds: 5) { connection.close("to be dialled again") }
                    }
                })
            var dialer: Dialer?
            dialer = Dialer(
                reactor: reactor, remote: listener.address, generator: SeededGenerator(1), logger: reactor.logger,
                own: { greeting(.a) },
                opened: { connection, _ in
                    opened += 1
                    connection.onClosed = { reason in
                        reasons.append("\(reason)")
                        #expect(dialer?.connection == nil)
                        if opened == 3 {
                            dialer?.stop()
                            reactor.after(milliseconds: 300) { reactor.stop() }
                        }
                    }
                    return nil
                })
        }
        #expect(opened == 3)
        #expect(reasons == Array(repeating: "the other side closed", count: 3))
    }

    @Test func waitsGrowToTheirLimitAndAreJittered() throws {
        // A port that nobody listens on: taken from the kernel, then closed.
        var times: [UInt64] = []
        var failures: [String] = []
        let log = LogLines()
        try withReactor(logger: log.logger) { reactor in
            let listener = try Listener(
                reactor: reactor, address: anyPort, logger: reactor.logger, own: { greeting(.b) },
                admit: { _, _ in .refuse("") })
            let address = listener.address
            listener.close()
            reactor.submitNow()
            var options = DialerOptions()
            options.shortestWaitMilliseconds = 10
            options.longestWaitMilliseconds = 80
            let dialer = Dialer(
                reactor: reactor, remote: address, options: options, generator: SeededGenerator(3),
                logger: reactor.logger, own: { greeting(.a) }, opened: { _, _ in nil })
            dialer.onFailure = { reason in
                failures.append("\(reason)")
                times.append(reactor.now)
                if times.count == 8 {
                    dialer.stop()
                    reactor.stop()
                }
            }
        }
        #expect(failures.allSatisfy { $0.contains("cannot connect to 127.0.0.1:") && $0.contains("refused") })
        let waits = zip(times.dropFirst(), times).map { Int($0 - $1) / 1_000_000 }
        #expect(waits[0] >= 5)
        #expect(waits[4...].allSatisfy { $0 >= 40 }, "\(waits)")
        #expect(waits[4...].allSatisfy { $0 < 1000 }, "\(waits)")
    }

    @Test func anEndThatTakesTheConnectionButSaysNothingIsGivenUp() throws {
        let mute = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        _ = anyPort.withSockaddr { raw, length in bind(mute, raw, length) }
        listen(mute, 4)
        let address = SocketAddress.reading { raw, length in getsockname(mute, raw, length) }.address!
        var failures: [String] = []
        try withReactor { reactor in
            var options = DialerOptions()
            options.connectMilliseconds = 60
            let dialer = Dialer(
                reactor: reactor, remote: address, options: options, generator: SeededGenerator(3),
                logger: reactor.logger, own: { greeting(.a) }, opened: { _, _ in nil })
            dialer.onFailure = { reason in
                failures.append("\(reason)")
                if failures.count == 2 {
                    dialer.stop()
                    reactor.stop()
                }
            }
        }
        #expect(failures.allSatisfy { $0.contains("no hello from 127.0.0.1:") })
        close(mute)
    }

    @Test func aRefusalIsToldToTheDialler() throws {
        let server = try Server()
        var failure: String?
        try withReactor { reactor in
            let dialer = Dialer(
                reactor: reactor, remote: server.address, generator: SeededGenerator(3), logger: reactor.logger,
                own: { greeting(.a, mirror: MirrorID(high: 9, low: 9)) }, opened: { _, _ in nil })
            dialer.onFailure = { reason in
                failure = "\(reason)"
                dialer.stop()
                reactor.stop()
            }
        }
        #expect(failure?.hasPrefix("refused by the other side: this is mirror") == true)
        server.stop()
    }

    @Test func aTakenPortIsExplained() throws {
        let server = try Server()
        try withReactor { reactor in
            let error = #expect(throws: RingError.self) {
                _ = try Listener(
                    reactor: reactor, address: server.address, logger: reactor.logger, own: { greeting(.b) },
                    admit: { _, _ in .refuse("") })
            }
            #expect(error?.description.contains("Another process has this port") == true)
            reactor.stop()
        }
        server.stop()
    }
}
