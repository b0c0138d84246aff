internal import CLinux
internal import Format
internal import Glibc

/// One connection to the kernel: the descriptor of /dev/fuse, and answers to requests from any thread.
///
/// The descriptor is closed when the last holder lets go, so a worker that answers late can never write to a
/// descriptor that means something else by now.
final class FuseConnection: Sendable {
    let descriptor: Int32

    init() throws(FuseMountError) {
        let result = clinux_fuse_open()
        guard result >= 0 else {
            throw FuseMountError("open", "/dev/fuse", code: -result, remedy: "load the module: modprobe fuse")
        }
        descriptor = result
    }

    deinit { _ = close(descriptor) }

    /// Answers with an errno, or 0 for "done" without content.
    func answer(_ unique: UInt64, errno: Int32) {
        unsafe send(code: -errno, unique: unique, body: UnsafeRawBufferPointer(start: nil, count: 0))
    }

    func answer(_ unique: UInt64, _ body: [UInt8]) {
        _ = unsafe body.withUnsafeBytes { unsafe send(code: 0, unique: unique, body: $0) }
    }

    func answer(_ unique: UInt64, _ body: UnsafeRawBufferPointer) {
        unsafe send(code: 0, unique: unique, body: body)
    }

    /// The answer to a WRITE: how many bytes were taken.
    func answerWritten(_ unique: UInt64, _ count: Int) {
        var out = UInt64(UInt32(count).littleEndian)
        _ = unsafe withUnsafeBytes(of: &out) { unsafe send(code: 0, unique: unique, body: $0) }
    }

    func notify(_ code: Int32, _ body: [UInt8]) -> Int32 {
        unsafe body.withUnsafeBytes { unsafe send(code: code, unique: 0, body: $0) }
    }

    /// ENOENT (the request is gone: its process was killed, or it was answered before) and ENODEV (unmounted) leave
    /// nothing to do; no other error can come, because every answer has the form the kernel asked for.
    @discardableResult
    private func send(code: Int32, unique: UInt64, body: UnsafeRawBufferPointer) -> Int32 {
        let length = UInt32(FuseProtocol.replyHeaderBytes + body.count)
        var head = (length.littleEndian, code.littleEndian, unique.littleEndian)
        let result = unsafe withUnsafeBytes(of: &head) {
            unsafe clinux_fuse_send(
                descriptor, $0.baseAddress, FuseProtocol.replyHeaderBytes, body.baseAddress, body.count)
        }
        assert(result != -Int64(EINVAL) || unique == 0, "the kernel refuses the form of an answer")
        return result < 0 ? Int32(-result) : 0
    }
}

/// What went wrong with a mount, and what to do about it.
public struct FuseMountError: Error, Sendable, Hashable, CustomStringConvertible {
    public let action: String
    public let subject: String
    /// The errno, 0 when there is none.
    public let code: Int32
    public let remedy: String

    init(_ action: String, _ subject: String, code: Int32, remedy: String) {
        self.action = action
        self.subject = subject
        self.code = code
        self.remedy = remedy
    }

    public var description: String {
        let cause = unsafe code == 0 ? "" : ": " + String(cString: strerror(code))
        return "cannot \(action) \(subject)\(cause). \(remedy)"
    }
}
