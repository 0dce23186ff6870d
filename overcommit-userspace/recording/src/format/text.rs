//! Durations, sizes and shares as people read and write them.

use anyhow::{Context, Result, bail, ensure};
use std::time::Duration;

/// The longest duration that makes sense, and fits all clocks.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A moment as a day has it: `14:18:32 UTC`.
pub fn time_of_day(unix_s: f64) -> String {
    let moment = jiff::Timestamp::from_second(unix_s as i64).unwrap_or_default();
    moment.strftime("%H:%M:%S UTC").to_string()
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

/// Reads a size with a unit, by 1,024: `500M`, `2G`, `1.5GiB`.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_size(text: &str) -> Result<u64> {
    /// So much that a recording has at least.
    const LEAST: f64 = (1 << 20) as f64;
    let wrong = || format!("{text} is not a size; write for example 500M or 2G");
    let at = text.find(|c: char| c.is_ascii_alphabetic()).with_context(wrong)?;
    let (number, unit) = text.split_at(at);
    let unit = unit.strip_suffix("iB").or(unit.strip_suffix('B')).unwrap_or(unit);
    let power = ["K", "M", "G", "T"].iter().position(|name| name.eq_ignore_ascii_case(unit));
    let power = power.with_context(wrong)? as i32 + 1;
    let number: f64 = number.parse().ok().with_context(wrong)?;
    let bytes = number * 1_024f64.powi(power);
    ensure!(
        bytes.is_finite() && (LEAST..1e18).contains(&bytes),
        "{text} is too small (less than 1M) or too large"
    );
    Ok(bytes as u64)
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

/// Bytes in the unit that fits.
pub fn readable_bytes(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = units.into_iter().find(|(_, size)| bytes >= *size);
    unit.map_or(format!("{bytes} B"), |(name, size)| {
        format!("{:.1} {name}", bytes as f64 / size as f64)
    })
}

/// That many VMs.
pub fn vms(count: usize) -> String {
    format!("{count} VM{}", if count == 1 { "" } else { "s" })
}

/// A share as people read it.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// What the system says of an error, without the number that says no more.
pub fn reason(error: &std::io::Error) -> String {
    without_numbers(&error.to_string())
}

/// `ENOTSUPP`, as libc has it: the number is the kernel's own (include/linux/errno.h), and gets out
/// of eBPF all the same.
const NOT_SUPPORTED: [&str; 2] = ["Unknown error 524", "No error information (os error 524)"];

/// A message without the numbers of the system's errors, which are there in words.
pub fn without_numbers(said: &str) -> String {
    const NUMBER: &str = " (os error ";
    let in_words = NOT_SUPPORTED.iter().fold(said.to_owned(), |said, number| {
        said.replace(number, "the kernel does not support it (ENOTSUPP)")
    });
    let mut parts = in_words.split(NUMBER);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |said, part| said + part.split_once(')').map_or("", |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_unit() {
        for (text, bytes) in
            [("1M", 1 << 20), ("500m", 500 << 20), ("1.5GiB", 3 << 29), ("2TB", 2 << 40)]
        {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "5", "1000", "G", "-1G", "1Q", "1K", "inf", "infG", "NaNM", "9e9T", "B"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

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
    fn numbers_of_errors_say_no_more_than_their_words() {
        let said = "a: Cannot allocate memory (os error 12); b: Too many (os error 24)";
        assert_eq!(without_numbers(said), "a: Cannot allocate memory; b: Too many");
        assert_eq!(without_numbers("nothing (of it)"), "nothing (of it)");
        let said = without_numbers("fentry: Unknown error 524 (os error 524)");
        assert_eq!(said, "fentry: the kernel does not support it (ENOTSUPP)");
        let missing = std::fs::File::open("/nonexistent").unwrap_err();
        assert_eq!(reason(&missing), "No such file or directory");
    }
}
