import CLinux
import Configuration
import Format
import Glibc
import Quorum
import Ring
import Synchronization
import Takeover
import Testing

@testable import Node

@Suite struct LeaseGuardTests {
    private typealias Facts = LeaseSight.Facts

    private static let look: UInt64 = 50_000_000

    /// So many looks, each 50 ms after the one before; what they said, without `nothing`.
    private func look(
        _ watch: inout LeaseWatch, _ looks: ClosedRange<UInt64>, _ facts: (UInt64) -> Facts
    ) -> [UInt64: LeaseWatch.Verdict] {
        var found: [UInt64: LeaseWatch.Verdict] = [:]
        for number in looks {
            let now = number * Self.look
            let verdict = watch.look(facts(now), now: now)
            if verdict != .nothing { found[number] = verdict }
        }
        return found
    }

    @Test func failure07TheGuardFreezesOnlyWhereTheLeaseIsOverAndNobodyHasFrozen() {
        let over = 10 * Self.look
        var watch = LeaseWatch()
        // Renewed; not open here; frozen already.
        #expect(look(&watch, 1...600) { Facts(leaseUntil: $0 + 1, isOpen: true, heardAt: $0) }.isEmpty)
        #expect(look(&watch, 1...600) { Facts(leaseUntil: over, isOpen: false, heardAt: $0) }.isEmpty)
        #expect(look(&watch, 1...600) { Facts(leaseUntil: over, isOpen: true, isFrozen: true, heardAt: $0) }.isEmpty)
        // Two looks are left to the control thread, whether it comes round or not.
        #expect(look(&watch, 1...12) { Facts(leaseUntil: over, isOpen: true, heardAt: $0) } == [12: .freeze])
        watch = LeaseWatch()
        #expect(look(&watch, 1...12) { _ in Facts(leaseUntil: over, isOpen: true) } == [12: .freeze])
        // What the first time did not reach, the next one does.
        let again = look(&watch, 13...60) { Facts(leaseUntil: over, isOpen: true, heardAt: $0, guardHasFrozen: true) }
        #expect(again == [32: .freeze, 52: .freeze])
    }

    @Test func failure24AControlThreadThatDoesNotAnswerFor20SecondsEndsTheProcessWhereItServes() {
        var watch = LeaseWatch()
        // It stands by; it is slow; it is held up, but not for so long.
        #expect(look(&watch, 1...1000) { Facts(isOpen: false, heardAt: $0 > 5 ? 5 : $0) }.isEmpty)
        let frozen = { (heard: UInt64) in Facts(isOpen: true, isFrozen: true, heardAt: heard) }
        #expect(look(&watch, 1...1000) { frozen($0 / (300 * Self.look)) }.isEmpty)
        let ends = look(&watch, 1001...1500) { _ in frozen(7) }
        #expect(ends.keys.min() == 1402 && ends.values.allSatisfy { $0 == .end })
        // Alone it waits: started anew, it would have to wait for a node that is lost.
        watch = LeaseWatch()
        #expect(look(&watch, 1...1000) { _ in Facts(isOpen: true, isFrozen: true, heardAt: 7, mayEnd: false) }.isEmpty)
    }

    @Test func failure07AMachineThatStoodStillHasLookedOnce() {
        var watch = LeaseWatch()
        #expect(look(&watch, 1...10) { Facts(leaseUntil: $0 + 1, isOpen: true, heardAt: $0) }.isEmpty)
        // An hour later: the control thread has as long as ever to see it by itself.
        let asleep = Facts(leaseUntil: 11 * Self.look, isOpen: true, heardAt: 10 * Self.look)
        #expect(look(&watch, 72_000...72_001) { _ in asleep }.isEmpty)
        #expect(look(&watch, 72_002...72_002) { _ in asleep } == [72_002: .freeze])
    }

    // MARK: - Whatever comes first when the control thread goes on

    enum Order: CaseIterable, Sendable {
        case looksFirst, lookedAndGrantedBeforeTheGuardWasDone, grantFirst, froze, closes
    }

    @Test(arguments: Order.allCases)
    func failure07WhatTheGuardFrozeIsThawedWithTheLeaseWhateverComesFirst(order: Order) throws {
        let held = try HeldControl()
        defer { held.end() }
        held.call { control in
            control.carryOut(.lease(until: BootClock.now + 600_000_000_000))
            control.reported(.opened(Epoch(rawValue: 1)))
        }
        try held.wait("the application runs") { try held.state() == .running }
        let sight = held.call { $0.sight }
        held.call { control in
            control.carryOut(.lease(until: BootClock.now))
            // Held up here.
            while !sight.current.guardHasFrozen { usleep(1000) }
            let longer = MemberEffect.lease(until: BootClock.now + 600_000_000_000)
            switch order {
            case .looksFirst:
                control.carryOut(.freeze)
                control.carryOut(longer)
                control.carryOut(.thaw)
            case .lookedAndGrantedBeforeTheGuardWasDone:
                control.carryOut(.freeze)
                control.carryOut(longer)
                control.carryOut(.thaw)
                held.freezeAsTheGuardDoes()
            case .grantFirst: control.carryOut(longer)
            case .froze: control.carryOut(.freeze)
            case .closes: control.carryOut(.close(.stopped))
            }
        }
        switch order {
        case .froze:
            usleep(300_000)
            #expect(try held.state() == .frozen)
            held.call { control in
                control.carryOut(.lease(until: BootClock.now + 600_000_000_000))
                control.carryOut(.thaw)
            }
            try held.wait("it goes on") { try held.state() == .running }
        case .closes: try held.wait("it is dead, and the next one can be started") { try held.state() == .none }
        default: try held.wait("it goes on") { try held.state() == .running }
        }
        usleep(300_000)
        #expect(try held.state() == (order == .closes ? .none : .running))
        #expect(!sight.current.guardHasFrozen)
    }
}

/// A control plane with a service, an application in its control group, and the guard. The member has no part in
/// anything: what it would want, the test carries out.
private final class HeldControl: @unchecked Sendable {
    enum State { case none, running, frozen }

    private let scratch = Scratch()
    private let thread: ReactorThread
    private let leaseGuard: LeaseGuard
    private let service: Service
    private let control: Unchecked<ControlPlane>

    init() throws {
        let script = scratch.path + "/start"
        put(script, Array("#!/bin/sh\nsleep 1000 &\n".utf8))
        chmod(script, 0o755)
        let configuration = try MirrorConfiguration.parse(
            """
            name = "guard\(getpid())-\(UInt32.random(in: 0..<1_000_000))"
            path = "\(scratch.path)/path"
            backing = "\(scratch.path)/backing"
            state = "\(scratch.path)/state"
            [[node]]
            name = "a"
            address = "10.0.9.11:7400"
            [[node]]
            name = "b"
            address = "10.0.9.12:7400"
            [witness]
            address = "10.0.9.13:7401"
            [application]
            start = "\(script)"
            """, file: "test.toml")
        let made = Mutex<(Unchecked<ControlPlane>, Service, LeaseGuard)?>(nil)
        thread = try ReactorThread(name: "control", engine: .libaio, logger: quiet) { reactor in
            let control = try ControlPlane(
                node: .a, configuration: configuration, reactor: reactor, votes: VoteFile(configuration), seed: 1,
                logger: quiet)
            let box = Unchecked(control)
            let service = try Service(
                configuration: configuration, node: .a, control: reactor.handle, logger: quiet,
                onState: { state, text in box.value.applicationChanged(state, text) },
                onCheckFailed: { text in box.value.applicationFailed(text) })
            control.service = service
            control.start(MemberStart(state: nil, logComplete: false, lastEpoch: .none, lastSeq: .zero))
            let leaseGuard = LeaseGuard(
                sight: control.sight, service: service, controlThread: clinux_thread_id(), logger: quiet, end: {})
            leaseGuard.start()
            made.withLock { $0 = (box, service, leaseGuard) }
        }
        (control, service, leaseGuard) = made.withLock { $0! }
    }

    func end() {
        leaseGuard.stop()
        _ = try? service.application?.kill()
        call { $0.shutdown() }
        thread.stop()
        thread.join()
        try? service.application?.group.remove()
    }

    func call<Value: Sendable>(_ work: @escaping @Sendable (ControlPlane) -> Value) -> Value {
        let control = control
        return thread.call { work(control.value) }!
    }

    /// Control thread.
    func freezeAsTheGuardDoes() {
        service.freezeApplicationHere(isNews: true) { control.value.sight.note { $0.guardHasFrozen = true } }
    }

    func state() throws -> State {
        let group = try #require(service.application).group
        guard try !group.processes().isEmpty else { return .none }
        var byte: UInt8 = 0
        let descriptor = open(group.path + "/cgroup.freeze", O_RDONLY)
        defer { close(descriptor) }
        try #require(read(descriptor, &byte, 1) == 1)
        return byte == UInt8(ascii: "1") ? .frozen : .running
    }

    func wait(_ what: String, _ condition: () throws -> Bool) throws {
        let end = BootClock.now + 10_000_000_000
        while try !condition() {
            try #require(BootClock.now < end, "waited in vain until \(what)")
            usleep(5000)
        }
    }
}
