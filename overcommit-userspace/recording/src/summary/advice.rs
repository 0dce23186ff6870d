//! Causes in words, and what to do about each, with a value where one follows from what was seen.

use crate::format::text::{percent, readable_bytes};
use crate::model::figures::{HostFigures, VmFigures};
use crate::model::run::EndedBy;
use crate::summary::SummaryVm;
use crate::summary::cause::{Cause, starved};

/// Advice is rounded up to this.
const STEP: u64 = 16 << 20;

/// The cause, and what to do about it.
pub(super) fn words(
    cause: &Cause,
    by: Option<&str>,
    vm: &SummaryVm,
    host: &HostFigures,
) -> (String, String) {
    let memory = &vm.memory;
    let available = |how: &str| {
        let least = host.least_available_bytes.map(readable_bytes);
        least.map(|least| format!(" ({how} {least} available)")).unwrap_or_default()
    };
    let by = by.unwrap_or("another");
    let (why, advice) = match cause {
        Cause::OwnLimit => {
            let limit =
                memory.cgroup_limit_bytes.map(|limit| format!(" of {}", readable_bytes(limit)));
            let limit = limit.unwrap_or_default();
            let free = available("never less than");
            let why = format!("its cgroup's own limit{limit}, not the host{free}");
            (why, raise(vm))
        }
        Cause::SharedLimit => (
            format!(
                "{}the limit of a parent cgroup, not the host{}",
                // The kernel itself says so of one that it killed.
                if vm.ended_by == Some(EndedBy::OomSharedCgroup) { "" } else { "most likely " },
                available("never less than")
            ),
            "raise that limit (memory.max of the slice), or move a VM out of that cgroup".to_owned(),
        ),
        Cause::MemoryHigh => (
            "the memory.high of its cgroup".to_owned(),
            format!("raise memory.high{}, or give the guest less memory", to(above_limit(memory))),
        ),
        Cause::HostShort => (
            format!("the host is short of memory{}", available("down to")),
            "move a VM to another host, or add memory".to_owned(),
        ),
        Cause::OtherVm => (
            format!("the VM {by} took its pages{}", how_many(vm)),
            format!(
                "limit {by} (memory.high), protect this VM (memory.low{}), or move one of them to \
                 another host",
                of(held(memory))
            ),
        ),
        Cause::OtherProcess => (
            format!("the process {by} took its pages{}", how_many(vm)),
            format!(
                "limit {by} (memory.high), protect this VM (memory.low{}), or run {by} elsewhere",
                of(held(memory))
            ),
        ),
        Cause::Balloon => {
            let (ballooned, configured, left) = starved(memory).unwrap_or_default();
            let size = (configured - ballooned + ballooned / 2).next_multiple_of(STEP);
            (
                format!(
                    "its balloon took {} of its {}; the guest has {} available",
                    readable_bytes(ballooned),
                    readable_bytes(configured),
                    readable_bytes(left)
                ),
                format!(
                    "give some of it back, such as {} in all (virsh setmem, or balloon by QMP)",
                    readable_bytes(size.min(configured))
                ),
            )
        }
        Cause::Cpu => (
            "too few CPUs, or a CPU quota".to_owned(),
            "raise its CPU quota if its cgroup has one (cpu.max), run fewer vCPUs on this host, or \
             move a VM to another"
                .to_owned(),
        ),
        Cause::Disk => (
            "its memory is a file, read from a disk".to_owned(),
            "load the file before the guest runs, or put it on a faster disk".to_owned(),
        ),
        Cause::Userfault => (
            "another process fills its memory: a migration or a snapshot".to_owned(),
            "copy most of it before the guest runs".to_owned(),
        ),
        Cause::NoPage => (
            "memory that it touched could not be provided: no huge page was free, the file system \
             of its memory was full, its file was cut short, or the memory is broken"
                .to_owned(),
            "see dmesg; reserve huge pages for all VMs, or make the file system larger".to_owned(),
        ),
        Cause::Crash => (
            "its own process failed".to_owned(),
            "see its log and coredumpctl".to_owned(),
        ),
        Cause::Lock => (
            "its threads waited for the lock of its address space".to_owned(),
            "see who holds it: record with --slow-faults 1ms".to_owned(),
        ),
        Cause::FirstTouch => (
            "it touched memory for the first time; none was taken from it".to_owned(),
            "if its start matters, preallocate its memory or use huge pages".to_owned(),
        ),
        Cause::Unknown => (
            "not identified".to_owned(),
            "record with --causes; overcommit check says what this host lacks".to_owned(),
        ),
    };
    (why, advice)
}

/// The limit that would do. What a VM wanted that was killed is not known.
fn raise(vm: &SummaryVm) -> String {
    let (memory, limit) = (&vm.memory, vm.memory.cgroup_limit_bytes);
    let to = match (vm.ended_by, limit) {
        (Some(_), None) => String::new(),
        (Some(_), Some(limit)) => format!(" above {}", readable_bytes(limit)),
        (None, _) => to(above_limit(memory)),
    };
    format!(
        "raise its limit (memory.max; hard_limit in libvirt){to}, or give the guest less memory"
    )
}

/// What it holds, if that is more than it may.
fn above_limit(memory: &VmFigures) -> Option<u64> {
    held(memory).filter(|held| memory.cgroup_limit_bytes.is_none_or(|limit| *held > limit))
}

/// All that it holds, in RAM or on swap, rounded up.
fn held(memory: &VmFigures) -> Option<u64> {
    let held = memory.resident_bytes?.saturating_add(memory.swapped_bytes.unwrap_or(0));
    held.checked_next_multiple_of(STEP)
}

fn to(bytes: Option<u64>) -> String {
    bytes.map(|bytes| format!(" to {} or more", readable_bytes(bytes))).unwrap_or_default()
}

fn of(bytes: Option<u64>) -> String {
    bytes.map(|bytes| format!(" of {}", readable_bytes(bytes))).unwrap_or_default()
}

/// What its worst aggressor took of it.
fn how_many(vm: &SummaryVm) -> String {
    let evictions = vm.evictions.as_ref();
    let worst = evictions.and_then(|evictions| Some((evictions.bytes, evictions.by.first()?)));
    worst.map_or_else(String::new, |(bytes, by)| {
        let bytes = readable_bytes((bytes as f64 * by.share) as u64);
        format!(" ({bytes}, {} of what was taken)", percent(by.share))
    })
}
