//! What happened in this interval?

mod accounts;
pub mod carry;
mod drain;
mod ended;
pub mod evictions;
pub mod roster;
mod run_delay;
pub mod stall;
pub mod swapins;
mod tracked;
pub mod vcpus;

use crate::probes::Probes;
use crate::probes::rings::Event;
use crate::probes::sight::{SILENT, Sight};
use crate::probes::stats::ProgramStats;
use anyhow::Result;
use evictions::{of_kernel, of_process, of_vm};
use overcommit_ebpf::layout::{AggressorKind, Metric, NEVER_RAN, Thread, unpack_aggressor};
use overcommit_recording::model::clock::Clocks;
use overcommit_recording::model::evictions::{Aggressor, Eviction};
use overcommit_recording::model::run::RunVm;
use overcommit_recording::model::vm::Vm;
use procfs::process::Process;
use roster::Roster;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use tracked::{Tracked, faults};

/// Scans of /proc between two looks for entries of threads that are gone.
const REAP_EVERY: u32 = 10;

/// Time after which no program can still be using a slot that was closed.
const QUIET_NS: u64 = 300_000_000;

/// The kernel's own counts of minor and major faults.
pub type FaultCounts = [u64; Metric::FAULTS.len()];

/// Drains the slots of the VMs that are recorded, and keeps them in step with the
/// VMs that run.
pub struct Sampler {
    probes: Probes,
    roster: Roster,
    tracked: Vec<Tracked>,
    /// As of the last drain.
    evictions: Vec<Eviction>,
    /// Slots whose VM is gone, to be freed a while after the time beside them, in
    /// nanoseconds.
    closing: Vec<(u32, u64)>,
    scans: u32,
    last_ns: u64,
    /// Whether a VM under KVM ran without a single exit, and whether one had exits.
    is_silent: bool,
    has_exits: bool,
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
            is_silent: false,
            has_exits: false,
        }
    }

    /// The VMs of the recording, those that ended and are kept too, each at its place there.
    pub fn vms(&self) -> &[Vm] {
        self.roster.vms()
    }

    /// VMs that found no free slot.
    pub fn without_slot(&self) -> u64 {
        self.roster.without_slot()
    }

    /// VMs that ended and are not kept.
    pub fn left_out(&self) -> u64 {
        self.roster.left_out()
    }

    /// An interval is over: places of VMs that ended before it may be taken by others.
    pub fn next_interval(&mut self, run: &[RunVm]) {
        self.roster.next_interval(run);
    }

    /// Names of some of them.
    pub fn unserved(&self) -> Vec<String> {
        self.roster.unserved()
    }

    /// Slots that no VM has, or had a moment ago.
    fn free_now(&self) -> usize {
        self.probes.slots.vms.len().saturating_sub(self.tracked.len() + self.closing.len())
    }

    /// Looks for VMs, vCPU threads and CPUs that came or went.
    ///
    /// # Errors
    /// /proc cannot be listed, the kernel refuses the probes of a new CPU, or there is no memory for
    /// histograms.
    pub fn rescan(&mut self, run: &mut Vec<RunVm>, now: &Clocks) -> Result<()> {
        self.probes.follow_host()?;
        self.probes.slots.forget_swap_devices();
        self.free_slots(now)?;
        self.probes.slots.see_new_threads();
        self.roster.look_again(run, now);
        let new = self.roster.new_vms(self.free_now(), &self.running())?;
        if !new.is_empty() {
            let pids: Vec<i32> = new.iter().map(|vm| vm.id.pid).collect();
            self.probes.adopt(&pids, self.tracked.len())?;
        }
        let full =
            self.tracked.len() + self.closing.len() + new.len() > self.probes.slots.vms.len();
        for vm in new {
            match self.probes.slots.find(vm.id.pid, vm.id.start_ticks) {
                Some(slot) if !self.has(slot) => {
                    let process = self.roster.open(vm.id);
                    let before = process.as_ref().and_then(accounts::stat);
                    let before = before.as_ref().map(faults).unwrap_or_default();
                    let vm = self.roster.add(vm, run, now, before);
                    self.track(vm, slot, process, before, now);
                }
                Some(_) => {}
                None => self.roster.no_slot(vm, full),
            }
        }
        let slots = &self.probes.slots;
        for tracked in &mut self.tracked {
            // The threads of a VM that has ended stay known for its last drain.
            let runs = slots.runs(tracked.slot);
            if let Some(process) = tracked.process.as_ref().filter(|_| runs) {
                let vm = &self.roster.vms()[tracked.vm];
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
        self.make_room()
    }

    /// Processes of the VMs that are recorded and have not ended.
    fn running(&self) -> BTreeSet<i32> {
        let slots = &self.probes.slots;
        let tracked = self.tracked.iter().filter(|tracked| slots.runs(tracked.slot));
        tracked.map(|tracked| self.roster.vms()[tracked.vm].id.pid).collect()
    }

    /// Takes up a VM that the exec tracepoint has given a slot.
    pub fn started(&mut self, event: Event, run: &mut Vec<RunVm>, now: &Clocks) {
        if self.has(event.slot) {
            return;
        }
        let Some(shared) = self.probes.slots.vms.get(event.slot as usize) else {
            return;
        };
        let before = shared.faults_before.each_ref().map(|count| count.load(SeqCst));
        let started_ns = shared.start_boottime_ns.load(Relaxed);
        // It did nothing but say its version, or the like.
        let never_ran = event.is_micro_vm
            && self.probes.exits_absent().is_none()
            && shared.first_run_ns.load(Relaxed) == NEVER_RAN;
        match self.roster.started(event.pid, started_ns, never_ran, self.free_now()) {
            Some(vm) => {
                let process = self.roster.open(vm.id);
                let vm = self.roster.add(vm, run, now, before);
                self.track(vm, event.slot, process, before, now);
            }
            None => {
                self.probes.slots.close(event.slot);
                self.closing.push((event.slot, now.monotonic_ns));
            }
        }
    }

    /// Makes room for what the VMs' histograms may take next.
    ///
    /// # Errors
    /// There is no memory for a single one.
    pub fn make_room(&mut self) -> Result<()> {
        self.probes.slots.chunks.top_up(self.tracked.len(), 0)
    }

    /// A VM looked for a slot at its start and found none.
    pub fn missed(&mut self, pid: i32) {
        self.roster.missed(pid);
    }

    /// Who took pages of whom up to the last drain.
    pub fn evictions(&mut self) -> Vec<Eviction> {
        std::mem::take(&mut self.evictions)
    }

    /// Who is in a word that [`pack_aggressor`](overcommit_ebpf::layout::pack_aggressor) packed; `None` if
    /// nobody is, or that process is gone.
    pub fn aggressor(&self, aggressor: u64) -> Option<Aggressor> {
        let (kind, id) = unpack_aggressor(aggressor)?;
        let (pid, roster) = (id.cast_signed(), &self.roster);
        let recorded = self.vm_of(pid).map(|vm| &roster.vms()[vm]);
        match kind {
            AggressorKind::Kernel if pid == 0 => Some(of_kernel(pid, String::new())),
            AggressorKind::Kernel => Some(of_kernel(pid, roster.process(pid)?)),
            AggressorKind::Vm => Some(of_vm(recorded?)),
            AggressorKind::Process => match roster.inspect(pid) {
                Some(vm) => Some(of_vm(&vm)),
                None => Some(of_process(pid, roster.process(pid)?)),
            },
            // In the matrix alone.
            AggressorKind::Others => None,
        }
    }

    /// The VM of that process, the latest should the PID have been used again.
    pub fn vm_of(&self, pid: i32) -> Option<usize> {
        let vms = self.roster.vms().iter().enumerate().filter(|(_, vm)| vm.id.pid == pid);
        Some(vms.max_by_key(|(_, vm)| vm.id.start_ticks)?.0)
    }

    fn take_evictions(&mut self) -> Result<Vec<Eviction>> {
        let taken = self.probes.slots.evictions.take()?;
        let member = |slot| {
            let tracked = self.tracked.iter().find(|tracked| tracked.slot == slot)?;
            Some((tracked.vm, of_vm(&self.roster.vms()[tracked.vm])))
        };
        let roster = &self.roster;
        Ok(evictions::name(taken, member, |pid| roster.inspect(pid), |pid| roster.process(pid)))
    }

    /// Begins anew after a drain: what was counted before it, and the VMs that
    /// ended before it, are none of the recording's.
    pub fn restart(&mut self, run: &mut Vec<RunVm>, now: &Clocks) {
        let running: Vec<usize> = self.tracked.iter().map(|tracked| tracked.vm).collect();
        self.roster.restart(&running);
        run.clear();
        for (index, tracked) in self.tracked.iter_mut().enumerate() {
            tracked.vm = index;
            tracked.times.restart();
            let stat = tracked.process.as_ref().and_then(accounts::stat);
            let before = stat.as_ref().map(faults).unwrap_or_default();
            let found = RunVm::found(&self.roster.vms()[index], run, now, before);
            run.push(found);
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
    pub fn count_swapouts(&mut self, vm: usize, cgroup: Option<u64>) -> Result<()> {
        let tracked = self.tracked.iter_mut().find(|tracked| tracked.vm == vm);
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

    /// Has the programs timed now and then.
    pub fn time_programs(&self) -> ProgramStats {
        self.probes.time_programs()
    }

    /// See [`Probes::map_memory`].
    pub fn map_memory(&self) -> u64 {
        self.probes.map_memory()
    }

    /// What can be seen, and was: on some KVMs no exit ever comes.
    pub fn sight(&self) -> Sight {
        let mut sight = self.probes.sight();
        if sight.exits_absent.is_none() && self.is_silent && !self.has_exits {
            sight.exits_absent = Some(SILENT.to_owned());
        }
        sight
    }

    /// How often the kernel skipped a program, on the whole host.
    pub fn skipped(&mut self) -> BTreeMap<String, u64> {
        self.probes.skipped()
    }

    /// What the swap device of that number is called.
    pub fn swap_device(&self, number: u32) -> String {
        self.probes.slots.swap_device(number as usize)
    }

    fn has(&self, slot: u32) -> bool {
        self.closing.iter().any(|(closing, _)| *closing == slot)
            || self.tracked.iter().any(|tracked| tracked.slot == slot)
    }

    fn track(
        &mut self,
        vm: usize,
        slot: u32,
        process: Option<Process>,
        before: FaultCounts,
        now: &Clocks,
    ) {
        self.tracked.push(Tracked::new(vm, slot, process, before, now.monotonic_ns));
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
        let slots = &self.probes.slots;
        let is_gone = |thread: &Thread| {
            if !slots.runs(thread.vm.load(SeqCst) as u32) {
                return false;
            }
            !Path::new(&format!("/proc/{}/task/{}", thread.tgid(), thread.tid())).exists()
        };
        let gone: Vec<(u32, i32)> = slots
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
