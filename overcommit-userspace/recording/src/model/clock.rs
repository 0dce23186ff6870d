//! Moments on the clocks that matter.

use serde::{Deserialize, Serialize};

/// A difference of the clocks that is a step and not their drift, in nanoseconds.
const STEP_NS: u64 = 50_000_000;

/// One moment on the clocks that matter, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// Since the Unix epoch, UTC.
    pub realtime_ns: u64,
    /// The clock of the eBPF programs (`bpf_ktime_get_ns`).
    pub monotonic_ns: u64,
    /// Since boot, suspended time included.
    pub boottime_ns: u64,
}

impl Clocks {
    /// Whether the time of day was set between the two moments. While a host is suspended the
    /// time of day goes on, and so does the time since boot.
    pub fn stepped_since(&self, earlier: &Self) -> bool {
        let real = self.realtime_ns.wrapping_sub(earlier.realtime_ns).cast_signed();
        let boot = self.boottime_ns.wrapping_sub(earlier.boottime_ns).cast_signed();
        real.abs_diff(boot) > STEP_NS
    }

    /// The Unix time at which the monotonic clock showed that value, in
    /// nanoseconds.
    pub fn realtime_of(&self, monotonic_ns: u64) -> u64 {
        let since = monotonic_ns.wrapping_sub(self.monotonic_ns).cast_signed();
        self.realtime_ns.saturating_add_signed(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_not_drift() {
        let start = Clocks { realtime_ns: 1_000_000_000, monotonic_ns: 500, boottime_ns: 500 };
        let monotonic_ns = 1_000_000_500;
        let later = |realtime_ns| Clocks { realtime_ns, monotonic_ns, boottime_ns: monotonic_ns };
        assert!(!later(2_000_000_100).stepped_since(&start));
        assert!(later(3_000_000_000).stepped_since(&start));
        assert!(later(900_000_000).stepped_since(&start));
        let hour_ns = 3_600_000_000_000;
        let boottime_ns = monotonic_ns + hour_ns;
        let resumed = Clocks { boottime_ns, ..later(2_000_000_100 + hour_ns) };
        assert!(!resumed.stepped_since(&start), "it was suspended");
        assert_eq!(start.realtime_of(400), 999_999_900);
    }
}
