//! The host and its VMs in an interval: what `watch` follows and `survey` finds, as one.

use crate::host::balloon::state::{BalloonStates, Inflated};
use crate::host::memory_cgroup::MemoryCgroup;
use crate::host::overcommit;
use crate::host::overcommit::VmMemory;
use crate::host::survey::{Options, Survey, VmFound};
use crate::host::swap_state::RETURNS;
use crate::host::watch::Watch;
use crate::host::working_set::bounds;
use crate::host::working_set::follow::Target;
use crate::model::balloon::{Balloon, Source};
use crate::model::interval::HostSample;
use crate::model::interval::VmHostSample;
use crate::model::interval::VmSample;
use crate::model::memory::MemoryUse;
use crate::model::swap::{SwapSources, SwapState, VmSwap};
use crate::model::vm::{Backing, Vm, VmId};
use crate::probes::raw::Group;
use crate::probes::sight::{SILENT, Sight};
use crate::sampler::roster::Member;
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// Bytes that a balloon takes at a time.
const BALLOON_PAGE: u64 = 4096;
/// Time for which pages that came back are a sign that memory is missed, in nanoseconds.
const MISSED_NS: u64 = 10_000_000_000;

/// Why something is not known of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unknown {
    /// Its balloon, or its exact size.
    pub balloon: Option<String>,
    /// Its working set, but for bounds.
    pub working_set: Option<String>,
}

/// Follows the host.
pub struct Host {
    watch: Watch,
    survey: Survey,
    balloons: BalloonStates,
    vms: BTreeMap<usize, Followed>,
    /// Whether [`VmSample::discards`] are counted.
    sees_discards: bool,
}

#[derive(Default)]
struct Followed {
    /// Bytes that it had given back when somebody last said so; 0 before.
    told: u64,
    /// Bytes that it gave back and took again since then, as the kernel saw it.
    discarded: [u64; 2],
    missed_ns: Option<u64>,
    unknown: Unknown,
    now: VmHostSample,
}

impl Host {
    /// Begins to follow it.
    ///
    /// # Errors
    /// See [`Survey::start`].
    pub fn start(sight: &Sight, options: &Options) -> Result<Self> {
        let proc = Path::new("/proc");
        let watch = Watch::new(proc, sight.sees_swapins(), sight.absent(Group::Swapouts).is_none());
        Ok(Self {
            watch,
            survey: Survey::start(proc, Path::new("/sys"), options)?,
            balloons: BalloonStates::default(),
            vms: BTreeMap::new(),
            sees_discards: false,
        })
    }

    /// Takes what the probes saw in an interval that ended at `now_ns`
    /// (`CLOCK_MONOTONIC`).
    pub fn advance(&mut self, members: &[Member], samples: &[VmSample], now_ns: u64) -> HostSample {
        self.watch.advance(members, samples, now_ns);
        let targets = samples
            .iter()
            .map(|sample| target(&members[sample.member], self.watch.cgroup(sample.member)));
        self.survey.follow(targets.collect());
        let found = self.survey.found();
        self.vms.retain(|member, _| samples.iter().any(|sample| sample.member == *member));
        for sample in samples {
            let member = &members[sample.member];
            let found = found.vms.get(&member.vm.id).cloned().unwrap_or_default();
            let swap = self.watch.vm(sample.member);
            let vm = self.vms.entry(sample.member).or_default();
            vm.advance(member, sample, found, swap, self.sees_discards, now_ns);
        }
        let swap = self.watch.host();
        let inflated = self.vms.iter().map(|(member, vm)| (*member, vm.inflated()));
        let balloon = self.balloons.advance(now_ns, &inflated.collect(), swap.state);
        let ballooned = self.vms.values().filter_map(|vm| vm.now.balloon);
        let ballooned = ballooned.map(|balloon| balloon.ballooned).reduce(|sum, more| sum + more);
        let memory = found.host.map(|mut memory| {
            // Fresher than at the last walk.
            memory.available = swap.memory.map_or(memory.available, |now| now.available);
            memory
        });
        let vms = self.vms.iter().map(|(member, vm)| {
            let member = &members[*member];
            Some((member.vm.id, vm.memory(member)?))
        });
        let is_missed = swap.state >= SwapState::Pressure;
        let others = found.others.iter();
        let others = others.map(|(vm, held)| Some((vm.id, beside(vm, *held, is_missed))));
        let vms: Option<Vec<(VmId, VmMemory)>> = vms.chain(others).collect();
        for (member, vm) in &mut self.vms {
            let nodes = found.numa.nodes_of(members[*member].vm.id);
            let left = |nodes| found.numa.headroom(nodes, vms.as_deref()?);
            vm.now.numa = nodes.map(|nodes| (nodes, left(nodes)));
        }
        let overcommit = memory.zip(vms).map(|(host, vms)| {
            let vms: Vec<VmMemory> = vms.into_iter().map(|(_, vm)| vm).collect();
            overcommit::of(&host, &vms, swap.state, balloon)
        });
        HostSample { swap, balloon, ballooned, overcommit, memory }
    }

    /// A VM as of the last interval.
    pub fn vm(&self, member: usize) -> VmHostSample {
        self.vms.get(&member).map(|vm| vm.now).unwrap_or_default()
    }

    /// Why something is not known of a VM.
    pub fn unknown(&self, member: usize) -> Unknown {
        self.vms.get(&member).map(|vm| vm.unknown.clone()).unwrap_or_default()
    }

    /// Where the rates of a VM come from.
    pub fn swap_sources(&self, member: usize) -> SwapSources {
        self.watch.sources(member)
    }

    /// The id of the memory cgroup that is a VM's own.
    pub fn cgroup_id(&self, member: usize) -> Option<u64> {
        Some(self.watch.cgroup(member)?.id)
    }

    /// Why the host's counters could not be read, if so.
    pub fn unreadable(&self) -> Option<&str> {
        self.watch.unreadable()
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

/// A VM that is not recorded, by what can be told without asking it.
fn beside(vm: &Vm, memory: MemoryUse, is_missed: bool) -> VmMemory {
    VmMemory {
        configured: vm.memory_bytes,
        resident: memory.resident,
        is_hugetlb: vm.backing() == Some(Backing::Hugetlb),
        working_set: bounds(memory.resident, vm.memory_bytes, is_missed).map(|set| set.range),
        swap: SwapState::Unknown,
    }
}

fn target(member: &Member, own: Option<&MemoryCgroup>) -> Target {
    let is_kvm = member.vm.accelerator.as_deref() == Some("kvm");
    let has_page_tables = is_kvm && member.exits_absent.as_deref() != Some(SILENT);
    let cgroup = own.map(|cgroup| cgroup.name.clone());
    Target { vm: member.vm.clone(), has_page_tables, cgroup }
}

impl Followed {
    fn advance(
        &mut self,
        member: &Member,
        sample: &VmSample,
        found: VmFound,
        swap: VmSwap,
        sees_discards: bool,
        now_ns: u64,
    ) {
        for (sum, pages) in self.discarded.iter_mut().zip(sample.discards) {
            *sum += pages * BALLOON_PAGE;
        }
        if swap.rates.and_then(|rates| rates.swapped_in).is_some_and(|pages| pages >= RETURNS) {
            self.missed_ns = Some(now_ns);
        }
        let is_missed = self.missed_ns.is_some_and(|at| now_ns.saturating_sub(at) < MISSED_NS);
        let (balloon, why) = match found.balloon {
            Some(Ok(balloon)) => {
                (self.told, self.discarded) = (balloon.ballooned, [0; 2]);
                (Some(balloon), None)
            }
            Some(Err(why)) => (sees_discards.then(|| self.seen_from_outside()), Some(why)),
            None => (None, None),
        };
        self.unknown.balloon = why;
        let configured = balloon.and_then(|balloon| balloon.configured).or(member.vm.memory_bytes);
        let resident = found.memory.map(|memory| memory.resident);
        let bounded = || bounds(resident?, configured, is_missed);
        let (working_set, why) = match found.working_set {
            Some(Ok(set)) => (Some(set), None),
            Some(Err(why)) => (bounded(), Some(why)),
            None => (bounded(), None),
        };
        self.unknown.working_set = why;
        let memory = found.memory;
        self.now = VmHostSample { swap, configured, balloon, memory, working_set, numa: None };
    }

    /// What the kernel saw, where nobody says it.
    fn seen_from_outside(&self) -> Balloon {
        let [given, taken] = self.discarded;
        let ballooned = (self.told + given).saturating_sub(taken);
        let source = Source::Discards;
        Balloon { configured: None, current: None, ballooned, source, guest: None }
    }

    fn inflated(&self) -> Inflated {
        let ballooned = self.now.balloon.map(|balloon| balloon.ballooned);
        Inflated { configured: self.now.configured, ballooned }
    }

    fn memory(&self, member: &Member) -> Option<VmMemory> {
        Some(VmMemory {
            configured: self.now.configured,
            resident: self.now.memory?.resident,
            is_hugetlb: member.vm.backing() == Some(Backing::Hugetlb),
            working_set: self.now.working_set.map(|set| set.range),
            swap: self.now.swap.state,
        })
    }
}
