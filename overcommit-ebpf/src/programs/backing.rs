//! Backends `fentry` and `kprobe`: what a fault took.
//!
//! The area tells at the fault's first call what it is of, and functions that the fault
//! goes through on its way tell what it really takes: `do_swap_page` (see `swapin`),
//! `handle_userfault` (fs/userfaultfd.c), `task_numa_fault` (kernel/sched/fair.c), and
//! `do_wp_page` (mm/memory.c), where a page that is there may not be written.

use crate::atomic::{get, set};
use crate::kernel::Structure;
use crate::maps::{histogram, lose, offset};
use crate::threads::known_thread;
use crate::{parts, pool};
use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe};
use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext};
use overcommit_ebpf::layout::{
    FaultBacking, Histogram, IN_CALL, Loss, Metric, Part, Thread, Vm, fault_key,
};

/// `VM_SHARED` and `VM_HUGETLB`, include/linux/mm.h; the same from 6.1 to 7.3.
const SHARED: u64 = 0x8;
const HUGETLB: u64 = 0x40_0000;
/// `FAULT_FLAG_WRITE`, include/linux/mm_types.h; the same from 6.1 to 7.3.
const WRITE: u64 = 0x1;
/// `TMPFS_MAGIC`, include/uapi/linux/magic.h.
const TMPFS: u64 = 0x0102_1994;

#[fentry]
pub(crate) fn fentry_userfault(_ctx: FEntryContext) -> i32 {
    begins_to_wait();
    0
}

#[kprobe]
pub(crate) fn kprobe_userfault(_ctx: ProbeContext) -> u32 {
    begins_to_wait();
    0
}

#[fexit]
pub(crate) fn fexit_userfault(_ctx: FExitContext) -> i32 {
    has_waited();
    0
}

#[kretprobe]
pub(crate) fn kretprobe_userfault(_ctx: RetProbeContext) -> u32 {
    has_waited();
    0
}

#[fentry]
pub(crate) fn fentry_numa(_ctx: FEntryContext) -> i32 {
    passes(FaultBacking::Numa);
    0
}

#[kprobe]
pub(crate) fn kprobe_numa(_ctx: ProbeContext) -> u32 {
    passes(FaultBacking::Numa);
    0
}

#[fentry]
pub(crate) fn fentry_write(_ctx: FEntryContext) -> i32 {
    passes(FaultBacking::Cow);
    0
}

#[kprobe]
pub(crate) fn kprobe_write(_ctx: ProbeContext) -> u32 {
    passes(FaultBacking::Cow);
    0
}

#[inline(always)]
fn begins_to_wait() {
    passes(FaultBacking::Userfault);
    if let Some(thread) = known_thread() {
        parts::enter(thread, Part::Userfault);
    }
}

#[inline(always)]
fn has_waited() {
    if let Some(thread) = known_thread() {
        parts::leave(thread, Part::Userfault);
    }
}

/// What a fault in an area takes if nothing else is seen.
#[inline(always)]
pub(crate) fn of_area(area: impl Structure, fault_flags: u64) -> FaultBacking {
    let flags = area.word(offset!(vma_flags));
    if flags & HUGETLB != 0 {
        return FaultBacking::Hugetlb;
    }
    let file = area.follow(offset!(vma_file));
    if file.is_null() {
        return FaultBacking::Anon;
    }
    if fault_flags & WRITE != 0 && flags & SHARED == 0 {
        return FaultBacking::Cow;
    }
    // The file itself may be a node in /dev, which is a tmpfs.
    let content = file.follow(offset!(file_mapping)).follow(offset!(mapping_host));
    let volume = content.follow(offset!(inode_sb));
    if volume.word(offset!(sb_magic)) == TMPFS { FaultBacking::Shmem } else { FaultBacking::File }
}

/// The current thread's fault, if it is in one of a VM, goes through that.
#[inline(always)]
fn passes(backing: FaultBacking) {
    if let Some(thread) = known_thread()
        && get(&thread.call) & IN_CALL != 0
    {
        takes(thread, backing);
    }
}

/// The thread's fault takes that, unless it takes something that counts for more.
#[inline(always)]
pub(crate) fn takes(thread: &Thread, backing: FaultBacking) {
    let before = get(&thread.backing);
    // What is shared is written where it is.
    let is_copy = backing != FaultBacking::Cow || before == FaultBacking::Anon as u64;
    if is_copy && before < backing as u64 {
        set(&thread.backing, backing as u64);
    }
}

/// The histogram of a fault: of its kind if the backend tells, else of the metric alone.
#[inline(always)]
pub(crate) fn histogram_of(
    vm: &Vm,
    slot: u32,
    thread: &Thread,
    metric: Metric,
) -> Option<&'static Histogram> {
    let Some(kind) = get(&thread.backing).checked_sub(1) else {
        return histogram(slot, metric);
    };
    let is_major = metric as u64 == Metric::FaultMajor as u64;
    let number = kind << 1 | u64::from(is_major);
    let place = vm.fault_places.get(number as usize)?;
    let mut known = get(place);
    if known == 0 {
        let Some(taken) = pool::place(slot, fault_key(number as u32)) else {
            lose(vm, Loss::BackingFull);
            return histogram(slot, metric);
        };
        known = u64::from(taken) + 1;
        set(place, known);
    }
    pool::histogram(known as u32 - 1)
}
