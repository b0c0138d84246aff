//  A chart as SVG: the median and the 99th percentile of every combination over the number of writers, both axes
//  logarithmic, with the floors as dashed lines. A run with one number of writers is drawn over the size instead.
import Foundation

/// A curve; `x` ascending.
private struct Curve {
    var name: String
    var colour: String
    var dashes: String
    var points: [(x: Double, y: Double)]
}

extension Report {
    private static let width = 860.0
    private static let height = 520.0
    private static let margins = (left: 80.0, right: 260.0, top: 50.0, bottom: 60.0)
    private static let colours = [
        "#1b6ca8", "#c8452e", "#2e8b57", "#8a4fbf", "#b8860b", "#008b8b", "#555555", "#d05090",
    ]

    func svg() -> String {
        let overWriters = Set(cells.map(\.combination.writers)).count > 1
        let curves = cells.isEmpty ? floorCurves() : cellCurves(overWriters: overWriters)
        let all = curves.flatMap(\.points)
        guard let xLow = all.map(\.x).min(), let xHigh = all.map(\.x).max(), let yLow = all.map(\.y).min(),
            let yHigh = all.map(\.y).max()
        else { return "<svg xmlns=\"http://www.w3.org/2000/svg\"/>\n" }
        let xName = cells.isEmpty || !overWriters ? "bytes of one write" : "writers"
        let frame = Frame(
            x: (log2(xLow), max(log2(xHigh), log2(xLow) + 1)), y: (floor(log10(yLow)), max(ceil(log10(yHigh)), 1)))
        var body = frame.axes(xName: xName, xValues: Set(all.map(\.x)).sorted(), bytes: xName != "writers")
        for (index, curve) in curves.enumerated() { body += frame.draw(curve, legendRow: index) }
        return """
            <svg xmlns="http://www.w3.org/2000/svg" width="\(Int(Report.width))" height="\(Int(Report.height))" \
            font-family="sans-serif" font-size="12">
            <rect width="100%" height="100%" fill="white"/>
            <text x="\(Report.margins.left)" y="28" font-size="16">Write latency in \(escaped(directory))</text>
            \(body)</svg>

            """
    }

    private func cellCurves(overWriters: Bool) -> [Curve] {
        var groups: [String: [Cell]] = [:]
        var order: [String] = []
        for cell in cells {
            let own = cell.combination
            let name =
                "\(own.engine.rawValue) \(own.durability == .fsync ? "durable" : "not durable")"
                + (overWriters ? " \(byteText(own.bytes))" : "")
            if groups[name] == nil { order.append(name) }
            groups[name, default: []].append(cell)
        }
        var curves: [Curve] = []
        for (index, name) in order.enumerated() {
            let colour = Report.colours[index % Report.colours.count]
            let sorted = (groups[name] ?? []).map { cell in
                (
                    x: Double(overWriters ? cell.combination.writers : cell.combination.bytes),
                    latency: cell.microseconds
                )
            }.sorted { $0.x < $1.x }
            curves.append(
                Curve(name: name + " p50", colour: colour, dashes: "", points: sorted.map { ($0.x, $0.latency.p50) }))
            curves.append(
                Curve(name: name + " p99", colour: colour, dashes: "2 3", points: sorted.map { ($0.x, $0.latency.p99) })
            )
        }
        guard overWriters else { return curves + floorCurves().suffix(1) }
        let writers = cells.map { Double($0.combination.writers) }
        return curves
            + floors.map { floor in
                Curve(
                    name: "floor \(byteText(floor.bytes))", colour: "#999999", dashes: "8 4",
                    points: [
                        (writers.min() ?? 1, floor.floorMicroseconds), (writers.max() ?? 1, floor.floorMicroseconds),
                    ])
            }
    }

    private func floorCurves() -> [Curve] {
        let sorted = floors.sorted { $0.bytes < $1.bytes }
        return [
            Curve(
                name: "local flush p50", colour: Report.colours[0], dashes: "",
                points: sorted.map { (Double($0.bytes), $0.localFlushMicroseconds) }),
            Curve(
                name: "round trip + remote p50", colour: Report.colours[1], dashes: "",
                points: sorted.map { (Double($0.bytes), $0.roundTripAndRemoteFlushMicroseconds) }),
            Curve(
                name: "floor", colour: "#999999", dashes: "8 4",
                points: sorted.map { (Double($0.bytes), $0.floorMicroseconds) }),
        ]
    }

    /// Maps values to places.
    private struct Frame {
        /// Logarithms: base 2 and base 10.
        var x: (low: Double, high: Double)
        var y: (low: Double, high: Double)

        func place(_ point: (x: Double, y: Double)) -> (x: Double, y: Double) {
            let across = Report.width - Report.margins.left - Report.margins.right
            let down = Report.height - Report.margins.top - Report.margins.bottom
            return (
                Report.margins.left + (log2(point.x) - x.low) / (x.high - x.low) * across,
                Report.height - Report.margins.bottom - (log10(max(point.y, 1e-3)) - y.low) / (y.high - y.low) * down
            )
        }

        func axes(xName: String, xValues: [Double], bytes: Bool) -> String {
            let bottom = Report.height - Report.margins.bottom
            let right = Report.width - Report.margins.right
            var text = ""
            for power in Int(y.low)...Int(y.high) {
                for step in [1.0, 2, 5] where step == 1 || power < Int(y.high) {
                    let value = step * pow(10, Double(power))
                    let at = place((pow(2, x.low), value)).y
                    text += "<line x1=\"\(Report.margins.left)\" y1=\"\(at)\" x2=\"\(right)\" y2=\"\(at)\" "
                    text += "stroke=\"\(step == 1 ? "#cccccc" : "#eeeeee")\"/>\n"
                    text += "<text x=\"\(Report.margins.left - 8)\" y=\"\(at + 4)\" text-anchor=\"end\">"
                    text += "\(String(format: "%g", value))</text>\n"
                }
            }
            for value in xValues {
                let at = place((value, 1)).x
                text +=
                    "<line x1=\"\(at)\" y1=\"\(Report.margins.top)\" x2=\"\(at)\" y2=\"\(bottom)\" stroke=\"#eeeeee\"/>\n"
                text += "<text x=\"\(at)\" y=\"\(bottom + 18)\" text-anchor=\"middle\">"
                text += "\(bytes ? byteText(Int(value)) : "\(Int(value))")</text>\n"
            }
            text += "<text x=\"\((Report.margins.left + right) / 2)\" y=\"\(bottom + 42)\" text-anchor=\"middle\">"
            text += "\(xName)</text>\n"
            text += "<text transform=\"translate(20 \(bottom / 2 + 30)) rotate(-90)\" text-anchor=\"middle\">"
            return text + "microseconds</text>\n"
        }

        func draw(_ curve: Curve, legendRow: Int) -> String {
            let places = curve.points.map(place)
            let list = places.map { String(format: "%.1f,%.1f", $0.x, $0.y) }.joined(separator: " ")
            let stroke = "stroke=\"\(curve.colour)\" stroke-width=\"2\" stroke-dasharray=\"\(curve.dashes)\""
            var text = "<polyline points=\"\(list)\" fill=\"none\" \(stroke)/>\n"
            for place in places {
                text += "<circle cx=\"\(place.x)\" cy=\"\(place.y)\" r=\"3\" fill=\"\(curve.colour)\"/>\n"
            }
            let left = Report.width - Report.margins.right + 16
            let row = Report.margins.top + 10 + Double(legendRow) * 18
            text += "<line x1=\"\(left)\" y1=\"\(row)\" x2=\"\(left + 26)\" y2=\"\(row)\" \(stroke)/>\n"
            return text + "<text x=\"\(left + 34)\" y=\"\(row + 4)\">\(escaped(curve.name))</text>\n"
        }
    }
}

private func escaped(_ text: String) -> String {
    text.replacingOccurrences(of: "&", with: "&amp;").replacingOccurrences(of: "<", with: "&lt;")
}
