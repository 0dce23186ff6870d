//! The line that a recording shows while it runs.

use crate::format::text::readable;
use crate::model::interval::Interval;
use crate::model::latencies::Latencies;
use crate::model::run::Run;
use overcommit_ebpf::layout::Metric;
use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

/// Rewrites one line of the terminal; silent where there is none.
pub struct Progress {
    visible: bool,
    duration: Option<Duration>,
    recorded_ns: u64,
}

/// Columns of the line: on a narrower terminal it would wrap, and leave a line at each update.
const WIDTH: usize = 79;

impl Progress {
    /// On stderr, if the user wants it and it is a terminal.
    pub fn new(wanted: bool, duration: Option<Duration>) -> Self {
        Self { visible: wanted && stderr().is_terminal(), duration, recorded_ns: 0 }
    }

    /// Makes room for a line of its own.
    pub fn interrupt(&self) {
        if self.visible {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }

    /// Shows the VM that waited most in the interval.
    pub fn show(&mut self, run: &Run, interval: &Interval) {
        self.recorded_ns += interval.place.length_ns;
        if !self.visible {
            return;
        }
        let line = line(run, interval, self.recorded_ns / 1_000_000_000, self.duration);
        // Progress is a courtesy: a terminal that is gone is no failure.
        let _ = write!(stderr(), "\r\x1b[K{line}");
    }
}

/// How far it is, and the VM that waited most in the interval.
fn line(run: &Run, interval: &Interval, seconds: u64, duration: Option<Duration>) -> String {
    let running = run.vms.iter().filter(|vm| vm.ended_us.is_none()).count();
    let plural = if running == 1 { "" } else { "s" };
    let of = duration.map(|all| format!(" of {}", clock(all.as_secs()))).unwrap_or_default();
    let mut line = format!("{}{of}  {running} VM{plural}", clock(seconds));
    if let Some(worst) = interval.vms.iter().max_by_key(|vm| vm.fault_ns()) {
        line.push_str(&format!("  {}:", run.vms[worst.vm].name));
        if let Some(share) = worst.stall.and_then(|stall| stall.share()) {
            line.push_str(&format!(" {:.0} % stalled,", share * 100.0));
        }
        let major = worst.latencies(Metric::FaultMajor);
        let length_s = interval.place.length_ns.max(1) as f64 / 1e9;
        let rate = major.map_or(0, Latencies::count) as f64 / length_s;
        let p99 = major.and_then(|major| major.quantile(0.99));
        let p99 = p99.map_or("-".to_owned(), readable);
        line.push_str(&format!(" {rate:.0} major faults/s, p99 {p99}"));
    }
    line.chars().take(WIDTH).collect()
}

fn clock(seconds: u64) -> String {
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.visible && self.recorded_ns > 0 {
            let _ = writeln!(stderr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::coverage::Coverage;
    use crate::model::interval::{MetricInterval, Place, Stall, StallSource, VmInterval};
    use crate::model::run::RunVm;

    #[test]
    fn the_line_says_how_far_it_is_and_who_waits_most() {
        let named = |name: &str| RunVm { name: name.to_owned(), ..RunVm::default() };
        let mut run = Run { vms: vec![named("squeezed")], ..Run::default() };
        let mut latencies = Latencies::empty();
        latencies.record(1_000, 500);
        (latencies.sum_ns, latencies.max_ns) = (500_000, 1_000);
        let name = Metric::FaultMajor.into();
        let metrics = vec![MetricInterval { vm: 0, name, coverage: Coverage::Full, latencies }];
        let (source, vcpu_ns) = (StallSource::Faults, 100);
        let stall = Some(Stall { waited_ns: 83, runq_ns: 0, vcpu_ns, source });
        let vms = vec![VmInterval { stall, metrics, ..VmInterval::default() }];
        let place = Place { length_ns: 500_000_000, ..Place::default() };
        let interval = Interval { place, vms, ..Interval::default() };
        let minute = Some(Duration::from_secs(60));
        assert_eq!(
            line(&run, &interval, 12, minute),
            "0:12 of 1:00  1 VM  squeezed: 83 % stalled, 1000 major faults/s, p99 1.00 us"
        );
        run.vms.push(named("calm"));
        let none = Interval { vms: Vec::new(), ..interval };
        assert_eq!(line(&run, &none, 3_600, None), "60:00  2 VMs");
    }
}
