import CLinux
public import Format
import Glibc
import Ring

/// Bytes at a fixed place, from one owner: header and copied body of a frame that waits to be sent.
@safe
final class FrameBytes {
    let bytes: UnsafeRawBufferPointer

    init(_ header: [UInt8], _ body: [UInt8]) {
        let room = UnsafeMutableRawBufferPointer.allocate(byteCount: header.count + body.count, alignment: 8)
        unsafe UnsafeMutableRawBufferPointer(rebasing: room[..<header.count]).copyBytes(from: header)
        unsafe UnsafeMutableRawBufferPointer(rebasing: room[header.count...]).copyBytes(from: body)
        unsafe bytes = UnsafeRawBufferPointer(room)
    }

    deinit { unsafe bytes.deallocate() }
}

/// Frames on their way out.
@safe
struct SendQueue {
    @safe
    struct Entry {
        /// Header and copied body; nil once sent.
        var head: FrameBytes?
        /// Memory of the caller, sent behind `head`.
        var pieces: [UnsafeRawBufferPointer]
        var bytes: Int
        var completion: ((Bool) -> Void)?
    }
    private var entries: [Entry] = []
    private var first = 0
    /// Bytes of the first entry that are gone.
    private var offset = 0
    private(set) var bytes = 0

    var isEmpty: Bool { first == entries.count }
    var count: Int { entries.count - first }

    mutating func append(_ entry: Entry) {
        entries.append(entry)
        bytes += entry.bytes
    }

    /// Calls `body` with the next io vectors, at most 256.
    func withVectors<Value>(
        _ vectors: inout [iovec], _ body: (UnsafeBufferPointer<iovec>) -> Value
    ) -> Value {
        unsafe vectors.removeAll(keepingCapacity: true)
        var skip = offset
        for index in first..<entries.count {
            guard unsafe vectors.count < 256 else { break }
            if let head = entries[index].head { unsafe SendQueue.add(head.bytes, &skip, &vectors) }
            for piece in unsafe entries[index].pieces.indices {
                unsafe SendQueue.add(entries[index].pieces[piece], &skip, &vectors)
            }
        }
        return unsafe vectors.prefix(1024).withUnsafeBufferPointer { unsafe body($0) }
    }

    private static func add(_ bytes: UnsafeRawBufferPointer, _ skip: inout Int, _ vectors: inout [iovec]) {
        let gone = min(skip, bytes.count)
        skip -= gone
        guard bytes.count > gone, let base = bytes.baseAddress else { return }
        unsafe vectors.append(
            iovec(iov_base: UnsafeMutableRawPointer(mutating: base + gone), iov_len: bytes.count - gone))
    }

    /// `count` bytes have left. Returns the completions of the frames that are through.
    mutating func advance(_ count: Int) -> [(Bool) -> Void] {
        var done: [(Bool) -> Void] = []
        offset += count
        bytes -= count
        while first < entries.count, offset >= entries[first].bytes {
            offset -= entries[first].bytes
            if let completion = entries[first].completion { done.append(completion) }
            entries[first].completion = nil
            entries[first].head = nil
            unsafe entries[first].pieces = []
            first += 1
        }
        if first == entries.count {
            entries.removeAll(keepingCapacity: entries.capacity <= 4096)
            first = 0
        } else if first >= 256, first > entries.count / 2 {
            entries.removeFirst(first)
            first = 0
        }
        return done
    }

    mutating func takeAll() -> ArraySlice<Entry> {
        let rest = entries[first...]
        self = SendQueue()
        return rest
    }
}

extension Connection {
    /// Bytes queued for sending.
    public var queuedBytes: Int { output.bytes }

    /// Queues a frame. It leaves at the end of the reactor's iteration, together with others.
    ///
    /// - Returns: false when the queue is full or the connection closed: nothing was queued. `onDrained` tells when there
    ///   is room.
    @discardableResult
    public func send(_ header: FrameHeader, body: [UInt8] = []) -> Bool {
        var header = header
        header.bodyLength = body.count
        return unsafe enqueue(FrameBytes(header.encoded(body: body), body), [], nil)
    }

    /// Queues a batch without copying it: `head`, then `pieces`, are its body. Their memory must stay as it is until
    /// `completion` is called: with true when the kernel has taken every byte, with false when the connection is closed.
    /// Only for types whose checksum does not cover the body. When false is returned `completion` is never called.
    @discardableResult
    public func send(
        _ header: FrameHeader, head: [UInt8], pieces: [UnsafeRawBufferPointer],
        completion: @escaping (Bool) -> Void
    ) -> Bool {
        precondition(!header.type.checksumCoversBody, "\(header.type) cannot be sent in pieces")
        var header = header
        let bodyLength = unsafe pieces.reduce(head.count) { $0 + $1.count }
        precondition(bodyLength <= header.type.bodyLimit, "\(header.type) of \(bodyLength) bytes")
        header.bodyLength = bodyLength
        return unsafe enqueue(FrameBytes(header.encoded(), head), pieces, completion)
    }

    private func enqueue(
        _ head: FrameBytes, _ pieces: [UnsafeRawBufferPointer], _ completion: ((Bool) -> Void)?
    ) -> Bool {
        reactor.preconditionCurrentThread()
        let bytes = unsafe pieces.reduce(head.bytes.count) { $0 + $1.count }
        guard !isClosed, output.count < limits.queuedFrames else { return false }
        // One frame always fits, however long.
        guard output.isEmpty || output.bytes + bytes <= limits.queuedBytes else { return false }
        unsafe output.append(SendQueue.Entry(head: head, pieces: pieces, bytes: bytes, completion: completion))
        if !flushing {
            flushing = true
            reactor.atEndOfIteration { [self] in flush() }
        }
        return true
    }

    /// Sends until the socket takes no more.
    func flush() {
        flushing = false
        guard !isClosed else { return }
        while !output.isEmpty {
            let count = unsafe output.withVectors(&sendVectors) { vectors in unsafe stream.send(vectors) }
            if count < 0 {
                if count == -Int(EINTR) { continue }
                if count == -Int(EAGAIN) { break }
                return finish(.failed(RingError("send to", "\(remote)", code: Int32(-count))))
            }
            bytesSent += UInt64(count)
            for completion in output.advance(count) { completion(true) }
            guard !isClosed else { return }
        }
        waitForRoom(!output.isEmpty)
        if output.isEmpty { outputDrained() }
    }
}
