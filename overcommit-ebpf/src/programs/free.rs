//! What is free: numbers that one who needs a thread's entry or the like takes from a list.

use crate::atomic::{get, set};
use crate::maps::{EMPTY_UNTIL, FREE_EVICTIONS, FREE_POOLED, FREE_THREADS};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::maps::Queue;

/// Lists of free numbers.
#[derive(Clone, Copy)]
pub(crate) enum FreeList {
    /// Entries of `THREADS`.
    Threads = 0,
    /// Places in the pool.
    Pool = 1,
    /// Entries of `EVICTIONS`.
    Evictions = 2,
}

/// How many of those there are.
pub(crate) const LISTS: u32 = 3;

/// Time for which a list that was empty is not looked at again, in nanoseconds. Its lock is one for
/// the whole host, and is taken with interrupts off also where the list is empty (`__queue_map_get`,
/// kernel/bpf/queue_stack_maps.c): each exit of each vCPU would wait for all others.
const REST_NS: u64 = 10_000_000;

/// Takes a number; `None` where there is none, or was none a moment ago.
#[inline(always)]
pub(crate) fn take(list: FreeList) -> Option<u32> {
    let until = &EMPTY_UNTIL.get(list as u32)?.0;
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    if now < get(until) {
        return None;
    }
    let number = queue(list).pop().ok()?;
    if number.is_none() {
        set(until, now + REST_NS);
    }
    number
}

/// Gives back what was taken and not used.
#[inline(always)]
pub(crate) fn give_back(list: FreeList, number: u32) {
    // It came from there, so there is room for it.
    let _ = queue(list).push(number, 0);
}

#[inline(always)]
fn queue(list: FreeList) -> &'static Queue<u32> {
    match list {
        FreeList::Threads => &FREE_THREADS,
        FreeList::Pool => &FREE_POOLED,
        FreeList::Evictions => &FREE_EVICTIONS,
    }
}
