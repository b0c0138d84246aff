import Format
import Glibc
import Quorum
import Testing

@testable import Journal
@testable import Node
@testable import Tree

/// What is owed has become too much to be told file by file: of many only that they changed is known, not even what
/// they are.
@Suite(.serialized) struct WholesTests {
    private static func fill(_ root: String) {
        put("\(root)/base", noise(2 << 20, 77))
        makeDirectories("\(root)/x/y/z")
        put("\(root)/x/y/z/inside", noise(50_000, 80))
        for index in 0..<20 { makeDirectories("\(root)/other\(index)/below") }
        for index in 0..<200 { put("\(root)/small\(index)", [1]) }
    }

    /// More than the budget holds; all that is noted so far counts as changed as a whole.
    private func overflow(_ a: TestNode) {
        for index in 0..<200 {
            let file = a.file("small\(index)")
            a.log(.setXattr(file: file, name: Array("user.touched".utf8), value: [1]))
        }
        a.waitForSync(a.call { $0.log.lastSeq })
    }

    /// A directory and what was above it change places. The old place is told as a whole, the new one exactly: its image
    /// must not come first, because there the one would be put below itself.
    @Test func directoriesAmongWholesAreSentInTheirOrder() throws {
        let pair = try Pair.inSync(WholesTests.fill)
        pair.cut()
        let a = pair.a
        a.call { $0.keeper.budgetBytes = 8_000 }
        pair.goAlone(a, epoch: 3)
        let (x, y, z) = (a.file("x"), a.file("x/y"), a.file("x/y/z"))
        _ = a.create("in-x", in: x)
        _ = a.create("in-root")
        for index in 0..<20 { _ = a.create("new", in: a.file("other\(index)/below")) }
        overflow(a)
        let map = a.call { $0.keeper.debt?.since }
        #expect([FileID.root, x].allSatisfy { map?.changes(of: $0).map { $0.hasNames && $0.hasContent } == true })
        a.rename(y, x, "y", to: .root, "y")
        a.rename(x, .root, "x", to: z, "x")
        let exact = a.call { $0.keeper.debt?.since.changes(of: z) }
        #expect(exact?.hasNames == true && exact?.hasContent == false)
        pair.bringBackByRanges()
    }

    /// The same with all of them told as wholes.
    @Test func directoriesThatAreAllWholesAreSentInTheirOrder() throws {
        let pair = try Pair.inSync(WholesTests.fill)
        pair.cut()
        let a = pair.a
        a.call { $0.keeper.budgetBytes = 8_000 }
        pair.goAlone(a, epoch: 3)
        let (x, y, z) = (a.file("x"), a.file("x/y"), a.file("x/y/z"))
        a.rename(y, x, "y", to: .root, "y")
        a.rename(x, .root, "x", to: z, "x")
        for index in 0..<19 {
            // other0/below/other1/below/...: the first of them ends at the bottom.
            let below = a.file("other\(index + 1)/below")
            a.rename(a.file("other\(index)"), .root, "other\(index)", to: below, "other\(index)")
            a.waitForSync(a.call { $0.log.lastSeq })
            a.wait("applied") { $0.log.applied >= $0.log.lastSeq }
        }
        overflow(a)
        pair.bringBackByRanges()
    }

    /// Broken off, and gone on with: what has been told as a whole since may be a directory too.
    @Test(arguments: 1...3) func wholesAreSentInTheirOrderAfterABreak(seed: UInt64) throws {
        var random = Seeded(seed)
        let pair = try Pair.inSync(WholesTests.fill)
        pair.cut()
        let a = pair.a
        a.call { $0.keeper.budgetBytes = 8_000 }
        pair.goAlone(a, epoch: 3)
        var mess = Mess(a, random: Seeded(seed))
        mess.make(60)
        overflow(a)
        a.fillJournal(a.file("base"))
        for _ in 0..<2 {
            pair.connect()
            usleep(UInt32.random(in: 1_000...60_000, using: &random))
            pair.cut()
            mess.make(60)
            overflow(a)
        }
        pair.bringBackByRanges()
    }
}
