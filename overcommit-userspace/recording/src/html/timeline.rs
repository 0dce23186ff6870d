//! A recording in columns of time, as its plots have it: what a fold of its intervals gives.

use crate::model::interval::{Interval, VmInterval};
use crate::model::latencies::Latencies;
use crate::model::memory::OvercommitState;
use crate::model::run::Run;
use crate::model::swap::SwapState;
use overcommit_ebpf::layout::{Metric, Part};

/// Columns at the most: more would share a pixel.
const COLUMNS: u64 = 3_600;
/// Lengths that a column may have, in seconds.
const STEPS: [u64; 10] = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600];
/// Spans between marks that have distributions of their own.
const SPANS: usize = 8;
/// VMs of which plots are made.
const VMS: usize = 512;
/// Cells of all latency maps: what their memory is bounded by.
const CELLS: usize = 4_000_000;
/// The metrics of the maps and percentiles.
pub(super) const METRICS: [Metric; 2] = [Metric::FaultMajor, Metric::FaultMinor];
/// Series of a VM, in tenths of a millisecond of vCPU time in a column: parts of its waits, all of
/// its waits for memory, and its waits for a CPU.
pub(super) const SERIES: usize = 7;
pub(super) const MEMORY: usize = 5;
pub(super) const CPU: usize = 6;
/// Nanoseconds of a tenth of a millisecond.
const UNIT_NS: u64 = 100_000;
const GIB: f64 = 1_073_741_824.0;
const MIB: f64 = 1_048_576.0;

/// The recording so far.
#[derive(Debug)]
pub(super) struct Timeline {
    start_us: u64,
    /// Length of a column.
    pub(super) step_s: u64,
    /// How many there are.
    pub(super) columns: usize,
    /// Marks, by column.
    pub(super) marks: Vec<(String, usize)>,
    /// Columns at which spans begin, and the end.
    pub(super) edges: Vec<usize>,
    pub(super) host: Vec<HostColumn>,
    pub(super) vms: Vec<VmTimeline>,
    cells: usize,
    /// Whether maps end early, because they would not fit.
    pub(super) is_full: bool,
    page_size: u64,
}

/// The host in a column.
#[derive(Clone, Debug, Default)]
pub(super) struct HostColumn {
    /// Whether there was an interval.
    pub(super) is_recorded: bool,
    /// GiB, at the least.
    pub(super) available: Option<f64>,
    pub(super) total: Option<f64>,
    /// Pages and the time of their rates.
    swapped: [f64; 2],
    rates_ns: u64,
    /// Of PSI, and of how much time.
    some_ns: Option<u64>,
    full_ns: Option<u64>,
    length_ns: u64,
    pub(super) swap: SwapState,
    pub(super) overcommit: OvercommitState,
}

/// A VM in columns.
#[derive(Clone, Debug, Default)]
pub(super) struct VmTimeline {
    /// Of each metric: column, row and count.
    pub(super) cells: [Vec<(u32, u8, u32)>; METRICS.len()],
    /// Of each metric, by span.
    pub(super) latencies: [Vec<Latencies>; METRICS.len()],
    /// By column.
    pub(super) series: Vec<[u32; SERIES]>,
    /// GiB that it held, by column.
    pub(super) resident: Vec<Option<f32>>,
    pub(super) swap: Vec<SwapState>,
    vcpu_ns: u64,
    recorded_ns: u64,
}

/// Half an octave of latency, from 256 ns on: 52 of them.
pub(super) fn row(ns: u64) -> u8 {
    (((ns.max(256) as f64).log2() - 8.0) * 2.0).min(51.0) as u8
}

impl Timeline {
    /// Of a recording with these marks, by the time of day in microseconds.
    pub(super) fn new(run: &Run, marks: &[(u64, String)]) -> Self {
        let start_us = run.clocks.start.realtime_ns / 1_000;
        let interval_s = run.options.interval_ns.div_ceil(1_000_000_000).max(1);
        let length_s =
            run.options.interval_ns.saturating_mul(run.recorded.intervals) / 1_000_000_000;
        let fits = |step: &u64| *step >= interval_s && length_s / step < COLUMNS;
        let longest = (length_s / COLUMNS + 1).max(interval_s);
        let step_s = STEPS.into_iter().find(fits).unwrap_or(longest);
        let columns = (length_s / step_s) as usize + 1;
        let mut timeline = Self {
            start_us,
            step_s,
            columns,
            marks: Vec::new(),
            edges: vec![0],
            host: Vec::new(),
            vms: Vec::new(),
            cells: 0,
            is_full: false,
            page_size: run.page_size,
        };
        for (at_us, text) in marks {
            let column = timeline.column(*at_us);
            timeline.marks.push((text.clone(), column));
            if timeline.edges.len() < SPANS
                && timeline.edges.last().is_some_and(|last| *last < column)
            {
                timeline.edges.push(column);
            }
        }
        timeline
    }

    /// The column of a moment, in Unix microseconds.
    pub(super) fn column(&self, at_us: u64) -> usize {
        let column = at_us.saturating_sub(self.start_us) / (self.step_s * 1_000_000);
        usize::try_from(column).unwrap_or(usize::MAX).min(COLUMNS as usize * 2)
    }

    /// Unix seconds of its start.
    pub(super) fn start_s(&self) -> f64 {
        self.start_us as f64 / 1e6
    }

    /// Adds an interval.
    pub(super) fn add(&mut self, interval: &Interval) {
        // The middle: a boundary may lie a hair before its second.
        let place = interval.place;
        let column = self.column(place.start_us + place.length_ns / 2_000);
        self.columns = self.columns.max(column + 1);
        // A long one is in none of the columns that it goes on in.
        self.host.resize(self.host.len().max(column + 1), HostColumn::default());
        self.host[column].add(interval);
        let span = self.edges.iter().filter(|edge| **edge <= column).count() - 1;
        for vm in interval.vms.iter().filter(|vm| vm.vm < VMS) {
            if self.vms.len() <= vm.vm {
                self.vms.resize(vm.vm + 1, VmTimeline::default());
            }
            self.is_full |= self.cells > CELLS;
            self.cells += self.vms[vm.vm].add(vm, column, span, place.length_ns, !self.is_full);
        }
    }

    /// Ends it: the spans end with the last column.
    pub(super) fn end(&mut self) {
        self.columns = self.host.len().max(1);
        self.edges.retain(|edge| *edge < self.columns);
        self.edges.push(self.columns);
        self.marks.retain(|(_, column)| *column < self.columns);
        self.host.resize(self.columns, HostColumn::default());
    }

    /// MiB a second that were read back, and written.
    pub(super) fn swapped(&self, column: &HostColumn) -> [Option<f64>; 2] {
        let mib = self.page_size as f64 / MIB * 1e9 / column.rates_ns.max(1) as f64;
        column.swapped.map(|pages| (column.rates_ns > 0).then_some(pages * mib))
    }
}

impl HostColumn {
    fn add(&mut self, interval: &Interval) {
        let host = &interval.host;
        self.is_recorded = true;
        let gib = |bytes: u64| bytes as f64 / GIB;
        let memory = host.swap.memory;
        let available = host.swap.least_available.or(memory.and_then(|memory| memory.available));
        self.available = self.available.into_iter().chain(available.map(gib)).reduce(f64::min);
        self.total = memory.map(|memory| gib(memory.total)).or(self.total);
        if let Some(rates) = host.swap.rates
            && let (Some(into), Some(out)) = (rates.swapped_in, rates.swapped_out)
        {
            let length_s = rates.length_ns as f64 / 1e9;
            self.swapped = [self.swapped[0] + into * length_s, self.swapped[1] + out * length_s];
            self.rates_ns += rates.length_ns;
        }
        let sum =
            |sum: Option<u64>, more: Option<u64>| more.map(|ns| ns + sum.unwrap_or(0)).or(sum);
        self.some_ns = sum(self.some_ns, host.pressure.some_ns);
        self.full_ns = sum(self.full_ns, host.pressure.full_ns);
        self.length_ns += interval.place.length_ns;
        self.swap = self.swap.max(host.swap.state);
        let overcommit = host.overcommit.map(|of| of.state).unwrap_or_default();
        self.overcommit = self.overcommit.max(overcommit);
    }

    /// Per cent of the time in which somebody, and in which everybody waited for memory.
    pub(super) fn pressure(&self) -> [Option<f64>; 2] {
        let share = |ns: u64| (100.0 * ns as f64 / self.length_ns.max(1) as f64).min(100.0);
        [self.some_ns.map(share), self.full_ns.map(share)]
    }
}

impl VmTimeline {
    /// Gives how many cells came new.
    fn add(
        &mut self,
        vm: &VmInterval,
        column: usize,
        span: usize,
        length_ns: u64,
        maps: bool,
    ) -> usize {
        let columns = self.series.len().max(column + 1);
        self.series.resize(columns, [0; SERIES]);
        self.resident.resize(columns, None);
        self.swap.resize(columns, SwapState::Unknown);
        self.swap[column] = self.swap[column].max(vm.swap.state);
        if let Some(memory) = vm.memory {
            self.resident[column] = Some((memory.resident as f64 / GIB) as f32);
        }
        for (sum, ns) in self.series[column].iter_mut().zip(waits(vm)) {
            *sum = sum.saturating_add(u32::try_from(ns / UNIT_NS).unwrap_or(u32::MAX));
        }
        let recorded_ns = vm.recorded_of(length_ns);
        self.recorded_ns = self.recorded_ns.saturating_add(recorded_ns);
        self.vcpu_ns = self.vcpu_ns.saturating_add(vm.stall.map_or(0, |stall| stall.vcpu_ns));
        let mut added = 0;
        for (index, metric) in METRICS.into_iter().enumerate() {
            let Some(latencies) = vm.latencies(metric).filter(|of| of.count() > 0) else {
                continue;
            };
            let spans = &mut self.latencies[index];
            spans.resize(spans.len().max(span + 1), Latencies::empty());
            spans[span].merge(latencies);
            if maps {
                added += add_cells(&mut self.cells[index], column as u32, latencies);
            }
        }
        added
    }

    /// vCPUs, on the average of the time in which they were known.
    pub(super) fn vcpus(&self) -> f64 {
        (self.vcpu_ns as f64 / self.recorded_ns.max(1) as f64).max(0.01)
    }
}

/// Nanoseconds of what a series stands for, in their order.
fn waits(vm: &VmInterval) -> [u64; SERIES] {
    let time = vm.stall_time.unwrap_or(vm.fault_time);
    let part = |part| time.of(part).unwrap_or(0);
    let parts = [Part::Swapin, Part::Reclaim, Part::Lock, Part::Runq].map(part);
    let other = time.total_ns.saturating_sub(parts.iter().sum());
    let [swapin, reclaim, lock, runq] = parts;
    let mut waits = [swapin, reclaim, lock, runq, other, 0, 0];
    waits[MEMORY] = vm.stall.map_or(0, |stall| stall.memory_ns());
    waits[CPU] = vm.cpu_wait_ns.unwrap_or(0);
    waits
}

/// Those of the last column may be there already. Gives how many came new.
fn add_cells(cells: &mut Vec<(u32, u8, u32)>, column: u32, latencies: &Latencies) -> usize {
    let before = cells.len();
    let first = cells.iter().rposition(|(of, ..)| *of != column).map_or(0, |at| at + 1);
    for value in latencies.histogram().iter_recorded() {
        let row = row(value.value_iterated_to());
        let count = u32::try_from(value.count_at_value()).unwrap_or(u32::MAX);
        match cells[first..].iter_mut().find(|(_, of, _)| *of == row) {
            Some((_, _, sum)) => *sum = sum.saturating_add(count),
            None => cells.push((column, row, count)),
        }
    }
    cells[first..].sort_unstable();
    cells.len() - before
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::coverage::Coverage;
    use crate::model::interval::{MetricInterval, Place};

    const SECOND_NS: u64 = 1_000_000_000;

    fn run(interval_s: u64, intervals: u64) -> Run {
        let mut run = Run::default();
        run.options.interval_ns = interval_s * SECOND_NS;
        run.recorded.intervals = intervals;
        run
    }

    fn interval(start_s: u64, length_s: u64, latency_ns: u64) -> Interval {
        let place = Place {
            start_us: start_s * 1_000_000,
            length_ns: length_s * SECOND_NS,
            ..Place::default()
        };
        let mut latencies = Latencies::empty();
        latencies.record(latency_ns, 3);
        let name = Metric::FaultMajor.into();
        let metric = MetricInterval { vm: 0, name, coverage: Coverage::Full, latencies };
        let vm = VmInterval {
            metrics: vec![metric],
            cpu_wait_ns: Some(SECOND_NS / 2),
            ..VmInterval::default()
        };
        Interval { place, vms: vec![vm], ..Interval::default() }
    }

    #[test]
    fn columns_are_as_long_as_they_have_to_be() {
        let step = |interval_s, intervals| Timeline::new(&run(interval_s, intervals), &[]).step_s;
        assert_eq!([step(1, 900), step(1, 3_599), step(1, 3_600)], [1, 1, 2]);
        assert_eq!([step(10, 60), step(7, 60), step(1, 86_400)], [10, 10, 30]);
        assert_eq!(step(3_600, 24), 3_600);
    }

    #[test]
    fn a_column_has_all_of_its_intervals_and_a_gap_none() {
        let marks = [(2_000_000, "load".to_owned()), (90_000_000, "late".to_owned())];
        let mut timeline = Timeline::new(&run(1, 8), &marks);
        for (start_s, latency_ns) in [(0, 1_000), (1, 1_000), (2, 5_000_000), (2, 1_000)] {
            timeline.add(&interval(start_s, 1, latency_ns));
        }
        // The recorder was held up.
        timeline.add(&interval(3, 3, 1_000));
        timeline.end();
        assert_eq!(timeline.columns, 5);
        let recorded: Vec<bool> = timeline.host.iter().map(|column| column.is_recorded).collect();
        assert_eq!(recorded, [true, true, true, false, true]);
        assert_eq!((timeline.edges, timeline.marks), (vec![0, 2, 5], vec![("load".to_owned(), 2)]));
        let vm = &timeline.vms[0];
        let (low, high) = (row(1_000), row(5_000_000));
        let cells = [(0, low, 3), (1, low, 3), (2, low, 3), (2, high, 3), (4, low, 3)];
        assert_eq!(vm.cells[0], cells);
        assert_eq!(vm.latencies[0].iter().map(Latencies::count).collect::<Vec<_>>(), [6, 9]);
        assert_eq!(vm.series[2][CPU], 10_000);
        assert_eq!([row(0), row(256), row(363), row(1 << 40)], [0, 0, 1, 51]);
    }
}
