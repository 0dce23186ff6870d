//! What happened to a VM, in a sentence. Each number stands in summary.json too.

use crate::export::summary::{SummaryVm, percent};
use crate::recording::rows::FaultTime;
use crate::sampler::swapins::SwapinTotals;

/// Shares below this are not worth a word.
const LEAST: f64 = 0.005;

/// The sentence of a VM that lost something; `None` of any other.
pub fn of(vm: &SummaryVm) -> Option<String> {
    let lost = vm.stall.as_ref().map(|stall| stall.share).filter(|share| *share >= LEAST);
    let lost = lost.map(|share| {
        let parts =
            parts(vm.fault_time, &vm.swapins).map(|parts| format!(": its faults were {parts}"));
        format!("lost {} of its vCPU time to memory{}", percent(share), parts.unwrap_or_default())
    });
    let evicted = vm.evictions.as_ref().and_then(|evictions| evictions.sentence());
    let all: Vec<String> = lost.into_iter().chain(evicted).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// What the time of faults went into, the most first, and the rest.
fn parts(time: FaultTime, swapins: &SwapinTotals) -> Option<String> {
    let all = time.total_ns.max(1) as f64;
    let devices = swapins.from_device.iter().map(|(name, pages)| (name.as_str(), *pages));
    let sources = devices.chain([("zswap", swapins.from_zswap)]).filter(|(_, pages)| *pages > 0);
    let device = sources.max_by_key(|(_, pages)| *pages);
    let device = device.map(|(name, _)| format!(" from {name}")).unwrap_or_default();
    let parts =
        [(format!("swap-in{device}"), time.swapin_ns), ("reclaim".to_owned(), time.reclaim_ns)];
    let seen: u64 = parts.iter().filter_map(|(_, part)| *part).sum();
    let mut seen_parts: Vec<(String, u64)> =
        parts.into_iter().filter_map(|(name, part)| Some((name, part?))).collect();
    seen_parts.sort_by_key(|(_, part)| std::cmp::Reverse(*part));
    let rest = if time.swapin_ns.is_none() { "the rest, swap-in among it" } else { "the rest" };
    seen_parts.push((rest.to_owned(), time.total_ns.saturating_sub(seen)));
    let said = seen_parts.into_iter().map(|(name, part)| (name, part as f64 / all));
    let said = said.filter(|(_, share)| *share >= LEAST);
    let said: Vec<String> =
        said.map(|(name, share)| format!("{} {name}", percent(share))).collect();
    (time.total_ns > 0 && seen > 0).then(|| said.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_part_comes_first() {
        let mut swapins = SwapinTotals::default();
        swapins.from_device.extend([("zram0".to_owned(), 9), ("sda".to_owned(), 1)]);
        let time = FaultTime { total_ns: 1_000, reclaim_ns: Some(220), swapin_ns: Some(710) };
        let said = "71.0 % swap-in from zram0, 22.0 % reclaim, 7.0 % the rest";
        assert_eq!(parts(time, &swapins).unwrap(), said);
        swapins.from_zswap = 10;
        assert!(parts(time, &swapins).unwrap().contains("swap-in from zswap"));
        let blind = FaultTime { swapin_ns: None, ..time };
        let said = "22.0 % reclaim, 78.0 % the rest, swap-in among it";
        assert_eq!(parts(blind, &SwapinTotals::default()).unwrap(), said);
        assert_eq!(parts(FaultTime::default(), &swapins), None);
    }
}
