//! Time that threads spend in taking memory away from others, or from themselves, because
//! they need some and nobody has freed it in time: direct reclaim where the host runs
//! short, memory cgroup reclaim at a limit, and that of their own node where another would have some
//! (`try_to_free_pages`, `try_to_free_mem_cgroup_pages` and `__node_reclaim`, mm/vmscan.c, 6.1 to
//! 7.3). One never runs within another.

use crate::atomic::{get, set};
use crate::cpu::slot_of;
use crate::kernel::current_mm;
use crate::latency::record;
use crate::maps::{VMS, histogram};
use crate::parts;
use crate::threads::{known_thread, thread_entry};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use overcommit_ebpf::layout::{Metric, Part, Thread};

#[raw_tracepoint(tracepoint = "mm_vmscan_direct_reclaim_begin")]
pub(crate) fn direct_reclaim_begin(_ctx: RawTracePointContext) -> i32 {
    begin();
    0
}

#[raw_tracepoint(tracepoint = "mm_vmscan_direct_reclaim_end")]
pub(crate) fn direct_reclaim_end(_ctx: RawTracePointContext) -> i32 {
    end();
    0
}

#[raw_tracepoint(tracepoint = "mm_vmscan_memcg_reclaim_begin")]
pub(crate) fn memcg_reclaim_begin(_ctx: RawTracePointContext) -> i32 {
    begin();
    0
}

#[raw_tracepoint(tracepoint = "mm_vmscan_memcg_reclaim_end")]
pub(crate) fn memcg_reclaim_end(_ctx: RawTracePointContext) -> i32 {
    end();
    0
}

#[raw_tracepoint(tracepoint = "mm_vmscan_node_reclaim_begin")]
pub(crate) fn node_reclaim_begin(_ctx: RawTracePointContext) -> i32 {
    begin();
    0
}

#[raw_tracepoint(tracepoint = "mm_vmscan_node_reclaim_end")]
pub(crate) fn node_reclaim_end(_ctx: RawTracePointContext) -> i32 {
    end();
    0
}

#[inline(always)]
fn begin() {
    if let Some((thread, _)) = served() {
        // SAFETY: the helper has no precondition.
        set(&thread.reclaim_since_ns, unsafe { bpf_ktime_get_ns() });
        // Outside a fault it is nobody's part: memory.high makes a thread reclaim on its way
        // back to user mode.
        parts::enter(thread, Part::Reclaim);
    }
}

#[inline(always)]
fn end() {
    let Some((thread, slot)) = served() else { return };
    parts::leave(thread, Part::Reclaim);
    let since = get(&thread.reclaim_since_ns);
    set(&thread.reclaim_since_ns, 0);
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    if since == 0 || now < since {
        return;
    }
    if let (Some(vm), Some(histogram)) = (VMS.get(slot), histogram(slot, Metric::Reclaim)) {
        record(vm, histogram, now - since);
    }
}

/// On `mm_compaction_begin` and `…_end` (`compact_zone`, mm/compaction.c): a thread of ours
/// compacts where it needs a large page.
#[raw_tracepoint(tracepoint = "mm_compaction_begin")]
pub(crate) fn compaction_begin(_ctx: RawTracePointContext) -> i32 {
    if let Some(thread) = known_thread() {
        parts::enter(thread, Part::Compaction);
    }
    0
}

#[raw_tracepoint(tracepoint = "mm_compaction_end")]
pub(crate) fn compaction_end(_ctx: RawTracePointContext) -> i32 {
    if let Some(thread) = known_thread() {
        parts::leave(thread, Part::Compaction);
    }
    0
}

/// The current thread, and the VM for which it works: the one in whose memory it has a
/// fault open, else its own.
#[inline(always)]
fn served() -> Option<(&'static Thread, u32)> {
    if let Some(thread) = known_thread()
        && get(&thread.since_ns) != 0
    {
        return Some((thread, get(&thread.vm) as u32));
    }
    let slot = slot_of(current_mm())?;
    Some((thread_entry(slot)?, slot))
}
