//  Clean-up at the end of the process: also after Ctrl-C.
//
//  A signal handler may do next to nothing, so it only writes the signal's number into a pipe; a thread that waits at the
//  other end closes the buildings and ends the process with the status a shell expects (128 + signal).
import Foundation
import Synchronization

/// The write end of the pipe. Set once before the handlers are installed.
private let pipeEnd = Atomic<Int32>(-1)
private let installed = Mutex(false)
/// What else to do before the buildings go, such as restoring the terminal.
private let beforehand = Mutex<[@Sendable () -> Void]>([])

/// Adds something to do when a signal ends the process, before the rooms are removed.
public func onInterrupt(_ work: @escaping @Sendable () -> Void) { beforehand.withLock { $0.append(work) } }

func installCleanUp() {
    let first = installed.withLock { installed in
        defer { installed = true }
        return !installed
    }
    guard first else { return }
    var ends: [Int32] = [0, 0]
    guard pipe(&ends) == 0 else { return }
    pipeEnd.store(ends[1], ordering: .sequentiallyConsistent)
    let readEnd = ends[0]
    let thread = Thread {
        var number: UInt8 = 0
        while read(readEnd, &number, 1) < 0, errno == EINTR {}
        for work in beforehand.withLock({ $0 }) { work() }
        closeAll()
        _exit(128 + Int32(number))
    }
    thread.name = "rooms-cleanup"
    thread.start()
    for number in [SIGINT, SIGTERM, SIGHUP] {
        signal(number) { number in
            var byte = UInt8(truncatingIfNeeded: number)
            _ = Foundation.write(pipeEnd.load(ordering: .relaxed), &byte, 1)
        }
    }
    atexit { closeAll() }
}

func closeAll() {
    for building in Building.open.withLock({ $0.buildings }) { building.close() }
}
