//  Files to be brought back, and what the machine gives for it when nothing but system calls is in the way.
import CLinux
import Foundation
import Glibc
import Ring
import Synchronization

/// Equal files of whole blocks, in directories of equal size.
struct ResyncTree {
    static let blockBytes = 4096

    struct Block: Hashable, Comparable {
        var file: Int
        var block: Int
        static func < (a: Block, b: Block) -> Bool { (a.file, a.block) < (b.file, b.block) }
    }

    var files: Int
    var blocksOfFile: Int
    var filesOfDirectory: Int

    var byteCount: Int { files * blocksOfFile * ResyncTree.blockBytes }

    func path(_ file: Int, in root: String) -> String { "\(root)/\(file / filesOfDirectory)/\(file)" }

    func make(in root: String) throws {
        let chunk = AlignedBuffer(byteCount: min(blocksOfFile * ResyncTree.blockBytes, 4 << 20))
        for file in 0..<files {
            try throwIfInterrupted()
            if file % filesOfDirectory == 0 {
                let directory = "\(root)/\(file / filesOfDirectory)"
                guard unsafe mkdir(directory, 0o755) == 0 else {
                    throw BenchError.system("Cannot make \(directory)", errno)
                }
            }
            let handle = try OpenFile(path(file, in: root), O_CREAT | O_EXCL | O_WRONLY)
            var left = blocksOfFile * ResyncTree.blockBytes
            while left > 0 {
                unsafe fillWithNoise(chunk.bytes)
                let count = min(left, chunk.count)
                try unsafe handle.write(
                    UnsafeRawBufferPointer(chunk.slice(0, count)), at: blocksOfFile * ResyncTree.blockBytes - left)
                left -= count
            }
        }
        try ResyncTree.sync(root)
    }

    func randomBlocks(_ count: Int) -> [Block] {
        var found: Set<Block> = []
        while found.count < min(count, blocksOfFile) {
            found.insert(Block(file: 0, block: .random(in: 0..<blocksOfFile)))
        }
        return found.sorted()
    }

    func randomFiles(_ count: Int) -> [Block] {
        (0..<files).shuffled().prefix(count).map { Block(file: $0, block: 0) }.sorted()
    }

    /// Writes more than the shortest journal holds, and removes it again: nobody will miss it.
    func fillJournal(in root: String) throws {
        let path = "\(root)/filler"
        let buffer = AlignedBuffer(byteCount: 1 << 20)
        unsafe fillWithNoise(buffer.bytes)
        let file = try OpenFile(path, O_CREAT | O_EXCL | O_WRONLY)
        for index in 0..<128 { try unsafe file.write(UnsafeRawBufferPointer(buffer.bytes), at: index << 20) }
        try file.sync()
        guard unsafe unlink(path) == 0 else { throw BenchError.system("Cannot remove \(path)", errno) }
    }

    /// Overwrites the blocks, in random order, and syncs each file that was written.
    func write(_ blocks: [Block], in root: String) throws {
        let buffer = AlignedBuffer(byteCount: ResyncTree.blockBytes)
        var open: [Int: OpenFile] = [:]
        for block in blocks.shuffled() {
            try throwIfInterrupted()
            unsafe fillWithNoise(buffer.bytes)
            let file: OpenFile
            if let known = open[block.file] {
                file = known
            } else {
                file = try OpenFile(path(block.file, in: root), O_WRONLY)
                if open.count < 64 { open[block.file] = file }
            }
            try unsafe file.write(UnsafeRawBufferPointer(buffer.bytes), at: block.block * ResyncTree.blockBytes)
        }
        for file in open.values { try file.sync() }
    }

    /// Takes the files out of the page cache.
    func forget(_ root: String) throws {
        try ResyncTree.sync(root)
        for file in 0..<files {
            let handle = try OpenFile(path(file, in: root), O_RDONLY)
            _ = posix_fadvise(handle.descriptor, 0, 0, Int32(POSIX_FADV_DONTNEED))
        }
    }

    /// Seconds to read both trees once, at the same time, from the disk.
    func readBoth(_ near: String, _ far: String) throws -> Double {
        try forget(near)
        try forget(far)
        let failure = Mutex<(any Error)?>(nil)
        let group = DispatchGroup()
        let begin = nanoseconds()
        for root in [near, far] {
            group.enter()
            Thread { [self] in
                do { try readAll(root) } catch { failure.withLock { $0 = error } }
                group.leave()
            }.start()
        }
        group.wait()
        if let error = failure.withLock({ $0 }) { throw error }
        return Double(nanoseconds() - begin) / 1e9
    }

    private func readAll(_ root: String) throws {
        let buffer = AlignedBuffer(byteCount: 1 << 20)
        for file in 0..<files {
            let handle = try OpenFile(path(file, in: root), O_RDONLY)
            var offset = 0
            while true {
                try throwIfInterrupted()
                let count = try unsafe handle.read(buffer.bytes, at: offset)
                if count == 0 { break }
                offset += count
            }
        }
    }

    static func sync(_ root: String) throws {
        let directory = try OpenFile(root, O_RDONLY)
        let result = clinux_syncfs(directory.descriptor)
        guard result == 0 else { throw BenchError.system("Cannot sync \(root)", -result) }
    }
}

/// A descriptor that closes itself.
final class OpenFile {
    let descriptor: Int32
    private let path: String

    init(_ path: String, _ flags: Int32) throws {
        self.path = path
        descriptor = unsafe clinux_open(path, flags, 0o644)
        guard descriptor >= 0 else { throw BenchError.system("Cannot open \(path)", -descriptor) }
    }

    deinit { _ = clinux_close(descriptor) }

    func write(_ bytes: UnsafeRawBufferPointer, at offset: Int) throws {
        let written = unsafe clinux_pwrite(descriptor, bytes.baseAddress, bytes.count, UInt64(offset))
        guard written == bytes.count else { throw BenchError.system("Cannot write \(path)", Int32(-min(written, 0))) }
    }

    func read(_ bytes: UnsafeMutableRawBufferPointer, at offset: Int) throws -> Int {
        let count = unsafe pread(descriptor, bytes.baseAddress, bytes.count, off_t(offset))
        guard count >= 0 else { throw BenchError.system("Cannot read \(path)", errno) }
        return count
    }

    func sync() throws {
        let result = clinux_fsync(descriptor)
        guard result == 0 else { throw BenchError.system("Cannot fsync \(path)", -result) }
    }
}

/// Changed blocks from one disk through sockets to a journal and the files on another: read, send; receive, write up to
/// 1 MiB at a time with O_DIRECT|O_DSYNC, write into the files; at the end sync. The blocks are dealt to some lanes, each
/// with a socket and a thread on either side, so that both disks have as many requests as they want.
struct ResyncFloor {
    private static let lanes = 8

    private let tree: ResyncTree
    private let blocks: [ResyncTree.Block]
    private let near: String
    private let far: String

    init(_ tree: ResyncTree, _ blocks: [ResyncTree.Block], from near: String, to far: String) {
        self.tree = tree
        self.blocks = blocks
        self.near = near
        self.far = far
    }

    /// The files of the second room hold the new blocks afterwards: to bring them there once more is the same work.
    func seconds() throws -> Double {
        let share = (blocks.count + ResyncFloor.lanes - 1) / ResyncFloor.lanes
        var jobs: [@Sendable () throws -> Void] = []
        for (index, first) in stride(from: 0, to: blocks.count, by: share).enumerated() {
            let part = Array(blocks[first..<min(first + share, blocks.count)])
            let ends = try loopbackPair()
            let journal = try FlushFile(in: far, name: "journal-\(index)", bytes: 1 << 20)
            let held = Handed(journal)
            jobs.append { [self] in
                defer { _ = clinux_close(ends.near) }
                try send(part, ends.near)
            }
            jobs.append { [self] in
                defer { _ = clinux_close(ends.far) }
                try receive(part, ends.far, held.value)
            }
        }
        try tree.forget(near)
        try tree.forget(far)
        let failure = Mutex<(any Error)?>(nil)
        let group = DispatchGroup()
        let begin = nanoseconds()
        for job in jobs {
            group.enter()
            Thread {
                do { try job() } catch { failure.withLock { $0 = $0 ?? error } }
                group.leave()
            }.start()
        }
        group.wait()
        if let error = failure.withLock({ $0 }) { throw error }
        try ResyncTree.sync(far)
        return Double(nanoseconds() - begin) / 1e9
    }

    private func send(_ blocks: [ResyncTree.Block], _ socket: Int32) throws {
        let buffer = AlignedBuffer(byteCount: ResyncTree.blockBytes)
        var open = FileInTurn()
        for block in blocks {
            let file = try open.file(block.file, of: tree, in: near, O_RDONLY)
            guard try unsafe file.read(buffer.bytes, at: block.block * ResyncTree.blockBytes) == buffer.count else {
                throw BenchError("A changed block of \(near) cannot be read.")
            }
            try unsafe sendAll(socket, UnsafeRawBufferPointer(buffer.bytes))
        }
    }

    private func receive(_ blocks: [ResyncTree.Block], _ socket: Int32, _ journal: FlushFile) throws {
        let capacity = journal.buffer.count / ResyncTree.blockBytes
        var open = FileInTurn()
        for first in stride(from: 0, to: blocks.count, by: capacity) {
            let part = blocks[first..<min(first + capacity, blocks.count)]
            let bytes = unsafe journal.buffer.slice(0, part.count * ResyncTree.blockBytes)
            guard try unsafe receiveAll(socket, bytes) else { throw BenchError("The sender closed the connection.") }
            try journal.flush(first: part.count * ResyncTree.blockBytes)
            for (index, block) in part.enumerated() {
                let place = unsafe journal.buffer.slice(index * ResyncTree.blockBytes, ResyncTree.blockBytes)
                let file = try open.file(block.file, of: tree, in: far, O_WRONLY)
                try unsafe file.write(UnsafeRawBufferPointer(place), at: block.block * ResyncTree.blockBytes)
            }
        }
    }

    /// Made by one thread, used by another one, never by both at once.
    private struct Handed<Value>: @unchecked Sendable {
        let value: Value
        init(_ value: Value) { self.value = value }
    }
}

/// The file of the last block asked for stays open: blocks come in the order of their files.
private struct FileInTurn {
    private var last: (number: Int, file: OpenFile)?

    mutating func file(_ number: Int, of tree: ResyncTree, in root: String, _ flags: Int32) throws -> OpenFile {
        if let last, last.number == number { return last.file }
        let file = try OpenFile(tree.path(number, in: root), flags)
        last = (number, file)
        return file
    }
}
