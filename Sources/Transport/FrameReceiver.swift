import CLinux
public import Format

/// Supplies memory for one frame's body, so that it is received where it will be used.
public protocol BodySink: AnyObject {
    /// Where the next bytes of the body go, in order. Asked first when the header is there, and again whenever all that
    /// was supplied is full and bytes remain: so a sink may first ask for a head, look at it, and then say where the rest
    /// belongs. The memory must stay until `bodyComplete` or until the connection has closed.
    ///
    /// - Parameter remaining: bytes of the body not yet placed, at least 1; supplying more is an error of the sender.
    /// - Returns: empty for "no memory now": reading stops until `Connection.resumeReading`, then it is asked again.
    /// - Throws: what is wrong with the body so far; the connection closes.
    func nextPlaces(remaining: Int) throws(DecodingError) -> [UnsafeMutableRawBufferPointer]

    /// The whole body has arrived.
    func bodyComplete() throws(DecodingError)
}

/// Cuts a stream of bytes into frames. No I/O: says where the next bytes should go, and is told how many came.
///
/// ```
///   header ──(48 bytes)──> body ──(all of it, in staging)──> frame
///      ^                └> sink ──(all of it, in the sink's memory)──> sunk
///      └──────────────────────────────────────────────────────────────┘
/// ```
/// Memory: the staging buffer, which grows by doubling while bytes of a longer frame arrive, never beyond header and
/// body limit of the accepted types, and shrinks back behind it.
@safe
final class FrameReceiver {
    enum Step {
        /// More bytes are needed.
        case hungry
        case frame(FrameHeader, [UInt8])
        /// The header of a frame of a direct type is there: give `begin(sink:)` its sink, or `beginCollecting()`.
        case announced(FrameHeader)
        /// The sink has no memory now.
        case stalled
        /// A frame went completely into its sink.
        case sunk(FrameHeader)
    }

    private enum State {
        case header
        case announced(FrameHeader)
        case collecting(FrameHeader)
        case sinking(FrameHeader, any BodySink, remaining: Int)
    }

    /// Bytes of staging for a stranger: a hello fits.
    static let greetingBytes = 8 << 10
    /// Bytes of staging for the others.
    static let stagingBytes = 32 << 10

    /// Types that are accepted; others end the connection.
    var accepted: Set<FrameType>
    /// Of those, types whose bodies go to a sink.
    var direct: Set<FrameType>

    private var state = State.header
    private var staging: UnsafeMutableRawBufferPointer
    /// Bytes in staging: from `start` to `end`.
    private var start = 0
    private var end = 0
    /// Memory that the sink supplied and that is not full.
    private var places: [UnsafeMutableRawBufferPointer] = unsafe []
    private var placedFrom = 0

    /// Bytes of staging when there is no long frame.
    private var ordinaryBytes = FrameReceiver.greetingBytes

    init(accepted: Set<FrameType>, direct: Set<FrameType> = []) {
        self.accepted = accepted
        self.direct = direct
        unsafe staging = .allocate(byteCount: ordinaryBytes, alignment: 16)
    }

    /// Staging grows from a stranger's to the ordinary size; not if no accepted frame is longer than the former: a
    /// witness has thousands of connections on which none is.
    func grow() {
        let longest = FrameHeader.byteCount + (accepted.map(\.bodyLimit).max() ?? 0)
        guard longest > ordinaryBytes else { return }
        ordinaryBytes = FrameReceiver.stagingBytes
        if unsafe staging.count < ordinaryBytes { resize(ordinaryBytes) }
    }

    deinit { unsafe staging.deallocate() }

    /// Bytes of memory held.
    var capacity: Int { unsafe staging.count }
    /// Bytes that came and were not used yet.
    var leftover: [UInt8] { unsafe Array(staging[start..<end]) }

    /// Names the memory for the next bytes: the rest of the sink's places, then staging.
    func space(_ vectors: inout [iovec]) {
        unsafe vectors.removeAll(keepingCapacity: true)
        if start == end {
            start = 0
            end = 0
        }
        for index in unsafe placedFrom..<places.count {
            guard unsafe vectors.count < 64 else { return }
            unsafe vectors.append(iovec(iov_base: places[index].baseAddress, iov_len: places[index].count))
        }
        if unsafe end == staging.count { makeRoom() }
        guard let base = unsafe staging.baseAddress else { return }
        unsafe vectors.append(iovec(iov_base: base + end, iov_len: staging.count - end))
    }

    /// `count` bytes came, into what `space` named.
    func filled(_ count: Int) {
        var rest = count
        while rest > 0, unsafe placedFrom < places.count {
            let place = unsafe places[placedFrom]
            let part = min(rest, place.count)
            unsafe places[placedFrom] = UnsafeMutableRawBufferPointer(rebasing: place[part...])
            noteSunk(part)
            rest -= part
            if part == place.count { placedFrom += 1 } else { break }
        }
        unsafe precondition(rest <= staging.count - end, "more bytes than there was room for")
        end += rest
    }

    /// Takes bytes that were received elsewhere, before any of its own.
    func take(_ bytes: [UInt8]) {
        unsafe precondition(start == end && bytes.count <= staging.count, "\(bytes.count) bytes are too many")
        unsafe UnsafeMutableRawBufferPointer(rebasing: staging[..<bytes.count]).copyBytes(from: bytes)
        start = 0
        end = bytes.count
    }

    /// Lets go of a sink whose body will never be complete.
    func abandon() {
        state = .header
        unsafe places = []
        placedFrom = 0
    }

    /// What the bytes so far amount to. Call until it is hungry or stalled.
    func next() throws(DecodingError) -> Step {
        switch state {
        case .header:
            guard end - start >= FrameHeader.byteCount else { return .hungry }
            let head = unsafe Array(staging[start..<start + FrameHeader.byteCount])
            let header = try FrameHeader(decoding: head)
            guard accepted.contains(header.type) else {
                throw DecodingError("\(header.type) is not expected here", at: 8)
            }
            if direct.contains(header.type) {
                state = .announced(header)
                return .announced(header)
            }
            state = .collecting(header)
            return try next()
        case .announced(let header):
            return .announced(header)
        case .collecting(let header):
            let total = FrameHeader.byteCount + header.bodyLength
            guard end - start >= total else {
                if start > 0, unsafe start + total > staging.count { compact() }
                return .hungry
            }
            let body = unsafe UnsafeRawBufferPointer(
                rebasing: staging[(start + FrameHeader.byteCount)..<(start + total)])
            try unsafe verify(header, body)
            let bytes = unsafe Array(body)
            consume(total)
            state = .header
            return .frame(header, bytes)
        case .sinking(let header, let sink, let remaining):
            return try continueSinking(header, sink, remaining)
        }
    }

    /// The announced frame goes to `sink`.
    func begin(sink: any BodySink) throws(DecodingError) {
        guard case .announced(let header) = state else { preconditionFailure("no frame was announced") }
        // The checksum of such a frame covers its header only.
        precondition(!header.type.checksumCoversBody, "\(header.type) cannot be received directly")
        try unsafe verify(header, UnsafeRawBufferPointer(start: nil, count: 0))
        consume(FrameHeader.byteCount)
        state = .sinking(header, sink, remaining: header.bodyLength)
    }

    private func continueSinking(
        _ header: FrameHeader, _ sink: any BodySink, _ atStart: Int
    ) throws(DecodingError) -> Step {
        var remaining = atStart
        while remaining > 0 {
            if unsafe placedFrom == places.count {
                unsafe places = try sink.nextPlaces(remaining: remaining)
                placedFrom = 0
                let supplied = unsafe places.reduce(0) { $0 + $1.count }
                guard supplied <= remaining else {
                    unsafe places = []
                    throw DecodingError("\(header.type) is shorter than its contents say", at: header.bodyLength)
                }
                if supplied == 0 {
                    unsafe places = []
                    return .stalled
                }
            }
            let before = remaining
            moveStagedBytes()
            if case .sinking(_, _, let now) = state { remaining = now }
            if remaining == before, unsafe placedFrom < places.count { return .hungry }
        }
        unsafe places = []
        placedFrom = 0
        state = .header
        try sink.bodyComplete()
        return .sunk(header)
    }

    /// Copies what has already come into the sink's places.
    private func moveStagedBytes() {
        while unsafe placedFrom < places.count {
            let place = unsafe places[placedFrom]
            let part = min(place.count, end - start)
            if part > 0 {
                unsafe place.copyMemory(from: UnsafeRawBufferPointer(rebasing: staging[start..<start + part]))
                consume(part)
                noteSunk(part)
            }
            guard part == place.count else {
                unsafe places[placedFrom] = UnsafeMutableRawBufferPointer(rebasing: place[part...])
                return
            }
            placedFrom += 1
        }
    }

    private func noteSunk(_ count: Int) {
        guard case .sinking(let header, let sink, let remaining) = state else { return }
        precondition(count <= remaining, "more bytes than the body has")
        state = .sinking(header, sink, remaining: remaining - count)
    }

    /// The checksum over header (with the field itself as zero) and, but for batches, the body.
    private func verify(_ header: FrameHeader, _ body: UnsafeRawBufferPointer) throws(DecodingError) {
        guard unsafe header.verify(body: body) else {
            throw DecodingError("wrong checksum of a \(header.type)", at: 12)
        }
    }

    private func consume(_ count: Int) {
        start += count
        precondition(start <= end, "consumed more than there is")
        guard start == end else { return }
        start = 0
        end = 0
        if unsafe staging.count > ordinaryBytes { resize(ordinaryBytes) }
    }

    private func compact() {
        unsafe staging.copyMemory(from: UnsafeRawBufferPointer(rebasing: staging[start..<end]))
        end -= start
        start = 0
    }

    /// Staging is full to its end: moves what there is to the front, or doubles. It doubles only for a frame whose header
    /// was accepted, so the type's limit bounds it.
    private func makeRoom() {
        if start > 0 {
            compact()
            return
        }
        guard case .collecting(let header) = state else { return }
        let total = FrameHeader.byteCount + header.bodyLength
        if unsafe total > staging.count { unsafe resize(min(total, staging.count * 2)) }
    }

    private func resize(_ count: Int) {
        let new = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 16)
        unsafe new.copyMemory(from: UnsafeRawBufferPointer(rebasing: staging[start..<end]))
        unsafe staging.deallocate()
        unsafe staging = new
        end -= start
        start = 0
    }
}
