//! Backend `perf`: page faults by perf's software events.

use crate::atomic::{get, set};
use crate::cpu::slot_of;
use crate::kernel::current_mm;
use crate::latency::complete;
use crate::maps::{VMS, lose};
use crate::threads::{known_thread, ran, start, thread_entry};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::perf_event;
use aya_ebpf::programs::PerfEventContext;
use overcommit_ebpf::layout::{HotProgram, Loss, Metric};

/// On `PERF_COUNT_SW_PAGE_FAULTS`: the architecture's fault handler has begun
/// (`do_user_addr_fault`, after its `faulthandler_disabled` check).
#[perf_event]
pub(crate) fn fault_start(ctx: PerfEventContext) -> u32 {
    ran(HotProgram::FaultStart);
    begin(address(&ctx));
    0
}

/// On `PERF_COUNT_SW_PAGE_FAULTS_MIN`: `mm_account_fault` has completed one.
#[perf_event]
pub(crate) fn fault_minor(ctx: PerfEventContext) -> u32 {
    ran(HotProgram::FaultMinor);
    finish(Metric::FaultMinor, address(&ctx));
    0
}

/// On `PERF_COUNT_SW_PAGE_FAULTS_MAJ`: the same for a major fault.
#[perf_event]
pub(crate) fn fault_major(ctx: PerfEventContext) -> u32 {
    ran(HotProgram::FaultMajor);
    finish(Metric::FaultMajor, address(&ctx));
    0
}

#[inline(always)]
fn address(ctx: &PerfEventContext) -> u64 {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.ctx).addr }
}

#[inline(always)]
fn begin(address: u64) {
    let mm = current_mm();
    let Some(slot) = slot_of(mm) else { return };
    let Some(vm) = VMS.get(slot) else { return };
    let Some(thread) = thread_entry(slot) else {
        lose(vm, Loss::ThreadsFull);
        return;
    };
    if get(&thread.since_ns) != 0 {
        lose(vm, Loss::StartWithoutEnd);
    }
    set(&thread.mm, mm);
    start(thread, slot, address);
}

#[inline(always)]
fn finish(metric: Metric, address: u64) {
    let Some(slot) = slot_of(current_mm()) else { return };
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(vm) = VMS.get(slot) else { return };
    let Some(thread) = known_thread() else {
        lose(vm, Loss::EndWithoutStart);
        return;
    };
    let since = get(&thread.since_ns);
    if since == 0 {
        lose(vm, Loss::EndWithoutStart);
        return;
    }
    // A fault nested in this one took its place and did not complete.
    if (get(&thread.address) ^ address) >> 12 != 0 {
        set(&thread.since_ns, 0);
        lose(vm, Loss::StartWithoutEnd);
        lose(vm, Loss::EndWithoutStart);
        return;
    }
    complete(vm, slot, thread, metric, now);
}
