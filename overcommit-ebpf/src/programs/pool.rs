//! Histograms that not every VM needs, such as that of an exit reason: the first latency of
//! its kind takes a free one.

use crate::atomic::{get, set};
use crate::free::{self, FreeList};
use crate::maps::{HISTOGRAMS, POOL_AT, POOL_OWNERS, POOLED};
use aya_ebpf::bindings::BPF_NOEXIST;
use core::sync::atomic::AtomicU64;
use overcommit_ebpf::layout::Histogram;

/// The place of a slot's histogram; `None` if all are taken.
#[inline(always)]
pub(crate) fn place(slot: u32, key: u32) -> Option<u32> {
    let key = u64::from(slot) << 32 | u64::from(key);
    // SAFETY: entries are only read and written as whole words.
    if let Some(place) = unsafe { POOLED.get(key) } {
        return Some(*place);
    }
    let place = free::take(FreeList::Pool)?;
    // Another thread of the VM may have been faster.
    if POOLED.insert(key, place, u64::from(BPF_NOEXIST)).is_err() {
        free::give_back(FreeList::Pool, place);
        // SAFETY: as above.
        return unsafe { POOLED.get(key) }.copied();
    }
    set(&POOL_OWNERS.get(place)?.0, key + 1);
    Some(place)
}

/// The same, where it is likely to be the last one, which is kept in the upper half of a word.
#[inline(always)]
pub(crate) fn place_near(last: &AtomicU64, slot: u32, key: u32) -> Option<u32> {
    let place = (get(last) >> 32) as u32;
    let owner = u64::from(slot) << 32 | u64::from(key);
    if let Some(of_last) = POOL_OWNERS.get(place)
        && get(&of_last.0) == owner + 1
    {
        return Some(place);
    }
    let place = self::place(slot, key)?;
    set(last, get(last) << 32 >> 32 | u64::from(place) << 32);
    Some(place)
}

/// The histogram at a place.
#[inline(always)]
pub(crate) fn histogram(place: u32) -> Option<&'static Histogram> {
    HISTOGRAMS.get(POOL_AT.load() + place)
}
