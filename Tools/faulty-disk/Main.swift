//  faulty-disk: a disk for tests whose power can be cut honestly, and which can hang.
//
//  What a file system has sent to a disk without a flush may be lost when the power goes. Shutting a file system down
//  (FS_IOC_SHUTDOWN) does not show that: everything that has left the page cache survives, so a flush that was forgotten
//  is never noticed. This program is the disk itself:
//
//      file system in a room ── loop device ── FUSE file `disk` ── this process ── image file
//                                                                   memory           what is durable
//
//  A WRITE goes to memory and is answered at once; an FSYNC (what a loop device makes of a flush) takes everything to
//  the image file and is answered then. So the image always holds exactly what was flushed, and the end of the process
//  is the power cut:
//
//      SIGKILL    all that was written since the last flush is lost
//      SIGTERM    a random half of those blocks survives, in no order: disks may write early what they like
//      SIGUSR1    the disk hangs: nothing is answered, reads neither
//      SIGUSR2    it goes on: what waited is answered, in order
//
//  Main.swift            the command, signals, the loop
//  FuseServer.swift      the few requests that a loop device makes
//  VolatileImage.swift   what is durable and what is not
import ArgumentParser
import CLinux
import CommandMain
import Foundation

@main
enum Main {
    static func main() { FaultyDisk.runAsProgram() }
}

struct FaultyDisk: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "faulty-disk", abstract: "A disk that loses what was not flushed when its process ends.",
        discussion: """
            DIR/disk is the disk, for a loop device. SIGKILL cuts the power and loses all that was not flushed; SIGTERM \
            lets a random half of it survive; SIGUSR1 makes the disk hang until SIGUSR2. The mount point is left \
            behind, for `umount -l`.
            """)
    @Option(help: "The image file: what is durable.") var image: String
    @Option(help: "The directory to mount at.") var at: String
    @Option(help: "A file that is made when the disk is mounted.") var ready: String?
    @Option(help: "Chooses the blocks that survive SIGTERM; printed.") var seed: UInt64?

    func run() throws {
        // Memory that this process asks for must not wait for a file system that waits for this process.
        let flusher = clinux_set_io_flusher(1)
        let seed = self.seed ?? UInt64.random(in: 0...UInt64.max)
        print("seed \(seed)")
        if flusher < 0 { print(DiskError("not an I/O flusher", -flusher)) }
        fflush(nil)
        var signals = try SignalPipe()
        let server = FuseServer(try VolatileImage(path: image))
        try server.mount(at: at)
        if let ready, !FileManager.default.createFile(atPath: ready, contents: nil) {
            throw DiskError("Cannot make the file \(ready).")
        }
        var isHanging = false
        while true {
            // While it hangs, requests stay in the kernel's queue, and so in order.
            var waits = [
                pollfd(fd: signals.descriptor, events: Int16(POLLIN), revents: 0),
                pollfd(fd: isHanging ? -1 : server.descriptor, events: Int16(POLLIN), revents: 0),
            ]
            guard unsafe poll(&waits, 2, -1) >= 0 || errno == EINTR else { throw DiskError("poll", errno) }
            while let number = signals.next() {
                switch number {
                case SIGUSR1: isHanging = true
                case SIGUSR2: isHanging = false
                default:
                    print("\(try server.image.loseSome(seed: seed)) unflushed blocks")
                    return
                }
            }
            if !isHanging, waits[1].revents != 0, try !server.answerAll() { return }
        }
    }
}

/// One sentence with the object and the cause.
struct DiskError: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
    init(_ what: String, _ code: Int32) {
        unsafe description = "\(what): \(String(cString: strerror(code)))"
    }
}

/// Signals as bytes in a pipe, so that one poll waits for them and for requests.
struct SignalPipe {
    let descriptor: Int32
    /// The end that the handler writes to. Written once, before a handler is installed.
    private nonisolated(unsafe) static var writeEnd: Int32 = -1

    init() throws {
        var ends: [Int32] = [0, 0]
        guard unsafe pipe(&ends) == 0 else { throw DiskError("pipe", errno) }
        for end in ends { _ = fcntl(end, F_SETFL, O_NONBLOCK) }
        descriptor = ends[0]
        unsafe SignalPipe.writeEnd = ends[1]
        for number in [SIGTERM, SIGUSR1, SIGUSR2] {
            _ = signal(number) { number in
                var byte = UInt8(truncatingIfNeeded: number)
                unsafe _ = write(SignalPipe.writeEnd, &byte, 1)
            }
        }
    }

    /// The next signal that came; nil when there is none.
    mutating func next() -> Int32? {
        var byte: UInt8 = 0
        return unsafe read(descriptor, &byte, 1) == 1 ? Int32(byte) : nil
    }
}
