//! For whom did kswapd take a VM's pages? It works because others allocate, and nobody
//! writes down who: this is an estimate, by their share of the pages that were allocated.

use crate::model::evictions::AggressorClass;
use crate::recording::Recording;
use crate::recording::rows::EvictionRow;
use crate::summary::percent;
use serde::Serialize;
use std::collections::BTreeMap;

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

/// What is known of the intervals up to a look at the host.
#[derive(Default)]
struct Allocations {
    /// Pages of the whole host.
    all: f64,
    /// Faults by VM, each of which counts as a page: one that takes a huge page counts for
    /// too little.
    by_vm: BTreeMap<usize, u64>,
}

/// Of each VM of the recording, by index.
pub fn of(recording: &Recording) -> BTreeMap<usize, KswapdEstimate> {
    let looks =
        looks(recording.host_rows().map(|row| (row.interval, row.length_ns, row.allocated)));
    let mut known: BTreeMap<u64, Allocations> = BTreeMap::new();
    for (look, all) in looks.values() {
        known.entry(*look).or_default().all = *all;
    }
    for row in recording.vm_rows() {
        let interval = looks.get(&row.interval).and_then(|(look, _)| known.get_mut(look));
        if let Some(interval) = interval {
            *interval.by_vm.entry(row.vm).or_default() += row.faults();
        }
    }
    let of_interval = |interval: u64| known.get(&looks.get(&interval)?.0);
    let id = |vm: usize| {
        let vm = &recording.run.vms[vm];
        (vm.vm_id.clone(), vm.name.clone())
    };
    estimate(recording.eviction_rows(), of_interval, id)
}

/// Which interval had the next look at the host, for each one: its number, and the pages
/// allocated since the look before. From intervals with their length in nanoseconds and what
/// was allocated a second.
fn looks(rows: impl Iterator<Item = (u64, u64, Option<f64>)>) -> BTreeMap<u64, (u64, f64)> {
    let mut looks = BTreeMap::new();
    let (mut since, mut length_ns) = (Vec::new(), 0);
    for (interval, length, allocated) in rows {
        since.push(interval);
        length_ns += length;
        if let Some(rate) = allocated {
            let all = rate * length_ns as f64 / 1e9;
            looks.extend(since.drain(..).map(|before| (before, (interval, all))));
            length_ns = 0;
        }
    }
    looks
}

fn estimate<'a>(
    rows: impl Iterator<Item = &'a EvictionRow>,
    of_interval: impl Fn(u64) -> Option<&'a Allocations>,
    id: impl Fn(usize) -> (String, String),
) -> BTreeMap<usize, KswapdEstimate> {
    let mut taken: BTreeMap<usize, (u64, BTreeMap<usize, f64>)> = BTreeMap::new();
    for row in rows.filter(|row| row.aggressor.class == AggressorClass::Kswapd) {
        let known = of_interval(row.interval).filter(|interval| interval.all > 0.0);
        let (Some(victim), Some(interval)) = (row.victim, known) else { continue };
        let (pages, charged) = taken.entry(victim).or_default();
        *pages += row.counts.pages();
        let faults: u64 = interval.by_vm.values().sum();
        for (vm, own) in &interval.by_vm {
            let share = *own as f64 / interval.all.max(faults as f64);
            *charged.entry(*vm).or_default() += row.counts.pages() as f64 * share;
        }
    }
    let told = taken.into_iter().filter(|(_, (pages, _))| *pages > 0);
    let told = told.map(|(victim, (pages, charged))| {
        let charged = charged.into_iter().filter(|(_, part)| *part > 0.0).map(|(vm, part)| {
            let (vm_id, vm) = id(vm);
            Charged { vm_id, vm, share: part / pages as f64 }
        });
        let mut charged: Vec<Charged> = charged.collect();
        charged.sort_by(|a, b| b.share.total_cmp(&a.share));
        let vms: f64 = charged.iter().map(|charged| charged.share).sum();
        (victim, KswapdEstimate { pages, charged, others_share: (1.0 - vms).max(0.0) })
    });
    told.collect()
}

impl KswapdEstimate {
    /// As a clause.
    pub fn clause(&self, victim: &str) -> String {
        let said = |charged: &Charged| {
            let who = if charged.vm_id == victim { "itself" } else { charged.vm.as_str() };
            format!("{} for {who}", percent(charged.share))
        };
        let vms = self.charged.iter().filter(|charged| charged.share >= LEAST).take(3).map(said);
        let others = (self.others_share >= LEAST)
            .then(|| format!("{} for others", percent(self.others_share)));
        let all: Vec<String> = vms.chain(others).collect();
        format!("kswapd's part by estimate {}", all.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::evictions::{Aggressor, EvictionCounts};

    fn row(interval: u64, class: AggressorClass, pages: u64) -> EvictionRow {
        let aggressor = Aggressor { class, id: "60".to_owned(), name: "kswapd0".to_owned() };
        let counts = EvictionCounts { written_pages: pages, ..EvictionCounts::default() };
        EvictionRow::of(interval, Some(0), aggressor, counts)
    }

    #[test]
    fn a_look_is_of_all_intervals_since_the_one_before() {
        let second = 1_000_000_000;
        let rows = [(0, second, None), (1, second, Some(50.0)), (2, second / 2, Some(10.0))];
        let told = looks(rows.into_iter().chain([(3, second, None)]));
        assert_eq!(told, BTreeMap::from([(0, (1, 100.0)), (1, (1, 100.0)), (2, (2, 5.0))]));
    }

    #[test]
    fn kswapd_is_charged_to_those_who_allocate() {
        let busy = |all: f64, faults: [u64; 2]| Allocations {
            all,
            by_vm: faults.into_iter().enumerate().collect(),
        };
        let intervals = BTreeMap::from([(0, busy(1000.0, [0, 600])), (1, busy(50.0, [100, 0]))]);
        let rows = [
            row(0, AggressorClass::Kswapd, 300),
            row(1, AggressorClass::Kswapd, 100),
            row(1, AggressorClass::Vm, 900),
            row(2, AggressorClass::Kswapd, 900),
        ];
        let id = |vm: usize| (vm.to_string(), ["web", "batch"][vm].to_owned());
        let told = estimate(rows.iter(), |interval| intervals.get(&interval), id);
        let told = &told[&0];
        // 300 × 0.6 of 400 for batch, 100 of 400 for itself, which took more than there was.
        assert_eq!((told.pages, told.charged.len()), (400, 2));
        let said =
            "kswapd's part by estimate 45.0 % for batch, 25.0 % for itself, 30.0 % for others";
        assert_eq!(told.clause("0"), said);
    }
}
