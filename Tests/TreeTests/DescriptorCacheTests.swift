import CLinux
import Format
import Glibc
import Testing

@testable import Tree

struct DescriptorCacheTests {
    private func object() -> OpenObject {
        OpenObject(owning: unsafe open("/dev/null", O_RDWR | O_CLOEXEC), type: UInt32(S_IFREG), isWritable: true)
    }

    @Test(arguments: [8, 16, 100, 512]) func howeverManyFilesAreUsedTheBoundHolds(limit: Int) {
        let cache = DescriptorCache(limit: limit)
        for number in 1...2000 as ClosedRange<UInt64> {
            cache.insert(FileID(rawValue: number), object())
            #expect(cache.count <= limit)
        }
        #expect(cache.count > limit / 2)
        cache.removeAll()
        #expect(cache.count == 0)
    }

    @Test func whatIsUsedAllTheTimeStaysOpen() throws {
        let cache = DescriptorCache(limit: 64)
        let used = FileID(rawValue: 7)
        let first = object()
        cache.insert(used, first)
        for number in 100...2000 as ClosedRange<UInt64> {
            cache.insert(FileID(rawValue: number), object())
            #expect(cache.find(used) === first)
        }
        cache.remove(used)
        #expect(cache.find(used) == nil)
    }
}
