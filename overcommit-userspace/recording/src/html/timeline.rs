//! A recording in columns of time, as its plots have it: what a fold of its intervals gives.

use crate::html::matrix::Taken;
use crate::model::interval::{Interval, Place, VmInterval};
use crate::model::latencies::Latencies;
use crate::model::memory::OvercommitState;
use crate::model::run::Run;
use crate::model::swap::SwapState;
use crate::recording::span::Mark;
use overcommit_ebpf::layout::{Metric, Part};
use std::collections::VecDeque;

/// Columns at the most: more would share a pixel.
const COLUMNS: u64 = 3_600;
/// Lengths that a column may have, in seconds.
const STEPS: [u64; 10] = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600];
/// Spans between marks that have distributions of their own.
const SPANS: usize = 8;
/// VMs of which plots can be made: more than a recording keeps, but for thousands that run.
const VMS: usize = 1_024;
/// Cells of all latency maps: what their memory is bounded by.
const CELLS: usize = 4_000_000;
/// The metrics of the maps and percentiles.
pub(super) const METRICS: [Metric; 2] = [Metric::FaultMajor, Metric::FaultMinor];
/// Series of a VM, in nanoseconds in a column: parts of its waits, all of its waits for memory, its
/// waits for a CPU, the time of its vCPUs, and for how long it was recorded.
pub(super) const SERIES: usize = 9;
pub(super) const MEMORY: usize = 5;
pub(super) const CPU: usize = 6;
const VCPUS: usize = 7;
const RECORDED: usize = 8;
/// What a step of the time of day is, in microseconds: intervals follow each other.
const CLOCK_STEP_US: u64 = 1_000_000;
pub(super) const GIB: f64 = 1_073_741_824.0;
pub(super) const MIB: f64 = 1_048_576.0;

/// The recording so far.
#[derive(Debug)]
pub(super) struct Timeline {
    /// Start of the first column: a multiple of their length, as of intervals.
    start_us: u64,
    /// The intervals so far, as far as they follow each other.
    pieces: Vec<Piece>,
    /// Length of the last interval, in microseconds.
    last_us: u64,
    /// Whether the time of day was set, maybe back.
    is_set: bool,
    /// Length of a column.
    pub(super) step_s: u64,
    /// How many there are.
    pub(super) columns: usize,
    /// Marks, by column, and those whose interval has not come yet, in the order of their making.
    pub(super) marks: Vec<(String, usize)>,
    waiting: VecDeque<Mark>,
    /// Marks at which no span begins, because there are too many.
    pub(super) without_span: usize,
    /// Columns at which spans begin, and the end.
    pub(super) edges: Vec<usize>,
    pub(super) host: Vec<HostColumn>,
    pub(super) vms: Vec<VmTimeline>,
    cells: usize,
    /// The column with which maps end early, because they would not fit.
    pub(super) full_from: Option<usize>,
    pub(super) page_size: u64,
    /// Gathered where there are several spans.
    pub(super) taken: Taken,
}

/// Intervals between which the time of day was not set, in Unix microseconds.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// As the recording has them.
    from_us: u64,
    to_us: u64,
    /// Where the page shows the first of them.
    shown_us: u64,
}

impl Piece {
    fn shown_at(&self, at_us: u64) -> u64 {
        self.shown_us.saturating_add_signed(at_us.wrapping_sub(self.from_us).cast_signed())
    }

    fn distance_us(&self, at_us: u64) -> u64 {
        at_us.abs_diff(at_us.clamp(self.from_us, self.to_us))
    }
}

/// The host in a column.
#[derive(Clone, Debug, Default)]
pub(super) struct HostColumn {
    /// Whether there was an interval.
    pub(super) is_recorded: bool,
    /// GiB, at the least.
    pub(super) available: Option<f64>,
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
    /// The column in which it was first recorded.
    first: usize,
    /// From there on, by column.
    columns: Vec<VmColumn>,
}

/// A VM in a column.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct VmColumn {
    pub(super) series: [f32; SERIES],
    /// GiB that it held.
    pub(super) resident: Option<f32>,
    pub(super) swap: SwapState,
}

/// Half an octave of latency, from 256 ns on: 52 of them.
pub(super) fn row(ns: u64) -> u8 {
    (((ns.max(256) as f64).log2() - 8.0) * 2.0).min(51.0) as u8
}

impl Timeline {
    /// Of a recording with these marks.
    pub(super) fn new(run: &Run, marks: &[Mark]) -> Self {
        let interval_ns = run.options.interval_ns.max(1);
        let length_s = interval_ns.saturating_mul(run.recorded.intervals) / 1_000_000_000;
        let step_s = step(interval_ns, length_s);
        let step_us = step_s.saturating_mul(1_000_000);
        let start_us = run.clocks.start.realtime_ns / 1_000 / step_us * step_us;
        Self {
            start_us,
            pieces: Vec::new(),
            last_us: 0,
            is_set: !run.clocks.steps.is_empty(),
            step_s,
            columns: 1,
            marks: Vec::new(),
            waiting: marks.iter().cloned().collect(),
            without_span: 0,
            edges: vec![0],
            host: Vec::new(),
            vms: Vec::new(),
            cells: 0,
            full_from: None,
            page_size: run.page_size,
            taken: Taken::default(),
        }
    }

    /// The column of a moment as the recording has it, in Unix microseconds: of one that was there
    /// twice because the time of day was set back, the first.
    pub(super) fn column(&self, at_us: u64) -> usize {
        let nearest = self.pieces.iter().min_by_key(|piece| piece.distance_us(at_us));
        self.column_of(nearest.map_or(at_us, |piece| piece.shown_at(at_us)))
    }

    /// The column of a moment as the page shows it, where time only goes on.
    fn column_of(&self, shown_us: u64) -> usize {
        let column = shown_us.saturating_sub(self.start_us) / (self.step_s * 1_000_000);
        usize::try_from(column).unwrap_or(usize::MAX).min(COLUMNS as usize * 2)
    }

    /// Unix seconds of its start.
    pub(super) fn start_s(&self) -> f64 {
        self.start_us as f64 / 1e6
    }

    /// Adds an interval. One that is longer than a column leaves those empty that it goes on in.
    pub(super) fn add(&mut self, interval: &Interval) {
        let place = interval.place;
        let start_us = self.follow(&place);
        let column = self.column_of(start_us);
        self.take_marks(&place);
        self.host.resize(self.host.len().max(column + 1), HostColumn::default());
        self.host[column].add(interval);
        let span = self.edges.iter().filter(|edge| **edge <= column).count() - 1;
        if self.edges.len() > 1 || !self.waiting.is_empty() {
            self.taken.add(span, &interval.evictions);
        }
        for vm in interval.vms.iter().filter(|vm| vm.vm < VMS) {
            if self.vms.len() <= vm.vm {
                self.vms.resize(vm.vm + 1, VmTimeline::default());
            }
            if self.cells > CELLS {
                self.full_from.get_or_insert(column);
            }
            let maps = self.full_from.is_none();
            self.cells += self.vms[vm.vm].add(vm, column, span, place.length_ns, maps);
        }
    }

    /// When an interval begins, as the page shows it: where the one before ended, whatever the clock
    /// was set to.
    fn follow(&mut self, place: &Place) -> u64 {
        let Place { start_us, length_ns, .. } = *place;
        let end_us = start_us.saturating_add(length_ns / 1_000);
        let shown_us = match self.pieces.last_mut() {
            Some(last) if start_us.abs_diff(last.to_us) <= CLOCK_STEP_US => {
                last.to_us = end_us;
                return last.shown_at(start_us);
            }
            Some(last) => last.shown_at(last.to_us),
            None => start_us,
        };
        self.pieces.push(Piece { from_us: start_us, to_us: end_us, shown_us });
        shown_us
    }

    /// Takes the marks of the interval that came last. One that was made in the interval before, but
    /// after the clock was set, has a time right before this one.
    fn take_marks(&mut self, place: &Place) {
        let length_us = place.length_ns / 1_000;
        let before_us = self.last_us.max(length_us) + CLOCK_STEP_US;
        let from_us = place.start_us.saturating_sub(before_us);
        let to_us = place.start_us.saturating_add(length_us);
        // What is no longer to come, or what comes before a part that is looked at.
        let is_over = !self.is_set || self.last_us == 0;
        self.last_us = length_us;
        let is_in = |mark: &mut Mark| mark.at_us < to_us && (is_over || mark.at_us >= from_us);
        while let Some(mark) = self.waiting.pop_front_if(is_in) {
            // Once the time of day was set, a moment can lie in an earlier piece as well.
            let is_again = self.is_set && self.pieces.len() > 1;
            let piece = self.pieces.last().filter(|_| is_again);
            let column = piece.map_or_else(
                || self.column(mark.at_us),
                |piece| self.column_of(piece.shown_at(mark.at_us.max(piece.from_us))),
            );
            self.marks.push((mark.text, column));
            if self.edges.last().is_some_and(|last| *last < column) {
                if self.edges.len() < SPANS {
                    self.edges.push(column);
                } else {
                    self.without_span += 1;
                }
            }
        }
    }

    /// Ends it: the spans end with the last column.
    pub(super) fn end(&mut self) {
        self.columns = self.host.len().max(1);
        self.edges.retain(|edge| *edge < self.columns);
        self.edges.push(self.columns);
        // Of no interval that there is: by their times alone.
        for mark in std::mem::take(&mut self.waiting) {
            let column = self.column(mark.at_us);
            self.marks.push((mark.text, column));
        }
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
        let at_end = host.swap.memory.and_then(|memory| memory.available);
        let available = host.swap.least_available.or(at_end).map(|bytes| bytes as f64 / GIB);
        self.available = self.available.into_iter().chain(available).reduce(f64::min);
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
        if self.columns.is_empty() {
            self.first = column;
        }
        let at = column.saturating_sub(self.first);
        self.columns.resize(self.columns.len().max(at + 1), VmColumn::default());
        let of = &mut self.columns[at];
        of.swap = of.swap.max(vm.swap.state);
        of.resident = vm.memory.map(|memory| (memory.resident as f64 / GIB) as f32).or(of.resident);
        for (sum, ns) in of.series.iter_mut().zip(waits(vm, length_ns)) {
            *sum += ns as f32;
        }
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

    /// A column; nothing of one in which it was not recorded.
    pub(super) fn at(&self, column: usize) -> VmColumn {
        let at = column.checked_sub(self.first);
        at.and_then(|at| self.columns.get(at)).copied().unwrap_or_default()
    }
}

/// The length of a column: whole intervals, where that can be, and not too many of them.
fn step(interval_ns: u64, length_s: u64) -> u64 {
    let fits = |step: &u64| *step * 1_000_000_000 >= interval_ns && length_s / step < COLUMNS;
    let is_whole = |step: &u64| (*step * 1_000_000_000).is_multiple_of(interval_ns);
    let whole = STEPS.into_iter().find(|step| fits(step) && is_whole(step));
    let least = interval_ns.div_ceil(1_000_000_000).max(length_s / COLUMNS + 1);
    whole.or_else(|| STEPS.into_iter().find(fits)).unwrap_or(least)
}

/// Nanoseconds of what a series stands for, in their order.
fn waits(vm: &VmInterval, length_ns: u64) -> [u64; SERIES] {
    let time = vm.stall_time.unwrap_or(vm.fault_time);
    let part = |part| time.of(part).unwrap_or(0);
    let [swapin, reclaim, lock, runq] =
        [Part::Swapin, Part::Reclaim, Part::Lock, Part::Runq].map(part);
    let seen = [swapin, reclaim, lock, runq].into_iter().fold(0, u64::saturating_add);
    let mut waits = [swapin, reclaim, lock, runq, time.total_ns.saturating_sub(seen), 0, 0, 0, 0];
    waits[MEMORY] = vm.stall.map_or(0, |stall| stall.memory_ns());
    waits[CPU] = vm.cpu_wait_ns.unwrap_or(0);
    waits[VCPUS] = vm.stall.map_or(0, |stall| stall.vcpu_ns);
    waits[RECORDED] = vm.recorded_of(length_ns);
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
    use crate::model::clock::Clocks;
    use crate::model::coverage::Coverage;
    use crate::model::evictions::{Aggressor, AggressorClass, Eviction, EvictionCounts};
    use crate::model::interval::MetricInterval;

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
        assert_eq!(step(20, 100_000), 600);
        assert_eq!(step(3_600, 24), 3_600);
    }

    #[test]
    fn a_column_has_all_of_its_intervals_and_a_gap_none() {
        let mark = |at_us, text: &str| Mark { at_us, text: text.to_owned() };
        // The second one by the clock as it was set, right before the next interval; the last one at no
        // time that there was.
        let marks = [mark(2_000_000, "load"), mark(3_602_400_000, "set"), mark(90_000_000, "late")];
        let mut run = run(1, 8);
        run.clocks.steps.push(Clocks::default());
        let mut timeline = Timeline::new(&run, &marks);
        let mut half = interval(2, 1, 5_000_000);
        half.place.length_ns /= 2;
        timeline.add(&interval(0, 1, 1_000));
        timeline.add(&interval(1, 1, 1_000));
        timeline.add(&half);
        // The clock is set forward by an hour; the interval begins in the middle of a second.
        let mut next = interval(0, 1, 1_000);
        next.place.start_us = 2_500_000 + 3_600_000_000;
        next.place.length_ns /= 2;
        timeline.add(&next);
        // The recorder was held up.
        let mut late = interval(3_603, 3, 1_000);
        late.vms[0].cpu_wait_ns = Some(SECOND_NS);
        timeline.add(&late);
        timeline.add(&interval(3_606, 1, 1_000));
        timeline.end();
        assert_eq!(timeline.columns, 7);
        let recorded: Vec<bool> = timeline.host.iter().map(|column| column.is_recorded).collect();
        assert_eq!(recorded, [true, true, true, true, false, false, true]);
        assert_eq!(timeline.edges, [0, 2, 7]);
        let marks = [("load".to_owned(), 2), ("set".to_owned(), 2)];
        assert_eq!(timeline.marks, marks);
        // What the recording has by the clock as it was set is shown where it happened.
        let columns = [2_100_000, 3_602_600_000, 3_606_500_000].map(|at_us| timeline.column(at_us));
        assert_eq!(columns, [2, 2, 6]);
        let vm = &timeline.vms[0];
        let (low, high) = (row(1_000), row(5_000_000));
        let cells = [(0, low, 3), (1, low, 3), (2, low, 3), (2, high, 3), (3, low, 3), (6, low, 3)];
        assert_eq!(vm.cells[0], cells);
        assert_eq!(vm.latencies[0].iter().map(Latencies::count).collect::<Vec<_>>(), [6, 12]);
        assert_eq!((vm.at(2).series[CPU], vm.at(3).series[RECORDED]), (1e9, 3e9));
        assert_eq!(vm.at(4).series[RECORDED], 0.0);
        assert_eq!([row(0), row(256), row(363), row(1 << 40)], [0, 0, 1, 51]);
    }

    #[test]
    fn spans_begin_with_the_marks_also_of_a_part() {
        let mark = |at_s: u64| Mark { at_us: at_s * 1_000_000, text: String::new() };
        // From the third second to the sixth.
        let mut timeline = Timeline::new(&run(1, 8), &[mark(0), mark(1), mark(4)]);
        let name = "a".to_owned();
        let aggressor = Aggressor { class: AggressorClass::Vm, id: "1-1".into(), name };
        let counts = EvictionCounts { written_pages: 1, ..EvictionCounts::default() };
        for start_s in 2..6 {
            let mut interval = interval(start_s, 1, 1_000);
            interval.evictions =
                vec![Eviction { victim: Some(0), aggressor: aggressor.clone(), counts }];
            timeline.add(&interval);
        }
        timeline.end();
        assert_eq!(timeline.edges, [0, 1, 4, 6]);
        assert_eq!(timeline.marks.iter().map(|mark| mark.1).collect::<Vec<_>>(), [0, 1, 4]);
        assert_eq!(timeline.taken.sums(3), [0, 2, 2]);
    }
}
