// swift-tools-version: 6.2
import PackageDescription

/// Every Swift target: warnings are errors.
let common: [SwiftSetting] = [.treatAllWarnings(as: .error)]
/// Targets that touch raw memory also mark each unsafe place.
let rawMemory: [SwiftSetting] = common + [.strictMemorySafety()]

let log: Target.Dependency = .product(name: "Logging", package: "swift-log")
let arguments: Target.Dependency = .product(name: "ArgumentParser", package: "swift-argument-parser")
let histogram: Target.Dependency = .product(name: "Histogram", package: "hdrhistogram-swift")
let toml: Target.Dependency = .product(name: "TOMLKit", package: "TOMLKit")

let package = Package(
    name: "lockstep",
    products: [
        .executable(name: "lockstepd", targets: ["lockstepd"]),
        .executable(name: "lockstep-witness", targets: ["lockstep-witness"]),
        .executable(name: "lockstep", targets: ["lockstep"]),
        .executable(name: "lockstep-dump", targets: ["lockstep-dump"]),
        .executable(name: "lockstep-bench", targets: ["lockstep-bench"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/HdrHistogram/hdrhistogram-swift", from: "0.2.0"),
        .package(url: "https://github.com/LebJe/TOMLKit", from: "0.6.0"),
    ],
    targets: [
        // The kernel border.
        .target(
            name: "CLinux",
            cSettings: [.define("_GNU_SOURCE")],
            linkerSettings: [.linkedLibrary("uring"), .linkedLibrary("aio"), .linkedLibrary("xxhash")]),
        .target(name: "Ring", dependencies: ["CLinux", log], swiftSettings: rawMemory),
        .target(name: "Mounts", swiftSettings: rawMemory),

        // One encoding for disk and wire; no I/O.
        .target(name: "Format", dependencies: ["CLinux"], swiftSettings: rawMemory),

        // Pure state machines: no I/O, no clock, no randomness.
        .target(name: "Quorum", dependencies: ["Format"], swiftSettings: common),
        .target(name: "Replication", dependencies: ["Format"], swiftSettings: common),

        // One mirror's parts.
        .target(name: "Transport", dependencies: ["CLinux", "Ring", "Format", log], swiftSettings: rawMemory),
        .target(name: "Journal", dependencies: ["CLinux", "Ring", "Format", log], swiftSettings: rawMemory),
        .target(name: "Tree", dependencies: ["CLinux", "Ring", "Format", "Mounts", log], swiftSettings: rawMemory),
        .target(
            name: "Fuse", dependencies: ["CLinux", "Ring", "Format", "Tree", "Mounts", log], swiftSettings: rawMemory),
        .target(name: "Takeover", dependencies: ["CLinux", "Format", "Mounts", log], swiftSettings: rawMemory),
        .target(name: "Configuration", dependencies: ["Format", "Mounts", toml], swiftSettings: common),

        // Puts one mirror together on one node.
        .target(
            name: "Node",
            dependencies: [
                "CLinux", "Ring", "Format", "Quorum", "Replication", "Transport", "Journal", "Tree", "Fuse",
                "Takeover", "Configuration", log,
            ], swiftSettings: rawMemory),
        .target(
            name: "CommandMain", dependencies: ["CLinux", arguments], path: "Tools/CommandMain", swiftSettings: common),
        .executableTarget(
            name: "lockstepd", dependencies: ["Node", "Ring", "Configuration", "CommandMain", arguments, log],
            swiftSettings: common),

        .target(
            name: "WitnessCore",
            dependencies: ["CLinux", "Format", "Quorum", "Ring", "Transport", "Configuration", log],
            path: "Witness/WitnessCore", swiftSettings: common),
        .executableTarget(
            name: "lockstep-witness", dependencies: ["WitnessCore", "Configuration", "CommandMain", arguments, log],
            path: "Witness/lockstep-witness", swiftSettings: common),

        .executableTarget(
            name: "lockstep", dependencies: ["Node", "Configuration", "CommandMain", arguments, log],
            path: "Tools/lockstep", swiftSettings: common),
        .executableTarget(
            name: "lockstep-dump", dependencies: ["CLinux", "Journal", "Format", "CommandMain", arguments],
            path: "Tools/lockstep-dump", swiftSettings: common),
        .executableTarget(
            name: "lockstep-bench",
            dependencies: [
                "CLinux", "CommandMain", "Ring", "Journal", "Format", "Node", "Rooms", arguments, histogram, log,
            ],
            path: "Benchmarks/lockstep-bench", swiftSettings: rawMemory),

        // The demonstration: rooms as network namespaces, a ledger, and the story told with them.
        .target(name: "Rooms", dependencies: ["CLinux"], path: "Tools/Rooms", swiftSettings: common),
        // A disk of a room that loses what was not flushed; Rooms starts it.
        .executableTarget(
            name: "faulty-disk", dependencies: ["CLinux", "CommandMain", arguments], path: "Tools/faulty-disk",
            swiftSettings: rawMemory),
        .systemLibrary(name: "CSQLite", path: "Tools/CSQLite", providers: [.apt(["libsqlite3-dev"])]),
        .executableTarget(
            name: "ledger", dependencies: ["CSQLite", arguments], path: "Tools/ledger", swiftSettings: common),
        .executableTarget(
            name: "lockstep-demo", dependencies: ["Rooms", arguments], path: "Tools/lockstep-demo",
            swiftSettings: common),

        .target(name: "Workload", dependencies: ["CLinux"], path: "Tools/Workload", swiftSettings: common),
        .executableTarget(
            name: "lockstep-soak", dependencies: ["Rooms", "Workload", "CommandMain", arguments],
            path: "Tools/lockstep-soak", swiftSettings: common),

        .testTarget(name: "MountsTests", dependencies: ["Mounts"], swiftSettings: common),
        .testTarget(name: "RingTests", dependencies: ["Ring", "CLinux"], swiftSettings: common),
        .testTarget(name: "TransportTests", dependencies: ["Transport", "Ring", "Format"], swiftSettings: common),
        .testTarget(name: "FormatTests", dependencies: ["Format"], swiftSettings: common),
        .testTarget(name: "QuorumTests", dependencies: ["Quorum", "Format"], swiftSettings: common),
        .testTarget(name: "ReplicationTests", dependencies: ["Replication", "Format"], swiftSettings: common),
        .testTarget(
            name: "JournalTests", dependencies: ["Journal", "Ring", "Format", "CLinux"], swiftSettings: common),
        .testTarget(name: "TreeTests", dependencies: ["Tree", "Ring", "Format", "CLinux"], swiftSettings: common),
        .testTarget(
            name: "FuseTests", dependencies: ["Fuse", "Tree", "Ring", "Format", "Mounts", "CLinux"],
            swiftSettings: common),
        .testTarget(name: "TakeoverTests", dependencies: ["Takeover", "Rooms", "CLinux"], swiftSettings: common),
        .testTarget(name: "ConfigurationTests", dependencies: ["Configuration"], swiftSettings: common),
        .testTarget(name: "NodeTests", dependencies: ["Node", "Ring", "Format", "CLinux"], swiftSettings: common),
        .testTarget(
            name: "WitnessTests", dependencies: ["WitnessCore", "Transport", "Quorum", "Format"], swiftSettings: common),
        .testTarget(name: "WorkloadTests", dependencies: ["Workload"], swiftSettings: common),
        .testTarget(
            name: "SimulationTests", dependencies: ["Quorum", "Replication", "Format"], swiftSettings: common),
        .testTarget(
            name: "IntegrationTests", dependencies: ["Rooms", "Workload", "CLinux", "Format"], swiftSettings: common),
    ],
    swiftLanguageModes: [.v6]
)
