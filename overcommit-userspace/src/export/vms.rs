//! vms.csv: one row an interval and VM.

use crate::export::csv::{self, optional};
use crate::export::intervals::{identity, place};
use crate::recording::Interval;
use crate::recording::run_file::RunVm;
use anyhow::Result;
use overcommit_ebpf::layout::Loss;

/// Where `stall.share` comes from with this version's backends.
pub const STALL_SOURCE: &str = "fault";

/// The columns before the losses; only ever appended to.
const COLUMNS: [&str; 15] = [
    "start_unix_s",
    "length_s",
    "vm_id",
    "vm",
    "uuid",
    "pid",
    "stall_share",
    "stall_source",
    "stall_ns",
    "vcpu_ns",
    "faults_counted",
    "faults_kernel",
    "faults_by_others",
    "partial",
    "interval",
];

/// All columns: one more for each cause of [`Loss`].
pub fn columns() -> Vec<String> {
    let losses = Loss::ALL.map(lost);
    COLUMNS.into_iter().map(str::to_owned).chain(losses).collect()
}

/// The column of a cause.
pub fn lost(cause: Loss) -> String {
    format!("lost_{}", cause.name())
}

/// The interval's rows.
///
/// # Errors
/// See [`csv::rows`].
pub fn rows(interval: &Interval, vms: &[RunVm]) -> Result<Vec<u8>> {
    let rows = interval.vms.iter().map(|sample| {
        let mut row = identity(interval, &vms[sample.member]);
        let share = sample.stall.and_then(|stall| stall.share());
        row.push(optional(share.map(|share| format!("{share:.6}"))));
        row.push(if share.is_some() { STALL_SOURCE } else { "" }.to_owned());
        row.push(optional(sample.stall.map(|stall| stall.waited_ns)));
        row.push(optional(sample.stall.map(|stall| stall.vcpu_ns)));
        row.push(sample.seen.counted.to_string());
        row.push(sample.seen.kernel.to_string());
        row.push(sample.by_others.to_string());
        row.extend(place(interval));
        row.extend(sample.not_counted.map(|count| count.to_string()));
        row
    });
    csv::rows(rows)
}
