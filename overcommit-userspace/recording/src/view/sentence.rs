//! What happened to a VM, in a sentence. Each number stands in summary.json too.

use crate::format::text::percent;
use crate::format::text::readable;
use crate::model::breakdown::Breakdown;
use crate::model::swapins::Swapins;
use crate::summary::SummaryVm;
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

/// The sentence of a VM that lost something, the larger loss first; `None` of any other.
pub fn of(vm: &SummaryVm) -> Option<String> {
    let starved = vm.cpu_wait.as_ref().map(|cpu| cpu.share).filter(|share| *share >= LEAST);
    let is_starved_most = starved > vm.stall.as_ref().map(|stall| stall.share);
    let starved =
        starved.map(|share| format!("waited {} of its vCPU time for a CPU", percent(share)));
    let lost = vm.stall.as_ref().map(|stall| stall.share).filter(|share| *share >= LEAST);
    let lost = lost.map(|share| {
        // Whole waits say more than the faults in them.
        let (whose, time) = match vm.stall_time {
            Some(time) => ("waits", time),
            None => ("faults", vm.fault_time),
        };
        let parts =
            parts(time, vm.swapins.as_ref()).map(|parts| format!(": its {whose} were {parts}"));
        format!("lost {} of its vCPU time to memory{}", percent(share), parts.unwrap_or_default())
    });
    let held = vm.metrics.iter().find(|entry| entry.metric == Metric::MemoryHigh.into());
    let held = held.filter(|held| held.sum_ns > 0).map(|held| {
        format!("its threads were held back for {} at memory.high", readable(held.sum_ns))
    });
    let evicted = vm.evictions.as_ref().and_then(|evictions| evictions.sentence(&vm.vm_id));
    let mut losses: Vec<String> = lost.into_iter().chain(starved).collect();
    if is_starved_most {
        losses.reverse();
    }
    let all: Vec<String> = losses.into_iter().chain(held).chain(evicted).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// What the time of faults went into, the most first, and the rest; waits for a CPU are none of it.
fn parts(time: Breakdown, swapins: Option<&Swapins>) -> Option<String> {
    let all = time.total_ns.saturating_sub(time.of(Part::Runq).unwrap_or(0)).max(1) as f64;
    let mut parts: Vec<(String, u64)> = SAID
        .into_iter()
        .filter_map(|(part, words)| Some((words.to_owned(), time.of(part)?)))
        .chain(time.of(Part::Swapin).map(|swapin| (swap_in(swapins), swapin)))
        .chain(time.kvm_ns.map(|kvm| ("KVM's own work".to_owned(), kvm)))
        .filter(|(_, part)| *part > 0)
        .collect();
    if parts.is_empty() {
        return None;
    }
    parts.sort_by_key(|(_, part)| std::cmp::Reverse(*part));
    let blind = time.of(Part::Swapin).is_none() && time.of(Part::Io).is_none();
    let rest = if blind { "the rest, swap-in among it" } else { "the rest" };
    parts.push((rest.to_owned(), time.rest_ns()));
    let said = parts.into_iter().map(|(name, part)| (name, part as f64 / all));
    let said = said.filter(|(_, share)| *share >= LEAST);
    let said: Vec<String> =
        said.map(|(name, share)| format!("{} {name}", percent(share))).collect();
    Some(said.join(", "))
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
    use crate::summary::Summing;

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
        let said = "71.0 % swap-in from zram0, 22.0 % reclaim, 7.0 % the rest";
        assert_eq!(parts(seen, Some(&swapins)).unwrap(), said);
        swapins.from_zswap = 10;
        assert!(parts(seen, Some(&swapins)).unwrap().contains("swap-in from zswap"));
        let blind = time(&[(Part::Reclaim, 220), (Part::Runq, 300)]);
        let said = "31.4 % reclaim, 68.6 % the rest, swap-in among it";
        assert_eq!(parts(blind, None).unwrap(), said);
        assert_eq!(parts(Breakdown::default(), Some(&swapins)), None);
    }

    #[test]
    fn the_larger_loss_comes_first() {
        let said = |stall_ns: u64, cpu_ns: u64| {
            let mut run = Run { vms: vec![RunVm::default()], ..Run::default() };
            run.recorded.intervals = 1;
            let (source, vcpu_ns) = (StallSource::Faults, 1_000);
            let stall = Some(Stall { waited_ns: stall_ns + 9, runq_ns: 9, vcpu_ns, source });
            let vm = VmInterval { stall, cpu_wait_ns: Some(cpu_ns), ..VmInterval::default() };
            let mut summing = Summing::new(&run);
            summing.add(&Interval { vms: vec![vm], ..Interval::default() });
            of(&summing.summary(&run, true, Vec::new()).vms[0]).unwrap_or_default()
        };
        let (memory, cpu) =
            ("lost 20.0 % of its vCPU time to memory", "of its vCPU time for a CPU");
        assert_eq!(said(200, 100), format!("{memory}; waited 10.0 % {cpu}"));
        assert_eq!(said(200, 400), format!("waited 40.0 % {cpu}; {memory}"));
        assert_eq!(said(200, 1), memory);
        assert_eq!(said(0, 0), "");
    }
}
