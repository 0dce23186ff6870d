//! host.csv: one row per interval.

use super::{
    Column, InStates, Leaf, Unit, Value, column, computed, delayed, length, number, one, partial,
    start, state_times,
};
use crate::model::balloon::BalloonState;
use crate::model::interval::HostInterval;
use crate::model::memory::{Headroom, OvercommitState, Range};
use crate::model::state::StateTimes;
use crate::model::swap::SwapState;

impl InStates<SwapState> for HostInterval {
    fn times(&mut self) -> &mut StateTimes<SwapState> {
        &mut self.swap.times
    }

    fn times_of(&self) -> StateTimes<SwapState> {
        self.swap.times
    }
}

impl InStates<BalloonState> for HostInterval {
    fn times(&mut self) -> &mut StateTimes<BalloonState> {
        &mut self.balloon_times
    }

    fn times_of(&self) -> StateTimes<BalloonState> {
        self.balloon_times
    }
}

impl InStates<OvercommitState> for HostInterval {
    fn times(&mut self) -> &mut StateTimes<OvercommitState> {
        &mut self.overcommit_times
    }

    fn times_of(&self) -> StateTimes<OvercommitState> {
        self.overcommit_times
    }
}

/// Each figure of the host, in the order of the file.
pub fn host() -> Vec<Column<HostInterval>> {
    let mut columns = vec![start(), length(), partial(), number()];
    columns.extend(swapping());
    columns.extend(overcommit());
    columns.extend(beside());
    columns.push(one!(HostInterval: "allocated_pages_per_s", PerSecond,
        "Pages that anybody was given", swap.allocated));
    columns.push(one!(HostInterval: "memory_least_available_bytes", Bytes,
        "MemAvailable, and what ZFS gives back of its cache, at the look at which that was least",
        swap.least_available));
    columns.extend(state_times::<SwapState, _>("swap"));
    columns.push(delayed());
    columns.extend(state_times::<BalloonState, _>("balloon"));
    columns.extend(state_times::<OvercommitState, _>("overcommit"));
    columns.extend([
        one!(HostInterval: "headroom_least_lower_bytes", Bytes,
            "Least headroom seen in the interval, lower bound",
            least_headroom => headroom.lower),
        one!(HostInterval: "headroom_least_upper_bytes", Bytes,
            "Least headroom seen in the interval, upper bound",
            least_headroom => headroom.upper),
        one!(HostInterval: "headroom_least_is_measured", Word,
            "Whether all working sets were measured then, or some only bounded",
            least_headroom => is_measured),
        one!(HostInterval: "psi_memory_some_ns", WholeNanoseconds,
            "Time in which a task waited for memory, by the kernel's PSI, since it was last \
             looked at: once per second",
            pressure.some_ns),
        one!(HostInterval: "psi_memory_full_ns", WholeNanoseconds,
            "Time in which all that could run waited for memory, by PSI", pressure.full_ns),
        one!(HostInterval: "oom_kills", Count,
            "Processes that the kernel killed because memory ran out, the host's or a cgroup's",
            pressure.oom_kills),
        one!(HostInterval: "reclaimed_ns", WholeNanoseconds,
            "Time in which the host itself reclaimed memory, not only cgroups at their limits, \
             since it was last looked at: once per second",
            pressure.reclaimed_ns),
        one!(HostInterval: "huge_mappings_split", Count,
            "Mappings of transparent huge pages, of any process, that were split into small ones",
            pressure.huge_mappings_split),
        one!(HostInterval: "zfs_arc_bytes", Bytes, "What ZFS caches (its ARC)",
            memory => zfs_arc),
        one!(HostInterval: "zfs_arc_evictable_bytes", Bytes,
            "What ZFS gives back of that when memory is short; MemAvailable does not have it",
            memory => zfs_arc_evictable),
    ]);
    columns
}

fn swapping() -> Vec<Column<HostInterval>> {
    vec![
        one!(HostInterval: "swap_state", Word,
            "How much swapping hurts, at the worst: unknown, healthy, pressure or thrashing",
            swap.state),
        one!(HostInterval: "swapped_in_pages_per_s", PerSecond,
            "Pages that came back from swap, zswap and pages of zeros included",
            swap.rates => swapped_in),
        one!(HostInterval: "swapped_out_pages_per_s", PerSecond,
            "Pages that went to swap", swap.rates => swapped_out),
        one!(HostInterval: "memory_stall_share", Share,
            "Time for which somebody waited for memory: the worst VM, or PSI",
            swap.rates => stall),
        one!(HostInterval: "io_wait_share", Share,
            "CPU time in which nobody ran and somebody waited for I/O", swap.rates => io_wait),
        one!(HostInterval: "memory_total_bytes", Bytes, "MemTotal", swap.memory => total),
        one!(HostInterval: "memory_available_bytes", Bytes, "MemAvailable",
            swap.memory => available),
        one!(HostInterval: "swap_total_bytes", Bytes, "SwapTotal", swap.memory => swap_total),
        one!(HostInterval: "swap_free_bytes", Bytes, "SwapFree", swap.memory => swap_free),
        one!(HostInterval: "balloon_state", Word,
            "How hard memory is taken back, at the worst: unknown, normal, pressure or crisis", balloon),
        one!(HostInterval: "ballooned_bytes", Bytes, "What the VMs gave back", ballooned),
    ]
}

fn overcommit() -> Vec<Column<HostInterval>> {
    vec![
        column(
            "overcommit_state",
            Unit::Word,
            "How near the host is to the edge, at the worst: unknown, safe, approaching or critical",
            |row, _| row.of.overcommit.map(|sum| sum.state).unwrap_or_default().value(),
            |draft, _, cell| {
                let state = OvercommitState::read(cell)?;
                if state != OvercommitState::Unknown || draft.of.overcommit.is_some() {
                    draft.of.overcommit.get_or_insert_default().state = state;
                }
                Some(())
            },
        ),
        one!(HostInterval: "configured_bytes", Bytes,
            "What all VMs of the host were given, huge pages of the pool left out",
            overcommit => configured),
        one!(HostInterval: "physical_bytes", Bytes,
            "Memory of the host, without the pool of huge pages", overcommit => physical),
        computed("overcommit_ratio", Unit::Share, "Configured ÷ physical", |row, _| {
            row.of.overcommit.and_then(|sum| sum.ratio()).value()
        }),
        one!(HostInterval: "in_use_share", Share, "Part of it that is in use",
            overcommit => in_use),
        one!(HostInterval: "capacity_bytes", Bytes,
            "What the VMs could have: what is available, and what they hold",
            overcommit => capacity),
        column(
            "working_sets_lower_bytes",
            Unit::Bytes,
            "Working sets of all VMs, at least",
            |row, _| working_sets(row.of).map(|sets| sets.lower).value(),
            |draft, _, cell| {
                if !cell.is_empty() {
                    draft_sets(&mut draft.of).lower = Leaf::read(cell)?;
                }
                Some(())
            },
        ),
        column(
            "working_sets_upper_bytes",
            Unit::Bytes,
            "Working sets of all VMs, at most",
            |row, _| working_sets(row.of).map(|sets| sets.upper).value(),
            |draft, _, cell| {
                if !cell.is_empty() {
                    draft_sets(&mut draft.of).upper = Leaf::read(cell)?;
                }
                Some(())
            },
        ),
        computed(
            "headroom_lower_bytes",
            Unit::Bytes,
            "What is left beside the working sets, at least",
            |row, _| headroom(row.of).map(|left| left.lower).value(),
        ),
        computed(
            "headroom_upper_bytes",
            Unit::Bytes,
            "What is left beside the working sets, at most",
            |row, _| headroom(row.of).map(|left| left.upper).value(),
        ),
        one!(HostInterval: "can_grow_bytes", Bytes,
            "What the three VMs that can grow most could still take", overcommit => can_grow),
    ]
}

fn working_sets(host: &HostInterval) -> Option<Range> {
    host.overcommit?.working_sets
}

fn draft_sets(host: &mut HostInterval) -> &mut Range {
    host.overcommit.get_or_insert_default().working_sets.get_or_insert_default()
}

fn headroom(host: &HostInterval) -> Option<Headroom> {
    host.overcommit.and_then(|sum| sum.headroom())
}

/// What takes memory beside the VMs.
fn beside() -> Vec<Column<HostInterval>> {
    vec![
        one!(HostInterval: "hugetlb_pools_bytes", Bytes, "Pools of huge pages, used or not",
            memory => hugetlb_pools),
        one!(HostInterval: "ksm_saved_bytes", Bytes,
            "What KSM has merged: as much as it takes again if the VMs write to all of it",
            memory => ksm_saved),
        one!(HostInterval: "zram_bytes", Bytes, "RAM that zram takes", memory => zram.taken),
        one!(HostInterval: "zram_holds_bytes", Bytes, "What that was before it was compressed",
            memory => zram.held),
        one!(HostInterval: "zswap_bytes", Bytes, "RAM that zswap takes", memory => zswap.taken),
        one!(HostInterval: "zswap_holds_bytes", Bytes, "What that was before it was compressed",
            memory => zswap.held),
    ]
}
