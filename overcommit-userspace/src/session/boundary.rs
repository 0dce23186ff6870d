//! When does an interval end?

use overcommit_recording::model::clock::Clocks;
use std::time::Duration;

/// The next whole multiple of the interval in Unix time.
pub struct Boundary {
    at_ns: u64,
    interval_ns: u64,
    set_at: Clocks,
}

impl Boundary {
    /// The first one after `now`.
    pub fn after(now: &Clocks, interval: Duration) -> Self {
        let interval_ns = interval.as_nanos() as u64;
        let at_ns = (now.realtime_ns / interval_ns + 1) * interval_ns;
        Self { at_ns, interval_ns, set_at: *now }
    }

    /// How long until then. Should the time of day be set meanwhile, no interval
    /// lasts longer than asked for.
    pub fn in_time(&self, now: &Clocks) -> Duration {
        let wait_ns = self.at_ns.saturating_sub(now.realtime_ns);
        let passed_ns = now.monotonic_ns.saturating_sub(self.set_at.monotonic_ns);
        Duration::from_nanos(wait_ns.min(self.interval_ns.saturating_sub(passed_ns)))
    }

    /// Whether it is time.
    pub fn reached(&self, now: &Clocks) -> bool {
        self.in_time(now).is_zero()
    }

    /// The boundary that was passed last, in Unix microseconds.
    pub fn last_us(&self, now: &Clocks) -> u64 {
        now.realtime_ns / self.interval_ns * self.interval_ns / 1_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_end_on_multiples() {
        let at = |realtime_ns, monotonic_ns| Clocks { realtime_ns, monotonic_ns, boottime_ns: 0 };
        let start = at(10_300_000_000, 0);
        let boundary = Boundary::after(&start, Duration::from_secs(1));
        assert_eq!(boundary.in_time(&start), Duration::from_millis(700));
        assert!(!boundary.reached(&at(10_999_999_999, 699_999_999)));
        let late = at(11_002_000_000, 702_000_000);
        assert!(boundary.reached(&late));
        assert_eq!(boundary.last_us(&late), 11_000_000);
    }

    #[test]
    fn a_clock_set_back_does_not_stop_the_intervals() {
        let at = |realtime_ns, monotonic_ns| Clocks { realtime_ns, monotonic_ns, boottime_ns: 0 };
        let boundary = Boundary::after(&at(3_600_000_000_000, 0), Duration::from_secs(1));
        assert!(boundary.reached(&at(5_000_000_000, 1_000_000_000)));
    }
}
