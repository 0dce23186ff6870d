//! What of a recording is compared, interval by interval.

use crate::compare::batches::Point;
use crate::model::latencies::Latencies;
use crate::model::metric::MetricName;
use crate::model::run::RunVm;
use crate::model::totals::{STALL_KNOWN, Totals};
use crate::recording::reader::Waits;
use crate::recording::{Recording, Span};
use anyhow::Result;
use hdrhistogram::Histogram;
use std::collections::BTreeSet;

/// A recording that is compared, read once for its totals.
#[derive(Debug)]
pub struct Side {
    /// The recording.
    pub recording: Recording,
    span: Span,
    totals: Totals,
    /// Of each VM, interval by interval: the time of its vCPUs, and how much they waited.
    stalls: Vec<Vec<Point>>,
    /// What the cgroup of each VM let it have at the end, in bytes.
    limits: Vec<Option<u64>>,
    /// What it counts as waits.
    pub waits: Waits,
}

impl Side {
    /// Reads it, or the part that is meant.
    ///
    /// # Errors
    /// See [`Recording::each`].
    pub fn read(recording: Recording, span: Span) -> Result<Self> {
        let vms = recording.run.vms.len();
        let (mut totals, mut stalls) = (Totals::of(vms), vec![Vec::new(); vms]);
        let mut limits = vec![None; vms];
        recording.each(span, &|metric| metric.is_compared(), |interval| {
            totals.add(interval);
            for vm in &interval.vms {
                let length_s = vm.recorded_of(interval.place.length_ns) as f64 / 1e9;
                limits[vm.vm] = vm.swap.limit;
                if let Some(stall) = vm.stall {
                    stalls[vm.vm].push(Point {
                        interval: interval.place.number,
                        length_s,
                        all: stall.vcpu_ns as f64,
                        meant: stall.memory_ns() as f64,
                    });
                }
            }
            Ok(())
        })?;
        let waits = recording.waits()?;
        Ok(Self { recording, span, totals, stalls, limits, waits })
    }

    /// Its VMs.
    pub fn vms(&self) -> &[RunVm] {
        &self.recording.run.vms
    }

    /// What a VM's cgroup let it have at the end, in bytes; `None` without a limit.
    pub fn limit(&self, vm: usize) -> Option<u64> {
        self.limits[vm]
    }

    /// The metrics of a VM that are compared and of which anything was counted.
    pub fn counted(&self, vm: usize) -> impl Iterator<Item = &MetricName> {
        let metrics = self.totals.vms[vm].metrics.iter();
        metrics
            .filter(|(name, totals)| name.is_compared() && totals.latencies.count() > 0)
            .map(|(name, _)| name)
    }

    /// Why a metric of a VM was not looked at, if so: that none were counted says nothing then.
    pub fn unseen(&self, vm: usize, metric: &MetricName) -> Option<String> {
        let run = &self.recording.run;
        run.coverage_of(&run.vms[vm], metric).1
    }

    /// The distribution of a metric over the whole time; `None` if none were counted.
    pub fn latencies(&self, vm: usize, metric: &MetricName) -> Option<&Latencies> {
        let totals = self.totals.vms[vm].metrics.get(metric)?;
        Some(&totals.latencies).filter(|latencies| latencies.count() > 0)
    }

    /// Of each interval how many were counted, and how many of them exceed a threshold, in
    /// nanoseconds: for each threshold of each VM. The logs are read once for all of them.
    ///
    /// # Errors
    /// A log cannot be read.
    pub fn above(&self, thresholds: &[Vec<(MetricName, u64)>]) -> Result<Vec<Vec<Vec<Point>>>> {
        let mut points: Vec<Vec<Vec<Point>>> =
            thresholds.iter().map(|of| vec![Vec::new(); of.len()]).collect();
        let wanted: BTreeSet<&MetricName> =
            thresholds.iter().flatten().map(|(metric, _)| metric).collect();
        self.recording.each(self.span, &|name| wanted.contains(name), |interval| {
            for vm in &interval.vms {
                let length_s = vm.recorded_of(interval.place.length_ns) as f64 / 1e9;
                for ((metric, threshold), points) in
                    thresholds[vm.vm].iter().zip(&mut points[vm.vm])
                {
                    let counted = vm.metrics.iter().find(|entry| entry.name == *metric);
                    let (all, meant) = counted
                        .map(|entry| above(&entry.latencies.histogram(), *threshold))
                        .unwrap_or_default();
                    points.push(Point { interval: interval.place.number, length_s, all, meant });
                }
            }
            Ok(())
        })?;
        Ok(points)
    }

    /// Of each interval the time of the vCPUs, and how much of it they waited; `None` if those
    /// are not known nearly all the time.
    pub fn stalls(&self, vm: usize) -> Option<&[Point]> {
        let totals = &self.totals.vms[vm];
        let is_known = totals.stall_known() >= STALL_KNOWN
            && totals.stall.is_none_or(|stall| stall.has_all_vcpus());
        is_known.then_some(self.stalls[vm].as_slice())
    }
}

/// How many there are, and how many of them exceed a threshold.
fn above(histogram: &Histogram<u64>, threshold: u64) -> (f64, f64) {
    let above = histogram.iter_recorded().filter(|value| value.value_iterated_to() > threshold);
    let above: u64 = above.map(|value| value.count_at_value()).sum();
    (histogram.len() as f64, above as f64)
}
