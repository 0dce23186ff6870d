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
    /// By VM; closed when it has ended.
    latency_logs: Vec<Option<File>>,
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

    /// Adds rows, all at once.
    fn write<'a>(
        &mut self,
        run: &Run,
        place: &Place,
        records: impl IntoIterator<Item = &'a T>,
    ) -> Result<()>
    where
        T: 'a,
    {
        let cells = |of| csv::cells(&self.columns, &Row { run, place, of });
        let rows = csv::rows(records.into_iter().map(cells))?;
        self.file.write_all(&rows).with_context(|| format!("cannot write {}", self.name))
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
            folder,
        };
        // A VM of run.json has a log, whenever we are killed.
        writer.begin_logs(run)?;
        writer.write_run(run)?;
        Ok(writer)
    }

    /// Adds an interval to all logs, then says so in run.json.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&mut self, run: &Run, interval: &Interval) -> Result<()> {
        let place = &interval.place;
        self.begin_logs(run)?;
        for vm in &interval.vms {
            self.write_latencies(run, place, vm)?;
        }
        self.vms.write(run, place, &interval.vms)?;
        self.host.write(run, place, [&interval.host])?;
        self.evictions.write(run, place, &interval.evictions)?;
        self.intervals.write(run, place, interval.metrics())?;
        self.write_run(run)
    }

    /// A line for each metric in the VM's own log, which is closed when the VM has ended.
    fn write_latencies(&mut self, run: &Run, place: &Place, vm: &VmInterval) -> Result<()> {
        let mut lines = Vec::new();
        for metric in &vm.metrics {
            let Place { offset_ns, length_ns, .. } = *place;
            lines.extend(hlog::line(offset_ns, length_ns, &metric.name, &metric.latencies)?);
        }
        let log = &mut self.latency_logs[vm.vm];
        if let Some(file) = log {
            let failed = || format!("cannot write {}", logs::name(&run.vms[vm.vm]));
            file.write_all(&lines).with_context(failed)?;
        }
        if run.vms[vm.vm].ended_us.is_some() {
            *log = None;
        }
        Ok(())
    }

    /// Those of VMs that are new.
    fn begin_logs(&mut self, run: &Run) -> Result<()> {
        for vm in &run.vms[self.latency_logs.len().min(run.vms.len())..] {
            self.latency_logs.push(Some(self.begin_log(run, vm)?));
        }
        Ok(())
    }

    fn begin_log(&self, run: &Run, vm: &RunVm) -> Result<File> {
        let name = logs::name(vm);
        let mut log = self.folder.append(&name)?;
        let head = hlog::header(run.clocks.start.realtime_ns / 1_000)?;
        log.write_all(&head).with_context(|| format!("cannot write {name}"))?;
        Ok(log)
    }

    /// Adds slow faults.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_slow_faults(&mut self, run: &Run, faults: &[SlowFault]) -> Result<()> {
        let Some(table) = &mut self.slow_faults else { return Ok(()) };
        table.write(run, &Place::default(), faults)
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
