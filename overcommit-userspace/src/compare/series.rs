//! What of a recording is compared, interval by interval.

use crate::compare::batches::Point;
use crate::model::coverage::Coverage;
use crate::model::metric::MetricName;
use crate::model::run::RunVm;
use crate::recording::{Folder, Recording, Span};
use anyhow::Result;
use hdrhistogram::Histogram;
use std::collections::{BTreeMap, HashMap};

/// A recording with its folder.
#[derive(Debug)]
pub struct Run {
    /// Where it is.
    pub folder: Folder,
    /// What it holds.
    pub recording: Recording,
}

/// Families that are compared: how often a guest leaves for other reasons is its own
/// business.
const FAMILIES: [&str; 4] = ["fault", "swapin", "stall.memory", "apf"];

impl Run {
    /// Reads it, or the part that is meant.
    ///
    /// # Errors
    /// See [`Recording::open`].
    pub fn open(folder: Folder, span: Span) -> Result<Self> {
        let recording = Recording::open(&folder, span)?;
        Ok(Self { folder, recording })
    }

    /// Its VMs by index.
    pub fn vms(&self) -> impl Iterator<Item = (usize, &RunVm)> {
        self.recording.run.vms.iter().enumerate()
    }

    /// Time recorded of a VM, in seconds.
    pub fn length_s(&self, vm: usize) -> f64 {
        self.recording.vms[vm].length_ns as f64 / 1e9
    }

    /// The metrics of a VM that can be compared.
    pub fn metrics(&self, vm: usize) -> impl Iterator<Item = &MetricName> {
        let metrics = self.recording.vms[vm].metrics.iter();
        let is_compared = |name: &MetricName| FAMILIES.iter().any(|family| name.is_in(family));
        metrics
            .filter(move |(name, totals)| {
                is_compared(name)
                    && totals.coverage != Coverage::Absent
                    && totals.latencies.count() > 0
            })
            .map(|(name, _)| name)
    }

    /// The distribution of a metric over the whole time.
    pub fn histogram(&self, vm: usize, metric: &MetricName) -> Option<&Histogram<u64>> {
        Some(&self.recording.vms[vm].metrics.get(metric)?.latencies.histogram)
    }

    /// Of each interval how many were counted, and how many of them exceed a threshold,
    /// in nanoseconds; for VMs and metrics by threshold.
    ///
    /// # Errors
    /// A log cannot be read.
    pub fn above(
        &self,
        thresholds: &BTreeMap<(usize, MetricName), u64>,
    ) -> Result<BTreeMap<(usize, MetricName), Vec<Point>>> {
        let mut counted: HashMap<(usize, MetricName), HashMap<u64, (f64, f64)>> = HashMap::new();
        self.recording.each_histogram(&self.folder, |row, histogram| {
            let key = (row.vm, row.metric.clone());
            if let Some(threshold) = thresholds.get(&key) {
                let above = histogram
                    .iter_recorded()
                    .filter(|value| value.value_iterated_to() > *threshold)
                    .map(|value| value.count_at_value())
                    .sum::<u64>();
                let counts = (histogram.len() as f64, above as f64);
                counted.entry(key).or_default().insert(row.interval, counts);
            }
        })?;
        let points = thresholds.keys().map(|key| {
            let counted = counted.get(key);
            let of = |interval| counted.and_then(|counted| counted.get(&interval)).copied();
            let rows = self.recording.vm_rows().filter(|row| row.vm == key.0);
            let points = rows.map(|row| {
                let (all, meant) = of(row.interval).unwrap_or_default();
                let length_s = row.length_ns as f64 / 1e9;
                Point { interval: row.interval, length_s, all, meant }
            });
            (key.clone(), points.collect())
        });
        Ok(points.collect())
    }

    /// Of each interval the time of the vCPUs, and how much of it they waited.
    pub fn stalls(&self, vm: usize) -> Vec<Point> {
        let rows = self.recording.vm_rows().filter(|row| row.vm == vm);
        let point = |row: &crate::recording::rows::VmRow| {
            let stall = row.stall?;
            Some(Point {
                interval: row.interval,
                length_s: row.length_ns as f64 / 1e9,
                all: stall.vcpu_ns as f64,
                meant: stall.waited_ns as f64,
            })
        };
        rows.filter_map(point).collect()
    }
}
