//! What is told of a VM below the table: why it fared so, and what of it was not seen.

use crate::format::text::{percent, readable};
use crate::model::coverage::{Coverage, Seen};
use crate::model::start::{StartFaults, StartPhase};
use crate::summary::SummaryVm;
use crate::view::facts::Facts;
use crate::view::{losses, memory_text};
use overcommit_ebpf::layout::Loss;
use std::collections::BTreeMap;

/// How much is told of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Told {
    /// What was not seen or counted.
    Losses,
    /// That, and why it fared as it did.
    Why,
    /// That, and whatever else is known.
    All,
}

/// The VM's block; nothing of one of which there is nothing to tell.
pub fn block(text: &mut String, vm: &SummaryVm, name: &str, told: Told) {
    let mut facts = Facts::default();
    if told >= Told::Why {
        losses::add(&mut facts, vm);
        facts.add("swap", memory_text::hurt(vm));
        memory_text::add(&mut facts, vm);
        facts.add("no evictions", vm.evictions_absent.clone());
    }
    if told == Told::All {
        sources(&mut facts, vm);
        facts.add("no exits", vm.exits_absent.clone());
    }
    facts.add("not seen", not_seen(&[vm]));
    facts.add("hidden", vm.faults_hidden.clone());
    facts.add("not counted", not_counted(&[vm]));
    facts.write(text, name);
}

/// Where its pages came from, and who else touched them.
fn sources(facts: &mut Facts, vm: &SummaryVm) {
    let swapins = vm.swapins.as_ref().and_then(|swapins| {
        let cached = [("the swap cache", swapins.from_cache), ("zswap", swapins.from_zswap)];
        let devices = swapins.from_device.iter().map(|(name, count)| (name.as_str(), *count));
        shares(&cached.into_iter().chain(devices).collect::<Vec<_>>())
    });
    facts.add("swap-ins", swapins);
    let files = vm.file_faults;
    let files = files.and_then(|of| shares(&[("the page cache", of.cached), ("a disk", of.read)]));
    facts.add("files", files);
    facts.add("start", vm.start.as_deref().and_then(started));
    facts.add("unmapped", vm.invalidations.as_ref().and_then(unmapped));
    let by_others = (vm.faults_by_others > 0)
        .then(|| format!("{} faults, by kernel workers or other processes", vm.faults_by_others));
    facts.add("from outside", by_others);
}

/// What its first seconds held, and what most of their time went into.
fn started(phases: &[StartPhase]) -> Option<String> {
    let said = phases.iter().filter(|phase| phase.total().count > 0).map(|phase| {
        let StartFaults { count, sum_ns } = phase.total();
        format!("{count} faults of {} in {} s", readable(sum_ns), phase.within_s)
    });
    let said = said.collect::<Vec<_>>().join(", ");
    let last = phases.last()?;
    let (most, of) = last.faults.iter().max_by_key(|(_, of)| of.sum_ns)?;
    let share = percent(of.sum_ns as f64 / last.total().sum_ns.max(1) as f64);
    Some(format!("{said}; {share} of their time for {most}"))
}

/// How often KVM was told to unmap memory of the VM, and by whom mostly.
fn unmapped(by: &BTreeMap<&str, u64>) -> Option<String> {
    let all: u64 = by.values().sum();
    let (most, count) = by.iter().max_by_key(|(_, count)| **count).filter(|_| all > 0)?;
    let who = match *most {
        "own" => "the VM itself",
        "numa" => "NUMA balancing or mprotect",
        "ksm" => "KSM",
        "huge_pages" => "khugepaged",
        "other" => "other processes or threads",
        by => by,
    };
    let share = percent(*count as f64 / all as f64);
    Some(format!("{all} times from the guest's page tables, {share} by {who}"))
}

/// How much came from where; `None` of nothing.
fn shares(sources: &[(&str, u64)]) -> Option<String> {
    let total: u64 = sources.iter().map(|(_, count)| count).sum();
    let used = sources.iter().filter(|(_, count)| *count > 0);
    let shares: Vec<String> = used
        .map(|(name, count)| format!("{} from {name}", percent(*count as f64 / total as f64)))
        .collect();
    (total > 0).then(|| shares.join(", "))
}

/// What was not seen or counted of many VMs, of which nothing else is told.
pub fn losses_of_all(text: &mut String, vms: &[&SummaryVm], are_all: bool) {
    let mut facts = Facts::default();
    facts.add("not seen", not_seen(vms));
    facts.add("not counted", not_counted(vms));
    let heading = match (are_all, vms.len()) {
        (true, all) => format!("All {all} VMs"),
        (false, others) => format!("{others} other VMs"),
    };
    facts.write(text, &heading);
}

fn not_seen(vms: &[&SummaryVm]) -> Option<String> {
    let is_partial = |vm: &&&SummaryVm| {
        let seen = Seen { counted: vm.faults_counted, kernel: vm.faults_kernel };
        seen.coverage() == Coverage::Partial
    };
    let partial: Vec<&&SummaryVm> = vms.iter().filter(is_partial).collect();
    let all: u64 = partial.iter().map(|vm| vm.faults_kernel).sum();
    let counted: u64 = partial.iter().map(|vm| vm.faults_counted.min(vm.faults_kernel)).sum();
    let share = percent((all - counted) as f64 / all.max(1) as f64);
    (!partial.is_empty()).then(|| format!("{} of {all} faults ({share})", all - counted))
}

fn not_counted(vms: &[&SummaryVm]) -> Option<String> {
    let mut lost: BTreeMap<&str, u64> = BTreeMap::new();
    for (cause, count) in vms.iter().flat_map(|vm| &vm.not_counted).filter(|(_, n)| **n > 0) {
        *lost.entry(cause).or_default() += count;
    }
    let lost: Vec<String> = lost
        .into_iter()
        .map(|(cause, count)| format!("{cause} {count}{}", though(cause)))
        .collect();
    (!lost.is_empty()).then(|| lost.join(", "))
}

/// What is known of a loss all the same.
fn though(cause: &str) -> &'static str {
    if cause == Loss::EvictionsFull.name() { " (counted for others)" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::coverage::Seen;
    use crate::model::interval::{Interval, VmInterval};
    use crate::model::run::{Run, RunVm};
    use crate::summary::{Marks, Summing};
    use crate::view::style::plain;

    #[test]
    fn what_was_not_seen_of_many_is_one_line() {
        let run = Run { vms: vec![RunVm::default(); 2], ..Run::default() };
        let seen = |counted, kernel| Seen { counted, kernel };
        let vm = |vm, seen| VmInterval { vm, seen, recorded_ns: Some(1), ..VmInterval::default() };
        let mut summing = Summing::new(&run);
        let vms = vec![vm(0, seen(600, 1_000)), vm(1, seen(900, 1_000))];
        summing.add(&Interval { vms, ..Interval::default() });
        let summary = summing.summary(&run, Marks::default(), Vec::new());
        let both: Vec<&SummaryVm> = summary.seen().collect();
        let said = |are_all| {
            let mut text = String::new();
            losses_of_all(&mut text, &both, are_all);
            plain(&text)
        };
        assert_eq!(said(true), "\nAll 2 VMs\n  not seen  500 of 2000 faults (25.0 %)\n");
        assert!(said(false).starts_with("\n2 other VMs\n"));
    }
}
