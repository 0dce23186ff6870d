//! What a CPU counts and remembers.

use crate::layout::HotProgram;
use core::sync::atomic::AtomicU64;

/// What is counted for each CPU, and what was looked up there last: cache lines of its own.
#[repr(C, align(64))]
pub struct Cpu {
    /// Runs of each [`HotProgram`], to be held against its event's own counter.
    pub runs: [AtomicU64; HotProgram::COUNT],
    /// Entry of the thread that was looked up last, which says itself whose it is.
    pub thread: AtomicU64,
    /// Slot of the VM that was looked up last, whose `mm` says whose memory it is.
    pub vm: AtomicU64,
    /// The memory that was last seen to be no VM's, see [`other_memory`].
    pub other: AtomicU64,
    /// Explicit padding to whole cache lines, of which CPUs fetch two at a time.
    pub reserved: [AtomicU64; 7],
}

const _: () = assert!(size_of::<Cpu>() == 128);

/// Bits of a count in [`other_memory`].
const COUNT_BITS: u32 = 13;
/// Bits of an address that are 0: an `mm_struct` begins a cache line (`mm_cache_init`, kernel/fork.c).
const ALIGNED_BITS: u32 = 6;

/// An `mm_struct`, and how often VMs had come when it was no VM's, in one word: two programs of which one
/// preempts the other leave no half of each.
///
/// There is room because the highest bits of the kernel's addresses, 57 to 63, are all the same. The
/// count begins anew after 8192 VMs.
#[inline(always)]
pub const fn other_memory(mm: u64, changes: u64) -> u64 {
    mm >> ALIGNED_BITS << COUNT_BITS | low(changes)
}

/// Whether that word says so of this memory, by this count, which is asked for of that memory alone.
#[inline(always)]
pub fn is_other_memory(word: u64, mm: u64, changes: impl FnOnce() -> u64) -> bool {
    // The verifier lets nobody shift a pointer, which `mm` may be.
    let its_mm = word.cast_signed() >> COUNT_BITS << ALIGNED_BITS;
    its_mm.cast_unsigned() == mm && low(word) == low(changes())
}

#[inline(always)]
const fn low(count: u64) -> u64 {
    count & ((1 << COUNT_BITS) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_memory_is_known_by_its_address_and_count() {
        let is_other = |word, mm, changes| is_other_memory(word, mm, || changes);
        // With page tables of 4 and 5 levels, and on arm64.
        for mm in [0xffff_8881_0234_5640, 0xff11_0001_0234_5640, 0xfff0_0000_1234_5640, 0] {
            for changes in [0, 1, 8_191, 8_192, u64::MAX] {
                let word = other_memory(mm, changes);
                assert!(is_other(word, mm, changes), "{mm:#x} {changes}");
                assert!(!is_other(word, mm, changes.wrapping_add(1)), "{mm:#x} {changes}");
                assert!(!is_other(word, mm ^ 0x40, changes), "{mm:#x} {changes}");
                assert!(!is_other(word, mm ^ 1 << 47, changes), "{mm:#x} {changes}");
            }
        }
        // One that does not begin a cache line is looked up each time.
        let odd = 0xffff_8881_0234_5650;
        assert!(!is_other(other_memory(odd, 3), odd, 3));
    }
}
