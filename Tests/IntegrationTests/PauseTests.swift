//  Time itself fails: a machine stands still, two nodes want the same thing at one moment, a wall clock jumps. Lines 4, 7
//  and 28 of the table of failures.
import Foundation
import Rooms
import Testing

extension WholeSystem {
    @Suite struct PauseTests {
        /// The orders in which two proposals meet are enumerated with the simulator; here real processes meet, at moments
        /// around the end of the voters' grants, when both may ask.
        @Test func failure04GoingAloneAndTakingOverAtOneMomentHaveOneWinner() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                // Grants (4 s) run out while the primary's daemon hangs and the rooms do not hear each other: when it wakes
                // it must ask to go alone, and the other one asks to take over.
                for seconds in [3.6, 4.0, 4.4] {
                    let primary = try #require(cluster.serving())
                    try cluster.building.cut(between: cluster.alpha.room, and: cluster.beta.room)
                    let daemon = try #require(cluster.daemon(primary))
                    daemon.pause()
                    usleep(useconds_t(seconds * 1e6))
                    daemon.resume()
                    // Who lost stands by, or is frozen: it hears nobody who tells it more than that its lease is gone.
                    try waitUntil("exactly one node serves alone, the other does not", within: Small.stepSecondsMax) {
                        let roles = cluster.nodes.map { cluster.status($0)?.role }
                        return roles.filter { $0 == "ALONE" }.count == 1
                            && roles.contains { $0 == "WAIT" || $0 == "FROZEN" }
                    }
                    let winner = try #require(cluster.serving())
                    try cluster.watchThatDoesNotServe(cluster.other(than: winner), for: 2)
                    try client.waitForTransfers(within: Small.stepSecondsMax)
                    try cluster.building.restoreAll()
                    try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                    try guardian.check()
                }
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        @Test func failure07PausedPrimaryWakesDeposedAcknowledgesNothingAndFollows() throws {
            try Harness.withCluster(configure: Small.configuration) { cluster in
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let alpha = cluster.alpha.room
                let writer = try LineWriter(cluster, on: cluster.alpha)
                let asleep = bootSeconds()
                alpha.pauseAll()
                // No process of the room can do anything: the kernel itself lets the address go.
                try waitUntil("the kernel has dropped alpha's address", within: 8) {
                    alpha.addresses().isDisjoint(with: [Cluster.virtualAddress, Cluster.virtualAddress6])
                }
                // The voters' grant (4 s) and the address's lifetime are over; room for a loaded machine is in the bound.
                try cluster.waitUntilServing(cluster.beta, within: Small.stepSecondsMax)
                try client.waitForTransfers(within: Small.stepSecondsMax)
                let rest = asleep + 8 - bootSeconds()
                if rest > 0 { usleep(useconds_t(rest * 1e6)) }

                // One answer may have been on its way to the writer when the room fell asleep.
                let noted = writer.count
                alpha.resumeAll()
                try cluster.waitFor(cluster.alpha, "steps down and follows") { $0.role == "SECOND" && $0.isInSync }
                try #require(writer.count <= noted + 1, "writes were acknowledged after the deposition")
                writer.process.signal(SIGKILL)
                try #require(cluster.serving()?.name == "beta")
                try #require(cluster.addressHolders().map(\.name) == ["beta"])
                try cluster.expectWellAfterwards(client, guardian)
                for node in cluster.nodes { try writer.expectAllLines(on: node) }
            }
        }

        /// Only the thread that carries the data stands still, in a call that should not block; the one that renews the leases
        /// goes on. The process must not stay primary for ever.
        @Test func failure24AServingNodeWhoseDataThreadStandsStillGivesTheServiceAway() throws {
            try Harness.withRooms(configure: Small.configuration) { cluster in
                let trap = try Trap(directory: cluster.building.directory)
                try cluster.start { $0 === cluster.alpha.room ? trap.environment : [:] }
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                try trap.close()
                let (begun, daemon) = (bootSeconds(), try #require(cluster.daemon(cluster.alpha)))
                try cluster.waitFor(cluster.beta, "serves", within: 60) { $0.serves }
                try client.waitForTransfers(count: 20, within: Small.stepSecondsMax)
                // Not by its own end, nor because the other one was lost.
                try #require(bootSeconds() - begun > 15)
                try #require(daemon.waitForEnd(within: 10) == 1)
                try #require(daemon.logTail().contains("has stood still for 20 s"))
                let mounts = try cluster.alpha.room.succeed(["cat", "/proc/self/mounts"])
                try #require(!mounts.contains("fuse.lockstep"), "the directory is still there: \(mounts)")
                let left = cluster.alpha.room.processIdentifiers.map { pid in
                    String(decoding: FileManager.default.contents(atPath: "/proc/\(pid)/comm") ?? Data(), as: UTF8.self)
                }
                try #require(!left.contains { $0.hasPrefix("ledger") }, "the application still runs: \(left)")
                try trap.open()
                try cluster.startDaemon(cluster.alpha)
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// The same on the standby: the other node goes on alone, and the process ends. The next one comes back.
        @Test func failure24AStandbyWhoseDataThreadStandsStillEndsWhenItHasLeftTheSet() throws {
            try Harness.withRooms(configure: Small.configuration) { cluster in
                let trap = try Trap(directory: cluster.building.directory)
                try cluster.start { $0 === cluster.beta.room ? trap.environment : [:] }
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                try trap.close()
                let daemon = try #require(cluster.daemon(cluster.beta))
                try cluster.waitFor(cluster.alpha, "goes on alone") { $0.role == "ALONE" }
                let alone = bootSeconds()
                try client.waitForTransfers(count: 20, within: Small.stepSecondsMax)
                try #require(daemon.waitForEnd(within: 120) == 1)
                try #require(bootSeconds() - alone > 55, "it had no time to come to an end")
                try #require(daemon.logTail().contains("has stood still for 60 s"))
                try trap.open()
                try cluster.startDaemon(cluster.beta)
                try cluster.waitFor(cluster.beta, "stands by") { $0.role == "SECOND" && $0.isInSync }
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// The thread that renews the lease is held up where no system call should block. The application stands still as long
        /// as there is no lease, goes on with the next one, and leaves with the process when that thread does not come back.
        @Test func failure07AnApplicationStandsStillWithoutALeaseWhenTheControlThreadIsHeldUp() throws {
            try Harness.withRooms(configure: Small.configuration) { cluster in
                let trap = try Trap(of: "control", directory: cluster.building.directory)
                try cluster.start { $0 === cluster.alpha.room ? trap.environment : [:] }
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let alpha = cluster.alpha
                let group = try #require(try cluster.applicationGroup(on: alpha))
                let isFrozen = { try alpha.room.run(["cat", group + "/cgroup.freeze"]).output.hasPrefix("1") }
                try #require(try !isFrozen())
                for _ in 0..<3 {
                    try trap.close()
                    try waitUntil("the application is frozen", within: 10) { try isFrozen() }
                    try trap.open()
                    // Whether or not the other node has taken over meanwhile.
                    try client.waitForTransfers(within: Small.stepSecondsMax)
                    try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                    if cluster.serving()?.name != "alpha" { try cluster.lockstep(cluster.beta, ["swap"]) }
                    try cluster.waitUntilServing(alpha, within: Small.stepSecondsMax)
                    try client.waitForTransfers(within: Small.stepSecondsMax)
                    try #require(try !isFrozen())
                }
                let daemon = try #require(cluster.daemon(alpha))
                #expect(daemon.logTail(lines: 200).contains("the application is frozen without it"))

                try trap.close()
                try cluster.waitUntilServing(cluster.beta, within: Small.stepSecondsMax)
                try #require(daemon.waitForEnd(within: 40) == 1)
                #expect(daemon.logTail().contains("this process ends, and is started anew by its unit"))
                let left = try alpha.room.run(["cat", group + "/cgroup.procs"])
                try #require(left.output.isEmpty, "the application still runs: \(left.output)")
                try trap.open()
                try cluster.startDaemon(alpha)
                try cluster.waitUntilInSync(within: Small.stepSecondsMax)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }

        /// The clock of this machine must not be set, and namespaces do not cover CLOCK_REALTIME. So each daemon gets a wall
        /// clock of its own from a library that stands before the C library (`clock_gettime`, `gettimeofday`, `time`) and
        /// adds an offset that the test changes while they run. Swift's and Foundation's clocks go through these functions;
        /// that the jump is seen is checked by what the nodes write with it. What the kernel itself does by the wall clock
        /// (file times) is not covered. That the decisions read no clock at all is the shape of `Quorum` and `Replication`:
        /// they are given the time, which the simulator makes up.
        @Test func failure28JumpsOfTheWallClockChangeNothing() throws {
            try Harness.withRooms(configure: Small.configuration) { cluster in
                let clocks = try WallClocks(directory: cluster.building.directory)
                try cluster.start { clocks.environment(in: $0) }
                let (client, guardian) = try HarnessClient.begin(cluster)
                defer { guardian.stop() }
                let epoch = try #require(cluster.status(cluster.alpha)).epoch

                let hour = 3600
                let jumps: [(room: Room, seconds: Int)] = [
                    (cluster.alpha.room, hour), (cluster.beta.room, -hour), (cluster.witness, hour),
                    (cluster.alpha.room, -hour), (cluster.beta.room, hour), (cluster.witness, -hour),
                ]
                let begin = bootSeconds()
                for jump in jumps {
                    try clocks.set(jump.room, offset: jump.seconds)
                    // A lease (2 s) would run out, were it measured by that clock.
                    try client.waitForTransfers(since: bootSeconds() + 2.2, within: Small.stepSecondsMax)
                    for node in cluster.nodes {
                        let status = try #require(cluster.status(node))
                        try #require(status.epoch == epoch && status.isInSync, "\(node.name): \(status.explanation)")
                    }
                }
                try #require(
                    client.service.longestPause(from: begin, to: bootSeconds()) < 1.5, "the service stood still")
                try #require(cluster.status(cluster.alpha)?.role == "PRIM")

                // A takeover by an hour's difference is as quick as any.
                let lost = bootSeconds()
                try cluster.lose(cluster.alpha)
                try cluster.waitUntilServing(cluster.beta, within: Small.stepSecondsMax)
                try client.waitForTransfers(within: Small.stepSecondsMax)
                try #require(client.service.longestPause(from: lost, to: bootSeconds()) < 20)
                // Beta notes the takeover by its wall clock: an hour ahead, so the jumps were real.
                let noted = try #require(cluster.status(cluster.beta)?.lastTakeoverTime)
                let difference = try Date(noted, strategy: .iso8601).timeIntervalSinceNow
                try #require(abs(difference - Double(hour)) < 120, "beta's clock did not jump: \(noted)")

                try clocks.set(cluster.alpha.room, offset: 0)
                try cluster.bringBack(cluster.alpha)
                try cluster.expectWellAfterwards(client, guardian)
            }
        }
    }
}

/// A library that stands before the C library, and stops the data thread, or another one, at its next read: of a request of
/// the application or from the other node.
private struct Trap {
    private let directory: String
    private var library: String { directory + "/trap.so" }
    private var flag: String { directory + "/trap-is-closed" }

    init(of thread: String = "data", directory: String) throws {
        self.directory = directory
        let source = directory + "/trap.c"
        try Data(
            """
            #define _GNU_SOURCE
            #include <dlfcn.h>
            #include <stdlib.h>
            #include <string.h>
            #include <sys/prctl.h>
            #include <sys/uio.h>
            #include <unistd.h>
            ssize_t readv(int file, const struct iovec *pieces, int count) {
                static ssize_t (*real)(int, const struct iovec *, int);
                if (!real) real = (ssize_t(*)(int, const struct iovec *, int))dlsym(RTLD_NEXT, "readv");
                char thread[16] = "";
                prctl(PR_GET_NAME, thread);
                while (strcmp(thread, "\(thread)") == 0 && access(getenv("TRAP"), F_OK) == 0) usleep(10000);
                return real(file, pieces, count);
            }

            """.utf8
        ).write(to: URL(fileURLWithPath: source))
        try succeedOnHost(["clang", "-shared", "-fPIC", "-O1", "-o", library, source])
    }

    var environment: [String: String] { ["LD_PRELOAD": library, "TRAP": flag] }

    func close() throws { try Data().write(to: URL(fileURLWithPath: flag)) }
    func open() throws { try FileManager.default.removeItem(atPath: flag) }
}

/// Wall clocks of single processes.
private struct WallClocks {
    private let directory: String
    private var library: String { directory + "/wall-clock.so" }

    /// Builds the library with the C compiler that belongs to the Swift toolchain.
    init(directory: String) throws {
        self.directory = directory
        let source = directory + "/wall-clock.c"
        try Data(
            """
            #define _GNU_SOURCE
            #include <fcntl.h>
            #include <stdlib.h>
            #include <sys/mman.h>
            #include <sys/syscall.h>
            #include <sys/time.h>
            #include <time.h>
            #include <unistd.h>
            static volatile long long *offset;
            __attribute__((constructor)) static void prepare(void) {
                int file = open(getenv("WALL_CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC);
                offset = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
                if (offset == MAP_FAILED) abort();
                close(file);
            }
            int clock_gettime(clockid_t clock, struct timespec *time) {
                int result = syscall(SYS_clock_gettime, clock, time);
                if (result == 0 && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
                    time->tv_sec += *offset;
                return result;
            }
            int gettimeofday(struct timeval *time, void *zone) {
                int result = syscall(SYS_gettimeofday, time, zone);
                if (result == 0 && time && offset) time->tv_sec += *offset;
                return result;
            }
            time_t time(time_t *place) {
                struct timespec now;
                clock_gettime(CLOCK_REALTIME, &now);
                if (place) *place = now.tv_sec;
                return now.tv_sec;
            }

            """.utf8
        ).write(to: URL(fileURLWithPath: source))
        try succeedOnHost(["clang", "-shared", "-fPIC", "-O1", "-o", library, source])
    }

    private func file(_ room: Room) -> String { "\(directory)/wall-clock-\(room.name)" }

    /// For a process in that room, which begins with the right time.
    func environment(in room: Room) -> [String: String] {
        _ = FileManager.default.createFile(atPath: file(room), contents: Data(count: 8))
        return ["LD_PRELOAD": library, "WALL_CLOCK_OFFSET": file(room)]
    }

    /// The clock of that room's processes jumps, while they run.
    func set(_ room: Room, offset seconds: Int) throws {
        let descriptor = open(file(room), O_WRONLY)
        defer { close(descriptor) }
        var value = Int64(seconds)
        guard pwrite(descriptor, &value, 8, 0) == 8 else { throw RoomsError("Cannot write \(file(room)).") }
    }
}
