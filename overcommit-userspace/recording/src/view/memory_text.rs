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

/// The name that each kind of state has while it is not known.
const UNKNOWN: &str = "unknown";

/// The host's lines. Where working sets are not measured, nothing is said to be short of what
/// they could be at the most.
pub fn host(text: &mut String, host: &SummaryHost, is_measured: bool) {
    let states =
        [("swap", &host.swap), ("overcommit", &host.overcommit), ("balloons", &host.balloon)];
    let states: Vec<String> =
        states.into_iter().filter_map(|(what, states)| times(what, states)).collect();
    if !states.is_empty() {
        let _ = writeln!(text, "Host: {}.", states.join("; "));
    }
    let memory = &host.memory;
    let facts: Vec<String> =
        [configured(memory), working_sets(memory, is_measured)].into_iter().flatten().collect();
    if !facts.is_empty() {
        let _ = writeln!(text, "Host: {}", facts.join(" "));
    }
    if let Some(Moved { first, least, last }) = host.headroom.filter(|_| is_measured) {
        let [first, least, last] = [first, least, last].map(headroom);
        let _ = writeln!(
            text,
            "Host: headroom {first} at the start, {least} at its lowest, {last} at the end."
        );
    }
}

fn configured(memory: &HostFigures) -> Option<String> {
    let (configured, physical) = (memory.configured_bytes?, memory.physical_bytes?);
    let ratio = configured as f64 / physical.max(1) as f64;
    let [configured, physical] = [configured, physical].map(readable_bytes);
    Some(if ratio > 1.0 {
        format!("{configured} configured, {ratio:.2} times the {physical} of RAM.")
    } else {
        format!("{configured} configured, of {physical} of RAM.")
    })
}

/// What is used and left.
fn working_sets(memory: &HostFigures, is_measured: bool) -> Option<String> {
    let (sets, capacity) = (memory.working_sets_bytes?, memory.capacity_bytes?);
    let left = memory.headroom_bytes?;
    let (sets, capacity) = (range(sets), readable_bytes(capacity));
    if left.lower < 0 && left.upper >= 0 && !is_measured {
        return Some(format!(
            "Working sets are not measured: {sets}, of the {capacity} available to VMs."
        ));
    }
    let tail = match (u64::try_from(left.lower), memory.can_grow_bytes) {
        (Err(_), _) if left.upper < 0 => format!(": {} short", missing(left)),
        (Err(_), _) => format!(": up to {} short", signed(left.lower.saturating_neg())),
        (Ok(_), None) => String::new(),
        (Ok(lower), Some(growth)) if growth <= lower => {
            "; the three that can grow most cannot exceed RAM even fully grown".to_owned()
        }
        (Ok(lower), Some(growth)) => format!(
            "; the three that can grow most may take {} more before swapping",
            readable_bytes(lower.min(growth))
        ),
    };
    Some(format!("Working sets {sets} of the {capacity} available to VMs{tail}."))
}

/// A VM's lines.
pub fn vm(text: &mut String, vm: &SummaryVm, name: &str) {
    let hurts = [SwapState::Pressure, SwapState::Thrashing].map(SwapState::name);
    let times = times("swap", &vm.swap).filter(|_| hurts.contains(&vm.swap.worst));
    if let Some(times) = times {
        let _ = writeln!(text, "{name}: {times}.");
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
    let stale = if memory.guest_is_stale == Some(true) { ", stale" } else { "" };
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
    let limit = format!("its cgroup's limit of {limit}");
    Some(room(&limit, memory.cgroup_headroom_bytes?))
}

fn numa(memory: &VmFigures) -> Option<String> {
    let nodes = format!("the memory of its NUMA nodes ({})", memory.numa_nodes.as_ref()?);
    Some(room(&nodes, memory.numa_headroom_bytes?))
}

/// What somebody's share of memory leaves, or lacks.
fn room(of: &str, left: Headroom) -> String {
    match (left.lower < 0, left.upper < 0) {
        (_, true) => format!("{of} is {} too small", missing(left)),
        (true, false) => {
            format!("{of} may be up to {} too small", signed(left.lower.saturating_neg()))
        }
        (false, false) => format!("{of} leaves {}", headroom(left)),
    }
}

/// What is missing where all of it is below zero.
fn missing(left: Headroom) -> String {
    headroom(Headroom { lower: left.upper.saturating_neg(), upper: left.lower.saturating_neg() })
}

fn headroom(left: Headroom) -> String {
    if left.lower == left.upper {
        signed(left.upper)
    } else {
        format!("{} to {}", signed(left.lower), signed(left.upper))
    }
}

/// Time in each state, the worst first; `None` before any was known. While it begins no state is
/// known, which is no finding.
fn times(what: &str, states: &StateSummary) -> Option<String> {
    let known = states.seconds.iter().rev().filter(|(state, _)| *state != UNKNOWN);
    let each: Vec<String> =
        known.map(|(state, seconds)| format!("{state} for {seconds:.1} s")).collect();
    (!each.is_empty()).then(|| format!("{what} {}", each.join(", ")))
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

    fn line(need: (u64, u64), growth: Option<u64>, is_measured: bool) -> String {
        let left = |need: u64| (64 - need as i64) * GIB as i64;
        let memory = HostFigures {
            capacity_bytes: Some(64 * GIB),
            working_sets_bytes: Some(Range { lower: need.0 * GIB, upper: need.1 * GIB }),
            headroom_bytes: Some(Headroom { lower: left(need.1), upper: left(need.0) }),
            can_grow_bytes: growth.map(|growth| growth * GIB),
            ..HostFigures::default()
        };
        let said = working_sets(&memory, is_measured).unwrap();
        said.replace(" of the 64.0 GiB available to VMs", "")
    }

    #[test]
    fn headroom_is_what_the_three_may_take() {
        assert_eq!(
            line((54, 54), Some(30), true),
            "Working sets 54.0 GiB; the three that can grow most may take 10.0 GiB more before \
             swapping."
        );
        let fits = line((54, 54), Some(9), false);
        assert!(fits.ends_with("cannot exceed RAM even fully grown."), "{fits}");
        assert_eq!(line((54, 54), None, true), "Working sets 54.0 GiB.");
    }

    #[test]
    fn what_is_not_measured_is_not_short() {
        let bounds = "Working sets are not measured: 2.0 GiB to 96.0 GiB,.";
        assert_eq!(line((2, 96), Some(30), false), bounds);
        let measured = "Working sets 2.0 GiB to 96.0 GiB: up to 32.0 GiB short.";
        assert_eq!(line((2, 96), Some(30), true), measured);
        let short = "Working sets 70.0 GiB to 96.0 GiB: 6.0 GiB to 32.0 GiB short.";
        assert_eq!(line((70, 96), None, false), short);
    }

    #[test]
    fn what_is_configured() {
        let memory = |configured| HostFigures {
            configured_bytes: Some(configured * GIB),
            physical_bytes: Some(64 * GIB),
            ..HostFigures::default()
        };
        let said = |configured| super::configured(&memory(configured)).unwrap();
        assert_eq!(said(96), "96.0 GiB configured, 1.50 times the 64.0 GiB of RAM.");
        assert_eq!(said(32), "32.0 GiB configured, of 64.0 GiB of RAM.");
        // Each line ends, whatever is known.
        let host =
            SummaryHost { memory: memory(96), ..crate::summary::host::HostTotals::default().of() };
        let mut text = String::new();
        super::host(&mut text, &host, true);
        assert_eq!(text, "Host: 96.0 GiB configured, 1.50 times the 64.0 GiB of RAM.\n");
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
        let said = "its cgroup's limit of 1.0 GiB may be up to 512.0 MiB too small";
        assert_eq!(cgroup(&limited).unwrap(), said);
        let limit = |lower: i64, upper: i64| {
            room("its limit", Headroom { lower: lower << 20, upper: upper << 20 })
        };
        assert_eq!(limit(-128, -3), "its limit is 3.0 MiB to 128.0 MiB too small");
        assert_eq!(limit(3, 128), "its limit leaves 3.0 MiB to 128.0 MiB");
        assert_eq!(cgroup(&memory), None);
        let bound = VmFigures { numa_nodes: Some("1".to_owned()), ..limited.clone() };
        assert_eq!(numa(&bound), None);
        let bound = VmFigures { numa_headroom_bytes: limited.cgroup_headroom_bytes, ..bound };
        let said = "the memory of its NUMA nodes (1) may be up to 512.0 MiB too small";
        assert_eq!(numa(&bound).unwrap(), said);
        assert_eq!(ballooned(&memory).unwrap(), "2.0 GiB of 4.0 GiB ballooned");
    }
}
