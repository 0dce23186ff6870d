//! vms.csv: one row an interval and VM.

use crate::export::csv::{self, optional};
use crate::export::host::rates;
use crate::export::intervals::{identity, place};
use crate::recording::Interval;
use crate::recording::run_file::RunVm;
use anyhow::Result;
use overcommit_ebpf::layout::{Loss, Taker};

/// The columns before the losses; only ever appended to.
const COLUMNS: [&str; 26] = [
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
    "faults_by_vcpus",
    "faults_by_vm_threads",
    "metrics",
    "swapins_from_cache",
    "swapins_from_zswap",
    "swapins_from_devices",
    "swapins_without_fault",
    "swap_state",
    "swapped_in_pages_per_s",
    "swapped_out_pages_per_s",
    "memory_stall_share",
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

/// The column of faults that such a thread took.
pub const fn taken_by(taker: Taker) -> &'static str {
    match taker {
        Taker::Vcpu => "faults_by_vcpus",
        Taker::VmThread => "faults_by_vm_threads",
        Taker::Outside => "faults_by_others",
    }
}

/// The interval's rows.
///
/// # Errors
/// See [`csv::rows`].
pub fn rows(interval: &Interval, vms: &[RunVm]) -> Result<Vec<u8>> {
    let rows = interval.vms.iter().zip(&interval.vm_hosts).map(|(sample, host)| {
        let mut row = identity(interval, &vms[sample.member]);
        let share = sample.stall.and_then(|stall| stall.share());
        row.push(optional(share.map(|share| format!("{share:.6}"))));
        row.push(sample.stall.map_or("", |stall| stall.source.name()).to_owned());
        row.push(optional(sample.stall.map(|stall| stall.waited_ns)));
        row.push(optional(sample.stall.map(|stall| stall.vcpu_ns)));
        row.push(sample.seen.counted.to_string());
        row.push(sample.seen.kernel.to_string());
        let taken_by = |taker: Taker| sample.taken_by[taker as usize].to_string();
        row.push(taken_by(Taker::Outside));
        row.extend(place(interval));
        row.extend([Taker::Vcpu, Taker::VmThread].map(taken_by));
        row.push(sample.metrics.len().to_string());
        let swapins = &sample.swapins;
        row.extend(
            [swapins.from_cache, swapins.from_zswap, swapins.from_devices(), swapins.without_fault]
                .map(|count| count.to_string()),
        );
        row.push(host.swap_state.name().to_owned());
        row.extend(rates(host.rates));
        row.extend(sample.not_counted.map(|count| count.to_string()));
        row
    });
    csv::rows(rows)
}
