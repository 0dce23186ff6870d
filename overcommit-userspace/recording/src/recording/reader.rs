//! Reads a recording back from its files alone, a cut-off one too, one interval after the other.

use crate::format::hlog;
use crate::model::columns::{self, Members, STALL_RUNQ, SWAPINS_BY_DEVICE, VCPUS_UNKNOWN};
use crate::model::evictions::Eviction;
use crate::model::interval::{HostInterval, Interval, MetricInterval, Place, VmInterval};
use crate::model::metric::MetricName;
use crate::model::run::Run;
use crate::model::slow_fault::SlowFault;
use crate::recording::folder::{EVICTIONS, Folder, HOST, INTERVALS, SLOW_FAULTS, VMS};
use crate::recording::logs::{self, Line, Logs};
use crate::recording::rows::{Rows, whole_length};
use crate::recording::run_file;
use crate::recording::span::Span;
use anyhow::{Context, Result};
use std::sync::OnceLock;

/// A recording on disk.
#[derive(Clone, Debug)]
pub struct Recording {
    /// run.json.
    pub run: Run,
    /// Where it is.
    pub folder: Folder,
    /// Whether it was still being written when it was opened.
    pub is_recording: bool,
}

/// Told after each interval that is read: its number from 1, and how many there are.
pub type Watch = fn(u64, u64);

static WATCH: OnceLock<Watch> = OnceLock::new();

/// Has this function told how far each recording is read from now on: a long one takes its time.
pub fn watch(watch: Watch) {
    // The first one stays.
    let _ = WATCH.set(watch);
}

/// A recording that is read. However that ends, it is over.
struct Watched {
    intervals: u64,
}

impl Watched {
    fn at(&self, done: u64) {
        if let Some(watch) = WATCH.get() {
            watch(done, self.intervals);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.at(self.intervals);
    }
}

/// Of which metrics the distributions are wanted: they take most of the time.
pub type Wanted<'a> = &'a dyn Fn(&MetricName) -> bool;

/// Of every metric.
pub const EVERY: Wanted<'static> = &|_| true;
/// Of none.
pub const NONE: Wanted<'static> = &|_| false;

/// What a recording counts as a wait for memory, by the version that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waits {
    /// Waits for a CPU, too.
    AndForCpus,
    /// Whatever memory exits took, and nothing else.
    InMemoryExits,
    /// The same, without writes that were only logged.
    WithoutLogging,
}

impl Recording {
    /// Opens a recording. If it was cut off, what run.json does not know of is cut away from its
    /// files, if they are ours.
    ///
    /// # Errors
    /// The folder is no recording, is of a newer version, or cannot be read or mended.
    pub fn open(folder: &Folder) -> Result<Self> {
        // Asked first: a recording that ends meanwhile is complete without us.
        let is_recording = run_file::is_recording(&run_file::read(folder)?);
        let run = run_file::read(folder)?;
        let recording = Self { run, folder: folder.clone(), is_recording };
        // What is not cut away is left out all the same.
        if !is_recording && recording.run.clocks.end.is_none() && folder.is_ours() {
            recording.mend()?;
        }
        Ok(recording)
    }

    /// Hands out each complete interval that lies in the span, in order.
    ///
    /// # Errors
    /// A file cannot be read, or `take` fails.
    pub fn each(
        &self,
        span: Span,
        wanted: Wanted<'_>,
        mut take: impl FnMut(&Interval) -> Result<()>,
    ) -> Result<()> {
        self.each_with_lines(span, wanted, |interval, _| take(interval))
    }

    /// The same, with the lines of the histogram logs: of each VM in turn, in the order of its
    /// metrics.
    ///
    /// # Errors
    /// As [`Self::each`].
    pub fn each_with_lines(
        &self,
        span: Span,
        wanted: Wanted<'_>,
        mut take: impl FnMut(&Interval, &[Vec<u8>]) -> Result<()>,
    ) -> Result<()> {
        let members = self.members();
        let mut files = Files::open(self, &members)?;
        let mut reader = hlog::LineReader::default();
        let watched = Watched { intervals: self.run.recorded.intervals };
        while let Some((mut interval, lines)) = files.next()? {
            if span.holds(interval.place.start_us, interval.place.length_ns) {
                decode(&mut interval, &lines, wanted, &mut reader)?;
                take(&interval, &lines)?;
            }
            watched.at(interval.place.number + 1);
        }
        Ok(())
    }

    /// Hands out each slow fault, in the order in which they came.
    ///
    /// # Errors
    /// The file cannot be read, or `take` fails.
    pub fn each_slow_fault(&self, mut take: impl FnMut(&SlowFault) -> Result<()>) -> Result<()> {
        let (members, folder) = (self.members(), &self.folder);
        if !folder.has(SLOW_FAULTS) {
            return Ok(());
        }
        let columns = columns::slow_faults();
        let mut rows =
            Rows::open(folder, SLOW_FAULTS, columns, &members, SlowFault::none, u64::MAX)?;
        while let Some(row) = rows.take(0)? {
            take(&row.of)?;
        }
        Ok(())
    }

    /// What it counts as a wait for memory.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn waits(&self) -> Result<Waits> {
        let members = self.members();
        let vms = Rows::open(&self.folder, VMS, columns::vms(), &members, VmInterval::default, 0)?;
        Ok(match (vms.has(STALL_RUNQ), vms.has(VCPUS_UNKNOWN)) {
            (false, _) => Waits::AndForCpus,
            (true, false) => Waits::InMemoryExits,
            (true, true) => Waits::WithoutLogging,
        })
    }

    fn members(&self) -> Members<'_> {
        Members::of(&self.run)
    }

    /// Cuts away what lies behind the last interval that run.json knows, and a torn last line:
    /// of each file by itself, so that one that lost more takes nothing from the others.
    fn mend(&self) -> Result<()> {
        let members = self.members();
        let files = Files::open(self, &members)?;
        let mut metrics = vec![0; self.run.vms.len()];
        self.folder.cut(INTERVALS, files.metrics.last(|row| metrics[row.vm] += 1)?)?;
        self.folder.cut(VMS, files.vms.last(|_| {})?)?;
        if let Some(rows) = files.host {
            self.folder.cut(HOST, rows.last(|_| {})?)?;
        }
        if let Some(rows) = files.evictions {
            self.folder.cut(EVICTIONS, rows.last(|_| {})?)?;
        }
        for (vm, metrics) in self.run.vms.iter().zip(metrics) {
            let name = logs::name(vm);
            self.folder.cut(&name, logs::end_of(&self.folder, &name, metrics)?)?;
        }
        if self.run.options.slow_faults_ns.is_some() {
            let mut file = self.folder.read(SLOW_FAULTS)?;
            let end = whole_length(&mut file).context("cannot read slow-faults.csv")?;
            self.folder.cut(SLOW_FAULTS, end)?;
        }
        Ok(())
    }
}

/// The files of a recording, read in step.
struct Files<'a> {
    run: &'a Run,
    is_recording: bool,
    /// `None` in recordings of a version before there was such a file.
    host: Option<Rows<'a, HostInterval>>,
    vms: Rows<'a, VmInterval>,
    metrics: Rows<'a, MetricInterval>,
    /// As `host`.
    evictions: Option<Rows<'a, Eviction>>,
    logs: Logs,
    number: u64,
}

impl<'a> Files<'a> {
    fn open(recording: &'a Recording, members: &'a Members<'a>) -> Result<Self> {
        let Recording { run, folder, .. } = recording;
        let limit = run.recorded.intervals;
        let host =
            || Rows::open(folder, HOST, columns::host(), members, HostInterval::default, limit);
        let evictions = || {
            let columns = columns::evictions();
            Rows::open(folder, EVICTIONS, columns, members, Eviction::none, limit)
        };
        Ok(Self {
            run,
            is_recording: recording.is_recording,
            host: folder.has(HOST).then(host).transpose()?,
            vms: Rows::open(folder, VMS, columns::vms(), members, VmInterval::default, limit)?,
            metrics: Rows::open(
                folder,
                INTERVALS,
                columns::metrics(),
                members,
                MetricInterval::none,
                limit,
            )?,
            evictions: folder.has(EVICTIONS).then(evictions).transpose()?,
            logs: Logs::new(folder, run),
            number: 0,
        })
    }

    /// The next interval, with the lines of its histograms; `None` if some file does not have
    /// all of it.
    fn next(&mut self) -> Result<Option<(Interval, Vec<Vec<u8>>)>> {
        while self.number < self.run.recorded.intervals {
            let number = self.number;
            let host = match &mut self.host {
                None => None,
                Some(rows) => match rows.take(number)? {
                    None => return Ok(None),
                    row => row,
                },
            };
            let place = host.as_ref().map(|row| row.place);
            let host = host.map(|row| row.of).unwrap_or_default();
            let mut interval = Interval { host, ..Interval::default() };
            let mut lines = Vec::new();
            let mut of_vms = None;
            while let Some(row) = self.vms.take(number)? {
                of_vms = of_vms.or(Some(row.place));
                // The recorder left it out after run.json was read.
                if self.is_recording && self.logs.is_gone(row.of.vm) {
                    for _ in 0..row.metrics {
                        if self.metrics.take(number)?.is_none() {
                            break;
                        }
                    }
                    continue;
                }
                match self.vm(row.of, row.metrics, number, &mut lines)? {
                    None => return Ok(None),
                    Some(vm) => interval.vms.push(vm),
                }
            }
            if self.metrics.peek().is_some_and(|row| row.place.number == number) {
                // They have no row in vms.csv.
                return Ok(None);
            }
            if let Some(rows) = &mut self.evictions {
                while let Some(row) = rows.take(number)? {
                    interval.evictions.push(row.of);
                }
            }
            self.number += 1;
            // Without either, nothing is known of it.
            if let Some(place) = place.or(of_vms) {
                interval.place = Place { number, ..place };
                time_rates(&mut interval);
                return Ok(Some((interval, lines)));
            }
        }
        Ok(None)
    }

    /// A VM with its metrics, whose lines are added; `None` if one is missing.
    fn vm(
        &mut self,
        mut vm: VmInterval,
        metrics: usize,
        number: u64,
        lines: &mut Vec<Vec<u8>>,
    ) -> Result<Option<VmInterval>> {
        for _ in 0..metrics {
            let Some(row) = self.metrics.take(number)? else { return Ok(None) };
            let Some(Line { metric, bytes }) = self.logs.next(vm.vm)? else { return Ok(None) };
            if row.of.vm != vm.vm || row.of.name != metric {
                return Ok(None);
            }
            vm.metrics.push(row.of);
            lines.push(bytes);
        }
        if !self.vms.has(SWAPINS_BY_DEVICE) {
            vm.swapins = None;
        }
        Ok(Some(vm))
    }
}

/// Files do not tell between which looks a rate lies: about as long as the interval.
fn time_rates(interval: &mut Interval) {
    let of_vms = interval.vms.iter_mut().map(|vm| &mut vm.swap.rates);
    for rates in of_vms.chain([&mut interval.host.swap.rates]).flatten() {
        rates.length_ns = interval.place.length_ns;
    }
}

/// Reads the distributions of the metrics that are wanted.
fn decode(
    interval: &mut Interval,
    lines: &[Vec<u8>],
    wanted: Wanted<'_>,
    reader: &mut hlog::LineReader,
) -> Result<()> {
    let metrics = interval.vms.iter_mut().flat_map(|vm| &mut vm.metrics);
    for (MetricInterval { name, latencies, .. }, line) in metrics.zip(lines) {
        if wanted(name) {
            let values = reader.values(line);
            let failed = || format!("cannot read a histogram of {name:?}");
            latencies.distribute(values.with_context(failed)?);
        }
    }
    Ok(())
}
