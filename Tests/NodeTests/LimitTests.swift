import Format
import Glibc
import Testing

@testable import Node

@Suite(.serialized) struct LimitTests {
    @Test func thePrimaryKeepsToTheNarrowerRoomAlsoWhenItIsAlone() throws {
        let pair = try Pair(mounted: true)
        let own = pair.a.call { $0.limits }
        #expect(own == pair.a.call { $0.tree.limits })
        pair.b.call { plane in
            plane.link.limits.targetBytes = 20
            plane.link.limits.links = 3
        }
        let path = pair.a.configuration.path
        let long = String(repeating: "t", count: 21)
        pair.serve(pair.a, epoch: 2)
        #expect(symlink(long, path + "/before") == 0)
        pair.connect()
        pair.a.wait("the other node's limits") { $0.link.peerLimits != nil }
        #expect(symlink(long, path + "/after") == -1 && errno == ENAMETOOLONG)
        #expect(symlink(String(long.dropLast()), path + "/short") == 0)
        pair.cut()
        #expect(symlink(long, path + "/alone") == -1 && errno == ENAMETOOLONG)
        #expect(
            pair.a.call { $0.limits }
                == own.narrower(
                    FileLimits(
                        fileBytes: .max, links: 3, xattrBytes: .max, targetBytes: 20, directoryBytes: .max)))
        // The other one would keep to both as well.
        #expect(pair.b.call { $0.limits.targetBytes } == 20)
    }
}
