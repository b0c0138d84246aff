import Quorum

// What must be true at every moment.

extension World {
    /// Never two that could acknowledge at one moment.
    func checkServers() {
        let able = nodes.filter { $0.isUp && $0.data.mayAcknowledge(now: $0.clock(now)) }
        if able.count > 1 { violate("both nodes could acknowledge: epochs \(a.data.epoch) and \(b.data.epoch)") }
    }

    /// A node opens: no acknowledged write is lost, and no epoch is used twice.
    func opened(_ node: SimulatedNode, _ decision: Decision, _ inheritance: Inheritance) {
        say("\(node.node) opens, \(decision), \(inheritance), \(node.data.log.count) records")
        if openings.contains(where: { $0.epoch == decision.epoch }) { violate("epoch \(decision.epoch) opened twice") }
        openings.append((node.node, decision.epoch))
        if let owner = epochOwners[decision.epoch], owner != node.node {
            violate("epoch \(decision.epoch) has two primaries")
        }
        epochOwners[decision.epoch] = node.node
        let held = Set(node.data.log.map(\.id))
        var isForced = false
        if case .byForce(let since) = inheritance { isForced = forcedEpochs.insert(since).inserted }
        for (id, write) in acknowledged.sorted(by: { $0.key < $1.key }) where !held.contains(id) {
            if isForced {
                if case .byForce(let since) = inheritance, let recorded = forcesRecorded[since], write.at > recorded {
                    violate(
                        "\(node.node) leads by an order that was recorded at \(recorded / ms) ms, without write \(id), "
                            + "acknowledged at \(write.at / ms) ms")
                }
                acknowledged[id] = nil
                // From two memories it may be lost with both rooms, as ever; alone it is on the other disk.
                if write.fsync || write.kills == nil { lostByForce.insert(id) }
            } else if inheritance == .unsyncedMayBeMissing, !write.fsync {
                acknowledged[id] = nil
                forgiven += 1
            } else {
                violate("\(node.node) opens in epoch \(decision.epoch) without acknowledged write \(id)")
            }
        }
    }

    /// What the first promise does not cover: a write that was never fsynced, acknowledged from the memories of both
    /// nodes, both of which died since.
    func forgiveLossOfBothRooms() {
        let held = Set(a.data.log.map(\.id)).union(b.data.log.map(\.id))
        for (id, write) in acknowledged where !write.fsync && !held.contains(id) {
            guard let kills = write.kills, a.kills > kills[0], b.kills > kills[1] else { continue }
            acknowledged[id] = nil
            forgiven += 1
        }
    }

    /// A voter's disk has accepted something: one decision for each ballot, one chosen decision for each sequence, and
    /// what was chosen never changes.
    func note(vote state: AcceptorState?, of voter: Voter) {
        guard let state else { return }
        var vote = votes[state.acceptedBallot] ?? (state.accepted, [])
        if vote.decision != state.accepted { violate("ballot \(state.acceptedBallot) has two decisions") }
        vote.voters.insert(voter)
        let epoch = state.accepted.epoch
        if forcesRecorded[epoch] == nil, nodes.contains(where: { $0.disk?.forcedEpoch == epoch }) {
            forcesRecorded[epoch] = now
        }
        votes[state.acceptedBallot] = vote
        guard vote.voters.count >= 2 else { return }
        if let earlier = chosen[state.accepted.sequence], earlier != state.accepted {
            violate("two chosen decisions: \(earlier) and \(state.accepted)")
        }
        chosen[state.accepted.sequence] = state.accepted
    }

    /// One node serves, with the other in sync, and writes are acknowledged.
    var isHealthy: Bool {
        let serving = nodes.filter { $0.isUp && $0.data.mayAcknowledge(now: $0.clock(now)) }
        guard serving.count == 1, let primary = serving.first, lastAcknowledgement + 1000 * ms > now else {
            return false
        }
        return primary.role?.role == .primary && self[primary.node.peer].role?.role == .secondary
            && primary.role?.inDoubt.isEmpty == true
    }

    /// One node serves and writes are acknowledged.
    var isServing: Bool {
        lastAcknowledgement + 1000 * ms > now
            && nodes.contains { $0.isUp && $0.data.mayAcknowledge(now: $0.clock(now)) }
    }

    /// The newest epoch that was chosen.
    var epochs: Int { Int(chosen.values.map(\.epoch.rawValue).max() ?? 0) }

    var server: NodeID? { nodes.first { $0.isUp && $0.data.mayAcknowledge(now: $0.clock(now)) }?.node }

    /// At the very end, both in sync: nothing acknowledged is missing anywhere.
    func checkEnd() {
        for node in nodes {
            let held = Set(node.data.log.map(\.id))
            for id in acknowledged.keys.sorted() where !held.contains(id) {
                violate("at the end \(node.node) lacks acknowledged write \(id)")
            }
        }
        let common = min(a.data.log.count, b.data.log.count)
        if a.data.log.prefix(common) != b.data.log.prefix(common) { violate("at the end the logs differ") }
        let saved = Set(a.data.rescued + b.data.rescued + a.data.log.map(\.id))
        for id in lostByForce.sorted() where !saved.contains(id) {
            violate("write \(id), left out by a forced promotion, is nowhere")
        }
    }

    // MARK: Faults

    func healNetwork() {
        for from in 0..<3 { for to in 0..<3 { cut[from][to] = false } }
        say("heal all")
    }

    func healEverything() {
        healNetwork()
        for machine in machines {
            resume(machine)
            machine.slowDisk = 5
            start(machine)
        }
        for node in nodes { step(node, .requestStart) }
    }

    /// The witness's disk is replaced.
    func reinstallWitness() {
        // After a forced promotion the witness stays until the other node has heard of it: see `Member+Promotion`.
        let newest = chosen.values.map(\.epoch).max() ?? .none
        for node in nodes {
            if let vote = node.disk, vote.accepted.inSync.isOnly(node.node), vote.chosenBallot == vote.acceptedBallot,
                !forcedEpochs.isEmpty || nodes.contains(where: { $0.disk?.forcedEpoch != nil }),
                vote.accepted.epoch < newest
            {
                return
            }
        }
        kill(witness)
        say("witness installed anew")
        witness.disk = nil
        witness.memory = NodeMemory()
        start(witness)
    }

    /// The witness's disk is put back to an older state. Only a node that remembers more can notice that, so both are
    /// there, and for a while nothing else goes wrong. (If those who remember are gone, nobody can know.)
    func restoreWitness() {
        guard let backup = witness.backup else { return }
        healEverything()
        calmUntil = now + 9_000 * ms
        witnessIsOldUntil = calmUntil
        kill(witness)
        say("witness restored from a backup")
        witness.disk = backup
        start(witness)
    }

    func randomFault() {
        guard now >= calmUntil else { return }
        if options.forces {
            if random.chance(100) { return strand() }
            if random.chance(250) {
                for node in nodes { step(node, .requestPromotion(seedWitness: random.chance(300))) }
                return
            }
        }
        switch random.next() % 26 {
        case 0, 1, 2: kill(nodes[Int(random.next() % 2)])
        case 3, 4, 5, 6: start(nodes[Int(random.next() % 2)])
        case 7: kill(witness)
        case 8, 9: start(witness)
        case 10, 11: cutSomething(bothWays: true)
        case 12, 13: cutSomething(bothWays: false)
        case 14, 15, 16: healNetwork()
        case 17: pause(machines[Int(random.next() % 3)])
        case 18, 19: for machine in machines { resume(machine) }
        case 20: reinstallWitness()
        case 21: if random.chance(500) { witness.backup = witness.disk } else { restoreWitness() }
        case 22: machines[Int(random.next() % 3)].slowDisk = random.between(1, 1500)
        case 23: for node in nodes { step(node, now / ms % 2 == 0 ? .requestSwap : .requestMove) }
        case 24: if random.chance(300) { step(nodes[Int(random.next() % 2)], .requestStop) }
        default: for node in nodes { step(node, .requestStart) }
        }
    }

    /// The standby is lost, the primary writes alone and is lost or cut off; the standby is back, and is promoted.
    private func strand() {
        healEverything()
        guard let server else { return }
        let (primary, other) = (self[server], self[server.peer])
        kill(other)
        let alone = random.between(1500, 5000) * ms
        if random.chance(300) { calmUntil = now + alone * 2 }
        after(alone) { [unowned self] in
            guard isStormy, now >= witnessIsOldUntil else { return }
            if random.chance(300) { setCut(between: primary.voter, .witness, true) } else { kill(primary) }
            setCut(between: .a, .b, true)
            start(other)
            for _ in 0..<3 {
                let node = other.node
                let seeds = random.chance(300)
                after(random.between(10, 7000) * ms) { [unowned self] in
                    guard isStormy else { return }
                    step(self[node], .requestPromotion(seedWitness: seeds))
                }
            }
        }
    }

    private func cutSomething(bothWays: Bool) {
        let pairs: [(Voter, Voter)] = [(.a, .b), (.a, .witness), (.b, .witness)]
        let (left, right) = pairs[Int(random.next() % 3)]
        if bothWays {
            setCut(between: left, right, true)
        } else if random.chance(500) {
            setCut(left, right, true)
        } else {
            setCut(right, left, true)
        }
    }

    func stormFault() { if isStormy { randomFault() } }

    /// Random faults for so long, then everything is healed; within a bound the mirror is whole again.
    func storm(milliseconds: UInt64) {
        let end = now + milliseconds * ms
        isStormy = true
        while now < end, violations.isEmpty {
            run(milliseconds: random.between(20, 1500))
            randomFault()
        }
        isStormy = false
        healEverything()
        settle()
    }

    /// Without faults: served within 60 s, whole within 150 s (the wait before a node is added again is up to 60 s).
    func settle() {
        guard violations.isEmpty else { return }
        let start = now
        var hasServed = false
        while violations.isEmpty {
            if run(until: { hasServed ? isHealthy : isServing }, milliseconds: 10_000) {
                if hasServed { break }
                hasServed = true
            }
            for node in nodes { step(node, .requestStart) }
            if now > start + (hasServed ? 150_000 : 60_000) * ms, violations.isEmpty {
                isStuck = true
                violate("not \(hasServed ? "whole" : "served") long after everything was healed: \(roles)")
            }
        }
        if violations.isEmpty { checkEnd() }
    }

    var roles: String {
        nodes.map { node in
            guard let role = node.role else { return "\(node.node) down" }
            return "\(node.node) \(role.role.rawValue) \(role.reason)"
        }.joined(separator: ", ")
    }
}
