//! What happened in one interval: what a drain gives, what a recording holds, and what every
//! view reads.

use crate::model::balloon::{Balloon, BalloonState};
use crate::model::breakdown::Breakdown;
use crate::model::coverage::{Coverage, Seen};
use crate::model::evictions::Eviction;
use crate::model::latencies::Latencies;
use crate::model::memory::{
    Headroom, HostMemory, HostPressure, LeastHeadroom, MemoryUse, NodeSet, Overcommit,
    OvercommitState, WorkingSet,
};
use crate::model::metric::MetricName;
use crate::model::state::StateTimes;
use crate::model::swap::{HostSwap, VmSwap};
use crate::model::swapins::Swapins;
use overcommit_ebpf::layout::{Invalidator, Loss, Metric, Taker};
use serde::{Deserialize, Serialize};

/// What happened between two drains.
#[derive(Clone, Debug, Default)]
pub struct Interval {
    /// When.
    pub place: Place,
    /// On the host.
    pub host: HostInterval,
    /// To each VM that was recorded.
    pub vms: Vec<VmInterval>,
    /// Who took pages of whom.
    pub evictions: Vec<Eviction>,
}

impl Interval {
    /// Whether the working set of every recorded VM was measured, those on huge pages of the pool
    /// left out.
    pub fn is_measured(&self) -> bool {
        let mut sets =
            self.vms.iter().filter(|vm| vm.memory.is_none_or(|memory| memory.hugetlb == 0));
        let is_measured =
            |vm: &VmInterval| vm.working_set.is_some_and(|set| set.source.is_measured());
        sets.clone().next().is_some() && sets.all(is_measured)
    }

    /// A copy that takes as little memory as it can, of the VMs and metrics that are wanted.
    pub fn copied(
        &self,
        is_vm: impl Fn(usize) -> bool,
        is_metric: impl Fn(&MetricName) -> bool,
    ) -> Self {
        let vms = self.vms.iter().filter(|vm| is_vm(vm.vm)).map(|vm| vm.copied(&is_metric));
        let evictions = self.evictions.iter().filter(|of| of.victim.is_none_or(&is_vm));
        Self { vms: vms.collect(), evictions: evictions.cloned().collect(), ..*self }
    }

    /// Each metric of each VM, in the order of the files.
    pub fn metrics(&self) -> impl Iterator<Item = &MetricInterval> {
        self.vms.iter().flat_map(|vm| &vm.metrics)
    }
}

/// An interval's place in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Counts from 0.
    pub number: u64,
    /// Start, in Unix microseconds: what rows join by. It can step back.
    pub start_us: u64,
    /// Length by the monotonic clock, in nanoseconds.
    pub length_ns: u64,
    /// Whether it is shorter than asked for: the first and the last one are.
    pub partial: bool,
    /// Whether it is much longer than asked for: the recorder was held up.
    pub delayed: bool,
    /// Start after the recording's start by the monotonic clock, in nanoseconds. Only the
    /// histogram logs have it.
    pub offset_ns: u64,
}

/// How many times as long as asked for an interval is that is delayed.
const DELAYED: f64 = 1.5;

impl Place {
    /// Whether an interval of that length is delayed.
    pub fn is_delayed(length_ns: u64, asked_for_ns: u64) -> bool {
        length_ns as f64 > asked_for_ns as f64 * DELAYED
    }

    /// Its end, in Unix seconds.
    pub fn end_s(&self) -> f64 {
        (self.start_us + self.length_ns / 1_000) as f64 / 1e6
    }
}

/// What an interval held for one VM.
#[derive(Clone, Debug, Default)]
pub struct VmInterval {
    /// Which, as an index into [`Run::vms`](crate::model::run::Run::vms).
    pub vm: usize,
    /// For how long it was recorded, in nanoseconds: a VM may start or end within an interval.
    /// `None` in recordings that do not tell.
    pub recorded_ns: Option<u64>,
    /// What was counted, by metric; `fault.*` also where it is nothing.
    pub metrics: Vec<MetricInterval>,
    /// Faults counted against the kernel's counters.
    pub seen: Seen,
    /// Faults by who took them, by [`Taker`].
    pub taken_by: [u64; Taker::COUNT],
    /// `None` while its vCPU threads are not known.
    pub stall: Option<Stall>,
    /// Time that its vCPU threads could run and had no CPU, whatever they were about, in
    /// nanoseconds; `None` where the scheduler keeps no account of it.
    pub cpu_wait_ns: Option<u64>,
    /// For how long its process was stopped, by SIGSTOP or a debugger, in nanoseconds.
    pub stopped_ns: u64,
    /// Where swapped pages came from; `None` in recordings that do not tell by interval.
    pub swapins: Option<Swapins>,
    /// Where pages of files came from; `None` where that is not seen.
    pub file_faults: Option<FileFaults>,
    /// How often KVM was told to unmap some of its memory, by [`Invalidator`]; `None` where that is not seen.
    pub invalidations: Option<[u64; Invalidator::COUNT]>,
    /// What the time of its faults went into.
    pub fault_time: Breakdown,
    /// What that of its windows of `stall.memory` did; `None` without such, or where it cannot
    /// be split.
    pub stall_time: Option<Breakdown>,
    /// By [`Loss`].
    pub not_counted: [u64; Loss::COUNT],
    /// Swapping.
    pub swap: VmSwap,
    /// What it was given, in bytes.
    pub configured: Option<u64>,
    /// What it gave back; `None` where nobody says.
    pub balloon: Option<Balloon>,
    /// How long ago its guest reported what it has, at the interval's end, in seconds.
    pub guest_age_s: Option<f64>,
    /// Whether that report says nothing of now.
    pub guest_is_stale: Option<bool>,
    /// What it holds.
    pub memory: Option<MemoryUse>,
    /// What it uses.
    pub working_set: Option<WorkingSet>,
    /// The NUMA nodes to which it is bound, if it is.
    pub numa_nodes: Option<NodeSet>,
    /// What is left on those.
    pub numa_headroom: Option<Headroom>,
}

impl VmInterval {
    /// See [`Interval::copied`].
    pub fn copied(&self, is_metric: impl Fn(&MetricName) -> bool) -> Self {
        let wanted = self.metrics.iter().filter(|metric| is_metric(&metric.name));
        let metrics = wanted.map(MetricInterval::compacted).collect();
        // The histograms are not copied only to be thrown away.
        Self { metrics, swapins: self.swapins.clone(), ..*self }
    }

    /// The latencies of a metric, if there were any.
    pub fn latencies(&self, metric: Metric) -> Option<&Latencies> {
        let found = self.metrics.iter().find(|entry| entry.name.as_str() == metric.name());
        found.map(|entry| &entry.latencies)
    }

    /// How much of an interval of that length it was recorded, in nanoseconds.
    pub fn recorded_of(&self, length_ns: u64) -> u64 {
        self.recorded_ns.unwrap_or(length_ns)
    }

    /// Time of all its faults, in nanoseconds.
    pub fn fault_ns(&self) -> u64 {
        let sums = Metric::FAULTS.map(|metric| self.latencies(metric).map_or(0, |all| all.sum_ns));
        sums.iter().sum()
    }

    /// Faults of its threads, counted or not.
    pub fn faults(&self) -> u64 {
        self.seen.counted.max(self.seen.kernel)
    }

    /// What the limit of its cgroup leaves beside its working set.
    pub fn cgroup_headroom(&self) -> Option<Headroom> {
        Headroom::of(self.swap.limit?, self.working_set?.range)
    }
}

/// What an interval held of one metric.
#[derive(Clone, Debug)]
pub struct MetricInterval {
    /// Index of the VM in the recording.
    pub vm: usize,
    /// The metric.
    pub name: MetricName,
    /// How much of it is seen; of `fault.*` measured since the start of the
    /// recording, because an interval alone says little.
    pub coverage: Coverage,
    /// What was counted. Of a recording the distribution is empty unless it was asked for.
    pub latencies: Latencies,
}

impl MetricInterval {
    /// A copy that takes as little memory as it can.
    pub fn compacted(&self) -> Self {
        Self { name: self.name.clone(), latencies: self.latencies.compacted(), ..*self }
    }
}

/// What an interval held for the host.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HostInterval {
    /// Swapping.
    pub swap: HostSwap,
    /// How hard it took memory back, at the worst.
    pub balloon: BalloonState,
    /// For how long how hard.
    pub balloon_times: StateTimes<BalloonState>,
    /// What its VMs gave back, in bytes, as far as somebody says.
    pub ballooned: Option<u64>,
    /// How near the edge it is, and was at the worst; `None` before the first look.
    pub overcommit: Option<Overcommit>,
    /// For how long how near.
    pub overcommit_times: StateTimes<OvercommitState>,
    /// What was left beside the working sets at the look at which it was least.
    pub least_headroom: Option<LeastHeadroom>,
    /// What takes memory beside the VMs.
    pub memory: Option<HostMemory>,
    /// What the kernel says of it.
    pub pressure: HostPressure,
}

/// Where the waiting of vCPUs is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StallSource {
    /// Between a memory exit and the next entry, in halts that wait for a page, and in faults in
    /// other exits.
    #[serde(rename = "stall.memory")]
    Windows,
    /// In the faults of the vCPU threads.
    #[default]
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

/// One part in so many of the vCPUs' time may be of threads that were not known.
const UNKNOWN_PART: u64 = 100;

/// Time that the vCPUs of a VM waited for memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    /// Summed over the vCPUs, in nanoseconds.
    pub waited_ns: u64,
    /// Part of it in which they could run and had no CPU: that is no want of memory.
    pub runq_ns: u64,
    /// vCPUs × time, in nanoseconds.
    pub vcpu_ns: u64,
    /// For how long vCPU threads of it were known, in nanoseconds. 0 in recordings that do not
    /// tell: all the time.
    pub known_ns: u64,
    /// Part of `vcpu_ns` of vCPUs whose threads were not known, in nanoseconds.
    pub unknown_vcpu_ns: u64,
    /// Where the waiting was seen.
    pub source: StallSource,
}

impl Stall {
    /// Whether next to all vCPU threads were known, while any was.
    pub fn has_all_vcpus(self) -> bool {
        self.unknown_vcpu_ns.saturating_mul(UNKNOWN_PART) <= self.vcpu_ns
    }

    /// Time that they waited for memory and not for a CPU, in nanoseconds.
    pub fn memory_ns(self) -> u64 {
        self.waited_ns.saturating_sub(self.runq_ns)
    }

    /// `stall.share`, from 0 to 1; `None` of no time.
    pub fn share(self) -> Option<f64> {
        (self.vcpu_ns > 0).then(|| self.memory_ns() as f64 / self.vcpu_ns as f64)
    }

    /// `cpu.share`, from 0 to 1, of that much time without a CPU; `None` of no time. A long wait
    /// ends in one interval and began in another.
    pub fn cpu_share(self, cpu_wait_ns: u64) -> Option<f64> {
        (self.vcpu_ns > 0).then(|| (cpu_wait_ns as f64 / self.vcpu_ns as f64).min(1.0))
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
