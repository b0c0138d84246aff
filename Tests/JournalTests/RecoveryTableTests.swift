import Journal
import Testing

/// The table is enumerated completely, twice: against the sentences that justify it, and against counts that a change
/// of any single row would change.
@Suite struct RecoveryTableTests {
    static let everything: [RecoveryTable.Observation] = {
        var all: [RecoveryTable.Observation] = []
        for entry in RecoveryTable.EntryFinding.allCases {
            for header in RecoveryTable.HeaderFinding.allCases {
                for body in RecoveryTable.BodyFinding.allCases {
                    for later in RecoveryTable.LaterFinding.allCases {
                        for proves in [false, true] {
                            all.append(
                                .init(entry: entry, header: header, body: body, later: later, superblockProves: proves))
                        }
                    }
                }
            }
        }
        return all
    }()

    @Test func everyRowOfTheTable() {
        #expect(Self.everything.count == 3 * 3 * 2 * 3 * 2)
        for row in Self.everything {
            let step = RecoveryTable.step(row)
            let whole = row.header == .expected && row.body == .intact
            let wasDurable = row.entry != .absent || row.later == .proves || row.superblockProves
            switch step {
            case .accept:
                #expect(whole && row.entry != .contradicting, "accepted something that is not whole: \(row)")
            case .damaged:
                #expect(wasDurable, "called damage what may have been torn: \(row)")
                #expect(!whole || row.entry == .contradicting, "refused a whole batch: \(row)")
            case .cutTail:
                #expect(!wasDurable && !whole, "cut something that was durable: \(row)")
                #expect(row.header == .expected || row.later == .unproved, "nothing there to cut: \(row)")
            case .end:
                #expect(!wasDurable && row.header != .expected && row.later == .nothing, "ended too early: \(row)")
            }
        }
    }

    @Test func theCountsOfTheTableAreThese() {
        let counts = Dictionary(grouping: Self.everything, by: RecoveryTable.step).mapValues(\.count)
        // accept: whole (1 header x 1 body) x 2 entries x 3 later x 2. cut: expected+damaged, absent, 2 later, no proof;
        // and 2 headers x 2 bodies unproved. end: 2 headers x 2 bodies, nothing later.
        #expect(counts == [.accept: 12, .cutTail: 6, .end: 4, .damaged: 108 - 12 - 6 - 4])
    }

    @Test func aBadChecksumAloneNeverDropsWhatAnythingProves() {
        for row in Self.everything where row.entry == .matching || row.superblockProves {
            #expect([.accept, .damaged].contains(RecoveryTable.step(row)))
        }
    }

    @Test func everyOutcome() {
        for superblocks in RecoveryTable.SuperblockFinding.allCases {
            for damage in [false, true] {
                for last in RecoveryTable.Step.allCases {
                    for incomplete in [false, true] {
                        for company in RecoveryTable.Company.allCases {
                            let outcome = RecoveryTable.outcome(
                                superblocks: superblocks, anyDamage: damage, lastStep: last, incomplete: incomplete,
                                company: company)
                            let expected: RecoveryTable.Outcome =
                                if superblocks != .agreed {
                                    .refuse
                                } else if damage || last == .damaged || incomplete {
                                    company == .withPeer ? .fetch : .refusePrimary
                                } else {
                                    last == .cutTail ? .tailCut : .intact
                                }
                            #expect(outcome == expected)
                        }
                    }
                }
            }
        }
    }
}
