//! The host and its VMs in an interval: what `watch` follows and `survey` finds, as one.

use crate::host::ForHost;
use crate::host::balloon::state::{BalloonStates, Inflated};
use crate::host::memory_cgroup::MemoryCgroup;
use crate::host::overcommit::{self, VmMemory};
use crate::host::survey::{Found, Options, Survey, VmFound};
use crate::host::watch::Watch;
use crate::host::working_set::bounds;
use crate::host::working_set::follow::Target;
use crate::kernel;
use anyhow::Result;
use overcommit_recording::model::balloon::{Balloon, Source};
use overcommit_recording::model::exit::{Departure, KILLED};
use overcommit_recording::model::interval::{HostInterval, Place, VmInterval};
use overcommit_recording::model::memory::{self, MemoryUse, WorkingSet};
use overcommit_recording::model::run::{Run, RunVm};
use overcommit_recording::model::swap::SwapState;
use overcommit_recording::model::vm::{Backing, Vm, VmId};
use std::collections::BTreeMap;
use std::path::Path;

/// Time for which pages that came back are a sign that memory is missed, in nanoseconds.
const MISSED_NS: u64 = 10_000_000_000;

/// Pages that come back to the host per second from which memory of VMs that are not followed may be
/// missed.
const MISSED: f64 = 100.0;

/// Why something is not known of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Unknown {
    /// Its balloon, or its exact size.
    balloon: Option<String>,
    /// Its working set, but for bounds.
    working_set: Option<String>,
}

/// Follows the host.
pub struct Host {
    watch: Watch,
    survey: Survey,
    balloons: BalloonStates,
    vms: BTreeMap<usize, Followed>,
    /// Whether [`ForHost::discards`] are counted.
    sees_discards: bool,
}

#[derive(Default)]
struct Followed {
    /// Bytes that it had given back when somebody last said so; 0 before.
    told: u64,
    /// Bytes that it gave back and took again since then, as the kernel saw it.
    discarded: [u64; 2],
    missed_ns: Option<u64>,
    /// Whether pages came back lately.
    is_missed: bool,
    sees_discards: bool,
    unknown: Unknown,
}

impl Host {
    /// Begins to follow it. Whether the probes see swap-ins, and swap-outs by cgroup, decides
    /// where rates come from.
    ///
    /// # Errors
    /// See [`Survey::start`].
    pub fn start(sees_swapins: bool, sees_swapouts: bool, options: &Options) -> Result<Self> {
        let (proc, sys) = (Path::new("/proc"), Path::new("/sys"));
        Ok(Self {
            watch: Watch::new(proc, sys, sees_swapins, sees_swapouts),
            survey: Survey::start(proc, sys, options)?,
            balloons: BalloonStates::default(),
            vms: BTreeMap::new(),
            sees_discards: false,
        })
    }

    /// Takes what the probes saw in an interval that ended at `now_ns` (`CLOCK_MONOTONIC`), and
    /// adds to each VM's what is known of it here.
    pub fn advance(
        &mut self,
        vms: &[Vm],
        drained: &mut [(VmInterval, ForHost)],
        place: &Place,
        now_ns: u64,
    ) -> HostInterval {
        self.watch.advance(vms, drained, now_ns);
        let targets = drained
            .iter()
            .map(|(vm, seen)| target(&vms[vm.vm], seen.has_no_exits, self.watch.cgroup(vm.vm)));
        self.survey.follow(targets.collect());
        let found = self.survey.found();
        self.vms.retain(|index, _| drained.iter().any(|(vm, _)| vm.vm == *index));
        for (interval, seen) in drained.iter_mut() {
            let of = &vms[interval.vm];
            let found = found.vms.get(&of.id).cloned().unwrap_or_default();
            interval.swap = self.watch.vm(interval.vm);
            let vm = self.vms.entry(interval.vm).or_default();
            let is_missed = self.watch.reads(interval.vm);
            vm.count(*seen, self.sees_discards, is_missed, now_ns);
            vm.advance(of, interval, found);
            let guest = interval.balloon.and_then(|balloon| balloon.guest);
            interval.guest_age_s = guest.map(|guest| guest.age_s(place));
            interval.guest_is_stale = guest.and_then(|guest| guest.is_stale(place));
        }
        self.sum_up(vms, &found, drained, now_ns)
    }

    /// The host, by all that is known of its VMs; adds what is left on the nodes of each.
    fn sum_up(
        &mut self,
        vms: &[Vm],
        found: &Found,
        drained: &mut [(VmInterval, ForHost)],
        now_ns: u64,
    ) -> HostInterval {
        let swap = self.watch.host();
        let inflated = drained.iter().map(|(vm, _)| (vm.vm, inflated(vm)));
        let running = drained.len() + found.others.len();
        let balloon = self.balloons.advance(now_ns, &inflated.collect(), running, swap.state);
        let ballooned = drained.iter().filter_map(|(vm, _)| vm.balloon);
        let ballooned = ballooned.map(|balloon| balloon.ballooned).reduce(u64::saturating_add);
        let each = drained.iter().map(|(vm, _)| {
            let of = &vms[vm.vm];
            Some((of.id, held(of, vm)?))
        });
        // Also where no more than a cgroup's limit makes them swap.
        let swapped_in = swap.rates.and_then(|rates| rates.swapped_in).unwrap_or(0.0);
        let is_missed = swap.state >= SwapState::Pressure || swapped_in >= MISSED;
        let others = found.others.iter();
        let others = others.map(|(vm, held)| Some((vm.id, beside(vm, *held, is_missed))));
        let all: Option<Vec<(VmId, VmMemory)>> = each.chain(others).collect();
        for (vm, _) in drained {
            vm.numa_nodes = found.numa.nodes_of(vms[vm.vm].id);
            let left = |nodes| found.numa.headroom(nodes, all.as_deref()?);
            vm.numa_headroom = vm.numa_nodes.and_then(left);
        }
        // What is available and what the VMs hold are of one moment: the survey's.
        let overcommit = found.host.zip(all).map(|(host, vms)| {
            let vms: Vec<VmMemory> = vms.into_iter().map(|(_, vm)| vm).collect();
            overcommit::of(&host, &vms, swap.state, balloon)
        });
        let memory = found.host.map(|mut memory| {
            memory.available = swap.memory.map_or(memory.available, |now| now.available);
            memory
        });
        let pressure = self.watch.pressure();
        let rest = HostInterval::default();
        HostInterval { swap, balloon, ballooned, overcommit, memory, pressure, ..rest }
    }

    /// Adds to what holds for the whole recording where the figures of each VM come from.
    pub fn note(&self, run: &mut Run) {
        for (id, departure) in self.survey.departed() {
            let id = id.to_string();
            let ended = run.vms.iter_mut().find(|vm| vm.vm_id == id);
            if let Some(vm) = ended.filter(|vm| is_told(vm, departure)) {
                vm.departure = Some(departure);
            }
        }
        run.host_state.unreadable = self.watch.unreadable().map(str::to_owned);
        for (index, vm) in run.vms.iter_mut().enumerate().filter(|(_, vm)| vm.ended_us.is_none()) {
            vm.swap_sources = self.watch.sources(index);
            let unknown = self.vms.get(&index).map(|vm| vm.unknown.clone()).unwrap_or_default();
            vm.balloon_unknown = unknown.balloon;
            vm.working_set_unknown = unknown.working_set;
            let shares = || "it has no memory cgroup of its own".to_owned();
            vm.evictions_absent = self.cgroup_id(index).is_none().then(shares);
        }
    }

    /// The id of the memory cgroup that is a VM's own.
    pub fn cgroup_id(&self, vm: usize) -> Option<u64> {
        Some(self.watch.cgroup(vm)?.id)
    }

    /// The outermost memory cgroup that is a VM's own, below the hierarchy's root.
    pub fn cgroup_name(&self, vm: usize) -> Option<&str> {
        Some(&self.watch.outermost(vm)?.name)
    }

    /// Whether a VM's balloon can be seen in no other way.
    pub fn needs_discards(&self) -> bool {
        self.vms.values().any(|vm| vm.unknown.balloon.is_some())
    }

    /// Whether what VMs give back is counted from now on.
    pub fn sees_discards(&mut self, sees: bool) {
        self.sees_discards = sees;
    }
}

/// Whether that is why a VM ended: a process that failed or was killed says more than libvirt, which
/// lost its monitor. libvirt itself kills a VM that does not end when it is to be destroyed.
fn is_told(vm: &RunVm, departure: Departure) -> bool {
    vm.ended_us.is_some()
        && match vm.exit {
            Some(KILLED) => departure == Departure::Destroyed,
            Some(exit) => !exit.is_failure(),
            None => true,
        }
}

/// A VM that is not recorded, by what can be told without asking it.
fn beside(vm: &Vm, memory: MemoryUse, is_missed: bool) -> VmMemory {
    VmMemory {
        configured: vm.memory_bytes,
        freed: memory.freed(),
        is_hugetlb: vm.backing() == Some(Backing::Hugetlb),
        working_set: bounds(memory.resident, vm.memory_bytes, is_missed).map(|set| set.range),
        swap: SwapState::Unknown,
    }
}

fn target(vm: &Vm, has_no_exits: bool, own: Option<&MemoryCgroup>) -> Target {
    let cgroup = own.map(|cgroup| cgroup.name.clone());
    Target { vm: vm.clone(), has_page_tables: vm.is_kvm() && !has_no_exits, cgroup }
}

impl Followed {
    /// Takes what the probes counted.
    fn count(&mut self, seen: ForHost, sees_discards: bool, is_missed: bool, now_ns: u64) {
        for (sum, pages) in self.discarded.iter_mut().zip(seen.discards) {
            *sum += pages * kernel::page_size();
        }
        self.sees_discards = sees_discards;
        if is_missed {
            self.missed_ns = Some(now_ns);
        }
        self.is_missed = self.missed_ns.is_some_and(|at| now_ns.saturating_sub(at) < MISSED_NS);
    }

    /// Adds what was found of its memory.
    fn advance(&mut self, vm: &Vm, interval: &mut VmInterval, found: VmFound) {
        let (balloon, why) = match found.balloon {
            Some(Ok(balloon)) => {
                (self.told, self.discarded) = (balloon.ballooned, [0; 2]);
                (Some(balloon), None)
            }
            Some(Err(why)) => (self.sees_discards.then(|| self.seen_from_outside()), Some(why)),
            None => (None, None),
        };
        self.unknown.balloon = why;
        let configured = balloon.and_then(|balloon| balloon.configured).or(vm.memory_bytes);
        let resident = found.memory.map(|memory| memory.resident);
        let bounded = || bounds(resident?, configured, self.is_missed);
        let (working_set, why) = match found.working_set {
            Some(Ok(set)) => (Some(with_overhead(set, found.memory)), None),
            Some(Err(why)) => (bounded(), Some(why)),
            None => (bounded(), Some("no measurement has ended yet".to_owned())),
        };
        self.unknown.working_set = why;
        (interval.configured, interval.balloon) = (configured, balloon);
        (interval.memory, interval.working_set) = (found.memory, working_set);
    }

    /// What the kernel saw, where nobody says it.
    fn seen_from_outside(&self) -> Balloon {
        let [given, taken] = self.discarded;
        let ballooned = (self.told + given).saturating_sub(taken);
        let source = Source::Discards;
        Balloon { configured: None, current: None, ballooned, source, guest: None }
    }
}

/// DAMON and the referenced bits are looked at where guests have their memory; QEMU's own counts
/// as used.
fn with_overhead(mut set: WorkingSet, memory: Option<MemoryUse>) -> WorkingSet {
    if let (memory::Source::Damon | memory::Source::ClearRefs, Some(memory)) = (set.source, memory)
    {
        set.range.lower += memory.overhead;
        set.range.upper += memory.overhead;
    }
    set
}

fn inflated(vm: &VmInterval) -> Inflated {
    let ballooned = vm.balloon.map(|balloon| balloon.ballooned);
    Inflated { configured: vm.configured, ballooned }
}

/// A recorded VM for the sums of the host; `None` before its memory was walked.
fn held(of: &Vm, vm: &VmInterval) -> Option<VmMemory> {
    Some(VmMemory {
        configured: vm.configured,
        freed: vm.memory?.freed(),
        is_hugetlb: of.backing() == Some(Backing::Hugetlb),
        working_set: vm.working_set.map(|set| set.range),
        swap: vm.swap.state,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use overcommit_recording::model::exit::Exit;
    use overcommit_recording::model::memory::Range;

    #[test]
    fn a_process_that_failed_says_why_itself() {
        let told = |exit, departure| {
            is_told(&RunVm { exit, ended_us: Some(1), ..RunVm::default() }, departure)
        };
        let (status, signal) = (Exit::Status, Exit::Signal);
        assert!(told(Some(status(0)), Departure::Panicked) && told(None, Departure::Migrated));
        assert!(!told(Some(status(1)), Departure::Panicked), "its monitor was only lost");
        assert!(!told(Some(signal(11)), Departure::Panicked));
        assert!(!told(Some(signal(9)), Departure::Panicked));
        assert!(told(Some(signal(9)), Departure::Destroyed), "libvirt did it");
        assert!(!is_told(&RunVm::default(), Departure::Migrated), "it runs");
    }

    #[test]
    fn what_qemu_itself_uses_is_used() {
        let range = Range { lower: 10, upper: 20 };
        let set = |source| WorkingSet { range, source, window_s: 1.0, cost: 0.0 };
        let memory = Some(MemoryUse { overhead: 5, ..MemoryUse::default() });
        let measured = with_overhead(set(memory::Source::Damon), memory);
        assert_eq!(measured.range, Range { lower: 15, upper: 25 });
        let whole = with_overhead(set(memory::Source::Mglru), memory);
        assert_eq!(whole.range, range, "its cgroup has that too");
    }
}
