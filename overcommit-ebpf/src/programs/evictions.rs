//! Who takes pages of whom? Reclaim hands a folio to swap, or drops it because its content
//! is on a disk already.

use crate::atomic::{add, get, set};
use crate::cpu::slot_of;
use crate::free::{self, FreeList};
use crate::kernel::{Kernel, current_mm};
use crate::maps::{
    CGROUPS, DROPPING, EVICTED, EVICTION_INDEX, EVICTIONS, EVICTIONS_AT, SEES_DROPS,
    TAKES_AGGRESSORS, VMS, WRITTEN, folio_offset, lose,
};
use crate::threads::known_thread;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe, raw_tracepoint};
use aya_ebpf::programs::{
    FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext,
};
use overcommit_ebpf::layout::{
    AggressorKind, Evicted, Eviction, EvictionKey, Loss, NOBODY, OWN_EVICTIONS, pack_aggressor,
};

/// Bits of `folio::memcg_data` that are no address: `__MEMCG_DATA_*`,
/// include/linux/memcontrol.h.
const FLAGS: u64 = 7;

/// On `mm_vmscan_write_folio` (`pageout`, mm/vmscan.c): reclaim by whomever writes a
/// folio out, to zswap too.
#[raw_tracepoint(tracepoint = "mm_vmscan_write_folio")]
pub(crate) fn swapout(ctx: RawTracePointContext) -> i32 {
    let folio = Kernel(ctx.arg(0));
    let victim = victim(folio);
    let pages = pages(folio);
    remember(swap_entry(folio), pages);
    if let Some(vm) = VMS.get(victim) {
        add(&vm.swapped_out, pages);
    }
    if let Some(index) = entry(victim)
        && let Some(eviction) = EVICTIONS.get(index)
    {
        add(&eviction.written_pages, pages);
        add(&eviction.written_folios, 1);
        note_full(index);
        if SEES_DROPS.load() != 0 {
            let _ = WRITTEN.insert(folio.0, 1, 0);
        }
    }
    0
}

/// The entry of a folio in the swap cache, if it is to be remembered; 0 of any other.
#[inline(always)]
fn swap_entry(folio: Kernel) -> u64 {
    if TAKES_AGGRESSORS.load() == 0 {
        return 0;
    }
    // A folio of a file has an address there, or nothing.
    let entry = folio.u64(folio_offset!(private));
    if entry >> 63 == 0 { entry } else { 0 }
}

/// Files by its swap entry on whose behalf a folio is evicted.
#[inline(always)]
fn remember(entry: u64, pages: u64) {
    if entry == 0 {
        return;
    }
    let (kind, by) = aggressor();
    let id = match kind {
        AggressorKind::Vm => VMS.get(by).map_or(0, |vm| get(&vm.tgid)) as u32,
        _ => by,
    };
    // SAFETY: the helper has no precondition.
    let at_ns = unsafe { bpf_ktime_get_ns() };
    let _ = EVICTED.insert(entry, Evicted { at_ns, aggressor: pack_aggressor(kind, id), pages }, 0);
}

/// Folios of swap have at most so many pages, as a power of two: huge pages.
const LARGEST: u32 = 9;

/// Who evicted the page of a swap entry, if that is known. The entries of a folio follow
/// each other, and the first one is a multiple of their number (`cluster_alloc_range`,
/// mm/swapfile.c).
#[inline(always)]
pub(crate) fn aggressor_of(entry: u64) -> u64 {
    let (mut aggressor, mut newest) = (0, 0);
    for order in 0..=LARGEST {
        let first = entry >> order << order;
        // SAFETY: a mix of two folios' words names one of their aggressors.
        if let Some(folio) = unsafe { EVICTED.get(first) }
            && entry - first < folio.pages
            && folio.at_ns > newest
        {
            (aggressor, newest) = (folio.aggressor, folio.at_ns);
        }
    }
    aggressor
}

#[fentry]
pub(crate) fn fentry_drop(ctx: FEntryContext) -> i32 {
    begin_drop(ctx.arg(1), ctx.arg::<u64>(2) as u8);
    0
}

#[kprobe]
pub(crate) fn kprobe_drop(ctx: ProbeContext) -> u32 {
    begin_drop(ctx.arg(1).unwrap_or(0), ctx.arg::<u64>(2).unwrap_or(0) as u8);
    0
}

#[fexit]
pub(crate) fn fexit_drop(ctx: FExitContext) -> i32 {
    end_drop(ctx.ret::<u64>().is_ok_and(|returned| returned as u32 == 1));
    0
}

#[kretprobe]
pub(crate) fn kretprobe_drop(ctx: RetProbeContext) -> u32 {
    end_drop(ctx.ret::<u64>() as u32 == 1);
    0
}

/// At the entry of `__remove_mapping` (mm/vmscan.c): by its return the folio may have
/// lost its owner. It is called for other ends too, then without `reclaimed`.
#[inline(always)]
fn begin_drop(folio: u64, reclaimed: u8) {
    if reclaimed == 0 {
        return;
    }
    let victim = victim(Kernel(folio));
    let Some(index) = entry(victim) else { return };
    let tid = bpf_get_current_pid_tgid() as u32;
    let counted = u64::from(index) << 32 | pages(Kernel(folio));
    let _ = DROPPING.insert(tid, [folio, counted, swap_entry(Kernel(folio))], 0);
}

#[inline(always)]
fn end_drop(is_dropped: bool) {
    let tid = bpf_get_current_pid_tgid() as u32;
    // SAFETY: the thread's own, and nobody else changes it.
    let Some([folio, counted, swap_entry]) = (unsafe { DROPPING.get(tid) }).copied() else {
        return;
    };
    let _ = DROPPING.remove(tid);
    let (index, pages) = ((counted >> 32) as u32, counted & 0xffff_ffff);
    if !is_dropped {
        return;
    }
    remember(swap_entry, pages);
    // One that was written is counted already.
    if WRITTEN.remove(folio).is_ok() {
        return;
    }
    if let Some(eviction) = EVICTIONS.get(index) {
        add(&eviction.dropped_pages, pages);
        add(&eviction.dropped_folios, 1);
        note_full(index);
    }
}

/// Slot of the VM whose cgroup the folio is charged to.
#[inline(always)]
fn victim(folio: Kernel) -> u32 {
    let owner = Kernel(folio.u64(folio_offset!(memcg_data)) & !FLAGS);
    // A mem_cgroup up to Linux 6.x, an obj_cgroup in 7.3. Taken for the other one it
    // leads to no cgroup that is looked for.
    slot(owner).or_else(|| slot(owner.pointer(folio_offset!(objcg_memcg)))).unwrap_or(NOBODY)
}

/// The slot of the VM that a memory cgroup is of.
#[inline(always)]
fn slot(memcg: Kernel) -> Option<u32> {
    let node = memcg.pointer(folio_offset!(memcg_cgroup)).pointer(folio_offset!(cgroup_kn));
    let id = node.u64(folio_offset!(kn_id));
    // SAFETY: entries are only read and written as whole words.
    unsafe { CGROUPS.get(id) }.copied()
}

#[inline(always)]
fn pages(folio: Kernel) -> u64 {
    let is_large = folio.u64(folio_offset!(flags)) >> folio_offset!(head_bit) & 1 == 1;
    u64::from(if is_large { folio.u32(folio_offset!(pages)) } else { 1 })
}

/// On whose behalf the current thread reclaims.
#[inline(always)]
fn aggressor() -> (AggressorKind, u32) {
    // A worker that fills a VM's memory is in a fault of it.
    if let Some(thread) = known_thread()
        && get(&thread.since_ns) != 0
    {
        return (AggressorKind::Vm, get(&thread.vm) as u32);
    }
    let id = bpf_get_current_pid_tgid();
    let mm = current_mm();
    if mm == 0 {
        let comm = bpf_get_current_comm().unwrap_or_default();
        let by = if comm.starts_with(b"kworker") { 0 } else { id as u32 };
        return (AggressorKind::Kernel, by);
    }
    match slot_of(mm) {
        Some(slot) => (AggressorKind::Vm, slot),
        None => (AggressorKind::Process, (id >> 32) as u32),
    }
}

/// The entry of the matrix for this victim and the current thread; none where neither
/// is a VM.
#[inline(always)]
fn entry(victim: u32) -> Option<u32> {
    let (kind, by) = aggressor();
    let key = EvictionKey { victim, kind: kind as u32, by, reserved: 0 };
    if victim == NOBODY {
        return if kind == AggressorKind::Vm { own(by, 1, key) } else { None };
    }
    // SAFETY: entries are only read and written as whole words.
    if let Some(index) = unsafe { EVICTION_INDEX.get(key) } {
        return Some(*index);
    }
    let Some(index) = free::take(FreeList::Evictions) else {
        let key = EvictionKey { kind: AggressorKind::Others as u32, by: 0, ..key };
        return own(victim, 0, key);
    };
    // Another CPU may have been first.
    if EVICTION_INDEX.insert(key, index, u64::from(BPF_NOEXIST)).is_err() {
        free::give_back(FreeList::Evictions, index);
        // SAFETY: as above.
        return unsafe { EVICTION_INDEX.get(key) }.copied();
    }
    mark(EVICTIONS.get(index)?, key);
    Some(index)
}

/// Names the loss where an eviction was counted for others.
#[inline(always)]
fn note_full(index: u32) {
    if let Some(place) = index.checked_sub(EVICTIONS_AT.load())
        && place % OWN_EVICTIONS == 0
        && let Some(vm) = VMS.get(place / OWN_EVICTIONS)
    {
        lose(vm, Loss::EvictionsFull);
    }
}

/// One of the entries that a slot has of its own.
#[inline(always)]
fn own(slot: u32, place: u32, key: EvictionKey) -> Option<u32> {
    let index = EVICTIONS_AT.load() + slot * OWN_EVICTIONS + place;
    let eviction = EVICTIONS.get(index)?;
    if get(&eviction.by) == 0 {
        mark(eviction, key);
    }
    Some(index)
}

/// Says in an entry whose it is.
#[inline(always)]
fn mark(eviction: &Eviction, key: EvictionKey) {
    let comm = bpf_get_current_comm().unwrap_or_default();
    let (first, second) = comm.split_at(8);
    let word = |bytes: &[u8]| <[u8; 8]>::try_from(bytes).map_or(0, u64::from_ne_bytes);
    set(&eviction.name[0], word(first));
    set(&eviction.name[1], word(second));
    set(&eviction.victim_kind, u64::from(key.victim) << 32 | u64::from(key.kind));
    set(&eviction.by, u64::from(key.by) + 1);
}
