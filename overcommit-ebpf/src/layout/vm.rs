//! A VM's slot.

use crate::layout::{FaultBacking, Invalidator, Loss, Metric, Part, Taker, zero};
use core::sync::atomic::AtomicU64;

/// What of the time of memory windows passed outside faults and waits for a CPU, in
/// [`Vm::stall_ns`] behind the parts.
pub const OUTSIDE_FAULTS: usize = Part::COUNT;

/// Likewise where the vCPU slept meanwhile, for a page that a worker read.
pub const IN_BACKGROUND: usize = Part::COUNT + 1;

/// Numbers in [`Vm::stall_ns`].
pub const STALL_PARTS: usize = Part::COUNT + 2;

/// A VM's slot: who it is for the kernel, and what is known beside the histograms.
#[repr(C)]
pub struct Vm {
    /// Address of its `mm_struct` while it is counted; 0 in a free slot.
    pub mm: AtomicU64,
    /// `task_struct::start_boottime` of its leader, in nanoseconds.
    pub start_boottime_ns: AtomicU64,
    /// `CLOCK_MONOTONIC` at which its last thread exited (or it executed another
    /// program), in nanoseconds; 0 while it runs.
    pub ended_ns: AtomicU64,
    /// How its process ended, as `wait(2)` tells, plus 1; 0 if it did not.
    pub exit_code: AtomicU64,
    /// Process id in the initial namespace.
    pub tgid: AtomicU64,
    /// The kernel's own minor and major fault counters when counting began, of a
    /// process with one thread.
    pub faults_before: [AtomicU64; Metric::FAULTS.len()],
    /// The same of all threads that have exited: of the VM when it has ended.
    pub faults_at_end: [AtomicU64; Metric::FAULTS.len()],
    /// Faults counted, by [`Taker`].
    pub taken_by: [AtomicU64; Taker::COUNT],
    /// Attempts that ended in a retry which the thread did not wait for: KVM's, when
    /// it leaves the fault to a worker (`FAULT_FLAG_RETRY_NOWAIT`).
    pub not_waited: AtomicU64,
    /// By [`Loss`].
    pub lost: [AtomicU64; Loss::COUNT],
    /// Where swapped pages came from.
    pub swapin: Swapins,
    /// Pages of its cgroup that were handed to swap.
    pub swapped_out: AtomicU64,
    /// Where its guest's memory begins, in its address space, and ends; set by the
    /// loader.
    pub memory_start: AtomicU64,
    /// See [`Self::memory_start`].
    pub memory_end: AtomicU64,
    /// Pages of it that were given back one by one, as a balloon does.
    pub given_back: AtomicU64,
    /// Pages of it that were taken again likewise.
    pub taken_again: AtomicU64,
    /// Time of the faults that have completed, by [`Part`], in nanoseconds.
    pub parts_ns: [AtomicU64; Part::COUNT],
    /// Time of its windows of `stall.memory`, by [`Part`] of the faults in them, that of
    /// [`OUTSIDE_FAULTS`] and that of [`IN_BACKGROUND`], in nanoseconds.
    pub stall_ns: [AtomicU64; STALL_PARTS],
    /// The second of `CLOCK_MONOTONIC` in which its last slow fault ended.
    pub slow_second: AtomicU64,
    /// Slow faults in it.
    pub slow_in_second: AtomicU64,
    /// Chunks of its histograms.
    pub chunks: AtomicU64,
    /// `CLOCK_MONOTONIC` at which a vCPU of it first left the guest, in nanoseconds; [`NEVER_RAN`] before
    /// that, 0 if it was found later than at its start.
    pub first_run_ns: AtomicU64,
    /// Faults that completed in each of [`PHASES_NS`] after that, but not in the one before, by
    /// [`FaultBacking`] (0 where it is not known): how many, and their time in nanoseconds.
    pub starts: [[[AtomicU64; 2]; FaultBacking::COUNT + 1]; PHASES_NS.len()],
    /// How often KVM was told to drop a range of its memory, by [`Invalidator`].
    pub invalidated: [AtomicU64; Invalidator::COUNT],
    /// Places in the pool, plus 1, of the histograms of its faults: of minor ones and major
    /// ones of each [`FaultBacking`]; 0 while there was none.
    pub fault_places: [AtomicU64; FaultBacking::HISTOGRAMS],
}

/// In [`Vm::first_run_ns`]: it has not run yet.
pub const NEVER_RAN: u64 = 1;

/// How long the phases are by which the start of a VM is told.
pub const PHASES_NS: [u64; 3] = [100_000_000, 1_000_000_000, 10_000_000_000];

/// Numbers that swap devices can have: `MAX_SWAPFILES` is less on every kernel.
pub const SWAP_DEVICES_MAX: usize = 32;

/// Bits of the kernel's own entry of a swapped page below the number of its device
/// (`SWP_TYPE_SHIFT`, include/linux/swapops.h).
pub const SWAP_TYPE_AT: u32 = 58;
/// Bits of the place on the device that page tables have room for, on x86-64 and arm64.
const SWAP_OFFSET: u64 = (1 << 50) - 1;

/// How the page tables of an architecture keep an entry of a swapped page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwapEntry {
    /// Bits below the number of the device, which has five.
    pub type_at: u8,
    /// Bits below the place on it.
    pub offset_at: u8,
    /// Whether that is inverted.
    pub is_inverted: bool,
}

impl SwapEntry {
    /// x86-64 (`__swp_type` and `__swp_offset`, arch/x86/include/asm/pgtable_64.h; 6.1 to 7.3).
    pub const X86: Self = Self { type_at: 59, offset_at: 9, is_inverted: true };
    /// arm64 since Linux 6.10 (`__swp_type`, arch/arm64/include/asm/pgtable.h; 6.12).
    pub const ARM64: Self = Self { type_at: 6, offset_at: 12, is_inverted: false };
    /// arm64 before, which had no bit for the write protection of userfaultfd (6.1).
    pub const ARM64_OLD: Self = Self { type_at: 3, offset_at: 8, is_inverted: false };

    /// As one word.
    pub const fn pack(self) -> u32 {
        self.type_at as u32 | (self.offset_at as u32) << 8 | (self.is_inverted as u32) << 16
    }

    /// Out of that word.
    #[inline(always)]
    pub const fn unpack(word: u32) -> Self {
        Self { type_at: word as u8, offset_at: (word >> 8) as u8, is_inverted: word >> 16 != 0 }
    }

    /// The kernel's own entry (`pte_to_swp_entry`, include/linux/swapops.h).
    #[inline(always)]
    pub const fn read(self, entry: u64) -> u64 {
        let offset = if self.is_inverted { !entry } else { entry } >> (self.offset_at & 63);
        (entry >> (self.type_at & 63) & 31) << SWAP_TYPE_AT | (offset & SWAP_OFFSET)
    }
}

/// Where the pages of `swapin` came from, each counted in one place.
#[repr(C)]
pub struct Swapins {
    /// They were in the swap cache, or on their way: another thread had read them.
    pub from_cache: AtomicU64,
    /// Out of zswap.
    pub from_zswap: AtomicU64,
    /// Pages that `do_swap_page` was called for outside a fault, by khugepaged: not in
    /// `swapin`.
    pub without_fault: AtomicU64,
    /// Read from a device, by its number.
    pub from_device: [AtomicU64; SWAP_DEVICES_MAX],
}

/// A swap device by its number.
#[repr(C)]
pub struct SwapDevice {
    /// The name of its disk, ended by NUL, in words of eight bytes in memory order;
    /// the first is 0 while it is not known.
    pub name: [AtomicU64; 4],
}

impl Vm {
    /// Makes it a free slot.
    pub fn clear(&self) {
        zero(&[&self.mm, &self.start_boottime_ns, &self.tgid]);
        zero(&[&self.ended_ns, &self.exit_code]);
        zero(&self.faults_before);
        zero(&self.faults_at_end);
        zero(&self.taken_by);
        zero(&[&self.not_waited, &self.swapped_out]);
        zero(&[&self.memory_start, &self.memory_end, &self.given_back, &self.taken_again]);
        zero(&self.lost);
        zero(&self.parts_ns);
        zero(&self.stall_ns);
        zero(&[&self.first_run_ns]);
        self.starts.iter().flatten().for_each(|figures| zero(figures));
        zero(&self.invalidated);
        zero(&self.fault_places);
        zero(&[&self.slow_second, &self.slow_in_second, &self.chunks]);
        let swapin = &self.swapin;
        zero(&[&swapin.from_cache, &swapin.from_zswap, &swapin.without_fault]);
        zero(&swapin.from_device);
    }
}

const _: () = assert!(size_of::<Vm>() == 1368);

#[cfg(test)]
mod tests {
    use super::*;

    /// Each made as the kernel's `__swp_entry` makes it.
    #[test]
    fn an_entry_is_read_as_the_kernel_wrote_it() {
        let (device, offset) = (5_u64, 0x1_2345_6789_u64);
        let x86 = (!offset << 14 >> 5) | device << 59;
        for (how, entry) in [
            (SwapEntry::X86, x86),
            (SwapEntry::ARM64, device << 6 | offset << 12),
            // Exclusive, and write-protected by userfaultfd.
            (SwapEntry::ARM64, device << 6 | offset << 12 | 0b1100),
            (SwapEntry::ARM64_OLD, device << 3 | offset << 8 | 0b100),
        ] {
            let how = SwapEntry::unpack(how.pack());
            assert_eq!(how.read(entry), device << SWAP_TYPE_AT | offset, "{how:?}");
        }
    }
}
