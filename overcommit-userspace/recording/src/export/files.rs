//! One file a VM and metric, for tools that read no more than one.

use crate::format::{csv, hgrm, hlog};
use crate::model::columns::{self, Row};
use crate::model::metric::MetricName;
use crate::model::pattern::Pattern;
use crate::model::run::RunVm;
use crate::model::totals::Totals;
use crate::recording::reader::NONE;
use crate::recording::{Folder, Recording, Span};
use anyhow::{Result, ensure};
use overcommit_ebpf::layout::Metric;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// A format of such files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Hlog,
    Hgrm,
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

    pub(super) fn wants_vm(&self, vm: &RunVm) -> bool {
        let means = |pattern: &Pattern| pattern.matches_recorded(vm);
        self.vms.is_empty() || self.vms.iter().any(means)
    }
}

/// A VM of the recording, by its index, and a metric that it has.
type Part = (usize, MetricName);

/// Writes the files below `into`, or below a folder in the recording's own; gives where they are.
///
/// # Errors
/// Nothing is meant, a log cannot be read, or a file cannot be written.
pub(super) fn write(
    recording: &Recording,
    span: Span,
    format: Format,
    selection: &Selection,
    into: Option<&Folder>,
) -> Result<Vec<PathBuf>> {
    let vms = &recording.run.vms;
    let all = parts(recording, span)?;
    let parts: Vec<Part> =
        all.iter().filter(|(vm, metric)| selection.wants(&vms[*vm], metric)).cloned().collect();
    ensure!(
        !parts.is_empty(),
        "no VM and metric match; the recording has {}",
        content(recording, &all)
    );
    let mut files = match format {
        Format::Hlog => logs(recording, span, &parts)?,
        Format::Hgrm => distributions(recording, span, &parts)?,
        Format::Csv => rows(recording, span, &parts)?,
    };
    let mut paths = Vec::new();
    for part in parts {
        let name = format!("{}/{}.{}", vms[part.0].folder, part.1.as_str(), format.extension());
        let (folder, name) = match into {
            Some(into) => (into, name),
            None => (&recording.folder, format!("{}/{name}", super::FOLDER)),
        };
        folder.refresh(&name, &files.remove(&part).unwrap_or_default())?;
        paths.push(folder.file(&name));
    }
    Ok(paths)
}

/// What the recording has.
fn parts(recording: &Recording, span: Span) -> Result<Vec<Part>> {
    let faults = Metric::FAULTS.map(MetricName::from);
    let vms = 0..recording.run.vms.len();
    let mut parts: BTreeSet<Part> =
        vms.flat_map(|vm| faults.clone().map(|metric| (vm, metric))).collect();
    recording.each(span, NONE, |interval| {
        for vm in &interval.vms {
            parts.extend(vm.metrics.iter().map(|metric| (vm.vm, metric.name.clone())));
        }
        Ok(())
    })?;
    Ok(parts.into_iter().collect())
}

fn content(recording: &Recording, parts: &[Part]) -> String {
    let vms: BTreeSet<&str> = recording.run.vms.iter().map(|vm| vm.name.as_str()).collect();
    let vms: Vec<&str> = vms.into_iter().collect();
    let metrics: Vec<&str> = metrics(parts).into_iter().map(MetricName::as_str).collect();
    format!("the VMs {} and the metrics {}", vms.join(", "), metrics.join(", "))
}

fn metrics(parts: &[Part]) -> BTreeSet<&MetricName> {
    parts.iter().map(|(_, metric)| metric).collect()
}

/// A file of each part, with its head.
fn begun(parts: &[Part], head: &[u8]) -> BTreeMap<Part, Vec<u8>> {
    parts.iter().map(|part| (part.clone(), head.to_vec())).collect()
}

fn logs(recording: &Recording, span: Span, parts: &[Part]) -> Result<BTreeMap<Part, Vec<u8>>> {
    let head = hlog::header(recording.run.clocks.start.realtime_ns / 1_000)?;
    let mut files = begun(parts, &head);
    recording.each_with_lines(span, NONE, |interval, lines| {
        for (metric, line) in interval.metrics().zip(lines) {
            if let Some(file) = files.get_mut(&(metric.vm, metric.name.clone())) {
                file.extend(hlog::untagged(line));
            }
        }
        Ok(())
    })?;
    Ok(files)
}

fn distributions(
    recording: &Recording,
    span: Span,
    parts: &[Part],
) -> Result<BTreeMap<Part, Vec<u8>>> {
    let mut totals = Totals::of(recording.run.vms.len());
    let metrics = metrics(parts);
    recording.each(span, &|name| metrics.contains(name), |interval| {
        totals.add(interval);
        Ok(())
    })?;
    let file = |part: &Part| {
        let metric = totals.vms[part.0].metrics.get(&part.1)?;
        Some((part.clone(), hgrm::file(&metric.latencies).into_bytes()))
    };
    Ok(parts.iter().filter_map(file).collect())
}

fn rows(recording: &Recording, span: Span, parts: &[Part]) -> Result<BTreeMap<Part, Vec<u8>>> {
    let columns = columns::metrics();
    let mut files = begun(parts, &csv::head(&columns));
    let metrics = metrics(parts);
    recording.each(span, &|name| metrics.contains(name), |interval| {
        for metric in interval.metrics() {
            if let Some(file) = files.get_mut(&(metric.vm, metric.name.clone())) {
                let row = Row { run: &recording.run, place: &interval.place, of: metric };
                file.extend(csv::rows([csv::cells(&columns, &row)])?);
            }
        }
        Ok(())
    })?;
    Ok(files)
}
