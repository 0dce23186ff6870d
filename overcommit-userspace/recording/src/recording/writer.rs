//! Writes a recording, interval by interval.

use crate::format::{csv, hlog};
use crate::model::columns::{self, Column, Row};
use crate::model::evictions::Eviction;
use crate::model::interval::{HostInterval, Interval, MetricInterval, Place, VmInterval};
use crate::model::run::{Run, RunVm};
use crate::model::slow_fault::SlowFault;
use crate::recording::folder::{
    EVICTIONS, Folder, HOST, INTERVALS, MARKS, RUN_FILE, SLOW_FAULTS, VMS,
};
use crate::recording::logs;
use crate::recording::span;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;

/// Adds to the logs of a recording.
pub struct Writer {
    folder: Folder,
    host: Table<HostInterval>,
    vms: Table<VmInterval>,
    intervals: Table<MetricInterval>,
    evictions: Table<Eviction>,
    /// `None` where slow faults are not wanted.
    slow_faults: Option<Table<SlowFault>>,
    /// By VM.
    latency_logs: Vec<LatencyLog>,
    histograms: hlog::LineWriter,
    /// Bytes in all its logs.
    written: u64,
}

/// The histogram log of a VM.
struct LatencyLog {
    vm_id: String,
    /// The VM's folder.
    folder: String,
    /// Its length, but for its head.
    written: u64,
    /// `None` once the VM has ended: more may come and go in one interval than files can be open.
    file: Option<File>,
}

/// A CSV file with its columns.
struct Table<T> {
    name: &'static str,
    file: File,
    columns: Vec<Column<T>>,
}

impl<T> Table<T> {
    /// Begins the file.
    fn create(folder: &Folder, name: &'static str, columns: Vec<Column<T>>) -> Result<Self> {
        let mut file = folder.append(name)?;
        file.write_all(&csv::head(&columns)).with_context(|| format!("cannot write {name}"))?;
        Ok(Self { name, file, columns })
    }

    /// Adds rows, all at once; gives their length.
    fn write<'a>(
        &mut self,
        run: &Run,
        place: &Place,
        records: impl IntoIterator<Item = &'a T>,
    ) -> Result<u64>
    where
        T: 'a,
    {
        let cells = |of| csv::cells(&self.columns, &Row { run, place, of });
        let rows = csv::rows(records.into_iter().map(cells))?;
        self.file.write_all(&rows).with_context(|| format!("cannot write {}", self.name))?;
        Ok(rows.len() as u64)
    }
}

impl Writer {
    /// Writes the heads of the logs and the first run.json.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn create(folder: Folder, run: &Run) -> Result<Self> {
        folder.append(MARKS)?.write_all(&csv::header(&span::COLUMNS))?;
        let slow_faults = || Table::create(&folder, SLOW_FAULTS, columns::slow_faults());
        let mut writer = Self {
            host: Table::create(&folder, HOST, columns::host())?,
            vms: Table::create(&folder, VMS, columns::vms())?,
            intervals: Table::create(&folder, INTERVALS, columns::metrics())?,
            evictions: Table::create(&folder, EVICTIONS, columns::evictions())?,
            slow_faults: run.options.slow_faults_ns.map(|_| slow_faults()).transpose()?,
            latency_logs: Vec::new(),
            histograms: hlog::LineWriter::default(),
            written: 0,
            folder,
        };
        // A VM of run.json has a log, whenever we are killed.
        let _ = writer.begin_logs(run)?;
        writer.write_run(run)?;
        Ok(writer)
    }

    /// Adds an interval to all logs, then says so in run.json.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&mut self, run: &Run, interval: &Interval) -> Result<()> {
        let place = &interval.place;
        let left_out = self.begin_logs(run)?;
        for vm in &interval.vms {
            self.write_latencies(run, place, vm)?;
        }
        self.written += self.vms.write(run, place, &interval.vms)?
            + self.host.write(run, place, [&interval.host])?
            + self.evictions.write(run, place, &interval.evictions)?
            + self.intervals.write(run, place, interval.metrics())?;
        self.write_run(run)?;
        // Only now: the run.json before this one named them. One that stays is no reason to end a recording.
        left_out.iter().for_each(|folder| drop(self.folder.remove_vm(folder)));
        Ok(())
    }

    /// A line for each metric in the VM's own log, which is closed when the VM has ended.
    fn write_latencies(&mut self, run: &Run, place: &Place, vm: &VmInterval) -> Result<()> {
        let mut lines = Vec::new();
        for metric in &vm.metrics {
            let Place { offset_ns, length_ns, .. } = *place;
            let MetricInterval { name, latencies, .. } = metric;
            lines.extend(self.histograms.line(offset_ns, length_ns, name, latencies)?);
        }
        let log = &mut self.latency_logs[vm.vm];
        let name = logs::name_in(&log.folder);
        let mut file = match log.file.take() {
            Some(file) => file,
            None => self.folder.append(&name)?,
        };
        file.write_all(&lines).with_context(|| format!("cannot write {name}"))?;
        log.written += lines.len() as u64;
        self.written += lines.len() as u64;
        log.file = run.vms[vm.vm].ended_us.is_none().then_some(file);
        Ok(())
    }

    /// Begins those of VMs that are new. Gives the folders of those whose place they take.
    fn begin_logs(&mut self, run: &Run) -> Result<Vec<String>> {
        let mut left_out = Vec::new();
        for (place, vm) in run.vms.iter().enumerate() {
            let there = self.latency_logs.get(place);
            if there.is_some_and(|log| log.vm_id == vm.vm_id) {
                continue;
            }
            let log = self.begin_log(run, vm)?;
            match self.latency_logs.get_mut(place) {
                Some(there) => {
                    let there = std::mem::replace(there, log);
                    self.written -= there.written;
                    left_out.push(there.folder);
                }
                None => self.latency_logs.push(log),
            }
        }
        Ok(left_out)
    }

    fn begin_log(&self, run: &Run, vm: &RunVm) -> Result<LatencyLog> {
        let name = logs::name(vm);
        let mut file = self.folder.append(&name)?;
        let head = hlog::header(run.clocks.start.realtime_ns / 1_000)?;
        file.write_all(&head).with_context(|| format!("cannot write {name}"))?;
        let (vm_id, folder) = (vm.vm_id.clone(), vm.folder.clone());
        Ok(LatencyLog { vm_id, folder, written: 0, file: vm.ended_us.is_none().then_some(file) })
    }

    /// Adds slow faults.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_slow_faults(&mut self, run: &Run, faults: &[SlowFault]) -> Result<()> {
        let Some(table) = &mut self.slow_faults else { return Ok(()) };
        self.written += table.write(run, &Place::default(), faults)?;
        Ok(())
    }

    /// Bytes in its logs, but for their heads.
    pub const fn written(&self) -> u64 {
        self.written
    }

    /// Writes run.json alone.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_run(&self, run: &Run) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(run)?;
        text.push(b'\n');
        self.folder.replace(RUN_FILE, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::reader::EVERY;
    use crate::recording::{Recording, Span};
    use overcommit_ebpf::layout::Metric;

    #[test]
    fn a_recording_that_is_killed_before_its_first_interval_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::create(&dir.path().join("run"), None).unwrap();
        let web = RunVm { name: "web".into(), folder: "web".into(), ..RunVm::default() };
        let run = Run { schema: Run::schema(), vms: vec![web], ..Run::default() };
        drop(Writer::create(folder.clone(), &run).unwrap());
        let recording = Recording::open(&folder).unwrap();
        let nothing = |_: &Interval| -> Result<()> { panic!("there is no interval") };
        recording.each(Span::WHOLE, EVERY, nothing).unwrap();
    }

    #[test]
    fn a_vm_that_is_left_out_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::create(&dir.path().join("run"), None).unwrap();
        let vm = |name: &str| RunVm {
            vm_id: format!("{name}-1"),
            name: name.into(),
            folder: name.into(),
            ..RunVm::default()
        };
        let mut run = Run { schema: Run::schema(), vms: vec![vm("first")], ..Run::default() };
        let mut writer = Writer::create(folder.clone(), &run).unwrap();
        let mut write = |run: &mut Run, number| {
            let place = Place { number, ..Place::default() };
            let name = Metric::FaultMajor.into();
            let vm = VmInterval {
                metrics: vec![MetricInterval { name, ..MetricInterval::none() }],
                ..VmInterval::default()
            };
            run.recorded.intervals = number + 1;
            writer.write(run, &Interval { place, vms: vec![vm], ..Interval::default() }).unwrap();
        };
        let has = |folder: &Folder, name: &str| folder.path().join("vms").join(name).exists();
        write(&mut run, 0);
        assert!(has(&folder, "first"));
        let running = Recording { is_recording: true, ..Recording::open(&folder).unwrap() };
        run.vms[0] = vm("second");
        run.not_counted.vms_left_out = 1;
        write(&mut run, 1);
        assert!(!has(&folder, "first") && has(&folder, "second"));
        let recording = Recording::open(&folder).unwrap();
        let mut vms = Vec::new();
        let take = |interval: &Interval| {
            vms.push(interval.vms.iter().map(|vm| vm.metrics.len()).collect::<Vec<_>>());
            Ok(())
        };
        recording.each(Span::WHOLE, EVERY, take).unwrap();
        assert_eq!(vms, [vec![], vec![1]]);
        // Whoever had begun to read before reads the rest.
        let mut intervals = 0;
        let take = |interval: &Interval| {
            intervals += 1;
            assert!(interval.vms.is_empty());
            Ok(())
        };
        running.each(Span::WHOLE, EVERY, take).unwrap();
        assert_eq!(intervals, 1);
        // Nobody said that one was left out: then something is wrong.
        run.not_counted.vms_left_out = 0;
        writer.write_run(&run).unwrap();
        let error = Recording::open(&folder).unwrap_err();
        assert!(format!("{error:#}").contains("vm_id is \"first-1\""), "{error:#}");
    }

    #[test]
    fn what_has_only_begun_is_taken_away_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let folder = Folder::create(&path, None).unwrap();
        let vm = |folder: &str| RunVm { folder: folder.into(), ..RunVm::default() };
        let run = Run { vms: vec![vm("web")], ..Run::default() };
        drop(Writer::create(folder.clone(), &run).unwrap());
        assert!(path.join("vms/web/latency.hlog").exists());
        folder.discard();
        assert!(!path.exists());
    }
}
