/// The first message of both sides on every connection: who speaks, for which mirror, in which channel.
public struct Hello: Sendable, Hashable {
    public enum Channel: UInt8, Sendable {
        /// Decisions and leases.
        case control = 1
        /// Batches and acknowledgements, between the nodes.
        case data = 2
    }

    /// Versions of the protocol the sender speaks.
    public var oldestVersion: UInt16
    public var newestVersion: UInt16
    public var channel: Channel
    public var voter: Voter
    /// The mirror's name as configured, for messages to people.
    public var mirrorName: String
    /// Drawn at random by each start of a process: tells a restart from a reconnect.
    public var session: UInt64

    public init(
        channel: Channel, voter: Voter, mirrorName: String, session: UInt64,
        oldestVersion: UInt16 = ProtocolVersion.oldest, newestVersion: UInt16 = ProtocolVersion.current
    ) {
        self.channel = channel
        self.voter = voter
        self.mirrorName = mirrorName
        self.session = session
        self.oldestVersion = oldestVersion
        self.newestVersion = newestVersion
    }

    /// The highest version both sides speak; nil when there is none.
    public func commonVersion(with other: Hello) -> UInt16? {
        let highest = min(newestVersion, other.newestVersion)
        return highest >= max(oldestVersion, other.oldestVersion) ? highest : nil
    }

    public func encoded() -> [UInt8] {
        var writer = ByteWriter()
        writer.put(oldestVersion)
        writer.put(newestVersion)
        writer.put(channel.rawValue)
        writer.put(voter.rawValue)
        writer.put(mirrorName)
        writer.put(session)
        return writer.bytes
    }

    public init(decoding bytes: [UInt8]) throws(DecodingError) {
        var reader = ByteReader(bytes)
        oldestVersion = try reader.get(UInt16.self, "version")
        newestVersion = try reader.get(UInt16.self, "version")
        let rawChannel = try reader.get(UInt8.self, "channel")
        guard let channel = Channel(rawValue: rawChannel) else { throw DecodingError("unknown channel", at: 4) }
        self.channel = channel
        let rawVoter = try reader.get(UInt8.self, "voter")
        guard let voter = Voter(rawValue: rawVoter) else { throw DecodingError("unknown voter", at: 5) }
        self.voter = voter
        mirrorName = try reader.getText(limit: 255, "mirror name")
        session = try reader.get(UInt64.self, "session")
        try reader.finish()
    }
}
