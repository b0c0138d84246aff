import CLinux

/// The clock that everything here counts on: CLOCK_BOOTTIME. Nobody sets it, and it goes on while the machine is
/// suspended, so a lease cannot be stretched by a sleeping laptop or a jump of the wall clock.
public enum BootClock {
    /// Nanoseconds since the machine started.
    public static var now: UInt64 { clinux_boottime_ns() }
}
