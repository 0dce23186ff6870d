//! Which VMs are recorded: those that the user means, from the moment that they
//! are found to their end.

use crate::kernel::TICK_NS;
use crate::model::clock::Clocks;
use crate::model::coverage::Seen;
use crate::model::interval::FileFaults;
use crate::model::name::Name;
use crate::model::pattern::Pattern;
use crate::model::swapins::{SwapinCounts, SwapinTotals};
use crate::model::vcpus::VcpuTime;
use crate::model::vm::{NamedBy, Vm, VmId};
use crate::probes::slots::Slots;
use crate::sampler::FaultCounts;
use crate::vm::Discovery;
use anyhow::Result;
use procfs::process::Process;
use std::collections::BTreeSet;

/// Time in which a VM that was found may still change, in nanoseconds.
const STARTING_UP_NS: u64 = 10_000_000_000;

/// Which VMs the user means.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Any of these; none means every VM.
    pub patterns: Vec<Pattern>,
    /// These processes, whatever they are.
    pub pids: Vec<i32>,
}

impl Selection {
    /// Whether the VM is meant.
    pub fn wants(&self, vm: &Vm) -> bool {
        let every = self.patterns.is_empty() && self.pids.is_empty();
        every
            || self.pids.contains(&vm.id.pid)
            || self.patterns.iter().any(|pattern| pattern.matches(vm))
    }

    /// Whether VMs that start later can be meant.
    pub fn is_open(&self) -> bool {
        self.pids.is_empty() || !self.patterns.is_empty()
    }
}

/// A VM of the recording.
#[derive(Debug)]
pub struct Member {
    /// Who it is.
    pub vm: Vm,
    /// When counting began, in Unix nanoseconds.
    pub first_seen_ns: u64,
    /// When it ended, in Unix nanoseconds.
    pub ended_ns: Option<u64>,
    /// The kernel's counters when counting began, minor and major.
    pub faults_before: FaultCounts,
    /// Coverage over the recording.
    pub seen: Seen,
    /// How its vCPU threads are known.
    pub vcpus_known_by: Option<&'static str>,
    /// Where each vCPU's time out of its guest went.
    pub vcpu_times: Vec<VcpuTime>,
    /// Where swapped pages came from.
    pub swapins: SwapinTotals,
    /// Where pages of files came from.
    pub file_faults: FileFaults,
    /// Why nothing is known of its exits; `None` if they are seen, or it does not run
    /// under KVM.
    pub exits_absent: Option<String>,
}

/// Finds VMs and remembers them.
pub struct Roster {
    discovery: Discovery,
    selection: Selection,
    members: Vec<Member>,
    present: BTreeSet<VmId>,
    /// Never to be taken up: they share the memory of a VM that has a slot, or
    /// have ended.
    done: BTreeSet<VmId>,
    unserved: BTreeSet<VmId>,
    missed: u64,
}

impl Roster {
    /// Nothing is looked for before [`Self::new_vms`].
    pub fn new(discovery: Discovery, selection: Selection) -> Self {
        Self {
            discovery,
            selection,
            members: Vec::new(),
            present: BTreeSet::new(),
            done: BTreeSet::new(),
            unserved: BTreeSet::new(),
            missed: 0,
        }
    }

    /// A process as a VM, whether it is meant or not.
    pub(super) fn inspect(&self, pid: i32) -> Option<Vm> {
        self.discovery.inspect(pid)
    }

    /// What a process is called.
    pub(super) fn process(&self, pid: i32) -> Option<String> {
        self.discovery.command(pid)
    }

    /// All VMs so far, in the order in which they were found.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// VMs that found no free slot.
    pub fn without_slot(&self) -> u64 {
        self.missed + self.unserved.len() as u64
    }

    /// VMs that are meant, run now and are not recorded yet.
    pub(super) fn new_vms(&mut self) -> Result<Vec<Vm>> {
        let (present, done) = (&self.present, &self.done);
        let is_known = |id| present.contains(&id) || done.contains(&id);
        let mut found = Vec::new();
        if self.selection.is_open() {
            found = self.discovery.scan_for_new(is_known)?;
        }
        for pid in &self.selection.pids {
            let known = self.discovery.id(*pid).is_some_and(is_known);
            if !known && !found.iter().any(|vm| vm.id.pid == *pid) {
                // It may have ended; a recording outlives its VMs.
                found.extend(self.discovery.describe(*pid));
            }
        }
        Ok(found.into_iter().filter(|vm| self.selection.wants(vm)).collect())
    }

    /// The process that the exec tracepoint announced, if it is a VM and meant.
    ///
    /// One that is gone already goes by its PID: what the kernel saw it execute
    /// was a hypervisor.
    pub(super) fn started(&self, pid: i32, start_boottime_ns: u64) -> Option<Vm> {
        let id = VmId { pid, start_ticks: start_boottime_ns / TICK_NS };
        let runs = self
            .discovery
            .open(id)
            .is_ok_and(|process| process.stat().is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X')));
        let vm = match self.discovery.inspect(pid).filter(|vm| vm.id == id) {
            Some(vm) => vm,
            None if runs => return None,
            None => Vm {
                id,
                name: Name::new(format!("qemu-{pid}")),
                named_by: NamedBy::Pid,
                uuid: None,
                executable: "qemu".to_owned(),
                vcpus: None,
                memory_bytes: None,
                mapping: None,
                accelerator: None,
                cgroup: None,
                monitors: Vec::new(),
            },
        };
        let mut vm = vm;
        // It has not opened KVM nor mapped its memory yet; see `look_again`.
        (vm.accelerator, vm.mapping) = (None, None);
        self.selection.wants(&vm).then_some(vm)
    }

    /// Looks again at VMs that were starting up when they were found.
    pub(super) fn look_again(&mut self, now: &Clocks) {
        for member in self.members.iter_mut().filter(|member| member.ended_ns.is_none()) {
            if now.realtime_ns.saturating_sub(member.first_seen_ns) > STARTING_UP_NS {
                continue;
            }
            if let Some(vm) = self.discovery.inspect(member.vm.id.pid)
                && vm.id == member.vm.id
            {
                member.vm.accelerator = vm.accelerator;
                member.vm.mapping = vm.mapping;
                member.vm.cgroup = vm.cgroup;
            }
        }
    }

    /// Keeps these members alone, in this order, as if they were just found.
    pub(super) fn restart(&mut self, running: &[usize], now: &Clocks) {
        let mut members: Vec<Option<Member>> = self.members.drain(..).map(Some).collect();
        self.members = running.iter().filter_map(|index| members[*index].take()).collect();
        for member in &mut self.members {
            member.first_seen_ns = now.realtime_ns;
            member.seen = Seen::default();
            member.swapins = SwapinTotals::default();
            member.file_faults = FileFaults::default();
        }
        self.missed = 0;
    }

    /// What the kernel had counted when the member's recording began.
    pub(super) fn begins_at(&mut self, member: usize, faults: FaultCounts) {
        self.members[member].faults_before = faults;
    }

    pub(super) fn open(&self, id: VmId) -> Option<Process> {
        self.discovery.open(id).ok()
    }

    pub(super) fn add(&mut self, vm: Vm, now: &Clocks, faults_before: FaultCounts) -> usize {
        self.present.insert(vm.id);
        self.unserved.remove(&vm.id);
        self.members.push(Member {
            vm,
            first_seen_ns: now.realtime_ns,
            ended_ns: None,
            faults_before,
            seen: Seen::default(),
            vcpus_known_by: None,
            vcpu_times: Vec::new(),
            swapins: SwapinTotals::default(),
            file_faults: FileFaults::default(),
            exits_absent: None,
        });
        self.members.len() - 1
    }

    pub(super) fn saw(&mut self, member: usize, known_by: Option<&'static str>, seen: Seen) {
        let member = &mut self.members[member];
        member.vcpus_known_by = known_by.or(member.vcpus_known_by);
        member.seen.merge(seen);
    }

    pub(super) fn spent(&mut self, member: usize, vcpu_times: Vec<VcpuTime>) {
        self.members[member].vcpu_times = vcpu_times;
    }

    pub(super) fn swapped_in(&mut self, member: usize, counts: &SwapinCounts, slots: &Slots) {
        let totals = &mut self.members[member].swapins;
        totals.from_cache += counts.from_cache;
        totals.from_zswap += counts.from_zswap;
        totals.without_fault += counts.without_fault;
        for (number, count) in counts.from_device.iter().enumerate().filter(|(_, n)| **n > 0) {
            *totals.from_device.entry(slots.swap_device(number)).or_default() += count;
        }
    }

    pub(super) fn took_of_files(&mut self, member: usize, files: FileFaults) {
        self.members[member].file_faults.add(files);
    }

    pub(super) fn exits_absent(&mut self, member: usize, why: Option<String>) {
        let member = &mut self.members[member];
        let is_kvm = member.vm.accelerator.as_deref() == Some("kvm");
        member.exits_absent = why.filter(|_| is_kvm);
    }

    pub(super) fn ended(&mut self, member: usize, at_ns: u64) {
        let member = &mut self.members[member];
        member.ended_ns = Some(at_ns);
        self.present.remove(&member.vm.id);
        // Its entry in /proc may outlive it; it is not to be found again.
        self.done.insert(member.vm.id);
    }

    /// The kernel gave the VM no slot: there is none, or its memory has one.
    pub(super) fn no_slot(&mut self, id: VmId, full: bool) {
        if full {
            self.unserved.insert(id);
        } else {
            self.done.insert(id);
        }
    }

    /// A VM found no slot at its start.
    pub(super) fn missed(&mut self, pid: i32) {
        match self.discovery.inspect(pid) {
            // Perhaps the next scan finds one.
            Some(vm) if self.selection.wants(&vm) => {
                self.unserved.insert(vm.id);
            }
            Some(_) => {}
            None => self.missed += 1,
        }
    }
}
