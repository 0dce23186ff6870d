//! Backend `perf`: page faults by perf's software events.

use crate::atomic::{get, set};
use crate::cpu::{slot_on, this_cpu};
use crate::kernel::current_mm;
use crate::latency::complete;
use crate::maps::{VMS, lose};
use crate::threads::{entry_on, known_on, ran, start};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::perf_event;
use aya_ebpf::programs::PerfEventContext;
use overcommit_ebpf::layout::{Cpu, HotProgram, Loss, Metric};

/// On `PERF_COUNT_SW_PAGE_FAULTS`: the architecture's fault handler has begun
/// (`do_user_addr_fault`, after its `faulthandler_disabled` check).
#[perf_event]
pub(crate) fn fault_start(ctx: PerfEventContext) -> u32 {
    let Some(cpu) = this_cpu() else { return 0 };
    ran(cpu, HotProgram::FaultStart);
    begin(cpu, address(&ctx));
    0
}

/// On `PERF_COUNT_SW_PAGE_FAULTS_MIN`: `mm_account_fault` has completed one.
#[perf_event]
pub(crate) fn fault_minor(ctx: PerfEventContext) -> u32 {
    let Some(cpu) = this_cpu() else { return 0 };
    ran(cpu, HotProgram::FaultMinor);
    finish(cpu, Metric::FaultMinor, address(&ctx));
    0
}

/// On `PERF_COUNT_SW_PAGE_FAULTS_MAJ`: the same for a major fault.
#[perf_event]
pub(crate) fn fault_major(ctx: PerfEventContext) -> u32 {
    let Some(cpu) = this_cpu() else { return 0 };
    ran(cpu, HotProgram::FaultMajor);
    finish(cpu, Metric::FaultMajor, address(&ctx));
    0
}

#[inline(always)]
fn address(ctx: &PerfEventContext) -> u64 {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.ctx).addr }
}

#[inline(always)]
fn begin(cpu: &Cpu, address: u64) {
    let mm = current_mm();
    let Some(slot) = slot_on(cpu, mm) else { return };
    let Some(vm) = VMS.get(slot) else { return };
    let Some(thread) = entry_on(cpu, slot) else {
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
fn finish(cpu: &Cpu, metric: Metric, address: u64) {
    let Some(slot) = slot_on(cpu, current_mm()) else { return };
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(vm) = VMS.get(slot) else { return };
    let Some(thread) = known_on(cpu) else {
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
