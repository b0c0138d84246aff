//  Disks that lose what was not flushed, and that hang: see Tools/faulty-disk, the program behind them.
//
//      room:   file system at the mount point ── /dev/loopN
//      host:   /dev/loopN ── disk-0.at/disk (FUSE) ── faulty-disk ── disk-0.img
//
//  The program runs on the host, outside the room's namespaces and control group: whoever kills the room's processes
//  leaves its disks alone, and the other way round. What belongs to a disk is told by the paths of its building, so that
//  a later run finds it without notes (see Sweep.swift).
import Foundation
import Synchronization

/// What becomes of blocks that were written and not flushed when the power goes.
public enum UnflushedBlocks: Sendable {
    /// All of them are lost.
    case areLost
    /// A random half survives, in no order. Only disks made with `isFaulty` can do that. The seed is in the room's logs.
    case surviveByChance
}

/// One such disk: its server on the host and the loop device on top.
final class FaultyDisk: Sendable {
    static let program = "faulty-disk"
    static let fileSystemType = "fuse.faulty-disk"

    /// Where the FUSE file system is mounted, beside the image.
    let directory: String
    private let image: String
    private let programs: String
    private let log: String
    private struct State {
        /// The server, or 0.
        var server: Int32 = 0
        /// `/dev/loopN`, or nil.
        var device: String?
    }
    private let state = Mutex(State())

    init(image: String, programs: String, log: String) {
        self.image = image
        self.programs = programs
        self.log = log
        directory = (image as NSString).deletingPathExtension + ".at"
    }

    /// Starts the server where it does not run, and makes the loop device. Answers the device.
    func attach() throws -> String {
        if !isServed { try startServer() }
        // The file is opened past the page cache in any case (see Tools/faulty-disk): this says so to the loop device.
        let device = try succeedOnHost(["losetup", "--find", "--show", "--direct-io=on", directory + "/disk"])
            .trimmingCharacters(in: .whitespacesAndNewlines)
        state.withLock { $0.device = device }
        return device
    }

    private var isServed: Bool {
        state.withLock { state in
            if state.server != 0, collect(state.server) != nil { state.server = 0 }
            return state.server != 0
        }
    }

    private func startServer() throws {
        let path = programs + "/" + FaultyDisk.program
        guard access(path, X_OK) == 0 else {
            throw RoomsError("There is no program \(path): build it with 'swift build'.")
        }
        try makeDirectory(directory)
        let ready = directory + "-ready"
        unlink(ready)
        let pid = try spawn([path, "--image", image, "--at", directory, "--ready", ready], output: log)
        state.withLock { $0.server = pid }
        try waitUntil("the disk \(image) is served", within: 10) {
            guard isServed else { throw RoomsError("The server of \(image) has ended: see \(log).") }
            return access(ready, F_OK) == 0
        }
    }

    /// Takes the loop device away. Its file system must be unmounted. What a dead server has left goes too.
    func detach() throws {
        guard let device = state.withLock({ $0.device }) else { return }
        try succeedOnHost(["losetup", "--detach", device])
        try waitUntil("the loop device \(device) of \(image) is gone", within: 20) {
            !LoopDevice.all(under: directory).contains { $0.path == device }
        }
        state.withLock { $0.device = nil }
        if !isServed { unmountFaultyDisks(under: directory) }
    }

    func signal(_ number: Int32) throws {
        guard isServed else { throw RoomsError("The disk \(image) has no server.") }
        kill(state.withLock { $0.server }, number)
    }

    /// Ends the server, which is the power cut; returns when it is gone.
    func cut(_ unflushed: UnflushedBlocks) throws {
        guard isServed else { return }
        try signal(unflushed == .areLost ? SIGKILL : SIGTERM)
        try waitUntil("the server of \(image) has ended", within: 20, every: 0.002) { !isServed }
    }
}

/// A loop device as the kernel lists it.
struct LoopDevice {
    var path: String
    var isDetachedAlready: Bool

    /// The loop devices on the files `disk` of faulty disks in a directory.
    static func all(under directory: String) -> [LoopDevice] {
        entries(of: "/sys/block").filter { $0.hasPrefix("loop") }.compactMap { name in
            let place = "/sys/block/\(name)/loop/"
            guard let file = line(place + "backing_file"), file.hasPrefix(directory + "/"), file.hasSuffix("/disk")
            else { return nil }
            return LoopDevice(path: "/dev/" + name, isDetachedAlready: line(place + "autoclear") == "1")
        }
    }

    private static func line(_ path: String) -> String? {
        (try? String(contentsOfFile: path, encoding: .utf8))?.trimmingCharacters(in: .whitespacesAndNewlines)
    }
}

/// The servers of disks whose files are in a directory.
private func diskServers(under directory: String) -> [Int32] {
    entries(of: "/proc").compactMap { Int32($0) }.filter { pid in
        guard commandName(of: pid) == FaultyDisk.program,
            let data = FileManager.default.contents(atPath: "/proc/\(pid)/cmdline")
        else { return false }
        return data.split(separator: 0).contains { String(decoding: $0, as: UTF8.self).hasPrefix(directory + "/") }
    }
}

/// Kills the servers of all disks in a directory. Whoever waits for such a disk, a hung one too, then gets an error: this
/// comes before everything else, because a process that waits for a disk cannot be killed.
func killDiskServers(under directory: String) {
    let servers = diskServers(under: directory)
    for server in servers { kill(server, SIGKILL) }
    try? waitUntil("the disks of \(directory) are dead", within: 10) {
        for server in servers { _ = collect(server) }
        return servers.allSatisfy { commandName(of: $0) != FaultyDisk.program }
    }
}

/// Takes away the loop devices and mounts of dead disks in a directory. A device that a dying mount namespace still has
/// mounted goes with it.
func removeFaultyDisks(under directory: String) {
    for device in LoopDevice.all(under: directory) where !device.isDetachedAlready {
        _ = try? succeedOnHost(["losetup", "--detach", device.path])
    }
    // The kernel forgets where the file of a loop device was when the mount goes: it would not be found again.
    guard LoopDevice.all(under: directory).isEmpty else { return }
    unmountFaultyDisks(under: directory)
}

private func unmountFaultyDisks(under directory: String) {
    let table = (try? String(contentsOfFile: "/proc/self/mounts", encoding: .utf8)) ?? ""
    for line in table.split(separator: "\n") {
        let fields = line.split(separator: " ")
        guard fields.count > 2, fields[2] == FaultyDisk.fileSystemType,
            fields[1] == directory || fields[1].hasPrefix(directory + "/")
        else { continue }
        _ = try? succeedOnHost(["umount", "--lazy", String(fields[1])])
    }
}
