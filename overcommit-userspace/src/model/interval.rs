//! What an interval held.

use crate::model::balloon::Balloon;
use crate::model::balloon::BalloonState;
use crate::model::breakdown::Breakdown;
use crate::model::coverage::{Coverage, Seen};
use crate::model::evictions::EvictionSample;
use crate::model::latencies::Latencies;
use crate::model::memory::Headroom;
use crate::model::memory::HostMemory;
use crate::model::memory::MemoryUse;
use crate::model::memory::NodeSet;
use crate::model::memory::Overcommit;
use crate::model::memory::WorkingSet;
use crate::model::metric::MetricName;
use crate::model::swap::HostSwap;
use crate::model::swap::VmSwap;
use crate::model::swapins::SwapinCounts;
use overcommit_ebpf::layout::{Loss, Metric, Part, Taker};
use serde::{Deserialize, Serialize};

/// Where the waiting of vCPUs is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StallSource {
    /// Between a memory exit and the next entry, and in halts that wait for a page.
    #[serde(rename = "stall.memory")]
    Windows,
    /// In the faults of the vCPU threads.
    #[serde(rename = "fault")]
    Faults,
}

impl StallSource {
    /// The name in all files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Windows => "stall.memory",
            Self::Faults => "fault",
        }
    }

    /// What a file calls so.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Windows, Self::Faults].into_iter().find(|source| source.name() == name)
    }
}

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

/// The host in an interval.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostSample {
    /// Swapping.
    pub swap: HostSwap,
    /// How hard it takes memory back.
    pub balloon: BalloonState,
    /// What its VMs gave back, in bytes, as far as somebody says.
    pub ballooned: Option<u64>,
    /// How near the edge it is; `None` before the first look.
    pub overcommit: Option<Overcommit>,
    /// What takes memory beside the VMs.
    pub memory: Option<HostMemory>,
}

/// A VM in an interval, as the host has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct VmHostSample {
    /// Swapping.
    pub swap: VmSwap,
    /// What it was given, in bytes.
    pub configured: Option<u64>,
    /// What it gave back; `None` where nobody says.
    pub balloon: Option<Balloon>,
    /// What it holds.
    pub memory: Option<MemoryUse>,
    /// What it uses.
    pub working_set: Option<WorkingSet>,
    /// The NUMA nodes to which it is bound, if it is, and what is left there.
    pub numa: Option<(NodeSet, Option<Headroom>)>,
}

impl VmHostSample {
    /// What the limit of its cgroup leaves beside its working set.
    pub fn cgroup_headroom(&self) -> Option<Headroom> {
        Headroom::of(self.swap.limit?, self.working_set?.range)
    }
}

/// What the sampler saw between two drains.
#[derive(Debug)]
pub struct Interval {
    /// Counts from 0.
    pub number: u64,
    /// Start, in Unix microseconds: what rows join by. It can step back.
    pub start_us: u64,
    /// Start after the recording's start by the monotonic clock, in nanoseconds.
    pub offset_ns: u64,
    /// Length by the monotonic clock, in nanoseconds.
    pub length_ns: u64,
    /// Whether it is shorter than asked for: the first and the last one are.
    pub partial: bool,
    /// Each VM that was recorded.
    pub vms: Vec<VmSample>,
    /// Who took pages of whom.
    pub evictions: Vec<EvictionSample>,
    /// The host.
    pub host: HostSample,
    /// In the order of `vms`.
    pub vm_hosts: Vec<VmHostSample>,
}
