//! Why did a VM wait for memory? Whose shortage it was decides what helps.

use crate::model::breakdown::Breakdown;
use crate::model::evictions::AggressorClass;
use crate::model::figures::{HostFigures, VmFigures};
use crate::summary::SummaryVm;
use crate::summary::evictions::EvictedBy;
use overcommit_ebpf::layout::{Metric, Part};
use serde::{Deserialize, Serialize};

/// Part of the loss, or of the evictions, that makes a cause.
const MOST: f64 = 0.5;
/// Part of its limit that a VM holds, at the least, where the limit is the cause.
const NEAR_LIMIT: f64 = 0.8;
/// Bytes taken below which nobody is to blame.
pub const LEAST_TAKEN: u64 = 1 << 20;
/// Part of the host's memory that is available below which the host is short.
const TIGHT: f64 = 0.1;
/// Age of a guest's report that says something of now, in seconds.
const YOUNG_S: f64 = 30.0;
/// Part of what its balloon left it that a guest has available below which it is starved.
const STARVED: f64 = 0.05;

/// Why a VM fared badly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It needs more than its own memory cgroup may hold.
    OwnLimit,
    /// A cgroup around its own may not hold more, with all that is in it.
    SharedLimit,
    /// It is held back at its cgroup's memory.high.
    MemoryHigh,
    /// The host has too little memory for all.
    HostShort,
    /// Another VM took its pages.
    OtherVm,
    /// A process took its pages.
    OtherProcess,
    /// Its balloon took more than its guest could spare.
    Balloon,
    /// There were too few CPUs.
    Cpu,
    /// Its memory is a file on a disk.
    Disk,
    /// Another process filled its memory: a migration or a snapshot.
    Userfault,
    /// Memory that it touched could not be had.
    NoPage,
    /// Its process failed for another reason.
    Crash,
    /// Its threads waited for each other's changes of the address space.
    Lock,
    /// It touched memory for the first time.
    FirstTouch,
    /// None of these could be shown, or a later version knows it.
    #[serde(other)]
    Unknown,
}

/// Why it waited for memory, and who took its pages, where somebody else did.
pub(super) fn cause(vm: &SummaryVm, host: &HostFigures) -> (Cause, Option<String>) {
    let time = waits(vm);
    if held_back(vm) >= MOST * vm.stall_share() && held_back(vm) > 0.0 {
        (Cause::MemoryHigh, None)
    } else if part(time, Part::Userfault) >= MOST {
        (Cause::Userfault, None)
    } else if part(time, Part::Lock) >= MOST {
        (Cause::Lock, None)
    } else if is_first_touch(vm) {
        (Cause::FirstTouch, None)
    } else if let Some(taken) = taken(vm) {
        of_evictions(vm, taken, host)
    } else {
        (without_evictions(vm, host), None)
    }
}

/// What its waits for memory went into: whole exits for memory tell more than the faults in them,
/// where they are most of what it waited.
fn waits(vm: &SummaryVm) -> Breakdown {
    let waited_ns = vm.stall.as_ref().map_or(0, |stall| stall.waited_ns);
    let whole = vm.stall_time.filter(|time| time.total_ns as f64 >= MOST * waited_ns as f64);
    whole.unwrap_or(vm.fault_time)
}

/// The share of its time that it was held back at memory.high, which is in no fault.
pub(crate) fn held_back(vm: &SummaryVm) -> f64 {
    let vcpu_ns = vm.stall.as_ref().map_or(0, |stall| stall.vcpu_ns);
    sum_ns(vm, Metric::MemoryHigh) as f64 / vcpu_ns.max(1) as f64
}

fn sum_ns(vm: &SummaryVm, of: Metric) -> u64 {
    vm.metric(of).map_or(0, |found| found.sum_ns)
}

/// A part of the time, waits for a CPU left out.
fn part(time: Breakdown, part: Part) -> f64 {
    let all = time.total_ns.saturating_sub(time.of(Part::Runq).unwrap_or(0));
    time.of(part).unwrap_or(0) as f64 / all.max(1) as f64
}

/// Who took most of its pages, if any were taken; `None` inside if nobody took most.
fn taken(vm: &SummaryVm) -> Option<Option<&EvictedBy>> {
    let evictions = vm.evictions.as_ref().filter(|evictions| evictions.bytes >= LEAST_TAKEN)?;
    Some(evictions.by.first().filter(|by| by.share >= MOST))
}

fn of_evictions(
    vm: &SummaryVm,
    most: Option<&EvictedBy>,
    host: &HostFigures,
) -> (Cause, Option<String>) {
    match most {
        Some(by) if by.is_itself && is_at_limit(&vm.memory) => (Cause::OwnLimit, None),
        // It reclaimed for itself, and neither its own limit, the host nor its nodes made it.
        Some(by)
            if by.is_itself
                && short(vm, host) == Cause::Unknown
                && vm.memory.numa_nodes.is_none() =>
        {
            (Cause::SharedLimit, None)
        }
        Some(by) if by.is_itself => (short(vm, host), None),
        Some(EvictedBy { aggressor, .. }) => match aggressor.class {
            AggressorClass::Vm => (Cause::OtherVm, Some(aggressor.name.clone())),
            AggressorClass::Process => (Cause::OtherProcess, Some(aggressor.name.clone())),
            AggressorClass::Kswapd => (Cause::HostShort, None),
            AggressorClass::Damon | AggressorClass::Kernel | AggressorClass::Other => {
                (short(vm, host), None)
            }
        },
        None => (short(vm, host), None),
    }
}

/// Whose shortage it is that a VM reclaims for itself: the host's if that had little left, else
/// that of its cgroup.
fn short(vm: &SummaryVm, host: &HostFigures) -> Cause {
    if is_tight(host) {
        Cause::HostShort
    } else if vm.memory.cgroup_limit_bytes.is_some() {
        Cause::OwnLimit
    } else {
        Cause::Unknown
    }
}

/// Whether most of its faults' time went into memory that it had not had yet: no page had to come
/// back, and none had to be freed.
fn is_first_touch(vm: &SummaryVm) -> bool {
    let minor_ns = sum_ns(vm, Metric::FaultMinor);
    let for_others_ns = sum_ns(vm, Metric::FaultMajor) + sum_ns(vm, Metric::Reclaim);
    minor_ns > 0 && for_others_ns < minor_ns
}

/// Whether it holds about all that its cgroup may.
fn is_at_limit(memory: &VmFigures) -> bool {
    memory
        .cgroup_limit_bytes
        .zip(memory.resident_bytes)
        .is_some_and(|(limit, resident)| resident as f64 >= NEAR_LIMIT * limit as f64)
}

/// Where no page of it was seen to be taken.
fn without_evictions(vm: &SummaryVm, host: &HostFigures) -> Cause {
    let is_swapped = vm.memory.swapped_bytes.is_some_and(|bytes| bytes >= LEAST_TAKEN);
    let read = vm.file_faults.map_or(0, |files| files.read);
    let majors = vm.metric(Metric::FaultMajor).map_or(0, |majors| majors.count);
    if is_swapped && is_at_limit(&vm.memory) {
        Cause::OwnLimit
    } else if is_tight(host) && (is_swapped || sum_ns(vm, Metric::Reclaim) > 0) {
        Cause::HostShort
    } else if !is_swapped && majors > 0 && read.saturating_mul(2) > majors {
        Cause::Disk
    } else {
        Cause::Unknown
    }
}

/// Whether the host had little memory left.
pub fn is_tight(host: &HostFigures) -> bool {
    host.least_available_bytes
        .zip(host.physical_bytes)
        .is_some_and(|(available, physical)| (available as f64) < TIGHT * physical as f64)
}

/// What a balloon took, of how much, and what that leaves its guest, where that is next to nothing
/// and the guest says so of now; in bytes.
pub(super) fn starved(memory: &VmFigures) -> Option<(u64, u64, u64)> {
    let ballooned = memory.ballooned_bytes.filter(|bytes| *bytes > 0)?;
    let configured = memory.configured_bytes?;
    // libvirt does not tell how often the guest reports.
    let is_young = memory.guest_age_s.is_some_and(|age_s| age_s <= YOUNG_S);
    let is_of_now = memory.guest_is_stale.map_or(is_young, |is_stale| !is_stale);
    let left = memory.guest_available_bytes.filter(|_| is_of_now)?;
    let kept = configured.saturating_sub(ballooned);
    ((left as f64) < STARVED * kept as f64).then_some((ballooned, configured, left))
}
