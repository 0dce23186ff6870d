//! Which VMs are recorded: those that the user means, from the moment that they
//! are found to their end.

use crate::kernel::TICK_NS;
use crate::sampler::FaultCounts;
use crate::sampler::ended::Ended;
use crate::vm::Discovery;
use crate::vm::discovery::is_micro_vm;
use crate::vm::owner::{GONE, Slots, is_real};
use anyhow::Result;
use overcommit_recording::model::clock::Clocks;
use overcommit_recording::model::name::Name;
use overcommit_recording::model::pattern::Pattern;
use overcommit_recording::model::run::{RunVm, VMS_MAX};
use overcommit_recording::model::vm::{Vm, VmId};
use procfs::process::Process;
use std::collections::{BTreeMap, BTreeSet};

/// Time in which a VM that was found may still change, in nanoseconds.
const STARTING_UP_NS: u64 = 10_000_000_000;

/// The same of one that has everything, and whose process is older.
const LEAST_NS: u64 = 2_000_000_000;

/// VMs without a slot that are named.
const NAMED: usize = 16;
/// From so many VMs in a recording on, no more are taken up until some can be left out. So many come
/// and go in one interval alone.
const VMS: usize = VMS_MAX / 2;
/// VMs that ended or share another's memory and are remembered though they are gone.
const DONE: usize = 4096;
/// VMs without a slot that are remembered though they are gone.
const UNSERVED: usize = 1024;

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
        self.is_every()
            || self.pids.contains(&vm.id.pid)
            || self.patterns.iter().any(|pattern| pattern.matches(vm))
    }

    /// Whether every VM is.
    pub fn is_every(&self) -> bool {
        self.patterns.is_empty() && self.pids.is_empty()
    }

    /// Whether VMs that start later can be meant.
    pub fn is_open(&self) -> bool {
        self.pids.is_empty() || !self.patterns.is_empty()
    }
}

/// Whether a VM of that user may have one of the slots that are free.
fn may_have(slots: &Slots, ended: &Ended, user: Option<u32>, free: usize) -> bool {
    let has_to_wait = user.is_some() && ended.are_many_of_users();
    !has_to_wait && slots.may_have(user, free)
}

/// Since when a VM that is found now has been starting up. One that has all that it gets meanwhile
/// began with its process, but is looked at for two seconds more: a process can execute many programs.
fn begun_ns(vm: &Vm, now_ns: u64) -> u64 {
    let is_kvm = vm.accelerator.as_deref() == Some("kvm");
    if !is_kvm || vm.vcpus.is_none() || vm.mapping.is_none() {
        return now_ns;
    }
    (vm.id.start_ticks * TICK_NS).max(now_ns.saturating_sub(STARTING_UP_NS - LEAST_NS))
}

/// Finds VMs and remembers them.
pub struct Roster {
    discovery: Discovery,
    selection: Selection,
    /// In the order of the recording's.
    vms: Vec<Vm>,
    slots: Slots,
    /// Never to be taken up: they share the memory of a VM that has a slot, or
    /// have ended.
    done: BTreeSet<VmId>,
    /// Those without a slot, with the users that they count for.
    unserved: BTreeMap<VmId, (Name, Option<u32>)>,
    missed: u64,
    ended: Ended,
    /// Since when each has been starting up, by `CLOCK_BOOTTIME`.
    begun_ns: BTreeMap<VmId, u64>,
}

impl Roster {
    /// Nothing is looked for before [`Self::new_vms`].
    pub fn new(discovery: Discovery, selection: Selection) -> Self {
        Self {
            discovery,
            selection,
            vms: Vec::new(),
            slots: Slots::default(),
            done: BTreeSet::new(),
            unserved: BTreeMap::new(),
            missed: 0,
            ended: Ended::default(),
            begun_ns: BTreeMap::new(),
        }
    }

    /// An interval is over.
    pub(super) fn next_interval(&mut self, run: &[RunVm]) {
        self.ended.next_interval(run);
    }

    /// VMs that ended and are not kept.
    pub fn left_out(&self) -> u64 {
        self.ended.left_out()
    }

    /// A process as a VM, whether it is meant or not.
    pub(super) fn inspect(&self, pid: i32) -> Option<Vm> {
        self.discovery.inspect(pid)
    }

    /// What a process is called.
    pub(super) fn process(&self, pid: i32) -> Option<String> {
        self.discovery.command(pid)
    }

    /// The VMs of the recording, each at its place there.
    pub fn vms(&self) -> &[Vm] {
        &self.vms
    }

    /// VMs that found no free slot.
    pub fn without_slot(&self) -> u64 {
        self.missed + self.unserved.len() as u64
    }

    /// Names of some of them.
    pub fn unserved(&self) -> Vec<String> {
        self.unserved.values().take(NAMED).map(|(name, _)| name.to_string()).collect()
    }

    /// VMs that are meant, run now, are not recorded yet and may have one of the free slots. Processes
    /// in `running` are recorded.
    pub(super) fn new_vms(&mut self, mut free: usize, running: &BTreeSet<i32>) -> Result<Vec<Vm>> {
        let mut room = self.room();
        let (slots, ended, done, unserved) = (&self.slots, &self.ended, &self.done, &self.unserved);
        // Looked at again when it could have one.
        let waits = |id| {
            let user = unserved.get(&id).map(|(_, user)| *user);
            user.is_some_and(|user| free == 0 || room == 0 || !may_have(slots, ended, user, free))
        };
        let is_known = |id| slots.has(id) || done.contains(&id) || waits(id);
        let mut found = Vec::new();
        if self.selection.is_open() {
            found = self.discovery.scan_for_new(|pid| running.contains(&pid), is_known)?;
        }
        for pid in &self.selection.pids {
            let known = self.discovery.id(*pid).is_some_and(is_known);
            if !known && !found.iter().any(|vm| vm.id.pid == *pid) {
                // It may have ended; a recording outlives its VMs.
                found.extend(self.discovery.describe(*pid));
            }
        }
        found.retain(|vm| self.selection.wants(vm));
        // Where slots are few, what is a VM by its name alone comes last.
        found.sort_by_key(|vm| !is_real(vm));
        let mut given = Vec::new();
        for vm in found {
            let user = self.discovery.login_user(&vm);
            let is_asked_for = self.selection.pids.contains(&vm.id.pid);
            let may_have = || may_have(&self.slots, &self.ended, user, free);
            if is_asked_for || (room > 0 && may_have()) {
                (free, room) = (free.saturating_sub(1), room.saturating_sub(1));
                self.slots.add(vm.id, user);
                given.push(vm);
            } else {
                self.refuse(vm, user);
            }
        }
        Ok(given)
    }

    /// How many VMs may still be taken up.
    fn room(&self) -> usize {
        (VMS + self.ended.spare()).saturating_sub(self.vms.len())
    }

    /// Remembers a VM without a slot. Of those that are gone only the number is kept once they are
    /// many.
    fn refuse(&mut self, vm: Vm, user: Option<u32>) {
        if self.unserved.contains_key(&vm.id) {
            return;
        }
        if self.unserved.len() >= UNSERVED {
            let before = self.unserved.len();
            self.unserved.retain(|id, _| self.discovery.id(id.pid) == Some(*id));
            self.missed += (before - self.unserved.len()) as u64;
        }
        self.unserved.insert(vm.id, (vm.name, user));
    }

    /// The process that the exec tracepoint announced, if it is a VM and meant.
    ///
    /// One that is gone already goes by its PID: what the kernel saw it execute
    /// was a hypervisor; unless it is one that would have run a vCPU and never did.
    pub(super) fn started(
        &mut self,
        pid: i32,
        start_boottime_ns: u64,
        never_ran: bool,
        free: usize,
    ) -> Option<Vm> {
        let id = VmId { pid, start_ticks: start_boottime_ns / TICK_NS };
        let runs = self
            .discovery
            .open(id)
            .is_ok_and(|process| process.stat().is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X')));
        let vm = match self.discovery.inspect_new(pid).filter(|vm| vm.id == id) {
            Some(vm) => vm,
            None if runs || never_ran => return None,
            None => Vm::gone(id),
        };
        let mut vm = vm;
        // It has not opened KVM nor mapped its memory yet; see `look_again`.
        (vm.accelerator, vm.mapping) = (None, None);
        if !self.selection.wants(&vm) {
            return None;
        }
        let user = if runs { self.discovery.login_user(&vm) } else { Some(GONE) };
        if self.room() == 0 || !may_have(&self.slots, &self.ended, user, free) {
            self.refuse(vm, user);
            return None;
        }
        self.slots.add(vm.id, user);
        Some(vm)
    }

    /// Looks again at VMs that were starting up when they were found.
    pub(super) fn look_again(&mut self, run: &mut [RunVm], now: &Clocks) {
        for (vm, run) in self.vms.iter_mut().zip(run).filter(|(_, run)| run.ended_us.is_none()) {
            // A micro VM may be started long before it is told what to run.
            let is_told = vm.vcpus.is_some() || !is_micro_vm(&vm.executable);
            let begun_ns = self.begun_ns.get(&vm.id).copied().unwrap_or(0);
            if is_told && now.boottime_ns.saturating_sub(begun_ns) > STARTING_UP_NS {
                continue;
            }
            if let Some(found) = self.discovery.inspect(vm.id.pid)
                && found.id == vm.id
            {
                if vm.vcpus.is_none() && found.vcpus.is_some() {
                    self.begun_ns.insert(vm.id, now.boottime_ns);
                }
                vm.accelerator = found.accelerator;
                vm.vcpus = found.vcpus;
                vm.mapping = found.mapping;
                vm.cgroup = found.cgroup;
                run.follow(vm);
            }
        }
    }

    /// Keeps these VMs alone, in this order.
    pub(super) fn restart(&mut self, running: &[usize]) {
        self.vms = running.iter().map(|index| self.vms[*index].clone()).collect();
        (self.missed, self.ended) = (0, Ended::default());
    }

    pub(super) fn open(&self, id: VmId) -> Option<Process> {
        self.discovery.open(id).ok()
    }

    /// Takes up a VM, in the place of one that ended where so many did; gives its index.
    pub(super) fn add(
        &mut self,
        vm: Vm,
        run: &mut Vec<RunVm>,
        now: &Clocks,
        faults_before: FaultCounts,
    ) -> usize {
        self.unserved.remove(&vm.id);
        self.begun_ns.insert(vm.id, begun_ns(&vm, now.boottime_ns));
        let found = RunVm::found(&vm, run, now, faults_before);
        let place = self.ended.leave_out();
        // The folder of one that was left out may be there for a moment.
        let is_new = self.ended.left_out() == 0;
        let found = if is_new { found } else { found.with_folder_of_its_own() };
        if let Some(place) = place {
            (run[place], self.vms[place]) = (found, vm);
            return place;
        }
        run.push(found);
        self.vms.push(vm);
        self.vms.len() - 1
    }

    /// A VM has ended.
    pub(super) fn ended(&mut self, vm: usize) {
        let id = self.vms[vm].id;
        self.ended.add(vm, self.slots.remove(id).is_some());
        self.begun_ns.remove(&id);
        // Its entry in /proc may outlive it; it is not to be found again.
        self.rule_out(id);
    }

    /// One is never taken up again. Of many those that are gone need no word.
    fn rule_out(&mut self, id: VmId) {
        if self.done.len() >= DONE {
            self.done.retain(|id| self.discovery.id(id.pid) == Some(*id));
        }
        self.done.insert(id);
    }

    /// The kernel gave the VM no slot: there is none, or its memory has one.
    pub(super) fn no_slot(&mut self, vm: Vm, full: bool) {
        self.slots.remove(vm.id);
        if full {
            let user = self.discovery.login_user(&vm);
            self.refuse(vm, user);
        } else {
            self.rule_out(vm.id);
        }
    }

    /// A VM found no slot at its start.
    pub(super) fn missed(&mut self, pid: i32) {
        match self.discovery.inspect_new(pid) {
            // Perhaps the next scan finds one.
            Some(vm) if self.selection.wants(&vm) => {
                let user = self.discovery.login_user(&vm);
                self.refuse(vm, user);
            }
            Some(_) => {}
            None => self.missed += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overcommit_recording::model::vm::{Backing, Mapping};

    #[test]
    fn an_old_vm_that_has_everything_is_hardly_starting_up() {
        const SECOND_NS: u64 = 1_000_000_000;
        let (now_ns, start_ns) = (100 * SECOND_NS, 70 * SECOND_NS);
        let id = |start_ns| VmId { pid: 7, start_ticks: start_ns / TICK_NS };
        let whole = |start_ns| Vm {
            accelerator: Some("kvm".to_owned()),
            vcpus: Some(2),
            mapping: Some(Mapping { backing: Backing::Anonymous, start: 0, end: 1 }),
            ..Vm::gone(id(start_ns))
        };
        let left_ns = |vm: &Vm| STARTING_UP_NS - (now_ns - begun_ns(vm, now_ns));
        assert_eq!(left_ns(&whole(start_ns)), LEAST_NS);
        assert_eq!(left_ns(&whole(now_ns - 3 * SECOND_NS)), STARTING_UP_NS - 3 * SECOND_NS);
        for part in [
            Vm { accelerator: Some("tcg".to_owned()), ..whole(start_ns) },
            Vm { vcpus: None, ..whole(start_ns) },
            Vm { mapping: None, ..whole(start_ns) },
        ] {
            assert_eq!(left_ns(&part), STARTING_UP_NS);
        }
    }
}
