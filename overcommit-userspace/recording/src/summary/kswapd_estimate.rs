//! For whom did kswapd take a VM's pages? It works because others allocate, and nobody
//! writes down who: this is an estimate, by their share of the pages that were allocated.

use crate::format::text::percent;
use crate::model::evictions::AggressorClass;
use crate::model::interval::Interval;
use crate::model::run::Run;
use overcommit_ebpf::layout::Taker;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Shares below this are not worth a word.
const LEAST: f64 = 0.01;

/// What kswapd took of a VM, and for whom by estimate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KswapdEstimate {
    /// Pages that it took in intervals of which the allocations are known.
    pub pages: u64,
    /// VMs that allocated meanwhile, those with the largest share first.
    pub charged: Vec<Charged>,
    /// The share of all others, from 0 to 1.
    pub others_share: f64,
    /// VMs whose memory is mostly in transparent huge pages, of which one fault takes hundreds of
    /// pages: nobody can be charged then, and nobody is.
    pub in_huge_pages: Vec<String>,
}

/// A VM's part in it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Charged {
    /// PID-STARTTIME.
    pub vm_id: String,
    /// Its name as shown.
    pub vm: String,
    /// From 0 to 1.
    pub share: f64,
}

/// Adds up interval by interval. What is allocated is known from look to look at the host, and
/// a look may come after several intervals.
#[derive(Debug, Default)]
pub struct EstimateTotals {
    /// Whether there was a first interval: what precedes the first look is not known.
    has_begun: bool,
    since: SinceLook,
    /// By victim: pages, and the part of them that is charged to each VM.
    taken: BTreeMap<usize, (u64, BTreeMap<usize, f64>)>,
    /// VMs that were mostly in huge pages.
    in_huge_pages: BTreeSet<usize>,
}

/// What happened since the last look.
#[derive(Debug, Default)]
struct SinceLook {
    length_ns: u64,
    /// Faults by VM, each of which counts as a page.
    faults: BTreeMap<usize, u64>,
    /// Pages that kswapd took, by victim.
    taken: BTreeMap<usize, u64>,
}

impl EstimateTotals {
    /// Adds an interval.
    pub fn add(&mut self, interval: &Interval) {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        if is_first && interval.host.swap.allocated.is_none() {
            return;
        }
        self.since.length_ns += interval.place.length_ns;
        for vm in &interval.vms {
            // Others take faults for it as well: kernel workers most of those on swap.
            let for_it = vm.faults() + vm.taken_by[Taker::Outside as usize];
            *self.since.faults.entry(vm.vm).or_default() += for_it;
            if vm.memory.is_some_and(|memory| memory.huge_pages > memory.resident / 2) {
                self.in_huge_pages.insert(vm.vm);
            }
        }
        let by_kswapd =
            interval.evictions.iter().filter(|row| row.aggressor.class == AggressorClass::Kswapd);
        for row in by_kswapd {
            if let Some(victim) = row.victim {
                *self.since.taken.entry(victim).or_default() += row.counts.pages();
            }
        }
        if let Some(rate) = interval.host.swap.allocated {
            let since = std::mem::take(&mut self.since);
            self.charge(rate * since.length_ns as f64 / 1e9, &since);
        }
    }

    /// Charges what was taken since the last look, of that many pages allocated in all.
    fn charge(&mut self, allocated: f64, since: &SinceLook) {
        if allocated <= 0.0 {
            return;
        }
        let faults: u64 = since.faults.values().sum();
        for (victim, pages) in &since.taken {
            let (all, charged) = self.taken.entry(*victim).or_default();
            *all += pages;
            for (vm, own) in &since.faults {
                let share = *own as f64 / allocated.max(faults as f64);
                *charged.entry(*vm).or_default() += *pages as f64 * share;
            }
        }
    }

    /// Of each VM of the recording, by index.
    pub fn of(&self, run: &Run) -> BTreeMap<usize, KswapdEstimate> {
        let huge = self.in_huge_pages.iter().map(|vm| run.vms[*vm].name.clone());
        let in_huge_pages: Vec<String> = huge.collect();
        let told = self.taken.iter().filter(|(_, (pages, _))| *pages > 0);
        let told = told.map(|(victim, (pages, charged))| {
            let is_told = |part: f64| part > 0.0 && in_huge_pages.is_empty();
            let charged = charged.iter().filter(|(_, part)| is_told(**part)).map(|(vm, part)| {
                let of = &run.vms[*vm];
                let share = part / *pages as f64;
                Charged { vm_id: of.vm_id.clone(), vm: of.name.clone(), share }
            });
            let mut charged: Vec<Charged> = charged.collect();
            charged.sort_by(|a, b| b.share.total_cmp(&a.share));
            let vms: f64 = charged.iter().map(|charged| charged.share).sum();
            let others_share = if in_huge_pages.is_empty() { (1.0 - vms).max(0.0) } else { 0.0 };
            let (pages, in_huge_pages) = (*pages, in_huge_pages.clone());
            (*victim, KswapdEstimate { pages, charged, others_share, in_huge_pages })
        });
        told.collect()
    }
}

impl KswapdEstimate {
    /// As a clause.
    pub fn clause(&self, victim: &str) -> String {
        if let [vm, ..] = self.in_huge_pages.as_slice() {
            return format!("not attributed to VMs: {vm} uses huge pages");
        }
        let said = |charged: &Charged| {
            let who = if charged.vm_id == victim { "itself" } else { charged.vm.as_str() };
            format!("{} for {who}", percent(charged.share))
        };
        let vms = self.charged.iter().filter(|charged| charged.share >= LEAST).take(3).map(said);
        let others = (self.others_share >= LEAST)
            .then(|| format!("{} for others", percent(self.others_share)));
        let all: Vec<String> = vms.chain(others).collect();
        format!("kswapd's share, estimated: {}", all.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::coverage::Seen;
    use crate::model::evictions::{Aggressor, Eviction, EvictionCounts};
    use crate::model::interval::{HostInterval, Place, VmInterval};
    use crate::model::memory::MemoryUse;
    use crate::model::run::RunVm;
    use crate::model::swap::HostSwap;

    /// An interval of that length with a look, or none, in which two VMs took that many faults
    /// and somebody pages of the first.
    fn interval(
        length_ns: u64,
        allocated: Option<f64>,
        faults: [u64; 2],
        taken: &[(AggressorClass, u64)],
    ) -> Interval {
        let vm = |(vm, counted)| VmInterval {
            vm,
            seen: Seen { counted, kernel: 0 },
            ..VmInterval::default()
        };
        let eviction = |(class, pages): &(AggressorClass, u64)| Eviction {
            victim: Some(0),
            aggressor: Aggressor { class: *class, id: "60".into(), name: "kswapd0".into() },
            counts: EvictionCounts { written_pages: *pages, ..EvictionCounts::default() },
        };
        Interval {
            place: Place { length_ns, ..Place::default() },
            host: HostInterval {
                swap: HostSwap { allocated, ..HostSwap::default() },
                ..HostInterval::default()
            },
            vms: faults.into_iter().enumerate().map(vm).collect(),
            evictions: taken.iter().map(eviction).collect(),
        }
    }

    #[test]
    fn kswapd_is_charged_to_those_who_allocate() {
        use AggressorClass::{Kswapd, Vm};
        let second = 1_000_000_000;
        let mut totals = EstimateTotals::default();
        // Nobody had looked before.
        totals.add(&interval(second, None, [700, 0], &[(Kswapd, 700)]));
        // A look is of all intervals since the one before: 1,000 pages in two seconds.
        totals.add(&interval(second, None, [0, 400], &[(Kswapd, 100)]));
        totals.add(&interval(second, Some(500.0), [0, 200], &[(Kswapd, 200)]));
        totals.add(&interval(second / 2, Some(100.0), [100, 0], &[(Kswapd, 100), (Vm, 900)]));
        // Nobody has looked since.
        totals.add(&interval(second, None, [0, 0], &[(Kswapd, 900)]));
        let vm = |vm_id: &str, name: &str| RunVm {
            vm_id: vm_id.to_owned(),
            name: name.to_owned(),
            ..RunVm::default()
        };
        let run = Run { vms: vec![vm("0", "web"), vm("1", "batch")], ..Run::default() };
        let told = totals.of(&run);
        let told = &told[&0];
        // 300 × 0.6 of 400 for batch, 100 of 400 for itself, which took more than there was.
        assert_eq!((told.pages, told.charged.len()), (400, 2));
        let said =
            "kswapd's share, estimated: 45.0 % for batch, 25.0 % for itself, 30.0 % for others";
        assert_eq!(told.clause("0"), said);
    }

    #[test]
    fn nobody_is_charged_where_one_fault_takes_hundreds_of_pages() {
        let second = 1_000_000_000;
        let mut totals = EstimateTotals::default();
        totals.add(&interval(second, None, [0, 0], &[]));
        let mut huge = interval(second, Some(500.0), [9, 400], &[(AggressorClass::Kswapd, 100)]);
        let memory = MemoryUse { resident: 100, huge_pages: 51, ..MemoryUse::default() };
        huge.vms[1].memory = Some(memory);
        totals.add(&huge);
        let vm = |name: &str| RunVm { name: name.to_owned(), ..RunVm::default() };
        let run = Run { vms: vec![vm("web"), vm("batch")], ..Run::default() };
        let told = totals.of(&run).remove(&0).unwrap();
        assert_eq!((told.pages, told.charged.len(), told.others_share), (100, 0, 0.0));
        let said = "not attributed to VMs: batch uses huge pages";
        assert_eq!(told.clause("0"), said);
    }

    #[test]
    fn what_others_take_for_a_vm_is_charged_to_it() {
        let second = 1_000_000_000;
        let mut totals = EstimateTotals::default();
        totals.add(&interval(second, None, [0, 0], &[]));
        let mut swapping =
            interval(second, Some(20_000.0), [0, 612], &[(AggressorClass::Kswapd, 100)]);
        swapping.vms[1].taken_by[Taker::Outside as usize] = 7_605;
        totals.add(&swapping);
        let run = Run { vms: vec![RunVm::default(), RunVm::default()], ..Run::default() };
        let share = totals.of(&run)[&0].charged[0].share;
        assert!((share - 0.410_85).abs() < 1e-9, "{share}");
    }
}
