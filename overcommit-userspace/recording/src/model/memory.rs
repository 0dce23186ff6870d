//! What the host and its VMs have, hold and use of memory.

use crate::model::state::State;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Memory of a VM's process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// In RAM, its part of what it shares.
    pub resident: u64,
    /// On swap, its part of what it shares.
    pub swapped: u64,
    /// Huge pages out of the host's pool.
    pub hugetlb: u64,
    /// What of the resident is not its guest's memory but the process's own.
    pub overhead: u64,
    /// What of the resident is pages of files on a disk, which are in MemAvailable too.
    pub page_cache: u64,
    /// What is mapped in transparent huge pages.
    pub huge_pages: u64,
}

impl MemoryUse {
    /// What would be available if the process were not there, beside what already is.
    pub fn freed(&self) -> u64 {
        self.resident.saturating_sub(self.page_cache)
    }
}

/// What takes memory beside the VMs, or saves it, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// MemTotal.
    pub total: u64,
    /// MemAvailable.
    pub available: Option<u64>,
    /// Pools of huge pages, used or not.
    pub hugetlb_pools: u64,
    /// What KSM has merged.
    pub ksm_saved: u64,
    /// What ZFS caches (its ARC), which is not in [`Self::available`].
    pub zfs_arc: u64,
    /// What of that it gives back when memory is short.
    pub zfs_arc_evictable: u64,
    /// Compressed memory as swap: what it takes, and what it holds.
    pub zram: Compressed,
    /// Compressed memory before swap: what it takes, and what it holds.
    pub zswap: Compressed,
}

impl HostMemory {
    /// What is available, and what ZFS gives back of its cache.
    pub fn available_with_cache(&self) -> Option<u64> {
        Some(self.available?.saturating_add(self.zfs_arc_evictable))
    }
}

/// See [`HostMemory`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compressed {
    /// RAM that it takes.
    pub taken: u64,
    /// What that was before.
    pub held: u64,
}

/// How near the host is to running out of memory.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum OvercommitState {
    /// Something that it takes is not known.
    #[default]
    Unknown,
    /// What the VMs need has room.
    Safe,
    /// Little is left, or may be.
    Approaching,
    /// The VMs need more than there is.
    Critical,
}

impl State for OvercommitState {
    const ALL: &'static [Self] = &[Self::Unknown, Self::Safe, Self::Approaching, Self::Critical];

    fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Safe => "safe",
            Self::Approaching => "approaching",
            Self::Critical => "critical",
        }
    }
}

/// From a lower to an upper bound, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// At least.
    pub lower: u64,
    /// At most.
    pub upper: u64,
}

/// What is left beside the working sets, in bytes: less than nothing if they need more
/// than there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Headroom {
    /// At least.
    pub lower: i64,
    /// At most.
    pub upper: i64,
}

impl Headroom {
    /// What working sets leave of the memory that they may have; `None` beyond 8 EiB.
    pub fn of(memory: u64, sets: Range) -> Option<Self> {
        let left = |need: u64| i64::try_from(i128::from(memory) - i128::from(need)).ok();
        Some(Self { lower: left(sets.upper)?, upper: left(sets.lower)? })
    }
}

/// The headroom at the look at which it was least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeastHeadroom {
    /// What it was.
    pub headroom: Headroom,
    /// Whether the working set of every recorded VM was measured then.
    pub is_measured: bool,
}

impl LeastHeadroom {
    /// The lesser one; what is measured is not compared with what is only bounded, and comes first.
    pub fn min_with(self, other: Self) -> Self {
        let is_other = match (self.is_measured, other.is_measured) {
            (true, false) => false,
            (false, true) => true,
            _ => other.headroom.lower < self.headroom.lower,
        };
        if is_other { other } else { self }
    }
}

/// The sums, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Overcommit {
    /// How near.
    pub state: OvercommitState,
    /// Of the VMs, those on huge pages left out; `None` if one of them is not known.
    pub configured: Option<u64>,
    /// Memory without the pools of huge pages.
    pub physical: u64,
    /// Share of it that is in use, from 0 to 1.
    pub in_use: Option<f64>,
    /// What the VMs could have: what is available, and what they hold.
    pub capacity: Option<u64>,
    /// What they need.
    pub working_sets: Option<Range>,
    /// What the three that can grow most could still take.
    pub can_grow: Option<u64>,
}

impl Overcommit {
    /// Configured ÷ physical.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.configured? as f64 / self.physical.max(1) as f64)
    }

    /// What is left beside the working sets.
    pub fn headroom(&self) -> Option<Headroom> {
        Headroom::of(self.capacity?, self.working_sets?)
    }
}

/// Nodes by number, below 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeSet(u64);

impl NodeSet {
    /// The kernel's list, such as `0,2-3`; `None` of one with a node of 64 or more.
    pub fn parse(list: &str) -> Option<Self> {
        let mut set = Self::default();
        for part in list.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            for node in first.parse::<u32>().ok()?..=last.parse().ok()? {
                set.0 |= 1u64.checked_shl(node)?;
            }
        }
        Some(set)
    }

    /// Their numbers.
    pub fn nodes(self) -> impl Iterator<Item = u32> {
        (0..u64::BITS).filter(move |node| self.0 >> node & 1 != 0)
    }

    /// Those that the other set has too.
    pub fn within(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether the other set has all of them.
    pub fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }
}

impl fmt::Display for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<String> = self.nodes().map(|node| node.to_string()).collect();
        f.write_str(&nodes.join(" "))
    }
}

/// What the kernel itself says of how short the host's memory was in an interval: a witness
/// beside what is counted here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostPressure {
    /// Time in which a task waited for memory (`some` of PSI), in nanoseconds.
    pub some_ns: Option<u64>,
    /// Time in which all that could run waited (`full`), in nanoseconds.
    pub full_ns: Option<u64>,
    /// Processes that were killed because memory ran out, the host's or a cgroup's (`oom_kill` in
    /// vmstat).
    pub oom_kills: Option<u64>,
    /// Mappings of transparent huge pages that were split into small ones (`thp_split_pmd` in
    /// vmstat).
    pub huge_mappings_split: Option<u64>,
    /// Time in which the host itself reclaimed, by kswapd or because an allocation had to, in
    /// nanoseconds: between two looks that differ, all of it. What cgroups reclaim at their own
    /// limits is none of it.
    pub reclaimed_ns: Option<u64>,
}

impl HostPressure {
    /// Both together.
    pub fn plus(self, next: Self) -> Self {
        let sum = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
        Self {
            some_ns: sum(self.some_ns, next.some_ns),
            full_ns: sum(self.full_ns, next.full_ns),
            oom_kills: sum(self.oom_kills, next.oom_kills),
            huge_mappings_split: sum(self.huge_mappings_split, next.huge_mappings_split),
            reclaimed_ns: sum(self.reclaimed_ns, next.reclaimed_ns),
        }
    }
}

/// What measures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// DAMON's regions of virtual addresses.
    Damon,
    /// Pages of the generations since the last ageing.
    Mglru,
    /// Pages whose referenced bit was cleared and is set again.
    ClearRefs,
    /// What is resident, and whether anything that was not is missed.
    #[default]
    Bounds,
    /// What a later version knows.
    #[serde(other)]
    Other,
}

impl Source {
    /// Each.
    const ALL: [Self; 5] = [Self::Damon, Self::Mglru, Self::ClearRefs, Self::Bounds, Self::Other];

    /// Whether it measures, and does not just bound.
    pub fn is_measured(self) -> bool {
        matches!(self, Self::Damon | Self::Mglru | Self::ClearRefs)
    }

    /// What a file calls so.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.name() == name)
    }

    /// The word in files and views.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Damon => "damon",
            Self::Mglru => "mglru",
            Self::ClearRefs => "clear_refs",
            Self::Bounds => "bounds",
            Self::Other => "other",
        }
    }
}

/// A VM's working set as measured last.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WorkingSet {
    /// Over the last windows.
    pub range: Range,
    /// What measured.
    pub source: Source,
    /// Time in which memory must be touched to belong to it, in seconds.
    pub window_s: f64,
    /// CPU time that measuring this VM takes ÷ time.
    pub cost: f64,
}
