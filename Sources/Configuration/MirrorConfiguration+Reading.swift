import Format

extension MirrorConfiguration {
    /// The kernel drops an address up to this much later than its lifetime says (measured: its timer runs at most once
    /// a second).
    public static let kernelSlackMilliseconds = 1000
    /// Lifetimes of addresses are whole seconds; a lease that is about to be renewed must still hold one of them.
    public static let addressLifetimeMilliseconds = 1000
    /// The share of the grant by which two machines' clocks may run apart while it lasts: 1 %, which is twenty times
    /// what an undisciplined crystal does (500 ppm).
    public static let clockDriftPercent = 1
    static let journalSizeMebibytesMinimum = 64
    /// Of a mirror and a node together: /run/lockstep/MIRROR/NODE.sock must fit into 107 bytes.
    static let namesBytesMaximum = 87

    init(document: Document) throws(ConfigurationError) {
        var root = Section(document)
        file = document.file
        name = try root.requiredString("name", example: "ledger")
        try Self.checkName(name, at: "name", in: root)
        mode = try root.choice("mode", default: .balanced)
        (path, backing, state) = try Self.readDirectories(&root, name: name)
        nodes = try Self.readNodes(&root, mirror: name)
        witness = try Self.readWitness(&root, nodes: nodes)
        addresses = try Self.readAddresses(&root, nodes: nodes, witness: witness)
        application = try Self.readApplication(&root)
        journal = try Self.readJournal(&root)
        timing = try Self.readTiming(&root)
        verify = try Self.readVerify(&root)
        resync = try Self.readResync(&root)
        logLevel = try Self.readLogLevel(&root)
        try root.finish()
        lines = document.lines
    }

    /// Names become file names, control group names and arguments.
    private static func checkName(
        _ name: String, at key: String, in section: Section
    ) throws(ConfigurationError) {
        let allowed = name.utf8.allSatisfy {
            (UInt8(ascii: "a")...UInt8(ascii: "z")).contains($0) || (UInt8(ascii: "A")...UInt8(ascii: "Z")).contains($0)
                || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) || "-_.".utf8.contains($0)
        }
        guard allowed, name.utf8.count <= 63, let first = name.first, first.isLetter || first.isNumber else {
            throw section.failure(
                key, "\"\(name)\" cannot be a name",
                "Use letters, digits, '-', '_' and '.', beginning with a letter or digit, at most 63")
        }
    }

    private static func isInside(_ inner: String, _ outer: String) -> Bool {
        inner == outer || inner.hasPrefix(outer + "/")
    }

    private static func readDirectories(
        _ root: inout Section, name: String
    ) throws(ConfigurationError) -> (path: String, backing: String, state: String) {
        guard let path = try root.absolutePath("path", example: "/srv/\(name)") else {
            throw root.missing("path", example: "\"/srv/\(name)\"")
        }
        guard let backing = try root.absolutePath("backing", example: "/var/lib/\(name)-files") else {
            throw root.missing("backing", example: "\"/var/lib/\(name)-files\"")
        }
        let state = try root.absolutePath("state", example: "/var/lib/lockstep/\(name)") ?? "/var/lib/lockstep/\(name)"
        if path == backing {
            throw root.failure(
                "backing", "it is the same directory as path", "Give the plain files a directory of their own")
        }
        if isInside(backing, path) {
            throw root.failure(
                "backing", "it lies inside path (\(path)), where the mirrored directory will be mounted over it",
                "Put backing beside path, not below it")
        }
        if isInside(path, backing) {
            throw root.failure(
                "path", "it lies inside backing (\(backing)), so that the mirror would hold itself",
                "Put path beside backing, not below it")
        }
        for (key, directory) in [("path", path), ("backing", backing)] {
            if isInside(state, directory) {
                throw root.failure(
                    "state", "\(state) lies inside \(key) (\(directory))",
                    "Keep journal and state out of the mirrored files")
            }
            if isInside(directory, state) {
                throw root.failure(
                    key, "\(directory) lies inside state (\(state)), which is removed when a node is made anew",
                    "Put it beside state, not below it")
            }
        }
        return (path, backing, state)
    }

    private static func readEndpoint(_ section: inout Section) throws(ConfigurationError) -> Endpoint {
        let text = try section.requiredString("address", example: "10.0.0.1:7400")
        guard let endpoint = Endpoint(text) else {
            throw section.failure(
                "address", "\"\(text)\" is not an address with a port",
                "Write IPv4 as 10.0.0.1:7400 and IPv6 as [fd00::1]:7400; names are not looked up")
        }
        let address = endpoint.address
        if address.isUnspecified || address.isMulticast {
            throw section.failure(
                "address", "\(address) is not the address of one machine", "Give the address others reach it at")
        }
        if address.isLinkLocal {
            throw section.failure(
                "address", "\(address) is a link-local address", "Use a global or unique local (fd..) address")
        }
        return endpoint
    }

    /// Two ports of one address are two rooms only in a test on the loopback interface.
    private static func collide(_ left: Endpoint, _ right: Endpoint) -> Bool {
        left == right || left.address == right.address && !left.address.isLoopback
    }

    private static func readNodes(
        _ root: inout Section, mirror: String
    ) throws(ConfigurationError) -> [Node] {
        var sections = try root.sections("node")
        guard sections.count == 2 else {
            throw root.failure(
                "node", "\(sections.count) nodes where exactly two are needed",
                "Write two sections [[node]], each with name and address")
        }
        var nodes: [Node] = []
        for (index, id) in NodeID.allCases.enumerated() {
            let name = try sections[index].requiredString("name", example: index == 0 ? "alpha" : "beta")
            try checkName(name, at: "name", in: sections[index])
            guard mirror.utf8.count + name.utf8.count <= MirrorConfiguration.namesBytesMaximum else {
                throw sections[index].failure(
                    "name", "\"\(name)\" and the mirror's name are too long together for the path of a socket",
                    "Shorten one: at most \(MirrorConfiguration.namesBytesMaximum) characters for both")
            }
            let endpoint = try readEndpoint(&sections[index])
            let interface = try sections[index].string("interface", example: "eth0")
            if let interface { try checkInterface(interface, at: "interface", in: sections[index]) }
            try sections[index].finish()
            if let first = nodes.first {
                guard first.name != name else {
                    throw sections[index].failure(
                        "name", "both nodes are called \"\(name)\"", "Give each node the name of its host")
                }
                guard !collide(first.endpoint, endpoint) else {
                    throw sections[index].failure(
                        "address", "\(endpoint.address) is the other node's address too",
                        "Give each node its own address")
                }
            }
            nodes.append(Node(id: id, name: name, endpoint: endpoint, interface: interface))
        }
        return nodes
    }

    private static func readWitness(
        _ root: inout Section, nodes: [Node]
    ) throws(ConfigurationError) -> Endpoint {
        guard var section = try root.section("witness") else {
            throw root.failure(
                "witness", "it is missing", "Add a section [witness] with address = \"10.0.0.3:7401\"")
        }
        let endpoint = try readEndpoint(&section)
        try section.finish()
        for node in nodes where collide(node.endpoint, endpoint) {
            throw section.failure(
                "address", "\(endpoint.address) is the address of node \"\(node.name)\" too",
                "Run the witness in a third room: with that node lost, it would be lost as well")
        }
        return endpoint
    }

    /// The kernel's rules for interface names (15 bytes, no slash, no blank, no colon).
    private static func checkInterface(
        _ name: String, at key: String, in section: Section
    ) throws(ConfigurationError) {
        guard name.utf8.count <= 15, !name.contains(where: { $0 == "/" || $0 == ":" || $0.isWhitespace }) else {
            throw section.failure(
                key, "\"\(name)\" cannot be an interface", "Write a name as `ip link` shows it, such as \"eth0\"")
        }
    }

    private static func readAddresses(
        _ root: inout Section, nodes: [Node], witness: Endpoint
    ) throws(ConfigurationError) -> [VirtualAddress] {
        var addresses: [VirtualAddress] = []
        for var section in try root.sections("address") {
            let text = try section.requiredString("address", example: "10.0.9.1/24")
            let parts = text.split(separator: "/", omittingEmptySubsequences: false)
            guard let address = IPAddress(String(parts[0])), !address.isUnspecified, !address.isMulticast,
                !address.isLoopback
            else {
                throw section.failure(
                    "address", "\"\(parts[0])\" cannot be a virtual address", "Write it as 10.0.9.1/24 or fd00:9::1/64")
            }
            guard parts.count == 2, let length = Int(parts[1]), length >= 1, length <= address.bitCount else {
                throw section.failure(
                    "address", "\"\(text)\" has no valid prefix length",
                    "Write the bits of the network after a slash, 1 to \(address.bitCount), such as "
                        + "\(address)/\(address.isIPv6 ? 64 : 24)")
            }
            if addresses.contains(where: { $0.address == address }) {
                throw section.failure("address", "\(address) appears twice", "Remove one of the two")
            }
            if let node = nodes.first(where: { $0.endpoint.address == address }) {
                throw section.failure(
                    "address", "\(address) is the address of node \"\(node.name)\"",
                    "A virtual address moves between the nodes; use one that no machine has")
            }
            if witness.address == address {
                throw section.failure(
                    "address", "\(address) is the address of the witness", "Use an address that no machine has")
            }
            let interfaces = try readInterfaces(&section, nodes: nodes)
            try section.finish()
            addresses.append(VirtualAddress(address: address, prefixLength: length, interfaces: interfaces))
        }
        return addresses
    }

    /// The interface of a virtual address: one name for both nodes, a table by node, or the nodes' own.
    private static func readInterfaces(
        _ section: inout Section, nodes: [Node]
    ) throws(ConfigurationError) -> [String] {
        var names: [String: String] = [:]
        if case .table? = section.node("interface") {
            guard var table = try section.section("interface") else { return [] }
            for node in nodes { names[node.name] = try table.string(node.name, example: "eth0") }
            try table.finish()
        } else if let name = try section.string("interface", example: "eth0") {
            for node in nodes { names[node.name] = name }
        }
        var interfaces: [String] = []
        for node in nodes {
            guard let name = names[node.name] ?? node.interface else {
                throw section.failure(
                    "interface", "no interface is given for node \"\(node.name)\"",
                    "Add interface = \"eth0\" here, or to the node's section")
            }
            try checkInterface(name, at: "interface", in: section)
            interfaces.append(name)
        }
        return interfaces
    }
}
