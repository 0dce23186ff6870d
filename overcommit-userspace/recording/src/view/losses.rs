//! What a VM lost, and to what. Each number stands in summary.json too.

use crate::format::text::percent;
use crate::format::text::readable;
use crate::model::breakdown::Breakdown;
use crate::model::slow_fault::SlowFault;
use crate::model::swapins::Swapins;
use crate::summary::SummaryVm;
use crate::view::facts::Facts;
use overcommit_ebpf::layout::{Metric, Part};

/// Shares below this are not worth a word.
const LEAST: f64 = 0.005;

/// The words for parts of the faults' time; swap-ins have their device too.
const SAID: [(Part, &str); 6] = [
    (Part::Reclaim, "reclaim"),
    (Part::Compaction, "compaction"),
    (Part::Lock, "waits for the mmap lock"),
    (Part::Userfault, "waits for another process (userfaultfd)"),
    (Part::Io, "waits for a device"),
    (Part::Sleep, "other sleep"),
];

/// What a VM lost, the larger loss first, and who took its memory.
pub fn add(facts: &mut Facts, vm: &SummaryVm) {
    let worth = |share: &f64| *share >= LEAST;
    let waited = vm.cpu_wait.as_ref().map(|cpu| cpu.share).filter(worth);
    let lost = vm.stall.as_ref().map(|stall| stall.share).filter(worth);
    let mut losses = [
        ("lost", lost.map(|share| lost_to_memory(vm, share))),
        ("waited", waited.map(|share| format!("{} of its vCPU time for a CPU", percent(share)))),
    ];
    if waited > vm.stall.as_ref().map(|stall| stall.share) {
        losses.reverse();
    }
    losses.into_iter().for_each(|(about, fact)| facts.add(about, fact));
    let held = vm.metric(Metric::MemoryHigh);
    let held = held.filter(|held| held.sum_ns > 0);
    let held = held.map(|held| format!("for {} at memory.high", readable(held.sum_ns)));
    facts.add("held back", held);
    let evicted = vm.evictions.as_ref().and_then(|evictions| evictions.sentence(&vm.vm_id));
    facts.add("evicted", evicted);
}

fn lost_to_memory(vm: &SummaryVm, share: f64) -> String {
    // Whole waits say more than the faults in them.
    let (whose, time) = match vm.stall_time {
        Some(time) => ("waits", time),
        None => ("faults", vm.fault_time),
    };
    let parts = parts(time, vm.swapins.as_ref());
    let parts = parts.map(|parts| format!(": its {whose} were {parts}")).unwrap_or_default();
    format!("{} of its vCPU time to memory{parts}", percent(share))
}

/// What a slow fault took.
pub fn what(fault: &SlowFault) -> String {
    match (&fault.swap_device, fault.backing) {
        (Some(device), _) => format!("swap-in from {device}"),
        (None, Some(backing)) => backing.name().to_owned(),
        (None, None) => fault.metric.as_str().to_owned(),
    }
}

/// What the time of a VM's waits, or else of its faults, went into: each part by name, from 0 to 1 of
/// it, the most first, and the rest; nothing where that is not known.
pub fn shares_of(vm: &SummaryVm) -> Vec<(String, f64)> {
    shares(vm.stall_time.unwrap_or(vm.fault_time), vm.swapins.as_ref())
}

/// Waits for a CPU are none of it.
fn shares(time: Breakdown, swapins: Option<&Swapins>) -> Vec<(String, f64)> {
    let all = time.total_ns.saturating_sub(time.of(Part::Runq).unwrap_or(0)).max(1) as f64;
    let mut parts: Vec<(String, u64)> = SAID
        .into_iter()
        .filter_map(|(part, words)| Some((words.to_owned(), time.of(part)?)))
        .chain(time.of(Part::Swapin).map(|swapin| (swap_in(swapins), swapin)))
        .chain(time.kvm_ns.map(|kvm| ("KVM's own work".to_owned(), kvm)))
        .chain(time.background_ns.map(|time| ("reads in the background".to_owned(), time)))
        .filter(|(_, part)| *part > 0)
        .collect();
    if parts.is_empty() {
        return Vec::new();
    }
    parts.sort_by_key(|(_, part)| std::cmp::Reverse(*part));
    let blind = time.of(Part::Swapin).is_none() && time.of(Part::Io).is_none();
    let rest = if blind { "other, including swap-in" } else { "other" };
    parts.push((rest.to_owned(), time.rest_ns()));
    let said = parts.into_iter().map(|(name, part)| (name, part as f64 / all));
    let said: Vec<(String, f64)> = said.filter(|(_, share)| *share >= LEAST).collect();
    if said.len() == 1 && said[0].0 == rest { Vec::new() } else { said }
}

/// The same in words.
fn parts(time: Breakdown, swapins: Option<&Swapins>) -> Option<String> {
    let said = shares(time, swapins);
    let said: Vec<String> =
        said.into_iter().map(|(name, share)| format!("{} {name}", percent(share))).collect();
    (!said.is_empty()).then(|| said.join(", "))
}

/// Where most pages came from, if that is known.
fn swap_in(swapins: Option<&Swapins>) -> String {
    let Some(swapins) = swapins else { return "swap-in".to_owned() };
    let devices = swapins.from_device.iter().map(|(name, pages)| (name.as_str(), *pages));
    let sources = devices.chain([("zswap", swapins.from_zswap)]).filter(|(_, pages)| *pages > 0);
    let most = sources.max_by_key(|(_, pages)| *pages);
    most.map_or("swap-in".to_owned(), |(name, _)| format!("swap-in from {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::interval::{Interval, Stall, StallSource, VmInterval};
    use crate::model::run::{Run, RunVm};
    use crate::summary::{Marks, Summing};

    #[test]
    fn the_greatest_part_comes_first() {
        let mut swapins = Swapins::default();
        swapins.from_device.extend([("zram0".to_owned(), 9), ("sda".to_owned(), 1)]);
        let time = |parts: &[(Part, u64)]| {
            let mut time = Breakdown { total_ns: 1_000, ..Breakdown::default() };
            parts.iter().for_each(|(part, ns)| time.parts_ns[*part as usize] = Some(*ns));
            time
        };
        let seen = time(&[(Part::Reclaim, 220), (Part::Swapin, 710), (Part::Lock, 0)]);
        let said = "71.0 % swap-in from zram0, 22.0 % reclaim, 7.0 % other";
        assert_eq!(parts(seen, Some(&swapins)).unwrap(), said);
        swapins.from_zswap = 10;
        assert!(parts(seen, Some(&swapins)).unwrap().contains("swap-in from zswap"));
        let blind = time(&[(Part::Reclaim, 220), (Part::Runq, 300)]);
        let said = "31.4 % reclaim, 68.6 % other, including swap-in";
        assert_eq!(parts(blind, None).unwrap(), said);
        assert_eq!(parts(time(&[(Part::Reclaim, 1)]), None), None, "the rest alone says nothing");
        assert_eq!(parts(Breakdown::default(), Some(&swapins)), None);
    }

    #[test]
    fn the_larger_loss_comes_first() {
        let said = |stall_ns: u64, cpu_ns: u64| {
            let mut run = Run { vms: vec![RunVm::default()], ..Run::default() };
            run.recorded.intervals = 1;
            let (source, vcpu_ns) = (StallSource::Faults, 1_000);
            let stall = Some(Stall {
                waited_ns: stall_ns + 9,
                runq_ns: 9,
                vcpu_ns,
                source,
                ..Stall::default()
            });
            let vm = VmInterval { stall, cpu_wait_ns: Some(cpu_ns), ..VmInterval::default() };
            let mut summing = Summing::new(&run);
            summing.add(&Interval { vms: vec![vm], ..Interval::default() });
            let mut facts = Facts::default();
            add(&mut facts, &summing.summary(&run, Marks::default(), Vec::new()).vms[0]);
            let mut text = String::new();
            facts.write(&mut text, "web");
            text.lines().skip(2).map(|line| line.trim().to_owned()).collect::<Vec<_>>()
        };
        let memory = "lost    20.0 % of its vCPU time to memory";
        let cpu = |share: &str| format!("waited  {share} % of its vCPU time for a CPU");
        assert_eq!(said(200, 100), [memory, &cpu("10.0")]);
        assert_eq!(said(200, 400), [&cpu("40.0"), memory]);
        assert_eq!(said(200, 1), ["lost  20.0 % of its vCPU time to memory"]);
        assert!(said(0, 0).is_empty());
    }
}
