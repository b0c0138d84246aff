import CLinux
import Glibc
import Logging
import Synchronization

/// A program with its arguments; no shell reads it.
public struct ApplicationCommand: Sendable, Equatable, CustomStringConvertible {
    public var executable: String
    public var arguments: [String]

    public init(_ executable: String, _ arguments: [String] = []) {
        self.executable = executable
        self.arguments = arguments
    }

    public var description: String { ([executable] + arguments).joined(separator: " ") }
}

/// How a command ended.
public enum CommandEnd: Sendable, Equatable, CustomStringConvertible {
    case exited(status: Int32)
    case killed(signal: Int32)
    case timedOut(milliseconds: Int)

    /// Reads what waitpid says.
    init(waitStatus: Int32) {
        let signal = waitStatus & 0x7f
        self = signal == 0 ? .exited(status: (waitStatus >> 8) & 0xff) : .killed(signal: signal)
    }

    public var description: String {
        switch self {
        case .exited(let status): "it ended with status \(status)"
        case .killed(let signal): "it was killed by signal \(signal)"
        case .timedOut(let milliseconds): "it did not end within \(milliseconds) ms"
        }
    }
}

/// One running command of an application.
struct RunningCommand: ~Copyable {
    let process: Int32
    private let pidfd: Int32
    let output: OutputPump

    /// Starts it inside the control group.
    init(
        _ command: ApplicationCommand, as user: String?, environment: [String], in group: ControlGroup, logger: Logger
    ) throws(TakeoverError) {
        var identity = clinux_user()
        if let user {
            let result = unsafe clinux_user_find(user, &identity)
            guard result == 0 else {
                throw TakeoverError(
                    "run \(command)", reason: "user \"\(user)\": \(errorText(-result))",
                    remedy: "Correct `user` in the section [application]; `getent passwd \(user)` must find it")
            }
        }
        let home =
            unsafe user == nil
            ? "/root"
            : withUnsafeBytes(of: identity.home) {
                unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
        let variables =
            environment + [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=\(home)",
                "USER=\(user ?? "root")", "LOGNAME=\(user ?? "root")", "LANG=C.UTF-8",
            ]
        let procs = try group.openProcesses()
        defer { close(procs) }
        var pipe: [Int32] = [-1, -1]
        let piped = unsafe clinux_pipe(&pipe)
        guard piped == 0 else {
            throw TakeoverError("run \(command)", code: -piped, remedy: "Raise the limit of open files")
        }
        let writer = pipe[1]
        defer { close(writer) }
        var descriptor: Int32 = -1
        var step = CLINUX_SPAWN_FORK
        let arguments = [command.executable] + command.arguments
        var child: Int32 = 0
        for attempt in 0..<10 {
            if attempt > 0 { sleepMilliseconds(20) }
            child = unsafe withCStrings(arguments) { arguments in
                unsafe withCStrings(variables) { variables in
                    unsafe withUnsafePointer(to: &identity) { identity in
                        unsafe command.executable.withCString { path in
                            var spawn = unsafe clinux_spawn(
                                path: path, arguments: arguments, environment: variables, cgroup_procs: procs,
                                output: writer,
                                user: user == nil ? nil : identity)
                            return unsafe clinux_spawn_in_cgroup(&spawn, &descriptor, &step)
                        }
                    }
                }
            }
            // Somebody has the script open for writing: a copy that is about to end, or a process that was forked while
            // one was under way and has not come to its exec.
            if child != -ETXTBSY { break }
        }
        guard child > 0 else {
            close(pipe[0])
            throw Self.failure(command, step, -child, user: user)
        }
        process = child
        pidfd = descriptor
        output = OutputPump(descriptor: pipe[0], command: command.executable, logger: logger)
    }

    private static func failure(
        _ command: ApplicationCommand, _ step: clinux_spawn_step, _ code: Int32, user: String?
    ) -> TakeoverError {
        let remedy =
            switch (step, code) {
            case (CLINUX_SPAWN_EXEC, ENOENT):
                "See that \(command.executable) exists on this node, and the program in its first line (#!) too"
            case (CLINUX_SPAWN_EXEC, EACCES):
                "Make it executable: chmod +x \(command.executable)\(user.map { "; user \($0) must be able to reach it" } ?? "")"
            case (CLINUX_SPAWN_EXEC, ENOEXEC): "Give the script a first line such as #!/bin/sh"
            case (CLINUX_SPAWN_EXEC, ETXTBSY): "Somebody is writing it: see who with fuser -v \(command.executable)"
            case (CLINUX_SPAWN_CGROUP, _): "The control group cannot be entered: see that cgroup v2 is writable"
            case (CLINUX_SPAWN_USER, _): "The daemon must be root to run commands as \(user ?? "another user")"
            default: "See that the machine has memory and processes left"
            }
        return TakeoverError("run \(command)", code: code, remedy: remedy)
    }

    /// Waits for its end; `timedOut` leaves it running.
    borrowing func wait(milliseconds: Int) -> CommandEnd {
        var status: Int32 = 0
        let result = unsafe clinux_pidfd_wait(pidfd, Int32(clamping: milliseconds), &status)
        return result == 1 ? CommandEnd(waitStatus: status) : .timedOut(milliseconds: milliseconds)
    }

    /// Kills it and what is still in its process group, and reaps it.
    consuming func killGroup() {
        _ = kill(-process, SIGKILL)
        _ = wait(milliseconds: 2000)
    }

    deinit {
        // If it still runs, somebody has to reap it: a killed process that nobody waits for stays as a zombie.
        var status: Int32 = 0
        let pidfd = pidfd
        let ended = unsafe clinux_pidfd_wait(pidfd, 0, &status)
        if ended == 0
            && launchThread(
                "reaper",
                {
                    var status: Int32 = 0
                    while unsafe clinux_pidfd_wait(pidfd, 60_000, &status) == 0 {}
                    close(pidfd)
                })
        {
            return
        }
        close(pidfd)
    }
}

/// Calls `body` with a null-terminated array of C strings.
private func withCStrings<Result>(
    _ strings: [String], _ body: (UnsafePointer<UnsafeMutablePointer<CChar>?>) -> Result
) -> Result {
    var pointers = unsafe strings.map { unsafe strdup($0) }
    unsafe pointers.append(nil)
    defer { for index in unsafe pointers.indices { unsafe free(pointers[index]) } }
    return unsafe pointers.withUnsafeBufferPointer { unsafe body($0.baseAddress!) }
}

/// Carries what a command writes into the log, line by line, for as long as any process holds the other end: a server that
/// a start script leaves behind, for its whole life.
///
/// Bounded: a line longer than 1 KiB is cut, and of more than 50 lines in a second the rest is counted, not logged.
final class OutputPump: Sendable {
    static let lineBytesMaximum = 1024
    static let linesPerSecondMaximum = 50
    private static let keptLines = 3

    private struct State {
        var lastLines: [String] = []
        var isFinished = false
    }
    private let state = Mutex(State())

    /// - Parameter descriptor: the reading end of a pipe; closed when all writers are gone.
    init(descriptor: Int32, command: String, logger: Logger) {
        let launched = launchThread("output") { [self] in
            pump(descriptor, command, logger)
            close(descriptor)
            state.withLock { $0.isFinished = true }
        }
        if !launched {
            close(descriptor)
            state.withLock { $0.isFinished = true }
        }
    }

    /// The last lines, for an error message. Waits a moment for what is still in the pipe.
    func lastLines(milliseconds: Int) -> String {
        let end = bootNanoseconds() + UInt64(milliseconds) * 1_000_000
        while !state.withLock({ $0.isFinished }) && bootNanoseconds() < end { sleepMilliseconds(5) }
        return state.withLock { $0.lastLines }.joined(separator: " | ")
    }

    private func pump(_ descriptor: Int32, _ command: String, _ logger: Logger) {
        var chunk = [UInt8](repeating: 0, count: 4096)
        var line: [UInt8] = []
        var second: UInt64 = 0
        var logged = 0
        var dropped = 0
        func finish() {
            let text = String(decoding: line, as: UTF8.self)
            line.removeAll(keepingCapacity: true)
            guard !text.isEmpty else { return }
            state.withLock {
                $0.lastLines.append(text)
                if $0.lastLines.count > Self.keptLines { $0.lastLines.removeFirst() }
            }
            let now = bootNanoseconds() / 1_000_000_000
            if now != second {
                if dropped > 0 { logger.warning("\(dropped) more lines of \(command) were not logged.") }
                (second, logged, dropped) = (now, 0, 0)
            }
            logged += 1
            if logged > Self.linesPerSecondMaximum {
                dropped += 1
            } else {
                logger.info("\(text)", metadata: ["application.command": "\(command)"])
            }
        }
        while true {
            let count = unsafe read(descriptor, &chunk, chunk.count)
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { break }
            for byte in chunk[..<count] {
                if byte == UInt8(ascii: "\n") {
                    finish()
                } else if line.count < Self.lineBytesMaximum {
                    line.append(byte < 0x20 && byte != UInt8(ascii: "\t") ? UInt8(ascii: "?") : byte)
                }
            }
        }
        finish()
        if dropped > 0 { logger.warning("\(dropped) more lines of \(command) were not logged.") }
    }
}
