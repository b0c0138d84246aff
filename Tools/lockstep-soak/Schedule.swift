//  What happens when: drawn from the seed alone, before anything happens. Roles are resolved when the moment comes.
import Foundation
import Workload

/// Which of the two nodes an accident meets.
enum Victim: String, CaseIterable { case serving, standby }

/// The ends of a link.
enum Place: String, CaseIterable { case serving, standby, witness }

/// The file systems of a room: journal and votes, or the plain files.
enum Disk: String, CaseIterable { case state, files }

enum Accident: Equatable {
    /// SIGKILL to the daemon; the application and the mounts of its room stay.
    case killDaemon(Victim)
    /// SIGKILL to all of a room, cable out.
    case loseRoom(Victim)
    /// All of a room killed, and what its file systems had not written is lost.
    case cutPower(Victim)
    case cutPowerOfBoth
    case killBothDaemons
    case killWitness
    /// Its directory is emptied too.
    case reinstallWitness
    case cut(Place, Place)
    case cutOneWay(from: Place, to: Place)
    case cutRoom(Victim)
    /// Cut and healed so many times.
    case flap(Place, Place, times: Int, milliseconds: Int)
    case pause(Victim, milliseconds: Int)
    case swap
    /// All files compared while the writers write.
    case verify(repair: Bool)
    /// The other node made equal from the beginning, at so many KiB a second at most; 0: as fast as it goes.
    case fullResync(rate: Int)
    /// SIGTERM to the daemon.
    case stop(Victim)
    /// So many KiB are left free on a file system.
    case fill(Victim, Disk, leaving: Int)
    /// Every write to a file system hangs for so long.
    case freeze(Victim, Disk, milliseconds: Int)
    /// A file system fails from now on.
    case breakDisk(Victim, Disk)
    /// The room is lost, and comes back with empty disks.
    case replaceDisks
    /// Whatever does not run is started; links stay as they are.
    case startWhatIsDown

    var text: String {
        switch self {
        case .killDaemon(let victim): "kill the daemon that is \(victim.rawValue)"
        case .loseRoom(let victim): "lose the room that is \(victim.rawValue)"
        case .cutPower(let victim): "cut the power of the room that is \(victim.rawValue)"
        case .cutPowerOfBoth: "cut the power of both rooms"
        case .killBothDaemons: "kill both daemons"
        case .killWitness: "kill the witness"
        case .reinstallWitness: "lose the witness and install it anew, empty"
        case .cut(let a, let b): "cut the link \(a.rawValue)-\(b.rawValue)"
        case .cutOneWay(let from, let to): "lose everything from \(from.rawValue) to \(to.rawValue)"
        case .cutRoom(let victim): "take out the cable of the room that is \(victim.rawValue)"
        case .flap(let a, let b, let times, let milliseconds):
            "flap the link \(a.rawValue)-\(b.rawValue) \(times) times, \(milliseconds) ms"
        case .pause(let victim, let milliseconds): "halt the room that is \(victim.rawValue) for \(milliseconds) ms"
        case .swap: "swap"
        case .verify(let repair): repair ? "verify and repair" : "verify"
        case .fullResync(let rate): "resync from the beginning" + (rate > 0 ? ", at most \(rate) KiB/s" : "")
        case .stop(let victim): "stop the daemon that is \(victim.rawValue)"
        case .fill(let victim, let disk, let leaving):
            "fill the disk of the \(disk.rawValue) of the room that is \(victim.rawValue), leaving \(leaving) KiB"
        case .freeze(let victim, let disk, let milliseconds):
            "hang the disk of the \(disk.rawValue) of the room that is \(victim.rawValue) for \(milliseconds) ms"
        case .breakDisk(let victim, let disk):
            "break the disk of the \(disk.rawValue) of the room that is \(victim.rawValue)"
        case .replaceDisks: "lose the room that is standby, with its disks"
        case .startWhatIsDown: "start what is down"
        }
    }
}

/// From quiet to quiet: some accidents, then all is mended and everything is compared.
struct Round: Equatable {
    struct Event: Equatable {
        /// After the event before.
        var milliseconds: Int
        var accident: Accident
    }
    var number: Int
    var events: [Event]
    /// How long it stays as it is after the last accident.
    var holdMilliseconds: Int
    /// Between two steps of mending.
    var mendMilliseconds: Int
    /// Whether the witness is mended before the nodes, and which node comes first.
    var witnessFirst: Bool
    var alphaFirst: Bool

    var text: String {
        let accidents = events.map { "after \($0.milliseconds) ms \($0.accident.text)" }.joined(separator: ", ")
        let order = (witnessFirst ? "witness first, " : "") + (alphaFirst ? "alpha before beta" : "beta before alpha")
        return "\(number): \(accidents); hold \(holdMilliseconds) ms; mend \(order), \(mendMilliseconds) ms apart"
    }
}

/// An endless sequence of rounds that depends on the seed alone.
struct Schedule {
    private var random: SeededGenerator
    private var number = 0

    init(seed: UInt64) { random = SeededGenerator(seed: seed) }

    mutating func next() -> Round {
        number += 1
        var events: [Round.Event] = []
        // Few accidents as a rule; sometimes the next comes before the one before is mended, or while it is being mended.
        let count = [1, 1, 1, 2, 2, 3, 4][below(7)]
        for index in 0..<count {
            let early = below(3) == 0
            let pause = index == 0 ? 1000 + below(4000) : early ? below(400) : below(8000)
            events.append(.init(milliseconds: pause, accident: draw()))
            if index < count - 1 && below(2) == 0 {
                events.append(.init(milliseconds: below(10_000), accident: .startWhatIsDown))
            }
        }
        return Round(
            number: number, events: events, holdMilliseconds: [below(1000), below(12_000), below(40_000)][below(3)],
            mendMilliseconds: below(3) == 0 ? 0 : below(3000), witnessFirst: below(2) == 0, alphaFirst: below(2) == 0)
    }

    private mutating func below(_ bound: Int) -> Int { Int.random(in: 0..<bound, using: &random) }
    private mutating func victim() -> Victim { Victim.allCases[below(2)] }
    private mutating func link() -> (Place, Place) {
        let first = below(3)
        return (Place.allCases[first], Place.allCases[(first + 1 + below(2)) % 3])
    }

    private mutating func draw() -> Accident {
        switch below(46) {
        case 0..<4: return .killDaemon(victim())
        case 4..<7: return .loseRoom(victim())
        case 7..<11: return .cutPower(victim())
        case 11..<13: return .cutPowerOfBoth
        case 13: return .killBothDaemons
        case 14: return .killWitness
        case 15: return .reinstallWitness
        case 16..<18:
            let (a, b) = link()
            return .cut(a, b)
        case 18..<20:
            let (a, b) = link()
            return .cutOneWay(from: a, to: b)
        case 20..<22: return .cutRoom(victim())
        case 22..<24:
            let (a, b) = link()
            return .flap(a, b, times: 2 + below(6), milliseconds: 300 + below(2000))
        case 24..<26: return .pause(victim(), milliseconds: 500 + below(9000))
        case 26..<29: return .swap
        case 29..<31: return .stop(victim())
        case 31..<33: return .freeze(victim(), disk(), milliseconds: 500 + below(9000))
        case 33..<35: return .breakDisk(victim(), disk())
        case 35: return .replaceDisks
        case 36..<39: return .verify(repair: below(2) == 0)
        case 39..<42: return .fullResync(rate: below(2) * (1000 + below(8000)))
        default: return .fill(victim(), disk(), leaving: below(3000))
        }
    }

    private mutating func disk() -> Disk { Disk.allCases[below(2)] }
}
