import CLinux
import Format
import Testing

@testable import Transport

/// Gives the receiver bytes as one read from a socket would: as many as it has room for. Returns how many.
@discardableResult
func feed(_ receiver: FrameReceiver, _ bytes: ArraySlice<UInt8>) -> Int {
    var vectors: [iovec] = []
    receiver.space(&vectors)
    var given = 0
    for vector in vectors {
        let part = min(vector.iov_len, bytes.count - given)
        let start = bytes.startIndex + given
        UnsafeMutableRawBufferPointer(start: vector.iov_base, count: part).copyBytes(from: bytes[start..<start + part])
        given += part
    }
    receiver.filled(given)
    return given
}

/// Receives a body in three stages: four bytes, then halves of the rest; may have no memory at first.
final class TestSink: BodySink {
    var memory: [UnsafeMutableRawBufferPointer] = []
    var stage = 0
    var stalls: Int
    var greedy = false
    var complete = false
    init(stalls: Int = 0) { self.stalls = stalls }
    deinit { for piece in memory { piece.deallocate() } }

    func nextPlaces(remaining: Int) throws(DecodingError) -> [UnsafeMutableRawBufferPointer] {
        precondition(remaining > 0)
        if stalls > 0 {
            stalls -= 1
            return []
        }
        stage += 1
        let sizes: [Int]
        if greedy {
            sizes = [remaining + 1]
        } else if stage == 1 {
            sizes = [min(4, remaining)]
        } else {
            sizes = [remaining / 2, 0, remaining - remaining / 2]
        }
        let places = sizes.map { UnsafeMutableRawBufferPointer.allocate(byteCount: $0, alignment: 1) }
        memory += places
        return places
    }
    func bodyComplete() throws(DecodingError) { complete = true }
    var bytes: [UInt8] { memory.flatMap { Array($0) } }
}

@Suite struct Framing {
    let all = Set(FrameType.allCases)

    @Test(arguments: 0..<40)
    func framesSurviveAnySplit(seed: UInt64) throws {
        var generator = SeededGenerator(seed)
        let types: [FrameType] = [.quorum, .control, .data, .batch]
        var sent: [(FrameType, [UInt8])] = []
        var stream: [UInt8] = []
        for _ in 0..<30 {
            let type = types[generator.below(4)]
            let limit = min(type.bodyLimit, generator.below(20) == 0 ? 200_000 : 3000)
            let body = generator.bytes(generator.below(limit + 1))
            sent.append((type, body))
            stream += wire(type, body)
        }
        let receiver = FrameReceiver(accepted: all, direct: [.batch])
        var received: [(FrameType, [UInt8])] = []
        var sink: TestSink?
        var offset = 0
        while offset < stream.count {
            let mode = generator.below(3)
            let size = 1 + generator.below([8, 500, 100_000][mode])
            let end = min(stream.count, offset + size)
            let given = feed(receiver, stream[offset..<end])
            #expect(given > 0, "there is always room once the receiver was asked")
            offset += given
            guard given > 0 else { return }
            loop: while true {
                switch try receiver.next() {
                case .hungry: break loop
                case .stalled: continue
                case .frame(let header, let body): received.append((header.type, body))
                case .announced:
                    sink = TestSink(stalls: generator.below(2))
                    try receiver.begin(sink: sink!)
                case .sunk(let header):
                    #expect(sink?.complete == true)
                    received.append((header.type, sink!.bytes))
                }
            }
        }
        // Compared outside the macro, which would print every byte.
        let same = received.elementsEqual(sent) { $0.0 == $1.0 && $0.1 == $1.1 }
        #expect(same, "seed \(seed): \(received.count) frames of \(sent.count)")
        #expect(receiver.capacity <= FrameReceiver.stagingBytes, "staging shrinks back")
        #expect(receiver.leftover.isEmpty)
    }

    /// What a stream of one damaged frame ends in.
    func outcome(_ bytes: [UInt8], accepted: Set<FrameType>? = nil) -> String {
        let receiver = FrameReceiver(accepted: accepted ?? all)
        feed(receiver, bytes[...])
        do {
            switch try receiver.next() {
            case .hungry: return "hungry"
            case .frame: return "frame"
            default: return "other"
            }
        } catch { return "\(error)" }
    }

    @Test func damagedFramesAreRefusedWithTheReason() {
        let good = wire(.control, [1, 2, 3, 4])
        func damaged(_ change: (inout [UInt8]) -> Void) -> String {
            var bytes = good
            change(&bytes)
            return outcome(bytes)
        }
        #expect(outcome(good) == "frame")
        #expect(damaged { $0[0] ^= 1 } == "not a Lockstep message at byte 0")
        #expect(damaged { $0[8] = 99 } == "unknown message type 99 at byte 8")
        #expect(damaged { $0[7] = 1 }.contains("limit 65536"))
        #expect(damaged { $0[20] ^= 1 } == "wrong checksum of a control at byte 12")
        #expect(damaged { $0[50] ^= 1 } == "wrong checksum of a control at byte 12")
        #expect(damaged { $0[10] ^= 1 } == "wrong checksum of a control at byte 12")
        #expect(damaged { $0.removeLast() } == "hungry")
        #expect(outcome(good, accepted: [.hello]) == "control is not expected here at byte 8")
    }

    @Test func aSinkThatWantsMoreThanTheBodyHasEndsTheConversation() throws {
        let receiver = FrameReceiver(accepted: all, direct: [.batch])
        feed(receiver, wire(.batch, [1, 2, 3, 4, 5])[...])
        guard case .announced = try receiver.next() else {
            Issue.record("no batch announced")
            return
        }
        let sink = TestSink()
        sink.greedy = true
        try receiver.begin(sink: sink)
        #expect(throws: DecodingError.self) { try receiver.next() }
    }

    @Test func aStrangerCannotMakeTheBufferGrow() throws {
        let receiver = FrameReceiver(accepted: [.hello])
        var bytes = wire(.hello, [UInt8](repeating: 0, count: 4096))
        bytes.removeLast()
        feed(receiver, bytes[...])
        guard case .hungry = try receiver.next() else {
            Issue.record("an incomplete hello was taken")
            return
        }
        #expect(receiver.capacity == FrameReceiver.greetingBytes)
    }
}

@Suite struct FrameFuzzing {
    /// Valid frames with random damage, cut at random places. Nothing may crash, hang or grow, and a frame that comes out
    /// must be one that went in.
    @Test(arguments: 1...8)
    func whateverComesTheDecoderStaysSane(seed: UInt64) {
        var generator = SeededGenerator(seed &* 0x1_0001)
        for round in 0..<400 {
            var stream: [UInt8] = []
            var valid: Set<[UInt8]> = []
            for _ in 0..<(1 + generator.below(4)) {
                let types: [FrameType] = [.hello, .quorum, .control, .data, .batch, .refusal]
                let type = types[generator.below(types.count)]
                let body = generator.bytes(generator.below(300))
                valid.insert(body)
                stream += wire(type, body)
            }
            if generator.below(8) == 0 { stream = generator.bytes(generator.below(400)) }
            for _ in 0..<generator.below(4) where !stream.isEmpty {
                let place = generator.below(stream.count)
                switch generator.below(4) {
                case 0: stream[place] ^= UInt8(1 << generator.below(8))
                case 1: stream[place] = UInt8(generator.below(256))
                case 2: stream.remove(at: place)
                default: stream.insert(UInt8(generator.below(256)), at: place)
                }
            }
            let receiver = FrameReceiver(accepted: Set(FrameType.allCases), direct: [.batch])
            var offset = 0
            var steps = 0
            do throws(DecodingError) {
                feeding: while offset < stream.count {
                    let end = min(stream.count, offset + 1 + generator.below(200))
                    let given = feed(receiver, stream[offset..<end])
                    offset += given
                    guard given > 0 else {
                        Issue.record("no room: seed \(seed), round \(round)")
                        return
                    }
                    while true {
                        steps += 1
                        guard steps < 10_000 else {
                            Issue.record("no progress: seed \(seed), round \(round)")
                            return
                        }
                        switch try receiver.next() {
                        case .hungry: continue feeding
                        case .announced: try receiver.begin(sink: TestSink(stalls: generator.below(2)))
                        case .frame(_, let body):
                            #expect(valid.contains(body), "seed \(seed), round \(round)")
                        case .stalled, .sunk: break
                        }
                    }
                }
            } catch {
                #expect(!error.description.isEmpty)
            }
            #expect(receiver.capacity <= 1 << 20)
        }
    }
}
