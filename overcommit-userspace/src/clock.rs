//! The clocks of a recording, and durations as users write them.

use anyhow::{Context, Result, bail, ensure};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A difference of the clocks that is a step and not their drift, in nanoseconds.
const STEP_NS: u64 = 50_000_000;

/// The longest duration that makes sense, and fits all clocks.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

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
    /// Now.
    ///
    /// # Errors
    /// The kernel has no such clock.
    pub fn now() -> Result<Self> {
        let read = |clock| -> Result<u64> {
            let time = clock_gettime(clock).context("cannot read the clock")?;
            Ok(u64::try_from(Duration::from(time).as_nanos())?)
        };
        Ok(Self {
            realtime_ns: read(ClockId::CLOCK_REALTIME)?,
            monotonic_ns: read(ClockId::CLOCK_MONOTONIC)?,
            boottime_ns: read(ClockId::CLOCK_BOOTTIME)?,
        })
    }

    /// Whether the time of day was set between the two moments.
    pub fn stepped_since(&self, earlier: &Self) -> bool {
        let real = self.realtime_ns.wrapping_sub(earlier.realtime_ns).cast_signed();
        let monotonic = self.monotonic_ns.wrapping_sub(earlier.monotonic_ns).cast_signed();
        real.abs_diff(monotonic) > STEP_NS
    }

    /// The Unix time at which the monotonic clock showed that value, in
    /// nanoseconds.
    pub fn realtime_of(&self, monotonic_ns: u64) -> u64 {
        let since = monotonic_ns.wrapping_sub(self.monotonic_ns).cast_signed();
        self.realtime_ns.saturating_add_signed(since)
    }
}

/// Reads a duration with a unit: `500ms`, `2s`, `1h30m`.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_duration(text: &str) -> Result<Duration> {
    ensure!(!text.is_empty(), "the duration is empty; write for example 500ms or 30s");
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        bail!("the duration {text} has no unit; write for example {text}s or {text}ms");
    }
    let span: jiff::SignedDuration = text.parse().ok().with_context(|| {
        format!("{text} is not a duration; write for example 500us, 20ms, 30s or 1h30m")
    })?;
    let duration = Duration::try_from(span);
    let duration = duration.ok().with_context(|| format!("the duration {text} is negative"))?;
    ensure!(duration <= LONGEST, "the duration {text} is longer than a hundred years");
    Ok(duration)
}

/// The same, and not zero.
///
/// # Errors
/// As [`parse_duration`], or the duration is zero.
pub fn parse_positive_duration(text: &str) -> Result<Duration> {
    let duration = parse_duration(text)?;
    ensure!(!duration.is_zero(), "the duration must be longer than zero");
    Ok(duration)
}

/// `--interval`: 10 ms to 1 h.
///
/// # Errors
/// As [`parse_duration`], or out of range.
pub fn parse_interval(text: &str) -> Result<Duration> {
    let interval = parse_duration(text)?;
    let range = Duration::from_millis(10)..=Duration::from_secs(3600);
    ensure!(range.contains(&interval), "an interval lasts from 10ms to 1h, not {text}");
    Ok(interval)
}

/// A latency for people: three digits and a unit.
pub fn readable(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(parse_duration("2.5s").unwrap(), Duration::from_millis(2500));
        assert_eq!(parse_duration("0ns").unwrap(), Duration::ZERO);
        let message = |text: &str| parse_duration(text).unwrap_err().to_string();
        assert!(message("10").contains("has no unit"), "{}", message("10"));
        assert!(message("9223372036854775807s").contains("hundred years"));
        for text in ["", "ten", "5 parsecs", "s"] {
            assert!(message(text).contains("write for example"), "{}", message(text));
        }
        assert!(message("-5s").contains("negative"), "{}", message("-5s"));
        assert!(parse_positive_duration("0s").is_err());
        assert!(parse_interval("9ms").is_err());
        assert!(parse_interval("10ms").is_ok());
        assert!(parse_interval("61m").is_err());
    }

    #[test]
    fn latencies_are_readable() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.00 us"),
            (12_345, "12.3 us"),
            (999_900, "1000 us"),
            (1_500_000, "1.50 ms"),
            (137_438_953_471, "137 s"),
        ] {
            assert_eq!(readable(ns), text);
        }
    }

    #[test]
    fn a_step_is_not_drift() {
        let start = Clocks { realtime_ns: 1_000_000_000, monotonic_ns: 500, boottime_ns: 500 };
        let later =
            |realtime_ns| Clocks { realtime_ns, monotonic_ns: 1_000_000_500, boottime_ns: 0 };
        assert!(!later(2_000_000_100).stepped_since(&start));
        assert!(later(3_000_000_000).stepped_since(&start));
        assert!(later(900_000_000).stepped_since(&start));
        assert_eq!(start.realtime_of(400), 999_999_900);
    }
}
