//! slow-faults.csv: one row a fault above `--slow-faults`.

use crate::clock::Clocks;
use crate::export::csv::{self, text};
use crate::export::intervals::who;
use crate::recording::run_file::RunVm;
use crate::vm::name::escape;
use anyhow::Result;
use overcommit_ebpf::layout::{Metric, SlowFault};

/// The columns; only ever appended to.
pub const COLUMNS: [&str; 10] = [
    "end_unix_s",
    "vm_id",
    "vm",
    "uuid",
    "pid",
    "tid",
    "thread",
    "metric",
    "latency_ns",
    "address",
];

/// A slow fault and the VM that it belongs to.
pub struct SlowRow<'a> {
    /// As the programs sent it.
    pub fault: SlowFault,
    /// Minor or major.
    pub metric: Metric,
    /// Whose.
    pub vm: &'a RunVm,
}

/// The faults' rows. `now` turns their monotonic times into Unix times.
///
/// # Errors
/// See [`csv::rows`].
pub fn rows(faults: &[SlowRow<'_>], now: &Clocks) -> Result<Vec<u8>> {
    csv::rows(faults.iter().map(|row| cells(row, now)))
}

fn cells(row: &SlowRow<'_>, now: &Clocks) -> Vec<String> {
    let fault = &row.fault;
    let comm = fault.comm.split(|byte| *byte == 0).next().unwrap_or_default();
    let mut cells = vec![csv::seconds_of_ns(now.realtime_of(fault.end_ns))];
    cells.extend(who(row.vm));
    cells.extend([
        fault.tid.to_string(),
        text(&escape(comm)),
        row.metric.name().to_owned(),
        fault.latency_ns.to_string(),
        format!("{:#x}", fault.address),
    ]);
    cells
}
