//! The line that a recording shows while it runs.

use crate::format::text::readable;
use crate::model::interval::Interval;
use crate::model::latencies::Latencies;
use crate::model::run::Run;
use overcommit_ebpf::layout::Metric;
use std::io::{IsTerminal, Write, stderr};

/// Rewrites one line of the terminal; silent where there is none.
pub struct Progress {
    visible: bool,
    recorded_ns: u64,
}

impl Progress {
    /// On stderr, if the user wants it and it is a terminal.
    pub fn new(wanted: bool) -> Self {
        Self { visible: wanted && stderr().is_terminal(), recorded_ns: 0 }
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
        let seconds = self.recorded_ns / 1_000_000_000;
        let running = run.vms.iter().filter(|vm| vm.ended_us.is_none()).count();
        let mut line = format!("{:02}:{:02}  {running} VMs", seconds / 60, seconds % 60);
        if let Some(worst) = interval.vms.iter().max_by_key(|vm| vm.fault_ns()) {
            let name = &run.vms[worst.vm].name;
            let major = worst.latencies(Metric::FaultMajor);
            let p99 = major.and_then(|major| major.quantile(0.99));
            let p99 = p99.map_or("-".to_owned(), readable);
            let count = major.map_or(0, Latencies::count);
            line.push_str(&format!("  {name}: {count} major faults, p99 {p99}"));
            if let Some(share) = worst.stall.and_then(|stall| stall.share()) {
                line.push_str(&format!(", stalled {:.0} %", share * 100.0));
            }
        }
        // Progress is a courtesy: a terminal that is gone is no failure.
        let _ = write!(stderr(), "\r\x1b[K{line}");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.visible && self.recorded_ns > 0 {
            let _ = writeln!(stderr());
        }
    }
}
