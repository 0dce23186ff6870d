//! Histogram logs of the VMs of a recording, read line by line in step with its rows.

use crate::format::hlog;
use crate::model::metric::MetricName;
use crate::model::run::{Run, RunVm};
use crate::recording::folder::{Folder, LATENCY_LOG};
use crate::recording::lines::Lines;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};

/// Logs that are open at a time: a recording may have more VMs than a process may have files,
/// which are 1,024 where nobody set another limit.
const OPEN_MAX: usize = 900;

/// A log of each VM.
pub(super) struct Logs {
    folder: Folder,
    logs: Vec<Log>,
    /// Those that are open, the one used last at the end.
    open: Vec<usize>,
}

struct Log {
    /// Within the folder.
    name: String,
    file: Option<BufReader<Lines<File>>>,
    /// Where the next line begins.
    at: u64,
}

/// A line of a metric.
pub(super) struct Line {
    /// The metric.
    pub(super) metric: MetricName,
    /// The whole line, its end included.
    pub(super) bytes: Vec<u8>,
}

/// A VM's log, within the recording's folder.
pub(super) fn name(vm: &RunVm) -> String {
    name_in(&vm.folder)
}

/// As [`name`], by the VM's folder.
pub(super) fn name_in(folder: &str) -> String {
    format!("vms/{folder}/{LATENCY_LOG}")
}

/// Where the head of a log and that many lines of metrics end; before a torn one at the latest.
///
/// # Errors
/// The log cannot be read.
pub(super) fn end_of(folder: &Folder, name: &str, mut metrics: usize) -> Result<u64> {
    let failed = || format!("cannot read {name}");
    let mut file = BufReader::new(Lines::new(folder.read(name)?));
    let (mut end, mut line) = (0, Vec::new());
    while file.read_until(b'\n', &mut line).with_context(failed)? > 0 {
        let is_metric = hlog::metric(&line).is_some();
        if line.last() != Some(&b'\n') || (is_metric && metrics == 0) {
            break;
        }
        metrics -= usize::from(is_metric);
        end += line.len() as u64;
        line.clear();
    }
    Ok(end)
}

impl Logs {
    /// Of a recording; none is opened yet.
    pub(super) fn new(folder: &Folder, run: &Run) -> Self {
        let log = |vm| Log { name: name(vm), file: None, at: 0 };
        let logs = run.vms.iter().map(log).collect();
        Self { folder: folder.clone(), logs, open: Vec::new() }
    }

    /// Whether a VM's log is not there any more.
    pub(super) fn is_gone(&self, vm: usize) -> bool {
        let log = &self.logs[vm];
        log.file.is_none() && !self.folder.has(&log.name)
    }

    /// The next line of a VM's log that is a metric's; `None` at its end, or at a torn one.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) fn next(&mut self, vm: usize) -> Result<Option<Line>> {
        self.open(vm)?;
        let log = &mut self.logs[vm];
        let Some(file) = &mut log.file else { return Ok(None) };
        let failed = || format!("cannot read {}", log.name);
        let mut bytes = Vec::new();
        while file.read_until(b'\n', &mut bytes).with_context(failed)? > 0 {
            if bytes.last() != Some(&b'\n') {
                return Ok(None);
            }
            log.at += bytes.len() as u64;
            if let Some(metric) = hlog::metric(&bytes) {
                return Ok(Some(Line { metric, bytes }));
            }
            bytes.clear();
        }
        Ok(None)
    }

    fn open(&mut self, vm: usize) -> Result<()> {
        self.open.retain(|open| *open != vm);
        if self.logs[vm].file.is_none() {
            if self.open.len() == OPEN_MAX {
                let oldest = self.open.remove(0);
                self.logs[oldest].file = None;
            }
            let log = &mut self.logs[vm];
            let mut file = self.folder.read(&log.name)?;
            let failed = || format!("cannot read {}", log.name);
            file.seek(SeekFrom::Start(log.at)).with_context(failed)?;
            log.file = Some(BufReader::new(Lines::new(file)));
        }
        self.open.push(vm);
        Ok(())
    }
}
