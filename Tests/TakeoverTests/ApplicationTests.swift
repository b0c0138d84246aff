import Foundation
import Synchronization
import Testing

@testable import Takeover

@Suite(.timeLimit(.minutes(1))) struct ControlGroupTests {
    @Test func freezingReallyStopsACountingProcessAndThawingResumesIt() throws {
        let stage = try Stage()
        let counter = try stage.script(
            "start", "(i=0; while :; do i=$((i+1)); echo $i > \(stage.directory)/count; sleep 0.01; done) &")
        let application = stage.application(stage.settings(start: counter))
        try application.start()
        #expect(eventually(5) { !stage.content("count").isEmpty } != nil)
        #expect(try application.freeze())
        #expect(stage.group.isFrozen)
        let frozen = stage.content("count")
        usleep(300_000)
        #expect(stage.content("count") == frozen)
        try application.thaw()
        #expect(eventually(5) { Int(stage.content("count").dropLast()) ?? 0 > (Int(frozen.dropLast()) ?? 0) } != nil)
        #expect(try application.kill().isEmpty)
    }

    @Test func killEndsChildrenThatForkedTwiceIntoSessionsOfTheirOwn() throws {
        let stage = try Stage()
        let start = try stage.script(
            "start", "setsid sh -c '(setsid sleep 1001 &) & setsid sleep 1002 &'; sleep 1003 &")
        let application = stage.application(stage.settings(start: start))
        try application.start()
        let processes = try #require(try? stage.group.processes())
        #expect(processes.count >= 3)
        #expect(try application.freeze(), "a frozen group must die as well")
        #expect(try application.kill().isEmpty)
        #expect(try stage.group.processes().isEmpty)
        #expect(eventually(2) { !processes.contains(where: exists) } != nil)
    }

    @Test func aGroupOfAnEarlierLifeIsTakenOverWithItsProcesses() throws {
        let stage = try Stage()
        try stage.application(stage.settings(start: try stage.script("start", "sleep 1000 &"))).start()
        let again = try ControlGroup(name: stage.name, logger: quiet)
        #expect(try again.processes().count == 1)
        #expect(try again.kill().isEmpty)
    }

    @Test func aGroupThatSomebodyRemovedIsAClearError() throws {
        let stage = try Stage()
        rmdir(stage.group.path)
        let error = #expect(throws: TakeoverError.self) { try stage.group.freeze() }
        #expect(error?.code == ENOENT && error?.description.contains(stage.group.path) == true)
        #expect(!stage.group.isFrozen)
    }
}

@Suite(.timeLimit(.minutes(1))) struct ApplicationTests {
    @Test func theStartScriptGetsItsSurroundingsAndNothingOfTheDaemons() throws {
        let stage = try Stage()
        let inherited = open(stage.directory, O_RDONLY)  // without close-on-exec
        defer { close(inherited) }
        let start = try stage.script(
            "start", "env > $1/env; pwd > $1/pwd; readlink /proc/self/fd/* > $1/fd; echo hello; echo oops >&2")
        var settings = stage.settings(start: ApplicationCommand(start.executable, [stage.directory]))
        settings.user = nil
        let journalist = Journalist()
        try stage.application(settings, journalist.logger).start()
        let environment = stage.content("env")
        for line in [
            "LOCKSTEP_MIRROR=ledger", "LOCKSTEP_NODE=alpha", "LOCKSTEP_PATH=/srv/ledger",
            "LOCKSTEP_ADDRESSES=10.0.9.1 fd00:9::1",
        ] { #expect(environment.contains(line)) }
        #expect(stage.content("pwd") == "/\n")
        let files = stage.content("fd").split(separator: "\n")
        #expect(files.first == "/dev/null" && files.count >= 3)
        #expect(!files.contains { $0 == stage.directory }, "a descriptor of the daemon's: \(files)")
        #expect(eventually(2) { journalist.text.contains("hello") && journalist.text.contains("oops") } != nil)
    }

    @Test func aScriptThatChattersDoesNotFillTheLog() throws {
        let stage = try Stage()
        let journalist = Journalist()
        let start = try stage.script("start", "seq 1 20000; head -c 100000 /dev/zero | tr '\\0' x")
        try stage.application(stage.settings(start: start), journalist.logger).start()
        #expect(eventually(5) { journalist.text.contains("not logged") } != nil)
        usleep(100_000)
        journalist.lines.withLock {
            #expect($0.count < 500 && $0.allSatisfy { $0.utf8.count <= OutputPump.lineBytesMaximum })
        }
    }

    @Test func aFailingStartSaysWhyAndLeavesNothing() throws {
        let stage = try Stage()
        let start = try stage.script("start", "sleep 1000 & echo the port is taken >&2; exit 3")
        let error = #expect(throws: TakeoverError.self) { try stage.application(stage.settings(start: start)).start() }
        #expect(error?.description.contains("status 3") == true, "\(error?.description ?? "")")
        #expect(error?.description.contains("the port is taken") == true, "\(error?.description ?? "")")
        #expect(try stage.group.processes().isEmpty)
    }

    @Test func aStartThatDoesNotReturnIsKilledAtItsTimeLimit() throws {
        let stage = try Stage()
        var settings = stage.settings(start: try stage.script("start", "trap '' TERM; sleep 1000"))
        settings.startTimeoutMilliseconds = 300
        let application = stage.application(settings)
        let began = bootNanoseconds()
        let error = #expect(throws: TakeoverError.self) { try application.start() }
        #expect(bootNanoseconds() - began < 5_000_000_000)
        #expect(error?.reason.contains("300 ms") == true && error?.remedy.contains("startTimeoutSeconds") == true)
        #expect(try stage.group.processes().isEmpty)
    }

    @Test func aScriptThatIsMissingOrNotExecutableIsNamedWithARemedy() throws {
        let stage = try Stage()
        let missing = stage.application(stage.settings(start: ApplicationCommand(stage.directory + "/none")))
        let first = #expect(throws: TakeoverError.self) { try missing.start() }
        #expect(first?.code == ENOENT && first?.description.contains("/none") == true)
        let plain = stage.application(stage.settings(start: try stage.script("plain", "true", mode: 0o644)))
        let second = #expect(throws: TakeoverError.self) { try plain.start() }
        #expect(second?.code == EACCES && second?.remedy.contains("chmod +x") == true)
        #expect(try stage.group.processes().isEmpty)
    }

    @Test func theStopScriptRunsAndWhatItLeavesIsKilled() throws {
        let stage = try Stage()
        var settings = stage.settings(start: try stage.script("start", "sleep 1001 & sleep 1002 &"))
        settings.stop = try stage.script("stop", "echo stopped > \(stage.directory)/stopped")
        let application = stage.application(settings)
        try application.start()
        let report = try application.stop()
        #expect(report.script == .exited(status: 0) && report.killed == 2 && report.left.isEmpty)
        #expect(stage.content("stopped") == "stopped\n")
        #expect(try !application.isPopulated)
    }

    @Test func failure26aStopScriptThatHangsIsKilledAndStoppingIsCertainAllTheSame() throws {
        let stage = try Stage()
        var settings = stage.settings(start: try stage.script("start", "setsid sleep 1001 &"))
        settings.stop = try stage.script("stop", "trap '' TERM INT HUP; sleep 1000; sleep 1000")
        settings.stopTimeoutMilliseconds = 300
        let application = stage.application(settings)
        try application.start()
        let began = bootNanoseconds()
        let report = try application.stop()
        #expect(report.script == .timedOut(milliseconds: 300) && report.left.isEmpty)
        #expect(bootNanoseconds() - began < 5_000_000_000)
        #expect(try stage.group.processes().isEmpty)
    }

    @Test func aFrozenApplicationIsKilledWithoutItsStopScript() throws {
        let stage = try Stage()
        var settings = stage.settings(start: try stage.script("start", "sleep 1001 &"))
        settings.stop = try stage.script("stop", "echo ran > \(stage.directory)/ran")
        let application = stage.application(settings)
        try application.start()
        try application.freeze()
        let report = try application.stop()
        #expect(report.script == nil && report.left.isEmpty && stage.content("ran").isEmpty)
        #expect(!stage.group.isFrozen, "the next start must not be born frozen")
        try application.start()
        #expect(try application.isPopulated)
    }

    @Test func whatAnEarlierRunLeftIsKilledBeforeTheStart() throws {
        let stage = try Stage()
        let settings = stage.settings(start: try stage.script("start", "sleep 1001 &"))
        try stage.application(settings).start()
        let before = try stage.group.processes()
        let again = stage.application(settings)
        try again.start()
        let after = try stage.group.processes()
        #expect(after.count == 1 && Set(before).isDisjoint(with: after))
    }

    @Test func aKillFromAnotherThreadEndsARunningStart() throws {
        let stage = try Stage()
        let application = stage.application(stage.settings(start: try stage.script("start", "sleep 1000")))
        let killer = Thread {
            eventually(5) { (try? application.isPopulated) == true }
            _ = try? application.kill()
        }
        killer.start()
        let began = bootNanoseconds()
        let error = #expect(throws: TakeoverError.self) { try application.start() }
        #expect(error?.reason.contains("killed or stopped meanwhile") == true)
        #expect(bootNanoseconds() - began < 10_000_000_000)
        #expect(
            try eventually(2) { try stage.group.processes().isEmpty } != nil,
            "the killer waits for that, start does not")
    }

    /// Asked for before a kill, and only come to after it.
    @Test func aStartThatWasCalledOffDoesNothing() throws {
        let stage = try Stage()
        let application = stage.application(
            stage.settings(start: try stage.script("start", "echo started >> \(stage.directory)/marks")))
        let old = application.ticket
        try application.kill()
        #expect(try !application.start(old))
        #expect(stage.content("marks").isEmpty)
        #expect(try application.start(application.ticket))
        #expect(stage.content("marks") == "started\n")
    }

    @Test func scriptsRunAsTheConfiguredUser() throws {
        let stage = try Stage()
        let journalist = Journalist()
        var settings = stage.settings(start: ApplicationCommand("/usr/bin/id", ["-u"]))
        settings.user = "nobody"
        try stage.application(settings, journalist.logger).start()
        #expect(eventually(2) { journalist.text.contains("65534") } != nil)
        settings.user = "no-such-user"
        let error = #expect(throws: TakeoverError.self) { try stage.application(settings).start() }
        #expect(error?.reason.contains("no-such-user") == true)
    }

    @Test func theCheckerReportsOnceAfterItsFailuresInARow() throws {
        let stage = try Stage()
        var settings = stage.settings(start: try stage.script("start", "sleep 1001 &"))
        settings.check = try stage.script(
            "check",
            "echo x >> \(stage.directory)/checks; test ! -e \(stage.directory)/ill || { echo it is ill; exit 1; }")
        settings.checkIntervalMilliseconds = 50
        settings.checkFailuresMaximum = 3
        let application = stage.application(settings)
        try application.start()
        let reports = Mutex<[String]>([])
        try application.startChecking { report in reports.withLock { $0.append(report) } }
        #expect(eventually(5) { stage.content("checks").count >= 6 } != nil)
        #expect(reports.withLock { $0.isEmpty }, "all is well")

        try application.freeze()
        try "".write(toFile: stage.directory + "/ill", atomically: true, encoding: .utf8)
        usleep(400_000)
        #expect(reports.withLock { $0.isEmpty }, "a frozen application is not checked")

        try application.thaw()
        #expect(eventually(5) { reports.withLock { !$0.isEmpty } } != nil)
        usleep(300_000)
        reports.withLock {
            #expect($0.count == 1 && $0[0].contains("3 checks in a row") && $0[0].contains("it is ill"))
        }
    }

    @Test func freezingWhileChecksAreBornLeavesNobodyStuck() throws {
        let stage = try Stage()
        var settings = stage.settings(start: try stage.script("start", "sleep 1001 &"))
        settings.check = ApplicationCommand("/bin/true")
        settings.stop = ApplicationCommand("/bin/true")
        settings.checkIntervalMilliseconds = 0
        let application = stage.application(settings)
        try application.start()
        let report = Mutex("")
        try application.startChecking { text in report.withLock { $0 = text } }
        for _ in 0..<40 {
            try application.freeze()
            #expect(throws: TakeoverError.self, "nothing is born into a frozen group") {
                try stage.group.whileThawed("test") {}
            }
            try application.thaw()
            usleep(2000)
        }
        let began = bootNanoseconds()
        let stopped = try application.stop()
        #expect(stopped.script == .exited(status: 0) && stopped.left.isEmpty)
        #expect(bootNanoseconds() - began < 5_000_000_000)
        #expect(report.withLock { $0.isEmpty })
    }

    @Test func aCheckThatHangsCountsAsAFailure() throws {
        let stage = try Stage()
        var settings = stage.settings(start: try stage.script("start", "sleep 1001 &"))
        settings.check = try stage.script("check", "sleep 1000")
        settings.checkIntervalMilliseconds = 20
        settings.checkTimeoutMilliseconds = 100
        settings.checkFailuresMaximum = 2
        let application = stage.application(settings)
        try application.start()
        let report = Mutex("")
        try application.startChecking { text in report.withLock { $0 = text } }
        #expect(eventually(10) { report.withLock { $0.contains("100 ms") } } != nil)
        #expect(eventually(3) { (try? stage.group.processes().count) == 1 } != nil, "hung checks are killed")
    }
}
