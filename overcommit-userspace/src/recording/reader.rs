//! Reads a recording back from its files alone, a cut-off one too.

use crate::format::hlog;
use crate::model::breakdown::Breakdown;
use crate::model::coverage::{Coverage, Seen};
use crate::model::interval::Stall;
use crate::model::latencies::Latencies;
use crate::model::metric::MetricName;
use crate::model::run::{RunFile, RunVm};
use crate::model::state::Times;
use crate::model::swap::SwapState;
use crate::recording::folder::{EVICTIONS, Folder, HOST, INTERVALS, LATENCY_LOG, SLOW_FAULTS, VMS};
use crate::recording::rows::{
    EvictionRow, HostRow, OfInterval, Row, VmFigures, VmRow, eviction_row, host_row, row, rows,
    vm_row, whole_lines,
};
use crate::recording::run_file;
use crate::recording::span::Span;
use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use overcommit_ebpf::layout::{Loss, Metric, Taker};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::{self, OpenOptions};

/// What a recording holds for one VM, over all its complete intervals.
#[derive(Debug)]
pub struct VmTotals {
    /// Sum of its intervals' lengths, in nanoseconds.
    pub length_ns: u64,
    /// Each metric that it has.
    pub metrics: BTreeMap<MetricName, MetricTotals>,
    /// Measured coverage.
    pub seen: Seen,
    /// Faults by who took them, by [`Taker`].
    pub taken_by: [u64; Taker::COUNT],
    /// `None` if its vCPU threads were never known.
    pub stall: Option<Stall>,
    /// Time in each swap state.
    pub swap_states: Times<SwapState>,
    /// Its memory as of the last interval that knew each figure.
    pub memory: VmFigures,
    /// What the time of its faults went into.
    pub fault_time: Breakdown,
    /// What that of its windows of `stall.memory` did; `None` without such.
    pub stall_time: Option<Breakdown>,
    /// By [`Loss`].
    pub not_counted: [u64; Loss::COUNT],
}

/// A metric of a VM over all complete intervals.
#[derive(Debug)]
pub struct MetricTotals {
    /// The least of any interval; of `fault.*`, over all.
    pub coverage: Coverage,
    /// What was counted.
    pub latencies: Latencies,
}

/// A recording in memory.
#[derive(Debug)]
pub struct Recording {
    /// run.json.
    pub run: RunFile,
    /// In the order of [`RunFile::vms`].
    pub vms: Vec<VmTotals>,
    /// Complete intervals.
    pub intervals: u64,
    /// Whether it was still being written when it was read.
    pub is_recording: bool,
    logs: Logs,
}

/// The rows of a recording, as far as they are whole, and how far its histogram
/// logs go. The histograms themselves are read one by one: all at once they would
/// be larger than what is left on a host that swaps.
#[derive(Debug)]
struct Logs {
    rows: Vec<Row>,
    vm_rows: Vec<VmRow>,
    /// Empty in recordings of a version before there was such a file.
    host_rows: Vec<HostRow>,
    /// The same.
    eviction_rows: Vec<EvictionRow>,
    /// Whole lines by VM and metric.
    lines: Vec<HashMap<MetricName, usize>>,
    /// Number of the first interval that is not complete.
    end: u64,
    span: Span,
}

impl Recording {
    /// Reads what is complete, and lies in the span. If the recording was cut off, what
    /// run.json does not know of is cut away from its logs.
    ///
    /// # Errors
    /// The folder is no recording, is of a newer version, or cannot be read.
    pub fn open(folder: &Folder, span: Span) -> Result<Self> {
        // Asked first: a recording that ends meanwhile is complete without us.
        let is_recording = run_file::is_recording(&run_file::read(folder.path())?);
        let run = run_file::read(folder.path())?;
        let mut logs = Logs::read(folder, &run, span)?;
        if !is_recording && run.clocks.end.is_none() {
            logs.mend(folder, &run)?;
        }
        logs.end = logs.complete_before(&run);
        let vms = logs.totals(folder, &run)?;
        let intervals = if span == Span::WHOLE { logs.end } else { logs.selected_intervals() };
        Ok(Self { run, vms, intervals, is_recording, logs })
    }

    /// Whether that is all of it.
    pub fn is_whole(&self) -> bool {
        self.logs.span == Span::WHOLE
    }

    /// The complete intervals of all VMs, in order.
    pub fn vm_rows(&self) -> impl Iterator<Item = &VmRow> {
        self.logs.selected(&self.logs.vm_rows)
    }

    /// The complete intervals of the host, in order.
    pub fn host_rows(&self) -> impl Iterator<Item = &HostRow> {
        self.logs.selected(&self.logs.host_rows)
    }

    /// Who took pages of whom, in order.
    pub fn eviction_rows(&self) -> impl Iterator<Item = &EvictionRow> {
        self.logs.selected(&self.logs.eviction_rows)
    }

    /// Hands out every line of the histogram logs with its row, VM by VM.
    ///
    /// # Errors
    /// A log cannot be read, or one that `take` gives.
    pub fn each_line(
        &self,
        folder: &Folder,
        take: impl FnMut(&Row, &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.logs.each_line(folder, &self.run, take)
    }

    /// The same, with the histogram of the line.
    ///
    /// # Errors
    /// A log cannot be read.
    pub fn each_histogram(
        &self,
        folder: &Folder,
        take: impl FnMut(&Row, &Histogram<u64>),
    ) -> Result<()> {
        self.logs.each_histogram(folder, &self.run, take)
    }
}

fn log_name(vm: &RunVm) -> String {
    format!("vms/{}/{LATENCY_LOG}", vm.folder)
}

impl Logs {
    fn read(folder: &Folder, run: &RunFile, span: Span) -> Result<Self> {
        let indices: HashMap<&str, usize> =
            run.vms.iter().enumerate().map(|(index, vm)| (vm.vm_id.as_str(), index)).collect();
        let lines = run.vms.iter().map(|vm| Ok(hlog::count(&read_file(folder, &log_name(vm))?)));
        Ok(Self {
            rows: rows(&read_file(folder, INTERVALS)?, run, |cells, end| row(cells, end, &indices))
                .with_context(|| format!("cannot read {INTERVALS}"))?,
            vm_rows: rows(&read_file(folder, VMS)?, run, |cells, end| vm_row(cells, end, &indices))
                .with_context(|| format!("cannot read {VMS}"))?,
            host_rows: match folder.file(HOST).exists() {
                true => rows(&read_file(folder, HOST)?, run, host_row)
                    .with_context(|| format!("cannot read {HOST}"))?,
                false => Vec::new(),
            },
            eviction_rows: match folder.file(EVICTIONS).exists() {
                true => rows(&read_file(folder, EVICTIONS)?, run, |cells, end| {
                    eviction_row(cells, end, &indices)
                })
                .with_context(|| format!("cannot read {EVICTIONS}"))?,
                false => Vec::new(),
            },
            lines: lines.collect::<Result<_>>()?,
            end: run.recorded.intervals,
            span,
        })
    }

    fn selects(&self, row: &impl OfInterval) -> bool {
        let (interval, start_us, length_ns) = row.interval();
        interval < self.end && self.span.holds(start_us, length_ns)
    }

    fn selected<'a, T: OfInterval>(&'a self, rows: &'a [T]) -> impl Iterator<Item = &'a T> {
        rows.iter().filter(|row| self.selects(*row))
    }

    fn selected_intervals(&self) -> u64 {
        let rows = self.selected(&self.vm_rows);
        rows.map(|row| row.interval).collect::<BTreeSet<u64>>().len() as u64
    }

    fn each_histogram(
        &self,
        folder: &Folder,
        run: &RunFile,
        mut take: impl FnMut(&Row, &Histogram<u64>),
    ) -> Result<()> {
        let mut reader = hlog::LineReader::default();
        self.each_line(folder, run, |row, line| {
            take(row, &reader.histogram(line)?);
            Ok(())
        })
    }

    fn each_line(
        &self,
        folder: &Folder,
        run: &RunFile,
        mut take: impl FnMut(&Row, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut rows = vec![HashMap::<&MetricName, VecDeque<&Row>>::new(); run.vms.len()];
        for row in &self.rows {
            rows[row.vm].entry(&row.metric).or_default().push_back(row);
        }
        for (vm, rows) in run.vms.iter().zip(&mut rows) {
            let name = log_name(vm);
            let log = read_file(folder, &name)?;
            for (metric, line) in hlog::lines(&log) {
                let row = rows.get_mut(&metric).and_then(VecDeque::pop_front);
                if let Some(row) = row.filter(|row| self.selects(*row)) {
                    take(row, line).with_context(|| format!("cannot read {name}"))?;
                }
            }
        }
        Ok(())
    }

    /// Number of the first interval that some log does not have in full.
    fn complete_before(&self, run: &RunFile) -> u64 {
        let mut end = run.recorded.intervals;
        let mut lines = HashMap::<(usize, &MetricName), usize>::new();
        let mut metrics = BTreeMap::<(u64, usize), u64>::new();
        for row in &self.rows {
            let line = lines.entry((row.vm, &row.metric)).or_default();
            *line += 1;
            if self.lines[row.vm].get(&row.metric).copied().unwrap_or(0) < *line {
                end = end.min(row.interval);
            }
            *metrics.entry((row.interval, row.vm)).or_default() += 1;
        }
        for row in &self.vm_rows {
            if metrics.remove(&(row.interval, row.vm)) != Some(row.metrics) {
                end = end.min(row.interval);
            }
        }
        if !self.host_rows.is_empty() {
            end = end.min(self.host_rows.len() as u64);
        }
        // What remains has no row in vms.csv.
        metrics.keys().map(|(interval, _)| *interval).fold(end, u64::min)
    }

    fn totals(&self, folder: &Folder, run: &RunFile) -> Result<Vec<VmTotals>> {
        let mut totals: Vec<VmTotals> = run.vms.iter().map(|_| VmTotals::none()).collect();
        for row in self.selected(&self.vm_rows) {
            totals[row.vm].add(row);
        }
        for row in self.selected(&self.rows) {
            let metric = totals[row.vm].metrics.entry(row.metric.clone());
            let metric = metric.or_insert_with(MetricTotals::none);
            metric.coverage = metric.coverage.max(row.coverage);
            let latencies = &mut metric.latencies;
            latencies.sum_ns += row.sum_ns;
            latencies.max_ns = latencies.max_ns.max(row.max_ns);
            latencies.over_range += row.over_range;
        }
        self.each_histogram(folder, run, |row, histogram| {
            if let Some(totals) = totals[row.vm].metrics.get_mut(&row.metric) {
                totals.latencies.add(histogram);
            }
        })?;
        for totals in &mut totals {
            // Of faults all intervals together say more than the worst of them.
            for metric in Metric::FAULTS {
                let fault = totals.metrics.entry(metric.into());
                fault.or_insert_with(MetricTotals::none).coverage = totals.seen.coverage();
            }
        }
        Ok(totals)
    }

    /// Cuts away what lies behind the last interval that run.json knows, and a torn
    /// last line.
    fn mend(&self, folder: &Folder, run: &RunFile) -> Result<()> {
        cut(folder, INTERVALS, self.rows.last().map(|row| row.end))?;
        cut(folder, VMS, self.vm_rows.last().map(|row| row.end))?;
        if folder.file(HOST).exists() {
            cut(folder, HOST, self.host_rows.last().map(|row| row.end))?;
        }
        if folder.file(EVICTIONS).exists() {
            cut(folder, EVICTIONS, self.eviction_rows.last().map(|row| row.end))?;
        }
        for (index, vm) in run.vms.iter().enumerate() {
            let rows = self.rows.iter().filter(|row| row.vm == index).count();
            let log = read_file(folder, &log_name(vm))?;
            let is_comment = |line: &&[u8]| line.starts_with(b"#");
            let lines = || whole_lines(&log).split_inclusive(|byte| *byte == b'\n');
            let wanted = lines().filter(is_comment).count() + rows;
            let end: usize = lines().take(wanted).map(<[u8]>::len).sum();
            cut(folder, &log_name(vm), Some(end as u64))?;
        }
        if run.options.slow_faults_ns.is_some() {
            let end = whole_lines(&read_file(folder, SLOW_FAULTS)?).len();
            cut(folder, SLOW_FAULTS, Some(end as u64))?;
        }
        Ok(())
    }
}

impl MetricTotals {
    fn none() -> Self {
        Self { coverage: Coverage::Full, latencies: Latencies::empty() }
    }
}

impl VmTotals {
    fn none() -> Self {
        Self {
            length_ns: 0,
            metrics: BTreeMap::new(),
            seen: Seen::default(),
            taken_by: [0; Taker::COUNT],
            stall: None,
            swap_states: Times::new(),
            memory: VmFigures::default(),
            fault_time: Breakdown::default(),
            stall_time: None,
            not_counted: [0; Loss::COUNT],
        }
    }

    fn add(&mut self, row: &VmRow) {
        self.length_ns += row.length_ns;
        self.seen.merge(row.seen);
        *self.swap_states.entry(row.swap_state).or_default() += row.length_ns;
        self.memory.update(&row.memory);
        self.fault_time.add(row.fault_time);
        if let Some(time) = row.stall_time {
            self.stall_time.get_or_insert_default().add(time);
        }
        for (total, count) in self.taken_by.iter_mut().zip(row.taken_by) {
            *total += count;
        }
        if let Some(stall) = row.stall {
            let none = Stall { waited_ns: 0, vcpu_ns: 0, ..stall };
            let total = self.stall.get_or_insert(none);
            total.waited_ns += stall.waited_ns;
            total.vcpu_ns += stall.vcpu_ns;
            total.source = stall.source;
        }
        for (total, count) in self.not_counted.iter_mut().zip(row.not_counted) {
            *total += count;
        }
    }
}

fn read_file(folder: &Folder, name: &str) -> Result<Vec<u8>> {
    let path = folder.file(name);
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Cuts a file off at `end`; at the end of its first line without one.
fn cut(folder: &Folder, name: &str, end: Option<u64>) -> Result<()> {
    let path = folder.file(name);
    let failed = || format!("cannot mend {}", path.display());
    let end = match end {
        Some(end) => end,
        None => {
            let file = read_file(folder, name)?;
            file.split_inclusive(|byte| *byte == b'\n').next().map_or(0, <[u8]>::len) as u64
        }
    };
    if fs::metadata(&path).with_context(failed)?.len() > end {
        let file = OpenOptions::new().write(true).open(&path).with_context(failed)?;
        file.set_len(end).with_context(failed)?;
    }
    Ok(())
}
