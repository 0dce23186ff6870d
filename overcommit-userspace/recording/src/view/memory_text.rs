//! The memory of the host and its VMs as people read it: what the guest says beside
//! what the host knows.

use crate::format::text::percent;
use crate::format::text::readable_bytes;
use crate::model::balloon::Source;
use crate::model::figures::{HostFigures, VmFigures};
use crate::model::memory::{Headroom, Range};
use crate::model::state::State;
use crate::model::swap::SwapState;
use crate::summary::SummaryVm;
use crate::summary::host::{Moved, StateSummary, SummaryHost};
use crate::view::sentence;
use std::fmt::Write;

/// The host's lines.
pub fn host(text: &mut String, host: &SummaryHost) {
    let states =
        [("swap", &host.swap), ("overcommit", &host.overcommit), ("balloons", &host.balloon)];
    let states = states.into_iter().filter(|(_, states)| !states.seconds.is_empty());
    let states: Vec<String> = states.map(|(what, states)| times(what, states)).collect();
    if !states.is_empty() {
        let _ = writeln!(text, "Host: {}.", states.join("; "));
    }
    let _ = host_memory(text, &host.memory);
    if let Some(Moved { first, least, last }) = host.headroom {
        let [first, least, last] = [first, least, last].map(|left| signed(left.lower));
        let _ = writeln!(
            text,
            "Host: headroom {first} at the start, {least} at the least, {last} at the end."
        );
    }
}

/// What is configured, used and left; nothing of what is not known.
fn host_memory(text: &mut String, memory: &HostFigures) -> Option<()> {
    let physical = memory.physical_bytes?;
    if let Some(configured) = memory.configured_bytes {
        let ratio = configured as f64 / physical.max(1) as f64;
        let _ = write!(
            text,
            "Host: {} configured, {ratio:.2} × the {} that there are. ",
            readable_bytes(configured),
            readable_bytes(physical)
        );
    }
    let (sets, capacity) = (memory.working_sets_bytes?, memory.capacity_bytes?);
    let _ = write!(text, "Working sets {} of {}", range(sets), readable_bytes(capacity));
    let (left, growth) = (memory.headroom_bytes?.lower, memory.can_grow_bytes?);
    let _ = match u64::try_from(left) {
        Err(_) => writeln!(text, ": {} more than there is.", readable_bytes(left.unsigned_abs())),
        Ok(left) if growth <= left => {
            writeln!(text, "; the three that can grow most cannot exceed RAM even fully grown.")
        }
        Ok(left) => writeln!(
            text,
            "; the three that can grow most may take {} more before swapping.",
            readable_bytes(left.min(growth))
        ),
    };
    Some(())
}

/// A VM's lines.
pub fn vm(text: &mut String, vm: &SummaryVm, name: &str) {
    if vm.swap.worst == SwapState::Pressure.name() || vm.swap.worst == SwapState::Thrashing.name() {
        let _ = writeln!(text, "{name}: {}.", times("swap", &vm.swap));
    }
    if let Some(said) = sentence::of(vm) {
        let _ = writeln!(text, "{name}: {said}.");
    }
    let memory = &vm.memory;
    let facts: Vec<String> =
        [swapped(memory), ballooned(memory), working_set(memory), cgroup(memory), numa(memory)]
            .into_iter()
            .flatten()
            .collect();
    let Some(resident) = memory.resident_bytes else { return };
    let guest = guest(memory).map(|says| format!("guest: {says}; host: ")).unwrap_or_default();
    let facts = if facts.is_empty() { String::new() } else { format!(", {}", facts.join(", ")) };
    let _ = writeln!(text, "{name}: {guest}{} resident{facts}.", readable_bytes(resident));
}

fn guest(memory: &VmFigures) -> Option<String> {
    let available = readable_bytes(memory.guest_available_bytes?);
    let age = memory.guest_age_s?;
    let stale = if memory.guest_is_stale? { ", stale" } else { "" };
    Some(format!("{available} available ({age:.0} s ago{stale})"))
}

fn swapped(memory: &VmFigures) -> Option<String> {
    let (swapped, resident) = (memory.swapped_bytes?, memory.resident_bytes?);
    let share = swapped as f64 / (swapped + resident).max(1) as f64;
    (swapped > 0).then(|| format!("{} of it on swap", percent(share)))
}

fn ballooned(memory: &VmFigures) -> Option<String> {
    let (ballooned, source) = (memory.ballooned_bytes?, memory.balloon_source?);
    let least = if source == Source::Discards { "at least " } else { "" };
    let of = memory.configured_bytes.map(|all| format!(" of {}", readable_bytes(all)));
    (ballooned > 0).then(|| {
        format!("{least}{}{} ballooned", readable_bytes(ballooned), of.unwrap_or_default())
    })
}

fn working_set(memory: &VmFigures) -> Option<String> {
    let (set, source) = (memory.working_set_bytes?, memory.working_set_source?.name());
    let cost = memory.working_set_cost_share.filter(|cost| *cost > 0.0);
    let cost = cost.map(|cost| format!(", {} of a CPU", percent(cost))).unwrap_or_default();
    Some(format!("working set {} ({source}{cost})", range(set)))
}

fn cgroup(memory: &VmFigures) -> Option<String> {
    let limit = readable_bytes(memory.cgroup_limit_bytes?);
    let left = headroom(memory.cgroup_headroom_bytes?);
    Some(format!("which leaves {left} of the {limit} that its cgroup may hold"))
}

fn numa(memory: &VmFigures) -> Option<String> {
    let left = headroom(memory.numa_headroom_bytes?);
    Some(format!(
        "{left} left on the NUMA nodes that it is bound to ({})",
        memory.numa_nodes.as_ref()?
    ))
}

fn headroom(left: Headroom) -> String {
    if left.lower == left.upper {
        signed(left.upper)
    } else {
        format!("{} to {}", signed(left.lower), signed(left.upper))
    }
}

/// Time in each state, the worst first.
fn times(what: &str, states: &StateSummary) -> String {
    let each = states.seconds.iter().rev();
    let each: Vec<String> =
        each.map(|(state, seconds)| format!("{state} for {seconds:.1} s")).collect();
    format!("{what} {}", each.join(", "))
}

fn range(range: Range) -> String {
    let (lower, upper) = (readable_bytes(range.lower), readable_bytes(range.upper));
    if lower == upper { upper } else { format!("{lower} to {upper}") }
}

fn signed(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    format!("{sign}{}", readable_bytes(bytes.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn line(need: u64, growth: u64) -> String {
        let left = (64 - need) as i64 * GIB as i64;
        let memory = HostFigures {
            configured_bytes: Some(96 * GIB),
            physical_bytes: Some(64 * GIB),
            capacity_bytes: Some(64 * GIB),
            working_sets_bytes: Some(Range { lower: need * GIB, upper: need * GIB }),
            headroom_bytes: Some(Headroom { lower: left, upper: left }),
            can_grow_bytes: Some(growth * GIB),
            ballooned_bytes: None,
        };
        let mut text = String::new();
        host_memory(&mut text, &memory).unwrap();
        text
    }

    #[test]
    fn headroom_is_what_the_three_may_take() {
        assert_eq!(
            line(54, 30),
            "Host: 96.0 GiB configured, 1.50 × the 64.0 GiB that there are. Working sets 54.0 GiB \
             of 64.0 GiB; the three that can grow most may take 10.0 GiB more before swapping.\n"
        );
        assert!(line(54, 9).ends_with("cannot exceed RAM even fully grown.\n"));
    }

    #[test]
    fn the_guest_beside_the_host() {
        let memory = VmFigures {
            configured_bytes: Some(4 * GIB),
            resident_bytes: Some(62 << 20),
            swapped_bytes: Some(38 << 20),
            ballooned_bytes: Some(2 * GIB),
            balloon_source: Some(Source::Qmp),
            guest_available_bytes: Some(3 * GIB / 2),
            guest_age_s: Some(9.0),
            guest_is_stale: Some(true),
            ..VmFigures::default()
        };
        assert_eq!(guest(&memory).unwrap(), "1.5 GiB available (9 s ago, stale)");
        assert_eq!(swapped(&memory).unwrap(), "38.0 % of it on swap");
        let limited = VmFigures {
            cgroup_limit_bytes: Some(GIB),
            cgroup_headroom_bytes: Some(Headroom { lower: -(512 << 20), upper: 128 << 20 }),
            ..VmFigures::default()
        };
        let said = "which leaves -512.0 MiB to 128.0 MiB of the 1.0 GiB that its cgroup may hold";
        assert_eq!(cgroup(&limited).unwrap(), said);
        assert_eq!(cgroup(&memory), None);
        let bound = VmFigures { numa_nodes: Some("1".to_owned()), ..limited.clone() };
        assert_eq!(numa(&bound), None);
        let bound = VmFigures { numa_headroom_bytes: limited.cgroup_headroom_bytes, ..bound };
        let said = "-512.0 MiB to 128.0 MiB left on the NUMA nodes that it is bound to (1)";
        assert_eq!(numa(&bound).unwrap(), said);
        assert_eq!(ballooned(&memory).unwrap(), "2.0 GiB of 4.0 GiB ballooned");
    }
}
