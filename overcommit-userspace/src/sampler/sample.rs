//! What an interval held.

use crate::metrics::MetricName;
use crate::sampler::breakdown::Breakdown;
use crate::sampler::coverage::{Coverage, Seen};
use crate::sampler::latencies::Latencies;
use crate::sampler::stall::StallSource;
use crate::sampler::swapins::SwapinCounts;
use overcommit_ebpf::layout::{Loss, Metric, Part, Taker};
use serde::{Deserialize, Serialize};

/// Time that the vCPUs of a VM waited for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    /// Summed over the vCPUs, in nanoseconds.
    pub waited_ns: u64,
    /// vCPUs × time, in nanoseconds.
    pub vcpu_ns: u64,
    /// Where the waiting was seen.
    pub source: StallSource,
}

impl Stall {
    /// `stall.share`, from 0 to 1; `None` of no time.
    pub fn share(self) -> Option<f64> {
        (self.vcpu_ns > 0).then(|| self.waited_ns as f64 / self.vcpu_ns as f64)
    }
}

/// Faults that took pages of files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFaults {
    /// The page was in the page cache.
    pub cached: u64,
    /// It had to be read.
    pub read: u64,
}

impl FileFaults {
    /// Adds others.
    pub fn add(&mut self, other: Self) {
        self.cached += other.cached;
        self.read += other.read;
    }
}

/// What an interval held for one VM.
#[derive(Debug)]
pub struct VmSample {
    /// Which, as an index into [`Sampler::members`].
    pub member: usize,
    /// What was counted, by metric; `fault.*` also where it is nothing.
    pub metrics: Vec<MetricSample>,
    /// Faults counted against the kernel's counters.
    pub seen: Seen,
    /// Faults by who took them, by [`Taker`].
    pub taken_by: [u64; Taker::COUNT],
    /// `None` while its vCPU threads are not known.
    pub stall: Option<Stall>,
    /// Where swapped pages came from.
    pub swapins: SwapinCounts,
    /// Pages of its memory cgroup that reclaim wrote out, if that is being counted; see
    /// [`Sampler::count_swapouts`].
    pub swapped_out: u64,
    /// Pages of its guest's memory that it gave back one by one, and those that it took
    /// again, if that is being counted; see [`Sampler::see_discards`].
    pub discards: [u64; 2],
    /// Time of its faults by [`Part`], in nanoseconds.
    pub parts_ns: [u64; Part::COUNT],
    /// Time of its windows of `stall.memory` by [`Part`] of the faults in them, and that
    /// outside faults, in nanoseconds.
    pub stall_ns: [u64; Part::COUNT + 1],
    /// By [`Loss`].
    pub not_counted: [u64; Loss::COUNT],
}

impl VmSample {
    /// The latencies of a metric, if there were any.
    pub fn latencies(&self, metric: Metric) -> Option<&Latencies> {
        let found = self.metrics.iter().find(|sample| sample.name.as_str() == metric.name());
        found.map(|sample| &sample.latencies)
    }

    /// What the time of its faults went into; a part that is not seen is left out.
    pub fn fault_time(&self, is_seen: impl Fn(Part) -> bool) -> Breakdown {
        let sums = Metric::FAULTS.map(|metric| self.latencies(metric).map_or(0, |all| all.sum_ns));
        Breakdown::new(sums.iter().sum(), self.parts_ns, is_seen)
    }

    /// The same of its windows of `stall.memory`, if there were any.
    pub fn stall_time(&self, is_seen: impl Fn(Part) -> bool) -> Option<Breakdown> {
        let total_ns = self.latencies(Metric::StallMemory)?.sum_ns;
        let [parts @ .., kvm_ns] = self.stall_ns;
        Some(Breakdown { kvm_ns: Some(kvm_ns), ..Breakdown::new(total_ns, parts, is_seen) })
    }

    /// How much of `fault.*` was seen since the start of the recording.
    pub fn coverage(&self) -> Coverage {
        self.metrics.first().map_or(Coverage::Full, |sample| sample.coverage)
    }
}

/// What an interval held of one metric.
#[derive(Debug)]
pub struct MetricSample {
    /// Which.
    pub name: MetricName,
    /// How much of it is seen; of `fault.*` measured since the start of the
    /// recording, because an interval alone says little.
    pub coverage: Coverage,
    /// What was counted.
    pub latencies: Latencies,
}
