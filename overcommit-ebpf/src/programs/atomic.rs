//! Access to words that the loader reads and changes at the same time.
//!
//! `core::sync::atomic` offers loads and stores alone for BPF, of which LLVM
//! cannot even select the stores,
//! although the instructions have been there since Linux 5.12 (`BPF_CMPXCHG`).

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};
use core::sync::atomic::AtomicU64;

/// Adds `n` where many CPUs add and the loader takes.
#[inline(always)]
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    // SAFETY: the pointer comes from a live reference to an atomic.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter.as_ptr(), n) };
}

/// Takes one away; gives how many there were. Of a relaxed addition LLVM makes the instruction that
/// gives nothing back, though the result is used.
#[inline(always)]
pub(crate) fn take_one(counter: &AtomicU64) -> u64 {
    // SAFETY: as in `add`.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(counter.as_ptr(), u64::MAX) }
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
