//! The latency of page faults, for every backend that sees a start and an end.

use crate::atomic::{add, get, replace, set};
use crate::kernel::{current_mm, in_kvm_run};
use crate::maps::{CPUS, FREE_THREADS, MMS, SLOW, SLOW_NS, THREADS, TIDS, VMS, histogram, lose};
use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_ns,
};
use aya_ebpf::macros::perf_event;
use aya_ebpf::programs::PerfEventContext;
use overcommit_ebpf::bucket;
use overcommit_ebpf::layout::{Histogram, HotProgram, Loss, Metric, SlowFault, Thread, Vm};

/// How often a lost race for the maximum is tried again. A reader bounds the
/// maximum by the last bucket in use, so giving up costs 1/128 at worst.
const MAX_TRIES: u32 = 8;

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

/// Counts the run, so that the loader can tell how often the kernel skipped the
/// program (`bpf_prog_active` held on this CPU).
#[inline(always)]
fn ran(program: HotProgram) {
    // SAFETY: the helper has no precondition.
    let cpu = unsafe { bpf_get_smp_processor_id() } as u32;
    if let Some(cpu) = CPUS.get(cpu) {
        let runs = &cpu.runs[program as usize];
        // No other program of ours can run on this CPU meanwhile.
        set(runs, get(runs) + 1);
    }
}

#[inline(always)]
fn begin(address: u64) {
    // SAFETY: entries are only read and written as whole words.
    let Some(slot) = (unsafe { MMS.get(current_mm()) }) else {
        return;
    };
    let Some(vm) = VMS.get(*slot) else { return };
    let Some(thread) = thread_entry(*slot) else {
        lose(vm, Loss::ThreadsFull);
        return;
    };
    if get(&thread.since_ns) != 0 {
        lose(vm, Loss::StartWithoutEnd);
    }
    if get(&thread.in_kvm_run) == 0 && in_kvm_run() {
        set(&thread.in_kvm_run, 1);
    }
    set(&thread.vm, u64::from(*slot));
    set(&thread.address, address);
    // SAFETY: the helper has no precondition.
    set(&thread.since_ns, unsafe { bpf_ktime_get_ns() });
}

#[inline(always)]
fn finish(metric: Metric, address: u64) {
    // SAFETY: as in `begin`.
    let Some(slot) = (unsafe { MMS.get(current_mm()) }) else {
        return;
    };
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(vm) = VMS.get(*slot) else { return };
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
    // The clock that programs may read is not strictly monotonic across CPUs
    // (ktime_get_mono_fast_ns, kernel/time/timekeeping.c).
    let Some(latency) = now.checked_sub(since) else {
        set(&thread.since_ns, 0);
        lose(vm, Loss::ClockBehind);
        return;
    };
    close(thread, latency);
    if let Some(histogram) = histogram(*slot, metric) {
        record(histogram, latency);
    }
    if get(&thread.id) >> 32 != get(&vm.tgid) {
        add(&vm.faults_by_others[metric as usize], 1);
    }
    if latency >= SLOW_NS.load() {
        send(vm, *slot, metric, thread, now, latency);
    }
}

/// Ends the thread's wait, so that a reader never sees it both open and added.
#[inline(always)]
fn close(thread: &Thread, latency: u64) {
    add(&thread.sequence, 1);
    set(&thread.since_ns, 0);
    let waited = get(&thread.waited_ns) + latency;
    set(&thread.waited_ns, waited);
    add(&thread.sequence, 1);
}

#[inline(always)]
fn record(histogram: &Histogram, latency: u64) {
    add(&histogram.sum_ns, latency);
    let mut max = get(&histogram.max_ns);
    let mut tries = 0;
    while latency > max && tries < MAX_TRIES {
        match replace(&histogram.max_ns, max, latency) {
            Ok(()) => break,
            Err(longer) => max = longer,
        }
        tries += 1;
    }
    if latency > bucket::MAX_NS {
        add(&histogram.over_range, 1);
    }
    if let Some(bucket) = histogram.buckets.get(bucket::index(latency)) {
        add(bucket, 1);
    }
}

#[inline(always)]
fn send(vm: &Vm, slot: u32, metric: Metric, thread: &Thread, end_ns: u64, latency_ns: u64) {
    let Some(mut entry) = SLOW.reserve::<SlowFault>(0) else {
        lose(vm, Loss::SlowDropped);
        return;
    };
    entry.write(SlowFault {
        end_ns,
        latency_ns,
        address: get(&thread.address),
        vm_tgid: get(&vm.tgid) as u32,
        vm: slot,
        tid: get(&thread.id) as u32,
        metric: metric as u32,
        comm: bpf_get_current_comm().unwrap_or_default(),
    });
    // The loader looks in by itself; a wake-up a fault would cost it more.
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}

#[inline(always)]
fn known_thread() -> Option<&'static Thread> {
    let tid = bpf_get_current_pid_tgid() as u32;
    // SAFETY: entries are only read and written as whole words.
    let index = unsafe { TIDS.get(tid) }?;
    THREADS.get(*index)
}

/// The entry of the current thread; its first fault takes a free one.
#[inline(always)]
fn thread_entry(slot: u32) -> Option<&'static Thread> {
    if let Some(thread) = known_thread() {
        return Some(thread);
    }
    let index = FREE_THREADS.pop().ok()??;
    let id = bpf_get_current_pid_tgid();
    let thread = THREADS.get(index)?;
    set(&thread.id, id);
    set(&thread.vm, u64::from(slot));
    if TIDS.insert(id as u32, index, 0).is_err() {
        set(&thread.id, 0);
        // The entry goes back to where it came from, so there is room for it.
        let _ = FREE_THREADS.push(index, 0);
        return None;
    }
    Some(thread)
}
