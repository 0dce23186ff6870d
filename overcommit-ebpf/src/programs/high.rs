//! Time for which threads are held back because their memory cgroup holds more than its
//! `memory.high`: after the fault, on the way back to user mode or into the guest
//! (`mem_cgroup_handle_over_high`, mm/memcontrol.c). Reclaim within is part of it.

use crate::atomic::{get, set};
use crate::cpu::slot_of;
use crate::kernel::{Kernel, current_mm};
use crate::latency::record;
use crate::maps::{VMS, histogram, offset};
use crate::threads::{known_thread, thread_entry};
use aya_ebpf::helpers::{bpf_get_current_task, bpf_ktime_get_ns};
use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe};
use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext};
use overcommit_ebpf::layout::{IN_CALL, Metric};

#[fentry]
pub(crate) fn fentry_high(_ctx: FEntryContext) -> i32 {
    begin();
    0
}

#[kprobe]
pub(crate) fn kprobe_high(_ctx: ProbeContext) -> u32 {
    begin();
    0
}

#[fexit]
pub(crate) fn fexit_high(_ctx: FExitContext) -> i32 {
    end();
    0
}

#[kretprobe]
pub(crate) fn kretprobe_high(_ctx: RetProbeContext) -> u32 {
    end();
    0
}

#[inline(always)]
fn begin() {
    // Some kernels call the function where there is nothing to do.
    // SAFETY: the helper has no precondition.
    let task = Kernel(unsafe { bpf_get_current_task() });
    let over_high = offset!(task_over_high);
    if over_high != 0 && task.u32(over_high) == 0 {
        if let Some(thread) = known_thread() {
            set(&thread.high_since_ns, 0);
        }
        return;
    }
    let Some(slot) = slot_of(current_mm()) else { return };
    // A large charge is held back within the fault, whose time that is.
    if let Some(thread) = thread_entry(slot).filter(|thread| get(&thread.call) & IN_CALL == 0) {
        // SAFETY: the helper has no precondition.
        set(&thread.high_since_ns, unsafe { bpf_ktime_get_ns() });
    }
}

#[inline(always)]
fn end() {
    let Some(thread) = known_thread() else { return };
    let since = get(&thread.high_since_ns);
    if since == 0 {
        return;
    }
    set(&thread.high_since_ns, 0);
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(slot) = slot_of(current_mm()) else { return };
    if let (Some(vm), Some(histogram)) = (VMS.get(slot), histogram(slot, Metric::MemoryHigh)) {
        record(vm, histogram, now.saturating_sub(since));
    }
}
