//! Who took a VM's pages over the whole run.

use crate::kernel;
use crate::model::evictions::{Aggressor, EvictionCounts};
use crate::recording::Recording;
use crate::summary::kswapd_estimate::KswapdEstimate;
use crate::summary::{kswapd_estimate, percent};
use crate::view::memory_text::readable;
use serde::Serialize;
use std::collections::BTreeMap;

/// What was taken of a VM, and by whom.
#[derive(Clone, Debug, Serialize)]
pub struct SummaryEvictions {
    /// Pages in all.
    pub pages: u64,
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

/// Of each VM of the recording, in order; `None` of one whose pages cannot be told from
/// others'.
pub fn of(recording: &Recording) -> Vec<Option<SummaryEvictions>> {
    let run = &recording.run;
    let sees_drops = run.sees_drops();
    let is_seen = run.evictions.as_ref().is_some_and(|sight| sight.written_absent.is_none());
    let mut taken = vec![BTreeMap::<&Aggressor, EvictionCounts>::new(); run.vms.len()];
    for row in recording.eviction_rows() {
        if let Some(victim) = row.victim {
            taken[victim].entry(&row.aggressor).or_default().add(row.counts);
        }
    }
    let each = run.vms.iter().zip(taken);
    let each = each.map(|(vm, taken)| {
        // What was taken while its cgroup was its own counts even if it is not any more.
        let is_told = is_seen && (vm.evictions_absent.is_none() || !taken.is_empty());
        is_told.then(|| summary(&vm.vm_id, &taken, sees_drops))
    });
    let mut each: Vec<Option<SummaryEvictions>> = each.collect();
    for (vm, estimate) in kswapd_estimate::of(recording) {
        if let Some(evictions) = &mut each[vm] {
            evictions.kswapd_estimate = Some(estimate);
        }
    }
    each
}

fn summary(
    vm_id: &str,
    taken: &BTreeMap<&Aggressor, EvictionCounts>,
    sees_drops: bool,
) -> SummaryEvictions {
    let mut all = EvictionCounts::default();
    taken.values().for_each(|counts| all.add(*counts));
    let dropped = |counts: EvictionCounts| sees_drops.then_some(counts.dropped_pages);
    let by = taken.iter().map(|(aggressor, counts)| EvictedBy {
        aggressor: (*aggressor).clone(),
        is_itself: aggressor.id == vm_id,
        written_pages: counts.written_pages,
        dropped_pages: dropped(*counts),
        share: counts.pages() as f64 / all.pages().max(1) as f64,
    });
    let mut by: Vec<EvictedBy> = by.collect();
    by.sort_by(|a, b| b.share.total_cmp(&a.share));
    SummaryEvictions {
        pages: all.pages(),
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
        let all: Vec<String> = std::iter::once(said(worst)).chain(others).collect();
        let bytes = readable(self.pages * kernel::page_size());
        let seen = if self.dropped_pages.is_none() { ", written pages only" } else { "" };
        let estimate = self.kswapd_estimate.as_ref();
        let estimate = estimate.map(|estimate| format!(" ({})", estimate.clause(vm_id)));
        let estimate = estimate.unwrap_or_default();
        Some(format!("{bytes} of it were evicted, {}{estimate}{seen}", all.join(", ")))
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

    #[test]
    fn the_worst_is_named_first() {
        let itself = aggressor(AggressorClass::Vm, "1-1", "web");
        let batch = aggressor(AggressorClass::Vm, "2-2", "batch");
        let kswapd = aggressor(AggressorClass::Kswapd, "60", "kswapd0");
        let damon = aggressor(AggressorClass::Damon, "61", "kdamond.0");
        let taken = BTreeMap::from([
            (&itself, counts(16, 0)),
            (&batch, counts(40, 43)),
            (&kswapd, counts(1, 0)),
            (&damon, counts(0, 0)),
        ]);
        let seen = summary("1-1", &taken, true);
        assert_eq!((seen.pages, seen.dropped_pages), (100, Some(43)));
        let said =
            "400.0 KiB of it were evicted, 83.0 % by batch, 16.0 % by itself, 1.0 % by kswapd0";
        assert_eq!(seen.sentence("1-1").unwrap(), said);
        let blind = summary("1-1", &BTreeMap::from([(&batch, counts(40, 0))]), false);
        let said = "160.0 KiB of it were evicted, 100.0 % by batch, written pages only";
        assert_eq!(blind.sentence("1-1").unwrap(), said);
        assert_eq!(summary("1-1", &BTreeMap::new(), true).sentence("1-1"), None);
    }
}
