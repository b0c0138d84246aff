import Foundation

/// SIGTERM and SIGINT, taken by one thread that waits for them.
public struct StopSignals {
    private let set: sigset_t

    /// Blocks the signals in this thread and every one it starts: call it first.
    public init() {
        var set = sigset_t()
        sigemptyset(&set)
        sigaddset(&set, SIGTERM)
        sigaddset(&set, SIGINT)
        pthread_sigmask(SIG_BLOCK, &set, nil)
        signal(SIGPIPE, SIG_IGN)
        self.set = set
    }

    /// Returns when one of them has come.
    public func wait() { StopSignals.wait(for: set) }

    /// An impatient administrator: the next signal ends the process with status 1.
    public func exitOnNext() {
        let set = set
        Thread.detachNewThread {
            StopSignals.wait(for: set)
            exit(1)
        }
    }

    private static func wait(for set: sigset_t) {
        var set = set
        var number: Int32 = 0
        while sigwait(&set, &number) != 0 {}
    }
}
