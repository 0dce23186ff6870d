//! Who took memory of whom: a matrix of the whole recording, and of each span between marks.

use crate::html::tables::count;
use crate::html::timeline::MIB;
use crate::model::evictions::{Aggressor, AggressorClass, Eviction};
use crate::model::run::Run;
use crate::summary::evictions::EvictedBy;
use crate::summary::{Summary, SummaryVm};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Rows and columns that have names.
const NAMED: usize = 8;

/// In MiB.
#[derive(Default)]
pub(super) struct Matrix {
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<MatrixRow>,
}

/// One who lost some.
pub(super) struct MatrixRow {
    pub(super) name: String,
    pub(super) cells: Vec<MatrixCell>,
    pub(super) sum: String,
    /// Pages in each span, by column; none where there is but one span.
    pub(super) spans: Vec<Vec<u64>>,
}

/// What one took of it: the stronger the colour, from 0 to 80, the more.
pub(super) struct MatrixCell {
    pub(super) text: String,
    pub(super) colour: u32,
    pub(super) is_self: bool,
}

/// One who takes pages: VMs of one name are told apart by their ids.
type Taker = (AggressorClass, String, String);

/// Pages that were taken in each span.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// The number of each who takes.
    takers: BTreeMap<Taker, usize>,
    /// By span, the place of the VM, and that number.
    pages: BTreeMap<(usize, usize, usize), u64>,
}

impl Taken {
    /// Adds what was taken in an interval.
    pub(super) fn add(&mut self, span: usize, evictions: &[Eviction]) {
        for eviction in evictions {
            let Some(victim) = eviction.victim else { continue };
            let next = self.takers.len();
            let taker = *self.takers.entry(taker(&eviction.aggressor)).or_insert(next);
            let sum = self.pages.entry((span, victim, taker)).or_default();
            *sum = sum.saturating_add(eviction.counts.pages());
        }
    }

    /// All pages, by span.
    #[cfg(test)]
    pub(super) fn sums(&self, spans: usize) -> Vec<u64> {
        let of =
            |span| self.pages.iter().filter(|(key, _)| key.0 == span).map(|(_, pages)| pages).sum();
        (0..spans).map(of).collect()
    }

    /// What those took of a VM in each span, and all others.
    fn of(&self, victim: usize, columns: &[Taker], spans: usize) -> Vec<Vec<u64>> {
        let numbers: Vec<Option<&usize>> = columns.iter().map(|of| self.takers.get(of)).collect();
        let in_span = |span| {
            let mut pages = vec![0u64; columns.len() + 1];
            for ((_, _, taker), more) in
                self.pages.range((span, victim, 0)..=(span, victim, usize::MAX))
            {
                let column = numbers.iter().position(|number| *number == Some(taker));
                let sum = &mut pages[column.unwrap_or(columns.len())];
                *sum = sum.saturating_add(*more);
            }
            pages
        };
        (0..spans).map(in_span).collect()
    }
}

impl Matrix {
    /// Of those who lost and took most; others together. Of so many spans, if there are several.
    pub(super) fn of(run: &Run, summary: &Summary, taken: &Taken, spans: usize) -> Self {
        let (lost, columns) = lost_and_takers(summary);
        let most = lost.first().map_or(0, |(_, _, pages)| *pages).max(1);
        let mib = |pages: u64| count((pages as f64 * run.page_size as f64 / MIB).ceil() as u64);
        let cell = |pages: u64, is_self| MatrixCell {
            text: if pages == 0 { "·".to_owned() } else { mib(pages) },
            colour: if pages == 0 {
                0
            } else {
                6 + (74.0 * (pages as f64 / most as f64).sqrt()) as u32
            },
            is_self,
        };
        let row = |(place, vm, all): &(usize, &SummaryVm, u64)| {
            let by = || vm.evictions.iter().flat_map(|of| &of.by);
            let of = |wanted: &Taker| by().filter(|by| is(by, wanted)).map(pages).sum::<u64>();
            let is_self = |wanted: &Taker| by().any(|by| by.is_itself && is(by, wanted));
            let mut cells: Vec<MatrixCell> =
                columns.iter().map(|wanted| cell(of(wanted), is_self(wanted))).collect();
            let named = columns.iter().map(of).fold(0, u64::saturating_add);
            cells.push(cell(all.saturating_sub(named), false));
            let spans = if spans > 1 { taken.of(*place, &columns, spans) } else { Vec::new() };
            MatrixRow { name: vm.vm.clone(), cells, sum: mib(*all), spans }
        };
        let rows = lost.iter().take(NAMED).map(row).collect();
        let names = columns.iter().map(|(class, name, _)| who(*class, name));
        Self { columns: names.chain(["others".to_owned()]).collect(), rows }
    }
}

/// VMs by how much they lost, each with its place and its pages; and those who took most.
fn lost_and_takers(summary: &Summary) -> (Vec<(usize, &SummaryVm, u64)>, Vec<Taker>) {
    let mut taken: BTreeMap<Taker, u64> = BTreeMap::new();
    let mut lost: Vec<(usize, &SummaryVm, u64)> = Vec::new();
    for (place, vm) in summary.vms.iter().enumerate().filter(|(_, vm)| vm.length_s > 0.0) {
        let Some(evictions) = vm.evictions.as_ref().filter(|of| of.pages > 0) else { continue };
        lost.push((place, vm, evictions.pages));
        for by in &evictions.by {
            let sum = taken.entry(taker(&by.aggressor)).or_default();
            *sum = sum.saturating_add(pages(by));
        }
    }
    lost.sort_by_key(|(_, _, pages)| Reverse(*pages));
    let mut takers: Vec<(Taker, u64)> = taken.into_iter().collect();
    takers.sort_by_key(|(_, pages)| Reverse(*pages));
    (lost, takers.into_iter().take(NAMED).map(|(taker, _)| taker).collect())
}

fn taker(by: &Aggressor) -> Taker {
    let id = if by.class == AggressorClass::Vm { by.id.clone() } else { String::new() };
    (by.class, by.name.clone(), id)
}

fn is(by: &EvictedBy, wanted: &Taker) -> bool {
    taker(&by.aggressor) == *wanted
}

fn pages(by: &EvictedBy) -> u64 {
    by.written_pages.saturating_add(by.dropped_pages.unwrap_or(0))
}

fn who(class: AggressorClass, name: &str) -> String {
    match class {
        AggressorClass::Vm => name.to_owned(),
        AggressorClass::Kswapd => "kswapd".to_owned(),
        AggressorClass::Process => format!("process {name}"),
        class => format!("{} {name}", class.name()),
    }
}
