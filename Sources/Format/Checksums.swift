internal import CLinux

/// CRC-32C of raw bytes, continuing from `crc`.
public func crc32c(_ bytes: UnsafeRawBufferPointer, continuing crc: UInt32 = 0) -> UInt32 {
    guard let base = bytes.baseAddress else { return crc }
    return unsafe clinux_crc32c(crc, base, bytes.count)
}

/// CRC-32C of an array.
public func crc32c(_ bytes: some Collection<UInt8>, continuing crc: UInt32 = 0) -> UInt32 {
    let direct = bytes.withContiguousStorageIfAvailable { buffer in
        unsafe crc32c(UnsafeRawBufferPointer(buffer), continuing: crc)
    }
    if let direct { return direct }
    return unsafe Array(bytes).withUnsafeBytes { buffer in unsafe crc32c(buffer, continuing: crc) }
}

/// 64-bit XXH3 (https://xxhash.com), seeded.
public func hash64(_ bytes: UnsafeRawBufferPointer, seed: UInt64) -> UInt64 {
    guard let base = bytes.baseAddress else { return clinux_xxh3_64(nil, 0, seed) }
    return unsafe clinux_xxh3_64(base, bytes.count, seed)
}

/// 128-bit XXH3, seeded: for comparing blocks of files in the two rooms.
public struct Hash128: Sendable, Hashable {
    public let low: UInt64
    public let high: UInt64
    public init(low: UInt64, high: UInt64) {
        self.low = low
        self.high = high
    }
    public init(of bytes: UnsafeRawBufferPointer, seed: UInt64) {
        let hash = unsafe clinux_xxh3_128(bytes.baseAddress, bytes.count, seed)
        low = hash.low
        high = hash.high
    }
}
