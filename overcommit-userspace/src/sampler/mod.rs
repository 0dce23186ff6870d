//! What happened in this interval?

pub mod coverage;
pub mod evictions;
pub mod latencies;
pub mod roster;
pub mod stall;
pub mod swapins;
pub mod vcpus;

use crate::clock::Clocks;
use crate::metrics::{self, MetricCoverage, MetricName, SILENT, Sight, coverage_of};
use crate::probes::Probes;
use crate::probes::rings::Event;
use crate::probes::slots::{Holdings, Slots};
use crate::vm::threads::VcpuThreads;
use anyhow::Result;
use coverage::{Coverage, Seen};
use evictions::{EvictionSample, of_vm};
use latencies::{Carry, Latencies};
use overcommit_ebpf::layout::{self, Loss, Metric, Taker, Thread};
use procfs::process::{Process, Stat};
use roster::{Member, Roster};
use serde::{Deserialize, Serialize};
use stall::{StallSource, Waits};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use swapins::{SwapinCounts, SwapinReader};
use vcpus::VcpuTimes;

/// Scans of /proc between two looks for entries of threads that are gone.
const REAP_EVERY: u32 = 10;

/// CPU time after which a vCPU must have left its guest at least once: a tenth of a
/// second. In ticks.
const BUSY_TICKS: u64 = 10;

/// Time after which no program can still be using a slot that was closed.
const QUIET_NS: u64 = 100_000_000;

/// The kernel's own counts of minor and major faults.
pub type FaultCounts = [u64; Metric::FAULTS.len()];

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
    /// By [`Loss`].
    pub not_counted: [u64; Loss::COUNT],
}

impl VmSample {
    /// The latencies of a metric, if there were any.
    pub fn latencies(&self, metric: Metric) -> Option<&Latencies> {
        let found = self.metrics.iter().find(|sample| sample.name.as_str() == metric.name());
        found.map(|sample| &sample.latencies)
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

/// A VM whose slot is drained.
struct Tracked {
    member: usize,
    slot: u32,
    /// `None` for a VM that was gone before it could be looked at.
    process: Option<Process>,
    vcpus: VcpuThreads,
    /// By index of the shared histogram.
    carries: HashMap<usize, Carry>,
    waits: Waits,
    times: VcpuTimes,
    swapins: SwapinReader,
    /// CPU time of its process when it was found, in ticks.
    cpu_before: u64,
    /// Kernel's fault counter at the last drain.
    kernel_faults: u64,
    taken_by: [u64; Taker::COUNT],
    lost: [u64; Loss::COUNT],
    /// Its memory cgroup, if that is its own.
    cgroup: Option<u64>,
    swapped_out: [u64; 1],
    discards: [u64; 2],
    since_ns: u64,
}

/// What is the same for every VM at a drain.
struct HostView<'a> {
    declared: Vec<MetricCoverage>,
    /// Why no VM's exits are seen, if they are not.
    exits_absent: Option<String>,
    now: &'a Clocks,
}

/// Drains the slots of the VMs that are recorded, and keeps them in step with the
/// VMs that run.
pub struct Sampler {
    probes: Probes,
    roster: Roster,
    tracked: Vec<Tracked>,
    /// As of the last drain.
    evictions: Vec<EvictionSample>,
    /// Slots whose VM is gone, to be freed a while after the time beside them, in
    /// nanoseconds.
    closing: Vec<(u32, u64)>,
    scans: u32,
    last_ns: u64,
}

impl Sampler {
    /// Takes the attached probes. Nothing is counted before [`Self::rescan`].
    pub fn new(probes: Probes, roster: Roster, now: &Clocks) -> Self {
        Self {
            probes,
            roster,
            tracked: Vec::new(),
            evictions: Vec::new(),
            closing: Vec::new(),
            scans: 0,
            last_ns: now.monotonic_ns,
        }
    }

    /// Every VM that has been recorded, the ended ones too.
    pub fn members(&self) -> &[Member] {
        self.roster.members()
    }

    /// Running VMs that are recorded.
    pub fn running(&self) -> usize {
        self.tracked.len()
    }

    /// VMs that found no free slot.
    pub fn without_slot(&self) -> u64 {
        self.roster.without_slot()
    }

    /// Looks for VMs, vCPU threads and CPUs that came or went.
    ///
    /// # Errors
    /// /proc cannot be listed, or the kernel refuses the probes of a new CPU.
    pub fn rescan(&mut self, now: &Clocks) -> Result<()> {
        self.probes.follow_host()?;
        self.probes.slots.forget_swap_devices();
        self.free_slots(now)?;
        self.probes.slots.see_new_threads();
        self.roster.look_again(now);
        let new = self.roster.new_vms()?;
        if !new.is_empty() {
            let pids: Vec<i32> = new.iter().map(|vm| vm.id.pid).collect();
            self.probes.adopt(&pids)?;
        }
        let full =
            self.tracked.len() + self.closing.len() + new.len() > self.probes.slots.vms.len();
        for vm in new {
            match self.probes.slots.find(vm.id.pid, vm.id.start_ticks) {
                Some(slot) if !self.has(slot) => {
                    let process = self.roster.open(vm.id);
                    let before = process.as_ref().and_then(|process| process.stat().ok());
                    let before = before.as_ref().map(faults).unwrap_or_default();
                    let member = self.roster.add(vm, now, before);
                    self.track(member, slot, process, before, now);
                }
                Some(_) => {}
                None => self.roster.no_slot(vm.id, full),
            }
        }
        let slots = &self.probes.slots;
        for tracked in &mut self.tracked {
            // The threads of a VM that has ended stay known for its last drain.
            let runs = slots.vms.get(tracked.slot as usize);
            let runs = runs.is_some_and(|vm| vm.ended_ns.load(SeqCst) == 0);
            if let Some(process) = tracked.process.as_ref().filter(|_| runs) {
                let vm = &self.roster.members()[tracked.member].vm;
                tracked.vcpus.refresh(process, vm.vcpus);
                if let Some(memory) = vm.mapping {
                    slots.count_discards(tracked.slot, memory);
                }
            }
        }
        self.scans += 1;
        if self.scans.is_multiple_of(REAP_EVERY) {
            self.reap_threads()?;
        }
        Ok(())
    }

    /// Takes up a VM that the exec tracepoint has given a slot.
    pub fn started(&mut self, event: Event, now: &Clocks) {
        if self.has(event.slot) {
            return;
        }
        let Some(shared) = self.probes.slots.vms.get(event.slot as usize) else {
            return;
        };
        let before = shared.faults_before.each_ref().map(|count| count.load(SeqCst));
        let started_ns = shared.start_boottime_ns.load(Relaxed);
        match self.roster.started(event.pid, started_ns) {
            Some(vm) => {
                let process = self.roster.open(vm.id);
                let member = self.roster.add(vm, now, before);
                self.track(member, event.slot, process, before, now);
            }
            None => {
                self.probes.slots.close(event.slot);
                self.closing.push((event.slot, now.monotonic_ns));
            }
        }
    }

    /// A VM looked for a slot at its start and found none.
    pub fn missed(&mut self, pid: i32) {
        self.roster.missed(pid);
    }

    /// Takes what happened since the last drain.
    ///
    /// # Errors
    /// The kernel refuses to take back the slot of a VM that has ended.
    pub fn drain(&mut self, now: &Clocks) -> Result<Vec<VmSample>> {
        self.free_slots(now)?;
        self.probes.slots.see_new_threads();
        self.evictions = self.take_evictions()?;
        let host = HostView {
            declared: metrics::declared(&self.sight()),
            exits_absent: self.probes.exits_absent().map(str::to_owned),
            now,
        };
        // Before anything is taken: an end that comes later is left for next time.
        let vms = &self.probes.slots.vms;
        let ended = |tracked: &Tracked| {
            vms.get(tracked.slot as usize).map_or(0, |vm| vm.ended_ns.load(SeqCst))
        };
        let ended: Vec<u64> = self.tracked.iter().map(ended).collect();
        let mut holdings = self.probes.slots.holdings();
        let mut samples = Vec::with_capacity(self.tracked.len());
        for (mut tracked, ended_ns) in std::mem::take(&mut self.tracked).into_iter().zip(ended) {
            let held = holdings.remove(&tracked.slot).unwrap_or_default();
            samples.extend(self.drain_one(&mut tracked, &held, ended_ns, &host));
            if ended_ns == 0 {
                self.tracked.push(tracked);
            } else {
                self.roster.ended(tracked.member, now.realtime_of(ended_ns));
                if let Some(cgroup) = tracked.cgroup {
                    self.probes.slots.forget_swapouts(tracked.slot, cgroup);
                }
                self.probes.slots.close(tracked.slot);
                self.closing.push((tracked.slot, now.monotonic_ns));
            }
        }
        self.last_ns = now.monotonic_ns;
        Ok(samples)
    }

    /// Who took pages of whom up to the last drain.
    pub fn evictions(&mut self) -> Vec<EvictionSample> {
        std::mem::take(&mut self.evictions)
    }

    fn take_evictions(&mut self) -> Result<Vec<EvictionSample>> {
        let taken = self.probes.slots.evictions.take()?;
        let member = |slot| {
            let tracked = self.tracked.iter().find(|tracked| tracked.slot == slot)?;
            Some((tracked.member, of_vm(&self.roster.members()[tracked.member].vm)))
        };
        let roster = &self.roster;
        Ok(evictions::name(taken, member, |pid| roster.inspect(pid), |pid| roster.process(pid)))
    }

    /// Begins anew after a drain: what was counted before it, and the VMs that
    /// ended before it, are none of the recording's.
    pub fn restart(&mut self, now: &Clocks) {
        let running: Vec<usize> = self.tracked.iter().map(|tracked| tracked.member).collect();
        self.roster.restart(&running, now);
        for (member, tracked) in self.tracked.iter_mut().enumerate() {
            tracked.member = member;
            tracked.times.restart();
            let stat = tracked.process.as_ref().and_then(|process| process.stat().ok());
            self.roster.begins_at(member, stat.as_ref().map(faults).unwrap_or_default());
        }
    }

    /// Ends counting for every VM at once, so that a fault still open is no loss.
    /// One more drain takes what was counted.
    pub fn close(&mut self) {
        for tracked in &self.tracked {
            self.probes.slots.close(tracked.slot);
        }
    }

    /// From now on counts what is swapped out of the memory cgroup of that id for a VM;
    /// of none, nothing.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn count_swapouts(&mut self, member: usize, cgroup: Option<u64>) -> Result<()> {
        let tracked = self.tracked.iter_mut().find(|tracked| tracked.member == member);
        let Some(tracked) = tracked.filter(|tracked| tracked.cgroup != cgroup) else {
            return Ok(());
        };
        let before = std::mem::replace(&mut tracked.cgroup, cgroup);
        if let Some(before) = before {
            self.probes.slots.forget_swapouts(tracked.slot, before);
        }
        cgroup.map_or(Ok(()), |cgroup| self.probes.slots.count_swapouts(tracked.slot, cgroup))
    }

    /// From now on counts what the VMs give back of their memory.
    ///
    /// # Errors
    /// The kernel does not let us see it.
    pub fn see_discards(&mut self) -> Result<()> {
        self.probes.see_discards()
    }

    /// Stops the probes.
    pub fn stop(&mut self) {
        self.probes.stop();
    }

    /// What can be seen, and was: on some KVMs no exit ever comes.
    pub fn sight(&self) -> Sight {
        let mut sight = self.probes.sight();
        let silent = |member: &Member| member.exits_absent.as_deref() == Some(SILENT);
        let told = |member: &Member| !member.vcpu_times.is_empty();
        let members = self.members();
        if sight.exits_absent.is_none() && members.iter().any(silent) && !members.iter().any(told) {
            sight.exits_absent = Some(SILENT.to_owned());
        }
        sight
    }

    /// How often the kernel skipped a program, on the whole host.
    pub fn skipped(&mut self) -> BTreeMap<String, u64> {
        self.probes.skipped()
    }

    fn has(&self, slot: u32) -> bool {
        self.closing.iter().any(|(closing, _)| *closing == slot)
            || self.tracked.iter().any(|tracked| tracked.slot == slot)
    }

    fn track(
        &mut self,
        member: usize,
        slot: u32,
        process: Option<Process>,
        before: FaultCounts,
        now: &Clocks,
    ) {
        let stat = process.as_ref().and_then(|process| process.stat().ok());
        self.tracked.push(Tracked {
            member,
            slot,
            cpu_before: stat.as_ref().map_or(0, cpu_ticks),
            process,
            vcpus: VcpuThreads::default(),
            carries: HashMap::new(),
            waits: Waits::default(),
            times: VcpuTimes::default(),
            swapins: SwapinReader::default(),
            kernel_faults: before.iter().sum(),
            taken_by: [0; Taker::COUNT],
            lost: [0; Loss::COUNT],
            cgroup: None,
            swapped_out: [0],
            discards: [0; 2],
            since_ns: now.monotonic_ns,
        });
    }

    /// One VM's interval. `ended_ns` is 0 while it runs.
    fn drain_one(
        &mut self,
        tracked: &mut Tracked,
        held: &Holdings,
        ended_ns: u64,
        host: &HostView<'_>,
    ) -> Option<VmSample> {
        let slots = &self.probes.slots;
        let shared = slots.vms.get(tracked.slot as usize)?;
        let mut metrics = tracked.take(slots, held);
        let until_ns = if ended_ns == 0 { host.now.monotonic_ns } else { ended_ns };
        let length_ns = until_ns.saturating_sub(self.last_ns.max(tracked.since_ns));
        let vcpus = self.roster.members()[tracked.member].vm.vcpus;
        let threads = held
            .threads
            .iter()
            .filter_map(|index| slots.threads.get(*index as usize))
            .collect::<Vec<_>>();
        let stall = stall(tracked, &threads, vcpus, until_ns, length_ns);
        let swapins = tracked.swapins.read(&shared.swapin);
        let stat = tracked.process.as_ref().and_then(|process| process.stat().ok());
        let seen = tracked.seen(shared, &metrics, stat.as_ref().filter(|_| ended_ns == 0));
        self.roster.saw(tracked.member, tracked.vcpus.known_by(), seen);
        let coverage = self.roster.members()[tracked.member].seen.coverage();
        for sample in &mut metrics {
            let is_fault = sample.name.is_always_written();
            sample.coverage =
                if is_fault { coverage } else { coverage_of(&host.declared, &sample.name) };
        }
        self.roster.swapped_in(tracked.member, &swapins, &self.probes.slots);
        self.roster.spent(tracked.member, tracked.times.totals());
        let is_silent = || tracked.is_silent(stat.as_ref()).then(|| SILENT.to_owned());
        self.roster.exits_absent(tracked.member, host.exits_absent.clone().or_else(is_silent));
        Some(tracked.sample(shared, metrics, seen, stall, swapins))
    }

    /// Gives back the slots that were closed a while ago.
    fn free_slots(&mut self, now: &Clocks) -> Result<()> {
        let is_due = |(_, since_ns): &(u32, u64)| now.monotonic_ns - since_ns >= QUIET_NS;
        let (due, closing) = std::mem::take(&mut self.closing).into_iter().partition(is_due);
        self.closing = closing;
        due.into_iter().try_for_each(|(slot, _): (u32, u64)| self.probes.slots.free(slot))
    }

    /// Frees the entries of threads that have exited, those of a VM that has ended
    /// left out: they go with its slot.
    fn reap_threads(&mut self) -> Result<()> {
        let vms = &self.probes.slots.vms;
        let is_gone = |thread: &Thread| {
            let vm = vms.get(thread.vm.load(SeqCst) as usize);
            if vm.is_none_or(|vm| vm.ended_ns.load(SeqCst) != 0) {
                return false;
            }
            !Path::new(&format!("/proc/{}/task/{}", thread.tgid(), thread.tid())).exists()
        };
        let gone: Vec<(u32, i32)> = self
            .probes
            .slots
            .used_threads()
            .filter(|(_, thread)| is_gone(thread))
            .map(|(index, thread)| (index, thread.tid()))
            .collect();
        for (index, tid) in gone {
            self.probes.slots.free_thread(index)?;
            self.tracked.iter_mut().for_each(|tracked| tracked.waits.forget(tid));
        }
        Ok(())
    }
}

impl Tracked {
    /// Whether its vCPUs have run without a single exit.
    fn is_silent(&self, stat: Option<&Stat>) -> bool {
        let used = stat.map_or(0, cpu_ticks).saturating_sub(self.cpu_before);
        self.times.is_empty() && used >= BUSY_TICKS
    }

    /// Takes what the shared histograms hold.
    fn take(&mut self, slots: &Slots, held: &Holdings) -> Vec<MetricSample> {
        let mut metrics = Vec::new();
        for (index, name) in slots.histograms_of(self.slot, held) {
            let Some(histogram) = slots.histograms.get(index) else { continue };
            let latencies = self.carries.entry(index).or_default().take(histogram);
            if latencies.count() > 0 || name.is_always_written() {
                metrics.push(MetricSample { name, coverage: Coverage::Full, latencies });
            }
        }
        metrics
    }

    /// Faults that the VM's own threads took: counted, and by the kernel; by what the
    /// programs added up if it does not run any more.
    fn seen(
        &mut self,
        shared: &layout::Vm,
        metrics: &[MetricSample],
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

    fn sample(
        &mut self,
        shared: &layout::Vm,
        metrics: Vec<MetricSample>,
        seen: Seen,
        stall: Option<Stall>,
        swapins: SwapinCounts,
    ) -> VmSample {
        VmSample {
            member: self.member,
            metrics,
            seen,
            taken_by: grown(shared.taken_by.each_ref(), &mut self.taken_by),
            stall,
            swapins,
            swapped_out: grown([&shared.swapped_out], &mut self.swapped_out)[0],
            discards: grown([&shared.given_back, &shared.taken_again], &mut self.discards),
            not_counted: grown(shared.lost.each_ref(), &mut self.lost),
        }
    }
}

/// What counters have grown by since they were last read.
fn grown<const N: usize>(counters: [&AtomicU64; N], before: &mut [u64; N]) -> [u64; N] {
    let now = counters.map(|count| count.load(SeqCst));
    let mut grown = now;
    for (grown, before) in grown.iter_mut().zip(std::mem::replace(before, now)) {
        *grown -= before;
    }
    grown
}

/// Adds up the waiting of the vCPU threads; learns which they are on the way.
fn stall(
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
            waited_ns += waits.advance(thread, source, until_ns, length_ns, stall::is_waiting);
            waits.skip(thread, other, until_ns);
        } else {
            tracked.waits.skip(thread, source, until_ns);
        }
    }
    tracked.vcpus.known_by()?;
    Some(Stall { waited_ns, vcpu_ns: tracked.vcpus.divisor(vcpus) * length_ns, source })
}

/// min_flt and maj_flt of the whole process.
fn faults(stat: &Stat) -> FaultCounts {
    [stat.minflt, stat.majflt]
}

/// CPU time of the whole process, in ticks.
fn cpu_ticks(stat: &Stat) -> u64 {
    stat.utime + stat.stime
}
