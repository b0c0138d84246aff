//  Starting programs with posix_spawn: no inherited descriptors, default signal handling, a process group of its own.
import Foundation

/// Starts a program; standard input is /dev/null, output and error are appended to files.
func spawn(
    _ arguments: [String], environment: [String: String] = [:], output: String, error: String? = nil
) throws -> Int32 {
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
    posix_spawn_file_actions_addopen(&actions, 1, output, O_WRONLY | O_CREAT | O_APPEND, 0o644)
    if let error {
        posix_spawn_file_actions_addopen(&actions, 2, error, O_WRONLY | O_CREAT | O_APPEND, 0o644)
    } else {
        posix_spawn_file_actions_adddup2(&actions, 1, 2)
    }
    keepDescriptorsFromChildren()

    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var none = sigset_t()
    sigemptyset(&none)
    var all = sigset_t()
    sigfillset(&all)
    posix_spawnattr_setsigmask(&attributes, &none)
    posix_spawnattr_setsigdefault(&attributes, &all)
    posix_spawnattr_setpgroup(&attributes, 0)
    posix_spawnattr_setflags(
        &attributes, Int16(POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))

    var merged = ProcessInfo.processInfo.environment
    merged["PATH"] = (merged["PATH"] ?? "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    merged.merge(environment) { $1 }
    let argv = arguments.map { strdup($0) } + [nil]
    let envp = merged.map { strdup("\($0.key)=\($0.value)") } + [nil]
    defer { for pointer in argv + envp { free(pointer) } }

    var pid: pid_t = 0
    let result = posix_spawnp(&pid, arguments[0], &actions, &attributes, argv, envp)
    guard result == 0 else {
        throw RoomsError(
            "Cannot start \(arguments[0]): \(String(cString: strerror(result))). Is its package installed?")
    }
    return pid
}

/// Marks every descriptor of this process close-on-exec. Libraries open some without; a child that kept one would hold a
/// mount or a pipe open. (The closefrom action of posix_spawn is not visible from Swift.)
private func keepDescriptorsFromChildren() {
    for descriptor in entries(of: "/proc/self/fd").compactMap({ Int32($0) }) where descriptor > 2 {
        _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
    }
}

/// The exit status of a child that has ended, or nil while it runs.
func collect(_ pid: Int32) -> Int32? {
    var status: Int32 = 0
    let result = waitpid(pid, &status, WNOHANG)
    if result == 0 || (result < 0 && errno == EINTR) { return nil }
    if result < 0 { return -1 }
    let signal = status & 0x7f
    return signal == 0 ? (status >> 8) & 0xff : 128 + signal
}

/// Kills a child, collects its end and answers its exit status: what is not collected stays a zombie until this process
/// ends, and hides the ends of other children from whoever waits for any child (Swift Testing's exit tests wait for ever).
/// Nil if it has not ended within 10 s, or was collected before.
@discardableResult
func killAndCollect(_ pid: Int32) -> Int32? {
    kill(pid, SIGKILL)
    var status: Int32?
    try? waitUntil("process \(pid) is dead", within: 10, every: 0.002) {
        status = collect(pid)
        return status != nil
    }
    return status
}

/// Runs a program to its end; `files` is the beginning of the names of two files for its output, removed afterwards.
func runToEnd(
    _ arguments: [String], environment: [String: String] = [:], within seconds: Double, files: String
) throws -> Output {
    let outputFile = files + ".out"
    let errorFile = files + ".err"
    defer {
        unlink(outputFile)
        unlink(errorFile)
    }
    let pid = try spawn(arguments, environment: environment, output: outputFile, error: errorFile)
    var status: Int32?
    do {
        try waitUntil("'\(arguments.joined(separator: " "))' has ended", within: seconds, every: 0.003) {
            status = collect(pid)
            return status != nil
        }
    } catch {
        kill(-pid, SIGKILL)
        killAndCollect(pid)
        throw error
    }
    let text = { (file: String) in
        FileManager.default.contents(atPath: file).map { String(decoding: $0, as: UTF8.self) } ?? ""
    }
    return Output(status: status ?? -1, output: text(outputFile), error: text(errorFile))
}

/// Runs a program on the host; throws with its error output unless it succeeds. Returns standard output.
@discardableResult
public func succeedOnHost(_ arguments: [String], within seconds: Double = 60) throws -> String {
    let base = "/tmp/lsk-\(getpid())-command-\(UInt64.random(in: 0..<UInt64.max))"
    let output = try runToEnd(arguments, within: seconds, files: base)
    guard output.status == 0 else {
        throw RoomsError(
            "'\(arguments.joined(separator: " "))' ended with status \(output.status): "
                + (output.error + output.output).trimmingCharacters(in: .whitespacesAndNewlines))
    }
    return output.output
}

func makeDirectory(_ path: String) throws {
    do {
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    } catch {
        throw RoomsError("Cannot make the directory \(path): \(error.localizedDescription)")
    }
}

/// Writes a small file in one write, as the kernel's control files want it.
func write(_ text: String, to path: String) throws {
    let descriptor = Foundation.open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
    guard descriptor >= 0 else { throw RoomsError("Cannot open \(path): \(String(cString: strerror(errno))).") }
    defer { Foundation.close(descriptor) }
    guard Foundation.write(descriptor, text, text.utf8.count) == text.utf8.count else {
        throw RoomsError("Cannot write to \(path): \(String(cString: strerror(errno))).")
    }
}
