//! What is told of a VM below the table: why it fared so, and what of it was not seen.

use crate::format::text::percent;
use crate::model::coverage::Coverage;
use crate::summary::SummaryVm;
use crate::view::facts::Facts;
use crate::view::{losses, memory_text};

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
    }
    if told == Told::All {
        sources(&mut facts, vm);
        facts.add("no exits", vm.exits_absent.clone());
    }
    facts.add("not seen", not_seen(vm));
    facts.add("not counted", not_counted(vm));
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
    let by_others = (vm.faults_by_others > 0)
        .then(|| format!("{} faults, by kernel workers or other processes", vm.faults_by_others));
    facts.add("from outside", by_others);
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

fn not_seen(vm: &SummaryVm) -> Option<String> {
    let unseen = vm.faults_kernel.saturating_sub(vm.faults_counted);
    let is_partial = vm.metrics.iter().any(|metric| metric.coverage == Coverage::Partial);
    let share = percent(unseen as f64 / vm.faults_kernel.max(1) as f64);
    is_partial.then(|| format!("{unseen} of {} faults ({share})", vm.faults_kernel))
}

fn not_counted(vm: &SummaryVm) -> Option<String> {
    let lost = vm.not_counted.iter().filter(|(_, count)| **count > 0);
    let lost: Vec<String> = lost.map(|(cause, count)| format!("{cause} {count}")).collect();
    (!lost.is_empty()).then(|| lost.join(", "))
}
