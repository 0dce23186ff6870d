//! What a guest can see without its host: amounts and waits, but not why.

use anyhow::{Context, Result};
use overcommit_recording::format::text::{percent, readable, readable_bytes};
use procfs::prelude::FromRead;
use procfs::{CurrentSI, KernelStats, MemoryPressure};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time between two looks at the clock.
const NAP: Duration = Duration::from_millis(5);

/// What a guest saw of itself over some time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Alone {
    /// How long that was, in seconds.
    pub seconds: f64,
    /// Part of its vCPUs' time in which they could run and the host had no CPU, as the host tells the
    /// kernel; also 0 where it does not.
    pub steal_share: Option<f64>,
    /// Longest time for which nothing ran here that should have run, in nanoseconds.
    pub longest_pause_ns: u64,
    /// Faults that this guest's own kernel counted as major, a second.
    pub own_major_faults_per_s: f64,
    /// Part of the last ten seconds in which some task waited for memory, by this guest's own kernel.
    pub own_psi_some_share: Option<f64>,
    /// What its balloon driver gave back; `null` without a balloon.
    pub ballooned_bytes: Option<u64>,
}

impl Alone {
    /// Looks for that long.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn look(time: Duration) -> Result<Self> {
        let (since, before) = (Instant::now(), Counters::read()?);
        let mut longest_pause = Duration::ZERO;
        while since.elapsed() < time {
            let nap = Instant::now();
            std::thread::sleep(NAP);
            longest_pause = longest_pause.max(nap.elapsed().saturating_sub(NAP));
        }
        let (seconds, after) = (since.elapsed().as_secs_f64(), Counters::read()?);
        Ok(Self {
            longest_pause_ns: u64::try_from(longest_pause.as_nanos()).unwrap_or(u64::MAX),
            own_psi_some_share: psi(),
            ..Self::between(&before, &after, seconds)
        })
    }

    fn between(before: &Counters, after: &Counters, seconds: f64) -> Self {
        let all = after.ticks.saturating_sub(before.ticks);
        let steal =
            after.steal.zip(before.steal).map(|(after, before)| after.saturating_sub(before));
        let majors = after.majors.saturating_sub(before.majors);
        Self {
            seconds,
            steal_share: steal.filter(|_| all > 0).map(|steal| steal as f64 / all as f64),
            own_major_faults_per_s: majors as f64 / seconds,
            ballooned_bytes: after.ballooned,
            ..Self::default()
        }
    }

    /// A line for each figure.
    pub fn lines(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<13} {value}");
        };
        let share = |of: Option<f64>| of.map_or("not told".to_owned(), percent);
        let untold = if self.steal_share == Some(0.0) { ", or not told" } else { "" };
        line("steal", format!("{}{untold}", share(self.steal_share)));
        line("longest pause", readable(self.longest_pause_ns));
        line("major faults", format!("{:.1}/s by its own kernel", self.own_major_faults_per_s));
        let psi = self.own_psi_some_share.map(|psi| format!("{} by its own kernel", percent(psi)));
        line("memory PSI", psi.unwrap_or("not told".to_owned()));
        let ballooned = self.ballooned_bytes.map_or("no balloon".to_owned(), readable_bytes);
        line("ballooned", ballooned);
        text
    }
}

/// What the kernel counts.
#[derive(Default)]
struct Counters {
    /// Of all CPUs, in clock ticks.
    ticks: u64,
    steal: Option<u64>,
    majors: u64,
    ballooned: Option<u64>,
}

impl Counters {
    fn read() -> Result<Self> {
        let stat = KernelStats::current().context("cannot read /proc/stat")?.total;
        let vmstat: HashMap<String, i64> = procfs::vmstat().context("cannot read /proc/vmstat")?;
        let count = |name: &str| vmstat.get(name).map(|count| count.cast_unsigned());
        let rest = [stat.iowait, stat.irq, stat.softirq, stat.steal].map(Option::unwrap_or_default);
        Ok(Self {
            ticks: stat.user + stat.nice + stat.system + stat.idle + rest.iter().sum::<u64>(),
            steal: stat.steal,
            majors: count("pgmajfault").unwrap_or(0),
            ballooned: has_balloon(Path::new("/sys"))
                .then(|| pages(&count).map(|pages| pages * procfs::page_size()))
                .flatten(),
        })
    }
}

/// Pages in the balloon: those that went in and have not come back (`balloon_page_enqueue` and
/// `balloon_page_dequeue`, mm/balloon_compaction.c).
fn pages(count: &impl Fn(&str) -> Option<u64>) -> Option<u64> {
    count("nr_balloon_pages")
        .or_else(|| Some(count("balloon_inflate")?.saturating_sub(count("balloon_deflate")?)))
}

fn has_balloon(sys: &Path) -> bool {
    let devices = std::fs::read_dir(sys.join("bus/virtio/drivers/virtio_balloon"));
    let mut names = devices.into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.any(|name| name.to_string_lossy().starts_with("virtio"))
}

fn psi() -> Option<f64> {
    let file = std::fs::File::open("/proc/pressure/memory").ok()?;
    let pressure = MemoryPressure::from_read(file).ok()?;
    Some(f64::from(pressure.some.avg10) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_time_between() {
        let at = |ticks, steal, majors| Counters {
            ticks,
            steal: Some(steal),
            majors,
            ballooned: Some(4096),
        };
        let seen = Alone::between(&at(1_000, 10, 5), &at(1_200, 60, 7), 2.0);
        assert_eq!((seen.steal_share, seen.own_major_faults_per_s), (Some(0.25), 1.0));
        let untold = Counters { steal: None, ..at(1_200, 0, 7) };
        assert_eq!(Alone::between(&at(1_000, 10, 5), &untold, 2.0).steal_share, None);
        assert!(seen.lines().contains("  steal         25.0 %\n"), "{}", seen.lines());
    }

    #[test]
    fn a_balloon_is_what_went_in_and_has_not_come_back() {
        let of = |counts: &'static [(&str, u64)]| {
            move |name: &str| {
                counts.iter().find(|(known, _)| *known == name).map(|(_, count)| *count)
            }
        };
        let older = of(&[("balloon_inflate", 9), ("balloon_deflate", 4)]);
        assert_eq!(pages(&older), Some(5));
        assert_eq!(pages(&of(&[("nr_balloon_pages", 3)])), Some(3));
        assert_eq!(pages(&of(&[])), None);
    }

    #[test]
    fn it_looks_at_the_guest_that_it_runs_in() {
        let seen = Alone::look(Duration::from_millis(20)).unwrap();
        assert!(seen.seconds >= 0.02 && seen.own_major_faults_per_s >= 0.0, "{seen:?}");
    }
}
