//  Draws the next operation from a seed and from what the directory looks like.
import Foundation

public struct OperationSource {
    private var random: SeededGenerator
    /// How likely each kind is, relative to the others.
    private let weights: [(FileOperation.Kind, Int)] = [
        (.create, 10), (.write, 40), (.append, 12), (.mapWrite, 4), (.truncate, 6), (.allocate, 3), (.punch, 4),
        (.zero, 3), (.rename, 8), (.exchange, 3), (.link, 4), (.unlink, 6), (.unlinkOpen, 1), (.makeDirectory, 3),
        (.removeDirectory, 2), (.symlink, 2), (.makeNode, 2), (.mode, 3), (.owner, 2), (.times, 3), (.setAttribute, 4),
        (.removeAttribute, 2), (.fsync, 6), (.fdatasync, 3), (.syncDirectory, 2),
    ]
    /// Limits of one writer's directory: all of it is held in memory by the writer and by the judge.
    public static let filesMax = 24
    public static let directoriesMax = 8
    /// In bytes.
    public static let sizeMax = 384 << 10
    private static let fileModes = [0o644, 0o600, 0o664, 0o755, 0o4755, 0o2755, 0o2644]
    private static let nodeModes = [0o644, 0o600, 0o666]
    private static let directoryModes = [0o755, 0o700, 0o1777, 0o2775]

    public init(seed: UInt64) { random = SeededGenerator(seed: seed) }

    /// A random number below `bound`.
    public mutating func below(_ bound: Int) -> Int { Int.random(in: 0..<bound, using: &random) }

    /// What to do next. Nearly always something that succeeds.
    public mutating func next(in model: FileModel) -> FileOperation {
        let total = weights.reduce(0) { $0 + $1.1 }
        while true {
            var number = below(total)
            for (kind, weight) in weights {
                number -= weight
                if number < 0 {
                    if let operation = draw(kind, Places(model)) { return operation }
                    break
                }
            }
        }
    }

    /// The paths of a model by type.
    private struct Places {
        var files: [String] = []
        var directories = ["."]
        var links: [String] = []
        var nodes: [String] = []
        var model: FileModel
        init(_ model: FileModel) {
            self.model = model
            for (path, number) in model.paths() {
                switch model.objects[number]?.kind {
                case .file: files.append(path)
                case .directory: directories.append(path)
                case .node: nodes.append(path)
                default: links.append(path)
                }
            }
        }
        func size(_ path: String) -> Int { model.find(path).flatMap { model.objects[$0]?.content.count } ?? 0 }
    }

    private mutating func draw(_ kind: FileOperation.Kind, _ places: Places) -> FileOperation? {
        switch kind {
        case .create, .makeDirectory, .symlink, .makeNode, .link, .rename, .exchange, .removeDirectory, .unlink,
            .unlinkOpen:
            return drawNames(kind, places)
        case .write, .append, .mapWrite, .truncate, .allocate, .punch, .zero: return drawData(kind, places)
        default: return drawAttributes(kind, places)
        }
    }

    private mutating func pick(_ list: [String]) -> String? { list.isEmpty ? nil : list[below(list.count)] }

    /// A name in some directory; few different ones, so that names are used again and again.
    private mutating func freshName(_ places: Places, _ letter: String) -> String? {
        guard let directory = pick(places.directories) else { return nil }
        let name = "\(letter)\(below(30))"
        let path = directory == "." ? name : directory + "/" + name
        return places.model.find(path) == nil ? path : nil
    }

    private mutating func drawNames(_ kind: FileOperation.Kind, _ places: Places) -> FileOperation? {
        var operation: FileOperation
        switch kind {
        case .create:
            guard places.files.count < OperationSource.filesMax, let path = freshName(places, "f") else { return nil }
            operation = FileOperation(kind, path)
            operation.value = [0o644, 0o600, 0o664, 0o755][below(4)]
        case .makeDirectory:
            guard places.directories.count <= OperationSource.directoriesMax, let path = freshName(places, "d") else {
                return nil
            }
            operation = FileOperation(kind, path)
            operation.value = [0o755, 0o700][below(2)]
        case .symlink:
            guard places.links.count < 6, let path = freshName(places, "l") else { return nil }
            operation = FileOperation(kind, path)
            operation.other = "somewhere/\(below(1000))"
        case .makeNode:
            guard places.nodes.count < 4, let path = freshName(places, "n") else { return nil }
            operation = FileOperation(kind, path)
            operation.other = FileOperation.NodeKind.allCases[below(2)].rawValue
            operation.value = [0o644, 0o600][below(2)]
        case .link:
            guard places.files.count < OperationSource.filesMax, let path = pick(places.files),
                let other = freshName(places, "f")
            else { return nil }
            operation = FileOperation(kind, path)
            operation.other = other
        case .rename:
            let all = places.files + places.links + places.nodes + places.directories.dropFirst()
            guard let path = pick(all) else { return nil }
            operation = FileOperation(kind, path)
            let isDirectory = places.directories.contains(path)
            // Over another file, or to a new name.
            let over = isDirectory || below(2) == 0 ? nil : pick(places.files)
            guard let other = over ?? freshName(places, isDirectory ? "d" : "f"), other != path,
                !(other + "/").hasPrefix(path + "/")
            else { return nil }
            operation.other = other
        case .exchange:
            let all = places.files + places.links + places.nodes + places.directories.dropFirst()
            guard let path = pick(all), let other = pick(all), other != path, !(other + "/").hasPrefix(path + "/"),
                !(path + "/").hasPrefix(other + "/")
            else { return nil }
            operation = FileOperation(kind, path)
            operation.other = other
        case .removeDirectory:
            let empty = places.directories.dropFirst().filter {
                places.model.find($0).flatMap { places.model.objects[$0]?.entries.isEmpty } ?? false
            }
            guard let path = pick(empty) else { return nil }
            operation = FileOperation(kind, path)
        case .unlinkOpen:
            // With another name the bytes would still be somebody's.
            let single = places.files.filter { file in
                places.files.filter { places.model.find($0) == places.model.find(file) }.count == 1
            }
            guard let path = pick(single) else { return nil }
            operation = FileOperation(kind, path)
            (operation.offset, operation.length, operation.pattern) = (
                below(65_536), 1 + below(32_768), 1 + UInt64(below(1 << 30))
            )
        default:
            guard let path = pick(places.files + places.links + places.nodes) else { return nil }
            operation = FileOperation(kind, path)
        }
        return operation
    }

    private mutating func drawData(_ kind: FileOperation.Kind, _ places: Places) -> FileOperation? {
        guard let path = pick(places.files) else { return nil }
        let size = places.size(path)
        var operation = FileOperation(kind, path)
        operation.pattern = below(12) == 0 ? 0 : 1 + UInt64(below(1 << 40))
        operation.length = 1 + below([64, 4096, 20_000, 131_072][below(4)])
        operation.offset = below(max(1, min(size + 65_536, OperationSource.sizeMax - operation.length)))
        switch kind {
        case .write:
            operation.access = FileOperation.Access.allCases[below(FileOperation.Access.allCases.count)]
            if operation.access == .direct || operation.access == .directSync {
                operation.offset = operation.offset / 4096 * 4096
                operation.length = (operation.length + 4095) / 4096 * 4096
            }
        case .append:
            guard size + operation.length <= OperationSource.sizeMax else { return nil }
            operation.access = below(3) == 0 ? .sync : .buffered
            operation.offset = size
        case .mapWrite:
            guard size > 0 else { return nil }
            operation.offset = below(size)
            operation.length = min(operation.length, size - operation.offset)
        case .truncate: operation.length = below(4) == 0 ? 0 : below(OperationSource.sizeMax)
        default: operation.value = below(2)
        }
        return operation
    }

    private mutating func drawAttributes(_ kind: FileOperation.Kind, _ places: Places) -> FileOperation? {
        var all = places.files + places.directories.dropFirst()
        if kind == .mode || kind == .owner || kind == .times { all += places.nodes }
        guard let path = kind == .syncDirectory ? pick(places.directories) : pick(all) else { return nil }
        var operation = FileOperation(kind, path)
        switch kind {
        case .mode:
            let modes =
                places.files.contains(path)
                ? OperationSource.fileModes
                : places.nodes.contains(path) ? OperationSource.nodeModes : OperationSource.directoryModes
            operation.value = modes[below(modes.count)]
        case .owner: (operation.value, operation.length) = (below(3) * 1000, below(3) * 1000)
        case .times: (operation.value, operation.length) = (1_000_000_000 + below(1_000_000_000), below(1_000_000_000))
        case .setAttribute:
            operation.other = "user.a\(below(3))"
            (operation.length, operation.pattern) = (1 + below(200), 1 + UInt64(below(1 << 30)))
        case .removeAttribute:
            let names = places.model.find(path).flatMap { places.model.objects[$0]?.attributes.keys.sorted() } ?? []
            guard let name = pick(names) else { return nil }
            operation.other = name
        case .fsync, .fdatasync: guard places.files.contains(path) else { return nil }
        default: break
        }
        return operation
    }
}
