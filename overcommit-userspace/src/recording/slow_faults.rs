//! slow-faults.csv: one row a fault above `--slow-faults`.

use crate::format::csv;
use crate::format::csv::{optional, text};
use crate::model::breakdown::Breakdown;
use crate::model::clock::Clocks;
use crate::model::coverage::{MetricCoverage, is_part_seen};
use crate::model::name::escape;
use crate::model::run::RunVm;
use crate::model::slow_fault::SlowFault;
use crate::recording::intervals::who;
use anyhow::Result;
use overcommit_ebpf::layout::{FaultBacking, Part};

/// The columns before those of the parts of its time; only ever appended to.
const COLUMNS: [&str; 17] = [
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
    "backing",
    "swap_device",
    "stack",
    "guest_address",
    "aggressor_kind",
    "aggressor_id",
    "aggressor",
];

/// All columns: one more for each [`Part`] of its time.
pub fn columns() -> Vec<String> {
    let parts = Part::ALL.map(|part| format!("{}_ns", part.name()));
    COLUMNS.into_iter().map(str::to_owned).chain(parts).collect()
}

/// A slow fault and the VM that it belongs to.
pub struct SlowRow<'a> {
    /// Which.
    pub told: SlowFault,
    /// Whose.
    pub vm: &'a RunVm,
}

/// The faults' rows, of parts that are not absent by `coverage`. `now` turns their monotonic
/// times into Unix times.
///
/// # Errors
/// See [`csv::rows`].
pub fn rows(faults: &[SlowRow<'_>], coverage: &[MetricCoverage], now: &Clocks) -> Result<Vec<u8>> {
    let is_seen = |part| is_part_seen(coverage, part);
    csv::rows(faults.iter().map(|row| cells(row, is_seen, now)))
}

fn cells(row: &SlowRow<'_>, is_seen: impl Fn(Part) -> bool, now: &Clocks) -> Vec<String> {
    let fault = &row.told.fault;
    let backing = (fault.backing as usize).checked_sub(1);
    let backing = backing.and_then(|number| FaultBacking::ALL.get(number));
    let comm = fault.comm.split(|byte| *byte == 0).next().unwrap_or_default();
    let mut cells = vec![csv::seconds_of_ns(now.realtime_of(fault.end_ns))];
    cells.extend(who(row.vm));
    cells.extend([
        fault.tid.to_string(),
        text(&escape(comm)),
        row.told.metric.name().to_owned(),
        fault.latency_ns.to_string(),
        format!("{:#x}", fault.address),
        backing.map_or("", |backing| backing.name()).to_owned(),
        optional(row.told.device.as_deref().map(text)),
        optional(row.told.stack.as_deref().map(text)),
        optional(row.told.guest_address.map(|address| format!("{address:#x}"))),
    ]);
    let aggressor = row.told.aggressor.as_ref();
    cells.push(optional(aggressor.map(|aggressor| aggressor.class.name())));
    cells.push(optional(aggressor.map(|aggressor| &aggressor.id)));
    cells.push(optional(aggressor.map(|aggressor| text(&aggressor.name))));
    let time = Breakdown::new(fault.latency_ns, fault.parts_ns, is_seen);
    cells.extend(time.parts_ns.map(optional));
    cells
}
