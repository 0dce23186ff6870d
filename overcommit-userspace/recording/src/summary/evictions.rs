//! Who took a VM's pages over the whole run.

use crate::format::text::{percent, readable_bytes};
use crate::model::evictions::{Aggressor, Eviction, EvictionCounts};
use crate::model::interval::Interval;
use crate::model::run::Run;
use crate::summary::kswapd_estimate::{EstimateTotals, KswapdEstimate};
use serde::Serialize;
use std::collections::BTreeMap;

/// What was taken of a VM, and by whom.
#[derive(Clone, Debug, Serialize)]
pub struct SummaryEvictions {
    /// Pages in all.
    pub pages: u64,
    /// Their bytes.
    #[serde(skip)]
    pub bytes: u64,
    /// Those that were handed to swap.
    pub written_pages: u64,
    /// Those that were dropped, because a disk has their content; `null` where that is
    /// not seen.
    pub dropped_pages: Option<u64>,
    /// The aggressors, the worst first.
    pub by: Vec<EvictedBy>,
    /// A second view of kswapd's part: an estimate.
    pub kswapd_estimate: Option<KswapdEstimate>,
}

/// What one aggressor took.
#[derive(Clone, Debug, Serialize)]
pub struct EvictedBy {
    /// Who.
    #[serde(flatten)]
    pub aggressor: Aggressor,
    /// Whether it is the VM itself.
    pub is_itself: bool,
    /// Pages handed to swap.
    pub written_pages: u64,
    /// Pages dropped; `null` where that is not seen.
    pub dropped_pages: Option<u64>,
    /// Of all pages taken of the VM, from 0 to 1.
    pub share: f64,
}

/// What was taken of each VM, interval by interval.
#[derive(Debug, Default)]
pub struct EvictionTotals {
    /// By victim.
    taken: BTreeMap<usize, BTreeMap<Aggressor, EvictionCounts>>,
    kswapd: EstimateTotals,
}

impl EvictionTotals {
    /// Adds an interval.
    pub fn add(&mut self, interval: &Interval) {
        for Eviction { victim, aggressor, counts } in &interval.evictions {
            if let Some(victim) = victim {
                let by = self.taken.entry(*victim).or_default();
                by.entry(aggressor.clone()).or_default().add(*counts);
            }
        }
        self.kswapd.add(interval);
    }

    /// Of each VM of the recording, in order; `None` of one whose pages cannot be told from
    /// others'.
    pub fn of(&self, run: &Run) -> Vec<Option<SummaryEvictions>> {
        let is_seen = run.evictions.as_ref().is_some_and(|sight| sight.written_absent.is_none());
        let mut estimates = self.kswapd.of(run);
        let nothing = BTreeMap::new();
        let each = run.vms.iter().enumerate().map(|(index, vm)| {
            let taken = self.taken.get(&index).unwrap_or(&nothing);
            // What was taken while its cgroup was its own counts even if it is not any more.
            let is_told = is_seen && (vm.evictions_absent.is_none() || !taken.is_empty());
            let kswapd_estimate = estimates.remove(&index);
            is_told.then(|| SummaryEvictions {
                kswapd_estimate,
                ..summary(&vm.vm_id, taken, run.sees_drops(), run.page_size)
            })
        });
        each.collect()
    }
}

fn summary(
    vm_id: &str,
    taken: &BTreeMap<Aggressor, EvictionCounts>,
    sees_drops: bool,
    page_size: u64,
) -> SummaryEvictions {
    let mut all = EvictionCounts::default();
    taken.values().for_each(|counts| all.add(*counts));
    let dropped = |counts: EvictionCounts| sees_drops.then_some(counts.dropped_pages);
    let by = taken.iter().map(|(aggressor, counts)| EvictedBy {
        aggressor: aggressor.clone(),
        is_itself: aggressor.id == vm_id,
        written_pages: counts.written_pages,
        dropped_pages: dropped(*counts),
        share: counts.pages() as f64 / all.pages().max(1) as f64,
    });
    let mut by: Vec<EvictedBy> = by.collect();
    by.sort_by(|a, b| b.share.total_cmp(&a.share));
    SummaryEvictions {
        pages: all.pages(),
        bytes: all.pages().saturating_mul(page_size),
        written_pages: all.written_pages,
        dropped_pages: dropped(all),
        by,
        kswapd_estimate: None,
    }
}

impl SummaryEvictions {
    /// As a sentence; `None` of a VM of which nothing was taken.
    pub fn sentence(&self, vm_id: &str) -> Option<String> {
        let (worst, others) = self.by.split_first()?;
        let said = |by: &EvictedBy| {
            let who = if by.is_itself { "itself" } else { by.aggressor.name.as_str() };
            format!("{} by {who}", percent(by.share))
        };
        let others = others.iter().take(2).filter(|by| by.share >= 0.01).map(said);
        let by = if self.by.len() > 1 {
            let all: Vec<String> = std::iter::once(said(worst)).chain(others).collect();
            all.join(", ")
        } else if worst.is_itself {
            "all by the VM itself: no other VM pushed it out".to_owned()
        } else {
            format!("all by {}", worst.aggressor.name)
        };
        let bytes = readable_bytes(self.bytes);
        let what = if self.dropped_pages.is_none() { " written to swap" } else { "" };
        let estimate = self.kswapd_estimate.as_ref();
        let estimate = estimate.map(|estimate| format!(" ({})", estimate.clause(vm_id)));
        Some(format!("{bytes}{what}, {by}{}", estimate.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::evictions::AggressorClass;

    fn counts(written: u64, dropped: u64) -> EvictionCounts {
        EvictionCounts {
            written_folios: written,
            written_pages: written,
            dropped_folios: dropped,
            dropped_pages: dropped,
        }
    }

    fn aggressor(class: AggressorClass, id: &str, name: &str) -> Aggressor {
        Aggressor { class, id: id.to_owned(), name: name.to_owned() }
    }

    /// As in a recording that somebody changed.
    #[test]
    fn more_pages_than_there_can_be_are_no_overflow() {
        let batch = aggressor(AggressorClass::Vm, "2-2", "batch");
        let taken = BTreeMap::from([(batch, counts(1 << 52, 1 << 52))]);
        let summary = summary("1-1", &taken, true, 4096);
        assert_eq!((summary.pages, summary.bytes), (1 << 53, u64::MAX));
    }

    #[test]
    fn the_worst_is_named_first() {
        let itself = aggressor(AggressorClass::Vm, "1-1", "web");
        let batch = aggressor(AggressorClass::Vm, "2-2", "batch");
        let kswapd = aggressor(AggressorClass::Kswapd, "60", "kswapd0");
        let damon = aggressor(AggressorClass::Damon, "61", "kdamond.0");
        let taken = BTreeMap::from([
            (itself.clone(), counts(16, 0)),
            (batch.clone(), counts(40, 43)),
            (kswapd, counts(1, 0)),
            (damon, counts(0, 0)),
        ]);
        let told = |taken: &BTreeMap<Aggressor, EvictionCounts>, sees_drops| {
            summary("1-1", taken, sees_drops, 4096)
        };
        let seen = told(&taken, true);
        assert_eq!((seen.pages, seen.dropped_pages), (100, Some(43)));
        let said = "400.0 KiB, 83.0 % by batch, 16.0 % by itself, 1.0 % by kswapd0";
        assert_eq!(seen.sentence("1-1").unwrap(), said);
        let blind = told(&BTreeMap::from([(batch, counts(40, 0))]), false);
        let said = "160.0 KiB written to swap, all by batch";
        assert_eq!(blind.sentence("1-1").unwrap(), said);
        let alone = told(&BTreeMap::from([(itself, counts(0, 40))]), true);
        let said = "160.0 KiB, all by the VM itself: no other VM pushed it out";
        assert_eq!(alone.sentence("1-1").unwrap(), said);
        assert_eq!(told(&BTreeMap::new(), true).sentence("1-1"), None);
    }
}
