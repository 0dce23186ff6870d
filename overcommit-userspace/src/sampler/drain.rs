//! Takes one interval of every VM out of the slots.

use super::Sampler;
use super::accounts;
use super::stall::runq_ns;
use super::tracked::{Counts, Tracked, stall};
use crate::host::ForHost;
use crate::probes::sight;
use crate::probes::sight::SILENT;
use crate::probes::slots::Holdings;
use anyhow::Result;
use overcommit_ebpf::layout::{self, FaultBacking, Loss, Metric, PHASES_NS, Thread};
use overcommit_recording::model::breakdown::Breakdown;
use overcommit_recording::model::clock::Clocks;
use overcommit_recording::model::coverage::{
    Coverage, INVALIDATIONS, MetricCoverage, Seen, can_split_stalls, coverage_of, is_part_seen,
};
use overcommit_recording::model::exit::Exit;
use overcommit_recording::model::interval::VmInterval;
use overcommit_recording::model::metric::{BACKING, MetricName};
use overcommit_recording::model::run::{Run, RunVm};
use overcommit_recording::model::start::StartPhase;
use procfs::process::Stat;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// What is the same for every VM at a drain.
struct HostView<'a> {
    declared: Vec<MetricCoverage>,
    /// Why no VM's exits are seen, if they are not.
    exits_absent: Option<String>,
    now: &'a Clocks,
}

impl HostView<'_> {
    /// Whether a metric is seen at all.
    fn sees(&self, metric: &MetricName) -> bool {
        coverage_of(&self.declared, metric) != Coverage::Absent
    }
}

impl Sampler {
    /// Takes what happened to each VM since the last drain, and what that adds to the recording.
    ///
    /// # Errors
    /// The kernel refuses to take back the slot of a VM that has ended.
    pub fn drain(&mut self, run: &mut Run, now: &Clocks) -> Result<Vec<(VmInterval, ForHost)>> {
        self.free_slots(now)?;
        self.probes.slots.see_new_threads();
        self.evictions = self.take_evictions()?;
        let host = HostView {
            declared: sight::declared(&self.sight()),
            exits_absent: self.probes.exits_absent().map(str::to_owned),
            now,
        };
        // Before anything is taken: an end that comes later is left for next time.
        let vms = &self.probes.slots.vms;
        let ended = |tracked: &Tracked| {
            let vm = vms.get(tracked.slot as usize);
            vm.map_or((0, 0), |vm| (vm.ended_ns.load(SeqCst), vm.exit_code.load(SeqCst)))
        };
        let ended: Vec<(u64, u64)> = self.tracked.iter().map(ended).collect();
        let mut holdings = self.probes.slots.holdings();
        let mut drained = Vec::with_capacity(self.tracked.len());
        let tracked = std::mem::take(&mut self.tracked);
        for (mut tracked, (ended_ns, exit_code)) in tracked.into_iter().zip(ended) {
            let held = holdings.remove(&tracked.slot).unwrap_or_default();
            let of_run = &mut run.vms[tracked.vm];
            drained.extend(self.drain_one(&mut tracked, of_run, &held, ended_ns, &host));
            if ended_ns == 0 {
                self.tracked.push(tracked);
            } else {
                of_run.ended_us = Some(now.realtime_of(ended_ns) / 1_000);
                of_run.exit = exit_code.checked_sub(1).map(|exit_code| Exit::of(exit_code as u32));
                self.let_go(&tracked, now);
            }
        }
        self.last_ns = now.monotonic_ns;
        // This drain may have shown that no exit ever comes.
        run.coverage = sight::declared(&self.sight());
        note_partial(run);
        Ok(drained)
    }

    /// Gives up the slot of a VM that has ended.
    fn let_go(&mut self, tracked: &Tracked, now: &Clocks) {
        self.roster.ended(tracked.vm);
        if let Some(cgroup) = tracked.cgroup {
            self.probes.slots.forget_swapouts(tracked.slot, cgroup);
        }
        self.probes.slots.close(tracked.slot);
        self.closing.push((tracked.slot, now.monotonic_ns));
    }

    /// One VM's interval. `ended_ns` is 0 while it runs.
    fn drain_one(
        &mut self,
        tracked: &mut Tracked,
        run: &mut RunVm,
        held: &Holdings,
        ended_ns: u64,
        host: &HostView<'_>,
    ) -> Option<(VmInterval, ForHost)> {
        let slots = &self.probes.slots;
        let shared = slots.vms.get(tracked.slot as usize)?;
        let (mut metrics, files) = tracked.take(slots, held);
        let until_ns = if ended_ns == 0 { host.now.monotonic_ns } else { ended_ns };
        let length_ns = until_ns.saturating_sub(self.last_ns.max(tracked.since_ns));
        let threads = held.threads.iter();
        let threads: Vec<&Thread> =
            threads.filter_map(|index| slots.threads.get(*index as usize)).collect();
        let stall = stall(tracked, &threads, run.vcpus, until_ns, length_ns);
        let swapins = tracked.swapins.read(&shared.swapin, |number| slots.swap_device(number));
        let stat = tracked.process.as_ref().and_then(accounts::stat);
        let seen = tracked.seen(shared, &metrics, stat.as_ref().filter(|_| ended_ns == 0));
        run.faults_hidden = self.probes.hides_faults_of(run).map(str::to_owned);
        note_seen(run, tracked, seen);
        let first_run_ns = shared.first_run_ns.load(SeqCst);
        // Once its last phase had passed at the last drain, nothing is added to it.
        let is_starting = self.last_ns <= first_run_ns + PHASES_NS[PHASES_NS.len() - 1];
        if is_starting && host.sees(&MetricName::new(BACKING)) {
            run.start = start(first_run_ns, shared);
        }
        for metric in &mut metrics {
            let is_fault = metric.name.is_always_written();
            let seen =
                if is_fault { run.coverage } else { coverage_of(&host.declared, &metric.name) };
            metric.coverage = seen.max(run.at_best(&metric.name));
        }
        let counts = tracked.counts(shared);
        let swapins = host.sees(&Metric::Swapin.into()).then_some(swapins);
        let file_faults = host.sees(&FaultBacking::File.into()).then_some(files);
        let is_stopped = stat.as_ref().is_some_and(|stat| ['T', 't'].contains(&stat.state));
        let mut vm = VmInterval {
            vm: tracked.vm,
            recorded_ns: Some(length_ns),
            metrics,
            seen,
            taken_by: counts.taken_by,
            cpu_wait_ns: tracked.cpu_wait(),
            stopped_ns: if is_stopped { length_ns } else { 0 },
            swapins,
            file_faults,
            invalidations: host.sees(&MetricName::new(INVALIDATIONS)).then_some(counts.invalidated),
            not_counted: counts.not_counted,
            stall,
            ..VmInterval::default()
        };
        split_time(&mut vm, &counts, &host.declared);
        note_totals(run, &vm);
        let has_no_exits = self.note_exits(run, tracked, stat.as_ref(), host);
        Some((vm, ForHost { has_no_exits, ..counts.for_host }))
    }

    /// Whether the VM is one of KVM's that runs without a single exit, though they can be seen.
    fn note_exits(
        &mut self,
        run: &mut RunVm,
        tracked: &Tracked,
        stat: Option<&Stat>,
        host: &HostView<'_>,
    ) -> bool {
        self.has_exits |= !run.vcpu_times.is_empty();
        let is_silent = tracked.is_silent(stat);
        let silent = || is_silent.then(|| SILENT.to_owned());
        let accelerator = run.accelerator.as_deref();
        let is_kvm = accelerator == Some("kvm");
        run.exits_absent = match accelerator {
            Some("kvm") => host.exits_absent.clone().or_else(silent),
            other => other.map(|other| format!("it runs under {other}, not under KVM")),
        };
        let has_no_exits = is_kvm && is_silent && host.exits_absent.is_none();
        self.is_silent |= has_no_exits;
        has_no_exits
    }
}

/// Splits the time of faults and of whole waits into its parts, as far as those are seen.
fn split_time(vm: &mut VmInterval, counts: &Counts, declared: &[MetricCoverage]) {
    let is_seen = |part| is_part_seen(declared, part);
    vm.fault_time = Breakdown::new(vm.fault_ns(), counts.parts_ns, is_seen);
    let windows = vm.latencies(Metric::StallMemory).map(|windows| windows.sum_ns);
    vm.stall_time = windows.filter(|_| can_split_stalls(declared)).map(|total_ns| {
        let [parts @ .., kvm_ns, background_ns] = counts.stall_ns;
        let (kvm_ns, background_ns) = (Some(kvm_ns), Some(background_ns));
        Breakdown { kvm_ns, background_ns, ..Breakdown::new(total_ns, parts, is_seen) }
    });
    let (stall_time, fault_time) = (vm.stall_time, vm.fault_time);
    if let Some(stall) = &mut vm.stall {
        stall.runq_ns = runq_ns(*stall, stall_time, fault_time);
    }
}

/// What an interval adds to what is known of a VM's threads.
fn note_seen(run: &mut RunVm, tracked: &Tracked, seen: Seen) {
    if let Some(known_by) = tracked.vcpus.known_by() {
        run.vcpus_known_by = Some(known_by.to_owned());
    }
    run.seen.merge(seen);
    run.coverage = run.seen.coverage().max(run.at_best(&Metric::FaultMinor.into()));
    run.vcpu_times = tracked.times.totals();
}

/// Its first seconds so far.
fn start(first_run_ns: u64, shared: &layout::Vm) -> Option<Vec<StartPhase>> {
    let figures =
        |of: &[[AtomicU64; 2]; _]| of.each_ref().map(|of| of.each_ref().map(|n| n.load(SeqCst)));
    StartPhase::all(first_run_ns, &shared.starts.each_ref().map(figures))
}

/// What an interval adds to the VM's totals.
fn note_totals(run: &mut RunVm, vm: &VmInterval) {
    if let Some(swapins) = &vm.swapins {
        run.swapins.get_or_insert_default().add(swapins);
    }
    if let Some(files) = vm.file_faults {
        run.file_faults.get_or_insert_default().add(files);
    }
    for (cause, count) in Loss::ALL.iter().zip(vm.not_counted) {
        *run.not_counted.entry(cause.name().to_owned()).or_default() += count;
    }
}

/// `fault.*` of the whole recording is as partial as its worst VM.
fn note_partial(run: &mut Run) {
    let full = run.vms.iter().all(|vm| vm.coverage == Coverage::Full);
    let coverage = if full { Coverage::Full } else { Coverage::Partial };
    let faults = Metric::FAULTS.map(Metric::name);
    for entry in run.coverage.iter_mut().filter(|entry| faults.contains(&entry.metric.as_str())) {
        entry.coverage = coverage;
    }
}
