import CommandMain

/// `lockstep-dump`: looks into a journal, live or copied. Never writes, takes no lock.
@main
enum Main {
    static func main() { Dump.runAsProgram() }
}
