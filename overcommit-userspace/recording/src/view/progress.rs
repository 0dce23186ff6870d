//! The line that a recording shows while it runs.

use crate::format::text::{readable, vms};
use crate::model::interval::{Interval, VmInterval};
use crate::model::latencies::Latencies;
use crate::model::run::Run;
use crate::model::state::State;
use crate::model::swap::SwapState;
use crate::summary::verdict::STALL;
use crate::view::cut;
use crate::view::verdict_text::short;
use overcommit_ebpf::layout::Metric;
use rustix::termios::tcgetwinsize;
use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

/// Rewrites one line of the terminal. Where there is none, as in a CI job, it writes a line a
/// minute.
pub struct Progress {
    how: How,
    duration: Option<Duration>,
    recorded_ns: u64,
    told_ns: u64,
}

enum How {
    Silent,
    Rewritten,
    ByMinute,
}

/// Columns of the line where the terminal does not say.
const WIDTH: usize = 80;
/// Time between two lines where there is no terminal, in nanoseconds.
const MINUTE_NS: u64 = 60_000_000_000;

impl Progress {
    /// On stderr, if the user wants it.
    pub fn new(wanted: bool, duration: Option<Duration>) -> Self {
        let how = match (wanted, stderr().is_terminal()) {
            (false, _) => How::Silent,
            (true, true) => How::Rewritten,
            (true, false) => How::ByMinute,
        };
        Self { how, duration, recorded_ns: 0, told_ns: 0 }
    }

    /// Makes room for a line of its own.
    pub fn interrupt(&self) {
        if matches!(self.how, How::Rewritten) {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }

    /// Shows the VM that waited most in the interval.
    pub fn show(&mut self, run: &Run, interval: &Interval) {
        self.recorded_ns += interval.place.length_ns;
        let line = || line(run, interval, self.recorded_ns / 1_000_000_000, self.duration);
        // A line that wraps would leave one behind at each update.
        let fits = |line: String| cut(&line, columns() - 1);
        // Progress is a courtesy: a terminal that is gone is no failure.
        let _ = match self.how {
            How::Rewritten => write!(stderr(), "\r\x1b[K{}", fits(line())),
            How::ByMinute if self.recorded_ns >= self.told_ns + MINUTE_NS => {
                self.told_ns = self.recorded_ns;
                writeln!(stderr(), "overcommit: {}", line())
            }
            How::Silent | How::ByMinute => Ok(()),
        };
    }
}

/// How far it is, how many VMs are well, the one that waited most in the interval, and the host if
/// it swaps.
fn line(run: &Run, interval: &Interval, seconds: u64, duration: Option<Duration>) -> String {
    let of = duration.map(|all| format!(" of {}", clock(all.as_secs()))).unwrap_or_default();
    let mut line = format!("{}{of}  {}", clock(seconds), how_many(run, interval));
    if let Some(worst) = interval.vms.iter().max_by(|a, b| waited(a).total_cmp(&waited(b))) {
        line.push_str(&format!("  {}:", short(&run.vms[worst.vm].name)));
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
    if interval.host.swap.state > SwapState::Healthy {
        line.push_str(&format!("  host: {}", interval.host.swap.state.name()));
    }
    line
}

fn columns() -> usize {
    let size = tcgetwinsize(stderr()).ok().map(|size| usize::from(size.ws_col));
    size.filter(|columns| *columns > 1).unwrap_or(WIDTH)
}

/// How many VMs run, and of those that were seen how many waited next to nothing.
fn how_many(run: &Run, interval: &Interval) -> String {
    let running = run.vms.iter().filter(|vm| vm.ended_us.is_none()).count();
    let shares = interval.vms.iter().filter_map(|vm| vm.stall?.share());
    let (seen, ok) =
        shares.fold((0, 0), |(seen, ok), share| (seen + 1, ok + usize::from(share < STALL)));
    if seen > 1 && seen == running { format!("{ok} of {} ok", vms(running)) } else { vms(running) }
}

/// The share of its time that a VM waited; without vCPUs that are known, the time of its faults
/// decides among its like.
fn waited(vm: &VmInterval) -> f64 {
    let share = vm.stall.and_then(|stall| stall.share());
    share.unwrap_or(vm.fault_ns() as f64 / f64::from(u32::MAX) / 1e3)
}

/// A length of time as a clock counts it: `1:00`, `2:05:30`.
pub fn length(time: Duration) -> String {
    clock(time.as_secs())
}

fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if matches!(self.how, How::Rewritten) && self.recorded_ns > 0 {
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
        let stall = Some(Stall { waited_ns: 83, vcpu_ns, source, ..Stall::default() });
        let vms = vec![VmInterval { stall, metrics, ..VmInterval::default() }];
        let place = Place { length_ns: 500_000_000, ..Place::default() };
        let interval = Interval { place, vms, ..Interval::default() };
        let minute = Some(Duration::from_secs(60));
        let squeezed = "squeezed: 83 % stalled, 1000 major faults/s, p99 1.00 us";
        assert_eq!(line(&run, &interval, 12, minute), format!("0:12 of 1:00  1 VM  {squeezed}"));
        run.vms.push(named("calm"));
        let waits =
            |waited_ns| Some(Stall { waited_ns, vcpu_ns: 1_000, source, ..Stall::default() });
        let calm = VmInterval { vm: 1, stall: waits(9), ..VmInterval::default() };
        let mut both = interval.clone();
        both.vms.push(calm.clone());
        both.host.swap.state = SwapState::Thrashing;
        let said = format!("0:12  1 of 2 VMs ok  {squeezed}  host: thrashing");
        assert_eq!(line(&run, &both, 12, None), said);
        run.vms[1].name = "a-name-of-forty-characters-is-cut-in-two".to_owned();
        both.vms[1] = VmInterval { stall: waits(900), ..calm };
        let said = line(&run, &both, 12, None);
        assert!(
            said.contains("  a-name-of-forty-cha…: 90 % stalled, 0 major faults/s, p99 -"),
            "{said}"
        );
        assert_eq!((cut("ab日本", 5), cut("ab", 5)), ("ab日".to_owned(), "ab".to_owned()));
        let none = Interval { vms: Vec::new(), ..interval };
        assert_eq!(line(&run, &none, 3_600, None), "1:00:00  2 VMs");
    }
}
