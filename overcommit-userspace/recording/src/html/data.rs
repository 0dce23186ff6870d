//! What the page's script draws from: the timeline in few bytes.

use crate::html::encode::{Bytes, packed, series};
use crate::html::matrix::Matrix;
use crate::html::timeline::{HostColumn, METRICS, MIB, SERIES, Timeline, VmTimeline};
use crate::model::latencies::Latencies;
use crate::model::slow_fault::SlowFault;
use crate::model::state::State;
use crate::view::losses;
use anyhow::{Context, Result};
use overcommit_ebpf::bucket;
use overcommit_ebpf::layout::Part;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Bytes of the data, as they lie in the page, from which something is left out.
const LARGEST: usize = 900_000;
/// Slow faults of a VM and column, and in all.
const SLOW: [usize; 2] = [4, 4_000];

/// What was left out so that the page stays small; the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Left {
    Nothing,
    QuietMaps,
    MinorMaps,
    SlowFaults,
    Maps,
}

impl Left {
    const ALL: [Self; 5] =
        [Self::Nothing, Self::QuietMaps, Self::MinorMaps, Self::SlowFaults, Self::Maps];

    /// In words; nothing if nothing was.
    pub(super) const fn words(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::QuietMaps => Some("latency maps of VMs that are not drawn in full"),
            Self::MinorMaps => {
                Some("latency maps of minor faults, and of VMs that are not drawn in full")
            }
            Self::SlowFaults => Some(
                "slow faults, latency maps of minor faults, and of VMs that are not drawn in full",
            ),
            Self::Maps => Some("latency maps and slow faults"),
        }
    }
}

/// A VM that is drawn.
pub(super) struct Drawn {
    /// Its place in the recording.
    pub(super) place: usize,
    pub(super) vm_id: String,
    pub(super) name: String,
    /// Among those that are drawn at length: the worst of those that were hurt, and who took from them.
    pub(super) rank: Option<usize>,
    /// Whether its waits for memory, and for a CPU, were seen.
    pub(super) has_stall: bool,
    pub(super) has_cpu: bool,
    /// The column in which it began, and the one behind its end.
    pub(super) born: usize,
    pub(super) died: usize,
    /// The word for its end, if it ended.
    pub(super) end: &'static str,
}

/// An objective on a latency.
pub(super) struct Limit {
    pub(super) metric: String,
    pub(super) quantile: f64,
    pub(super) limit_ns: u64,
    pub(super) text: String,
    /// The VMs that it is for.
    pub(super) places: Vec<usize>,
}

/// The slowest faults of each VM and column, of those that are drawn.
#[derive(Default)]
pub(super) struct Slow {
    by: BTreeMap<(usize, usize), (u32, Vec<SlowFault>)>,
    kept: usize,
}

impl Slow {
    /// Adds one that came in that column.
    pub(super) fn add(&mut self, column: usize, fault: &SlowFault) {
        let (count, faults) = self.by.entry((fault.vm, column)).or_default();
        *count = count.saturating_add(1);
        if faults.len() < SLOW[0] {
            faults.push(fault.clone());
            self.kept += 1;
        } else if let Some(least) = faults.iter_mut().min_by_key(|of| of.latency_ns)
            && least.latency_ns < fault.latency_ns
        {
            *least = fault.clone();
        }
        if self.kept > 2 * SLOW[1] {
            self.keep_slowest();
        }
    }

    /// Forgets all but the slowest of all.
    pub(super) fn keep_slowest(&mut self) {
        let mut latencies: Vec<u64> =
            self.by.values().flat_map(|(_, of)| of.iter().map(|fault| fault.latency_ns)).collect();
        if latencies.len() > SLOW[1] {
            latencies.sort_unstable_by(|a, b| b.cmp(a));
            let least = latencies[SLOW[1] - 1];
            self.by.values_mut().for_each(|(_, of)| of.retain(|fault| fault.latency_ns >= least));
            self.by.retain(|_, (_, of)| !of.is_empty());
        }
        self.kept = self.by.values().map(|(_, of)| of.len()).sum();
    }
}

/// The data, packed, and what was left out of it.
///
/// # Errors
/// None that can happen in memory.
pub(super) fn pack(
    timeline: &Timeline,
    drawn: &[Drawn],
    limits: &[Limit],
    slow: &Slow,
    matrix: &Matrix,
) -> Result<(String, Left)> {
    let mut last = (String::new(), Left::Nothing);
    for left in Left::ALL {
        let text = serde_json::to_vec(&data(timeline, drawn, limits, slow, matrix, left))?;
        last = (packed(&text).context("cannot compress the data of the plots")?, left);
        if last.0.len() <= LARGEST {
            break;
        }
    }
    Ok(last)
}

fn data(
    timeline: &Timeline,
    drawn: &[Drawn],
    limits: &[Limit],
    slow: &Slow,
    matrix: &Matrix,
    left: Left,
) -> Value {
    let round = |value: Option<f64>| value.map(|value| (value * 100.0).round() / 100.0);
    let host = |of: &dyn Fn(&HostColumn) -> Option<f64>| -> Vec<Option<f64>> {
        timeline.host.iter().map(|column| round(of(column))).collect()
    };
    let mut names = Names::default();
    let with_slow = left < Left::SlowFaults;
    let slow: Vec<Value> = drawn
        .iter()
        .map(|vm| if with_slow { slow_of(slow, vm, &mut names) } else { json!([]) })
        .collect();
    let vms: Vec<Value> = drawn.iter().map(|vm| vm_of(timeline, vm, left)).collect();
    json!({
        "start": timeline.start_s(),
        "step": timeline.step_s,
        "T": timeline.columns,
        "marks": timeline.marks,
        "edges": timeline.edges,
        "gone": gone(timeline),
        "mapsEnd": timeline.full_from.unwrap_or(timeline.columns),
        "withoutSlow": !with_slow,
        "host": {
            "avail": host(&|column| column.available),
            "in": host(&|column| timeline.swapped(column)[0]),
            "out": host(&|column| timeline.swapped(column)[1]),
            "some": host(&|column| column.pressure()[0]),
            "full": host(&|column| column.pressure()[1]),
        },
        "states": states(timeline, drawn),
        "vms": vms,
        "pageMib": timeline.page_size as f64 / MIB,
        "taken": matrix.rows.iter().map(|row| &row.spans).collect::<Vec<_>>(),
        "slow": slow,
        "words": names.words,
        "limits": limits.iter().map(|limit| json!({
            "metric": limit.metric, "q": limit.quantile, "ns": limit.limit_ns, "text": limit.text,
            "vms": drawn.iter().enumerate().filter(|(_, vm)| limit.places.contains(&vm.place))
                .map(|(index, _)| index).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

/// Runs of columns in which nothing was recorded.
fn gone(timeline: &Timeline) -> Vec<[usize; 2]> {
    let recorded = timeline.host.iter().map(|column| column.is_recorded);
    runs(recorded).into_iter().filter(|(_, is_recorded)| !is_recorded).map(|(run, _)| run).collect()
}

/// Where the same comes again and again: from, and behind its end.
fn runs<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<([usize; 2], T)> {
    let mut runs: Vec<([usize; 2], T)> = Vec::new();
    for (column, value) in values.enumerate() {
        match runs.last_mut() {
            Some((run, same)) if *same == value => run[1] = column + 1,
            _ => runs.push(([column, column + 1], value)),
        }
    }
    runs
}

/// Bands of states: of the host, and of each VM that was hurt.
pub(super) fn states(timeline: &Timeline, drawn: &[Drawn]) -> Vec<(String, Vec<Value>)> {
    fn bands<S: State>(states: impl Iterator<Item = S>) -> Vec<Value> {
        let bad = |state: &S| state.place() >= 2;
        let runs = runs(states).into_iter().filter(|(_, state)| bad(state));
        runs.map(|([from, to], state)| json!([from, to, state.place() - 1, state.name()])).collect()
    }
    let mut states = vec![
        ("host swap".to_owned(), bands(timeline.host.iter().map(|column| column.swap))),
        ("host RAM".to_owned(), bands(timeline.host.iter().map(|column| column.overcommit))),
    ];
    for vm in drawn.iter().filter(|vm| vm.rank.is_some()) {
        let none = VmTimeline::default();
        let of = timeline.vms.get(vm.place).unwrap_or(&none);
        let mut bands = bands((0..timeline.columns).map(|column| of.at(column).swap));
        if !vm.end.is_empty() {
            bands.push(json!([vm.died, vm.died, 3, vm.end]));
        }
        states.push((vm.name.clone(), bands));
    }
    states
}

fn vm_of(timeline: &Timeline, vm: &Drawn, left: Left) -> Value {
    let none = VmTimeline::default();
    let of = timeline.vms.get(vm.place).unwrap_or(&none);
    let spans = timeline.edges.len() - 1;
    let has_map = |metric: usize| match left {
        Left::Nothing => true,
        Left::QuietMaps => vm.rank.is_some(),
        Left::MinorMaps | Left::SlowFaults => vm.rank.is_some() && metric == 0,
        Left::Maps => false,
    };
    let mut maps = serde_json::Map::new();
    let mut histograms = serde_json::Map::new();
    let mut longest = serde_json::Map::new();
    for (index, metric) in METRICS.into_iter().enumerate() {
        let name = metric.name().to_owned();
        if has_map(index) {
            maps.insert(name.clone(), json!(map(&of.cells[index], timeline.columns)));
        }
        let latencies = |span| of.latencies[index].get(span);
        let each = (0..spans).map(|span| latencies(span).map_or(String::new(), histogram));
        histograms.insert(name.clone(), json!(each.collect::<Vec<_>>()));
        let each = (0..spans).map(|span| latencies(span).map_or(0, |of| of.max_ns));
        longest.insert(name, json!(each.collect::<Vec<_>>()));
    }
    // Tenths of a millisecond.
    let value = |column: usize, at: usize| (of.at(column).series[at] / 1e5).round() as u64;
    let series = |at| series((0..timeline.columns).map(|column| value(column, at)));
    json!({
        "id": vm.vm_id, "name": vm.name, "rank": vm.rank, "stall": vm.has_stall, "cpu": vm.has_cpu, "born": vm.born, "died": vm.died,
        "end": vm.end, "heat": maps, "hist": histograms, "max": longest,
        "series": (0..SERIES).map(series).collect::<Vec<_>>(),
        "held": self::series(held(of, timeline.columns)),
    })
}

/// Hundredths of a GiB that a VM held, column by column; where nobody looked, as at the look before.
fn held(of: &VmTimeline, columns: usize) -> impl Iterator<Item = u64> + '_ {
    let first = (0..columns).find_map(|column| of.at(column).resident).unwrap_or(0.0);
    (0..columns).scan(first, |last, column| {
        *last = of.at(column).resident.unwrap_or(*last);
        Some((*last * 100.0).round() as u64)
    })
}

/// A map: of each column how many rows have faults, then how many rows further up each is, and its
/// count; a zero is followed by a number of empty columns.
fn map(cells: &[(u32, u8, u32)], columns: usize) -> String {
    let mut bytes = Bytes::default();
    let mut next = 0;
    let empty = |bytes: &mut Bytes, from: usize, to: usize| {
        if to > from {
            bytes.number(0);
            bytes.number((to - from) as u64);
        }
    };
    for column in cells.chunk_by(|a, b| a.0 == b.0) {
        let at = column[0].0 as usize;
        empty(&mut bytes, next, at);
        bytes.number(column.len() as u64);
        let mut above = 0;
        for (_, row, count) in column {
            bytes.number(u64::from(row - above));
            bytes.number(u64::from(*count));
            above = row + 1;
        }
        next = at + 1;
    }
    empty(&mut bytes, next, columns);
    bytes.base64()
}

/// A distribution: by how much each bucket's number is higher than the one before, and its count.
fn histogram(latencies: &Latencies) -> String {
    let mut bytes = Bytes::default();
    let mut before = 0;
    for value in latencies.histogram().iter_recorded() {
        let index = bucket::index(value.value_iterated_to()) as u64;
        bytes.number(index - before);
        bytes.number(value.count_at_value());
        before = index;
    }
    bytes.base64()
}

/// Words that come again and again, by number.
#[derive(Default)]
struct Names {
    words: Vec<String>,
    places: BTreeMap<String, usize>,
}

impl Names {
    fn place(&mut self, word: &str) -> usize {
        *self.places.entry(word.to_owned()).or_insert_with(|| {
            self.words.push(word.to_owned());
            self.words.len() - 1
        })
    }
}

/// Of each column in order: how many there were, then the slowest, the slowest first.
fn slow_of(slow: &Slow, vm: &Drawn, names: &mut Names) -> Value {
    let columns = slow.by.range((vm.place, 0)..(vm.place + 1, 0));
    let columns = columns.map(|((_, column), (count, faults))| {
        let mut faults: Vec<&SlowFault> = faults.iter().collect();
        faults.sort_by_key(|fault| std::cmp::Reverse(fault.latency_ns));
        let faults: Vec<Value> = faults.into_iter().map(|fault| slow_fault(fault, names)).collect();
        json!([column, count, faults])
    });
    Value::Array(columns.collect())
}

fn slow_fault(fault: &SlowFault, names: &mut Names) -> Value {
    let by = fault.aggressor.as_ref().map_or("", |by| by.name.as_str());
    let total = fault.time.total_ns.max(1);
    let percent = |part| 100 * fault.time.of(part).unwrap_or(0) / total;
    let parts = [Part::Swapin, Part::Reclaim, Part::Lock, Part::Runq].map(percent);
    json!([
        fault.latency_ns / 1_000,
        names.place(&fault.thread),
        names.place(&losses::what(fault)),
        names.place(by),
        format!("{:#x}", fault.address),
        names.place(fault.stack.as_deref().unwrap_or("")),
        parts,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    #[test]
    fn maps_and_distributions_are_gaps_and_counts() {
        let bytes = |text: String| STANDARD.decode(text).unwrap();
        let cells = [(2, 3, 1), (2, 5, 200), (3, 0, 7)];
        assert_eq!(bytes(map(&cells, 6)), [0, 2, 2, 3, 1, 1, 200, 1, 1, 0, 7, 0, 2]);
        assert_eq!(bytes(map(&[], 3)), [0, 3]);
        let mut latencies = Latencies::empty();
        latencies.record(5, 2);
        latencies.record(300, 1);
        assert_eq!(bytes(histogram(&latencies)), [5, 2, 145, 2, 1]);
    }

    #[test]
    fn of_too_many_slow_faults_the_slowest_stay() {
        let mut slow = Slow::default();
        let most = 3 * SLOW[1] as u64;
        for latency_ns in 0..most {
            let vm = usize::from(latency_ns % 2 == 0);
            slow.add(latency_ns as usize / 3, &SlowFault { vm, latency_ns, ..SlowFault::none() });
        }
        slow.keep_slowest();
        assert_eq!(slow.kept, SLOW[1]);
        let kept = slow.by.values().flat_map(|(_, of)| of);
        assert!(kept.map(|fault| fault.latency_ns).min() == Some(most - SLOW[1] as u64));
        assert!(slow.by.values().all(|(count, of)| *count > 0 && !of.is_empty()));
    }

    #[test]
    fn what_lasts_is_one_run() {
        assert_eq!(runs([1, 1, 2, 1].into_iter()), [([0, 2], 1), ([2, 3], 2), ([3, 4], 1)]);
        assert!(runs(std::iter::empty::<u8>()).is_empty());
    }
}
