//! vms.csv: one row an interval and VM.

use crate::format::csv;
use crate::format::csv::optional;
use crate::host::balloon::qmp::POLL_SECONDS;
use crate::model::balloon::GuestMemory;
use crate::model::coverage::{MetricCoverage, can_split_stalls, is_part_seen};
use crate::model::interval::{Interval, VmHostSample};
use crate::model::memory::WorkingSet;
use crate::model::run::RunVm;
use crate::model::state::State;
use crate::recording::host::rates;
use crate::recording::intervals::{identity, place};
use anyhow::Result;
use overcommit_ebpf::layout::{Loss, Part, Taker};

/// Age of a guest's report from which it says nothing of now, in seconds.
const STALE_S: f64 = 2.0 * POLL_SECONDS as f64 + 1.0;

/// The columns before those of parts and causes. A name keeps its meaning for good.
const COLUMNS: [&str; 50] = [
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
    "configured_bytes",
    "current_bytes",
    "ballooned_bytes",
    "balloon_source",
    "resident_bytes",
    "swapped_bytes",
    "hugetlb_bytes",
    "guest_total_bytes",
    "guest_available_bytes",
    "guest_free_bytes",
    "guest_age_s",
    "guest_is_stale",
    "working_set_lower_bytes",
    "working_set_upper_bytes",
    "working_set_source",
    "working_set_window_s",
    "working_set_cost_share",
    "cgroup_limit_bytes",
    "cgroup_headroom_lower_bytes",
    "cgroup_headroom_upper_bytes",
    "numa_nodes",
    "numa_headroom_lower_bytes",
    "numa_headroom_upper_bytes",
    "fault_ns",
];

/// What the time of faults, and that of the windows of `stall.memory`, is called: their
/// columns begin so.
pub const FAULT: &str = "fault";
/// See [`FAULT`].
pub const STALL_MEMORY: &str = "stall_memory";
/// The column of the windows' time outside faults.
pub const KVM: &str = "stall_memory_kvm_ns";

/// All columns: more for each [`Part`] of the faults' time and the windows', and one for
/// each cause of [`Loss`].
pub fn columns() -> Vec<String> {
    let faults = Part::ALL.map(|part| of_part(FAULT, part));
    let windows = Part::ALL.map(|part| of_part(STALL_MEMORY, part));
    let columns = COLUMNS.into_iter().map(str::to_owned).chain(faults);
    let columns = columns.chain([all(STALL_MEMORY)]).chain(windows).chain([KVM.to_owned()]);
    columns.chain(Loss::ALL.map(lost)).collect()
}

/// The column of all the time of [`FAULT`] or [`STALL_MEMORY`].
pub fn all(what: &str) -> String {
    format!("{what}_ns")
}

/// The column of a part of it.
pub fn of_part(what: &str, part: Part) -> String {
    format!("{what}_{}_ns", part.name())
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

/// The interval's rows. Of what is absent by `coverage` nothing is said.
///
/// # Errors
/// See [`csv::rows`].
pub fn rows(interval: &Interval, vms: &[RunVm], coverage: &[MetricCoverage]) -> Result<Vec<u8>> {
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
        row.push(host.swap.state.name().to_owned());
        row.extend(rates(host.swap.rates));
        row.extend(memory(host));
        row.extend(guest(host.balloon.and_then(|balloon| balloon.guest), interval));
        row.extend(working_set(host.working_set));
        row.push(optional(host.swap.limit));
        let headroom = host.cgroup_headroom();
        row.push(optional(headroom.map(|headroom| headroom.lower)));
        row.push(optional(headroom.map(|headroom| headroom.upper)));
        row.push(optional(host.numa.map(|(nodes, _)| nodes)));
        let headroom = host.numa.and_then(|(_, headroom)| headroom);
        row.push(optional(headroom.map(|headroom| headroom.lower)));
        row.push(optional(headroom.map(|headroom| headroom.upper)));
        let is_seen = |part| is_part_seen(coverage, part);
        let time = sample.fault_time(is_seen);
        row.push(time.total_ns.to_string());
        row.extend(time.parts_ns.map(optional));
        let time = sample.stall_time(is_seen).filter(|_| can_split_stalls(coverage));
        row.push(optional(time.map(|time| time.total_ns)));
        row.extend(time.map_or([None; Part::COUNT], |time| time.parts_ns).map(optional));
        row.push(optional(time.and_then(|time| time.kvm_ns)));
        row.extend(sample.not_counted.map(|count| count.to_string()));
        row
    });
    csv::rows(rows)
}

fn memory(host: &VmHostSample) -> [String; 7] {
    let balloon = host.balloon;
    let memory = host.memory;
    [
        optional(host.configured),
        optional(balloon.and_then(|balloon| balloon.current)),
        optional(balloon.map(|balloon| balloon.ballooned)),
        optional(balloon.map(|balloon| balloon.source.name())),
        optional(memory.map(|memory| memory.resident)),
        optional(memory.map(|memory| memory.swapped)),
        optional(memory.map(|memory| memory.hugetlb)),
    ]
}

/// What the guest says, and how long ago it said so at the interval's end.
fn guest(guest: Option<GuestMemory>, interval: &Interval) -> [String; 5] {
    let end_s = (interval.start_us + interval.length_ns / 1_000) as f64 / 1e6;
    let age_s = guest.map(|guest| (end_s - guest.updated_unix_s as f64).max(0.0));
    [
        optional(guest.and_then(|guest| guest.total)),
        optional(guest.and_then(|guest| guest.available)),
        optional(guest.and_then(|guest| guest.free)),
        optional(age_s.map(|age| format!("{age:.1}"))),
        optional(age_s.map(|age| age > STALE_S)),
    ]
}

fn working_set(set: Option<WorkingSet>) -> [String; 5] {
    [
        optional(set.map(|set| set.range.lower)),
        optional(set.map(|set| set.range.upper)),
        optional(set.map(|set| set.source.name())),
        optional(set.map(|set| format!("{:.3}", set.window_s))),
        optional(set.map(|set| format!("{:.6}", set.cost))),
    ]
}
