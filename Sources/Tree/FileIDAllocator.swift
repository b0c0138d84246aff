public import Format

/// Gives out file numbers. Pure: it lives with whoever logs the records.
///
/// A number is (epoch, counter). Every start of serving has an epoch that never was before, so the counter starts anew
/// with each and needs no disk: two histories, even forced ones, cannot give one number to two files.
public struct FileIDAllocator: Sendable, Hashable {
    public let epoch: Epoch
    /// The next counter to give out.
    public private(set) var next: UInt64

    /// - Parameter epoch: at least 1, for 0 holds the root alone.
    public init(epoch: Epoch) {
        precondition(epoch > .none, "files are made in an epoch")
        self.epoch = epoch
        next = 1
    }

    /// A number never given out before; nil when an epoch's 2^40 are used up.
    public mutating func allocate() -> FileID? {
        guard next < FileID.counterLimit else { return nil }
        defer { next += 1 }
        return FileID(epoch: epoch, counter: next)
    }
}
