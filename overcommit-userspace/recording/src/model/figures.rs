//! The memory of a host and its VMs, as it was last known.

use crate::model::balloon;
use crate::model::interval::{HostInterval, VmInterval};
use crate::model::memory::{self, Headroom, Range};
use serde::Serialize;

/// Memory of a VM, in bytes; each where it was known.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VmFigures {
    /// What it was given.
    pub configured_bytes: Option<u64>,
    /// What it gave back.
    pub ballooned_bytes: Option<u64>,
    /// Who said so.
    pub balloon_source: Option<balloon::Source>,
    /// In RAM.
    pub resident_bytes: Option<u64>,
    /// On swap.
    pub swapped_bytes: Option<u64>,
    /// What the guest says that its programs could still have.
    pub guest_available_bytes: Option<u64>,
    /// Since when it says so, in seconds.
    pub guest_age_s: Option<f64>,
    /// Whether that says nothing of now.
    pub guest_is_stale: Option<bool>,
    /// What it uses.
    pub working_set_bytes: Option<Range>,
    /// What measured that.
    pub working_set_source: Option<memory::Source>,
    /// CPU time that measuring took ÷ time.
    pub working_set_cost_share: Option<f64>,
    /// What its cgroup may hold.
    pub cgroup_limit_bytes: Option<u64>,
    /// What that leaves beside its working set.
    pub cgroup_headroom_bytes: Option<Headroom>,
    /// NUMA nodes to which it is bound.
    pub numa_nodes: Option<String>,
    /// What is left there beside the working sets of all that are.
    pub numa_headroom_bytes: Option<Headroom>,
}

impl VmFigures {
    /// Takes what is known later.
    pub fn update(&mut self, vm: &VmInterval) {
        fn take<T>(now: &mut Option<T>, later: Option<T>) {
            if later.is_some() {
                *now = later;
            }
        }
        let (balloon, memory) = (vm.balloon, vm.memory);
        let guest = balloon.and_then(|balloon| balloon.guest);
        take(&mut self.configured_bytes, vm.configured);
        take(&mut self.ballooned_bytes, balloon.map(|balloon| balloon.ballooned));
        take(&mut self.balloon_source, balloon.map(|balloon| balloon.source));
        take(&mut self.resident_bytes, memory.map(|memory| memory.resident));
        take(&mut self.swapped_bytes, memory.map(|memory| memory.swapped));
        if guest.is_some() {
            self.guest_available_bytes = guest.and_then(|guest| guest.available);
            self.guest_age_s = vm.guest_age_s.map(tenths);
            self.guest_is_stale = vm.guest_is_stale;
        } else if balloon.is_some() && self.guest_available_bytes.is_some() {
            // Nobody asks it any more.
            self.guest_is_stale = Some(true);
        }
        take(&mut self.working_set_bytes, vm.working_set.map(|set| set.range));
        take(&mut self.working_set_source, vm.working_set.map(|set| set.source));
        take(&mut self.working_set_cost_share, vm.working_set.map(|set| set.cost));
        take(&mut self.cgroup_limit_bytes, vm.swap.limit);
        take(&mut self.cgroup_headroom_bytes, vm.cgroup_headroom());
        take(&mut self.numa_nodes, vm.numa_nodes.map(|nodes| nodes.to_string()));
        take(&mut self.numa_headroom_bytes, vm.numa_headroom);
    }
}

/// As precise as files have it.
fn tenths(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0
}

/// Memory of the host, in bytes; each where it was known.
#[derive(Clone, Debug, Default, Serialize)]
pub struct HostFigures {
    /// Of its VMs together.
    pub configured_bytes: Option<u64>,
    /// Without huge pages of the pool.
    pub physical_bytes: Option<u64>,
    /// MemAvailable, and what ZFS gives back of its cache, at the least of the whole time.
    pub least_available_bytes: Option<u64>,
    /// What the VMs could have.
    pub capacity_bytes: Option<u64>,
    /// What they use.
    pub working_sets_bytes: Option<Range>,
    /// What is left.
    pub headroom_bytes: Option<Headroom>,
    /// What the three that can grow most could still take.
    pub can_grow_bytes: Option<u64>,
    /// What VMs gave back.
    pub ballooned_bytes: Option<u64>,
}

impl HostFigures {
    /// Of an interval; `None` where the host was not looked at.
    pub fn of(host: &HostInterval) -> Option<Self> {
        let sum = host.overcommit.filter(|sum| sum.physical > 0)?;
        Some(Self {
            configured_bytes: sum.configured,
            physical_bytes: Some(sum.physical),
            least_available_bytes: None,
            capacity_bytes: sum.capacity,
            working_sets_bytes: sum.working_sets,
            headroom_bytes: sum.headroom(),
            can_grow_bytes: sum.can_grow,
            ballooned_bytes: host.ballooned,
        })
    }
}
