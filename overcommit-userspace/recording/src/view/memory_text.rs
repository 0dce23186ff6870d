//! The memory of the host and its VMs as people read it: what the guest says beside
//! what the host knows.

use crate::format::text::percent;
use crate::format::text::readable_bytes;
use crate::model::balloon::Source;
use crate::model::figures::{HostFigures, VmFigures};
use crate::model::memory::{Headroom, Range, Source as SetSource};
use crate::model::state::State;
use crate::model::swap::{SwapArea, SwapState};
use crate::summary::SummaryVm;
use crate::summary::cause::is_tight;
use crate::summary::host::{Moved, StateSummary, SummaryHost};
use crate::view::facts::Facts;

/// The host's block. Where working sets are not measured, nothing is said to be short of what
/// they could be at the most. States that were never bad are told in the full text.
pub fn host(text: &mut String, host: &SummaryHost, is_measured: bool, is_full: bool) {
    let is_calm = is_calm(&host.swap) && is_calm(&host.overcommit) && is_calm(&host.balloon);
    let memory = &host.memory;
    let mut facts = Facts::default();
    let is_well = is_calm && host.swap.worst == SwapState::Healthy && !is_tight(memory);
    let verdict = if is_well { ". No shortage" } else { "" };
    facts.add("memory", in_ram(memory).map(|in_ram| in_ram + verdict));
    facts.add("swap areas", host.swap_areas.as_deref().map(swap_areas));
    facts.add("working sets", working_sets(memory, is_measured));
    facts.add("headroom", host.headroom.filter(|_| is_measured).map(moved));
    if is_full || !is_calm {
        facts.add("swap", times(&host.swap).map(|times| times + within_limits(host)));
        facts.add("overcommit", times(&host.overcommit));
        facts.add("balloons", times(&host.balloon));
    }
    facts.write(text, "Host");
}

/// Whether no state but the best was seen, if any.
fn is_calm<S: State>(states: &StateSummary<S>) -> bool {
    // Before the best there is what is not known.
    states.worst.place() <= 1
}

/// That bad states of swap are not the host's own shortage, as far as was seen.
fn within_limits(host: &SummaryHost) -> &'static str {
    if host.swap.worst >= SwapState::Pressure && host.reclaimed_s == Some(0.0) {
        ". The host itself was not seen to reclaim"
    } else {
        ""
    }
}

fn moved(headroom: Moved) -> String {
    let [first, least, last] = [headroom.first, headroom.least, headroom.last].map(self::headroom);
    format!("{first} at the start, {least} at its lowest, {last} at the end")
}

/// What there is, what was left of it, and what VMs were promised.
fn in_ram(memory: &HostFigures) -> Option<String> {
    let physical = memory.physical_bytes?;
    let left = memory.least_available_bytes.map(readable_bytes);
    let left = left.map(|left| format!(", never less than {left} available")).unwrap_or_default();
    // Without a VM at the end nothing is said of that.
    let configured = memory.configured_bytes.filter(|configured| *configured > 0);
    let configured = configured.map(|configured| {
        let ratio = configured as f64 / physical.max(1) as f64;
        let times = if ratio > 1.0 { format!(", {ratio:.2} times that") } else { String::new() };
        format!("; VMs are configured with {}{times}", readable_bytes(configured))
    });
    Some(format!("{} of RAM{left}{}", readable_bytes(physical), configured.unwrap_or_default()))
}

/// Where to, and whether it takes a disk.
fn swap_areas(areas: &[SwapArea]) -> String {
    let areas: Vec<String> = areas.iter().map(swap_area).collect();
    if areas.is_empty() { "none: nothing can be swapped".to_owned() } else { areas.join(", ") }
}

/// Its size and name; whether it is RAM itself, and thus fast.
pub fn swap_area(area: &SwapArea) -> String {
    let kind = if area.name.starts_with("zram") { " (compressed RAM)" } else { "" };
    format!("{} on {}{kind}", readable_bytes(area.size_bytes), area.name)
}

/// What is used and left.
fn working_sets(memory: &HostFigures, is_measured: bool) -> Option<String> {
    let (sets, capacity) = (memory.working_sets_bytes?, memory.capacity_bytes?);
    if sets.upper == 0 {
        return None;
    }
    let left = memory.headroom_bytes?;
    let (sets, capacity) = (range(sets), readable_bytes(capacity));
    if left.lower < 0 && left.upper >= 0 && !is_measured {
        return Some(format!("not measured: {sets}, of the {capacity} available to VMs"));
    }
    let tail = match (u64::try_from(left.lower), memory.can_grow_bytes) {
        (Err(_), _) if left.upper < 0 => format!(": {} short", missing(left)),
        (Err(_), _) => format!(": up to {} short", signed(left.lower.saturating_neg())),
        (Ok(_), None) => String::new(),
        (Ok(lower), Some(growth)) if growth <= lower => {
            "; the VMs with the most room to grow (up to three) would fit even at full size"
                .to_owned()
        }
        (Ok(lower), Some(growth)) => format!(
            "; the VMs with the most room to grow (up to three) can take {} more before the host \
             swaps",
            readable_bytes(lower.min(growth))
        ),
    };
    Some(format!("{sets} of the {capacity} available to VMs{tail}"))
}

/// What a VM holds and needs, as the host sees it and as its guest does.
pub fn add(facts: &mut Facts, vm: &SummaryVm) {
    let memory = &vm.memory;
    facts.add("holds", holds(memory));
    facts.add("balloon", ballooned(memory));
    facts.add("guest", guest(memory));
    facts.add("needs", working_set(memory));
    facts.add("limit", cgroup(memory));
    facts.add("NUMA nodes", numa(memory));
}

/// How long a VM swapped so that it hurt.
pub fn hurt(vm: &SummaryVm) -> Option<String> {
    times(&vm.swap).filter(|_| vm.swap.worst >= SwapState::Pressure)
}

fn guest(memory: &VmFigures) -> Option<String> {
    let available = readable_bytes(memory.guest_available_bytes?);
    let age = memory.guest_age_s?;
    let stale = if memory.guest_is_stale == Some(true) { ", stale" } else { "" };
    Some(format!("reports {available} available ({age:.0} s ago{stale})"))
}

fn holds(memory: &VmFigures) -> Option<String> {
    let resident = memory.resident_bytes?;
    let swapped = memory.swapped_bytes.filter(|swapped| *swapped > 0);
    let swapped = swapped.map(|swapped| {
        let share = swapped as f64 / (swapped + resident).max(1) as f64;
        format!(", {} on swap ({})", readable_bytes(swapped), percent(share))
    });
    Some(format!("{} in RAM{}", readable_bytes(resident), swapped.unwrap_or_default()))
}

fn ballooned(memory: &VmFigures) -> Option<String> {
    let (ballooned, source) = (memory.ballooned_bytes?, memory.balloon_source?);
    let least = if source == Source::Discards { "at least " } else { "" };
    let of = memory.configured_bytes.map(|all| format!(" of {}", readable_bytes(all)));
    (ballooned > 0)
        .then(|| format!("{least}{}{} taken", readable_bytes(ballooned), of.unwrap_or_default()))
}

fn working_set(memory: &VmFigures) -> Option<String> {
    let (set, source) = (memory.working_set_bytes?, memory.working_set_source?);
    let how = match source {
        SetSource::Bounds => "not measured: bounds".to_owned(),
        measured => format!("measured by {}", measured.name()),
    };
    let cost = memory.working_set_cost_share.filter(|cost| *cost > 0.0);
    let cost = cost.map(|cost| format!(", {} of a CPU", percent(cost))).unwrap_or_default();
    Some(format!("{} ({how}{cost})", range(set)))
}

fn cgroup(memory: &VmFigures) -> Option<String> {
    let limit = readable_bytes(memory.cgroup_limit_bytes?);
    Some(format!("{limit} in its cgroup: {}", room(memory.cgroup_headroom_bytes?)))
}

fn numa(memory: &VmFigures) -> Option<String> {
    Some(format!("{}: {}", memory.numa_nodes.as_ref()?, room(memory.numa_headroom_bytes?)))
}

/// What somebody's share of memory leaves, or lacks.
fn room(left: Headroom) -> String {
    match (left.lower < 0, left.upper < 0) {
        (_, true) => format!("{} too small", missing(left)),
        (true, false) => format!("may be up to {} too small", signed(left.lower.saturating_neg())),
        (false, false) => format!("leaves {}", headroom(left)),
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
fn times<S: State>(states: &StateSummary<S>) -> Option<String> {
    let known = states.seconds.iter().rev().filter(|(state, _)| **state != S::default());
    let each: Vec<String> =
        known.map(|(state, seconds)| format!("{} for {seconds:.1} s", state.name())).collect();
    (!each.is_empty()).then(|| each.join(", "))
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
    use crate::model::run::Run;
    use crate::summary::host::HostTotals;
    use crate::view::style::plain;

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
            "54.0 GiB; the VMs with the most room to grow (up to three) can take 10.0 GiB more \
             before the host swaps"
        );
        let fits = line((54, 54), Some(9), false);
        assert!(fits.ends_with("fit even at full size"), "{fits}");
        assert_eq!(line((54, 54), None, true), "54.0 GiB");
    }

    #[test]
    fn what_is_not_measured_is_not_short() {
        let bounds = "not measured: 2.0 GiB to 96.0 GiB,";
        assert_eq!(line((2, 96), Some(30), false), bounds);
        let measured = "2.0 GiB to 96.0 GiB: up to 32.0 GiB short";
        assert_eq!(line((2, 96), Some(30), true), measured);
        let short = "70.0 GiB to 96.0 GiB: 6.0 GiB to 32.0 GiB short";
        assert_eq!(line((70, 96), None, false), short);
    }

    #[test]
    fn what_is_configured() {
        let memory = |configured| HostFigures {
            configured_bytes: Some(configured * GIB),
            physical_bytes: Some(64 * GIB),
            ..HostFigures::default()
        };
        let said = |configured| in_ram(&memory(configured)).unwrap();
        assert_eq!(said(96), "64.0 GiB of RAM; VMs are configured with 96.0 GiB, 1.50 times that");
        assert_eq!(said(32), "64.0 GiB of RAM; VMs are configured with 32.0 GiB");
        let least_available_bytes = Some(9 * GIB);
        let left = in_ram(&HostFigures { least_available_bytes, ..memory(32) }).unwrap();
        assert!(
            left.starts_with("64.0 GiB of RAM, never less than 9.0 GiB available; VMs"),
            "{left}"
        );
    }

    #[test]
    fn swap_that_takes_no_disk_is_said_to_be_ram() {
        let area =
            |name: &str| SwapArea { name: name.to_owned(), size_bytes: 2 * GIB, used_bytes: 0 };
        let both = [area("zram0"), area("nvme0n1p3")];
        let said = "2.0 GiB on zram0 (compressed RAM), 2.0 GiB on nvme0n1p3";
        assert_eq!(swap_areas(&both), said);
        assert_eq!(swap_areas(&[]), "none: nothing can be swapped");
    }

    #[test]
    fn a_host_that_was_never_short_is_said_to_be_so() {
        let memory = HostFigures { physical_bytes: Some(64 * GIB), ..HostFigures::default() };
        let nothing = || HostTotals::default().of(&Run::default());
        let said = |state: SwapState, is_full| {
            let seconds = [(SwapState::Unknown, 4.0), (state, 9.0)].into();
            let swap = StateSummary { worst: state, seconds };
            let host = SummaryHost { memory: memory.clone(), swap, ..nothing() };
            let mut text = String::new();
            super::host(&mut text, &host, true, is_full);
            plain(&text)
        };
        assert_eq!(nothing().swap.worst, SwapState::Unknown);
        let calm = "\nHost\n  memory  64.0 GiB of RAM. No shortage\n";
        assert_eq!(said(SwapState::Healthy, false), calm);
        assert_eq!(said(SwapState::Healthy, true), format!("{calm}  swap    healthy for 9.0 s\n"));
        let unknown = "\nHost\n  memory  64.0 GiB of RAM\n";
        assert_eq!(
            said(SwapState::Unknown, false),
            unknown,
            "what was not seen is not said to be none"
        );
        let short = "\nHost\n  memory  64.0 GiB of RAM\n  swap    thrashing for 9.0 s\n";
        assert_eq!(said(SwapState::Thrashing, false), short);
        let swap = StateSummary::of(&[(SwapState::Thrashing, 9_000_000_000)].into());
        let within = SummaryHost { swap, reclaimed_s: Some(0.0), ..nothing() };
        let mut text = String::new();
        host(&mut text, &within, true, false);
        let limits = "thrashing for 9.0 s. The host itself was not seen to reclaim";
        let words: Vec<&str> = text.split_whitespace().collect();
        assert!(words.join(" ").contains(limits), "{text}");
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
        assert_eq!(guest(&memory).unwrap(), "reports 1.5 GiB available (9 s ago, stale)");
        assert_eq!(holds(&memory).unwrap(), "62.0 MiB in RAM, 38.0 MiB on swap (38.0 %)");
        let limited = VmFigures {
            cgroup_limit_bytes: Some(GIB),
            cgroup_headroom_bytes: Some(Headroom { lower: -(512 << 20), upper: 128 << 20 }),
            ..VmFigures::default()
        };
        let said = "1.0 GiB in its cgroup: may be up to 512.0 MiB too small";
        assert_eq!(cgroup(&limited).unwrap(), said);
        let limit =
            |lower: i64, upper: i64| room(Headroom { lower: lower << 20, upper: upper << 20 });
        assert_eq!(limit(-128, -3), "3.0 MiB to 128.0 MiB too small");
        assert_eq!(limit(3, 128), "leaves 3.0 MiB to 128.0 MiB");
        assert_eq!(cgroup(&memory), None);
        let bound = VmFigures { numa_nodes: Some("1".to_owned()), ..limited.clone() };
        assert_eq!(numa(&bound), None);
        let bound = VmFigures { numa_headroom_bytes: limited.cgroup_headroom_bytes, ..bound };
        let said = "1: may be up to 512.0 MiB too small";
        assert_eq!(numa(&bound).unwrap(), said);
        assert_eq!(ballooned(&memory).unwrap(), "2.0 GiB of 4.0 GiB taken");
    }
}
