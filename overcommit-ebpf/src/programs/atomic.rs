//! Access to words that the loader reads and changes at the same time.
//!
//! `core::sync::atomic` offers loads and stores alone for BPF, of which LLVM
//! cannot even select the stores,
//! although the instructions have been there since Linux 5.12 (`BPF_CMPXCHG`).

use crate::maps::STORES_IN_ORDER;
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};
use core::sync::atomic::AtomicU64;
use overcommit_ebpf::order::Cell;

/// Adds `n` where many CPUs add and the loader takes.
#[inline(always)]
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    // SAFETY: the pointer comes from a live reference to an atomic.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter.as_ptr(), n) };
}

/// A word as the programs use it.
pub(crate) struct InKernel<'a>(pub(crate) &'a AtomicU64);

/// How often a lost race for a maximum is tried again. A reader bounds the
/// maximum by the last bucket in use, so giving up costs 1/128 at worst.
const MAX_TRIES: u32 = 8;

impl Cell for InKernel<'_> {
    #[inline(always)]
    fn add(&self, n: u64) {
        add(self.0, n);
    }

    #[inline(always)]
    fn add_in_order(&self, n: u64) {
        add_in_order(self.0, n);
    }

    #[inline(always)]
    fn advance(&self) {
        if STORES_IN_ORDER.load() != 0 {
            set(self.0, get(self.0) + 1);
        } else {
            fetch_add(self.0, 1);
        }
    }

    #[inline(always)]
    fn raise(&self, to: u64) {
        let mut max = get(self.0);
        let mut tries = 0;
        while to > max && tries < MAX_TRIES {
            match replace(self.0, max, to) {
                Ok(()) => break,
                Err(longer) => max = longer,
            }
            tries += 1;
        }
    }
}

/// Adds `n` after all that was written before, and before all that is written afterwards.
#[inline(always)]
pub(crate) fn add_in_order(counter: &AtomicU64, n: u64) {
    fetch_add(counter, n);
}

/// Takes one away; gives how many there were.
#[inline(always)]
pub(crate) fn take_one(counter: &AtomicU64) -> u64 {
    fetch_add(counter, u64::MAX)
}

/// Adds `n`; gives what was there. Of a relaxed addition LLVM makes the instruction that gives nothing
/// back, though the result is used.
#[inline(always)]
fn fetch_add(counter: &AtomicU64, n: u64) -> u64 {
    // SAFETY: as in `add`.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(counter.as_ptr(), n) }
}

/// Stores `new` if the value is still `old`; gives the value that was there
/// otherwise.
#[inline(always)]
pub(crate) fn replace(cell: &AtomicU64, old: u64, new: u64) -> Result<(), u64> {
    // SAFETY: as in `add`.
    let (was, replaced) = unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::Relaxed }, { AtomicOrdering::Relaxed }>(
            cell.as_ptr(),
            old,
            new,
        )
    };
    if replaced { Ok(()) } else { Err(was) }
}

/// Loads a whole word.
#[inline(always)]
pub(crate) fn get(cell: &AtomicU64) -> u64 {
    // SAFETY: as in `add`; an aligned word is read at once.
    unsafe { cell.as_ptr().read_volatile() }
}

/// Stores a whole word.
#[inline(always)]
pub(crate) fn set(cell: &AtomicU64, value: u64) {
    // SAFETY: as in `add`; an aligned word is written at once.
    unsafe { cell.as_ptr().write_volatile(value) }
}
