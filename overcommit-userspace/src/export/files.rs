//! One file a VM and metric, for tools that read no more than one.

use crate::format::csv::reader;
use crate::format::{csv, hgrm, hlog};
use crate::model::metric::MetricName;
use crate::model::pattern::Pattern;
use crate::model::run::RunVm;
use crate::recording::folder::INTERVALS;
use crate::recording::{Folder, Recording};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use std::collections::{BTreeMap, BTreeSet};

/// The folder, within the recording's.
const FOLDER: &str = "export";

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// HdrHistogram's log without tags, in nanoseconds
    Hlog,
    /// Percentile distribution, in milliseconds
    Hgrm,
    /// Rows of intervals.csv
    Csv,
}

impl Format {
    const fn extension(self) -> &'static str {
        match self {
            Self::Hlog => "hlog",
            Self::Hgrm => "hgrm",
            Self::Csv => "csv",
        }
    }
}

/// What of the recording.
pub struct Selection {
    /// None is every VM.
    pub vms: Vec<Pattern>,
    /// Names of metrics or families; none is every metric.
    pub metrics: Vec<String>,
}

impl Selection {
    fn wants(&self, vm: &RunVm, metric: &MetricName) -> bool {
        self.wants_vm(vm)
            && (self.metrics.is_empty() || self.metrics.iter().any(|name| metric.is_in(name)))
    }

    fn wants_vm(&self, vm: &RunVm) -> bool {
        let means = |pattern: &Pattern| pattern.means(&vm.name, vm.uuid.as_deref());
        self.vms.is_empty() || self.vms.iter().any(means)
    }
}

/// A VM of the recording, by its index, and a metric that it has.
type Part = (usize, MetricName);

/// Writes the files; gives their names within the recording's folder.
///
/// # Errors
/// Nothing is meant, a log cannot be read, or a file cannot be written.
pub fn write(
    recording: &Recording,
    folder: &Folder,
    format: Format,
    selection: &Selection,
) -> Result<Vec<String>> {
    let vms = &recording.run.vms;
    let has = recording
        .vms
        .iter()
        .enumerate()
        .flat_map(|(vm, totals)| totals.metrics.keys().map(move |metric| (vm, metric.clone())));
    let all: Vec<Part> = has.collect();
    let parts: Vec<Part> =
        all.iter().filter(|(vm, metric)| selection.wants(&vms[*vm], metric)).cloned().collect();
    ensure!(
        !parts.is_empty(),
        "nothing of the recording is meant; it has {}",
        content(recording, &all)
    );
    let mut files = match format {
        Format::Hlog => logs(recording, folder, &parts)?,
        Format::Hgrm => distributions(recording, &parts),
        Format::Csv => rows(recording, folder, &parts)?,
    };
    let mut names = Vec::new();
    for part in parts {
        let name =
            format!("{FOLDER}/{}/{}.{}", vms[part.0].folder, part.1.as_str(), format.extension());
        folder.put(&name, &files.remove(&part).unwrap_or_default())?;
        names.push(name);
    }
    Ok(names)
}

fn content(recording: &Recording, parts: &[Part]) -> String {
    let vms: BTreeSet<&str> = recording.run.vms.iter().map(|vm| vm.name.as_str()).collect();
    let metrics: BTreeSet<&MetricName> = parts.iter().map(|(_, metric)| metric).collect();
    let vms: Vec<&str> = vms.into_iter().collect();
    let metrics: Vec<&str> = metrics.into_iter().map(MetricName::as_str).collect();
    format!("the VMs {}, and of them {}", vms.join(", "), metrics.join(", "))
}

fn logs(recording: &Recording, folder: &Folder, parts: &[Part]) -> Result<BTreeMap<Part, Vec<u8>>> {
    let head = hlog::header(recording.run.clocks.start.realtime_ns / 1_000)?;
    let mut files: BTreeMap<Part, Vec<u8>> =
        parts.iter().map(|part| (part.clone(), head.clone())).collect();
    recording.each_line(folder, |row, line| {
        if let Some(file) = files.get_mut(&(row.vm, row.metric.clone())) {
            file.extend(hlog::untagged(line));
        }
        Ok(())
    })?;
    Ok(files)
}

fn distributions(recording: &Recording, parts: &[Part]) -> BTreeMap<Part, Vec<u8>> {
    let file = |part: &Part| {
        let metric = recording.vms[part.0].metrics.get(&part.1)?;
        Some((part.clone(), hgrm::file(&metric.latencies).into_bytes()))
    };
    parts.iter().filter_map(file).collect()
}

fn rows(recording: &Recording, folder: &Folder, parts: &[Part]) -> Result<BTreeMap<Part, Vec<u8>>> {
    let failed = || format!("cannot read {INTERVALS}");
    let meant: BTreeSet<(usize, u64)> =
        recording.vm_rows().map(|row| (row.vm, row.interval)).collect();
    let mut reader = reader(std::fs::File::open(folder.file(INTERVALS)).with_context(failed)?);
    let columns = reader.headers().with_context(failed)?.clone();
    let place = |name: &str| {
        let found = columns.iter().position(|column| column == name);
        found.with_context(|| format!("{INTERVALS} has no column {name}"))
    };
    let (vm_id, metric, interval) = (place("vm_id")?, place("metric")?, place("interval")?);
    let names: Vec<&str> = columns.iter().collect();
    let head = csv::header(&names);
    let mut files: BTreeMap<Part, Vec<u8>> =
        parts.iter().map(|part| (part.clone(), head.clone())).collect();
    // A torn last row is of no complete interval.
    for row in reader.records().map_while(Result::ok) {
        let cell = |place: usize| row.get(place).unwrap_or_default();
        let vm = recording.run.vms.iter().position(|vm| vm.vm_id == cell(vm_id));
        let Some((vm, number)) = vm.zip(cell(interval).parse::<u64>().ok()) else { continue };
        let part = (vm, MetricName::new(cell(metric)));
        if let Some(file) = files.get_mut(&part).filter(|_| meant.contains(&(vm, number))) {
            let cells: Vec<String> = row.iter().map(str::to_owned).collect();
            file.extend(csv::rows([cells])?);
        }
    }
    Ok(files)
}
