import Format
import Journal

final class ResyncSource: ResyncSession {
    var progress = ResyncProgress()
    init(plane: DataPlane, done: @escaping () -> Void) { plane.logger.error("not built yet") }
    func received(_ message: DataMessage) {}
    func tick() {}
    func cancel() {}
}

final class ResyncFollower: ResyncSession {
    var progress = ResyncProgress()
    init(
        plane: DataPlane, number: UInt64, base: Seq, chain: UInt64, epochs: [EpochStart], done: @escaping () -> Void
    ) { plane.logger.error("not built yet") }
    func received(_ message: DataMessage) {}
    func tick() {}
    func cancel() {}
}
