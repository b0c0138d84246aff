/// Checksums: CRC-32C (Castagnoli, RFC 3720) for journal and wire, XXH3 for chains and comparisons.
#ifndef CLINUX_CHECKSUM_H
#define CLINUX_CHECKSUM_H
#include <stddef.h>
#include <stdint.h>

/// CRC-32C of `length` bytes, continuing from `crc` (0 at the start).
uint32_t clinux_crc32c(uint32_t crc, const void *bytes, size_t length);

/// 64-bit XXH3 of `length` bytes with a seed.
uint64_t clinux_xxh3_64(const void *bytes, size_t length, uint64_t seed);

/// 128-bit XXH3 of `length` bytes with a seed.
struct clinux_hash128 {
    uint64_t low, high;
};
struct clinux_hash128 clinux_xxh3_128(const void *bytes, size_t length, uint64_t seed);
#endif
