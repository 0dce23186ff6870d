//! Backends `fentry` and `kprobe`: the part of a fault that waits for a page that was
//! swapped out.
//!
//! Anonymous memory comes back in `do_swap_page` (mm/memory.c), shared memory in
//! `shmem_swapin_folio` (mm/shmem.c). Either may be called again within one fault: the
//! wait lasts from the first entry to the last return. Which device the page came from
//! stands in the entry that the page table keeps in its place.

use crate::atomic::{add, get, replace, set};
use crate::backing;
use crate::cpu::slot_of;
use crate::evictions::aggressor_of;
use crate::kernel::Kernel;
use crate::latency::record;
use crate::maps::{
    ATTEMPTS, NR_SWAPFILES_AT, SWAP_DEVICES, SWAP_ENTRY, SWAP_INFO_AT, TAKES_AGGRESSORS, VMS,
    ZSWAP_LOADED, histogram, offset,
};
use crate::parts;
use crate::threads::known_thread;
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel_str_bytes};
use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe};
use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext};
use overcommit_ebpf::layout::{
    FaultBacking, IN_CALL, Metric, Part, SWAP_DEVICES_MAX, SWAP_TYPE_AT, SwapEntry, Thread,
};

/// In [`Thread::swapin`]: a wait is open. Its low byte is the number of the device.
const OPEN: u64 = 1 << 8;
/// The thread itself read the page.
const READ: u64 = 1 << 9;
/// It came out of zswap.
const ZSWAP: u64 = 1 << 10;

/// The least `MAX_SWAPFILES`, of a kernel with all other kinds of entries (include/linux/swap.h, 6.1), for one that does
/// not say how many devices there are.
const MAX_SWAPFILES: u32 = 22;

/// `VM_FAULT_RETRY`: `do_swap_page` will be called again.
const RETRY: u64 = 0x400;

#[fentry]
pub(crate) fn fentry_swap(ctx: FEntryContext) -> i32 {
    enter_anonymous(ctx.arg::<u64>(0));
    0
}

#[kprobe]
pub(crate) fn kprobe_swap(ctx: ProbeContext) -> u32 {
    enter_anonymous(ctx.arg(0).unwrap_or(0));
    0
}

#[fexit]
pub(crate) fn fexit_swap(ctx: FExitContext) -> i32 {
    leave(ctx.ret::<u64>().is_ok_and(|returned| returned & RETRY == 0));
    0
}

#[kretprobe]
pub(crate) fn kretprobe_swap(ctx: RetProbeContext) -> u32 {
    leave(ctx.ret::<u64>() & RETRY == 0);
    0
}

#[fentry]
pub(crate) fn fentry_shared_swap(ctx: FEntryContext) -> i32 {
    enter_shared(ctx.arg::<u64>(2));
    0
}

#[kprobe]
pub(crate) fn kprobe_shared_swap(ctx: ProbeContext) -> u32 {
    enter_shared(ctx.arg(2).unwrap_or(0));
    0
}

#[fexit]
pub(crate) fn fexit_shared_swap(ctx: FExitContext) -> i32 {
    leave(ctx.ret::<u64>().is_ok_and(|returned| returned as u32 == 0));
    0
}

#[kretprobe]
pub(crate) fn kretprobe_shared_swap(ctx: RetProbeContext) -> u32 {
    leave(ctx.ret::<u64>() as u32 == 0);
    0
}

/// At the function that reads a swapped page, whatever it is called with.
#[fentry]
pub(crate) fn fentry_swap_read(_ctx: FEntryContext) -> i32 {
    mark(READ);
    0
}

#[kprobe]
pub(crate) fn kprobe_swap_read(_ctx: ProbeContext) -> u32 {
    mark(READ);
    0
}

#[fexit]
pub(crate) fn fexit_zswap(ctx: FExitContext) -> i32 {
    if ctx.ret::<u64>().is_ok_and(is_loaded) {
        mark(ZSWAP);
    }
    0
}

#[kretprobe]
pub(crate) fn kretprobe_zswap(ctx: RetProbeContext) -> u32 {
    if is_loaded(ctx.ret()) {
        mark(ZSWAP);
    }
    0
}

/// zswap_load gives `true` on some kernels and 0 on others.
#[inline(always)]
fn is_loaded(returned: u64) -> bool {
    let loaded = ZSWAP_LOADED.load();
    if loaded == 0 { returned as u32 == 0 } else { returned as u8 == loaded }
}

#[inline(always)]
fn enter_anonymous(fault: u64) {
    // The entry is looked at first: the function overwrites it.
    let entry = Kernel(fault).u64(offset!(fault_orig_pte));
    let entry = SwapEntry::unpack(SWAP_ENTRY.load()).read(entry);
    let Some(device) = device(entry) else { return };
    if !enter(device, entry) {
        let mm = Kernel(fault).pointer(offset!(fault_vma)).u64(offset!(vma_mm));
        if let Some(vm) = slot_of(mm).and_then(|slot| VMS.get(slot)) {
            // khugepaged: nobody waits.
            add(&vm.swapin.without_fault, 1);
        }
    }
}

#[inline(always)]
fn enter_shared(folio: u64) {
    // `radix_to_swp_entry`, include/linux/swapops.h.
    let entry = Kernel(folio).u64(0) >> 1;
    if let Some(device) = device(entry) {
        enter(device, entry);
    }
}

/// The device of one of the kernel's own entries; `None` if it is an entry of another kind, such as a
/// page that is being migrated.
#[inline(always)]
fn device(entry: u64) -> Option<u64> {
    let number = entry >> SWAP_TYPE_AT;
    let known = NR_SWAPFILES_AT.load();
    let devices = if known == 0 { MAX_SWAPFILES } else { Kernel(known).u32(0) };
    (number < u64::from(devices)).then_some(number)
}

/// Whether the thread is in a fault of a VM.
#[inline(always)]
fn enter(device: u64, entry: u64) -> bool {
    let Some(thread) = known_thread() else { return false };
    if get(&thread.call) & IN_CALL == 0 {
        return false;
    }
    if !parts::is_in(thread, Some(Part::Swapin)) {
        parts::enter(thread, Part::Swapin);
    }
    if get(&thread.swapin) & OPEN == 0 {
        // SAFETY: the helper has no precondition.
        set(&thread.swapin_since_ns, unsafe { bpf_ktime_get_ns() });
        set(&thread.swapin, device | OPEN | begun_before(thread));
        if TAKES_AGGRESSORS.load() != 0 {
            set(&thread.aggressor, aggressor_of(entry));
        }
        backing::takes(thread, FaultBacking::Swap);
    }
    true
}

#[inline(always)]
fn mark(bit: u64) {
    if let Some(thread) = known_thread() {
        let swapin = get(&thread.swapin);
        if swapin & OPEN != 0 {
            set(&thread.swapin, swapin | bit);
        }
    }
}

#[inline(always)]
fn leave(done: bool) {
    let Some(thread) = known_thread() else { return };
    if get(&thread.swapin) & OPEN == 0 {
        return;
    }
    parts::leave(thread, Part::Swapin);
    // SAFETY: the helper has no precondition.
    set(&thread.swapin_until_ns, unsafe { bpf_ktime_get_ns() });
    if done {
        finish(thread);
    }
}

/// Counts the wait of a fault that has completed, if it is still open.
#[inline(always)]
pub(crate) fn finish(thread: &Thread) {
    let swapin = get(&thread.swapin);
    set(&thread.swapin, 0);
    if swapin & OPEN == 0 {
        return;
    }
    let slot = get(&thread.vm) as u32;
    let Some(vm) = VMS.get(slot) else { return };
    let since = get(&thread.swapin_since_ns);
    let latency = get(&thread.swapin_until_ns).saturating_sub(since);
    if let Some(histogram) = histogram(slot, Metric::Swapin) {
        record(vm, histogram, latency);
    }
    let number = (swapin & (SWAP_DEVICES_MAX as u64 - 1)) as usize;
    if swapin & ZSWAP != 0 {
        add(&vm.swapin.from_zswap, 1);
    } else if swapin & READ == 0 {
        add(&vm.swapin.from_cache, 1);
    } else if let Some(count) = vm.swapin.from_device.get(number) {
        add(count, 1);
        set(&thread.swap_device, number as u64 + 1);
        name_device(number as u32);
    }
}

/// Forgets the wait of a fault that will not complete.
#[inline(always)]
pub(crate) fn forget(thread: &Thread) {
    set(&thread.swapin, 0);
}

/// A call that does not wait has come back: KVM's first for each page is one (`hva_to_pfn`,
/// virt/kvm/kvm_main.c). It began to read the page (`do_swap_page`), which a worker or the vCPU's
/// next call only waits for.
#[inline(always)]
pub(crate) fn keep_attempt(thread: &Thread) {
    let read = get(&thread.swapin) & (READ | ZSWAP);
    if read != 0 {
        let _ = ATTEMPTS.insert(page_of(thread), read, 0);
    }
    forget(thread);
}

/// How the page is read that the fault waits for, if a call before it has begun that.
#[inline(always)]
fn begun_before(thread: &Thread) -> u64 {
    let page = page_of(thread);
    // SAFETY: entries are only read and written as whole words.
    let Some(read) = (unsafe { ATTEMPTS.get(page) }).copied() else { return 0 };
    let _ = ATTEMPTS.remove(page);
    read
}

/// The page of the fault that the thread is in: its `mm` and number.
#[inline(always)]
fn page_of(thread: &Thread) -> [u64; 2] {
    [get(&thread.mm), get(&thread.address) >> 12]
}

/// Writes down what the device is called, once: the loader empties the entry from
/// time to time, for swapoff gives numbers back.
#[inline(always)]
fn name_device(number: u32) {
    let Some(device) = SWAP_DEVICES.get(number) else { return };
    let table = SWAP_INFO_AT.load();
    if table == 0 || get(&device.name[0]) != 0 {
        return;
    }
    let disk = Kernel(table + u64::from(number) * 8)
        .pointer(0)
        .pointer(offset!(swap_info_bdev))
        .pointer(offset!(bdev_disk));
    let mut name = [0u64; 4];
    let bytes = name.as_mut_ptr().cast::<[u8; 32]>();
    let source = (disk.0 + u64::from(offset!(disk_name))) as *const u8;
    // SAFETY: the buffer has 32 bytes; the helper checks the address.
    if unsafe { bpf_probe_read_kernel_str_bytes(source, &mut *bytes) }.is_ok() {
        set(&device.name[3], name[3]);
        set(&device.name[2], name[2]);
        set(&device.name[1], name[1]);
        // Last, in any CPU's eyes: it says that the others are there.
        let _ = replace(&device.name[0], 0, name[0]);
    }
}
