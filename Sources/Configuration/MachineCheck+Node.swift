import CLinux
import Format
import Glibc
import Mounts

extension MachineCheck {
    // MARK: - State

    func stateFindings() -> [Finding] {
        // It is made at the first start: what matters before is where it will lie.
        var existing = configuration.state
        while fileMode(existing) == nil, let slash = existing.lastIndex(of: "/"), slash > existing.startIndex {
            existing = String(existing[..<slash])
        }
        guard let mode = fileMode(existing), mode & S_IFMT == S_IFDIR, let resolved = resolvedPath(existing) else {
            return [finding(.error, "state", "\(existing) is not a directory", "Name a directory")]
        }
        var found = fileSystemFindings("state", resolved)
        for (key, other) in [("path", configuration.path), ("backing", configuration.backing)] {
            guard mounts.top(at: other) == nil, let target = resolvedPath(other) else { continue }
            if isSameOrBelow(resolved, target) {
                found.append(
                    finding(
                        .error, "state", "\(resolved) lies inside \(key) (\(target)), over a symbolic link",
                        "Keep journal and state out of the mirrored files"))
            } else if existing == configuration.state, isSameOrBelow(target, resolved) {
                found.append(
                    finding(
                        .error, key, "\(target) lies inside state (\(resolved)), over a symbolic link",
                        "Put it beside state: state is removed when a node is made anew"))
            }
        }
        var space = statvfs()
        guard statvfs(resolved, &space) == 0 else { return found }
        let free = Int(clamping: UInt64(space.f_bavail) * UInt64(space.f_frsize)) >> 20
        let needed = configuration.journal.sizeMebibytes + Self.stateMebibytes - usedMebibytes(configuration.state)
        if needed > free {
            found.append(
                finding(
                    .error, "state",
                    "\(free) MiB are free on \(mounts.containing(resolved)?.point ?? resolved), and the "
                        + "journal (\(configuration.journal.sizeMebibytes) MiB) and the state need \(needed) more",
                    "Free space, put `state` elsewhere, or lower journal.sizeMebibytes"))
        }
        return found
    }

    /// What files in a directory occupy already: the journal of an earlier start.
    private func usedMebibytes(_ directory: String) -> Int {
        var bytes: Int64 = 0
        for name in directoryNames(directory) ?? [] {
            var status = stat()
            if stat(directory + "/" + name, &status) == 0, status.st_mode & S_IFMT == S_IFREG {
                bytes += Int64(status.st_blocks) * 512
            }
        }
        return Int(bytes >> 20)
    }

    // MARK: - Timing

    /// The witness's own file is not here to be looked at.
    func timingFindings() -> [Finding] {
        let grant = configuration.timing.grantMilliseconds
        let usual = MirrorConfiguration.grantMillisecondsDefault
        guard grant > usual else { return [] }
        return [
            finding(
                .note, "timing.grantMilliseconds",
                "the witness must grant for \(grant) ms, and grants for \(usual) unless longestGrantMilliseconds in "
                    + "its witness.toml says more; once the mirror runs, `lockstep status` on the node that serves "
                    + "says whether it does", "")
        ]
    }

    // MARK: - Application

    func applicationFindings() -> [Finding] {
        guard let application = configuration.application else { return [] }
        var found: [Finding] = []
        if let user = application.user, clinux_probe_user(user) == 0 {
            found.append(
                finding(
                    .error, "application.user", "this machine has no user \"\(user)\"",
                    "Make the user, with the same number on both nodes"))
        }
        let commands = [("start", application.start), ("stop", application.stop), ("check", application.check)]
        for (name, command) in commands {
            guard let command else { continue }
            found += commandFindings("application.\(name)", command)
        }
        return found
    }

    private func commandFindings(_ key: String, _ command: MirrorConfiguration.Command) -> [Finding] {
        let file = command.executable
        if isSameOrBelow(file, configuration.path) {
            // Not looked at: the mirrored directory is not there now, or may hang.
            return [
                finding(
                    .warning, key, "\(file) lies on the mirrored directory, which waits while the mirror is frozen",
                    "Put it on both nodes' own disks, such as /etc/lockstep")
            ]
        }
        guard let mode = fileMode(file) else {
            return [finding(.error, key, "\(file): \(systemError(errno))", "Copy it to this node as well")]
        }
        guard mode & S_IFMT == S_IFREG else {
            return [finding(.error, key, "\(file) is not a file", "Name a script or a program")]
        }
        guard access(file, R_OK) == 0 else {
            return [finding(.error, key, "\(file) cannot be read: \(systemError(errno))", "chmod 755 \(file)")]
        }
        guard access(file, X_OK) == 0, mode & 0o111 != 0 else {
            return [finding(.error, key, "\(file) is not executable", "chmod +x \(file)")]
        }
        var found: [Finding] = []
        if configuration.application?.user != nil, mode & 0o001 == 0 {
            found.append(
                finding(
                    .warning, key, "\(file) is not executable for everybody, and another user than root is to run it",
                    "chmod 755 \(file)"))
        }
        if mode & 0o022 != 0 {
            found.append(
                finding(
                    .warning, key, "other users than its owner may change \(file), which may run as root",
                    "chmod go-w \(file)"))
        }
        return found + interpreterFindings(key, file)
    }

    /// A script whose interpreter is missing fails with a message that names the script, which misleads.
    private func interpreterFindings(_ key: String, _ file: String) -> [Finding] {
        let descriptor = open(file, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return [] }
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: 256)
        let count = read(descriptor, &bytes, bytes.count)
        let line = String(decoding: bytes.prefix(max(0, count)).prefix { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
        if line.hasPrefix("\u{7f}ELF") { return [] }
        guard line.hasPrefix("#!") else {
            return [
                finding(
                    .error, key, "\(file) is neither a program nor a script with #! in its first line",
                    "Give it a first line such as #!/bin/sh")
            ]
        }
        let interpreter = line.dropFirst(2).split(whereSeparator: { $0 == " " || $0 == "\t" || $0 == "\r" }).first
        guard let interpreter, access(String(interpreter), X_OK) == 0, !line.hasSuffix("\r") else {
            return [
                finding(
                    .error, key,
                    "the interpreter in the first line of \(file) (\(line.filter { $0 != "\r" })) does not work",
                    line.hasSuffix("\r")
                        ? "Save the script with UNIX line ends" : "Install it, or correct the first line")
            ]
        }
        return []
    }

    // MARK: - Addresses

    /// The addresses of this machine.
    private func machineAddresses() -> [String] {
        var list: UnsafeMutablePointer<ifaddrs>?
        guard getifaddrs(&list) == 0 else { return [] }
        defer { freeifaddrs(list) }
        var texts: [String] = []
        var next = list
        while let entry = next {
            next = entry.pointee.ifa_next
            guard let address = entry.pointee.ifa_addr else { continue }
            let isIPv6 = Int32(address.pointee.sa_family) == AF_INET6
            guard isIPv6 || Int32(address.pointee.sa_family) == AF_INET else { continue }
            var host = [CChar](repeating: 0, count: 256)
            let length = isIPv6 ? MemoryLayout<sockaddr_in6>.size : MemoryLayout<sockaddr_in>.size
            guard getnameinfo(address, socklen_t(length), &host, 256, nil, 0, NI_NUMERICHOST) == 0 else { continue }
            texts.append(String(decoding: host.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self))
        }
        return texts
    }

    func ownAddressFindings() -> [Finding] {
        let present = Set(machineAddresses().compactMap { IPAddress($0) })
        let own = configuration.node(node)
        let other = configuration.node(node.peer)
        var found: [Finding] = []
        if !present.contains(own.endpoint.address) {
            let isOther = present.contains(other.endpoint.address)
            found.append(
                finding(
                    .error, "node[\(node.rawValue)].address",
                    "this machine does not have \(own.endpoint.address), the address of node \"\(own.name)\""
                        + (isOther ? ", but that of node \"\(other.name)\"" : ""),
                    isOther
                        ? "Say which node this is: --node \(other.name)"
                        : "Correct the address here, or give it to this machine"))
        } else if present.contains(other.endpoint.address), !other.endpoint.address.isLoopback {
            found.append(
                finding(
                    .error, "node[\(node.peer.rawValue)].address",
                    "this machine also has \(other.endpoint.address), the address of node \"\(other.name)\"",
                    "Remove it from this machine: the two nodes would answer for each other"))
        }
        if present.contains(configuration.witness.address), !configuration.witness.address.isLoopback {
            found.append(
                finding(
                    .error, "witness.address",
                    "this machine has the witness's address \(configuration.witness.address)",
                    "Run the witness in a third room: with this node lost, it would be lost as well"))
        }
        return found
    }

    func virtualAddressFindings() -> [Finding] {
        let present = machineAddressesWithLifetimes()
        var found: [Finding] = []
        var seen: Set<String> = []
        for (index, address) in configuration.addresses.enumerated() {
            let name = address.interface(on: node)
            var interface = clinux_interface()
            let result = clinux_interface_find(name, &interface)
            let key = "address[\(index)].interface"
            if seen.insert(name).inserted {
                if result == -ENODEV {
                    found.append(
                        finding(
                            .error, key, "this machine has no interface \(name)",
                            "Write one of: \(interfaceNames().joined(separator: ", "))"))
                } else if result != 0 {
                    found.append(finding(.error, key, "\(name): \(systemError(-result))", "Look at ip link"))
                } else if interface.is_up == 0 {
                    found.append(finding(.error, key, "\(name) is down", "ip link set \(name) up"))
                } else if interface.is_running == 0 {
                    found.append(finding(.warning, key, "\(name) has no carrier", "Look at the cable and the switch"))
                }
            }
            for other in present where other.address == address.address && other.isForever {
                found.append(
                    finding(
                        .error, "address[\(index)].address", "\(address.address) is a fixed address of this machine",
                        "Remove it from the machine's network configuration: it moves with the application"))
            }
        }
        return found
    }

    private func interfaceNames() -> [String] {
        (directoryNames("/sys/class/net") ?? []).filter { $0 != "lo" }.sorted()
    }

    private func machineAddressesWithLifetimes() -> [(address: IPAddress, isForever: Bool)] {
        let netlink = clinux_netlink_open()
        guard netlink >= 0 else { return [] }
        defer { close(netlink) }
        var sequence: UInt32 = 0
        var list = [clinux_address](repeating: clinux_address(), count: 4096)
        let count = clinux_addresses_list(netlink, &sequence, &list, list.count)
        guard count > 0 else { return [] }
        return list.prefix(min(Int(count), list.count)).map { entry in
            let bytes = withUnsafeBytes(of: entry.bytes) { Array($0.prefix(entry.is_ipv6 != 0 ? 16 : 4)) }
            return (IPAddress(bytes: bytes), entry.valid_seconds == CLINUX_LIFETIME_FOREVER)
        }
    }
}
