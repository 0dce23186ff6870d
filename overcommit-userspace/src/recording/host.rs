//! host.csv: one row an interval.

use crate::format::csv;
use crate::format::csv::{optional, seconds_of_ns, seconds_of_us};
use crate::model::interval::Interval;
use crate::model::memory::{HostMemory, Overcommit};
use crate::model::state::State;
use crate::model::swap::Rates;
use crate::recording::intervals::place;
use anyhow::Result;

/// The columns; only ever appended to.
pub const COLUMNS: [&str; 33] = [
    "start_unix_s",
    "length_s",
    "partial",
    "interval",
    "swap_state",
    "swapped_in_pages_per_s",
    "swapped_out_pages_per_s",
    "memory_stall_share",
    "io_wait_share",
    "memory_total_bytes",
    "memory_available_bytes",
    "swap_total_bytes",
    "swap_free_bytes",
    "balloon_state",
    "ballooned_bytes",
    "overcommit_state",
    "configured_bytes",
    "physical_bytes",
    "overcommit_ratio",
    "in_use_share",
    "capacity_bytes",
    "working_sets_lower_bytes",
    "working_sets_upper_bytes",
    "headroom_lower_bytes",
    "headroom_upper_bytes",
    "can_grow_bytes",
    "hugetlb_pools_bytes",
    "ksm_saved_bytes",
    "zram_bytes",
    "zram_holds_bytes",
    "zswap_bytes",
    "zswap_holds_bytes",
    "allocated_pages_per_s",
];

/// The interval's row.
///
/// # Errors
/// See [`csv::rows`].
pub fn row(interval: &Interval) -> Result<Vec<u8>> {
    let mut row = vec![seconds_of_us(interval.start_us), seconds_of_ns(interval.length_ns)];
    row.extend(place(interval));
    let swap = &interval.host.swap;
    row.push(swap.state.name().to_owned());
    row.extend(rates(swap.rates));
    let io_wait = swap.rates.and_then(|rates| rates.io_wait);
    row.push(optional(io_wait.map(|share| format!("{share:.6}"))));
    let memory = swap.memory;
    row.push(optional(memory.map(|memory| memory.total)));
    row.push(optional(memory.and_then(|memory| memory.available)));
    row.push(optional(memory.map(|memory| memory.swap_total)));
    row.push(optional(memory.map(|memory| memory.swap_free)));
    row.push(interval.host.balloon.name().to_owned());
    row.push(optional(interval.host.ballooned));
    row.extend(overcommit(interval.host.overcommit.unwrap_or_default()));
    row.extend(beside(interval.host.memory));
    row.push(optional(swap.allocated.map(|pages| format!("{pages:.3}"))));
    csv::rows([row])
}

fn overcommit(sum: Overcommit) -> [String; 11] {
    let share = |share: Option<f64>| optional(share.map(|share| format!("{share:.6}")));
    let is_known = sum.physical > 0;
    let headroom = sum.headroom();
    [
        sum.state.name().to_owned(),
        optional(sum.configured.filter(|_| is_known)),
        optional(is_known.then_some(sum.physical)),
        share(sum.ratio().filter(|_| is_known)),
        share(sum.in_use),
        optional(sum.capacity),
        optional(sum.working_sets.map(|sets| sets.lower)),
        optional(sum.working_sets.map(|sets| sets.upper)),
        optional(headroom.map(|left| left.lower)),
        optional(headroom.map(|left| left.upper)),
        optional(sum.can_grow),
    ]
}

/// What takes memory beside the VMs.
fn beside(memory: Option<HostMemory>) -> [String; 6] {
    let bytes = |of: fn(&HostMemory) -> u64| optional(memory.as_ref().map(of));
    [
        bytes(|memory| memory.hugetlb_pools),
        bytes(|memory| memory.ksm_saved),
        bytes(|memory| memory.zram.taken),
        bytes(|memory| memory.zram.held),
        bytes(|memory| memory.zswap.taken),
        bytes(|memory| memory.zswap.held),
    ]
}

/// Pages in and out a second, and the share of the time stalled.
pub(super) fn rates(rates: Option<Rates>) -> [String; 3] {
    let pages = |pages: Option<f64>| optional(pages.map(|pages| format!("{pages:.3}")));
    let share = rates.and_then(|rates| rates.stall);
    [
        pages(rates.and_then(|rates| rates.swapped_in)),
        pages(rates.and_then(|rates| rates.swapped_out)),
        optional(share.map(|share| format!("{share:.6}"))),
    ]
}
