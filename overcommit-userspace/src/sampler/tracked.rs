//! A VM's slot from drain to drain.

use crate::host::ForHost;
use crate::probes::slots::{Holdings, Kind, Slots};
use crate::sampler::FaultCounts;
use crate::sampler::accounts;
use crate::sampler::carry::Carry;
use crate::sampler::run_delay::RunDelays;
use crate::sampler::stall::Waits;
use crate::sampler::stall::is_waiting;
use crate::sampler::swapins::SwapinReader;
use crate::sampler::vcpus::VcpuTimes;
use crate::vm::threads::VcpuThreads;
use overcommit_ebpf::layout::{
    self, FaultBacking, Invalidator, Loss, Part, STALL_PARTS, Taker, Thread,
};
use overcommit_recording::model::coverage::{Coverage, Seen};
use overcommit_recording::model::interval::{FileFaults, MetricInterval, Stall, StallSource};
use overcommit_recording::model::latencies::Latencies;
use overcommit_recording::model::metric::MetricName;
use procfs::process::{Process, Stat};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

/// CPU time after which a vCPU must have left its guest at least once: a tenth of a
/// second. In ticks.
const BUSY_TICKS: u64 = 10;

/// A VM whose slot is drained.
pub(super) struct Tracked {
    /// As an index into the VMs of the recording.
    pub(super) vm: usize,
    pub(super) slot: u32,
    /// `None` for a VM that was gone before it could be looked at.
    pub(super) process: Option<Process>,
    pub(super) vcpus: VcpuThreads,
    /// By index of the shared histogram.
    pub(super) carries: HashMap<usize, Carry>,
    pub(super) waits: Waits,
    run_delays: RunDelays,
    pub(super) times: VcpuTimes,
    pub(super) swapins: SwapinReader,
    /// CPU time of its process when it was found, in ticks.
    pub(super) cpu_before: u64,
    /// Kernel's fault counter at the last drain.
    pub(super) kernel_faults: u64,
    pub(super) taken_by: [u64; Taker::COUNT],
    pub(super) lost: [u64; Loss::COUNT],
    pub(super) parts_ns: [u64; Part::COUNT],
    pub(super) stall_ns: [u64; STALL_PARTS],
    invalidated: [u64; Invalidator::COUNT],
    /// Its memory cgroup, if that is its own.
    pub(super) cgroup: Option<u64>,
    pub(super) swapped_out: [u64; 1],
    pub(super) discards: [u64; 2],
    pub(super) since_ns: u64,
}

impl Tracked {
    /// A VM that is followed from `since_ns` on; the kernel had counted that many faults
    /// of it before.
    pub(super) fn new(
        vm: usize,
        slot: u32,
        process: Option<Process>,
        before: FaultCounts,
        since_ns: u64,
    ) -> Self {
        let stat = process.as_ref().and_then(accounts::stat);
        Self {
            vm,
            slot,
            cpu_before: stat.as_ref().map_or(0, cpu_ticks),
            process,
            vcpus: VcpuThreads::default(),
            carries: HashMap::new(),
            waits: Waits::default(),
            run_delays: RunDelays::default(),
            times: VcpuTimes::default(),
            swapins: SwapinReader::default(),
            kernel_faults: before.iter().sum(),
            taken_by: [0; Taker::COUNT],
            lost: [0; Loss::COUNT],
            parts_ns: [0; Part::COUNT],
            stall_ns: [0; STALL_PARTS],
            invalidated: [0; Invalidator::COUNT],
            cgroup: None,
            swapped_out: [0],
            discards: [0; 2],
            since_ns,
        }
    }

    /// Whether its vCPUs have run without a single exit.
    pub(super) fn is_silent(&self, stat: Option<&Stat>) -> bool {
        let used = stat.map_or(0, cpu_ticks).saturating_sub(self.cpu_before);
        self.times.is_empty() && used >= BUSY_TICKS
    }

    /// Time that its vCPU threads could run and had no CPU since the last drain.
    pub(super) fn cpu_wait(&mut self) -> Option<u64> {
        let process = self.process.as_ref()?;
        self.run_delays.grown(process, self.vcpus.tids())
    }

    /// Takes what the shared histograms hold, with the pages of files among it.
    pub(super) fn take(
        &mut self,
        slots: &Slots,
        held: &Holdings,
    ) -> (Vec<MetricInterval>, FileFaults) {
        let mut metrics: BTreeMap<MetricName, Latencies> = BTreeMap::new();
        let mut files = FileFaults::default();
        for (index, kind) in slots.histograms_of(self.slot, held) {
            let Some(histogram) = slots.histograms.get(index) else { continue };
            let carry = self.carries.entry(index).or_default();
            let latencies = carry.take(histogram, |number| slots.chunks.get(number));
            match kind {
                Kind::Fault(FaultBacking::File, true) => files.read += latencies.count(),
                Kind::Fault(FaultBacking::File, false) => files.cached += latencies.count(),
                _ => {}
            }
            for name in kind.metrics() {
                if latencies.count() > 0 || name.is_always_written() {
                    metrics.entry(name).or_insert_with(Latencies::empty).merge(&latencies);
                }
            }
        }
        let (vm, coverage) = (self.vm, Coverage::Full);
        let sample = |(name, latencies)| MetricInterval { vm, name, coverage, latencies };
        (metrics.into_iter().map(sample).collect(), files)
    }

    /// Faults that the VM's own threads took: counted, and by the kernel; by what the
    /// programs added up if it does not run any more.
    pub(super) fn seen(
        &mut self,
        shared: &layout::Vm,
        metrics: &[MetricInterval],
        running: Option<&Stat>,
    ) -> Seen {
        let at_end = || shared.faults_at_end.iter().map(|count| count.load(SeqCst)).sum();
        let kernel: u64 = running.map_or_else(at_end, |stat| faults(stat).iter().sum());
        let faults = metrics.iter().filter(|sample| sample.name.is_always_written());
        let counted: u64 = faults.map(|sample| sample.latencies.count()).sum();
        let outside = shared.taken_by[Taker::Outside as usize].load(SeqCst)
            - self.taken_by[Taker::Outside as usize];
        let seen = Seen {
            counted: counted.saturating_sub(outside),
            kernel: kernel.saturating_sub(self.kernel_faults),
        };
        self.kernel_faults = kernel.max(self.kernel_faults);
        seen
    }

    /// What else its slot has counted since the last drain.
    pub(super) fn counts(&mut self, shared: &layout::Vm) -> Counts {
        Counts {
            taken_by: grown(shared.taken_by.each_ref(), &mut self.taken_by),
            parts_ns: grown(shared.parts_ns.each_ref(), &mut self.parts_ns),
            stall_ns: grown(shared.stall_ns.each_ref(), &mut self.stall_ns),
            invalidated: grown(shared.invalidated.each_ref(), &mut self.invalidated),
            not_counted: grown(shared.lost.each_ref(), &mut self.lost),
            for_host: ForHost {
                swapped_out: grown([&shared.swapped_out], &mut self.swapped_out)[0],
                discards: grown([&shared.given_back, &shared.taken_again], &mut self.discards),
                has_no_exits: false,
            },
        }
    }
}

/// Counters of a slot, by how much they have grown.
pub(super) struct Counts {
    /// By [`Taker`].
    pub(super) taken_by: [u64; Taker::COUNT],
    /// By [`Part`].
    pub(super) parts_ns: [u64; Part::COUNT],
    /// By [`Part`] and outside faults.
    pub(super) stall_ns: [u64; STALL_PARTS],
    /// By [`Invalidator`].
    pub(super) invalidated: [u64; Invalidator::COUNT],
    /// By [`Loss`].
    pub(super) not_counted: [u64; Loss::COUNT],
    pub(super) for_host: ForHost,
}

/// What counters have grown by since they were last read.
pub(super) fn grown<const N: usize>(counters: [&AtomicU64; N], before: &mut [u64; N]) -> [u64; N] {
    let now = counters.map(|count| count.load(SeqCst));
    let mut grown = now;
    for (grown, before) in grown.iter_mut().zip(std::mem::replace(before, now)) {
        *grown -= before;
    }
    grown
}

/// Adds up the waiting of the vCPU threads; learns which they are on the way.
pub(super) fn stall(
    tracked: &mut Tracked,
    threads: &[&Thread],
    vcpus: Option<u32>,
    until_ns: u64,
    length_ns: u64,
) -> Option<Stall> {
    threads.iter().for_each(|thread| tracked.times.see(thread));
    let (source, other) = if !tracked.times.is_empty() {
        (StallSource::Windows, StallSource::Faults)
    } else {
        (StallSource::Faults, StallSource::Windows)
    };
    let mut waited_ns = 0;
    for thread in threads {
        let tid = thread.tid();
        if thread.is_vcpu.load(SeqCst) != 0 {
            tracked.vcpus.saw_in_kvm_run(tid);
        }
        if tracked.vcpus.tids().contains(&tid) {
            // One that is known by its name alone, for the programs.
            thread.is_vcpu.store(1, SeqCst);
            let waits = &mut tracked.waits;
            waited_ns += waits.advance(thread, source, until_ns, length_ns, is_waiting);
            waits.skip(thread, other, until_ns);
        } else {
            tracked.waits.skip(thread, source, until_ns);
        }
    }
    tracked.vcpus.known_by()?;
    let divisor = tracked.vcpus.divisor(vcpus);
    let unknown = divisor - tracked.vcpus.tids().len() as u64;
    Some(Stall {
        waited_ns,
        runq_ns: 0,
        vcpu_ns: divisor * length_ns,
        known_ns: length_ns,
        unknown_vcpu_ns: unknown * length_ns,
        source,
    })
}

/// min_flt and maj_flt of the whole process.
pub(super) fn faults(stat: &Stat) -> FaultCounts {
    [stat.minflt, stat.majflt]
}

/// CPU time of the whole process, in ticks.
fn cpu_ticks(stat: &Stat) -> u64 {
    stat.utime + stat.stime
}
