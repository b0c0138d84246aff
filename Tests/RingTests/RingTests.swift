import CLinux
import Glibc
import Logging
import Ring
import Synchronization
import Testing

let quiet = Logger(label: "ring.tests") { _ in SwiftLogNoOpLogHandler() }

/// Runs `body` on a reactor of the calling thread until it calls `stop`.
func withReactor(_ engine: EngineChoice, _ body: (Reactor) throws -> Void) throws {
    let reactor = try Reactor(engine: engine, logger: quiet)
    try body(reactor)
    reactor.after(milliseconds: 10_000) {
        Issue.record("the reactor did not stop in time")
        reactor.stop()
    }
    reactor.run()
}

@Suite struct RingSmoke {
    @Test(arguments: [EngineChoice.ioUring, .libaio])
    func writesAndReadsBack(engine: EngineChoice) throws {
        let path = "/var/tmp/lockstep-ring-\(getpid())-\(engine.rawValue)"
        let file = try FileDescriptor.open(path, flags: O_RDWR | O_CREAT | CLINUX_O_DIRECT)
        unlink(path)
        let fd = file.rawValue
        let buffer = AlignedBuffer(byteCount: 8192)
        let back = AlignedBuffer(byteCount: 8192)
        for index in 0..<8192 { buffer.bytes[index] = UInt8(truncatingIfNeeded: index / 7) }
        let bytes = buffer.bytes
        let room = back.bytes
        var results: [Int32] = []
        try withReactor(engine) { reactor in
            #expect(reactor.engineName == engine.rawValue)
            reactor.write(fd, UnsafeRawBufferPointer(bytes), at: 4096) { result in
                results.append(result)
                reactor.read(fd, into: room, at: 4096) { result in
                    results.append(result)
                    reactor.stop()
                }
            }
        }
        #expect(results == [8192, 8192])
        #expect(memcmp(bytes.baseAddress!, room.baseAddress!, 8192) == 0)
    }
}
